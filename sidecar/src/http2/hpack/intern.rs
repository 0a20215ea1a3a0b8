//! The worker's table of header fields: a text that many tables know is kept once, and has a number.

use std::hash::{BuildHasher, RandomState};

use super::{
    OVERHEAD,
    coded::Coded,
    fields::FieldView,
    name::{self, Class, Malformed, Name},
    static_table,
};

/// An interned field: its name and its value. 1 to 61 are the entries of the static table, for ever.
///
/// An id means something as long as somebody holds a reference to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FieldId(pub(super) u32);

impl FieldId {
    /// `:method: POST`
    pub const METHOD_POST: FieldId = FieldId(3);
    /// `:scheme: http`
    pub const SCHEME_HTTP: FieldId = FieldId(6);
    /// `:scheme: https`
    pub const SCHEME_HTTPS: FieldId = FieldId(7);
    /// `:status: 200`
    pub const STATUS_200: FieldId = FieldId(8);

    /// The id as a number: below 62 an index of the static table.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// The table of interned fields of one worker.
///
/// Each decoder's table, encoder's table and list of fields that has an id holds one reference. A field to which nobody
/// refers stays findable for a while, within 64 KiB for all of them, so that a text that comes again keeps its id and
/// its tag. A field's text never moves; a freed slot's buffer serves the next one.
pub struct Interner {
    slots: Vec<Slot>,
    /// The first slot of each chain, by hash; a power of two of them.
    chains: Vec<u32>,
    /// The first free slot; the others follow by `next`.
    free: u32,
    /// What the free slots' buffers take.
    spare: usize,
    /// Slots that nobody refers to, in the order in which that came about.
    idle: Idle,
    live: usize,
    bytes: usize,
    seed: [u64; 2],
    /// What codes stand for.
    coded: Coded,
    /// Goes up when a slot is freed: what was learned of codes before counts no more.
    epoch: u32,
}

/// One field, in one cache line.
#[repr(align(64))]
struct Slot {
    text: Vec<u8>,
    name_len: u32,
    references: u32,
    tag: u32,
    hash: u32,
    /// The neighbours in the chain of the same hash, or in the list of free slots.
    next: u32,
    previous: u32,
    /// The neighbours among the idle.
    younger: u32,
    older: u32,
    name: Name,
    static_index: u8,
    note: Note,
}

/// What is wrong with a field, and whether it was met again.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Note(u8);

impl Note {
    const NEW: Note = Note(0);
    const MET_AGAIN: Note = Note(0x80);

    fn new(malformed: Option<Malformed>) -> Note {
        Note(malformed.map_or(0, |malformed| malformed as u8 + 1))
    }

    fn malformed(self) -> Option<Malformed> {
        if self.0 & !Note::MET_AGAIN.0 == 0 {
            return None;
        }
        Malformed::ALL
            .into_iter()
            .find(|malformed| Note::new(Some(*malformed)).0 == self.0 & !Note::MET_AGAIN.0)
    }

    fn is_met_again(self) -> bool {
        self.0 & Note::MET_AGAIN.0 != 0
    }

    /// Meets the field again, and says what is wrong with it.
    #[cold]
    fn met(&mut self) -> Option<Malformed> {
        self.0 |= Note::MET_AGAIN.0;
        self.malformed()
    }
}

struct Idle {
    oldest: u32,
    youngest: u32,
    bytes: usize,
}

/// No slot: the number that the static table does not have either.
const NONE: u32 = 0;

/// How much memory holds fields that nobody refers to: some five hundred of them.
const IDLE_BYTES: usize = 64 << 10;

/// A chain is searched no further. A text that stands behind gets a second id, which is harmless: so whoever could make
/// many texts of one hash gains nothing.
const CHAIN_STEPS: usize = 16;

/// What a slot's buffer has at least.
const TYPICAL_TEXT: usize = 64;

/// A freed slot keeps a buffer up to this size for its next text, and all of them together up to that.
const SPARE_TEXT: usize = 256;
const SPARE_BYTES: usize = 64 << 10;

impl Interner {
    /// A table that holds the static entries.
    pub fn new() -> Interner {
        let random = RandomState::new();
        let mut slots = vec![Slot::unused()];
        slots.extend((1..=static_table::LEN).map(|index| {
            let (name_text, value) = static_table::ENTRIES[index as usize - 1];
            let Class { name, static_index, .. } = static_table::class(index);
            let malformed = name::judge(name_text).1;
            Slot {
                text: [name_text, value].concat(),
                name_len: name_text.len() as u32,
                references: 1,
                name,
                static_index,
                note: Note(Note::new(malformed).0 | Note::MET_AGAIN.0),
                ..Slot::unused()
            }
        }));
        Interner {
            slots,
            chains: vec![NONE; 64],
            free: NONE,
            spare: 0,
            idle: Idle {
                oldest: NONE,
                youngest: NONE,
                bytes: 0,
            },
            live: 0,
            bytes: 0,
            seed: [random.hash_one(0), random.hash_one(1)],
            coded: Coded::default(),
            epoch: 1,
        }
    }

    /// The field that `id` stands for.
    #[inline]
    pub fn view(&self, id: FieldId) -> FieldView<'_> {
        let slot = self.slot(id);
        let (name_text, value) = slot.texts();
        FieldView {
            name: slot.name,
            name_text,
            value,
            never_indexed: false,
            malformed: slot.note.malformed(),
            id: Some(id),
        }
    }

    /// The name alone.
    #[inline]
    pub(super) fn name_text(&self, id: FieldId) -> &[u8] {
        self.slot(id).texts().0
    }

    /// The value alone.
    #[inline]
    pub(super) fn value(&self, id: FieldId) -> &[u8] {
        self.slot(id).texts().1
    }

    /// What [`set_tag`](Self::set_tag) hung on the field; 0 when it is new.
    #[inline]
    pub fn tag(&self, id: FieldId) -> u32 {
        self.slot(id).tag
    }

    /// Hangs a number on the field, for its owner's use. It stays until the id is given to another text.
    #[inline]
    pub fn set_tag(&mut self, id: FieldId, tag: u32) {
        self.slot_mut(id).tag = tag;
    }

    /// The field as one that is never freed and that encoders put into their tables at once: for what we add to messages
    /// ourselves, again and again. The caller takes care that there are few of these, and no secret among them.
    pub fn constant(&mut self, name_text: &[u8], value: &[u8]) -> FieldId {
        let (class, malformed) = name::judge(name_text);
        if let Some(index) = static_table::find(class.static_index, value) {
            return FieldId(index);
        }
        let text = [name_text, value].concat();
        let id = self.intern(&text, name_text.len(), class, malformed);
        self.slot_mut(id).note.met();
        id
    }

    /// A constant of [`constant`](Self::constant) is not needed any more.
    pub fn forget(&mut self, id: FieldId) {
        if id.0 > static_table::LEN {
            self.release(id);
        }
    }

    /// Bytes of text that are kept, beside the static table's.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many fields somebody refers to, beside the static table's.
    pub fn live(&self) -> usize {
        self.live
    }

    /// The id of a text, with one reference for the caller. Its name, the first `name_len` bytes, has been judged.
    pub(super) fn intern(
        &mut self,
        text: &[u8],
        name_len: usize,
        class: Class,
        name_malformed: Option<Malformed>,
    ) -> FieldId {
        let hash = self.hash(text, name_len);
        match self.find(hash, text, name_len) {
            Some(id) => {
                self.meet(id);
                id
            }
            None => {
                if let Some(index) = static_table::find(class.static_index, &text[name_len..]) {
                    self.retain(FieldId(index));
                    return FieldId(index);
                }
                let id = self.take_slot();
                let slot = &mut self.slots[id as usize];
                slot.text.clear();
                // Rarely longer, so that the next text fits as well.
                slot.text.reserve(text.len().max(TYPICAL_TEXT));
                slot.text.extend_from_slice(text);
                slot.name_len = name_len as u32;
                slot.references = 1;
                slot.tag = 0;
                slot.hash = hash;
                slot.name = class.name;
                slot.static_index = class.static_index;
                slot.note = Note::new(name_malformed.or_else(|| name::value_malformed(class.name, &text[name_len..])));
                self.live += 1;
                self.bytes += text.len();
                self.chain(id);
                FieldId(id)
            }
        }
    }

    /// The field whose name is that of the static table's entry, and whose value has this Huffman code, if that is known;
    /// with one reference for the caller.
    #[inline]
    pub(super) fn recall(&mut self, static_index: u8, code: &[u8]) -> Option<FieldId> {
        if !Coded::keeps(code) {
            return None;
        }
        let hash = self.hash(code, usize::from(static_index));
        let id = self.coded.recall(hash, static_index, code, self.epoch)?;
        self.meet(id);
        Some(id)
    }

    /// One reference more to a field that was found again, idle or not.
    #[inline]
    fn meet(&mut self, id: FieldId) {
        if self.slot(id).references == 0 {
            self.idle_remove(id.0);
            self.live += 1;
        }
        let slot = self.slot_mut(id);
        slot.references += 1;
        slot.note.met();
    }

    /// Learns that this is the code of the field's value.
    pub(super) fn learn(&mut self, static_index: u8, code: &[u8], id: FieldId) {
        if static_index > 0 && Coded::keeps(code) {
            let hash = self.hash(code, usize::from(static_index));
            self.coded.learn(hash, static_index, code, self.epoch, id);
        }
    }

    /// One reference more.
    #[inline]
    pub(super) fn retain(&mut self, id: FieldId) {
        self.slot_mut(id).references += 1;
    }

    /// One reference more, for a peer that referred to the field again; and the length of its text, and what is wrong with it.
    #[inline]
    pub(super) fn refer(&mut self, id: FieldId) -> (usize, Option<Malformed>) {
        let slot = self.slot_mut(id);
        slot.references += 1;
        // One comparison for what is nearly always so.
        let malformed = if slot.note == Note::MET_AGAIN {
            None
        } else {
            slot.note.met()
        };
        (slot.text.len(), malformed)
    }

    /// What is wrong with the field.
    #[inline]
    pub(super) fn malformed(&self, id: FieldId) -> Option<Malformed> {
        self.slot(id).note.malformed()
    }

    /// One reference less.
    #[inline]
    pub(super) fn release(&mut self, id: FieldId) {
        let slot = self.slot_mut(id);
        debug_assert!(slot.references > 0, "each reference is given back once");
        slot.references -= 1;
        if slot.references == 0 {
            self.retire(id.0);
        }
    }

    /// What the field counts in a table.
    #[inline]
    pub(super) fn size(&self, id: FieldId) -> u32 {
        self.slot(id).size()
    }

    /// Whether a peer has sent the field more than once, as far as can be known.
    #[inline]
    pub(super) fn met_again(&self, id: FieldId) -> bool {
        self.slot(id).note.is_met_again()
    }

    /// All that follows from the field's name.
    #[inline]
    pub(super) fn class(&self, id: FieldId) -> Class {
        let slot = self.slot(id);
        if id.0 <= static_table::LEN {
            static_table::class(id.0)
        } else {
            Class {
                name: slot.name,
                static_index: slot.static_index,
                ..Class::OTHER
            }
        }
    }

    #[inline]
    fn slot(&self, id: FieldId) -> &Slot {
        &self.slots[id.0 as usize]
    }

    #[inline]
    fn slot_mut(&mut self, id: FieldId) -> &mut Slot {
        &mut self.slots[id.0 as usize]
    }

    fn find(&self, hash: u32, text: &[u8], name_len: usize) -> Option<FieldId> {
        let mut at = self.chains[hash as usize & (self.chains.len() - 1)];
        for _ in 0..CHAIN_STEPS {
            if at == NONE {
                return None;
            }
            let slot = &self.slots[at as usize];
            if slot.hash == hash && slot.name_len as usize == name_len && slot.text == text {
                return Some(FieldId(at));
            }
            at = slot.next;
        }
        None
    }

    /// Folds 16 bytes at a time with a multiplication; the seed is the process's own.
    fn hash(&self, text: &[u8], name_len: usize) -> u32 {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            product as u64 ^ (product >> 64) as u64
        };
        let [first, second] = self.seed;
        let mix = |hash: u64, chunk: &[u8; 16]| {
            let both = u128::from_le_bytes(*chunk);
            fold(both as u64 ^ hash, (both >> 64) as u64 ^ second)
        };
        let mut hash = first ^ ((text.len() as u64) << 32 | name_len as u64);
        let (chunks, rest) = text.as_chunks::<16>();
        for chunk in chunks {
            hash = mix(hash, chunk);
        }
        if let Some(last) = text.last_chunk::<16>() {
            hash = mix(hash, last);
        } else {
            let mut last = [0; 16];
            last[..rest.len()].copy_from_slice(rest);
            hash = mix(hash, &last);
        }
        fold(hash, first) as u32
    }

    /// A slot that is in no list.
    fn take_slot(&mut self) -> u32 {
        if self.free == NONE {
            self.slots.push(Slot::unused());
            self.slots.len() as u32 - 1
        } else {
            let id = self.free;
            let slot = &self.slots[id as usize];
            self.free = slot.next;
            self.spare -= slot.text.capacity();
            id
        }
    }

    /// The last reference is gone: the field may still come again soon.
    #[cold]
    fn retire(&mut self, id: u32) {
        self.live -= 1;
        let youngest = self.idle.youngest;
        let slot = &mut self.slots[id as usize];
        slot.older = youngest;
        slot.younger = NONE;
        self.idle.bytes += slot.memory();
        self.idle.youngest = id;
        match youngest {
            NONE => self.idle.oldest = id,
            _ => self.slots[youngest as usize].younger = id,
        }
        while self.idle.bytes > IDLE_BYTES {
            self.free_oldest();
        }
    }

    fn free_oldest(&mut self) {
        let id = self.idle.oldest;
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            (self.coded, self.epoch) = (Coded::default(), 1);
        }
        self.idle_remove(id);
        self.unchain(id);
        let slot = &mut self.slots[id as usize];
        self.bytes -= slot.text.len();
        if slot.text.capacity() > SPARE_TEXT || self.spare + slot.text.capacity() > SPARE_BYTES {
            slot.text = Vec::new();
        }
        self.spare += slot.text.capacity();
        slot.next = self.free;
        self.free = id;
    }

    fn idle_remove(&mut self, id: u32) {
        let slot = &self.slots[id as usize];
        let (older, younger) = (slot.older, slot.younger);
        self.idle.bytes -= slot.memory();
        match older {
            NONE => self.idle.oldest = younger,
            _ => self.slots[older as usize].younger = younger,
        }
        match younger {
            NONE => self.idle.youngest = older,
            _ => self.slots[younger as usize].older = older,
        }
    }

    fn chain(&mut self, id: u32) {
        if self.slots.len() > self.chains.len() {
            self.grow_chains();
        }
        let mask = self.chains.len() - 1;
        let first = &mut self.chains[self.slots[id as usize].hash as usize & mask];
        let next = std::mem::replace(first, id);
        self.slots[id as usize].next = next;
        self.slots[id as usize].previous = NONE;
        if next != NONE {
            self.slots[next as usize].previous = id;
        }
    }

    fn unchain(&mut self, id: u32) {
        let Slot {
            next, previous, hash, ..
        } = self.slots[id as usize];
        let mask = self.chains.len() - 1;
        match previous {
            NONE => self.chains[hash as usize & mask] = next,
            _ => self.slots[previous as usize].next = next,
        }
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
    }

    /// Twice as many chains. Each old chain is dealt out to two.
    #[cold]
    fn grow_chains(&mut self) {
        let len = self.chains.len() * 2;
        let old = std::mem::replace(&mut self.chains, vec![NONE; len]);
        for mut at in old {
            while at != NONE {
                let next = self.slots[at as usize].next;
                self.chain(at);
                at = next;
            }
        }
    }
}

impl Default for Interner {
    fn default() -> Interner {
        Interner::new()
    }
}

impl Slot {
    fn unused() -> Slot {
        Slot {
            text: Vec::new(),
            name_len: 0,
            references: 0,
            tag: 0,
            hash: 0,
            next: NONE,
            previous: NONE,
            younger: NONE,
            older: NONE,
            name: Name::Other,
            static_index: 0,
            note: Note::NEW,
        }
    }

    #[inline]
    fn size(&self) -> u32 {
        self.text.len() as u32 + OVERHEAD
    }

    /// What it takes; the same as long as its text does not change.
    fn memory(&self) -> usize {
        self.text.capacity() + size_of::<Slot>()
    }

    #[inline]
    fn texts(&self) -> (&[u8], &[u8]) {
        self.text.split_at(self.name_len as usize)
    }
}

#[cfg(test)]
impl Interner {
    pub(super) fn allocated(&self) -> usize {
        let buffers: usize = self.slots.iter().map(|slot| slot.text.capacity()).sum();
        buffers + self.slots.capacity() + self.chains.capacity()
    }

    /// Whether the text stands anywhere in memory of the table, also where it was freed.
    pub(super) fn remembers(&self, text: &[u8]) -> bool {
        self.slots
            .iter()
            .any(|slot| slot.text.windows(text.len()).any(|window| window == text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intern(interner: &mut Interner, name_text: &[u8], value: &[u8]) -> FieldId {
        let (class, malformed) = name::judge(name_text);
        interner.intern(&[name_text, value].concat(), name_text.len(), class, malformed)
    }

    #[test]
    fn a_slot_is_one_cache_line() {
        assert_eq!(size_of::<Slot>(), 64);
    }

    #[test]
    fn equal_texts_have_one_id_and_the_border_of_the_name_matters() {
        let mut interner = Interner::new();
        let one = intern(&mut interner, b"user-agent", b"grpc-go");
        assert_eq!(intern(&mut interner, b"user-agent", b"grpc-go"), one);
        assert_ne!(intern(&mut interner, b"user-agentg", b"rpc-go"), one);
        assert_eq!(interner.live(), 2);
        assert_eq!(interner.view(one).value, b"grpc-go");
        assert_eq!(interner.view(one).name, Name::UserAgent);
    }

    #[test]
    fn a_field_that_comes_again_soon_keeps_its_id_and_tag_and_is_known_as_met_again() {
        let mut interner = Interner::new();
        let id = intern(&mut interner, b":path", b"/a.B/C");
        interner.set_tag(id, 7);
        assert!(!interner.met_again(id));
        interner.release(id);
        assert_eq!(interner.live(), 0);
        assert_eq!(intern(&mut interner, b":path", b"/a.B/C"), id);
        assert_eq!(
            (interner.tag(id), interner.met_again(id), interner.live()),
            (7, true, 1)
        );
    }

    #[test]
    fn what_nobody_refers_to_is_bounded_and_an_id_that_is_used_again_is_fresh() {
        let mut interner = Interner::new();
        let mut slots = 0;
        for number in 0..50_000 {
            let id = intern(&mut interner, b"x-unique", format!("{number:040}").as_bytes());
            assert_eq!(interner.tag(id), 0);
            interner.set_tag(id, 1);
            interner.release(id);
            assert!(interner.bytes() <= IDLE_BYTES);
            if number == 10_000 {
                slots = interner.slots.len();
            }
        }
        assert_eq!(interner.slots.len(), slots, "slots are used again");
        assert_eq!(interner.live(), 0);
    }

    #[test]
    fn a_held_field_outlives_any_number_of_others() {
        let mut interner = Interner::new();
        let held = intern(&mut interner, b"x-held", b"value");
        let all: Vec<FieldId> = (0..10_000)
            .map(|n| intern(&mut interner, b"x", n.to_string().as_bytes()))
            .collect();
        assert_eq!(interner.live(), 10_001);
        for (number, id) in all.iter().enumerate() {
            assert_eq!(interner.view(*id).value, number.to_string().as_bytes());
        }
        all.into_iter().for_each(|id| interner.release(id));
        assert_eq!(interner.view(held).value, b"value");
        assert_eq!(intern(&mut interner, b"x-held", b"value"), held);
        let buffers: usize = interner.slots.iter().map(|slot| slot.text.capacity()).sum();
        assert!(
            buffers < IDLE_BYTES + SPARE_BYTES + (16 << 10),
            "{buffers} bytes are left of the many"
        );
    }

    #[test]
    fn many_texts_of_one_hash_cost_no_more_than_a_few_steps_each() {
        let mut interner = Interner::new();
        let put = |interner: &mut Interner, text: &[u8]| {
            let id = intern(interner, b"x", text);
            // As if this text had the hash of all the others.
            interner.unchain(id.0);
            interner.slot_mut(id).hash = 5;
            interner.chain(id.0);
            id
        };
        let all: Vec<FieldId> = (0..1_000)
            .map(|n| put(&mut interner, n.to_string().as_bytes()))
            .collect();
        assert_eq!(interner.find(5, b"x0", 1), None, "not searched to the end");
        assert_eq!(interner.find(5, b"x999", 1), Some(all[999]));
        all.into_iter().for_each(|id| interner.release(id));
        assert_eq!(interner.live(), 0);
    }
}
