//! Nobody says in words who it is: `x-forwarded-client-cert` reaches the application once and true, or not at all.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use portunus_sidecar::edge::client_cert::{NAME, is_taken_for};
use portunus_sidecar::http2::hpack::huffman;
use portunus_sidecar::policy::Mode;
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, OURS, PEERS, Shown};
use crate::ends;
use crate::plain::client_config;
use crate::raw::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Field, GOAWAY, HEADERS, PADDED, PRIORITIZED, RST_STREAM, Raw,
    frame, literal,
};
use crate::world::World;

const FORGED: &str = "By=spiffe://cluster.local/ns/shop/sa/greeter;Hash=00;URI=spiffe://cluster.local/ns/shop/sa/admin";

/// An application that keeps every field list that it hears, and answers each call.
struct Keeper {
    addr: SocketAddr,
    lists: Arc<Mutex<Vec<Vec<Field>>>>,
}

impl Keeper {
    async fn open() -> Keeper {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let lists = Arc::new(Mutex::new(Vec::new()));
        let kept = lists.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(keep(socket, kept.clone()));
            }
        });
        Keeper { addr, lists }
    }
}

async fn keep(socket: TcpStream, lists: Arc<Mutex<Vec<Vec<Field>>>>) {
    let mut raw = Raw::of(socket);
    raw.send(&raw::settings(&[])).await;
    raw.hear_preface().await;
    while let Some(event) = raw.event().await {
        if event.kind == HEADERS {
            let fields = raw.fields(&event).await;
            lists.lock().push(fields);
        }
        if matches!(event.kind, HEADERS | DATA) && event.has(END_STREAM) {
            let answer = [raw::response(event.stream), raw::trailers(event.stream)].concat();
            raw.send(&answer).await;
        }
    }
}

/// What a client says behind its preface, on stream 1 and those after it.
type Spoof = (String, Vec<u8>);

fn usual() -> Vec<u8> {
    raw::head("/a.B/C", &[])
}

fn with(more: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &[usual(), more.to_vec()].concat())
}

fn said(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    literal(&mut out, first, name, value);
    out
}

/// The same in the code of Huffman.
fn coded(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    for text in [name, value] {
        let mut code = Vec::new();
        huffman::encode(text, &mut code);
        assert!(code.len() < 127 + 128, "a length of two bytes");
        match code.len() {
            short @ 0..127 => out.push(0x80 | short as u8),
            long => out.extend_from_slice(&[0xff, (long - 127) as u8]),
        }
        out.extend_from_slice(&code);
    }
    out
}

fn in_trailers(more: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, 1, &usual());
    let message = raw::message(1, b"hello", false);
    [head, message, frame(HEADERS, END_HEADERS | END_STREAM, 1, more)].concat()
}

fn spoofs() -> Vec<Spoof> {
    let (name, forged) = (NAME.as_bytes(), FORGED.as_bytes());
    let mut spoofs: Vec<Spoof> = Vec::new();
    let mut add = |what: &str, frames: Vec<u8>| spoofs.push((what.to_owned(), frames));
    for separator in "!#$%&'*+-.^_`|~".chars() {
        let text = NAME.replace('-', &separator.to_string());
        add(&text, with(&said(0, text.as_bytes(), forged)));
        add(
            &format!("{text} in trailers"),
            in_trailers(&said(0, text.as_bytes(), forged)),
        );
    }
    let odd: [&[u8]; 16] = [
        b"x_forwarded-client-cert",
        b"x-forwarded_client-cert",
        b"x-forwarded-client_cert",
        b"x.forwarded_client-cert",
        b"X-Forwarded-Client-Cert",
        b"x-forwarded-client-cerT",
        b"X_FORWARDED_CLIENT_CERT",
        b"x-forwarded-client-cert ",
        b" x-forwarded-client-cert",
        b"x-forwarded-client-cert:",
        b"x-forwarded-client-cert\0",
        b"x\0forwarded\0client\0cert",
        b":x-forwarded-client-cert",
        b"x-a: b\r\nx-forwarded-client-cert",
        b"x\x2d\xadforwarded-client-cert",
        b"x forwarded client cert",
    ];
    for text in odd {
        add(&text.escape_ascii().to_string(), with(&said(0, text, forged)));
        add(
            &format!("{} in trailers", text.escape_ascii()),
            in_trailers(&said(0, text, forged)),
        );
    }
    for (what, first) in [("not indexed", 0x00), ("never indexed", 0x10), ("indexed", 0x40)] {
        add(what, with(&said(first, name, forged)));
        add(&format!("{what}, in Huffman's code"), with(&coded(first, name, forged)));
        add(
            &format!("{what}, in Huffman's code, in trailers"),
            in_trailers(&coded(first, name, forged)),
        );
    }
    let indexed = said(0x40, name, forged);
    add(
        "indexed, and again by its index",
        with(&[indexed.clone(), vec![0xbe, 0xbe]].concat()),
    );
    add(
        "its name by an index",
        with(&[indexed.clone(), said_by_index(forged)].concat()),
    );
    add("behind a smaller table", {
        let block = [vec![0x20], usual(), indexed.clone()].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    });
    add("learned by the first call, said by the second", {
        let second = frame(HEADERS, END_HEADERS | END_STREAM, 3, &[usual(), vec![0xbe]].concat());
        [with(&indexed), second].concat()
    });
    add("learned by trailers, said by the second call", {
        let second = frame(HEADERS, END_HEADERS | END_STREAM, 3, &[usual(), vec![0xbe]].concat());
        [in_trailers(&indexed), second].concat()
    });
    add("twice", with(&said(0, name, forged).repeat(2)));
    add(
        "three spellings",
        with(
            &[
                said(0, b"x_forwarded_client_cert", forged),
                said(0, name, forged),
                said(0, b"x.forwarded.client.cert", forged),
            ]
            .concat(),
        ),
    );
    add(
        "behind another value",
        with(&said(0, name, format!("a,{FORGED}").as_bytes())),
    );
    add(
        "behind a value that is none",
        with(&[said(0, name, b""), said(0, name, forged)].concat()),
    );
    add("before the pseudo fields", {
        let block = [said(0, name, forged), usual()].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    });
    let block = [usual(), said(0, name, forged)].concat();
    let middle = block.len() - forged.len() - 10;
    add("its name in two frames", {
        let first = frame(HEADERS, END_STREAM, 1, &block[..middle]);
        [first, frame(CONTINUATION, END_HEADERS, 1, &block[middle..])].concat()
    });
    add("an empty frame within its name", {
        let first = frame(HEADERS, END_STREAM, 1, &block[..middle]);
        let empty = frame(CONTINUATION, 0, 1, &[]);
        [first, empty, frame(CONTINUATION, END_HEADERS, 1, &block[middle..])].concat()
    });
    add("padded, with a priority", {
        let padded = [vec![8, 0, 0, 0, 0, 16], block.clone(), vec![0; 8]].concat();
        frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITIZED, 1, &padded)
    });
    add("in a line of another value", {
        with(&said(0, b"x-a", format!("b\r\n{NAME}: {FORGED}").as_bytes()))
    });
    add("named by a connection field", {
        with(&[said(0, b"connection", name), said(0, name, forged)].concat())
    });
    add("in a list that is too long", {
        let long = vec![b'a'; 70_000];
        let block = [usual(), said(0, name, forged), said(0, b"x-long", &long)].concat();
        let (first, rest) = block.split_at(16_000);
        let mut frames = frame(HEADERS, END_STREAM, 1, first);
        let pieces: Vec<_> = rest.chunks(16_000).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let flags = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
            frames.extend(frame(CONTINUATION, flags, 1, piece));
        }
        frames
    });
    spoofs
}

/// A literal whose name is the newest of the dynamic table, 62.
fn said_by_index(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    literal(&mut out, 0x00, b"", value);
    // The byte for "a new name" and the empty name make place for the index (RFC 7541, 6.2.2).
    [vec![0x0f, 62 - 15], out[2..].to_vec()].concat()
}

/// What an application is told of the caller that shows this.
fn truth(shown: &Shown) -> String {
    let hash = sha2::Sha256::digest(&shown.chain[0]);
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("By={OURS};Hash={hash};URI={PEERS}")
}

/// Tries all spoofs at a door; `truth` is what has to arrive.
async fn try_all(door: SocketAddr, keeper: &Keeper, truth: Option<&str>) {
    let spoofs = spoofs();
    assert!(spoofs.len() >= 40, "only {}", spoofs.len());
    let mut arrived = 0;
    for (what, frames) in spoofs {
        let streams = 1 + usize::from(what.contains("second"));
        let mut caller = Raw::client(door, &[]).await;
        caller.send(&frames).await;
        let mut ended = 0;
        while ended < streams {
            match caller.event().await {
                Some(event) if event.kind == HEADERS => {
                    caller.fields(&event).await;
                    ended += usize::from(event.has(END_STREAM));
                }
                Some(event) if event.kind == RST_STREAM => ended += 1,
                Some(event) if event.kind == GOAWAY => break,
                Some(_) => {}
                None => break,
            }
        }
        for list in std::mem::take(&mut *keeper.lists.lock()) {
            let is_head = list.iter().any(|field| field.name == ":path");
            arrived += usize::from(is_head);
            let taken: Vec<_> = list
                .iter()
                .filter(|field| is_taken_for(field.name.as_bytes()))
                .collect();
            for field in &list {
                let value = String::from_utf8_lossy(&field.value);
                assert!(!value.contains("sa/admin"), "{what}: {}: {value} arrived", field.name);
            }
            match truth.filter(|_| is_head) {
                None => assert!(taken.is_empty(), "{what}: {taken:?}"),
                Some(truth) => {
                    assert_eq!(taken.len(), 1, "{what}: {taken:?}");
                    assert_eq!(
                        (taken[0].name.as_str(), &*taken[0].value),
                        (NAME, truth.as_bytes()),
                        "{what}"
                    );
                }
            }
        }
    }
    assert!(arrived >= 40, "only {arrived} calls reached the application");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_in_plain_says_who_it_is() {
    let root = Authority::root("root");
    let keeper = Keeper::open().await;
    let world = World::before(keeper.addr, ends::inbound(&root, Mode::Permissive)).await;
    try_all(world.proxy, &keeper, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_in_mtls_is_named_once_by_what_it_proved_whatever_it_says() {
    let root = Authority::root("root");
    let keeper = Keeper::open().await;
    let world = World::before(keeper.addr, ends::inbound(&root, Mode::Strict)).await;
    let shown = root.leaf(|_| {});
    let door = ends::veil(world.proxy, client_config(Some(&shown))).await;
    try_all(door, &keeper, Some(&truth(&shown))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_for_http_1_and_http_2_inside_a_tunnel() {
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let config = ends::speaking(client_config(Some(&shown)), &[ends::TCP]);

    // Whoever says HTTP/2 in a tunnel is heard as anybody who does.
    let keeper = Keeper::open().await;
    let world = World::before(keeper.addr, ends::inbound(&root, Mode::Strict)).await;
    let door = ends::veil(world.proxy, config.clone()).await;
    try_all(door, &keeper, Some(&truth(&shown))).await;

    let (application, requests) = http1().await;
    let world = World::before(application, ends::inbound(&root, Mode::Strict)).await;
    let door = ends::veil(world.proxy, config).await;
    let mut lines: Vec<String> = "!#$%&'*+-.^_`|~"
        .chars()
        .map(|separator| format!("{}: {FORGED}\r\n", NAME.replace('-', &separator.to_string())))
        .collect();
    for name in [
        "X-Forwarded-Client-Cert",
        "X-FORWARDED-CLIENT-CERT",
        "x-Forwarded_client-Cert",
    ] {
        lines.push(format!("{name}: {FORGED}\r\n"));
        lines.push(format!("{name}: {FORGED}\r\n{name}: {FORGED}\r\n"));
        lines.push(format!("{name} : {FORGED}\r\n"));
        lines.push(format!("x-a: b\r\n {name}: {FORGED}\r\n"));
        lines.push(format!("Connection: {name}\r\n{name}: {FORGED}\r\n"));
    }
    let mut asked = 0;
    for line in &lines {
        // And once more behind it on the same connection, before the first is answered.
        let one = format!("GET /a HTTP/1.1\r\nHost: a\r\n{line}\r\n");
        let both = format!("{one}{}", one.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
        let mut socket = TcpStream::connect(door).await.expect("it listens");
        socket.write_all(both.as_bytes()).await.expect("it is read");
        let mut answer = Vec::new();
        // A refusal may be followed by a reset.
        let _ = socket.read_to_end(&mut answer).await;
        for request in std::mem::take(&mut *requests.lock()) {
            asked += 1;
            let told: Vec<_> = request
                .lines()
                .filter_map(|line| line.split_once(':'))
                .filter(|(name, _)| is_taken_for(name.trim().as_bytes()))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
                .collect();
            assert_eq!(
                told,
                [(NAME.to_owned(), truth(&shown).as_str())],
                "{line:?} as {request:?}"
            );
            assert!(
                request.to_lowercase().contains("\r\nx-forwarded-proto: https\r\n"),
                "{request:?}"
            );
            assert!(!request.contains("sa/admin"), "{line:?} as {request:?}");
        }
    }
    assert!(
        asked >= lines.len(),
        "of {} spoofs {asked} requests arrived",
        lines.len()
    );
}

/// An application of HTTP/1 that keeps the head of each request.
pub async fn http1() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = requests.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let (mut heard, mut room) = (String::new(), [0; 4_096]);
                while let Ok(n @ 1..) = socket.read(&mut room).await {
                    heard.push_str(&String::from_utf8_lossy(&room[..n]));
                    while let Some(end) = heard.find("\r\n\r\n") {
                        kept.lock().push(heard.drain(..end + 4).collect());
                        let answered = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                        if answered.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    (addr, requests)
}
