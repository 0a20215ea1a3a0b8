//! Which endpoints are in use: the others are not checked.

use std::time::{Duration, Instant};

/// An endpoint that no RPC was sent to for so long is not checked any more, nor are those of a service that nobody called.
pub(super) const IN_USE: Duration = Duration::from_secs(60);

/// How an endpoint is used, as looks at it have shown.
#[derive(Debug)]
pub(super) struct Usage {
    /// How often it had been picked.
    picked: u64,
    /// When it was seen to be in use last.
    used: Option<Instant>,
    /// When it stood in the list of endpoints last.
    named: Instant,
}

impl Usage {
    /// Of an endpoint that nobody has looked at yet.
    pub(super) fn new(now: Instant) -> Usage {
        Usage {
            picked: 0,
            used: None,
            named: now,
        }
    }

    /// It is named, while its service is called, and was picked so often so far. One that is `kept_away` from for its health
    /// is in use as long as its service is: nobody would see otherwise that it is well again. Says whether it was used since
    /// the last look.
    pub(super) fn seen(&mut self, picked: u64, kept_away: bool, now: Instant) -> bool {
        self.named = now;
        let is_used = self.picked != picked || kept_away;
        if is_used {
            self.picked = picked;
            self.used = Some(now);
        }
        is_used
    }

    /// The next look is as the first.
    pub(super) fn look_anew(&mut self) {
        self.picked = 0;
    }

    /// Whether the look of `now` saw it.
    pub(super) fn is_named(&self, now: Instant) -> bool {
        self.named == now
    }

    /// Whether it is to be checked, after the look of `now`.
    pub(super) fn is_in_use(&self, now: Instant) -> bool {
        let lately = |used: Instant| now.saturating_duration_since(used) <= IN_USE;
        self.is_named(now) && self.used.is_some_and(lately)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_A_SECOND: Duration = Duration::from_millis(500);

    #[test]
    fn an_endpoint_that_no_call_went_to_is_not_in_use() {
        let mut now = Instant::now();
        let mut usage = Usage::new(now);
        for _ in 0..10 {
            now += HALF_A_SECOND;
            assert!(!usage.seen(0, false, now) && !usage.is_in_use(now));
        }
        assert!(usage.seen(1, false, now) && usage.is_in_use(now));
    }

    #[test]
    fn it_is_in_use_for_a_minute_after_its_last_call() {
        let began = Instant::now();
        let mut usage = Usage::new(began);
        usage.seen(3, false, began);
        let mut now = began;
        while now - began < IN_USE {
            now += HALF_A_SECOND;
            assert!(!usage.seen(3, false, now) && usage.is_in_use(now), "{:?}", now - began);
        }
        now += HALF_A_SECOND;
        usage.seen(3, false, now);
        assert!(!usage.is_in_use(now));
        usage.seen(4, false, now);
        assert!(usage.is_in_use(now));
    }

    #[test]
    fn one_that_is_kept_away_from_is_in_use_while_its_service_is_called() {
        let began = Instant::now();
        let mut usage = Usage::new(began);
        usage.seen(1, false, began);
        let mut now = began;
        while now - began < IN_USE * 3 {
            now += HALF_A_SECOND;
            usage.seen(1, true, now);
            assert!(usage.is_in_use(now));
        }
        // A look that did not see it: its service is idle, or discovery does not name it any more.
        assert!(!usage.is_in_use(now + HALF_A_SECOND));
    }
}
