//! Spans as OTLP has them, with the attributes of OpenTelemetry's RPC conventions.

use std::time::{Duration, Instant, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{self as proto, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Encoded, Status};

use crate::telemetry::{Event, Kind, Span};

/// One point in both times. Made anew for each batch, so that a clock that was set is right again with the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    monotonic: Instant,
    wall: Duration,
}

impl Anchor {
    pub(super) fn now() -> Anchor {
        Anchor {
            monotonic: Instant::now(),
            wall: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        }
    }

    /// Nanoseconds since 1970.
    pub(super) fn unix_nanos(&self, at: Instant) -> u64 {
        let wall = match at.checked_duration_since(self.monotonic) {
            Some(later) => self.wall.saturating_add(later),
            None => self.wall.saturating_sub(self.monotonic.duration_since(at)),
        };
        u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The request for a batch.
pub(super) fn request(spans: &[Span], resource: &Resource) -> ExportTraceServiceRequest {
    let anchor = Anchor::now();
    let spans = spans.iter().map(|span| encode(span, &anchor)).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource.clone()),
            scope_spans: vec![ScopeSpans {
                scope: Some(scope()),
                spans,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

/// Who recorded.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "portunus".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}

fn encode(span: &Span, anchor: &Anchor) -> Encoded {
    let mut attributes = vec![string("rpc.system.name", "grpc"), string("rpc.method", &*span.name)];
    if let Some(server) = &span.server {
        let (host, port) = host_and_port(server);
        attributes.push(string("server.address", host));
        attributes.extend(port.map(|port| int("server.port", port.into())));
    }
    if let Some(peer) = span.peer {
        attributes.push(string("network.peer.address", peer.ip().to_string()));
        attributes.push(int("network.peer.port", peer.port().into()));
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
            attributes.push(int("portunus.request.messages", end.requests.into()));
            attributes.push(int("portunus.response.messages", end.responses.into()));
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
            .map(|(at, event)| encode_event(event, anchor.unix_nanos(*at)))
            .collect(),
        dropped_events_count: span.events_dropped,
        status: error.map(|_| Status {
            code: StatusCode::Error.into(),
            message: sentence(span).unwrap_or_default().to_owned(),
        }),
        ..Default::default()
    }
}

/// Why the proxy ended the RPC, if it did.
fn sentence(span: &Span) -> Option<&str> {
    span.events.iter().find_map(|(_, event)| match event {
        Event::Failed { sentence, .. } => Some(&**sentence),
        Event::EndpointChosen(_)
        | Event::Retry { .. }
        | Event::Backoff(_)
        | Event::Ejected(_)
        | Event::Deadline { .. } => None,
    })
}

fn encode_event(event: &Event, time_unix_nano: u64) -> proto::Event {
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

/// The two parts of an `:authority`.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    let whole = (authority, None);
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host.trim_start_matches('[').trim_end_matches(']'), Some(port)),
            Err(_) => whole,
        },
        _ => whole,
    }
}

/// An attribute that is a text.
pub(super) fn string(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn int(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Code;
    use crate::telemetry::MAX_EVENTS;
    use crate::telemetry::trace::{Context, SpanId, TraceId};
    use prost::Message as _;

    fn span(kind: Kind) -> Span {
        let context = Context {
            trace_id: TraceId::new(1).expect("not zero"),
            span_id: SpanId::new(2).expect("not zero"),
            sampled: true,
            random: false,
        };
        Span::new(kind, context, SpanId::new(3), b"/a.B/C", Instant::now())
    }

    fn text<'a>(encoded: &'a Encoded, key: &str) -> Option<&'a str> {
        let found = encoded.attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_span_has_the_attributes_of_the_conventions() {
        let mut span = span(Kind::Client);
        span.server(b"greeter.test:50051");
        span.peer("10.0.0.7:50051".parse().expect("an address"));
        span.identity("spiffe://mesh.test/ns/a/sa/b");
        span.finish(span.began + Duration::from_millis(5), Code::DeadlineExceeded, 1, 3);
        let encoded = encode(&span, &Anchor::now());
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
        let encoded = encode(&span, &Anchor::now());
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
            let encoded = encode(&span, &Anchor::now());
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
            assert!(encode(&span, &Anchor::now()).encoded_len() <= span.bytes());
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

    #[test]
    fn times_before_and_after_the_anchor_are_the_walls() {
        let anchor = Anchor::now();
        let at = |at| anchor.unix_nanos(at);
        let second = Duration::from_secs(1);
        assert_eq!(at(anchor.monotonic + second) - at(anchor.monotonic), 1_000_000_000);
        assert_eq!(at(anchor.monotonic) - at(anchor.monotonic - second), 1_000_000_000);
    }
}
