//! Whoever shakes hands without end, or never finishes: it is closed in time, costs bounded memory, and its neighbour's calls
//! go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use portunus_sidecar::policy::Mode;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use support::crowd::{self, crowd};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::RwLock;

use crate::authority::{Authority, Shown};
use crate::ends::{self, Ear};
use crate::log;
use crate::modes::ask;
use crate::plain::client_config;
use crate::raw;
use crate::world::{World, collect, request};

/// A connection that has proven nothing is closed within this time.
const AT_MOST: Duration = Duration::from_secs(15);

/// How long an innocent may need for its calls, on whatever machine.
pub const ENOUGH: Duration = Duration::from_secs(60);

/// Whoever takes it to write would be disturbed in its figures by the others of those; whoever takes it to read would
/// disturb them by what it holds in memory.
pub static ALONE: RwLock<()> = RwLock::const_new(());

/// What somebody says first who will show this.
pub fn hello(shown: &Shown) -> Vec<u8> {
    crowd::hello(client_config(Some(shown)))
}

/// The resident memory of this process, in MiB.
pub fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says it");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("it has some");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("a number");
    kib / 1_024
}

/// Somebody who calls all the while, in mTLS, on one connection.
pub struct Innocent {
    /// Calls that were answered until now.
    pub answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    calling: tokio::task::JoinHandle<Vec<Duration>>,
}

/// An innocent's calls, of which none failed.
#[derive(Debug)]
pub struct Calls {
    pub count: usize,
    /// Half of them took no longer.
    pub median: Duration,
    pub longest: Duration,
}

impl Calls {
    /// That there were so many, of which half were answered within this time, and each in the end. A pause of the machine
    /// makes a few of them long, and not half.
    pub fn assert_prompt(&self, count: usize, median: Duration) {
        assert!(self.count >= count && self.median < median, "{self:?}");
        assert!(self.longest < Duration::from_secs(10), "{self:?}");
    }
}

impl Innocent {
    pub async fn start(world: &World, shown: &Shown) -> Innocent {
        let veil = ends::veil(world.proxy, client_config(Some(shown))).await;
        let socket = TcpStream::connect(veil).await.expect("it listens");
        let (sender, connection) = h2::client::handshake(socket).await.expect("a handshake");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("it is ready");
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let answered = Arc::new(AtomicU64::new(0));
        let counted = answered.clone();
        let calling = tokio::spawn(async move {
            let mut took = Vec::new();
            while !told.load(Relaxed) || took.is_empty() {
                let began = Instant::now();
                let (response, _) = sender.send_request(request("/a.B/C", &[]), true).expect("it is open");
                let answer = collect(response.await.expect("an answer"), 0)
                    .await
                    .expect("a whole one");
                assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{:?}", answer.grpc_message);
                took.push(began.elapsed());
                counted.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            took
        });
        Innocent {
            answered,
            stop,
            calling,
        }
    }

    /// Lets it go on until it has made so many calls.
    pub async fn until(&self, count: u64) {
        let began = Instant::now();
        // What failed is said when it is stopped.
        while self.answered.load(Relaxed) < count && began.elapsed() < ENOUGH && !self.calling.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Its calls until now. That none failed is part of it.
    pub async fn stop(self) -> Calls {
        self.stop.store(true, Relaxed);
        let mut took = self.calling.await.expect("no call failed");
        took.sort();
        Calls {
            count: took.len(),
            median: *took.get(took.len() / 2).expect("it called"),
            longest: *took.last().expect("it called"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silent_and_those_of_half_a_handshake_are_closed_in_time() {
    let _alone = ALONE.write().await;
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let innocent = Innocent::start(&world, &shown).await;
    let before = resident();
    let hello = hello(&shown);
    let peak = Arc::new(AtomicU64::new(0));
    let (kept, over) = (peak.clone(), Arc::new(AtomicBool::new(false)));
    let ended = over.clone();
    let watching = tokio::spawn(async move {
        while !ended.load(Relaxed) {
            kept.fetch_max(resident(), Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let (silent, begun, half) = tokio::join!(
        crowd(world.proxy, 2_000, b""),
        crowd(world.proxy, 500, &hello[..hello.len() / 2]),
        crowd(world.proxy, 500, &hello),
    );
    over.store(true, Relaxed);
    watching.await.expect("no panic");
    let grown = peak.load(Relaxed).saturating_sub(before);
    let meanwhile = innocent.answered.load(Relaxed);
    innocent.until(500).await;
    let calls = innocent.stop().await;
    eprintln!(
        "silent {silent:?}, half a hello {begun:?}, half a handshake {half:?}; +{grown} MiB; {meanwhile} of {calls:?}"
    );
    for lived in [silent, begun, half] {
        assert!(lived < AT_MOST, "a connection lived {lived:?}");
    }
    // The ends of 3,000 connections stand in this process, too.
    assert!(grown < 200, "memory grew by {grown} MiB");
    // One in 250 ms, as long as the silent are waited for: 10 s.
    assert!(meanwhile >= 40, "{meanwhile} calls were answered meanwhile");
    calls.assert_prompt(500, Duration::from_millis(250));
    world
        .until("portunus_proxy_errors_total", &["no_client_hello"], |now| {
            now >= 2_000.0
        })
        .await;
    world
        .until(ends::HANDSHAKES, &["inbound", "too_slow"], |now| now == 500.0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_hello_and_half_a_handshake_are_closed_in_time_where_plain_is_taken_too() {
    let _alone = ALONE.write().await;
    log::keep();
    let root = Authority::root("root");
    let hello = hello(&root.leaf(|_| {}));
    let application = Ear::open().await;
    let meet = async |mode| {
        let world = World::before(application.addr, ends::patient(&root, mode)).await;
        let said = log::end();
        // One byte says as little as one that is missing.
        let (byte, begun, last, half) = tokio::join!(
            crowd(world.proxy, 20, &hello[..1]),
            crowd(world.proxy, 20, &hello[..hello.len() / 2]),
            crowd(world.proxy, 20, &hello[..hello.len() - 1]),
            crowd(world.proxy, 20, &hello),
        );
        for lived in [byte, begun, last, half] {
            assert!(lived < AT_MOST, "{mode:?}: a connection lived {lived:?}");
        }
        world
            .until("portunus_proxy_errors_total", &["inbound", "no_client_hello"], |now| {
                now == 60.0
            })
            .await;
        world
            .until(ends::HANDSHAKES, &["inbound", "too_slow"], |now| now == 20.0)
            .await;
        let meant = format!("meant={}", world.meant);
        said.says(&[&meant, "the client began a TLS ClientHello (1 bytes of it)"])
            .await;
    };
    tokio::join!(meet(Mode::Permissive), meet(Mode::Disabled));
    assert!(application.has_heard_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dribbled_hello_is_closed_in_time() {
    let _alone = ALONE.write().await;
    let root = Authority::root("root");
    let application = Ear::open().await;
    let mut worlds = Vec::new();
    for mode in ends::MODES {
        worlds.push(World::before(application.addr, ends::patient(&root, mode)).await);
    }
    let hello = hello(&root.leaf(|_| {}));
    let mut all = tokio::task::JoinSet::new();
    for (at, world) in (0..99).zip(worlds.iter().cycle()) {
        let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
        let hello = hello.clone();
        all.spawn(async move {
            let began = Instant::now();
            for byte in hello {
                if socket.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50 + at)).await;
            }
            let _ = socket.read_to_end(&mut Vec::new()).await;
            began.elapsed()
        });
    }
    while let Some(lived) = all.join_next().await {
        let lived = lived.expect("no panic");
        assert!(lived < AT_MOST, "a connection lived {lived:?}");
    }
    assert!(application.has_heard_nothing());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_leaves_the_innocent_alone() {
    let _alone = ALONE.write().await;
    let root = Authority::root("root");
    let (shown, foreign) = (root.leaf(|_| {}), Authority::root("another").leaf(|_| {}));
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let innocent = Innocent::start(&world, &shown).await;
    let newcomers = ends::veil(world.proxy, client_config(Some(&shown))).await;
    let before = resident();
    let began = Instant::now();
    let mut rounds = 0;
    // So many, and more while the innocent needs for its calls.
    while rounds < 100 || innocent.answered.load(Relaxed) < 20 && began.elapsed() < ENOUGH {
        rounds += 1;
        // Hellos whose senders leave, and whole handshakes of those whom nobody knows; among them one who may come in.
        let hello = hello(&shown);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let (hello, to) = (hello.clone(), world.proxy);
            all.spawn(async move {
                let mut socket = TcpStream::connect(to).await.expect("it listens");
                let _ = socket.write_all(&hello).await;
            });
        }
        all.spawn(async move {
            let answer = tokio::time::timeout(ENOUGH, ask(newcomers))
                .await
                .expect("it is served");
            assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{:?}", answer.grpc_message);
        });
        for _ in 0..10 {
            let (config, to) = (client_config(Some(&foreign)), world.proxy);
            all.spawn(async move {
                if let Ok(mut stream) = ends::shake(to, config).await {
                    assert!(stream.read(&mut [0; 16]).await.is_err(), "it was let in");
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.expect("no panic");
        }
    }
    let rate = f64::from(rounds * 50) / began.elapsed().as_secs_f64();
    let grown = resident().saturating_sub(before);
    let calls = innocent.stop().await;
    eprintln!("{rate:.0} handshakes a second, +{grown} MiB, {calls:?}");
    assert!(grown < 100, "memory grew by {grown} MiB");
    calls.assert_prompt(20, Duration::from_millis(500));
    world
        .until(ends::HANDSHAKES, &["inbound", "unknown_issuer"], |now| {
            now == f64::from(rounds * 10)
        })
        .await;
    // The innocent, and each newcomer by a handshake of its own.
    let served = world.metric(ends::HANDSHAKES, &["inbound", "result=\"ok\""]);
    assert_eq!(served, f64::from(1 + rounds));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_key_updates_is_cut_by_the_one_that_it_is_sent_to() {
    let _alone = ALONE.write().await;
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let innocent = Innocent::start(&world, &shown).await;
    let (proxy, config) = (world.proxy, client_config(Some(&shown)));
    let storm = tokio::task::spawn_blocking(move || {
        let name = ServerName::try_from("a.example").expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut socket = std::net::TcpStream::connect(proxy).expect("it listens");
        socket.set_read_timeout(Some(AT_MOST)).expect("a socket");
        while client.is_handshaking() {
            client.complete_io(&mut socket).expect("a handshake");
        }
        let began = Instant::now();
        let mut updates = 0;
        while began.elapsed() < AT_MOST {
            client.refresh_traffic_keys().expect("the storm goes on");
            updates += 1;
            if client.wants_write() && client.write_tls(&mut socket).is_err() {
                return (updates, began.elapsed());
            }
            if updates % 16 == 0 {
                // Its answers are read, so that it is not cut for what it leaves.
                socket
                    .set_read_timeout(Some(Duration::from_millis(5)))
                    .expect("a socket");
                let read = client.read_tls(&mut socket);
                match (read, client.process_new_packets()) {
                    (Ok(0), _) | (_, Err(rustls::Error::AlertReceived(_))) => return (updates, began.elapsed()),
                    (_, Err(error)) => panic!("it was not understood: {error}"),
                    (Ok(_), Ok(_)) => {}
                    (Err(error), Ok(_)) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    (Err(_), Ok(_)) => return (updates, began.elapsed()),
                }
            }
        }
        (updates, began.elapsed())
    });
    let (updates, lived) = storm.await.expect("no panic");
    let calls = innocent.stop().await;
    eprintln!("cut after {updates} updates and {lived:?}; {calls:?}");
    assert!(lived < AT_MOST, "the storm was not cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_hello_inside_the_first_is_no_renegotiation() {
    let root = Authority::root("root");
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::inbound(&root, Mode::Strict)).await;
    let shown = root.leaf(|_| {});
    let mut stream = ends::shake(world.proxy, client_config(Some(&shown)))
        .await
        .expect("a handshake");
    stream.write_all(&hello(&shown)).await.expect("it is read");
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(AT_MOST, stream.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "it lives on");
    assert!(application.has_heard_nothing());
}

#[tokio::test]
async fn a_peer_that_breaks_http_2_without_end_is_cut_short_in_the_log() {
    const CONNECTIONS: usize = 300;
    let _alone = ALONE.write().await;
    log::keep();
    let world = World::start().await;
    let noisy = |last| std::net::Ipv4Addr::new(127, 9, 9, last);
    // A PING of one byte.
    let broken = [raw::PREFACE, &raw::settings(&[]), &raw::frame(raw::PING, 0, 0, &[0])].concat();
    let call = async |address: std::net::Ipv4Addr| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind((address, 0).into()).expect("an address of loopback");
        let mut socket = socket.connect(world.proxy).await.expect("it listens");
        socket.write_all(&broken).await.expect("it is read");
        // It ends, in whatever way.
        let _ = socket.read_to_end(&mut Vec::new()).await;
    };
    let said = log::end();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        call(noisy(1)).await;
    }
    let took = began.elapsed();
    call(noisy(2)).await;
    said.says(&["127.9.9.2", "connection ended"]).await;
    let lines = said.count(&["127.9.9.1", "connection ended"]);
    // A machine that takes ten seconds for it all says some of the next ten seconds, too.
    let most = 100 * (1 + took.as_secs() as usize / 10);
    assert!(
        (100..=most).contains(&lines),
        "{lines} lines of {CONNECTIONS} connections in {took:?}"
    );
}
