//! The request as far as it came, kept while it may have to be sent (again): bounded, and gone as soon as it cannot.

use crate::http2::Shared;
use crate::http2::hpack::{Fields, Name};

/// Bytes of a request that are kept to be sent again.
const REPLAY_BYTES: usize = 64 << 10;

/// A request that can be sent again while it is whole.
#[derive(Default)]
pub(crate) struct Replay {
    bytes: Vec<u8>,
    /// Trailers of the request.
    trailers: Option<Box<Fields>>,
    /// Why not all of it is kept.
    lost: Option<Lost>,
}

/// Why a request cannot be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It was too large to be kept.
    TooLarge,
    /// What was kept had to go: memory was short.
    Relieved,
    /// It needs no other server: an answer to it has begun.
    Answered,
}

impl Replay {
    /// Keeps `bytes` of the request. While they `must` be kept, because nobody else has them, the sender's credit is
    /// what bounds them.
    #[inline(always)]
    pub(crate) fn keep(&mut self, bytes: &[u8], must: bool, shared: &mut Shared) {
        if self.lost.is_some() || bytes.is_empty() {
            return;
        }
        if !must && self.bytes.len() + bytes.len() > REPLAY_BYTES {
            self.give_up(Lost::TooLarge, shared);
            return;
        }
        shared.copy(bytes, &mut self.bytes);
    }

    /// Keeps the trailers of the request.
    pub(crate) fn keep_trailers(&mut self, trailers: Fields, shared: &mut Shared) {
        shared.budget.add(trailers.list_size() as u64);
        self.trailers = Some(Box::new(trailers));
    }

    /// Takes a field out of the trailers. They count in the budget as they came until they are dropped.
    pub(crate) fn remove_from_trailers(&mut self, name: Name, shared: &mut Shared) {
        if let Some(trailers) = &mut self.trailers {
            trailers.remove_all(name, &mut shared.interner);
        }
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    /// The request will not be sent again.
    pub(crate) fn give_up(&mut self, why: Lost, shared: &mut Shared) {
        self.forget(shared);
        self.lost.get_or_insert(why);
    }

    pub(crate) fn lost(&self) -> Option<Lost> {
        self.lost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[inline(always)]
    pub(crate) fn forget(&mut self, shared: &mut Shared) {
        if self.bytes.capacity() > 0 {
            shared.drop_copy(&mut self.bytes);
        }
        if let Some(trailers) = self.trailers.take() {
            shared.drop_trailers(*trailers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_any_more_has_one_reason_the_first() {
        let mut shared = Shared::new(1 << 20);
        let mut large = Replay::default();
        large.keep(&[0; REPLAY_BYTES], false, &mut shared);
        assert_eq!(large.lost(), None);
        large.keep(&[0], false, &mut shared);
        assert_eq!(large.lost(), Some(Lost::TooLarge));
        large.give_up(Lost::Relieved, &mut shared);
        assert_eq!(large.lost(), Some(Lost::TooLarge));
        let mut small = Replay::default();
        small.keep(&[0], false, &mut shared);
        small.give_up(Lost::Relieved, &mut shared);
        assert_eq!((small.lost(), shared.budget.used()), (Some(Lost::Relieved), 0));
    }

    #[test]
    fn a_field_that_is_taken_out_of_kept_trailers_is_gone_and_counts_until_they_are_dropped() {
        let mut shared = Shared::new(1 << 20);
        let mut trailers = Fields::new();
        for name in ["x-forwarded-client-cert", "X_Forwarded_Client_Cert", "x-fine"] {
            trailers.push(name.as_bytes(), b"By=me", false);
        }
        let mut replay = Replay::default();
        replay.keep_trailers(trailers, &mut shared);
        let counted = shared.budget.used();
        replay.remove_from_trailers(Name::ForwardedClientCert, &mut shared);
        assert_eq!(shared.budget.used(), counted, "as they came, until they are dropped");
        let left = replay.trailers().map_or(0, |trailers| trailers.len());
        assert_eq!(left, 1);
        replay.forget(&mut shared);
        assert_eq!(shared.budget.used(), 0);
    }
}
