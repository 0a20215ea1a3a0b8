//! Reads header blocks (RFC 7541, 3), keeping in step with the peer's encoder.

use super::{
    Error, OVERHEAD,
    entries::Entries,
    fields::{Fields, Item, Literal},
    huffman::{self, Plain},
    integer,
    intern::{FieldId, Interner},
    known::{Blocks, ListId, Lists},
    name::{self, Class, Keep, Malformed, Name},
    private::Private,
    static_table,
};

/// How much of a header list is kept. What is beyond is read, for the table's sake, and forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The size of the list, as RFC 9113, 6.5.2 counts it.
    pub list_bytes: u32,
    /// The number of fields.
    pub fields: u32,
}

/// The decoder of one connection: its dynamic table. [`release`](Self::release) it before it is dropped.
///
/// A fresh one has allocated nothing; then it takes what the peer puts in.
pub struct Decoder {
    /// Interned entries hold a reference each.
    entries: Entries,
    /// The text of the entries that are literals.
    private: Private,
    /// What the entries count together (RFC 7541, 4.1).
    pub(super) bytes: u32,
    /// The most that they may: what the peer's encoder chose.
    pub(super) max: u32,
    /// The most that it may choose.
    allowed: u32,
    /// The least that was allowed since the last block, where the peer must say that it has heard of it.
    must_shrink_to: Option<u32>,
    /// Blocks that come again.
    blocks: Blocks,
}

/// One literal, as far as it is known before its text is read.
struct Form {
    indexing: bool,
    never_indexed: bool,
    prefix_bits: u32,
}

impl Decoder {
    /// The decoder of a peer that may use `max_table_bytes`: [`DEFAULT_TABLE_BYTES`](super::DEFAULT_TABLE_BYTES), until
    /// a SETTINGS of ours says otherwise and is acknowledged.
    pub fn new(max_table_bytes: u32) -> Decoder {
        Decoder {
            entries: Entries::new(),
            private: Private::new(),
            bytes: 0,
            max: max_table_bytes,
            allowed: max_table_bytes,
            must_shrink_to: None,
            blocks: Blocks::default(),
        }
    }

    /// The peer has acknowledged another SETTINGS_HEADER_TABLE_SIZE. If it is less than the peer uses, the next block
    /// must begin with a size update.
    pub fn set_max_table_bytes(&mut self, max_table_bytes: u32) {
        self.blocks.forget();
        self.allowed = max_table_bytes;
        if max_table_bytes < self.max {
            let least = self.must_shrink_to.unwrap_or(max_table_bytes);
            self.must_shrink_to = Some(least.min(max_table_bytes));
        }
    }

    /// The list that `block` is, if it is one that comes again: nothing is to be decoded then.
    #[inline]
    pub fn known(&self, block: &[u8]) -> Option<ListId> {
        self.blocks.list(block)
    }

    /// Reads a whole block into `out`, which is emptied first. After an error `out` is empty and the decoder is of no more
    /// use: the tables are out of step.
    pub fn decode(
        &mut self,
        block: &[u8],
        limits: &Limits,
        interner: &mut Interner,
        out: &mut Fields,
    ) -> Result<(), Error> {
        out.clear(interner);
        // Nearly all that a peer sends again is indices of one byte, and nothing else.
        let (taken, size) = match block.first() {
            Some(0x81..=0xfe) if self.must_shrink_to.is_none() => {
                let run = &block[..block.len().min(limits.fields as usize)];
                take_ids(&self.entries, run, interner, out)
            }
            _ => (0, 0),
        };
        out.count_ids(taken, size, limits.list_bytes, interner);
        if taken < block.len() || taken == 0 {
            return self.decode_rest(&block[taken..], taken > 0, limits, interner, out);
        }
        Ok(())
    }

    /// Learns that `block` was `fields`, which were decoded last, if it looks as if it will come again.
    #[inline]
    pub fn learn(&mut self, block: &[u8], fields: &Fields, lists: &mut Lists, interner: &mut Interner) {
        // As many bytes as fields: each is an index, and means the same until the table changes.
        if block.len() == fields.len() && !fields.over_limit() && self.blocks.is_quiet(block.len()) {
            self.blocks.learn(block, fields, lists, interner);
        }
    }

    fn decode_rest(
        &mut self,
        block: &[u8],
        has_begun: bool,
        limits: &Limits,
        interner: &mut Interner,
        out: &mut Fields,
    ) -> Result<(), Error> {
        let mut result = Ok(block);
        if !has_begun {
            result = self.size_updates(block, interner);
        }
        let result = result.and_then(|rest| self.read(rest, limits, interner, out));
        if result.is_err() {
            out.empty(interner);
        }
        result
    }

    /// Empties the table and gives its references back.
    pub fn release(&mut self, interner: &mut Interner) {
        self.shrink_to(0, interner);
    }

    fn read(&mut self, block: &[u8], limits: &Limits, interner: &mut Interner, out: &mut Fields) -> Result<(), Error> {
        let mut input = block;
        while let Some((&first, rest)) = input.split_first() {
            let input_from_first = input;
            input = rest;
            // RFC 7541, 6.
            match first {
                // Nearly all that a peer sends again is this.
                0x81..=0xfe if !out.over_limit() => {
                    let room = (limits.fields as usize).saturating_sub(out.items.len());
                    let run = &input_from_first[..input_from_first.len().min(room)];
                    let (taken, size) = take_ids(&self.entries, run, interner, out);
                    out.count_ids(taken, size, limits.list_bytes, interner);
                    input = &input_from_first[taken..];
                    // What is no interned field, or beyond the limit, is looked at by itself.
                    if let Some((&index @ 0x81..=0xfe, rest)) = input.split_first() {
                        input = rest;
                        self.indexed(u32::from(index & 0x7f), limits, interner, out)?;
                    }
                }
                0x80.. => {
                    let index = integer::decode(first, 7, &mut input)?;
                    self.indexed(index, limits, interner, out)?;
                }
                0x40.. => {
                    let form = Form {
                        indexing: true,
                        never_indexed: false,
                        prefix_bits: 6,
                    };
                    self.literal(first, form, &mut input, limits, interner, out)?;
                }
                0x20.. => return Err(Error::SizeUpdateMisplaced),
                _ => {
                    let form = Form {
                        indexing: false,
                        never_indexed: first & 0x10 != 0,
                        prefix_bits: 4,
                    };
                    self.literal(first, form, &mut input, limits, interner, out)?;
                }
            }
        }
        Ok(())
    }

    /// At the beginning of a block: none, one, or two of which the first is the least (RFC 7541, 4.2).
    fn size_updates<'a>(&mut self, block: &'a [u8], interner: &mut Interner) -> Result<&'a [u8], Error> {
        let mut input = block;
        for _ in 0..2 {
            let Some((&first @ 0x20..0x40, rest)) = input.split_first() else {
                break;
            };
            input = rest;
            let asked = integer::decode(first, 5, &mut input)?;
            let allowed = self.must_shrink_to.take().unwrap_or(self.allowed);
            if asked > allowed {
                return Err(Error::SizeUpdateTooLarge { asked, allowed });
            }
            self.max = asked;
            self.shrink_to(asked, interner);
        }
        match self.must_shrink_to {
            Some(allowed) => Err(Error::SizeUpdateMissing { allowed }),
            None => Ok(input),
        }
    }

    #[inline]
    fn indexed(&mut self, index: u32, limits: &Limits, interner: &mut Interner, out: &mut Fields) -> Result<(), Error> {
        match self.entry(index)? {
            item @ Item::Interned { id, .. } => {
                let (text_len, malformed) = interner.refer(id);
                if out.count(text_len as u32 + OVERHEAD, limits.list_bytes, limits.fields) {
                    out.note(malformed);
                    out.keep(item);
                } else {
                    interner.release(id);
                }
            }
            Item::Literal(literal) => {
                if out.count(literal.size(), limits.list_bytes, limits.fields) {
                    let place = out.text.len() as u32;
                    self.private.copy_to(literal.place, literal.text_len(), &mut out.text);
                    out.note(literal.malformed);
                    out.keep(Item::Literal(Literal { place, ..literal }));
                }
            }
        }
        Ok(())
    }

    fn literal(
        &mut self,
        first: u8,
        form: Form,
        input: &mut &[u8],
        limits: &Limits,
        interner: &mut Interner,
        out: &mut Fields,
    ) -> Result<(), Error> {
        let name_index = integer::decode(first, form.prefix_bits, input)?;
        if out.over_limit() && !form.indexing {
            return self.pass_over(name_index, input, limits, out);
        }
        let place = out.text.len();
        let namesake = match name_index {
            0 => None,
            index => Some(self.entry(index)?),
        };
        let (class, name_malformed) = match namesake {
            Some(item) => class_of(item, interner),
            None => {
                read_string(input, &mut out.text)?;
                name::judge(&out.text[place..])
            }
        };
        let value = take_string(input)?;
        if form.indexing
            && class.keep == Keep::Shared
            && class.static_index > 0
            && value.huffman
            && let Some(id) = interner.recall(class.static_index, value.coded)
        {
            let size = interner.size(id);
            if size <= self.max {
                out.text.truncate(place);
                self.add_shared(class.name, id, size, limits, interner, out);
                return Ok(());
            }
            interner.release(id);
        }
        if let Some(item) = namesake {
            self.copy_name(item, interner, &mut out.text);
        }
        let name_len = out.text.len() - place;
        let plain = value.read(&mut out.text)?;
        let size = (out.text.len() - place) as u32 + OVERHEAD;
        if form.indexing && class.keep == Keep::Shared && size <= self.max {
            let text = &out.text[place..];
            // Before the table makes room: the text may be that of the entry that goes.
            let id = interner.intern(text, name_len, class, name_malformed);
            if value.huffman {
                interner.learn(class.static_index, value.coded, id);
            }
            out.text.truncate(place);
            self.add_shared(class.name, id, size, limits, interner, out);
        } else {
            let value = &out.text[place + name_len..];
            let malformed = name_malformed.or_else(|| match plain {
                Plain::Yes => name::plain_malformed(class.name, value),
                Plain::Unknown => name::value_malformed(class.name, value),
            });
            let literal = Literal {
                place: place as u32,
                name_len: name_len as u32,
                value_len: value.len() as u32,
                name: class.name,
                static_index: class.static_index,
                never_indexed: form.never_indexed || class.keep == Keep::Secret,
                malformed,
            };
            self.add_literal(literal, &form, limits, interner, out);
        }
        Ok(())
    }

    /// Beyond the limit, and not for the table: only its length matters.
    #[cold]
    fn pass_over(&self, name_index: u32, input: &mut &[u8], limits: &Limits, out: &mut Fields) -> Result<(), Error> {
        if name_index == 0 {
            take_string(input)?;
        } else {
            self.entry(name_index)?;
        }
        let value = take_string(input)?;
        out.count(value.coded.len() as u32 + OVERHEAD, limits.list_bytes, limits.fields);
        Ok(())
    }

    /// A field that others have as well: the table takes over the reference that its sender's literal made.
    #[inline(always)]
    fn add_shared(
        &mut self,
        name: Name,
        id: FieldId,
        size: u32,
        limits: &Limits,
        interner: &mut Interner,
        out: &mut Fields,
    ) {
        self.shrink_to(self.max - size, interner);
        self.bytes += size;
        let item = Item::Interned { name, id };
        self.entries.push(item);
        if out.count(size, limits.list_bytes, limits.fields) {
            interner.retain(id);
            out.note(interner.malformed(id));
            out.keep(item);
        }
    }

    /// A field whose text stands at the end of the list's, and is nobody else's; or one of the static table.
    #[inline(always)]
    fn add_literal(
        &mut self,
        literal: Literal,
        form: &Form,
        limits: &Limits,
        interner: &mut Interner,
        out: &mut Fields,
    ) {
        let place = literal.place as usize;
        let text = &out.text[place..];
        let size = literal.size();
        let of_static_table = match form.never_indexed {
            true => None,
            false => static_table::find(literal.static_index, literal.texts(&out.text).1),
        };
        let name = literal.name;
        let item = match of_static_table {
            Some(index) => Item::Interned {
                name,
                id: FieldId(index),
            },
            None => Item::Literal(literal),
        };
        if form.indexing {
            // An entry that is larger than the table empties it, and that is all (RFC 7541, 4.4).
            self.shrink_to(self.max.saturating_sub(size), interner);
            if size <= self.max {
                self.bytes += size;
                self.entries.push(match item {
                    Item::Interned { id, .. } => {
                        interner.retain(id);
                        item
                    }
                    Item::Literal(literal) => Item::Literal(Literal {
                        place: self.private.push(text),
                        ..literal
                    }),
                });
            }
        }
        let kept = out.count(size, limits.list_bytes, limits.fields);
        if kept {
            match item {
                Item::Interned { id, .. } => {
                    interner.retain(id);
                    out.note(interner.malformed(id));
                }
                Item::Literal(literal) => out.note(literal.malformed),
            }
            out.keep(item);
        }
        if !kept || of_static_table.is_some() {
            out.text.truncate(place);
        }
    }

    /// What stands at an index of either table.
    #[inline]
    fn entry(&self, index: u32) -> Result<Item, Error> {
        if index > static_table::LEN {
            let last = static_table::LEN + self.entries.len();
            self.entries
                .get(index - static_table::LEN - 1)
                .copied()
                .ok_or(Error::NoSuchIndex { index, last })
        } else if index > 0 {
            Ok(static_table::ITEMS[index as usize])
        } else {
            Err(Error::IndexZero)
        }
    }

    /// Appends the name of an entry.
    #[inline]
    fn copy_name(&self, entry: Item, interner: &Interner, text: &mut Vec<u8>) {
        match entry {
            Item::Interned { id, .. } => text.extend_from_slice(interner.name_text(id)),
            // Of what nearly every call has, by a copy without a loop.
            Item::Literal(literal) if literal.name == Name::Traceparent => text.extend_from_slice(b"traceparent"),
            Item::Literal(literal) => self.private.copy_to(literal.place, literal.name_len, text),
        }
    }

    /// Takes out what the table has no room for beside what comes next: it is about to change.
    fn shrink_to(&mut self, bytes: u32, interner: &mut Interner) {
        self.blocks.forget();
        while self.bytes > bytes
            && let Some(oldest) = self.entries.pop()
        {
            match oldest {
                Item::Interned { id, .. } => {
                    self.bytes -= interner.size(id);
                    interner.release(id);
                }
                Item::Literal(literal) => {
                    self.bytes -= literal.size();
                    self.private.pop(literal.text_len());
                }
            }
        }
    }
}

/// What the name of an entry is, and what is wrong with it.
#[inline]
fn class_of(entry: Item, interner: &Interner) -> (Class, Option<Malformed>) {
    let (class, malformed) = match entry {
        Item::Interned { id, .. } => (interner.class(id), interner.malformed(id)),
        Item::Literal(literal) => {
            // What is shared is interned.
            let keep = if literal.never_indexed {
                Keep::Secret
            } else {
                Keep::PerCall
            };
            (
                Class {
                    name: literal.name,
                    static_index: literal.static_index,
                    keep,
                },
                literal.malformed,
            )
        }
    };
    (class, malformed.filter(|malformed| malformed.is_of_the_name()))
}

/// Takes from the front of `run` the indices of one byte that mean interned fields, and puts their ids into the list.
///
/// Says how many, and what they count. This is the hottest loop of the product: what need not be done for each field is done
/// by the caller, once.
#[inline(never)]
fn take_ids(entries: &Entries, run: &[u8], interner: &mut Interner, out: &mut Fields) -> (usize, usize) {
    // The peer chose the length of the run; what it means may be longer than a list usually is.
    let run = &run[..run.len().min(RUN)];
    out.items.reserve(run.len());
    let before = out.items.len();
    let mut seen = out.seen();
    let mut text = 0;
    // 0xbe is the youngest entry, 0xfe the last that one byte can name.
    let entries = entries.as_slice();
    let reachable = &entries[entries.len().saturating_sub(0xff - 0xbe)..];
    let youngest = reachable.len().wrapping_sub(1).wrapping_add(0xbe);
    for &byte in run {
        let item = match reachable.get(youngest.wrapping_sub(usize::from(byte))) {
            Some(item) => item,
            None => match byte {
                0x81..0xbe => &static_table::ITEMS[usize::from(byte - 0x80)],
                _ => break,
            },
        };
        let Item::Interned { id, name } = *item else { break };
        if out.items.len() == out.items.capacity() {
            // Never so, after reserving; said here so that the loop has no way out to the allocator.
            break;
        }
        let (text_len, malformed) = interner.refer(id);
        text += text_len;
        out.note(malformed);
        seen.see(name);
        out.items.push(*item);
    }
    out.has_seen(seen);
    let taken = out.items.len() - before;
    (taken, text + taken * OVERHEAD as usize)
}

/// How many fields [`take_ids`] makes room for at once.
const RUN: usize = 32;

/// A string as it stands in the block.
struct Coded<'a> {
    huffman: bool,
    coded: &'a [u8],
}

fn take_string<'a>(input: &mut &'a [u8]) -> Result<Coded<'a>, Error> {
    let (&first, mut rest) = input.split_first().ok_or(Error::Truncated)?;
    let length = integer::decode(first, 7, &mut rest)?;
    let (coded, rest) = rest.split_at_checked(length as usize).ok_or(Error::Truncated)?;
    *input = rest;
    Ok(Coded {
        huffman: first & 0x80 != 0,
        coded,
    })
}

impl Coded<'_> {
    /// Appends what it stands for, and says whether that is known to have no control byte.
    #[inline]
    fn read(&self, out: &mut Vec<u8>) -> Result<Plain, Error> {
        if self.huffman {
            huffman::decode(self.coded, out)
        } else {
            out.extend_from_slice(self.coded);
            Ok(Plain::Unknown)
        }
    }
}

/// Appends the next string of the block.
fn read_string(input: &mut &[u8], out: &mut Vec<u8>) -> Result<Plain, Error> {
    take_string(input)?.read(out)
}

#[cfg(test)]
impl Decoder {
    pub(super) fn allocated(&self) -> usize {
        self.entries.allocated() + self.private.allocated()
    }
}
