//! Starting a worker's thread, waking it, and its loop of turns.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::SeedableRng;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::door::Door;
use super::health::{Checked, Checks, Told};
use super::local::Local;
use super::shown::Shown;
use super::{AccessLog, READ_BYTES, Said, Worker, upkeep};
use crate::accept::{self, OwnPorts, PodAddresses};
use crate::connect::resolve::{Answer, Names};
use crate::connect::{self, Dialled, Dialler, Mine, PoolKey, Pools, Ready, Side, Transport, WireKey, Wires};
use crate::control::Full;
use crate::detect::{self, Declared};
use crate::propagate::Tracing;
use crate::route::{Known, ServiceKey, Services, Subject};
use crate::slots::Slots;
use crate::telemetry::{Intake, Registry, trace};
use crate::timers::Tick;
use crate::{balance, health, http2, policy, tunnel};

/// What a worker is given: settings of its rooms, and what all workers use.
#[derive(Clone)]
pub struct Parts {
    /// Where it takes the application's connections.
    pub outbound: Vec<SocketAddr>,
    /// Where it takes the network's connections.
    pub inbound: Vec<SocketAddr>,
    /// Where the application's connections lead that no rule redirected; they are refused without it.
    pub outbound_default: Option<SocketAddr>,
    /// Where the network's connections lead that no rule redirected; they are refused without it.
    pub inbound_default: Option<SocketAddr>,
    /// The proxy's own ports, to which no connection may lead.
    pub own_ports: OwnPorts,
    /// What is spoken on the application's ports, where that was declared.
    pub inbound_protocols: HashMap<u16, Declared>,
    /// What is spoken on the ports that the application calls, where that was declared.
    pub outbound_protocols: HashMap<u16, Declared>,
    /// The SRV name that a host's endpoints are found by, where configuration names one.
    pub srv: HashMap<String, String>,
    /// Bytes that this worker may hold for its connections.
    pub budget: u64,
    /// HTTP/2 limits.
    pub http2: Arc<http2::Settings>,
    /// How listeners listen.
    pub accept: accept::Settings,
    /// How protocols are detected.
    pub detect: detect::Settings,
    /// How tunnels carry.
    pub tunnel: tunnel::Settings,
    /// How connections are opened.
    pub dial: connect::Settings,
    /// What all workers together have dialled.
    pub dialled: Arc<Dialled>,
    /// How endpoints are picked.
    pub balance: balance::Settings,
    /// How the health of endpoints is checked that a name has.
    pub health: Arc<health::Settings>,
    /// What was said of services once already, by all workers together.
    pub told: Arc<Told>,
    /// Addresses of names.
    pub names: Names,
    /// The mesh, if the sidecar belongs to one.
    pub mesh: Option<Mesh>,
    /// Whether streams and tunnels are cut when a certificate ends that their connection was made with.
    pub cut_expired: bool,
    /// Where numbers are recorded.
    pub registry: Arc<Registry>,
}

/// The mesh, as a worker sees it.
#[derive(Clone)]
pub struct Mesh {
    /// What this sidecar proves itself by.
    pub own: connect::Own,
    /// What the pod's ports take.
    pub modes: watch::Receiver<Arc<policy::Inbound>>,
    /// Asks what control says of a name or an address, from now until the receiver is dropped, if there is room for that.
    pub ask: Arc<dyn Fn(Subject) -> Answers + Send + Sync>,
}

/// What control says of a subject, now and later; or that there is no room to ask for it.
pub type Answers = Result<watch::Receiver<Arc<Known>>, Full>;

/// What a worker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Take no new connections from the network, and say GOAWAY to those that are open.
    DrainInbound,
    /// Say GOAWAY to the application.
    DrainOutbound,
    /// End now. Calls that run are cut, and counted.
    End,
}

/// How a worker is led: what it is told, and what it says.
pub struct Orders {
    /// What it is told.
    pub commands: UnboundedReceiver<Command>,
    /// Where it says what it has open.
    pub open: Arc<Open>,
    /// Called on the worker's thread once its listeners are open. What is spawned there may make calls of its own.
    pub listening: Box<dyn FnOnce(&Local)>,
    /// Which traces begin and go on here, and where spans go; nothing is done for traces without it.
    pub tracing: Option<(trace::Settings, Intake)>,
    /// Where the access log goes, if there is one.
    pub access_log: Option<AccessLog>,
    /// Called with a sentence when one of them fails later: nobody is taken in there any more.
    pub deaf: Box<dyn Fn(String)>,
}

/// What is open, told once a turn.
#[derive(Debug, Default)]
pub struct Open {
    /// Connections from the network, tunnels too.
    pub inbound: AtomicU64,
    /// Connections from the application, tunnels too.
    pub outbound: AtomicU64,
    /// Turns so far. While the worker lives, there is one a second at least.
    pub turns: AtomicU64,
    /// Addresses that it has a connection to, or dials, each in one way: as old as the endpoints.
    pub pools: AtomicU64,
    /// The endpoints of its services, as they were at most half a second ago, or a second while nothing is open.
    pub(super) endpoints: Mutex<Arc<[Shown]>>,
}

/// What an end cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// RPCs that had not ended.
    pub rpcs: u64,
    /// Connections that were open.
    pub connections: u64,
}

/// What others tell a worker.
pub(super) enum Message {
    Adopt {
        transport: Transport,
        first: Vec<u8>,
        peer: SocketAddr,
        side: Side,
    },
    Dialled {
        pool: PoolKey,
        addr: SocketAddr,
        result: Result<(Transport, Box<Mine>), connect::Error>,
    },
    Learned {
        service: ServiceKey,
        known: Arc<Known>,
    },
    Modes(Arc<policy::Inbound>),
    ShookHands {
        inbound: bool,
        result: &'static str,
    },
    DnsAnswered {
        service: ServiceKey,
        answer: Arc<Answer>,
    },
    Late(ServiceKey),
    Checked(Checked),
    Command(Command),
}

/// Where messages wait for a worker's next turn.
pub(super) struct Inbox {
    messages: Mutex<Vec<Message>>,
    ready: Arc<Ready>,
}

impl Parts {
    /// What this sidecar proves itself by; nothing, ever, outside a mesh.
    pub(super) fn own(&self) -> connect::Own {
        self.mesh.as_ref().map(|mesh| mesh.own.clone()).unwrap_or_default()
    }

    /// What the pod's ports take now.
    pub(super) fn modes(&self) -> Arc<policy::Inbound> {
        match &self.mesh {
            Some(mesh) => mesh.modes.borrow().clone(),
            None => Arc::new(policy::Inbound::PLAIN),
        }
    }
}

impl Inbox {
    pub(super) fn send(&self, message: Message) {
        self.messages.lock().push(message);
        self.ready.wake();
    }
}

/// A worker's life on the thread that calls this, from opening its listeners to [`Command::End`].
///
/// # Errors
/// When a listener, or an event loop, cannot be had.
pub fn run(parts: Parts, orders: Orders) -> anyhow::Result<Cut> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(parts, orders))
}

async fn serve(parts: Parts, orders: Orders) -> anyhow::Result<Cut> {
    let mut wires = Wires::new(parts.budget);
    let ready = wires.ready();
    let inbox = Arc::new(Inbox {
        messages: Mutex::default(),
        ready: ready.clone(),
    });
    let recorder = parts.registry.recorder();
    let stop = Stop {
        inbound: CancellationToken::new(),
        cut: CancellationToken::new(),
    };
    let tunnels = Door::open_all(&parts, &inbox, &recorder, &stop, orders.deaf.into())?;
    let local = Local::new(inbox.clone(), parts.http2.clone(), parts.budget);
    (orders.listening)(&local);
    tokio::task::spawn_local(pass_on(orders.commands, inbox.clone()));
    let dialler = Dialler::new(parts.dial.clone(), parts.own(), parts.dialled.clone());
    let said = Said::new(&mut wires.shared.interner);
    if let Some(mesh) = &parts.mesh {
        tokio::task::spawn_local(follow_modes(mesh.modes.clone(), inbox.clone()));
    }
    let epoch = Instant::now();
    let worker = Worker {
        now: epoch,
        tick: Tick::new(epoch, epoch),
        epoch,
        wires,
        calls: Slots::default(),
        pools: Pools::default(),
        services: Services::new(parts.balance, parts.health.clone(), parts.mesh.is_some()),
        own: PodAddresses::new(),
        routes: Default::default(),
        noise: Default::default(),
        said,
        modes: parts.modes(),
        dialler,
        counts: Counts::new(&recorder, parts.budget),
        tracing: orders
            .tracing
            .map(|(settings, intake)| Tracing::new(&settings, intake.open(&recorder))),
        access: orders.access_log,
        line: String::new(),
        recorder,
        rng: rand::rngs::StdRng::from_rng(&mut rand::rng()),
        timers: Default::default(),
        inbox,
        parts,
        buffer: vec![0; READ_BYTES].into_boxed_slice(),
        unfinished: Default::default(),
        moved: Vec::new(),
        spare: Vec::new(),
        turns: 0,
        draining_inbound: false,
        draining_outbound: false,
        health: Checks::new(local.clone()),
        local,
        local_used: 0,
        made_room: 0,
        lingering: Present::default(),
    };
    let alarm = Box::pin(tokio::time::sleep(Duration::ZERO));
    let turns = Loop {
        worker,
        ready,
        tunnels,
        stop,
        open: orders.open,
        turn: Vec::new(),
        alarm,
    };
    Ok(turns.run().await)
}

/// What the main thread says reaches the worker at its next turn. Nobody left to say anything means the end.
async fn pass_on(mut commands: UnboundedReceiver<Command>, inbox: Arc<Inbox>) {
    loop {
        let command = commands.recv().await.unwrap_or(Command::End);
        inbox.send(Message::Command(command));
        if command == Command::End {
            return;
        }
    }
}

/// What ends a worker's tasks.
#[derive(Clone)]
pub(super) struct Stop {
    /// No new connections from the network.
    pub(super) inbound: CancellationToken,
    /// Nothing goes on.
    pub(super) cut: CancellationToken,
}

/// Tunnels that are open.
#[derive(Clone, Default)]
pub(super) struct Tunnels {
    pub(super) open: Present,
    /// Those of them that have outlived a certificate.
    pub(super) outlived: Present,
}

/// How many of something are there, by direction.
#[derive(Clone, Default)]
pub(super) struct Present {
    pub(super) inbound: Rc<Cell<u64>>,
    pub(super) outbound: Rc<Cell<u64>>,
}

impl Present {
    /// One more, until what is returned is dropped.
    pub(super) fn one(&self, inbound: bool) -> OneOpen {
        let counted = if inbound { &self.inbound } else { &self.outbound };
        counted.set(counted.get() + 1);
        OneOpen(counted.clone())
    }

    pub(super) fn sum(&self) -> u64 {
        self.inbound.get() + self.outbound.get()
    }
}

/// One that is counted, until it is dropped.
pub(super) struct OneOpen(Rc<Cell<u64>>);

impl Drop for OneOpen {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// How long the end waits for peers that read our last words.
const LAST_WORDS: Duration = Duration::from_millis(200);

struct Loop {
    worker: Worker,
    ready: Arc<Ready>,
    tunnels: Tunnels,
    stop: Stop,
    open: Arc<Open>,
    turn: Vec<WireKey>,
    alarm: Pin<Box<Sleep>>,
}

impl Loop {
    async fn run(mut self) -> Cut {
        let mut next_look = Instant::now() + upkeep::LOOK_EVERY;
        loop {
            // Unconstrained: tokio's budget would make it wait for sockets that are ready.
            tokio::task::unconstrained(poll_fn(|cx| self.wait(cx, next_look))).await;
            if let Some(cut) = self.turn() {
                self.last_words_are_read().await;
                return cut;
            }
            if self.worker.now >= next_look {
                self.worker.look_at_wires(&self.tunnels);
                self.worker.look_at_endpoints();
                self.worker.flush();
                *self.open.endpoints.lock() = Shown::all(&self.worker.services, self.worker.now);
                self.open.pools.store(self.worker.pools.len() as u64, Relaxed);
                next_look = self.worker.now + upkeep::LOOK_EVERY;
            }
            self.tell_what_is_open();
            if !self.worker.unfinished.is_empty() {
                // The kernel is asked once before the next turn, so that nobody waits for a busy neighbour.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Waits until a wire is ready, a message came, or something is due.
    fn wait(&mut self, cx: &mut Context<'_>, next_look: Instant) -> Poll<()> {
        self.ready.listen(cx.waker());
        self.ready.take(&mut self.turn);
        if !self.turn.is_empty() || !self.worker.unfinished.is_empty() || !self.worker.inbox.messages.lock().is_empty()
        {
            return Poll::Ready(());
        }
        let late = self.worker.wires.late.front().map(|reset| reset.due);
        let look = match self.worker.wires.slots.is_empty() {
            // Whoever has nothing to do turns all the same: else it looks like one that hangs (`app/watch.rs`).
            true => self.worker.now + upkeep::TURN_EVERY,
            false => next_look,
        };
        let due = [self.worker.timers.next(), late].into_iter().flatten();
        let at = due.fold(look, Instant::min);
        if self.alarm.deadline().into_std() != at {
            self.alarm.as_mut().reset(at.into());
        }
        self.alarm.as_mut().poll(cx)
    }

    /// One turn. Something is returned when it was the last.
    fn turn(&mut self) -> Option<Cut> {
        let worker = &mut self.worker;
        worker.now = Instant::now();
        worker.tick = Tick::new(worker.now, worker.epoch);
        let messages = mem::take(&mut *worker.inbox.messages.lock());
        for message in messages {
            match message {
                Message::Command(command) => {
                    if let Some(cut) = obey(worker, command, &self.stop, &self.tunnels) {
                        return Some(cut);
                    }
                }
                other => worker.hear(other),
            }
        }
        for _ in 0..worker.unfinished.len() {
            if let Some(key) = worker.unfinished.pop_front() {
                if let Some(wire) = worker.wires.slots.get_mut(key) {
                    wire.is_unfinished = false;
                }
                self.turn.push(key);
            }
        }
        worker.turns += 1;
        for key in self.turn.drain(..) {
            // Whoever is here for two reasons has one turn all the same.
            let turns = worker.turns as u32;
            match worker.wires.slots.get_mut(key) {
                Some(wire) if wire.turn != turns => wire.turn = turns,
                _ => continue,
            }
            worker.read(key);
            // A wire whose socket takes bytes again is written, too.
            worker.wires.touch(key);
        }
        worker.on_time();
        worker.flush();
        None
    }

    /// Waits for the peers to read what they were told last: most do at once.
    async fn last_words_are_read(&self) {
        let give_up = Instant::now() + LAST_WORDS;
        while self.worker.lingering.sum() > 0 && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn tell_what_is_open(&self) {
        self.open.turns.store(self.worker.turns, Relaxed);
        let counts = &self.worker.counts;
        counts.memory_held.set(self.worker.wires.shared.budget.used() as i64);
        let (tunnels, lingering) = (&self.tunnels.open, &self.worker.lingering);
        let inbound = counts.of(true).open() + tunnels.inbound.get() + lingering.inbound.get();
        let outbound = counts.of(false).open() + tunnels.outbound.get() + lingering.outbound.get();
        self.open.inbound.store(inbound, Relaxed);
        self.open.outbound.store(outbound, Relaxed);
    }
}

fn obey(worker: &mut Worker, command: Command, stop: &Stop, tunnels: &Tunnels) -> Option<Cut> {
    match command {
        Command::DrainInbound => {
            stop.inbound.cancel();
            worker.draining_inbound = true;
            worker.say_goaway(true);
        }
        Command::DrainOutbound => {
            worker.draining_outbound = true;
            worker.say_goaway(false);
        }
        Command::End => {
            stop.cut.cancel();
            let asked = worker.counts.of(true).open() + worker.counts.of(false).open();
            let connections = asked + tunnels.open.sum();
            let rpcs = worker.calls.len() as u64;
            worker.end_all();
            return Some(Cut { rpcs, connections });
        }
    }
    None
}

impl Worker {
    fn hear(&mut self, message: Message) {
        match message {
            Message::Adopt {
                transport,
                first,
                peer,
                side,
            } => self.adopt(transport, first, peer, side),
            Message::Dialled { pool, addr, result } => self.dialled(pool, addr, result),
            Message::DnsAnswered { service, answer } => self.dns_answered(service, answer),
            Message::Checked(checked) => self.checked(checked),
            Message::Learned { service, known } => self.learned(service, known),
            Message::Modes(modes) => self.modes = modes,
            Message::ShookHands { inbound, result } => self.counts.shook_hands(inbound, result, &self.recorder),
            Message::Late(service) => self.stop_waiting(service),
            Message::Command(_) => {}
        }
    }

    fn say_goaway(&mut self, inbound_side: bool) {
        for key in self.wires.slots.keys() {
            let Some((wire, _)) = self.wires.touch(key) else {
                continue;
            };
            if matches!(wire.side, Side::Caller { inbound, .. } if inbound == inbound_side) {
                wire.engine.begin_goaway();
            }
        }
    }
}

/// Tells the worker what the pod's ports take, whenever that changes.
async fn follow_modes(mut modes: watch::Receiver<Arc<policy::Inbound>>, inbox: Arc<Inbox>) {
    while modes.changed().await.is_ok() {
        let newest = modes.borrow_and_update().clone();
        inbox.send(Message::Modes(newest));
    }
}
