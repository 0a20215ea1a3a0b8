//! One endpoint: what discovery said of it, what was seen of it, and the key by which it is known.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    EndpointSpec,
    eject::{Cause, Conduct},
    health::{Health, Verdict, Why},
    latency::{Latency, Norm},
};
use crate::slots::Key;

/// Names an endpoint of one [`super::Balancer`]. A key that outlives its endpoint is harmless: it means nobody.
pub type EndpointKey = Key<Endpoint>;

/// Whether an endpoint can be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It can.
    Ready,
    /// It could not be reached and is left alone until then.
    Backoff {
        /// When it may be dialled again.
        until: Instant,
    },
    /// RPC after RPC failed there, and it is left alone until then.
    Ejected {
        /// When one RPC may try it.
        until: Instant,
        /// What it did.
        cause: Cause,
    },
    /// Its health checks say that it does not serve, or say nothing.
    Unhealthy(Why),
    /// Discovery no longer names it: it takes no new RPC, those that run may end.
    Draining,
}

/// What is known of an endpoint, for people to look at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct View {
    /// Its key.
    pub key: EndpointKey,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its share relative to others of its priority.
    pub weight: u32,
    /// Lower is preferred.
    pub priority: u16,
    /// Whether it can be picked.
    pub state: State,
    /// RPCs that run there, of this worker.
    pub in_flight: u32,
    /// The expected time to the first response headers; nothing while none came.
    pub latency: Option<Duration>,
    /// How often it was picked.
    pub picked: u64,
}

/// What is known of an endpoint; only its balancer sees inside.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) addr: SocketAddr,
    pub(super) weight: u32,
    pub(super) priority: u16,
    pub(super) draining: bool,
    /// The number of the last update that named it.
    pub(super) named_by: u64,
    pub(super) standing: Standing,
    pub(super) failures: u32,
    pub(super) conduct: Conduct,
    pub(super) health: Health,
    /// How often its verdict has turned since that was told.
    pub(super) turned: u32,
    /// How often it had been picked when that was last counted as done in spite of its health.
    pub(super) counted: u64,
    /// The owner's own.
    pub(super) mark: u64,
    /// RPCs without response headers yet.
    pub(super) waiting: u32,
    /// RPCs with response headers, not ended.
    pub(super) streaming: u32,
    pub(super) picked: u64,
    pub(super) latency: Latency,
    /// Since when its share grows; nothing once it is whole.
    pub(super) joined: Option<Instant>,
    /// Its turn in the smooth weighted round robin; nothing before its first.
    pub(super) turn: Option<i64>,
}

/// Whether an endpoint can be reached, and does what it is asked, as far as dialling and RPCs have shown.
///
/// ```text
///          dial_failed                pause over, picked
///  Ready -------------> Backoff <-----------------------> Trial
///   ^ |                    |          dial_failed           |
///   | +<-------------------+--------------------------------+
///   | |                  dial_ok
///   | | failures in a row (also out of Backoff and Trial), while others are left
///   | v                               time over, picked
///   | Ejected <------------------------------------------> Probe
///   |    |          dial_failed, failed, or silent           |
///   +----+---------------------------------------------------+
///     a check says SERVING (the first time), or an RPC is answered: slow start, and one failure ejects again
/// ```
///
/// The checks' [`Verdict`] stands beside it: RPCs go where both allow it. So an endpoint that comes back from an ejection is
/// still not picked while it says NOT_SERVING, and one that says SERVING is not while nobody reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Ready,
    /// Left alone until then; from then on one RPC may try it.
    Backoff {
        until: Instant,
        since: Instant,
    },
    /// One RPC is trying it. Nobody else does, unless nothing is heard of that for a while.
    Trial {
        since: Instant,
    },
    /// Left alone until then; from then on one RPC may probe it.
    Ejected {
        until: Instant,
        since: Instant,
        cause: Cause,
    },
    /// One RPC probes it. Nobody else does, unless that RPC ends without telling anything.
    Probe {
        since: Instant,
        cause: Cause,
    },
}

impl Standing {
    /// From when it may be picked as any other.
    pub(super) fn eligible_from(&self) -> Option<Instant> {
        match *self {
            Standing::Ready => None,
            Standing::Backoff { until, .. } => Some(until),
            Standing::Trial { since } => Some(since + TRIAL_PATIENCE),
            Standing::Ejected { until, .. } => Some(until),
            Standing::Probe { since, .. } => Some(since + PROBE_PATIENCE),
        }
    }

    /// From when it may be picked if there is no other.
    pub(super) fn last_resort(&self, interval: Duration) -> Option<Instant> {
        match *self {
            Standing::Ready => None,
            Standing::Backoff { since, .. }
            | Standing::Trial { since }
            | Standing::Ejected { since, .. }
            | Standing::Probe { since, .. } => Some(since + interval),
        }
    }

    /// Whether it counts among those that are ejected at once.
    pub(super) fn is_ejected(&self) -> bool {
        match self {
            Standing::Ejected { .. } | Standing::Probe { .. } => true,
            Standing::Ready | Standing::Backoff { .. } | Standing::Trial { .. } => false,
        }
    }
}

/// What its health checks allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// RPCs go there.
    Well,
    /// RPCs go there if fewer than half of its fellows are well.
    Spare,
    /// No RPC goes there.
    Refuses,
}

impl Endpoint {
    pub(super) fn new(spec: EndpointSpec, joined: Option<Instant>, conduct: Conduct) -> Self {
        Self {
            addr: spec.addr,
            weight: spec.weight,
            priority: spec.priority,
            draining: false,
            named_by: 0,
            standing: Standing::Ready,
            failures: 0,
            conduct,
            health: Health::default(),
            turned: 0,
            counted: 0,
            mark: 0,
            waiting: 0,
            streaming: 0,
            picked: 0,
            latency: Latency::default(),
            joined,
            turn: None,
        }
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.waiting.saturating_add(self.streaming)
    }

    /// How many RPCs one more would share it with, as far as they count.
    pub(super) fn load(&self) -> f64 {
        match self.streaming {
            0 => f64::from(self.waiting),
            streaming => f64::from(self.waiting) + f64::from(self.conduct.stuck) + f64::from(streaming).ln_1p(),
        }
    }

    /// Whether its ejection is over, as soon as its time is.
    pub(super) fn is_due_for_probe(&self) -> bool {
        matches!(self.standing, Standing::Ejected { .. })
    }

    pub(super) fn fit(&self) -> Fit {
        match self.health.verdict() {
            Verdict::Unknown | Verdict::Healthy => Fit::Well,
            Verdict::Unhealthy(why) if why.may_be_tried() => Fit::Spare,
            Verdict::Unhealthy(_) => Fit::Refuses,
        }
    }

    /// How many RPCs it was sent in spite of its health, since that was asked last.
    pub(super) fn picked_unhealthy(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.counted, self.picked);
        match self.health.verdict() {
            Verdict::Unhealthy(_) => self.picked - before,
            Verdict::Unknown | Verdict::Healthy => 0,
        }
    }

    /// An RPC is going there. Says whether that changes who else may.
    pub(super) fn on_picked(&mut self, now: Instant) -> bool {
        match self.standing {
            Standing::Ready => false,
            Standing::Backoff { .. } | Standing::Trial { .. } => {
                self.standing = Standing::Trial { since: now };
                true
            }
            Standing::Ejected { cause, .. } | Standing::Probe { cause, .. } => {
                self.conduct.on_probation();
                self.standing = Standing::Probe { since: now, cause };
                true
            }
        }
    }

    /// How much of its share it takes: grows from a tenth to the whole over `slow_start` after it joined.
    pub(super) fn ramp(&mut self, now: Instant, slow_start: Duration) -> f64 {
        let Some(joined) = self.joined else { return 1.0 };
        let grown = now.saturating_duration_since(joined).as_secs_f64() / slow_start.as_secs_f64();
        if grown >= 1.0 {
            self.joined = None;
            return 1.0;
        }
        grown.max(0.1)
    }

    pub(super) fn view(&self, key: EndpointKey, norm: &Norm, now: Instant, decay: Duration) -> View {
        let state = match (self.health.verdict(), self.standing) {
            _ if self.draining => State::Draining,
            (Verdict::Unhealthy(why), _) => State::Unhealthy(why),
            (_, Standing::Ready) => State::Ready,
            (_, Standing::Backoff { until, .. }) => State::Backoff { until },
            (_, Standing::Trial { since }) => State::Backoff { until: since },
            (_, Standing::Ejected { until, cause, .. }) => State::Ejected { until, cause },
            (_, Standing::Probe { since, cause }) => State::Ejected { until: since, cause },
        };
        View {
            key,
            addr: self.addr,
            weight: self.weight,
            priority: self.priority,
            state,
            in_flight: self.in_flight(),
            latency: self.latency.known(norm, now, decay),
            picked: self.picked,
        }
    }
}

/// How long one RPC may be the only one that tries an endpoint after its back-off.
const TRIAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long one RPC may be the only one that probes an endpoint after its ejection. Longer than it takes to see that it is
/// not answered: this is for one that ended without telling anything.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
