//! What a key of ours signs, whatever it is: so that a change within is not found out by its signature alone.

use std::sync::LazyLock;

use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::PrivatePkcs8KeyDer;

/// An Ed25519 key (RFC 8410, 7), the same in each run: what breaks a target goes on to break it.
pub const PKCS8: &[u8] =
    b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20portunus fuzzes with this key...";

/// The same, to sign with.
pub static KEY: LazyLock<KeyPair> = LazyLock::new(|| {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(PKCS8), &rcgen::PKCS_ED25519).expect("a key")
});

/// `inner`, its algorithm and its signature: how certificates (RFC 5280, 4.1) and requests (RFC 2986, 4.2) are made.
pub fn signed(inner: &[u8]) -> Vec<u8> {
    const ED25519: &[u8] = b"\x30\x05\x06\x03\x2b\x65\x70";
    let signature = KEY.sign(inner).expect("it signs anything");
    sequence(&[inner, ED25519, b"\x03\x41\x00", &signature].concat())
}

/// A SEQUENCE around it.
pub fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let header = match length {
        0..0x80 => vec![0x30, length as u8],
        0x80..0x100 => vec![0x30, 0x81, length as u8],
        0x100..0x1_0000 => vec![0x30, 0x82, (length >> 8) as u8, length as u8],
        _ => vec![0x30, 0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8],
    };
    [&header, content].concat()
}
