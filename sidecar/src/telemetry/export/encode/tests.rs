use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::span::{self as proto, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span as Encoded, Status};
use proptest::prelude::*;

use super::*;
use crate::grpc::Code;
use crate::telemetry::MAX_EVENTS;
use crate::telemetry::trace::{Context, SpanId, TraceId};

fn context(trace_id: u128, span_id: u64) -> Context {
    Context {
        trace_id: TraceId::new(trace_id).expect("not zero"),
        span_id: SpanId::new(span_id).expect("not zero"),
        sampled: true,
        random: false,
    }
}

fn span(kind: Kind) -> Span {
    Span::new(kind, context(1, 2), SpanId::new(3), b"/a.B/C", Instant::now())
}

/// The bytes of one span.
fn written(span: &Span, anchor: &Anchor) -> Vec<u8> {
    let mut writer = Writer::default();
    put_span(span, anchor, &mut writer);
    writer.into_bytes()
}

/// The same, read by OpenTelemetry's own structures.
fn encode(span: &Span) -> Encoded {
    Encoded::decode(&*written(span, &Anchor::now())).expect("it is a span")
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

fn string(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn int(key: &str, value: impl Into<i64>) -> KeyValue {
    attribute(key, Value::IntValue(value.into()))
}

fn text<'a>(encoded: &'a Encoded, key: &str) -> Option<&'a str> {
    let found = encoded.attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        other => panic!("{other:?}"),
    }
}

/// What is to be read of a span.
fn expected(span: &Span, anchor: &Anchor) -> Encoded {
    let mut attributes = vec![string("rpc.system.name", "grpc"), string("rpc.method", &*span.name)];
    if let Some(server) = &span.server {
        let (host, port) = host_and_port(server);
        attributes.push(string("server.address", host));
        attributes.extend(port.map(|port| int("server.port", port)));
    }
    if let Some(peer) = span.peer {
        attributes.push(string("network.peer.address", peer.ip().to_string()));
        attributes.push(int("network.peer.port", peer.port()));
    }
    if let Some(identity) = &span.identity {
        attributes.push(string("portunus.peer.identity", &**identity));
    }
    let error = span.error();
    if let Some(error) = error {
        attributes.push(string("error.type", error));
    }
    let mut ended = span.began;
    if let Some(end) = span.end {
        ended = end.at;
        attributes.push(string("rpc.response.status_code", end.code.constant()));
        if end.requests > 1 || end.responses > 1 {
            attributes.push(int("portunus.request.messages", end.requests));
            attributes.push(int("portunus.response.messages", end.responses));
        }
    }
    Encoded {
        trace_id: span.context.trace_id.to_bytes().into(),
        span_id: span.context.span_id.to_bytes().into(),
        parent_span_id: span.parent.map(|parent| parent.to_bytes().into()).unwrap_or_default(),
        // The lower byte is that of traceparent.
        flags: u32::from(span.context.sampled) | u32::from(span.context.random) << 1,
        name: span.name.clone().into(),
        kind: match span.kind {
            Kind::Client => SpanKind::Client,
            Kind::Server => SpanKind::Server,
        }
        .into(),
        start_time_unix_nano: anchor.unix_nanos(span.began),
        end_time_unix_nano: anchor.unix_nanos(ended),
        attributes,
        events: span
            .events
            .iter()
            .map(|(at, event)| expected_event(event, anchor.unix_nanos(*at)))
            .collect(),
        dropped_events_count: span.events_dropped,
        status: error.map(|_| Status {
            code: StatusCode::Error.into(),
            message: sentence(span).unwrap_or_default().to_owned(),
        }),
        ..Default::default()
    }
}

fn expected_event(event: &Event, time_unix_nano: u64) -> proto::Event {
    let address = |addr: &std::net::SocketAddr| vec![string("portunus.endpoint", addr.to_string())];
    let (name, attributes) = match event {
        Event::EndpointChosen(addr) => ("endpoint chosen", address(addr)),
        Event::Retry { reason } => ("retry", vec![string("portunus.reason", *reason)]),
        Event::Backoff(addr) => ("backoff", address(addr)),
        Event::Ejected(addr) => ("ejection", address(addr)),
        Event::Deadline { timeout } => {
            let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
            ("deadline", vec![int("portunus.timeout_ms", millis)])
        }
        Event::Failed { reason, sentence } => (
            "failure",
            vec![
                string("portunus.error", *reason),
                string("portunus.sentence", &**sentence),
            ],
        ),
    };
    proto::Event {
        time_unix_nano,
        name: name.to_owned(),
        attributes,
        dropped_attributes_count: 0,
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let reason = prop::sample::select(vec!["", "unreachable", "response_headers_too_large"]);
    prop_oneof![
        any::<SocketAddr>().prop_map(Event::EndpointChosen),
        any::<SocketAddr>().prop_map(Event::Backoff),
        any::<SocketAddr>().prop_map(Event::Ejected),
        reason.clone().prop_map(|reason| Event::Retry { reason }),
        any::<Duration>().prop_map(|timeout| Event::Deadline { timeout }),
        (reason, any::<String>()).prop_map(|(reason, sentence)| Event::failed(reason, &sentence)),
    ]
}

/// Any span at all: odd texts, long ones, and none.
fn any_span() -> impl Strategy<Value = Span> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..400);
    let who = (
        any::<bool>(),
        1..=u128::MAX,
        1..=u64::MAX,
        any::<Option<u64>>(),
        any::<[bool; 2]>(),
    );
    let texts = (
        bytes(),
        prop::option::of(bytes()),
        any::<Option<SocketAddr>>(),
        any::<Option<String>>(),
    );
    let events = prop::collection::vec((0..2_000_000_000u64, any_event()), 0..MAX_EVENTS + 3);
    let end = prop::option::of((
        any::<u32>(),
        prop::sample::select(Code::ALL.to_vec()),
        any::<[u32; 2]>(),
    ));
    (who, texts, events, end).prop_map(|(who, (path, server, peer, identity), events, end)| {
        let (client, trace_id, span_id, parent, [sampled, random]) = who;
        let kind = if client { Kind::Client } else { Kind::Server };
        let context = Context {
            sampled,
            random,
            ..context(trace_id, span_id)
        };
        let mut span = Span::new(kind, context, parent.and_then(SpanId::new), &path, Instant::now());
        if let Some(server) = server {
            span.server(&server);
        }
        if let Some(peer) = peer {
            span.peer(peer);
        }
        if let Some(identity) = identity {
            span.identity(&identity);
        }
        for (nanos, event) in events {
            span.event(span.began + Duration::from_nanos(nanos), event);
        }
        if let Some((nanos, code, [requests, responses])) = end {
            span.finish(
                span.began + Duration::from_nanos(nanos.into()),
                code,
                requests,
                responses,
            );
        }
        span
    })
}

proptest! {
    #[test]
    fn any_span_is_read_as_it_was_recorded_and_is_no_longer_than_it_counts(span in any_span()) {
        let anchor = Anchor::now();
        let written = written(&span, &anchor);
        prop_assert!(written.len() <= span.bytes());
        prop_assert_eq!(Encoded::decode(&*written), Ok(expected(&span, &anchor)));
    }

    #[test]
    fn a_request_has_all_spans_in_order_and_says_whose_they_are(spans in prop::collection::vec(any_span(), 0..20)) {
        let resource = super::super::Resource::default().encode();
        let spans: Vec<_> = spans.into_iter().map(Box::new).collect();
        let request = Requests::new(&resource).encode(&spans);
        let request = ExportTraceServiceRequest::decode(&*request).expect("it is a request");
        let [of] = &*request.resource_spans else { panic!("{request:?}") };
        let [scoped] = &*of.scope_spans else { panic!("{request:?}") };
        prop_assert_eq!(of.resource.as_ref(), Some(&resource));
        prop_assert_eq!(scoped.scope.as_ref(), Some(&resource::scope()));
        let ids = scoped.spans.iter().map(|span| (span.trace_id.clone(), span.span_id.clone()));
        let expected = spans.iter().map(|span| {
            (span.context.trace_id.to_bytes().to_vec(), span.context.span_id.to_bytes().to_vec())
        });
        prop_assert!(ids.eq(expected));
    }
}

#[test]
fn a_span_has_the_attributes_of_the_conventions() {
    let mut span = span(Kind::Client);
    span.server(b"greeter.test:50051");
    span.peer("10.0.0.7:50051".parse().expect("an address"));
    span.identity("spiffe://mesh.test/ns/a/sa/b");
    span.finish(span.began + Duration::from_millis(5), Code::DeadlineExceeded, 1, 3);
    let encoded = encode(&span);
    assert_eq!(encoded.name, "a.B/C");
    assert_eq!(encoded.kind, SpanKind::Client as i32);
    assert_eq!(encoded.end_time_unix_nano - encoded.start_time_unix_nano, 5_000_000);
    for (key, value) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "a.B/C"),
        ("rpc.response.status_code", "DEADLINE_EXCEEDED"),
        ("server.address", "greeter.test"),
        ("network.peer.address", "10.0.0.7"),
        ("portunus.peer.identity", "spiffe://mesh.test/ns/a/sa/b"),
        ("error.type", "DEADLINE_EXCEEDED"),
    ] {
        assert_eq!(text(&encoded, key), Some(value), "{key}");
    }
    assert!(encoded.attributes.contains(&int("server.port", 50051)));
    assert!(encoded.attributes.contains(&int("portunus.response.messages", 3)));
    assert_eq!(encoded.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 3]);
}

#[test]
fn a_failure_of_the_proxy_is_told_by_its_word_and_its_sentence() {
    let mut span = span(Kind::Server);
    span.event(span.began, Event::failed("unreachable", "10.0.0.7\r\nrefused\u{202e}"));
    span.finish(span.began, Code::Unavailable, 1, 0);
    let encoded = encode(&span);
    assert_eq!(text(&encoded, "error.type"), Some("unreachable"));
    let status = encoded.status.expect("an error has one");
    assert_eq!(status.code, StatusCode::Error as i32);
    assert_eq!(status.message, r"10.0.0.7\u000d\u000arefused\u202e");
    assert_eq!(encoded.events[0].name, "failure");
}

#[test]
fn a_server_is_not_to_blame_for_its_callers_mistakes() {
    for (kind, code, error) in [
        (Kind::Server, Code::NotFound, None),
        (Kind::Client, Code::NotFound, Some("NOT_FOUND")),
        (Kind::Server, Code::Internal, Some("INTERNAL")),
        (Kind::Client, Code::Ok, None),
    ] {
        let mut span = span(kind);
        span.finish(span.began, code, 1, 1);
        let encoded = encode(&span);
        assert_eq!(
            (text(&encoded, "error.type"), encoded.status.is_some()),
            (error, error.is_some())
        );
    }
}

#[test]
fn a_span_is_never_larger_on_the_wire_than_it_counts_in_memory() {
    let mut span = span(Kind::Client);
    for _ in 0..2 {
        assert!(written(&span, &Anchor::now()).len() <= span.bytes());
        span.server(&[b'a'; 9_000]);
        span.identity(&"b".repeat(9_000));
        span.peer("[fd00::1]:65535".parse().expect("an address"));
        for _ in 0..3 * MAX_EVENTS {
            span.event(
                span.began,
                Event::failed("response_headers_too_large", &"c".repeat(9_000)),
            );
        }
        span.finish(span.began, Code::ResourceExhausted, u32::MAX, u32::MAX);
    }
    assert_eq!(span.events.len(), MAX_EVENTS);
    assert_eq!(span.events_dropped as usize, 5 * MAX_EVENTS);
}

#[test]
fn an_authority_is_a_host_and_perhaps_a_port() {
    for (authority, host, port) in [
        ("a.test:1", "a.test", Some(1)),
        ("a.test", "a.test", None),
        ("[::1]:50051", "::1", Some(50051)),
        ("::1", "::1", None),
        ("a:x", "a:x", None),
        ("", "", None),
    ] {
        assert_eq!(host_and_port(authority), (host, port));
    }
}
