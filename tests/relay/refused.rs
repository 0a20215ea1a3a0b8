//! What a peer says inside TLS once the handshake is over for us: that it does not take our certificate, after all.

use std::sync::Arc;
use std::time::Duration;

use portunus_sidecar::policy::Mode;
use portunus_sidecar::tls::Credential;
use rustls_pki_types::PrivateKeyDer;
use support::pki::{self, Pki};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

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
    assert!(matches!(application.read_u8().await, Err(_)));
    near.until("portunus_tls_handshakes_total", &["outbound", "peer_unknown_ca"], |n| {
        n == 1.0
    })
    .await;
    assert_eq!(near.metric("portunus_proxy_errors_total", &["hidden_request"]), 0.0);
}
