//! The connections of HTTP/1 of one worker together: what they keep is bounded, and who is at rest goes for who comes.
//!
//! hyper keeps its buffers for as long as a connection stands, and they have the size of the largest head that came on it:
//! they are counted from a connection's first whole head on. Before that [`Crowd::heads`] bounds it.

use std::cell::Cell;

use http::request;

use crate::waiting::{Place, Waiting};

/// What a connection keeps at both of its sides, while its heads are small.
pub(super) const EACH: u64 = 64 << 10;
/// A head that is small; a larger one keeps so many times its own size.
const SMALL: usize = 8 << 10;
const TIMES: u64 = 4;
/// The least that connections may keep together: 64 of them.
const LEAST: u64 = 64 * EACH;
/// Heads that may be unfinished at once.
const MOST_HEADS: usize = 512;

/// What the connections of a worker share.
#[derive(Debug)]
pub struct Crowd {
    /// Those on which a head has begun that is not whole yet.
    pub(super) heads: Waiting,
    /// Those between two requests.
    resting: Waiting,
    pub(super) kept: Cell<u64>,
    pub(super) most: u64,
}

impl Crowd {
    /// Nobody is there. They may keep `most` bytes together, 4 MiB at least, and beside that 512 of them an unfinished head.
    pub fn new(most: u64) -> Crowd {
        Crowd {
            heads: Waiting::new(MOST_HEADS),
            resting: Waiting::new(usize::MAX),
            kept: Cell::new(0),
            most: most.max(LEAST),
        }
    }

    /// Counts a connection, of which nothing is kept yet.
    pub(super) fn one(&self) -> Kept<'_> {
        Kept {
            crowd: self,
            bytes: Cell::new(0),
        }
    }

    /// Takes a place among those at rest, who have to go when somebody else needs the memory.
    pub(super) fn rest(&self) -> Place {
        self.resting.enter()
    }
}

/// What one connection keeps.
pub(super) struct Kept<'a> {
    crowd: &'a Crowd,
    bytes: Cell<u64>,
}

impl Kept<'_> {
    /// Counts what this head makes the connection keep. Where that is too much, those go that have been at rest for longest;
    /// false if nobody is, and then nothing is counted.
    ///
    /// Who has to go gives its memory back when it is polled next: until then there is more than may be.
    pub(super) fn has_room_for(&self, head: &request::Parts) -> bool {
        let wanted = wanted(head).saturating_sub(self.bytes.get());
        let kept = self.crowd.kept.get() + wanted;
        if wanted > 0 && kept > self.crowd.most {
            let gone = (0..wanted.div_ceil(EACH)).take_while(|_| self.crowd.resting.send_oldest_away());
            if gone.count() == 0 {
                return false;
            }
        }
        self.crowd.kept.set(kept);
        self.bytes.set(self.bytes.get() + wanted);
        true
    }

    /// Nothing is kept any more.
    pub(super) fn let_go(&self) {
        self.crowd.kept.set(self.crowd.kept.get() - self.bytes.take());
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn wanted(head: &request::Parts) -> u64 {
    let fields = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    match target + fields.sum::<usize>() {
        ..=SMALL => EACH,
        size => EACH + TIMES * size as u64,
    }
}
