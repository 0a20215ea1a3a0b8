//! From the clock that only goes forward to that on the wall.

use std::time::{Instant, SystemTime};

/// One point in both times. Made anew for each batch, so that a clock that was set is right again with the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Anchor {
    monotonic: Instant,
    /// Nanoseconds since 1970.
    wall: u64,
}

impl Anchor {
    pub(super) fn now() -> Anchor {
        let wall = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        Anchor {
            monotonic: Instant::now(),
            wall: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Nanoseconds since 1970.
    pub(super) fn unix_nanos(&self, at: Instant) -> u64 {
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        // What is sent has happened: this is asked first.
        match self.monotonic.checked_duration_since(at) {
            Some(earlier) => self.wall.saturating_sub(nanos(earlier)),
            None => self.wall.saturating_add(nanos(at.duration_since(self.monotonic))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_before_and_after_the_anchor_are_the_walls() {
        let anchor = Anchor::now();
        let at = |at| anchor.unix_nanos(at);
        let second = Duration::from_secs(1);
        assert_eq!(at(anchor.monotonic + second) - at(anchor.monotonic), 1_000_000_000);
        assert_eq!(at(anchor.monotonic) - at(anchor.monotonic - second), 1_000_000_000);
    }
}
