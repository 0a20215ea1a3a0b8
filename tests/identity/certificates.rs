//! Whoever shows a certificate with one thing wrong is refused by the whole sidecar, in both directions: the reason is named,
//! and no application hears a byte.

use portunus_sidecar::policy::Mode;
use rcgen::ExtendedKeyUsagePurpose as Eku;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::authority::{Authority, OURS, PEERS, Shown, leaf_params};
use crate::ends::{self, Ear, HANDSHAKES};
use crate::log;
use crate::plain::{client_config, server_config};
use crate::raw;
use crate::shapes::{right, wrong};
use crate::world::{World, request};

/// A part of the sentence that goes with a reason.
fn sentence(reason: &str) -> &'static str {
    match reason {
        "unknown_issuer" => "no root of this mesh certified",
        "self_signed" => "is signed by itself",
        "foreign_trust_domain" => "which is not of the trust domain cluster.local",
        "expired" => "ended ",
        "not_yet_valid" => "is a clock wrong?",
        "ca_as_leaf" => "is that of a certification authority",
        "no_uri_name" => "has no URI name",
        "several_uri_names" => "a SPIFFE certificate has one",
        "bad_spiffe_id" => "names no SPIFFE id",
        "key_usage" => "the key usage of the peer's certificate chain is wrong",
        "extended_key_usage" => "the extended key usage of the peer's certificate chain does not allow",
        "name_constraints" => "a name constraint of an issuer forbids",
        "wrong_identity" => "was to be reached",
        "bad_signature" => "a signature is wrong",
        "chain" => "certificate chain is not acceptable",
        "malformed" => "cannot be read",
        other => panic!("{other} has no sentence here"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_a_bad_certificate_does_not_reach_the_application() {
    log::keep();
    let root = Authority::root("root");
    for mode in ends::MODES {
        callers_with_bad_certificates(&root, mode).await;
    }
}

async fn callers_with_bad_certificates(root: &Authority, mode: Mode) {
    let application = Ear::open().await;
    let world = World::before(application.addr, ends::patient(root, mode)).await;
    let mut shapes: Vec<_> = wrong(root)
        .into_iter()
        .map(|(what, reason, shown)| (what, reason, Some(shown)))
        .collect();
    let for_servers = root.leaf(|params| params.extended_key_usages = vec![Eku::ServerAuth]);
    shapes.push(("for servers alone", "extended_key_usage", Some(for_servers)));
    shapes.push(("none", "no_certificate", None));
    assert!(shapes.len() >= 60, "only {}", shapes.len());
    for (what, reason, shown) in shapes {
        let count = || world.metric(HANDSHAKES, &["direction=\"inbound\"", &format!("result=\"{reason}\"")]);
        let before = count();
        let (from, said) = call_with(&world, shown.as_ref()).await;
        assert_eq!(said, b"", "{mode:?}, {what}: it was answered");
        let result = format!("result=\"{reason}\"");
        world
            .until(HANDSHAKES, &["direction=\"inbound\"", &result], |now| {
                now == before + 1.0
            })
            .await;
        let line = log::says(&[&format!("peer={from}"), &format!("reason=\"{reason}\"")]).await;
        assert!(line.contains("no mTLS: "), "{mode:?}, {what}: {line}");
        assert!(
            application.has_heard_nothing(),
            "{mode:?}, {what}: the application was reached"
        );
    }
    assert_eq!(world.metric(HANDSHAKES, &["result=\"ok\""]), 0.0);
    assert_eq!(world.metric("portunus_requests_total", &["inbound"]), 0.0);
}

/// A whole request, said as soon as the caller may. Who called, and what it heard.
async fn call_with(world: &World, shown: Option<&Shown>) -> (std::net::SocketAddr, Vec<u8>) {
    let socket = tokio::net::TcpStream::connect(world.proxy).await.expect("it listens");
    let from = socket.local_addr().expect("an address");
    let name = rustls::pki_types::ServerName::try_from("anybody.example").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client_config(shown)));
    let mut heard = Vec::new();
    // In TLS 1.3 the caller's handshake ends before it is judged.
    if let Ok(mut stream) = connector.connect(name, socket).await {
        let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &raw::settings(&[])].concat();
        let call = [preface, raw::request(1, "/a.B/C", &[], true)].concat();
        let _ = stream.write_all(&call).await;
        let ended = tokio::time::timeout(crate::world::PATIENCE, stream.read_to_end(&mut heard)).await;
        assert!(ended.expect("it ends").is_err(), "an alert says why");
    }
    (from, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_a_bad_certificate_is_sent_nothing_and_its_caller_is_told_why() {
    log::keep();
    let root = Authority::root("root");
    let mut shapes: Vec<_> = wrong(&root)
        .into_iter()
        .map(|(what, reason, shown)| (what, reason, PEERS, shown))
        .collect();
    let for_clients = root.leaf(|params| params.extended_key_usages = vec![Eku::ClientAuth]);
    shapes.push(("for clients alone", "extended_key_usage", PEERS, for_clients));
    shapes.push(("somebody else", "wrong_identity", OURS, root.leaf(|_| {})));
    let other = leaf_params("spiffe://cluster.local/ns/shop/sa/caller2");
    shapes.push((
        "a name that begins alike",
        "wrong_identity",
        PEERS,
        root.certify(&other),
    ));
    for (what, reason, expected, shown) in shapes {
        let server = Ear::in_tls(server_config(&shown)).await;
        let world = World::before(server.addr, ends::outbound(&root, expected)).await;
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
        assert_eq!(counted, world.metric(HANDSHAKES, &["direction=\"outbound\""]), "{what}");
        log::says(&[&format!("addr={}", server.addr), &format!("reason=\"{reason}\"")]).await;
        drop(world);
        assert!(server.heard.lock().is_empty(), "{what}: something was sent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_with_nothing_wrong_are_heard() {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    for (what, shown) in right(&root) {
        let veil = ends::veil(world.proxy, client_config(Some(&shown))).await;
        let socket = tokio::net::TcpStream::connect(veil).await.expect("it listens");
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
