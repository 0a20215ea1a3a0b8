//! What the wires say, and what follows from it: an event on one end becomes a command to the other.

use std::cmp::Reverse;
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use portunus_logbook::Line;

use super::Worker;
use super::upkeep::{self, NO_SETTINGS};
use crate::balance::EndpointKey;
use crate::call::{CallKey, code_of_reset};
use crate::connect::wire::{Flushed, Read, Shown, Wire};
use crate::connect::{self, NO_WORD, PoolKey, Server, Side, Unreached, Via, WireKey, pool};
use crate::exchange::{End, Exchange, Phase};
use crate::failure::Failure;
use crate::grpc::{Code, percent_decode};
use crate::http2::hpack::Name;
use crate::http2::{Connection, Event, Head, Reason, StreamFault};
use crate::route::ServiceKey;
use crate::slots::Key;
use crate::telemetry::Event as Happening;
use crate::{inbound, outbound, telemetry, tls};

/// A server's cancel so shortly before the deadline is its way to say that the deadline passed: timers tick in
/// milliseconds, and what remained was rounded on its way.
const DEADLINE_IS_NEAR: Duration = Duration::from_millis(5);
/// A server that did not even take a request up may not have seen it within this time.
const HASTE: Duration = Duration::from_millis(100);
/// How many requests may be reset at once of which nobody knows whether the server has taken them up. Servers on the `h2`
/// crate cut a connection for 21 that they had not.
const UNPROVEN_AT_ONCE: u32 = 16;
/// How often it is looked whether a server has taken up requests that were cancelled at once, so that it can be told.
pub(super) const SPARED: Duration = Duration::from_millis(10);

/// What keeps memory without moving.
enum Still {
    Call(CallKey),
    Wire(WireKey),
}

/// What a connection may hold when others have spent the budget.
const LITTLE: usize = 64 << 10;
/// What a connection is told that has to go since others need its memory.
const KEEPS_MEMORY: &str = "it keeps memory that others need";
/// How long a peer may read our last words after we have ended a connection, and how many may do so at once.
const LINGER: Duration = Duration::from_secs(1);
const MOST_LINGERING: u64 = 1_000;

impl Worker {
    /// Reads what a wire has, once, and acts on it.
    pub(super) fn read(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get_mut(key) else {
            return;
        };
        match wire.read(&mut self.buffer, self.now) {
            Read::Bytes(n, more) => {
                let buffer = mem::take(&mut self.buffer);
                self.receive(key, &buffer[..n]);
                self.buffer = buffer;
                if more {
                    self.wants_another_turn(key);
                }
            }
            Read::Nothing => {}
            Read::End => match wire.mute.take() {
                Some(error) => self.close(key, &error.to_string()),
                None => self.close(key, "it was closed by the peer"),
            },
            Read::Broken(error) => self.close(key, &error.to_string()),
        }
    }

    /// Puts a wire among those that go on in the next turn: once, or a busy wire would have more turns than others.
    fn wants_another_turn(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key)
            && !wire.is_unfinished
        {
            wire.is_unfinished = true;
            self.unfinished.push_back(key);
        }
    }

    fn receive(&mut self, key: WireKey, mut input: &[u8]) {
        loop {
            let Some((wire, shared)) = self.wires.touch(key) else {
                return;
            };
            match wire.engine.receive(&mut input, shared, self.now) {
                Ok(Some(event)) => {
                    match event {
                        Event::Headers { .. } => {
                            wire.heard_more();
                            wire.looks_inside_headers = 0;
                            wire.shown = Shown::Answers;
                        }
                        Event::Data { .. } => wire.heard_more(),
                        _ => {}
                    }
                    match wire.side {
                        Side::Caller { inbound, .. } => self.hear_caller(key, inbound, event),
                        Side::Server { .. } => self.hear_server(key, event),
                    }
                }
                Ok(None) => break,
                Err(fatal) => {
                    let peer = wire.peer;
                    if let Some(Line { left_out }) = self.may_log(peer) {
                        tracing::info!(%peer, reason = %fatal.reason, left_out, "connection ended: {}", fatal.why);
                    }
                    self.count_unruly(key);
                    self.write(key);
                    self.close(key, fatal.why);
                    return;
                }
            }
        }
        self.count_unruly(key);
    }

    #[inline(always)]
    fn hear_caller(&mut self, wire: WireKey, inbound: bool, event: Event<'_>) {
        match event {
            Event::Headers {
                key,
                head: Head::Request,
                end,
                ..
            } => {
                let down = End { wire, stream: key };
                if inbound {
                    inbound::request(self, down, end);
                } else {
                    outbound::request(self, down, end);
                }
            }
            Event::Headers { user, .. } => {
                if inbound || self.is_for_own_application(user) {
                    inbound::clean_trailers(&mut self.wires.shared);
                }
                match self.limits_of_request_trailers(user) {
                    Ok(()) => {
                        if let Some(call) = self.calls.get_mut(Key::from_bits(user)) {
                            call.exchange.request_trailers(&mut self.wires);
                        }
                        self.settle(Key::from_bits(user));
                    }
                    Err(failure) => self.fail(Key::from_bits(user), failure),
                }
            }
            Event::Data { user, bytes, end, .. } => {
                let Some(call) = self.calls.get_mut(Key::from_bits(user)) else {
                    return;
                };
                if call.exchange.request_data(bytes, end, &mut self.wires) {
                    call.stalled = Some(self.tick);
                }
                if end && call.exchange.phase.is_last() {
                    self.settle(Key::from_bits(user));
                }
            }
            // What the caller did wrong is no fault of the server's.
            Event::Reset {
                user,
                fault: Some(fault),
                ..
            } => {
                tracing::debug!(inbound, "a request was broken off: {fault}");
                self.counts.refused(true);
                self.caller_left(user, Reason::CANCEL);
            }
            // Only a server can say that a request was not processed, or that all is well.
            Event::Reset {
                user,
                reason: Reason::REFUSED_STREAM | Reason::NO_ERROR,
                ..
            } => self.caller_left(user, Reason::CANCEL),
            Event::Reset { user, reason, .. } => self.caller_left(user, reason),
            Event::Room { user } => self.refill(user, true),
            Event::Settings { rooms } => {
                if rooms {
                    self.refill_all(wire, true);
                }
            }
            Event::Lowered => self.refill_all(wire, false),
            Event::Refused { reason, wrong } => {
                self.counts.refused(wrong.is_some());
                tracing::debug!(%reason, inbound, "a request was refused: {}", match wrong {
                    Some(wrong) => wrong.to_string(),
                    None => "too many streams at once".to_owned(),
                });
            }
            Event::GoAway { .. } | Event::Pong(_) => {}
        }
    }

    /// Whether the application behind this sidecar is asked, and would believe who calls.
    fn is_for_own_application(&self, user: u64) -> bool {
        let call = self.calls.get(Key::from_bits(user));
        let choice = call.and_then(|call| call.choice.as_ref());
        let pool = choice.and_then(|choice| self.pools.get(choice.pool));
        pool.is_some_and(|pool| matches!(pool.via, Via::Own))
    }

    /// Trailers of a request that are too large, for us or for the server, are not passed on cut off.
    fn limits_of_request_trailers(&self, user: u64) -> Result<(), Failure> {
        let Some(call) = self.calls.get(Key::from_bits(user)) else {
            return Ok(());
        };
        let fields = self.wires.shared.fields();
        if fields.over_limit() {
            return Err(Failure::request_too_large(fields, &self.parts.http2));
        }
        let server = call.exchange.up.and_then(|up| self.wires.slots.get(up.wire));
        let max = server.map_or(usize::MAX, |wire| wire.engine.max_header_list());
        if let Some(bytes) = fields.exceeds(max, &self.wires.shared.interner) {
            let addr = call.server();
            return Err(Failure::NextHopHeaders { addr, bytes, max });
        }
        Ok(())
    }

    /// The caller wants no answer any more.
    fn caller_left(&mut self, user: u64, reason: Reason) {
        let key = Key::from_bits(user);
        let Some(call) = self.calls.get_mut(key) else { return };
        if call.exchange.phase != Phase::Answered {
            call.ended = Some(Code::Cancelled);
        }
        self.gives_up_server(key);
        let Some(call) = self.calls.get_mut(key) else { return };
        call.exchange.caller_reset(reason, &mut self.wires);
        self.settle(key);
    }

    /// A call is about to end before its server has ended it, whoever wants that: it waits for no connection any more, and
    /// the reset of its request is one that the server may mind.
    pub(super) fn gives_up_server(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else { return };
        if let (Phase::Waiting, Some(choice)) = (call.exchange.phase, &call.choice) {
            self.pools.forget(choice.pool, key.to_bits());
        }
        self.note_haste(key);
    }

    /// A call is about to be reset that has no answer yet. Many of these look like an attack to the server, the more so those
    /// of requests that it has not even taken up.
    fn note_haste(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else { return };
        let (Phase::Asked, Some(up), Some(choice)) = (call.exchange.phase, call.exchange.up, &call.choice) else {
            return;
        };
        let was_sent_now = self.tick.since(choice.at) < HASTE;
        let Some(wire) = self.wires.slots.get_mut(up.wire) else {
            return;
        };
        let stream = wire.engine.id(up.stream);
        let Some(Server { resets, .. }) = wire.server.as_deref_mut() else {
            return;
        };
        if resets.has_taken_up(stream, self.now) {
            return;
        }
        resets.note(stream, was_sent_now);
        let few = resets.unproven() <= UNPROVEN_AT_ONCE;
        let wants_question = resets.wants_question(stream, self.now);
        if few && !pool::is_worn(wire) {
            return;
        }
        if wants_question {
            self.ask_what_it_took_up(up.wire);
        }
        if let Some(call) = self.calls.get_mut(key) {
            call.exchange.reset_late = Some(self.now + SPARED);
        }
    }

    /// Asks a server, by one PING for all of them, whether it has read the requests that were sent to it. One that was asked as
    /// often as it may be gets a new connection instead, and time.
    pub(super) fn ask_what_it_took_up(&mut self, key: WireKey) {
        let now = self.now;
        let Some((wire, shared)) = self.wires.touch(key) else {
            return;
        };
        let next = wire.engine.next_stream();
        let Some(Server { pings, resets, .. }) = wire.server.as_deref_mut() else {
            return;
        };
        if pings.may_ask(now) {
            let question = resets.ask(next, now);
            pings.asked(now);
            wire.engine.ping(question, shared);
        } else {
            resets.leave_to_time(next, now);
            if !wire.engine.is_draining() {
                wire.engine.begin_goaway();
            }
        }
    }

    #[inline(always)]
    fn hear_server(&mut self, wire: WireKey, event: Event<'_>) {
        match event {
            Event::Headers { user, head, end, .. } => self.server_headers(user, head, end),
            Event::Data { user, bytes, end, .. } => {
                let Some(call) = self.calls.get_mut(Key::from_bits(user)) else {
                    return;
                };
                if call.exchange.response_data(bytes, end, &mut self.wires) {
                    call.stalled = Some(self.tick);
                }
                if end {
                    self.settle(Key::from_bits(user));
                }
            }
            Event::Reset {
                user, reason, fault, ..
            } => self.server_reset(user, reason, fault),
            Event::Room { user } => self.refill(user, false),
            Event::Settings { rooms } => {
                if rooms {
                    self.refill_all(wire, false);
                }
                self.prove(wire);
                self.reached(wire);
                self.learn_streams(wire);
                // Not only at the end of the turn: what a GOAWAY in the same breath turns away has had its try then.
                self.serve_wire(wire);
            }
            Event::Lowered => self.refill_all(wire, true),
            Event::GoAway { reason, .. } => self.server_goes(wire, reason),
            Event::Pong(payload) => self.server_lives(wire, payload),
            Event::Refused { .. } => {}
        }
    }

    /// A call is to be reset though its answer has begun: its server has taken it up.
    fn has_answered(&mut self, key: CallKey) {
        if let Some(up) = self.calls.get(key).and_then(|call| call.exchange.up)
            && let Some(wire) = self.wires.slots.get_mut(up.wire)
            && let Some(server) = &mut wire.server
        {
            server.resets.response_to(wire.engine.id(up.stream));
        }
    }

    /// A PING was answered.
    fn server_lives(&mut self, key: WireKey, payload: [u8; 8]) {
        let wire = self.wires.slots.get_mut(key);
        if let Some(Server { pings, resets, .. }) = wire.and_then(|wire| wire.server.as_deref_mut())
            && (payload == Connection::KEEPALIVE_PAYLOAD || resets.answered(payload, self.now))
        {
            pings.answered();
        }
    }

    #[inline(always)]
    fn server_headers(&mut self, user: u64, head: Head, end: bool) {
        let key = Key::from_bits(user);
        if let Err(failure) = self.limits_of_response_headers(key) {
            self.has_answered(key);
            self.fail(key, failure);
            return;
        }
        if self.wires.shared.fields().names().has(Name::PortunusError) {
            match self.calls.get(key) {
                // A sidecar's word would be believed, and this is an application's: perhaps one that passes on what it heard.
                Some(call) if call.inbound => self.wires.shared.remove_fields(Name::PortunusError),
                _ if end && self.says_unsent(key) => return self.unsent(user),
                _ => {}
            }
        }
        let Some(call) = self.calls.get_mut(key) else { return };
        match head {
            Head::Informational(status) => call.exchange.response_head(status, true, false, &mut self.wires),
            Head::Response(status) => {
                if let Some(up) = call.exchange.up
                    && let Some(wire) = self.wires.slots.get_mut(up.wire)
                    && let Some(server) = &mut wire.server
                    && server.resets.has_begun()
                {
                    server.resets.response_to(wire.engine.id(up.stream));
                }
                call.exchange.response_head(status, false, end, &mut self.wires);
                let unavailable = call.exchange.code == Some(Code::Unavailable);
                if let (Some(choice), false) = (&mut call.choice, unavailable)
                    && let (Some(place), Some(service)) = (&mut choice.place, self.services.get_mut(call.service))
                {
                    let latency = self.tick.since(choice.at);
                    service.balancer.dial_ok(place.key(), self.now);
                    service.balancer.answered(place, latency, self.now);
                }
                // The call may last; the memory of its request's list need not.
                if let Some(head) = call.exchange.head.take() {
                    self.spare_list(head);
                }
            }
            Head::Trailers => call.exchange.response_trailers(&mut self.wires),
            Head::Request => {}
        }
        if end {
            self.settle(key);
        }
    }

    /// A header list of a response that is too large, for us or for the caller, is not passed on cut off.
    fn limits_of_response_headers(&self, key: CallKey) -> Result<(), Failure> {
        let shared = &self.wires.shared;
        if !shared.fields().over_limit() && shared.fields().list_size() <= shared.least_header_list {
            // Whoever the caller is.
            return Ok(());
        }
        let Some(call) = self.calls.get(key) else {
            return Ok(());
        };
        if shared.fields().over_limit() {
            let (addr, bytes) = (call.server(), shared.fields().list_size());
            return Err(Failure::ResponseHeadersTooLarge { addr, bytes });
        }
        let caller = self.wires.slots.get(call.exchange.down.wire);
        let max = caller.map_or(usize::MAX, |wire| wire.engine.max_header_list());
        if let Some(bytes) = shared.fields().exceeds(max, &shared.interner) {
            let addr = call.server();
            return Err(Failure::CallerHeaders { addr, bytes, max });
        }
        Ok(())
    }

    /// Whether the response is a sidecar's, at the other end, that says that it could not reach the application: nothing
    /// of the request was processed.
    fn says_unsent(&self, key: CallKey) -> bool {
        let shared = &self.wires.shared;
        let said = shared.fields().value_of(Name::PortunusError, &shared.interner);
        said.is_some_and(Failure::is_unsent)
            && self
                .calls
                .get(key)
                .is_some_and(|call| !call.inbound && call.exchange.phase == Phase::Asked)
    }

    /// The application of the endpoint cannot be reached, though its sidecar can: as if the endpoint itself could not.
    fn unsent(&mut self, user: u64) {
        let key = Key::from_bits(user);
        let Some(call) = self.calls.get_mut(key) else { return };
        let addr = call.server();
        let shared = &self.wires.shared;
        let sentence = shared.fields().value_of(Name::GrpcMessage, &shared.interner);
        // It is told to callers, encoded once more, and to those as well whom it does not concern.
        let why = sentence.map(|sentence| telemetry::cut(&percent_decode(sentence)));
        let why = why.unwrap_or_else(|| format!("the application at {addr} cannot be reached"));
        if shared.fields().value_of(Name::PortunusError, &shared.interner) == Some(b"memory_budget") {
            return self.has_no_memory(key, addr, why);
        }
        if call.exchange.take_back(&mut self.wires).is_ok() {
            if !call.checks {
                self.counts.retried.inc();
            }
            // The connection that says so stands: that there is nobody behind it is the same as if it did not.
            self.dial_failed(key, Unreached::Gone, &why, &mut Vec::new());
        } else {
            self.fail(key, Failure::Unreachable { why });
        }
    }

    /// The sidecar at the other end has no memory for the call. That says nothing of other calls: the endpoint stays.
    fn has_no_memory(&mut self, key: CallKey, addr: SocketAddr, why: String) {
        let leaves = self.has_another(key);
        let Some(call) = self.calls.get_mut(key) else { return };
        if !(call.exchange.take_back(&mut self.wires).is_ok() && leaves) {
            return self.fail(key, Failure::MemoryBudgetThere { addr, why });
        }
        call.aside().last_error = Some(why.into());
        if !call.checks {
            self.counts.retried.inc();
        }
        self.leave_for_another(key);
    }

    fn server_reset(&mut self, user: u64, reason: Reason, fault: Option<StreamFault>) {
        let key = Key::from_bits(user);
        let Some(call) = self.calls.get_mut(key) else { return };
        if let Some(fault) = fault {
            let (addr, why) = (call.server(), fault.to_string());
            call.exchange.up = None;
            self.fail(key, Failure::BadResponse { addr, why });
            return;
        }
        if reason == Reason::REFUSED_STREAM && call.exchange.phase == Phase::Asked {
            self.not_processed(user);
            return;
        }
        // Servers that keep the deadline themselves, such as grpc-go's, may end the stream before our own clock is read.
        let overdue = call
            .deadline
            .filter(|deadline| deadline.at <= self.now + DEADLINE_IS_NEAR);
        if let (Reason::CANCEL, Some(deadline), true) = (reason, overdue, call.exchange.phase != Phase::Answered) {
            let stage = call.stage();
            call.exchange.up = None;
            let timeout = deadline.timeout;
            self.fail(key, Failure::Deadline { timeout, stage });
            return;
        }
        if call.exchange.phase != Phase::Answered {
            call.ended = Some(code_of_reset(reason));
            call.is_reset = true;
        }
        call.exchange.server_reset(reason, &mut self.wires);
        self.settle(key);
    }

    /// The server said that it did not process the request: it is sent again, once, elsewhere if there is an elsewhere.
    fn not_processed(&mut self, user: u64) {
        let key = Key::from_bits(user);
        let Some(call) = self.calls.get_mut(key) else { return };
        let addr = call.server();
        let taken_back = match call.resent {
            true => Err(None),
            false => call.exchange.take_back(&mut self.wires).map_err(Some),
        };
        if let Err(lost) = taken_back {
            call.exchange.up = None;
            self.fail(key, Failure::Refused { addr, lost });
            return;
        }
        call.resent = true;
        if let Some(span) = call.span() {
            span.event(
                self.now,
                Happening::Retry {
                    reason: "not_processed",
                },
            );
        }
        if !call.checks {
            self.counts.retried.inc();
        }
        self.leave_for_another(key);
    }

    /// Looks for another endpoint; the same one, by another connection, if it is the only one.
    fn leave_for_another(&mut self, key: CallKey) {
        let has_another = self.has_another(key);
        let Some(call) = self.calls.get_mut(key) else { return };
        let place = call.choice.as_ref().and_then(|choice| choice.place.as_ref());
        if let (Some(endpoint), true) = (place.map(|place| place.key()), has_another) {
            call.aside().tried.insert(endpoint);
        }
        self.leave_endpoint(key);
        self.send_again(key);
    }

    /// Whether a call's service has another endpoint than the one that the call is at and those that it has tried.
    fn has_another(&self, key: CallKey) -> bool {
        let Some(call) = self.calls.get(key) else { return false };
        let service = self.services.get(call.service);
        service.is_some_and(|service| service.balancer.len() > call.tried().len() + 1)
    }

    /// The server takes no new streams: those that it did not process go elsewhere, and a connection to replace this
    /// one is opened when a call needs it.
    fn server_goes(&mut self, key: WireKey, reason: Reason) {
        let Some(wire) = self.wires.slots.get_mut(key) else {
            return;
        };
        tracing::debug!(peer = %wire.peer, %reason, "GOAWAY");
        let users = wire.engine.take_unprocessed(&mut self.wires.shared);
        for user in users {
            self.not_processed(user);
        }
    }

    fn learn_streams(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get(key)
            && let Side::Server { pool } = wire.side
        {
            let streams = wire.engine.max_streams();
            self.pools.learn_streams(pool, streams);
            // Those that were opened at the same time and have not spoken yet will hardly say anything else.
            for key in self.pools.wires(pool) {
                if let Some(wire) = self.wires.slots.get_mut(*key) {
                    wire.engine.expect_streams(streams);
                }
            }
        }
    }

    /// Whatever has become of this wire in this turn: it may have freed a place that a call waits for; or it drains now, and
    /// was the last that stood, so that a dial is due. One that is full changes nothing.
    fn serve_wire(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get(key) else { return };
        if let Side::Server { pool } = wire.side
            && self.pools.is_awaited(pool)
            && (wire.engine.has_capacity() || wire.engine.is_draining())
        {
            let addr = wire.peer;
            self.serve(pool, addr);
        }
    }

    /// A reader granted more, or took bytes: its sender gets credit. `caller` says which end the reader is.
    fn refill(&mut self, user: u64, caller: bool) {
        let Some(call) = self.calls.get(Key::from_bits(user)) else {
            return;
        };
        if caller {
            call.exchange.refill_response(&mut self.wires);
        } else {
            call.exchange.refill_request(&mut self.wires);
        }
    }

    fn refill_all(&mut self, key: WireKey, caller: bool) {
        let Some(wire) = self.wires.slots.get(key) else { return };
        for user in wire.engine.users() {
            self.refill(user, caller);
        }
    }

    /// Ends the turn: every wire that has output is written once. If more is kept then than may be, somebody has to go.
    pub(super) fn flush(&mut self) {
        self.write_all();
        if self.wires.shared.budget.is_overdrawn() {
            self.relieve(self.wires.shared.budget.limit(), Duration::ZERO);
            self.write_all();
        }
    }

    /// Held bytes move where there is room, calls that wait get the places that came free, and every wire that has output is
    /// written once, those with much before the others.
    fn write_all(&mut self) {
        let mut moved = mem::take(&mut self.moved);
        let mut i = 0;
        // Moving bytes gives credit, which makes other wires dirty: the list grows under way.
        while let Some(key) = self.wires.dirty().get(i).copied() {
            i += 1;
            let Some(wire) = self.wires.slots.get_mut(key) else {
                continue;
            };
            if !wire.engine.wants_pump() {
                continue;
            }
            wire.engine.pump(&mut self.wires.shared, &mut moved);
            let caller = matches!(wire.side, Side::Caller { .. });
            for user in moved.drain(..) {
                if let Some(call) = self.calls.get_mut(Key::from_bits(user)) {
                    call.stalled = Some(self.tick);
                }
                self.refill(user, caller);
                self.settle(Key::from_bits(user));
            }
        }
        self.moved = moved;
        self.wires.put_bulk_first();
        while let Some(key) = self.wires.next_dirty() {
            self.serve_wire(key);
            self.write(key);
        }
    }

    /// More is held than may be: copies of requests go first, then the connections that keep what no honest peer makes them
    /// keep, the largest first, then the calls whose bytes have not moved, and the connections whose readers have taken
    /// nothing, for longest, and for `patience` at least. Until `enough` is held.
    pub(super) fn relieve(&mut self, enough: u64, patience: Duration) {
        self.forget_replays();
        let is_relieved = |worker: &Worker| worker.wires.shared.budget.used() <= enough;
        let wires = self.wires.slots.iter();
        let mut unreasonable: Vec<_> = wires
            .map(|(key, wire)| (wire.engine.kept_beyond_reason(), key))
            .filter(|(kept, _)| *kept > 0)
            .collect();
        unreasonable.sort_by_key(|(kept, _)| Reverse(*kept));
        for (_, key) in unreasonable {
            if is_relieved(self) {
                return;
            }
            self.end_wire(key, Reason::ENHANCE_YOUR_CALM, KEEPS_MEMORY);
        }
        if is_relieved(self) {
            return;
        }
        let holds = |exchange: &Exchange| {
            let (down, up, replay) = exchange.held(&self.wires);
            down + up + replay > 0
        };
        let calls = self.calls.iter().filter(|(_, call)| holds(&call.exchange));
        let calls = calls.map(|(key, call)| {
            let since = call.stalled.unwrap_or(call.began);
            (self.tick.since(since), Still::Call(key))
        });
        // A call that was cut may have left its bytes in the output.
        let wires = self.wires.slots.iter().filter(|(_, wire)| wire.engine.is_backed_up());
        let wires = wires.map(|(key, wire)| (upkeep::lasting(wire.looks_stuck.into()), Still::Wire(key)));
        let mut still: Vec<_> = calls.chain(wires).filter(|(time, _)| *time >= patience).collect();
        still.sort_by_key(|(time, _)| Reverse(*time));
        for (_, what) in still {
            if is_relieved(self) {
                return;
            }
            match what {
                Still::Call(key) => self.end_stalled(key),
                Still::Wire(key) => self.end_wire(key, Reason::ENHANCE_YOUR_CALM, KEEPS_MEMORY),
            }
        }
    }

    /// Whether there is memory for one more call of this connection. What is merely kept to be sent again goes first, once a
    /// turn; and while somebody else has spent the budget, those who hold little may hold what is left above it.
    #[cold]
    pub(super) fn makes_room(&mut self, caller: WireKey) -> bool {
        if self.made_room != self.turns {
            self.made_room = self.turns;
            self.forget_replays();
        }
        let budget = &self.wires.shared.budget;
        !budget.is_spent() || !budget.is_overdrawn() && self.holds_little(caller)
    }

    fn forget_replays(&mut self) {
        for (_, call) in self.calls.iter_mut() {
            call.exchange.forget_replay(&mut self.wires);
        }
    }

    fn holds_little(&self, caller: WireKey) -> bool {
        let Some(wire) = self.wires.slots.get(caller) else {
            return false;
        };
        let mut left = LITTLE.checked_sub(wire.engine.kept() as usize);
        for user in wire.engine.users() {
            let Some(room) = left else { return false };
            if let Some(call) = self.calls.get(Key::from_bits(user)) {
                let (down, up, kept) = call.exchange.held(&self.wires);
                left = room.checked_sub(down + up + kept);
            }
        }
        left.is_some()
    }

    fn end_stalled(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else { return };
        let (for_caller, for_server, kept) = call.exchange.held(&self.wires);
        let failure = Failure::Stalled {
            held: for_caller + for_server + kept,
        };
        self.end_unread(key, failure, Reason::ENHANCE_YOUR_CALM);
    }

    /// Ends a call whose answer may wait for its caller, to be read: a status would have to wait behind it.
    pub(super) fn end_unread(&mut self, key: CallKey, failure: Failure, reason: Reason) {
        let Some(call) = self.calls.get(key) else { return };
        let (for_caller, ..) = call.exchange.held(&self.wires);
        if for_caller == 0 && !call.exchange.phase.is_last() {
            return self.fail(key, failure);
        }
        let answer = self.note_failure(key, &failure);
        self.gives_up_server(key);
        let Some(call) = self.calls.get_mut(key) else { return };
        call.ended = Some(answer.code);
        call.exchange.cut(reason, &mut self.wires);
        self.settle(key);
    }

    fn write(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get_mut(key) else {
            return;
        };
        let was_congested = wire.engine.is_congested();
        let flushed = wire.flush(&mut self.wires.shared);
        let has_room_again = was_congested && !wire.engine.is_congested();
        wire.count_kept(*flushed.as_ref().unwrap_or(&Flushed::All), &mut self.wires.shared);
        match flushed {
            Ok(Flushed::All) if wire.engine.wants_pump() => self.wants_another_turn(key),
            Ok(Flushed::All) if wire.engine.is_drained() => self.close(key, "it was drained"),
            Ok(_) if wire.engine.output_overflows() => {
                self.close(key, "the peer does not read what it makes us say");
            }
            // Calls may wait for that.
            Ok(_) if has_room_again => self.wants_another_turn(key),
            Ok(_) => self.replace_if_worn(key),
            Err(error) => {
                // The peer has gone, but an answer may have come before that: it is read to the end first.
                wire.engine.begin_goaway();
                wire.mute = Some(error);
                self.wants_another_turn(key);
            }
        }
    }

    /// A server that has had to take many resets may soon call that an attack, and cut all: it gets a new connection.
    fn replace_if_worn(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key)
            && matches!(wire.side, Side::Server { .. })
            && pool::is_worn(wire)
            && !wire.engine.is_draining()
        {
            wire.engine.begin_goaway();
            self.wires.touch(key);
        }
    }

    /// A wire is over. Its callers' calls are cancelled; its servers' calls fail, but those of which nothing was sent.
    pub(super) fn close(&mut self, key: WireKey, why: &str) {
        let Some((wire, users)) = self.wires.close(key) else {
            return;
        };
        let inbound = self.is_inbound(wire.side);
        self.closed(key, &wire, inbound, users, why);
        self.let_go(wire, inbound);
    }

    /// Whatever runs is cut and recorded, and the peers are told: the worker ends.
    pub(super) fn end_all(&mut self) {
        for key in self.calls.keys() {
            match self.calls.get(key).map(|call| call.exchange.phase) {
                Some(Phase::Answered) => self.end_unread(key, Failure::Stopping, Reason::CANCEL),
                _ => self.fail(key, Failure::Stopping),
            }
        }
        self.flush();
        for key in self.wires.slots.keys() {
            self.say_last(key, Reason::NO_ERROR, "the sidecar stops");
            let Some((wire, users)) = self.wires.close(key) else {
                continue;
            };
            let inbound = self.is_inbound(wire.side);
            if matches!(wire.side, Side::Caller { .. }) {
                for user in users {
                    self.caller_left(user, Reason::CANCEL);
                }
            }
            self.let_go(wire, inbound);
        }
    }

    /// Closes what carried a wire, once its peer has had the time to read our last words.
    fn let_go(&mut self, wire: Box<Wire>, inbound: bool) {
        if self.lingering.sum() < MOST_LINGERING
            && let Some(mut socket) = wire.into_socket()
        {
            let one = self.lingering.one(inbound);
            tokio::task::spawn_local(async move {
                tls::linger(&mut socket, LINGER).await;
                drop(one);
            });
        }
    }

    /// Whether the wire leads to or from this pod's application as one that the network calls.
    fn is_inbound(&self, side: Side) -> bool {
        match side {
            Side::Caller { inbound, .. } => inbound,
            Side::Server { pool } => self.pools.get(pool).is_some_and(|pool| pool.via == Via::Own),
        }
    }

    fn closed(&mut self, key: WireKey, wire: &Wire, inbound: bool, users: Vec<u64>, why: &str) {
        match wire.side {
            Side::Caller { .. } => {
                if wire.is_local() {
                    self.count_local();
                } else {
                    self.counts.of(inbound).closed_downstream();
                }
                for user in users {
                    self.caller_left(user, Reason::CANCEL);
                }
            }
            Side::Server { pool } => {
                self.counts.of(inbound).closed_upstream();
                let mine = wire.server.as_ref().and_then(|server| server.dialled.as_ref());
                let has_looped = mine.is_some_and(|mine| mine.has_looped());
                let looped = has_looped.then(|| connect::Loop::here().to_string());
                let why = looped.as_deref().unwrap_or(why);
                if wire.shown == Shown::Nothing {
                    self.refused_by(pool, wire.peer, why);
                    return;
                }
                self.pools.closed(pool, key);
                let mut judged = Vec::new();
                let spoke = wire.engine.heard_settings();
                for user in users {
                    self.server_gone(user, wire, has_looped, why, &mut judged);
                }
                if !spoke {
                    // Whoever takes connections and says nothing there is not reached by the next one either.
                    let why = no_answer(wire.peer, why);
                    let given_back = self.pools.give_up(pool, &self.wires, self.now);
                    let unreached = self.pools.unreached(pool, &self.wires);
                    for mark in given_back {
                        self.dial_failed(Key::from_bits(mark), unreached, &why, &mut judged);
                    }
                }
                self.serve(pool, wire.peer);
                self.pools.remove_if_idle(pool);
            }
        }
    }

    /// A server ended the connection before it had shown that it takes us for whom we are: most likely it does not.
    fn refused_by(&mut self, pool: PoolKey, addr: SocketAddr, why: &str) {
        let reason = if why == NO_SETTINGS { "no_settings" } else { NO_WORD };
        if let Some(Line { left_out }) = self.may_log(addr) {
            tracing::warn!(%addr, reason, left_out, "no mTLS: {why}");
        }
        self.counts.shook_hands(false, reason, &self.recorder);
        self.not_dialled(pool, &format!("no mTLS with {addr}: {why}"));
    }

    fn server_gone(
        &mut self,
        user: u64,
        wire: &Wire,
        has_looped: bool,
        why: &str,
        judged: &mut Vec<(ServiceKey, EndpointKey)>,
    ) {
        let key = Key::from_bits(user);
        let addr = wire.peer;
        let Some(call) = self.calls.get_mut(key) else { return };
        if call.exchange.phase == Phase::Answered {
            call.exchange.server_reset(Reason::NO_ERROR, &mut self.wires);
            self.settle(key);
        } else if has_looped {
            // Whatever has left us came back to us, and no server saw it; so would all that is dialled.
            call.exchange.up = None;
            self.fail(key, Failure::Loop { why: why.to_owned() });
        } else if call.exchange.is_unsent(wire.flushed) && call.exchange.take_back(&mut self.wires).is_ok() {
            // One that never answered is as if it had not been made. But where it spoke, and there is no other endpoint, the
            // call tries another connection: servers end some for reasons of their own.
            let (spoke, answered) = (wire.engine.heard_settings(), wire.shown == Shown::Answers);
            let leaves = call.resent || self.has_another(key);
            if (!spoke || !answered && leaves)
                && let Side::Server { pool } = wire.side
            {
                let unreached = self.pools.unreached(pool, &self.wires);
                self.dial_failed(key, unreached, &no_answer(addr, why), judged);
                return;
            }
            let Some(call) = self.calls.get_mut(key) else { return };
            call.resent |= !answered;
            call.aside().last_error = Some(format!("the connection to {addr} ended: {why}").into());
            if let Some(span) = call.span() {
                span.event(self.now, Happening::Retry { reason: "not_sent" });
            }
            if !call.checks {
                self.counts.not_sent.inc();
            }
            self.leave_for_another(key);
        } else {
            call.exchange.up = None;
            self.fail(
                key,
                Failure::ConnectionLost {
                    addr,
                    why: why.to_owned(),
                },
            );
        }
    }

    fn count_unruly(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key)
            && let Some(abuse) = wire.engine.take_unruly()
        {
            let peer = wire.peer;
            self.counts.abuse(abuse);
            if let Some(Line { left_out }) = self.may_log(peer) {
                tracing::warn!(%peer, ?abuse, left_out, "the peer makes work that carries nothing");
            }
        }
    }
}

/// What is said of a server that took a connection and ended it before its first answer.
fn no_answer(addr: SocketAddr, why: &str) -> String {
    format!("{addr} took the connection and answered nothing: {why}")
}
