//! When an address of control's may be called again.
//!
//! Two things are wanted: that control's return is noticed within half a second, and that a hundred sidecars do not ask it
//! all over again while it gets up. So connections are tried often, which costs nobody anything while none is taken; but
//! once a request was heard, the next waits, unless the answer was good.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

/// From one TCP connection that was not taken to the next: from here...
const KNOCK: Duration = Duration::from_millis(150);
/// ...and up to so much more.
const KNOCK_SPREAD: Duration = Duration::from_millis(200);
/// After the first connection that broke before it was of any use. Each further one doubles it.
const FIRST_BROKEN_PAUSE: Duration = Duration::from_millis(200);
/// The longest of these pauses. A proxy before control breaks connections, too, while control is away.
const LONGEST_BROKEN_PAUSE: Duration = Duration::from_secs(2);
/// After the second stream in a row that came and went. Each further one doubles it.
const FIRST_STREAM_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const LONGEST_STREAM_PAUSE: Duration = Duration::from_secs(10);
/// After the first request that was heard and not answered well. Each further one doubles it.
const FIRST_REQUEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest of these pauses.
const LONGEST_REQUEST_PAUSE: Duration = Duration::from_secs(60);
/// After a proof that control does not accept, for the first time and whenever it was kept waiting: the `Workload` may be
/// about to be written, and a sidecar is to be ready within two seconds of that. Who is refused at once waits twice as
/// long each time.
const FIRST_UNPROVEN_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses.
const LONGEST_UNPROVEN_PAUSE: Duration = Duration::from_secs(10);
/// An answer that took so long was held back, until the proof would be good.
const HELD: Duration = Duration::from_secs(1);
/// A stream that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(10);
/// Those who lose a stream together come back within so much time.
const RETURN_SPREAD: Duration = Duration::from_millis(100);

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// Nobody listens there, or nobody answers to TCP or TLS: it was waited for already, and is served the moment it is back.
    Away,
    /// The connection broke before an answer: it is somebody else, or it is going down.
    Broken,
    /// Control heard a request, and its answer is no, or does not come.
    Failed,
    /// Our proof is not accepted, and the answer took so long: control keeps one waiting whose `Workload` may come.
    Unproven(Duration),
    /// It answered well, and that lasted so long.
    Served(Duration),
    /// It answered well, and we left.
    Left,
}

/// The pauses of one address.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    not_before: Instant,
    failures: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace {
            not_before: now,
            failures: 0,
        }
    }

    /// When it may be called.
    pub(super) fn not_before(&self) -> Instant {
        self.not_before
    }

    /// Takes what came of a call.
    pub(super) fn came(&mut self, came: Came, now: Instant) {
        let pause = match came {
            // Whoever comes back owes us nothing.
            Came::Away => {
                self.failures = 0;
                KNOCK + some(KNOCK_SPREAD)
            }
            Came::Broken => self.doubled(FIRST_BROKEN_PAUSE, LONGEST_BROKEN_PAUSE),
            Came::Failed => self.doubled(FIRST_REQUEST_PAUSE, LONGEST_REQUEST_PAUSE),
            Came::Unproven(took) => {
                if took >= HELD {
                    self.failures = 0;
                }
                self.doubled(FIRST_UNPROVEN_PAUSE, LONGEST_UNPROVEN_PAUSE)
            }
            Came::Left => Duration::ZERO,
            Came::Served(lived) if lived >= GOOD || self.failures == 0 => {
                self.failures = u32::from(lived < GOOD);
                some(RETURN_SPREAD)
            }
            Came::Served(_) => self.doubled(FIRST_STREAM_PAUSE, LONGEST_STREAM_PAUSE),
        };
        self.not_before = now + pause;
    }

    /// A pause that grows with each failure, and up to half of it more.
    fn doubled(&mut self, first: Duration, longest: Duration) -> Duration {
        let pause = first.saturating_mul(1 << self.failures.min(16)).min(longest);
        self.failures = self.failures.saturating_add(1);
        pause + some(pause / 2)
    }
}

/// A random part of it.
pub(super) fn some(of: Duration) -> Duration {
    of.mul_f64(rand::rng().random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(pace: &mut Pace, came: Came) -> Duration {
        let now = Instant::now();
        pace.came(came, now);
        pace.not_before() - now
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_away_is_knocked_at_at_least_every_half_second() {
        let mut pace = Pace::new(Instant::now());
        assert_eq!(pace.not_before(), Instant::now());
        for _ in 0..100 {
            let pause = pause(&mut pace, Came::Away);
            assert!(pause >= KNOCK && pause < Duration::from_millis(500), "{pause:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_failed_is_not_repeated_within_ten_seconds_unless_control_was_away_meanwhile() {
        let mut pace = Pace::new(Instant::now());
        for _ in 0..100 {
            let pause = pause(&mut pace, Came::Failed);
            assert!(
                pause >= Duration::from_secs(10) && pause <= Duration::from_secs(90),
                "{pause:?}"
            );
        }
        assert!(pause(&mut pace, Came::Away) < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_kept_waiting_asks_again_soon_and_who_is_refused_at_once_ever_later() {
        let mut pace = Pace::new(Instant::now());
        let soon = FIRST_UNPROVEN_PAUSE..=FIRST_UNPROVEN_PAUSE * 3 / 2;
        assert!(soon.contains(&pause(&mut pace, Came::Unproven(Duration::ZERO))));
        for _ in 0..100 {
            assert!(soon.contains(&pause(&mut pace, Came::Unproven(Duration::from_secs(8)))));
        }
        let pauses: Vec<_> = (0..10)
            .map(|_| pause(&mut pace, Came::Unproven(Duration::ZERO)))
            .collect();
        assert!(pauses[0] >= Duration::from_secs(2), "{pauses:?}");
        assert!(
            pauses[9] >= LONGEST_UNPROVEN_PAUSE && pauses[9] <= Duration::from_secs(15),
            "{pauses:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_breaks_connections_is_tried_again_within_three_seconds() {
        let mut pace = Pace::new(Instant::now());
        for _ in 0..100 {
            let pause = pause(&mut pace, Came::Broken);
            assert!(
                pause >= FIRST_BROKEN_PAUSE && pause <= Duration::from_secs(3),
                "{pause:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_broke_is_opened_again_at_once_and_one_that_keeps_breaking_ever_later() {
        let mut pace = Pace::new(Instant::now());
        let short = Came::Served(Duration::from_secs(1));
        assert!(pause(&mut pace, short) <= RETURN_SPREAD);
        let pauses: Vec<_> = (0..6).map(|_| pause(&mut pace, short)).collect();
        assert!(
            pauses[0] >= Duration::from_secs(1) && pauses[5] >= Duration::from_secs(10),
            "{pauses:?}"
        );
        assert!(
            pauses.iter().all(|pause| *pause <= Duration::from_secs(15)),
            "{pauses:?}"
        );
        assert!(pause(&mut pace, Came::Served(GOOD)) <= RETURN_SPREAD);
        assert!(pause(&mut pace, short) <= RETURN_SPREAD);
        assert_eq!(pause(&mut pace, Came::Left), Duration::ZERO);
    }
}
