//! The states of streams against a table of RFC 9113, 5.1, over random frames; and that noise never breaks the engine.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::peer::*;
use crate::http2::connection::Role;
use crate::http2::frame::{END_HEADERS, END_STREAM, PREFACE, Reason, kind};
use crate::http2::settings::Settings;

/// A stream, as the RFC's figure 2 has it, seen from the engine. A stream without an entry is idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The peer's half: whether its head came, and whether it ended; and whether ours ended.
    Live {
        head: bool,
        theirs: bool,
        ours: bool,
    },
    BothEnded,
    TheyReset,
    WeReset,
    PassedOver,
}

/// What a frame must lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Ignored,
    Stream(Reason),
    Connection(Reason),
}

#[derive(Clone, Debug)]
enum Step {
    /// A request, or a response.
    Head {
        id: u32,
        end: bool,
    },
    Trailers {
        id: u32,
        end: bool,
    },
    Informational {
        id: u32,
        end: bool,
    },
    Data {
        id: u32,
        empty: bool,
        end: bool,
    },
    Rst {
        id: u32,
    },
    Update {
        id: u32,
        n: u32,
    },
    Priority {
        id: u32,
        on: u32,
    },
    Push {
        id: u32,
    },
    Continuation {
        id: u32,
    },
    Unknown {
        id: u32,
    },
    WrongSize {
        id: u32,
        kind: u8,
    },
    OnStream {
        id: u32,
        kind: u8,
    },
    // What we do.
    Ask {
        end: bool,
    },
    Answer {
        id: u32,
        end: bool,
    },
    Reset {
        id: u32,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Most frames are for streams that there are: others end the play.
    let id = || prop_oneof![40 => (0..4u32).prop_map(|n| 2 * n + 1), 1 => 0..12u32];
    let end = any::<bool>;
    prop_oneof![
        6 => (id(), end()).prop_map(|(id, end)| Step::Head { id, end }),
        3 => (id(), prop::bool::weighted(0.8)).prop_map(|(id, end)| Step::Trailers { id, end }),
        1 => (id(), prop::bool::weighted(0.2)).prop_map(|(id, end)| Step::Informational { id, end }),
        6 => (id(), end(), end()).prop_map(|(id, empty, end)| Step::Data { id, empty, end }),
        3 => id().prop_map(|id| Step::Rst { id }),
        3 => (id(), prop_oneof![Just(0u32), 1..100u32]).prop_map(|(id, n)| Step::Update { id, n }),
        2 => (id(), id()).prop_map(|(id, on)| Step::Priority { id, on }),
        1 => id().prop_map(|id| Step::Unknown { id }),
        // These end most plays, so they are rare.
        1 => prop_oneof![
            id().prop_map(|id| Step::Push { id }),
            id().prop_map(|id| Step::Continuation { id }),
            (id(), prop_oneof![Just(kind::RST_STREAM), Just(kind::WINDOW_UPDATE), Just(kind::PRIORITY)])
                .prop_map(|(id, kind)| Step::WrongSize { id, kind }),
            (id(), prop_oneof![Just(kind::PING), Just(kind::SETTINGS), Just(kind::GOAWAY)])
                .prop_map(|(id, kind)| Step::OnStream { id, kind }),
        ],
        4 => end().prop_map(|end| Step::Ask { end }),
        4 => (id(), end()).prop_map(|(id, end)| Step::Answer { id, end }),
        2 => id().prop_map(|id| Step::Reset { id }),
    ]
}

/// The table.
struct Model {
    role: Role,
    streams: BTreeMap<u32, State>,
    highest: u32,
}

impl Model {
    fn theirs(&self, id: u32) -> bool {
        (id % 2 == 1) == (self.role == Role::Server)
    }

    fn is_idle(&self, id: u32) -> bool {
        !self.streams.contains_key(&id)
    }

    /// The peer may not use this stream in this state.
    fn late(state: State) -> Verdict {
        match state {
            State::Live { .. } => Verdict::Stream(Reason::STREAM_CLOSED),
            State::BothEnded => Verdict::Connection(Reason::STREAM_CLOSED),
            State::TheyReset => Verdict::Stream(Reason::STREAM_CLOSED),
            State::WeReset => Verdict::Ignored,
            State::PassedOver => Verdict::Connection(Reason::PROTOCOL_ERROR),
        }
    }

    fn open(&mut self, id: u32, state: State) {
        let first = if id % 2 == 1 { 1 } else { 2 };
        for passed in (first..id).step_by(2) {
            self.streams.entry(passed).or_insert(State::PassedOver);
        }
        self.streams.insert(id, state);
        self.highest = self.highest.max(id);
    }

    /// What becomes of a stream after a verdict.
    fn judged(&mut self, id: u32, verdict: Verdict) -> Verdict {
        if let (Verdict::Stream(_), Some(state)) = (verdict, self.streams.get_mut(&id))
            && matches!(state, State::Live { .. })
        {
            *state = State::WeReset;
        }
        verdict
    }

    fn advance(&mut self, id: u32, head: bool, theirs: bool, ours: bool) {
        let state = if theirs && ours {
            State::BothEnded
        } else {
            State::Live { head, theirs, ours }
        };
        self.streams.insert(id, state);
    }

    fn block(&mut self, id: u32, what: Block, end: bool) -> Verdict {
        use Verdict::*;
        if id == 0 {
            return Connection(Reason::PROTOCOL_ERROR);
        }
        let Some(&state) = self.streams.get(&id) else {
            if !self.theirs(id) || self.role == Role::Client {
                return Connection(Reason::PROTOCOL_ERROR);
            }
            if what != Block::Request {
                self.open(id, State::WeReset);
                return Stream(Reason::PROTOCOL_ERROR);
            }
            let live = State::Live {
                head: true,
                theirs: end,
                ours: false,
            };
            self.open(id, live);
            return Fine;
        };
        let State::Live { head, theirs, ours } = state else {
            return Model::late(state);
        };
        if theirs {
            return self.judged(id, Stream(Reason::STREAM_CLOSED));
        }
        let fine = match what {
            Block::Trailers => head && end,
            Block::Response => self.role == Role::Client && !head,
            Block::Informational => self.role == Role::Client && !head && !end,
            Block::Request => false,
        };
        if !fine {
            return self.judged(id, Stream(Reason::PROTOCOL_ERROR));
        }
        self.advance(id, head || what == Block::Response, end, ours);
        Fine
    }

    fn data(&mut self, id: u32, end: bool) -> Verdict {
        use Verdict::*;
        if id == 0 || self.is_idle(id) {
            return Connection(Reason::PROTOCOL_ERROR);
        }
        let state = self.streams[&id];
        let State::Live { head, theirs, ours } = state else {
            return Model::late(state);
        };
        if theirs {
            return self.judged(id, Stream(Reason::STREAM_CLOSED));
        }
        if !head {
            return self.judged(id, Stream(Reason::PROTOCOL_ERROR));
        }
        self.advance(id, head, end, ours);
        Fine
    }

    /// What the step must lead to; the frame, if it is the peer's.
    fn step(&mut self, step: &Step) -> (Verdict, Option<Frame>) {
        use Verdict::*;
        let protocol = Connection(Reason::PROTOCOL_ERROR);
        let live = |model: &Model, id: u32| matches!(model.streams.get(&id), Some(State::Live { .. }));
        match *step {
            Step::Head { id, end } => match self.role {
                Role::Server => (self.block(id, Block::Request, end), Some(ask(id, end))),
                Role::Client => (self.block(id, Block::Response, end), Some(answer(id, end))),
            },
            Step::Trailers { id, end } => {
                let frame = headers(id, &[("a", "b")], end);
                (self.block(id, Block::Trailers, end), Some(frame))
            }
            Step::Informational { id, end } => {
                let frame = headers(id, &[(":status", "103")], end);
                (self.block(id, Block::Informational, end), Some(frame))
            }
            Step::Data { id, empty, end } => {
                let bytes: &[u8] = if empty { b"" } else { b"bytes" };
                (self.data(id, end), Some(data(id, bytes, end)))
            }
            Step::Rst { id } => {
                let verdict = if id == 0 || self.is_idle(id) {
                    protocol
                } else if live(self, id) {
                    self.streams.insert(id, State::TheyReset);
                    Fine
                } else {
                    Ignored
                };
                (verdict, Some(rst(id, Reason::CANCEL)))
            }
            Step::Update { id, n } => {
                let verdict = if id == 0 {
                    if n == 0 { protocol } else { Fine }
                } else if self.is_idle(id) {
                    protocol
                } else if !live(self, id) {
                    Ignored
                } else if n == 0 {
                    self.judged(id, Stream(Reason::PROTOCOL_ERROR))
                } else {
                    Fine
                };
                (verdict, Some(window_update(id, n)))
            }
            Step::Priority { id, on } => {
                let verdict = if id == 0 || (id == on && self.is_idle(id)) {
                    protocol
                } else if id == on && live(self, id) {
                    self.judged(id, Stream(Reason::PROTOCOL_ERROR))
                } else {
                    Ignored
                };
                (verdict, Some(priority(id, on)))
            }
            Step::Push { id } => (protocol, Some(raw(kind::PUSH_PROMISE, END_HEADERS, id, &[0, 0, 0, 2]))),
            Step::Continuation { id } => (protocol, Some(raw(kind::CONTINUATION, END_HEADERS, id, &[]))),
            Step::Unknown { id } => (Ignored, Some(raw(0x99, 0xff, id, b"?"))),
            Step::WrongSize { id, kind } => {
                let verdict = match kind {
                    kind::PRIORITY if id == 0 => protocol,
                    kind::RST_STREAM if id == 0 => protocol,
                    kind::PRIORITY if live(self, id) => self.judged(id, Stream(Reason::FRAME_SIZE_ERROR)),
                    kind::PRIORITY if matches!(self.streams.get(&id), Some(State::WeReset)) => Ignored,
                    kind::PRIORITY if !self.is_idle(id) => Stream(Reason::FRAME_SIZE_ERROR),
                    _ => Connection(Reason::FRAME_SIZE_ERROR),
                };
                (verdict, Some(raw(kind, 0, id, &[0; 7])))
            }
            Step::OnStream { id, kind } => (protocol, Some(raw(kind, 0, id.max(1), &[0; 8]))),
            Step::Ask { .. } | Step::Answer { .. } | Step::Reset { .. } => (Fine, None),
        }
    }

    /// What we do ourselves, if the stream is in a state for it.
    fn act(&mut self, step: &Step, end_under_test: &mut End) {
        match *step {
            Step::Ask { end } if self.role == Role::Client && end_under_test.conn.has_capacity() => {
                let id = end_under_test.ask(end);
                self.open(
                    id,
                    State::Live {
                        head: false,
                        theirs: false,
                        ours: end,
                    },
                );
            }
            Step::Answer { id, end } if self.role == Role::Server => {
                if let Some(&State::Live {
                    head,
                    theirs,
                    ours: false,
                }) = self.streams.get(&id)
                {
                    end_under_test.answer(id, end);
                    self.advance(id, head, theirs, end);
                    if !end {
                        end_under_test.send(id, b"x", true);
                        self.advance(id, head, theirs, true);
                    }
                }
            }
            Step::Reset { id } => {
                if matches!(self.streams.get(&id), Some(State::Live { .. })) {
                    end_under_test.reset(id, Reason::CANCEL);
                    self.streams.insert(id, State::WeReset);
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Request,
    Response,
    Informational,
    Trailers,
}

/// What the engine made of a frame.
fn reaction(seen: &[Seen], said: &[Frame]) -> Verdict {
    if let Some(Seen::Fatal(reason)) = seen.last() {
        let last = said.last().expect("a GOAWAY is the last word");
        assert_eq!(goaway_of(last).1, *reason, "the peer is told what the owner is");
        return Verdict::Connection(*reason);
    }
    if let Some(reset) = said.iter().find(|frame| frame.kind == kind::RST_STREAM) {
        let code = u32::from_be_bytes(reset.payload[..].try_into().expect("4 bytes"));
        return Verdict::Stream(Reason(code));
    }
    if seen.is_empty() {
        Verdict::Ignored
    } else {
        Verdict::Fine
    }
}

fn play(mut end: End, role: Role, steps: &[Step]) {
    let mut model = Model {
        role,
        streams: BTreeMap::new(),
        highest: 0,
    };
    let first = [1, 3, 5, 7].map(|id| match role {
        Role::Server => Step::Head { id, end: id % 4 == 1 },
        Role::Client => Step::Ask { end: id % 4 == 1 },
    });
    for (at, step) in first.iter().chain(steps).enumerate() {
        model.act(step, &mut end);
        end.said();
        let (expected, frame) = model.step(step);
        let Some(frame) = frame else { continue };
        let seen = end.feed(&[frame]);
        let actual = reaction(&seen, &end.said());
        // A legal frame may need no event: an update of the connection's window, an empty piece of DATA.
        let silent = expected == Verdict::Fine && actual == Verdict::Ignored;
        assert!(
            actual == expected || silent,
            "step {at}, {step:?}: {actual:?} instead of {expected:?}, of {:?}",
            model.streams
        );
        for (id, state) in &model.streams {
            let live = matches!(state, State::Live { .. });
            assert!(
                end.fatal.is_some() || end.is_open(*id) == live,
                "step {at}, {step:?}: stream {id} is {state:?}"
            );
        }
        if end.fatal.is_some() {
            return;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each frame in each state of a server's stream leads to what the RFC says.
    #[test]
    fn a_server_judges_frames_by_the_state_of_their_stream(steps in vec(step(), 0..40)) {
        play(End::server(), Role::Server, &steps);
    }

    /// Each frame in each state of a client's stream leads to what the RFC says.
    #[test]
    fn a_client_judges_frames_by_the_state_of_their_stream(steps in vec(step(), 0..40)) {
        play(End::client(), Role::Client, &steps);
    }

    /// Whatever comes: no panic, whole frames in the output, and the same however it was cut.
    #[test]
    fn noise_breaks_nothing(
        frames in vec((0..11u8, any::<u8>(), 0..8u32, vec(any::<u8>(), 0..40)), 0..30),
        flips in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        client in any::<bool>(),
        cut in 1..60usize,
    ) {
        let mut frames: Vec<Frame> = frames
            .into_iter()
            .map(|(kind, flags, stream, payload)| raw(kind, flags, stream, &payload))
            .collect();
        // Some order in the noise, so that it gets somewhere.
        frames.insert(0, settings(&[]));
        frames.insert(frames.len() / 2, ask(1, false));
        frames.insert(frames.len() / 2, raw(kind::HEADERS, END_HEADERS | END_STREAM, 3, &block(&request())));
        let mut bytes = bytes_of(&frames);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let start = || {
            let mut end = if client {
                End::fresh_client(Settings::default())
            } else {
                let mut end = End::fresh_server(Settings::default(), false);
                end.feed_bytes(PREFACE);
                end
            };
            if client {
                end.ask(false);
                end.ask(true);
            }
            end.said();
            end
        };
        let mut whole = start();
        let seen_whole = whole.feed_bytes(&bytes);
        let said_whole = whole.said();
        let mut pieces = start();
        let mut seen = Vec::new();
        for piece in bytes.chunks(cut) {
            pieces.feed_into(piece, &mut seen);
        }
        prop_assert_eq!(&seen, &seen_whole);
        prop_assert_eq!(pieces.said(), said_whole);
        whole.conn.release(&mut whole.shared);
        whole.shared.release();
        prop_assert_eq!(whole.shared.budget.used(), 0);
        prop_assert_eq!(whole.shared.interner.live(), 0);
    }
}
