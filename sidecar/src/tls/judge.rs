//! Judges a certificate: its chain by RFC 5280, then the leaf by the rules of SPIFFE X509-SVID.

use std::time::{Duration, SystemTime};

use portunus_proto::SpiffeId;
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use super::credential::Bundle;
use super::refused::Refused;
use super::remembered;

/// How far two clocks may be apart, in both directions.
pub const SKEW: Duration = Duration::from_secs(20);
/// Longest chain of issuers below the root. Honest ones have one or two.
const MOST_INTERMEDIATES: usize = 8;
/// The class of URIs among the names of a certificate (RFC 5280, 4.2.1.6).
const URI_TAG: u32 = 6;

/// What a peer's certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer calls.
    Client,
    /// The peer is called.
    Server,
}

impl Usage {
    fn name(self) -> &'static str {
        match self {
            Usage::Client => "clientAuth",
            Usage::Server => "serverAuth",
        }
    }
}

impl Bundle {
    /// Judges a chain, from leaf to last issuer, as a handshake would: whom it proves. It is for tools and tests; who a
    /// connection's other end is, its [`Peer`](super::Peer) alone says.
    ///
    /// # Errors
    /// When a handshake would refuse the peer for it.
    pub fn judge(&self, chain: &[CertificateDer<'_>], usage: Usage, now: UnixTime) -> Result<SpiffeId, Refused> {
        let none = || Refused::Malformed("the chain is empty".to_owned());
        let (leaf, intermediates) = chain.split_first().ok_or_else(none)?;
        check_chain(leaf, intermediates, self, usage, now)?;
        check_leaf(leaf, self, &[usage]).map(|leaf| leaf.id)
    }
}

/// Whether one of the roots certified the leaf, by way of the intermediates, for this use and at this time.
pub(super) fn check_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    usage: Usage,
    now: UnixTime,
) -> Result<(), Refused> {
    if intermediates.len() > MOST_INTERMEDIATES {
        return Err(Refused::Chain(format!("it has more than {MOST_INTERMEDIATES} issuers")));
    }
    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| refused(error, leaf, usage))?;
    let verify_at = |time: UnixTime| {
        let key_usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        end_entity.verify_for_usage(
            remembered::algorithms(),
            bundle.anchors(),
            intermediates,
            time,
            key_usage,
            None,
            None,
        )
    };
    let skew = SKEW.as_secs();
    let path = match verify_at(now) {
        Err(webpki::Error::CertExpired { .. }) => verify_at(UnixTime::since_unix_epoch(Duration::from_secs(
            now.as_secs().saturating_sub(skew),
        ))),
        Err(webpki::Error::CertNotValidYet { .. }) => verify_at(UnixTime::since_unix_epoch(Duration::from_secs(
            now.as_secs().saturating_add(skew),
        ))),
        other => other,
    };
    let path = path.map_err(|error| refused(error, leaf, usage))?;
    // rustls-webpki does not ask whether an issuer's key usage lets it certify (RFC 5280, 6.1.4 n).
    for issuer in path.intermediate_certificates() {
        let issuer = issuer.der();
        let issuer = parse(&issuer)?;
        if let Some(allowed) = issuer.key_usage().map_err(malformed)?
            && !allowed.value.key_cert_sign()
        {
            return Err(Refused::KeyUsage("an issuer's does not have keyCertSign"));
        }
    }
    Ok(())
}

/// What a leaf says of its holder.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) id: SpiffeId,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Judges a leaf by itself: whether it is a SPIFFE certificate of the trust domain, for the uses.
pub(super) fn check_leaf(leaf: &CertificateDer<'_>, bundle: &Bundle, usages: &[Usage]) -> Result<Leaf, Refused> {
    let leaf = parse(leaf)?;
    if let Some(constraints) = leaf.basic_constraints().map_err(malformed)?
        && constraints.value.ca
    {
        return Err(Refused::CaAsLeaf);
    }
    let key_usage = leaf.key_usage().map_err(malformed)?;
    let key_usage = key_usage.ok_or(Refused::KeyUsage("the leaf has none"))?.value;
    if !key_usage.digital_signature() {
        return Err(Refused::KeyUsage("the leaf's does not have digitalSignature"));
    }
    if key_usage.key_cert_sign() || key_usage.crl_sign() {
        return Err(Refused::KeyUsage(
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
                return Err(Refused::ExtendedKeyUsage(usage.name()));
            }
        }
    }
    let id = only_id(&leaf)?;
    if id.trust_domain() != bundle.trust_domain().as_str() {
        return Err(Refused::ForeignTrustDomain {
            id,
            ours: bundle.trust_domain().clone(),
        });
    }
    Ok(Leaf {
        id,
        not_before: system_time(leaf.validity().not_before),
        not_after: system_time(leaf.validity().not_after),
    })
}

/// The one URI name of a certificate. Names of other kinds may stand beside it (X509-SVID, 2).
fn only_id(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Refused> {
    let names = leaf.subject_alternative_name().map_err(malformed)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(Some(*uri)),
        GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
        _ => None,
    });
    let only = uris.next().ok_or(Refused::NoUriName)?;
    match uris.count() {
        0 => {}
        others => return Err(Refused::SeveralUriNames(others + 1)),
    }
    let text = only.filter(|text| text.is_ascii()).ok_or(Refused::IdNotAscii)?;
    SpiffeId::parse(text).map_err(Refused::BadId)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refused> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Refused::Malformed("bytes follow it".to_owned())),
        Err(error) => Err(Refused::Malformed(error.to_string())),
    }
}

fn malformed(error: x509_parser::error::X509Error) -> Refused {
    Refused::Malformed(error.to_string())
}

fn system_time(time: ASN1Time) -> SystemTime {
    match u64::try_from(time.timestamp()) {
        Ok(seconds) => SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .unwrap_or(SystemTime::UNIX_EPOCH),
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

fn at(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(time.as_secs()))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What rustls-webpki says of a chain, in our words. Its enum may grow: what is new there is a bad chain here.
fn refused(error: webpki::Error, leaf: &CertificateDer<'_>, usage: Usage) -> Refused {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => Refused::Expired { at: at(not_after) },
        E::CertNotValidYet { not_before, .. } => Refused::NotYetValid { from: at(not_before) },
        E::CaUsedAsEndEntity => Refused::CaAsLeaf,
        E::UnknownIssuer if signs_itself(leaf) => Refused::SelfSigned,
        E::UnknownIssuer => Refused::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Refused::ExtendedKeyUsage(usage.name()),
        E::NameConstraintViolation => Refused::NameConstraints,
        E::InvalidSignatureForPublicKey => Refused::BadSignature,
        E::EndEntityUsedAsCa => Refused::Chain("an issuer is no certification authority".to_owned()),
        E::PathLenConstraintViolated => Refused::Chain("it is longer than an issuer allows".to_owned()),
        E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => Refused::Chain("it costs too much to judge".to_owned()),
        E::BadDer
        | E::BadDerTime
        | E::ExtensionValueInvalid
        | E::InvalidCertValidity
        | E::InvalidSerialNumber
        | E::MalformedExtensions
        | E::SignatureAlgorithmMismatch
        | E::TrailingData(_)
        | E::UnsupportedCertVersion
        | E::UnsupportedCriticalExtension => Refused::Malformed(error.to_string()),
        other => Refused::Chain(other.to_string()),
    }
}

/// Whether a certificate names its own holder as its issuer.
fn signs_itself(leaf: &CertificateDer<'_>) -> bool {
    parse(leaf).is_ok_and(|leaf| leaf.issuer().as_raw() == leaf.subject().as_raw())
}
