//! Join tokens: 256 bits that prove which workload a sidecar is. Only their SHA-256 is ever written down.

use std::fmt;

use portunus_proto::token;
use sha2::{Digest, Sha256};

use super::TokenHash;

/// A join token. It may be used again, so that a sidecar whose certificate ran out can come back.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken([u8; 32]);

/// A text that is no join token. It does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: one is 256 bits, in 64 hex digits, as `portunus token` makes it, or in base64")]
pub struct NoToken;

impl JoinToken {
    /// A new one, at random.
    pub fn generate() -> JoinToken {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes);
        JoinToken(bytes)
    }

    /// Reads what both ends take for a join token.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<JoinToken, NoToken> {
        token::bits(text).map(JoinToken).ok_or(NoToken)
    }

    /// What stands in `spec.joinTokenSha256`: the SHA-256 of the 32 bytes.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }

    /// The token itself, in hex.
    pub fn reveal(&self) -> String {
        to_hex(&self.0)
    }
}

impl TokenHash {
    /// Reads 64 hex digits.
    pub fn parse(text: &str) -> Option<TokenHash> {
        token::of_hex(text).map(TokenHash)
    }

    /// In hex.
    pub fn to_hex(&self) -> String {
        to_hex(&self.0)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_is_printed_of_it_and_its_hash_is_that_of_its_bits() {
        let token = JoinToken::generate();
        assert_eq!(JoinToken::parse(&token.reveal()), Ok(token.clone()));
        assert_ne!(JoinToken::generate(), token);
        assert_eq!(JoinToken::parse("00"), Err(NoToken));
        assert_eq!(
            JoinToken([0; 32]).hash().to_hex(),
            "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
        );
    }
}
