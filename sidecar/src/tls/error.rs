//! What ends a handshake or a session, and whose doing it was.

use std::fmt;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, InvalidMessage};

use super::refused::Refused;

/// What ended a handshake or a session. Each is a sentence for people and one word for counters.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// We refuse the peer.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The peer refuses us, or gave up. In TLS 1.3 this may come after our side of the handshake is finished.
    #[error("the peer ended the TLS connection: {0}")]
    ByPeer(Alert),
    /// The peer, whom we call, has no certificate to show: an `access_denied` in place of its first word.
    #[error("the peer has no valid certificate to show: see /ready there")]
    NothingToShow,
    /// The handshake was not finished in time.
    #[error("the peer did not finish the TLS handshake within {0:?}")]
    TooSlow(Duration),
    /// What came is no TLS.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// A message of the peer's handshake is longer than any honest one.
    #[error("the peer's TLS handshake is too long")]
    TooLong,
    /// The peer offers, or chose, neither `portunus/h2` nor `portunus/tcp`.
    #[error("the peer speaks TLS, but not this mesh's protocols (ALPN portunus/h2, portunus/tcp)")]
    NoProtocol,
    /// No version, cipher or key exchange in common.
    #[error("the peer's TLS has nothing in common with ours (TLS 1.3 is demanded): {0}")]
    Incompatible(String),
    /// The peer broke the protocol.
    #[error("the peer broke TLS: {0}")]
    Protocol(String),
    /// The connection ended without `close_notify`: what came may not be all that was sent.
    #[error("the connection ended in the middle: the peer did not end its TLS")]
    Truncated,
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// The word for counters.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Refused(refused) => refused.reason(),
            Error::ByPeer(alert) => alert.reason(),
            Error::NothingToShow => "no_certificate_there",
            Error::TooSlow(_) => "too_slow",
            Error::NotTls => "not_tls",
            Error::TooLong => "too_long",
            Error::NoProtocol => "no_protocol",
            Error::Incompatible(_) => "incompatible",
            Error::Protocol(_) => "protocol",
            Error::Truncated => "truncated",
            Error::Io(_) => "broken",
        }
    }

    /// What went through a tunnel as an error of its connection.
    pub fn within(error: &io::Error) -> Option<&Error> {
        error.get_ref()?.downcast_ref()
    }

    /// What rustls says, in our words. What the verifier said comes first, and is asked elsewhere.
    pub(super) fn of(error: rustls::Error) -> Error {
        match error {
            rustls::Error::NoCertificatesPresented => Refused::NoCertificate.into(),
            rustls::Error::AlertReceived(alert) => Error::ByPeer(Alert(alert.into())),
            rustls::Error::NoApplicationProtocol => Error::NoProtocol,
            rustls::Error::PeerIncompatible(what) => Error::Incompatible(format!("{what:?}")),
            rustls::Error::InvalidMessage(
                InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::MessageTooLarge,
            ) => Error::TooLong,
            rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => Error::NotTls,
            other => Error::Protocol(other.to_string()),
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Io(source) => source.kind(),
            Error::Truncated => io::ErrorKind::UnexpectedEof,
            Error::TooSlow(_) => io::ErrorKind::TimedOut,
            Error::Refused(_) | Error::ByPeer(_) | Error::NothingToShow => io::ErrorKind::PermissionDenied,
            Error::NotTls | Error::TooLong | Error::NoProtocol | Error::Incompatible(_) | Error::Protocol(_) => {
                io::ErrorKind::InvalidData
            }
        };
        io::Error::new(kind, error)
    }
}

/// A TLS alert (RFC 8446, 6): why the peer ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alert(u8);

impl Alert {
    /// Whether it is what a server says that has no certificate for us, and one that does not let us in.
    pub(super) fn is_access_denied(self) -> bool {
        AlertDescription::from(self.0) == AlertDescription::AccessDenied
    }

    /// Its number in the standard.
    pub fn code(self) -> u8 {
        self.0
    }

    /// The word for counters.
    pub fn reason(self) -> &'static str {
        match AlertDescription::from(self.0) {
            AlertDescription::BadCertificate => "peer_bad_certificate",
            AlertDescription::UnsupportedCertificate => "peer_unsupported_certificate",
            AlertDescription::CertificateRevoked => "peer_certificate_revoked",
            AlertDescription::CertificateExpired => "peer_certificate_expired",
            AlertDescription::CertificateUnknown => "peer_certificate_unknown",
            AlertDescription::UnknownCA => "peer_unknown_ca",
            AlertDescription::AccessDenied => "peer_access_denied",
            AlertDescription::CertificateRequired => "peer_certificate_required",
            AlertDescription::DecryptError => "peer_decrypt_error",
            AlertDescription::HandshakeFailure => "peer_handshake_failure",
            AlertDescription::ProtocolVersion => "peer_protocol_version",
            AlertDescription::NoApplicationProtocol => "peer_no_protocol",
            AlertDescription::UserCanceled => "peer_cancelled",
            AlertDescription::InternalError => "peer_internal_error",
            _ => "peer_alert",
        }
    }
}

impl fmt::Display for Alert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match AlertDescription::from(self.0) {
            AlertDescription::BadCertificate => "our certificate is not one that it accepts (bad_certificate)",
            AlertDescription::UnsupportedCertificate => {
                "our certificate is not meant for this use (unsupported_certificate)"
            }
            AlertDescription::CertificateRevoked => "our certificate is revoked (certificate_revoked)",
            AlertDescription::CertificateExpired => {
                "by its clock our certificate is not valid now (certificate_expired)"
            }
            AlertDescription::CertificateUnknown => "it does not accept our certificate (certificate_unknown)",
            AlertDescription::UnknownCA => "it does not trust our certificate's issuer (unknown_ca)",
            AlertDescription::AccessDenied => "it does not let our identity in (access_denied)",
            AlertDescription::CertificateRequired => "it demands a certificate (certificate_required)",
            AlertDescription::DecryptError => "a signature or a key was wrong for it (decrypt_error)",
            AlertDescription::HandshakeFailure => "it has nothing in common with us (handshake_failure)",
            AlertDescription::ProtocolVersion => "it does not speak TLS 1.3 (protocol_version)",
            AlertDescription::NoApplicationProtocol => {
                "it does not speak this mesh's protocols (no_application_protocol)"
            }
            AlertDescription::UserCanceled => "it gave up (user_canceled)",
            AlertDescription::InternalError => "something failed within it (internal_error)",
            _ => return write!(f, "alert {}", self.0),
        };
        f.write_str(why)
    }
}
