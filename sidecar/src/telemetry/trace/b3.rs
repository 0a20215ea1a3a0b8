//! B3, Zipkin's form: in one field, `b3`, or in several, `x-b3-*` (openzipkin/b3-propagation).

use super::{Context, SpanId, TraceId, hex};

/// What a caller says in B3. The ids may be missing, or the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct B3 {
    /// The caller's span.
    pub ids: Option<(TraceId, SpanId)>,
    /// Whether the trace id came in 16 digits: it goes on as it came.
    pub short: bool,
    /// What the caller has decided.
    pub decision: Decision,
}

/// Whether to record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not decided yet: whoever reads this decides.
    Deferred,
    /// Not to be recorded.
    Deny,
    /// To be recorded.
    Accept,
    /// To be recorded, whatever anybody's sampler says.
    Debug,
}

impl Decision {
    fn parse(text: &[u8]) -> Option<Decision> {
        match text {
            b"0" | b"false" => Some(Decision::Deny),
            b"1" | b"true" => Some(Decision::Accept),
            b"d" => Some(Decision::Debug),
            _ => None,
        }
    }

    fn letter(self) -> u8 {
        match self {
            Decision::Deferred | Decision::Deny => b'0',
            Decision::Accept => b'1',
            Decision::Debug => b'd',
        }
    }
}

/// Reads the value of `b3`: `TRACE-SPAN[-DECISION[-PARENT]]`, or a decision alone.
pub fn parse_single(value: &[u8]) -> Option<B3> {
    if !value.contains(&b'-') {
        let decision = Decision::parse(value)?;
        return Some(B3 {
            ids: None,
            short: false,
            decision,
        });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace_id, span_id) = (parts.next()?, parts.next()?);
    let decision = match parts.next() {
        None => Decision::Deferred,
        Some(text) => Decision::parse(text)?,
    };
    if let Some(parent) = parts.next() {
        read_span_id(parent)?;
    }
    if parts.next().is_some() {
        return None;
    }
    Some(B3 {
        ids: Some((read_trace_id(trace_id)?, read_span_id(span_id)?)),
        short: trace_id.len() == SHORT,
        decision,
    })
}

/// The values of the `x-b3-*` fields that there are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Multi<'a> {
    /// `x-b3-traceid`
    pub trace_id: Option<&'a [u8]>,
    /// `x-b3-spanid`
    pub span_id: Option<&'a [u8]>,
    /// `x-b3-sampled`
    pub sampled: Option<&'a [u8]>,
    /// `x-b3-flags`
    pub flags: Option<&'a [u8]>,
}

/// Reads what several fields say together.
pub fn parse_multi(fields: &Multi<'_>) -> Option<B3> {
    let decision = match (fields.flags, fields.sampled) {
        (Some(b"1"), _) => Decision::Debug,
        (_, Some(text)) => Decision::parse(text)?,
        (_, None) => Decision::Deferred,
    };
    let ids = match (fields.trace_id, fields.span_id) {
        (None, None) if decision == Decision::Deferred => return None,
        (None, None) => None,
        (Some(trace_id), Some(span_id)) => Some((read_trace_id(trace_id)?, read_span_id(span_id)?)),
        _ => return None,
    };
    Some(B3 {
        ids,
        short: fields.trace_id.is_some_and(|id| id.len() == SHORT),
        decision,
    })
}

/// A text of B3, on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    bytes: [u8; LONG + 1 + SHORT + 2 + 1 + SHORT],
    len: usize,
}

impl Text {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..][..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_span_id(&mut self, id: SpanId) {
        self.put(&hex::digits(id.get()));
    }
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Writes the value of `b3`.
pub fn format_single(context: &Context, short: bool, decision: Decision, parent: Option<SpanId>) -> Text {
    let mut text = format_trace_id(context.trace_id, short);
    text.put(b"-");
    text.put_span_id(context.span_id);
    text.put(&[b'-', decision.letter()]);
    if let Some(parent) = parent {
        text.put(b"-");
        text.put_span_id(parent);
    }
    text
}

/// Writes the value of `x-b3-traceid`.
pub fn format_trace_id(id: TraceId, short: bool) -> Text {
    let mut text = EMPTY;
    let [high, low] = id.halves();
    // An id of more than 64 bits is never cut, whatever came.
    if !short || high != 0 {
        text.put(&hex::digits(high));
    }
    text.put(&hex::digits(low));
    text
}

/// Writes the value of `x-b3-spanid` and `x-b3-parentspanid`.
pub fn format_span_id(id: SpanId) -> Text {
    let mut text = EMPTY;
    text.put_span_id(id);
    text
}

fn read_trace_id(text: &[u8]) -> Option<TraceId> {
    if !matches!(text.len(), SHORT | LONG) {
        return None;
    }
    hex::read_wide(text).and_then(TraceId::new)
}

fn read_span_id(text: &[u8]) -> Option<SpanId> {
    if text.len() != SHORT {
        return None;
    }
    hex::read(text).and_then(SpanId::new)
}

const SHORT: usize = 16;
const LONG: usize = 32;
const EMPTY: Text = Text {
    bytes: [0; LONG + 1 + SHORT + 2 + 1 + SHORT],
    len: 0,
};
