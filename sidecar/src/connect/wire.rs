//! A wire: an HTTP/2 connection with its socket. One read and one write a turn, and hardly a read that finds nothing.
//!
//! Instead of a socket it may have a pipe to a handle in this process (`local/`): nobody beyond this file sees a difference.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Instant, SystemTime};

use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::dialled::Mine;
use super::pings::Pings;
use super::pipe::Pipe;
use super::pool::PoolKey;
use super::resets::Resets;
use crate::http2::hpack::FieldId;
use crate::http2::{BULK_BYTES, Connection, Reason, Shared};
use crate::route::ServiceKey;
use crate::slots::{Key, Slots};
use crate::tls::{self, Session};

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
    /// When the wire was made; once the SETTINGS of both sides are in force, when a look found last that a stream was open, or
    /// had begun since the look before.
    pub since: Instant,
    /// The last byte of what the engine had [`begun`](Connection::begun) at the last look: that it is another one is all that
    /// counts.
    begun: u8,
    /// What looks have found that may not last.
    pub(crate) looks: Looks,
    /// Bytes of output that have left since the beginning: in TLS, counted before they were sealed, and all that was sealed
    /// together once one byte of it has left.
    pub flushed: u64,
    /// What the peer has shown of itself.
    pub shown: Shown,
    /// A number that its owner hangs on it: who is at the other end, for the metrics.
    pub label: u32,
    /// How long the certificates count that the connection was made with, if it was.
    pub certified: Option<Box<Lifetime>>,
    /// What the application is told of a peer that has proven who it is, as one of the interned fields.
    pub client_cert: Option<FieldId>,
    /// What only a server's wire has. It goes before the transport is closed.
    pub server: Option<Box<Server>>,
    transport: Transport,
    /// Bytes that are sealed and of which nothing has left, counted before.
    sealed: u32,
    waker: Waker,
    first: Option<Box<First>>,
    /// Why nothing can be written any more, once that is so. What came before may still be read.
    pub(crate) mute: Option<io::Error>,
    /// Whether the wire stands in the worker's list of those that want the next turn, too.
    pub(crate) is_unfinished: bool,
    /// The last turn that the wire had, in 32 bits: that it is another one is all that counts.
    pub(crate) turn: u32,
    is_dirty: bool,
    is_finished: bool,
}

/// How many looks in a row have found a wire in a state that may not last.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looks {
    /// Inside one header block.
    pub(crate) inside_headers: u16,
    /// With output of which the socket takes nothing.
    pub(crate) stuck: u16,
    /// Waiting to hear that the peer has heard that we go.
    pub(crate) unheard: u16,
}

/// A wire takes a block of memory of this size; the allocator's next size is 1,024.
const _: () = assert!(size_of::<Wire>() <= 896);

/// What is kept of a server that we ask.
#[derive(Default)]
pub struct Server {
    /// PINGs that it was sent.
    pub pings: Pings,
    /// Requests that were reset before it answered them.
    pub resets: Resets,
    /// That it was dialled here, if it was.
    pub dialled: Option<Box<Mine>>,
}

/// Bytes that were read before there was a wire.
struct First(Vec<u8>);

/// What a peer has shown of itself, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Not that it takes us for whom we are: in TLS 1.3 a certificate may be refused after its holder has begun to write.
    /// A server's connection is not used yet.
    Nothing,
    /// That it does; or it need not be shown.
    Trust,
    /// That it answers: HEADERS came.
    Answers,
}

/// What carries a wire's bytes.
pub enum Transport {
    /// A TCP connection.
    Socket(TcpStream),
    /// A TCP connection with the mesh's TLS on it.
    Tls(TcpStream, Box<Session>),
    /// A pipe to a handle in this process.
    Pipe(Pipe),
}

impl From<TcpStream> for Transport {
    fn from(socket: TcpStream) -> Transport {
        Transport::Socket(socket)
    }
}

/// No connection is replaced sooner because its certificates end.
const LEAST_LIFE: std::time::Duration = std::time::Duration::from_secs(5);

/// How long the certificates of a connection count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// When the first of them ends.
    pub until: SystemTime,
    /// When the connection is to be replaced, so that its streams have ended before that.
    pub drain_at: SystemTime,
}

impl Lifetime {
    /// For certificates of which the first ends at `until`. `luck`, from 0 to 1, spreads the replacing over the last
    /// tenth but one of what is left, so that not all connections of a mesh are replaced at once. But no connection is
    /// replaced before it is 5 s old, unless the clocks' difference that is allowed for is over before: where no other
    /// certificate comes the next one would be no better.
    pub fn new(until: SystemTime, now: SystemTime, luck: f64) -> Lifetime {
        let left = until.duration_since(now).unwrap_or_default();
        let before = left.mul_f64(0.1 + 0.1 * luck.clamp(0.0, 1.0));
        let in_good_time = until.checked_sub(before).unwrap_or(until);
        let soonest = (now + LEAST_LIFE).min(until + tls::SKEW);
        Lifetime {
            until,
            drain_at: in_good_time.max(soonest),
        }
    }
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
        /// Whose endpoint at `meant` its calls ask for its health: they go to that very one, and count nowhere.
        checks: Option<ServiceKey>,
    },
    /// A server: we ask. The wire stands in a pool.
    Server {
        /// The pool.
        pool: PoolKey,
    },
}

/// What became of a turn's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All of it has left.
    All,
    /// The socket took a part.
    Part,
    /// The socket took nothing.
    Nothing,
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
        match &self.transport {
            Transport::Socket(socket) | Transport::Tls(socket, _) => is_readable(socket, &self.waker),
            Transport::Pipe(pipe) => pipe.is_readable(&self.waker),
        }
    }

    /// Who has proven to be at the other end, if the connection is the mesh's TLS.
    pub fn proven(&self) -> Option<&tls::Peer> {
        self.session().map(Session::peer)
    }

    /// The mesh's TLS on it, if it has that.
    pub fn session(&self) -> Option<&Session> {
        match &self.transport {
            Transport::Tls(_, session) => Some(session),
            Transport::Socket(_) | Transport::Pipe(_) => None,
        }
    }

    /// Says the last words of TLS.
    fn say_goodbye(&mut self) {
        if let Transport::Tls(_, session) = &mut self.transport {
            session.close();
            self.write_last_words();
        }
    }

    /// Writes what is sealed once, whether the socket takes it or not: it is closed next.
    fn write_last_words(&mut self) {
        if let Transport::Tls(socket, session) = &mut self.transport
            && let Ok(1..) = socket.try_write(session.output())
        {
            self.flushed += u64::from(std::mem::take(&mut self.sealed));
        }
    }

    /// Whether the other end is a handle in this process.
    pub fn is_local(&self) -> bool {
        matches!(self.transport, Transport::Pipe(_))
    }

    /// Somebody looks at it: what lasts is counted.
    pub(crate) fn look(&mut self, now: Instant) {
        let engine = &self.engine;
        let one_more = |looks: u16, is_so| if is_so { looks.saturating_add(1) } else { 0 };
        self.looks = Looks {
            inside_headers: one_more(self.looks.inside_headers, engine.is_inside_headers()),
            // A flush of which something leaves begins anew.
            stuck: one_more(self.looks.stuck, engine.is_backed_up()),
            unheard: one_more(self.looks.unheard, engine.goes_unheard()),
        };
        let begun = engine.begun() as u8;
        let is_used = engine.open_streams() > 0 || begun != self.begun;
        self.begun = begun;
        if is_used && engine.heard_settings() && engine.settings_acknowledged() {
            self.since = now;
        }
    }

    /// HEADERS or DATA came.
    #[inline(always)]
    pub(crate) fn heard_more(&mut self) {
        if let Some(server) = &mut self.server {
            server.pings.heard_more(self.engine.measures_path());
        }
    }

    /// Reads what came, once.
    pub fn read(&mut self, buffer: &mut [u8], now: Instant) -> Read {
        if let Some(mut first) = self.first.take() {
            let First(bytes) = &mut *first;
            let n = bytes.len().min(buffer.len());
            buffer[..n].copy_from_slice(&bytes[..n]);
            bytes.drain(..n);
            if !bytes.is_empty() {
                self.first = Some(first);
            }
            return Read::Bytes(n, true);
        }
        if self.is_finished {
            return Read::Nothing;
        }
        if let Transport::Tls(socket, session) = &mut self.transport {
            let read = read_tls(socket, session, &self.waker, buffer);
            match read {
                Read::Bytes(n, _) if n > 0 => self.heard = now,
                Read::Bytes(..) | Read::Nothing => {}
                Read::End => self.is_finished = true,
                Read::Broken(_) => {
                    self.is_finished = true;
                    // Why, for the peer.
                    self.write_last_words();
                }
            }
            return read;
        }
        if !self.is_readable() {
            return Read::Nothing;
        }
        let most = buffer.len().min(BULK_BYTES);
        let buffer = &mut buffer[..most];
        let got = match &self.transport {
            Transport::Socket(socket) => tls::read_once(socket, buffer),
            Transport::Pipe(pipe) => pipe.read(buffer).ok_or_else(|| io::ErrorKind::WouldBlock.into()),
            Transport::Tls(..) => unreachable!("it was read above"),
        };
        match got {
            Ok(0) => {
                self.is_finished = true;
                Read::End
            }
            Ok(n) => {
                self.heard = now;
                // The waker is to know of the next bytes; if they are here already, this is the time to say so.
                Read::Bytes(n, self.is_readable())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.is_readable() {
                    Read::Bytes(0, true)
                } else {
                    Read::Nothing
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Read::Bytes(0, true),
            Err(error) => Read::Broken(error),
        }
    }

    /// Writes what stands in the output, once.
    ///
    /// # Errors
    /// When the socket takes nothing more, ever.
    pub fn flush(&mut self, shared: &mut Shared) -> io::Result<Flushed> {
        if matches!(self.transport, Transport::Tls(..)) {
            return self.flush_tls(shared);
        }
        let mut flushed = Flushed::Nothing;
        loop {
            let output = self.engine.output();
            if output.is_empty() {
                return Ok(Flushed::All);
            }
            let whole = output.len();
            if self.mute.is_some() {
                self.engine.written(whole, shared);
                return Ok(Flushed::All);
            }
            let wrote = match &self.transport {
                Transport::Socket(socket) if !is_writable(socket, &self.waker) => return Ok(flushed),
                Transport::Socket(socket) => tls::write_once(socket, output),
                Transport::Tls(..) => unreachable!("it is flushed by itself"),
                Transport::Pipe(pipe) => match pipe.write(output, &self.waker) {
                    Poll::Ready(wrote) => wrote,
                    Poll::Pending => return Ok(flushed),
                },
            };
            match wrote {
                Ok(n) => {
                    self.flushed += n as u64;
                    self.engine.written(n, shared);
                    if n == whole {
                        return Ok(Flushed::All);
                    }
                    // The kernel took a part: its waker is to know when there is room again.
                    flushed = Flushed::Part;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The same in TLS: what is sealed has to leave before more is sealed, so that one flush is one write of full records.
    fn flush_tls(&mut self, shared: &mut Shared) -> io::Result<Flushed> {
        let Transport::Tls(socket, session) = &mut self.transport else {
            return Ok(Flushed::All);
        };
        let mut flushed = Flushed::Nothing;
        loop {
            if self.mute.is_some() {
                session.sent(session.output().len());
                self.engine.written(self.engine.output().len(), shared);
                return Ok(Flushed::All);
            }
            if session.output().is_empty() {
                let output = self.engine.output();
                let whole = output.len();
                if whole == 0 {
                    return Ok(Flushed::All);
                }
                session.seal(output)?;
                // Nobody leaves gigabytes unread for long: what is over is cut before.
                self.sealed = u32::try_from(whole).unwrap_or(u32::MAX);
                self.engine.written(whole, shared);
            }
            if !is_writable(socket, &self.waker) {
                return Ok(flushed);
            }
            match tls::write_once(socket, session.output()) {
                Ok(n) => {
                    session.sent(n);
                    if n > 0 {
                        self.flushed += u64::from(std::mem::take(&mut self.sealed));
                        flushed = Flushed::Part;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Counts what is kept for a peer in the budget. To be asked when the turn's output was written, with what came of that.
    #[inline(always)]
    pub(crate) fn count_kept(&mut self, flushed: Flushed, shared: &mut Shared) {
        let sealed = match &self.transport {
            Transport::Tls(_, session) => session.kept(),
            Transport::Socket(_) | Transport::Pipe(_) => 0,
        };
        self.engine.count_kept(sealed, shared);
        self.engine.set_backed_up(flushed != Flushed::All);
        if flushed != Flushed::Nothing {
            self.looks.stuck = 0;
        }
    }

    /// The socket that is left of a wire, where the peer may be reading our last words still.
    pub(crate) fn into_socket(self) -> Option<TcpStream> {
        match self.transport {
            Transport::Socket(socket) | Transport::Tls(socket, _) if !self.is_finished && self.mute.is_none() => {
                Some(socket)
            }
            Transport::Socket(_) | Transport::Tls(..) | Transport::Pipe(_) => None,
        }
    }

    /// Bytes of output since the beginning, those that wait included: where the next byte will stand.
    pub fn position(&self) -> u64 {
        self.flushed + u64::from(self.sealed) + self.engine.output().len() as u64
    }
}

fn is_readable(socket: &TcpStream, waker: &Waker) -> bool {
    socket.poll_read_ready(&mut Context::from_waker(waker)).is_ready()
}

fn is_writable(socket: &TcpStream, waker: &Waker) -> bool {
    socket.poll_write_ready(&mut Context::from_waker(waker)).is_ready()
}

/// Reads the socket once, and opens what came.
fn read_tls(socket: &TcpStream, session: &mut Session, waker: &Waker, buffer: &mut [u8]) -> Read {
    let opened = session.read(buffer, |room| match is_readable(socket, waker) {
        true => tls::read_once(socket, room),
        false => Err(io::ErrorKind::WouldBlock.into()),
    });
    match opened {
        Ok(opened) if opened.ended && opened.plain == 0 => Read::End,
        Ok(opened) => {
            let more = opened.more || opened.ended || is_readable(socket, waker);
            match (opened.plain, more) {
                (0, false) => Read::Nothing,
                (n, more) => Read::Bytes(n, more),
            }
        }
        Err(error) => Read::Broken(error.into()),
    }
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
    /// The wires, each in a place of its own: a list of things so large would leave large holes in memory as it grows.
    pub slots: Slots<Box<Wire>>,
    /// Tables and memory that the connections share.
    pub shared: Shared,
    /// Resets that servers are to be told a little later, in order.
    pub late: VecDeque<LateReset>,
    dirty: Vec<WireKey>,
    ready: Arc<Ready>,
}

/// So much output is bulk.
const MUCH: usize = 16 << 10;

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

    /// Whoever took the least header lists may be gone: what the others take counts from now on.
    pub fn forget_limits_of_the_gone(&mut self) {
        let takes = self.slots.iter().map(|(_, wire)| wire.engine.max_header_list());
        self.shared.least_header_list = takes.min().unwrap_or(usize::MAX);
    }

    /// Takes a connection in, whose first bytes may have been read already. It is ready at once.
    pub fn insert(
        &mut self,
        transport: impl Into<Transport>,
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
        let transport = transport.into();
        let is_tls = matches!(transport, Transport::Tls(..));
        let key = self.slots.insert(Box::new(Wire {
            engine,
            peer,
            side,
            heard: now,
            since: now,
            begun: 0,
            looks: Looks::default(),
            flushed: 0,
            shown: match (is_tls, side) {
                (true, Side::Server { .. }) => Shown::Nothing,
                _ => Shown::Trust,
            },
            label: 0,
            certified: None,
            client_cert: None,
            server: matches!(side, Side::Server { .. }).then(Box::default),
            transport,
            sealed: 0,
            waker: waker.clone().into(),
            first: (!first.is_empty()).then(|| Box::new(First(first))),
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
    #[inline(always)]
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

    /// Sees to it that the wires with much to write come first. Their readers begin while the others are written; and what the
    /// others are told is often credit, whose taker may want this CPU at once.
    pub fn put_bulk_first(&mut self) {
        let mut little = 0;
        for i in 0..self.dirty.len() {
            let wire = self.slots.get(self.dirty[i]);
            if wire.is_none_or(|wire| wire.engine.output().len() < MUCH) {
                self.dirty.swap(i, little);
                little += 1;
            }
        }
    }

    /// The wires that have something to write.
    pub fn dirty(&self) -> &[WireKey] {
        &self.dirty
    }

    /// Closes a wire. The streams that it had are gone; their owners' marks are returned.
    pub fn close(&mut self, key: WireKey) -> Option<(Box<Wire>, Vec<u64>)> {
        let mut wire = self.slots.remove(key)?;
        wire.say_goodbye();
        if let Some(id) = wire.client_cert.take() {
            self.shared.interner.forget(id);
        }
        let users = wire.engine.users();
        wire.engine.release(&mut self.shared);
        Some((wire, users))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use socket2::SockRef;

    use super::*;
    use crate::http2::Settings;

    /// A wire to a pipe, and the pipe's other end.
    fn wire() -> (Wires, WireKey, Pipe) {
        let mut wires = Wires::new(1 << 20);
        let now = Instant::now();
        let engine = Connection::server(Arc::new(Settings::default()), true, now, &mut wires.shared);
        let (ours, theirs) = Pipe::pair();
        let peer = SocketAddr::from(([0, 0, 0, 0], 0));
        let side = Side::Caller {
            inbound: false,
            meant: peer,
            checks: None,
        };
        let key = wires.insert(Transport::Pipe(theirs), Vec::new(), engine, peer, side, now);
        (wires, key, ours)
    }

    #[test]
    fn one_that_took_the_least_header_lists_and_is_gone_is_forgotten() {
        let (mut wires, key, _pipe) = wire();
        // SETTINGS with a MAX_HEADER_LIST_SIZE of 9.
        let said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x06\0\0\0\x09";
        let (wire, shared) = wires.touch(key).expect("it is open");
        let heard = wire.engine.receive(&mut &said[..], shared, Instant::now());
        assert!(heard.is_ok(), "{heard:?}");
        assert_eq!(wires.shared.least_header_list, 9);
        wires.forget_limits_of_the_gone();
        assert_eq!(wires.shared.least_header_list, 9, "it stands");
        wires.slots.remove(key);
        wires.forget_limits_of_the_gone();
        assert!(wires.shared.least_header_list > 1 << 30);
    }

    fn ready(wires: &Wires) -> Vec<WireKey> {
        let mut ready = Vec::new();
        wires.ready().take(&mut ready);
        ready
    }

    fn read(wires: &mut Wires, key: WireKey) -> Read {
        let wire = wires.slots.get_mut(key).expect("it is open");
        wire.read(&mut [0; 10], Instant::now())
    }

    fn flush(wires: &mut Wires, key: WireKey) -> io::Result<Flushed> {
        let (wire, shared) = wires.touch(key).expect("it is open");
        wire.flush(shared)
    }

    fn write(pipe: &Pipe, bytes: &[u8]) {
        assert!(matches!(pipe.write(bytes, Waker::noop()), Poll::Ready(Ok(n)) if n == bytes.len()));
    }

    #[test]
    fn a_connection_is_replaced_in_good_time_before_its_certificates_end() {
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        let until = now + std::time::Duration::from_secs(1_000);
        for (luck, before) in [(0.0, 100), (1.0, 200), (7.0, 200)] {
            let certified = Lifetime::new(until, now, luck);
            let left = until.duration_since(certified.drain_at).expect("it is before the end");
            assert_eq!(left.as_secs(), before);
        }
        let seconds = std::time::Duration::from_secs;
        for until in [now, now - seconds(15), now + seconds(2)] {
            let late = Lifetime::new(until, now, 0.5);
            assert_eq!(
                late.drain_at,
                now + LEAST_LIFE,
                "and not at each look, while none is better"
            );
        }
        let last = Lifetime::new(now - seconds(18), now, 0.5);
        assert_eq!(last.drain_at, now + seconds(2), "from then on nobody takes it");
    }

    #[test]
    fn a_wire_that_is_a_pipe_becomes_ready_when_there_is_something_to_read() {
        let (mut wires, key, pipe) = wire();
        assert_eq!(ready(&wires), [key], "a new one is looked at once");
        assert!(matches!(read(&mut wires, key), Read::Nothing));
        assert_eq!(ready(&wires), []);
        write(&pipe, &[7; 25]);
        assert_eq!(ready(&wires), [key]);
        assert!(matches!(read(&mut wires, key), Read::Bytes(10, true)));
        assert!(matches!(read(&mut wires, key), Read::Bytes(10, true)));
        assert!(matches!(read(&mut wires, key), Read::Bytes(5, false)));
        assert_eq!(ready(&wires), [], "there is nothing");
        write(&pipe, b"last");
        drop(pipe);
        assert_eq!(ready(&wires), [key]);
        assert!(matches!(read(&mut wires, key), Read::Bytes(4, true)));
        assert!(matches!(read(&mut wires, key), Read::End));
        assert!(matches!(read(&mut wires, key), Read::Nothing), "the end is told once");
    }

    #[test]
    fn a_wire_that_is_a_full_pipe_becomes_ready_when_there_is_room() {
        let (mut wires, key, pipe) = wire();
        let long = "x".repeat(100 << 10);
        let (wire, _) = wires.touch(key).expect("it is open");
        for _ in 0..400 {
            wire.engine.say_goaway(0, Reason::NO_ERROR, &long);
        }
        let all = wire.engine.output().len();
        assert!(matches!(flush(&mut wires, key), Ok(Flushed::Part)));
        let mut got = pipe.take().map_or(0, |bytes| bytes.len());
        assert!(got < all);
        assert!(ready(&wires).contains(&key));
        assert!(matches!(flush(&mut wires, key), Ok(Flushed::All)));
        got += pipe.take().map_or(0, |bytes| bytes.len());
        assert_eq!(got, all);
        assert_eq!(wires.slots.get(key).map(|wire| wire.flushed), Some(all as u64));
    }

    #[test]
    fn a_wire_whose_handle_is_gone_cannot_be_written() {
        let (mut wires, key, pipe) = wire();
        drop(pipe);
        let error = flush(&mut wires, key).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    /// A socket that keeps what each write has said apart, and its other end.
    async fn packets() -> (TcpStream, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        for socket in [&ours, &theirs] {
            socket.set_nonblocking(true).expect("a socket");
        }
        let ours = std::net::TcpStream::from(OwnedFd::from(ours));
        let ours = TcpStream::from_std(ours).expect("a socket");
        ours.writable().await.expect("there is room");
        (ours, theirs)
    }

    /// Has a wire say many frames and flushes it once: how much it said, and what each of its writes brought.
    fn flushed_once(transport: Transport, other: &UnixDatagram) -> (usize, Vec<Vec<u8>>) {
        let mut wires = Wires::new(1 << 20);
        let now = Instant::now();
        let engine = Connection::client(Arc::new(Settings::default()), false, now, &mut wires.shared);
        let peer = SocketAddr::from(([0, 0, 0, 0], 0));
        let side = Side::Server { pool: Key::NONE };
        let key = wires.insert(transport, Vec::new(), engine, peer, side, now);
        let (wire, shared) = wires.touch(key).expect("it is open");
        while wire.engine.output().len() < 100_000 {
            wire.engine.say_goaway(0, Reason::NO_ERROR, "a frame");
        }
        let said = wire.engine.output().len();
        assert!(matches!(wire.flush(shared), Ok(Flushed::All)));
        assert_eq!(wire.flushed, said as u64);
        let (mut writes, mut room) = (Vec::new(), vec![0; 1 << 20]);
        while let Ok(n) = other.recv(&mut room) {
            writes.push(room[..n].to_vec());
        }
        (said, writes)
    }

    #[tokio::test]
    async fn one_flush_is_one_write_and_in_tls_of_as_few_full_records_as_it_fits_into() {
        let (socket, other) = packets().await;
        let (said, writes) = flushed_once(Transport::Socket(socket), &other);
        assert_eq!(writes.iter().map(Vec::len).collect::<Vec<_>>(), [said]);

        let ((_, session), _peer) = tls::tests::both(tls::Alpn::H2).await;
        let (socket, other) = packets().await;
        let (said, writes) = flushed_once(Transport::Tls(socket, Box::new(session)), &other);
        assert_eq!(writes.len(), 1, "one write");
        let (mut records, mut rest) = (Vec::new(), &writes[0][..]);
        while let [23, 3, 3, high, low, tail @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            // Behind the plaintext stand its kind and a tag (RFC 8446, 5.2).
            records.push(length - 1 - 16);
            rest = &tail[length..];
        }
        assert!(rest.is_empty(), "nothing else is written");
        let mut expected = vec![16_384; said / 16_384];
        expected.push(said % 16_384);
        assert_eq!(records, expected);
        assert_eq!(writes[0].len(), tls::sealed_len(said));
    }

    #[test]
    fn wires_with_much_to_write_come_first() {
        let (mut wires, first, _pipe) = wire();
        let mut keys = vec![first];
        for _ in 0..5 {
            let (_, theirs) = Pipe::pair();
            let engine = Connection::server(Arc::default(), true, Instant::now(), &mut wires.shared);
            let (peer, side) = wires
                .slots
                .get(first)
                .map(|wire| (wire.peer, wire.side))
                .expect("it is open");
            keys.push(wires.insert(Transport::Pipe(theirs), Vec::new(), engine, peer, side, Instant::now()));
        }
        let bulk = [keys[1], keys[2], keys[4]];
        for key in bulk {
            let (wire, _) = wires.touch(key).expect("it is open");
            while wire.engine.output().len() < MUCH {
                wire.engine.say_goaway(0, Reason::NO_ERROR, "a frame");
            }
        }
        wires.close(keys[2]);
        wires.put_bulk_first();
        let order: Vec<_> = std::iter::from_fn(|| wires.next_dirty()).collect();
        assert_eq!(order.len(), keys.len());
        assert!(
            order[..2].contains(&keys[1]) && order[..2].contains(&keys[4]),
            "{order:?}"
        );
    }

    #[tokio::test]
    async fn in_tls_a_batch_of_which_a_part_left_counts_as_sent_and_one_that_waits_does_not() {
        let ((socket, session), _peer) = tls::tests::both(tls::Alpn::H2).await;
        SockRef::from(&socket).set_send_buffer_size(1).expect("a small one");
        let mut wires = Wires::new(1 << 20);
        let now = Instant::now();
        let engine = Connection::client(Arc::new(Settings::default()), false, now, &mut wires.shared);
        let peer = socket.peer_addr().expect("connected");
        let side = Side::Server { pool: Key::NONE };
        let transport = Transport::Tls(socket, Box::new(session));
        let key = wires.insert(transport, Vec::new(), engine, peer, side, now);
        let (wire, shared) = wires.touch(key).expect("it is open");
        while wire.engine.output().len() < 4 << 20 {
            wire.engine.say_goaway(0, Reason::NO_ERROR, "long");
        }
        let first = wire.position();
        assert!(
            matches!(wire.flush(shared), Ok(Flushed::Part)),
            "so much does not leave at once"
        );
        let waits = wire.session().map_or(0, |session| session.output().len());
        assert!((waits as u64) < first, "but a part of it does");
        assert_eq!((wire.flushed, wire.position()), (first, first));
        wire.count_kept(Flushed::Part, shared);
        assert!(shared.budget.used() >= waits as u64, "what is sealed is kept, too");
        // What comes now stands behind it, and has not left.
        wire.engine.say_goaway(0, Reason::NO_ERROR, "one more");
        assert!(wire.position() > first && wire.flushed == first);
    }
}
