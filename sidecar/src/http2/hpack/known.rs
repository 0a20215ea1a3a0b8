//! Header lists that come again and again: kept once for the worker, so that a block that both ends know crosses whole.
//!
//! A server's head and its trailers are mostly the same few bytes, call after call, and while neither end's table changes
//! they mean the same fields. A decoder remembers which list such a block was ([`Blocks`]), an encoder which block it made
//! of such a list; the lists themselves stand in [`Lists`]. All of this may be forgotten at any time: then the block is
//! decoded, and the list encoded, as ever.

use std::rc::Rc;

use super::{
    fields::{Fields, Item},
    intern::Interner,
};

/// The number of a list in [`Lists`]. It never means another list: one that was replaced is not found any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListId {
    place: u32,
    age: u32,
}

/// Lists that come again, of one worker.
#[derive(Default)]
pub struct Lists {
    kept: Vec<Kept>,
    /// The one that is replaced next, once there are as many as may be.
    next: u32,
}

struct Kept {
    /// Who holds it as well has it as it is: then it is not replaced.
    fields: Rc<Fields>,
    age: u32,
}

/// How many lists a worker keeps.
const LISTS: usize = 64;
/// How many blocks an end of a connection remembers, of how many bytes at most: a head and trailers, for a method or two.
const BLOCKS: usize = 4;
const BLOCK_BYTES: usize = 15;
/// How many blocks must have left a table as it was, before it is worth remembering one.
const QUIET: u8 = 8;
/// How many more when there is no room: whoever has many lists would else do nothing but learn and forget.
const QUIET_WHEN_FULL: u8 = u8::MAX;

impl Lists {
    /// The list of this number, if it is kept still.
    #[inline]
    pub fn get(&self, id: ListId) -> Option<&Rc<Fields>> {
        match self.kept.get(id.place as usize) {
            Some(kept) if kept.age == id.age => Some(&kept.fields),
            _ => None,
        }
    }

    /// The number of a list of interned fields that is equal to `fields`, which is kept from now on if it was not.
    fn keep(&mut self, fields: &Fields, interner: &mut Interner) -> Option<ListId> {
        if fields.items.iter().any(|item| id_of(item).is_none()) {
            return None;
        }
        let same = |kept: &Kept| kept.fields.items.iter().map(id_of).eq(fields.items.iter().map(id_of));
        if let Some(place) = self.kept.iter().position(same) {
            let age = self.kept[place].age;
            let place = place as u32;
            return Some(ListId { place, age });
        }
        let place = if self.kept.len() < LISTS {
            self.kept.push(Kept {
                fields: Rc::default(),
                age: 0,
            });
            self.kept.len() as u32 - 1
        } else {
            self.oldest_unheld()?
        };
        let kept = &mut self.kept[place as usize];
        kept.age = kept.age.wrapping_add(1);
        let id = ListId { place, age: kept.age };
        let list = Rc::get_mut(&mut kept.fields)?;
        fields.copy_to(list, interner);
        list.set_known(id);
        Some(id)
    }

    /// The place of the list that is replaced next: one that nobody else holds.
    fn oldest_unheld(&mut self) -> Option<u32> {
        let mut places = (0..LISTS as u32).map(|step| (self.next + step) % LISTS as u32);
        let place = places.find(|place| Rc::strong_count(&self.kept[*place as usize].fields) == 1)?;
        self.next = (place + 1) % LISTS as u32;
        Some(place)
    }

    /// Forgets all lists and gives their references back, but for those that somebody else holds still.
    pub(crate) fn release(&mut self, interner: &mut Interner) {
        for kept in &mut self.kept {
            if let Some(fields) = Rc::get_mut(&mut kept.fields) {
                fields.clear(interner);
                kept.age = kept.age.wrapping_add(1);
            }
        }
    }
}

fn id_of(item: &Item) -> Option<u32> {
    match item {
        Item::Interned { id, .. } => Some(id.get()),
        Item::Literal(_) => None,
    }
}

/// Blocks that an end of a connection has met or made, and the list that each of them is, while its table stays as it is.
#[derive(Default)]
pub(super) struct Blocks {
    /// Without memory until there is one. The last that was added stands at `last`.
    all: Vec<Block>,
    last: u8,
    quiet: u8,
}

struct Block {
    list: ListId,
    len: u8,
    bytes: [u8; BLOCK_BYTES],
}

impl Block {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Blocks {
    /// The table has changed: blocks have other meanings now.
    #[inline]
    pub(super) fn forget(&mut self) {
        self.quiet = 0;
        self.all.clear();
    }

    /// The list that this block is.
    #[inline]
    pub(super) fn list(&self, block: &[u8]) -> Option<ListId> {
        let known = self.all.iter().find(|known| known.bytes() == block)?;
        Some(known.list)
    }

    /// Appends the block that this list is, if that is known.
    #[inline]
    pub(super) fn put(&self, list: ListId, out: &mut Vec<u8>) -> bool {
        let Some(known) = self.all.iter().find(|known| known.list == list) else {
            return false;
        };
        // All of it and then less: a length that is known beforehand is copied in two moves.
        out.extend_from_slice(&known.bytes);
        out.truncate(out.len() - BLOCK_BYTES + usize::from(known.len));
        true
    }

    /// A block left the table as it was. Says whether it is worth remembering.
    #[inline]
    pub(super) fn is_quiet(&mut self, block: usize) -> bool {
        self.quiet = self.quiet.saturating_add(1);
        let patience = if self.all.len() < BLOCKS {
            QUIET
        } else {
            QUIET_WHEN_FULL
        };
        self.quiet >= patience && (1..=BLOCK_BYTES).contains(&block)
    }

    /// Remembers that `block` is `fields`, where all of these are interned.
    #[cold]
    pub(super) fn learn(&mut self, block: &[u8], fields: &Fields, lists: &mut Lists, interner: &mut Interner) {
        if let Some(list) = lists.keep(fields, interner) {
            self.remember(block, list);
        } else {
            // All are held: to look for one again is not worth it for a while.
            self.quiet = 0;
        }
    }

    /// Remembers that `block`, of a length that [`is_quiet`](Self::is_quiet) was asked about, is this list.
    #[cold]
    pub(super) fn remember(&mut self, block: &[u8], list: ListId) {
        let mut bytes = [0; BLOCK_BYTES];
        bytes[..block.len()].copy_from_slice(block);
        let len = block.len() as u8;
        let known = Block { list, len, bytes };
        // The list that it was may have been replaced since.
        if let Some(same) = self.all.iter_mut().find(|known| known.bytes() == block) {
            *same = known;
        } else if self.all.len() < BLOCKS {
            self.all.push(known);
        } else {
            self.quiet = 0;
            self.last = (self.last + 1) % BLOCKS as u8;
            self.all[usize::from(self.last)] = known;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http2::Shared;
    use crate::http2::hpack::{Decoder, Encoder, FieldId, Limits, Name};

    const ROOMY: Limits = Limits {
        list_bytes: 1 << 16,
        fields: 256,
    };

    fn list_of(values: &[&str], interner: &mut Interner) -> Fields {
        let mut fields = Fields::new();
        for value in values {
            let id = interner.constant(b"x-a", value.as_bytes());
            fields.push_id(id, interner);
            interner.release(id);
        }
        fields
    }

    #[test]
    fn equal_lists_have_one_number_and_a_replaced_list_is_not_found() {
        let mut interner = Interner::new();
        let mut lists = Lists::default();
        let mut numbers = Vec::new();
        for round in 0..2 {
            for value in ["a", "b"] {
                let mut fields = list_of(&[value, "c"], &mut interner);
                let number = lists.keep(&fields, &mut interner).expect("all are interned");
                fields.clear(&mut interner);
                if round == 0 {
                    numbers.push(number);
                } else {
                    assert!(numbers.contains(&number));
                }
                assert_eq!(lists.get(number).map(|list| list.known), Some(Some(number)));
            }
        }
        assert_ne!(numbers[0], numbers[1]);
        for value in 0..LISTS {
            let mut fields = list_of(&[&value.to_string()], &mut interner);
            lists.keep(&fields, &mut interner);
            fields.clear(&mut interner);
        }
        assert!(numbers.iter().all(|number| lists.get(*number).is_none()));
        assert_eq!(lists.kept.len(), LISTS);
        lists.release(&mut interner);
        assert_eq!(interner.live(), 0);
    }

    #[test]
    fn a_list_that_somebody_holds_is_not_replaced() {
        let mut interner = Interner::new();
        let mut lists = Lists::default();
        let mut keep = |value: usize| {
            let mut fields = list_of(&[&value.to_string()], &mut interner);
            let number = lists.keep(&fields, &mut interner);
            fields.clear(&mut interner);
            number.and_then(|number| lists.get(number).cloned())
        };
        let held = keep(0).expect("there is room");
        (1..3 * LISTS).for_each(|value| drop(keep(value)));
        assert!(Rc::ptr_eq(&held, &keep(0).expect("it is kept still")));
        let all: Vec<_> = (1..LISTS).map(|value| keep(1_000 + value)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(keep(2_000).is_none(), "each is held");
        drop((held, all));
        assert!(keep(2_000).is_some());
        lists.release(&mut interner);
        assert_eq!(interner.live(), 0);
    }

    #[test]
    fn a_borrowed_list_takes_references_when_it_becomes_another() {
        let mut interner = Interner::new();
        let mut lists = Lists::default();
        let mut fields = Fields::new();
        for (name, value) in [("te", "trailers"), ("user-agent", "x")] {
            let id = interner.constant(name.as_bytes(), value.as_bytes());
            fields.push_id(id, &mut interner);
            interner.release(id);
        }
        let number = lists.keep(&fields, &mut interner).expect("all are interned");
        fields.clear(&mut interner);
        let known = || lists.get(number).expect("it is kept").clone();
        let [mut whole, mut copy, mut less] = [Fields::new(), Fields::new(), Fields::new()];
        whole.borrow(known(), &mut interner);
        whole.push(b"x-b", b"1", false);
        whole.copy_to(&mut copy, &mut interner);
        less.borrow(known(), &mut interner);
        assert_eq!(less.remove_all(Name::UserAgent, &mut interner), 1);
        assert_eq!(texts(&copy, &interner), texts(&whole, &interner));
        assert_eq!((copy.len(), less.len()), (3, 1));
        whole.clear(&mut interner);
        copy.clear(&mut interner);
        lists.release(&mut interner);
        assert_eq!(interner.live(), 1, "of te, by the list that lost a field");
        assert_eq!(texts(&less, &interner), [(b"te".to_vec(), b"trailers".to_vec())]);
        less.clear(&mut interner);
        assert_eq!(interner.live(), 0);
    }

    #[test]
    fn a_list_with_a_text_of_its_own_is_not_kept() {
        let mut interner = Interner::new();
        let mut fields = list_of(&["a"], &mut interner);
        fields.push(b"x-b", b"1", false);
        assert_eq!(Lists::default().keep(&fields, &mut interner), None);
        fields.clear(&mut interner);
    }

    #[test]
    fn blocks_are_remembered_by_a_quiet_table_alone_and_forgotten_when_it_changes() {
        let (one, two) = (ListId { place: 1, age: 1 }, ListId { place: 2, age: 1 });
        let mut blocks = Blocks::default();
        assert!((1..QUIET).all(|_| !blocks.is_quiet(2)));
        assert!(blocks.is_quiet(BLOCK_BYTES) && !blocks.is_quiet(BLOCK_BYTES + 1) && !blocks.is_quiet(0));
        blocks.remember(&[0x88, 0xbe], one);
        blocks.remember(&[0xbf], two);
        assert_eq!(
            (blocks.list(&[0xbf]), blocks.list(&[0x88, 0xbe])),
            (Some(two), Some(one))
        );
        let mut out = vec![7];
        assert!(blocks.put(two, &mut out) && blocks.put(one, &mut out));
        assert_eq!((blocks.list(&[0x88]), out), (None, vec![7, 0xbf, 0x88, 0xbe]));
        blocks.remember(&[0xbf], one);
        assert_eq!((blocks.all.len(), blocks.list(&[0xbf])), (2, Some(one)));
        for at in 0..20 {
            blocks.remember(&[0x80 | at], one);
        }
        assert_eq!((blocks.all.len(), blocks.list(&[0xbf])), (BLOCKS, None));
        assert!((1..QUIET_WHEN_FULL).all(|_| !blocks.is_quiet(2)));
        assert!(blocks.is_quiet(2), "a full memory is renewed seldom");
        blocks.forget();
        assert_eq!((blocks.list(&[0x90]), blocks.is_quiet(2)), (None, false));
    }

    fn texts(fields: &Fields, interner: &Interner) -> Vec<(Vec<u8>, Vec<u8>)> {
        let text = |field: super::super::FieldView<'_>| (field.name_text.to_vec(), field.value.to_vec());
        fields.iter(interner).map(text).collect()
    }

    /// A sender, us between two connections, and a receiver, each with tables of its own.
    struct Way {
        sender: (Interner, Encoder),
        us: (Shared, Decoder, Encoder),
        receiver: (Interner, Decoder),
        known: usize,
        sent: u64,
    }

    impl Way {
        fn new() -> Way {
            Way {
                sender: (Interner::new(), Encoder::new()),
                us: (Shared::new(1 << 20), Decoder::new(4_096), Encoder::new()),
                receiver: (Interner::new(), Decoder::new(4_096)),
                known: 0,
                sent: 0,
            }
        }

        fn send(&mut self, list: &[(&str, &str)]) {
            let (interner, encoder) = &mut self.sender;
            let mut fields = Fields::new();
            for (name, value) in list {
                let id = interner.constant(name.as_bytes(), value.as_bytes());
                fields.push_id(id, interner);
            }
            let wanted = texts(&fields, interner);
            let mut block = Vec::new();
            encoder.encode(&fields, interner, &mut block);
            fields.clear(interner);

            let (shared, decoder, encoder) = &mut self.us;
            shared.decode(&block, decoder, &ROOMY).expect("a good block");
            self.known += usize::from(shared.is_known());
            assert_eq!(texts(shared.fields(), &shared.interner), wanted);
            let mut taken = shared.take_fields(Box::default());
            // What we say ourselves stands behind what came.
            self.sent += 1;
            let number = self.sent.to_string();
            taken.push(b"traceparent", number.as_bytes(), false);
            if self.sent.is_multiple_of(3) {
                taken.push_id(FieldId::METHOD_POST, &mut shared.interner);
            }
            let wanted = texts(&taken, &shared.interner);
            let mut passed = Vec::new();
            encoder.encode(&taken, &mut shared.interner, &mut passed);
            shared.take_fields(taken);

            let (interner, decoder) = &mut self.receiver;
            decoder
                .decode(&passed, &ROOMY, interner, &mut fields)
                .expect("our block is good");
            assert_eq!(texts(&fields, interner), wanted);
            fields.clear(interner);
        }

        fn end(mut self) {
            let (shared, decoder, encoder) = &mut self.us;
            decoder.release(&mut shared.interner);
            encoder.release(&mut shared.interner);
            shared.release();
            assert_eq!(shared.interner.live(), 0, "every reference was given back");
        }
    }

    #[test]
    fn a_head_and_trailers_that_come_again_are_known() {
        let mut way = Way::new();
        for _ in 0..100 {
            way.send(&[(":status", "200"), ("content-type", "application/grpc")]);
            way.send(&[("grpc-status", "0")]);
        }
        assert!(way.known > 170, "{} of 200", way.known);
        way.end();
    }

    proptest! {
        #[test]
        fn what_is_known_is_what_would_have_been_decoded(
            steps in prop::collection::vec((0usize..5, 1usize..30, any::<Option<u8>>(), 0usize..40), 1..60),
        ) {
            let names = ["x-a", "x-b", "content-type", "grpc-status", ":status"];
            let mut way = Way::new();
            for (which, times, fresh, resize) in steps {
                for _ in 0..times {
                    way.send(&[(names[which], "200"), ("x-c", names[(which + 1) % 5])]);
                    way.send(&[(names[(which + 2) % 5], "1")]);
                }
                if let Some(value) = fresh {
                    way.send(&[("x-fresh", &"v".repeat(usize::from(value))), (":status", "200")]);
                }
                // Either table is made smaller or larger now and then, as a SETTINGS does.
                if resize < 4 {
                    let size = [0, 60, 300, 4_096][resize];
                    way.us.1.set_max_table_bytes(size);
                    way.sender.1.set_max_table_bytes(size, &mut way.sender.0);
                } else if resize < 8 {
                    let size = [0, 60, 300, 4_096][resize - 4];
                    way.receiver.1.set_max_table_bytes(size);
                    way.us.2.set_max_table_bytes(size, &mut way.us.0.interner);
                }
            }
            way.end();
        }
    }
}
