//! The engine against the `h2` crate, in both roles: legal conversations end alike, and illegal ones are answered alike, but
//! for the differences that stand in a table with their reasons.
//!
//! ```text
//!   conversation.rs  what a peer may say, at random      ─┐
//!   mutation.rs      what it may not, at a random place  ─┴─▶ random.rs ───┐
//!   scripted.rs      one illegal frame, and the verdicts on it ────────────┴─▶ both.rs ──▶ ours.rs, theirs.rs
//!                                                                                └──▶ differences.rs
//! ```
//!
//! `legal.rs` stands for itself: whole calls between the two, over a pipe.

mod both;
mod conversation;
mod differences;
mod legal;
mod mutation;
mod ours;
mod random;
mod scripted;
mod theirs;

use super::peer::{Frame, goaway_of};
use crate::http2::frame::{Reason, kind};

/// What a peer made of a frame, as it shows on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It went on.
    Fine,
    /// It reset the frame's stream.
    Stream(Reason),
    /// It ended the connection.
    Connection(Reason),
}

const PROTOCOL: Reason = Reason::PROTOCOL_ERROR;
const SIZE: Reason = Reason::FRAME_SIZE_ERROR;
const FLOW: Reason = Reason::FLOW_CONTROL_ERROR;
const CLOSED: Reason = Reason::STREAM_CLOSED;
const COMPRESSION: Reason = Reason::COMPRESSION_ERROR;

/// What one says after it heard one frame.
fn verdict(heard: &Frame, said: &[Frame]) -> Verdict {
    let error = |frame: &&Frame| frame.kind == kind::GOAWAY && goaway_of(frame).1 != Reason::NO_ERROR;
    if let Some(goaway) = said.iter().find(error) {
        return Verdict::Connection(goaway_of(goaway).1);
    }
    let mut resets = said.iter().filter(|frame| frame.kind == kind::RST_STREAM);
    let Some(reset) = resets.next() else {
        return Verdict::Fine;
    };
    assert_eq!(reset.stream, heard.stream, "another stream pays for {heard:?}");
    assert_eq!(resets.next(), None, "one frame, one reset");
    let code = reset.payload[..].try_into().expect("RST_STREAM has 4 bytes");
    Verdict::Stream(Reason(u32::from_be_bytes(code)))
}

/// What the owner of the engine does, and the user of h2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Asks (client role).
    Ask { end: bool },
    /// Answers (server role).
    Answer { id: u32, end: bool },
    /// Sends payload.
    Send { id: u32, n: usize, end: bool },
    /// Resets the stream.
    Reset { id: u32 },
}

/// How many cases a property plays: `PORTUNUS_CASES=100` plays a hundred times as many.
fn times(cases: u32) -> u32 {
    let factor = std::env::var("PORTUNUS_CASES").ok().map_or(1, |text| {
        text.parse()
            .expect("PORTUNUS_CASES is how many times as many cases as usual")
    });
    cases.saturating_mul(factor)
}
