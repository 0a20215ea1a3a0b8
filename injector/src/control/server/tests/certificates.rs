//! Whoever shows control a certificate with one thing wrong is refused, as sidecars refuse it: the shapes are theirs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use portunus_proto::TrustDomain;
use portunus_proto::svid::{NotSvid, Usage};
use rustls::{CertificateError, ClientConfig, ClientConnection, OtherError, ServerConnection};
use rustls_pki_types::ServerName;

use super::super::tls;
use crate::control::identity::Authority;

#[allow(dead_code, reason = "what is shown is made by drafts")]
#[path = "../../../../../sidecar/src/tls/tests/authority.rs"]
mod authority;
#[allow(dead_code, reason = "control admits clients without a certificate, to join")]
#[path = "../../../../../sidecar/src/tls/tests/draft.rs"]
mod draft;
#[allow(dead_code, reason = "control is not called by servers")]
#[path = "../../../../../sidecar/src/tls/tests/plain.rs"]
mod plain;
#[path = "../../../../../sidecar/src/tls/tests/shapes.rs"]
mod shapes;

/// What becomes of a handshake of control's with such a client.
fn shaken(control: &tls::Serving, client: ClientConfig) -> Result<(), rustls::Error> {
    let mut control = ServerConnection::new(control.config.clone()).expect("it is served");
    let name = ServerName::try_from("control").expect("a name");
    let mut client = ClientConnection::new(Arc::new(client), name).expect("a client");
    while control.is_handshaking() {
        for bytes in flight(&mut client).chunks(4_096) {
            control.read_tls(&mut &bytes[..]).expect("it is read");
            control.process_new_packets()?;
        }
        for bytes in flight(&mut control).chunks(4_096) {
            client.read_tls(&mut &bytes[..]).expect("it is read");
            client.process_new_packets().expect("it believes everybody");
        }
    }
    Ok(())
}

/// What one has to send.
fn flight<S: rustls::SideData>(of: &mut rustls::ConnectionCommon<S>) -> Vec<u8> {
    let mut bytes = Vec::new();
    while of.wants_write() {
        of.write_tls(&mut bytes).expect("a vector takes all");
    }
    bytes
}

/// The word that a sidecar has for it.
fn word(error: &rustls::Error) -> &'static str {
    use CertificateError as E;
    let rustls::Error::InvalidCertificate(error) = error else {
        panic!("the certificate is not what is wrong: {error}");
    };
    match error {
        E::Expired | E::ExpiredContext { .. } => "expired",
        E::NotValidYet | E::NotValidYetContext { .. } => "not_yet_valid",
        E::UnknownIssuer => "unknown_issuer",
        // The second where the holder's key is of another kind.
        E::BadSignature | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => "bad_signature",
        E::BadEncoding => "malformed",
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => "extended_key_usage",
        E::Other(OtherError(why)) => match (why.downcast_ref(), why.downcast_ref()) {
            (Some(why), _) => NotSvid::reason(why),
            (_, Some(webpki::Error::NameConstraintViolation)) => "name_constraints",
            (_, Some(webpki::Error::CaUsedAsEndEntity)) => "ca_as_leaf",
            (_, Some(webpki::Error::EmptyEkuExtension)) => "extended_key_usage",
            (_, Some(webpki::Error::EndEntityUsedAsCa | webpki::Error::PathLenConstraintViolated)) => "chain",
            (_, Some(webpki::Error::MaximumPathDepthExceeded)) => "chain",
            (_, Some(_)) => "malformed",
            (None, None) if why.to_string().contains("has more than 8 issuers") => "chain",
            (None, None) if why.to_string().contains("has more than 2 issuers of one name") => "chain",
            (None, None) => panic!("nobody knows {why}"),
        },
        other => panic!("nobody knows {other:?}"),
    }
}

#[test]
fn a_client_whose_certificate_is_wrong_is_refused_as_sidecars_refuse_it() {
    let root = authority::Authority::root("root");
    let domain = TrustDomain::parse("cluster.local").expect("it is one");
    let issuer = root.below(|_| {});
    let (certificate, key) = (issuer.issuer.pem(), issuer.issuer.key().serialize_pem());
    let root_pem = root.issuer.pem();
    let now = SystemTime::now();
    let made = Authority::from_pem(
        &domain,
        certificate.as_bytes(),
        key.as_bytes(),
        root_pem.as_bytes(),
        now,
    );
    let control = tls::serving(&made.expect("it fits"), "portunus", Duration::from_secs(3_600), now);
    let control = control.expect("it signs");
    let shapes = shapes::wrong(&root, Usage::Client);
    shapes::enough_of_each(&shapes);
    for shape in shapes {
        let (what, client) = (shape.name(), plain::client_config(Some(&shape.show())));
        let error = shaken(&control, speaking_h2(client)).expect_err(&what);
        let expected = match (shape.reason, shape.defect) {
            // A sidecar looks whose name the issuer has.
            ("self_signed", _) => "unknown_issuer",
            // For rustls one whose end is before its beginning has ended.
            (_, "ends before it begins") => "expired",
            (reason, _) => reason,
        };
        assert_eq!(word(&error), expected, "{what}: {error}");
    }
    for shape in shapes::right(&root) {
        let client = plain::client_config(Some(&shape.show()));
        if let Err(error) = shaken(&control, speaking_h2(client)) {
            panic!("{}: {error}", shape.name());
        }
    }
}

fn speaking_h2(mut client: ClientConfig) -> ClientConfig {
    client.alpn_protocols = vec![b"h2".to_vec()];
    client
}
