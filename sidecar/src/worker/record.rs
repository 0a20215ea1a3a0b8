//! What is said of a call beside its numbers: its span, and its line in the access log.

use std::time::SystemTime;

use super::Worker;
use crate::balance::Left;
use crate::call::{Aside, Call, CallKey};
use crate::connect::Side;
use crate::failure::Failure;
use crate::http2::hpack::Name;
use crate::telemetry::access::{self, Facts, Form};
use crate::telemetry::{Direction, Event, Kind};

/// Where lines of the access log go, whole and never waiting.
pub type AccessLog = (Form, Box<dyn Fn(&[u8])>);

/// What an access log says of a call that its exchange has forgotten when it ends.
pub(crate) struct Asked {
    path: Box<[u8]>,
    authority: Box<[u8]>,
    identity: Option<Box<str>>,
    /// The word for a failure of ours.
    reason: Option<&'static str>,
    from: Option<std::net::SocketAddr>,
}

impl Worker {
    /// A call of gRPC's began: it gets its place in a trace.
    #[inline(always)]
    pub(super) fn begin_record(&mut self, key: CallKey) {
        if self.tracing.is_some() || self.access.is_some() {
            self.record(key);
        }
    }

    fn record(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let kind = if call.inbound { Kind::Server } else { Kind::Client };
        let Some(head) = &mut call.exchange.head else { return };
        let interner = &mut self.wires.shared.interner;
        if self.access.is_some() {
            let value = |name| head.value_of(name, interner).unwrap_or_default().into();
            let asked = Asked {
                path: value(Name::Path),
                authority: value(Name::Authority),
                identity: None,
                reason: None,
                from: None,
            };
            call.aside.get_or_insert_default().asked = Some(asked);
        }
        if let Some(tracing) = &mut self.tracing
            && let Some(span) = tracing.begin(head, interner, kind, self.now)
        {
            call.aside.get_or_insert_default().span = Some(span);
        }
        if call.aside.is_some() {
            self.note_caller(key);
        }
    }

    /// Who called, as far as that is known of the connection.
    #[cold]
    fn note_caller(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let Some(wire) = self.wires.slots.get(call.exchange.down.wire) else {
            return;
        };
        let identity = wire.proven().map(|peer| peer.id().to_string());
        let Some(aside) = &mut call.aside else { return };
        if let (Some(span), Side::Caller { inbound: true, .. }) = (&mut aside.span, &wire.side) {
            span.peer(wire.peer);
            if let Some(identity) = &identity {
                span.identity(identity);
            }
        }
        if let Some(asked) = &mut aside.asked {
            asked.from = Some(wire.peer);
            asked.identity = identity.map(String::into_boxed_str);
        }
    }

    /// An endpoint was chosen for the call.
    #[cold]
    pub(crate) fn note_endpoint(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let addr = call.server();
        let Some(span) = call.span() else { return };
        span.event(self.now, Event::EndpointChosen(addr));
        span.peer(addr);
        span.unproven();
    }

    /// The call may have been carried to the endpoint: who is there has been proven then, if its connection is in mTLS.
    #[cold]
    pub(crate) fn note_server(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let wire = call.exchange.up.and_then(|up| self.wires.slots.get(up.wire));
        let Some(peer) = wire.and_then(|wire| wire.proven()) else {
            return;
        };
        if let Some(aside) = &mut call.aside
            && let Some(span) = &mut aside.span
            && !call.inbound
        {
            span.identity(peer.id().as_str());
        }
    }

    /// The proxy ends the call.
    #[cold]
    pub(super) fn record_failure(&mut self, key: CallKey, failure: &Failure) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let Some(aside) = &mut call.aside else { return };
        if let Some(asked) = &mut aside.asked {
            asked.reason = Some(failure.reason());
        }
        let Some(span) = &mut aside.span else { return };
        if let Failure::Deadline { timeout, .. } = failure {
            span.event(self.now, Event::Deadline { timeout: *timeout });
        }
        span.event(self.now, Event::failed(failure.reason(), &failure.to_string()));
    }

    /// The call is over: its span goes to the collector, its line to the log.
    #[cold]
    pub(super) fn end_record(&mut self, key: CallKey, left: Left) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let Some(aside) = call.aside.take() else { return };
        let Aside { span, asked, .. } = *aside;
        let call: &Call = call;
        let code = call.code();
        let (requests, responses) = (call.exchange.asked.messages(), call.exchange.answered.messages());
        let trace_id = span.as_ref().map(|span| span.context().trace_id);
        if let (Some(mut span), Some(tracing)) = (span, &self.tracing) {
            if let (true, Some(choice)) = (left.ejected, &call.choice) {
                span.event(self.now, Event::Ejected(choice.addr));
            }
            span.finish(self.now, code, requests, responses);
            tracing.end(span);
        }
        let (Some(asked), Some((form, log))) = (asked, &self.access) else {
            return;
        };
        let facts = Facts {
            at: SystemTime::now(),
            direction: if call.inbound {
                Direction::Inbound
            } else {
                Direction::Outbound
            },
            path: &asked.path,
            authority: &asked.authority,
            from: asked.from,
            to: call.choice.as_ref().map(|choice| choice.addr),
            identity: asked.identity.as_deref(),
            code,
            reason: asked.reason,
            elapsed: self.tick.since(call.began),
            requests,
            responses,
            trace_id,
        };
        self.line.clear();
        access::write(&facts, *form, &mut self.line);
        log(self.line.as_bytes());
    }
}
