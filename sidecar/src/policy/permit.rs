//! May this caller come in, by the mode of the port: the one place that says yes.

use super::Mode;
use crate::tls;

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

/// That a call may be passed on to the application. Only [`authorize`] makes one.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Permit(());

/// Why a call may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The port takes mTLS alone.
    MtlsRequired,
    /// The port takes no mTLS.
    MtlsDisabled,
}

/// Whether `caller` may come in at a port of this mode.
///
/// # Errors
/// When the mode forbids it.
#[inline]
pub fn authorize(mode: Mode, caller: Caller<'_>) -> Result<Permit, Refusal> {
    match (mode, caller) {
        (_, Caller::Ourselves)
        | (Mode::Strict | Mode::Permissive, Caller::Proven(_))
        | (Mode::Permissive | Mode::Disabled, Caller::Plain) => Ok(Permit(())),
        (Mode::Strict, Caller::Plain) => Err(Refusal::MtlsRequired),
        (Mode::Disabled, Caller::Proven(_)) => Err(Refusal::MtlsDisabled),
    }
}
