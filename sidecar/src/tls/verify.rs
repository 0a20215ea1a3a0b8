//! Judges the certificate that a peer shows: first its chain (RFC 5280), then the leaf, by the rules of SPIFFE X509-SVID.
//!
//! One verifier serves one handshake and keeps its verdict, because rustls passes on an alert's worth of it only.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use portunus_proto::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::credential::Bundle;
use super::peer::Peer;
use super::refused::Refused;

/// How far two clocks may be apart, in both directions.
const SKEW: Duration = Duration::from_secs(20);
/// Longest chain of issuers below the root. Honest ones have one or two.
const MOST_INTERMEDIATES: usize = 8;
/// The class of URIs among the names of a certificate (RFC 5280, 4.2.1.6).
const URI_TAG: u32 = 6;

/// What a peer's certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// The peer calls.
    Client,
    /// The peer is called.
    Server,
}

impl Usage {
    fn name(self) -> &'static str {
        match self {
            Usage::Client => "clientAuth",
            Usage::Server => "serverAuth",
        }
    }
}

/// Judges the peer of one handshake.
pub(super) struct Verifier {
    bundle: Bundle,
    provider: Arc<CryptoProvider>,
    /// Whom the peer has to be, where we chose it.
    expected: Option<SpiffeId>,
    verdict: Mutex<Option<Result<Peer, Refused>>>,
}

impl Verifier {
    pub(super) fn new(bundle: Bundle, provider: Arc<CryptoProvider>, expected: Option<SpiffeId>) -> Verifier {
        Verifier {
            bundle,
            provider,
            expected,
            verdict: Mutex::new(None),
        }
    }

    /// What it found, if the handshake came so far. It then has none any more.
    pub(super) fn take_verdict(&self) -> Option<Result<Peer, Refused>> {
        self.verdict.lock().take()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let verdict = check_chain(leaf, intermediates, &self.bundle, usage, now, algorithms)
            .and_then(|()| check_leaf(leaf, &self.bundle, &[usage]))
            .and_then(|leaf| match &self.expected {
                Some(expected) if *expected != leaf.id => Err(Refused::WrongIdentity {
                    expected: expected.clone(),
                    found: leaf.id,
                }),
                _ => Ok(leaf),
            });
        let verdict = verdict.map(|found| Peer {
            id: found.id,
            hash: sha256(leaf),
            not_after: found.not_after,
        });
        let answer = verdict.as_ref().map(|_| ()).map_err(for_rustls);
        *self.verdict.lock() = Some(verdict);
        answer
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms).map_err(|_| {
            *self.verdict.lock() = Some(Err(Refused::BadSignature));
            for_rustls(&Refused::BadSignature)
        })
    }
}

fn for_rustls(refused: &Refused) -> rustls::Error {
    rustls::Error::InvalidCertificate(refused.for_alert())
}

/// Whether one of the roots certified the leaf, by way of the intermediates, for this use and at this time.
fn check_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    usage: Usage,
    now: UnixTime,
    algorithms: &[&dyn rustls::pki_types::SignatureVerificationAlgorithm],
) -> Result<(), Refused> {
    if intermediates.len() > MOST_INTERMEDIATES {
        return Err(Refused::Chain(format!("it has more than {MOST_INTERMEDIATES} issuers")));
    }
    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| refused(error, leaf, usage))?;
    let verify_at = |time: UnixTime| {
        let key_usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        end_entity.verify_for_usage(algorithms, bundle.anchors(), intermediates, time, key_usage, None, None)
    };
    let skew = SKEW.as_secs();
    let path = match verify_at(now) {
        Err(webpki::Error::CertExpired { .. }) => verify_at(UnixTime::since_unix_epoch(Duration::from_secs(
            now.as_secs().saturating_sub(skew),
        ))),
        Err(webpki::Error::CertNotValidYet { .. }) => verify_at(UnixTime::since_unix_epoch(Duration::from_secs(
            now.as_secs().saturating_add(skew),
        ))),
        other => other,
    };
    let path = path.map_err(|error| refused(error, leaf, usage))?;
    // rustls-webpki does not ask whether an issuer's key usage lets it certify (RFC 5280, 6.1.4 n).
    for issuer in path.intermediate_certificates() {
        let issuer = issuer.der();
        let issuer = parse(&issuer)?;
        if let Some(allowed) = issuer.key_usage().map_err(malformed)?
            && !allowed.value.key_cert_sign()
        {
            return Err(Refused::KeyUsage("an issuer's does not have keyCertSign"));
        }
    }
    Ok(())
}

/// What a leaf says of its holder.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Judges a leaf by itself: whether it is a SPIFFE certificate of the trust domain, for the uses.
pub(super) fn check_leaf(leaf: &CertificateDer<'_>, bundle: &Bundle, usages: &[Usage]) -> Result<Leaf, Refused> {
    let leaf = parse(leaf)?;
    if let Some(constraints) = leaf.basic_constraints().map_err(malformed)?
        && constraints.value.ca
    {
        return Err(Refused::CaAsLeaf);
    }
    let key_usage = leaf.key_usage().map_err(malformed)?;
    let key_usage = key_usage.ok_or(Refused::KeyUsage("the leaf has none"))?.value;
    if !key_usage.digital_signature() {
        return Err(Refused::KeyUsage("the leaf's does not have digitalSignature"));
    }
    if key_usage.key_cert_sign() || key_usage.crl_sign() {
        return Err(Refused::KeyUsage(
            "the leaf's has keyCertSign or cRLSign, which are for authorities",
        ));
    }
    // To have none is allowed (X509-SVID, 4.4); rustls-webpki holds the issuers to the same.
    if let Some(extended) = leaf.extended_key_usage().map_err(malformed)? {
        for usage in usages {
            let fits = match usage {
                Usage::Client => extended.value.client_auth,
                Usage::Server => extended.value.server_auth,
            };
            if !fits {
                return Err(Refused::ExtendedKeyUsage(usage.name()));
            }
        }
    }
    let id = only_id(&leaf)?;
    if id.trust_domain() != bundle.trust_domain().as_str() {
        return Err(Refused::ForeignTrustDomain {
            id,
            ours: bundle.trust_domain().clone(),
        });
    }
    Ok(Leaf {
        id,
        not_before: system_time(leaf.validity().not_before),
        not_after: system_time(leaf.validity().not_after),
    })
}

/// The one URI name of a certificate. Names of other kinds may stand beside it (X509-SVID, 2).
fn only_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Refused> {
    let names = leaf.subject_alternative_name().map_err(malformed)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        _ => None,
    });
    let only = uris.next().ok_or(Refused::NoUriName)?;
    match uris.count() {
        0 => {}
        others => return Err(Refused::SeveralUriNames(others + 1)),
    }
    let text = only.filter(|text| text.is_ascii()).ok_or(Refused::IdNotAscii)?;
    SpiffeId::parse(text).map_err(Refused::BadId)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refused> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Refused::Malformed("bytes follow it".to_owned())),
        Err(error) => Err(Refused::Malformed(error.to_string())),
    }
}

fn malformed(error: x509_parser::error::X509Error) -> Refused {
    Refused::Malformed(error.to_string())
}

fn system_time(time: ASN1Time) -> SystemTime {
    match u64::try_from(time.timestamp()) {
        Ok(seconds) => SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn at(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(time.as_secs()))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What rustls-webpki says of a chain, in our words. Its enum may grow: what is new there is a bad chain here.
fn refused(error: webpki::Error, leaf: &CertificateDer<'_>, usage: Usage) -> Refused {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => Refused::Expired { at: at(not_after) },
        E::CertNotValidYet { not_before, .. } => Refused::NotYetValid { from: at(not_before) },
        E::CaUsedAsEndEntity => Refused::CaAsLeaf,
        E::UnknownIssuer if signs_itself(leaf) => Refused::SelfSigned,
        E::UnknownIssuer => Refused::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Refused::ExtendedKeyUsage(usage.name()),
        E::NameConstraintViolation => Refused::NameConstraints,
        E::InvalidSignatureForPublicKey => Refused::BadSignature,
        E::EndEntityUsedAsCa => Refused::Chain("an issuer is no certification authority".to_owned()),
        E::PathLenConstraintViolated => Refused::Chain("it is longer than an issuer allows".to_owned()),
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => Refused::Chain("it costs too much to judge".to_owned()),
        E::BadDer
        | E::BadDerTime
        | E::ExtensionValueInvalid
        | E::InvalidCertValidity
        | E::InvalidSerialNumber
        | E::MalformedExtensions
        | E::SignatureAlgorithmMismatch
        | E::TrailingData(_)
        | E::UnsupportedCertVersion
        | E::UnsupportedCriticalExtension => Refused::Malformed(error.to_string()),
        other => Refused::Chain(other.to_string()),
    }
}

/// Whether a certificate names its own holder as its issuer.
fn signs_itself(leaf: &CertificateDer<'_>) -> bool {
    parse(leaf).is_ok_and(|leaf| leaf.issuer().as_raw() == leaf.subject().as_raw())
}

fn sha256(leaf: &CertificateDer<'_>) -> [u8; 32] {
    let hash = super::credential::SHA256.hash(leaf);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&hash.as_ref()[..32]);
    bytes
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Usage::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// The peer has one certificate: no use in telling it which roots we believe.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Never asked: TLS 1.2 is not offered.
fn no_tls12() -> rustls::Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish()
    }
}
