//! Our key: made in memory, for one certificate, and gone with it.

use std::fmt;

use portunus_proto::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Why there is no key, or no request for it.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The random numbers or the arithmetic failed.
    #[error("cannot make a P-256 key: {0}")]
    Key(rcgen::Error),
    /// The request could not be signed.
    #[error("cannot sign the request for a certificate: {0}")]
    Request(rcgen::Error),
}

/// A P-256 key.
pub struct Key(KeyPair);

impl Key {
    /// Makes one.
    ///
    /// # Errors
    /// When the machine has no random numbers.
    pub fn generate() -> Result<Key, Failed> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Key)
            .map_err(Failed::Key)
    }

    /// The request to certify it (PKCS #10, DER). Control takes nothing but the key from it: who we are is said by what
    /// proves us to control. The name that we hope for stands in it for people who look.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self, hoped_for: Option<&SpiffeId>) -> Result<Vec<u8>, Failed> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(id) = hoped_for {
            let name = id.as_str().try_into().map_err(Failed::Request)?;
            params.subject_alt_names.push(SanType::URI(name));
        }
        let request = params.serialize_request(&self.0).map_err(Failed::Request)?;
        Ok(request.der().to_vec())
    }

    /// The key itself, for `tls::Credential` and for nothing else.
    pub fn into_private(self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateSigningRequestParams, PublicKeyData as _};
    use rustls_pki_types::CertificateSigningRequestDer;

    use super::*;

    #[test]
    fn a_request_has_the_key_and_the_name_hoped_for() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/greeter").expect("it is one");
        let key = Key::generate().expect("a key");
        let request = CertificateSigningRequestDer::from(key.request(Some(&id)).expect("a request"));
        let read = CertificateSigningRequestParams::from_der(&request).expect("it is signed by its key");
        assert_eq!(read.public_key.der_bytes(), key.0.der_bytes());
        let name = SanType::URI(id.as_str().try_into().expect("ASCII"));
        assert_eq!(read.params.subject_alt_names, [name]);
    }

    #[test]
    fn keys_differ_and_are_not_shown() {
        let (one, other) = (Key::generate().expect("a key"), Key::generate().expect("a key"));
        assert_ne!(one.0.der_bytes(), other.0.der_bytes());
        assert_eq!(format!("{one:?}"), "Key(P-256)");
    }
}
