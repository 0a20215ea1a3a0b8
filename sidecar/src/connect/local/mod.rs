//! Local ends: calls that this process makes itself, such as health checks and what an edge translates.
//!
//! ```text
//!   Call, Call … ── Line { Connection, client role } ── Pipe ── Wire { Connection, server role } ── exchange, pools …
//!   handles in this process                                     to the worker a wire like any other
//! ```
//!
//! A [`Caller`] is a connection without a socket. What its calls say leaves at once, into the pipe; what comes is read
//! by one task a line, so that SETTINGS, PING and GOAWAY are answered whether somebody waits for an answer or not. All
//! of it runs in the worker's thread.

mod call;
mod line;
mod talk;
#[cfg(test)]
mod tests;
mod translate;

pub use call::{Call, Heard};

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use http::Request;

use super::pipe::Pipe;
use crate::http2::{Reason, Settings, Shared};
use line::Handle;

/// Why a call of our own ended, or cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The worker takes no new calls on this wire. Nothing was sent: another [`Caller`] may have more luck.
    #[error("the wire takes no new calls: it was closed, or is about to be")]
    Draining,
    /// The call was reset.
    #[error("the call was reset with {0}")]
    Reset(Reason),
    /// The worker closed the wire under the call.
    #[error("the wire was closed before the call had ended")]
    Closed,
    /// The request has ended already.
    #[error("the request had ended already")]
    AfterEnd,
}

/// Who makes calls: a wire to the worker, closed once the caller and all its calls are dropped.
pub struct Caller {
    line: Handle,
}

/// What the lines of one worker have in common: header fields, and the memory that they hold.
#[derive(Clone)]
pub struct Tables(Rc<RefCell<Shared>>);

impl Tables {
    /// The tables of a worker whose lines may be granted credit of `budget` bytes.
    pub fn new(budget: u64) -> Tables {
        Tables(Rc::new(RefCell::new(Shared::new(budget))))
    }

    /// Bytes that are held, or that may have to be because credit for them was given.
    pub fn used(&self) -> u64 {
        self.0.borrow().budget.used()
    }
}

/// A caller, and the end of its pipe that is to become a wire.
///
/// # Panics
/// Outside of a [`tokio::task::LocalSet`].
pub fn open(settings: Arc<Settings>, tables: &Tables) -> (Caller, Pipe) {
    let (ours, theirs) = Pipe::pair();
    let line = Handle::new(settings, tables, ours);
    tokio::task::spawn_local(line.drive());
    (Caller { line }, theirs)
}

impl Caller {
    /// Begins a call, as soon as the worker takes another stream; its request ends at once if `end`.
    ///
    /// The URI's authority is `:authority`, and a header that is marked sensitive is never indexed. Fields that HTTP/2
    /// does not have (`connection`, `transfer-encoding`) are the one thing to be left out: the call is reset for them.
    ///
    /// # Errors
    /// [`Error::Draining`].
    pub async fn call(&self, request: Request<()>, end: bool) -> Result<Call, Error> {
        poll_fn(|cx| self.line.with(|line, _| line.poll_stream(cx))).await?;
        self.line
            .with(|line, shared| line.begin(&request, end, shared))
            .map(|key| Call::new(self.line.clone(), key))
    }

    /// Whether the worker takes calls still.
    pub fn is_open(&self) -> bool {
        self.line.with(|line, _| line.is_open())
    }
}
