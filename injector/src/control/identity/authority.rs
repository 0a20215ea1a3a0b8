//! The authority of a trust domain: an issuer that signs, and the roots that are trusted.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portunus_proto::limits::{LONGEST_CERTIFICATE, MOST_CHAIN, MOST_ROOTS};
use portunus_proto::mesh::v1::Bundle;
use portunus_proto::{SpiffeId, TrustDomain};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, X509Certificate};

/// How far back a certificate's life begins, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(60);
/// The same for the authority's own certificates.
const AUTHORITY_BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);
const DAY: u64 = 24 * 60 * 60;
/// How long a root lasts that is made here.
const ROOT_LIFETIME: Duration = Duration::from_secs(3_650 * DAY);
/// How long an issuer lasts that is made here.
const ISSUER_LIFETIME: Duration = Duration::from_secs(365 * DAY);
/// An issuer with less left than this signs nothing any more.
const LEAST_LEFT: Duration = Duration::from_secs(60);

/// An issuer and the roots of its trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
    roots_not_after: SystemTime,
}

/// A certificate that was just signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The leaf, then every issuer but the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// When the leaf ends.
    pub not_after: SystemTime,
}

/// Why there is no authority, or why it does not sign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What should be PEM is not.
    #[error("{0} cannot be read as PEM: {1}")]
    Pem(&'static str, String),
    /// There is none.
    #[error("there is no {0}")]
    Missing(&'static str),
    /// A certificate that cannot be parsed.
    #[error("the certificate of the {0} cannot be read")]
    Certificate(&'static str),
    /// No sidecar would take so many.
    #[error("there are {found} {what}; sidecars take at most {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many may be.
        most: usize,
    },
    /// No sidecar would take it.
    #[error("a certificate has {0} bytes; sidecars take at most {LONGEST_CERTIFICATE}")]
    TooLong(usize),
    /// It may not issue.
    #[error("the certificate of the {0} is not that of a CA")]
    NotCa(&'static str),
    /// rustls-webpki refuses every URI name below constraints.
    #[error("the issuer's certificate has name constraints, under which no SPIFFE id is accepted by sidecars")]
    NameConstraints,
    /// Key and certificate are of two issuers.
    #[error("the issuer's key is not that of its certificate")]
    OtherKey,
    /// Nothing it signs would be trusted.
    #[error("what the issuer signs is not trusted under the roots: {0}")]
    NotTrusted(String),
    /// Its life is over, or nearly.
    #[error("the issuer's certificate has ended, or ends within a minute; give control a new issuer")]
    Ended,
    /// No issuer can be made any more.
    #[error("the root has ended, or ends within a minute, and no issuer can outlive it; give control a new root")]
    RootEnded,
    /// It is not begun.
    #[error("the issuer's certificate is not valid yet; look at this machine's clock")]
    NotYet,
    /// Something in signing itself.
    #[error("a certificate cannot be signed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// An issuer that was just made, in PEM.
pub struct Made {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl Authority {
    /// Puts an authority together, and judges whether what it signs would be trusted. `issuer` has certificates, the issuer's
    /// first; `key` its private key; `roots` what is trusted. All are PEM; what else stands there is passed over.
    ///
    /// # Errors
    /// When anything does not fit.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        issuer: &[u8],
        key: &[u8],
        roots: &[u8],
        now: SystemTime,
    ) -> Result<Authority, Error> {
        let mut chain = certificates("the issuer", issuer)?;
        let mut roots = certificates("the roots", roots)?;
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        // A root proves itself to nobody: sidecars know it.
        chain.retain(|certificate| !roots.contains(certificate) || chain_is_only(issuer, certificate));
        few("roots", roots.len(), MOST_ROOTS)?;
        // The leaf is one more.
        few("certificates from the issuer to the root", chain.len(), MOST_CHAIN - 1)?;
        let longest = chain.iter().chain(&roots).map(|certificate| certificate.len()).max();
        if let Some(length) = longest.filter(|length| *length > LONGEST_CERTIFICATE) {
            return Err(Error::TooLong(length));
        }
        let first = chain.first().ok_or(Error::Missing("certificate of the issuer"))?;
        let (_, parsed) = X509Certificate::from_der(first).map_err(|_| Error::Certificate("issuer"))?;
        check_ca(&parsed, "issuer")?;
        if parsed.name_constraints().is_ok_and(|constraints| constraints.is_some()) {
            return Err(Error::NameConstraints);
        }
        let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(key)
            .map_err(|why| Error::Pem("the issuer's key", why.to_string()))?;
        let key = KeyPair::try_from(&key)?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(Error::OtherKey);
        }
        let (not_before, not_after) = validity(&parsed);
        let mut roots_not_after = None;
        for root in &roots {
            let (_, root) = X509Certificate::from_der(root).map_err(|_| Error::Certificate("root"))?;
            check_ca(&root, "root")?;
            let (_, ends) = validity(&root);
            roots_not_after = roots_not_after.min(Some(ends)).or(Some(ends));
        }
        let authority = Authority {
            trust_domain: trust_domain.clone(),
            issuer: Issuer::from_ca_cert_der(first, key)?,
            not_before,
            not_after,
            roots_not_after: roots_not_after.ok_or(Error::Missing("root"))?,
            chain,
            roots,
        };
        authority.check_trusted(now)?;
        Ok(authority)
    }

    /// Certifies a key for an identity, as an X.509-SVID (SPIFFE X509-SVID, 3 to 5).
    ///
    /// # Errors
    /// When the issuer's own certificate is over, or has not begun.
    pub fn certify(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, Error> {
        if now + LEAST_LEFT > self.not_after {
            return Err(Error::Ended);
        }
        if now < self.not_before {
            return Err(Error::NotYet);
        }
        let not_after = (now + lifetime).min(self.not_after);
        let mut params = CertificateParams::default();
        let begins = now.checked_sub(BACKDATED).unwrap_or(UNIX_EPOCH).max(self.not_before);
        set_life(&mut params, begins, not_after);
        params.serial_number = Some(serial());
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id.as_str())?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &self.issuer)?;
        let chain = std::iter::once(leaf.der().clone()).chain(self.chain.iter().cloned());
        Ok(Issued {
            chain: chain.collect(),
            not_after,
        })
    }

    /// What sidecars are to trust.
    pub fn bundle(&self) -> Bundle {
        Bundle {
            trust_domain: self.trust_domain.as_str().to_owned(),
            roots: self.roots.iter().map(|root| root.to_vec()).collect(),
        }
    }

    /// The roots, in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The trust domain that a root was made for by control, where that is another: what is certified now is of ours all the
    /// same. Of a name as long as a root's may be, the beginning.
    pub fn made_for_another(&self) -> Option<String> {
        let ours = named(&self.trust_domain);
        let mut names = self.roots.iter().filter_map(|root| {
            let (_, root) = X509Certificate::from_der(root).ok()?;
            let name = root.subject().iter_common_name().next()?.as_str().ok()?;
            let (domain, mark) = name.split_once(" root ")?;
            // An operator's own root may be named as he likes.
            let is_ours = mark.len() == 8 && mark.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_ours.then(|| domain.to_owned())
        });
        names.find(|domain| *domain != ours)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the issuer's certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When the first of the roots ends.
    pub fn roots_not_after(&self) -> SystemTime {
        self.roots_not_after
    }

    /// Whether a third of the issuer's life, or less, is left.
    pub fn is_old(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now + life / 3 >= self.not_after
    }

    /// Whether the issuer's life has begun: it has not if the issuer was made while the clock was ahead.
    pub fn has_begun(&self, now: SystemTime) -> bool {
        now >= self.not_before
    }

    /// A certificate is signed and judged as a sidecar would judge it.
    fn check_trusted(&self, now: SystemTime) -> Result<(), Error> {
        let key = KeyPair::generate()?;
        let id = SpiffeId::of(&self.trust_domain, "portunus", "trial");
        let id = id.map_err(|why| Error::NotTrusted(why.to_string()))?;
        let trial = self.certify(&key, &id, LEAST_LEFT, now)?;
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            let anchors: Result<Vec<_>, _> = self.roots.iter().map(webpki::anchor_from_trusted_cert).collect();
            let not_trusted = |why: webpki::Error| Error::NotTrusted(why.to_string());
            EndEntityCert::try_from(&trial.chain[0])
                .map_err(not_trusted)?
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &anchors.map_err(not_trusted)?,
                    &trial.chain[1..],
                    UnixTime::since_unix_epoch(seconds),
                    usage,
                    None,
                    None,
                )
                .map_err(not_trusted)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({}, {} roots)", self.trust_domain, self.roots.len())
    }
}

/// Makes a key, in PEM.
///
/// # Errors
/// When there is no randomness.
pub fn make_key() -> Result<String, Error> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Makes the certificate of a root that has this key, both in PEM.
///
/// # Errors
/// When the key is none, or it cannot be signed.
pub fn make_root(trust_domain: &TrustDomain, key: &str, now: SystemTime) -> Result<String, Error> {
    let key = KeyPair::from_pem(key)?;
    let params = authority_params(
        trust_domain,
        "root",
        BasicConstraints::Constrained(1),
        now + ROOT_LIFETIME,
        now,
    );
    Ok(params.self_signed(&key)?.pem())
}

/// Makes an issuer below a root.
///
/// # Errors
/// When the root cannot be read, has ended, or is not that of the key.
pub fn make_issuer(trust_domain: &TrustDomain, root: &str, root_key: &str, now: SystemTime) -> Result<Made, Error> {
    let ends = issuer_would_end(root, now)?;
    if now + LEAST_LEFT > ends {
        return Err(Error::RootEnded);
    }
    let root = certificates("the root", root.as_bytes())?;
    let root = root.first().ok_or(Error::Missing("root"))?;
    let (_, parsed) = X509Certificate::from_der(root).map_err(|_| Error::Certificate("root"))?;
    let root_key = KeyPair::from_pem(root_key)?;
    if root_key.subject_public_key_info() != parsed.public_key().raw {
        return Err(Error::OtherKey);
    }
    let key = KeyPair::generate()?;
    let params = authority_params(trust_domain, "issuer", BasicConstraints::Constrained(0), ends, now);
    let certificate = params.signed_by(&key, &Issuer::from_ca_cert_der(root, root_key)?)?;
    Ok(Made {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// When an issuer would end that is made now below a root: with the root at the latest.
///
/// # Errors
/// When the root cannot be read.
pub fn issuer_would_end(root: &str, now: SystemTime) -> Result<SystemTime, Error> {
    let root = certificates("the root", root.as_bytes())?;
    let root = root.first().ok_or(Error::Missing("root"))?;
    let (_, root) = X509Certificate::from_der(root).map_err(|_| Error::Certificate("root"))?;
    Ok((now + ISSUER_LIFETIME).min(validity(&root).1))
}

/// Whether what an issuer signs is, or was, trusted under this root alone. `issuer` is as for [`Authority::from_pem`], and has
/// the key, too.
///
/// # Errors
/// When the issuer's certificate cannot be read.
pub fn is_under(trust_domain: &TrustDomain, issuer: &[u8], root: &[u8]) -> Result<bool, Error> {
    let first = certificates("the issuer", issuer)?;
    let first = first.first().ok_or(Error::Missing("certificate of the issuer"))?;
    let (_, parsed) = X509Certificate::from_der(first).map_err(|_| Error::Certificate("issuer"))?;
    let (begins, ends) = validity(&parsed);
    // In the midst of its life, whether that is now or not.
    let then = begins + ends.duration_since(begins).unwrap_or_default() / 2;
    Ok(Authority::from_pem(trust_domain, issuer, issuer, root, then).is_ok())
}

fn authority_params(
    trust_domain: &TrustDomain,
    role: &str,
    constraints: BasicConstraints,
    ends: SystemTime,
    now: SystemTime,
) -> CertificateParams {
    let serial = serial();
    let mark: String = serial
        .to_bytes()
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut params = CertificateParams::default();
    set_life(
        &mut params,
        now.checked_sub(AUTHORITY_BACKDATED).unwrap_or(UNIX_EPOCH),
        ends,
    );
    params.distinguished_name = DistinguishedName::new();
    // Two issuers of one name and two keys would make verifiers try in vain.
    let name = named(trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name} {role} {mark}"));
    params.serial_number = Some(serial);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

/// A trust domain in the name of a certificate, which has 64 letters at most.
fn named(trust_domain: &TrustDomain) -> String {
    trust_domain.as_str().chars().take(32).collect()
}

/// Whether a file of an issuer holds this certificate alone: then a root issues by itself.
fn chain_is_only(issuer: &[u8], certificate: &CertificateDer<'_>) -> bool {
    let all = certificates("the issuer", issuer).unwrap_or_default();
    all.first() == Some(certificate)
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    all.map_err(|why| Error::Pem(what, why.to_string()))
}

fn few(what: &'static str, found: usize, most: usize) -> Result<(), Error> {
    if found > most {
        return Err(Error::TooMany { what, found, most });
    }
    Ok(())
}

fn check_ca(certificate: &X509Certificate<'_>, what: &'static str) -> Result<(), Error> {
    let may_sign = |usage: Option<_>| usage.is_none_or(|usage: bool| usage);
    let usage = certificate.key_usage().ok().flatten();
    if !certificate.is_ca() || !may_sign(usage.map(|usage| usage.value.key_cert_sign())) {
        return Err(Error::NotCa(what));
    }
    Ok(())
}

fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let validity = certificate.validity();
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    )
}

/// 127 random bits: positive and not to be guessed (RFC 5280, 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The last second that X.509 can say, 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

fn set_life(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let since_epoch = |time: SystemTime| {
        let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Duration::from_secs(seconds.min(LAST))
    };
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(from);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_epoch(to);
}
