//! Picks an endpoint for one RPC: two are drawn, the cheaper one is taken.
//!
//! A [`Balancer`] belongs to one worker and one service. It does no I/O, reads no clock and throws no dice of its own:
//! `now` and the random numbers come in, so equal inputs give equal picks. Who uses it tells it what happened:
//!
//! ```text
//! update(addresses) ------------------------------> Changes: added, draining, gone
//! pick -> key -> begin -> call -+-> dial_failed(key) -> finished(call, Unsent) -> pick again with `Tried`
//!                                 +-> dial_ok(key) -> answered(call, latency) -> finished(call, Done)
//! ```
//!
//! # How it picks
//!
//! The cost of an endpoint is what an RPC may expect there: its latency (time to the first response headers), times the
//! RPCs that it would share the endpoint with. Those that wait for their first response headers count whole: if an
//! endpoint hangs, they are all there is to see. Those that have them (streams, perhaps for hours) count as the logarithm
//! of their number: enough to spread streams evenly, and too little for a thousand idle ones on an old endpoint to send
//! everything to a new one. The first endpoint is drawn by weight; the second, another one, as well.
//! The RPC stays with the first unless the second is cheaper, and then goes over with probability `1 - (c2/c1)^2`.
//!
//! Power of two choices is usually written with a hard comparison. It was softened for two reasons. Endpoints that are
//! equally fast never measure exactly the same, and a hard comparison sends everything to whoever looks a microsecond
//! better; here equal costs leave the first draw alone, so shares follow the weights exactly. And an endpoint that loses
//! every comparison gets no RPC that could clear its name; here it keeps a trickle.
//!
//! # What never happens
//!
//! - An endpoint that drains, or that this RPC has already tried, is never picked.
//! - A key of an endpoint that is gone never means another endpoint: keys carry a generation, stale ones are ignored.
//! - The estimate of latency is not moved by how long a stream lives, nor made better by failing fast.

mod choose;
pub mod eject;
mod endpoint;
pub mod health;
mod latency;
mod no_endpoint;
mod outcome;
#[cfg(test)]
mod tests;
mod tried;

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

pub use endpoint::{EndpointKey, State, View};
pub use no_endpoint::NoEndpoint;
pub use outcome::Outcome;
pub use tried::Tried;

use crate::slots::Slots;
use choose::Draw;
use eject::{Cause, Conduct};
use endpoint::{Endpoint, Fit, Standing};
use health::{Finding, Says, Thresholds, Verdict, Why};
use latency::{Latency, Norm};

/// Which endpoint takes the next RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Two endpoints are drawn by weight, the one with the lower expected latency is favoured.
    #[default]
    P2cEwma,
    /// Endpoints take turns in proportion to their weights (smooth weighted round robin), however fast they are.
    RoundRobin,
}

/// How a [`Balancer`] behaves. Everything has a default that needs no thought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The algorithm; P2C over EWMA.
    pub algorithm: Algorithm,
    /// Over how long the share of an endpoint that joined later grows from a tenth to the whole; 1 s. The endpoints of
    /// the first update start whole, and zero turns it off.
    pub slow_start: Duration,
    /// How fast what is known of an endpoint's latency is forgotten while nothing is heard of it; 5 s. Forgetting means
    /// to believe it to be like the others.
    pub decay: Duration,
    /// How long an endpoint is left alone after its first failed dial; 100 ms. Doubled with each further failure, and
    /// shortened by up to half at random.
    pub backoff_first: Duration,
    /// The longest that an endpoint is left alone between dials; 10 s.
    pub backoff_ceiling: Duration,
    /// While no endpoint is ready, how often each of those in back-off may still be tried, so that callers need not wait
    /// for the end of a long back-off once one is there again; 100 ms.
    pub last_resort_interval: Duration,
    /// Whom to eject.
    pub outlier: eject::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            slow_start: Duration::from_secs(1),
            decay: Duration::from_secs(5),
            backoff_first: Duration::from_millis(100),
            backoff_ceiling: Duration::from_secs(10),
            last_resort_interval: Duration::from_millis(100),
            outlier: eject::Settings::default(),
        }
    }
}

/// An endpoint as discovery names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its share relative to others of its priority; zero counts as one.
    pub weight: u32,
    /// Lower is preferred: others are used only while no endpoint of a lower number can be reached (RFC 2782).
    pub priority: u16,
}

/// What [`Balancer::update`] changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Endpoints that may be picked from now on and could not before.
    pub added: Vec<EndpointKey>,
    /// Endpoints that are no longer named: they take no new RPC, those that run may end. Each is returned by
    /// [`Balancer::finished`] when its last RPC has.
    pub draining: Vec<EndpointKey>,
    /// Endpoints that are no longer named and had no RPC: already forgotten, their connections can be closed.
    pub gone: Vec<Gone>,
}

/// An endpoint that the balancer has forgotten: nothing of it runs, nothing will be picked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// The key it had; stale from now on.
    pub key: EndpointKey,
    /// Where it listened.
    pub addr: SocketAddr,
}

/// What the end of an RPC did to its endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Left {
    /// The endpoint was draining, and this was the last: its connections can be closed.
    pub gone: Option<Gone>,
    /// That it failed was the last straw: the endpoint is ejected now.
    pub ejected: bool,
}

/// An RPC that begins at an endpoint.
#[derive(Debug)]
pub struct Begun {
    /// What it counts as; nothing, if it is no load.
    pub call: Option<Call>,
    /// Where the endpoint listens.
    pub addr: SocketAddr,
    /// What the owner hung on the endpoint; 0 if nothing.
    pub mark: u64,
}

/// An RPC at an endpoint, from [`Balancer::begin`] to [`Balancer::finished`]. Must be given back: until then it counts
/// as load, and its endpoint cannot go.
#[derive(Debug)]
#[must_use = "it counts as load until it is finished"]
pub struct Call {
    key: EndpointKey,
    answered: bool,
}

impl Call {
    /// The endpoint that was picked.
    pub fn key(&self) -> EndpointKey {
        self.key
    }
}

/// What became of an endpoint, for logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What is so now.
    pub to: TurnTo,
}

/// What an endpoint has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnTo {
    /// Ejected.
    Ejected {
        /// What it did.
        cause: Cause,
        /// For how long.
        lasts: Duration,
    },
    /// Back from an ejection.
    Back,
    /// Its checks say this, and have said something else so often since this was told last.
    Verdict(Verdict, u32),
}

/// The endpoints of one service as one worker sees them, and the choice among them.
#[derive(Debug)]
pub struct Balancer {
    settings: Settings,
    slots: Slots<Endpoint>,
    /// Every endpoint that discovery names, and those that drain.
    by_addr: HashMap<SocketAddr, EndpointKey>,
    /// The endpoints that discovery names now, in its order.
    named: Vec<EndpointKey>,
    updates: u64,
    norm: Norm,
    /// What can be picked by an RPC that has tried nothing: true until `ready_until`, unless `stale`.
    ready: Draw,
    ready_until: Option<Instant>,
    stale: bool,
    /// The same for an RPC that has tried some; kept for its memory only.
    rest: Draw,
    last_resort_at: Option<Instant>,
    /// RPCs that succeeded, at all endpoints together.
    well: u64,
    /// The same when they were looked at last.
    well_at_look: u64,
    /// RPCs that went to endpoints in spite of their health, beside those that the next look will see.
    in_spite: u64,
    turns: Vec<Turn>,
    /// Endpoints whose checks say something else than what was told last. A hostile one may change its mind with every
    /// byte: that is told once.
    turned: Vec<EndpointKey>,
}

impl Balancer {
    /// A balancer that knows no endpoint yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            slots: Slots::default(),
            by_addr: HashMap::new(),
            named: Vec::new(),
            updates: 0,
            norm: Norm::default(),
            ready: Draw::default(),
            ready_until: None,
            stale: false,
            rest: Draw::default(),
            last_resort_at: None,
            well: 0,
            well_at_look: 0,
            in_spite: 0,
            turns: Vec::new(),
            turned: Vec::new(),
        }
    }

    /// Does as these settings say from now on. What has begun ends as it would have.
    pub fn set(&mut self, settings: Settings) {
        if self.settings != settings {
            self.settings = settings;
            self.stale = true;
        }
    }

    /// Takes the endpoints that discovery names now. What is known of those that stay, stays. An address that is named
    /// twice counts once, with the sum of its weights and the lowest of its priorities.
    pub fn update(&mut self, specs: &[EndpointSpec], now: Instant) -> Changes {
        let mut changes = Changes::default();
        let first = self.named.is_empty();
        let before = std::mem::take(&mut self.named);
        self.updates += 1;
        let mut seen = HashMap::with_capacity(specs.len());
        for spec in specs {
            let merged = seen.entry(spec.addr).or_insert(EndpointSpec { weight: 0, ..*spec });
            merged.weight = merged.weight.saturating_add(spec.weight.max(1));
            merged.priority = merged.priority.min(spec.priority);
        }
        for spec in specs {
            let Some(spec) = seen.remove(&spec.addr) else { continue };
            let key = match self.by_addr.entry(spec.addr) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(unknown) => {
                    let joined = (!first && !self.settings.slow_start.is_zero()).then_some(now);
                    let conduct = Conduct::new(now, self.well);
                    let key = self.slots.insert(Endpoint::new(spec, joined, conduct));
                    changes.added.push(key);
                    *unknown.insert(key)
                }
            };
            if let Some(endpoint) = self.slots.get_mut(key) {
                if endpoint.draining {
                    changes.added.push(key);
                }
                endpoint.draining = false;
                endpoint.named_by = self.updates;
                endpoint.weight = spec.weight;
                endpoint.priority = spec.priority;
                self.named.push(key);
            }
        }
        for key in before {
            let Some(endpoint) = self
                .slots
                .get_mut(key)
                .filter(|endpoint| endpoint.named_by != self.updates)
            else {
                continue;
            };
            endpoint.draining = true;
            if endpoint.in_flight() > 0 {
                changes.draining.push(key);
            } else {
                changes.gone.extend(self.forget(key));
            }
        }
        self.ready.reserve(self.named.len());
        self.rest.reserve(self.named.len());
        self.stale = true;
        self.let_back_too_many(now);
        changes
    }

    /// Picks an endpoint for an RPC that has `tried` some without success.
    ///
    /// Call [`Balancer::begin`] at once, also when the endpoint must be dialled first: an RPC that waits for a dial is
    /// load. Endpoints in back-off are left alone while any other can be picked. When there is no other, each of them
    /// is still offered to one RPC every [`Settings::last_resort_interval`]; the rest fail at once, with the reason.
    #[inline(always)]
    pub fn pick(&mut self, now: Instant, rng: &mut impl Rng, tried: &Tried) -> Result<EndpointKey, NoEndpoint> {
        if self.stale || self.ready_until.is_some_and(|until| until <= now) {
            self.ready_until = self.ready.fill(&self.slots, &self.named, &Tried::default(), now);
            self.stale = false;
        }
        let key = if tried.is_empty() {
            self.ready.take(&mut self.slots, &self.settings, &self.norm, now, rng)
        } else {
            self.rest.fill(&self.slots, &self.named, tried, now);
            self.rest.take(&mut self.slots, &self.settings, &self.norm, now, rng)
        };
        let key = match key {
            Some(key) => key,
            None => self.last_resort(now, tried)?,
        };
        if let Some(endpoint) = self.slots.get_mut(key) {
            endpoint.picked += 1;
            self.stale |= endpoint.on_picked(now);
        }
        Ok(key)
    }

    /// An RPC is on its way to the endpoint: it counts as load until [`Balancer::finished`], unless it is none. Nothing if the
    /// endpoint is gone.
    #[inline(always)]
    pub fn begin(&mut self, key: EndpointKey, is_load: bool) -> Option<Begun> {
        let endpoint = self.slots.get_mut(key)?;
        if is_load {
            endpoint.waiting = endpoint.waiting.saturating_add(1);
        }
        Some(Begun {
            call: is_load.then_some(Call { key, answered: false }),
            addr: endpoint.addr,
            mark: endpoint.mark,
        })
    }

    /// The first response headers of an RPC came, `latency` after [`Balancer::begin`]. This is all that counts for
    /// the endpoint's speed, and it counts once. An answer that says the endpoint could not serve is none: report it as
    /// [`Outcome::Failed`] alone.
    #[inline(always)]
    pub fn answered(&mut self, call: &mut Call, latency: Duration, now: Instant) {
        let mut back = false;
        if let Some(endpoint) = self.slots.get_mut(call.key).filter(|_| !call.answered) {
            endpoint.waiting = endpoint.waiting.saturating_sub(1);
            endpoint.streaming = endpoint.streaming.saturating_add(1);
            endpoint.latency.heard(latency, &self.norm, now, self.settings.decay);
            self.norm.heard(latency);
            back = matches!(endpoint.standing, Standing::Probe { .. });
        }
        call.answered = true;
        if back {
            self.come_back(call.key, now);
        }
    }

    /// An RPC has ended. Where it is the failure that ejects its endpoint, that begins now.
    #[inline(always)]
    pub fn finished(&mut self, call: Call, outcome: Outcome, now: Instant, rng: &mut impl Rng) -> Left {
        let Some(endpoint) = self.slots.get_mut(call.key) else {
            return Left::default();
        };
        let mut ejected = false;
        let count = if call.answered {
            &mut endpoint.streaming
        } else {
            &mut endpoint.waiting
        };
        *count = count.saturating_sub(1);
        match outcome {
            Outcome::Done => {
                self.well += 1;
                endpoint.conduct.succeeded(now, self.well);
            }
            Outcome::Unsent => {}
            Outcome::Failed => {
                endpoint.latency.failed(&self.norm, now, self.settings.decay);
                endpoint.conduct.failed();
                if endpoint.conduct.fails(&self.settings.outlier) {
                    ejected = self.eject(call.key, Cause::Failures, now, rng);
                }
            }
            Outcome::Abandoned { .. } if call.answered => {}
            Outcome::Unfinished { waited } | Outcome::Abandoned { waited } => {
                if !call.answered {
                    endpoint.latency.at_least(waited, &self.norm, now, self.settings.decay);
                }
                if waited >= in_vain(&self.norm) && endpoint.conduct.is_since_well(waited, now) {
                    endpoint.conduct.waited();
                }
            }
        }
        let is_last = |endpoint: &Endpoint| endpoint.draining && endpoint.in_flight() == 0;
        let gone = self.slots.get(call.key).is_some_and(is_last);
        Left {
            gone: if gone { self.forget(call.key) } else { None },
            ejected,
        }
    }

    /// An RPC has no whole message yet, `waited` after [`Balancer::begin`], and its request is whole. To be told of each such
    /// RPC, before [`Balancer::looked`]: one that never ends would never be heard of otherwise.
    pub fn sees(&mut self, call: &Call, waited: Duration, now: Instant) {
        let in_vain = in_vain(&self.norm);
        // One that drains is judged by nobody, and begins anew if it is named again.
        if let Some(endpoint) = self.slots.get_mut(call.key).filter(|endpoint| !endpoint.draining)
            && waited >= in_vain
            && endpoint.conduct.is_since_well(waited, now)
        {
            let overdue = waited >= in_vain.max(OVERDUE);
            endpoint.conduct.sees(waited, overdue, call.answered);
        }
    }

    /// All RPCs have been looked at: endpoints at which they wait for too long lose their share, or are ejected. Returns how
    /// many RPCs went to endpoints that failed their health checks, because too few did not, since the last look.
    pub fn looked(&mut self, now: Instant, rng: &mut impl Rng) -> u64 {
        let lately = self.well - std::mem::replace(&mut self.well_at_look, self.well);
        let mut picked_unhealthy = std::mem::take(&mut self.in_spite);
        let mut silent = Vec::new();
        for key in &self.named {
            let Some(endpoint) = self.slots.get_mut(*key) else {
                continue;
            };
            picked_unhealthy += endpoint.picked_unhealthy();
            let longest = endpoint.conduct.seen();
            if !longest.is_zero() {
                endpoint.latency.waits(longest, &self.norm, now, self.settings.decay);
            }
            if endpoint.conduct.is_silent(&self.settings.outlier, self.well, lately) {
                silent.push(*key);
            }
        }
        for key in silent {
            self.eject(key, Cause::Silent, now, rng);
        }
        picked_unhealthy
    }

    /// A health check found this. An endpoint that is well again comes back slowly. That it says SERVING ends its ejection,
    /// too, but not a second time soon after the first: then its checks are not what its RPCs are like.
    pub fn found(&mut self, key: EndpointKey, finding: Finding, thresholds: Thresholds, now: Instant) {
        let slow_start = !self.settings.slow_start.is_zero();
        let Some(endpoint) = self.slots.get_mut(key) else {
            return;
        };
        let was_well = endpoint.fit() == Fit::Well;
        // Counted before the verdict is another.
        self.in_spite += endpoint.picked_unhealthy();
        if endpoint.health.found(finding, thresholds) {
            if endpoint.turned == 0 {
                self.turned.push(key);
            }
            endpoint.turned = endpoint.turned.saturating_add(1);
            if !was_well && endpoint.fit() == Fit::Well && slow_start {
                endpoint.joined = Some(now);
            }
            self.stale = true;
        }
        let Some(endpoint) = self.slots.get(key) else { return };
        if let Standing::Ejected { since, .. } | Standing::Probe { since, .. } = endpoint.standing
            && finding == Finding::Serving
            && endpoint.conduct.ejections() == 1
            && now.saturating_duration_since(since) >= OVERDUE
        {
            self.come_back(key, now);
        }
    }

    /// Nobody checks the endpoint's health any more: nothing is held against it.
    pub fn forget_health(&mut self, key: EndpointKey) {
        if let Some(endpoint) = self.slots.get_mut(key) {
            self.in_spite += endpoint.picked_unhealthy();
            self.stale |= endpoint.health.forget();
        }
    }

    /// What became of the endpoints since this was asked last.
    pub fn take_turns(&mut self) -> Vec<Turn> {
        let mut turns = std::mem::take(&mut self.turns);
        for key in self.turned.drain(..) {
            // One that is gone says nothing any more.
            let Some(endpoint) = self.slots.get_mut(key) else {
                continue;
            };
            let times = std::mem::take(&mut endpoint.turned);
            turns.push(Turn {
                addr: endpoint.addr,
                to: TurnTo::Verdict(endpoint.health.verdict(), times),
            });
        }
        turns
    }

    /// No connection to the endpoint could be made, and none is left: it is left alone for a while that doubles with
    /// each failure in a row.
    pub fn dial_failed(&mut self, key: EndpointKey, now: Instant, rng: &mut impl Rng) {
        if let Some(endpoint) = self.slots.get_mut(key) {
            let doubled = self
                .settings
                .backoff_first
                .saturating_mul(1 << endpoint.failures.min(16));
            let pause = doubled
                .min(self.settings.backoff_ceiling)
                .mul_f64(rng.random_range(0.5..=1.0));
            endpoint.failures = endpoint.failures.saturating_add(1);
            match endpoint.standing {
                Standing::Ready | Standing::Backoff { .. } | Standing::Trial { .. } => {
                    endpoint.conduct.failed();
                    endpoint.standing = Standing::Backoff {
                        until: now + pause,
                        since: now,
                    };
                }
                Standing::Ejected { .. } => {}
                Standing::Probe { cause, .. } => {
                    self.eject(key, cause, now, rng);
                }
            }
            self.stale = true;
        }
    }

    /// A connection to the endpoint stands. After failures its share grows slowly, as that of a new one.
    #[inline(always)]
    pub fn dial_ok(&mut self, key: EndpointKey, now: Instant) {
        if let Some(endpoint) = self.slots.get_mut(key)
            && matches!(endpoint.standing, Standing::Backoff { .. } | Standing::Trial { .. })
        {
            endpoint.standing = Standing::Ready;
            endpoint.failures = 0;
            endpoint.joined = (!self.settings.slow_start.is_zero()).then_some(now);
            self.stale = true;
        }
    }

    /// The endpoint that listens at `addr`, if there is one.
    pub fn at(&self, addr: SocketAddr) -> Option<EndpointKey> {
        self.by_addr.get(&addr).copied()
    }

    /// Hangs something of the owner's on the endpoint.
    pub fn set_mark(&mut self, key: EndpointKey, mark: u64) {
        if let Some(endpoint) = self.slots.get_mut(key) {
            endpoint.mark = mark;
        }
    }

    /// Where the endpoint listens; nothing if it is gone.
    pub fn addr(&self, key: EndpointKey) -> Option<SocketAddr> {
        self.slots.get(key).map(|endpoint| endpoint.addr)
    }

    /// Every endpoint with what is known of it, those that drain too: for `/endpoints` and metrics.
    pub fn endpoints(&self, now: Instant) -> impl Iterator<Item = View> {
        self.slots
            .iter()
            .map(move |(key, endpoint)| endpoint.view(key, &self.norm, now, self.settings.decay))
    }

    /// How many endpoints discovery names.
    pub fn len(&self) -> usize {
        self.named.len()
    }

    /// Whether discovery names none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Nothing is ready: the untried endpoint that was left alone the longest, if it may be tried again already.
    fn last_resort(&mut self, now: Instant, tried: &Tried) -> Result<EndpointKey, NoEndpoint> {
        let count = self.named.len();
        if count == 0 {
            return Err(NoEndpoint::NoneKnown);
        }
        let waiting = self
            .named
            .iter()
            .filter(|key| !tried.contains(**key))
            .filter_map(|key| {
                let endpoint = self.slots.get(*key)?;
                if endpoint.fit() == Fit::Refuses {
                    return None;
                }
                Some((
                    endpoint.standing.last_resort(self.settings.last_resort_interval),
                    endpoint.priority,
                    *key,
                ))
            });
        let Some((due, _, key)) = waiting.min_by_key(|(due, priority, _)| ((*due).max(Some(now)), *priority, *due))
        else {
            return Err(self.none_left(tried));
        };
        let paced = self.last_resort_at.map(|last| last + LAST_RESORT_PACE);
        let due = due.max(paced).unwrap_or(now);
        if due > now {
            return Err(NoEndpoint::AllInBackoff {
                count,
                refusing: self.refusals().count(),
                retry_in: due - now,
            });
        }
        self.last_resort_at = Some(now);
        Ok(key)
    }

    fn tell(&mut self, turn: Turn) {
        // Nobody asks: a balancer without a worker.
        if self.turns.len() < MOST_TURNS {
            self.turns.push(turn);
        }
    }

    /// Leaves the endpoint alone for a while, if it is not already, and enough others are left. Whether that begins.
    #[cold]
    fn eject(&mut self, key: EndpointKey, cause: Cause, now: Instant, rng: &mut impl Rng) -> bool {
        let settings = self.settings.outlier;
        let others = self.ejected().filter(|ejected| *ejected != key).count();
        let Some(endpoint) = self.slots.get_mut(key) else {
            return false;
        };
        let is_ejected = matches!(endpoint.standing, Standing::Ejected { .. });
        if is_ejected || endpoint.draining || others >= settings.most(self.named.len()) {
            return false;
        }
        let lasts = endpoint.conduct.eject(&settings, now, rng.random_range(0.5..=1.0));
        endpoint.standing = Standing::Ejected {
            until: now + lasts,
            since: now,
            cause,
        };
        self.stale = true;
        let turn = Turn {
            addr: endpoint.addr,
            to: TurnTo::Ejected { cause, lasts },
        };
        self.tell(turn);
        true
    }

    fn ejected(&self) -> impl Iterator<Item = EndpointKey> {
        let is_ejected = |key: &EndpointKey| {
            self.slots
                .get(*key)
                .is_some_and(|endpoint| endpoint.standing.is_ejected())
        };
        self.named.iter().copied().filter(is_ejected)
    }

    /// The endpoint was ejected, and is not any more: its share grows slowly, and one failure takes it away again.
    fn come_back(&mut self, key: EndpointKey, now: Instant) {
        let slow_start = !self.settings.slow_start.is_zero();
        let Some(endpoint) = self.slots.get_mut(key) else {
            return;
        };
        endpoint.standing = Standing::Ready;
        endpoint.failures = 0;
        endpoint.latency = Latency::default();
        endpoint.conduct.back(now);
        endpoint.joined = slow_start.then_some(now);
        self.stale = true;
        let turn = Turn {
            addr: endpoint.addr,
            to: TurnTo::Back,
        };
        self.tell(turn);
    }

    /// Endpoints left, so that too many of the rest are ejected: those whose time is over soonest come back.
    fn let_back_too_many(&mut self, now: Instant) {
        let most = self.settings.outlier.most(self.named.len());
        let mut ejected: Vec<_> = self.ejected().collect();
        let until = |key: &EndpointKey| {
            self.slots
                .get(*key)
                .and_then(|endpoint| endpoint.standing.eligible_from())
        };
        ejected.sort_by_key(until);
        let too_many = ejected.len().saturating_sub(most);
        for key in ejected.into_iter().take(too_many) {
            self.come_back(key, now);
        }
    }

    /// Why an RPC that has `tried` some has nowhere to go.
    fn none_left(&self, tried: &Tried) -> NoEndpoint {
        let count = self.named.len();
        if self.named.iter().all(|key| tried.contains(*key)) {
            return NoEndpoint::AllTried { count };
        }
        NoEndpoint::NotServing {
            count,
            refusing: self.refusals().count(),
            says: self.refusals().min().unwrap_or(Says::NotServing),
        }
    }

    /// What those say that say of themselves that they do not serve.
    fn refusals(&self) -> impl Iterator<Item = Says> {
        let endpoints = self.named.iter().filter_map(|key| self.slots.get(*key));
        endpoints.filter_map(|endpoint| match endpoint.health.verdict() {
            Verdict::Unhealthy(Why::Says(says)) => Some(says),
            _ => None,
        })
    }

    fn forget(&mut self, key: EndpointKey) -> Option<Gone> {
        let endpoint = self.slots.remove(key)?;
        self.by_addr.remove(&endpoint.addr);
        self.stale = true;
        Some(Gone {
            key,
            addr: endpoint.addr,
        })
    }
}

/// The least time between two last resorts of a balancer, whatever the number of its endpoints.
const LAST_RESORT_PACE: Duration = Duration::from_millis(5);
/// An RPC that has waited for so long can be overdue, however long RPCs usually wait.
const OVERDUE: Duration = Duration::from_secs(1);
/// Waiting for less tells nothing.
const SHORT: Duration = Duration::from_millis(100);
/// How many times longer than usual is far too long.
const FAR_TOO_LONG: u32 = 8;
/// What became of endpoints, kept for whoever asks.
const MOST_TURNS: usize = 1_000;

/// How long an RPC must wait for that to be far too long.
fn in_vain(norm: &Norm) -> Duration {
    norm.usual()
        .map_or(Duration::MAX, |usual| usual.saturating_mul(FAR_TOO_LONG).max(SHORT))
}
