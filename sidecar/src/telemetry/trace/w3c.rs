//! `traceparent` (W3C Trace Context, 3.2): strict in version 00, and what must be understood of versions to come.

use super::{Context, SpanId, TraceId, hex};

/// The length of a `traceparent` of version 00.
pub const LEN: usize = 55;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// Reads a `traceparent`; `None` if it is not one, which means that there is none.
pub fn parse(value: &[u8]) -> Option<Context> {
    let (head, rest) = value.split_first_chunk::<LEN>()?;
    let [version_high, version_low, b'-', ..] = head else {
        return None;
    };
    let version = hex::read(&[*version_high, *version_low])?;
    match (version, rest) {
        (0xff, _) => return None,
        // A later version may have more behind another dash.
        (0, []) | (1.., [] | [b'-', ..]) => {}
        _ => return None,
    }
    if head[35] != b'-' || head[52] != b'-' {
        return None;
    }
    let flags = hex::read(&head[53..])? as u8;
    Some(Context {
        trace_id: TraceId::new(hex::read_wide(&head[3..35])?)?,
        span_id: SpanId::new(hex::read(&head[36..52])?)?,
        sampled: flags & SAMPLED != 0,
        random: flags & RANDOM != 0,
    })
}

/// Writes a `traceparent` of version 00.
#[inline(always)]
pub fn format(context: &Context) -> [u8; LEN] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let [high, low] = context.trace_id.halves();
    text[3..19].copy_from_slice(&hex::digits(high));
    text[19..35].copy_from_slice(&hex::digits(low));
    text[36..52].copy_from_slice(&hex::digits(context.span_id.get()));
    text[54] = b'0' + ((u8::from(context.sampled) * SAMPLED) | (u8::from(context.random) * RANDOM));
    text
}

/// Whether a value of version 00 says that the caller does not record: asked of every such RPC, and so without reading the
/// numbers. One that is malformed says nothing, as for [`parse`].
#[inline]
pub fn is_plainly_unsampled(value: &[u8]) -> bool {
    let Ok(value) = <&[u8; LEN]>::try_from(value) else {
        return false;
    };
    let ([b'0', b'0', b'-', ..], b'-', [.., b'-', b'0', b'0']) = (value, value[35], value) else {
        return false;
    };
    let trace_id = value[3..].first_chunk::<32>();
    let span_id = value[36..].first_chunk::<16>();
    trace_id.is_some_and(hex::is_above_zero) && span_id.is_some_and(hex::is_above_zero)
}
