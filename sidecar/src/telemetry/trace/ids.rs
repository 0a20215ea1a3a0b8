//! New ids, a few instructions each.
//!
//! Ids have to differ, not to be secret: xoshiro256++ (Blackman and Vigna), begun from the system's randomness by each
//! worker for itself. The worker's ChaCha would cost an unsampled RPC more than all else that it pays for traces.

use rand::RngExt as _;

use super::{SpanId, TraceId};

/// Where one worker's ids come from.
#[derive(Debug)]
pub struct Ids([u64; 4]);

impl Ids {
    /// Begins from the system's randomness.
    pub fn new() -> Ids {
        let mut random = rand::rng();
        // All zeroes would stay so.
        Ids([
            random.random(),
            random.random(),
            random.random(),
            random.random::<u64>() | 1,
        ])
    }

    /// A trace of its own.
    #[inline]
    pub fn trace_id(&mut self) -> TraceId {
        let (high, low) = (self.bits(), self.bits());
        // The high half is made odd: it is never zero, and no sampler looks at it.
        let value = u128::from(high | 1) << 64 | u128::from(low);
        TraceId::new(value).unwrap_or(TraceId(std::num::NonZeroU128::MIN))
    }

    /// A span of its own.
    #[inline]
    pub fn span_id(&mut self) -> SpanId {
        SpanId::new(self.bits()).unwrap_or(SpanId(std::num::NonZeroU64::MIN))
    }

    /// 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let random = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        random
    }
}

impl Default for Ids {
    fn default() -> Ids {
        Ids::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_the_reference_gives_them() {
        let mut ids = Ids([1, 2, 3, 4]);
        let numbers = [(); 4].map(|()| ids.bits());
        assert_eq!(numbers, [41943041, 58720359, 3588806011781223, 3591011842654386]);
    }

    #[test]
    fn two_workers_have_different_ids() {
        assert_ne!(Ids::new().trace_id(), Ids::new().trace_id());
    }
}
