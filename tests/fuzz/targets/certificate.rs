//! Certificates: no bytes break the verifier, be they signed by a root that it believes or not; and the id that it
//! finds stands in the leaf and is of the trust domain.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use ends::sign::{self, KEY, sequence, signed};
use libfuzzer_sys::fuzz_target;
use portunus_proto::TrustDomain;
use portunus_sidecar::tls::{Bundle, Credential, Usage};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

fuzz_target!(init: the_good_seed_is_taken(), |input: &[u8]| {
    // As it is; as what a root signed, whatever stands in it; and the same with a length around it that is right.
    for der in [input.to_vec(), signed(input), signed(&sequence(input))] {
        judge(&der);
    }
});

/// Lest nothing but refusals be tried.
fn the_good_seed_is_taken() {
    let leaf = CertificateDer::from(signed(include_bytes!("../corpus/certificate/leaf")));
    let id = BUNDLE
        .judge(&[leaf], Usage::Server, at(NOW))
        .expect("a certificate that will do");
    assert_eq!(id.as_str(), "spiffe://mesh.example/ns/shop/sa/web");
}

fn judge(der: &[u8]) {
    let (der, root) = (CertificateDer::from(der), &*ROOT);
    let root_der = root.der().clone();
    // And in the last second that there is.
    for now in [NOW, u64::MAX].map(at) {
        for usage in [Usage::Client, Usage::Server] {
            // As the leaf, as its issuer, and behind an issuer that has nothing to do with it.
            for chain in [vec![der.clone()], vec![der.clone(), root_der.clone()]] {
                if let Ok(id) = BUNDLE.judge(&chain, usage, now) {
                    assert_eq!(id.trust_domain(), "mesh.example");
                    let id = id.as_str().as_bytes();
                    assert!(der.windows(id.len()).any(|part| part == id), "an id that is not there");
                }
            }
            let _ = BUNDLE.judge(&[GOOD.clone(), der.clone()], usage, now);
        }
    }
    // As our own, which is not asked for its issuer; and as a root.
    let _ = Credential::new(
        vec![der.clone().into_owned()],
        PrivateKeyDer::Pkcs8(sign::PKCS8.into()),
        BUNDLE.clone(),
    );
    let _ = Bundle::new(BUNDLE.trust_domain().clone(), &[der]);
}

/// In the end of 2026, when the good seeds are valid.
const NOW: u64 = 1_795_000_000;

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

static ROOT: LazyLock<CertifiedIssuer<'static, &'static KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, &*KEY).expect("a root")
});

static BUNDLE: LazyLock<Bundle> = LazyLock::new(|| {
    let domain = TrustDomain::parse("mesh.example").expect("it is one");
    Bundle::new(domain, &[ROOT.der().clone()]).expect("a bundle")
});

/// A leaf whose issuer is the input, if that says the right name.
static GOOD: LazyLock<CertificateDer<'static>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "issuer");
    let issuer = CertifiedIssuer::self_signed(params, &*KEY).expect("an issuer");
    let leaf = CertificateParams::default().signed_by(&*KEY, &issuer);
    leaf.expect("a leaf").der().clone()
});
