//! Who we are and whom we believe, prepared once for all handshakes.

use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use portunus_proto::svid::{self, Leaf, NotSvid, Usage};
use portunus_proto::{ALPN_H2, ALPN_TCP, SpiffeId, TrustDomain, key_exchanges};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use super::refused::Refused;
use super::verify::Verifier;

/// What everything is hashed with that names a certificate.
pub(super) static SHA256: LazyLock<&'static dyn rustls::crypto::hash::Hash> =
    LazyLock::new(|| match aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256 {
        rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider,
        #[allow(unreachable_patterns)]
        _ => unreachable!("it is a suite of TLS 1.3"),
    });

/// TLS 1.3 alone: AES-128 first, which is the cheapest here, and X25519MLKEM768 first.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: key_exchanges(),
        ..aws_lc_rs::default_provider()
    })
});

/// Why a credential cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// Nobody could be believed.
    #[error("the trust bundle of {0} has no root")]
    NoRoots(TrustDomain),
    /// A root that cannot be read.
    #[error("root {index} of the trust bundle of {trust_domain} cannot be used: {why}")]
    Root {
        /// Whose bundle it is.
        trust_domain: TrustDomain,
        /// Which of the bundle, from 0.
        index: usize,
        /// Why.
        why: String,
    },
    /// The chain is empty.
    #[error("our certificate chain is empty")]
    NoCertificate,
    /// A peer would refuse it.
    #[error("our own certificate would be refused: {0}")]
    Refused(Refused),
    /// The key cannot be read, or is of a kind that is not known.
    #[error("our key cannot be used: {0}")]
    Key(String),
    /// The certificate is for another key.
    #[error("our certificate is for another key than ours")]
    OtherKey,
}

/// Whom we believe: the roots of one trust domain. To copy one is cheap.
///
/// A root is believed for as long as it stands in the bundle, whatever end its certificate names.
#[derive(Clone)]
pub struct Bundle {
    trust_domain: TrustDomain,
    anchors: Arc<[TrustAnchor<'static>]>,
}

impl Bundle {
    /// A bundle of root certificates (DER).
    ///
    /// # Errors
    /// When there is none, or one cannot be read.
    pub fn new(trust_domain: TrustDomain, roots: &[CertificateDer<'_>]) -> Result<Bundle, Unusable> {
        let anchor = |(index, root)| match webpki::anchor_from_trusted_cert(root) {
            Ok(anchor) => Ok(anchor.to_owned()),
            Err(error) => Err(Unusable::Root {
                trust_domain: trust_domain.clone(),
                index,
                why: error.to_string(),
            }),
        };
        let anchors: Arc<[_]> = roots.iter().enumerate().map(anchor).collect::<Result<_, _>>()?;
        if anchors.is_empty() {
            return Err(Unusable::NoRoots(trust_domain));
        }
        Ok(Bundle { trust_domain, anchors })
    }

    /// Whose roots these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({}, {} roots)", self.trust_domain, self.anchors.len())
    }
}

/// Who we are and whom we believe. To copy one is cheap; the key never leaves it.
#[derive(Clone)]
pub struct Credential {
    own: Arc<Own>,
    bundle: Bundle,
    /// Complete but for the verifier, which each handshake has of its own.
    client: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Own {
    leaf: Leaf,
    resolver: Arc<Always>,
}

impl Credential {
    /// Prepares all that handshakes need. `chain` begins with our certificate and has its issuers, but not the root.
    ///
    /// # Errors
    /// When certificate and key do not fit together, or a peer would refuse the certificate for what it says. Whether
    /// its issuer stands in the bundle is left to the peers: while roots are exchanged, ours may know more than we
    /// do.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Bundle,
    ) -> Result<Credential, Unusable> {
        let leaf = chain.first().ok_or(Unusable::NoCertificate)?;
        let leaf = svid::judge(leaf, bundle.trust_domain(), &[Usage::Client, Usage::Server]);
        let leaf = leaf.map_err(|why| Unusable::Refused(why.into()))?;
        let key = PROVIDER.key_provider.load_private_key(key);
        let key = key.map_err(|error| Unusable::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|_| Unusable::OtherKey)?;
        let resolver = Arc::new(Always(Arc::new(certified)));
        let own = Arc::new(Own { leaf, resolver });
        let client = Arc::new(client_config(&own, &bundle));
        Ok(Credential { own, bundle, client })
    }

    /// The same certificate and key, with other roots.
    ///
    /// # Errors
    /// When the bundle is another trust domain's than the certificate's.
    pub fn with_bundle(&self, bundle: Bundle) -> Result<Credential, Unusable> {
        if bundle.trust_domain().as_str() != self.id().trust_domain() {
            let (id, ours) = (self.id().clone(), bundle.trust_domain().clone());
            return Err(Unusable::Refused(NotSvid::ForeignTrustDomain { id, ours }.into()));
        }
        Ok(Credential {
            own: self.own.clone(),
            client: self.client.clone(),
            bundle,
        })
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        &self.own.leaf.id
    }

    /// When our certificate begins.
    pub fn not_before(&self) -> SystemTime {
        self.own.leaf.not_before
    }

    /// When our certificate ends. A peer refuses it from 20 seconds later.
    pub fn not_after(&self) -> SystemTime {
        self.own.leaf.not_after
    }

    /// Whom we believe.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What one handshake of ours needs, where we are called.
    pub(super) fn for_caller(&self) -> (Arc<ServerConfig>, Arc<Verifier>) {
        let verifier = Arc::new(Verifier::new(self.bundle.clone(), PROVIDER.clone(), None));
        let config = server_config(verifier.clone(), self.own.resolver.clone());
        (Arc::new(config), verifier)
    }

    /// What one handshake of ours needs, where we call.
    pub(super) fn for_server(&self, expected: &SpiffeId) -> (Arc<ClientConfig>, Arc<Verifier>) {
        let expected = Some(expected.clone());
        let verifier = Arc::new(Verifier::new(self.bundle.clone(), PROVIDER.clone(), expected));
        let mut config = ClientConfig::clone(&self.client);
        config.dangerous().set_certificate_verifier(verifier.clone());
        (Arc::new(config), verifier)
    }
}

/// What a handshake of ours needs, where we are called and have no certificate to show: it comes to nothing.
pub(super) fn nothing_to_show() -> Arc<ServerConfig> {
    static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
        let nobody = WebPkiClientVerifier::no_client_auth();
        Arc::new(server_config(nobody, Arc::new(Nothing)))
    });
    CONFIG.clone()
}

fn server_config(verifier: Arc<dyn ClientCertVerifier>, shows: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3");
    let mut config = builder.with_client_cert_verifier(verifier).with_cert_resolver(shows);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_TCP.to_vec()];
    config
}

/// What a handshake of ours needs, where we call and have no certificate to show.
pub(super) fn anonymous(bundle: &Bundle, expected: &SpiffeId) -> (Arc<ClientConfig>, Arc<Verifier>) {
    let verifier = Arc::new(Verifier::new(bundle.clone(), PROVIDER.clone(), Some(expected.clone())));
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    (Arc::new(config), verifier)
}

fn client_config(own: &Own, bundle: &Bundle) -> ClientConfig {
    let nobody = Arc::new(Verifier::new(bundle.clone(), PROVIDER.clone(), None));
    let mut config = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(nobody)
        .with_client_cert_resolver(own.resolver.clone());
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    config
}

/// Shows our one certificate, whoever asks.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// No certificate at all.
#[derive(Debug)]
struct Nothing;

impl ResolvesServerCert for Nothing {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, {:?})", self.id(), self.bundle)
    }
}
