//! Peers of plain rustls: they believe everybody, and show what they are told to. The `identity` tests of the whole
//! sidecar use this file, too.

use std::sync::Arc;

use portunus_proto::key_exchanges;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use super::authority::Shown;

/// One that believes everybody, and shows what it is given.
#[derive(Debug)]
pub(super) struct Anything {
    pub(super) demands: bool,
}

pub(super) fn schemes() -> Vec<SignatureScheme> {
    aws_lc_rs::default_provider()
        .signature_verification_algorithms
        .supported_schemes()
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Anything {
    fn client_auth_mandatory(&self) -> bool {
        self.demands
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Shows one chain, whatever it is.
#[derive(Debug)]
pub(super) struct Always(pub(super) Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// All that may be agreed on: each suite with each exchange of keys.
pub(super) fn providers() -> Vec<CryptoProvider> {
    let all = aws_lc_rs::default_provider();
    let suites = all.cipher_suites.iter().filter(|suite| suite.tls13().is_some());
    let with = |suite: &SupportedCipherSuite| {
        let suite = *suite;
        key_exchanges().into_iter().map(move |exchange| CryptoProvider {
            cipher_suites: vec![suite],
            kx_groups: vec![exchange],
            ..aws_lc_rs::default_provider()
        })
    };
    suites.flat_map(with).collect()
}

/// A plain rustls client that shows this, or nothing.
pub(super) fn client_config(shown: Option<&Shown>) -> ClientConfig {
    client_config_by(aws_lc_rs::default_provider(), shown)
}

pub(super) fn client_config_by(provider: CryptoProvider, shown: Option<&Shown>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything { demands: true }));
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(Always(shown.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"portunus/h2".to_vec()];
    config
}

/// A plain rustls server that shows this.
pub(super) fn server_config(shown: &Shown) -> ServerConfig {
    server_config_by(aws_lc_rs::default_provider(), shown)
}

pub(super) fn server_config_by(provider: CryptoProvider, shown: &Shown) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anything { demands: true }))
        .with_cert_resolver(Arc::new(Always(shown.certified())));
    config.alpn_protocols = vec![b"portunus/h2".to_vec(), b"portunus/tcp".to_vec()];
    config
}
