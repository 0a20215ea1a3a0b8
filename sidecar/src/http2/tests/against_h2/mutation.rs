//! Ways to break a rule, each with what the RFC answers to it.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::super::peer::*;
use super::conversation::{Author, Dress, Line, Told, dressed};
use super::{CLOSED, COMPRESSION, FLOW, PROTOCOL, SIZE, Verdict};
use crate::http2::connection::Role;
use crate::http2::frame::{
    ACK, END_HEADERS, END_STREAM, HEADER_BYTES, Header, MAX_PAYLOAD, PADDED, PRIORITY_FLAG, Reason, kind, setting,
};

/// A rule that is broken where the author stands.
#[derive(Clone, Debug)]
pub(super) enum Mutation {
    /// A frame of a size that its kind cannot have (4.2, 6.3 to 6.9).
    Size { kind: u8, len: usize, which: u8 },
    /// A stream's frame on the connection, or the other way round (6.1 to 6.10).
    Place { kind: u8, which: u8 },
    /// HEADERS with an identifier that no new stream can have (5.1.1).
    Identifier { which: u8 },
    /// A frame on a stream that nobody opened (5.1, idle).
    Idle { kind: u8, beyond: u32 },
    /// A frame on a stream that has ended, or whose half has (5.1).
    Late { kind: u8, which: u8 },
    /// One byte more than the window of a stream (6.9.1).
    Flood { which: u8, padding: bool },
    /// An update of nothing, or of too much (6.9, 6.9.1).
    Update { which: Option<u8>, zero: bool },
    /// A value that a setting cannot have (6.5.2).
    Setting { which: u8, value: u32 },
    /// A header block, and something else in its middle (6.10).
    Interrupted { by: u8, which: u8 },
    /// CONTINUATION of nothing (6.10).
    Continuation { which: u8 },
    /// A block that cannot be decoded (RFC 7541).
    Undecodable { which: u8, how: u8 },
    /// A list that is no message (8.1 to 8.3).
    Malformed { which: u8, how: u8, dress: Dress },
    /// `content-length`, and DATA of another length (8.1.1).
    Length {
        promised: usize,
        sent: usize,
        trailers: bool,
    },
    /// A stream that depends on itself (RFC 7540, 5.3.1).
    Itself { which: u8, headers: bool },
    /// A push that nobody allowed (6.6, 8.4).
    Push { which: u8 },
    /// Trailers that do not end the stream (8.1).
    OpenTrailers { which: u8, dress: Dress },
    /// A frame above SETTINGS_MAX_FRAME_SIZE (4.2).
    Oversized { kind: u8, which: u8, more: usize },
    /// Padding that the frame has no bytes for (6.1, 6.2).
    Padding { headers: bool, which: u8, len: usize },
    /// DATA before the response (8.1), or a response that ends before it begins.
    Premature { which: u8, informational: bool },
    /// One stream more than SETTINGS_MAX_CONCURRENT_STREAMS (5.1.2).
    Crowd,
    /// Anything at all.
    Noise {
        kind: u8,
        flags: u8,
        id: u32,
        payload: Vec<u8>,
    },
}

/// What is done to the bytes of a whole conversation.
#[derive(Clone, Debug)]
pub(super) enum Damage {
    Flip { at: Index, mask: u8 },
    Drop { frame: Index },
    Double { frame: Index },
    Swap { frame: Index },
}

/// A rule broken.
pub(super) struct Broken {
    pub(super) frames: Vec<Frame>,
    /// What stands there in a conversation that breaks no rule, and leaves the tables as this does.
    pub(super) instead: Vec<Frame>,
    /// The stream that may pay for it.
    pub(super) victim: u32,
    /// What the RFC answers to the last of the frames. The others are fine.
    pub(super) verdict: Verdict,
}

pub(super) fn mutation() -> impl Strategy<Value = Mutation> {
    use Mutation::*;
    let which = any::<u8>;
    let kind = || 0..10u8;
    let of_streams = || {
        select(vec![
            kind::DATA,
            kind::HEADERS,
            kind::PRIORITY,
            kind::RST_STREAM,
            kind::WINDOW_UPDATE,
        ])
    };
    let of_fixed_size = || {
        select(vec![
            kind::PRIORITY,
            kind::RST_STREAM,
            kind::SETTINGS,
            kind::PING,
            kind::GOAWAY,
            kind::WINDOW_UPDATE,
        ])
    };
    prop_oneof![
        1 => (of_fixed_size(), 0..20usize, which()).prop_map(|(kind, len, which)| Size { kind, len, which }),
        1 => (kind(), which()).prop_map(|(kind, which)| Place { kind, which }),
        1 => which().prop_map(|which| Identifier { which }),
        1 => (select(vec![kind::DATA, kind::RST_STREAM, kind::WINDOW_UPDATE]), 0..6u32).prop_map(|(kind, beyond)| Idle { kind, beyond }),
        3 => (of_streams(), which()).prop_map(|(kind, which)| Late { kind, which }),
        1 => (which(), any::<bool>()).prop_map(|(which, padding)| Flood { which, padding }),
        1 => (prop::option::weighted(0.7, which()), any::<bool>()).prop_map(|(which, zero)| Update { which, zero }),
        1 => (which(), any::<u32>()).prop_map(|(which, value)| Setting { which, value }),
        1 => (kind(), which()).prop_map(|(by, which)| Interrupted { by, which }),
        1 => which().prop_map(|which| Continuation { which }),
        1 => (which(), which()).prop_map(|(which, how)| Undecodable { which, how }),
        4 => (which(), which(), super::conversation::dress())
            .prop_map(|(which, how, dress)| Malformed { which, how, dress }),
        2 => (0..100usize, 0..100usize, any::<bool>())
            .prop_map(|(promised, sent, trailers)| Length { promised, sent, trailers }),
        1 => (which(), any::<bool>()).prop_map(|(which, headers)| Itself { which, headers }),
        1 => which().prop_map(|which| Push { which }),
        1 => (which(), super::conversation::dress()).prop_map(|(which, dress)| OpenTrailers { which, dress }),
        1 => (any::<u8>(), which(), 1..3_000usize).prop_map(|(kind, which, more)| Oversized { kind, which, more }),
        1 => (any::<bool>(), which(), 0..20usize).prop_map(|(headers, which, len)| Padding { headers, which, len }),
        1 => (which(), any::<bool>()).prop_map(|(which, informational)| Premature { which, informational }),
        1 => Just(Crowd),
        2 => (0..12u8, any::<u8>(), 0..12u32, vec(any::<u8>(), 0..40))
            .prop_map(|(kind, flags, id, payload)| Noise { kind, flags, id, payload }),
    ]
}

pub(super) fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => (any::<Index>(), 1..=255u8).prop_map(|(at, mask)| Damage::Flip { at, mask }),
        1 => (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, mask: 1 << bit }),
        1 => any::<Index>().prop_map(|frame| Damage::Drop { frame }),
        1 => any::<Index>().prop_map(|frame| Damage::Double { frame }),
        1 => any::<Index>().prop_map(|frame| Damage::Swap { frame }),
    ]
}

impl Mutation {
    /// Breaks the rule, if the conversation has what it takes. [`Mutation::Noise`] may break none.
    pub(super) fn apply(&self, author: &mut Author) -> Option<Broken> {
        let connection = |frame: Frame, reason| Broken {
            victim: frame.stream,
            frames: vec![frame],
            instead: Vec::new(),
            verdict: Verdict::Connection(reason),
        };
        let stream = |frame: Frame, reason| Broken {
            victim: frame.stream,
            frames: vec![frame],
            instead: Vec::new(),
            verdict: Verdict::Stream(reason),
        };
        let broken = match *self {
            Mutation::Size { kind, len, which } => {
                let id = author.pick(which, Told::is_live)?;
                match kind {
                    kind::PRIORITY if len != 5 => stream(raw(kind, 0, id, &vec![0; len]), SIZE),
                    kind::RST_STREAM | kind::WINDOW_UPDATE if len != 4 => {
                        connection(raw(kind, 0, id, &vec![0; len]), SIZE)
                    }
                    kind::SETTINGS if len % 6 != 0 => connection(raw(kind, 0, 0, &vec![0; len]), SIZE),
                    kind::SETTINGS if len > 0 => connection(raw(kind, ACK, 0, &vec![0; len]), SIZE),
                    kind::PING if len != 8 => connection(raw(kind, 0, 0, &vec![0; len]), SIZE),
                    kind::GOAWAY if len < 8 => connection(raw(kind, 0, 0, &vec![0; len]), SIZE),
                    _ => return None,
                }
            }
            Mutation::Place { kind, which } => {
                let id = author.pick(which, Told::is_live)?;
                let frame = match kind {
                    kind::DATA => data(0, b"x", false),
                    kind::HEADERS => headers(0, &request(), true),
                    kind::PRIORITY => priority(0, 1),
                    kind::RST_STREAM => rst(0, Reason::CANCEL),
                    kind::CONTINUATION => raw(kind, END_HEADERS, 0, &[]),
                    kind::SETTINGS => raw(kind, 0, id, &[]),
                    kind::PING => raw(kind, 0, id, &[0; 8]),
                    kind::GOAWAY => raw(kind, 0, id, &[0; 8]),
                    _ => return None,
                };
                connection(frame, PROTOCOL)
            }
            Mutation::Identifier { which } => {
                let id = match (which % 3, author.role) {
                    (0, _) => 2 * (1 + u32::from(which) / 8),
                    // One that is passed over.
                    (1, Role::Server) if author.may_begin() => {
                        let id = author.next;
                        author.next += 2;
                        let skipping = author.begin(true);
                        author.say(&[ask(skipping, true)]);
                        id
                    }
                    (_, Role::Client) => author.next + u32::from(which) / 8 * 2,
                    _ => return None,
                };
                let frame = match author.role {
                    Role::Server => ask(id, true),
                    Role::Client => answer(id, true),
                };
                connection(frame, PROTOCOL)
            }
            Mutation::Idle { kind, beyond } => {
                let id = author.next + beyond;
                let frame = match kind {
                    kind::DATA => data(id, b"x", false),
                    kind::RST_STREAM => rst(id, Reason::CANCEL),
                    kind::WINDOW_UPDATE => window_update(id, 1),
                    _ => return None,
                };
                connection(frame, PROTOCOL)
            }
            Mutation::Late { kind, which } => self.late(author, kind, which)?,
            Mutation::Flood { which, padding } => {
                let id = author.pick(which, |told| Author::open_body(told) && told.left.is_none())?;
                let window = author.window;
                let told = author.told(id);
                let mut room = window - told.sent;
                let mut frames = Vec::new();
                while room > MAX_PAYLOAD - 300 {
                    let n = room.min(MAX_PAYLOAD - 300);
                    frames.push(data(id, &vec![b'f'; n], false));
                    room -= n;
                }
                told.sent = window;
                frames.push(if padding {
                    padded_data(id, &vec![b'f'; room.saturating_sub(200)], room.min(200) as u8, false)
                } else {
                    data(id, &vec![b'f'; room + 1], true)
                });
                let instead = frames[..frames.len() - 1].to_vec();
                Broken {
                    frames,
                    instead,
                    victim: id,
                    verdict: Verdict::Stream(FLOW),
                }
            }
            Mutation::Update { which, zero } => {
                let n = if zero { 0 } else { (1 << 31) - 1 };
                let reason = if zero { PROTOCOL } else { FLOW };
                match which {
                    None => connection(window_update(0, n), reason),
                    Some(which) => stream(window_update(author.pick(which, Told::is_live)?, n), reason),
                }
            }
            Mutation::Setting { which, value } => {
                let (id, value, reason) = match which % 5 {
                    0 => (setting::ENABLE_PUSH, value.max(2), PROTOCOL),
                    1 if author.role == Role::Client => (setting::ENABLE_PUSH, 1, PROTOCOL),
                    2 => (setting::INITIAL_WINDOW_SIZE, value | 1 << 31, FLOW),
                    3 => (setting::MAX_FRAME_SIZE, value % 16_384, PROTOCOL),
                    4 => (setting::MAX_FRAME_SIZE, value.max(1 << 24), PROTOCOL),
                    _ => return None,
                };
                connection(settings(&[(0x9_99, 1), (id, value)]), reason)
            }
            Mutation::Interrupted { by, which } => {
                let other = author.pick(which, |_| true)?;
                let (id, whole) = match author.role {
                    Role::Server if author.may_begin() => (author.begin(true), block(&request())),
                    Role::Server => return None,
                    Role::Client => {
                        let id = author.pick(which, |told| told.is_live() && !told.head)?;
                        let told = author.told(id);
                        (told.head, told.ended) = (true, true);
                        (id, block(&[(":status", "200")]))
                    }
                };
                let (first, rest) = whole.split_at(usize::from(which) % whole.len());
                let frame = match by {
                    kind::DATA => data(id, b"x", false),
                    kind::HEADERS => raw(kind::HEADERS, END_HEADERS, id, rest),
                    kind::PRIORITY => priority(id, 0),
                    kind::RST_STREAM => rst(id, Reason::CANCEL),
                    kind::SETTINGS => settings(&[]),
                    kind::PUSH_PROMISE => raw(kind::PUSH_PROMISE, END_HEADERS, id, &[0, 0, 0, 2]),
                    kind::PING => ping([0; 8]),
                    kind::GOAWAY => goaway(0, Reason::NO_ERROR),
                    kind::WINDOW_UPDATE => window_update(0, 1),
                    _ if other == id => return None,
                    _ => raw(kind::CONTINUATION, END_HEADERS, other, rest),
                };
                Broken {
                    frames: vec![raw(kind::HEADERS, END_STREAM, id, first), frame],
                    instead: vec![headers_of(id, &whole)],
                    victim: id,
                    verdict: Verdict::Connection(PROTOCOL),
                }
            }
            Mutation::Continuation { which } => {
                let id = author.pick(which, |_| true)?;
                connection(
                    raw(kind::CONTINUATION, END_HEADERS, id, &block(&[("a", "b")])),
                    PROTOCOL,
                )
            }
            Mutation::Undecodable { which, how } => {
                let bytes: &[u8] = match how % 9 {
                    // No such index: 0, and beyond both tables.
                    0 => &[0x80],
                    1 => &[0xff, 0x80, 0x20],
                    2 => &[0x7f, 0x80, 0x20, 1, b'x'],
                    // An integer that never ends.
                    3 => &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f],
                    // A table larger than allowed; a size update behind a field.
                    4 => &[0x3f, 0xe1, 0xff, 0x03],
                    5 => &[0x82, 0x20],
                    // Strings: longer than the block; Huffman with EOS, and with padding that is not ones.
                    6 => &[0x00, 0x05, b'a'],
                    7 => &[0x00, 0x01, b'a', 0x84, 0xff, 0xff, 0xff, 0xff],
                    _ => &[0x00, 0x01, b'a', 0x81, 0x18],
                };
                let frame = match author.pick(which, Author::open_body) {
                    Some(id) => raw(kind::HEADERS, END_HEADERS | END_STREAM, id, bytes),
                    None if author.role == Role::Server && author.may_begin() => {
                        let id = author.begin(true);
                        raw(kind::HEADERS, END_HEADERS | END_STREAM, id, bytes)
                    }
                    None => return None,
                };
                connection(frame, COMPRESSION)
            }
            Mutation::Malformed { which, how, ref dress } => self.malformed(author, which, how, dress)?,
            Mutation::Length {
                promised,
                sent,
                trailers,
            } => self.length(author, promised, sent, trailers)?,
            Mutation::Itself { which, headers: false } => {
                let id = author.pick(which, Told::is_live)?;
                stream(priority(id, id), PROTOCOL)
            }
            Mutation::Itself { which, headers: true } => {
                let of = |told: &Told| Author::open_body(told) && told.left.unwrap_or(0) == 0;
                let (id, list) = match author.pick(which, of) {
                    Some(id) => (id, block(&[("a", "b")])),
                    None if author.role == Role::Server && author.may_begin() => {
                        (author.begin(true), block(&request()))
                    }
                    None => return None,
                };
                author.told(id).ended = true;
                let payload = [&id.to_be_bytes()[..], &[15], &list].concat();
                let flags = PRIORITY_FLAG | END_HEADERS | END_STREAM;
                Broken {
                    instead: vec![headers_of(id, &list)],
                    ..stream(raw(kind::HEADERS, flags, id, &payload), PROTOCOL)
                }
            }
            Mutation::Push { which } => {
                let id = author.pick(which, Told::is_live)?;
                let payload = [&[0, 0, 0, 2][..], &block(&request())].concat();
                connection(raw(kind::PUSH_PROMISE, END_HEADERS, id, &payload), PROTOCOL)
            }
            Mutation::OpenTrailers { which, ref dress } => {
                let of = |told: &Told| Author::open_body(told) && told.left.unwrap_or(0) == 0;
                let id = author.pick(which, of)?;
                author.told(id).ended = true;
                let block = author.block(&[("grpc-status", "0")], dress.indexed);
                Broken {
                    frames: dressed(id, &block, false, dress),
                    instead: dressed(id, &block, true, dress),
                    victim: id,
                    verdict: Verdict::Stream(PROTOCOL),
                }
            }
            Mutation::Oversized { kind, which, more } => {
                let id = author.pick(which, Told::is_live)?;
                connection(raw(kind, 0, id, &vec![0; MAX_PAYLOAD + more]), SIZE)
            }
            Mutation::Padding { headers, which, len } => {
                let id = author.pick(which, Author::open_body)?;
                let kind = if headers { kind::HEADERS } else { kind::DATA };
                let flags = if headers {
                    PADDED | END_HEADERS | END_STREAM
                } else {
                    PADDED
                };
                if len == 0 {
                    connection(raw(kind, flags, id, &[]), SIZE)
                } else {
                    // The length's own byte does not count.
                    connection(raw(kind, flags, id, &vec![len as u8; len]), PROTOCOL)
                }
            }
            Mutation::Premature { which, informational } => {
                let id = author.pick(which, |told| told.is_live() && !told.head)?;
                if informational {
                    stream(headers(id, &[(":status", "103")], true), PROTOCOL)
                } else {
                    stream(data(id, b"x", false), PROTOCOL)
                }
            }
            Mutation::Crowd => {
                if author.role == Role::Client || author.may_begin() {
                    return None;
                }
                let id = author.begin(false);
                author.streams.remove(&id);
                stream(ask(id, false), Reason::REFUSED_STREAM)
            }
            Mutation::Noise {
                kind,
                flags,
                id,
                ref payload,
            } => Broken {
                frames: vec![raw(kind, flags, id, payload)],
                instead: Vec::new(),
                victim: id,
                verdict: Verdict::Fine,
            },
        };
        Some(broken)
    }

    /// Whether the RFC's answer is known, and the other streams are to be left alone.
    pub(super) fn is_aimed(&self) -> bool {
        !matches!(self, Mutation::Noise { .. })
    }

    /// A frame for a stream whose half has ended: how it ended decides (5.1).
    fn late(&self, author: &mut Author, kind: u8, which: u8) -> Option<Broken> {
        let id = author.pick(which, |told| told.ended || !told.is_live())?;
        let told = author.told(id).clone();
        let frame = match kind {
            kind::DATA => data(id, b"late", which.is_multiple_of(2)),
            kind::HEADERS => headers(id, &[("late", "1")], true),
            kind::RST_STREAM => rst(id, Reason::CANCEL),
            kind::WINDOW_UPDATE => window_update(id, 1),
            kind::PRIORITY => priority(id, 0),
            _ => return None,
        };
        let verdict = match kind {
            kind::DATA | kind::HEADERS if told.reset_by_engine => Verdict::Fine,
            kind::DATA | kind::HEADERS if told.reset_by_peer || told.is_live() => Verdict::Stream(CLOSED),
            kind::DATA | kind::HEADERS => Verdict::Connection(CLOSED),
            _ => Verdict::Fine,
        };
        if kind == kind::RST_STREAM && told.is_live() {
            author.told(id).reset_by_peer = true;
        }
        let breaks_none = !matches!(kind, kind::DATA | kind::HEADERS);
        Some(Broken {
            instead: if breaks_none { vec![frame.clone()] } else { Vec::new() },
            frames: vec![frame],
            victim: id,
            verdict,
        })
    }

    /// A list of fields that is no message.
    fn malformed(&self, author: &mut Author, which: u8, how: u8, dress: &Dress) -> Option<Broken> {
        let trailers = author.pick(which, |told| Author::open_body(told) && told.left.unwrap_or(0) == 0);
        let response = author.pick(which, |told| told.is_live() && !told.head);
        let (id, good): (u32, Vec<(&str, &str)>) = match (author.role, how % 4, trailers, response) {
            (_, 0, Some(id), _) => (id, vec![("grpc-status", "0")]),
            (Role::Client, _, _, Some(id)) => (id, vec![(":status", "200")]),
            (Role::Server, ..) if author.may_begin() => (author.begin(true), request().to_vec()),
            (_, _, Some(id), _) => (id, vec![("grpc-status", "0")]),
            _ => return None,
        };
        let told = author.told(id);
        (told.head, told.ended) = (true, true);
        let bad = worsened(&good, which);
        // What is indexed comes behind what is wrong, and is in the table all the same.
        let mut instead = author.block(&good, dress.indexed);
        let tail = instead.split_off(block(&good).len());
        instead.extend_from_slice(&tail);
        let bad = [block(&bad), tail].concat();
        Some(Broken {
            frames: dressed(id, &bad, true, dress),
            instead: dressed(id, &instead, true, dress),
            victim: id,
            verdict: Verdict::Stream(PROTOCOL),
        })
    }

    /// A message that is longer or shorter than it says.
    fn length(&self, author: &mut Author, promised: usize, sent: usize, trailers: bool) -> Option<Broken> {
        if promised == sent {
            return None;
        }
        let length = promised.to_string();
        let (id, head) = match author.role {
            Role::Server if author.may_begin() => {
                let fields = [&request()[..], &[("content-length", &length)]].concat();
                let id = author.begin(true);
                (id, headers(id, &fields, false))
            }
            Role::Client => {
                let id = author.pick(promised as u8, |told| told.is_live() && !told.head)?;
                let told = author.told(id);
                (told.head, told.ended) = (true, true);
                (
                    id,
                    headers(id, &[(":status", "200"), ("content-length", &length)], false),
                )
            }
            Role::Server => return None,
        };
        let bytes = vec![b'l'; sent];
        let mut frames = vec![head.clone()];
        if sent > promised || !trailers {
            // The byte too many is seen when it comes; one too few at the end.
            frames.push(data(id, &bytes, !trailers));
        } else {
            frames.extend([data(id, &bytes, false), super::super::peer::trailers(id)]);
        }
        Some(Broken {
            instead: vec![head, data(id, &vec![b'l'; promised], true)],
            frames,
            victim: id,
            verdict: Verdict::Stream(PROTOCOL),
        })
    }
}

fn headers_of(id: u32, block: &[u8]) -> Frame {
    raw(kind::HEADERS, END_HEADERS | END_STREAM, id, block)
}

/// A list with something wrong in it.
fn worsened<'a>(good: &[(&'a str, &'a str)], how: u8) -> Vec<(&'a str, &'a str)> {
    const EXTRA: [(&str, &str); 17] = [
        ("X-Upper", "x"),
        ("", "x"),
        ("a b", "x"),
        ("a\u{7f}", "x"),
        ("co:lon", "x"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x", " a"),
        ("x", "a\t"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("content-length", "1 2"),
        (":unknown", "x"),
    ];
    let mut bad = good.to_vec();
    let how = usize::from(how);
    if let Some(extra) = EXTRA.get(how) {
        bad.push(*extra);
        return bad;
    }
    match how % 4 {
        // A pseudo field of another kind of message.
        0 => bad.insert(
            0,
            if good[0].0 == ":status" {
                (":path", "/")
            } else {
                (":status", "200")
            },
        ),
        // Behind an ordinary field.
        1 if good[0].0.starts_with(':') => bad.insert(0, ("x", "y")),
        // Twice; none at all.
        2 if good[0].0.starts_with(':') => bad.push(good[how / 4 % good.len()]),
        3 if good[0].0.starts_with(':') => {
            // All but :authority are needed.
            bad.remove(how / 4 % good.len().min(3));
        }
        _ => bad.push((":method", "GET")),
    }
    bad
}

/// Does damage to what the peer says, and cuts the bytes into frames again.
pub(super) fn damaged(lines: &[Line], damage: &[Damage]) -> Vec<Line> {
    let mut lines = lines.to_vec();
    let mut flips = Vec::new();
    for one in damage {
        let says: Vec<usize> = (0..lines.len())
            .filter(|at| matches!(lines[*at], Line::Say(_)))
            .collect();
        let Some(last) = says.len().checked_sub(1) else { break };
        match one {
            Damage::Drop { frame } => {
                lines.remove(says[frame.index(says.len())]);
            }
            Damage::Double { frame } => {
                let at = says[frame.index(says.len())];
                lines.insert(at, lines[at].clone());
            }
            Damage::Swap { frame } => {
                let one = frame.index(says.len());
                lines.swap(says[one], says[(one + 1).min(last)]);
            }
            Damage::Flip { at, mask } => flips.push((at, mask)),
        }
    }
    // The acts keep their places among the bytes.
    let mut bytes = Vec::new();
    let mut acts = Vec::new();
    for line in lines {
        match line {
            Line::Say(frame) => bytes.extend(frame),
            Line::Act(act) => acts.push((bytes.len(), act)),
        }
    }
    for (at, mask) in flips {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] ^= mask;
        }
    }
    let mut lines = Vec::new();
    let mut acts = acts.into_iter().peekable();
    let mut from = 0;
    while from < bytes.len() {
        while let Some((_, act)) = acts.next_if(|(at, _)| *at <= from) {
            lines.push(Line::Act(act));
        }
        if bytes.len() < from + HEADER_BYTES {
            break;
        }
        let header = Header::parse(bytes[from..].first_chunk().expect("9 bytes"));
        let end = from + HEADER_BYTES + header.len as usize;
        // A frame that was made longer than what is left ends in zeros; one that is too long needs no end.
        if bytes.len() < end {
            bytes.resize(end.min(from + HEADER_BYTES + MAX_PAYLOAD + 1), 0);
        }
        let end = end.min(bytes.len());
        lines.push(Line::Say(bytes[from..end].to_vec()));
        from = end;
    }
    lines
}
