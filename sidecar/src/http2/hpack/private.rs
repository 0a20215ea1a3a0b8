//! The texts of a decoder's entries that nobody else may see: a ring of bytes, first in, first out.

/// A ring of bytes. What is pushed is found by its place until it is popped, in order; growing moves no place.
pub(super) struct Private {
    /// A power of two of bytes, or none.
    ring: Vec<u8>,
    /// The place of the first byte that is kept. Places count on for ever, modulo 2^32.
    start: u32,
    len: u32,
}

impl Private {
    pub(super) const fn new() -> Private {
        Private {
            ring: Vec::new(),
            start: 0,
            len: 0,
        }
    }

    /// Appends `text` and says at which place.
    #[inline(always)]
    pub(super) fn push(&mut self, text: &[u8]) -> u32 {
        let place = self.start.wrapping_add(self.len);
        self.len += text.len() as u32;
        if self.len as usize > self.ring.len() {
            self.grow();
        }
        let at = self.at(place);
        match self.ring.get_mut(at..at + text.len()) {
            Some(place) => place.copy_from_slice(text),
            None => self.wrap(at, text),
        }
        place
    }

    fn wrap(&mut self, at: usize, text: &[u8]) {
        let (before_end, rest) = text.split_at(self.ring.len() - at);
        self.ring[at..].copy_from_slice(before_end);
        self.ring[..rest.len()].copy_from_slice(rest);
    }

    /// Forgets the oldest `len` bytes.
    #[inline(always)]
    pub(super) fn pop(&mut self, len: u32) {
        self.start = self.start.wrapping_add(len);
        self.len -= len;
    }

    /// Appends to `out` the `len` bytes at `place`.
    #[inline(always)]
    pub(super) fn copy_to(&self, place: u32, len: u32, out: &mut Vec<u8>) {
        let at = self.at(place);
        let before_end = (len as usize).min(self.ring.len() - at);
        out.extend_from_slice(&self.ring[at..at + before_end]);
        if before_end < len as usize {
            out.extend_from_slice(&self.ring[..len as usize - before_end]);
        }
    }

    /// Where a place is now.
    fn at(&self, place: u32) -> usize {
        place as usize & self.ring.len().wrapping_sub(1)
    }

    /// Makes room for `self.len` bytes, of which those that the old ring held are kept.
    #[cold]
    fn grow(&mut self) {
        let bigger = vec![0; (self.len as usize).next_power_of_two().max(128)];
        let old = std::mem::replace(&mut self.ring, bigger);
        if old.is_empty() {
            return;
        }
        // Every place of the old ring, also those that mean nothing: the new one has more.
        for place in (self.start as usize..).take(old.len()) {
            let mask = self.ring.len() - 1;
            self.ring[place & mask] = old[place & (old.len() - 1)];
        }
    }
}

#[cfg(test)]
impl Private {
    pub(super) fn allocated(&self) -> usize {
        self.ring.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_pushed_is_found_at_its_place_until_it_is_popped(
            lengths in prop::collection::vec((0usize..200, 0usize..3), 1..200),
            start in prop_oneof![Just(0u32), Just(u32::MAX - 500)],
        ) {
            let mut ring = Private { start, ..Private::new() };
            ring.push(&[0; 128]);
            ring.pop(128);
            let mut kept = VecDeque::new();
            for (number, (length, pops)) in lengths.into_iter().enumerate() {
                let text: Vec<u8> = (0..length).map(|at| (at + number * 7) as u8).collect();
                kept.push_back((ring.push(&text), text));
                for _ in 0..pops {
                    if let Some((_, text)) = kept.pop_front() {
                        ring.pop(text.len() as u32);
                    }
                }
                for (place, text) in &kept {
                    let mut out = Vec::new();
                    ring.copy_to(*place, text.len() as u32, &mut out);
                    prop_assert_eq!(&out, text);
                }
            }
            let held: usize = kept.iter().map(|(_, text)| text.len()).sum();
            prop_assert_eq!(ring.len as usize, held);
        }
    }
}
