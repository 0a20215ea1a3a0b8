//! Whoever shows a certificate with one thing wrong is refused by the whole sidecar, in both directions: the reason is named,
//! and no application hears a byte.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::Relaxed;

use portunus_proto::svid::Usage;
use portunus_sidecar::policy::Mode;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authority::{Authority, OURS, PEERS, leaf_params};
use crate::draft::bare;
use crate::ends::{self, Ear, HANDSHAKES};
use crate::log;
use crate::plain::{client_config, client_config_by, providers, server_config, server_config_by};
use crate::raw;
use crate::shapes::{enough_of_each, right, sentence, wrong};
use crate::world::{PATIENCE, World, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_bad_certificate_does_not_reach_the_application() {
    let _with_others = crate::floods::ALONE.read().await;
    log::keep();
    let root = Authority::root("root");
    // Side by side, since each waits most of the time.
    let [one, two, three] = ends::MODES;
    tokio::join!(
        callers_with_bad_certificates(&root, one, 1),
        callers_with_bad_certificates(&root, two, 2),
        callers_with_bad_certificates(&root, three, 3),
    );
}

/// All of them, one after the other, to a port of this mode. Their addresses are of one network of loopback.
async fn callers_with_bad_certificates(root: &Authority, mode: Mode, network: u8) {
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::patient(root, mode)).await;
    let shapes = wrong(root, Usage::Client);
    enough_of_each(&shapes);
    type Show<'a> = Box<dyn Fn() -> ClientConfig + 'a>;
    let wrong = shapes.iter().map(|shape| {
        let show = || client_config(Some(&shape.show()));
        (shape.name(), shape.reason, Box::new(show) as Show<'_>)
    });
    let (providers, bare) = (providers(), bare());
    let none = providers.iter().flat_map(|provider| {
        let each = [None].into_iter().chain(bare.iter().map(Some));
        each.map(move |shown| {
            let show = move || client_config_by(provider.clone(), shown);
            ("none".to_owned(), "no_certificate", Box::new(show) as Show<'_>)
        })
    });
    let each = wrong.chain(none).flat_map(|(what, reason, show)| {
        words().map(|(protocol, words)| {
            let what = format!("{what}, for {}", protocol.escape_ascii());
            (what, reason, ends::speaking(show(), &[protocol]), words)
        })
    });
    for (caller, (what, reason, config, words)) in each.enumerate() {
        let count = || world.metric(HANDSHAKES, &["direction=\"inbound\"", &format!("result=\"{reason}\"")]);
        let (before, logged) = (count(), log::end());
        let (from, said) = call_with(&world, address(network, caller), config, &words).await;
        assert_eq!(said, b"", "{mode:?}, {what}: it was answered");
        let result = format!("result=\"{reason}\"");
        world
            .until(HANDSHAKES, &["direction=\"inbound\"", &result], |now| {
                now == before + 1.0
            })
            .await;
        let line = logged
            .says(&[&format!("peer={from}"), &format!("reason=\"{reason}\"")])
            .await;
        assert!(line.contains("no mTLS: "), "{mode:?}, {what}: {line}");
        assert!(
            application.has_heard_nothing(),
            "{mode:?}, {what}: the application was reached"
        );
    }
    assert_eq!(world.metric(HANDSHAKES, &["result=\"ok\""]), 0.0);
    assert_eq!(world.metric("portunus_requests_total", &["inbound"]), 0.0);
    assert_eq!(world.metric("portunus_tunnels_total", &["inbound"]), 0.0);
}

/// What callers of each protocol say: a whole request, and what is neither HTTP/2 nor HTTP/1.
fn words() -> [(&'static [u8], Vec<u8>); 2] {
    let preface = [raw::PREFACE, &raw::settings(&[])].concat();
    let call = [preface, raw::request(1, "/a.B/C", &[], true)].concat();
    [(ends::H2, call), (ends::TCP, BYTES.to_vec())]
}

/// No HTTP of any kind.
const BYTES: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// Where a caller calls from: no address causes more than a hundred lines of the log.
fn address(network: u8, caller: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, network, 1 + u8::try_from(caller / 80).expect("few addresses"))
}

/// Says the words as soon as it may. Who called, and what it heard.
async fn call_with(
    world: &World,
    address: Ipv4Addr,
    config: ClientConfig,
    words: &[u8],
) -> (std::net::SocketAddr, Vec<u8>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((address, 0).into()).expect("an address of loopback");
    let socket = socket.connect(world.proxy).await.expect("it listens");
    let from = socket.local_addr().expect("an address");
    let name = rustls::pki_types::ServerName::try_from("anybody.example").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut heard = Vec::new();
    // In TLS 1.3 the caller's handshake ends before it is judged.
    if let Ok(mut stream) = connector.connect(name, socket).await {
        let _ = stream.write_all(words).await;
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
        assert!(ended.expect("it ends").is_err(), "an alert says why");
    }
    (from, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_bad_certificate_is_sent_nothing_and_its_caller_is_told_why() {
    let _with_others = crate::floods::ALONE.read().await;
    log::keep();
    let root = Authority::root("root");
    let shapes = wrong(&root, Usage::Server);
    enough_of_each(&shapes);
    type Show<'a> = Box<dyn Fn() -> ServerConfig + 'a>;
    let wrong = shapes.iter().map(|shape| {
        let show: Show<'_> = Box::new(|| server_config(&shape.show()));
        (shape.name(), shape.reason, show)
    });
    let others = [
        OURS,
        "spiffe://cluster.local/ns/shop/sa/Caller",
        "spiffe://cluster.local/ns/shop/sa/caller2",
    ];
    let others = others.into_iter().map(|other| {
        let shown = root.certify(&leaf_params(other));
        let show: Show<'_> = Box::new(move || server_config(&shown));
        (other.to_owned(), "wrong_identity", show)
    });
    let (providers, bare) = (providers(), bare());
    let none = providers.iter().flat_map(|provider| {
        bare.iter().map(move |shown| {
            let show: Show<'_> = Box::new(move || server_config_by(provider.clone(), shown));
            ("none".to_owned(), "no_certificate", show)
        })
    });
    let all: Vec<_> = wrong.chain(others).chain(none).collect();
    // Side by side, since each waits most of the time.
    let every_third = async |first: usize| {
        for (what, reason, show) in all.iter().skip(first).step_by(3) {
            is_sent_no_call(&root, what, reason, show()).await;
            is_sent_no_byte(&root, what, reason, show()).await;
        }
    };
    tokio::join!(every_third(0), every_third(1), every_third(2));
}

/// A server that is not whom it should be, for this reason: its caller is told, and it hears nothing.
async fn is_sent_no_call(root: &Authority, what: &str, reason: &str, shows: ServerConfig) {
    let expected = PEERS;
    let server = Ear::in_tls(shows).await;
    let logged = log::end();
    let world = World::before(server.addr, ends::waiting(ends::outbound(root, expected))).await;
    let answer = world.caller().await.ask(request("/a.B/C", &[])).await;
    let answer = answer.expect("it is answered");
    let message = answer.grpc_message.unwrap_or_default();
    assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{what}: {message}");
    assert_eq!(answer.head["portunus-error"], "no_endpoint", "{what}");
    for part in ["no mTLS with ", expected, sentence(reason)] {
        assert!(message.contains(part), "{what}: {part} is not in {message}");
    }
    let labels = ["direction=\"outbound\"", &format!("result=\"{reason}\"")];
    let counted = world.metric(HANDSHAKES, &labels);
    assert!(counted >= 1.0, "{what}: {reason} is not counted");
    // All are looked at last: one that ends in between makes the two differ once, and one with another result for ever.
    world
        .until(HANDSHAKES, &labels, |counted| {
            counted == world.metric(HANDSHAKES, &["direction=\"outbound\""])
        })
        .await;
    has_heard_nothing(&server, world, what, reason, logged).await;
}

/// The same at the end of a tunnel, which is reset.
async fn is_sent_no_byte(root: &Authority, what: &str, reason: &str, mut shows: ServerConfig) {
    // It takes nothing but tunnels, so that for a call no handshake would come as far as its certificate.
    shows.alpn_protocols = vec![ends::TCP.to_vec()];
    let server = Ear::in_tls(shows).await;
    let logged = log::end();
    let world = World::before(server.addr, ends::waiting(ends::outbound(root, PEERS))).await;
    let mut application = TcpStream::connect(world.proxy).await.expect("it listens");
    application.write_all(BYTES).await.expect("it is read");
    let mut heard = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, application.read_to_end(&mut heard)).await;
    assert!(ended.expect("it ends").is_err(), "{what}: the tunnel was not reset");
    assert_eq!(heard, b"", "{what}: it was answered");
    let result = format!("result=\"{reason}\"");
    world
        .until(HANDSHAKES, &["direction=\"outbound\"", &result], |now| now == 1.0)
        .await;
    assert_eq!(world.metric(HANDSHAKES, &[]), 1.0, "{what}");
    has_heard_nothing(&server, world, what, reason, logged).await;
    assert_eq!(server.connections.load(Relaxed), 1, "{what}: it was called once more");
}

/// The log names the reason, and the server has heard nothing when all has ended.
async fn has_heard_nothing(server: &Ear, world: World, what: &str, reason: &str, logged: log::Place) {
    logged
        .says(&[&format!("addr={}", server.addr), &format!("reason=\"{reason}\"")])
        .await;
    drop(world);
    server.until_all_ended().await;
    assert!(server.heard.lock().is_empty(), "{what}: something was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_with_nothing_wrong_are_heard() {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    for shape in right(&root) {
        let what = shape.around;
        let veil = ends::veil(world.proxy, client_config(Some(&shape.show()))).await;
        let socket = TcpStream::connect(veil).await.expect("it listens");
        let (sender, connection) = h2::client::handshake(socket).await.expect(what);
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect(what);
        let (response, _) = sender.send_request(request("/a.B/C", &[]), true).expect(what);
        let answer = crate::world::collect(response.await.expect(what), 0).await.expect(what);
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{what}");
    }
    let peer = format!("peer_identity=\"{PEERS}\"");
    let heard = world.metric("portunus_requests_total", &["inbound", "tls=\"true\"", &peer]);
    assert_eq!(heard, right(&root).len() as f64);
}
