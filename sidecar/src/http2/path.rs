//! How much credit the path to a peer needs to stay full: its bandwidth-delay product, measured by PING.
//!
//! A near peer needs no more than its reader grants and what is under way meanwhile: credit beyond need only moves bytes out
//! of the processor's cache. So a path that answers within a millisecond is near, and asked again only now and then.

use std::time::{Duration, Instant};

/// A path that is quicker than this is near.
const NEAR: Duration = Duration::from_millis(1);
/// Bytes that must come before it is worth asking.
const WORTH_ASKING: u32 = 32 << 10;
/// How soon a near peer is asked again.
const NEAR_PAUSE: Duration = Duration::from_secs(10);

/// How much of a window must be missing before credit goes back, where the path has this need. Small amounts wait, so
/// that a near stream does not cost an update for each of its frames. From far away waiting costs more: bytes that come
/// in bursts can fall so that half of the window always waits here. What then comes in a round trip is the other half,
/// and twice that is no more than there was: the window would never grow.
#[inline(always)]
pub(crate) fn worth_giving(window: i64, need: i64) -> i64 {
    if need > 0 { window >> 3 } else { window >> 1 }
}

/// The path from a peer that sends.
#[derive(Debug)]
pub(crate) struct Path {
    state: State,
    /// Bytes of DATA since the last PING was sent, or since the last answer.
    bytes: u32,
    need: u32,
    /// The shortest round trip so far, in microseconds.
    shortest: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// A PING that was sent then is under way.
    Asked(Instant),
    /// None is sent before that.
    Rests(Instant),
}

impl Path {
    pub(crate) fn new(now: Instant) -> Path {
        Path {
            state: State::Rests(now),
            bytes: 0,
            need: 0,
            shortest: u32::MAX,
        }
    }

    /// Credit that keeps the path full; 0 for a near one.
    pub(crate) fn need(&self) -> i64 {
        self.need.into()
    }

    /// DATA came: whether a PING should measure the path now. (gRPC servers count pings, but DATA that they send clears
    /// the count.)
    pub(crate) fn data(&mut self, bytes: u32, now: Instant) -> bool {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.state {
            State::Rests(until) if self.bytes >= WORTH_ASKING && now >= until => {
                self.state = State::Asked(now);
                self.bytes = 0;
                true
            }
            State::Rests(_) | State::Asked(_) => false,
        }
    }

    /// Whether a PING is not answered yet.
    pub(crate) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }

    /// The PING was answered.
    pub(crate) fn answered(&mut self, now: Instant) {
        let State::Asked(at) = self.state else { return };
        let took = now.saturating_duration_since(at);
        self.shortest = self.shortest.min(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        let arrived = std::mem::take(&mut self.bytes);
        if Duration::from_micros(self.shortest.into()) < NEAR {
            self.need = 0;
            self.state = State::Rests(now + NEAR_PAUSE);
            return;
        }
        // What came in one round trip could come because there was credit for it: twice as much lets it grow.
        self.need = self.need.max(arrived.saturating_mul(2));
        self.state = State::Rests(now + took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_peer_needs_nothing() {
        let mut now = Instant::now();
        let mut path = Path::new(now);
        assert!(path.data(100_000, now));
        path.data(1_000_000, now);
        now += Duration::from_micros(80);
        path.answered(now);
        assert_eq!(path.need(), 0);
        assert!(!path.data(100_000, now), "a near peer is not asked again at once");
    }

    #[test]
    fn a_far_peer_needs_what_came_in_a_round_trip_and_room_to_grow() {
        let mut now = Instant::now();
        let mut path = Path::new(now);
        let mut carried = 65_535;
        for _ in 0..7 {
            now += Duration::from_millis(20);
            assert!(path.data(40_000, now));
            path.data(carried, now);
            now += Duration::from_millis(20);
            path.answered(now);
            assert_eq!(path.need(), 2 * i64::from(carried));
            carried = path.need() as u32;
        }
        assert!(path.need() > 4 << 20);
    }
}
