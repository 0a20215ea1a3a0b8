//! Why a peer's certificate is refused.

use std::time::SystemTime;

use portunus_proto::SpiffeId;
use portunus_proto::svid::NotSvid;
use rustls::CertificateError;

/// Why we refuse a peer. Each is a sentence for people and one word for counters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It showed no certificate at all.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// A certificate that does not stand under one of the roots that we were given.
    #[error(
        "no root of this mesh certified the peer's certificate, nor its issuer; roots are those of --trust-bundle, and control's"
    )]
    UnknownIssuer,
    /// A certificate that its own holder signed.
    #[error("the peer's certificate is signed by itself")]
    SelfSigned,
    /// The peer's certificate, or an issuer's, ended more than 20 seconds ago.
    #[error("the peer's certificate, or its issuer's, ended {}", Utc(*at))]
    Expired {
        /// When it ended.
        at: SystemTime,
    },
    /// The peer's certificate, or an issuer's, begins more than 20 seconds from now.
    #[error("the peer's certificate, or its issuer's, begins only {}: is a clock wrong?", Utc(*from))]
    NotYetValid {
        /// When it begins.
        from: SystemTime,
    },
    /// An issuer may not certify such a name; constraints of URI names allow none (rustls-webpki refuses all of them).
    #[error("a name constraint of an issuer forbids the peer's names (any constraint of URI names does, here)")]
    NameConstraints,
    /// It is somebody, but not the one that was to be reached.
    #[error("the peer is {found}, and {expected} was to be reached")]
    WrongIdentity {
        /// Who was to be reached.
        expected: SpiffeId,
        /// Who it is.
        found: SpiffeId,
    },
    /// A signature is wrong: the certificate's, an issuer's, or that of the handshake, which proves the key.
    #[error("a signature is wrong: the peer's certificate is forged, or the peer does not have its key")]
    BadSignature,
    /// The chain breaks a rule of its own, such as its length.
    #[error("the peer's certificate chain is not acceptable: {0}")]
    Chain(String),
    /// The leaf is wrong in itself.
    #[error(transparent)]
    Leaf(#[from] NotSvid),
}

impl Refused {
    /// The word for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Refused::NoCertificate => "no_certificate",
            Refused::UnknownIssuer => "unknown_issuer",
            Refused::SelfSigned => "self_signed",
            Refused::Expired { .. } => "expired",
            Refused::NotYetValid { .. } => "not_yet_valid",
            Refused::NameConstraints => "name_constraints",
            Refused::WrongIdentity { .. } => "wrong_identity",
            Refused::BadSignature => "bad_signature",
            Refused::Chain(_) => "chain",
            Refused::Leaf(why) => why.reason(),
        }
    }

    /// What rustls makes the fitting alert of (RFC 8446, 6.2), so that the peer learns why.
    pub(super) fn for_alert(&self) -> CertificateError {
        match self {
            // certificate_expired, which is also for those not yet valid
            Refused::Expired { .. } | Refused::NotYetValid { .. } => CertificateError::Expired,
            // unknown_ca
            Refused::UnknownIssuer | Refused::SelfSigned | Refused::Chain(_) | Refused::NameConstraints => {
                CertificateError::UnknownIssuer
            }
            // unsupported_certificate
            Refused::Leaf(NotSvid::CaAsLeaf | NotSvid::KeyUsage(_) | NotSvid::ExtendedKeyUsage(_)) => {
                CertificateError::InvalidPurpose
            }
            // bad_certificate
            Refused::NoCertificate
            | Refused::Leaf(
                NotSvid::NoUriName
                | NotSvid::SeveralUriNames(_)
                | NotSvid::BadId(_)
                | NotSvid::IdNotAscii
                | NotSvid::Malformed(_),
            ) => CertificateError::BadEncoding,
            // access_denied
            Refused::Leaf(NotSvid::ForeignTrustDomain { .. }) | Refused::WrongIdentity { .. } => {
                CertificateError::ApplicationVerificationFailure
            }
            // decrypt_error
            Refused::BadSignature => CertificateError::BadSignature,
        }
    }
}

/// A time as operators read it.
struct Utc(SystemTime);

impl std::fmt::Display for Utc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = match self.0.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
        };
        match x509_parser::time::ASN1Time::from_timestamp(seconds) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "at second {seconds} of Unix time"),
        }
    }
}
