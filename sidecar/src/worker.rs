//! One thread and everything it owns: connections, calls, pools, names' endpoints, timers, counters.
//!
//! A turn: what became ready is read once, events become commands, and when nothing is left each connection that got
//! output is written once. Nothing here is shared with another worker.

mod counts;
mod dial;
mod discovery;
mod door;
mod ends;
mod events;
mod health;
mod local;
mod record;
mod relief;
mod run;
mod shown;
mod upkeep;

pub use health::Told;
pub use local::Local;
pub use record::AccessLog;
pub(crate) use record::Asked;
pub use run::{Answers, Command, Cut, Mesh, Open, Orders, Parts, run};
pub use shown::EndpointView;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portunus_logbook::{Line, Noise};
use rand::rngs::StdRng;

use crate::accept::PodAddresses;
use crate::balance::{Left, Outcome};
use crate::call::{Call, CallKey, Deadline};
use crate::connect::resolve::Routes;
use crate::connect::{Dialler, PoolKey, Pools, Reach, Side, Transport, WireKey, Wires};
use crate::exchange::{Answer, End, Exchange, Phase};
use crate::failure::Failure;
use crate::grpc::timeout;
use crate::http2::Connection;
use crate::http2::hpack::{FieldId, Fields, Interner, Name};
use crate::policy;
use crate::propagate::Tracing;
use crate::route::Services;
use crate::slots::{Key, Slots};
use crate::telemetry::{Direction, MethodId, Recorder};
use crate::timers::{Tick, Timers};
use crate::{http2, inbound, outbound, tls};
use counts::Counts;
use health::Checks;
use run::{Inbox, Present};

/// Bytes that one connection may bring in a turn: what a peer of ours seals at once.
const READ_BYTES: usize = tls::sealed_len(http2::BULK_BYTES);
/// Empty header lists that are kept for the next calls.
const SPARE_LISTS: usize = 128;

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
    /// How much its log says of each peer.
    noise: Noise,
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
    #[expect(
        clippy::vec_box,
        reason = "they move between here, the wires and the calls as they are"
    )]
    spare: Vec<Box<Fields>>,
    /// Turns so far.
    turns: u64,
    draining_inbound: bool,
    draining_outbound: bool,
    /// In which turn copies of requests were last dropped for new calls.
    made_room: u64,
    /// Connections that we have ended, and that their peers may be reading still.
    lingering: Present,
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

    /// Whether a line of the log may be about this peer, who has failed perhaps more often than anybody wants to read.
    fn may_log(&mut self, peer: SocketAddr) -> Option<Line> {
        self.noise.line(peer.ip(), self.now)
    }

    /// A call begins: its header list is taken over, and what can be said of it at once is said.
    pub(crate) fn begin_call(&mut self, down: End, inbound: bool, ended: bool) -> Option<CallKey> {
        let wire = self.wires.slots.get(down.wire)?;
        let Side::Caller { meant, checks, .. } = wire.side else {
            return None;
        };
        let label = wire.label;
        let head = match self.spare.pop() {
            Some(spare) => self.wires.shared.take_fields(spare),
            None => {
                // As many calls at once as never before: most of them will wait for long.
                let mut head = self.wires.shared.take_fields(Box::default());
                head.shrink();
                head
            }
        };
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
        let has_room = !self.wires.shared.budget.is_spent() || self.makes_room(down.wire);
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
        let refused = if let Some(head) = call.exchange.head.as_ref().filter(|head| head.over_limit()) {
            Some(Failure::request_too_large(head, &self.parts.http2))
        } else if !has_room {
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
        match self.pools.reach(pool, key.to_bits(), &self.wires, self.now) {
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
            if let Some(head) = &mut call.exchange.head {
                head.remove_all(Name::GrpcTimeout, &mut self.wires.shared.interner);
                head.push(b"grpc-timeout", &text, false);
            }
        }
        let to = self.wires.slots.get(wire);
        if !call.is_counted
            && let Some(to) = to
        {
            call.is_counted = true;
            self.counts.request(to.label);
        }
        let max = to.map_or(usize::MAX, |to| to.engine.max_header_list());
        let interner = &self.wires.shared.interner;
        if let Some(bytes) = call.exchange.exceeds(max, interner) {
            let addr = call.server();
            return Err(Failure::NextHopHeaders { addr, bytes, max });
        }
        if call.exchange.connect(wire, key.to_bits(), &mut self.wires) {
            return Ok(());
        }
        // A pool gives no wire without room. Whoever met one all the same is told, rather than left where nobody looks.
        let addr = call.server();
        Err(Failure::TooManyWaiting { addr })
    }

    /// Ends the call by an answer of our own, and records it.
    pub(crate) fn fail(&mut self, key: CallKey, failure: Failure) {
        let Some(call) = self.calls.get(key) else { return };
        if call.exchange.phase.is_last() {
            return;
        }
        self.gives_up_server(key);
        let answer = self.note_failure(key, &failure);
        let Some(call) = self.calls.get_mut(key) else { return };
        call.ended = Some(answer.code);
        call.exchange.answer(&answer, &mut self.wires);
        self.settle(key);
    }

    /// We end the call: that is logged, counted and recorded, however its caller is told.
    fn note_failure(&mut self, key: CallKey, failure: &Failure) -> Answer {
        let answer = failure.answer();
        let Some(call) = self.calls.get(key) else { return answer };
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
            self.record_failure(key, failure);
        }
        answer
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
        let at = call.service;
        self.pools.forget(choice.pool, key.to_bits());
        if let (Some(place), Some(service)) = (choice.place, self.services.get_mut(at))
            && let Some(gone) = service
                .balancer
                .finished(place, Outcome::Unsent, self.now, &mut self.rng)
                .gone
        {
            self.retire(at, gone.addr);
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
        let code = call.code();
        if let Some(method) = call.method {
            let elapsed = self.tick.since(call.began);
            self.recorder.handled(method, call.kind(), code, elapsed);
        }
        if !call.is_counted {
            self.counts.request(Counts::UNSENT);
        }
        let outcome = call.outcome(code, self.tick);
        let at = call.service;
        let mut left = Left::default();
        if let Some(place) = call.choice.as_mut().and_then(|choice| choice.place.take())
            && let Some(service) = self.services.get_mut(at)
        {
            left = service.balancer.finished(place, outcome, self.now, &mut self.rng);
        }
        if call.aside.is_some() {
            self.end_record(key, left);
            let Some(again) = self.calls.get_mut(key) else { return };
            call = again;
        }
        call.exchange.release(&mut self.wires);
        if let Some(head) = call.exchange.head.take() {
            self.spare_list(head);
        }
        self.calls.discard(key);
        if let Some(gone) = left.gone {
            self.retire(at, gone.addr);
        }
    }

    /// A header list that is not needed any more is memory for the next call's.
    #[inline(always)]
    fn spare_list(&mut self, list: Box<Fields>) {
        // One that was shrunk has nothing to give.
        if self.spare.len() < SPARE_LISTS && list.has_memory() {
            self.spare.push(list);
        }
    }

    /// Calls that wait for a connection to this address get one, as far as there is room; for the others one is dialled.
    ///
    /// Nobody who frees a place upstream need think of them: the turn ends with this for each wire that was touched
    /// (`flush`). A wire that is gone is touched no more: `close` asks for it. The look asks for all, as a net.
    fn serve(&mut self, pool: PoolKey, addr: SocketAddr) {
        while let Some((mark, wire)) = self.pools.next_waiting(pool, &self.wires) {
            let key = Key::from_bits(mark);
            let waits = |call: &Call| call.exchange.phase == Phase::Waiting;
            if !self.calls.get(key).is_some_and(waits) {
                continue;
            }
            match self.carry(key, wire) {
                Ok(()) => self.note_server(key),
                Err(failure) => self.fail(key, failure),
            }
        }
        if self.pools.needs_dial(pool, &self.wires, self.now) {
            self.dial(pool, addr);
        }
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
}

/// The method of an RPC: known by the number on its interned path, else looked up or learned.
fn method_of(exchange: &Exchange, inbound: bool, interner: &mut Interner, recorder: &mut Recorder) -> Option<MethodId> {
    let head = exchange.head.as_ref()?;
    let at = head.place(Name::Path)?;
    let (direction, shift) = if inbound {
        (Direction::Inbound, 16)
    } else {
        (Direction::Outbound, 0)
    };
    let Some(id) = head.id(at) else {
        return Some(recorder.method(direction, head.value(at, interner)?));
    };
    let tag = interner.tag(id);
    if let Some(method) = MethodId::from_tag((tag >> shift) as u16) {
        return Some(method);
    }
    let method = recorder.method(direction, head.value(at, interner)?);
    interner.set_tag(id, tag | u32::from(method.tag()) << shift);
    Some(method)
}
