//! Outliers: an endpoint that fails one RPC after the other is left alone for a while, whatever its health checks say.
//!
//! What counts against an endpoint, in a row, until an RPC succeeds there:
//! - a failed dial (which has a back-off of its own, so it ejects nobody by itself), a lost connection, a reset,
//!   `UNAVAILABLE`;
//! - an RPC that waited far longer than usual, and still waits for its first response headers, or for its first whole
//!   message, or ended so: but only if the others have finished as many in the meantime. Waiting is no fault where
//!   everybody waits.

use std::time::{Duration, Instant};

use crate::words::words;

/// Whom to eject, and for how long. Names and defaults are Envoy's, where it has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Failures in a row that eject an endpoint; 5. Zero ejects nobody.
    pub consecutive_failures: u32,
    /// The first ejection; 30 s. Doubled with each that follows before the endpoint has been well for as long as the last
    /// one lasted, and shortened by up to half at random.
    pub base_ejection: Duration,
    /// The longest ejection; 5 min.
    pub max_ejection: Duration,
    /// How many of the endpoints may be ejected at once, in percent, rounded down; 50.
    pub max_ejection_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejection_percent: 50,
        }
    }
}

impl Settings {
    /// How many of `endpoints` may be ejected at once.
    pub(super) fn most(&self, endpoints: usize) -> usize {
        endpoints * self.max_ejection_percent.min(100) as usize / 100
    }

    /// How long the ejection lasts that follows `before` others. `shortened` is between a half and one.
    pub(super) fn lasts(&self, before: u32, shortened: f64) -> Duration {
        let doubled = self.base_ejection.saturating_mul(1 << before.min(16));
        doubled.min(self.max_ejection).mul_f64(shortened)
    }
}

words! {
    /// Why an endpoint was ejected.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Cause, word {
        /// Its RPCs failed.
        Failures = "failures",
        /// Its RPCs are not answered, or only in part.
        Silent = "silent",
    }
}

/// What speaks against an endpoint since an RPC succeeded there last.
///
/// ```text
///   an RPC ends:  succeeded (all begins anew)    failed ──▶ fails? ──yes──┐    waited
///                                                                         ▼
///   a look:       sees, for each that waits ──▶ seen ──▶ is_silent? ─yes─▶ eject ──(it lasts)──▶ back
///                                                                         ▲                       │
///                                                                         └──the next failure─────┤
///                                                                   a success: as if nothing were ┘
/// ```
#[derive(Debug)]
pub(super) struct Conduct {
    failed: u32,
    /// Whether one failure is enough.
    probation: bool,
    /// RPCs that ended after far too long without an answer.
    waited: u32,
    /// RPCs that wait far too long now, as of the last look.
    waiting: u32,
    /// Whether any waits too long to tell nothing, as of the last look.
    any_waits: bool,
    /// Whether, when the last look began, RPCs had waited too long already.
    had_waited: bool,
    /// RPCs that had headers and no whole message for too long, as of the last look: nobody knows that they are well.
    pub(super) stuck: u32,
    /// The look that goes on.
    look: Look,
    /// When an RPC succeeded last, and how many had at all endpoints together.
    well: Instant,
    well_of_all: u64,
    /// Ejections that followed close upon each other.
    ejections: u32,
    /// When it came back from the last, and how long that was.
    back: Option<(Instant, Duration)>,
    lasted: Duration,
}

/// What a look at the RPCs of an endpoint has seen so far.
#[derive(Debug, Default)]
struct Look {
    /// RPCs that wait far too long.
    overdue: u32,
    /// Those among all that have headers, and no whole message.
    half: u32,
    /// Whether there is any that waits too long to tell nothing.
    any: bool,
    /// How long the longest without headers has waited.
    longest: Duration,
}

impl Conduct {
    pub(super) fn new(now: Instant, well_of_all: u64) -> Conduct {
        Conduct {
            failed: 0,
            probation: false,
            waited: 0,
            waiting: 0,
            any_waits: false,
            had_waited: false,
            stuck: 0,
            look: Look::default(),
            well: now,
            well_of_all,
            ejections: 0,
            back: None,
            lasted: Duration::ZERO,
        }
    }

    /// An RPC succeeded. `of_all` have, at all endpoints together.
    #[inline(always)]
    pub(super) fn succeeded(&mut self, now: Instant, of_all: u64) {
        self.failed = 0;
        self.waited = 0;
        self.probation = false;
        self.well = now;
        self.well_of_all = of_all;
    }

    /// An RPC, or a dial, failed.
    pub(super) fn failed(&mut self) {
        self.failed = self.failed.saturating_add(1);
    }

    /// An RPC ended without an answer after far too long.
    pub(super) fn waited(&mut self) {
        self.waited = self.waited.saturating_add(1);
    }

    /// Whether an RPC that began `ago` began after the last success: one before it says nothing of how things are now.
    pub(super) fn is_since_well(&self, ago: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.well) >= ago
    }

    /// The look sees an RPC that has waited for `waited`: far too long, if `overdue`; with headers but no message, if `half`.
    pub(super) fn sees(&mut self, waited: Duration, overdue: bool, half: bool) {
        self.look.any = true;
        self.look.overdue += u32::from(overdue);
        self.look.half += u32::from(half);
        if !half {
            self.look.longest = self.look.longest.max(waited);
        }
    }

    /// The look is over. Returns how long the longest RPC has waited for its first headers.
    pub(super) fn seen(&mut self) -> Duration {
        let look = std::mem::take(&mut self.look);
        self.waiting = look.overdue;
        self.stuck = look.half;
        self.any_waits = look.any;
        look.longest
    }

    /// Whether it has failed so often that it is to be ejected.
    pub(super) fn fails(&self, settings: &Settings) -> bool {
        settings.consecutive_failures > 0 && self.failed >= self.needed(settings)
    }

    fn needed(&self, settings: &Settings) -> u32 {
        if self.probation {
            1
        } else {
            settings.consecutive_failures
        }
    }

    /// Whether it is to be ejected because RPCs wait there, when `of_all` RPCs have succeeded at all endpoints together, and
    /// `lately` of them since the last look. To be asked once a look.
    ///
    /// That some have succeeded while those here were waiting already is what tells this endpoint from a service that is slow.
    pub(super) fn is_silent(&mut self, settings: &Settings, of_all: u64, lately: u64) -> bool {
        let any = self.any_waits || self.waited > 0;
        let had_waited = std::mem::replace(&mut self.had_waited, any);
        let silent = self.waited.saturating_add(self.waiting);
        let elsewhere = of_all.wrapping_sub(self.well_of_all);
        settings.consecutive_failures > 0
            && silent > 0
            && self.failed.saturating_add(silent) >= self.needed(settings)
            && elsewhere >= u64::from(settings.consecutive_failures)
            && had_waited
            && lately > 0
    }

    /// From now on one failure is enough, until an RPC succeeds.
    pub(super) fn on_probation(&mut self) {
        self.failed = 0;
        self.waited = 0;
        self.waiting = 0;
        self.probation = true;
    }

    /// It is ejected now. Returns for how long.
    pub(super) fn eject(&mut self, settings: &Settings, now: Instant, shortened: f64) -> Duration {
        let was_well = |(back, lasted): (Instant, Duration)| now.saturating_duration_since(back) >= lasted;
        if self.back.take().is_some_and(was_well) {
            self.ejections = 0;
        }
        self.lasted = settings.lasts(self.ejections, shortened);
        self.ejections = self.ejections.saturating_add(1);
        self.lasted
    }

    /// How many ejections followed close upon each other.
    pub(super) fn ejections(&self) -> u32 {
        self.ejections
    }

    /// It is back. The next failure ejects it again, if no success comes before.
    pub(super) fn back(&mut self, now: Instant) {
        self.on_probation();
        self.back = Some((now, self.lasted));
    }
}
