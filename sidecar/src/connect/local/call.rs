//! The handle of one call: what is said and heard on it.

use std::future::poll_fn;

use bytes::Bytes;
use http::{HeaderMap, Response};

use super::Error;
use super::line::{Handle, TalkKey};

/// Bytes of a call that are kept on this side while the worker takes no more.
const MOST_HELD: usize = 16 << 10;

/// A call. When it is dropped before it has ended, it is cancelled.
///
/// One task may send while another one, or the same, listens.
pub struct Call {
    line: Handle,
    key: TalkKey,
}

/// What came, in this order: a head, data, trailers.
#[derive(Debug)]
pub enum Heard {
    /// The response's head; all of it, if it has neither payload nor trailers. (Informational ones are not told.)
    Head(Response<()>),
    /// Payload, never empty; how it is cut says nothing.
    Data(Bytes),
    /// The response's trailers.
    Trailers(HeaderMap),
}

impl Call {
    pub(super) fn new(line: Handle, key: TalkKey) -> Call {
        Call { line, key }
    }

    /// Sends `bytes`, and ends the request with them if `end`. Waits while the server, or who is between, takes no more.
    ///
    /// Dropped while it waits, it has sent some of `bytes`, nobody knows how many.
    ///
    /// # Errors
    /// When nobody wants more of the request: it was ended, or reset ([`Reason::NO_ERROR`](crate::http2::Reason) if the
    /// response is whole all the same), or the wire is gone.
    pub async fn send(&self, mut bytes: &[u8], end: bool) -> Result<(), Error> {
        loop {
            let (now, later) = bytes.split_at(bytes.len().min(MOST_HELD));
            let last = later.is_empty();
            poll_fn(|cx| self.line.with(|line, _| line.poll_room(self.key, cx))).await?;
            self.line
                .with(|line, shared| line.send(self.key, now, end && last, shared));
            if last {
                return Ok(());
            }
            bytes = later;
        }
    }

    /// Ends the request with trailers.
    ///
    /// # Errors
    /// As [`Call::send`].
    pub fn trailers(&self, trailers: &HeaderMap) -> Result<(), Error> {
        self.line
            .with(|line, shared| line.send_trailers(self.key, trailers, shared))
    }

    /// Waits for what comes next; `None` behind the end of the response. The sender gets credit for the bytes that are
    /// taken here.
    ///
    /// # Errors
    /// When the response will not be whole: the call was reset, or the wire is gone.
    pub async fn next(&self) -> Result<Option<Heard>, Error> {
        poll_fn(|cx| self.line.with(|line, shared| line.poll_next(self.key, cx, shared))).await
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.line.with(|line, shared| line.end(self.key, shared));
    }
}
