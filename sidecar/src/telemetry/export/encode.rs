//! Spans as OTLP has them, with the attributes of OpenTelemetry's RPC conventions, written straight into the message that
//! is sent.
//!
//! Nearly all that exporting costs is this. The structures of `opentelemetry-proto`, which allocate each key and count the
//! lengths within each level anew, took 18,000 instructions for a span; they are the judge of the tests.

use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::anchor::Anchor;
use super::attribute::{address, int, ip, string};
use super::protobuf::Writer;
use super::{field, resource};
use crate::telemetry::{Event, Kind, Span};

/// What all requests have in common, encoded once.
#[derive(Debug)]
pub(super) struct Requests {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Requests {
    /// Requests with spans of this process.
    pub(super) fn new(whose: &Resource) -> Requests {
        Requests {
            resource: whose.encode_to_vec(),
            scope: resource::scope().encode_to_vec(),
        }
    }

    /// The request for a batch.
    pub(super) fn encode(&self, spans: &[Box<Span>]) -> Vec<u8> {
        use field::{export_trace_service_request, resource_spans, scope_spans};
        let anchor = Anchor::now();
        let most = spans.iter().map(|span| span.bytes()).sum::<usize>() + self.resource.len() + self.scope.len();
        let mut to = Writer::with_capacity(most);
        to.message(export_trace_service_request::RESOURCE_SPANS, |to| {
            to.bytes(resource_spans::RESOURCE, &self.resource);
            to.message(resource_spans::SCOPE_SPANS, |to| {
                to.bytes(scope_spans::SCOPE, &self.scope);
                for span in spans {
                    to.message(scope_spans::SPANS, |to| put_span(span, &anchor, to));
                }
            });
        });
        to.into_bytes()
    }
}

fn put_span(span: &Span, anchor: &Anchor, to: &mut Writer) {
    use field::{span as number, span_kind, status, status_code};
    to.bytes(number::TRACE_ID, &span.context.trace_id.to_bytes());
    to.bytes(number::SPAN_ID, &span.context.span_id.to_bytes());
    if let Some(parent) = span.parent {
        to.bytes(number::PARENT_SPAN_ID, &parent.to_bytes());
    }
    to.bytes(number::NAME, span.name.as_bytes());
    let kind = match span.kind {
        Kind::Client => span_kind::CLIENT,
        Kind::Server => span_kind::SERVER,
    };
    to.varint(number::KIND, kind);
    let ended = span.end.map_or(span.began, |end| end.at);
    to.fixed64(number::START_TIME_UNIX_NANO, anchor.unix_nanos(span.began));
    to.fixed64(number::END_TIME_UNIX_NANO, anchor.unix_nanos(ended));
    let error = span.error();
    put_attributes(span, error, to);
    for (at, event) in &span.events {
        to.message(number::EVENTS, |to| put_event(event, anchor.unix_nanos(*at), to));
    }
    if span.events_dropped > 0 {
        to.varint(number::DROPPED_EVENTS_COUNT, span.events_dropped.into());
    }
    if error.is_some() {
        to.message(number::STATUS, |to| {
            to.bytes(status::MESSAGE, sentence(span).unwrap_or_default().as_bytes());
            to.varint(status::CODE, status_code::ERROR);
        });
    }
    // The lower byte is that of traceparent.
    let flags = u32::from(span.context.sampled) | u32::from(span.context.random) << 1;
    to.fixed32(number::FLAGS, flags);
}

fn put_attributes(span: &Span, error: Option<&str>, to: &mut Writer) {
    const LIST: u32 = field::span::ATTRIBUTES;
    string(LIST, "rpc.system.name", "grpc", to);
    string(LIST, "rpc.method", &span.name, to);
    if let Some(server) = &span.server {
        let (host, port) = host_and_port(server);
        string(LIST, "server.address", host, to);
        if let Some(port) = port {
            int(LIST, "server.port", port.into(), to);
        }
    }
    if let Some(peer) = span.peer {
        ip(LIST, "network.peer.address", peer.ip(), to);
        int(LIST, "network.peer.port", peer.port().into(), to);
    }
    if let Some(identity) = &span.identity {
        string(LIST, "portunus.peer.identity", identity, to);
    }
    if let Some(error) = error {
        string(LIST, "error.type", error, to);
    }
    if let Some(end) = span.end {
        string(LIST, "rpc.response.status_code", end.code.constant(), to);
        if end.requests > 1 || end.responses > 1 {
            int(LIST, "portunus.request.messages", end.requests.into(), to);
            int(LIST, "portunus.response.messages", end.responses.into(), to);
        }
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

fn put_event(event: &Event, unix_nanos: u64, to: &mut Writer) {
    use field::event as number;
    const LIST: u32 = number::ATTRIBUTES;
    to.fixed64(number::TIME_UNIX_NANO, unix_nanos);
    let name = match event {
        Event::EndpointChosen(_) => "endpoint chosen",
        Event::Retry { .. } => "retry",
        Event::Backoff(_) => "backoff",
        Event::Ejected(_) => "ejection",
        Event::Deadline { .. } => "deadline",
        Event::Failed { .. } => "failure",
    };
    to.bytes(number::NAME, name.as_bytes());
    match event {
        Event::EndpointChosen(addr) | Event::Backoff(addr) | Event::Ejected(addr) => {
            address(LIST, "portunus.endpoint", addr, to);
        }
        Event::Retry { reason } => string(LIST, "portunus.reason", reason, to),
        Event::Deadline { timeout } => {
            let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
            int(LIST, "portunus.timeout_ms", millis, to);
        }
        Event::Failed { reason, sentence } => {
            string(LIST, "portunus.error", reason, to);
            string(LIST, "portunus.sentence", sentence, to);
        }
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

#[cfg(test)]
mod tests;
