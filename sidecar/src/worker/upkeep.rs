//! What time brings: deadlines, silent peers, connections that nobody needs.

use std::time::{Duration, Instant, SystemTime};

use super::Worker;
use super::events::SPARED;
use crate::connect::wire::{Pinged, Wire};
use crate::connect::{Due, Side, WireKey};
use crate::exchange::Phase;
use crate::failure::Failure;
use crate::grpc::Code;
use crate::http2::{Connection, Reason};
use crate::slots::Key;

/// How often all wires are looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How seldom a worker turns that has nothing to do.
pub(super) const TURN_EVERY: Duration = Duration::from_secs(1);
/// A server's silence, while calls wait on it, after which it is asked whether it lives.
const ASK_AFTER: Duration = Duration::from_millis(1_500);
/// How often that may be asked of a server that sends no HEADERS and no DATA meanwhile: grpc-go, grpc-java and gRPC's core end
/// a connection for the fourth PING that comes within five minutes of the one before.
const MOST_PINGS: u8 = 3;
/// How far apart PINGs are that nobody takes for too many.
const PINGS_APART: Duration = Duration::from_secs(330);
/// What is said of a server that has shown who it is, and then not whether it takes us for whom we are.
pub(super) const NO_SETTINGS: &str =
    "the server finished the TLS handshake and said nothing more: no SETTINGS came in time";
/// How long a call's bytes may stand still once the memory budget is spent.
const STALLED_LONG: Duration = Duration::from_secs(2);
/// How long it may take to say so.
const ANSWER_WITHIN: Duration = Duration::from_millis(2_000);

/// Whether a server may be sent a PING, for whatever reason, without taking it for one too many.
pub(super) fn may_be_pinged(wire: &Wire, now: Instant) -> bool {
    wire.pinged
        .is_none_or(|last| last.times < MOST_PINGS || now.saturating_duration_since(last.at) > PINGS_APART)
}

/// A server is sent a PING.
pub(super) fn note_ping(wire: &mut Wire, now: Instant) {
    wire.pinged = Some(Pinged {
        at: now,
        times: wire.pinged.map_or(0, |last| last.times).saturating_add(1),
        before: wire.engine.next_stream(),
    });
}

impl Worker {
    /// Ends the calls whose deadline has passed.
    pub(super) fn on_time(&mut self) {
        while let Some(mark) = self.timers.due(self.now) {
            let key = Key::from_bits(mark);
            let Some(call) = self.calls.get(key) else { continue };
            let Some(deadline) = call.deadline.filter(|deadline| deadline.at <= self.now) else {
                continue;
            };
            let stage = call.stage();
            if let Some(choice) = &call.choice {
                self.pools.forget(choice.pool, mark);
            }
            self.note_haste(key);
            self.fail(
                key,
                Failure::Deadline {
                    timeout: deadline.timeout,
                    stage,
                },
            );
        }
        while let Some(mut reset) = self.wires.late.pop_front_if(|reset| reset.due <= self.now) {
            let Some((wire, shared)) = self.wires.touch(reset.wire) else {
                continue;
            };
            match wire.resets.get_or_insert_default().due(reset.stream, self.now) {
                Due::Say => {
                    wire.engine.say_reset(reset.stream, reset.reason, shared);
                    // That was a place for a stream.
                    self.serve_wire(reset.wire);
                    continue;
                }
                Due::Ask => self.ask_what_it_took_up(reset.wire),
                Due::Later => {}
            }
            // A server that does not even answer its PING is closed for that.
            reset.due = self.now + SPARED;
            self.wires.late.push_back(reset);
        }
        let calls = &self.calls;
        self.timers
            .tidy(calls.len(), |mark| calls.contains(Key::from_bits(mark)));
    }

    /// Looks at every wire: whom to ask whether it lives, whom to close.
    pub(super) fn look_at_wires(&mut self) {
        self.look_at_certificates(SystemTime::now());
        for key in self.wires.slots.keys() {
            let Some(wire) = self.wires.slots.get_mut(key) else {
                continue;
            };
            wire.inside_headers = match (wire.engine.is_inside_headers(), wire.inside_headers) {
                (true, None) => Some(self.now),
                (true, since) => since,
                (false, _) => None,
            };
            if let Some((reason, why)) = self.overdue(key) {
                self.end_wire(key, reason, why);
                continue;
            }
            self.attend(key);
            self.end_watches(key);
        }
        for (pool, addr) in self.pools.dial_again(&self.wires, self.now) {
            self.dial(pool, addr);
        }
        self.count_local();
        let budget = &self.wires.shared.budget;
        if budget.is_spent() {
            // New calls are refused meanwhile: those that have stalled for long make room for them.
            self.relieve(budget.limit() / 8 * 7, STALLED_LONG);
        }
        for addr in self.services.forget_idle(self.now) {
            self.drain_all(addr);
        }
    }

    /// Connections are replaced before the certificates end that they were made with. The streams of one that still has some
    /// then go on, and are seen; or are cut, where that is wished.
    fn look_at_certificates(&mut self, wall: SystemTime) {
        let (mut inbound, mut outbound) = (0, 0);
        for key in self.wires.slots.keys() {
            let Some(wire) = self.wires.slots.get_mut(key) else {
                continue;
            };
            let Some(certified) = wire.certified.as_deref().filter(|certified| certified.drain_at <= wall) else {
                continue;
            };
            if !wire.engine.is_draining() {
                wire.engine.begin_goaway();
                self.wires.touch(key);
            } else if certified.until <= wall {
                if self.parts.cut_expired {
                    self.end_wire(key, Reason::NO_ERROR, "its certificate has ended");
                    continue;
                }
                match wire.side {
                    Side::Caller { .. } => inbound += 1,
                    Side::Server { .. } => outbound += 1,
                }
            }
        }
        self.counts.of(true).outlived.set(inbound);
        self.counts.of(false).outlived.set(outbound);
    }

    /// Why a wire's time is over, if it is.
    fn overdue(&self, key: WireKey) -> Option<(Reason, &'static str)> {
        let wire = self.wires.slots.get(key)?;
        let engine = &wire.engine;
        let settings = engine.settings();
        let age = self.now.saturating_duration_since(wire.born);
        if !wire.is_proven && age > self.parts.dial.handshake {
            // Calls wait for it that others could serve: it is a part of the handshake to them.
            return Some((Reason::SETTINGS_TIMEOUT, NO_SETTINGS));
        }
        if !engine.heard_settings() && age > settings.preface_timeout {
            return Some((
                Reason::SETTINGS_TIMEOUT,
                "the peer's preface and SETTINGS did not come in time",
            ));
        }
        if !engine.settings_acknowledged() && age > settings.preface_timeout {
            return Some((
                Reason::SETTINGS_TIMEOUT,
                "the peer did not acknowledge our SETTINGS in time",
            ));
        }
        let inside = wire
            .inside_headers
            .map(|since| self.now.saturating_duration_since(since));
        if inside.is_some_and(|inside| inside > settings.headers_timeout) {
            return Some((Reason::ENHANCE_YOUR_CALM, "a header block took too long"));
        }
        let unanswered = wire.pinged.filter(|asked| wire.heard < asked.at);
        if unanswered.is_some_and(|asked| self.now.saturating_duration_since(asked.at) > ANSWER_WITHIN) {
            return Some((Reason::NO_ERROR, "the peer did not answer a PING"));
        }
        None
    }

    fn attend(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get(key) else { return };
        let silence = self.now.saturating_duration_since(wire.heard);
        let engine = &wire.engine;
        let waits = engine.open_streams() > 0;
        let ask = matches!(wire.side, Side::Server { .. }) && waits && silence > ASK_AFTER && self.may_ask(wire);
        let idle = !waits && silence > engine.settings().idle_timeout && !engine.is_draining();
        let drained = engine.is_draining() && !waits && silence > Connection::GOAWAY_PATIENCE;
        let lingering = engine.is_draining() && silence > Connection::GOAWAY_PATIENCE;
        if !(ask || idle || drained || lingering) {
            return;
        }
        let now = self.now;
        let Some((wire, shared)) = self.wires.touch(key) else {
            return;
        };
        if ask {
            note_ping(wire, now);
            wire.engine.ping(Connection::KEEPALIVE_PAYLOAD, shared);
        }
        if idle {
            wire.engine.begin_goaway();
        }
        if lingering {
            // The PING between the two steps of GOAWAY was not answered: the last stream is named all the same.
            wire.engine.finish_goaway();
        }
        if drained {
            self.write_last(key);
            self.close(key, "it was drained");
        }
    }

    /// Whether a silent server may be asked whether it lives. One that has lived since is asked again only for requests that it
    /// has got since, and so often as no gRPC server takes for an attack.
    fn may_ask(&self, wire: &Wire) -> bool {
        let Some(last) = wire.pinged else { return true };
        wire.heard >= last.at && may_be_pinged(wire, self.now) && wire.engine.waits_since(last.before)
    }

    /// A server's connection that drains ends with its last stream, and the sidecar's own that watch its health would never
    /// end: they are opened anew, by another connection.
    fn end_watches(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get(key) else { return };
        if !matches!(wire.side, Side::Server { .. }) || !wire.engine.is_draining() {
            return;
        }
        for user in wire.engine.users() {
            let key = Key::from_bits(user);
            // A `Check` that is not answered yet ends in its own time, which is short.
            if let Some(call) = self.calls.get_mut(key)
                && call.checks
                && call.exchange.phase == Phase::Answering
            {
                call.ended = Some(Code::Cancelled);
                call.exchange.cut(Reason::REFUSED_STREAM, &mut self.wires);
                self.settle(key);
            }
        }
    }

    /// Closes a wire, and tells its peer why, as far as it listens.
    pub(super) fn end_wire(&mut self, key: WireKey, reason: Reason, why: &'static str) {
        if let Some((wire, _)) = self.wires.touch(key) {
            tracing::info!(peer = %wire.peer, %reason, "connection ended: {why}");
            // Requests that were passed on may have been processed: the peer must not think otherwise.
            let last = wire.engine.last_theirs;
            wire.engine.say_goaway(last, reason, why);
        }
        self.write_last(key);
        self.close(key, why);
    }

    fn write_last(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key) {
            // Best effort: the wire is closed next, whatever the socket says.
            if let Err(error) = wire.flush(&mut self.wires.shared) {
                tracing::debug!(peer = %wire.peer, "the last words did not leave: {error}");
            }
        }
    }
}
