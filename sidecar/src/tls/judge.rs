//! Judges a certificate: its chain by RFC 5280; then its leaf is judged as control does it ([`svid`]).

use std::time::{Duration, SystemTime};

use portunus_proto::SpiffeId;
use portunus_proto::svid::{self, NotSvid, SKEW, Usage};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::credential::Bundle;
use super::refused::Refused;
use super::remembered;

impl Bundle {
    /// Judges a chain, from leaf to last issuer, as a handshake would: whom it proves. It is for tools and tests; who a
    /// connection's other end is, its [`Peer`](super::Peer) alone says.
    ///
    /// # Errors
    /// When a handshake would refuse the peer for it.
    pub fn judge(&self, chain: &[CertificateDer<'_>], usage: Usage, now: UnixTime) -> Result<SpiffeId, Refused> {
        let none = || Refused::Leaf(NotSvid::Malformed("the chain is empty".to_owned()));
        let (leaf, intermediates) = chain.split_first().ok_or_else(none)?;
        check_chain(leaf, intermediates, self, usage, now)?;
        Ok(svid::judge(leaf, self.trust_domain(), &[usage])?.id)
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
    svid::may_be_a_chain(intermediates).map_err(|why| Refused::Chain(why.to_string()))?;
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
    for issuer in path.intermediate_certificates() {
        svid::may_certify(&issuer.der())?;
    }
    Ok(())
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
        E::CaUsedAsEndEntity => NotSvid::CaAsLeaf.into(),
        E::UnknownIssuer if signs_itself(leaf) => Refused::SelfSigned,
        E::UnknownIssuer => Refused::UnknownIssuer,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => NotSvid::ExtendedKeyUsage(usage.name()).into(),
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
        | E::UnsupportedCriticalExtension => NotSvid::Malformed(error.to_string()).into(),
        other => Refused::Chain(other.to_string()),
    }
}

/// Whether a certificate names its own holder as its issuer.
fn signs_itself(leaf: &CertificateDer<'_>) -> bool {
    svid::parse(leaf).is_ok_and(|leaf| leaf.issuer().as_raw() == leaf.subject().as_raw())
}
