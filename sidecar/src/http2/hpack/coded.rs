//! Values that come again in Huffman's code: recognised by their code, so that it is not undone each time.
//!
//! A peer whose table is too small for all that it sends (as many methods as may be, and a new trace for each call) sends
//! the same few texts again and again as literals.

use super::intern::FieldId;

/// What some codes stand for. Any of it may be forgotten at any time.
#[derive(Default)]
pub(super) struct Coded {
    /// By hash, the younger one first; without memory until there is one.
    pairs: Vec<[Entry; 2]>,
}

#[derive(Clone)]
struct Entry {
    id: u32,
    /// When it was learned, in the interner's counting: ids may mean other texts later.
    epoch: u32,
    static_index: u8,
    len: u8,
    code: [u8; LONGEST],
}

/// A shorter code is undone as quickly as it is recognised, a longer one is rare.
const SHORTEST: usize = 6;
const LONGEST: usize = 54;
const PAIRS: usize = 256;

impl Coded {
    /// Whether a code of this length is worth recognising.
    #[inline]
    pub(super) fn keeps(code: &[u8]) -> bool {
        (SHORTEST..=LONGEST).contains(&code.len())
    }

    /// The field whose name is that of the static table's entry, and whose value has this code.
    #[inline]
    pub(super) fn recall(&self, hash: u32, static_index: u8, code: &[u8], epoch: u32) -> Option<FieldId> {
        let [first, second] = self.pairs.get(hash as usize % PAIRS)?;
        let same = |entry: &Entry| {
            entry.epoch == epoch
                && entry.static_index == static_index
                && entry.code.get(..usize::from(entry.len)) == Some(code)
        };
        if same(first) {
            Some(FieldId(first.id))
        } else if same(second) {
            Some(FieldId(second.id))
        } else {
            None
        }
    }

    /// Learns it, of a code that is [kept](Coded::keeps).
    pub(super) fn learn(&mut self, hash: u32, static_index: u8, code: &[u8], epoch: u32, id: FieldId) {
        if self.pairs.is_empty() {
            let nothing = Entry {
                id: 0,
                epoch: 0,
                static_index: 0,
                len: 0,
                code: [0; LONGEST],
            };
            self.pairs = vec![[nothing.clone(), nothing]; PAIRS];
        }
        let [younger, older] = &mut self.pairs[hash as usize % PAIRS];
        std::mem::swap(younger, older);
        younger.id = id.0;
        younger.epoch = epoch;
        younger.static_index = static_index;
        younger.len = code.len() as u8;
        younger.code[..code.len()].copy_from_slice(code);
    }
}
