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
    /// Bytes were passed on that are not kept.
    lost: bool,
}

impl Replay {
    /// Keeps `bytes` of the request. While they `must` be kept, because nobody else has them, the sender's credit is
    /// what bounds them.
    #[inline(always)]
    pub(crate) fn keep(&mut self, bytes: &[u8], must: bool, shared: &mut Shared) {
        if self.lost || bytes.is_empty() {
            return;
        }
        if !must && self.bytes.len() + bytes.len() > REPLAY_BYTES {
            self.give_up(shared);
            return;
        }
        shared.copy(bytes, &mut self.bytes);
    }

    /// Keeps the trailers of the request.
    pub(crate) fn keep_trailers(&mut self, trailers: Fields, shared: &mut Shared) {
        shared.budget.add(trailers.list_size() as u64);
        self.trailers = Some(Box::new(trailers));
    }

    /// Takes a field out of the trailers.
    pub(crate) fn remove_from_trailers(&mut self, name: Name, shared: &mut Shared) {
        if let Some(trailers) = &mut self.trailers {
            let before = trailers.list_size();
            trailers.remove_all(name, &mut shared.interner);
            shared.budget.release((before - trailers.list_size()) as u64);
        }
    }

    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_deref()
    }

    /// The request will not be sent again.
    pub(crate) fn give_up(&mut self, shared: &mut Shared) {
        self.forget(shared);
        self.lost = true;
    }

    pub(crate) fn is_whole(&self) -> bool {
        !self.lost
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
    fn a_field_that_is_taken_out_of_kept_trailers_is_gone_and_not_counted_any_more() {
        let mut shared = Shared::new(1 << 20);
        let mut trailers = Fields::new();
        for name in ["x-forwarded-client-cert", "X_Forwarded_Client_Cert", "x-fine"] {
            trailers.push(name.as_bytes(), b"By=me", false);
        }
        let mut replay = Replay::default();
        replay.keep_trailers(trailers, &mut shared);
        replay.remove_from_trailers(Name::ForwardedClientCert, &mut shared);
        let left = replay.trailers().map_or(0, |trailers| trailers.len());
        assert_eq!(left, 1);
        replay.forget(&mut shared);
        assert_eq!(shared.budget.used(), 0);
    }
}
