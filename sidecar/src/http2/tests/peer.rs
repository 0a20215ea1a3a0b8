//! The vocabulary of these tests: frames as a peer writes them, and what the engine makes of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::http2::connection::{Connection, Event, Fatal, Head, Shared, StreamFault};
use crate::http2::frame::{self, ACK, END_HEADERS, END_STREAM, HEADER_BYTES, Header, PADDED, PREFACE, Reason, kind};
use crate::http2::hpack::{Decoder, Fields, Interner, Limits};
use crate::http2::message::Wrong;
use crate::http2::settings::Settings;
use crate::http2::stream::StreamKey;

/// A frame, on its way to the engine or from it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// What the engine said of the peer's frames, owned; the user of a stream is always its identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Headers {
        id: u64,
        head: Head,
        end: bool,
        fields: Vec<(String, String)>,
    },
    Data {
        id: u64,
        bytes: Vec<u8>,
        end: bool,
    },
    Reset {
        id: u64,
        reason: Reason,
        fault: Option<StreamFault>,
        theirs_ended: bool,
    },
    Room(u64),
    Settings {
        rooms: bool,
    },
    Lowered,
    GoAway {
        last: u32,
        reason: Reason,
    },
    Pong([u8; 8]),
    Refused {
        reason: Reason,
        wrong: Option<Wrong>,
    },
    Fatal(Reason),
}

/// The engine under test, seen from its peer.
pub(crate) struct End {
    pub(crate) conn: Connection,
    pub(crate) shared: Shared,
    pub(crate) now: Instant,
    /// Why the connection ended.
    pub(crate) fatal: Option<Fatal>,
    /// Whether the owner takes back, at each GOAWAY, what was not processed; and what that was.
    pub(crate) takes_back: bool,
    pub(crate) unprocessed: Vec<u64>,
    decoder: Decoder,
    interner: Interner,
}

/// A budget that no test reaches that is not about budgets.
const BUDGET: u64 = 1 << 30;

impl End {
    /// An engine that answers, whose peer has said the preface and SETTINGS, and acknowledged ours.
    pub(crate) fn server() -> End {
        End::server_with(Settings::default())
    }

    pub(crate) fn server_with(settings: Settings) -> End {
        End::greeted(End::fresh_server(settings, false), Some(PREFACE.to_vec()))
    }

    /// An engine that answers this pod's own application.
    pub(crate) fn server_of_the_application() -> End {
        End::greeted(End::fresh_server(Settings::default(), true), Some(PREFACE.to_vec()))
    }

    /// An engine that asks, and whose peer has said SETTINGS and acknowledged ours.
    pub(crate) fn client() -> End {
        End::client_with(Settings::default())
    }

    pub(crate) fn client_with(settings: Settings) -> End {
        End::greeted(End::fresh_client(settings), None)
    }

    /// An engine that answers, before the peer said anything.
    pub(crate) fn fresh_server(settings: Settings, own_application: bool) -> End {
        let (mut shared, now) = (Shared::new(BUDGET), Instant::now());
        let conn = Connection::server(Arc::new(settings), own_application, now, &mut shared);
        End::new(conn, shared, now)
    }

    /// An engine that asks, before the peer said anything.
    pub(crate) fn fresh_client(settings: Settings) -> End {
        let (mut shared, now) = (Shared::new(BUDGET), Instant::now());
        let conn = Connection::client(Arc::new(settings), false, now, &mut shared);
        End::new(conn, shared, now)
    }

    fn new(conn: Connection, shared: Shared, now: Instant) -> End {
        End {
            conn,
            shared,
            now,
            fatal: None,
            takes_back: false,
            unprocessed: Vec::new(),
            decoder: Decoder::new(4_096),
            interner: Interner::new(),
        }
    }

    fn greeted(mut end: End, preface: Option<Vec<u8>>) -> End {
        end.feed_bytes(&preface.unwrap_or_default());
        assert_eq!(
            end.feed(&[settings(&[]), settings_ack()]),
            [Seen::Settings { rooms: false }]
        );
        end.said();
        end
    }

    /// The peer's frames, in one piece.
    pub(crate) fn feed(&mut self, frames: &[Frame]) -> Vec<Seen> {
        self.feed_bytes(&bytes_of(frames))
    }

    /// The peer's bytes, in one piece. Pieces of one frame's payload are seen as one.
    pub(crate) fn feed_bytes(&mut self, bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        self.feed_into(bytes, &mut seen);
        seen
    }

    pub(crate) fn feed_into(&mut self, mut input: &[u8], seen: &mut Vec<Seen>) {
        while self.fatal.is_none() {
            match self.conn.receive(&mut input, &mut self.shared, self.now) {
                Ok(None) => {
                    assert!(input.is_empty(), "the engine left input without an event");
                    return;
                }
                Ok(Some(event)) => {
                    let event = own(event, &mut self.conn, &self.shared);
                    if self.takes_back && matches!(event, Seen::GoAway { .. }) {
                        self.unprocessed.extend(self.conn.take_unprocessed(&mut self.shared));
                    }
                    push(seen, event);
                }
                Err(fatal) => {
                    self.fatal = Some(fatal);
                    seen.push(Seen::Fatal(fatal.reason));
                }
            }
        }
    }

    /// What stands in the output, frame by frame. The socket takes it.
    pub(crate) fn said(&mut self) -> Vec<Frame> {
        let output = self.conn.output().to_vec();
        self.conn.written(output.len(), &mut self.shared);
        let mut rest = &output[..];
        if rest.starts_with(PREFACE) {
            rest = &rest[PREFACE.len()..];
        }
        frames_of(rest)
    }

    /// What stands in the output without the grants of credit for the connection, which most tests are not about.
    pub(crate) fn said_but_credit(&mut self) -> Vec<Frame> {
        let mut said = self.said();
        said.retain(|frame| frame.kind != kind::WINDOW_UPDATE || frame.stream != 0);
        said
    }

    /// The fields of a HEADERS frame that the engine said, in the order in which it said them.
    pub(crate) fn read(&mut self, headers: &Frame) -> Vec<(String, String)> {
        assert_eq!(headers.kind, kind::HEADERS);
        let limits = Limits {
            list_bytes: 1 << 20,
            fields: 10_000,
        };
        let mut fields = Fields::new();
        self.decoder
            .decode(&headers.payload, &limits, &mut self.interner, &mut fields)
            .expect("the engine's blocks can be decoded");
        let texts = texts(&fields, &self.interner);
        fields.clear(&mut self.interner);
        texts
    }

    pub(crate) fn key(&self, id: u32) -> StreamKey {
        self.conn.by_id(id).expect("the stream is open")
    }

    pub(crate) fn is_open(&self, id: u32) -> bool {
        self.conn.by_id(id).is_some()
    }

    /// Asks (client role): POST, and END_STREAM if `end`. Returns the stream's identifier.
    pub(crate) fn ask(&mut self, end: bool) -> u32 {
        self.ask_by("POST", end)
    }

    pub(crate) fn ask_by(&mut self, method: &str, end: bool) -> u32 {
        let id = self.conn.next_ours;
        let key = self.conn.open(id.into(), method == "HEAD").expect("there is capacity");
        let mut fields = fields_of(&request());
        fields.remove_all(crate::http2::hpack::Name::Method, &mut self.shared.interner);
        let mut whole = Fields::new();
        whole.push(b":method", method.as_bytes(), false);
        for field in fields.iter(&self.shared.interner) {
            whole.push(field.name_text, field.value, false);
        }
        self.conn.send_headers(key, &whole, false, end, &mut self.shared);
        id
    }

    /// Answers (server role): 200, and END_STREAM if `end`.
    pub(crate) fn answer(&mut self, id: u32, end: bool) {
        let key = self.key(id);
        let fields = fields_of(&[(":status", "200")]);
        self.conn.send_headers(key, &fields, false, end, &mut self.shared);
    }

    pub(crate) fn send(&mut self, id: u32, bytes: &[u8], end: bool) -> usize {
        let key = self.key(id);
        self.conn.send_data(key, bytes, end, &mut self.shared)
    }

    pub(crate) fn send_trailers(&mut self, id: u32) {
        let key = self.key(id);
        let mut fields = fields_of(&[("grpc-status", "0")]);
        self.conn.send_trailers(key, &mut fields, &mut self.shared);
    }

    pub(crate) fn grant(&mut self, id: u32, n: u32) {
        let key = self.key(id);
        self.conn.grant(key, n, &mut self.shared);
    }

    pub(crate) fn reset(&mut self, id: u32, reason: Reason) {
        let key = self.key(id);
        self.conn.reset(key, reason, &mut self.shared);
    }

    /// Moves what is held, as the end of a turn does. The streams that moved are returned.
    pub(crate) fn pump(&mut self) -> Vec<u64> {
        let mut moved = Vec::new();
        self.conn.pump(&mut self.shared, &mut moved);
        moved
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn own(event: Event<'_>, conn: &mut Connection, shared: &Shared) -> Seen {
    match event {
        Event::Headers { key, user, head, end } => {
            let mut id = user;
            if head == Head::Request {
                id = conn.streams.get(key).expect("a request's stream is open").id.into();
                conn.set_user(key, id);
            }
            let fields = texts(shared.fields(), &shared.interner);
            Seen::Headers { id, head, end, fields }
        }
        Event::Data { user, bytes, end, .. } => Seen::Data {
            id: user,
            bytes: bytes.to_vec(),
            end,
        },
        Event::Reset {
            user,
            reason,
            fault,
            theirs_ended,
        } => Seen::Reset {
            id: user,
            reason,
            fault,
            theirs_ended,
        },
        Event::Room { user } => Seen::Room(user),
        Event::Settings { rooms } => Seen::Settings { rooms },
        Event::Lowered => Seen::Lowered,
        Event::GoAway { last, reason } => Seen::GoAway { last, reason },
        Event::Pong(payload) => Seen::Pong(payload),
        Event::Refused { reason, wrong } => Seen::Refused { reason, wrong },
    }
}

/// Pieces of DATA of one stream in a row are one.
pub(crate) fn push(seen: &mut Vec<Seen>, event: Seen) {
    if let (
        Some(Seen::Data {
            id: before,
            bytes: all,
            end: ended,
        }),
        Seen::Data { id, bytes, end },
    ) = (seen.last_mut(), &event)
        && before == id
        && !*ended
    {
        all.extend_from_slice(bytes);
        *ended = *end;
        return;
    }
    seen.push(event);
}

fn texts(fields: &Fields, interner: &Interner) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields
        .iter(interner)
        .map(|field| (text(field.name_text), text(field.value)))
        .collect()
}

pub(crate) fn fields_of(list: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in list {
        fields.push(name.as_bytes(), value.as_bytes(), false);
    }
    fields
}

// ---- what is seen, in short ----

/// A request as [`request`] asks it.
pub(crate) fn asked(id: u32, end: bool) -> Seen {
    Seen::Headers {
        id: id.into(),
        head: Head::Request,
        end,
        fields: owned(&request()),
    }
}

/// A response of `:status: 200`.
pub(crate) fn answered(id: u32, end: bool) -> Seen {
    Seen::Headers {
        id: id.into(),
        head: Head::Response(200),
        end,
        fields: owned(&[(":status", "200")]),
    }
}

/// The trailers of [`trailers`].
pub(crate) fn trailed(id: u32) -> Seen {
    Seen::Headers {
        id: id.into(),
        head: Head::Trailers,
        end: true,
        fields: owned(&[("grpc-status", "0")]),
    }
}

pub(crate) fn got(id: u32, bytes: &[u8], end: bool) -> Seen {
    Seen::Data {
        id: id.into(),
        bytes: bytes.to_vec(),
        end,
    }
}

/// The engine reset a stream of its own accord.
pub(crate) fn faulted(id: u32, reason: Reason, fault: StreamFault) -> Seen {
    Seen::Reset {
        id: id.into(),
        reason,
        fault: Some(fault),
        theirs_ended: false,
    }
}

pub(crate) fn refused(reason: Reason, wrong: Option<Wrong>) -> Seen {
    Seen::Refused { reason, wrong }
}

fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

// ---- frames ----

/// The fields of an ordinary request.
pub(crate) fn request() -> [(&'static str, &'static str); 4] {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C"),
        (":authority", "a"),
    ]
}

/// A header block of literals that nobody indexes (RFC 7541, 6.2.2): it leaves the tables as they are.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    bytes_block(&fields)
}

/// The same of values that are no text.
pub(crate) fn bytes_block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(name.as_bytes(), &mut block);
        string(value, &mut block);
    }
    block
}

/// A string without Huffman code: its length in a prefix of 7 bits (RFC 7541, 5.1), and its bytes.
fn string(text: &[u8], block: &mut Vec<u8>) {
    if text.len() < 127 {
        block.push(text.len() as u8);
    } else {
        block.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            block.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

pub(crate) fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Frame {
    Frame {
        kind,
        flags,
        stream,
        payload: payload.to_vec(),
    }
}

pub(crate) fn headers(stream: u32, fields: &[(&str, &str)], end: bool) -> Frame {
    raw(
        kind::HEADERS,
        END_HEADERS | if end { END_STREAM } else { 0 },
        stream,
        &block(fields),
    )
}

/// An ordinary request.
pub(crate) fn ask(stream: u32, end: bool) -> Frame {
    headers(stream, &request(), end)
}

/// An ordinary response.
pub(crate) fn answer(stream: u32, end: bool) -> Frame {
    headers(stream, &[(":status", "200")], end)
}

pub(crate) fn trailers(stream: u32) -> Frame {
    headers(stream, &[("grpc-status", "0")], true)
}

pub(crate) fn data(stream: u32, bytes: &[u8], end: bool) -> Frame {
    raw(kind::DATA, if end { END_STREAM } else { 0 }, stream, bytes)
}

pub(crate) fn padded_data(stream: u32, bytes: &[u8], padding: u8, end: bool) -> Frame {
    raw(
        kind::DATA,
        PADDED | if end { END_STREAM } else { 0 },
        stream,
        &padded(bytes, padding),
    )
}

/// A payload behind its pad length and before its padding.
pub(crate) fn padded(bytes: &[u8], padding: u8) -> Vec<u8> {
    [&[padding], bytes, &vec![0; padding as usize][..]].concat()
}

pub(crate) fn rst(stream: u32, reason: Reason) -> Frame {
    raw(kind::RST_STREAM, 0, stream, &reason.0.to_be_bytes())
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Frame {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    raw(kind::SETTINGS, 0, 0, &payload)
}

pub(crate) fn settings_ack() -> Frame {
    raw(kind::SETTINGS, ACK, 0, &[])
}

pub(crate) fn ping(payload: [u8; 8]) -> Frame {
    raw(kind::PING, 0, 0, &payload)
}

pub(crate) fn pong(payload: [u8; 8]) -> Frame {
    raw(kind::PING, ACK, 0, &payload)
}

/// GOAWAY without a sentence; [`End::said`] shows ours with one, so compare by [`goaway_of`].
pub(crate) fn goaway(last: u32, reason: Reason) -> Frame {
    raw(
        kind::GOAWAY,
        0,
        0,
        &[last.to_be_bytes(), reason.0.to_be_bytes()].concat(),
    )
}

/// Last stream and reason of a GOAWAY.
pub(crate) fn goaway_of(frame: &Frame) -> (u32, Reason) {
    assert_eq!(frame.kind, kind::GOAWAY, "{frame:?}");
    let number = |at: usize| u32::from_be_bytes(frame.payload[at..at + 4].try_into().expect("four bytes"));
    (number(0), Reason(number(4)))
}

pub(crate) fn window_update(stream: u32, n: u32) -> Frame {
    raw(kind::WINDOW_UPDATE, 0, stream, &n.to_be_bytes())
}

pub(crate) fn priority(stream: u32, depends_on: u32) -> Frame {
    let payload = [&depends_on.to_be_bytes()[..], &[15]].concat();
    raw(kind::PRIORITY, 0, stream, &payload)
}

pub(crate) fn bytes_of(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for f in frames {
        bytes.extend_from_slice(&frame::header(f.payload.len(), f.kind, f.flags, f.stream));
        bytes.extend_from_slice(&f.payload);
    }
    bytes
}

pub(crate) fn frames_of(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = Header::parse(bytes.first_chunk().expect("frames are whole"));
        let end = HEADER_BYTES + header.len as usize;
        frames.push(raw(header.kind, header.flags, header.stream, &bytes[HEADER_BYTES..end]));
        bytes = &bytes[end..];
    }
    frames
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const KINDS: [&str; 10] = [
            "DATA",
            "HEADERS",
            "PRIORITY",
            "RST_STREAM",
            "SETTINGS",
            "PUSH_PROMISE",
            "PING",
            "GOAWAY",
            "WINDOW_UPDATE",
            "CONTINUATION",
        ];
        let kind = KINDS.get(self.kind as usize).copied().unwrap_or("?");
        let shown = &self.payload[..self.payload.len().min(24)];
        write!(
            f,
            "{kind}({}) on {} flags {:#x} [{}] {}",
            self.kind,
            self.stream,
            self.flags,
            self.payload.len(),
            shown.escape_ascii()
        )
    }
}
