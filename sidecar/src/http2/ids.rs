//! From a stream's identifier to its key: open addressing, by a multiplied identifier.

use super::stream::StreamKey;
use crate::slots::Key;

/// The open streams of a connection by their identifiers.
#[derive(Default)]
pub(crate) struct Ids {
    /// A power of two of places, at most a quarter of them taken; 0 stands for a free one.
    places: Vec<(u32, StreamKey)>,
    len: usize,
}

/// Places that a connection begins with.
const FIRST_PLACES: usize = 4;
const FREE: (u32, StreamKey) = (0, Key::NONE);

impl Ids {
    #[inline(always)]
    pub(crate) fn get(&self, id: u32) -> Option<StreamKey> {
        let mut at = self.home(id);
        loop {
            match *self.places.get(at)? {
                (0, _) => return None,
                (found, key) if found == id => return Some(key),
                _ => at = self.next(at),
            }
        }
    }

    /// Remembers a stream that was not there.
    #[inline(always)]
    pub(crate) fn insert(&mut self, id: u32, key: StreamKey) {
        if self.len * 4 >= self.places.len() {
            self.grow();
        }
        let mut at = self.home(id);
        while self.places[at].0 != 0 {
            at = self.next(at);
        }
        self.places[at] = (id, key);
        self.len += 1;
    }

    #[inline(always)]
    pub(crate) fn remove(&mut self, id: u32) {
        let mut at = self.home(id);
        loop {
            match self.places.get(at) {
                Some((found, _)) if *found == id && id != 0 => break,
                None | Some((0, _)) => return,
                _ => at = self.next(at),
            }
        }
        self.len -= 1;
        self.places[at] = FREE;
        if self.places[self.next(at)].0 != 0 {
            self.close_gap(at);
        }
    }

    /// Those behind a gap that were pushed on by others move back, so that no search ends too early.
    fn close_gap(&mut self, mut free: usize) {
        let mask = self.places.len() - 1;
        let mut at = free;
        loop {
            at = self.next(at);
            let id = self.places[at].0;
            if id == 0 {
                return;
            }
            let distance_home = at.wrapping_sub(self.home(id)) & mask;
            let distance_free = at.wrapping_sub(free) & mask;
            if distance_home >= distance_free {
                self.places[free] = std::mem::replace(&mut self.places[at], FREE);
                free = at;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.places.len()
    }

    #[inline]
    fn home(&self, id: u32) -> usize {
        // Multiplied, so that a peer that leaves out identifiers does not pile its streams up in one place.
        let spread = (id >> 1).wrapping_mul(0x9E37_79B1);
        (spread >> 8) as usize & self.places.len().wrapping_sub(1)
    }

    #[inline]
    fn next(&self, at: usize) -> usize {
        (at + 1) & self.places.len().wrapping_sub(1)
    }

    #[cold]
    fn grow(&mut self) {
        let more = (self.places.len() * 2).max(FIRST_PLACES);
        let before = std::mem::replace(&mut self.places, vec![FREE; more]);
        self.len = 0;
        for (id, key) in before {
            if id != 0 {
                self.insert(id, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_is_a_map_whatever_comes_and_goes() {
        let mut ids = Ids::default();
        let mut model = HashMap::new();
        let mut x = 7u64;
        for _ in 0..200_000 {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = ((x >> 33) as u32 % 300) * 2 + 1;
            if let std::collections::hash_map::Entry::Vacant(free) = model.entry(id) {
                free.insert(x);
                ids.insert(id, Key::from_bits(x));
            } else if x >> 60 < 9 {
                model.remove(&id);
                ids.remove(id);
            }
            let asked = ((x >> 20) as u32 % 300) * 2 + 1;
            assert_eq!(ids.get(asked).map(Key::to_bits), model.get(&asked).copied());
        }
        assert_eq!(ids.len, model.len());
    }

    #[test]
    fn chosen_identifiers_do_not_pile_up() {
        let mut ids = Ids::default();
        for n in 0..1_000 {
            ids.insert(n * 4_096 + 1, Key::from_bits(u64::from(n)));
        }
        let longest = (0..1_000).map(|n| {
            let id = n * 4_096 + 1;
            let mut at = ids.home(id);
            let mut steps = 0;
            while ids.places[at].0 != id {
                at = ids.next(at);
                steps += 1;
            }
            steps
        });
        assert!(longest.max() < Some(64));
    }
}
