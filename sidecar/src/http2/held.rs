//! Bytes that wait for a reader, in pooled chunks: memory near the bytes themselves, and given back as they leave.

use smallvec::SmallVec;

/// A first chunk is small, since most streams that hold anything hold little; each further one is larger, up to a frame,
/// so that the memory stays near the bytes.
const SIZES: [usize; 4] = [512, 2 << 10, 8 << 10, 16 << 10];
/// Free chunks kept, of each size, for the next who needs one.
const KEPT: usize = 64;

/// Free chunks of one worker, by size.
#[derive(Default)]
pub struct Pool {
    free: [Vec<Vec<u8>>; SIZES.len()],
}

impl Pool {
    /// A chunk larger than `last`, if there is a larger size, and large enough for `bytes`, if any is.
    fn take(&mut self, last: usize, bytes: usize) -> Vec<u8> {
        let fits = |&(_, &size): &(usize, &usize)| size > last && size >= bytes;
        let (i, &size) = SIZES
            .iter()
            .enumerate()
            .find(fits)
            .unwrap_or((SIZES.len() - 1, &SIZES[SIZES.len() - 1]));
        self.free[i].pop().unwrap_or_else(|| Vec::with_capacity(size))
    }

    fn give(&mut self, mut chunk: Vec<u8>) {
        chunk.clear();
        let Some(i) = SIZES.iter().position(|size| *size == chunk.capacity()) else {
            return;
        };
        if self.free[i].len() < KEPT {
            self.free[i].push(chunk);
        }
    }
}

/// The bytes that one direction of a stream holds, in order.
#[derive(Default)]
pub struct Held {
    /// One chunk, which most make do with, needs no memory of its own here.
    chunks: SmallVec<[Vec<u8>; 1]>,
    /// How much of the first chunk has left.
    taken: usize,
    len: usize,
}

impl Held {
    /// How many bytes are held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a copy of `bytes` behind what is held already, and says how much memory that took.
    pub fn push(&mut self, mut bytes: &[u8], pool: &mut Pool) -> usize {
        self.len += bytes.len();
        let mut memory = 0;
        while !bytes.is_empty() {
            let (size, fits) = match self.chunks.last() {
                Some(last) => (last.capacity(), last.capacity() - last.len()),
                None => (0, 0),
            };
            if fits == 0 {
                let chunk = pool.take(size, bytes.len());
                memory += chunk.capacity();
                self.chunks.push(chunk);
                continue;
            }
            let (now, later) = bytes.split_at(fits.min(bytes.len()));
            self.chunks
                .last_mut()
                .expect("it was just looked at")
                .extend_from_slice(now);
            bytes = later;
        }
        memory
    }

    /// Moves the first `n` bytes (or all, if fewer are held) to the end of `out`, and says how much memory that freed.
    pub fn pop_into(&mut self, mut n: usize, out: &mut Vec<u8>, pool: &mut Pool) -> usize {
        let mut memory = 0;
        n = n.min(self.len);
        self.len -= n;
        while n > 0 {
            let first = self.chunks.first().expect("held bytes are in chunks");
            let now = n.min(first.len() - self.taken);
            out.extend_from_slice(&first[self.taken..self.taken + now]);
            self.taken += now;
            n -= now;
            if self.taken == first.len() {
                memory += self.drop_first(pool);
            }
        }
        if self.len == 0 {
            memory += self.clear(pool);
        }
        memory
    }

    /// Everything that is held, chunk by chunk.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks
            .iter()
            .enumerate()
            .map(|(i, chunk)| if i == 0 { &chunk[self.taken..] } else { &chunk[..] })
    }

    /// Throws away what is held, and says how much memory that freed.
    #[inline]
    pub fn clear(&mut self, pool: &mut Pool) -> usize {
        if self.chunks.is_empty() {
            0
        } else {
            self.throw_away(pool)
        }
    }

    fn throw_away(&mut self, pool: &mut Pool) -> usize {
        let mut memory = 0;
        for chunk in self.chunks.drain(..) {
            memory += chunk.capacity();
            pool.give(chunk);
        }
        // An empty stream keeps no memory of a burst that it once held.
        self.chunks = SmallVec::new();
        self.taken = 0;
        self.len = 0;
        memory
    }

    fn drop_first(&mut self, pool: &mut Pool) -> usize {
        self.taken = 0;
        let chunk = self.chunks.remove(0);
        let memory = chunk.capacity();
        pool.give(chunk);
        memory
    }
}

/// What one worker may keep for its connections, in bytes.
///
/// Credit cannot be taken back, so it is reserved when it is given; the memory of what is held is counted while it is: not
/// its bytes, or a peer could make each stream hold one byte more than fits a chunk. Credit may take half at most:
/// connections that were busy once and hold nothing must not keep new calls out.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: u64,
    reserved: u64,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Budget {
        Budget {
            limit,
            used: 0,
            reserved: 0,
        }
    }

    /// Reserves `n` bytes for credit, if they fit.
    pub fn reserve(&mut self, n: u64) -> bool {
        let fits = self.used + n <= self.limit && self.reserved + n <= self.limit / 2;
        if fits {
            self.used += n;
            self.reserved += n;
        }
        fits
    }

    /// Gives `n` reserved bytes back: the credit was used.
    pub fn unreserve(&mut self, n: u64) {
        debug_assert!(n <= self.reserved, "more given back than reserved");
        self.reserved = self.reserved.saturating_sub(n);
        self.release(n);
    }

    /// Counts `n` bytes that are here already, whether they fit or not.
    pub fn add(&mut self, n: u64) {
        self.used += n;
    }

    /// Gives `n` bytes back.
    pub fn release(&mut self, n: u64) {
        debug_assert!(n <= self.used, "more given back than taken");
        self.used = self.used.saturating_sub(n);
    }

    /// Whether nothing more fits.
    pub fn is_spent(&self) -> bool {
        self.used >= self.limit
    }

    /// Whether so much is in use that somebody has to go. (Of streams that are open already, more may come than fits.)
    pub fn is_overdrawn(&self) -> bool {
        self.used > self.limit + self.limit / 8
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_leaves_in_order_whatever_the_sizes() {
        let mut pool = Pool::default();
        let mut held = Held::default();
        let all: Vec<u8> = (0..100_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let mut rest = &all[..];
        for size in (1..).map(|i| i * 37 % 5_000 + 1) {
            if rest.is_empty() {
                break;
            }
            let (now, later) = rest.split_at(size.min(rest.len()));
            held.push(now, &mut pool);
            rest = later;
        }
        assert_eq!(held.len(), all.len());
        let mut out = Vec::new();
        while !held.is_empty() {
            held.pop_into(1 + out.len() % 3_001, &mut out, &mut pool);
        }
        assert_eq!(out, all);
        assert!(held.chunks.is_empty());
    }

    #[test]
    fn many_small_messages_cost_near_their_own_bytes() {
        let mut pool = Pool::default();
        let mut held = Held::default();
        for _ in 0..10_000 {
            held.push(&[7; 10], &mut pool);
        }
        let memory: usize = held.chunks.iter().map(Vec::capacity).sum();
        assert!(memory < 120_000, "{memory} bytes for 100,000");
    }

    #[test]
    fn memory_is_at_most_a_few_times_the_bytes_however_they_come() {
        for size in [1, 7, 100, 511, 513, 2_049, 9_000] {
            let mut pool = Pool::default();
            let mut held = Held::default();
            let (mut memory, mut bytes) = (0, 0);
            while bytes < 60_000 {
                memory += held.push(&vec![7; size], &mut pool);
                bytes += size;
                assert!(memory <= 512.max(6 * bytes), "{memory} for {bytes} in pieces of {size}");
            }
        }
    }

    #[test]
    fn all_memory_that_was_taken_is_freed() {
        let mut pool = Pool::default();
        let mut held = Held::default();
        let mut memory = held.push(&[1; 20_000], &mut pool) as i64;
        memory -= held.pop_into(5_000, &mut Vec::new(), &mut pool) as i64;
        memory += held.push(&[1; 70_000], &mut pool) as i64;
        memory -= held.pop_into(80_000, &mut Vec::new(), &mut pool) as i64;
        assert!(memory >= 5_000);
        memory -= held.clear(&mut pool) as i64;
        assert_eq!(memory, 0);
        assert!(held.is_empty());
    }

    #[test]
    fn a_spent_budget_reserves_nothing() {
        let mut budget = Budget::new(100);
        budget.add(60);
        assert!(budget.reserve(30));
        assert!(!budget.reserve(11));
        budget.add(10);
        assert!(budget.is_spent() && !budget.is_overdrawn());
        budget.add(20);
        assert!(budget.is_overdrawn());
        budget.release(90);
        budget.unreserve(30);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn credit_never_takes_more_than_half() {
        let mut budget = Budget::new(100);
        assert!(budget.reserve(50));
        assert!(!budget.reserve(1));
        budget.unreserve(10);
        assert!(budget.reserve(10));
    }
}
