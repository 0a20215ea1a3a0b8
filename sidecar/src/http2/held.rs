//! Bytes that wait for a reader, in pooled chunks, memory near the bytes themselves; and copies in one piece.

use super::Shared;

/// A first chunk is small, since most streams that hold anything hold little; each further one is larger, up to a frame,
/// so that the memory stays near the bytes.
const SIZES: [usize; 4] = [512, 2 << 10, 8 << 10, 16 << 10];
/// Free chunks kept, of each size, for the next who needs one.
const KEPT: usize = 64;
/// The least and the most that a copy takes when it begins; and how many such are kept for the next who needs one.
const COPY_BYTES: std::ops::RangeInclusive<usize> = 128..=512;
const COPIES_KEPT: usize = 256;
/// No chunk.
const NONE: u32 = 0;

/// The chunks of one worker: those that somebody holds, and some that are free, by size.
pub struct Pool {
    /// The first stands for [`NONE`].
    chunks: Vec<Chunk>,
    free: [Vec<u32>; SIZES.len()],
    /// Numbers that are free, without memory.
    vacant: Vec<u32>,
}

/// Some bytes that are held, and where they go on.
struct Chunk {
    bytes: Vec<u8>,
    next: u32,
}

impl Chunk {
    const fn new(bytes: Vec<u8>) -> Chunk {
        Chunk { bytes, next: NONE }
    }
}

impl Default for Pool {
    fn default() -> Pool {
        Pool {
            chunks: vec![Chunk::new(Vec::new())],
            free: Default::default(),
            vacant: Vec::new(),
        }
    }
}

impl Pool {
    /// A chunk larger than `last`, if there is a larger size, and large enough for `bytes`, if any is.
    fn take(&mut self, last: usize, bytes: usize) -> u32 {
        let fits = |size: &usize| *size > last && *size >= bytes;
        let class = SIZES.iter().position(fits).unwrap_or(SIZES.len() - 1);
        self.free[class].pop().unwrap_or_else(|| self.make(SIZES[class]))
    }

    #[cold]
    fn make(&mut self, size: usize) -> u32 {
        let chunk = Chunk::new(Vec::with_capacity(size));
        match self.vacant.pop() {
            Some(number) => {
                self.chunks[number as usize] = chunk;
                number
            }
            None => {
                self.chunks.push(chunk);
                self.chunks.len() as u32 - 1
            }
        }
    }

    /// Takes a chunk back; says how much memory it has, and which one follows it.
    fn give(&mut self, number: u32) -> (usize, u32) {
        let chunk = &mut self.chunks[number as usize];
        chunk.bytes.clear();
        let memory = chunk.bytes.capacity();
        let next = std::mem::replace(&mut chunk.next, NONE);
        match SIZES.iter().position(|size| *size == memory) {
            Some(class) if self.free[class].len() < KEPT => self.free[class].push(number),
            _ => {
                chunk.bytes = Vec::new();
                self.vacant.push(number);
            }
        }
        (memory, next)
    }
}

/// The bytes that one direction of a stream holds, in order. They stand in the [`Pool`], so they are to be cleared before
/// this is dropped.
#[derive(Default)]
pub struct Held {
    first: u32,
    last: u32,
    /// How much of the first chunk has left.
    taken: u32,
    len: u32,
}

impl Held {
    /// How many bytes are held.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is held.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps a copy of `bytes` behind what is held already, and says how much memory that took.
    pub fn push(&mut self, mut bytes: &[u8], pool: &mut Pool) -> usize {
        self.len += bytes.len() as u32;
        let mut memory = 0;
        while !bytes.is_empty() {
            let last = &mut pool.chunks[self.last as usize].bytes;
            let size = last.capacity();
            let fits = (size - last.len()).min(bytes.len());
            if fits == 0 {
                let number = pool.take(size, bytes.len());
                memory += pool.chunks[number as usize].bytes.capacity();
                if self.last == NONE {
                    self.first = number;
                } else {
                    pool.chunks[self.last as usize].next = number;
                }
                self.last = number;
                continue;
            }
            let now;
            (now, bytes) = bytes.split_at(fits);
            last.extend_from_slice(now);
        }
        memory
    }

    /// Moves the first `n` bytes (or all, if fewer are held) to the end of `out`, and says how much memory that freed.
    pub fn pop_into(&mut self, n: usize, out: &mut Vec<u8>, pool: &mut Pool) -> usize {
        let mut n = n.min(self.len());
        let mut memory = 0;
        self.len -= n as u32;
        while n > 0 {
            let first = &pool.chunks[self.first as usize].bytes[self.taken as usize..];
            let now = n.min(first.len());
            out.extend_from_slice(&first[..now]);
            n -= now;
            if now == first.len() {
                memory += self.drop_first(pool);
            } else {
                self.taken += now as u32;
            }
        }
        if self.len == 0 {
            memory += self.clear(pool);
        }
        memory
    }

    /// Throws away what is held, and says how much memory that freed.
    pub fn clear(&mut self, pool: &mut Pool) -> usize {
        let mut memory = 0;
        while self.first != NONE {
            memory += self.drop_first(pool);
        }
        self.len = 0;
        memory
    }

    fn drop_first(&mut self, pool: &mut Pool) -> usize {
        let (memory, next) = pool.give(self.first);
        self.first = next;
        self.taken = 0;
        if next == NONE {
            self.last = NONE;
        }
        memory
    }
}

impl Shared {
    /// Holds a copy of `bytes`, whose memory is counted in the budget.
    pub fn hold(&mut self, held: &mut Held, bytes: &[u8]) {
        let taken = held.push(bytes, &mut self.pool);
        self.budget.add(taken as u64);
    }

    /// Throws away what is held.
    pub fn drop_held(&mut self, held: &mut Held) {
        let freed = held.clear(&mut self.pool);
        self.budget.release(freed as u64);
    }

    /// Adds `bytes` to a copy in one piece, whose memory is counted in the budget.
    #[inline]
    pub fn copy(&mut self, bytes: &[u8], copy: &mut Vec<u8>) {
        if copy.capacity() == 0 {
            let size = bytes.len().clamp(*COPY_BYTES.start(), *COPY_BYTES.end());
            *copy = self.copies.pop().unwrap_or_else(|| Vec::with_capacity(size));
            self.budget.add(copy.capacity() as u64);
        }
        let before = copy.capacity();
        copy.extend_from_slice(bytes);
        self.budget.add((copy.capacity() - before) as u64);
    }

    /// Throws such a copy away.
    #[inline]
    pub fn drop_copy(&mut self, copy: &mut Vec<u8>) {
        self.budget.release(copy.capacity() as u64);
        let mut copy = std::mem::take(copy);
        copy.clear();
        if copy.capacity() <= *COPY_BYTES.end() && self.copies.len() < COPIES_KEPT {
            self.copies.push(copy);
        }
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
        assert_eq!((held.first, held.last), (NONE, NONE));
    }

    #[test]
    fn many_small_messages_cost_near_their_own_bytes() {
        let mut pool = Pool::default();
        let mut held = Held::default();
        for _ in 0..10_000 {
            held.push(&[7; 10], &mut pool);
        }
        let memory = held.clear(&mut pool);
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
    fn a_copy_is_counted_while_it_is_there() {
        let mut shared = Shared::new(1 << 20);
        for size in [10, 512, 10_000] {
            let mut copy = Vec::new();
            for _ in 0..3 {
                shared.copy(&vec![7; size], &mut copy);
                assert_eq!(shared.budget.used(), copy.capacity() as u64);
            }
            assert_eq!(copy, vec![7; 3 * size]);
            shared.drop_copy(&mut copy);
            assert_eq!((shared.budget.used(), copy.capacity()), (0, 0));
        }
    }
}
