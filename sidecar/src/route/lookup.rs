//! How far a service is known, and which calls wait until it is.
//!
//! ```text
//!  new ──▶ Waits(Word) ──▶ Waits(Addresses) ──▶ Waits(Owners) ──▶ Done
//!            │    │               │                │   ▲  ▲        │ ▲
//!            │    └──── what the mesh knows ───────┼───┼──┼────────┼─┘
//!            └── 2 s ────────┬────┴────────────────┘   │  └────────┘ other addresses, of nobody known
//!                            ▼                         │
//!                          Late ───────────────────────┘ the next answer
//! ```
//!
//! Only names outside the mesh lack addresses and their owners. Once it is late nobody waits: whoever lacks addresses goes
//! to the one that was dialled; whoever lacks a word of control fails, since to go there in plain might be a betrayal.

use std::mem;

/// What is not known of a service yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Control's first word.
    Word,
    /// The name servers' first answer.
    Addresses,
    /// What control says of any of its addresses.
    Owners,
}

/// How far a service is known.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Not yet: these calls wait.
    Waits(Lack, Vec<u64>),
    /// Not yet, and that has taken too long: nobody waits any more.
    Late(Lack),
    /// As far as it will be.
    Done,
}

/// What a call does that needs what is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It waits, and is remembered.
    Waits,
    /// It goes on without this.
    Late(Lack),
    /// Nothing will change: it goes on with what is known.
    Done,
}

impl Default for Lookup {
    fn default() -> Lookup {
        Lookup::Waits(Lack::Word, Vec::new())
    }
}

impl Lookup {
    /// What is not known yet.
    #[inline]
    pub fn lack(&self) -> Option<Lack> {
        match self {
            Lookup::Waits(lack, _) | Lookup::Late(lack) => Some(*lack),
            Lookup::Done => None,
        }
    }

    /// A call needs what is not known.
    pub fn join(&mut self, call: u64) -> Turn {
        match self {
            Lookup::Waits(_, calls) => {
                calls.push(call);
                Turn::Waits
            }
            Lookup::Late(lack) => Turn::Late(*lack),
            Lookup::Done => Turn::Done,
        }
    }

    /// Whether a call waits.
    pub fn is_awaited(&self) -> bool {
        matches!(self, Lookup::Waits(_, calls) if !calls.is_empty())
    }

    /// Another question is asked: there is patience for its answer again.
    pub fn asks(&mut self, lack: Lack) {
        *self = Lookup::Waits(lack, self.take());
    }

    /// An answer came, and this is still lacking: whoever waits goes on waiting, as long as there was patience for the answer.
    /// Says whether patience begins anew, since nothing was waited for.
    pub fn still(&mut self, lack: Lack) -> bool {
        let begins = *self == Lookup::Done;
        match self {
            Lookup::Waits(still, _) | Lookup::Late(still) => *still = lack,
            Lookup::Done => *self = Lookup::Waits(lack, Vec::new()),
        }
        begins
    }

    /// Patience is over: the calls that waited are returned.
    pub fn is_late(&mut self) -> Vec<u64> {
        let calls = self.take();
        if let Some(lack) = self.lack() {
            *self = Lookup::Late(lack);
        }
        calls
    }

    /// It is known: the calls that waited are returned.
    pub fn done(&mut self) -> Vec<u64> {
        let calls = self.take();
        *self = Lookup::Done;
        calls
    }

    fn take(&mut self) -> Vec<u64> {
        match self {
            Lookup::Waits(_, calls) => mem::take(calls),
            Lookup::Late(_) | Lookup::Done => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_wait_through_all_answers_and_never_longer_than_patience() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.join(1), Turn::Waits);
        lookup.asks(Lack::Addresses);
        assert_eq!(lookup.join(2), Turn::Waits);
        assert!(!lookup.still(Lack::Owners), "patience has begun");
        assert_eq!(lookup.is_late(), [1, 2]);
        assert_eq!(lookup.join(3), Turn::Late(Lack::Owners));
        assert!(
            !lookup.still(Lack::Owners),
            "an answer that brings nothing brings no patience"
        );
        assert_eq!(lookup.join(4), Turn::Late(Lack::Owners));
        assert_eq!(lookup.done(), [] as [u64; 0]);
        assert_eq!((lookup.join(5), lookup.is_late()), (Turn::Done, vec![]));
        assert_eq!(lookup.join(6), Turn::Done, "what is known cannot be late");
        assert!(lookup.still(Lack::Owners), "nobody waited");
        assert_eq!((lookup.join(7), lookup.is_awaited()), (Turn::Waits, true));
        assert_eq!(lookup.done(), [7]);
    }
}
