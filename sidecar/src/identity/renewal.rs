//! When to ask for the next certificate. A decision, without a clock or a socket of its own.
//!
//! A certificate is due at 70 % of its life, some percent earlier or later, so that a hundred sidecars that started
//! together do not ask together. Its times are the wall clock's, which may be set by hours or years: so nobody sleeps
//! until then, but asks [`Renewal::next`] anew after at most 20 seconds. How long ago we last tried is measured by
//! the clock that nobody sets.

use std::time::{Duration, Instant, SystemTime};

/// The part of its life after which a certificate is due.
const DUE: f64 = 0.70;
/// So much of its life earlier or later.
const SPREAD: f64 = 0.05;
/// The longest time until the wall clock is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// The first pause after a failure. It doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause while the certificate still serves.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause while there is none that serves: control's return must be noticed within five seconds.
const LONGEST_PAUSE_WITHOUT: Duration = Duration::from_secs(3);

/// What to do about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for one now.
    Ask,
    /// Nothing; look again after so long, which is never zero and at most 20 seconds.
    LookAgain(Duration),
}

/// The decision about one certificate, or about having none yet.
#[derive(Clone, Debug)]
pub struct Renewal {
    life: Option<(SystemTime, SystemTime)>,
    /// From -1 to 1.
    luck: f64,
    failures: u32,
    last: Option<Instant>,
}

impl Renewal {
    /// With no certificate yet: the first is asked for at once. `luck`, from -1 to 1, is drawn once for each
    /// certificate and spreads the times.
    pub fn of_none(luck: f64) -> Renewal {
        Renewal {
            life: None,
            luck: if luck.is_finite() { luck.clamp(-1.0, 1.0) } else { 0.0 },
            failures: 0,
            last: None,
        }
    }

    /// With a certificate that lives from `not_before` to `not_after`.
    pub fn of(not_before: SystemTime, not_after: SystemTime, luck: f64) -> Renewal {
        Renewal {
            life: Some((not_before, not_after)),
            ..Renewal::of_none(luck)
        }
    }

    /// What to do, at this time of the wall clock and of the steady one.
    pub fn next(&self, wall: SystemTime, now: Instant) -> Next {
        let until_due = self.until_due(wall);
        let pause = match self.last {
            Some(last) => self.pause(wall).saturating_sub(now.saturating_duration_since(last)),
            None => Duration::ZERO,
        };
        match until_due.max(pause) {
            Duration::ZERO => Next::Ask,
            wait => Next::LookAgain(wait.min(LOOK_AGAIN)),
        }
    }

    /// Another certificate came. One that is due as it comes, by a clock that is wrong here or there, is worth no more than a
    /// failure: the next would be due as it comes, too.
    pub fn renewed(&mut self, by: Renewal, wall: SystemTime, now: Instant) {
        let failures = std::mem::replace(self, by).failures;
        if self.until_due(wall).is_zero() {
            self.failures = failures;
            self.failed(now);
        }
    }

    /// An attempt failed. The next is made after a pause, a longer one each time.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(now);
    }

    /// How often it failed in a row, or was of no use.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether there is a certificate, and the wall clock stands within its life.
    pub fn serves(&self, wall: SystemTime) -> bool {
        self.life.is_some_and(|(from, to)| from <= wall && wall <= to)
    }

    /// When the certificate is due by the wall clock, if there is one.
    pub fn due(&self) -> Option<SystemTime> {
        let (from, to) = self.life?;
        // One that ends before it begins has no life, and is due at once.
        let life = to.duration_since(from).unwrap_or_default();
        from.checked_add(life.mul_f64(DUE + SPREAD * self.luck))
    }

    fn until_due(&self, wall: SystemTime) -> Duration {
        // By this clock it has not begun, or has ended: a new one may serve, this one does not.
        if !self.serves(wall) {
            return Duration::ZERO;
        }
        self.due()
            .and_then(|due| due.duration_since(wall).ok())
            .unwrap_or_default()
    }

    fn pause(&self, wall: SystemTime) -> Duration {
        let longest = if self.serves(wall) {
            LONGEST_PAUSE
        } else {
            LONGEST_PAUSE_WITHOUT
        };
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        // Up to a quarter less, so that those who failed together do not come back together.
        doubled.min(longest).mul_f64(0.875 + 0.125 * self.luck)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY
    }

    fn of_a_day() -> Renewal {
        Renewal::of(noon(), noon() + DAY, 0.0)
    }

    #[test]
    fn a_certificate_is_due_at_seventy_percent_of_its_life() {
        let renewal = of_a_day();
        let now = Instant::now();
        let due = noon() + DAY.mul_f64(0.7);
        assert_eq!(renewal.due(), Some(due));
        assert_eq!(renewal.next(noon(), now), Next::LookAgain(LOOK_AGAIN));
        let second = Duration::from_secs(1);
        assert_eq!(renewal.next(due - second, now), Next::LookAgain(second));
        assert_eq!(renewal.next(due, now), Next::Ask);
    }

    #[test]
    fn luck_spreads_the_times_by_a_tenth_of_the_life() {
        let early = Renewal::of(noon(), noon() + DAY, -1.0).due().expect("it has one");
        let late = Renewal::of(noon(), noon() + DAY, 1.0).due().expect("it has one");
        let spread = late.duration_since(early).expect("later").as_secs_f64();
        assert!((spread - DAY.as_secs_f64() * 0.1).abs() < 1.0, "{spread}");
        assert_eq!(Renewal::of(noon(), noon() + DAY, f64::NAN).due(), of_a_day().due());
    }

    #[test]
    fn the_first_certificate_is_asked_for_at_once() {
        assert_eq!(Renewal::of_none(0.3).next(noon(), Instant::now()), Next::Ask);
    }

    #[test]
    fn after_failures_the_pause_grows_to_a_minute_while_the_certificate_serves() {
        let mut renewal = of_a_day();
        let (wall, now) = (noon() + 20 * HOUR, Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..40 {
            renewal.failed(now);
            pauses.push(renewal.pause(wall));
            assert!(matches!(renewal.next(wall, now), Next::LookAgain(_)));
            assert_eq!(renewal.next(wall, now + LONGEST_PAUSE), Next::Ask);
        }
        assert!(pauses.is_sorted());
        assert!(pauses[0] < Duration::from_millis(251));
        assert!(pauses[39] > Duration::from_secs(50));
        assert_eq!(renewal.failures(), 40);
    }

    #[test]
    fn certificates_that_are_due_as_they_come_are_asked_for_ever_more_rarely_until_the_clock_is_right() {
        let (late, now) = (noon() + 20 * HOUR, Instant::now());
        let mut renewal = of_a_day();
        for number in 1..=40 {
            renewal.renewed(of_a_day(), late, now);
            assert_eq!(renewal.failures(), number);
        }
        assert!(matches!(
            renewal.next(late, now + LONGEST_PAUSE / 2),
            Next::LookAgain(_)
        ));
        assert_eq!(renewal.next(late, now + LONGEST_PAUSE), Next::Ask);
        renewal.renewed(of_a_day(), noon(), now);
        assert_eq!((renewal.failures(), renewal.next(late, now)), (0, Next::Ask));
    }

    #[test]
    fn without_a_certificate_that_serves_control_is_asked_again_within_three_seconds() {
        let (ended, now) = (noon() + 2 * DAY, Instant::now());
        for mut renewal in [of_a_day(), Renewal::of_none(1.0)] {
            assert_eq!(renewal.next(ended, now), Next::Ask);
            (0..50).for_each(|_| renewal.failed(now));
            assert!(matches!(renewal.next(ended, now), Next::LookAgain(_)));
            assert_eq!(renewal.next(ended, now + Duration::from_secs(3)), Next::Ask);
        }
    }

    #[test]
    fn a_clock_that_is_set_is_believed_at_the_next_look() {
        let renewal = of_a_day();
        let now = Instant::now();
        let wall = noon() + 10 * HOUR;
        let looks_again = Next::LookAgain(LOOK_AGAIN);
        assert_eq!(renewal.next(wall, now), looks_again);
        assert_eq!(renewal.next(wall + HOUR, now), looks_again);
        assert_eq!(renewal.next(wall - HOUR, now), looks_again);
        assert_eq!(renewal.next(wall + 400 * DAY, now), Next::Ask);
        assert_eq!(renewal.next(wall - 400 * DAY, now), Next::Ask);
        assert_eq!(renewal.next(wall, now), looks_again, "and when it is set right again");
    }

    #[test]
    fn a_clock_that_jumps_does_not_make_attempts_follow_each_other() {
        let mut renewal = of_a_day();
        let now = Instant::now();
        renewal.failed(now);
        for wall in [noon() + 400 * DAY, noon() - 400 * DAY, SystemTime::UNIX_EPOCH] {
            assert!(matches!(renewal.next(wall, now), Next::LookAgain(_)));
        }
    }

    proptest! {
        #[test]
        fn no_times_make_it_spin_or_panic(
            from in 0u64..1 << 40,
            to in 0u64..1 << 40,
            wall in 0u64..1 << 40,
            luck in -2.0f64..2.0,
            failures in 0u32..100,
            since in 0u64..200,
        ) {
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let mut renewal = Renewal::of(at(from), at(to), luck);
            let now = Instant::now();
            (0..failures).for_each(|_| renewal.failed(now));
            match renewal.next(at(wall), now + Duration::from_secs(since)) {
                Next::Ask => prop_assert!(failures == 0 || since > 0),
                Next::LookAgain(wait) => prop_assert!(wait > Duration::ZERO && wait <= LOOK_AGAIN),
            }
        }
    }
}
