//! What rustls asks in the middle of a handshake: whether the peer's certificate will do, and whether the peer has
//! its key.
//!
//! One verifier serves one handshake and keeps its verdict, because rustls passes on an alert's worth of it only.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use portunus_proto::SpiffeId;
use portunus_proto::svid::{self, Usage};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerMisbehaved, SignatureScheme};

use super::credential::{Bundle, SHA256};
use super::judge::check_chain;
use super::peer::Peer;
use super::refused::Refused;

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
        let verdict = check_chain(leaf, intermediates, &self.bundle, usage, now)
            .and_then(|()| Ok(svid::judge(leaf, self.bundle.trust_domain(), &[usage])?))
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

fn sha256(leaf: &CertificateDer<'_>) -> [u8; 32] {
    let hash = SHA256.hash(leaf);
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
