//! An application that speaks first, on a port that takes both: members reach it in mTLS and others in plain, each by one
//! connection of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use portunus_sidecar::detect;
use portunus_sidecar::policy::Mode;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{Authority, OURS};
use crate::ends::{self, HANDSHAKES};
use crate::plain::client_config;
use crate::world::{PATIENCE, Setup, World};

const BANNER: &[u8] = b"220 mail.test ready\r\n";
const TUNNELS: &str = "portunus_tunnels_total";

/// Says its banner to whoever comes, and then what it hears.
struct Greeter {
    addr: SocketAddr,
    connections: AtomicU64,
}

impl Greeter {
    async fn open() -> Arc<Greeter> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let greeter = Arc::new(Greeter {
            addr: listener.local_addr().expect("an address"),
            connections: AtomicU64::new(0),
        });
        let told = greeter.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                told.connections.fetch_add(1, Relaxed);
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    // Whoever leaves is seen by the other side.
                    if to.write_all(BANNER).await.is_ok() {
                        let _ = tokio::io::copy(&mut from, &mut to).await;
                    }
                });
            }
        });
        greeter
    }

    fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }
}

/// A client that waits for the banner.
async fn greeted(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let talk = async {
        let mut banner = [0; BANNER.len()];
        stream.read_exact(&mut banner).await.expect("a banner");
        assert_eq!(banner, BANNER);
        stream.write_all(b"QUIT").await.expect("it is open");
        let mut word = [0; 4];
        stream.read_exact(&mut word).await.expect("an echo");
        assert_eq!(&word, b"QUIT");
    };
    tokio::time::timeout(PATIENCE, talk).await.expect("it is greeted");
}

async fn dial(to: SocketAddr) -> TcpStream {
    TcpStream::connect(to).await.expect("it listens")
}

/// A sidecar before the application that waits so long for a ClientHello on a port whose application speaks first.
async fn permissive(root: &Authority, application: &Greeter, hello: Duration) -> World {
    let setup = Setup {
        detect: detect::Settings {
            silence: hello.max(detect::Settings::default().silence),
            hello,
            ..detect::Settings::default()
        },
        ..ends::inbound(root, Mode::Permissive)
    };
    World::before(application.addr, setup).await
}

/// A road on which what is said first is so long under way, or, with none, until the other side has spoken.
async fn slow_road(to: SocketAddr, takes: Option<Duration>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = dial(to).await;
                match takes {
                    Some(takes) => tokio::time::sleep(takes).await,
                    None => {
                        far.peek(&mut [0]).await.expect("it is open");
                    }
                }
                // Either side's end is the end of both.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    addr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_and_others_are_greeted_on_one_port_each_by_a_connection_of_its_own() {
    let root = Authority::root("root");
    let application = Greeter::open().await;
    let far = permissive(&root, &application, Duration::from_secs(3)).await;
    let near = World::before(far.proxy, ends::outbound(&root, OURS)).await;
    // First members alone, then others between them.
    for round in 1..=4 {
        greeted(dial(near.proxy).await).await;
        assert_eq!(application.connections(), round, "of members alone");
    }
    for round in 1..=3 {
        greeted(dial(far.proxy).await).await;
        greeted(dial(near.proxy).await).await;
        assert_eq!(application.connections(), 4 + 2 * round, "of members and others");
    }
    near.until(HANDSHAKES, &["outbound", "result=\"ok\""], |now| now == 7.0)
        .await;
    far.until(HANDSHAKES, &["inbound", "result=\"ok\""], |now| now == 7.0)
        .await;
    assert_eq!(near.metric(HANDSHAKES, &[]) + far.metric(HANDSHAKES, &[]), 14.0);
    assert_eq!(far.metric(TUNNELS, &["inbound", "tls=\"true\""]), 7.0);
    assert_eq!(far.metric(TUNNELS, &["inbound", "tls=\"false\""]), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_comes_late_is_waited_for_where_the_application_is_known_to_speak_first() {
    let root = Authority::root("root");
    let application = Greeter::open().await;
    let far = permissive(&root, &application, Duration::from_secs(5)).await;
    greeted(dial(far.proxy).await).await;
    let road = slow_road(far.proxy, Some(Duration::from_millis(200))).await;
    let config = ends::speaking(client_config(Some(&root.leaf(|_| {}))), &[ends::TCP]);
    greeted(ends::shake(road, config).await.expect("a handshake")).await;
    assert_eq!(application.connections(), 2);
    assert_eq!(far.metric(TUNNELS, &["inbound", "tls=\"true\""]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_with_a_hello_that_is_too_late_says_nothing_and_names_the_reason() {
    let root = Authority::root("root");
    let application = Greeter::open().await;
    let far = permissive(&root, &application, detect::Settings::default().hello).await;
    greeted(dial(far.proxy).await).await;
    let road = slow_road(far.proxy, None).await;
    let near = World::before(road, ends::outbound(&root, OURS)).await;
    let mut socket = dial(near.proxy).await;
    socket
        .write_all(b"a word that is not for everybody")
        .await
        .expect("it is open");
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut heard)).await;
    assert!(ended.expect("it ends").is_err(), "it is reset");
    assert_eq!(heard, b"");
    near.until(HANDSHAKES, &["outbound", "result=\"not_tls\""], |now| now == 1.0)
        .await;
    assert_eq!(near.metric(HANDSHAKES, &["outbound"]), 1.0);
}
