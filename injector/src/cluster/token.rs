//! Join tokens: 256 bits that prove which workload a sidecar is. Only their SHA-256 is ever written down.

use std::fmt;

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

    /// Reads hex, or base64 of either alphabet, with padding or without; white space around it is allowed.
    ///
    /// # Errors
    /// When it is not exactly 256 bits.
    pub fn parse(text: &str) -> Result<JoinToken, NoToken> {
        let text = text.trim();
        let bytes = match text.len() {
            64 => hex(text),
            43 | 44 => base64(text),
            _ => None,
        };
        bytes.map(JoinToken).ok_or(NoToken)
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
        hex(text).map(TokenHash)
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

/// 32 bytes of 64 hex digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

fn base64(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').unwrap_or(text);
    let (mut bits, mut held) = (0u32, 0);
    let mut bytes = Vec::with_capacity(32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    // The last digit carries four bits of the token; the other two are zero.
    let rest = bits & ((1 << held) - 1);
    (rest == 0).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_in_every_form_that_it_may_be_kept_in() {
        let token = JoinToken([0xfb; 32]);
        let forms = [
            token.reveal(),
            token.reveal().to_uppercase(),
            format!(" {}\n", token.reveal()),
            "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=".to_owned(),
            "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s".to_owned(),
        ];
        for form in forms {
            assert_eq!(JoinToken::parse(&form), Ok(token.clone()), "{form}");
        }
        assert_eq!(
            JoinToken([0; 32]).hash().to_hex(),
            "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
        );
    }

    #[test]
    fn what_is_no_token_is_none() {
        for text in [
            "",
            "00",
            &"0".repeat(63),
            &"g".repeat(64),
            &"A".repeat(42),
            &"é".repeat(32),
            &"B".repeat(43),
        ] {
            assert_eq!(JoinToken::parse(text), Err(NoToken), "{text}");
        }
        assert_ne!(JoinToken::generate(), JoinToken::generate());
    }
}
