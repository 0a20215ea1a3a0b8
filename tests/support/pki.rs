//! A trust domain of a test's own: a root, an issuer under it, and certificates for whom the test likes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use portunus_proto::{SpiffeId, TrustDomain};
use portunus_sidecar::policy::{Inbound, Mode};
use portunus_sidecar::route::{Endpoint, Known, Policy, Subject};
use portunus_sidecar::tls::{Bundle, Credential};
use portunus_sidecar::worker::Mesh;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

/// A certification authority.
pub struct Pki {
    domain: TrustDomain,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new one, for a trust domain of this name.
    pub fn new(domain: &str) -> Pki {
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(authority("root"), key()).expect("a root");
        let issuer = CertifiedIssuer::signed_by(authority("issuer"), key(), &root).expect("an issuer");
        Pki {
            domain: TrustDomain::parse(domain).expect("a trust domain"),
            root,
            issuer,
        }
    }

    /// The id of a service account of namespace `shop`.
    pub fn id(&self, account: &str) -> SpiffeId {
        SpiffeId::of(&self.domain, "shop", account).expect("a name")
    }

    /// The trust bundle.
    pub fn bundle(&self) -> Bundle {
        Bundle::new(self.domain.clone(), &[self.root.der().clone()]).expect("a bundle")
    }

    /// The root's certificate, in PEM.
    pub fn root_pem(&self) -> String {
        self.root.pem()
    }

    /// The issuer's certificate and its key, in PEM: what a control signs with that is given an issuer.
    pub fn issuer_pem(&self) -> (String, String) {
        (self.issuer.pem(), self.issuer.key().serialize_pem())
    }

    /// The issuer's certificate and its key, in PEM, as control keeps them.
    pub fn issuer(&self) -> String {
        self.issuer.pem() + &self.issuer.key().serialize_pem()
    }

    /// The same of another issuer under the same root.
    pub fn another_issuer(&self) -> String {
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::signed_by(authority("issuer"), key, &self.root).expect("an issuer");
        issuer.pem() + &issuer.key().serialize_pem()
    }

    /// A certificate and its key, for as long as said from a minute ago on.
    pub fn certify(&self, id: &SpiffeId, lasts: Duration) -> (Vec<CertificateDer<'static>>, KeyPair) {
        let (leaf, key) = self.leaf(id, lasts);
        (vec![leaf.der().clone(), self.issuer.der().clone()], key)
    }

    /// The same in PEM: the certificate with its issuer's, and the key.
    pub fn certify_pem(&self, id: &SpiffeId, lasts: Duration) -> (String, String) {
        let (leaf, key) = self.leaf(id, lasts);
        (leaf.pem() + &self.issuer.pem(), key.serialize_pem())
    }

    fn leaf(&self, id: &SpiffeId, lasts: Duration) -> (Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + lasts).into();
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        (leaf, key)
    }

    /// What the holder of an id proves itself by.
    pub fn credential(&self, id: &SpiffeId, lasts: Duration) -> Arc<Credential> {
        let (chain, key) = self.certify(id, lasts);
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Arc::new(Credential::new(chain, key, self.bundle()).expect("a credential"))
    }

    /// A mesh as the sidecar of `id` sees it: `who` says who is at an address, and ports have `mode`.
    pub fn mesh(
        &self,
        id: &SpiffeId,
        mode: Mode,
        who: impl Fn(SocketAddr) -> Option<SpiffeId> + Send + Sync + 'static,
    ) -> Mesh {
        mesh(self.credential(id, Duration::from_secs(3_600)), mode, who)
    }
}

/// A mesh as the sidecar sees it that proves itself by `credential`: `who` says who is at an address, and ports have
/// `mode`.
pub fn mesh(
    credential: Arc<Credential>,
    mode: Mode,
    who: impl Fn(SocketAddr) -> Option<SpiffeId> + Send + Sync + 'static,
) -> Mesh {
    mesh_of(credential, mode, move |subject| match subject {
        Subject::Address(addr) => match who(addr) {
            Some(identity) => Known::Endpoint(endpoint(addr, identity)),
            None => Known::Outside(Arc::new(Policy::default())),
        },
        Subject::Name { .. } => Known::Outside(Arc::new(Policy::default())),
    })
}

/// The same, where `known` says all that is known of names and addresses.
pub fn mesh_of(
    credential: Arc<Credential>,
    mode: Mode,
    known: impl Fn(Subject) -> Known + Send + Sync + 'static,
) -> Mesh {
    let (say, modes) = watch::channel(Arc::new(Inbound {
        default: Some(mode),
        ..Default::default()
    }));
    let ask = move |subject: Subject| {
        // Whoever follows goes on hearing for as long as this lives.
        let _ = &say;
        let (keep, known) = watch::channel(Arc::new(known(subject)));
        // Nothing ever changes; but that nobody is left to say so would be the end of it.
        std::mem::forget(keep);
        Ok(known)
    };
    Mesh {
        own: Arc::new(ArcSwapOption::from(Some(credential))),
        modes,
        ask: Arc::new(ask),
    }
}

/// An endpoint of the mesh's, ready.
pub fn endpoint(addr: SocketAddr, identity: SpiffeId) -> Endpoint {
    Endpoint {
        addr,
        identity: Some(identity),
        zone: String::new(),
        weight: 1,
        is_ready: true,
        workload: String::new(),
    }
}

/// What an authority's certificate says. No two have the same name: verifiers would try in vain.
fn authority(role: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = format!("{role} {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
