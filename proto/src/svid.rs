//! Judges a leaf by itself by the rules of SPIFFE X509-SVID: one judgement, for sidecars and for control. Its chain is judged
//! elsewhere.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use crate::limits::{MOST_ISSUERS, MOST_NAMESAKES};
use crate::{Invalid, SpiffeId, TrustDomain};

/// How far two clocks may be apart, in both directions: a certificate counts so much before its life and after it.
pub const SKEW: Duration = Duration::from_secs(20);
/// The class of URIs among the names of a certificate (RFC 5280, 4.2.1.6).
const URI_TAG: u32 = 6;

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Its holder calls.
    Client,
    /// Its holder is called.
    Server,
}

impl Usage {
    /// As RFC 5280, 4.2.1.12, names it.
    pub fn name(self) -> &'static str {
        match self {
            Usage::Client => "clientAuth",
            Usage::Server => "serverAuth",
        }
    }
}

/// What a leaf says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Who that is.
    pub id: SpiffeId,
    /// When its life begins.
    pub not_before: SystemTime,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why a certificate proves nobody's identity. Each is a sentence for people and one word for counters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSvid {
    /// It is no certificate that can be read, or has a critical extension that is not known.
    #[error("the peer's certificate cannot be read: {0}")]
    Malformed(String),
    /// It is the certificate of a certification authority.
    #[error("the peer's certificate is that of a certification authority")]
    CaAsLeaf,
    /// Its key usage, or an issuer's, does not allow what it is used for.
    #[error("the key usage of the peer's certificate chain is wrong: {0}")]
    KeyUsage(&'static str),
    /// Its extended key usage, or an issuer's, does not allow what it is used for.
    #[error("the extended key usage of the peer's certificate chain does not allow {0}")]
    ExtendedKeyUsage(&'static str),
    /// It names nobody in the form of a URI.
    #[error("the peer's certificate has no URI name, so no SPIFFE id")]
    NoUriName,
    /// It names several: whom is it to be taken for?
    #[error("the peer's certificate has {0} URI names; a SPIFFE certificate has one")]
    SeveralUriNames(usize),
    /// Its URI name has bytes that are no ASCII.
    #[error("the peer's certificate names no SPIFFE id: it has bytes that are not ASCII")]
    IdNotAscii,
    /// Its URI name is not a SPIFFE id as the standard writes them.
    #[error("the peer's certificate names no SPIFFE id: {0}")]
    BadId(Invalid),
    /// Certified by a root of ours, but not for our trust domain.
    #[error("the peer is {id}, which is not of the trust domain {ours}")]
    ForeignTrustDomain {
        /// What it says it is.
        id: SpiffeId,
        /// Ours.
        ours: TrustDomain,
    },
}

impl NotSvid {
    /// The word for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            NotSvid::Malformed(_) => "malformed",
            NotSvid::CaAsLeaf => "ca_as_leaf",
            NotSvid::KeyUsage(_) => "key_usage",
            NotSvid::ExtendedKeyUsage(_) => "extended_key_usage",
            NotSvid::NoUriName => "no_uri_name",
            NotSvid::SeveralUriNames(_) => "several_uri_names",
            NotSvid::IdNotAscii | NotSvid::BadId(_) => "bad_spiffe_id",
            NotSvid::ForeignTrustDomain { .. } => "foreign_trust_domain",
        }
    }
}

/// Whether a leaf is a SPIFFE certificate of the trust domain, for all of the uses. Whether it is its time is the chain's
/// matter.
///
/// # Errors
/// When it is not (X509-SVID, 2, 4 and 5.2).
pub fn judge(der: &[u8], domain: &TrustDomain, usages: &[Usage]) -> Result<Leaf, NotSvid> {
    let leaf = parse(der)?;
    if let Some(constraints) = leaf.basic_constraints().map_err(malformed)?
        && constraints.value.ca
    {
        return Err(NotSvid::CaAsLeaf);
    }
    let key_usage = leaf.key_usage().map_err(malformed)?;
    let key_usage = key_usage.ok_or(NotSvid::KeyUsage("the leaf has none"))?;
    if !key_usage.critical {
        return Err(NotSvid::KeyUsage("the leaf's is not marked critical"));
    }
    if !key_usage.value.digital_signature() {
        return Err(NotSvid::KeyUsage("the leaf's does not have digitalSignature"));
    }
    if key_usage.value.key_cert_sign() || key_usage.value.crl_sign() {
        return Err(NotSvid::KeyUsage(
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
                return Err(NotSvid::ExtendedKeyUsage(usage.name()));
            }
        }
    }
    let id = only_id(&leaf)?;
    if id.trust_domain() != domain.as_str() {
        let ours = domain.clone();
        return Err(NotSvid::ForeignTrustDomain { id, ours });
    }
    Ok(Leaf {
        id,
        not_before: system_time(leaf.validity().not_before),
        not_after: system_time(leaf.validity().not_after),
    })
}

/// Why the issuers that a peer shows are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoChain {
    /// Nobody honest shows so many.
    #[error("it has more than {MOST_ISSUERS} issuers")]
    TooMany,
    /// They lead everywhere.
    #[error("it has more than {MOST_NAMESAKES} issuers of one name")]
    Namesakes,
}

/// Whether issuers may be looked at that a peer shows, who has proven nothing yet: that is little work, whatever they are.
///
/// # Errors
/// When there are too many, or too many of one name.
pub fn may_be_a_chain(issuers: &[impl AsRef<[u8]>]) -> Result<(), NoChain> {
    if issuers.len() > MOST_ISSUERS {
        return Err(NoChain::TooMany);
    }
    let mut names = Vec::with_capacity(issuers.len());
    for issuer in issuers {
        // Those that cannot be read are nobody's issuers, here; whoever can read them has not many of them to try either.
        let read = parse(issuer.as_ref());
        let name = read.map_or(&[][..], |issuer| issuer.subject.as_raw());
        if names.iter().filter(|other| **other == name).count() == MOST_NAMESAKES {
            return Err(NoChain::Namesakes);
        }
        names.push(name);
    }
    Ok(())
}

/// Whether the key usage of an issuer, where it has one, lets it certify (RFC 5280, 6.1.4 n). rustls-webpki does not ask.
///
/// # Errors
/// When it does not, or the certificate cannot be read.
pub fn may_certify(issuer: &[u8]) -> Result<(), NotSvid> {
    let issuer = parse(issuer)?;
    match issuer.key_usage().map_err(malformed)? {
        Some(usage) if !usage.value.key_cert_sign() => Err(NotSvid::KeyUsage("an issuer's does not have keyCertSign")),
        Some(_) | None => Ok(()),
    }
}

/// The one URI name of a certificate. Names of other kinds may stand beside it (X509-SVID, 2).
fn only_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, NotSvid> {
    let names = leaf.subject_alternative_name().map_err(malformed)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        // One that is no ASCII is a name all the same.
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        _ => None,
    });
    let only = uris.next().ok_or(NotSvid::NoUriName)?;
    match uris.count() {
        0 => {}
        others => return Err(NotSvid::SeveralUriNames(others + 1)),
    }
    let text = only.filter(|text| text.is_ascii()).ok_or(NotSvid::IdNotAscii)?;
    SpiffeId::parse(text).map_err(NotSvid::BadId)
}

/// A certificate, and nothing behind it.
///
/// # Errors
/// When it cannot be read.
pub fn parse(der: &[u8]) -> Result<X509Certificate<'_>, NotSvid> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(NotSvid::Malformed("bytes follow it".to_owned())),
        Err(error) => Err(NotSvid::Malformed(error.to_string())),
    }
}

fn malformed(error: x509_parser::error::X509Error) -> NotSvid {
    NotSvid::Malformed(error.to_string())
}

fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
