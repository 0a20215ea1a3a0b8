//! One illegal frame after another, with the verdict of each side: what the RFC says, and what h2 says where that differs.

use std::collections::BTreeSet;

use super::super::peer::*;
use super::Verdict::{Connection as C, Fine, Stream as S};
use super::both::{Differs, hear};
use super::conversation::Line;
use super::differences::DIFFERENCES;
use super::ours::Scene;
use super::{Act, CLOSED, COMPRESSION, FLOW, PROTOCOL, SIZE, Verdict};
use crate::http2::connection::Role;
use crate::http2::frame::{ACK, END_HEADERS, END_STREAM, MAX_STREAM_ID, PADDED, PRIORITY_FLAG, Reason, kind, setting};
use crate::http2::settings::Settings;

/// Conversations whose last frame is judged; all before it are fine.
struct Cases {
    role: Role,
    /// What is said before each of them.
    greeting: Vec<Line>,
    wrong: Vec<String>,
    /// Which entries of the table they have met.
    met: BTreeSet<usize>,
}

impl Cases {
    fn new(role: Role) -> Cases {
        let mut greeting = vec![Line::from(settings(&[])), Line::from(settings_ack())];
        if role == Role::Client {
            greeting.extend([Act::Ask { end: true }, Act::Ask { end: false }].map(Line::Act));
        }
        Cases {
            role,
            greeting,
            wrong: Vec::new(),
            met: BTreeSet::new(),
        }
    }

    /// Both say the same.
    fn agree(&mut self, name: &str, lines: impl Into<Vec<Line>>, both: Verdict) {
        self.case(name, &lines.into(), both, both);
    }

    /// h2 says something else, for a reason that stands in the table.
    fn differ(&mut self, name: &str, lines: impl Into<Vec<Line>>, ours: Verdict, theirs: Verdict) {
        assert_ne!(ours, theirs, "{name}");
        self.case(name, &lines.into(), ours, theirs);
    }

    fn case(&mut self, name: &str, lines: &[Line], ours: Verdict, theirs: Verdict) {
        let lines = [&self.greeting[..], lines].concat();
        let settings = Settings {
            first_stream_window: 70_000,
            max_concurrent_streams: 3,
            ..Settings::default()
        };
        let heard = hear(self.role, &settings, &lines);
        let (last, before) = heard.scenes.split_last().expect("something was said");
        let odd = |(line, scene): &&(usize, Scene)| *line >= self.greeting.len() && scene.verdict != Fine;
        if let Some((_, odd)) = before.iter().find(odd) {
            self.wrong.push(format!("{name}: {odd:?} comes before the last"));
        }
        let (we_say, h2_says) = match &heard.difference {
            None => (last.1.verdict, last.1.verdict),
            Some(Differs {
                scene, theirs, known, ..
            }) => {
                match known {
                    Some(known) => {
                        let at = DIFFERENCES.iter().position(|one| std::ptr::eq(one, *known));
                        self.met.extend(at);
                    }
                    None => self
                        .wrong
                        .push(format!("{name}: the table does not know {:?}", heard.scenes[*scene])),
                }
                (last.1.verdict, *theirs)
            }
        };
        if (we_say, h2_says) != (ours, theirs) {
            self.wrong.push(format!(
                "{name}: we say {we_say:?} and h2 {h2_says:?}, instead of {ours:?} and {theirs:?}"
            ));
        }
    }

    fn finish(self) -> BTreeSet<usize> {
        assert!(self.wrong.is_empty(), "{:?}:\n{}", self.role, self.wrong.join("\n"));
        self.met
    }
}

/// So that cases read as lists of frames, and acts among them.
impl From<Frame> for Line {
    fn from(frame: Frame) -> Line {
        Line::Say(bytes_of(&[frame]))
    }
}

impl From<Act> for Line {
    fn from(act: Act) -> Line {
        Line::Act(act)
    }
}

fn lines<const N: usize>(frames: [Frame; N]) -> Vec<Line> {
    frames.map(Line::from).into()
}

/// `first`, and something behind it.
fn behind(first: &[Line], then: impl Into<Line>) -> Vec<Line> {
    [first, &[then.into()]].concat()
}

const MAX: u32 = (1 << 31) - 1;

#[test]
fn odd_frames_are_answered_as_h2_answers_them_or_for_a_reason() {
    let mut met = a_server();
    met.extend(a_client());
    let unmet: Vec<_> = DIFFERENCES
        .iter()
        .enumerate()
        .filter(|(at, _)| !met.contains(at))
        .map(|(_, one)| format!("{}: {}", one.section, one.why))
        .collect();
    assert!(unmet.is_empty(), "no case needs these entries:\n{}", unmet.join("\n"));
}

fn a_server() -> BTreeSet<usize> {
    let mut cases = Cases::new(Role::Server);
    let open = lines([ask(1, false)]);
    let ended = lines([ask(1, true)]);
    let reset_by_peer = lines([ask(1, false), rst(1, Reason::CANCEL)]);
    let reset_by_us = behind(&open, Act::Reset { id: 1 });
    let both_ended = behind(&ended, Act::Answer { id: 1, end: true });
    // The fourth is one too many.
    let refused = lines([ask(1, false), ask(3, false), ask(5, false), ask(7, false)]);
    let with = |more: &[(&'static str, &'static str)]| lines([headers(1, &[&request()[..], more].concat(), true)]);
    let late = || headers(1, &[("a", "b")], true);

    cases.agree("a request", lines([ask(1, true)]), Fine);
    cases.agree("an unknown frame", lines([raw(0x55, 0xff, 1, b"?")]), Fine);
    cases.agree("padding", behind(&open, padded_data(1, b"x", 200, true)), Fine);

    // Sizes (4.2).
    let sizes = [
        ("an ACK with payload", raw(kind::SETTINGS, ACK, 0, &[0; 6])),
        ("SETTINGS of 5 bytes", raw(kind::SETTINGS, 0, 0, &[0; 5])),
        ("PING of 7 bytes", raw(kind::PING, 0, 0, &[0; 7])),
        ("GOAWAY of 7 bytes", raw(kind::GOAWAY, 0, 0, &[0; 7])),
        ("RST_STREAM of 3 bytes", raw(kind::RST_STREAM, 0, 1, &[0; 3])),
        ("an update of 3 bytes", raw(kind::WINDOW_UPDATE, 0, 0, &[0; 3])),
        ("padded DATA without its length", raw(kind::DATA, PADDED, 1, &[])),
        (
            "HEADERS shorter than their priority",
            raw(kind::HEADERS, PRIORITY_FLAG, 1, &[0; 4]),
        ),
        (
            "PRIORITY of 4 bytes on an idle stream",
            raw(kind::PRIORITY, 0, 9, &[0; 4]),
        ),
    ];
    for (name, frame) in sizes {
        cases.differ(name, behind(&open, frame), C(SIZE), C(PROTOCOL));
    }
    let short = || raw(kind::PRIORITY, 0, 1, &[0; 4]);
    cases.differ("PRIORITY of 4 bytes", behind(&open, short()), S(SIZE), C(PROTOCOL));
    cases.differ(
        "the same after our reset",
        behind(&reset_by_us, short()),
        Fine,
        C(PROTOCOL),
    );
    cases.agree(
        "a frame larger than allowed",
        behind(&open, data(1, &[0; 16_385], false)),
        C(SIZE),
    );

    // Places (6.1 to 6.10), and identifiers (5.1.1).
    let places = [
        ("SETTINGS on a stream", raw(kind::SETTINGS, 0, 1, &[])),
        ("PING on a stream", raw(kind::PING, 0, 1, &[0; 8])),
        ("GOAWAY on a stream", raw(kind::GOAWAY, 0, 1, &[0; 8])),
        ("DATA on stream 0", data(0, b"x", false)),
        ("HEADERS on stream 0", ask(0, true)),
        ("RST_STREAM on stream 0", rst(0, Reason::CANCEL)),
        ("PRIORITY on stream 0", priority(0, 1)),
        ("HEADERS on an even stream", ask(2, true)),
        ("DATA on an idle stream", data(3, b"x", false)),
        ("RST_STREAM on an idle stream", rst(3, Reason::CANCEL)),
        ("an update on an idle stream", window_update(3, 1)),
        (
            "PUSH_PROMISE of a client",
            raw(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]),
        ),
        ("CONTINUATION of nothing", raw(kind::CONTINUATION, END_HEADERS, 1, &[])),
    ];
    for (name, frame) in places {
        cases.agree(name, behind(&open, frame), C(PROTOCOL));
    }
    cases.agree("a lower identifier", lines([ask(5, true), ask(3, true)]), C(PROTOCOL));
    let passed_over = lines([ask(5, true)]);
    cases.differ(
        "DATA on one that was passed over",
        behind(&passed_over, data(3, b"x", true)),
        C(PROTOCOL),
        S(CLOSED),
    );
    let connection = &[&request()[..], &[("connection", "x")]].concat();
    let malformed = |id| headers(id, connection, true);
    cases.differ(
        "a malformed list on it",
        behind(&passed_over, malformed(3)),
        C(PROTOCOL),
        S(PROTOCOL),
    );
    let push = raw(kind::PUSH_PROMISE, 0, 1, &[0, 0, 0, 2, 0x82]);
    cases.differ("PUSH_PROMISE that goes on", behind(&open, push), C(PROTOCOL), Fine);

    // SETTINGS, and what comes before them (3.4, 6.5).
    let one = |id, value| lines([settings(&[(id, value)])]);
    cases.agree("ENABLE_PUSH 2", one(setting::ENABLE_PUSH, 2), C(PROTOCOL));
    cases.agree("frames of 16,383", one(setting::MAX_FRAME_SIZE, 16_383), C(PROTOCOL));
    cases.differ(
        "a window of 2^31",
        one(setting::INITIAL_WINDOW_SIZE, MAX + 1),
        C(FLOW),
        C(PROTOCOL),
    );
    cases.differ("ENABLE_CONNECT_PROTOCOL 2", one(8, 2), Fine, C(PROTOCOL));
    cases.differ("an ACK of nothing", lines([settings_ack()]), Fine, C(PROTOCOL));
    let greeting = std::mem::take(&mut cases.greeting);
    cases.differ("a PING first", lines([ping([0; 8])]), C(PROTOCOL), Fine);
    cases.differ("an ACK first", lines([settings_ack()]), C(PROTOCOL), Fine);
    let mut early = lines([settings(&[]), ask(1, false)]);
    early.extend([16_384, 16_384, 16_384, 16_384].map(|n| Line::from(data(1, &vec![0; n], false))));
    cases.differ("more than 65,535 before the ACK", early, Fine, S(FLOW));
    cases.greeting = greeting;

    // Windows (6.9).
    let flood = || {
        vec![data(1, &[0; 14_000], false); 5]
            .into_iter()
            .map(Line::from)
            .collect::<Vec<_>>()
    };
    let full = [&open[..], &flood()].concat();
    cases.agree(
        "one byte more than the window",
        behind(&full, data(1, b"x", true)),
        S(FLOW),
    );
    let padded_flood: Vec<_> = (0..200)
        .map(|_| Line::from(padded_data(1, &[0; 94], 255, false)))
        .collect();
    let padded_full = [&open[..], &padded_flood].concat();
    cases.differ(
        "the same with padding",
        behind(&padded_full, data(1, b"x", true)),
        S(FLOW),
        Fine,
    );
    let head = headers(1, &[&request()[..], &[("content-length", "18800")]].concat(), false);
    let promised = [&lines([head])[..], &padded_flood].concat();
    cases.differ(
        "that breaks its promise",
        behind(&promised, data(1, b"x", true)),
        S(FLOW),
        S(PROTOCOL),
    );
    cases.agree("an update of nothing", lines([window_update(0, 0)]), C(PROTOCOL));
    cases.agree("an update that overflows", lines([window_update(0, MAX)]), C(FLOW));
    cases.agree(
        "an update that overflows a stream",
        behind(&open, window_update(1, MAX)),
        S(FLOW),
    );
    let answered = behind(&open, Act::Answer { id: 1, end: true });
    cases.differ(
        "one that we have ended",
        behind(&answered, window_update(1, MAX)),
        S(FLOW),
        Fine,
    );
    cases.differ(
        "an update of nothing on a stream",
        behind(&open, window_update(1, 0)),
        S(PROTOCOL),
        C(PROTOCOL),
    );
    cases.differ(
        "on one that is gone",
        behind(&reset_by_peer, window_update(1, 0)),
        Fine,
        C(PROTOCOL),
    );

    // Blocks (4.3, 6.2, 6.10).
    let part = |id, bytes: &[u8]| raw(kind::HEADERS, 0, id, bytes);
    let rest = |id, bytes: &[u8]| raw(kind::CONTINUATION, END_HEADERS, id, bytes);
    let whole = block(&request());
    cases.agree(
        "DATA in a block",
        lines([part(1, &whole), data(1, b"x", false)]),
        C(PROTOCOL),
    );
    cases.agree(
        "another stream's block in a block",
        lines([part(1, &[]), rest(3, &whole)]),
        C(PROTOCOL),
    );
    cases.agree(
        "more padding than bytes",
        behind(&open, raw(kind::DATA, PADDED, 1, &[9, 0])),
        C(PROTOCOL),
    );
    let eats_priority = raw(
        kind::HEADERS,
        PADDED | PRIORITY_FLAG | END_HEADERS,
        3,
        &[3, 0, 0, 0, 1, 0, 0x82],
    );
    cases.agree("padding as long as the priority", lines([eats_priority]), C(PROTOCOL));
    let index_0 = raw(kind::HEADERS, END_HEADERS, 1, &[0x80]);
    cases.differ("a block with index 0", lines([index_0]), C(COMPRESSION), C(PROTOCOL));
    let late_resize = raw(kind::HEADERS, END_HEADERS, 1, &[&whole[..], &[0x20]].concat());
    cases.differ(
        "a table that changes behind a field",
        lines([late_resize]),
        C(COMPRESSION),
        C(PROTOCOL),
    );
    let often = raw(kind::HEADERS, END_HEADERS, 1, &[&[0x20; 3][..], &whole].concat());
    cases.differ("a table that changes three times", lines([often]), C(COMPRESSION), Fine);
    let resize = [part(1, &whole), rest(1, &[0x20])];
    cases.differ("where a piece begins", lines(resize), C(COMPRESSION), Fine);
    let bad_first = block(&[("connection", "x")]);
    let early = [part(1, &bad_first), rest(1, &[0x80])];
    cases.differ(
        "a bad piece, and one that cannot be decoded",
        lines(early),
        C(COMPRESSION),
        S(PROTOCOL),
    );
    let itself = |id: u32, list: &[u8]| {
        let payload = [&id.to_be_bytes()[..], &[15], list].concat();
        raw(kind::HEADERS, PRIORITY_FLAG | END_HEADERS, id, &payload)
    };
    cases.agree(
        "HEADERS that depend on themselves",
        lines([itself(1, &whole)]),
        S(PROTOCOL),
    );
    cases.differ(
        "and cannot be decoded",
        lines([itself(1, &[0x80])]),
        C(COMPRESSION),
        S(PROTOCOL),
    );
    let late_itself = behind(&reset_by_us, itself(1, &[0x80]));
    cases.differ("the same after our reset", late_itself, C(COMPRESSION), Fine);
    cases.agree(
        "PRIORITY that depends on itself",
        behind(&open, priority(1, 1)),
        S(PROTOCOL),
    );
    cases.differ("on an idle stream", lines([priority(9, 9)]), C(PROTOCOL), S(PROTOCOL));
    cases.differ(
        "on one that is gone",
        behind(&both_ended, priority(1, 1)),
        Fine,
        S(PROTOCOL),
    );

    // Streams that have ended (5.1).
    cases.differ(
        "DATA after the end",
        behind(&ended, data(1, b"x", false)),
        S(CLOSED),
        C(PROTOCOL),
    );
    cases.differ("HEADERS after the end", behind(&ended, late()), S(CLOSED), C(PROTOCOL));
    cases.differ(
        "a malformed list after the end",
        behind(&ended, malformed(1)),
        S(CLOSED),
        S(PROTOCOL),
    );
    cases.agree(
        "DATA after their reset",
        behind(&reset_by_peer, data(1, b"x", false)),
        S(CLOSED),
    );
    cases.differ(
        "HEADERS after their reset",
        behind(&reset_by_peer, late()),
        S(CLOSED),
        C(PROTOCOL),
    );
    cases.agree(
        "an update after their reset",
        behind(&reset_by_peer, window_update(1, 1)),
        Fine,
    );
    cases.agree("RST_STREAM twice", behind(&reset_by_peer, rst(1, Reason::CANCEL)), Fine);
    cases.agree("DATA after our reset", behind(&reset_by_us, data(1, b"x", false)), Fine);
    cases.agree("trailers after our reset", behind(&reset_by_us, late()), Fine);
    let unreadable = |id| headers(id, &[("X-A", "b")], true);
    cases.differ(
        "a bad name after our reset",
        behind(&reset_by_us, unreadable(1)),
        Fine,
        C(PROTOCOL),
    );
    cases.agree(
        "a malformed list after our reset",
        behind(&reset_by_us, malformed(1)),
        Fine,
    );
    cases.differ(
        "DATA after the end of all",
        behind(&both_ended, data(1, b"x", false)),
        C(CLOSED),
        S(CLOSED),
    );
    cases.differ(
        "HEADERS after the end of all",
        behind(&both_ended, late()),
        C(CLOSED),
        C(PROTOCOL),
    );
    cases.differ(
        "a malformed list after it",
        behind(&both_ended, malformed(1)),
        C(CLOSED),
        S(PROTOCOL),
    );
    let overpadded = raw(kind::DATA, PADDED, 1, &[9, 0]);
    cases.differ(
        "too much padding after it",
        behind(&both_ended, overpadded),
        C(CLOSED),
        C(PROTOCOL),
    );

    // Requests (8.1 to 8.3).
    cases.agree(
        "trailers without an end",
        behind(&open, headers(1, &[("a", "b")], false)),
        S(PROTOCOL),
    );
    let pseudo = headers(1, &[(":path", "/")], true);
    cases.differ("trailers with a pseudo field", behind(&open, pseudo), S(PROTOCOL), Fine);
    let no_path = headers(1, &[(":method", "GET"), (":scheme", "http")], true);
    cases.differ("no :path, and no :authority", lines([no_path]), S(PROTOCOL), Fine);
    let status = headers(1, &[&[(":status", "200")], &request()[..]].concat(), true);
    cases.agree(":status in a request", lines([status]), S(PROTOCOL));
    let behind_others = headers(1, &[&[("a", "b")], &request()[..]].concat(), true);
    cases.agree("a pseudo field behind others", lines([behind_others]), S(PROTOCOL));
    cases.agree(":path twice", with(&[(":path", "/")]), S(PROTOCOL));
    cases.agree("connection", with(&[("connection", "close")]), S(PROTOCOL));
    cases.agree("te: gzip", with(&[("te", "gzip")]), S(PROTOCOL));
    let length = |n| headers(1, &[&request()[..], &[("content-length", n)]].concat(), false);
    cases.agree(
        "content-length that is too long",
        lines([length("5"), data(1, b"x", true)]),
        S(PROTOCOL),
    );
    cases.agree(
        "content-length that is too short",
        lines([length("0"), data(1, b"x", true)]),
        S(PROTOCOL),
    );
    let bad_length = headers(1, &[("content-length", "x")], true);
    cases.differ(
        "content-length that is none in trailers",
        behind(&open, bad_length),
        S(PROTOCOL),
        Fine,
    );
    cases.differ("an upper-case name", with(&[("X-A", "b")]), S(PROTOCOL), C(PROTOCOL));
    cases.differ(
        "control bytes in a value",
        with(&[("a", "b\nc")]),
        S(PROTOCOL),
        C(PROTOCOL),
    );
    cases.differ("a space before a value", with(&[("a", " b")]), S(PROTOCOL), Fine);
    let two = [&whole[..], &bad_first].concat();
    let (first, second) = two.split_at(two.len() - 1);
    let pieces = lines([part(1, first), rest(1, second)]);
    cases.agree("connection in pieces", pieces, S(PROTOCOL));
    let twice = [&block(&[(":method", "GET")])[..], &whole].concat();
    let (first, second) = twice.split_at(twice.len() - 1);
    cases.differ(
        ":method twice, in pieces",
        lines([part(1, first), rest(1, second)]),
        S(PROTOCOL),
        Fine,
    );
    let strange = bytes_block(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"no/slash"),
        (":authority", b"a"),
    ]);
    let strange = raw(kind::HEADERS, END_HEADERS | END_STREAM, 1, &strange);
    cases.differ("a path without a slash", lines([strange]), Fine, S(PROTOCOL));
    let not_text = bytes_block(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"/\x98"),
        (":authority", b"a"),
    ]);
    let not_text = raw(kind::HEADERS, END_HEADERS | END_STREAM, 1, &not_text);
    cases.differ("a path that is no text", lines([not_text]), S(PROTOCOL), C(PROTOCOL));

    // One stream too many (5.1.2).
    let refusing = Reason::REFUSED_STREAM;
    let three = &refused[..3];
    cases.agree("a request too many", behind(three, ask(7, false)), S(refusing));
    cases.differ(
        "with a bad name",
        behind(three, unreadable(7)),
        S(refusing),
        C(PROTOCOL),
    );
    cases.differ("or malformed", behind(three, malformed(7)), S(refusing), S(PROTOCOL));

    cases.agree(
        "GOAWAY that takes back another",
        lines([goaway(1, Reason::NO_ERROR), goaway(3, Reason::NO_ERROR)]),
        C(PROTOCOL),
    );
    // What follows a refusal.
    cases.greeting.extend(refused);
    cases.differ("DATA after a refusal", lines([data(7, b"x", true)]), Fine, S(CLOSED));
    cases.differ(
        "trailers after a refusal",
        lines([headers(7, &[("a", "b")], true)]),
        Fine,
        C(PROTOCOL),
    );
    cases.differ("malformed ones", lines([malformed(7)]), Fine, S(PROTOCOL));

    // And DATA after a reset that was answered already.
    cases.greeting.truncate(2);
    cases.greeting.extend(behind(&reset_by_peer, data(1, b"x", false)));
    cases.differ(
        "more of it after their reset",
        lines([data(1, b"x", false)]),
        S(CLOSED),
        Fine,
    );
    cases.finish()
}

fn a_client() -> BTreeSet<usize> {
    let mut cases = Cases::new(Role::Client);
    let answered = lines([answer(1, true)]);
    let status = |value: &'static str, end: bool| headers(1, &[(":status", value)], end);
    let with = |more: &[(&'static str, &'static str)], end| headers(1, &[&[(":status", "200")], more].concat(), end);

    cases.agree("an answer", lines([answer(1, false), data(1, b"x", true)]), Fine);
    cases.agree("an answer with trailers", lines([answer(1, false), trailers(1)]), Fine);
    cases.agree(
        "103 before the answer",
        lines([status("103", false), answer(1, true)]),
        Fine,
    );
    cases.agree(
        "RST_STREAM after the answer",
        behind(&answered, rst(1, Reason::NO_ERROR)),
        Fine,
    );

    cases.agree("an answer that nobody asked for", lines([answer(5, true)]), C(PROTOCOL));
    cases.agree("an answer on an even stream", lines([answer(2, true)]), C(PROTOCOL));
    cases.agree("DATA that nobody asked for", lines([data(5, b"x", false)]), C(PROTOCOL));
    cases.agree(
        "RST_STREAM on an idle stream",
        lines([rst(5, Reason::CANCEL)]),
        C(PROTOCOL),
    );
    let push = |list: &[u8]| raw(kind::PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], list].concat());
    cases.agree(
        "a push that was not allowed",
        lines([push(&block(&request()))]),
        C(PROTOCOL),
    );
    let malformed_push = push(&block(&[("connection", "x")]));
    cases.differ(
        "one that is malformed",
        lines([malformed_push]),
        C(PROTOCOL),
        S(PROTOCOL),
    );
    let enable = settings(&[(setting::ENABLE_PUSH, 1)]);
    cases.differ("ENABLE_PUSH 1 of a server", lines([enable]), C(PROTOCOL), Fine);
    cases.agree(
        "GOAWAY that takes back another",
        lines([
            goaway(MAX_STREAM_ID - 1, Reason::NO_ERROR),
            goaway(MAX_STREAM_ID, Reason::NO_ERROR),
        ]),
        C(PROTOCOL),
    );

    cases.differ(
        "DATA before the answer",
        lines([data(1, b"x", false)]),
        S(PROTOCOL),
        C(PROTOCOL),
    );
    cases.differ(
        "a status of two digits",
        lines([status("20", true)]),
        S(PROTOCOL),
        C(PROTOCOL),
    );
    cases.agree("no :status", lines([headers(1, &[("a", "b")], false)]), S(PROTOCOL));
    cases.differ(
        "no :status, and the end",
        lines([headers(1, &[("a", "b")], true)]),
        S(PROTOCOL),
        Fine,
    );
    cases.agree(":status twice", lines([with(&[(":status", "200")], true)]), S(PROTOCOL));
    cases.agree("connection", lines([with(&[("connection", "x")], true)]), S(PROTOCOL));
    cases.differ(
        ":path in an answer",
        lines([with(&[(":path", "/")], false)]),
        S(PROTOCOL),
        Fine,
    );
    cases.differ(
        "a quotation mark in a name",
        lines([with(&[("a\"", "b")], false)]),
        S(PROTOCOL),
        Fine,
    );
    cases.differ("103 that ends", lines([status("103", true)]), S(PROTOCOL), Fine);
    cases.differ("101", lines([status("101", false)]), S(PROTOCOL), Fine);
    let open_trailers = lines([answer(1, false), headers(1, &[("a", "b")], false)]);
    cases.agree("trailers without an end", open_trailers, S(PROTOCOL));
    let length = |n| with(&[("content-length", n)], false);
    cases.agree(
        "more than content-length",
        lines([length("0"), data(1, b"x", false)]),
        S(PROTOCOL),
    );
    cases.agree(
        "less than content-length",
        lines([length("5"), data(1, b"x", true)]),
        S(PROTOCOL),
    );
    let less = lines([length("5"), trailers(1)]);
    cases.differ(
        "less, and trailers, behind a request that has ended",
        less,
        S(PROTOCOL),
        Fine,
    );
    let none = headers(1, &[(":status", "304"), ("content-length", "5")], false);
    cases.differ(
        "no payload behind 304",
        lines([none, data(1, b"", true)]),
        Fine,
        S(PROTOCOL),
    );
    let no_content = lines([status("204", false), data(1, b"x", false)]);
    cases.differ("payload behind 204", no_content, S(PROTOCOL), Fine);

    cases.differ(
        "DATA after the end of all",
        behind(&answered, data(1, b"x", false)),
        C(CLOSED),
        S(CLOSED),
    );
    cases.differ(
        "an answer after the end of all",
        behind(&answered, answer(1, true)),
        C(CLOSED),
        S(CLOSED),
    );
    cases.finish()
}
