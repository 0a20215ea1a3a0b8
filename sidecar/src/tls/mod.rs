//! TLS of the mesh: who the other end is, proven by its certificate, and the bytes that pass between.
//!
//! TLS 1.3 alone (RFC 8446), X25519MLKEM768 first, both ends with a certificate, no resumption and no early data: each
//! connection proves its peer anew. [`Credential`] is who we are and whom we believe; [`accept`] and [`connect`] shake
//! hands; a [`Session`] opens and seals the records of a finished handshake, without a socket of its own; [`Stream`] is
//! one with its socket, for tunnels. A [`Peer`] comes from nowhere else.
//!
//! What is inside (rustls 0.23, its unbuffered API) stands in `engine.rs`; `credential.rs` and `verify.rs` prepare it
//! and answer it.

mod control;
mod credential;
mod engine;
mod error;
mod handshake;
mod judge;
mod output;
mod peer;
mod refused;
mod remembered;
mod session;
mod socket;
mod stream;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

pub use portunus_proto::svid::{NotSvid, SKEW, Usage};

pub use control::call_control;
pub use credential::{Bundle, Credential, Unusable};
pub use error::{Alert, Error};
pub use handshake::{accept, connect, turn_away};
pub use peer::{Peer, Shown};
pub use refused::Refused;
pub use session::{Alpn, LEAST_BUFFER, Opened, Session, sealed_len};
pub(crate) use socket::{linger, read_once, write_once};
pub use stream::Stream;
