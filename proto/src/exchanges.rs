//! How two members of a mesh agree on keys.

use rustls::crypto::SupportedKxGroup;
use rustls::crypto::aws_lc_rs::kx_group::{SECP256R1, X25519, X25519MLKEM768};

/// The key exchanges of TLS that sidecars and control offer and take, the post-quantum one first.
pub fn key_exchanges() -> Vec<&'static dyn SupportedKxGroup> {
    vec![X25519MLKEM768, X25519, SECP256R1]
}
