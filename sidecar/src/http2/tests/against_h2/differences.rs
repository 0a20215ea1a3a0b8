//! Where the engine and h2 say different things of one frame, and why that is well.
//!
//! An entry is as narrow as it can be: both verdicts, and when: seen from the frame and the state of its stream, by other
//! eyes than the engine's (h2's own types for what h2 cannot read, and [`is_malformed`], which knows nothing of the engine).
//! After a difference the two are in different states and are compared no more.

use super::Verdict::{Connection as C, Fine, Stream as S};
use super::ours::{At, Because, Block, Scene};
use super::{CLOSED, COMPRESSION, FLOW, PROTOCOL, SIZE, Verdict};
use crate::http2::connection::{Role, StreamFault};
use crate::http2::frame::{ACK, END_HEADERS, END_STREAM, PADDED, PRIORITY_FLAG, Reason, kind, setting};
use crate::http2::message::Wrong;
use crate::http2::stream::Half;

pub(super) struct Difference {
    pub(super) ours: Verdict,
    pub(super) theirs: &'static [Verdict],
    /// Of RFC 9113.
    pub(super) section: &'static str,
    pub(super) why: &'static str,
    pub(super) when: fn(&Scene) -> bool,
}

pub(super) static DIFFERENCES: &[Difference] = &[
    // ---- h2 has one code, PROTOCOL_ERROR, for all that it cannot parse ----
    Difference {
        ours: C(SIZE),
        theirs: &[C(PROTOCOL)],
        section: "4.2, 6.1 to 6.9",
        why: "FRAME_SIZE_ERROR is the code for a frame of a wrong size",
        when: has_wrong_size,
    },
    Difference {
        ours: S(SIZE),
        theirs: &[C(PROTOCOL)],
        section: "6.3",
        why: "a PRIORITY that is not 5 bytes is a stream error",
        when: |scene| scene.frame.kind == kind::PRIORITY && has_wrong_size(scene) && was_opened(scene),
    },
    Difference {
        ours: C(FLOW),
        theirs: &[C(PROTOCOL)],
        section: "6.5.2",
        why: "FLOW_CONTROL_ERROR is the code for a window above 2^31-1",
        when: |scene| says(scene, setting::INITIAL_WINDOW_SIZE, |value| value > (1 << 31) - 1),
    },
    Difference {
        ours: C(COMPRESSION),
        theirs: &[C(PROTOCOL)],
        section: "4.3",
        why: "COMPRESSION_ERROR is the code for a block that cannot be decoded",
        when: |scene| scene.block.as_ref().is_some_and(Block::is_bad),
    },
    // ---- the RFC says stream, h2 says connection ----
    Difference {
        ours: S(CLOSED),
        theirs: &[C(PROTOCOL)],
        section: "5.1, half-closed (remote)",
        why: "DATA and HEADERS behind END_STREAM are a stream error",
        when: |scene| carries_message(scene) && scene.at.expects(Half::Ended),
    },
    Difference {
        ours: S(CLOSED),
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed",
        why: "so are HEADERS behind the peer's own RST_STREAM",
        when: |scene| scene.block.is_some() && scene.at == At::TheyReset,
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[C(PROTOCOL)],
        section: "6.9",
        why: "an update of nothing on a stream is a stream error",
        when: |scene| scene.frame.kind == kind::WINDOW_UPDATE && scene.at.is_live() && number(scene) == 0,
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[C(PROTOCOL)],
        section: "8.1, 8.1.1",
        why: "DATA before the response make it malformed: a stream error",
        when: |scene| scene.frame.kind == kind::DATA && scene.at.expects(Half::Head),
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[C(PROTOCOL)],
        section: "8.1.1, 8.2.1",
        why: "a name or value that is none makes its message malformed: a stream error. This is why it must not reach h2",
        when: h2_cannot_read,
    },
    Difference {
        ours: S(Reason::REFUSED_STREAM),
        theirs: &[C(PROTOCOL)],
        section: "5.1.2, 8.2.1",
        why: "the same in one request too many",
        when: |scene| scene.at == At::Idle && h2_cannot_read(scene),
    },
    Difference {
        ours: S(Reason::REFUSED_STREAM),
        theirs: &[S(PROTOCOL)],
        section: "5.1.2, 8.1.1",
        why: "or a malformed one",
        when: |scene| scene.at == At::Idle && (is_malformed(scene) || scene.depends_on_itself()),
    },
    Difference {
        ours: S(CLOSED),
        theirs: &[S(PROTOCOL)],
        section: "5.1, 8.1.1",
        why: "h2 judges the list before the state, in which nothing may come",
        when: |scene| {
            let late = scene.at.expects(Half::Ended) || scene.at == At::TheyReset;
            scene.block.is_some() && late && (is_malformed(scene) || !ends_stream(scene))
        },
    },
    Difference {
        ours: C(CLOSED),
        theirs: &[S(PROTOCOL)],
        section: "5.1, closed; 8.1.1",
        why: "the same on a stream that both have ended",
        when: |scene| scene.block.is_some() && scene.at == At::Ended && is_malformed(scene),
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[S(PROTOCOL)],
        section: "5.1.1, 8.1.1",
        why: "and the list, or its priority, before the identifier, which no new stream can have",
        when: |scene| {
            let bad = is_malformed(scene) || scene.depends_on_itself();
            matches!(scene.at, At::Idle | At::PassedOver) && bad
        },
    },
    Difference {
        ours: C(COMPRESSION),
        theirs: &[S(PROTOCOL)],
        section: "4.3",
        why: "and the list that it began to read, or did not read at all, before the rest, which cannot be decoded",
        when: |scene| {
            let block = scene.block.as_ref();
            let bad = block.is_some_and(Block::is_bad);
            bad && (block.is_some_and(|block| block.continued) || scene.depends_on_itself())
        },
    },
    Difference {
        ours: C(COMPRESSION),
        theirs: &[Fine],
        section: "4.3",
        why: "or did not read on a stream that it has reset",
        when: |scene| {
            let bad = scene.block.as_ref().is_some_and(Block::is_bad);
            bad && scene.depends_on_itself() && matches!(scene.at, At::WeReset | At::WeRefused)
        },
    },
    // ---- streams that are over ----
    Difference {
        ours: C(CLOSED),
        theirs: &[S(CLOSED)],
        section: "5.1, closed",
        why: "DATA and HEADERS on a stream that both have ended may end the connection; h2 has forgotten how it ended",
        when: |scene| carries_message(scene) && scene.at == At::Ended,
    },
    Difference {
        ours: C(CLOSED),
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed; 5.1.1",
        why: "to h2 as a server they are a new request with a lower identifier; or a list that it cannot read",
        when: |scene| scene.block.is_some() && scene.at == At::Ended && (is_server(scene) || h2_cannot_read(scene)),
    },
    Difference {
        ours: C(CLOSED),
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed; 6.1",
        why: "or its padding is longer than it is, which h2 sees first",
        when: |scene| {
            let frame = &scene.frame;
            frame.kind == kind::DATA && scene.at == At::Ended && scene.sent.padding > frame.payload.len()
        },
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[S(CLOSED)],
        section: "5.1.1",
        why: "DATA on an identifier that was passed over; h2 takes it for a stream that it has forgotten",
        when: |scene| scene.frame.kind == kind::DATA && scene.at == At::PassedOver,
    },
    Difference {
        ours: Fine,
        theirs: &[S(CLOSED)],
        section: "5.1, closed",
        why: "what is under way for a stream that was refused is ignored, as behind any RST_STREAM",
        when: |scene| scene.frame.kind == kind::DATA && scene.at == At::WeRefused,
    },
    Difference {
        ours: Fine,
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed",
        why: "so are its trailers, which to h2 are a new request with a lower identifier",
        when: |scene| scene.block.is_some() && scene.at == At::WeRefused,
    },
    Difference {
        ours: Fine,
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed",
        why: "and so is a list that h2 cannot read, on a stream that we have reset",
        when: |scene| scene.at == At::WeReset && h2_cannot_read(scene),
    },
    Difference {
        ours: Fine,
        theirs: &[C(PROTOCOL)],
        section: "5.1, closed; 6.3, 6.9",
        why: "and, on any stream that is over, a PRIORITY of a wrong size that was reset, or an update of nothing",
        when: |scene| match scene.frame.kind {
            kind::PRIORITY => matches!(scene.at, At::WeReset | At::WeRefused) && has_wrong_size(scene),
            kind::WINDOW_UPDATE => was_opened(scene) && !scene.at.is_live() && number(scene) == 0,
            _ => false,
        },
    },
    Difference {
        ours: Fine,
        theirs: &[S(PROTOCOL)],
        section: "5.1, closed",
        why: "or one that depends on itself",
        when: |scene| scene.frame.kind == kind::PRIORITY && was_opened(scene) && !scene.at.is_live(),
    },
    Difference {
        ours: S(CLOSED),
        theirs: &[Fine],
        section: "5.1, closed",
        why: "what comes behind the peer's own reset is answered each time, by h2 once",
        when: |scene| carries_message(scene) && scene.at == At::TheyReset && scene.was_reset,
    },
    Difference {
        ours: Fine,
        theirs: &[S(PROTOCOL)],
        section: "5.1, closed",
        why: "or that is malformed",
        when: |scene| scene.at == At::WeRefused && is_malformed(scene),
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.1.1",
        why: "h2 does not reset a stream over the list by which it ends",
        when: |scene| {
            let wrong = is_malformed(scene) || breaks_length(scene);
            scene.block.is_some() && scene.at.we_ended() && ends_stream(scene) && wrong
        },
    },
    Difference {
        ours: S(FLOW),
        theirs: &[Fine],
        section: "6.9.1",
        why: "an overflow of a window that h2, having ended its half, does not count any more",
        when: |scene| scene.frame.kind == kind::WINDOW_UPDATE && scene.at.we_ended() && number(scene) > 1 << 30,
    },
    Difference {
        ours: S(FLOW),
        theirs: &[Fine],
        section: "6.9.1",
        why: "DATA within credit that h2 gave for padding, at once; the engine's owner gives it, and does not here",
        when: |scene| scene.frame.kind == kind::DATA && scene.sent.padding > 0,
    },
    Difference {
        ours: S(FLOW),
        theirs: &[S(PROTOCOL)],
        section: "6.9.1, 8.1.1",
        why: "or not within what content-length promised",
        when: |scene| scene.frame.kind == kind::DATA && scene.sent.padding > 0 && breaks_length(scene),
    },
    // ---- h2 does not look, or leaves it to its user ----
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.2.1",
        why: "a value that begins or ends with a space; a quotation mark in a name",
        when: |scene| fields(scene).any(|(name, value)| has_space_around(value) || name.contains(&b'"')),
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.3.1",
        why: "no :path, which h2 misses only if there is an :authority",
        when: |scene| {
            let has = |name: &[u8]| fields(scene).any(|(found, _)| found == name);
            scene.at == At::Idle && has(b":method") && !has(b":path") && !has(b":authority")
        },
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.1, 8.3",
        why: "trailers with a pseudo field, a response with one of a request",
        when: |scene| {
            let asks = |name: &[u8]| matches!(name, b":method" | b":scheme" | b":path" | b":authority" | b":protocol");
            let of_trailers = |name: &[u8]| asks(name) || name == b":status";
            fields(scene).any(|(name, _)| match scene.at {
                At::Live { theirs: Half::Body, .. } => of_trailers(name),
                _ => scene.at.expects(Half::Head) && asks(name),
            })
        },
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.1, 8.6",
        why: "an informational response that ends the stream, and 101",
        when: |scene| {
            let status = |status: &[u8]| status == b"101" || (status.starts_with(b"1") && ends_stream(scene));
            scene.at.expects(Half::Head) && fields(scene).any(|(name, value)| name == b":status" && status(value))
        },
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.1.1",
        why: "content-length that is no number, in trailers; payload behind a head that has no content",
        when: |scene| {
            scene.at.expects(Half::Body)
                && match scene.because {
                    Because::Fault(StreamFault::Malformed(Wrong::ContentLength)) => is_malformed(scene),
                    _ => scene.sent.no_content && scene.sent.payload > 0,
                }
        },
    },
    Difference {
        ours: S(PROTOCOL),
        theirs: &[Fine],
        section: "8.1.1",
        why: "h2 forgets that the first pieces of a block were malformed",
        when: |scene| scene.block.as_ref().is_some_and(|block| block.continued) && is_malformed(scene),
    },
    Difference {
        ours: C(COMPRESSION),
        theirs: &[Fine, S(PROTOCOL)],
        section: "4.3; RFC 7541, 4.2",
        why: "the table's size changes more than twice: h2 goes on to the fields, and what is wrong with them",
        when: |scene| scene.block.as_ref().is_some_and(Block::resizes_often),
    },
    Difference {
        ours: C(COMPRESSION),
        theirs: &[Fine],
        section: "4.3; RFC 7541, 4.2",
        why: "a change of the table's size stands in the middle of a block, where a piece of it begins",
        when: |scene| {
            scene
                .block
                .as_ref()
                .is_some_and(|block| block.continued && block.resizes_late())
        },
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[Fine, S(PROTOCOL), C(FLOW), C(SIZE)],
        section: "3.4",
        why: "the first frame is not SETTINGS: h2 judges it as any other",
        when: |scene| !scene.greeted && (scene.frame.kind != kind::SETTINGS || scene.frame.flags & ACK != 0),
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[Fine],
        section: "6.5.2",
        why: "ENABLE_PUSH 1 of a server",
        when: |scene| !is_server(scene) && says(scene, setting::ENABLE_PUSH, |value| value == 1),
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[Fine],
        section: "6.6, 8.4",
        why: "a push that was not allowed: h2 waits for its end, and ignores it on a stream that it refused",
        when: |scene| {
            let goes_on = scene.frame.flags & END_HEADERS == 0;
            scene.frame.kind == kind::PUSH_PROMISE && (goes_on || scene.at == At::WeRefused)
        },
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[S(PROTOCOL)],
        section: "6.6, 8.4",
        why: "and reads its list first, which may be malformed",
        when: |scene| scene.frame.kind == kind::PUSH_PROMISE,
    },
    // ---- h2 is stricter ----
    Difference {
        ours: Fine,
        theirs: &[S(PROTOCOL)],
        section: "8.1.1",
        why: "what has no content may say how long it would be",
        when: |scene| scene.sent.no_content && scene.sent.payload == 0 && ends_stream(scene),
    },
    Difference {
        ours: Fine,
        theirs: &[S(FLOW)],
        section: "6.9.2",
        why: "a larger first window counts when it is said, to h2 when it is acknowledged",
        when: |scene| scene.frame.kind == kind::DATA && !scene.acked,
    },
    Difference {
        ours: Fine,
        theirs: &[S(PROTOCOL)],
        section: "8.3.1",
        why: "a proxy carries targets that h2's types do not hold",
        when: |scene| scene.at == At::Idle && has_strange_target(scene),
    },
    Difference {
        ours: Fine,
        theirs: &[C(PROTOCOL)],
        section: "6.5.3",
        why: "an acknowledgement that nothing was sent for: the RFC says nothing of it",
        when: |scene| scene.frame.kind == kind::SETTINGS && scene.frame.flags & ACK != 0 && scene.acked,
    },
    Difference {
        ours: Fine,
        theirs: &[C(PROTOCOL)],
        section: "6.5.2",
        why: "a setting that the engine does not know: h2 knows RFC 8441, where SETTINGS_ENABLE_CONNECT_PROTOCOL is 0 or 1",
        when: |scene| says(scene, 8, |value| value > 1),
    },
    Difference {
        ours: C(PROTOCOL),
        theirs: &[S(PROTOCOL)],
        section: "5.1, idle",
        why: "a stream that was never opened and depends on itself: RST_STREAM is not for idle streams",
        when: |scene| scene.frame.kind == kind::PRIORITY && scene.at == At::Idle && number(scene) == scene.frame.stream,
    },
];

pub(super) fn find(scene: &Scene, theirs: Verdict) -> Option<&'static Difference> {
    DIFFERENCES
        .iter()
        .find(|one| one.ours == scene.verdict && one.theirs.contains(&theirs) && (one.when)(scene))
}

fn is_server(scene: &Scene) -> bool {
    scene.role == Role::Server
}

/// DATA, or the end of a header block.
fn carries_message(scene: &Scene) -> bool {
    scene.frame.kind == kind::DATA || scene.block.is_some()
}

fn ends_stream(scene: &Scene) -> bool {
    match &scene.block {
        Some(block) => block.end_stream,
        None => scene.frame.kind == kind::DATA && scene.frame.flags & END_STREAM != 0,
    }
}

fn was_opened(scene: &Scene) -> bool {
    !matches!(scene.at, At::Zero | At::Idle)
}

/// The frame's first four bytes, as an identifier or an increment.
fn number(scene: &Scene) -> u32 {
    let first = scene.frame.payload.first_chunk().expect("the frame has as many");
    u32::from_be_bytes(*first) & ((1 << 31) - 1)
}

fn says(scene: &Scene, id: u16, value: fn(u32) -> bool) -> bool {
    let entries = scene.frame.payload.as_chunks::<6>().0;
    scene.frame.kind == kind::SETTINGS
        && entries
            .iter()
            .any(|[a, b, c, d, e, f]| u16::from_be_bytes([*a, *b]) == id && value(u32::from_be_bytes([*c, *d, *e, *f])))
}

/// RFC 9113, 6.1 to 6.9.
fn has_wrong_size(scene: &Scene) -> bool {
    let len = scene.frame.payload.len();
    let flag = |flag| scene.frame.flags & flag != 0;
    match scene.frame.kind {
        kind::DATA => flag(PADDED) && len == 0,
        kind::HEADERS => len < usize::from(flag(PADDED)) + if flag(PRIORITY_FLAG) { 5 } else { 0 },
        kind::PRIORITY => len != 5,
        kind::RST_STREAM | kind::WINDOW_UPDATE => len != 4,
        kind::SETTINGS => !len.is_multiple_of(6) || (flag(ACK) && len > 0),
        kind::PING => len != 8,
        kind::GOAWAY => len < 8,
        _ => false,
    }
}

fn fields(scene: &Scene) -> impl Iterator<Item = (&[u8], &[u8])> {
    let fields = scene.block.iter().filter_map(|block| block.fields.as_ref()).flatten();
    fields.map(|(name, value)| (&name[..], &value[..]))
}

/// Whether h2 takes the list for a block that cannot be decoded.
fn h2_cannot_read(scene: &Scene) -> bool {
    fields(scene).any(|(name, value)| match name {
        b":method" => http::Method::from_bytes(value).is_err(),
        b":status" => http::StatusCode::from_bytes(value).is_err(),
        b":scheme" | b":path" | b":authority" | b":protocol" => std::str::from_utf8(value).is_err(),
        _ => http::HeaderName::from_lowercase(name).is_err() || http::HeaderValue::from_bytes(value).is_err(),
    })
}

/// Whether the request's target is one that the types of the `http` crate do not hold.
fn has_strange_target(scene: &Scene) -> bool {
    fields(scene).any(|(name, value)| match name {
        b":path" => http::uri::PathAndQuery::try_from(value).is_err(),
        b":scheme" => http::uri::Scheme::try_from(value).is_err(),
        b":authority" => http::uri::Authority::try_from(value).is_err(),
        _ => false,
    })
}

fn has_space_around(value: &[u8]) -> bool {
    let space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    space(value.first()) || space(value.last())
}

/// Whether the stream has sent more payload than it promised, or ends with less (8.1.1).
fn breaks_length(scene: &Scene) -> bool {
    let sent = scene.sent;
    sent.promised
        .is_some_and(|promised| sent.payload > promised || (ends_stream(scene) && sent.payload != promised))
}

/// Whether the list is no message of the kind that is due (8.1 to 8.3), as plainly as that can be said.
fn is_malformed(scene: &Scene) -> bool {
    let needed: &[&[u8]] = match (scene.role, scene.at) {
        (_, At::Live { theirs: Half::Body, .. }) => &[],
        (Role::Server, _) => &[b":method", b":scheme", b":path"],
        (Role::Client, _) => &[b":status"],
    };
    let allowed = |name: &[u8]| needed.contains(&name) || (needed.len() == 3 && name == b":authority");
    let list: Vec<_> = fields(scene).collect();
    let ordinary = list
        .iter()
        .position(|(name, _)| !name.starts_with(b":"))
        .unwrap_or(list.len());
    let (pseudo, rest) = list.split_at(ordinary);
    let twice = |at: usize| pseudo[..at].iter().any(|(name, _)| *name == pseudo[at].0);
    let token = |name: &[u8]| {
        let byte = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
        !name.is_empty() && name.iter().all(byte)
    };
    let of_connection = |name: &[u8]| {
        let names: [&[u8]; 5] = [
            b"connection",
            b"keep-alive",
            b"proxy-connection",
            b"transfer-encoding",
            b"upgrade",
        ];
        names.contains(&name)
    };
    let digits = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    scene.block.is_some()
        && ((0..pseudo.len()).any(|at| !allowed(pseudo[at].0) || twice(at))
            || needed
                .iter()
                .any(|name| !pseudo.iter().any(|(found, value)| found == name && !value.is_empty()))
            || rest.iter().any(|(name, value)| {
                !token(name)
                    || has_space_around(value)
                    || value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
                    || of_connection(name)
                    || (*name == b"te" && *value != b"trailers")
                    || (*name == b"content-length" && !digits(value))
            }))
}
