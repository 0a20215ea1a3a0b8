//! The request as far as it came, kept while it may have to be sent (again): bounded, and gone as soon as it cannot.

use crate::http2::hpack::Fields;
use crate::http2::{Held, Shared};

/// Bytes of a request that are kept to be sent again.
const REPLAY_BYTES: usize = 64 << 10;

/// A request that can be sent again while it is whole.
#[derive(Default)]
pub(crate) struct Replay {
    held: Held,
    /// Trailers of the request.
    pub(crate) trailers: Option<Box<Fields>>,
    /// Bytes were passed on that are not kept.
    lost: bool,
}

impl Replay {
    /// Keeps `bytes` of the request. While they `must` be kept, because nobody else has them, the sender's credit is
    /// what bounds them.
    pub(crate) fn keep(&mut self, bytes: &[u8], must: bool, shared: &mut Shared) {
        if self.lost {
            return;
        }
        if !must && self.held.len() + bytes.len() > REPLAY_BYTES {
            self.give_up(shared);
            return;
        }
        shared.hold(&mut self.held, bytes);
    }

    /// The request will not be sent again.
    pub(crate) fn give_up(&mut self, shared: &mut Shared) {
        self.forget(shared);
        self.lost = true;
    }

    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn is_whole(&self) -> bool {
        !self.lost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.held.slices()
    }

    pub(crate) fn forget(&mut self, shared: &mut Shared) {
        shared.drop_held(&mut self.held);
        if let Some(mut trailers) = self.trailers.take() {
            trailers.clear(&mut shared.interner);
        }
    }
}
