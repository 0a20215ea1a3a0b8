//! The end of a wire, and what becomes of the calls on it.

use std::net::SocketAddr;
use std::time::Duration;

use portunus_logbook::Line;

use super::Worker;
use super::upkeep::NO_SETTINGS;
use crate::balance::EndpointKey;
use crate::connect::wire::{Shown, Wire};
use crate::connect::{self, NO_WORD, PoolKey, Side, Via, WireKey};
use crate::exchange::Phase;
use crate::failure::Failure;
use crate::http2::Reason;
use crate::route::ServiceKey;
use crate::slots::Key;
use crate::telemetry::Event as Happening;
use crate::tls;

/// How long a peer may read our last words after we have ended a connection, and how many may do so at once.
const LINGER: Duration = Duration::from_secs(1);
const MOST_LINGERING: u64 = 1_000;

impl Worker {
    /// A wire is over. Its callers' calls are cancelled; its servers' calls fail, but those of which nothing was sent.
    pub(super) fn close(&mut self, key: WireKey, why: &str) {
        let Some((wire, users)) = self.wires.close(key) else {
            return;
        };
        let inbound = self.is_inbound(wire.side);
        self.closed(key, &wire, inbound, users, why);
        self.let_go(wire, inbound);
    }

    /// Closes a wire, and tells its peer why, as far as it listens.
    pub(super) fn end_wire(&mut self, key: WireKey, reason: Reason, why: &'static str) {
        if let Some(peer) = self.wires.slots.get(key).map(|wire| wire.peer)
            && let Some(Line { left_out }) = self.may_log(peer)
        {
            tracing::info!(%peer, %reason, left_out, "connection ended: {why}");
        }
        self.say_last(key, reason, why);
        self.close(key, why);
    }

    /// The last words to the peer of a wire that is about to be closed.
    pub(super) fn say_last(&mut self, key: WireKey, reason: Reason, why: &'static str) {
        if let Some(wire) = self.wires.slots.get_mut(key) {
            // Requests that were passed on may have been processed: the peer must not think otherwise.
            let last = wire.engine.last_theirs;
            wire.engine.say_goaway(last, reason, why);
            // Best effort: the wire is closed next, whatever the socket says.
            if let Err(error) = wire.flush(&mut self.wires.shared) {
                tracing::debug!(peer = %wire.peer, "the last words did not leave: {error}");
            }
        }
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
}

/// What is said of a server that took a connection and ended it before its first answer.
fn no_answer(addr: SocketAddr, why: &str) -> String {
    format!("{addr} took the connection and answered nothing: {why}")
}
