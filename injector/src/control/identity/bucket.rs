//! A token bucket: how much may come at once, and how soon again.

use std::time::{Duration, Instant};

/// How much a bucket holds, and how long it takes until there is room for one more.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// What is in a full one.
    pub burst: f64,
    /// From empty to one.
    pub refill: Duration,
}

/// What is left of it.
#[derive(Clone, Debug)]
pub struct Bucket {
    size: Size,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub fn full(size: Size, now: Instant) -> Bucket {
        Bucket {
            size,
            left: size.burst,
            at: now,
        }
    }

    /// Whether there is one to take.
    pub fn has_one(&self, now: Instant) -> bool {
        self.left(now) >= 1.0
    }

    /// Whether it says no more than a new one would.
    pub fn is_full(&self, now: Instant) -> bool {
        self.left(now) >= self.size.burst
    }

    /// Takes as much, or what is left.
    pub fn take(&mut self, cost: f64, now: Instant) {
        self.left = (self.left(now) - cost).max(0.0);
        self.at = now;
    }

    /// When something was taken last.
    pub fn taken(&self) -> Instant {
        self.at
    }

    fn left(&self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / self.size.refill.as_secs_f64();
        (self.left + gained).min(self.size.burst)
    }
}
