//! The entries of a decoder's dynamic table, found by index.

use super::fields::Item;

/// A queue of entries in one piece of memory, so that an index is one subtraction and one comparison away from its entry.
/// It allocates nothing until it has one.
pub(super) struct Entries {
    /// The youngest last. What stands before `oldest` means nothing any more.
    all: Vec<Item>,
    oldest: u32,
}

impl Entries {
    pub(super) const fn new() -> Entries {
        Entries {
            all: Vec::new(),
            oldest: 0,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.all.len() as u32 - self.oldest
    }

    /// The entries from the oldest to the youngest.
    #[inline]
    pub(super) fn as_slice(&self) -> &[Item] {
        self.all.get(self.oldest as usize..).unwrap_or_default()
    }

    /// The entry at `index`; the youngest is 0.
    #[inline]
    pub(super) fn get(&self, index: u32) -> Option<&Item> {
        let entries = self.as_slice();
        entries.get(entries.len().wrapping_sub(1).wrapping_sub(index as usize))
    }

    #[inline(always)]
    pub(super) fn push(&mut self, item: Item) {
        // Half of the memory means nothing: as many have left as are moved now.
        if self.all.len() == self.all.capacity() && self.oldest as usize * 2 >= self.all.len() {
            self.all.drain(..self.oldest as usize);
            self.oldest = 0;
        }
        self.all.push(item);
    }

    /// Takes out the oldest.
    pub(super) fn pop(&mut self) -> Option<Item> {
        let oldest = *self.all.get(self.oldest as usize)?;
        self.oldest += 1;
        Some(oldest)
    }
}

#[cfg(test)]
impl Entries {
    pub(super) fn allocated(&self) -> usize {
        self.all.capacity()
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
            let (mut model, mut longest) = (VecDeque::new(), 0);
            for (number, push) in (100u32..).zip(pushes) {
                if push {
                    entries.push(Item::Interned { name: Name::Other, id: FieldId(number) });
                    model.push_front(number);
                    longest = longest.max(model.len());
                } else {
                    prop_assert_eq!(entries.pop().map(number_of), model.pop_back());
                }
                let all: Vec<u32> = (0..entries.len()).filter_map(|at| entries.get(at).copied().map(number_of)).collect();
                prop_assert_eq!(all, Vec::from(model.clone()));
                prop_assert!(entries.get(entries.len()).is_none());
                prop_assert!(entries.allocated() <= longest.max(2) * 4);
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
