//! The facts of one recorded RPC.
//!
//! Whoever tells the story of the RPC says what happens; what becomes of it for a collector is `export`'s, and of all
//! texts no more is kept than a collector should have to take.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::clean;
use super::trace::{Context, SpanId};
use crate::grpc::Code;

/// Which side of the RPC the proxy stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For the application that calls: outbound.
    Client,
    /// For the application that is called: inbound.
    Server,
}

/// One RPC, as it is being recorded.
#[derive(Debug)]
pub struct Span {
    pub(super) kind: Kind,
    pub(super) context: Context,
    pub(super) parent: Option<SpanId>,
    pub(super) name: Box<str>,
    pub(super) server: Option<Box<str>>,
    pub(super) peer: Option<SocketAddr>,
    pub(super) identity: Option<Box<str>>,
    pub(super) events: Vec<(Instant, Event)>,
    pub(super) events_dropped: u32,
    pub(super) began: Instant,
    pub(super) end: Option<End>,
}

/// Something that happened on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The balancer picked this endpoint.
    EndpointChosen(SocketAddr),
    /// The RPC goes to look for another way, since this one did not work.
    Retry {
        /// In a word, as `portunus_retries_total` counts it.
        reason: &'static str,
    },
    /// An endpoint is left alone for a while, since this RPC did not reach it.
    Backoff(SocketAddr),
    /// An endpoint was ejected: for what this RPC met there, or while it waited there.
    Ejected(SocketAddr),
    /// The caller's deadline passed.
    Deadline {
        /// What the caller had allowed.
        timeout: Duration,
    },
    /// The proxy itself ended the RPC.
    Failed {
        /// The word that `portunus-error` has.
        reason: &'static str,
        /// The sentence of `grpc-message`.
        sentence: Box<str>,
    },
}

/// How the RPC ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) at: Instant,
    pub(super) code: Code,
    pub(super) requests: u32,
    pub(super) responses: u32,
}

/// Events that a span keeps; what more there is is counted.
pub const MAX_EVENTS: usize = 32;

const MAX_NAME: usize = 256;
const MAX_TEXT: usize = 256;
const MAX_SENTENCE: usize = 512;

impl Event {
    /// That the proxy ended the RPC: in a word, and in a sentence, of which no more than a collector should take is kept.
    pub fn failed(reason: &'static str, sentence: &str) -> Event {
        Event::Failed {
            reason,
            sentence: clean::limited(sentence.as_bytes(), MAX_SENTENCE),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            // It is sent twice: the status of the span says it, too.
            Event::Failed { sentence, .. } => 2 * sentence.len(),
            Event::EndpointChosen(_)
            | Event::Retry { .. }
            | Event::Backoff(_)
            | Event::Ejected(_)
            | Event::Deadline { .. } => 0,
        }
    }
}

impl Span {
    /// An RPC began whose `:path` is this.
    pub fn new(kind: Kind, context: Context, parent: Option<SpanId>, path: &[u8], began: Instant) -> Span {
        Span {
            kind,
            context,
            parent,
            name: clean::limited(clean::method(path), MAX_NAME),
            server: None,
            peer: None,
            identity: None,
            events: Vec::new(),
            events_dropped: 0,
            began,
            end: None,
        }
    }

    /// Its place in its trace.
    pub fn context(&self) -> Context {
        self.context
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Whom the caller asked for: the value of `:authority`.
    pub fn server(&mut self, authority: &[u8]) {
        self.server = Some(clean::limited(clean::host(authority), MAX_TEXT));
    }

    /// Who is at the other end of the connection in the network.
    pub fn peer(&mut self, addr: SocketAddr) {
        self.peer = Some(addr);
    }

    /// Nobody has proven who that is, so far.
    pub fn unproven(&mut self) {
        self.identity = None;
    }

    /// Who that is, proven by a certificate.
    pub fn identity(&mut self, spiffe_id: &str) {
        self.identity = Some(clean::limited(spiffe_id.as_bytes(), MAX_TEXT));
    }

    /// Something happened. The first [`MAX_EVENTS`] are kept.
    pub fn event(&mut self, now: Instant, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push((now, event));
        } else {
            self.events_dropped += 1;
        }
    }

    /// The RPC ended, after so many messages each way.
    pub fn finish(&mut self, now: Instant, code: Code, requests: u32, responses: u32) {
        self.end = Some(End {
            at: now,
            code,
            requests,
            responses,
        });
    }

    /// What stands for the failure in `error.type`: the proxy's word for it where it ended the RPC, else the status.
    /// `None` where the RPC is no error: a server is not to blame for what its caller got wrong (OpenTelemetry's
    /// conventions for gRPC).
    pub(super) fn error(&self) -> Option<&'static str> {
        let code = self.end.map_or(Code::Unknown, |end| end.code);
        let is_error = match self.kind {
            Kind::Client => code != Code::Ok,
            Kind::Server => matches!(
                code,
                Code::Unknown
                    | Code::DeadlineExceeded
                    | Code::Unimplemented
                    | Code::Internal
                    | Code::Unavailable
                    | Code::DataLoss
            ),
        };
        let own = self.events.iter().find_map(|(_, event)| match event {
            Event::Failed { reason, .. } => Some(*reason),
            _ => None,
        });
        match own {
            Some(reason) => Some(reason),
            None => is_error.then(|| code.constant()),
        }
    }

    /// About what the span takes in memory, and no less than on the wire.
    pub(super) fn bytes(&self) -> usize {
        let texts = [&self.server, &self.identity].map(|text| text.as_deref().map_or(0, str::len));
        let events: usize = self.events.iter().map(|(_, event)| event.bytes()).sum();
        size_of::<Span>()
            + ON_THE_WIRE
            // The name is sent twice: it is an attribute, too.
            + 2 * self.name.len()
            + texts.iter().sum::<usize>()
            + self.events.capacity() * (size_of::<(Instant, Event)>() + EVENT_ON_THE_WIRE)
            + events
    }
}

/// Ids, times, and the attributes that every span has.
const ON_THE_WIRE: usize = 400;
const EVENT_ON_THE_WIRE: usize = 80;
