//! What makes a header list a message, and what makes it malformed (RFC 9113, 8.1 to 8.3).

use super::hpack::{Fields, Interner, Malformed, Name};

/// What a peer's header list got wrong. Each is a stream error PROTOCOL_ERROR (RFC 9113, 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A name or a value with bytes that it cannot have.
    #[error("a field that is not one: {0:?}")]
    Field(Malformed),
    /// A pseudo field behind an ordinary one.
    #[error("a pseudo field behind an ordinary field")]
    PseudoLate,
    /// A pseudo field that this kind of message does not have.
    #[error("a pseudo field that this message cannot have")]
    PseudoUnknown,
    /// A pseudo field twice.
    #[error("a pseudo field twice")]
    PseudoTwice,
    /// `:method`, `:scheme`, `:path` or `:status` is missing, or empty.
    #[error("a pseudo field is missing or empty")]
    PseudoMissing,
    /// `:status` is not three digits.
    #[error("a :status that is not three digits")]
    Status,
    /// `connection` and its like, which HTTP/2 does not have.
    #[error("a connection-specific field")]
    ConnectionField,
    /// `te` with something other than `trailers`.
    #[error("te other than trailers")]
    Te,
    /// `content-length` that is no number, or comes twice with different ones.
    #[error("a content-length that is not one number")]
    ContentLength,
    /// DATA that is not as long as `content-length` said.
    #[error("DATA that content-length does not match")]
    ContentLengthMismatch,
    /// Trailers that do not end the stream.
    #[error("trailers without END_STREAM")]
    TrailersOpen,
    /// A 1xx that ends the stream, or DATA before the response.
    #[error("a response that ends before it began")]
    Premature,
    /// 101, which HTTP/2 does not have (RFC 9113, 8.6).
    #[error("101 Switching Protocols")]
    SwitchingProtocols,
    /// A priority that names the stream itself (RFC 7540, 5.3.1).
    #[error("a stream that depends on itself")]
    DependsOnItself,
}

/// What the engine itself needs of a message's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// `content-length`, if it was said.
    pub(crate) length: Option<u64>,
    /// `:status` of a response, else 0.
    pub(crate) status: u16,
}

const METHOD: u8 = 1;
const SCHEME: u8 = 2;
const PATH: u8 = 4;
const AUTHORITY: u8 = 8;
const STATUS: u8 = 16;

/// Reads the head of a request.
pub(crate) fn request(fields: &Fields, interner: &Interner) -> Result<Head, Wrong> {
    let mut check = Check::new(METHOD | SCHEME | PATH | AUTHORITY);
    let mut connect = false;
    for (at, name) in fields.names().enumerate() {
        let value = || fields.value(at, interner).unwrap_or_default();
        match name {
            Name::Method => {
                let method = value();
                check.pseudo(METHOD, method)?;
                connect = method == b"CONNECT";
            }
            Name::Scheme => check.pseudo(SCHEME, value())?,
            Name::Path => check.pseudo(PATH, value())?,
            Name::Authority => check.pseudo(AUTHORITY, b"-")?,
            name => check.other(name, value)?,
        }
    }
    // RFC 9113, 8.5: CONNECT has :method and :authority, and nothing else that begins with a colon.
    let needed = if connect {
        METHOD | AUTHORITY
    } else {
        METHOD | SCHEME | PATH
    };
    let forbidden = if connect { SCHEME | PATH } else { 0 };
    check.finish(fields, needed, forbidden)
}

/// Reads the head of a response, or of an informational one (1xx).
pub(crate) fn response(fields: &Fields, interner: &Interner) -> Result<Head, Wrong> {
    let mut check = Check::new(STATUS);
    for (at, name) in fields.names().enumerate() {
        let value = || fields.value(at, interner).unwrap_or_default();
        match name {
            Name::Status => {
                let status = value();
                check.pseudo(STATUS, status)?;
                check.head.status = match status {
                    [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                        (a - b'0') as u16 * 100 + (b - b'0') as u16 * 10 + (c - b'0') as u16
                    }
                    _ => return Err(Wrong::Status),
                };
            }
            name => check.other(name, value)?,
        }
    }
    if check.head.status == 101 {
        return Err(Wrong::SwitchingProtocols);
    }
    check.finish(fields, STATUS, 0)
}

/// Reads trailers: fields without any pseudo field (RFC 9113, 8.1).
pub(crate) fn trailers(fields: &Fields, interner: &Interner) -> Result<(), Wrong> {
    let mut check = Check::new(0);
    for (at, name) in fields.names().enumerate() {
        check.other(name, || fields.value(at, interner).unwrap_or_default())?;
    }
    check.finish(fields, 0, 0).map(drop)
}

struct Check {
    allowed: u8,
    seen: u8,
    ordinary: bool,
    head: Head,
}

impl Check {
    fn new(allowed: u8) -> Check {
        Check {
            allowed,
            seen: 0,
            ordinary: false,
            head: Head {
                length: None,
                status: 0,
            },
        }
    }

    fn pseudo(&mut self, which: u8, value: &[u8]) -> Result<(), Wrong> {
        if self.ordinary {
            return Err(Wrong::PseudoLate);
        }
        if self.allowed & which == 0 {
            return Err(Wrong::PseudoUnknown);
        }
        if self.seen & which != 0 {
            return Err(Wrong::PseudoTwice);
        }
        if value.is_empty() {
            return Err(Wrong::PseudoMissing);
        }
        self.seen |= which;
        Ok(())
    }

    fn other<'a>(&mut self, name: Name, value: impl Fn() -> &'a [u8]) -> Result<(), Wrong> {
        match name {
            Name::Method | Name::Scheme | Name::Path | Name::Authority | Name::Status => Err(Wrong::PseudoUnknown),
            Name::Protocol | Name::OtherPseudo => Err(Wrong::PseudoUnknown),
            Name::Connection | Name::KeepAlive | Name::ProxyConnection | Name::TransferEncoding | Name::Upgrade => {
                Err(Wrong::ConnectionField)
            }
            Name::Te if value() != b"trailers" => Err(Wrong::Te),
            Name::ContentLength => {
                let length = number(value()).ok_or(Wrong::ContentLength)?;
                if self.head.length.is_some_and(|before| before != length) {
                    return Err(Wrong::ContentLength);
                }
                self.head.length = Some(length);
                self.ordinary = true;
                Ok(())
            }
            _ => {
                self.ordinary = true;
                Ok(())
            }
        }
    }

    fn finish(self, fields: &Fields, needed: u8, forbidden: u8) -> Result<Head, Wrong> {
        if let Some(malformed) = fields.malformed() {
            return Err(Wrong::Field(malformed));
        }
        // A list that was too long is answered as that, not as one that lacks what was cut off.
        if !fields.over_limit() && self.seen & needed != needed {
            return Err(Wrong::PseudoMissing);
        }
        if self.seen & forbidden != 0 {
            return Err(Wrong::PseudoUnknown);
        }
        Ok(self.head)
    }
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |n, &digit| {
        digit.is_ascii_digit().then(|| n * 10 + u64::from(digit - b'0'))
    })
}
