//! Connections to servers: they are dialled, they stand, they are proven, or they are not; and what their calls do then.

use std::net::SocketAddr;
use std::time::SystemTime;

use portunus_logbook::Line;
use rand::RngExt as _;

use super::Worker;
use super::counts::Counts;
use super::run::Message;
use crate::balance::EndpointKey;
use crate::call::CallKey;
use crate::connect::wire::Shown;
use crate::connect::{self, Lifetime, Mine, PoolKey, Side, Transport, Unreached, Via, WireKey};
use crate::edge::client_cert;
use crate::failure::Failure;
use crate::http2::Connection;
use crate::route::ServiceKey;
use crate::slots::Key;
use crate::telemetry::Event;

impl Worker {
    /// Opens a connection to `addr` for its pool.
    pub(super) fn dial(&self, pool: PoolKey, addr: SocketAddr) {
        let Some(via) = self.pools.get(pool).map(|pool| pool.via.clone()) else {
            // Nobody waits at a pool that is gone. That there is none is no reason to go there in plain.
            tracing::error!(%addr, "no connection is made: it is not known in which way");
            return;
        };
        let dialling = self.dialler.clone().dial(addr, via);
        let inbox = self.inbox.clone();
        tokio::task::spawn_local(async move {
            let result = dialling.await;
            inbox.send(Message::Dialled { pool, addr, result });
        });
    }

    /// A connection that was dialled is here, or is not.
    pub(super) fn dialled(
        &mut self,
        pool: PoolKey,
        addr: SocketAddr,
        result: Result<(Transport, Box<Mine>), connect::Error>,
    ) {
        let inbound = self.pools.get(pool).is_some_and(|pool| pool.via == Via::Own);
        match result {
            Ok((transport, mine)) => {
                let settings = self.parts.http2.clone();
                let mut engine = Connection::client(settings, false, self.now, &mut self.wires.shared);
                engine.expect_streams(self.pools.likely_streams(pool));
                let side = Side::Server { pool };
                let wire = self.wires.insert(transport, Vec::new(), engine, addr, side, self.now);
                if let Some(server) = self.wires.slots.get_mut(wire).and_then(|wire| wire.server.as_mut()) {
                    server.dialled = Some(mine);
                }
                self.get_to_know(wire, inbound);
                self.counts.of(inbound).opened_upstream();
                let shown = self.wires.slots.get(wire).map(|wire| wire.shown);
                if shown == Some(Shown::Trust) {
                    self.pools.dialled(pool, wire);
                }
            }
            Err(error) => {
                tracing::debug!(%addr, "{error}");
                if matches!(error, connect::Error::Tls { .. } | connect::Error::NoCertificate { .. }) {
                    self.counts.shook_hands(inbound, error.reason(), &self.recorder);
                    if let Some(Line { left_out }) = self.may_log(addr) {
                        tracing::warn!(%addr, reason = error.reason(), left_out, "{error}");
                    }
                }
                self.not_dialled(pool, &error.to_string());
            }
        }
    }

    /// A server has said something in TLS: it has taken our certificate.
    pub(super) fn prove(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key)
            && let Side::Server { pool } = wire.side
            && wire.shown == Shown::Nothing
        {
            wire.shown = Shown::Trust;
            self.counts.shook_hands(false, "ok", &self.recorder);
            self.pools.dialled(pool, key);
        }
    }

    /// What follows from who has proven to be at the other end, once and for all calls of the wire.
    pub(super) fn get_to_know(&mut self, key: WireKey, inbound: bool) {
        let Some(wire) = self.wires.slots.get_mut(key) else {
            return;
        };
        let Some(session) = wire.session() else {
            wire.label = Counts::in_plain(inbound);
            return;
        };
        let (peer, shown) = (session.peer(), session.shown());
        let luck = self.rng.random::<f64>();
        let ends = session.certified_until();
        let told = client_cert::value(shown.id().as_str(), peer.hash(), peer.id().as_str());
        wire.label = self.counts.label(inbound, peer.id(), &self.recorder);
        wire.certified = Some(Box::new(Lifetime::new(ends, SystemTime::now(), luck)));
        if matches!(wire.side, Side::Caller { .. })
            && let Ok(text) = told
        {
            let interner = &mut self.wires.shared.interner;
            wire.client_cert = Some(interner.constant(client_cert::NAME.as_bytes(), text.as_bytes()));
        }
    }

    /// No connection came of a dial: the calls that waited for it try elsewhere.
    pub(super) fn not_dialled(&mut self, pool: PoolKey, why: &str) {
        let mut judged = Vec::new();
        let given_back = self.pools.dial_failed(pool, &self.wires, self.now);
        let unreached = self.pools.unreached(pool, &self.wires);
        for mark in given_back {
            self.dial_failed(Key::from_bits(mark), unreached, why, &mut judged);
        }
        self.pools.remove_if_idle(pool);
    }

    /// A server has spoken HTTP/2: that its connection stood said less.
    pub(super) fn reached(&mut self, key: WireKey) {
        let Some(addr) = self.wires.slots.get(key).map(|wire| wire.peer) else {
            return;
        };
        let now = self.now;
        self.services
            .of_endpoint(addr, |balancer, endpoint| balancer.dial_ok(endpoint, now));
    }

    /// A call came to nothing at its endpoint, where nothing of it was processed: it tries the others, one after another. One
    /// that cannot be reached is left alone for a while.
    pub(crate) fn dial_failed(
        &mut self,
        key: CallKey,
        unreached: Unreached,
        why: &str,
        judged: &mut Vec<(ServiceKey, EndpointKey)>,
    ) {
        let Some(call) = self.calls.get_mut(key) else { return };
        call.aside().last_error = Some(why.into());
        let Some(choice) = &call.choice else { return };
        let (service, Some(endpoint)) = (call.service, choice.place.as_ref().map(|place| place.key())) else {
            self.fail(key, Failure::Unreachable { why: why.to_owned() });
            return;
        };
        let addr = choice.addr;
        let is_gone = unreached == Unreached::Gone;
        if let Some(span) = call.span() {
            if is_gone {
                span.event(self.now, Event::Backoff(addr));
            }
            span.event(self.now, Event::Retry { reason: "not_reached" });
        }
        call.aside().tried.insert(endpoint);
        if is_gone && !judged.contains(&(service, endpoint)) {
            judged.push((service, endpoint));
            if let Some(service) = self.services.get_mut(service) {
                service.balancer.dial_failed(endpoint, self.now, &mut self.rng);
                service.unreached = Some(why.into());
            }
        }
        self.leave_endpoint(key);
        self.send_again(key);
    }
}
