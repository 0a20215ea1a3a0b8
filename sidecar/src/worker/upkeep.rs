//! What time brings: deadlines, silent peers, connections that nobody needs.

use std::time::{Duration, SystemTime};

use super::Worker;
use super::events::SPARED;
use super::run::Tunnels;
use crate::connect::wire::Shown;
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
/// What is said of a server that has shown who it is, and then not whether it takes us for whom we are.
pub(super) const NO_SETTINGS: &str =
    "the server finished the TLS handshake and said nothing more: no SETTINGS came in time";
/// How long a call's bytes may stand still once the memory budget is spent.
const STALLED_LONG: Duration = Duration::from_secs(2);

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
            // Only requests that we sent are reset late.
            let Some(server) = &mut wire.server else { continue };
            match server.resets.due(reset.stream, self.now) {
                Due::Say => {
                    wire.engine.say_reset(reset.stream, reset.reason, shared);
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
    pub(super) fn look_at_wires(&mut self, tunnels: &Tunnels) {
        self.look_at_certificates(SystemTime::now(), tunnels);
        for key in self.wires.slots.keys() {
            let Some(wire) = self.wires.slots.get_mut(key) else {
                continue;
            };
            wire.look(self.now);
            if let Some((reason, why)) = self.overdue(key) {
                self.end_wire(key, reason, why);
                continue;
            }
            self.attend(key);
            self.end_watches(key);
        }
        self.wires.forget_limits_of_the_gone();
        // Another dial may be due where the last one was in vain.
        for (pool, addr) in self.pools.awaited() {
            self.serve(pool, addr);
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
    /// then go on, and are seen; or are cut, where that is wished. Tunnels look after themselves (`door.rs`).
    fn look_at_certificates(&mut self, wall: SystemTime, tunnels: &Tunnels) {
        let outlived = [&tunnels.outlived.inbound, &tunnels.outlived.outbound].map(|outlived| outlived.get() as i64);
        let [mut inbound, mut outbound] = outlived;
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
        // While SETTINGS are outstanding.
        let age = self.now.saturating_duration_since(wire.since);
        if wire.shown == Shown::Nothing && age > self.parts.dial.handshake {
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
        if wire.looks.inside_headers > 1 && lasting(wire.looks.inside_headers) >= settings.headers_timeout {
            return Some((Reason::ENHANCE_YOUR_CALM, "a header block took too long"));
        }
        let pings = wire.server.as_ref().map(|server| &server.pings);
        if pings.is_some_and(|pings| pings.are_overdue(wire.heard, self.now)) {
            return Some((Reason::NO_ERROR, "the peer did not answer a PING"));
        }
        None
    }

    fn attend(&mut self, key: WireKey) {
        let Some(wire) = self.wires.slots.get(key) else { return };
        let silence = self.now.saturating_duration_since(wire.heard);
        let engine = &wire.engine;
        let waits = engine.open_streams() > 0;
        let waits_since = |first| engine.waits_since(first);
        let server = wire.server.as_ref().filter(|_| waits && silence > ASK_AFTER);
        let ask = server.is_some_and(|server| server.pings.may_ask_whether_it_lives(self.now, waits_since));
        // Whoever only says that it is there is idle all the same.
        let unused = self.now.saturating_duration_since(wire.since);
        let idle = !waits && unused > engine.settings().idle_timeout && !engine.is_draining();
        let drained = engine.is_draining() && !waits && silence > Connection::GOAWAY_PATIENCE;
        let is_deaf = lasting(wire.looks.unheard) >= Connection::GOAWAY_DEADLINE;
        let lingering = engine.is_draining() && (silence > Connection::GOAWAY_PATIENCE || is_deaf);
        if !(ask || idle || drained || lingering) {
            return;
        }
        let now = self.now;
        let Some((wire, shared)) = self.wires.touch(key) else {
            return;
        };
        if ask {
            if let Some(server) = &mut wire.server {
                server.pings.asked_whether_it_lives(now, wire.engine.next_stream());
            }
            wire.engine.ping(Connection::KEEPALIVE_PAYLOAD, shared);
        }
        if idle {
            wire.engine.begin_goaway();
        }
        if lingering {
            // The PING between the two steps of GOAWAY was not answered: the last stream is named all the same. Else whoever
            // answers no PING, and goes on talking, could begin streams for ever, though its certificate has ended.
            wire.engine.finish_goaway();
        }
        if drained && !wire.engine.is_drained() {
            // It ends when all that is to be said has left.
            let last = wire.engine.last_theirs;
            wire.engine.say_goaway(last, Reason::NO_ERROR, "");
        }
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
}

/// How long something has lasted, at least, that so many looks in a row have found: the first says nothing of how long it had before.
pub(super) fn lasting(looks: u16) -> Duration {
    LOOK_EVERY * u32::from(looks.saturating_sub(1))
}
