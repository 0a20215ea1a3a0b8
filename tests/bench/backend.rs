//! The server behind the proxies: one thread that echoes unary calls, streams bulk at a pace or at full rate, and holds streams open.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token, Waker, net::TcpListener, unix::SourceFd};
use nix::{
    sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    unistd::{Pid, gettid},
};

use super::{
    hpack::Field,
    payload::{self, BulkBytes},
    process,
    wire::{self, Changed, Frame, HeaderBlock, Wire, kind},
};

/// The paths that the server knows. Every other path is a unary echo that demands what callers send (`CALLERS`), or is unimplemented.
pub(crate) const ECHO: &str = "/bench.Echo/Unary";
pub(crate) const HOLD: &str = "/bench.Echo/Hold";
pub(crate) const BULK: &str = "/bench.Bulk/Stream";
/// Methods under this prefix are answered only if a bearer token and a traceparent came with the call.
pub(crate) const CALLERS: &str = "/callers.";

/// What a bulk call asks for: the request's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BulkRequest {
    /// What the bytes of the stream follow from.
    pub(crate) seed: u64,
    /// How many messages; without an end if none.
    pub(crate) messages: u64,
    /// The time from one message to the next; none for full rate.
    pub(crate) interval: Duration,
    /// How long the first message waits, so that paced streams do not send all at once.
    pub(crate) delay: Duration,
}

impl BulkRequest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let times = [self.interval, self.delay].map(|time| time.as_nanos() as u64);
        [self.seed, self.messages, times[0], times[1]]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect()
    }

    fn decode(message: &[u8]) -> Result<BulkRequest> {
        ensure!(message.len() == 32, "a bulk request of {} bytes", message.len());
        let mut numbers = message
            .chunks_exact(8)
            .map(|bytes| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)));
        let mut next = || numbers.next().unwrap_or_default();
        Ok(BulkRequest {
            seed: next(),
            messages: next(),
            interval: Duration::from_nanos(next()),
            delay: Duration::from_nanos(next()),
        })
    }
}

/// The server's thread; it ends when this is dropped.
pub(crate) struct Backend {
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
    thread_id: Pid,
    waker: Arc<Waker>,
}

impl Backend {
    /// Starts the server on a port of its own of the loopback address.
    pub(crate) fn start(cpu: usize) -> Result<Backend> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let waker = Arc::new(Waker::new(poll.registry(), STOP)?);
        let mut listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).context("cannot listen")?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let address = listener.local_addr()?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name("backend".into()).spawn(move || {
            let _ = tell.send(gettid());
            let words = Words::new();
            let serving = Serving {
                poll,
                listener,
                timer,
                connections: Vec::new(),
                words,
            };
            if let Err(error) = serving.run() {
                eprintln!("measure: the backend stopped: {error:#}");
            }
        })?;
        let thread_id = told.recv().context("the backend's thread did not start")?;
        let backend = Backend {
            address,
            thread: Some(thread),
            thread_id,
            waker,
        };
        backend.pin(cpu)?;
        Ok(backend)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Moves the server to another CPU.
    pub(crate) fn pin(&self, cpu: usize) -> Result<()> {
        process::pin(self.thread_id, cpu)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

const LISTENER: Token = Token(0);
const TIMER: Token = Token(1);
const STOP: Token = Token(2);
const FIRST_CONNECTION: usize = 3;

/// How much is written at a time; more would only wait in the kernel, where a unary answer cannot overtake it.
const TURN: usize = 128 << 10;
const UNSENT: u32 = 128 << 10;
/// What a proxy may have under way to us.
const RECEIVE_WINDOW: u32 = 1 << 20;

/// The fields that answers are made of.
struct Words {
    ok: Field,
    content_type: Field,
    status_ok: Field,
    status_bad: Field,
    message: Field,
}

impl Words {
    fn new() -> Words {
        Words {
            ok: Field::new(":status", "200"),
            content_type: Field::new("content-type", "application/grpc"),
            status_ok: Field::new("grpc-status", "0"),
            status_bad: Field::new("grpc-status", "13"),
            message: Field::new("grpc-message", ""),
        }
    }
}

struct Serving {
    poll: Poll,
    listener: TcpListener,
    timer: TimerFd,
    connections: Vec<Option<Connection>>,
    words: Words,
}

impl Serving {
    fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut buffer = vec![0; 512 << 10];
        let mut eager: VecDeque<usize> = VecDeque::new();
        loop {
            let timeout = (!eager.is_empty()).then_some(Duration::ZERO);
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            let mut paced = false;
            for _ in 0..eager.len() {
                let Some(slot) = eager.pop_front() else { break };
                self.turn(slot, &mut buffer, false, &mut eager, &mut paced);
            }
            for event in &events {
                match event.token() {
                    STOP => return Ok(()),
                    LISTENER => self.accept()?,
                    TIMER => {
                        paced = true;
                        for slot in 0..self.connections.len() {
                            if self.connections[slot].as_ref().is_some_and(Connection::is_paced) {
                                self.turn(slot, &mut buffer, false, &mut eager, &mut paced);
                            }
                        }
                    }
                    Token(token) => {
                        let readable = event.is_readable() || event.is_read_closed();
                        self.turn(token - FIRST_CONNECTION, &mut buffer, readable, &mut eager, &mut paced);
                    }
                }
            }
            if paced {
                self.set_timer()?;
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot accept"),
            };
            socket.set_nodelay(true)?;
            socket2::SockRef::from(&socket).set_tcp_notsent_lowat(UNSENT)?;
            let slot = self
                .connections
                .iter()
                .position(Option::is_none)
                .unwrap_or(self.connections.len());
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut socket, Token(slot + FIRST_CONNECTION), interest)?;
            let mut opening = Vec::new();
            wire::append_settings(&[], &mut opening);
            let connection = Connection {
                wire: Wire::new(socket, opening, RECEIVE_WINDOW),
                greeted: false,
                streams: Vec::new(),
                turn: 0,
            };
            if slot == self.connections.len() {
                self.connections.push(None);
            }
            self.connections[slot] = Some(connection);
        }
    }

    /// What one connection does at a time: take what came, answer, write once.
    fn turn(&mut self, slot: usize, buffer: &mut [u8], readable: bool, eager: &mut VecDeque<usize>, paced: &mut bool) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else {
            return;
        };
        match connection.turn(&self.words, buffer, readable) {
            Ok(Next::Wait) => {}
            Ok(Next::Again) => {
                if !eager.contains(&slot) {
                    eager.push_back(slot);
                }
            }
            Ok(Next::Paced) => *paced = true,
            Ok(Next::Closed) => self.connections[slot] = None,
            Err(error) => {
                eprintln!("measure: the backend closes a connection: {error:#}");
                self.connections[slot] = None;
            }
        }
    }

    fn set_timer(&self) -> Result<()> {
        let due = self.connections.iter().flatten().filter_map(Connection::next_due).min();
        if let Some(due) = due {
            let wait = due
                .saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1));
            self.timer
                .set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
        }
        Ok(())
    }
}

enum Next {
    Wait,
    /// There is more to write, and the socket would take it.
    Again,
    /// There is more to write, at its time.
    Paced,
    Closed,
}

struct Connection {
    wire: Wire,
    greeted: bool,
    streams: Vec<Stream>,
    /// Whose turn it is to send.
    turn: usize,
}

struct Stream {
    id: u32,
    window: i64,
    state: State,
}

enum State {
    Asking {
        what: Asked,
        body: Vec<u8>,
    },
    Echoing {
        data: Vec<u8>,
        sent: usize,
    },
    Streaming {
        bytes: BulkBytes,
        end: u64,
        pace: Option<Pace>,
    },
    Holding,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Echo,
    Hold,
    Bulk,
    /// A caller's call without what callers send, or a path that nobody knows.
    Nonsense,
}

struct Pace {
    interval: Duration,
    due: Instant,
    /// How far into the stream it is time to be.
    allowed: u64,
}

impl Connection {
    fn is_paced(&self) -> bool {
        self.streams
            .iter()
            .any(|stream| matches!(&stream.state, State::Streaming { pace: Some(_), .. }))
    }

    fn next_due(&self) -> Option<Instant> {
        let due = |stream: &Stream| match &stream.state {
            State::Streaming { pace: Some(pace), .. } => Some(pace.due),
            _ => None,
        };
        self.streams.iter().filter_map(due).min()
    }

    fn turn(&mut self, words: &Words, buffer: &mut [u8], readable: bool) -> Result<Next> {
        let mut more = readable;
        while more {
            let read = match self.wire.read(buffer) {
                Ok(read) => read,
                // A proxy that was stopped, or a client that has seen enough.
                Err(_) => return Ok(Next::Closed),
            };
            let Some((len, again)) = read else {
                return Ok(Next::Closed);
            };
            more = again;
            self.take(words, &buffer[..len])?;
        }
        self.pump(words);
        match self.wire.flush() {
            // Also when this turn added nothing, since what it wrote was there before: no event will come for the rest.
            Ok(true) if self.has_more_now() => Ok(Next::Again),
            Ok(_) if self.is_paced() => Ok(Next::Paced),
            Ok(_) => Ok(Next::Wait),
            Err(_) => Ok(Next::Closed),
        }
    }

    fn take(&mut self, words: &Words, mut bytes: &[u8]) -> Result<()> {
        if !self.greeted {
            let Some(rest) = bytes.strip_prefix(wire::PREFACE) else {
                ensure!(
                    wire::PREFACE.starts_with(bytes),
                    "the peer does not speak HTTP/2 with prior knowledge"
                );
                self.wire.keep(bytes);
                return Ok(());
            };
            bytes = rest;
            self.greeted = true;
        }
        while let Some(frame) = Frame::take(&mut bytes)? {
            self.frame(words, frame)?;
        }
        self.wire.keep(bytes);
        Ok(())
    }

    fn frame(&mut self, words: &Words, frame: Frame<'_>) -> Result<()> {
        match frame.kind {
            kind::HEADERS | kind::CONTINUATION => {
                if let Some((id, end, block)) = self.wire.header_block(frame)? {
                    self.begin(id, end, &block)?;
                }
            }
            kind::DATA => {
                self.wire.received_data(frame);
                let content = frame.content()?;
                let Some(at) = self.streams.iter().position(|stream| stream.id == frame.stream) else {
                    return Ok(());
                };
                let State::Asking { what, body } = &mut self.streams[at].state else {
                    return Ok(());
                };
                let what = *what;
                let whole = frame.has(wire::END_STREAM);
                if body.is_empty() && whole && what == Asked::Echo {
                    return self.echo(words, at, content);
                }
                body.extend_from_slice(content);
                ensure!(
                    body.len() <= payload::UNARY_FRAMED,
                    "a request of more than {} bytes",
                    payload::UNARY_FRAMED
                );
                let complete = whole || (what == Asked::Hold && body.len() == payload::UNARY_FRAMED);
                if complete {
                    let body = std::mem::take(body);
                    self.answer(words, at, what, &body)?;
                }
            }
            kind::RST_STREAM => self.streams.retain(|stream| stream.id != frame.stream),
            kind::WINDOW_UPDATE if frame.stream != 0 => {
                let by = i64::from(wire::number(frame.payload)?);
                if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == frame.stream) {
                    stream.window += by;
                }
            }
            kind::PRIORITY => {}
            _ => {
                if let Changed::Windows { streams_by } = self.wire.connection_frame(frame)?
                    && streams_by != 0
                {
                    self.streams.iter_mut().for_each(|stream| stream.window += streams_by);
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, id: u32, end: bool, block: &HeaderBlock<'_>) -> Result<()> {
        let mut what = None;
        let (mut token, mut trace) = (0, 0);
        let see = |name: &[u8], value: &[u8]| match name {
            b":path" => what = Some(asked(value)),
            b"authorization" => token = value.len(),
            b"traceparent" => trace = value.len(),
            _ => {}
        };
        self.wire.decoder.decode(block.bytes(), see)?;
        if self.streams.iter().any(|stream| stream.id == id) {
            bail!("trailers of a request, which no client of the benchmark sends");
        }
        let mut what = what.context("a request without :path")?;
        if what.1 && (token < 400 || trace != 55) {
            what.0 = Asked::Nonsense;
        }
        ensure!(!end, "a request without a message");
        let window = self.wire.first_stream_window;
        self.streams.push(Stream {
            id,
            window,
            state: State::Asking {
                what: what.0,
                body: Vec::new(),
            },
        });
        Ok(())
    }

    fn answer(&mut self, words: &Words, at: usize, what: Asked, body: &[u8]) -> Result<()> {
        match what {
            Asked::Echo => return self.echo(words, at, body),
            Asked::Hold => {
                let id = self.streams[at].id;
                self.head(words, id);
                wire::append_frame(kind::DATA, 0, id, body, &mut self.wire.out);
                self.wire.send_window -= body.len() as i64;
                self.streams[at].window -= body.len() as i64;
                self.streams[at].state = State::Holding;
            }
            Asked::Bulk => {
                let request = BulkRequest::decode(body.get(5..).unwrap_or_default())?;
                let pace = (!request.interval.is_zero()).then(|| Pace {
                    interval: request.interval,
                    due: Instant::now() + request.delay,
                    allowed: 0,
                });
                let end = match request.messages {
                    0 => u64::MAX,
                    messages => messages * payload::BULK_FRAMED as u64,
                };
                self.head(words, self.streams[at].id);
                self.streams[at].state = State::Streaming {
                    bytes: BulkBytes::new(request.seed),
                    end,
                    pace,
                };
            }
            Asked::Nonsense => {
                let id = self.streams.swap_remove(at).id;
                let Wire { encoder, out, .. } = &mut self.wire;
                wire::append_headers(wire::END_STREAM, id, out, |out| {
                    encoder.begin(out);
                    encoder.field(&words.ok, out);
                    encoder.field(&words.content_type, out);
                    encoder.field(&words.status_bad, out);
                    encoder.unique(&words.message, b"the call came without what its caller sent", out);
                });
            }
        }
        Ok(())
    }

    /// Answers a unary call: at once where the windows allow it, else as they open.
    fn echo(&mut self, words: &Words, at: usize, data: &[u8]) -> Result<()> {
        let Stream { id, window, .. } = self.streams[at];
        self.head(words, id);
        let len = data.len() as i64;
        if window >= len && self.wire.send_window >= len {
            self.wire.send_window -= len;
            wire::append_frame(kind::DATA, 0, id, data, &mut self.wire.out);
            self.trail(words, id);
            self.streams.swap_remove(at);
        } else {
            self.streams[at].state = State::Echoing {
                data: data.to_vec(),
                sent: 0,
            };
        }
        Ok(())
    }

    fn head(&mut self, words: &Words, id: u32) {
        let Wire { encoder, out, .. } = &mut self.wire;
        wire::append_headers(0, id, out, |out| {
            encoder.begin(out);
            encoder.field(&words.ok, out);
            encoder.field(&words.content_type, out);
        });
    }

    fn trail(&mut self, words: &Words, id: u32) {
        let Wire { encoder, out, .. } = &mut self.wire;
        wire::append_headers(wire::END_STREAM, id, out, |out| {
            encoder.begin(out);
            encoder.field(&words.status_ok, out);
        });
    }

    /// Appends DATA of the streams that have some, a frame each in turn.
    fn pump(&mut self, words: &Words) {
        let now = self.is_paced().then(Instant::now);
        if let Some(now) = now {
            self.streams.iter_mut().for_each(|stream| stream.advance(now));
        }
        let mut idle = 0;
        while idle < self.streams.len() && self.wire.unwritten() < TURN && self.wire.send_window > 0 {
            self.turn = (self.turn + 1) % self.streams.len();
            let stream = &mut self.streams[self.turn];
            let room = stream.window.min(self.wire.send_window).max(0) as u64;
            let len = stream.ready().min(room).min(wire::MAX_FRAME as u64) as usize;
            if len == 0 {
                idle += 1;
                continue;
            }
            idle = 0;
            stream.window -= len as i64;
            self.wire.send_window -= len as i64;
            wire::append_head(len, kind::DATA, 0, stream.id, &mut self.wire.out);
            if stream.write(len, &mut self.wire.out) {
                let id = stream.id;
                self.trail(words, id);
                self.streams.swap_remove(self.turn);
            }
        }
    }

    fn has_more_now(&self) -> bool {
        self.wire.send_window > 0
            && self
                .streams
                .iter()
                .any(|stream| stream.window > 0 && stream.ready() > 0)
    }
}

impl Stream {
    /// Lets a paced stream have what has become due.
    fn advance(&mut self, now: Instant) {
        if let State::Streaming {
            pace: Some(pace), end, ..
        } = &mut self.state
        {
            while pace.due <= now {
                pace.due += pace.interval;
                pace.allowed = (pace.allowed + payload::BULK_FRAMED as u64).min(*end);
            }
        }
    }

    /// How many bytes it could send now.
    fn ready(&self) -> u64 {
        match &self.state {
            State::Asking { .. } | State::Holding => 0,
            State::Echoing { data, sent } => (data.len() - sent) as u64,
            State::Streaming { bytes, end, pace } => pace
                .as_ref()
                .map_or(*end, |pace| pace.allowed)
                .saturating_sub(bytes.position()),
        }
    }

    /// Writes its next bytes; whether they were the last.
    fn write(&mut self, len: usize, out: &mut Vec<u8>) -> bool {
        match &mut self.state {
            State::Asking { .. } | State::Holding => false,
            State::Echoing { data, sent } => {
                out.extend_from_slice(&data[*sent..*sent + len]);
                *sent += len;
                *sent == data.len()
            }
            State::Streaming { bytes, end, .. } => {
                bytes.write(len, out);
                bytes.position() == *end
            }
        }
    }
}

/// What a path asks for, and whether the call must carry what callers send.
fn asked(path: &[u8]) -> (Asked, bool) {
    match path {
        path if path == ECHO.as_bytes() => (Asked::Echo, false),
        path if path == BULK.as_bytes() => (Asked::Bulk, false),
        path if path == HOLD.as_bytes() => (Asked::Hold, false),
        path if path.starts_with(CALLERS.as_bytes()) => (Asked::Echo, true),
        _ => (Asked::Nonsense, false),
    }
}
