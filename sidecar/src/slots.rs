//! Things in slots, reached by keys that carry a generation: a key whose thing is gone finds nothing, never a stranger.

use std::marker::PhantomData;

/// The key of a `T` in [`Slots`].
pub struct Key<T> {
    slot: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Key<T> {
    /// A key that finds nothing, ever.
    pub const NONE: Key<T> = Key {
        slot: u32::MAX,
        generation: 0,
        of: PhantomData,
    };

    /// The key as one number, for those who remember it without knowing what it opens.
    pub fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.slot as u64
    }

    /// The key that [`Key::to_bits`] made a number of.
    pub fn from_bits(bits: u64) -> Key<T> {
        Key {
            slot: bits as u32,
            generation: (bits >> 32) as u32,
            of: PhantomData,
        }
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        self.to_bits() == other.to_bits()
    }
}

impl<T> Eq for Key<T> {}

impl<T> std::hash::Hash for Key<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.to_bits().hash(state);
    }
}

impl<T> std::fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.slot, self.generation)
    }
}

/// Slots that are used again, each time under a new generation.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: u32,
    len: u32,
}

#[derive(Debug)]
struct Slot<T> {
    /// Odd while the slot is taken. It goes up at every insert and every remove.
    generation: u32,
    next_free: u32,
    value: Option<T>,
}

const NO_SLOT: u32 = u32::MAX;

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots {
            slots: Vec::new(),
            free: NO_SLOT,
            len: 0,
        }
    }
}

impl<T> Slots<T> {
    /// How many things there are.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many slots there are, taken or not: as many as were ever taken at once.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Puts `value` into a free slot.
    pub fn insert(&mut self, value: T) -> Key<T> {
        self.insert_with(|| value)
    }

    /// Makes a thing where it will stay: in a free slot.
    #[inline(always)]
    pub fn insert_with(&mut self, make: impl FnOnce() -> T) -> Key<T> {
        if self.free == NO_SLOT {
            self.grow();
        }
        let slot = self.free;
        let entry = &mut self.slots[slot as usize];
        self.free = entry.next_free;
        self.len += 1;
        entry.generation = entry.generation.wrapping_add(1);
        debug_assert!(entry.value.is_none(), "a free slot is empty");
        entry.value = Some(make());
        Key {
            slot,
            generation: entry.generation,
            of: PhantomData,
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.free = self.slots.len() as u32;
        if self.slots.is_empty() {
            // Most connections have one stream at a time, or few.
            self.slots.reserve_exact(1);
        }
        self.slots.push(Slot {
            generation: 0,
            next_free: NO_SLOT,
            value: None,
        });
    }

    /// The thing of `key`, if it is still there.
    #[inline(always)]
    pub fn get(&self, key: Key<T>) -> Option<&T> {
        match self.slots.get(key.slot as usize) {
            Some(slot) if slot.generation == key.generation => slot.value.as_ref(),
            _ => None,
        }
    }

    /// The thing of `key`, if it is still there.
    #[inline(always)]
    pub fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        match self.slots.get_mut(key.slot as usize) {
            Some(slot) if slot.generation == key.generation => slot.value.as_mut(),
            _ => None,
        }
    }

    /// Whether the thing of `key` is still there.
    #[inline]
    pub fn contains(&self, key: Key<T>) -> bool {
        self.get(key).is_some()
    }

    /// Takes the thing of `key` out; the key finds nothing from now on.
    pub fn remove(&mut self, key: Key<T>) -> Option<T> {
        let slot = self.slots.get_mut(key.slot as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        self.free_slot(key.slot);
        Some(value)
    }

    /// Drops the thing of `key` where it stands.
    #[inline(always)]
    pub fn discard(&mut self, key: Key<T>) {
        if let Some(slot) = self.slots.get_mut(key.slot as usize)
            && slot.generation == key.generation
            && slot.value.is_some()
        {
            slot.value = None;
            self.free_slot(key.slot);
        }
    }

    #[inline(always)]
    fn free_slot(&mut self, at: u32) {
        let slot = &mut self.slots[at as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_free = self.free;
        self.free = at;
        self.len -= 1;
    }

    /// Everything, with its key.
    pub fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, slot)| {
            let key = Key {
                slot: i as u32,
                generation: slot.generation,
                of: PhantomData,
            };
            slot.value.as_ref().map(|value| (key, value))
        })
    }

    /// Everything, with its key.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key<T>, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(i, slot)| {
            let key = Key {
                slot: i as u32,
                generation: slot.generation,
                of: PhantomData,
            };
            slot.value.as_mut().map(|value| (key, value))
        })
    }

    /// The keys of everything that is there.
    pub fn keys(&self) -> Vec<Key<T>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_finds_nothing_even_when_its_slot_is_used_again() {
        let mut slots = Slots::default();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get(new), Some(&"new"));
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn the_key_of_nothing_finds_nothing() {
        let mut slots = Slots::default();
        slots.insert(7);
        assert_eq!(slots.get(Key::NONE), None);
    }

    #[test]
    fn a_key_survives_being_a_number() {
        let mut slots = Slots::default();
        let key = slots.insert(1);
        assert_eq!(Key::from_bits(key.to_bits()), key);
    }
}
