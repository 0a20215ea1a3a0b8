//! One direction of a tunnel: reads from one connection, writes to the other, keeps only what that does not take yet.
//!
//! ```text
//!   Flowing ──the reader's end──▶ Ending ──all written──▶ Ended
//!      └───────────────the writer broke: dropped─────────────▲
//! ```

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::{io::Interest, net::TcpStream};

/// Bytes on their way from one side to the other. Nothing more is read while something waits, so a side that does not
/// read stops the one that writes, and at most [`A_TURN`] bytes (or the first bytes, if more) are kept.
pub(super) struct Direction {
    stage: Stage,
    /// Empty and without capacity unless the writer's side was slower than the reader's.
    kept: Vec<u8>,
    written: usize,
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
        }
    }

    pub(super) fn reads(&self) -> bool {
        self.stage == Stage::Flowing && self.kept.is_empty()
    }

    pub(super) fn writes(&self) -> bool {
        !self.kept.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Nothing can be written any more: what was kept is of no use.
    pub(super) fn give_up(&mut self) {
        self.stage = Stage::Ended;
        self.forget_kept();
    }

    /// Moves at most [`A_TURN`] new bytes, so that other connections of the worker have their turns, too.
    pub(super) fn turn(&mut self, from: &TcpStream, to: &TcpStream, carried: &AtomicU64) -> Result<Turn, Fault> {
        if self.writes() {
            self.write_kept(to, carried)?;
        }
        let mut moved = Turn::Waits;
        if self.reads() {
            moved = SCRATCH.with_borrow_mut(|scratch| self.read_and_write(from, to, scratch, carried))?;
        }
        if self.stage == Stage::Ending && !self.writes() {
            self.stage = Stage::Ended;
        }
        Ok(if self.stage == Stage::Ended { Turn::Ended } else { moved })
    }

    fn write_kept(&mut self, to: &TcpStream, carried: &AtomicU64) -> Result<(), Fault> {
        let taken = write(to, &self.kept[self.written..]).map_err(Fault::To)?;
        carried.fetch_add(taken as u64, Relaxed);
        self.written += taken;
        if self.written == self.kept.len() {
            self.forget_kept();
        }
        Ok(())
    }

    fn read_and_write(
        &mut self,
        from: &TcpStream,
        to: &TcpStream,
        scratch: &mut Vec<u8>,
        carried: &AtomicU64,
    ) -> Result<Turn, Fault> {
        scratch.resize(A_TURN, 0);
        let read = match from.try_read(scratch) {
            Ok(0) => {
                self.stage = Stage::Ending;
                return Ok(Turn::Waits);
            }
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Waits),
            Err(error) => return Err(Fault::From(error)),
        };
        if read < A_TURN {
            expect_no_more(from);
        }
        let taken = write(to, &scratch[..read]).map_err(Fault::To)?;
        carried.fetch_add(taken as u64, Relaxed);
        if taken < read {
            self.kept = scratch[taken..read].to_vec();
        }
        Ok(if read == A_TURN && taken == read {
            Turn::More
        } else {
            Turn::Waits
        })
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

/// Writes what the socket takes, which may be nothing.
fn write(to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match to.try_write(bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        taken => taken,
    }
}

/// A short read has emptied the socket: to ask again would cost a system call to hear so. epoll is edge-triggered here,
/// so whatever has come since is told anew; an end or an error is never forgotten.
fn expect_no_more(from: &TcpStream) {
    let _: io::Result<()> = from.try_io(Interest::READABLE, || Err(ErrorKind::WouldBlock.into()));
}

/// The most that a direction moves before others have their turn.
pub(super) const A_TURN: usize = 64 << 10;

thread_local! {
    /// One read buffer for all tunnels of a worker: a read and the write after it are one turn, with no await between.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
