//! A relay between two engines without sockets, and players at both ends: a model of flow control, checked turn by turn.
//!
//! ```text
//!   asking player <-> [ engine, server role | relay | engine, client role ] <-> answering player
//! ```
//!
//! A player keeps to the protocol and keeps its own books: it never sends what it was not granted, and fails the test when
//! the engine does. Every byte of every stream is a function of the stream, the direction and its place.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::peer::{self, Frame, data, padded_data, ping, pong, rst, settings_ack, window_update};
use crate::exchange::credit_due;
use crate::http2::connection::{Connection, Event, Head, Shared};
use crate::http2::frame::{
    ACK, DEFAULT_WINDOW, END_STREAM, HEADER_BYTES, Header, MAX_PAYLOAD, PADDED, PREFACE, Reason,
};
use crate::http2::frame::{kind, setting};
use crate::http2::hpack::{Decoder, Fields, Interner, Limits, Name};
use crate::http2::settings::Settings;
use crate::http2::stream::{Half, StreamKey};

/// Which end of the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where the requests come from.
    Down,
    /// Where they go.
    Up,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Down => Side::Up,
            Side::Up => Side::Down,
        }
    }
}

/// Two engines, and the pairs of streams between them.
pub(crate) struct Relay {
    pub(crate) shared: Shared,
    pub(crate) down: Connection,
    pub(crate) up: Connection,
    pub(crate) now: Instant,
    pairs: Vec<Pair>,
}

#[derive(Clone, Copy)]
struct Pair {
    down: StreamKey,
    up: Option<StreamKey>,
    answered: bool,
}

impl Relay {
    pub(crate) fn new(settings: Settings, budget: u64) -> Relay {
        let now = Instant::now();
        let mut shared = Shared::new(budget);
        let settings = Arc::new(settings);
        Relay {
            down: Connection::server(settings.clone(), true, now, &mut shared),
            up: Connection::client(settings, false, now, &mut shared),
            shared,
            now,
            pairs: Vec::new(),
        }
    }

    /// Bytes of the player at `side`, and the end of the turn.
    pub(crate) fn turn(&mut self, side: Side, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            let from = match side {
                Side::Down => &mut self.down,
                Side::Up => &mut self.up,
            };
            let event = from
                .receive(&mut input, &mut self.shared, self.now)
                .unwrap_or_else(|fatal| panic!("{side:?} kept to the protocol: {fatal}"));
            match (event, side) {
                (None, _) => break,
                (Some(event), Side::Down) => self.asked(event),
                (Some(event), Side::Up) => self.answered(event),
            }
        }
        self.pump();
        self.check();
    }

    fn asked(&mut self, event: Event<'_>) {
        match event {
            Event::Headers {
                key,
                head: Head::Request,
                end,
                ..
            } => {
                let user = self.pairs.len() as u64;
                self.down.set_user(key, user);
                let up = self.up.open(user, false);
                self.pairs.push(Pair {
                    down: key,
                    up,
                    answered: false,
                });
                match up {
                    Some(up) => {
                        let fields = self.shared.take_fields(Box::default());
                        self.up.send_headers(up, &fields, false, end, &mut self.shared);
                        self.shared.take_fields(fields);
                    }
                    None => self.down.reset(key, Reason::REFUSED_STREAM, &mut self.shared),
                }
            }
            Event::Headers { user, .. } => {
                if let Some(up) = self.pairs[user as usize].up {
                    let mut fields = self.shared.take_fields(Box::default());
                    self.up.send_trailers(up, &mut fields, &mut self.shared);
                    self.shared.take_fields(fields);
                }
            }
            Event::Data { user, bytes, end, .. } => {
                if let Some(up) = self.pairs[user as usize].up {
                    self.up.send_data(up, bytes, end, &mut self.shared);
                }
                self.refill(user, Side::Down);
            }
            Event::Reset {
                user, reason, fault, ..
            } => {
                assert_eq!(fault, None, "the player kept to the protocol");
                if let Some(up) = self.pairs[user as usize].up.take() {
                    self.up.reset(up, reason, &mut self.shared);
                }
            }
            Event::Room { user } => self.refill(user, Side::Up),
            Event::Settings { rooms: true } => self.refill_all(Side::Up),
            Event::Lowered => self.refill_all(Side::Down),
            // The player does not count its streams.
            Event::Refused { wrong: None, .. } => {}
            Event::Settings { .. } | Event::Pong(_) | Event::GoAway { .. } => {}
            Event::Refused { .. } => panic!("{event:?}"),
        }
    }

    fn answered(&mut self, event: Event<'_>) {
        match event {
            Event::Headers { user, head, end, .. } => {
                let pair = &mut self.pairs[user as usize];
                pair.answered |= end;
                let down = pair.down;
                let mut fields = self.shared.take_fields(Box::default());
                match head {
                    Head::Trailers => self.down.send_trailers(down, &mut fields, &mut self.shared),
                    head => {
                        let informational = matches!(head, Head::Informational(_));
                        self.down
                            .send_headers(down, &fields, informational, end, &mut self.shared);
                    }
                }
                self.shared.take_fields(fields);
                self.refill(user, Side::Up);
            }
            Event::Data { user, bytes, end, .. } => {
                let pair = &mut self.pairs[user as usize];
                pair.answered |= end;
                self.down.send_data(pair.down, bytes, end, &mut self.shared);
                self.refill(user, Side::Up);
            }
            Event::Reset {
                user, reason, fault, ..
            } => {
                assert_eq!(fault, None, "the player kept to the protocol");
                let pair = &mut self.pairs[user as usize];
                pair.up = None;
                if pair.answered {
                    self.down.reset_after_end(pair.down, reason, &mut self.shared);
                } else {
                    self.down.reset(pair.down, reason, &mut self.shared);
                }
            }
            Event::Room { user } => self.refill(user, Side::Down),
            Event::Settings { rooms: true } => self.refill_all(Side::Down),
            Event::Lowered => self.refill_all(Side::Up),
            Event::Settings { .. } | Event::Pong(_) | Event::GoAway { .. } => {}
            Event::Refused { .. } => panic!("{event:?}"),
        }
    }

    pub(crate) fn pump(&mut self) {
        for side in [Side::Down, Side::Up, Side::Down] {
            let mut moved = Vec::new();
            match side {
                Side::Down => self.down.pump(&mut self.shared, &mut moved),
                Side::Up => self.up.pump(&mut self.shared, &mut moved),
            }
            for user in moved {
                self.refill(user, side.other());
            }
        }
    }

    fn refill_all(&mut self, from: Side) {
        for user in 0..self.pairs.len() as u64 {
            self.refill(user, from);
        }
    }

    /// As the exchange does it: the sender at `from` gets what the reader on the other side has granted.
    fn refill(&mut self, user: u64, from: Side) {
        let pair = self.pairs[user as usize];
        let Some(up) = pair.up else { return };
        let (sender, reader, sender_key, reader_key) = match from {
            Side::Down => (&mut self.down, &self.up, pair.down, up),
            Side::Up => (&mut self.up, &self.down, up, pair.down),
        };
        let Some(window) = sender.recv_window(sender_key) else {
            return;
        };
        let missing = credit_due(sender, window, reader, reader_key);
        if missing > 0 {
            sender.grant(sender_key, missing as u32, &mut self.shared);
        }
    }

    /// No deadlock, and nothing lost, at the end of a turn (engine.md).
    fn check(&self) {
        for pair in &self.pairs {
            let Some(up) = pair.up else { continue };
            for (sender, sender_key, reader, reader_key) in [
                (&self.down, pair.down, &self.up, up),
                (&self.up, up, &self.down, pair.down),
            ] {
                if let Some(stream) = reader.streams.get(reader_key) {
                    let queued = reader.ready.contains(&reader_key);
                    assert_eq!(stream.scheduled, queued, "who is marked as taking turns takes turns");
                    if !stream.held.is_empty() {
                        assert!(queued || stream.send_window <= 0, "held bytes are forgotten");
                    }
                    assert!(
                        !stream.held.is_empty() || !stream.is_ending(),
                        "an end waits behind nothing"
                    );
                }
                let (Some(window), true) = (sender.recv_window(sender_key), reader.is_open(reader_key)) else {
                    continue;
                };
                let stream = reader.streams.get(reader_key).expect("it is open");
                if stream.ours == Half::Ended {
                    continue;
                }
                assert!(
                    sender.parser.is_inside_data() || window > 0 || !stream.held.is_empty() || stream.send_window <= 0,
                    "the sender waits for credit, the reader for bytes: window {window}, room {}",
                    stream.send_window
                );
            }
        }
        for conn in [&self.down, &self.up] {
            let waits_for_room = conn.send_window <= 0 || conn.output_room() == 0;
            assert!(
                conn.ready.is_empty() || conn.wants_pump() || waits_for_room,
                "turns are due, and nobody takes them"
            );
            assert!(conn.recv_window > 0, "the connection's window is restored");
        }
    }

    /// Whether nothing is left of any stream, and of what they held.
    pub(crate) fn is_empty(&self) -> bool {
        self.down.open_streams() == 0 && self.up.open_streams() == 0
    }

    /// Both connections end: nothing of the budget and no field's reference may stay behind.
    pub(crate) fn end(mut self) {
        self.down.release(&mut self.shared);
        self.up.release(&mut self.shared);
        assert_eq!(self.shared.budget.used(), 0, "the budget is whole again");
        self.shared.release();
        assert_eq!(self.shared.interner.live(), 0, "no field is held any more");
    }

    pub(crate) fn engine(&mut self, side: Side) -> (&mut Connection, &mut Shared) {
        match side {
            Side::Down => (&mut self.down, &mut self.shared),
            Side::Up => (&mut self.up, &mut self.shared),
        }
    }
}

/// How far a half of a player's stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Nothing,
    Head,
    Ended,
}

/// A stream as a player sees it.
pub(crate) struct Seen {
    pub(crate) tag: u32,
    pub(crate) mine: Said,
    pub(crate) theirs: Said,
    pub(crate) sent: u64,
    pub(crate) got: u64,
    /// Somebody reset it.
    pub(crate) reset: bool,
    reset_by_me: bool,
    /// I said all that I had to say.
    finished: bool,
    may_send: i64,
    they_may: i64,
}

/// A peer that keeps to the protocol, and keeps books.
pub(crate) struct Player {
    side: Side,
    /// Bytes for the engine.
    pub(crate) out: VecDeque<u8>,
    inbox: Vec<u8>,
    decoder: Decoder,
    interner: Interner,
    pub(crate) streams: BTreeMap<u32, Seen>,
    next: u32,
    may_send: i64,
    pub(crate) they_may: i64,
    /// What its streams may send at first.
    first: i64,
    /// What the engine's streams may send at first, as far as it acknowledged.
    announced: i64,
    unacknowledged: VecDeque<i64>,
}

impl Player {
    pub(crate) fn new(side: Side, initial_window: u32) -> Player {
        let mut player = Player {
            side,
            out: VecDeque::new(),
            inbox: Vec::new(),
            decoder: Decoder::new(4_096),
            interner: Interner::new(),
            streams: BTreeMap::new(),
            next: 1,
            may_send: DEFAULT_WINDOW.into(),
            they_may: DEFAULT_WINDOW.into(),
            first: DEFAULT_WINDOW.into(),
            announced: DEFAULT_WINDOW.into(),
            unacknowledged: VecDeque::new(),
        };
        if side == Side::Down {
            player.out.extend(PREFACE);
        }
        player.announce(initial_window);
        player
    }

    /// SETTINGS with another initial window.
    pub(crate) fn announce(&mut self, initial_window: u32) {
        self.unacknowledged.push_back(initial_window.into());
        self.say(&peer::settings(&[(setting::INITIAL_WINDOW_SIZE, initial_window)]));
    }

    fn say(&mut self, frame: &Frame) {
        self.out.extend(peer::bytes_of(std::slice::from_ref(frame)));
    }

    /// The streams of which something can still be said.
    pub(crate) fn open(&self) -> Vec<u32> {
        self.streams
            .iter()
            .filter(|(_, s)| s.mine != Said::Ended || s.theirs != Said::Ended)
            .map(|(id, _)| *id)
            .collect()
    }

    pub(crate) fn ask(&mut self, tag: u32, end: bool) {
        let id = self.next;
        self.next += 2;
        let path = format!("/t/{tag}");
        let list = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path.as_str()),
            ("x-tag", "same"),
        ];
        self.say(&peer::headers(id, &list, end));
        self.remember(id, tag, if end { Said::Ended } else { Said::Head }, Said::Nothing);
    }

    fn remember(&mut self, id: u32, tag: u32, mine: Said, theirs: Said) {
        let seen = Seen {
            tag,
            mine,
            theirs,
            sent: 0,
            got: 0,
            reset: false,
            reset_by_me: false,
            finished: mine == Said::Ended,
            may_send: self.first,
            they_may: self.announced,
        };
        self.streams.insert(id, seen);
    }

    /// What it may send on the stream now.
    pub(crate) fn room(&self, id: u32) -> i64 {
        self.streams
            .get(&id)
            .map_or(0, |stream| stream.may_send.min(self.may_send))
    }

    /// What the engine may send on the stream now, as this reader has granted it.
    pub(crate) fn granted(&self, id: u32) -> i64 {
        self.streams.get(&id).map_or(0, |stream| stream.they_may)
    }

    /// The head of a response, if it is due.
    pub(crate) fn answer(&mut self, id: u32, informational: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if self.side == Side::Down || stream.mine != Said::Nothing {
            return;
        }
        let status = if informational { "103" } else { "200" };
        if !informational {
            stream.mine = Said::Head;
        }
        self.say(&peer::headers(id, &[(":status", status)], false));
    }

    /// Up to `n` bytes of payload, as far as they were granted.
    pub(crate) fn send(&mut self, id: u32, n: usize, padding: Option<u8>, end: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.mine != Said::Head {
            return;
        }
        let extra = padding.map_or(0, |padding| 1 + i64::from(padding));
        let room = stream.may_send.min(self.may_send) - extra;
        if room < 0 {
            return;
        }
        let n = (n as i64).min(room).min(MAX_PAYLOAD as i64 - extra) as usize;
        let bytes = payload(stream.tag, self.side, stream.sent, n);
        stream.sent += n as u64;
        stream.may_send -= n as i64 + extra;
        self.may_send -= n as i64 + extra;
        if end {
            stream.mine = Said::Ended;
            stream.finished = true;
        }
        let frame = match padding {
            Some(padding) => padded_data(id, &bytes, padding, end),
            None => data(id, &bytes, end),
        };
        self.say(&frame);
    }

    pub(crate) fn trail(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.mine == Said::Head {
            stream.mine = Said::Ended;
            stream.finished = true;
            self.say(&peer::trailers(id));
        }
    }

    pub(crate) fn reset(&mut self, id: u32, reason: Reason) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.mine == Said::Ended && stream.theirs == Said::Ended {
            return;
        }
        stream.end();
        stream.reset_by_me = true;
        self.say(&rst(id, reason));
    }

    pub(crate) fn grant(&mut self, id: u32, n: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.theirs != Said::Ended && n > 0 {
            stream.they_may += i64::from(n);
            self.say(&window_update(id, n));
        }
    }

    pub(crate) fn grant_all(&mut self, n: u32) {
        if n > 0 && self.they_may < 1 << 24 {
            self.they_may += i64::from(n);
            self.say(&window_update(0, n));
        }
    }

    pub(crate) fn ping(&mut self) {
        self.say(&ping(*b"measured"));
    }

    /// Bytes of the engine.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        if rest.starts_with(PREFACE) {
            rest = &rest[PREFACE.len()..];
        } else if PREFACE.starts_with(rest) {
            self.inbox = inbox;
            return;
        }
        while let Some(header) = rest.first_chunk() {
            let header = Header::parse(header);
            let whole = HEADER_BYTES + header.len as usize;
            if rest.len() < whole {
                break;
            }
            self.on_frame(header, &rest[HEADER_BYTES..whole]);
            rest = &rest[whole..];
        }
        let read = inbox.len() - rest.len();
        inbox.drain(..read);
        self.inbox = inbox;
    }

    fn on_frame(&mut self, header: Header, payload: &[u8]) {
        let number = || u32::from_be_bytes(payload[..4].try_into().expect("a number"));
        match header.kind {
            kind::SETTINGS if header.has(ACK) => {
                let now = self.unacknowledged.pop_front().expect("an acknowledgement was due");
                for stream in self.streams.values_mut() {
                    stream.they_may += now - self.announced;
                }
                self.announced = now;
            }
            kind::SETTINGS => {
                for value in payload.chunks(6) {
                    if value[..2] == setting::INITIAL_WINDOW_SIZE.to_be_bytes() {
                        let first = u32::from_be_bytes(value[2..].try_into().expect("a number")).into();
                        for stream in self.streams.values_mut() {
                            stream.may_send += first - self.first;
                        }
                        self.first = first;
                    }
                }
                self.say(&settings_ack());
            }
            kind::HEADERS => self.on_headers(header, payload),
            kind::DATA => self.on_data(header, payload),
            kind::WINDOW_UPDATE if header.stream == 0 => self.may_send += i64::from(number()),
            kind::WINDOW_UPDATE => {
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.may_send += i64::from(number());
                }
            }
            kind::RST_STREAM => {
                let stream = self.streams.get_mut(&header.stream).expect("a stream that there was");
                stream.end();
            }
            kind::PING if header.has(ACK) => {}
            kind::PING => self.say(&pong(payload.try_into().expect("8 bytes"))),
            other => panic!("{:?} heard a frame of kind {other}", self.side),
        }
    }

    fn on_headers(&mut self, header: Header, block: &[u8]) {
        let mut fields = Fields::new();
        let limits = Limits {
            list_bytes: 1 << 20,
            fields: 1_000,
        };
        self.decoder
            .decode(block, &limits, &mut self.interner, &mut fields)
            .expect("blocks come in the order in which they were encoded");
        let end = header.has(END_STREAM);
        if self.side == Side::Up && !self.streams.contains_key(&header.stream) {
            assert!(header.stream >= self.next, "identifiers rise");
            self.next = header.stream + 2;
            let path = fields.find(Name::Path, &self.interner).expect("a path").value;
            let tag = std::str::from_utf8(&path[3..]).expect("text").parse().expect("a tag");
            self.remember(
                header.stream,
                tag,
                Said::Nothing,
                if end { Said::Ended } else { Said::Head },
            );
        } else {
            let informational = fields
                .find(Name::Status, &self.interner)
                .is_some_and(|status| status.value[0] == b'1');
            let stream = self.streams.get_mut(&header.stream).expect("a stream of ours");
            if !stream.reset {
                assert_ne!(stream.theirs, Said::Ended, "nothing comes behind an end");
                assert!(stream.theirs == Said::Nothing || end, "trailers end a stream");
                if end {
                    stream.theirs = Said::Ended;
                } else if !informational {
                    stream.theirs = Said::Head;
                }
            }
        }
        fields.clear(&mut self.interner);
    }

    fn on_data(&mut self, header: Header, bytes: &[u8]) {
        assert!(!header.has(PADDED), "we pad nothing");
        self.they_may -= bytes.len() as i64;
        assert!(self.they_may >= 0, "{:?}: more than the connection's window", self.side);
        let stream = self.streams.get_mut(&header.stream).expect("a stream that there was");
        stream.they_may -= bytes.len() as i64;
        if stream.reset {
            return;
        }
        assert!(
            bytes.is_empty() || stream.they_may >= 0,
            "{:?}: more than the window of stream {}",
            self.side,
            header.stream
        );
        assert_eq!(stream.theirs, Said::Head, "DATA between head and end");
        let expected = payload(stream.tag, self.side.other(), stream.got, bytes.len());
        assert!(bytes == expected, "a foreign byte on stream {}", header.stream);
        stream.got += bytes.len() as u64;
        if header.has(END_STREAM) {
            stream.theirs = Said::Ended;
        }
    }
}

impl Seen {
    fn end(&mut self) {
        self.reset = true;
        self.mine = Said::Ended;
        self.theirs = Said::Ended;
    }
}

/// The bytes of a stream: no two streams or directions have the same.
fn payload(tag: u32, from: Side, at: u64, n: usize) -> Vec<u8> {
    let seed = u64::from(tag) << 1 | u64::from(from == Side::Up);
    (at..at + n as u64)
        .map(|at| {
            (seed
                .wrapping_mul(0x9E37_79B9)
                .wrapping_add(at.wrapping_mul(0x85EB_CA6B))
                >> 7) as u8
        })
        .collect()
}

/// The whole stage.
pub(crate) struct Stage {
    pub(crate) relay: Relay,
    pub(crate) asking: Player,
    pub(crate) answering: Player,
    tags: u32,
}

impl Stage {
    pub(crate) fn new(settings: Settings, asking_window: u32, answering_window: u32, budget: u64) -> Stage {
        Stage {
            relay: Relay::new(settings, budget),
            asking: Player::new(Side::Down, asking_window),
            answering: Player::new(Side::Up, answering_window),
            tags: 0,
        }
    }

    pub(crate) fn ask(&mut self, end: bool) {
        self.tags += 1;
        self.asking.ask(self.tags, end);
    }

    pub(crate) fn player(&mut self, side: Side) -> &mut Player {
        match side {
            Side::Down => &mut self.asking,
            Side::Up => &mut self.answering,
        }
    }

    /// Up to `n` bytes of a player reach the relay.
    pub(crate) fn deliver(&mut self, from: Side, n: usize) {
        let out = &mut self.player(from).out;
        let n = n.min(out.len());
        let bytes: Vec<u8> = out.drain(..n).collect();
        self.relay.turn(from, &bytes);
    }

    /// A player's socket takes up to `n` bytes of the relay.
    pub(crate) fn write(&mut self, to: Side, n: usize) {
        let (conn, shared) = self.relay.engine(to);
        let n = n.min(conn.output().len());
        let bytes = conn.output()[..n].to_vec();
        conn.written(n, shared);
        self.player(to).hear(&bytes);
        self.relay.pump();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.relay.now += time;
    }

    /// Everybody reads, and says what is still to be said: nothing may stay behind.
    pub(crate) fn finish(&mut self) {
        for round in 0..2_000 {
            for side in [Side::Down, Side::Up] {
                let player = self.player(side);
                player.grant_all(1 << 20);
                for id in player.open() {
                    if round % 10 == 0 {
                        player.grant(id, 100_000);
                    }
                    player.answer(id, false);
                    player.send(id, 1_000, None, true);
                }
                self.deliver(side, usize::MAX);
                self.write(Side::Down, usize::MAX);
                self.write(Side::Up, usize::MAX);
            }
            let over = self.asking.open().is_empty() && self.answering.open().is_empty();
            if over && self.relay.is_empty() {
                return self.compare();
            }
        }
        panic!(
            "streams {:?} below and {:?} above do not end",
            self.asking.open(),
            self.answering.open()
        );
    }

    /// What one player sent is what the other got, unless somebody reset the stream.
    fn compare(&self) {
        for above in self.answering.streams.values() {
            let below = self
                .asking
                .streams
                .values()
                .find(|below| below.tag == above.tag)
                .expect("somebody asked");
            if !below.reset && !above.reset {
                assert_eq!((below.sent, above.sent), (above.got, below.got), "tag {}", above.tag);
            }
            assert!(below.got <= above.sent && above.got <= below.sent);
            // RFC 9113, 8.1: a whole answer is not lost to a reset that came behind it.
            if above.finished && !below.reset_by_me {
                assert_eq!(below.got, above.sent, "the answer of tag {} was whole", above.tag);
            }
        }
        for below in self.asking.streams.values() {
            let reached = self.answering.streams.values().any(|above| above.tag == below.tag);
            assert!(reached || below.reset, "tag {} never came", below.tag);
        }
    }

    /// The books of both ends of both connections agree, once everything was delivered.
    pub(crate) fn audit(&mut self) {
        for _ in 0..3 {
            for side in [Side::Down, Side::Up] {
                self.deliver(side, usize::MAX);
                self.write(side, usize::MAX);
                self.write(side.other(), usize::MAX);
            }
        }
        for (conn, player) in [(&self.relay.down, &self.asking), (&self.relay.up, &self.answering)] {
            if !conn.output().is_empty() || !player.out.is_empty() {
                continue;
            }
            assert_eq!(conn.recv_window, player.may_send, "credit of the connection");
            assert_eq!(conn.send_window, player.they_may, "credit of the player's connection");
            for (id, seen) in &player.streams {
                let Some(stream) = conn.by_id(*id).and_then(|key| conn.streams.get(key)) else {
                    continue;
                };
                if stream.theirs != Half::Ended {
                    assert_eq!(stream.recv_window, seen.may_send, "credit of stream {id}");
                }
                if stream.ours != Half::Ended {
                    assert_eq!(stream.send_window, seen.they_may, "credit of the player's stream {id}");
                }
            }
        }
    }
}

#[test]
fn a_single_call_crosses_and_leaves_nothing_behind() {
    let mut stage = Stage::new(Settings::default(), 65_535, 65_535, 1 << 30);
    stage.ask(false);
    stage.audit();
    stage.asking.send(1, 1_000, Some(9), false);
    stage.audit();
    stage.answering.answer(1, true);
    stage.answering.answer(1, false);
    stage.audit();
    assert_eq!(stage.answering.streams[&1].got, 1_000);
    stage.finish();
    assert_eq!(stage.asking.streams[&1].got, 1_000);
    stage.relay.end();
}
