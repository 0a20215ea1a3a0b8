//! What comes in, and what goes on.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::telemetry::trace::{Root, Sampler};
use crate::telemetry::{Registry, export};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn tracing(root: Root, parent_based: bool, propagators: Propagators) -> Tracing {
    let registry = Registry::new(&Default::default());
    let settings = export::Settings::default();
    let (_, intakes) = export::Exporter::start(settings, Arc::clone(&registry), 1).expect("a thread");
    let intake = intakes.into_iter().next().expect("one worker has one");
    let settings = Settings {
        sampler: Sampler { root, parent_based },
        propagators,
    };
    Tracing::new(&settings, intake.open(&registry.recorder()))
}

/// What becomes of a request with these fields: its span, and the fields with which it goes on.
fn passed(tracing: &mut Tracing, fields: &[(&str, &str)]) -> (Option<Box<Span>>, Vec<(String, String)>) {
    let mut interner = Interner::new();
    let mut head = Fields::new();
    head.push(b":path", b"/a.B/C", false);
    head.push(b":authority", b"b.test:1", false);
    head.push(b"te", b"trailers", false);
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), false);
    }
    let span = tracing.begin(&mut head, &mut interner, Kind::Client, Instant::now());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let sent = head
        .iter(&interner)
        .skip(3)
        .map(|field| (text(field.name_text), text(field.value)));
    (span, sent.collect())
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

fn value<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    let mut found = fields.iter().filter(|(of, _)| of == name).map(|(_, value)| &**value);
    let value = found.next().unwrap_or_else(|| panic!("no {name} in {fields:?}"));
    assert_eq!(found.next(), None, "{name} stands there twice");
    value
}

#[test]
fn a_caller_that_records_gets_our_span_between_its_own_and_the_next() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let (span, sent) = passed(
        &mut tracing,
        &[("traceparent", &traceparent), ("tracestate", "a=b"), ("baggage", "c=d")],
    );
    let context = span.expect("it is recorded").context();
    assert_eq!(context.trace_id.to_hex(), TRACE);
    assert_ne!(context.span_id.to_hex(), SPAN);
    let expected = format!("00-{TRACE}-{}-01", context.span_id.to_hex());
    assert_eq!(value(&sent, "traceparent"), expected);
    assert_eq!((value(&sent, "tracestate"), value(&sent, "baggage")), ("a=b", "c=d"));
    assert_eq!(sent.len(), 3);
}

#[test]
fn a_caller_that_does_not_record_is_left_alone() {
    let mut tracing = tracing(Root::Always, true, Propagators::default());
    let traceparent = format!("00-{TRACE}-{SPAN}-00");
    let random = format!("00-{TRACE}-{SPAN}-02");
    let single = format!("{TRACE}-{SPAN}-0");
    for fields in [
        &[("traceparent", &*traceparent), ("b3", "1")][..],
        &[("traceparent", &random)],
        &[("b3", &single)],
        &[("b3", "0")],
        &[("x-b3-sampled", "0")],
        &[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")],
        &[("grpc-trace-bin", "AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgA")],
    ] {
        let (span, sent) = passed(&mut tracing, fields);
        assert!(span.is_none(), "{fields:?}");
        assert_eq!(sent, owned(fields), "nothing is touched");
    }
}

#[test]
fn a_caller_without_a_trace_gets_one_recorded_or_not() {
    for (root, sampled, flags) in [(Root::Always, true, "-01"), (Root::Never, false, "-00")] {
        let mut tracing = tracing(root, true, Propagators::default());
        let (span, sent) = passed(&mut tracing, &[("x-a", "b")]);
        let written = w3c::parse(value(&sent, "traceparent").as_bytes()).expect("it is one");
        assert_eq!(written.sampled, sampled);
        assert!(value(&sent, "traceparent").ends_with(flags));
        assert_eq!(span.map(|span| span.context()), sampled.then_some(written));
        assert_eq!(sent.len(), 2);
    }
}

#[test]
fn a_traceparent_that_is_none_or_stands_twice_is_replaced_by_one() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let good = format!("00-{TRACE}-{SPAN}-01");
    let declines = format!("00-{TRACE}-{SPAN}-00");
    let no_digits = declines.replace('a', "g");
    let zero = declines.replace(SPAN, &"0".repeat(16));
    for fields in [
        &[("traceparent", "nonsense")][..],
        &[("traceparent", &good), ("traceparent", &good)],
        &[("traceparent", &good), ("traceparent", &declines)],
        &[
            ("traceparent", &declines),
            ("tracestate", "a=b"),
            ("traceparent", &declines),
        ],
        &[("traceparent", &no_digits), ("tracestate", "a=b")],
        &[("tracestate", "a=b"), ("traceparent", &zero)],
        &[("tracestate", "a=b")],
    ] {
        let (span, sent) = passed(&mut tracing, fields);
        assert!(span.is_none());
        assert_eq!(
            sent.len(),
            1,
            "the state of a trace that there is not goes as well: {sent:?}"
        );
        let written = w3c::parse(value(&sent, "traceparent").as_bytes()).expect("it is one");
        assert_ne!(written.trace_id.to_hex(), TRACE);
        assert!(!written.sampled);
    }
}

#[test]
fn the_state_of_a_traceparent_that_is_none_goes_also_where_another_form_says_the_trace() {
    for (root, decision, recorded) in [
        (Root::Never, "-1", true),
        (Root::Always, "", true),
        (Root::Never, "", false),
    ] {
        let mut tracing = tracing(root, true, Propagators::default());
        let single = format!("{TRACE}-{SPAN}{decision}");
        let fields = [("traceparent", "nonsense"), ("tracestate", "a=b"), ("b3", &single)];
        let (span, sent) = passed(&mut tracing, &fields);
        assert_eq!(span.is_some(), recorded);
        let written = w3c::parse(value(&sent, "traceparent").as_bytes()).expect("it is one");
        assert_eq!(written.trace_id.to_hex(), TRACE);
        assert!(sent.iter().all(|(name, _)| name != "tracestate"), "{sent:?}");
    }
}

#[test]
fn b3_goes_on_as_b3_in_the_same_length_with_the_callers_span_as_parent() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    for (trace_id, decision) in [(TRACE, "1"), (&TRACE[16..], "1"), (TRACE, "d")] {
        let (span, sent) = passed(&mut tracing, &[("b3", &format!("{trace_id}-{SPAN}-{decision}"))]);
        let own = span.expect("it is recorded").context().span_id.to_hex();
        assert_eq!(sent, owned(&[("b3", &format!("{trace_id}-{own}-{decision}-{SPAN}"))]));
    }
}

#[test]
fn b3_in_several_fields_goes_on_in_several() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let (span, sent) = passed(
        &mut tracing,
        &[
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-parentspanid", "0000000000000001"),
            ("x-b3-sampled", "1"),
            ("x-b3-own", "kept"),
        ],
    );
    let own = span.expect("it is recorded").context().span_id.to_hex();
    assert_eq!(value(&sent, "x-b3-traceid"), TRACE);
    assert_eq!(value(&sent, "x-b3-spanid"), own);
    assert_eq!(value(&sent, "x-b3-parentspanid"), SPAN);
    assert_eq!(value(&sent, "x-b3-sampled"), "1");
    assert_eq!(value(&sent, "x-b3-own"), "kept");
    assert_eq!(sent.len(), 5);
}

#[test]
fn debug_in_several_fields_stays_debug() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let (span, sent) = passed(
        &mut tracing,
        &[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")],
    );
    assert!(span.is_some());
    assert_eq!(value(&sent, "x-b3-flags"), "1");
    assert!(sent.iter().all(|(name, _)| name != "x-b3-sampled"));
}

#[test]
fn a_caller_that_leaves_the_decision_to_us_hears_of_it() {
    for (root, sampled) in [(Root::Always, true), (Root::Never, false)] {
        let mut tracing = tracing(root, true, Propagators::default());
        let (span, sent) = passed(&mut tracing, &[("b3", &format!("{TRACE}-{SPAN}"))]);
        assert_eq!(span.is_some(), sampled);
        let b3 = value(&sent, "b3");
        if sampled {
            assert!(b3.starts_with(TRACE) && b3.ends_with(&format!("-1-{SPAN}")), "{b3}");
        } else {
            assert_eq!(b3, format!("{TRACE}-{SPAN}-0"));
        }
    }
}

#[test]
fn a_caller_that_asks_for_a_trace_and_has_none_gets_one() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let (span, sent) = passed(&mut tracing, &[("b3", "1")]);
    let trace_id = span.expect("it is recorded").context().trace_id.to_hex();
    assert!(value(&sent, "b3").starts_with(&trace_id));
    assert_eq!(sent.len(), 1);
}

#[test]
fn grpc_trace_bin_goes_on_beside_traceparent() {
    let mut tracing = tracing(Root::Never, true, Propagators::default());
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let (span, sent) = passed(
        &mut tracing,
        &[
            ("traceparent", &traceparent),
            ("grpc-trace-bin", "AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE"),
        ],
    );
    let context = span.expect("it is recorded").context();
    let binary = binary::parse(value(&sent, "grpc-trace-bin").as_bytes());
    let w3c = w3c::parse(value(&sent, "traceparent").as_bytes());
    assert_eq!((binary, w3c), (Some(context), Some(context)), "both say the same now");
}

#[test]
fn forms_that_were_not_named_are_neither_read_nor_written() {
    let only_b3 = Propagators::parse("b3").expect("it is known");
    let mut tracing = tracing(Root::Always, true, only_b3);
    let traceparent = format!("00-{TRACE}-{SPAN}-00");
    let (span, sent) = passed(&mut tracing, &[("traceparent", &traceparent), ("x-b3-sampled", "0")]);
    assert!(span.is_some(), "the traceparent was not read");
    assert_eq!(
        (value(&sent, "traceparent"), value(&sent, "x-b3-sampled")),
        (&*traceparent, "0")
    );
    assert!(b3::parse_single(value(&sent, "b3").as_bytes()).is_some());
    let (span, sent) = passed(
        &mut self::tracing(Root::Always, true, Propagators::parse("none").expect("known")),
        &[],
    );
    assert!(span.is_some() && sent.is_empty());
}

#[test]
fn a_sampler_that_is_not_parent_based_decides_by_the_trace_alone() {
    let unsampled = format!("00-{TRACE}-{SPAN}-00");
    let (span, sent) = passed(
        &mut tracing(Root::Always, false, Propagators::default()),
        &[("traceparent", &unsampled)],
    );
    assert!(span.is_some() && value(&sent, "traceparent").ends_with("-01"));
    let sampled = format!("00-{TRACE}-{SPAN}-01");
    let (span, sent) = passed(
        &mut tracing(Root::Never, false, Propagators::default()),
        &[("traceparent", &sampled)],
    );
    assert!(span.is_none());
    assert_eq!(sent, owned(&[("traceparent", &sampled)]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_callers_write_what_goes_on_is_one_trace(fields in proptest::collection::vec((
        prop::sample::select(vec!["traceparent", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled", "x-b3-flags", "grpc-trace-bin", "x-a"]),
        prop::sample::select(vec![
            "", "0", "1", "d", "x", TRACE, SPAN,
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "AABAQUJDREVGR0hJSktMTU5PAWFiY2RlZmdoAgE",
        ]),
    ), 0..6)) {
        let mut tracing = tracing(Root::Ratio(0.5), true, Propagators::default());
        for _ in 0..4 {
            let (span, sent) = passed(&mut tracing, &fields);
            let Some(span) = span else { continue };
            let context = span.context();
            for (name, value) in &sent {
                let read = match &**name {
                    "traceparent" => w3c::parse(value.as_bytes()),
                    "grpc-trace-bin" => binary::parse(value.as_bytes()),
                    _ => continue,
                };
                prop_assert_eq!(read, Some(context), "{}", name);
            }
        }
    }
}
