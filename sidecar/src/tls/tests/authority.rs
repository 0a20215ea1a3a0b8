//! Certification authorities of a test's own, and what they certify. The `identity` tests of the whole sidecar use this
//! file, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

pub(super) const OURS: &str = "spiffe://cluster.local/ns/shop/sa/greeter";
pub(super) const PEERS: &str = "spiffe://cluster.local/ns/shop/sa/caller";

pub(super) fn soon(seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::now() - by
    } else {
        SystemTime::now() + by
    }
}

/// One that certifies.
pub(super) struct Authority {
    pub(super) issuer: CertifiedIssuer<'static, KeyPair>,
    /// From itself upwards, without the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// A chain and the key that goes with it, or does not.
#[derive(Clone)]
pub(super) struct Shown {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Vec<u8>,
}

pub(super) fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// An issuer with nothing wrong.
pub(super) fn issuer_params() -> CertificateParams {
    // Each has a name of its own, or the wrong one of two would be tried, too.
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    authority_params(&format!("issuer {}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// A leaf with nothing wrong.
pub(super) fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = soon(-60).into();
    params.not_after = soon(3600).into();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Authority {
    pub(super) fn root(name: &str) -> Authority {
        let issuer = CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap();
        Authority {
            issuer,
            chain: Vec::new(),
        }
    }

    pub(super) fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        let mut params = issuer_params();
        change(&mut params);
        self.certify_issuer(params, KeyPair::generate().unwrap())
    }

    pub(super) fn certify_issuer(&self, params: CertificateParams, key: KeyPair) -> Authority {
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let mut chain = vec![issuer.der().clone()];
        chain.extend_from_slice(&self.chain);
        Authority { issuer, chain }
    }

    pub(super) fn certify(&self, params: &CertificateParams) -> Shown {
        self.certify_key(params, &KeyPair::generate().unwrap())
    }

    pub(super) fn certify_key(&self, params: &CertificateParams, key: &KeyPair) -> Shown {
        let leaf = params.signed_by(key, &self.issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.chain);
        Shown {
            chain,
            key: key.serialize_der(),
        }
    }

    pub(super) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = leaf_params(PEERS);
        change(&mut params);
        self.certify(&params)
    }
}

impl Shown {
    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        let key = aws_lc_rs::sign::any_supported_type(&self.private()).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}
