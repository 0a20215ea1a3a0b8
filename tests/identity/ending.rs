//! Certificates end while calls run, and servers that do not take ours: nobody's call is lost over it, and nobody waits long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use portunus_sidecar::balance::{self, Algorithm};
use portunus_sidecar::policy::Mode;
use portunus_sidecar::route::{Known, Policy, View};
use portunus_sidecar::tls::SKEW;
use portunus_sidecar::worker::Mesh;
use support::pki::{self, Pki};
use support::relay::bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::{Authority, OURS, PEERS, leaf_params, soon};
use crate::ends::{self, Ear, HANDSHAKES, id};
use crate::log;
use crate::plain::{client_config, server_config};
use crate::raw::{self, DATA, END_STREAM, GOAWAY, HEADERS, PING, Raw, frame};

use crate::world::{Begun, PATIENCE, Setup, World, collect, request, send_bytes};

/// How long the caller's first certificate lasts: it is replaced, and so is the connection, which lives for 5 s at least.
const LIFE: Duration = Duration::from_secs(8);

/// A caller's sidecar and a server's; the caller's certificate ends soon, and its mesh can be given another.
async fn pair(cut_expired: bool) -> (World, World, Pki, Mesh) {
    let pki = Pki::new("mesh.test");
    let (near, far) = (pki.id("near"), pki.id("far"));
    let far_side = ends::of(pki.mesh(&far, Mode::Strict, |_| None), true);
    let far_world = World::with(far_side).await;
    let mesh = pki::mesh(pki.credential(&near, LIFE), Mode::Strict, move |_| Some(far.clone()));
    let near_side = Setup {
        cut_expired,
        ..ends::of(mesh.clone(), false)
    };
    let near_world = World::before(far_world.proxy, near_side).await;
    (near_world, far_world, pki, mesh)
}

fn renew(pki: &Pki, mesh: &Mesh) {
    mesh.own
        .store(Some(pki.credential(&pki.id("near"), Duration::from_secs(3_600))));
}

const OUTLIVED: &str = "portunus_connections_past_certificate";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_replaced_before_a_certificate_ends_and_streams_that_run_go_on() {
    let (near, far, pki, mesh) = pair(false).await;
    let mut caller = near.caller().await;
    let Begun {
        response,
        mut body,
        seed,
    } = caller
        .begin(request("/a.B/Stream", &[("x-receive", "1000")]))
        .await
        .expect("it begins");
    // Once the server has begun to answer, the connection is there, and was made with the first certificate.
    let response = response.await.expect("it is answered");
    renew(&pki, &mesh);
    let opened = || near.metric("portunus_connections_opened_total", &["outbound", "upstream"]);
    // All the while there are calls, and none is lost.
    let began = Instant::now();
    let mut replaced = None;
    while near.metric(OUTLIVED, &["outbound"]) == 0.0 {
        assert!(
            began.elapsed() < LIFE + Duration::from_secs(10),
            "the stream is not counted"
        );
        let answer = caller.call("/a.B/C", 100, 100).await.expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{:?}", answer.grpc_message);
        if opened() >= 2.0 {
            replaced.get_or_insert(began.elapsed());
        }
    }
    let replaced = replaced.expect("the connection is replaced");
    assert!(
        replaced < LIFE,
        "it was replaced after {replaced:?}, when the certificate had ended"
    );
    // The other side counts it too.
    far.until(OUTLIVED, &["inbound"], |now| now == 1.0).await;
    // The stream is whole.
    send_bytes(&mut body, Bytes::new(seed), 100_000, true)
        .await
        .expect("it goes on");
    let answer = collect(response, seed).await.expect("a whole answer");
    assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (1_000, Some("0")));
    near.until(OUTLIVED, &["outbound"], |now| now == 0.0).await;
    assert_eq!(
        near.metric("grpc_client_handled_total", &["grpc_code=\"UNAVAILABLE\""]),
        0.0
    );
}

/// A caller that hears neither GOAWAY nor the PING behind it, and goes on: with calls that end at once, and with words that
/// carry nothing. Its certificate ends, and so do its calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_begins_on_a_connection_whose_certificate_has_ended_whatever_its_caller_hears() {
    let root = Authority::root("root");
    let shown = root.leaf(|params| params.not_after = soon(LIFE.as_secs() as i64).into());
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let veil = ends::veil(world.proxy, client_config(Some(&shown))).await;
    let mut caller = Raw::client(veil, &[]).await;
    caller.until_settled().await;
    let began = Instant::now();
    let (mut answered, mut last, mut is_told) = (0, Duration::ZERO, false);
    // As long as its calls are answered; then as long again as makes sure that no other is.
    for stream in (1..).step_by(2) {
        let patience = LIFE + SKEW + Duration::from_secs(15);
        assert!(
            began.elapsed() < patience,
            "calls are answered {last:?} after the handshake"
        );
        let call = raw::request(stream, "/a.B/C", &[], true);
        caller.send(&[call, frame(PING, 0, 0, b"I live!!")].concat()).await;
        let is_answered = async {
            loop {
                match caller.next().await {
                    Some(next) if next.stream == stream && next.has(END_STREAM) => return true,
                    Some(next) if next.kind == GOAWAY => is_told = true,
                    Some(_) => {}
                    None => return false,
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), is_answered).await != Ok(true) {
            break;
        }
        (answered, last) = (answered + 1, began.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(is_told && answered > 10, "{answered} calls, told: {is_told}");
    // It is told to go in time, and what it begins is heeded for 5 s longer, on a machine that has nothing else to do.
    assert!(
        last < LIFE + Duration::from_secs(8),
        "the last call began {last:?} after the handshake"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_are_cut_when_the_certificate_ends_where_that_is_wished() {
    let (near, _far, pki, mesh) = pair(true).await;
    let mut caller = near.caller().await;
    let began = Instant::now();
    let Begun {
        response,
        body: _body,
        seed,
    } = caller
        .begin(request("/a.B/Stream", &[("x-receive", "1000")]))
        .await
        .expect("it begins");
    let response = response.await.expect("it is answered");
    renew(&pki, &mesh);
    let answer = collect(response, seed).await;
    let took = began.elapsed();
    assert!(
        took > LIFE / 2 && took < LIFE + Duration::from_secs(5),
        "it was cut after {took:?}"
    );
    let code = answer.ok().and_then(|answer| answer.grpc_status);
    assert_ne!(code.as_deref(), Some("0"));
    let after = caller.call("/a.B/C", 100, 100).await.expect("answered");
    assert_eq!(after.grpc_status.as_deref(), Some("0"));
}

/// How long the certificate lasts that tunnels are made with: they stand before it ends, on a machine that pauses, too.
const SHORT: Duration = Duration::from_secs(6);

/// What each side has that has outlived a certificate.
async fn outlived(near: &World, far: &World, count: f64) {
    near.until(OUTLIVED, &["outbound"], |now| now == count).await;
    far.until(OUTLIVED, &["inbound"], |now| now == count).await;
}

/// A client's sidecar whose certificate ends soon, and an application's, of which one may cut what outlives it.
async fn tunnels(application: SocketAddr, near_cuts: bool, far_cuts: bool) -> (World, World) {
    let pki = Pki::new("mesh.test");
    let (near, far) = (pki.id("near"), pki.id("far"));
    let far_side = Setup {
        cut_expired: far_cuts,
        ..ends::of(pki.mesh(&far, Mode::Strict, |_| None), true)
    };
    let far_world = World::before(application, far_side).await;
    let mesh = pki::mesh(pki.credential(&near, SHORT), Mode::Strict, move |_| Some(far.clone()));
    let near_side = Setup {
        cut_expired: near_cuts,
        ..ends::of(mesh, false)
    };
    (World::before(far_world.proxy, near_side).await, far_world)
}

/// Whether it is answered as HTTP/1.
async fn is_answered(client: &mut TcpStream) -> bool {
    let mut answer = [0; 15];
    let asked = client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    if asked.is_err() || client.read_exact(&mut answer).await.is_err() {
        return false;
    }
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // The rest of the head.
    let mut room = [0; 4_096];
    let n = client.read(&mut room).await.expect("a whole answer");
    room[..n].ends_with(b"\r\n\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_and_http_1_that_outlive_a_certificate_go_on_and_are_counted() {
    tokio::join!(http_1_goes_on(), a_tunnel_goes_on());
}

async fn http_1_goes_on() {
    let (application, _) = crate::spoofs::http1().await;
    let (near, far) = tunnels(application, false, false).await;
    let mut client = TcpStream::connect(near.proxy).await.expect("it listens");
    assert!(is_answered(&mut client).await);
    outlived(&near, &far, 0.0).await;
    outlived(&near, &far, 1.0).await;
    assert!(is_answered(&mut client).await, "it does not go on");
    drop(client);
    outlived(&near, &far, 0.0).await;
}

async fn a_tunnel_goes_on() {
    let application = Ear::open().await;
    let (near, far) = tunnels(application.addr, false, false).await;
    let mut client = TcpStream::connect(near.proxy).await.expect("it listens");
    client.write_all(b"\0one").await.expect("it is open");
    outlived(&near, &far, 1.0).await;
    client.write_all(b"another").await.expect("it is open");
    let began = Instant::now();
    while *application.heard.lock() != b"\0oneanother" {
        assert!(began.elapsed() < PATIENCE, "it does not go on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    outlived(&near, &far, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_and_http_1_are_cut_when_the_certificate_ends_where_that_is_wished() {
    let (http_1, tunnel): (&[u8], &[u8]) = (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\0one");
    tokio::join!(
        is_cut(true, false, http_1),
        is_cut(true, false, tunnel),
        is_cut(false, true, http_1),
        is_cut(false, true, tunnel),
    );
}

/// What begins with `first` is cut, by one of the two ends.
async fn is_cut(near_cuts: bool, far_cuts: bool, first: &[u8]) {
    // It answers nothing, so that nothing but the cut ends it.
    let application = Ear::open().await;
    let began = Instant::now();
    let (near, far) = tunnels(application.addr, near_cuts, far_cuts).await;
    let mut client = TcpStream::connect(near.proxy).await.expect("it listens");
    client.write_all(first).await.expect("it is open");
    let ended = tokio::time::timeout(PATIENCE, client.read(&mut [0; 16])).await;
    let (ended, took) = (ended.expect("it is cut"), began.elapsed());
    assert!(ended.is_err(), "it looks whole: {ended:?}");
    assert!(took > SHORT / 2, "it was cut after {took:?}");
    assert_eq!(application.connections.load(Relaxed), 1);
    outlived(&near, &far, 0.0).await;
}

/// A mesh in which all that is called is a service of these endpoints.
fn service(root: &Authority, endpoints: &[(SocketAddr, &str)]) -> Setup {
    let endpoints = endpoints
        .iter()
        .map(|(addr, who)| pki::endpoint(*addr, id(who)))
        .collect();
    let view = View {
        name: "svc.shop:1".to_owned(),
        addresses: Vec::new(),
        endpoints,
        policy: Policy::default(),
    };
    let known = Known::Service(Arc::new(view));
    ends::of(
        pki::mesh_of(ends::ours(root), Mode::Strict, move |_| known.clone()),
        false,
    )
}

/// Less than the 10 s that a peer has for its SETTINGS, and more than the 2 s of a handshake by what a machine may pause.
const NOT_LONG: Duration = Duration::from_secs(8);

/// Calls a service of two, of which `bad` is one, from twenty callers; all calls are served. The longest wait.
async fn served_beside(root: &Authority, bad: SocketAddr) -> (World, Duration) {
    let good = World::with(ends::inbound(root, Mode::Strict)).await;
    let setup = Setup {
        // It is no matter of chance whether the bad one is tried.
        balance: balance::Settings {
            algorithm: Algorithm::RoundRobin,
            ..balance::Settings::default()
        },
        ..service(root, &[(bad, PEERS), (good.proxy, OURS)])
    };
    let world = World::before(bad, setup).await;
    let mut longest = Duration::ZERO;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut caller = world.caller().await;
        calls.spawn(async move {
            let began = Instant::now();
            let answer = caller.call("/a.B/C", 1_000, 1_000).await.expect("answered");
            assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{:?}", answer.grpc_message);
            began.elapsed()
        });
    }
    while let Some(took) = calls.join_next().await {
        longest = longest.max(took.expect("no panic"));
    }
    // The connection to the good one lives for as long as its world.
    drop(good);
    (world, longest)
}

/// A server that believes another root: in TLS 1.3 it says so after we have finished.
fn refuses_us(root: &Authority) -> rustls::ServerConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(Authority::root("another").issuer.der().clone())
        .expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .expect("a verifier");
    let shown = root.leaf(|_| {});
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(shown.chain.clone(), shown.private())
        .expect("a configuration");
    config.alpn_protocols = vec![ends::H2.to_vec(), ends::TCP.to_vec()];
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_our_certificate_late_is_sent_no_call() {
    let root = Authority::root("root");
    let bad = Ear::in_tls(refuses_us(&root)).await;
    let (world, longest) = served_beside(&root, bad.addr).await;
    assert!(longest < NOT_LONG, "a caller waited {longest:?}");
    world
        .until(HANDSHAKES, &["outbound", "refused_by_peer"], |now| now >= 1.0)
        .await;
    assert!(bad.connections.load(Relaxed) >= 1 && bad.heard.lock().is_empty());
    // Alone, it is named.
    let world = World::before(bad.addr, ends::outbound(&root, PEERS)).await;
    let answer = world
        .caller()
        .await
        .ask(request("/a.B/C", &[]))
        .await
        .expect("answered");
    let message = answer.grpc_message.unwrap_or_default();
    assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{message}");
    assert!(message.contains("the peer ended the TLS connection"), "{message}");
    assert!(bad.heard.lock().is_empty(), "it was sent something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_says_settings_is_sent_no_call_and_nobody_waits_long_for_it() {
    let root = Authority::root("root");
    let bad = Ear::in_tls(server_config(&root.leaf(|_| {}))).await;
    let (world, longest) = served_beside(&root, bad.addr).await;
    eprintln!("the longest of 20 callers waited {longest:?}");
    assert!(longest < NOT_LONG, "a caller waited {longest:?}");
    world
        .until(HANDSHAKES, &["outbound", "no_settings"], |now| now >= 1.0)
        .await;
    let world = World::before(bad.addr, ends::outbound(&root, PEERS)).await;
    let answer = world
        .caller()
        .await
        .ask(request("/a.B/C", &[]))
        .await
        .expect("answered");
    let message = answer.grpc_message.unwrap_or_default();
    assert!(message.contains("no SETTINGS came in time"), "{message}");
    // Our preface and SETTINGS it has heard, and no call.
    let heard = bad.heard.lock();
    let mut frames = heard.as_slice();
    while let Some(rest) = frames
        .strip_prefix(PREFACE)
        .or(Some(frames))
        .filter(|rest| rest.len() >= 9)
    {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        assert!(rest[3] != HEADERS && rest[3] != DATA, "it was sent a call");
        frames = rest.get(9 + length..).unwrap_or_default();
    }
    assert!(!heard.is_empty());
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_with_which_no_handshake_comes_to_be_are_cut_short_in_the_log() {
    const SERVERS: usize = 150;
    let _with_others = crate::floods::ALONE.read().await;
    log::keep();
    let root = Authority::root("root");
    let another = root.certify(&leaf_params(OURS));
    for config in [server_config(&another), refuses_us(&root)] {
        let mut servers = Vec::new();
        for _ in 0..SERVERS {
            servers.push(Ear::in_tls(config.clone()).await.addr);
        }
        let endpoints: Vec<_> = servers.iter().map(|addr| (*addr, PEERS)).collect();
        let world = World::before(servers[0], service(&root, &endpoints)).await;
        // One call tries all of them.
        let answer = cut_short(&world, &servers, async || {
            let answer = world.caller().await.ask(request("/a.B/C", &[])).await;
            answer.expect("answered")
        })
        .await;
        assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{answer:?}");
        // Each tunnel has one of them. Of whoever opens it there are lines, too.
        let opener = std::net::Ipv4Addr::new(127, 9, 8, 7);
        cut_short(&world, &servers, async || {
            for _ in 0..SERVERS {
                let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
                socket.bind((opener, 0).into()).expect("an address of loopback");
                let mut socket = socket.connect(world.proxy).await.expect("it listens");
                socket.write_all(b"SSH-2.0-portunus\r\n").await.expect("it is read");
                // It ends, in whatever way.
                let _ = socket.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
    }
}

/// As often as there are servers a handshake fails at one of them, all at one address: each is counted, and the log has a
/// hundred lines.
async fn cut_short<T>(world: &World, servers: &[SocketAddr], fail: impl AsyncFnOnce() -> T) -> T {
    let (said, began) = (log::end(), Instant::now());
    let before = world.metric(HANDSHAKES, &["outbound"]);
    let came = fail().await;
    // Tunnels tell the worker.
    let all = before + servers.len() as f64;
    world.until(HANDSHAKES, &["outbound"], |now| now >= all).await;
    let took = began.elapsed();
    let lines_of = |addr: &SocketAddr| said.count(&[&format!(" addr={addr} "), "reason="]);
    let lines: usize = servers.iter().map(lines_of).sum();
    // A machine that takes ten seconds for it all says some of the next ten seconds, too.
    let most = 100 * (1 + took.as_secs() as usize / 10);
    assert!((100..=most).contains(&lines), "{lines} lines in {took:?}");
    came
}
