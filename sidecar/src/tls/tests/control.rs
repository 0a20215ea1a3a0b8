//! Whom we take for control: whoever shows a certificate with one thing wrong is told nothing, whether we have one ourselves or
//! not yet.

use std::sync::LazyLock;

use portunus_proto::svid::Usage;
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::{Credential, Error, call_control};
use super::certificates::{OTHERS, SECRET, wrongly_judged};
use super::draft::bare;
use super::plain::{Always, providers};
use super::shapes::{LEAST, enough_of_each, right, sentence, wrong};
use super::*;

/// Under which control is [`PEERS`].
static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::root("root"));

/// Who control is, and the root that it is under.
pub(crate) fn whom() -> (SpiffeId, CertificateDer<'static>) {
    (id(PEERS), ROOT.issuer.der().clone())
}

/// Somebody at control's place who is not control.
pub(crate) struct Impostor {
    pub(crate) what: String,
    /// The reason that has to be named.
    reason: &'static str,
    show: Box<dyn Fn() -> ServerConfig>,
}

impl Impostor {
    /// Made now, since a part of them tells the time.
    pub(crate) fn show(&self) -> ServerConfig {
        (self.show)()
    }

    /// A part of the sentence that whoever asks for control reads.
    pub(crate) fn sentence(&self) -> &'static str {
        match self.reason {
            "wrong_identity" => "is expected: --control-identity says who control is",
            reason => sentence(reason),
        }
    }
}

/// All of them.
pub(crate) fn impostors() -> Vec<Impostor> {
    let shapes = wrong(&ROOT, Usage::Server);
    enough_of_each(&shapes);
    let wrong = shapes.into_iter().map(|shape| Impostor {
        what: shape.name(),
        reason: shape.reason,
        show: Box::new(move || like_control(aws_lc_rs::default_provider(), &shape.show())),
    });
    let others = OTHERS.map(|other| Impostor {
        what: other.to_owned(),
        reason: "wrong_identity",
        show: Box::new(move || like_control(aws_lc_rs::default_provider(), &ROOT.certify(&leaf_params(other)))),
    });
    let none: Vec<_> = providers()
        .into_iter()
        .flat_map(|provider| bare().into_iter().map(move |shown| (provider.clone(), shown)))
        .map(|(provider, shown)| Impostor {
            what: "none".to_owned(),
            reason: "no_certificate",
            show: Box::new(move || like_control(provider.clone(), &shown)),
        })
        .collect();
    assert!(none.len() >= LEAST, "only {}", none.len());
    wrong.chain(others).chain(none).collect()
}

/// A server that hears those, too, who have no certificate, and speaks gRPC's own HTTP/2.
fn like_control(provider: CryptoProvider, shown: &Shown) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anything { demands: false }))
        .with_cert_resolver(Arc::new(Always(shown.certified())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// What comes of a call to such a one, who is told a secret if it is taken for control, and what that one saw.
async fn calling(credential: Option<&Credential>, config: ServerConfig) -> (Result<(), Error>, Saw) {
    let (address, peer) = is_called(config, b"");
    let socket = TcpStream::connect(address).await.unwrap();
    let called = match call_control(socket, &ROOT.bundle(), credential, &id(PEERS), IN_TIME).await {
        Ok(mut stream) => {
            stream.write_all(SECRET).await.unwrap();
            stream.shutdown().await.unwrap();
            // Until it has heard all of it, in whatever way it ends.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    (
        called,
        tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap(),
    )
}

#[tokio::test]
async fn whoever_is_not_control_is_told_nothing_and_the_reason_is_named() {
    let own = ROOT.credential();
    let mut wrongly = Vec::new();
    for impostor in impostors() {
        for credential in [None, Some(&own)] {
            let found = calling(credential, impostor.show()).await;
            // Whatever alert it reads: the connection may be reset before, since we close it without reading its flight to the end.
            wrongly.extend(wrongly_judged(&impostor.what, impostor.reason, "", found));
        }
    }
    assert!(wrongly.is_empty(), "{wrongly:#?}");
}

#[tokio::test]
async fn control_is_told_by_one_with_a_certificate_and_by_one_that_has_none_yet() {
    let own = ROOT.credential();
    for shape in right(&ROOT) {
        for credential in [None, Some(&own)] {
            let config = like_control(aws_lc_rs::default_provider(), &shape.show());
            let (called, saw) = calling(credential, config).await;
            called.unwrap_or_else(|error| panic!("{}: {error}", shape.name()));
            assert_eq!(saw.plain, SECRET, "{}: {:?}", shape.name(), saw.error);
        }
    }
}
