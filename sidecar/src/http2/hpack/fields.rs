//! A list of header fields: ids where the peer referred to its table, texts where it did not.

use std::rc::Rc;

use super::{
    OVERHEAD,
    intern::{FieldId, Interner},
    known::ListId,
    name::{self, Keep, Malformed, Name, Names},
};

/// One field, lent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FieldView<'a> {
    /// What the field is.
    pub name: Name,
    /// The name as it stands on the wire.
    pub name_text: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// Whether it goes on as a literal that nobody may index: its sender said so, or it is a secret.
    pub never_indexed: bool,
    /// What makes its message malformed, if anything.
    pub malformed: Option<Malformed>,
    /// Its number, when it is interned.
    pub id: Option<FieldId>,
}

/// A header list: its fields in order. Interned ones hold a reference each, but for those that are borrowed from a list that
/// comes again; so a list is emptied with [`clear`](Self::clear) before it is dropped. It is made to be used again: what it
/// has allocated it keeps.
#[derive(Default)]
pub struct Fields {
    pub(super) items: Vec<Item>,
    /// The literals' names and values.
    pub(super) text: Vec<u8>,
    list_size: usize,
    names: Names,
    misplaced: Names,
    malformed: Option<Malformed>,
    over_limit: bool,
    /// The list that comes again with which this one begins: all of it as it came, before anything was appended.
    pub(super) known: Option<ListId>,
    /// How many fields that is.
    pub(super) known_len: u32,
    /// That list, if its references serve for these fields as well: they have none of their own then.
    borrowed: Option<Rc<Fields>>,
}

/// A field of a list, or an entry of a table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item {
    Interned { name: Name, id: FieldId },
    Literal(Literal),
}

/// A text of the list's (or the table's) own, at a place that its owner understands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Literal {
    pub(super) place: u32,
    pub(super) name_len: u32,
    pub(super) value_len: u32,
    pub(super) name: Name,
    /// The entry of the static table that has this name, or 0.
    pub(super) static_index: u8,
    pub(super) never_indexed: bool,
    pub(super) malformed: Option<Malformed>,
}

/// A cleared list keeps buffers of up to this many bytes.
const SPARE_TEXT: usize = 16 << 10;
const SPARE_ITEMS: usize = SPARE_TEXT / size_of::<Item>();

impl Fields {
    /// A list without fields, and without memory until it has some.
    pub const fn new() -> Fields {
        Fields {
            items: Vec::new(),
            text: Vec::new(),
            list_size: 0,
            names: Names::NONE,
            misplaced: Names::NONE,
            malformed: None,
            over_limit: false,
            known: None,
            known_len: 0,
            borrowed: None,
        }
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The fields in order.
    pub fn iter<'a>(&'a self, interner: &'a Interner) -> impl Iterator<Item = FieldView<'a>> {
        self.items.iter().map(|item| item.view(&self.text, interner))
    }

    /// The field at a position.
    #[inline]
    pub fn get<'a>(&'a self, at: usize, interner: &'a Interner) -> Option<FieldView<'a>> {
        self.items.get(at).map(|item| item.view(&self.text, interner))
    }

    /// The value of the field at a position.
    #[inline(always)]
    pub fn value<'a>(&'a self, at: usize, interner: &'a Interner) -> Option<&'a [u8]> {
        self.items.get(at).map(|item| item.value(&self.text, interner))
    }

    /// The number of the field at a position, if it is interned.
    #[inline]
    pub fn id(&self, at: usize) -> Option<FieldId> {
        match self.items.get(at)? {
            Item::Interned { id, .. } => Some(*id),
            Item::Literal(_) => None,
        }
    }

    /// The first field of this name.
    #[inline]
    pub fn find<'a>(&'a self, name: Name, interner: &'a Interner) -> Option<FieldView<'a>> {
        self.place(name).and_then(|at| self.get(at, interner))
    }

    /// The position of the first field of this name.
    #[inline(always)]
    pub fn place(&self, name: Name) -> Option<usize> {
        if !self.names.has(name) {
            return None;
        }
        self.items.iter().position(|item| item.name() == name)
    }

    /// The value of the first field of this name.
    #[inline(always)]
    pub fn value_of<'a>(&'a self, name: Name, interner: &'a Interner) -> Option<&'a [u8]> {
        self.place(name).and_then(|at| self.value(at, interner))
    }

    /// The value of the one field of this ordinary name; of two, neither. What a library adds to all calls stands at the
    /// end, and is looked for from there.
    #[inline(always)]
    pub fn only_value_of<'a>(&'a self, name: Name, interner: &'a Interner) -> Option<&'a [u8]> {
        debug_assert!(!Names::PSEUDO.has(name) && !matches!(name, Name::Other | Name::B3));
        if self.misplaced.has(name) {
            return None;
        }
        let item = self.items.iter().rfind(|item| item.name() == name)?;
        Some(item.value(&self.text, interner))
    }

    /// The values of all fields of this name, in order.
    pub fn values<'a>(&'a self, name: Name, interner: &'a Interner) -> impl Iterator<Item = &'a [u8]> {
        let here = self.items.iter().filter(move |item| item.name() == name);
        here.map(|item| item.value(&self.text, interner))
    }

    /// The names of the fields.
    #[inline]
    pub fn names(&self) -> Names {
        self.names
    }

    /// The names of fields that stand behind another field of the same name; of those that begin with a colon, also behind
    /// one that does not.
    #[inline]
    pub fn misplaced(&self) -> Names {
        self.misplaced
    }

    /// Takes out every field of this name and says how many there were.
    #[inline]
    pub fn remove_all(&mut self, name: Name, interner: &mut Interner) -> usize {
        if !self.names.has(name) {
            return 0;
        }
        self.take_out(name, interner)
    }

    fn take_out(&mut self, name: Name, interner: &mut Interner) -> usize {
        let gone = Names::of(&[name]);
        self.hold(interner);
        self.known = None;
        self.names = self.names.but(gone);
        self.misplaced = self.misplaced.but(gone);
        let before = self.items.len();
        self.items.retain(|item| {
            let stays = item.name() != name;
            if let (false, Item::Interned { id, .. }) = (stays, item) {
                interner.release(*id);
            }
            stays
        });
        before - self.items.len()
    }

    /// Appends a field of our own as a literal: it will be sent as one that nobody indexes, and a secret as one that nobody
    /// may index.
    pub fn push(&mut self, name_text: &[u8], value: &[u8], never_indexed: bool) {
        let (class, name_malformed) = name::judge(name_text);
        let malformed = name_malformed.or_else(|| name::value_malformed(class.name, value));
        let place = self.text.len() as u32;
        self.text.extend_from_slice(name_text);
        self.text.extend_from_slice(value);
        self.list_size += name_text.len() + value.len() + OVERHEAD as usize;
        self.malformed = self.malformed.or(malformed);
        self.note_name(class.name);
        self.items.push(Item::Literal(Literal {
            place,
            name_len: name_text.len() as u32,
            value_len: value.len() as u32,
            name: class.name,
            static_index: class.static_index,
            never_indexed: never_indexed || class.keep == Keep::Secret,
            malformed,
        }));
    }

    /// The same of a field that is made here for each call: what it is, and that it is well formed, is known beforehand.
    #[inline(always)]
    pub(crate) fn push_ours(&mut self, name: Name, name_text: &'static [u8], value: &[u8]) {
        debug_assert_eq!(name::judge(name_text).0.name, name);
        debug_assert_eq!(name::judge(name_text).0.static_index, 0);
        debug_assert_eq!(name::value_malformed(name, value), None);
        let place = self.text.len() as u32;
        self.text.reserve(name_text.len() + value.len());
        self.text.extend_from_slice(name_text);
        self.text.extend_from_slice(value);
        self.list_size += name_text.len() + value.len() + OVERHEAD as usize;
        self.note_name(name);
        self.items.push(Item::Literal(Literal {
            place,
            name_len: name_text.len() as u32,
            value_len: value.len() as u32,
            name,
            static_index: 0,
            never_indexed: false,
            malformed: None,
        }));
    }

    /// Appends a field that is interned already: a constant, or one of another list.
    pub fn push_id(&mut self, id: FieldId, interner: &mut Interner) {
        interner.retain(id);
        let FieldView { name, malformed, .. } = interner.view(id);
        self.list_size += interner.size(id) as usize;
        self.malformed = self.malformed.or(malformed);
        self.note_name(name);
        self.items.push(Item::Interned { name, id });
    }

    /// Makes `other` an equal list.
    pub fn copy_to(&self, other: &mut Fields, interner: &mut Interner) {
        for item in self.held() {
            if let Item::Interned { id, .. } = item {
                interner.retain(*id);
            }
        }
        other.clear(interner);
        other.copy_from(self);
        other.borrowed = self.borrowed.clone();
    }

    /// Becomes an equal list to one that comes again, which stays as it is as long as it is held: so no reference is counted.
    #[inline(always)]
    pub(crate) fn borrow(&mut self, known: Rc<Fields>, interner: &mut Interner) {
        self.clear(interner);
        self.copy_from(&known);
        self.borrowed = Some(known);
    }

    #[inline]
    fn copy_from(&mut self, other: &Fields) {
        self.items.extend_from_slice(&other.items);
        self.text.extend_from_slice(&other.text);
        self.list_size = other.list_size;
        self.names = other.names;
        self.misplaced = other.misplaced;
        self.malformed = other.malformed;
        self.over_limit = other.over_limit;
        self.known = other.known;
        self.known_len = other.known_len;
    }

    /// The fields that have references of their own.
    #[inline]
    fn held(&self) -> &[Item] {
        let borrowed = self.borrowed.as_ref().map_or(0, |list| list.items.len());
        self.items.get(borrowed..).unwrap_or_default()
    }

    /// Gives borrowed fields references of their own.
    fn hold(&mut self, interner: &mut Interner) {
        if let Some(list) = self.borrowed.take() {
            for item in &list.items {
                if let Item::Interned { id, .. } = item {
                    interner.retain(*id);
                }
            }
        }
    }

    /// Takes out all fields and gives their references back.
    #[inline]
    pub fn clear(&mut self, interner: &mut Interner) {
        self.known = None;
        // Whatever was put in has been counted.
        if self.list_size > 0 {
            self.empty(interner);
        }
    }

    /// Whether a list could be put here without an allocation.
    #[inline]
    pub fn has_memory(&self) -> bool {
        self.items.capacity() > 0
    }

    /// Gives back the memory that it has beside its fields.
    pub fn shrink(&mut self) {
        self.items.shrink_to_fit();
        self.text.shrink_to_fit();
    }

    pub(super) fn empty(&mut self, interner: &mut Interner) {
        for item in self.held() {
            if let Item::Interned { id, .. } = item {
                interner.release(*id);
            }
        }
        self.borrowed = None;
        self.items.clear();
        self.text.clear();
        self.list_size = 0;
        self.names = Names::NONE;
        self.misplaced = Names::NONE;
        self.malformed = None;
        self.over_limit = false;
        self.known = None;
        if self.text.capacity() > SPARE_TEXT {
            self.text.shrink_to(SPARE_TEXT);
        }
        if self.items.capacity() > SPARE_ITEMS {
            self.items.shrink_to(SPARE_ITEMS);
        }
    }

    /// The size of the list as RFC 9113, 6.5.2 counts it: names, values and 32 bytes each, of all fields that were decoded
    /// or pushed: also of those that were not kept, and of those that were removed since.
    pub fn list_size(&self) -> usize {
        self.list_size
    }

    /// The same of the fields that are here now: what a peer's SETTINGS_MAX_HEADER_LIST_SIZE is about.
    pub fn kept_size(&self, interner: &Interner) -> usize {
        let size = |item: &Item| match item {
            Item::Interned { id, .. } => interner.size(*id) as usize,
            Item::Literal(literal) => literal.size() as usize,
        };
        self.items.iter().map(size).sum()
    }

    /// The size of the fields that are here now, if it is over `max`.
    #[inline]
    pub fn exceeds(&self, max: usize, interner: &Interner) -> Option<usize> {
        // What came is no less than what is kept, and quicker to ask.
        if self.list_size <= max {
            return None;
        }
        Some(self.kept_size(interner)).filter(|size| *size > max)
    }

    /// Whether the block had more than the limits allowed. Only the fields up to there were kept.
    pub fn over_limit(&self) -> bool {
        self.over_limit
    }

    /// What is wrong with the first malformed field that was decoded or pushed, also if it has been removed since.
    pub fn malformed(&self) -> Option<Malformed> {
        self.malformed
    }

    /// Counts a decoded field; false if it is beyond the limits, like all that follow it.
    #[inline]
    pub(super) fn count(&mut self, size: u32, list_bytes: u32, fields: u32) -> bool {
        self.list_size += size as usize;
        self.over_limit |= self.list_size > list_bytes as usize || self.items.len() >= fields as usize;
        !self.over_limit
    }

    /// Counts the last `taken` fields, which are interned, after they were put in; takes out those that are beyond the limit.
    #[inline]
    pub(super) fn count_ids(&mut self, taken: usize, size: usize, list_bytes: u32, interner: &mut Interner) {
        self.list_size += size;
        if self.list_size > list_bytes as usize {
            self.cut_ids(taken, list_bytes, interner);
        }
    }

    #[cold]
    fn cut_ids(&mut self, taken: usize, list_bytes: u32, interner: &mut Interner) {
        self.over_limit = true;
        let mut size = self.list_size;
        for _ in 0..taken {
            if size <= list_bytes as usize {
                break;
            }
            if let Some(Item::Interned { id, .. }) = self.items.pop() {
                size -= interner.size(id) as usize;
                interner.release(id);
            }
        }
        self.names = Names::NONE;
        self.misplaced = Names::NONE;
        for at in 0..self.items.len() {
            self.note_name(self.items[at].name());
        }
    }

    /// As it is now, it is this list that comes again.
    pub(super) fn set_known(&mut self, list: ListId) {
        self.known = Some(list);
        self.known_len = self.items.len() as u32;
    }

    #[inline]
    pub(super) fn note(&mut self, malformed: Option<Malformed>) {
        if malformed.is_some() && self.malformed.is_none() {
            self.malformed = malformed;
        }
    }

    /// Appends a decoded field, which was counted.
    #[inline(always)]
    pub(super) fn keep(&mut self, item: Item) {
        self.note_name(item.name());
        self.items.push(item);
    }

    #[inline]
    fn note_name(&mut self, name: Name) {
        let mut seen = self.seen();
        seen.see(name);
        self.has_seen(seen);
    }

    /// What names there are so far.
    #[inline]
    pub(super) fn seen(&self) -> Seen {
        Seen {
            names: self.names,
            misplaced: self.misplaced,
        }
    }

    #[inline]
    pub(super) fn has_seen(&mut self, Seen { names, misplaced }: Seen) {
        self.names = names;
        self.misplaced = misplaced;
    }
}

/// The names of fields, one after another.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    names: Names,
    misplaced: Names,
}

impl Seen {
    #[inline]
    pub(super) fn see(&mut self, name: Name) {
        let name = Names::of(&[name]);
        let before = if self.names.has_ordinary() {
            self.names.or(Names::PSEUDO)
        } else {
            self.names
        };
        self.misplaced = self.misplaced.or(before.and(name));
        self.names = self.names.or(name);
    }
}

impl Item {
    #[inline]
    pub(super) fn name(&self) -> Name {
        match self {
            Item::Interned { name, .. } => *name,
            Item::Literal(literal) => literal.name,
        }
    }

    #[inline(always)]
    fn value<'a>(&self, text: &'a [u8], interner: &'a Interner) -> &'a [u8] {
        match self {
            Item::Interned { id, .. } => interner.value(*id),
            Item::Literal(literal) => literal.texts(text).1,
        }
    }

    #[inline]
    fn view<'a>(&self, text: &'a [u8], interner: &'a Interner) -> FieldView<'a> {
        match self {
            Item::Interned { id, .. } => interner.view(*id),
            Item::Literal(literal) => {
                let (name_text, value) = literal.texts(text);
                let &Literal {
                    name,
                    never_indexed,
                    malformed,
                    ..
                } = literal;
                FieldView {
                    name,
                    name_text,
                    value,
                    never_indexed,
                    malformed,
                    id: None,
                }
            }
        }
    }
}

impl Literal {
    /// What the field counts in a table or a list.
    #[inline]
    pub(super) fn size(&self) -> u32 {
        self.text_len() + OVERHEAD
    }

    #[inline]
    pub(super) fn text_len(&self) -> u32 {
        self.name_len + self.value_len
    }

    /// Name and value, in the text of the list.
    #[inline(always)]
    pub(super) fn texts<'a>(&self, text: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        let text = &text[self.place as usize..][..self.text_len() as usize];
        text.split_at(self.name_len as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_a_list_takes_sixteen_bytes() {
        assert_eq!(size_of::<Item>(), 16);
    }

    fn shown(fields: &Fields, interner: &Interner) -> Vec<String> {
        fields
            .iter(interner)
            .map(|field| format!("{}={}", field.name_text.escape_ascii(), field.value.escape_ascii()))
            .collect()
    }

    #[test]
    fn fields_are_found_removed_and_copied_with_their_references() {
        let mut interner = Interner::new();
        let agent = interner.constant(b"user-agent", b"x");
        let mut fields = Fields::new();
        fields.push_id(FieldId::METHOD_POST, &mut interner);
        fields.push(b"grpc-timeout", b"1S", false);
        fields.push_id(agent, &mut interner);
        fields.push(b"x-a", b"1", true);
        fields.push(b"grpc-timeout", b"2S", false);
        assert_eq!(fields.list_size(), fields.kept_size(&interner));

        let mut copy = Fields::new();
        copy.push_id(agent, &mut interner);
        fields.copy_to(&mut copy, &mut interner);
        assert_eq!(shown(&copy, &interner), shown(&fields, &interner));
        assert_eq!(
            copy.find(Name::GrpcTimeout, &interner).map(|field| field.value),
            Some(b"1S".as_slice())
        );
        assert_eq!(
            copy.find(Name::UserAgent, &interner).and_then(|field| field.id),
            Some(agent)
        );
        assert!(copy.get(3, &interner).is_some_and(|field| field.never_indexed));

        assert_eq!(copy.remove_all(Name::GrpcTimeout, &mut interner), 2);
        assert_eq!(copy.remove_all(Name::UserAgent, &mut interner), 1);
        assert_eq!(shown(&copy, &interner), [":method=POST", "x-a=1"]);
        assert!(copy.kept_size(&interner) < copy.list_size());
        assert_eq!(copy.names(), Names::of(&[Name::Method, Name::Other]));
        assert!(!copy.misplaced().has_any(Names::PSEUDO));
        assert_eq!(
            fields.values(Name::GrpcTimeout, &interner).collect::<Vec<_>>(),
            [b"1S", b"2S"]
        );
        assert_eq!(fields.place(Name::UserAgent), Some(2));
        assert_eq!(fields.place(Name::Te), None);
        copy.clear(&mut interner);
        fields.clear(&mut interner);
        assert_eq!((fields.len(), fields.list_size()), (0, 0));
        interner.release(agent);
        assert_eq!(interner.live(), 0);
    }

    #[test]
    fn a_field_is_misplaced_behind_its_like_and_a_pseudo_field_behind_an_ordinary_one() {
        let misplaced = |names: &[&str]| {
            let mut fields = Fields::new();
            for name in names {
                fields.push(name.as_bytes(), b"x", false);
            }
            fields.misplaced()
        };
        assert!(misplaced(&[":method", ":path", "te", "traceparent", "x-a"]).is_empty());
        assert_eq!(misplaced(&[":method", "te", "x-a", "te"]), Names::of(&[Name::Te]));
        assert_eq!(misplaced(&[":method", ":path", ":method"]), Names::of(&[Name::Method]));
        assert_eq!(misplaced(&[":method", "te", ":path"]), Names::of(&[Name::Path]));
        assert_eq!(misplaced(&["x-a", ":status"]), Names::of(&[Name::Status]));
    }

    #[test]
    fn a_pushed_secret_is_never_indexed() {
        let mut fields = Fields::new();
        for name_text in ["authorization", "cookie", "set-cookie", "proxy-authorization"] {
            fields.push(name_text.as_bytes(), b"secret", false);
        }
        let interner = Interner::new();
        assert!(fields.iter(&interner).all(|field| field.never_indexed));
    }

    #[test]
    fn a_list_that_was_large_once_does_not_stay_so() {
        let mut interner = Interner::new();
        let mut fields = Fields::new();
        for _ in 0..5_000 {
            fields.push(b"x-large", &[b'x'; 100], false);
        }
        fields.clear(&mut interner);
        assert!(fields.text.capacity() <= SPARE_TEXT && fields.items.capacity() <= SPARE_ITEMS);
    }
}
