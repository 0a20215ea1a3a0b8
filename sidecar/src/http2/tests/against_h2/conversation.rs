//! What a peer may say, at random: an author that keeps the books of a conversation writes one that breaks no rule.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::peer::*;
use super::Act;
use crate::http2::connection::Role;
use crate::http2::frame::{END_HEADERS, END_STREAM, MAX_STREAM_ID, PADDED, PRIORITY_FLAG, Reason, kind, setting};
use crate::http2::settings::Settings;

/// A line of a conversation.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// The peer says a frame: its bytes.
    Say(Vec<u8>),
    /// The one who hears it does something of its own.
    Act(Act),
}

/// What the author does next, if the conversation allows it.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A request; in the client role, the engine's own.
    Begin {
        end: bool,
        promise: Option<u8>,
        dress: Dress,
    },
    /// A response of the peer (client role).
    Respond {
        which: u8,
        end: bool,
        status: u8,
        promise: Option<u8>,
        dress: Dress,
    },
    Informational {
        which: u8,
    },
    Data {
        which: u8,
        n: usize,
        padding: Option<u8>,
        end: bool,
    },
    Trailers {
        which: u8,
        dress: Dress,
    },
    Rst {
        which: u8,
    },
    Update {
        which: Option<u8>,
        n: u32,
    },
    Priority {
        id: u32,
        on: u32,
    },
    Ping {
        ack: bool,
    },
    Settings {
        which: u8,
        value: u32,
    },
    Unknown {
        kind: u8,
        flags: u8,
        id: u32,
        n: usize,
    },
    GoAway,
    // What the engine's owner does.
    Answer {
        which: u8,
        end: bool,
    },
    Send {
        which: u8,
        n: usize,
        end: bool,
    },
    Reset {
        which: u8,
    },
}

/// How a header block is put on.
#[derive(Clone, Debug, Default)]
pub(super) struct Dress {
    pub(super) padding: Option<u8>,
    pub(super) depends_on: Option<u32>,
    /// Where it is cut into CONTINUATION frames.
    pub(super) cuts: Vec<Index>,
    /// A field that goes by the dynamic table.
    pub(super) indexed: Option<u8>,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let which = any::<u8>;
    let promise = || prop::option::weighted(0.2, 0..60u8);
    let size = prop_oneof![0..4usize, 0..200usize, 0..2_000usize];
    prop_oneof![
        8 => (any::<bool>(), promise(), dress()).prop_map(|(end, promise, dress)| Step::Begin { end, promise, dress }),
        6 => (which(), any::<bool>(), 0..4u8, promise(), dress())
            .prop_map(|(which, end, status, promise, dress)| Step::Respond { which, end, status, promise, dress }),
        1 => which().prop_map(|which| Step::Informational { which }),
        10 => (which(), size, prop::option::weighted(0.2, any::<u8>()), prop::bool::weighted(0.3))
            .prop_map(|(which, n, padding, end)| Step::Data { which, n, padding, end }),
        3 => (which(), dress()).prop_map(|(which, dress)| Step::Trailers { which, dress }),
        2 => which().prop_map(|which| Step::Rst { which }),
        3 => (prop::option::of(which()), 1..5_000u32).prop_map(|(which, n)| Step::Update { which, n }),
        1 => (1..40u32, 0..40u32).prop_map(|(id, on)| Step::Priority { id, on }),
        1 => any::<bool>().prop_map(|ack| Step::Ping { ack }),
        1 => (0..8u8, any::<u32>()).prop_map(|(which, value)| Step::Settings { which, value }),
        1 => (10..=255u8, any::<u8>(), 0..40u32, 0..40usize)
            .prop_map(|(kind, flags, id, n)| Step::Unknown { kind, flags, id, n }),
        6 => (which(), any::<bool>()).prop_map(|(which, end)| Step::Answer { which, end }),
        5 => (which(), 0..50usize, any::<bool>()).prop_map(|(which, n, end)| Step::Send { which, n, end }),
        2 => which().prop_map(|which| Step::Reset { which }),
        // It ends most conversations soon.
        1 => prop::bool::weighted(0.3).prop_map(|go| if go { Step::GoAway } else { Step::Ping { ack: false } }),
    ]
}

pub(super) fn dress() -> impl Strategy<Value = Dress> {
    (
        prop::option::weighted(0.1, any::<u8>()),
        prop::option::weighted(0.1, 0..40u32),
        prop_oneof![5 => Just(Vec::new()), 1 => prop::collection::vec(any::<Index>(), 1..4)],
        prop::option::weighted(0.4, 0..6u8),
    )
        .prop_map(|(padding, depends_on, cuts, indexed)| Dress {
            padding,
            depends_on,
            cuts,
            indexed,
        })
}

/// A stream in the author's books.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// The peer's half: its head was said; it ended.
    pub(super) head: bool,
    pub(super) ended: bool,
    /// The half of the one who hears.
    pub(super) answered: bool,
    pub(super) answer_ended: bool,
    /// Who reset it.
    pub(super) reset_by_peer: bool,
    pub(super) reset_by_engine: bool,
    /// Flow-controlled bytes that were sent.
    pub(super) sent: usize,
    /// Bytes that `content-length` still promises.
    pub(super) left: Option<usize>,
}

impl Told {
    pub(super) fn is_live(&self) -> bool {
        !(self.reset_by_peer || self.reset_by_engine || self.ended && self.answer_ended)
    }
}

pub(super) struct Author {
    pub(super) role: Role,
    pub(super) streams: BTreeMap<u32, Told>,
    /// The next stream that is begun, by whoever begins them.
    pub(super) next: u32,
    /// What a stream may send in all.
    pub(super) window: usize,
    max_streams: usize,
    /// What stands in the dynamic table, the oldest first.
    table: Vec<u8>,
    went_away: bool,
    pub(super) lines: Vec<Line>,
}

const STATUSES: [&str; 4] = ["200", "404", "204", "304"];

impl Author {
    /// The peer has said its SETTINGS, and acknowledged the engine's.
    pub(super) fn new(role: Role, hearer: &Settings) -> Author {
        let mut author = Author {
            role,
            streams: BTreeMap::new(),
            next: 1,
            window: hearer.first_stream_window as usize,
            max_streams: hearer.max_concurrent_streams as usize,
            table: Vec::new(),
            went_away: false,
            lines: Vec::new(),
        };
        author.say(&[settings(&[]), settings_ack()]);
        author
    }

    pub(super) fn say(&mut self, frames: &[Frame]) {
        for frame in frames {
            self.lines.push(Line::Say(bytes_of(std::slice::from_ref(frame))));
        }
    }

    /// The streams for which something holds.
    pub(super) fn those(&self, which: impl Fn(&Told) -> bool) -> Vec<u32> {
        let streams = self.streams.iter().filter(|(_, told)| which(told));
        streams.map(|(id, _)| *id).collect()
    }

    pub(super) fn pick(&self, which: u8, of: impl Fn(&Told) -> bool) -> Option<u32> {
        let ids = self.those(of);
        ids.get(usize::from(which).checked_rem(ids.len())?).copied()
    }

    /// Streams on which the peer may send payload.
    pub(super) fn open_body(told: &Told) -> bool {
        told.is_live() && told.head && !told.ended
    }

    pub(super) fn told(&mut self, id: u32) -> &mut Told {
        self.streams.get_mut(&id).expect("it is in the books")
    }

    /// Whether another stream may begin.
    pub(super) fn may_begin(&self) -> bool {
        let open = self.those(Told::is_live).len();
        let asks_after_goaway = self.role == Role::Client && self.went_away;
        open < self.max_streams && !asks_after_goaway
    }

    /// Takes an identifier for a stream whose request has been said.
    pub(super) fn begin(&mut self, end: bool) -> u32 {
        let id = self.next;
        self.next += 2;
        let told = match self.role {
            Role::Server => Told {
                head: true,
                ended: end,
                ..Told::default()
            },
            Role::Client => Told {
                answered: true,
                answer_ended: end,
                ..Told::default()
            },
        };
        self.streams.insert(id, told);
        id
    }

    pub(super) fn play(&mut self, step: &Step) {
        match *step {
            Step::Begin {
                end,
                promise,
                ref dress,
            } if self.may_begin() => match self.role {
                Role::Server => {
                    let mut fields = request().to_vec();
                    let promise = if end { promise.map(|_| 0) } else { promise };
                    let length = promise.map(|n| n.to_string());
                    if let Some(length) = &length {
                        fields.push(("content-length", length));
                    }
                    let id = self.begin(end);
                    self.told(id).left = promise.map(usize::from);
                    let block = self.block(&fields, dress.indexed);
                    self.say(&dressed(id, &block, end, dress));
                }
                Role::Client => {
                    self.begin(end);
                    self.lines.push(Line::Act(Act::Ask { end }));
                }
            },
            Step::Respond {
                which,
                end,
                status,
                promise,
                ref dress,
            } if self.role == Role::Client => {
                let Some(id) = self.pick(which, |told| told.is_live() && !told.head) else {
                    return;
                };
                let status = STATUSES[usize::from(status)];
                let empty = end || matches!(status, "204" | "304");
                let promise = if empty { promise.map(|_| 0) } else { promise };
                let length = promise.map(|n| n.to_string());
                let mut fields = vec![(":status", status)];
                if let Some(length) = &length {
                    fields.push(("content-length", length));
                }
                let told = self.told(id);
                (told.head, told.ended) = (true, end);
                told.left = if empty { Some(0) } else { promise.map(usize::from) };
                let block = self.block(&fields, dress.indexed);
                self.say(&dressed(id, &block, end, dress));
            }
            Step::Informational { which } if self.role == Role::Client => {
                if let Some(id) = self.pick(which, |told| told.is_live() && !told.head) {
                    self.say(&[headers(id, &[(":status", "103"), ("link", "x")], false)]);
                }
            }
            Step::Data { which, n, padding, end } => {
                let Some(id) = self.pick(which, Author::open_body) else {
                    return;
                };
                let window = self.window;
                let told = self.told(id);
                let overhead = padding.map_or(0, |padding| usize::from(padding) + 1);
                let n = match told.left {
                    Some(left) if end => left,
                    Some(left) => n.min(left),
                    None => n,
                };
                if told.sent + n + overhead > window {
                    return;
                }
                told.sent += n + overhead;
                told.left = told.left.map(|left| left - n);
                told.ended = end;
                let bytes = vec![b'd'; n];
                self.say(&[match padding {
                    Some(padding) => padded_data(id, &bytes, padding, end),
                    None => data(id, &bytes, end),
                }]);
            }
            Step::Trailers { which, ref dress } => {
                let of = |told: &Told| Author::open_body(told) && told.left.unwrap_or(0) == 0;
                let Some(id) = self.pick(which, of) else { return };
                self.told(id).ended = true;
                let block = self.block(&[("grpc-status", "0")], dress.indexed);
                self.say(&dressed(id, &block, true, dress));
            }
            Step::Rst { which } => {
                // A client that has not been answered may reset; a server whatever it likes.
                if let Some(id) = self.pick(which, Told::is_live) {
                    self.told(id).reset_by_peer = true;
                    self.say(&[rst(id, Reason::CANCEL)]);
                }
            }
            Step::Update { which: None, n } => self.say(&[window_update(0, n)]),
            Step::Update { which: Some(which), n } => {
                // Late ones are legal, too (5.1).
                if let Some(id) = self.pick(which, |_| true) {
                    self.say(&[window_update(id, n)]);
                }
            }
            Step::Priority { id, on } if id != on => self.say(&[priority(id, on)]),
            Step::Ping { ack } => self.say(&[if ack { pong([7; 8]) } else { ping([8; 8]) }]),
            Step::Settings { which, value } => self.settings(which, value),
            Step::Unknown { kind, flags, id, n } => self.say(&[raw(kind, flags, id, &vec![0xee; n])]),
            Step::GoAway => {
                self.went_away = true;
                self.say(&[goaway(MAX_STREAM_ID, Reason::NO_ERROR)]);
            }
            Step::Answer { which, end } if self.role == Role::Server => {
                if let Some(id) = self.pick(which, |told| told.is_live() && !told.answered) {
                    let told = self.told(id);
                    (told.answered, told.answer_ended) = (true, end);
                    self.lines.push(Line::Act(Act::Answer { id, end }));
                }
            }
            Step::Send { which, n, end } => {
                let of = |told: &Told| told.is_live() && told.answered && !told.answer_ended;
                if let Some(id) = self.pick(which, of) {
                    self.told(id).answer_ended = end;
                    self.lines.push(Line::Act(Act::Send { id, n, end }));
                }
            }
            Step::Reset { which } => {
                if let Some(id) = self.pick(which, Told::is_live) {
                    self.told(id).reset_by_engine = true;
                    self.lines.push(Line::Act(Act::Reset { id }));
                }
            }
            // It does not fit here.
            Step::Begin { .. }
            | Step::Respond { .. }
            | Step::Informational { .. }
            | Step::Priority { .. }
            | Step::Answer { .. } => {}
        }
    }

    /// Windows stay so large that nothing the engine sends has to wait.
    fn settings(&mut self, which: u8, value: u32) {
        let value = match which {
            0 => (setting::HEADER_TABLE_SIZE, value),
            1 => (
                setting::ENABLE_PUSH,
                if self.role == Role::Server { value % 2 } else { 0 },
            ),
            2 => (setting::MAX_CONCURRENT_STREAMS, value.max(1_000)),
            3 => (setting::INITIAL_WINDOW_SIZE, 10_000 + value % 1_000_000),
            4 => (setting::MAX_FRAME_SIZE, 16_384 + value % (16_777_216 - 16_384)),
            5 => (setting::MAX_HEADER_LIST_SIZE, value.max(10_000)),
            6 => (0x9_99, value),
            _ => return self.say(&[settings(&[])]),
        };
        self.say(&[settings(&[value, value])]);
    }

    /// A block of literals, with one field that goes by the dynamic table.
    pub(super) fn block(&mut self, fields: &[(&str, &str)], indexed: Option<u8>) -> Vec<u8> {
        let mut bytes = block(fields);
        if let Some(value) = indexed {
            match self.table.iter().rev().position(|held| *held == value) {
                Some(at) => bytes.push(0x80 | (62 + at as u8)),
                None => {
                    self.table.push(value);
                    let text = block(&[("x-i", &value.to_string())]);
                    bytes.push(0x40);
                    bytes.extend_from_slice(&text[1..]);
                }
            }
        }
        bytes
    }
}

/// A block in HEADERS and CONTINUATION.
pub(super) fn dressed(id: u32, block: &[u8], end: bool, dress: &Dress) -> Vec<Frame> {
    let mut cuts: Vec<usize> = dress.cuts.iter().map(|cut| cut.index(block.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(block.len());
    let mut from = 0;
    let mut frames = Vec::new();
    for (i, to) in cuts.iter().copied().enumerate() {
        let mut piece = block[from..to].to_vec();
        from = to;
        let mut flags = if i + 1 == cuts.len() { END_HEADERS } else { 0 };
        if i > 0 {
            frames.push(raw(kind::CONTINUATION, flags, id, &piece));
            continue;
        }
        if end {
            flags |= END_STREAM;
        }
        if let Some(on) = dress.depends_on.filter(|on| *on != id) {
            flags |= PRIORITY_FLAG;
            piece = [&on.to_be_bytes()[..], &[15], &piece].concat();
        }
        if let Some(padding) = dress.padding {
            flags |= PADDED;
            piece = padded(&piece, padding);
        }
        frames.push(raw(kind::HEADERS, flags, id, &piece));
    }
    frames
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Say(bytes) => write!(f, "[{}] {}", bytes.len(), bytes[..bytes.len().min(200)].escape_ascii()),
            Line::Act(act) => write!(f, "{act:?}"),
        }
    }
}
