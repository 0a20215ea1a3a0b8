//! How long an endpoint takes to answer: an average that rises fast, falls slowly, and is not impressed by one bad day.
//!
//! A peak EWMA jumps to the worst that it sees and comes down with time alone. On a busy machine that costs an innocent
//! endpoint its share for seconds because one answer met a scheduler's pause. So one answer moves the estimate at most
//! to [`STEP`] times what it was, and halfway at that: it takes three slow answers in a row, not one, to learn that an
//! endpoint has become ten times slower. It comes down by answers too, a quarter of the way each.

use std::time::{Duration, Instant};

/// What is usual among the endpoints of a service, and so what to expect of one that nothing is known of.
#[derive(Debug, Default)]
pub(super) struct Norm(Option<f64>);

impl Norm {
    pub(super) fn heard(&mut self, latency: Duration) {
        let nanos = nanos(latency);
        self.0 = Some(match self.0 {
            Some(usual) => usual + (nanos.min(usual * STEP) - usual) / 32.0,
            None => nanos,
        });
    }

    fn nanos(&self) -> f64 {
        self.0.unwrap_or(UNHEARD_OF)
    }

    /// What is usual; nothing while nothing was heard.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.0.map(|nanos| Duration::from_nanos(nanos as u64))
    }
}

/// The estimate for one endpoint.
#[derive(Debug, Default)]
pub(super) struct Latency(Option<Estimate>);

#[derive(Debug, Clone, Copy)]
struct Estimate {
    nanos: f64,
    at: Instant,
}

impl Latency {
    /// What to expect now, in nanoseconds. What was heard long ago gives way to what is usual.
    pub(super) fn nanos(&self, norm: &Norm, now: Instant, decay: Duration) -> f64 {
        let usual = norm.nanos();
        let Some(Estimate { nanos, at }) = self.0 else {
            return usual;
        };
        if at == now {
            // Heard of in this very turn.
            return nanos;
        }
        let silent = now.saturating_duration_since(at);
        if silent < decay / 64 {
            return nanos;
        }
        usual + (nanos - usual) * (-silent.as_secs_f64() / decay.as_secs_f64().max(1e-9)).exp()
    }

    /// The same for people: nothing while nothing was heard.
    pub(super) fn known(&self, norm: &Norm, now: Instant, decay: Duration) -> Option<Duration> {
        self.0
            .map(|_| Duration::from_nanos(self.nanos(norm, now, decay) as u64))
    }

    /// It answered, after `latency`.
    #[inline(always)]
    pub(super) fn heard(&mut self, latency: Duration, norm: &Norm, now: Instant, decay: Duration) {
        let expected = self.nanos(norm, now, decay);
        let latency = nanos(latency);
        let first_of_all = self.0.is_none() && norm.0.is_none();
        let nanos = if first_of_all {
            latency
        } else if latency > expected {
            expected + (latency.min(expected * STEP) - expected) * RISE
        } else {
            expected + (latency - expected) * FALL
        };
        self.0 = Some(Estimate { nanos, at: now });
    }

    /// It had not answered when somebody stopped waiting: news only if that is longer than expected.
    pub(super) fn at_least(&mut self, waited: Duration, norm: &Norm, now: Instant, decay: Duration) {
        if nanos(waited) > self.nanos(norm, now, decay) {
            self.heard(waited, norm, now, decay);
        }
    }

    /// It has not answered yet, and somebody has waited for so long: as [`Latency::at_least`], but up to [`WORST`] times the
    /// usual. It may be a call that waits for something to happen.
    pub(super) fn waits(&mut self, waited: Duration, norm: &Norm, now: Instant, decay: Duration) {
        let worst = Duration::from_nanos((norm.nanos() * WORST) as u64);
        if norm.0.is_some() {
            self.at_least(waited.min(worst), norm, now, decay);
        }
    }

    /// It failed an RPC, no matter how fast: worth as much as a very slow answer, up to [`WORST`] times the usual.
    pub(super) fn failed(&mut self, norm: &Norm, now: Instant, decay: Duration) {
        let expected = self.nanos(norm, now, decay);
        let worse = expected * (1.0 + (STEP - 1.0) * RISE);
        self.0 = Some(Estimate {
            nanos: worse.min(expected.max(norm.nanos() * WORST)),
            at: now,
        });
    }
}

fn nanos(latency: Duration) -> f64 {
    // Nobody waits 500 years; as 64 bits the number is quickly a float.
    (latency.as_nanos() as u64 as f64).max(1.0)
}

/// The most that one answer counts, as a multiple of what was expected.
const STEP: f64 = 4.0;
/// How far a slower answer moves the estimate.
const RISE: f64 = 0.5;
/// How far a faster answer moves it.
const FALL: f64 = 0.25;
/// Failing makes an endpoint look at most this many times slower than usual.
const WORST: f64 = 64.0;
/// What to expect before anything was heard of any endpoint, in nanoseconds: the same for all, so it decides nothing.
const UNHEARD_OF: f64 = 1e6;
