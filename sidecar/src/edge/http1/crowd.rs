//! The connections of HTTP/1 of one door together: what they keep is bounded, and who is at rest goes for who comes.
//!
//! hyper keeps its buffers for as long as a connection stands, as large as a head or a body has made them: a connection is
//! counted from its first whole head on. Before that [`Crowd::heads`] bounds it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Waker};

use http::request;

use crate::waiting::Waiting;

/// What a connection keeps at both of its sides, while its heads are small.
pub(super) const EACH: u64 = 64 << 10;
/// A head that is small. A larger one stands in four buffers in the end.
const SMALL: usize = 8 << 10;
const OF_A_HEAD: u64 = 4;
/// What was read with a head, most of it perhaps a body, has made one buffer grow, at most to twice that.
const OF_A_READ: u64 = 2;
/// Connections for which there is room, however little there is.
const LEAST: u64 = 64;
/// Heads that may be unfinished at once, at most.
const MOST_HEADS: u64 = 512;

/// What the connections of a door share.
pub struct Crowd {
    /// Those on which a head has begun that is not whole yet.
    pub(super) heads: Waiting,
    /// Those that were sent away and have not read all of their last answer.
    pub(super) leaving: Waiting,
    /// Those that are at rest, by when they came to be; and what they keep.
    resting: RefCell<BTreeMap<u64, Rc<One>>>,
    at_rest: Cell<u64>,
    next: Cell<u64>,
    pub(super) kept: Cell<u64>,
    pub(super) most: u64,
    /// Told what they keep, as often as that changes.
    tell: Box<dyn Fn(u64)>,
}

#[derive(Debug, Default)]
struct One {
    /// What its largest head has made it keep, and how much of that is counted.
    size: Cell<u64>,
    counted: Cell<u64>,
    place: Cell<Option<u64>>,
    waker: RefCell<Option<Waker>>,
    is_sent_away: Cell<bool>,
}

impl Crowd {
    /// Nobody is there. They may keep `most` bytes together, 4 MiB at least. Beside that, unfinished heads may take as much, up to
    /// 512 of them, and an eighth as many connections may be leaving. What they keep is told as often as it changes.
    pub fn new(most: u64, tell: impl Fn(u64) + 'static) -> Crowd {
        let most = most.max(LEAST * EACH);
        let places = (most / EACH).min(MOST_HEADS) as usize;
        Crowd {
            heads: Waiting::new(places),
            leaving: Waiting::new(places / 8),
            resting: RefCell::default(),
            at_rest: Cell::new(0),
            next: Cell::new(0),
            kept: Cell::new(0),
            most,
            tell: Box::new(tell),
        }
    }

    fn keeps(&self, bytes: u64) {
        self.kept.set(bytes);
        (self.tell)(bytes);
    }

    /// Counts a connection, of which nothing is kept yet.
    pub(super) fn one(&self) -> Kept<'_> {
        Kept {
            crowd: self,
            one: Rc::default(),
        }
    }

    /// Makes room for so much: those go that have been at rest for longest. If that would not do, nobody goes.
    fn has_room(&self, wanted: u64) -> bool {
        let excess = || (self.kept.get() + wanted).saturating_sub(self.most);
        if excess() > self.at_rest.get() {
            return false;
        }
        while excess() > 0 {
            let oldest = self.resting.borrow_mut().pop_first();
            let Some((_, one)) = oldest else { return false };
            one.place.set(None);
            one.is_sent_away.set(true);
            let counted = one.counted.take();
            self.at_rest.set(self.at_rest.get() - counted);
            // It has a moment to leave: nobody waits for that.
            self.keeps(self.kept.get() - counted);
            if let Some(waker) = one.waker.take() {
                waker.wake();
            }
        }
        true
    }
}

/// What one connection keeps.
pub(super) struct Kept<'a> {
    crowd: &'a Crowd,
    one: Rc<One>,
}

impl Kept<'_> {
    /// Counts what this head makes the connection keep, which is whole, and of which and of what follows it so much was read.
    /// Nothing is counted where there is no room for it.
    pub(super) fn has_room_for(&self, head: &request::Parts, read: usize) -> bool {
        self.works();
        let size = size(head, read).max(self.one.size.get());
        let wanted = size - self.one.counted.get();
        let has_room = self.crowd.has_room(wanted);
        if has_room {
            self.one.size.set(size);
            self.one.counted.set(size);
            self.crowd.keeps(self.crowd.kept.get() + wanted);
        }
        has_room
    }

    /// It is between two requests: it may be sent away, and is woken then.
    pub(super) fn rests(&self, cx: &Context<'_>) {
        if self.one.place.get().is_none() && !self.is_sent_away() {
            let place = self.crowd.next.replace(self.crowd.next.get() + 1);
            self.one.place.set(Some(place));
            self.crowd.resting.borrow_mut().insert(place, self.one.clone());
            self.crowd
                .at_rest
                .set(self.crowd.at_rest.get() + self.one.counted.get());
        }
        self.one.waker.replace(Some(cx.waker().clone()));
    }

    /// A request is under way: it stays, whoever comes.
    pub(super) fn works(&self) {
        if let Some(place) = self.one.place.take() {
            self.crowd.resting.borrow_mut().remove(&place);
            self.crowd
                .at_rest
                .set(self.crowd.at_rest.get() - self.one.counted.get());
        }
    }

    /// Whether it has to go. A request that came meanwhile is answered still.
    pub(super) fn is_sent_away(&self) -> bool {
        self.one.is_sent_away.get()
    }

    /// Nothing is kept any more.
    pub(super) fn let_go(&self) {
        self.works();
        self.crowd.keeps(self.crowd.kept.get() - self.one.counted.take());
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn size(head: &request::Parts, read: usize) -> u64 {
    let fields = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    let target = [
        head.uri.authority().map_or(0, |authority| authority.as_str().len()),
        head.uri.path_and_query().map_or(0, |target| target.as_str().len()),
    ];
    let said = head.method.as_str().len() + target.iter().sum::<usize>() + fields.sum::<usize>();
    let beyond = |bytes: usize, times| if bytes > SMALL { times * bytes as u64 } else { 0 };
    EACH + beyond(said, OF_A_HEAD).max(beyond(read, OF_A_READ))
}
