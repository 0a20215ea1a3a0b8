//! The place in a trace, in each form in which it comes: what was read, written and read again is the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::telemetry::trace::b3::{self, B3, Decision, Multi};
use portunus_sidecar::telemetry::trace::{Context, Propagators, binary, w3c};

fuzz_target!(|input: &[u8]| {
    if let Some(context) = w3c::parse(input) {
        let text = w3c::format(&context);
        assert_eq!(w3c::parse(&text), Some(context));
        assert!(!w3c::is_plainly_unsampled(input) || !context.sampled);
        // Version 00 stays as it came, but for flags that nobody knows.
        if input.starts_with(b"00") {
            assert_eq!(text[..53], input[..53]);
        }
    }
    if let Some(context) = binary::parse(input) {
        let text = binary::format(&context);
        assert_eq!(binary::parse(&text), Some(context));
        assert_eq!(binary::parse(&[&text[..], b"="].concat()), Some(context));
        assert_eq!(text[..36], input[..36]);
    }
    if let Some(b3) = b3::parse_single(input) {
        single(&b3, input);
    }
    multi(input);
    if let Ok(text) = str::from_utf8(input) {
        let _ = Propagators::parse(text);
    }
});

fn single(b3: &B3, input: &[u8]) {
    let Some(context) = context(b3) else { return };
    for parent in [None, Some(context.span_id)] {
        let text = b3::format_single(&context, b3.short, b3.decision, parent);
        assert_eq!(b3::parse_single(text.as_ref()), Some(decided(b3)));
        let ids = if b3.short { 16 + 1 + 16 } else { 32 + 1 + 16 };
        assert_eq!(text.as_ref()[..ids], input[..ids]);
    }
}

/// The fields stand in lines of their own; an empty one is not there.
fn multi(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let mut field = || lines.next().filter(|line| !line.is_empty());
    let fields = Multi {
        trace_id: field(),
        span_id: field(),
        sampled: field(),
        flags: field(),
    };
    let Some(b3) = b3::parse_multi(&fields) else { return };
    let Some(context) = context(&b3) else { return };
    let (trace_id, span_id) = (
        b3::format_trace_id(context.trace_id, b3.short),
        b3::format_span_id(context.span_id),
    );
    assert_eq!(fields.trace_id, Some(trace_id.as_ref()));
    assert_eq!(fields.span_id, Some(span_id.as_ref()));
    let again = Multi {
        trace_id: Some(trace_id.as_ref()),
        span_id: Some(span_id.as_ref()),
        ..fields
    };
    assert_eq!(b3::parse_multi(&again), Some(b3));
}

/// Whoever leaves the decision to us and is not recorded, is told so: what is written is never left open.
fn decided(b3: &B3) -> B3 {
    let decision = match b3.decision {
        Decision::Deferred => Decision::Deny,
        decision => decision,
    };
    B3 { decision, ..*b3 }
}

fn context(b3: &B3) -> Option<Context> {
    let (trace_id, span_id) = b3.ids?;
    Some(Context {
        trace_id,
        span_id,
        sampled: matches!(b3.decision, Decision::Accept | Decision::Debug),
        random: false,
    })
}
