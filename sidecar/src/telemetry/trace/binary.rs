//! `grpc-trace-bin`, the form of OpenCensus: numbered fields in binary, in base64 as gRPC writes its `-bin` metadata.

use super::{Context, SpanId, TraceId};

/// Bytes of version 0 with its three fields.
const LEN: usize = 29;
/// The same in base64, without padding.
pub const TEXT_LEN: usize = LEN.div_ceil(3) * 4 - 1;

/// Reads a `grpc-trace-bin`, with padding or without (gRPC's `doc/PROTOCOL-HTTP2.md`).
pub fn parse(value: &[u8]) -> Option<Context> {
    let mut bytes = [0; LEN];
    let value = value.strip_suffix(b"=").unwrap_or(value);
    if value.len() != TEXT_LEN {
        return None;
    }
    for (four, three) in value.chunks(4).zip(bytes.chunks_mut(3)) {
        let mut word = 0;
        for at in 0..4 {
            let digit = four.get(at).map_or(Some(0), |digit| digit_value(*digit))?;
            word = word << 6 | digit;
        }
        let [_, decoded @ ..] = word.to_be_bytes();
        three.copy_from_slice(&decoded[..three.len()]);
    }
    // Version 0; then field 0 is the trace, field 1 the span, field 2 the options.
    let [0, 0, trace_id @ .., 1, s0, s1, s2, s3, s4, s5, s6, s7, 2, options] = bytes else {
        return None;
    };
    Some(Context {
        trace_id: TraceId::new(u128::from_be_bytes(trace_id))?,
        span_id: SpanId::new(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]))?,
        sampled: options & 1 != 0,
        random: false,
    })
}

/// Writes a `grpc-trace-bin`, without padding.
pub fn format(context: &Context) -> [u8; TEXT_LEN] {
    let mut bytes = [0; LEN];
    bytes[2..18].copy_from_slice(&context.trace_id.to_bytes());
    bytes[18] = 1;
    bytes[19..27].copy_from_slice(&context.span_id.to_bytes());
    bytes[27] = 2;
    bytes[28] = context.sampled.into();
    let mut text = [0; TEXT_LEN];
    for (three, four) in bytes.chunks(3).zip(text.chunks_mut(4)) {
        let byte = |at| u32::from(three.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for (at, out) in four.iter_mut().enumerate() {
            *out = ALPHABET[(word >> (18 - 6 * at) & 63) as usize];
        }
    }
    text
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn digit_value(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}
