//! Tunnels before and behind the mesh's TLS: what is said of them where it is not seen inside.

use std::sync::Arc;
use std::time::Duration;

use portunus_sidecar::policy::Mode;
use portunus_sidecar::tls::Credential;
use rustls_pki_types::PrivateKeyDer;
use support::pki::{self, Pki};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::world::{Setup, World};

#[tokio::test]
async fn a_tunnel_whose_certificate_is_refused_behind_the_handshake_is_counted_by_the_servers_reason() {
    let (ours, theirs) = (Pki::new("mesh.test"), Pki::new("mesh.test"));
    let server = Setup {
        inbound: true,
        pair: false,
        mesh: Some(theirs.mesh(&theirs.id("server"), Mode::Strict, |_| None)),
        ..Setup::default()
    };
    let far = World::with(server).await;
    // It knows whom the server trusts, and is not one of them.
    let (chain, key) = ours.certify(&ours.id("client"), Duration::from_secs(3_600));
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let credential = Credential::new(chain, key, theirs.bundle()).expect("a credential");
    let identity = theirs.id("server");
    let client = Setup {
        pair: false,
        mesh: Some(pki::mesh(Arc::new(credential), Mode::Strict, move |_| {
            Some(identity.clone())
        })),
        ..Setup::default()
    };
    let near = World::before(far.proxy, client).await;
    let mut application = TcpStream::connect(near.proxy).await.expect("it takes connections");
    application.write_all(&[0, 1, 2, 3]).await.expect("it is open");
    // A reset, or an end: nothing was said.
    assert!(application.read_u8().await.is_err());
    near.until("portunus_tls_handshakes_total", &["outbound", "peer_unknown_ca"], |n| {
        n == 1.0
    })
    .await;
    assert_eq!(near.metric("portunus_tls_handshakes_total", &[]), 1.0, "one handshake");
    assert_eq!(near.metric("portunus_proxy_errors_total", &["hidden_request"]), 0.0);
    // A client that waits for its server to speak is told in the same way.
    let mut application = TcpStream::connect(near.proxy).await.expect("it takes connections");
    assert!(application.read_u8().await.is_err());
    near.until("portunus_tls_handshakes_total", &["outbound", "peer_unknown_ca"], |n| {
        n == 2.0
    })
    .await;
    assert_eq!(near.metric("portunus_tls_handshakes_total", &[]), 2.0, "two handshakes");
}

#[tokio::test]
async fn a_tunnel_is_counted_as_one_handshake_once_its_server_has_spoken_or_ended_and_not_before() {
    let pki = Pki::new("mesh.test");
    let server = pki.id("server");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let far = Setup {
        inbound: true,
        pair: false,
        mesh: Some(pki.mesh(&server, Mode::Strict, |_| None)),
        ..Setup::default()
    };
    let far = World::before(listener.local_addr().expect("an address"), far).await;
    let near = Setup {
        pair: false,
        mesh: Some(pki.mesh(&pki.id("client"), Mode::Strict, move |_| Some(server.clone()))),
        ..Setup::default()
    };
    let near = World::before(far.proxy, near).await;
    let handshakes = |labels: &[&str]| near.metric("portunus_tls_handshakes_total", labels);
    let mut shaken = 0.0;
    // One that answers; one that hears all and says nothing; one that leaves in disorder.
    for (how, result) in [("answers", "ok"), ("ends", "ok"), ("resets", "refused_by_peer")] {
        let mut client = TcpStream::connect(near.proxy).await.expect("it takes connections");
        client.write_all(&[0, 1, 2, 3]).await.expect("it is open");
        let (mut application, _) = listener.accept().await.expect("it is called");
        application.read_exact(&mut [0; 4]).await.expect("they come");
        assert_eq!(handshakes(&[]), shaken, "{how}: too early");
        let labels = ["outbound", &format!("result=\"{result}\"")];
        let before = handshakes(&labels);
        match how {
            "answers" => application.write_all(b"!").await.expect("it is open"),
            "ends" => {}
            _ => application.set_zero_linger().expect("a socket"),
        }
        drop(application);
        shaken += 1.0;
        near.until("portunus_tls_handshakes_total", &labels, |n| n == before + 1.0)
            .await;
        assert_eq!(handshakes(&[]), shaken, "{how}");
    }
}

#[tokio::test]
async fn what_is_no_call_is_counted_as_plain_too_where_a_port_takes_both() {
    let pki = Pki::new("mesh.test");
    let setup = Setup {
        inbound: true,
        pair: false,
        mesh: Some(pki.mesh(&pki.id("server"), Mode::Permissive, |_| None)),
        ..Setup::default()
    };
    let world = World::with(setup).await;
    for first in [&b"\0\x01bytes"[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut peer = TcpStream::connect(world.proxy).await.expect("it takes connections");
        peer.write_all(first).await.expect("it is open");
        // Whatever the server makes of it, the connection has been carried by then.
        let _ = peer.read_u8().await;
    }
    assert_eq!(
        world.metric("portunus_tunnels_total", &["inbound", "tls=\"false\""]),
        2.0
    );
    assert_eq!(world.metric("portunus_tunnels_total", &["tls=\"true\""]), 0.0);
}
