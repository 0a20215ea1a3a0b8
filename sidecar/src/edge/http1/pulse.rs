//! What one connection is at: whether a request is under way, whether a head is being read, how much has moved.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Shared by the parts of one connection, all on one thread.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Bytes written to the application.
    pub(super) up: Cell<u64>,
    /// Bytes written to the caller.
    pub(super) down: Cell<u64>,
    /// Fields removed that claimed an identity, those of trailers too.
    pub(super) claims: Cell<u64>,
    /// When a head began to come that is not whole yet.
    pub(super) head_since: Cell<Option<Instant>>,
    /// What was read since the request before ended.
    read: Cell<usize>,
    /// A request is not answered to its end.
    pub(super) under_way: Cell<bool>,
    /// The request's body was taken to its end.
    pub(super) taken: Cell<bool>,
    /// An answer ended before its request did: nothing good can follow it on the application's connection.
    pub(super) out_of_step: Cell<bool>,
}

impl Pulse {
    /// A request's head is whole. Returns how much was read for it.
    pub(super) fn request(&self, has_body: bool) -> usize {
        self.head_since.set(None);
        self.under_way.set(true);
        self.taken.set(!has_body);
        self.read.take()
    }

    pub(super) fn answered(&self) {
        self.under_way.set(false);
        if !self.taken.get() {
            self.out_of_step.set(true);
        }
    }
}

/// Which way a stream's writes are counted, and whether its reads may begin a head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Caller,
    Application,
}

/// A stream whose bytes are counted, with what was read of it before.
pub(super) struct Watched<S> {
    stream: S,
    side: Side,
    first: Vec<u8>,
    taken: usize,
    pulse: Rc<Pulse>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, side: Side, first: Vec<u8>, pulse: Rc<Pulse>) -> Watched<S> {
        Watched {
            stream,
            side,
            first,
            taken: 0,
            pulse,
        }
    }

    /// The stream, and what was read of it before and is not consumed.
    pub(super) fn into_inner(mut self) -> (S, Vec<u8>) {
        (self.stream, self.first.split_off(self.taken))
    }

    fn heard(&self, bytes: usize) {
        let pulse = &self.pulse;
        if self.side == Side::Caller && !pulse.under_way.get() {
            pulse.read.set(pulse.read.get() + bytes);
            if pulse.head_since.get().is_none() {
                pulse.head_since.set(Some(Instant::now()));
            }
        }
    }

    fn said(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(written)) = written {
            let count = match self.side {
                Side::Caller => &self.pulse.down,
                Side::Application => &self.pulse.up,
            };
            count.set(count.get() + *written as u64);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.taken < this.first.len() {
            let n = buf.remaining().min(this.first.len() - this.taken);
            buf.put_slice(&this.first[this.taken..this.taken + n]);
            this.taken += n;
            if this.taken == this.first.len() {
                (this.first, this.taken) = (Vec::new(), 0);
            }
        } else {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        }
        let heard = buf.filled().len() - before;
        if heard > 0 {
            this.heard(heard);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.said(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.said(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
