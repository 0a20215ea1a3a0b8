//! What a port takes, and what becomes of the rest; and that nothing is ever said in plain to somebody who has an identity.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use portunus_proto::Declared;
use portunus_sidecar::policy::{Inbound, Mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::authority::{Authority, PEERS};
use crate::ends::{self, Ear};
use crate::plain::{client_config, server_config};
use crate::world::{Answer, PATIENCE, Setup, World, collect, request};

const REQUESTS: &str = "portunus_requests_total";
const ERRORS: &str = "portunus_proxy_errors_total";
const TUNNELS: &str = "portunus_tunnels_total";

/// A call on a connection of its own to `door`.
pub async fn ask(door: std::net::SocketAddr) -> Answer {
    let socket = TcpStream::connect(door).await.expect("it listens");
    let (sender, connection) = h2::client::handshake(socket).await.expect("a handshake");
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("it is ready");
    let (response, _) = sender.send_request(request("/a.B/C", &[]), true).expect("it is sent");
    collect(response.await.expect("an answer"), 0)
        .await
        .expect("a whole answer")
}

fn status(answer: &Answer) -> &str {
    answer.grpc_status.as_deref().unwrap_or_default()
}

/// What a plain client hears that says this, and then waits.
async fn heard(world: &World, words: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
    socket.write_all(words).await.expect("it is read");
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut heard)).await;
    ended.expect("it ends").map(|_| heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permissive_port_takes_both_and_counts_the_plain_ones() {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Permissive)).await;
    let door = ends::veil(world.proxy, client_config(Some(&root.leaf(|_| {})))).await;
    assert_eq!(status(&ask(world.proxy).await), "0");
    assert_eq!(status(&ask(door).await), "0");
    assert_eq!(status(&ask(world.proxy).await), "0");
    assert_eq!(
        world.metric(REQUESTS, &["inbound", "tls=\"false\"", "peer_identity=\"\""]),
        2.0
    );
    let proven = format!("peer_identity=\"{PEERS}\"");
    assert_eq!(world.metric(REQUESTS, &["inbound", "tls=\"true\"", &proven]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_port_answers_plain_calls_and_resets_what_is_no_call() {
    let root = Authority::root("root");
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::inbound(&root, Mode::Strict)).await;
    let answer = ask(world.proxy).await;
    let message = answer.grpc_message.clone().unwrap_or_default();
    assert_eq!(status(&answer), "16", "{message}");
    assert!(
        message.contains("takes calls in mTLS only, and this one came in plain"),
        "{message}"
    );
    assert_eq!(answer.head["portunus-error"], "mtls_required");
    let count = || world.metric(ERRORS, &["inbound", "mtls_required"]);
    assert_eq!(count(), 1.0);
    // A ClientHello that offers none of the mesh's protocols is an application's own.
    let mut own = rustls::ClientConnection::new(
        Arc::new(ends::speaking(client_config(None), &[b"h2"])),
        rustls::pki_types::ServerName::try_from("a.example").expect("a name"),
    )
    .expect("a client");
    let mut hello = Vec::new();
    own.write_tls(&mut hello).expect("a vector takes all");
    let words: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        &hello,
        b"*1\r\n$4\r\nPING\r\n",
        b"\0\0\0\0",
    ];
    for (before, words) in words.into_iter().enumerate() {
        let heard = heard(&world, words).await;
        let error = heard.expect_err("it is reset");
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{}",
            words.escape_ascii()
        );
        world
            .until(ERRORS, &["inbound", "mtls_required"], |now| now == 2.0 + before as f64)
            .await;
    }
    assert!(application.has_heard_nothing(), "the application was reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_reaches_the_application_of_a_strict_port_by_silence() {
    let root = Authority::root("root");
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::inbound(&root, Mode::Strict)).await;
    let heard = tokio::time::timeout(std::time::Duration::from_secs(15), async {
        let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
        let mut heard = Vec::new();
        let _ = socket.read_to_end(&mut heard).await;
        heard
    });
    assert_eq!(heard.await.expect("it ends within 15 s"), b"");
    world
        .until(ERRORS, &["inbound", "no_client_hello"], |now| now == 1.0)
        .await;
    assert_eq!(application.connections.load(Relaxed), 0, "the application was called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_port_takes_plain_alone_and_says_so() {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Disabled)).await;
    let door = ends::veil(world.proxy, client_config(Some(&root.leaf(|_| {})))).await;
    assert_eq!(status(&ask(world.proxy).await), "0");
    let answer = ask(door).await;
    let message = answer.grpc_message.clone().unwrap_or_default();
    assert_eq!(status(&answer), "16", "{message}");
    assert!(message.contains("takes no mTLS"), "{message}");
    assert_eq!(answer.head["portunus-error"], "mtls_disabled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_call_is_taken_in_plain_by_a_disabled_port_and_closed_in_mtls() {
    let root = Authority::root("root");
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::patient(&root, Mode::Disabled)).await;
    let words: [&[u8]; 3] = [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"*1\r\n$4\r\nPING\r\n"];
    for (before, words) in words.into_iter().enumerate() {
        let config = ends::speaking(client_config(Some(&root.leaf(|_| {}))), &[ends::TCP]);
        let mut member = ends::shake(world.proxy, config).await.expect("a handshake");
        // It may be over before that is said.
        let _ = member.write_all(words).await;
        let ended = tokio::time::timeout(PATIENCE, member.read(&mut [0; 16])).await;
        let ended = ended.expect("it ends");
        assert!(ended.is_err(), "{}: {ended:?}", words.escape_ascii());
        world
            .until(ERRORS, &["inbound", "mtls_disabled"], |now| now == 1.0 + before as f64)
            .await;
    }
    assert!(application.has_heard_nothing(), "the application was reached");
    let mut open = Vec::new();
    for (before, words) in words[1..].iter().enumerate() {
        let mut plain = TcpStream::connect(world.proxy).await.expect("it listens");
        plain.write_all(words).await.expect("it is read");
        open.push(plain);
        let last = &words[words.len() - 4..];
        until(|| application.heard.lock().ends_with(last)).await;
        assert_eq!(
            world.metric(TUNNELS, &["inbound", "tls=\"false\""]),
            1.0 + before as f64
        );
    }
    assert_eq!(world.metric(TUNNELS, &["inbound", "tls=\"true\""]), 0.0);
    assert_eq!(world.metric(ERRORS, &["inbound"]), 3.0, "nothing plain was refused");
}

/// Waits until something is so.
async fn until(so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !so() {
        assert!(began.elapsed() < PATIENCE, "it does not become so");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_applications_own_tls_is_carried_to_it_where_plain_is_taken() {
    let (root, others) = (Authority::root("root"), Authority::root("another"));
    for mode in [Mode::Permissive, Mode::Disabled] {
        let mut config = server_config(&others.leaf(|_| {}));
        config.alpn_protocols = vec![b"h2".to_vec()];
        let application = Ear::in_tls(config).await;
        let world = World::before(application.addr, ends::patient(&root, mode)).await;
        for (before, protocols) in [&[][..], &[b"h2".as_slice()]].into_iter().enumerate() {
            // Somebody whom the mesh does not know, and whom the application takes.
            let config = ends::speaking(client_config(Some(&others.leaf(|_| {}))), protocols);
            let mut stranger = ends::shake(world.proxy, config)
                .await
                .expect("the application's handshake");
            stranger.write_all(b"a word for it").await.expect("it is read");
            until(|| application.heard.lock().len() == (before + 1) * 13).await;
            assert_eq!(
                world.metric(TUNNELS, &["inbound", "tls=\"false\""]),
                1.0 + before as f64,
                "{mode:?}"
            );
        }
        assert_eq!(application.connections.load(Relaxed), 2, "{mode:?}");
        // Nobody here has shaken hands.
        assert_eq!(world.metric(ends::HANDSHAKES, &[]), 0.0, "{mode:?}");
        assert_eq!(world.metric(ERRORS, &[]), 0.0, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mode_of_the_port_goes_before_that_of_all_and_both_may_change_at_any_time() {
    let root = Authority::root("root");
    let (setup, say) = unheard(&root);
    let world = World::with(setup).await;
    let mut caller = world.caller().await;
    let port = world.meant.port();
    let of = |default, ports: &[(u16, Mode)]| {
        Arc::new(Inbound {
            default: Some(default),
            ports: BTreeMap::from_iter(ports.iter().copied()),
            ..Default::default()
        })
    };
    let steps = [
        (of(Mode::Strict, &[]), "16"),
        (of(Mode::Strict, &[(port, Mode::Permissive)]), "0"),
        (of(Mode::Permissive, &[(port, Mode::Strict)]), "16"),
        (of(Mode::Disabled, &[(port ^ 1, Mode::Strict)]), "0"),
    ];
    for (modes, expected) in steps {
        say.send(modes.clone()).expect("it is followed");
        // The caller's connection is older than what holds now.
        let began = std::time::Instant::now();
        loop {
            let answer = caller.ask(request("/a.B/C", &[])).await.expect("answered");
            if status(&answer) == expected {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{modes:?} does not hold");
        }
        assert_eq!(status(&ask(world.proxy).await), expected, "{modes:?}");
    }
}

/// A mesh whose modes are said later.
fn unheard(root: &Authority) -> (Setup, watch::Sender<Arc<Inbound>>) {
    let mut setup = ends::inbound(root, Mode::Permissive);
    let (say, modes) = watch::channel(Arc::new(Inbound::default()));
    if let Some(mesh) = &mut setup.mesh {
        mesh.modes = modes;
    }
    (setup, say)
}

fn all(mode: Mode) -> Arc<Inbound> {
    Arc::new(Inbound {
        default: Some(mode),
        ..Inbound::default()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_control_has_spoken_nobody_comes_in_in_plain_and_whoever_has_proven_itself_does() {
    let root = Authority::root("root");
    let (setup, say) = unheard(&root);
    let world = World::with(setup).await;
    let door = ends::veil(world.proxy, client_config(Some(&root.leaf(|_| {})))).await;
    assert_eq!(status(&ask(door).await), "0");
    let answer = ask(world.proxy).await;
    assert_eq!(status(&answer), "14");
    assert_eq!(answer.head["portunus-error"], "policy_unknown");
    for words in [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"*1\r\n$4\r\nPING\r\n"] {
        let error = heard(&world, words).await.expect_err("it is reset");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    world
        .until(ERRORS, &["inbound", "policy_unknown"], |now| now == 3.0)
        .await;
    say.send(all(Mode::Permissive)).expect("it is followed");
    let began = std::time::Instant::now();
    while status(&ask(world.proxy).await) != "0" {
        assert!(began.elapsed() < PATIENCE, "control's word is not taken");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_on_an_open_connection_is_refused_once_its_port_takes_mtls_alone() {
    let root = Authority::root("root");
    let (setup, say) = unheard(&root);
    say.send(all(Mode::Permissive)).expect("it is followed");
    let (application, requests) = crate::spoofs::http1().await;
    let world = World::before(application, setup).await;
    let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
    let mut ask = async |ends: &str| {
        socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?;
        let (mut answer, mut room) = (String::new(), [0; 4_096]);
        while !answer.ends_with(ends) {
            match socket.read(&mut room).await? {
                0 => break,
                n => answer.push_str(&String::from_utf8_lossy(&room[..n])),
            }
        }
        std::io::Result::Ok(answer)
    };
    let first = ask("\r\n\r\n").await.expect("answered");
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    say.send(all(Mode::Strict)).expect("it is followed");
    let second = ask("never").await.expect("answered, and closed");
    assert!(
        second.starts_with("HTTP/1.1 403") && second.contains("portunus-error: mtls_required"),
        "{second}"
    );
    assert_eq!(requests.lock().len(), 1, "the application heard more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_control_says_that_a_port_speaks_is_believed() {
    let root = Authority::root("root");
    // It would be parsed, and told from whom it came.
    let words = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (declared, as_it_was) in [(Declared::Opaque, true), (Declared::Nothing, false)] {
        let application = Ear::open().await;
        let mut setup = ends::inbound(&root, Mode::Permissive);
        let (_say, modes) = watch::channel(Arc::new(Inbound {
            default: Some(Mode::Permissive),
            protocols: BTreeMap::from([(application.addr.port(), declared)]),
            ..Inbound::default()
        }));
        if let Some(mesh) = &mut setup.mesh {
            mesh.modes = modes;
        }
        let world = World::before(application.addr, setup).await;
        let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
        socket.write_all(words).await.expect("it is read");
        let began = std::time::Instant::now();
        while !application.heard.lock().ends_with(b"\r\n\r\n") {
            assert!(began.elapsed() < PATIENCE, "{declared:?}: it does not arrive");
            tokio::task::yield_now().await;
        }
        assert_eq!(*application.heard.lock() == words, as_it_was, "{declared:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_an_identity_is_never_spoken_to_in_plain() {
    let root = Authority::root("root");
    for (what, opens, why) in [
        ("a server that says SETTINGS", crate::raw::settings(&[]), "not_tls"),
        (
            "a server that says a banner",
            b"220 mail.test ready\r\n".to_vec(),
            "not_tls",
        ),
        ("a server that says nothing", Vec::new(), "too_slow"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let heard = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let kept = heard.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (kept, opens) = (kept.clone(), opens.clone());
                tokio::spawn(async move {
                    let _ = socket.write_all(&opens).await;
                    let mut all = Vec::new();
                    let _ = socket.read_to_end(&mut all).await;
                    kept.lock().extend(all);
                });
            }
        });
        let world = World::before(addr, ends::outbound(&root, PEERS)).await;
        // A call, and bytes.
        let answer = world
            .caller()
            .await
            .ask(request("/secret.Word/C", &[]))
            .await
            .expect("answered");
        let message = answer.grpc_message.clone().unwrap_or_default();
        assert_eq!(status(&answer), "14", "{what}: {message}");
        assert!(
            message.contains(&format!("no mTLS with {PEERS} at {addr}")),
            "{what}: {message}"
        );
        let result = format!("result=\"{why}\"");
        assert!(
            world.metric(ends::HANDSHAKES, &["outbound", &result]) >= 1.0,
            "{what}: {why} is not counted"
        );
        let mut socket = TcpStream::connect(world.proxy).await.expect("it listens");
        socket.write_all(b"*1\r\n$6\r\nsecret\r\n").await.expect("it is read");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer))
            .await
            .expect("it ends");
        assert!(
            ended.is_err() && answer.is_empty(),
            "{what}: the tunnel was not reset: {answer:?}"
        );
        drop(world);
        let heard = heard.lock();
        let begins = |needle: &[u8]| heard.windows(needle.len()).any(|window| window == needle);
        assert!(
            !begins(b"PRI *") && !begins(b"secret"),
            "{what}: it was told something in plain"
        );
        assert!(
            heard.first().is_none_or(|first| *first == 0x16),
            "{what}: it heard no ClientHello"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_with_an_identity_is_not_spoken_to_in_other_tls_either() {
    let root = Authority::root("root");
    for protocols in [&[][..], &[b"h2".as_slice()]] {
        let mut config = server_config(&root.leaf(|_| {}));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let server = Ear::in_tls(config).await;
        let world = World::before(server.addr, ends::outbound(&root, PEERS)).await;
        let answer = world
            .caller()
            .await
            .ask(request("/a.B/C", &[]))
            .await
            .expect("answered");
        let message = answer.grpc_message.clone().unwrap_or_default();
        assert_eq!(status(&answer), "14", "{message}");
        assert!(message.contains("protocols") && message.contains(PEERS), "{message}");
        drop(world);
        assert!(server.heard.lock().is_empty());
    }
}
