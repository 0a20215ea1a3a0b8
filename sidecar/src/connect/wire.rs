//! A wire: an HTTP/2 connection with its socket. One read and one write a turn, and never a read that finds nothing.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::pool::PoolKey;
use crate::http2::slots::{Key, Slots};
use crate::http2::{Connection, Reason, Shared};

/// The key of a wire of one worker.
pub type WireKey = Key<Box<Wire>>;

/// A connection with its socket.
pub struct Wire {
    /// The protocol.
    pub engine: Connection,
    /// Who is at the other end.
    pub peer: SocketAddr,
    /// Whom it serves.
    pub side: Side,
    /// When bytes came last.
    pub heard: Instant,
    /// When the wire was made.
    pub born: Instant,
    /// When the peer was asked whether it lives. It is not asked again before it sends HEADERS or DATA: gRPC servers
    /// count pings.
    pub pinged: Option<Instant>,
    /// Since when a header block has been coming.
    pub inside_headers: Option<Instant>,
    /// Resets that followed close behind their requests, since a response came to a later one.
    pub hasty_resets: u32,
    /// The last stream of these.
    pub hasty_last: u32,
    /// Whether the server has read the requests that were reset so soon.
    pub took_up: TookUp,
    /// Bytes that the socket took since the beginning.
    pub flushed: u64,
    socket: TcpStream,
    waker: Waker,
    first: Option<Vec<u8>>,
    /// Why nothing can be written any more, once that is so. What came before may still be read.
    pub(crate) mute: Option<io::Error>,
    /// Whether the wire stands in the worker's list of those that want the next turn, too.
    pub(crate) is_unfinished: bool,
    /// The last turn that the wire had.
    pub(crate) turn: u64,
    is_dirty: bool,
    is_finished: bool,
}

/// Whom a wire serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A caller: it asks, we answer.
    Caller {
        /// Whether it came from the network, rather than from this pod's application.
        inbound: bool,
        /// Where it was going.
        meant: SocketAddr,
    },
    /// A server: we ask. The wire stands in a pool.
    Server {
        /// The pool.
        pool: PoolKey,
    },
}

/// What a read brought.
pub enum Read {
    /// So many bytes, and whether there may be more at once.
    Bytes(usize, bool),
    /// Nothing now.
    Nothing,
    /// The peer will send nothing more.
    End,
    /// The connection is broken.
    Broken(io::Error),
}

impl Wire {
    /// Whether the socket wants the worker now; it is told by the wire's waker when that changes.
    fn is_readable(&self) -> bool {
        matches!(
            self.socket.poll_read_ready(&mut Context::from_waker(&self.waker)),
            Poll::Ready(_)
        )
    }

    /// Reads what came, once.
    pub fn read(&mut self, buffer: &mut [u8], now: Instant) -> Read {
        if let Some(first) = self.first.take() {
            let n = first.len().min(buffer.len());
            buffer[..n].copy_from_slice(&first[..n]);
            if n < first.len() {
                self.first = Some(first[n..].to_vec());
            }
            return if n == 0 {
                self.read(buffer, now)
            } else {
                Read::Bytes(n, true)
            };
        }
        if self.is_finished || !self.is_readable() {
            return Read::Nothing;
        }
        let mut got = None;
        let result = self.socket.try_io(Interest::READABLE, || {
            let n = (&*SockRef::from(&self.socket)).read(buffer)?;
            got = Some(n);
            // A short read has emptied the socket: to say so saves the read that would find nothing.
            if n > 0 && n < buffer.len() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        });
        match (got, result) {
            (Some(0), _) => {
                self.is_finished = true;
                Read::End
            }
            (Some(n), result) => {
                self.heard = now;
                // The waker is to know of the next bytes; if they are here already, this is the time to say so.
                Read::Bytes(n, result.is_ok() || self.is_readable())
            }
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.is_readable() {
                    Read::Bytes(0, true)
                } else {
                    Read::Nothing
                }
            }
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => Read::Bytes(0, true),
            (None, Err(error)) => Read::Broken(error),
            (None, Ok(())) => Read::Nothing,
        }
    }

    /// Writes what stands in the output, once. `Ok(true)` if all of it left.
    pub fn flush(&mut self, shared: &mut Shared) -> io::Result<bool> {
        loop {
            let output = self.engine.output();
            if output.is_empty() {
                return Ok(true);
            }
            let whole = output.len();
            if self.mute.is_some() {
                self.engine.written(whole, shared);
                return Ok(true);
            }
            if self
                .socket
                .poll_write_ready(&mut Context::from_waker(&self.waker))
                .is_pending()
            {
                return Ok(false);
            }
            match self
                .socket
                .try_io(Interest::WRITABLE, || (&*SockRef::from(&self.socket)).write(output))
            {
                Ok(n) => {
                    self.flushed += n as u64;
                    self.engine.written(n, shared);
                    if n == whole {
                        return Ok(true);
                    }
                    // The kernel took a part, so the next write would most likely find no room; its waker knows.
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes of output since the beginning, those that wait included: where the next byte will stand.
    pub fn position(&self) -> u64 {
        self.flushed + self.engine.output().len() as u64
    }
}

/// Whether a server has read what it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TookUp {
    /// It was not asked.
    Unknown,
    /// It was, by a PING.
    Asked,
    /// It has answered since.
    Read(Instant),
}

/// A reset that a server has not been told yet.
#[derive(Clone, Copy, Debug)]
pub struct LateReset {
    /// When it is to be told.
    pub due: Instant,
    /// On which wire.
    pub wire: WireKey,
    /// Of which stream.
    pub stream: u32,
    /// Why.
    pub reason: Reason,
}

/// All wires of a worker, what they have in common, and which of them have something to write.
pub struct Wires {
    /// The wires, each in a place of its own: they are large, and as many as there are callers.
    pub slots: Slots<Box<Wire>>,
    /// Tables and memory that the connections share.
    pub shared: Shared,
    /// Resets that servers are to be told a little later, in order.
    pub late: VecDeque<LateReset>,
    dirty: Vec<WireKey>,
    ready: Arc<Ready>,
}

/// Wires that the kernel has something for; and the worker's own waker.
#[derive(Default)]
pub struct Ready {
    wires: Mutex<Vec<WireKey>>,
    worker: Mutex<Option<Waker>>,
}

struct WireWaker {
    key: Mutex<WireKey>,
    ready: Arc<Ready>,
}

impl Wake for WireWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.wires.lock().push(*self.key.lock());
        self.ready.wake();
    }
}

impl Ready {
    /// Wakes the worker.
    pub fn wake(&self) {
        if let Some(waker) = &*self.worker.lock() {
            waker.wake_by_ref();
        }
    }

    /// Remembers whom to wake.
    pub fn listen(&self, waker: &Waker) {
        let mut worker = self.worker.lock();
        if !worker.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *worker = Some(waker.clone());
        }
    }

    /// Moves the wires that became ready to the end of `into`.
    pub fn take(&self, into: &mut Vec<WireKey>) {
        into.append(&mut self.wires.lock());
    }
}

impl Wires {
    /// No wires yet, and `budget` bytes to hold for them.
    pub fn new(budget: u64) -> Wires {
        Wires {
            slots: Slots::default(),
            shared: Shared::new(budget),
            late: VecDeque::new(),
            dirty: Vec::new(),
            ready: Arc::default(),
        }
    }

    /// Where wires that become ready are found.
    pub fn ready(&self) -> Arc<Ready> {
        self.ready.clone()
    }

    /// Takes a socket in, whose first bytes may have been read already. It is ready at once.
    pub fn insert(
        &mut self,
        socket: TcpStream,
        first: Vec<u8>,
        engine: Connection,
        peer: SocketAddr,
        side: Side,
        now: Instant,
    ) -> WireKey {
        let waker = Arc::new(WireWaker {
            key: Mutex::new(Key::NONE),
            ready: self.ready.clone(),
        });
        let key = self.slots.insert(Box::new(Wire {
            engine,
            peer,
            side,
            heard: now,
            born: now,
            pinged: None,
            inside_headers: None,
            hasty_resets: 0,
            hasty_last: 0,
            took_up: TookUp::Unknown,
            flushed: 0,
            socket,
            waker: waker.clone().into(),
            first: Some(first).filter(|bytes| !bytes.is_empty()),
            mute: None,
            is_unfinished: false,
            turn: 0,
            is_dirty: false,
            is_finished: false,
        }));
        *waker.key.lock() = key;
        self.ready.wires.lock().push(key);
        self.touch(key);
        key
    }

    /// The wire of `key`, which is about to get output: it is written when the turn ends.
    pub fn touch(&mut self, key: WireKey) -> Option<(&mut Wire, &mut Shared)> {
        let wire = self.slots.get_mut(key)?;
        if !wire.is_dirty {
            wire.is_dirty = true;
            self.dirty.push(key);
        }
        Some((wire, &mut self.shared))
    }

    /// A wire that has something to write.
    pub fn next_dirty(&mut self) -> Option<WireKey> {
        let key = self.dirty.pop()?;
        if let Some(wire) = self.slots.get_mut(key) {
            wire.is_dirty = false;
        }
        Some(key)
    }

    /// The wires that have something to write.
    pub fn dirty(&self) -> &[WireKey] {
        &self.dirty
    }

    /// Closes a wire. The streams that it had are gone; their owners' marks are returned.
    pub fn close(&mut self, key: WireKey) -> Option<(Box<Wire>, Vec<u64>)> {
        let mut wire = self.slots.remove(key)?;
        let users = wire.engine.users();
        wire.engine.release(&mut self.shared);
        Some((wire, users))
    }
}
