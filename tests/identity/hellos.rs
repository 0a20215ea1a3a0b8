//! Hellos as no honest client says them: in pieces, too large, with everything twice. Each is answered or ended, and the
//! application hears of none.

use std::mem::discriminant;
use std::net::SocketAddr;
use std::time::Duration;

use portunus_sidecar::policy::Mode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::Authority;
use crate::ends::{self, Ear};
use crate::floods;
use crate::world::World;

/// A connection that has proven nothing is answered or closed within this time.
const AT_MOST: Duration = Duration::from_secs(15);

const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const ALPN: u16 = 16;
const EARLY_DATA: u16 = 42;
const VERSIONS: u16 = 43;
const COOKIE: u16 = 44;
const KEY_SHARE: u16 = 51;
const PRE_SHARED_KEY: u16 = 41;

/// A ClientHello taken apart (RFC 8446, 4.1.2).
#[derive(Clone)]
struct Hello {
    version: [u8; 2],
    random: Vec<u8>,
    session: Vec<u8>,
    suites: Vec<u8>,
    compression: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    /// As rustls says it.
    fn usual(root: &Authority) -> Hello {
        let record = floods::hello(&root.leaf(|_| {}));
        let mut rest = &record[9..];
        let mut take = |n: usize| {
            let (taken, left) = rest.split_at(n);
            rest = left;
            taken.to_vec()
        };
        let long = |length: Vec<u8>| length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let version = [take(1)[0], take(1)[0]];
        let random = take(32);
        let n = long(take(1));
        let session = take(n);
        let n = long(take(2));
        let suites = take(n);
        let n = long(take(1));
        let compression = take(n);
        let mut left = long(take(2));
        let mut extensions = Vec::new();
        while left > 0 {
            let (kind, n) = (long(take(2)) as u16, long(take(2)));
            extensions.push((kind, take(n)));
            left -= 4 + n;
        }
        Hello {
            version,
            random,
            session,
            suites,
            compression,
            extensions,
        }
    }

    /// The handshake message, with lengths that may be wrong where something is longer than it can be said.
    fn message(&self) -> Vec<u8> {
        let long = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
        let short = |bytes: &[u8]| [&[bytes.len() as u8], bytes].concat();
        let extension = |(kind, data): &(u16, Vec<u8>)| [&kind.to_be_bytes()[..], &long(data)].concat();
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        let body = [
            self.version.to_vec(),
            self.random.clone(),
            short(&self.session),
            long(&self.suites),
            short(&self.compression),
            long(&extensions),
        ]
        .concat();
        let length = (body.len() as u32).to_be_bytes();
        [&[1, length[1], length[2], length[3]], &body[..]].concat()
    }

    fn with(&self, kind: u16, data: &[u8]) -> Hello {
        let mut hello = self.without(kind);
        hello.extensions.insert(0, (kind, data.to_vec()));
        hello
    }

    fn without(&self, kind: u16) -> Hello {
        let mut hello = self.clone();
        hello.extensions.retain(|(known, _)| *known != kind);
        hello
    }

    /// The extension once more, behind what is there.
    fn and(&self, kind: u16, data: &[u8]) -> Hello {
        let mut hello = self.clone();
        hello.extensions.push((kind, data.to_vec()));
        hello
    }
}

/// Handshake records of a size.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(record).collect()
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &(fragment.len() as u16).to_be_bytes(), fragment].concat()
}

fn protocols(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[name.len() as u8], *name].concat())
        .collect();
    [&(list.len() as u16).to_be_bytes(), &list[..]].concat()
}

/// How the door met a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// ServerHello, or the wish for another hello.
    Answered,
    /// An alert.
    Alert(u8),
    /// Without a word.
    Closed,
}

async fn meet(door: SocketAddr, said: &[u8]) -> Met {
    let mut socket = TcpStream::connect(door).await.expect("it listens");
    let met = async {
        // Whoever is not heard to the end learns why by reading.
        let _ = socket.write_all(said).await;
        let mut head = [0; 7];
        match socket.read_exact(&mut head).await {
            Ok(_) if head[0] == 22 && head[5] == 2 => Met::Answered,
            Ok(_) if head[0] == 21 => Met::Alert(head[6]),
            Ok(_) => panic!("{head:?}"),
            Err(_) => Met::Closed,
        }
    };
    tokio::time::timeout(AT_MOST, met)
        .await
        .expect("it is answered or ended")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_pieces_is_the_same_hello() {
    let _with_others = floods::ALONE.read().await;
    let root = Authority::root("root");
    let application = Ear::open().await;
    let message = Hello::usual(&root).message();
    for mode in ends::MODES {
        let world = World::before(application.addr, ends::patient(&root, mode)).await;
        let everywhere = (1..message.len()).filter(|at| *at < 300 || at % 29 == 0);
        for at in everywhere {
            let (first, second) = message.split_at(at);
            let met = meet(world.proxy, &[record(first), record(second)].concat()).await;
            assert_eq!(met, Met::Answered, "{mode:?}: split at {at} of {}", message.len());
        }
        for size in [1, 2, 3, 100] {
            let met = meet(world.proxy, &records(&message, size)).await;
            assert_eq!(met, Met::Answered, "{mode:?}: by {size}");
        }
    }
    assert!(application.has_heard_nothing());
}

/// Hellos with one thing strange in each, and how a port that takes mTLS alone meets them; where nothing stands, in one way
/// or another.
fn strange(usual: &Hello) -> Vec<(&'static str, Hello, Option<Met>)> {
    let offering = |names: &[&[u8]]| usual.with(ALPN, &protocols(names));
    let many: Vec<Vec<u8>> = (0..40).map(|number| format!("other/{number}").into_bytes()).collect();
    let mut crowded: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    crowded.push(ends::H2);
    let named = |name: &[u8]| {
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
        [&(entry.len() as u16).to_be_bytes(), &entry[..]].concat()
    };
    let mut unknown = usual.clone();
    unknown
        .extensions
        .splice(0..0, (0..200).map(|kind| (0x5a00 + kind, vec![7; 9])));
    let mut greased = usual.with(0x0a0a, &[]).and(0xfafa, &[0]);
    greased.suites.splice(0..0, [0x2a, 0x2a]);
    let changed = |change: fn(&mut Hello)| {
        let mut hello = usual.clone();
        change(&mut hello);
        hello
    };
    let share = |group: u16, key: &[u8]| {
        let group = group.to_be_bytes();
        let entry = [&group[..], &(key.len() as u16).to_be_bytes(), key].concat();
        let shares = [&(entry.len() as u16).to_be_bytes(), &entry[..]].concat();
        // Offered alone, or it would be asked for another.
        usual.with(GROUPS, &[0, 2, group[0], group[1]]).with(KEY_SHARE, &shares)
    };
    let answered = Some(Met::Answered);
    let closed = Some(Met::Closed);
    // Which one is rustls's affair.
    let alert = Some(Met::Alert(0));
    let anyhow = None;
    vec![
        ("as it should be", usual.clone(), answered),
        ("200 unknown extensions", unknown, answered),
        ("GREASE", greased, answered),
        ("both protocols", offering(&[ends::H2, ends::TCP]), answered),
        ("h2 before ours", offering(&[b"h2", ends::H2]), answered),
        ("ours before h2", offering(&[ends::H2, b"h2", b"http/1.1"]), answered),
        ("ours twice", offering(&[ends::H2, ends::H2]), answered),
        ("ours with more behind it", offering(&[b"portunus/h2c"]), closed),
        ("ours in capitals", offering(&[b"PORTUNUS/H2"]), closed),
        ("a piece of ours", offering(&[b"portunus"]), closed),
        ("ours behind 40 others", offering(&crowded), closed),
        ("no protocol", usual.without(ALPN), closed),
        ("a protocol without a name", offering(&[b"", ends::H2]), anyhow),
        ("a list that is cut", usual.with(ALPN, &[0, 30, 11, b'p']), closed),
        (
            "h2, and another list with ours",
            offering(&[b"h2"]).and(ALPN, &protocols(&[ends::H2])),
            alert,
        ),
        (
            "ours, and another list with h2",
            offering(&[ends::H2]).and(ALPN, &protocols(&[b"h2"])),
            closed,
        ),
        ("a name", usual.with(SERVER_NAME, &named(b"a.example")), answered),
        (
            "a name with a NUL",
            usual.with(SERVER_NAME, &named(b"a\0.example")),
            anyhow,
        ),
        (
            "an address for a name",
            usual.with(SERVER_NAME, &named(b"127.0.0.1")),
            anyhow,
        ),
        (
            "an endless name",
            usual.with(SERVER_NAME, &named(&[b'a'; 9_000])),
            anyhow,
        ),
        ("no name in its extension", usual.with(SERVER_NAME, &[0, 0]), anyhow),
        ("no version", usual.without(VERSIONS), anyhow),
        ("TLS 1.2 alone", usual.with(VERSIONS, &[2, 3, 3]), alert),
        (
            "a version of the future",
            usual.with(VERSIONS, &[4, 3, 5, 3, 4]),
            answered,
        ),
        ("no key share", usual.without(KEY_SHARE), anyhow),
        ("a key share of nothing", usual.with(KEY_SHARE, &[0, 0]), answered),
        ("a point of small order", share(29, &[0; 32]), alert),
        ("a share that is too short", share(29, &[9; 31]), anyhow),
        ("a point off the curve", share(23, &[4; 65]), alert),
        ("a hybrid share of zeroes", share(4_588, &[0; 1_216]), anyhow),
        ("a cookie that nobody gave", usual.with(COOKIE, &[0, 2, 1, 1]), anyhow),
        ("early data alone", usual.with(EARLY_DATA, &[]), anyhow),
        (
            "a made-up session that is not last",
            usual.with(PRE_SHARED_KEY, &PSK),
            anyhow,
        ),
        ("a made-up session", usual.and(PRE_SHARED_KEY, &PSK), answered),
        (
            "a made-up session and early data",
            usual.and(EARLY_DATA, &[]).and(PRE_SHARED_KEY, &PSK),
            answered,
        ),
        ("an extension twice", usual.and(VERSIONS, &[2, 3, 4]), alert),
        (
            "16 KiB more than is looked at",
            usual.with(0x5a5a, &[7; 17_000]),
            closed,
        ),
        ("64 KiB", usual.with(0x5a5a, &[7; 60_000]), closed),
        ("more than its length can say", usual.with(0x5a5a, &[7; 70_000]), closed),
        ("an old version", changed(|hello| hello.version = [3, 0]), anyhow),
        ("1.3 where 1.2 belongs", changed(|hello| hello.version = [3, 4]), anyhow),
        (
            "a session id that is too long",
            changed(|hello| hello.session = vec![7; 33]),
            anyhow,
        ),
        ("no suite", changed(|hello| hello.suites.clear()), anyhow),
        ("half a suite", changed(|hello| hello.suites.push(0)), anyhow),
        (
            "5,000 suites",
            changed(|hello| hello.suites.extend([0x5a; 10_000])),
            answered,
        ),
        (
            "compression alone",
            changed(|hello| hello.compression = vec![1]),
            anyhow,
        ),
        (
            "compression, too",
            changed(|hello| hello.compression = vec![1, 0]),
            anyhow,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strange_hello_for_the_mesh_is_met_alike_where_plain_is_taken_too() {
    let _with_others = floods::ALONE.read().await;
    let root = Authority::root("root");
    let application = Ear::open().await;
    let usual = Hello::usual(&root);
    for mode in [Mode::Permissive, Mode::Disabled] {
        let world = World::before(application.addr, ends::patient(&root, mode)).await;
        let mut met_alike = 0;
        for (what, hello, due) in strange(&usual) {
            // Others may be for the application, which takes what comes.
            if let Some(due @ (Met::Answered | Met::Alert(_))) = due {
                let met = meet(world.proxy, &records(&hello.message(), 16_384)).await;
                assert_eq!(discriminant(&due), discriminant(&met), "{mode:?}, {what}: {met:?}");
                met_alike += 1;
            }
        }
        assert!(met_alike > 15, "{met_alike}");
        assert!(application.has_heard_nothing(), "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strange_hello_is_answered_or_ended_and_reaches_nobody() {
    let _with_others = floods::ALONE.read().await;
    let root = Authority::root("root");
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::inbound(&root, Mode::Strict)).await;
    let usual = Hello::usual(&root);
    let mut wrong = Vec::new();
    for (what, hello, due) in strange(&usual) {
        // Records hold what fits into them.
        let met = meet(world.proxy, &records(&hello.message(), 16_384)).await;
        if due.is_some_and(|due| discriminant(&due) != discriminant(&met)) {
            wrong.push(format!("{what}: {met:?}"));
        }
    }
    let message = usual.message();
    let raw: Vec<(&str, Vec<u8>, Met)> = vec![
        (
            "an empty record first",
            [record(&[]), record(&message)].concat(),
            Met::Closed,
        ),
        (
            "alerts first",
            [[21, 3, 1, 0, 2, 1, 90].repeat(1_000), record(&message)].concat(),
            Met::Closed,
        ),
        (
            "an alert within",
            [
                record(&message[..9]),
                vec![21, 3, 1, 0, 2, 1, 90],
                record(&message[9..]),
            ]
            .concat(),
            Met::Closed,
        ),
        (
            "a cipher change first",
            [vec![20, 3, 1, 0, 1, 1], record(&message)].concat(),
            Met::Closed,
        ),
        (
            "a hello and another",
            [record(&message), record(&message)].concat(),
            Met::Answered,
        ),
        (
            "bytes that no key has sealed",
            [record(&message), vec![23, 3, 3, 0, 9], vec![7; 9]].concat(),
            Met::Answered,
        ),
        (
            "alerts behind it",
            [record(&message), [21, 3, 3, 0, 2, 1, 90].repeat(1_000)].concat(),
            Met::Answered,
        ),
        (
            "cipher changes behind it",
            [record(&message), [20, 3, 3, 0, 1, 1].repeat(1_000)].concat(),
            Met::Answered,
        ),
        (
            "a goodbye behind it",
            [record(&message), vec![21, 3, 3, 0, 2, 1, 0]].concat(),
            Met::Answered,
        ),
        (
            "a record of SSL 2",
            vec![0x80, 46, 1, 3, 1, 0, 21, 0, 0, 0, 16],
            Met::Closed,
        ),
        ("another handshake message", record(&[0, 0, 0, 0]), Met::Closed),
        ("a length of 16 MiB", record(&[1, 0xff, 0xff, 0xff, 3, 3]), Met::Closed),
        (
            "a record that is too long",
            [&[22, 3, 1, 0x48, 0x01][..], &[1; 18_433]].concat(),
            Met::Closed,
        ),
    ];
    for (what, said, due) in raw {
        let met = meet(world.proxy, &said).await;
        if discriminant(&due) != discriminant(&met) {
            wrong.push(format!("{what}: {met:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(application.has_heard_nothing());
    // The worker has lived through all of it.
    let good = meet(world.proxy, &record(&message)).await;
    assert_eq!(good, Met::Answered);
}

/// An identity of four bytes, and a binder of 32 that nothing was bound by.
const PSK: [u8; 47] = {
    let mut psk = [7; 47];
    // The identities: 4 + 2 + 4 bytes, one of four.
    psk[0] = 0;
    psk[1] = 10;
    psk[2] = 0;
    psk[3] = 4;
    // The binders: 33 bytes, one of 32.
    psk[12] = 0;
    psk[13] = 33;
    psk[14] = 32;
    psk
};
