//! The join token: read from its file when it is needed, and gone when it was used.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use portunus_proto::token;

/// More than any token has, in bytes: 256 bits are 64 in hex.
const LONGEST: u64 = 512;

/// What proves which workload we are. It is never shown.
pub(super) struct Token(String);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoToken {
    /// Nobody said where it is.
    #[error("no join token was given (--join-token-file)")]
    NotGiven,
    /// The file cannot be read; most often it is not there.
    #[error("the join token cannot be read from {}: {source}", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("the join token cannot be read from {}: it is no file", .0.display())]
    NotAFile(PathBuf),
    /// What is in it cannot be one.
    #[error("{} has no join token in it: that is one line of 64 hex digits (or the same 256 bits in base64), as `portunus token` makes it", .0.display())]
    NotAToken(PathBuf),
}

impl Token {
    /// Reads it.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn read(file: Option<&Path>) -> Result<Token, NoToken> {
        let file = file.ok_or(NoToken::NotGiven)?;
        let unreadable = |source| NoToken::Unreadable {
            file: file.to_owned(),
            source,
        };
        // A pipe would keep us waiting for its writer.
        if !fs::metadata(file).map_err(unreadable)?.is_file() {
            return Err(NoToken::NotAFile(file.to_owned()));
        }
        let mut bytes = Vec::with_capacity(LONGEST as usize + 1);
        let opened = fs::File::open(file).map_err(unreadable)?;
        opened.take(LONGEST + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let token = text.trim();
        if bytes.len() as u64 > LONGEST || token::bits(token).is_none() {
            return Err(NoToken::NotAToken(file.to_owned()));
        }
        Ok(Token(token.to_owned()))
    }

    /// The text, to be sent and dropped.
    pub(super) fn into_text(self) -> String {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_line_in_a_file_and_anything_else_says_what_it_is() {
        let folder = std::env::temp_dir().join(format!("portunus-token-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("token");
        let read = |text: &[u8]| {
            fs::write(&file, text).expect("a file");
            Token::read(Some(&file)).map(Token::into_text)
        };
        let (hex, base64) = ("0123aBcd".repeat(8), format!("{}A=", "a+/".repeat(14)));
        for token in [&hex, &base64, &base64[..43].replace('+', "-")] {
            let line = format!("  {token}\r\n");
            assert_eq!(read(line.as_bytes()).ok().as_ref(), Some(token));
        }
        let digit_missing = &hex.as_bytes()[1..];
        let utf16: Vec<_> = hex.bytes().flat_map(|byte| [byte, 0]).collect();
        let (no_hex, no_bits) = ("x".repeat(64), "B".repeat(43));
        let texts = [
            b"",
            &b"\n"[..],
            b"secret",
            digit_missing,
            &utf16,
            no_hex.as_bytes(),
            no_bits.as_bytes(),
            b"\xff",
            &[b'a'; 513],
        ];
        for text in texts {
            assert!(matches!(read(text), Err(NoToken::NotAToken(_))), "{text:?}");
        }
        assert!(matches!(Token::read(Some(&folder)), Err(NoToken::NotAFile(_))));
        let missing = Token::read(Some(&folder.join("missing"))).expect_err("there is none");
        assert!(missing.to_string().contains("missing: No such file"), "{missing}");
        assert!(matches!(Token::read(None), Err(NoToken::NotGiven)));
        assert_eq!(format!("{:?}", Token("secret".to_owned())), "Token");
        fs::remove_dir_all(&folder).expect("it is ours");
    }
}
