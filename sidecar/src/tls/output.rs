//! Sealed bytes on their way to the socket.
//!
//! They usually leave within the turn of the worker that sealed them. The memory then goes back to the thread, so
//! that an idle session has none, and a busy one neither allocates nor clears any.

use std::cell::Cell;

/// The most that a thread keeps for the next session.
const MOST_KEPT: usize = 512 * 1024;

thread_local! {
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes that were sealed and not yet sent.
#[derive(Default)]
pub(super) struct Output {
    /// Has its length of bytes to write into; those before `filled` have been.
    bytes: Vec<u8>,
    filled: usize,
    sent: usize,
}

impl Output {
    /// What is to be sent.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..self.filled]
    }

    /// The memory that is kept while something is pending.
    pub(super) fn kept(&self) -> usize {
        self.bytes.len()
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.filled);
        if self.sent == self.filled {
            self.give_back();
        }
    }

    /// Room for at least so many bytes, behind those that are pending.
    pub(super) fn room(&mut self, least: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = SPARE.take();
        } else if self.sent >= self.filled - self.sent {
            // Never more bytes are moved than have been sent.
            self.bytes.copy_within(self.sent..self.filled, 0);
            self.filled -= self.sent;
            self.sent = 0;
        }
        if self.bytes.len() - self.filled < least {
            self.bytes.resize(self.filled + least, 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// So many bytes of the room were filled.
    pub(super) fn filled(&mut self, n: usize) {
        self.filled = (self.filled + n).min(self.bytes.len());
    }

    fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        (self.filled, self.sent) = (0, 0);
        if bytes.len() <= MOST_KEPT {
            SPARE.set(bytes);
        }
    }
}
