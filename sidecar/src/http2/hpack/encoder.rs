//! Writes header blocks (RFC 7541), with a table of ids: whether a field is in it, and where, is found without its text.

use std::collections::VecDeque;

use super::{
    DEFAULT_TABLE_BYTES,
    fields::{Fields, Item, Literal},
    huffman, integer,
    intern::{FieldId, Interner},
    known::Blocks,
    name::Name,
    static_table,
};

/// The encoder of one connection: its dynamic table. [`release`](Self::release) it before it is dropped.
///
/// A fresh one has allocated nothing. A field goes into the table when it has been met again: a value that comes once would
/// only push others out. What was never put into a table by its sender, and what is a secret, never goes into ours.
pub struct Encoder {
    /// The oldest entry last; each holds a reference.
    pub(super) entries: VecDeque<FieldId>,
    places: Places,
    /// How many entries there ever were: an entry's index follows from its number.
    inserted: u32,
    /// What the entries count together (RFC 7541, 4.1).
    pub(super) bytes: u32,
    /// The most that they may.
    pub(super) max: u32,
    resized: Option<Resized>,
    /// Which entries may go in while the table is full.
    lot: u32,
    /// Blocks that were made of lists that come again.
    blocks: Blocks,
}

/// What the next block must say first (RFC 7541, 4.2): the least size since the last block, then, if larger, the last.
struct Resized {
    least: u32,
}

impl Encoder {
    /// An encoder with the table that every peer allows at first.
    pub fn new() -> Encoder {
        Encoder {
            entries: VecDeque::new(),
            places: Places::new(),
            inserted: 0,
            bytes: 0,
            max: DEFAULT_TABLE_BYTES,
            resized: None,
            lot: 1,
            blocks: Blocks::default(),
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE came. Of more than [`DEFAULT_TABLE_BYTES`] no use is made.
    pub fn set_max_table_bytes(&mut self, peer_setting: u32, interner: &mut Interner) {
        let max = peer_setting.min(DEFAULT_TABLE_BYTES);
        if max != self.max {
            let least = self.resized.as_ref().map_or(max, |resized| resized.least.min(max));
            self.resized = Some(Resized { least });
            self.max = max;
            self.shrink_to(max, interner);
        }
    }

    /// Appends the block of these fields to `out`. Blocks must be sent in the order in which they are encoded.
    #[inline(always)]
    pub fn encode(&mut self, fields: &Fields, interner: &mut Interner, out: &mut Vec<u8>) {
        if !fields.known.is_some_and(|list| self.blocks.put(list, out)) {
            return self.write(fields, 0, interner, out);
        }
        let mut put = fields.known_len as usize;
        // What was appended is a literal, and mostly a trace context.
        while let Some(Item::Literal(literal)) = fields.items.get(put) {
            put_literal(literal, &fields.text, out);
            put += 1;
        }
        if put < fields.items.len() {
            self.write(fields, put, interner, out);
        }
    }

    /// Writes the fields behind the first `put`, which stand there already.
    #[inline(never)]
    fn write(&mut self, fields: &Fields, put: usize, interner: &mut Interner, out: &mut Vec<u8>) {
        if let Some(Resized { least }) = self.resized.take() {
            integer::encode(least, 0x20, 5, out);
            if least < self.max {
                integer::encode(self.max, 0x20, 5, out);
            }
        }
        let begins = out.len();
        for item in &fields.items[put..] {
            match item {
                Item::Interned { id, .. } => match self.index(*id) {
                    Some(index) => integer::encode(index, 0x80, 7, out),
                    None => self.encode_text(*id, interner, out),
                },
                Item::Literal(literal) => put_literal(literal, &fields.text, out),
            }
        }
        if put == 0 {
            self.learn(fields, &out[begins..]);
        }
    }

    /// A block begins with `written`. If that is an index for each field of a list that comes again, it means the same until
    /// the table changes.
    #[inline]
    fn learn(&mut self, fields: &Fields, written: &[u8]) {
        if let Some(list) = fields.known
            && let Some(block) = written.get(..fields.known_len as usize)
            && block.iter().all(|byte| matches!(byte, 0x81..=0xfe))
            && self.blocks.is_quiet(block.len())
        {
            self.blocks.remember(block, list);
        }
    }

    /// What refers to the field, if it stands in either table.
    #[inline]
    fn index(&self, id: FieldId) -> Option<u32> {
        if id.0 <= static_table::LEN {
            return Some(id.0);
        }
        let number = self.places.find(id)?;
        Some(static_table::LEN + self.inserted.wrapping_sub(number))
    }

    /// Empties the table and gives its references back.
    pub fn release(&mut self, interner: &mut Interner) {
        self.shrink_to(0, interner);
    }

    /// A field that the peer's copy of our table does not have.
    fn encode_text(&mut self, id: FieldId, interner: &mut Interner, out: &mut Vec<u8>) {
        let size = interner.size(id);
        let enters = interner.met_again(id) && self.admits(size);
        let field = interner.view(id);
        let static_index = interner.class(id).static_index;
        if enters {
            // Written once for many times: the shorter form is worth its work.
            integer::encode(u32::from(static_index), 0x40, 6, out);
            if static_index == 0 {
                put_shorter(field.name_text, out);
            }
            put_shorter(field.value, out);
            interner.retain(id);
            self.shrink_to(self.max - size, interner);
            self.bytes += size;
            self.entries.push_front(id);
            self.places.insert(id, self.inserted, self.entries.len());
            self.inserted = self.inserted.wrapping_add(1);
        } else {
            put_texts(static_index, field.name_text, field.value, 0, out);
        }
    }

    /// Whether an entry of this size may go in. While there is room, yes. Into a full table one of eight, by lot: where
    /// more fields take turns than have room, letting each in would make the table cost more than it saves, and would push
    /// out what every message has.
    fn admits(&mut self, size: u32) -> bool {
        if size > self.max - self.max / 4 {
            return false;
        }
        if self.bytes + size <= self.max {
            return true;
        }
        self.lot = self.lot.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.lot >> 29 == 0
    }

    /// Takes out what the table has no room for beside what comes next: it is about to change.
    fn shrink_to(&mut self, bytes: u32, interner: &mut Interner) {
        self.blocks.forget();
        while self.bytes > bytes
            && let Some(oldest) = self.entries.pop_back()
        {
            self.places.remove(oldest);
            self.bytes -= interner.size(oldest);
            interner.release(oldest);
        }
    }
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new()
    }
}

/// From an id to the number of its entry: open addressing, at most half full.
struct Places {
    /// A power of two of ids (0: free) and numbers, or none.
    places: Vec<(u32, u32)>,
}

impl Places {
    const fn new() -> Places {
        Places { places: Vec::new() }
    }

    #[inline]
    fn find(&self, id: FieldId) -> Option<u32> {
        let mask = self.places.len().wrapping_sub(1);
        let mut at = id.0 as usize & mask;
        // Ids are dense, so they serve as their own hash.
        while let Some(&(found, number)) = self.places.get(at) {
            if found == id.0 {
                return Some(number);
            }
            if found == 0 {
                return None;
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Adds an id that is not there; `len` says how many there are with it.
    fn insert(&mut self, id: FieldId, number: u32, len: usize) {
        if len * 2 > self.places.len() {
            let bigger = vec![(0, 0); (len * 2).next_power_of_two().max(8)];
            for (id, number) in std::mem::replace(&mut self.places, bigger) {
                if id != 0 {
                    self.put(id, number);
                }
            }
        }
        self.put(id.0, number);
    }

    fn put(&mut self, id: u32, number: u32) {
        let mask = self.places.len() - 1;
        let mut at = id as usize & mask;
        while self.places[at].0 != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = (id, number);
    }

    /// Takes out an id that is there, and moves up what stands behind it only because it was there.
    fn remove(&mut self, id: FieldId) {
        let mask = self.places.len() - 1;
        let mut gap = id.0 as usize & mask;
        while self.places[gap].0 != id.0 {
            gap = (gap + 1) & mask;
        }
        let mut at = gap;
        loop {
            at = (at + 1) & mask;
            let (other, number) = self.places[at];
            if other == 0 {
                break;
            }
            let from_home = at.wrapping_sub(other as usize) & mask;
            if from_home >= (at.wrapping_sub(gap) & mask) {
                self.places[gap] = (other, number);
                gap = at;
            }
        }
        self.places[gap] = (0, 0);
    }
}

/// A text of the list's own.
#[inline(always)]
fn put_literal(literal: &Literal, text: &[u8], out: &mut Vec<u8>) {
    let (name_text, value) = literal.texts(text);
    let pattern = if literal.never_indexed { 0x10 } else { 0 };
    if literal.name == Name::Traceparent
        && let Ok(value) = <&[u8; 55]>::try_from(value)
    {
        // What nearly every call has, new each time: of one length, and so copied without a loop.
        let mut begins = *b"\0\x0btraceparent\x37";
        begins[0] = pattern;
        out.reserve(begins.len() + value.len());
        out.extend_from_slice(&begins);
        out.extend_from_slice(value);
        return;
    }
    put_texts(literal.static_index, name_text, value, pattern, out);
}

#[inline(never)]
fn put_texts(static_index: u8, name_text: &[u8], value: &[u8], pattern: u8, out: &mut Vec<u8>) {
    put_name(static_index, name_text, pattern, 4, out);
    put_raw(value, out);
}

/// The beginning of a literal: its pattern, and its name by index or as text.
#[inline]
fn put_name(static_index: u8, name_text: &[u8], pattern: u8, prefix_bits: u32, out: &mut Vec<u8>) {
    integer::encode(u32::from(static_index), pattern, prefix_bits, out);
    if static_index == 0 {
        put_raw(name_text, out);
    }
}

#[inline(always)]
fn put_raw(text: &[u8], out: &mut Vec<u8>) {
    integer::encode(text.len() as u32, 0, 7, out);
    out.extend_from_slice(text);
}

fn put_shorter(text: &[u8], out: &mut Vec<u8>) {
    let coded_len = huffman::encoded_len(text);
    if coded_len < text.len() {
        integer::encode(coded_len as u32, 0x80, 7, out);
        huffman::encode(text, out);
    } else {
        put_raw(text, out);
    }
}

#[cfg(test)]
impl Encoder {
    pub(super) fn allocated(&self) -> usize {
        self.entries.capacity() + self.places.places.capacity()
    }
}
