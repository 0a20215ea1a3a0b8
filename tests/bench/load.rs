//! The client before the proxies: one thread that keeps connections full, calls at a pace, reads bulk, and checks every answer.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token, net::TcpStream, unix::SourceFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{
    backend::{self, BulkRequest},
    hpack::Field,
    payload::{self, BulkBytes, UNARY_FRAMED},
    wire::{self, Changed, Frame, HeaderBlock, Wire, kind},
};

/// What calls carry besides their message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// One method and the fewest headers that gRPC allows: after the first call, all of them indexed.
    Plain,
    /// 200 methods, a user-agent, each connection's own bearer token of 400 bytes, each call's own traceparent; indexed
    /// as grpc-go does, that is, always.
    Callers,
}

/// How connections are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// What calls name as their `:authority`: an address, so that a proxy which asks DNS for names has nothing to ask.
    pub(crate) authority: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) style: Style,
    /// What the server may send on a stream before it is given more.
    pub(crate) stream_window: u32,
}

/// Bulk calls: on each connection so many streams of so many messages (none: without end), one message each interval (none: at full rate).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bulk {
    pub(crate) streams: usize,
    pub(crate) messages: u64,
    pub(crate) interval: Duration,
}

/// Open connections, and the calls on them.
pub(crate) struct Session {
    poll: Poll,
    events: Events,
    timer: TimerFd,
    clients: Vec<Client>,
    /// Connections that have something to write.
    dirty: Vec<usize>,
    buffer: Vec<u8>,
    run: Run,
    patience: Duration,
}

impl Session {
    /// Connects; the settings of the other side are known when this returns.
    pub(crate) fn open(target: SocketAddr, opening: Opening) -> Result<Session> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut session = Session {
            poll,
            events: Events::with_capacity(1_024),
            timer,
            clients: Vec::with_capacity(opening.connections),
            dirty: Vec::new(),
            buffer: vec![0; 512 << 10],
            run: Run::new(opening),
            patience: Duration::from_secs(20),
        };
        for place in 0..opening.connections {
            let socket = std::net::TcpStream::connect(target).with_context(|| format!("cannot connect to {target}"))?;
            socket.set_nodelay(true)?;
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            let interest = Interest::READABLE | Interest::WRITABLE;
            session
                .poll
                .registry()
                .register(&mut socket, Token(place + FIRST_CLIENT), interest)?;
            session.clients.push(Client::new(socket, opening.stream_window, place));
            session.dirty.push(place);
        }
        while session.clients.iter().any(|client| !client.greeted) {
            session.turn()?;
        }
        Ok(session)
    }

    /// How long nothing at all may happen before the session gives up. Twenty seconds unless said otherwise.
    pub(crate) fn be_patient(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Makes `total` unary calls, so many at a time on each connection; each answer starts the next call.
    pub(crate) fn saturate(&mut self, streams: usize, total: u64) -> Result<()> {
        let goal = self.run.answered + total;
        let at_once = (streams * self.clients.len()) as u64;
        self.run.to_start = total;
        for nth in 0..at_once.min(total) as usize {
            self.call(nth % self.clients.len(), None);
        }
        while self.run.answered < goal {
            self.turn()?;
        }
        Ok(())
    }

    /// Makes unary calls in lockstep: so many on each connection in one write, and the next when all of them are answered.
    pub(crate) fn batches(&mut self, streams: usize, batches: u64) -> Result<()> {
        for _ in 0..batches {
            self.saturate_once(streams)?;
        }
        Ok(())
    }

    fn saturate_once(&mut self, streams: usize) -> Result<()> {
        let goal = self.run.answered + (streams * self.clients.len()) as u64;
        self.run.to_start = goal - self.run.answered;
        for place in 0..self.clients.len() {
            (0..streams).for_each(|_| self.call(place, None));
        }
        while self.run.answered < goal {
            self.turn()?;
        }
        Ok(())
    }

    /// Makes `total` unary calls at their times, whether or not earlier ones are answered (an open loop); how long each
    /// took from the time it should have begun.
    pub(crate) fn paced(&mut self, interval: Duration, total: u64) -> Result<Vec<Duration>> {
        let goal = self.run.answered + total;
        self.run.latencies = Vec::with_capacity(total as usize);
        self.run.to_start = total;
        self.timer
            .set(Expiration::Interval(interval.into()), TimerSetTimeFlags::empty())?;
        let mut due = Instant::now() + interval;
        let mut place = 0;
        while self.run.answered < goal {
            self.turn()?;
            let now = Instant::now();
            while due <= now && self.run.to_start > 0 {
                self.call(place, Some(due));
                place = (place + 1) % self.clients.len();
                due += interval;
            }
        }
        self.timer.unset()?;
        Ok(std::mem::take(&mut self.run.latencies))
    }

    /// Starts bulk calls on every connection.
    pub(crate) fn start_bulk(&mut self, bulk: Bulk) {
        for place in 0..self.clients.len() {
            for stream in 0..bulk.streams {
                let seed = payload::mix(self.run.next_sequence());
                let delay = bulk.interval * stream as u32 / bulk.streams as u32;
                let request = BulkRequest {
                    seed,
                    messages: bulk.messages,
                    interval: bulk.interval,
                    delay,
                };
                self.clients[place].begin_bulk(&mut self.run, request);
            }
            self.dirty.push(place);
        }
    }

    /// Waits until every bulk call has ended well.
    pub(crate) fn finish_bulk(&mut self) -> Result<()> {
        while self.clients.iter().any(|client| client.calls.iter().any(Call::is_bulk)) {
            self.turn()?;
        }
        Ok(())
    }

    /// Cancels the bulk calls.
    pub(crate) fn stop_bulk(&mut self) -> Result<()> {
        for (place, client) in self.clients.iter_mut().enumerate() {
            client.cancel_bulk();
            self.dirty.push(place);
        }
        self.flush()
    }

    /// Bytes of messages that bulk calls have brought and that were checked.
    pub(crate) fn bulk_bytes(&self) -> u64 {
        self.run.bulk_bytes
    }

    /// Opens one call on each connection that stays open after an answer, until the session is dropped.
    pub(crate) fn hold(&mut self) -> Result<()> {
        let goal = self.run.held + self.clients.len() as u64;
        for place in 0..self.clients.len() {
            self.clients[place].begin_hold(&mut self.run);
            self.dirty.push(place);
        }
        while self.run.held < goal {
            self.turn()?;
        }
        Ok(())
    }

    fn call(&mut self, place: usize, due: Option<Instant>) {
        self.run.to_start -= 1;
        self.clients[place].call(&mut self.run, due);
        self.dirty.push(place);
    }

    /// Writes what is to be written, waits for something to happen, and takes what came.
    fn turn(&mut self) -> Result<()> {
        self.flush()?;
        match self.poll.poll(&mut self.events, Some(self.patience)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        if self.events.is_empty() {
            let open: usize = self.clients.iter().map(|client| client.calls.len()).sum();
            bail!("nothing came for {:?} while {open} calls were open", self.patience);
        }
        for event in &self.events {
            let Some(place) = event.token().0.checked_sub(FIRST_CLIENT) else {
                // A periodic timer goes on only once it is read; that it has nothing to say by now is no matter.
                let _ = self.timer.wait();
                continue;
            };
            let client = &mut self.clients[place];
            if event.is_readable() || event.is_read_closed() {
                client.receive(&mut self.run, &mut self.buffer)?;
            }
            if client.wire.unwritten() > 0 {
                self.dirty.push(place);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for place in self.dirty.drain(..) {
            let wire = &mut self.clients[place].wire;
            if wire.unwritten() > 0 {
                wire.flush().context("cannot write to the proxy")?;
            }
        }
        Ok(())
    }
}

const TIMER: Token = Token(0);
const FIRST_CLIENT: usize = 1;
const CONNECTION_WINDOW: u32 = 1 << 20;
const METHODS: usize = 200;

/// What the calls of a session share.
struct Run {
    sequence: u64,
    /// Unary calls that are still to be started.
    to_start: u64,
    answered: u64,
    held: u64,
    bulk_bytes: u64,
    latencies: Vec<Duration>,
    words: Words,
}

impl Run {
    fn new(opening: Opening) -> Run {
        Run {
            sequence: 0,
            to_start: 0,
            answered: 0,
            held: 0,
            bulk_bytes: 0,
            latencies: Vec::new(),
            words: Words::new(opening),
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

/// The fields that requests are made of.
struct Words {
    style: Style,
    post: Field,
    http: Field,
    authority: Field,
    content_type: Field,
    te: Field,
    user_agent: Field,
    traceparent: Field,
    echo: Field,
    bulk: Field,
    hold: Field,
    methods: Vec<Field>,
}

impl Words {
    fn new(Opening { style, authority, .. }: Opening) -> Words {
        let method = |n: usize| format!("{}Service{:02}/Method{:03}", backend::CALLERS, n / 10, n);
        Words {
            style,
            post: Field::new(":method", "POST"),
            http: Field::new(":scheme", "http"),
            authority: Field::new(":authority", &authority.to_string()),
            content_type: Field::new("content-type", "application/grpc"),
            te: Field::new("te", "trailers"),
            user_agent: Field::new("user-agent", "grpc-go/1.85.0"),
            traceparent: Field::new("traceparent", ""),
            echo: Field::new(":path", backend::ECHO),
            bulk: Field::new(":path", backend::BULK),
            hold: Field::new(":path", backend::HOLD),
            methods: (0..METHODS).map(|n| Field::new(":path", &method(n))).collect(),
        }
    }
}

struct Client {
    wire: Wire,
    stream_window: u32,
    greeted: bool,
    calls: Vec<Call>,
    /// Calls that the other side's limits do not allow yet, with their times.
    waiting: VecDeque<Option<Instant>>,
    next_id: u32,
    token: Field,
}

struct Call {
    id: u32,
    headed: bool,
    kind: Kind,
}

enum Kind {
    Unary {
        expected: [u8; UNARY_FRAMED],
        got: usize,
        due: Option<Instant>,
    },
    Bulk {
        bytes: BulkBytes,
        end: Option<u64>,
        owed: u32,
    },
    Hold {
        expected: [u8; UNARY_FRAMED],
        got: usize,
    },
}

impl Call {
    fn is_bulk(&self) -> bool {
        matches!(self.kind, Kind::Bulk { .. })
    }
}

impl Client {
    fn new(socket: TcpStream, stream_window: u32, place: usize) -> Client {
        let mut opening = wire::PREFACE.to_vec();
        wire::append_settings(&[(2, 0), (4, stream_window)], &mut opening);
        let noise = (0..400 / 16).map(|n| format!("{:016x}", payload::mix((place << 16 | n) as u64)));
        Client {
            wire: Wire::new(socket, opening, CONNECTION_WINDOW),
            stream_window,
            greeted: false,
            calls: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 1,
            token: Field::new("authorization", &format!("Bearer {}", noise.collect::<String>())),
        }
    }

    fn call(&mut self, run: &mut Run, due: Option<Instant>) {
        if !self.waiting.is_empty() || !self.may_begin() {
            return self.waiting.push_back(due);
        }
        let sequence = run.next_sequence();
        let expected = payload::unary(sequence);
        let id = match run.words.style {
            Style::Plain => self.send_request(&run.words, &run.words.echo, &expected, true, None),
            Style::Callers => {
                let path = &run.words.methods[sequence as usize % METHODS];
                self.send_request(&run.words, path, &expected, true, Some(sequence))
            }
        };
        self.calls.push(Call {
            id,
            headed: false,
            kind: Kind::Unary { expected, got: 0, due },
        });
    }

    fn begin_bulk(&mut self, run: &mut Run, request: BulkRequest) {
        let body = payload::framed(&request.encode());
        let id = self.send_request(&run.words, &run.words.bulk, &body, true, None);
        let end = (request.messages > 0).then_some(request.messages * payload::BULK_FRAMED as u64);
        let kind = Kind::Bulk {
            bytes: BulkBytes::new(request.seed),
            end,
            owed: 0,
        };
        self.calls.push(Call {
            id,
            headed: false,
            kind,
        });
    }

    fn begin_hold(&mut self, run: &mut Run) {
        let expected = payload::unary(run.next_sequence());
        let id = self.send_request(&run.words, &run.words.hold, &expected, false, None);
        self.calls.push(Call {
            id,
            headed: false,
            kind: Kind::Hold { expected, got: 0 },
        });
    }

    fn cancel_bulk(&mut self) {
        const CANCEL: u32 = 8;
        for call in self.calls.extract_if(.., |call| call.is_bulk()) {
            wire::append_frame(kind::RST_STREAM, 0, call.id, &CANCEL.to_be_bytes(), &mut self.wire.out);
        }
    }

    fn may_begin(&self) -> bool {
        let len = UNARY_FRAMED as i64;
        self.wire.send_window >= len
            && self.wire.first_stream_window >= len
            && self.calls.len() < self.wire.max_streams as usize
    }

    /// Appends HEADERS and DATA. A traceparent made of `caller` marks what real callers send.
    fn send_request(&mut self, words: &Words, path: &Field, body: &[u8], end: bool, caller: Option<u64>) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        let Wire { encoder, out, .. } = &mut self.wire;
        wire::append_headers(0, id, out, |out| {
            encoder.begin(out);
            encoder.field(&words.post, out);
            encoder.field(&words.http, out);
            encoder.field(path, out);
            encoder.field(&words.authority, out);
            encoder.field(&words.content_type, out);
            if let Some(caller) = caller {
                encoder.field(&words.user_agent, out);
                encoder.field(&words.te, out);
                encoder.field(&self.token, out);
                encoder.unique(&words.traceparent, &traceparent(caller), out);
            } else {
                encoder.field(&words.te, out);
            }
        });
        let flags = if end { wire::END_STREAM } else { 0 };
        wire::append_frame(kind::DATA, flags, id, body, out);
        self.wire.send_window -= body.len() as i64;
        id
    }

    fn receive(&mut self, run: &mut Run, buffer: &mut [u8]) -> Result<()> {
        loop {
            let read = self.wire.read(buffer).context("cannot read from the proxy")?;
            let (len, more) = read.context("the proxy closed the connection")?;
            let mut bytes = &buffer[..len];
            while let Some(frame) = Frame::take(&mut bytes)? {
                self.frame(run, frame)?;
            }
            self.wire.keep(bytes);
            while !self.waiting.is_empty() && self.may_begin() {
                let due = self.waiting.pop_front().flatten();
                let others = std::mem::take(&mut self.waiting);
                self.call(run, due);
                self.waiting = others;
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn frame(&mut self, run: &mut Run, frame: Frame<'_>) -> Result<()> {
        match frame.kind {
            kind::HEADERS | kind::CONTINUATION => {
                if let Some((id, end, block)) = self.wire.header_block(frame)? {
                    self.headers(run, id, end, &block)?;
                }
            }
            kind::DATA => self.data(run, frame)?,
            kind::RST_STREAM => {
                if self.calls.iter().any(|call| call.id == frame.stream) {
                    bail!("a call was reset with code {}", wire::number(frame.payload)?);
                }
            }
            kind::WINDOW_UPDATE if frame.stream != 0 => {}
            _ => {
                self.greeted |= frame.kind == kind::SETTINGS;
                if let Changed::GoAway { last, code } = self.wire.connection_frame(frame)? {
                    bail!("the proxy says GOAWAY (last stream {last}, code {code}) in the middle of a run");
                }
            }
        }
        Ok(())
    }

    fn headers(&mut self, run: &mut Run, id: u32, end: bool, block: &HeaderBlock<'_>) -> Result<()> {
        let at = self.calls.iter().position(|call| call.id == id);
        let headed = at.is_some_and(|at| self.calls[at].headed);
        let (mut ok, mut status, mut text) = (headed, None, String::new());
        let see = |name: &[u8], value: &[u8]| match name {
            b":status" if value == b"200" => ok = true,
            b":status" => text = format!(":status {}", String::from_utf8_lossy(value)),
            b"grpc-status" => status = Some(value == b"0"),
            b"grpc-message" => text = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        };
        self.wire.decoder.decode(block.bytes(), see)?;
        let Some(at) = at else { return Ok(()) };
        ensure!(ok, "an answer that is not :status 200 ({text})");
        if status == Some(false) {
            bail!("a call failed: {text}");
        }
        self.calls[at].headed = true;
        if end {
            ensure!(status == Some(true), "an answer ended without grpc-status");
            self.ended(run, at)?;
        }
        Ok(())
    }

    fn data(&mut self, run: &mut Run, frame: Frame<'_>) -> Result<()> {
        self.wire.received_data(frame);
        let content = frame.content()?;
        let Some(call) = self.calls.iter_mut().find(|call| call.id == frame.stream) else {
            return Ok(());
        };
        ensure!(call.headed, "DATA before HEADERS");
        ensure!(!frame.has(wire::END_STREAM), "an answer ended without trailers");
        match &mut call.kind {
            Kind::Unary { expected, got, .. } | Kind::Hold { expected, got } => {
                let next = expected.get(*got..*got + content.len());
                ensure!(next == Some(content), "an answer is not what was sent");
                *got += content.len();
                if matches!(call.kind, Kind::Hold { got: UNARY_FRAMED, .. }) {
                    run.held += 1;
                }
            }
            Kind::Bulk { bytes, owed, .. } => {
                ensure!(
                    bytes.check(content),
                    "a bulk stream is wrong after {} bytes",
                    bytes.position()
                );
                run.bulk_bytes += content.len() as u64;
                *owed += frame.payload.len() as u32;
                if *owed >= self.stream_window / 2 {
                    wire::append_window_update(frame.stream, *owed, &mut self.wire.out);
                    *owed = 0;
                }
            }
        }
        Ok(())
    }

    fn ended(&mut self, run: &mut Run, at: usize) -> Result<()> {
        let call = self.calls.swap_remove(at);
        match call.kind {
            Kind::Unary { got, due, .. } => {
                ensure!(
                    got == UNARY_FRAMED,
                    "an answer of {got} bytes instead of {UNARY_FRAMED}"
                );
                run.answered += 1;
                if let Some(due) = due {
                    run.latencies.push(due.elapsed());
                } else if run.to_start > 0 {
                    run.to_start -= 1;
                    self.call(run, None);
                }
            }
            Kind::Bulk { bytes, end, .. } => {
                ensure!(
                    Some(bytes.position()) == end,
                    "a bulk stream ended after {} bytes",
                    bytes.position()
                );
            }
            Kind::Hold { .. } => bail!("a call that was to stay open has ended"),
        }
        Ok(())
    }
}

/// A trace context that no other call has; one in twenty is recorded, as where traces begin by the sidecar's default.
fn traceparent(call: u64) -> [u8; 55] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-01";
    let mut hex = |from: usize, number: u64| {
        for (place, byte) in number.to_be_bytes().iter().enumerate() {
            text[from + 2 * place] = DIGITS[usize::from(byte >> 4)];
            text[from + 2 * place + 1] = DIGITS[usize::from(byte & 15)];
        }
    };
    let mixed = payload::mix(call);
    hex(3, mixed);
    hex(19, payload::mix(mixed));
    hex(36, payload::mix(!mixed));
    if !mixed.is_multiple_of(20) {
        text[54] = b'0';
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;

    fn session(backend: &Backend, connections: usize, style: Style) -> Session {
        Session::open(
            backend.address(),
            Opening {
                authority: backend.address(),
                connections,
                style,
                stream_window: wire::FIRST_WINDOW,
            },
        )
        .expect("the backend listens")
    }

    #[test]
    fn every_kind_of_call_is_answered_and_checked() {
        let backend = Backend::start(0).expect("a backend");
        for style in [Style::Plain, Style::Callers] {
            let mut session = session(&backend, 3, style);
            session.saturate(16, 5_000).expect("5,000 calls");
            session.batches(16, 20).expect("20 batches");
            let latencies = session
                .paced(Duration::from_micros(200), 100)
                .expect("100 calls at a pace");
            assert_eq!(latencies.len(), 100);
            assert_eq!(session.run.answered, 5_000 + 3 * 16 * 20 + 100);
        }
    }

    #[test]
    fn bulk_is_whole_and_stops_when_told_while_calls_go_on() {
        let backend = Backend::start(0).expect("a backend");
        let mut session = session(&backend, 2, Style::Plain);
        session.start_bulk(Bulk {
            streams: 3,
            messages: 100,
            interval: Duration::ZERO,
        });
        session.finish_bulk().expect("all of the bulk");
        assert_eq!(session.bulk_bytes(), 2 * 3 * 100 * payload::BULK_FRAMED as u64);
        session.start_bulk(Bulk {
            streams: 2,
            messages: 0,
            interval: Duration::from_micros(500),
        });
        session.paced(Duration::from_millis(1), 50).expect("calls beside bulk");
        session.stop_bulk().expect("a cancel");
        session.saturate(4, 100).expect("calls after bulk");
        assert!(session.clients.iter().all(|client| client.calls.is_empty()));
    }

    #[test]
    fn a_call_without_its_callers_headers_is_a_failure() {
        let backend = Backend::start(0).expect("a backend");
        let mut session = session(&backend, 1, Style::Plain);
        session.run.words.echo = Field::new(":path", "/callers.Service00/Method000");
        let error = session.saturate(1, 1).expect_err("the backend refuses it");
        assert!(error.to_string().contains("without what its caller sent"), "{error}");
    }

    #[test]
    fn held_calls_stay_open() {
        let backend = Backend::start(0).expect("a backend");
        let mut session = session(&backend, 20, Style::Plain);
        session.hold().expect("20 held calls");
        assert!(session.clients.iter().all(|client| client.calls.len() == 1));
    }

    #[test]
    fn a_traceparent_is_well_formed_and_its_own() {
        let text = String::from_utf8(traceparent(5).to_vec()).expect("text");
        assert!(
            text.starts_with("00-") && text.ends_with("-00") && text.len() == 55,
            "{text}"
        );
        let recorded = (0..10_000).filter(|call| traceparent(*call).ends_with(b"-01"));
        assert!((400..600).contains(&recorded.count()), "one in twenty is recorded");
        assert_ne!(traceparent(1), traceparent(2));
    }
}
