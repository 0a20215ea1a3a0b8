//! Our engine as it hears a conversation frame by frame: what it says, why, and what must be true after each frame.

use std::collections::{BTreeMap, BTreeSet};

use super::super::peer::{End, Frame, Seen, goaway_of};
use super::{Act, Verdict, verdict};
use crate::http2::connection::{Role, StreamFault};
use crate::http2::frame::{
    DEFAULT_WINDOW, END_HEADERS, END_STREAM, HEADER_BYTES, Header, MAX_PAYLOAD, MAX_STREAM_ID, PADDED, PREFACE,
    PRIORITY_FLAG, Reason, kind,
};
use crate::http2::message::Wrong;
use crate::http2::settings::Settings;
use crate::http2::stream::Half;

/// A frame, what it met, and what came of it.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) role: Role,
    pub(super) frame: Frame,
    /// How its stream stood when it came.
    pub(super) at: At,
    /// Before it, the peer had said SETTINGS, and had acknowledged the engine's.
    pub(super) greeted: bool,
    pub(super) acked: bool,
    /// The engine had reset its stream, or had said again that it is closed.
    pub(super) was_reset: bool,
    /// The whole header block that the frame ended.
    pub(super) block: Option<Block>,
    /// What its stream has sent, and promised, with it.
    pub(super) sent: Sent,
    pub(super) verdict: Verdict,
    pub(super) because: Because,
}

impl Scene {
    /// A header block has begun, and goes on behind the frame.
    pub(super) fn leaves_block_open(&self) -> bool {
        matches!(self.frame.kind, kind::HEADERS | kind::CONTINUATION) && self.frame.flags & END_HEADERS == 0
    }

    /// HEADERS with a priority that names their own stream.
    pub(super) fn depends_on_itself(&self) -> bool {
        let frame = &self.frame;
        let priority = usize::from(frame.flags & PADDED != 0);
        frame.kind == kind::HEADERS
            && frame.flags & PRIORITY_FLAG != 0
            && frame.payload[priority.min(frame.payload.len())..]
                .first_chunk()
                .is_some_and(|on| u32::from_be_bytes(*on) & MAX_STREAM_ID == frame.stream)
    }
}

/// What the peer has sent on a stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// A response that has no content, whatever its `content-length` says.
    pub(super) no_content: bool,
    /// `content-length`, and the payload so far.
    pub(super) promised: Option<u64>,
    pub(super) payload: u64,
    /// Padding, and the bytes that say how long it is.
    pub(super) padding: usize,
}

/// How a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// It is the connection.
    Zero,
    Idle,
    Live {
        theirs: Half,
        ours: Half,
    },
    /// Both said END_STREAM.
    Ended,
    TheyReset,
    WeReset,
    /// The engine refused it before it was a stream.
    WeRefused,
    /// A higher one was opened: it was never used (RFC 9113, 5.1.1).
    PassedOver,
}

impl At {
    pub(super) fn is_live(self) -> bool {
        matches!(self, At::Live { .. })
    }

    /// The peer's half waits for its head, or for more.
    pub(super) fn expects(self, half: Half) -> bool {
        matches!(self, At::Live { theirs, .. } if theirs == half)
    }

    pub(super) fn we_ended(self) -> bool {
        matches!(self, At::Live { ours: Half::Ended, .. })
    }
}

/// A header block.
#[derive(Clone)]
pub(super) struct Block {
    /// It came in more frames than one.
    pub(super) continued: bool,
    pub(super) end_stream: bool,
    pub(super) bytes: Vec<u8>,
    /// Its fields as an independent decoder reads them; `None` if it cannot.
    pub(super) fields: Option<Vec<(Vec<u8>, Vec<u8>)>>,
}

impl Block {
    /// Whether the table's size changes behind a field (RFC 7541, 4.2), which the independent decoder does not mind.
    pub(super) fn resizes_late(&self) -> bool {
        self.resizes().1
    }

    /// Whether it changes more than twice before the first field, which that one does not mind either.
    pub(super) fn resizes_often(&self) -> bool {
        self.resizes().0 > 2
    }

    /// Whether it cannot be decoded.
    pub(super) fn is_bad(&self) -> bool {
        self.fields.is_none() || self.resizes_late() || self.resizes_often()
    }

    /// How often the table's size changes before the first field, and whether it does so behind one.
    fn resizes(&self) -> (usize, bool) {
        let mut rest = &self.bytes[..];
        let (mut before, mut behind_field) = (0, false);
        while let Some(&first) = rest.first() {
            let resizes = first & 0xe0 == 0x20;
            if resizes && behind_field {
                return (before, true);
            }
            before += usize::from(resizes);
            behind_field |= !resizes;
            let strings = match first {
                0x80.. => (7, 0),
                0x40..0x80 => (6, if first == 0x40 { 2 } else { 1 }),
                0x20..0x40 => (5, 0),
                _ => (4, if first & 0x0f == 0 { 2 } else { 1 }),
            };
            if integer(&mut rest, strings.0).is_none() {
                break;
            }
            for _ in 0..strings.1 {
                let behind = integer(&mut rest, 7).and_then(|len| rest.get(len..));
                rest = behind.unwrap_or_default();
            }
        }
        (before, false)
    }

    /// The values of all fields of that name.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.fields.iter().flatten();
        fields
            .filter(move |(found, _)| found == name.as_bytes())
            .map(|(_, value)| &value[..])
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.bytes[..self.bytes.len().min(300)];
        let readable = if self.fields.is_some() {
            ""
        } else {
            ", which nobody can read"
        };
        write!(f, "[{}] {}{readable}", self.bytes.len(), shown.escape_ascii())
    }
}

/// Why the engine said what it said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Because {
    /// It said nothing.
    Fine,
    /// A stream broke a rule.
    Fault(StreamFault),
    /// A request that never became a stream.
    Refused(Option<Wrong>),
    /// A frame for a stream that is gone.
    Late,
    /// The sentence of the connection's end.
    Fatal(&'static str),
}

/// The engine with its peer's books.
pub(super) struct Ours {
    pub(super) role: Role,
    pub(super) end: End,
    /// All that the owner heard, and the peer.
    pub(super) seen: Vec<Seen>,
    pub(super) told: Vec<Frame>,
    blocks: Blocks,
    /// Flow-controlled bytes that were granted, less those that came; of the connection, and of each stream.
    credit: i64,
    stream_credit: BTreeMap<u32, i64>,
    sent: BTreeMap<u32, Sent>,
    refused: BTreeSet<u32>,
    /// Streams whose end the owner was told, or brought about.
    gone: BTreeSet<u64>,
    reset: BTreeSet<u32>,
}

impl Ours {
    /// An engine that has said what it says first. A server has heard the preface.
    pub(super) fn new(role: Role, settings: &Settings) -> Ours {
        let mut end = match role {
            Role::Server => End::fresh_server(settings.clone(), false),
            Role::Client => End::fresh_client(settings.clone()),
        };
        end.takes_back = true;
        end.said();
        if role == Role::Server {
            assert_eq!(end.feed_bytes(PREFACE), []);
        }
        Ours {
            role,
            end,
            seen: Vec::new(),
            told: Vec::new(),
            blocks: Blocks::new(),
            credit: DEFAULT_WINDOW.into(),
            stream_credit: BTreeMap::new(),
            sent: BTreeMap::new(),
            refused: BTreeSet::new(),
            gone: BTreeSet::new(),
            reset: BTreeSet::new(),
        }
    }

    /// One whole frame.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Scene {
        let header = Header::parse(bytes.first_chunk().expect("frames are whole"));
        let frame = Frame {
            kind: header.kind,
            flags: header.flags,
            stream: header.stream & MAX_STREAM_ID,
            payload: bytes[HEADER_BYTES..].to_vec(),
        };
        let at = self.at(frame.stream);
        let greeted = self.end.conn.heard_settings();
        let acked = self.end.conn.settings_acknowledged();
        let was_reset = self.reset.contains(&frame.stream);
        let block = self.blocks.hear(&frame);
        let sent = self.count(&frame, at, block.as_ref());
        let seen = self.end.feed_bytes(bytes);
        let said = self.end.said();
        let verdict = verdict(&frame, &said);
        let because = self.because(&frame, verdict, &seen, &said);
        self.keep_books(&frame, acked, &seen, &said);
        self.gone.extend(self.end.unprocessed.drain(..));
        self.seen.extend(seen);
        self.told.extend(said);
        self.check();
        Scene {
            role: self.role,
            frame,
            at,
            greeted,
            acked,
            was_reset,
            block,
            sent,
            verdict,
            because,
        }
    }

    /// Does it, if the stream is in a state for it.
    pub(super) fn act(&mut self, act: Act) -> bool {
        let done = self.try_to(act);
        let said = self.end.said();
        self.told.extend(said);
        self.check();
        done
    }

    /// The same without the books.
    pub(super) fn try_to(&mut self, act: Act) -> bool {
        let half = |id| {
            let stream = self.end.conn.by_id(id).and_then(|key| self.end.conn.streams.get(key));
            stream.filter(|stream| !stream.is_ending()).map(|stream| stream.ours)
        };
        let may = match act {
            Act::Ask { .. } => self.role == Role::Client && self.end.conn.has_capacity(),
            Act::Answer { id, .. } => self.role == Role::Server && half(id) == Some(Half::Head),
            Act::Send { id, .. } => half(id) == Some(Half::Body),
            Act::Reset { id } => self.end.is_open(id),
        };
        if !may {
            return false;
        }
        match act {
            Act::Ask { end } => {
                self.end.ask(end);
            }
            Act::Answer { id, end } => self.end.answer(id, end),
            Act::Send { id, n, end } => {
                self.end.send(id, &vec![b'x'; n], end);
            }
            Act::Reset { id } => {
                self.end.reset(id, Reason::CANCEL);
                self.gone.insert(id.into());
                self.reset.insert(id);
            }
        }
        self.end.pump();
        true
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.fatal.is_some()
    }

    /// The connection ends: nothing of the budget and no field's reference stays behind.
    pub(super) fn finish(&mut self) {
        let End { conn, shared, .. } = &mut self.end;
        conn.release(shared);
        shared.release();
        assert_eq!(shared.budget.used(), 0, "the budget is whole again");
        assert_eq!(shared.interner.live(), 0, "no field is held any more");
    }

    fn at(&self, id: u32) -> At {
        let conn = &self.end.conn;
        if id == 0 {
            return At::Zero;
        }
        if let Some(stream) = conn.by_id(id).and_then(|key| conn.streams.get(key)) {
            return At::Live {
                theirs: stream.theirs,
                ours: stream.ours,
            };
        }
        use crate::http2::closed::How::*;
        match conn.closed.how(id) {
            _ if conn.is_idle(id) => At::Idle,
            Some(EndStream) => At::Ended,
            Some(TheirReset) => At::TheyReset,
            Some(OurReset) if self.refused.contains(&id) => At::WeRefused,
            Some(OurReset) => At::WeReset,
            None => At::PassedOver,
        }
    }

    /// Counts payload and padding, and what heads promise.
    fn count(&mut self, frame: &Frame, at: At, block: Option<&Block>) -> Sent {
        let sent = self.sent.entry(frame.stream).or_default();
        if frame.kind == kind::DATA {
            let padded = frame.flags & PADDED != 0 && !frame.payload.is_empty();
            let padding = if padded { 1 + usize::from(frame.payload[0]) } else { 0 };
            sent.padding += padding;
            sent.payload += frame.payload.len().saturating_sub(padding) as u64;
        }
        let head = match self.role {
            Role::Server => at == At::Idle,
            Role::Client => matches!(at, At::Live { theirs: Half::Head, .. }),
        };
        if let Some(block) = block.filter(|_| head) {
            let length = block.values("content-length").next();
            sent.promised = length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            let mut status = block.values(":status");
            sent.no_content = status.any(|status| matches!(status, b"204" | b"304"));
        }
        *sent
    }

    fn because(&self, frame: &Frame, verdict: Verdict, seen: &[Seen], said: &[Frame]) -> Because {
        match verdict {
            Verdict::Fine => Because::Fine,
            Verdict::Connection(reason) => {
                let fatal = self.end.fatal.expect("the owner is told of the end");
                assert_eq!(
                    seen.last(),
                    Some(&Seen::Fatal(reason)),
                    "the owner is told what the peer is"
                );
                let last = said.last().expect("the verdict stands in it");
                assert_eq!(last.kind, kind::GOAWAY, "it is the last word");
                assert_eq!(goaway_of(last).1, reason);
                assert_eq!(fatal.reason, reason);
                Because::Fatal(fatal.why)
            }
            Verdict::Stream(code) => match seen.last() {
                Some(Seen::Reset {
                    id,
                    reason,
                    fault: Some(fault),
                    ..
                }) => {
                    assert_eq!((*id, *reason), (frame.stream.into(), code));
                    Because::Fault(*fault)
                }
                Some(Seen::Refused { reason, wrong }) => {
                    assert_eq!(*reason, code);
                    Because::Refused(*wrong)
                }
                None => Because::Late,
                Some(other) => panic!("{other:?} does not explain {code}"),
            },
        }
    }

    fn keep_books(&mut self, frame: &Frame, acked: bool, seen: &[Seen], said: &[Frame]) {
        let settings = self.end.conn.settings().clone();
        if !acked && self.end.conn.settings_acknowledged() {
            let lowered = (i64::from(settings.first_stream_window) - i64::from(DEFAULT_WINDOW)).min(0);
            for credit in self.stream_credit.values_mut() {
                *credit += lowered;
            }
        }
        if frame.kind == kind::DATA {
            self.credit -= frame.payload.len() as i64;
            if let Some(credit) = self.stream_credit.get_mut(&frame.stream) {
                *credit -= frame.payload.len() as i64;
            }
        }
        for update in said.iter().filter(|said| said.kind == kind::WINDOW_UPDATE) {
            let n = u32::from_be_bytes(update.payload[..].try_into().expect("4 bytes"));
            assert_eq!(update.stream, 0, "nobody grants a stream anything here");
            assert!(n > 0);
            self.credit += i64::from(n);
        }
        for reset in said.iter().filter(|said| said.kind == kind::RST_STREAM) {
            // What comes for a stream that ended otherwise may be answered each time.
            let again = matches!(self.at(reset.stream), At::TheyReset | At::Ended);
            assert!(
                self.reset.insert(reset.stream) || again,
                "{} is reset twice",
                reset.stream
            );
            if matches!(seen.last(), Some(Seen::Refused { .. })) {
                self.refused.insert(reset.stream);
            }
        }
        for event in seen {
            let id = match event {
                Seen::Headers { id, .. } | Seen::Data { id, .. } | Seen::Reset { id, .. } | Seen::Room(id) => *id,
                _ => continue,
            };
            assert!(!self.gone.contains(&id), "{event:?} of a stream that is gone");
            if let Seen::Reset { .. } = event {
                self.gone.insert(id);
            }
        }
    }

    /// What is true after each frame and each act.
    fn check(&mut self) {
        if self.is_over() {
            return;
        }
        let conn = &self.end.conn;
        assert_eq!(
            conn.recv_window, self.credit,
            "granted, less received, is what the peer may send"
        );
        assert!(conn.recv_window > 0, "the connection's window is restored");
        let first = conn.first_recv_window();
        for (key, stream) in conn.streams.iter() {
            assert_eq!(conn.by_id(stream.id), Some(key), "a stream is found by its identifier");
            assert!(!stream.is_done(), "what has ended is gone");
            let credit = *self.stream_credit.entry(stream.id).or_insert(first);
            assert!(
                stream.theirs == Half::Ended || stream.recv_window == credit,
                "stream {}: {} instead of {credit}",
                stream.id,
                stream.recv_window
            );
            let queued = conn.ready.contains(&key);
            assert_eq!(stream.scheduled, queued, "who is marked as taking turns takes turns");
            assert!(
                stream.held.is_empty() || queued || stream.send_window <= 0,
                "held bytes are forgotten"
            );
        }
        let most = conn.settings().max_concurrent_streams as usize;
        assert!(self.role == Role::Client || conn.open_streams() <= most);
        let used = self.end.shared.budget.used();
        assert!(used >= conn.reserved.into(), "credit that is out is reserved");
    }
}

/// Header blocks, put together and read by an independent decoder that keeps in step.
struct Blocks {
    decoder: loona_hpack::Decoder<'static>,
    open: Option<Open>,
}

struct Open {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
}

impl Blocks {
    fn new() -> Blocks {
        let mut decoder = loona_hpack::Decoder::new();
        decoder.set_max_allowed_table_size(4_096);
        Blocks { decoder, open: None }
    }

    /// The block that the frame ends. Frames that cannot be read are those that end the connection anyway.
    fn hear(&mut self, frame: &Frame) -> Option<Block> {
        let piece = match frame.kind {
            _ if frame.payload.len() > MAX_PAYLOAD => return None,
            kind::HEADERS => fragment(frame)?,
            kind::CONTINUATION => &frame.payload,
            _ => return None,
        };
        let continued = frame.kind == kind::CONTINUATION;
        let mut whole = match (continued, self.open.take()) {
            (false, None) => Open {
                stream: frame.stream,
                end_stream: frame.flags & END_STREAM != 0,
                bytes: Vec::new(),
            },
            (true, Some(open)) if open.stream == frame.stream => open,
            _ => return None,
        };
        whole.bytes.extend_from_slice(piece);
        if frame.flags & END_HEADERS == 0 {
            self.open = Some(whole);
            return None;
        }
        let fields = if whole.bytes.is_empty() {
            Some(Vec::new())
        } else {
            self.decoder.decode(&whole.bytes).ok()
        };
        Some(Block {
            continued,
            end_stream: whole.end_stream,
            bytes: whole.bytes,
            fields,
        })
    }
}

/// An integer of a block (RFC 7541, 5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let most = (1usize << prefix) - 1;
    let (first, mut behind) = rest.split_first()?;
    let mut value = usize::from(*first) & most;
    for shift in (0..28).step_by(7) {
        if value < most {
            break;
        }
        let (more, later) = behind.split_first()?;
        behind = later;
        value += usize::from(more & 0x7f) << shift;
        if more & 0x80 == 0 {
            break;
        }
    }
    *rest = behind;
    Some(value)
}

/// The part of HEADERS that is neither padding nor priority (RFC 9113, 6.2).
fn fragment(frame: &Frame) -> Option<&[u8]> {
    let mut piece = &frame.payload[..];
    let mut padding = 0;
    if frame.flags & PADDED != 0 {
        let (&n, rest) = piece.split_first()?;
        (padding, piece) = (n.into(), rest);
    }
    if frame.flags & PRIORITY_FLAG != 0 {
        piece = piece.get(5..)?;
    }
    piece.get(..piece.len().checked_sub(padding)?)
}
