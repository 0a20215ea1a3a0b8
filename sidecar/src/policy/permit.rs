//! May this caller come in, by the mode of the port: the one place that says yes, to calls, to HTTP/1 and to tunnels.

use super::{Inbound, Mode};
use crate::tls;
use crate::words::reasons;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub enum Caller<'a> {
    /// Somebody who has proven who it is.
    Proven(&'a tls::Peer),
    /// Somebody, in plain.
    Plain,
    /// This sidecar itself.
    Ourselves,
}

/// That the application may be reached. Only [`authorize`] makes one.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Permit(());

/// Why a caller may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The port takes mTLS alone, and this came in plain.
    #[error(
        "port {port} takes calls in mTLS only, and this one came in plain: is its caller in the mesh, and this address in our Workload?"
    )]
    MtlsRequired {
        /// The port that was meant.
        port: u16,
    },
    /// The port takes no mTLS, and this came in it.
    #[error("port {port} takes no mTLS (its mode is disabled), and this call came in it")]
    MtlsDisabled {
        /// The port that was meant.
        port: u16,
    },
    /// Control has not said yet what the port takes: it may be mTLS alone, and this came in plain.
    #[error(
        "control has not said yet whether port {port} takes plain calls, as this one is: see portunus_control_connected on \
         the server's sidecar"
    )]
    PolicyUnknown {
        /// The port that was meant.
        port: u16,
    },
}

reasons! {
    Refusal {
        Refusal::MtlsRequired { .. } => "mtls_required",
        Refusal::MtlsDisabled { .. } => "mtls_disabled",
        Refusal::PolicyUnknown { .. } => "policy_unknown",
    }
}

/// Whether `caller` may come in at this port.
///
/// # Errors
/// When its mode forbids it, or is not known yet and might.
#[inline]
pub fn authorize(inbound: &Inbound, port: u16, caller: Caller<'_>) -> Result<Permit, Refusal> {
    match (inbound.mode(port), caller) {
        (_, Caller::Ourselves)
        | (Some(Mode::Strict | Mode::Permissive) | None, Caller::Proven(_))
        | (Some(Mode::Permissive | Mode::Disabled), Caller::Plain) => Ok(Permit(())),
        (Some(Mode::Strict), Caller::Plain) => Err(Refusal::MtlsRequired { port }),
        (Some(Mode::Disabled), Caller::Proven(_)) => Err(Refusal::MtlsDisabled { port }),
        (None, Caller::Plain) => Err(Refusal::PolicyUnknown { port }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_yet_takes_nobody_in_plain() {
        let unknown = Inbound::default();
        let plain = |inbound: &Inbound| authorize(inbound, 1, Caller::Plain).map(drop);
        assert_eq!(plain(&unknown), Err(Refusal::PolicyUnknown { port: 1 }));
        assert!(authorize(&unknown, 1, Caller::Ourselves).is_ok());
        for (mode, expected) in [
            (Mode::Strict, Err(Refusal::MtlsRequired { port: 1 })),
            (Mode::Permissive, Ok(())),
            (Mode::Disabled, Ok(())),
        ] {
            let said = Inbound {
                default: Some(mode),
                ..Inbound::default()
            };
            assert_eq!(plain(&said), expected);
        }
    }
}
