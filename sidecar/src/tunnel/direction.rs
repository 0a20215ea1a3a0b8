//! One direction of a tunnel: reads from one connection, writes to the other, keeps only what that does not take yet.
//!
//! ```text
//!   Flowing ──the reader's end──▶ Ending ──all written, the end told──▶ Ended
//!      └──────────────────────the writer broke: dropped──────────────────▲
//! ```

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes on their way from one side to the other. Nothing more is read while something waits, so a side that does not
/// read stops the one that writes, and at most [`A_TURN`] bytes (or the first bytes, if more) are kept.
pub(super) struct Direction {
    stage: Stage,
    /// Empty and without capacity unless the writer's side was slower than the reader's.
    kept: Vec<u8>,
    written: usize,
    /// The writer may hold bytes of ours back, as a TLS stream does whose socket is full.
    unflushed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Flowing,
    Ending,
    Ended,
}

/// What a turn left to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// A turn's share was moved; there may be more at once.
    More,
    /// Nothing to do until a socket is ready.
    Waits,
    /// All was said and written.
    Ended,
}

/// Whose connection broke.
pub(super) enum Fault {
    /// The one that is read from.
    From(io::Error),
    /// The one that is written to.
    To(io::Error),
}

impl Direction {
    /// `first` was read before the tunnel began.
    pub(super) fn new(first: Vec<u8>) -> Direction {
        Direction {
            stage: Stage::Flowing,
            kept: first,
            written: 0,
            unflushed: false,
        }
    }

    pub(super) fn reads(&self) -> bool {
        self.stage == Stage::Flowing && self.kept.is_empty()
    }

    pub(super) fn writes(&self) -> bool {
        !self.kept.is_empty()
    }

    /// Nothing can be written any more: what was kept is of no use.
    pub(super) fn give_up(&mut self) {
        self.stage = Stage::Ended;
        self.forget_kept();
    }

    /// Moves at most [`A_TURN`] new bytes, so that other connections of the worker have their turns, too. With
    /// `tells_end`, the end of what is read is told to the writer as the end of our half.
    pub(super) fn turn(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        tells_end: bool,
        carried: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Fault> {
        if self.stage == Stage::Ended {
            return Ok(Turn::Ended);
        }
        if self.writes() {
            self.write_kept(to, carried, cx)?;
        }
        let mut moved = Turn::Waits;
        if self.reads() {
            moved = SCRATCH.with_borrow_mut(|scratch| self.read_and_write(from, to, scratch, carried, cx))?;
        }
        if self.unflushed {
            self.unflushed = match Pin::new(&mut *to).poll_flush(cx) {
                Poll::Ready(flushed) => flushed.map(|()| false).map_err(Fault::To)?,
                Poll::Pending => true,
            };
        }
        if self.stage == Stage::Ending && !self.writes() {
            let told = match tells_end {
                true => Pin::new(to).poll_shutdown(cx).map_err(Fault::To)?,
                false => Poll::Ready(()),
            };
            if told.is_ready() {
                self.stage = Stage::Ended;
            }
        }
        Ok(if self.stage == Stage::Ended { Turn::Ended } else { moved })
    }

    fn write_kept(
        &mut self,
        to: &mut (impl AsyncWrite + Unpin),
        carried: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Result<(), Fault> {
        let taken = write(to, &self.kept[self.written..], cx).map_err(Fault::To)?;
        carried.fetch_add(taken as u64, Relaxed);
        self.unflushed |= taken > 0;
        self.written += taken;
        if self.written == self.kept.len() {
            self.forget_kept();
        }
        Ok(())
    }

    fn read_and_write(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        scratch: &mut Vec<u8>,
        carried: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Fault> {
        scratch.resize(A_TURN, 0);
        let mut moved = 0;
        // Until the stream has no more, and has left a waker: a socket that was just emptied says so without a system call.
        while moved < A_TURN {
            let mut buffer = ReadBuf::new(&mut scratch[..A_TURN - moved]);
            match Pin::new(&mut *from).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => read.map_err(Fault::From)?,
                Poll::Pending => return Ok(Turn::Waits),
            }
            let read = buffer.filled().len();
            if read == 0 {
                self.stage = Stage::Ending;
                return Ok(Turn::Waits);
            }
            let taken = write(to, &scratch[..read], cx).map_err(Fault::To)?;
            carried.fetch_add(taken as u64, Relaxed);
            self.unflushed |= taken > 0;
            if taken < read {
                self.kept = scratch[taken..read].to_vec();
                return Ok(Turn::Waits);
            }
            moved += read;
        }
        Ok(Turn::More)
    }

    #[cfg(test)]
    pub(super) fn kept_capacity(&self) -> usize {
        self.kept.capacity()
    }

    fn forget_kept(&mut self) {
        self.kept = Vec::new();
        self.written = 0;
    }
}

/// Writes what the stream takes, which may be nothing; if not all, it wakes the task when it takes more.
fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], cx: &mut Context<'_>) -> io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match Pin::new(&mut *to).poll_write(cx, &bytes[taken..]) {
            Poll::Ready(Ok(0)) => return Err(ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(some)) => taken += some,
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => break,
        }
    }
    Ok(taken)
}

/// The most that a direction moves before others have their turn.
pub(super) const A_TURN: usize = 64 << 10;

thread_local! {
    /// One read buffer for all tunnels of a worker: a read and the write after it are one turn, with no await between.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
