//! What a peer may cost before it is told to go: budgets of work that useful traffic earns and time gives back.
//!
//! Every frame that makes work without carrying anything has a price. Frames that carry something, in either direction,
//! earn it. A peer that uses RPCs, however fast, stays far from the limits; one that only makes work reaches them soon.

use std::time::{Duration, Instant};

/// What a peer did too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abuse {
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown and empty frames, and header blocks that unfold into far more than
    /// was sent.
    ControlFrames,
    /// Streams reset before their response came, or that the peer made us reset.
    Resets,
}

/// Whether a peer may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fine,
    /// Half of the budget is gone: a graceful GOAWAY lets a clumsy peer start afresh.
    Warn,
    /// It is all gone.
    Cut,
}

/// A budget of at most so much, that refills with time.
#[derive(Debug)]
struct Purse<const MOST: i32, const PER_SECOND: i32> {
    tokens: i32,
    warned: bool,
}

impl<const MOST: i32, const PER_SECOND: i32> Purse<MOST, PER_SECOND> {
    const FULL: Self = Purse {
        tokens: MOST,
        warned: false,
    };

    fn earn(&mut self, n: i32) {
        self.tokens = (self.tokens + n).min(MOST);
    }

    fn refill(&mut self, ms: i32) {
        self.earn(PER_SECOND * ms / 1_000);
    }

    fn spend(&mut self, n: i32) -> Verdict {
        self.tokens = self.tokens.saturating_sub(n);
        if self.tokens < 0 {
            Verdict::Cut
        } else if self.tokens < MOST / 2 && !self.warned {
            self.warned = true;
            Verdict::Warn
        } else {
            Verdict::Fine
        }
    }
}

/// The budgets of one connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    control: Purse<10_000, 200>,
    resets: Purse<1_000, 50>,
    refilled: Instant,
}

impl Ledger {
    pub(crate) fn new(now: Instant) -> Ledger {
        Ledger {
            control: Purse::FULL,
            resets: Purse::FULL,
            refilled: now,
        }
    }

    /// Something useful crossed: a header block, or DATA of so many bytes. A reader may give credit message by message.
    pub(crate) fn useful(&mut self, bytes: usize) {
        self.control.earn(4 + (bytes / 32) as i32);
    }

    /// A response was carried whole.
    pub(crate) fn answered(&mut self) {
        self.resets.earn(1);
    }

    pub(crate) fn spend(&mut self, on: Abuse, cost: i32, now: Instant) -> Verdict {
        let passed = now.saturating_duration_since(self.refilled);
        if passed >= Duration::from_millis(100) {
            self.refilled = now;
            let ms = passed.as_millis().min(60_000) as i32;
            self.control.refill(ms);
            self.resets.refill(ms);
        }
        match on {
            Abuse::ControlFrames => self.control.spend(cost),
            Abuse::Resets => self.resets.spend(cost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_only_makes_work_is_warned_and_then_cut() {
        let now = Instant::now();
        let mut ledger = Ledger::new(now);
        let verdicts: Vec<_> = (0..1_100).map(|_| ledger.spend(Abuse::Resets, 1, now)).collect();
        let warned = verdicts.iter().position(|v| *v == Verdict::Warn).expect("warned");
        let cut = verdicts.iter().position(|v| *v == Verdict::Cut).expect("cut");
        assert!(warned < cut);
        assert_eq!(cut, 1_000);
    }

    #[test]
    fn resets_that_answered_calls_make_up_for_cost_nothing() {
        let now = Instant::now();
        let mut ledger = Ledger::new(now);
        for _ in 0..100_000 {
            assert_eq!(ledger.spend(Abuse::Resets, 1, now), Verdict::Fine);
            ledger.answered();
        }
    }

    #[test]
    fn time_gives_the_budget_back() {
        let mut now = Instant::now();
        let mut ledger = Ledger::new(now);
        for _ in 0..1_000 {
            ledger.spend(Abuse::Resets, 1, now);
        }
        now += Duration::from_secs(2);
        assert_ne!(ledger.spend(Abuse::Resets, 1, now), Verdict::Cut);
    }
}
