//! The entries of a decoder's dynamic table, found by index: a ring, the youngest first.

use super::fields::Item;

/// A ring of entries. It allocates nothing until it has one.
pub(super) struct Entries {
    /// A power of two of places, or none. What stands in a place beyond `len` means nothing.
    ring: Vec<Item>,
    /// The place of the youngest, modulo the ring.
    youngest: u32,
    len: u32,
}

impl Entries {
    pub(super) const fn new() -> Entries {
        Entries {
            ring: Vec::new(),
            youngest: 0,
            len: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The entry at `index`; the youngest is 0.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Item> {
        let place = self.youngest.wrapping_add(index) as usize & self.ring.len().wrapping_sub(1);
        if index < self.len { self.ring.get(place) } else { None }
    }

    pub(super) fn push(&mut self, item: Item) {
        if self.len as usize == self.ring.len() {
            self.grow(item);
        }
        self.youngest = self.youngest.wrapping_sub(1);
        self.len += 1;
        let mask = self.ring.len() - 1;
        self.ring[self.youngest as usize & mask] = item;
    }

    /// Takes out the oldest.
    pub(super) fn pop(&mut self) -> Option<Item> {
        let oldest = *self.get(self.len.checked_sub(1)?)?;
        self.len -= 1;
        Some(oldest)
    }

    /// Twice the places, in which all entries stand from the first on.
    #[cold]
    fn grow(&mut self, filler: Item) {
        let places = (self.ring.len() * 2).max(4);
        let mut ring: Vec<Item> = Vec::with_capacity(places);
        ring.extend((0..self.len).filter_map(|index| self.get(index)));
        ring.resize(places, filler);
        self.ring = ring;
        self.youngest = 0;
    }
}

#[cfg(test)]
impl Entries {
    pub(super) fn allocated(&self) -> usize {
        self.ring.capacity()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::http2::hpack::{FieldId, Name};

    proptest! {
        #[test]
        fn entries_are_found_by_their_age(pushes in prop::collection::vec(any::<bool>(), 1..300)) {
            let mut entries = Entries::new();
            let mut model = VecDeque::new();
            for (number, push) in (100u32..).zip(pushes) {
                if push {
                    entries.push(Item::Interned { name: Name::Other, id: FieldId(number) });
                    model.push_front(number);
                } else {
                    prop_assert_eq!(entries.pop().map(number_of), model.pop_back());
                }
                let all: Vec<u32> = (0..entries.len()).filter_map(|at| entries.get(at).copied().map(number_of)).collect();
                prop_assert_eq!(all, Vec::from(model.clone()));
                prop_assert!(entries.get(entries.len()).is_none());
            }
        }
    }

    fn number_of(item: Item) -> u32 {
        match item {
            Item::Interned { id, .. } => id.0,
            Item::Literal(_) => 0,
        }
    }
}
