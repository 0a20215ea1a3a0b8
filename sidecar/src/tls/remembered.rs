//! Signatures of issuers that were found good are remembered: whether a key made a signature never changes.
//!
//! The members of a mesh share an issuer and connect again and again with the same certificates, and of a handshake's work
//! the signatures in the chain are a fifth. Nothing else of a verdict is remembered: times, names, uses and roots are
//! judged anew each time, and so is the signature by which a peer proves that it has its key, which is never the same.

use std::fmt;
use std::sync::LazyLock;

use parking_lot::Mutex;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::credential::{PROVIDER, SHA256};

/// What chains are verified by.
pub(super) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALL: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
        let all = PROVIDER.signature_verification_algorithms.all.iter().enumerate();
        all.map(|(number, algorithm)| {
            let remembering: &'static Remembering = Box::leak(Box::new(Remembering {
                algorithm: *algorithm,
                number: number as u8,
            }));
            remembering as &dyn SignatureVerificationAlgorithm
        })
        .collect()
    });
    &ALL
}

/// What was found good: the hash of algorithm, key, message and signature. An entry has one place, by its first byte, and
/// whoever comes to that place later has it: strangers who fill it with signatures of their own gain nothing but that honest
/// ones are verified as if nothing were remembered.
static GOOD: Mutex<[[u8; 32]; 256]> = Mutex::new([[0; 32]; 256]);

struct Remembering {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    number: u8,
}

impl Remembering {
    fn hash(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> [u8; 32] {
        let mut hash = SHA256.start();
        hash.update(&[self.number]);
        for part in [public_key, message, signature] {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&hash.finish().as_ref()[..32]);
        bytes
    }
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let hash = self.hash(public_key, message, signature);
        let place = usize::from(hash[0]);
        if GOOD.lock()[place] == hash {
            return Ok(());
        }
        self.algorithm.verify_signature(public_key, message, signature)?;
        GOOD.lock()[place] = hash;
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

impl fmt::Debug for Remembering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.algorithm.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use rustls::pki_types::alg_id;

    use super::*;

    /// Takes a signature that is the message backwards, and counts how often it was asked.
    #[derive(Debug)]
    struct Backwards(AtomicU64);

    impl SignatureVerificationAlgorithm for Backwards {
        fn verify_signature(&self, _key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Relaxed);
            match message.iter().rev().eq(signature) {
                true => Ok(()),
                false => Err(InvalidSignature),
            }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ED25519
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ED25519
        }
    }

    #[test]
    fn a_good_signature_is_verified_once_and_a_bad_one_never_passes() {
        let asked: &'static Backwards = Box::leak(Box::new(Backwards(AtomicU64::new(0))));
        let remembering = |number| Remembering {
            algorithm: asked,
            number,
        };
        let one = remembering(200);
        for _ in 0..3 {
            assert!(one.verify_signature(b"key", b"abc", b"cba").is_ok());
            assert!(one.verify_signature(b"key", b"abc", b"abc").is_err());
        }
        assert_eq!(
            asked.0.swap(0, Relaxed),
            4,
            "once for the good one, each time for the bad one"
        );
        // Whatever differs, and be it only where one part ends and the next begins, is another question.
        assert!(one.verify_signature(b"kex", b"abc", b"cba").is_ok());
        assert!(remembering(201).verify_signature(b"key", b"abc", b"cba").is_ok());
        assert!(one.verify_signature(b"keya", b"bc", b"cba").is_err());
        assert_eq!(asked.0.load(Relaxed), 3);
    }
}
