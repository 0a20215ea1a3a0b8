//! One call as its line sees it: what came and was not taken yet, how far each half is, and who waits.

use std::task::{Context, Waker};

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::Error;
use crate::http2::{Held, Shared, StreamKey};
use crate::slots::Key;

/// One call.
pub(super) struct Talk {
    pub(super) stream: StreamKey,
    pub(super) asks: Asks,
    pub(super) answer: Answer,
    pub(super) head: Option<Response<()>>,
    pub(super) held: Held,
    pub(super) trailers: Option<HeaderMap>,
    /// Those who wait for what comes next.
    pub(super) reader: Waiting,
    /// Those who wait for room.
    pub(super) writer: Waiting,
}

/// Whether more of the request may be sent.
pub(super) enum Asks {
    Open,
    /// It was ended, or is not wanted.
    Ended(Error),
}

/// Whether more of the response will come.
pub(super) enum Answer {
    Open,
    /// What has come is all.
    Whole,
    /// It breaks off.
    Broken(Error),
}

/// Tasks that wait for the same thing.
#[derive(Default)]
pub(super) struct Waiting(Vec<Waker>);

impl Talk {
    pub(super) fn new(request_ended: bool) -> Talk {
        Talk {
            stream: Key::NONE,
            asks: if request_ended {
                Asks::Ended(Error::AfterEnd)
            } else {
                Asks::Open
            },
            answer: Answer::Open,
            head: None,
            held: Held::default(),
            trailers: None,
            reader: Waiting::default(),
            writer: Waiting::default(),
        }
    }

    pub(super) fn take_held(&mut self, shared: &mut Shared) -> Bytes {
        let n = self.held.len();
        let mut bytes = Vec::with_capacity(n);
        let freed = self.held.pop_into(n, &mut bytes, &mut shared.pool);
        shared.budget.release(freed as u64);
        bytes.into()
    }

    /// No more of the request is wanted.
    pub(super) fn stop(&mut self, why: Error, woken: &mut Vec<Waker>) {
        if let Asks::Open = self.asks {
            self.asks = Asks::Ended(why);
        }
        self.writer.wake(woken);
    }

    /// The call is over before it was whole. What was not taken of it is thrown away, as a reset means.
    pub(super) fn break_off(&mut self, why: Error, woken: &mut Vec<Waker>, shared: &mut Shared) {
        self.stop(why, woken);
        self.answer = Answer::Broken(why);
        self.head = None;
        self.trailers = None;
        shared.drop_held(&mut self.held);
        self.reader.wake(woken);
    }
}

impl Waiting {
    pub(super) fn add(&mut self, cx: &Context<'_>) {
        if !self.0.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.0.push(cx.waker().clone());
        }
    }

    pub(super) fn wake(&mut self, woken: &mut Vec<Waker>) {
        woken.append(&mut self.0);
    }
}
