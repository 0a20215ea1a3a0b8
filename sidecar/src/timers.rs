//! When something is due: one heap a worker. A key whose thing is gone is dropped where it is found.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// A time by a worker's own clock, in nanoseconds since it began: the difference of two is one instruction away, and each
/// call needs several.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Tick(u64);

impl Tick {
    /// The time `now` on a clock that began at `epoch`.
    pub(crate) fn new(now: Instant, epoch: Instant) -> Tick {
        Tick(now.saturating_duration_since(epoch).as_nanos() as u64)
    }

    /// The time that has passed since `earlier`; none, if that is later.
    #[inline]
    pub(crate) fn since(self, earlier: Tick) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Marks of things that are due at some time.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, mark: u64) {
        self.heap.push(Reverse((at, mark)));
    }

    /// When the next is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// One that is due at `now`.
    pub(crate) fn due(&mut self, now: Instant) -> Option<u64> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, mark))| mark)
    }

    /// Drops the marks of what is gone, once they outnumber what is alive: memory follows what is alive.
    pub(crate) fn tidy(&mut self, alive: usize, is_alive: impl Fn(u64) -> bool) {
        if self.heap.len() > 2 * alive + 1_024 {
            self.heap.retain(|Reverse((_, mark))| is_alive(*mark));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_nothing_comes_early() {
        let now = Instant::now();
        let mut timers = Timers::default();
        for (ms, mark) in [(30, 3), (10, 1), (20, 2)] {
            timers.set(now + Duration::from_millis(ms), mark);
        }
        assert_eq!(timers.due(now), None);
        let later = now + Duration::from_millis(25);
        assert_eq!(
            (timers.due(later), timers.due(later), timers.due(later)),
            (Some(1), Some(2), None)
        );
    }

    #[test]
    fn marks_of_the_dead_do_not_pile_up() {
        let now = Instant::now();
        let mut timers = Timers::default();
        for mark in 0..100_000 {
            timers.set(now + Duration::from_secs(60), mark);
            timers.tidy(1, |m| m == mark);
        }
        assert!(timers.heap.len() < 2_000);
    }
}
