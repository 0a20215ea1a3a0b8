//! What callers write, and what strangers do.

use proptest::prelude::*;

use super::b3::{B3, Decision, Multi};
use super::*;

fn context(trace_id: u128, span_id: u64, sampled: bool, random: bool) -> Context {
    Context {
        trace_id: TraceId::new(trace_id).expect("not zero"),
        span_id: SpanId::new(span_id).expect("not zero"),
        sampled,
        random,
    }
}

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

#[test]
fn the_example_of_the_standard_is_read_and_written() {
    let text = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let read = w3c::parse(text).expect("it is the standard's");
    assert_eq!(read, context(TRACE, SPAN, true, false));
    assert_eq!(&w3c::format(&read), text);
    assert_eq!(read.trace_id.to_hex(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(read.span_id.to_hex(), "00f067aa0ba902b7");
}

#[test]
fn a_traceparent_of_a_later_version_is_read_as_far_as_it_is_known() {
    for text in [
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff-what-the-future-will-be-like",
        "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
    ] {
        let read = w3c::parse(text.as_bytes());
        assert!(read.is_some_and(|context| context.sampled), "{text}");
    }
}

#[test]
fn what_is_no_traceparent_is_none() {
    for text in [
        "",
        "00",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "0g-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b\u{e9}-1",
    ] {
        assert_eq!(w3c::parse(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn b3_in_one_field_is_read_with_ids_of_both_lengths_and_without() {
    let ids = |trace_id: u128| {
        Some((
            TraceId::new(trace_id).expect("it is"),
            SpanId::new(0xe457b5a2e4d86bd1).expect("it is"),
        ))
    };
    let long = 0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7;
    let short = 0x64fe_8b2a_57d3_eff7;
    for (text, expected, short, decision) in [
        (
            "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90",
            ids(long),
            false,
            Decision::Accept,
        ),
        (
            "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-d",
            ids(long),
            false,
            Decision::Debug,
        ),
        (
            "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1",
            ids(long),
            false,
            Decision::Deferred,
        ),
        ("64fe8b2a57d3eff7-e457b5a2e4d86bd1-0", ids(short), true, Decision::Deny),
        ("0", None, false, Decision::Deny),
        ("1", None, false, Decision::Accept),
        ("d", None, false, Decision::Debug),
    ] {
        let expected = B3 {
            ids: expected,
            short,
            decision,
        };
        assert_eq!(b3::parse_single(text.as_bytes()), Some(expected), "{text}");
    }
    for text in [
        "",
        "-",
        "2",
        "1-",
        "80f198ee56343ba864fe8b2a57d3eff7",
        "80f198ee56343ba864fe8b2a57d3eff7-",
        "80f198ee56343ba864fe8b2a57d3eff-e457b5a2e4d86bd1-1",
        "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-2",
        "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-",
        "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90-",
        "00000000000000000000000000000000-e457b5a2e4d86bd1-1",
    ] {
        assert_eq!(b3::parse_single(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn b3_in_several_fields_says_the_same_as_in_one() {
    let (trace_id, span_id): (&[u8], &[u8]) = (b"64fe8b2a57d3eff7", b"e457b5a2e4d86bd1");
    let whole = Multi {
        trace_id: Some(trace_id),
        span_id: Some(span_id),
        sampled: Some(b"1"),
        flags: None,
    };
    assert_eq!(
        b3::parse_multi(&whole),
        b3::parse_single(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1-1")
    );
    let debug = Multi {
        flags: Some(b"1"),
        sampled: None,
        ..whole
    };
    assert_eq!(
        b3::parse_multi(&debug),
        b3::parse_single(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1-d")
    );
    let deferred = Multi { sampled: None, ..whole };
    assert_eq!(
        b3::parse_multi(&deferred),
        b3::parse_single(b"64fe8b2a57d3eff7-e457b5a2e4d86bd1")
    );
    let denied = Multi {
        sampled: Some(b"0"),
        ..Multi::default()
    };
    assert_eq!(b3::parse_multi(&denied), b3::parse_single(b"0"));
    for nothing in [
        Multi::default(),
        Multi { span_id: None, ..whole },
        Multi {
            trace_id: None,
            ..whole
        },
        Multi {
            sampled: Some(b"yes"),
            ..whole
        },
        Multi {
            trace_id: Some(b"xyz"),
            ..whole
        },
    ] {
        assert_eq!(b3::parse_multi(&nothing), None, "{nothing:?}");
    }
}

#[test]
fn b3_goes_on_in_the_length_in_which_it_came() {
    let old = context(0x64fe_8b2a_57d3_eff7, SPAN, true, false);
    let text = b3::format_single(&old, true, Decision::Accept, SpanId::new(5));
    assert_eq!(text.as_ref(), b"64fe8b2a57d3eff7-00f067aa0ba902b7-1-0000000000000005");
    let long = b3::format_single(&context(TRACE, SPAN, true, false), true, Decision::Debug, None);
    assert_eq!(long.as_ref(), b"4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-d");
}

#[test]
fn grpc_trace_bin_is_read_as_opencensus_writes_it() {
    // The example of OpenCensus' BinaryEncoding.md.
    let text = b"AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE";
    let read = binary::parse(text).expect("it is the standard's");
    assert_eq!(
        read,
        context(
            0x4041_4243_4445_4647_4849_4a4b_4c4d_4e4f,
            0x6162_6364_6566_6768,
            true,
            false
        )
    );
    assert_eq!(&binary::format(&read), text);
    assert_eq!(binary::parse(b"AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE="), Some(read));
    for wrong in [
        &b""[..],
        b"=",
        b"AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAg",
        b"AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE==",
        b"BABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE",
        b"AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAg!",
        b"AAAAAAAAAAAAAAAAAAAAAAAAAWFiY2RlZmdoAgE",
    ] {
        assert_eq!(binary::parse(wrong), None, "{}", wrong.escape_ascii());
    }
}

#[test]
fn propagators_are_those_that_are_named() {
    let named = Propagators::parse("tracecontext, baggage,b3").expect("all known");
    assert!(named.w3c && named.b3 && !named.b3_multi && named.begin_b3);
    let none = Propagators::parse("none").expect("it is known");
    assert!(!none.w3c && !none.begin_w3c);
    assert!(Propagators::parse("tracecontext,jaeger").is_err_and(|why| why.contains("jaeger")));
}

fn any_context() -> impl Strategy<Value = Context> {
    (1u128.., 1u64.., any::<bool>(), any::<bool>())
        .prop_map(|(trace, span, sampled, random)| context(trace, span, sampled, random))
}

proptest! {
    #[test]
    fn what_is_written_reads_back(written in any_context(), short in any::<bool>()) {
        prop_assert_eq!(w3c::parse(&w3c::format(&written)), Some(written));
        let plain = Context { random: false, ..written };
        prop_assert_eq!(binary::parse(&binary::format(&written)), Some(plain));
        let text = b3::format_single(&written, short, Decision::Accept, Some(written.span_id));
        let read = b3::parse_single(text.as_ref());
        prop_assert_eq!(read.and_then(|b3| b3.ids), Some((written.trace_id, written.span_id)));
    }

    #[test]
    fn the_quick_look_at_a_traceparent_agrees_with_the_whole_one(
        sampled: bool, random: bool, zero in 0..4, at in 0..w3c::LEN, byte in prop_oneof![any::<u8>(), Just(b'0')]
    ) {
        let mut text = w3c::format(&context(TRACE, SPAN, sampled, random));
        if zero == 1 {
            text[3..35].fill(b'0');
        } else if zero == 2 {
            text[36..52].fill(b'0');
        }
        text[at] = byte;
        let declines = w3c::parse(&text).is_some_and(|context| !context.sampled && !context.random);
        // Of later versions, and of flags that mean nothing yet, the whole look decides.
        let is_usual = text.starts_with(b"00-") && text.ends_with(b"-00");
        prop_assert_eq!(w3c::is_plainly_unsampled(&text), declines && is_usual);
        prop_assert!(!w3c::is_plainly_unsampled(&text[1..]));
    }

    #[test]
    fn nothing_that_a_stranger_writes_is_more_than_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = (w3c::parse(&bytes), b3::parse_single(&bytes), binary::parse(&bytes));
        let all = Multi { trace_id: Some(&bytes), span_id: Some(&bytes), sampled: Some(&bytes), flags: Some(&bytes) };
        let _ = b3::parse_multi(&all);
    }

    #[test]
    fn one_byte_changed_in_a_traceparent_is_read_as_it_stands_or_refused(
        written in any_context(), at in 0..w3c::LEN, byte in any::<u8>()
    ) {
        let mut text = w3c::format(&written);
        text[at] = byte;
        if let Some(read) = w3c::parse(&text) {
            // All that is read is what stands there: nothing is guessed.
            let again = w3c::format(&read);
            prop_assert_eq!(&again[3..52], &text[3..52]);
        }
    }

    #[test]
    fn texts_that_are_nearly_right_are_no_more_than_refused(text in "[0-9a-fd-]{0,90}") {
        let _ = (w3c::parse(text.as_bytes()), b3::parse_single(text.as_bytes()));
    }
}
