//! Control's own TLS: 1.3 alone, the post-quantum exchange first, no tickets; and whom it admits by certificate.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portunus_proto::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::control::identity::{Authority, AuthorityError};

/// Why control cannot prove itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no name.
    #[error("control's own SPIFFE id: {0}")]
    Name(#[from] portunus_proto::Invalid),
    /// The authority does not sign.
    #[error("control's own certificate: {0}")]
    Authority(#[from] AuthorityError),
    /// No key can be made.
    #[error("control's own key: {0}")]
    Key(#[from] rcgen::Error),
    /// rustls does not take it.
    #[error("TLS: {0}")]
    Tls(String),
}

/// Why a certificate proves no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// It cannot be parsed.
    #[error("the client certificate cannot be read")]
    Unreadable,
    /// That of a CA.
    #[error("the client certificate is that of a CA")]
    Ca,
    /// Not for signatures.
    #[error("the client certificate's key usage is not digitalSignature alone")]
    KeyUsage,
    /// None, or several.
    #[error("the client certificate has not exactly one URI name")]
    Names,
    /// Not a SPIFFE id.
    #[error("the client certificate's URI name is no SPIFFE id: {0}")]
    Spiffe(portunus_proto::Invalid),
    /// Somebody else's domain.
    #[error("the client certificate is of another trust domain")]
    TrustDomain,
}

/// TLS as control serves it now.
#[derive(Clone)]
pub struct Serving {
    /// What rustls is told.
    pub config: Arc<ServerConfig>,
    /// When the own certificate was made, and when it ends.
    pub life: (SystemTime, SystemTime),
}

/// Makes a key, certifies it for control, and puts TLS together.
///
/// # Errors
/// When the authority does not sign.
pub fn serving(authority: &Authority, namespace: &str, lifetime: Duration, now: SystemTime) -> Result<Serving, Error> {
    let id = SpiffeId::of(authority.trust_domain(), namespace, "control")?;
    let key = KeyPair::generate()?;
    let issued = authority.certify(&key, &id, lifetime, now)?;
    let tls = |why: rustls::Error| Error::Tls(why.to_string());
    let provider = Arc::new(provider());
    let verifier = Verifier::new(authority, provider.clone())?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| Error::Tls(why.to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(issued.chain, key)
        .map_err(tls)?;
    // A resumed session would skip the judgement of the client's certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Serving {
        config: Arc::new(config),
        life: (now, issued.not_after),
    })
}

/// The exchanges that control takes, the post-quantum one first.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

/// Who a certificate is, once its chain was judged; and when it ends.
///
/// # Errors
/// When it is no X.509-SVID of this trust domain.
pub fn identity(certificate: &[u8], domain: &TrustDomain) -> Result<(SpiffeId, SystemTime), NoIdentity> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| NoIdentity::Unreadable)?;
    if certificate
        .basic_constraints()
        .map_err(|_| NoIdentity::Unreadable)?
        .is_some_and(|is| is.value.ca)
    {
        return Err(NoIdentity::Ca);
    }
    let usage = certificate.key_usage().map_err(|_| NoIdentity::Unreadable)?;
    let fits = usage.is_some_and(|is| {
        is.critical && is.value.digital_signature() && !is.value.key_cert_sign() && !is.value.crl_sign()
    });
    if !fits {
        return Err(NoIdentity::KeyUsage);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| NoIdentity::Unreadable)?;
    let names = names
        .map(|names| names.value.general_names.as_slice())
        .unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uris: Vec<_> = uris.collect();
    let [uri] = uris.as_slice() else {
        return Err(NoIdentity::Names);
    };
    let id = SpiffeId::parse(uri).map_err(NoIdentity::Spiffe)?;
    if id.trust_domain() != domain.as_str() {
        return Err(NoIdentity::TrustDomain);
    }
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok((id, UNIX_EPOCH + Duration::from_secs(ends)))
}

/// webpki judges the chain, we the name. A client may have no certificate; what it may then do is decided later.
struct Verifier {
    chain: Arc<dyn ClientCertVerifier>,
    domain: TrustDomain,
}

impl Verifier {
    fn new(authority: &Authority, provider: Arc<CryptoProvider>) -> Result<Verifier, Error> {
        let mut roots = RootCertStore::empty();
        for root in authority.roots() {
            roots.add(root.clone()).map_err(|why| Error::Tls(why.to_string()))?;
        }
        let chain = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            // Which roots there are is nobody's business.
            .clear_root_hint_subjects()
            .build()
            .map_err(|why| Error::Tls(why.to_string()))?;
        Ok(Verifier {
            chain,
            domain: authority.trust_domain().clone(),
        })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.domain)
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        let refused = |why| rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))));
        identity(leaf, &self.domain).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
