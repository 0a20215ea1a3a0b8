//! What makes a header list a message, and what makes it malformed (RFC 9113, 8.1 to 8.3).

use super::hpack::{FieldId, Fields, Interner, Malformed, Name, Names};

/// What a peer's header list got wrong. Each is a stream error PROTOCOL_ERROR (RFC 9113, 8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// A field that no message can have.
    #[error("{0}")]
    Field(Malformed),
    /// A pseudo field twice, or behind an ordinary field.
    #[error("a pseudo field twice, or behind an ordinary field")]
    PseudoMisplaced,
    /// A pseudo field that this kind of message does not have.
    #[error("a pseudo field that this message cannot have")]
    PseudoUnknown,
    /// `:method`, `:scheme`, `:path` or `:status` is missing.
    #[error("a header list that lacks a pseudo field")]
    PseudoMissing,
    /// `:status` is not three digits.
    #[error("a :status that is not three digits")]
    Status,
    /// `host` that names something other than `:authority` (RFC 9113, 8.3.1).
    #[error("a host that is not the :authority")]
    HostDiffers,
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

/// What every request has but CONNECT.
const ASKED: Names = Names::of(&[Name::Method, Name::Scheme, Name::Path]);

/// Reads the head of a request.
#[inline(always)]
pub(crate) fn request(fields: &Fields, interner: &Interner) -> Result<Head, Wrong> {
    let here = pseudo(fields, ASKED.or(Names::of(&[Name::Authority])))?;
    // RFC 9113, 8.5: CONNECT has :method and :authority, and nothing else that begins with a colon.
    let (needed, forbidden) = if is_connect(fields, interner) {
        (
            Names::of(&[Name::Method, Name::Authority]),
            Names::of(&[Name::Scheme, Name::Path]),
        )
    } else {
        (ASKED, Names::NONE)
    };
    // A list that was too long is answered as that, not as one that lacks what was cut off.
    if !here.has_all(needed) && !fields.over_limit() {
        return Err(Wrong::PseudoMissing);
    }
    if here.has_any(forbidden) {
        return Err(Wrong::PseudoUnknown);
    }
    if fields.names().has_all(Names::of(&[Name::Authority, Name::Host])) && !hosts_agree(fields, interner) {
        return Err(Wrong::HostDiffers);
    }
    Ok(Head {
        length: length(fields, interner)?,
        status: 0,
    })
}

/// Reads the head of a response, or of an informational one (1xx).
#[inline(always)]
pub(crate) fn response(fields: &Fields, interner: &Interner) -> Result<Head, Wrong> {
    const NEEDED: Names = Names::of(&[Name::Status]);
    let here = pseudo(fields, NEEDED)?;
    if !here.has_all(NEEDED) && !fields.over_limit() {
        return Err(Wrong::PseudoMissing);
    }
    let status = match fields.id(0) {
        Some(FieldId::STATUS_200) => 200,
        _ => status(fields.value(0, interner).filter(|_| here.has_all(NEEDED)))?,
    };
    Ok(Head {
        length: length(fields, interner)?,
        status,
    })
}

/// Reads trailers: fields without any pseudo field (RFC 9113, 8.1).
#[inline(always)]
pub(crate) fn trailers(fields: &Fields, interner: &Interner) -> Result<(), Wrong> {
    pseudo(fields, Names::NONE)?;
    length(fields, interner).map(drop)
}

/// The pseudo fields that there are: of these alone, each once, before all others; and no field is malformed.
#[inline(always)]
fn pseudo(fields: &Fields, allowed: Names) -> Result<Names, Wrong> {
    if let Some(malformed) = fields.malformed() {
        return Err(Wrong::Field(malformed));
    }
    let here = fields.names().and(Names::PSEUDO);
    if !allowed.has_all(here) {
        return Err(Wrong::PseudoUnknown);
    }
    if fields.misplaced().has_any(Names::PSEUDO) {
        return Err(Wrong::PseudoMisplaced);
    }
    Ok(here)
}

#[inline(always)]
fn is_connect(fields: &Fields, interner: &Interner) -> bool {
    // What every call of gRPC begins with.
    if fields.id(0) == Some(FieldId::METHOD_POST) {
        return false;
    }
    let method = fields.find(Name::Method, interner);
    method.is_some_and(|method| method.value == b"CONNECT")
}

/// `:status`, three digits. (A list that was cut off may lack it; its owner answers that.)
fn status(value: Option<&[u8]>) -> Result<u16, Wrong> {
    match value {
        Some(b"101") => Err(Wrong::SwitchingProtocols),
        Some([a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9']) => {
            Ok((a - b'0') as u16 * 100 + (b - b'0') as u16 * 10 + (c - b'0') as u16)
        }
        Some(_) => Err(Wrong::Status),
        None => Ok(0),
    }
}

/// What `content-length` says, if it is there: once, or the same each time (RFC 9110, 8.6).
#[inline(always)]
fn length(fields: &Fields, interner: &Interner) -> Result<Option<u64>, Wrong> {
    if fields.names().has(Name::ContentLength) {
        length_said(fields, interner)
    } else {
        Ok(None)
    }
}

fn length_said(fields: &Fields, interner: &Interner) -> Result<Option<u64>, Wrong> {
    let mut said = None;
    for value in fields.values(Name::ContentLength, interner) {
        let length = number(value).ok_or(Wrong::ContentLength)?;
        if said.is_some_and(|before| before != length) {
            return Err(Wrong::ContentLength);
        }
        said = Some(length);
    }
    Ok(said)
}

/// Whether each `host` names what `:authority` names: letters count alike, and the scheme's port is as good as none
/// (RFC 3986, 6.2.3).
#[cold]
fn hosts_agree(fields: &Fields, interner: &Interner) -> bool {
    let said = |name| fields.values(name, interner);
    let usual: &[u8] = match said(Name::Scheme).next() {
        Some(b"http") => b":80",
        Some(b"https") => b":443",
        _ => b":",
    };
    said(Name::Authority).all(|meant| {
        let meant = bare(meant, usual);
        said(Name::Host).all(|host| bare(host, usual).eq_ignore_ascii_case(meant))
    })
}

fn bare<'a>(authority: &'a [u8], usual: &[u8]) -> &'a [u8] {
    let without = |port| authority.strip_suffix(port);
    without(usual).or_else(|| without(b":")).unwrap_or(authority)
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 {
        return None;
    }
    value.iter().try_fold(0u64, |n, &digit| {
        digit.is_ascii_digit().then(|| n * 10 + u64::from(digit - b'0'))
    })
}
