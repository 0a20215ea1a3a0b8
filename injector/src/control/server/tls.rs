//! Control's own TLS: 1.3 alone, the post-quantum exchange first, no tickets; and whom it admits by certificate.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use portunus_proto::svid::{self, SKEW, Usage};
use portunus_proto::{CONTROL_ACCOUNT, SpiffeId, TrustDomain, key_exchanges};
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
    let id = SpiffeId::of(authority.trust_domain(), namespace, CONTROL_ACCOUNT)?;
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

/// The exchanges that control takes: those of sidecars.
fn provider() -> CryptoProvider {
    CryptoProvider {
        kx_groups: key_exchanges(),
        ..aws_lc_rs::default_provider()
    }
}

/// webpki judges the chain, [`svid`] the leaf and whether its issuers may certify, as sidecars do it. A client may have no certificate; what it may then do is decided later.
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

/// Issuers that are not looked at.
#[derive(Debug, thiserror::Error)]
#[error("the peer's certificate chain is not acceptable: {0}")]
struct NoChain(svid::NoChain);

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
        use CertificateError as E;
        fn refused(why: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
            rustls::Error::InvalidCertificate(E::Other(OtherError(Arc::new(why))))
        }
        svid::may_be_a_chain(intermediates).map_err(|why| refused(NoChain(why)))?;
        let verify_at = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            self.chain.verify_client_cert(leaf, intermediates, time)
        };
        let (now, skew) = (now.as_secs(), SKEW.as_secs());
        let verified = match verify_at(now) {
            Err(rustls::Error::InvalidCertificate(E::Expired | E::ExpiredContext { .. })) => {
                verify_at(now.saturating_sub(skew))
            }
            Err(rustls::Error::InvalidCertificate(E::NotValidYet | E::NotValidYetContext { .. })) => {
                verify_at(now.saturating_add(skew))
            }
            other => other,
        }?;
        // Which of them stand between leaf and root is not said here: so all that are shown have to be issuers.
        for issuer in intermediates {
            svid::may_certify(issuer).map_err(refused)?;
        }
        svid::judge(leaf, &self.domain, &[Usage::Client]).map_err(refused)?;
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
