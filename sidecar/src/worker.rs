//! One thread and everything it owns: connections, calls, pools, names' endpoints, timers, counters.
//!
//! A turn: what became ready is read once, events become commands, and when nothing is left each connection that got
//! output is written once. Nothing here is shared with another worker.

mod counts;
mod door;
mod events;
mod health;
mod local;
mod record;
mod run;
mod upkeep;

pub use health::Told;
pub use local::Local;
pub use record::AccessLog;
pub(crate) use record::Asked;
pub use run::{Command, Cut, EndpointView, Mesh, Open, Orders, Parts, run};

use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use portunus_proto::SpiffeId;
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio_util::sync::CancellationToken;

use crate::accept::PodAddresses;
use crate::balance::{EndpointKey, EndpointSpec, Outcome};
use crate::call::{Call, CallKey, Deadline};
use crate::connect::resolve::{Answer, Query, Routes, State};
use crate::connect::{self, Certified, Dialler, PoolKey, Pools, Reach, Side, Transport, Via, WireKey, Wires};
use crate::edge::client_cert;
use crate::exchange::{End, Exchange};
use crate::failure::Failure;
use crate::grpc::timeout;
use crate::http2::Connection;
use crate::http2::hpack::{FieldId, Fields, Interner, Name};
use crate::http2::slots::{Key, Slots};
use crate::policy;
use crate::propagate::Tracing;
use crate::route::{self, Known, ServiceKey, Services, Subject};
use crate::telemetry::{Direction, Event, MethodId, Recorder};
use crate::timers::{Tick, Timers};
use crate::{inbound, outbound};
use counts::Counts;
use health::Checks;
use run::{Inbox, Message};

/// Bytes that one connection may bring in a turn.
const READ_BYTES: usize = 64 << 10;
/// Empty header lists that are kept for the next calls.
const SPARE_LISTS: usize = 256;

/// Everything that one worker owns.
pub(crate) struct Worker {
    /// The time of this turn; and the same by the worker's own clock.
    pub(crate) now: Instant,
    pub(crate) tick: Tick,
    epoch: Instant,
    pub(crate) wires: Wires,
    pub(crate) calls: Slots<Call>,
    pub(crate) pools: Pools,
    pub(crate) services: Services,
    /// The addresses of this pod.
    pub(crate) own: PodAddresses,
    /// Where this pod has a way to.
    routes: Routes,
    pub(crate) recorder: Recorder,
    pub(crate) counts: Counts,
    pub(crate) rng: StdRng,
    /// Where spans begin and end, if anything is recorded.
    tracing: Option<Tracing>,
    access: Option<AccessLog>,
    /// The line of the access log that is being written; kept for its memory alone.
    line: String,
    /// What is said to the application in the same words again and again.
    pub(crate) said: Said,
    /// What the pod's ports take.
    modes: Arc<policy::Inbound>,
    dialler: Dialler,
    timers: Timers,
    inbox: Arc<Inbox>,
    parts: Parts,
    buffer: Box<[u8]>,
    /// Wires that may have more to read, or more held bytes to write, than their turn allowed.
    unfinished: VecDeque<WireKey>,
    /// Marks of calls whose held bytes moved; kept for its memory alone.
    moved: Vec<u64>,
    /// Empty header lists, kept for their memory alone.
    spare: Vec<Fields>,
    /// Turns so far.
    turns: u64,
    /// Pools whose waiting calls are to be looked at.
    to_serve: Vec<(PoolKey, SocketAddr)>,
    is_serving: bool,
    draining_inbound: bool,
    draining_outbound: bool,
    local: Local,
    health: Checks,
    /// What local ends held when that was last counted in the budget.
    local_used: u64,
}

/// Values of `x-forwarded-proto`, as interned fields.
pub(crate) struct Said {
    http: FieldId,
    https: FieldId,
}

impl Said {
    fn new(interner: &mut Interner) -> Said {
        Said {
            http: interner.constant(b"x-forwarded-proto", b"http"),
            https: interner.constant(b"x-forwarded-proto", b"https"),
        }
    }

    /// How a call came.
    pub(crate) fn proto(&self, in_tls: bool) -> FieldId {
        if in_tls { self.https } else { self.http }
    }
}

impl Worker {
    /// What the ports of the pod take.
    #[inline]
    pub(crate) fn modes(&self) -> &policy::Inbound {
        &self.modes
    }

    /// A call begins: its header list is taken over, and what can be said of it at once is said.
    pub(crate) fn begin_call(&mut self, down: End, inbound: bool, ended: bool) -> Option<CallKey> {
        let wire = self.wires.slots.get(down.wire)?;
        let Side::Caller { meant, checks, .. } = wire.side else {
            return None;
        };
        let label = wire.label;
        let spare = self.spare.pop();
        let had_spare = spare.is_some();
        let mut head = self.wires.shared.take_fields(spare.unwrap_or_default());
        if !had_spare {
            // As many calls at once as never before: most of them will wait for long.
            head.shrink();
        }
        let key = self.calls.insert_with(|| Call {
            exchange: Exchange::new(down, head, ended, &self.wires.shared.interner),
            inbound,
            checks: checks.is_some(),
            meant,
            method: None,
            began: self.tick,
            deadline: None,
            service: checks.unwrap_or(Key::NONE),
            choice: None,
            resent: false,
            stalled: None,
            looked: 0,
            ended: None,
            is_reset: false,
            is_counted: inbound || checks.is_some(),
            aside: None,
        });
        if let Some(wire) = self.wires.slots.get_mut(down.wire) {
            wire.engine.set_user(down.stream, key.to_bits());
        }
        if inbound {
            self.counts.request(label);
        }
        let call = self.calls.get_mut(key)?;
        let is_counted = call.exchange.is_grpc && checks.is_none();
        if is_counted {
            call.method = method_of(
                &call.exchange,
                inbound,
                &mut self.wires.shared.interner,
                &mut self.recorder,
            );
            if let Some(method) = call.method {
                self.recorder.started(method);
            }
        }
        let refused = if call.exchange.head.over_limit() {
            Some(Failure::request_too_large(&call.exchange.head, &self.parts.http2))
        } else if self.wires.shared.budget.is_spent() {
            let used = self.wires.shared.budget.used();
            Some(Failure::MemoryBudget { used })
        } else {
            call.exchange.count_head(&mut self.wires.shared);
            None
        };
        if is_counted {
            self.begin_record(key);
        }
        match refused {
            None => Some(key),
            Some(failure) => {
                self.fail(key, failure);
                None
            }
        }
    }

    /// Reaches `addr` by a connection of its pool and carries the call there; the call waits if there is none yet.
    #[inline(always)]
    pub(crate) fn reach(&mut self, key: CallKey, pool: PoolKey, addr: SocketAddr) -> Result<(), Failure> {
        match self.pools.reach(pool, key.to_bits(), &self.wires) {
            Reach::Wire(wire) => self.carry(key, wire),
            Reach::Dial => {
                self.dial(pool, addr);
                Ok(())
            }
            Reach::Wait => Ok(()),
            Reach::Full => Err(Failure::TooManyWaiting { addr }),
        }
    }

    /// Sends the call's request on `wire`, with what the deadline leaves.
    #[inline(always)]
    fn carry(&mut self, key: CallKey, wire: WireKey) -> Result<(), Failure> {
        let Some(call) = self.calls.get_mut(key) else {
            return Ok(());
        };
        if let Some(deadline) = call.deadline {
            let left = deadline.at.saturating_duration_since(self.now);
            if left.is_zero() {
                let stage = call.stage();
                return Err(Failure::Deadline {
                    timeout: deadline.timeout,
                    stage,
                });
            }
            let mut text = Vec::with_capacity(9);
            timeout::format(left, &mut text);
            call.exchange
                .head
                .remove_all(Name::GrpcTimeout, &mut self.wires.shared.interner);
            call.exchange.head.push(b"grpc-timeout", &text, false);
        }
        let to = self.wires.slots.get(wire);
        if !call.is_counted
            && let Some(to) = to
        {
            call.is_counted = true;
            self.counts.request(to.label);
        }
        let max = to.map_or(usize::MAX, |to| to.engine.max_header_list());
        if let Some(bytes) = call.exchange.head.exceeds(max, &self.wires.shared.interner) {
            let addr = call.server();
            return Err(Failure::NextHopHeaders { addr, bytes, max });
        }
        if call.exchange.connect(wire, key.to_bits(), &mut self.wires) {
            return Ok(());
        }
        // The wire was full after all: the call waits with the others.
        let Some(choice) = &call.choice else { return Ok(()) };
        let (pool, addr) = (choice.pool, choice.addr);
        match self.pools.reach(pool, key.to_bits(), &self.wires) {
            Reach::Dial => self.dial(pool, addr),
            Reach::Wire(_) | Reach::Wait => {}
            Reach::Full => return Err(Failure::TooManyWaiting { addr }),
        }
        Ok(())
    }

    /// Ends the call by an answer of our own, and records it.
    pub(crate) fn fail(&mut self, key: CallKey, failure: Failure) {
        let Some(call) = self.calls.get_mut(key) else { return };
        if call.exchange.phase.is_last() {
            return;
        }
        let answer = failure.answer();
        tracing::debug!(
            reason = answer.reason,
            fault = ?failure.fault(),
            processed = failure.may_have_been_processed(),
            inbound = call.inbound,
            "{}",
            answer.sentence
        );
        if !call.checks {
            self.counts.of(call.inbound).failed(answer.reason);
        }
        if call.aside.is_some() {
            self.record_failure(key, &failure);
        }
        let Some(call) = self.calls.get_mut(key) else { return };
        call.ended = Some(answer.code);
        call.exchange.answer(&answer, &mut self.wires);
        self.settle(key);
    }

    /// The call has been taken back from where it went, and looks for another way.
    pub(crate) fn send_again(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else { return };
        if call.inbound {
            inbound::again(self, key);
        } else {
            outbound::again(self, key);
        }
    }

    /// Leaves the endpoint that was chosen, to which nothing was sent.
    pub(crate) fn leave_endpoint(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let Some(choice) = call.choice.take() else { return };
        self.pools.forget(choice.pool, key.to_bits());
        if let (Some(place), Some(service)) = (choice.place, self.services.get_mut(call.service))
            && let Some(gone) = service.balancer.finished(place, Outcome::Unsent, self.now)
        {
            self.retire(gone.addr);
        }
    }

    /// Records the call and lets go of it, if nothing is left of it.
    pub(crate) fn settle(&mut self, key: CallKey) {
        let Some(mut call) = self.calls.get_mut(key) else {
            return;
        };
        if !call.exchange.is_finished(&self.wires) {
            return;
        }
        if call.aside.is_some() {
            self.end_record(key);
            let Some(again) = self.calls.get_mut(key) else { return };
            call = again;
        }
        let code = call.code();
        if let Some(method) = call.method {
            let elapsed = self.tick.since(call.began);
            self.recorder.handled(method, call.kind(), code, elapsed);
        }
        if !call.is_counted {
            self.counts.request(Counts::in_plain(call.inbound));
        }
        let outcome = call.outcome(code, self.tick);
        let (service, choice) = (call.service, call.choice.take());
        call.exchange.release(&mut self.wires);
        if self.spare.len() < SPARE_LISTS {
            self.spare.push(mem::take(&mut call.exchange.head));
        }
        self.calls.discard(key);
        let Some(choice) = choice else { return };
        if let (Some(place), Some(service)) = (choice.place, self.services.get_mut(service)) {
            let gone = service.balancer.finished(place, outcome, self.now);
            if let Some(gone) = gone {
                self.retire(gone.addr);
            }
        }
        if self.pools.is_awaited(choice.pool) {
            self.serve(choice.pool, choice.addr);
        }
    }

    /// Calls that wait for a connection to this address get one, as far as there are any.
    ///
    /// A call that fails on the way there settles, which asks for this again: that is remembered, not nested, since
    /// thousands may wait whose deadline has passed.
    fn serve(&mut self, pool: PoolKey, addr: SocketAddr) {
        if !self.pools.is_awaited(pool) {
            return;
        }
        self.to_serve.push((pool, addr));
        if self.is_serving {
            return;
        }
        self.is_serving = true;
        while let Some((pool, addr)) = self.to_serve.pop() {
            while let Some(mark) = self.pools.next_waiting(pool, &self.wires) {
                let key = Key::from_bits(mark);
                let Reach::Wire(wire) = self.pools.reach(pool, mark, &self.wires) else {
                    break;
                };
                if let Err(failure) = self.carry(key, wire) {
                    self.fail(key, failure);
                }
            }
            if self.pools.needs_dial(pool, &self.wires) {
                self.dial(pool, addr);
            }
        }
        self.is_serving = false;
    }

    /// Keeps the caller's deadline, which counts from now: the call has just begun.
    pub(crate) fn set_deadline(&mut self, key: CallKey, timeout: Duration) -> Result<(), Failure> {
        let Some(call) = self.calls.get_mut(key) else {
            return Ok(());
        };
        // A deadline that no clock reaches is none.
        let Some(at) = self.now.checked_add(timeout) else {
            return Ok(());
        };
        call.deadline = Some(Deadline { at, timeout });
        if timeout.is_zero() {
            return Err(Failure::Deadline {
                timeout,
                stage: "the call began".to_owned(),
            });
        }
        self.timers.set(at, key.to_bits());
        Ok(())
    }

    /// Opens a connection to `addr` for its pool.
    fn dial(&self, pool: PoolKey, addr: SocketAddr) {
        let via = self.pools.get(pool).map_or(Via::Plain, |pool| pool.via.clone());
        let dialling = self.dialler.clone().dial(addr, via);
        let inbox = self.inbox.clone();
        tokio::task::spawn_local(async move {
            let result = dialling.await;
            inbox.send(Message::Dialled { pool, addr, result });
        });
    }

    /// The service that an address is by itself.
    #[inline(always)]
    pub(crate) fn of_address(&mut self, addr: SocketAddr) -> ServiceKey {
        let (service, is_new) = self.services.of_address(addr, self.now);
        if is_new {
            self.inquire(service);
        }
        service
    }

    /// Asks what there is to know of a service that is new, and follows it from now on.
    pub(crate) fn inquire(&mut self, key: ServiceKey) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        match &self.parts.mesh {
            Some(mesh) => {
                let followed = CancellationToken::new();
                run::follow_mesh(
                    mesh.clone(),
                    self.inbox.clone(),
                    key,
                    service.subject.clone(),
                    followed.clone(),
                );
                service.following.push(followed.drop_guard());
            }
            None => {
                let known = service.known.clone();
                self.learned(key, known);
            }
        }
    }

    /// What control says of a service.
    fn learned(&mut self, key: ServiceKey, known: Arc<Known>) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        if *known == Known::Pending {
            return;
        }
        service.is_late = false;
        service.known = known.clone();
        service.heed(&self.parts.balance, &self.parts.health);
        match (&*known, service.subject.clone()) {
            (Known::Outside(_), Subject::Name { host, port }) => match service.answer.is_some() {
                true => self.name_endpoints(key),
                false => self.resolve(key, host, port),
            },
            (Known::Service(view), _) => {
                service.forget_names();
                let addresses = view.addresses.iter().copied();
                service.is_meant_by(addresses.chain(view.endpoints.iter().map(|e| e.addr.ip())), self.now);
                let now = tokio::time::Instant::now();
                self.routes.prune(now);
                let ready = view.endpoints.iter().filter(|endpoint| endpoint.is_ready);
                // A pod without IPv6 has no use for a workload's IPv6 address, nor the other way round.
                let routable = ready.filter(|endpoint| self.routes.lead_to(endpoint.addr.ip(), now));
                let endpoints: Vec<_> = routable.map(spec_of).collect();
                self.update(key, &endpoints);
            }
            // A name that is an address has no other endpoint than that.
            (Known::Endpoint(endpoint), _) => {
                service.forget_names();
                service.is_meant_by([endpoint.addr.ip()], self.now);
                self.update(key, &[spec_of(endpoint)]);
            }
            (Known::Outside(_), Subject::Address(addr)) => self.update(key, &[plain(addr)]),
            (Known::Pending, _) => {}
        }
        let Some(Subject::Address(addr)) = self.services.get(key).map(|service| service.subject.clone()) else {
            return;
        };
        for named in self.services.named_at(addr) {
            self.name_endpoints(named);
        }
    }

    /// Follows the addresses of a name, from now on.
    fn resolve(&mut self, service: ServiceKey, host: String, port: u16) {
        let srv = self.parts.srv.get(&host).cloned();
        let query = Query { host, port, srv };
        let followed = CancellationToken::new();
        run::follow(
            self.parts.names.clone(),
            self.inbox.clone(),
            service,
            query,
            followed.clone(),
        );
        if let Some(service) = self.services.get_mut(service) {
            service.following.push(followed.drop_guard());
        }
    }

    /// The addresses of a service, as the name servers give them now.
    fn resolved(&mut self, key: ServiceKey, answer: Arc<Answer>) {
        let Some(service) = self.services.get_mut(key).filter(|service| service.is_outside()) else {
            return;
        };
        if matches!(answer.state, State::Pending) {
            return;
        }
        service.is_late = false;
        service.answer = Some(answer.clone());
        if self.parts.mesh.is_some() {
            for target in answer.routable() {
                self.of_address(target.addr);
            }
        }
        self.name_endpoints(key);
    }

    /// The endpoints of a name outside the mesh: its addresses, as far as it is known who is there.
    fn name_endpoints(&mut self, key: ServiceKey) {
        let Some(service) = self.services.get(key) else { return };
        let Some(answer) = service.answer.clone() else { return };
        let (mut endpoints, mut lent, mut is_whole) = (Vec::new(), Vec::new(), true);
        for target in answer.routable() {
            let spec = EndpointSpec {
                addr: target.addr,
                weight: target.weight,
                priority: target.priority,
            };
            let known = match self.parts.mesh {
                Some(_) => self.services.who_is_at(target.addr),
                None => Some(&*service.known),
            };
            match known {
                None | Some(Known::Pending) => is_whole = false,
                Some(Known::Endpoint(endpoint)) => endpoints.push((spec, endpoint.identity.clone())),
                Some(Known::Outside(_)) => endpoints.push((spec, None)),
                Some(Known::Service(_)) => lent.push(target.addr.ip()),
            }
        }
        if let Some(service) = self.services.get_mut(key) {
            service.lends(lent);
        }
        if is_whole || !endpoints.is_empty() {
            self.update(key, &endpoints);
        }
    }

    /// A service has these endpoints now, and calls that waited for them go on.
    fn update(&mut self, key: ServiceKey, endpoints: &[(EndpointSpec, Option<SpiffeId>)]) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        let (changes, changed) = service.update(endpoints, self.now);
        let waiting = mem::take(&mut service.waiting);
        for gone in changes.gone {
            self.retire(gone.addr);
        }
        for addr in changed {
            self.retire_others(addr);
        }
        for mark in waiting {
            outbound::resolved(self, Key::from_bits(mark));
        }
    }

    /// Whoever was asked took too long: who waited goes on with what is known.
    fn stop_waiting(&mut self, key: ServiceKey) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        service.is_late = true;
        for mark in mem::take(&mut service.waiting) {
            outbound::resolved(self, Key::from_bits(mark));
        }
    }

    /// A service has `addr` no more. If no other has it, no new call goes there: its connections end when their calls do.
    fn retire(&mut self, addr: SocketAddr) {
        if !self.services.has_endpoint(addr) {
            for pool in self.pools.at(addr) {
                self.drain(pool);
            }
        }
    }

    /// Somebody else is at `addr` now than before: the connections to whom no service means any more end when their calls do.
    fn retire_others(&mut self, addr: SocketAddr) {
        for key in self.pools.at(addr) {
            let Some(pool) = self.pools.get(key) else { continue };
            if !self.services.leads_to(addr, &pool.via) {
                self.drain(key);
            }
        }
    }

    fn drain(&mut self, pool: PoolKey) {
        for key in self.pools.wires(pool).to_vec() {
            if let Some((wire, _)) = self.wires.touch(key) {
                wire.engine.begin_goaway();
            }
        }
    }

    /// Takes a caller's connection in, whose first bytes are HTTP/2's.
    fn adopt(&mut self, transport: Transport, first: Vec<u8>, peer: SocketAddr, side: Side) {
        let Side::Caller { inbound, .. } = side else { return };
        let settings = self.parts.http2.clone();
        let is_local = matches!(transport, Transport::Pipe(_));
        let own = is_local || !inbound;
        let mut engine = Connection::server(settings, own, self.now, &mut self.wires.shared);
        if if inbound {
            self.draining_inbound
        } else {
            self.draining_outbound
        } {
            engine.begin_goaway();
        }
        let wire = self.wires.insert(transport, first, engine, peer, side, self.now);
        self.get_to_know(wire, inbound);
        if !is_local {
            self.counts.of(inbound).opened_downstream();
        }
    }

    /// What follows from who has proven to be at the other end, once and for all calls of the wire.
    fn get_to_know(&mut self, key: WireKey, inbound: bool) {
        let Some(wire) = self.wires.slots.get_mut(key) else {
            return;
        };
        let Some(peer) = wire.proven() else {
            wire.label = Counts::in_plain(inbound);
            return;
        };
        let (id, ends, hash) = (peer.id().clone(), peer.not_after(), *peer.hash());
        wire.label = self.counts.label(inbound, &id, &self.recorder);
        let own = self.parts.mesh.as_ref().and_then(|mesh| mesh.own.load_full());
        let Some(own) = own else { return };
        let luck = self.rng.random::<f64>();
        wire.certified = Some(Certified::new(ends.min(own.not_after()), SystemTime::now(), luck));
        if matches!(wire.side, Side::Caller { .. })
            && let Ok(text) = client_cert::value(own.id().as_str(), &hash, id.as_str())
        {
            let interner = &mut self.wires.shared.interner;
            wire.client_cert = Some(interner.constant(client_cert::NAME.as_bytes(), text.as_bytes()));
        }
    }

    /// A connection that was dialled is here, or is not.
    fn dialled(&mut self, pool: PoolKey, addr: SocketAddr, result: Result<Transport, connect::Error>) {
        let inbound = self.pools.get(pool).is_some_and(|pool| pool.via == Via::Own);
        match result {
            Ok(transport) => {
                let settings = self.parts.http2.clone();
                let mut engine = Connection::client(settings, false, self.now, &mut self.wires.shared);
                engine.expect_streams(self.pools.likely_streams(pool));
                let side = Side::Server { pool };
                let wire = self.wires.insert(transport, Vec::new(), engine, addr, side, self.now);
                self.get_to_know(wire, inbound);
                self.counts.of(inbound).opened_upstream();
                if self.wires.slots.get(wire).is_some_and(|wire| wire.is_proven) {
                    self.usable(pool, wire, addr);
                    self.serve(pool, addr);
                }
            }
            Err(error) => {
                tracing::debug!(%addr, "{error}");
                if matches!(error, connect::Error::Tls { .. } | connect::Error::NoCertificate { .. }) {
                    self.counts.shook_hands(inbound, error.reason(), &self.recorder);
                    tracing::warn!(%addr, reason = error.reason(), "{error}");
                }
                self.not_dialled(pool, &error.to_string());
            }
        }
    }

    /// A server's connection may carry calls from now on.
    fn usable(&mut self, pool: PoolKey, wire: WireKey, addr: SocketAddr) {
        self.pools.dialled(pool, wire);
        self.dial_ok(addr);
    }

    /// A server has said something in TLS: it has taken our certificate.
    pub(super) fn prove(&mut self, key: WireKey) {
        if let Some(wire) = self.wires.slots.get_mut(key)
            && let Side::Server { pool } = wire.side
            && !wire.is_proven
        {
            wire.is_proven = true;
            let addr = wire.peer;
            self.counts.shook_hands(false, "ok", &self.recorder);
            self.usable(pool, key, addr);
        }
    }

    /// No connection came of a dial: the calls that waited for it try elsewhere.
    pub(super) fn not_dialled(&mut self, pool: PoolKey, why: &str) {
        let mut judged = Vec::new();
        for mark in self.pools.dial_failed(pool, &self.wires) {
            self.dial_failed(Key::from_bits(mark), why, &mut judged);
        }
        self.pools.remove_if_idle(pool);
    }

    fn dial_ok(&mut self, addr: SocketAddr) {
        let now = self.now;
        self.services
            .of_endpoint(addr, |balancer, endpoint| balancer.dial_ok(endpoint, now));
    }

    /// The endpoint that a call waited for cannot be reached: it tries the others, one after another.
    pub(crate) fn dial_failed(&mut self, key: CallKey, why: &str, judged: &mut Vec<(ServiceKey, EndpointKey)>) {
        let Some(call) = self.calls.get_mut(key) else { return };
        call.aside().last_error = Some(why.into());
        let Some(choice) = &call.choice else { return };
        let (service, Some(endpoint)) = (call.service, choice.place.as_ref().map(|place| place.key())) else {
            self.fail(key, Failure::Unreachable { why: why.to_owned() });
            return;
        };
        let addr = choice.addr;
        if let Some(span) = call.span() {
            span.event(self.now, Event::Ejected(addr));
            span.event(self.now, Event::Retry { reason: "not_reached" });
        }
        call.aside().tried.insert(endpoint);
        if !judged.contains(&(service, endpoint)) {
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

/// An endpoint as the balancer takes it, and who is there.
fn spec_of(endpoint: &route::Endpoint) -> (EndpointSpec, Option<SpiffeId>) {
    let spec = EndpointSpec {
        addr: endpoint.addr,
        weight: endpoint.weight,
        priority: 0,
    };
    (spec, endpoint.identity.clone())
}

/// An address by itself, where nobody is known to be.
fn plain(addr: SocketAddr) -> (EndpointSpec, Option<SpiffeId>) {
    let spec = EndpointSpec {
        addr,
        weight: 1,
        priority: 0,
    };
    (spec, None)
}

/// The method of an RPC: known by the number on its interned path, else looked up or learned.
fn method_of(exchange: &Exchange, inbound: bool, interner: &mut Interner, recorder: &mut Recorder) -> Option<MethodId> {
    let at = exchange.head.place(Name::Path)?;
    let (direction, shift) = if inbound {
        (Direction::Inbound, 16)
    } else {
        (Direction::Outbound, 0)
    };
    let Some(id) = exchange.head.id(at) else {
        return Some(recorder.method(direction, exchange.head.value(at, interner)?));
    };
    let tag = interner.tag(id);
    if let Some(method) = MethodId::from_tag((tag >> shift) as u16) {
        return Some(method);
    }
    let method = recorder.method(direction, exchange.head.value(at, interner)?);
    interner.set_tag(id, tag | u32::from(method.tag()) << shift);
    Some(method)
}
