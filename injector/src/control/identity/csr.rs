//! Takes the public key out of a certificate request, and nothing else.

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::oid::Oid;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_NIST_EC_P521, OID_PKCS1_RSAENCRYPTION,
    OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;

/// The largest request, in bytes. A real one has about 300.
pub const MOST_BYTES: usize = 8 * 1_024;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Over 8 KiB.
    #[error("the certificate request has {0} bytes, more than {MOST_BYTES}")]
    TooLong(usize),
    /// It is not PKCS#10 in DER.
    #[error("the certificate request is not PKCS#10 in DER")]
    NotDer,
    /// There is something behind it.
    #[error("bytes follow the certificate request")]
    Trailing,
    /// A key of a kind that is not certified.
    #[error("a key of kind {0} is not certified here; use P-256, P-384 or Ed25519")]
    Key(String),
    /// The one who asks does not have the private key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
}

/// The public key of a request in DER, once the request proved that its sender has the private one. What else it asks
/// for (names, CA, usages, ...) is not looked at.
///
/// # Errors
/// When it is no request, is too long, has a key of another kind or a signature that does not fit.
pub fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    if der.len() > MOST_BYTES {
        return Err(Error::TooLong(der.len()));
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| Error::NotDer)?;
    if !rest.is_empty() {
        return Err(Error::Trailing);
    }
    let spki = &request.certification_request_info.subject_pki;
    let algorithm = &spki.algorithm;
    let curve = algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    kind_is_fine(&algorithm.algorithm, curve.as_ref())?;
    request.verify_signature().map_err(|_| Error::Signature)?;
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| Error::NotDer)?;
    // What is certified is exactly what was proven.
    if key.subject_public_key_info() != spki.raw {
        return Err(Error::NotDer);
    }
    Ok(key)
}

fn kind_is_fine(algorithm: &Oid<'_>, curve: Option<&Oid<'_>>) -> Result<(), Error> {
    let kind = match curve {
        None if *algorithm == OID_SIG_ED25519 => return Ok(()),
        Some(curve) if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY => match curve {
            curve if *curve == OID_EC_P256 || *curve == OID_NIST_EC_P384 => return Ok(()),
            curve if *curve == OID_NIST_EC_P521 => "P-521".to_owned(),
            curve => format!("EC on curve {curve}"),
        },
        _ if *algorithm == OID_PKCS1_RSAENCRYPTION => "RSA".to_owned(),
        _ => algorithm.to_id_string(),
    };
    Err(Error::Key(kind))
}
