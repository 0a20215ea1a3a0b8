//! One RPC: two stream ends, and what happens between them.
//!
//! What one side says is said to the other in the turn in which it came. Credit is forwarded: a sender may send what the
//! reader on the other side has granted, or what its own path needs. Either end may be gone first; whatever comes for
//! the other then finds an end, not a stranger.

mod answer;
mod replay;

pub use answer::Answer;
pub use replay::Lost;

use std::time::Instant;

use crate::connect::{LateReset, WireKey, Wires};
use crate::grpc::{self, Boundary};
use crate::http2::hpack::{FieldId, Fields, Interner, Name};
use crate::http2::{Connection, MAX_WINDOW, Reason, Settings, Shared, StreamKey, worth_giving};
use replay::Replay;

/// A stream of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The connection.
    pub wire: WireKey,
    /// The stream on it.
    pub stream: StreamKey,
}

/// How far an exchange is.
///
/// ```text
///                              +---------------- response head with END_STREAM ---------------+
///           connect            |     response head               trailers or END_STREAM       v
///  Waiting ----------> Asked --+--------------------> Answering -------------------------> Answered
///     ^ |                | |                              |                                   |
///     | |                | |                              |                                   | cancelled, cut
///     | +----------------|-+------------------------------+-----------------------------------+--------> Over
///     |   taken back:    |   failed, cancelled, reset, cut
///     +------------------+
/// ```
///
/// A request is taken back while it can be sent again whole, once nothing of it was processed: the server says so, or the sidecar
/// there that it did not reach the application, or the connection ended before anything of it had left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No stream upstream yet: the request is kept as it comes.
    Waiting,
    /// The request is on its way; it can be sent again while all of it is in the replay.
    Asked,
    /// A response has begun.
    Answering,
    /// The response is whole; the request may still go on (RFC 9113, 8.1).
    Answered,
    /// One of the ends, or we, ended it.
    Over,
}

impl Phase {
    /// Whether no response, or no more of one, will come.
    #[inline]
    pub fn is_last(self) -> bool {
        matches!(self, Phase::Answered | Phase::Over)
    }
}

/// A header list whose memory is not kept for the next call.
const LARGE_HEAD: u32 = 4 << 10;

/// An RPC between two ends.
pub struct Exchange {
    /// Who asked.
    pub down: End,
    /// Who is asked.
    pub up: Option<End>,
    /// How far it is.
    pub phase: Phase,
    /// The request's header list, while it may have to be sent (again).
    pub head: Option<Box<Fields>>,
    /// Whether the content type is gRPC's.
    pub is_grpc: bool,
    /// Messages of the request.
    pub asked: Boundary,
    /// Messages of the response.
    pub answered: Boundary,
    /// The response's `grpc-status`, once it came.
    pub code: Option<grpc::Code>,
    /// The response's `:status`.
    pub http_status: u16,
    /// When the server is to learn of a reset, if not at once.
    pub reset_late: Option<Instant>,
    /// Whether the response said how long it is: it cannot end otherwise, then.
    length_promised: bool,
    request_ended: bool,
    is_head: bool,
    /// DATA of the request came (padding, too) while there was no server whose credit could be forwarded.
    owes_credit: bool,
    replay: Replay,
    /// What `head` stands for in the budget: a caller may have a thousand calls wait, each with a list of its own.
    head_counted: u32,
    /// Where the request began in the upstream wire's output.
    sent_at: u64,
}

impl Exchange {
    /// An exchange whose request is `head`.
    #[inline(always)]
    pub fn new(down: End, head: Box<Fields>, request_ended: bool, interner: &Interner) -> Exchange {
        let value = |name| head.value_of(name, interner);
        let is_grpc = value(Name::ContentType).is_some_and(grpc::is_content_type);
        let is_post = head.id(0) == Some(FieldId::METHOD_POST);
        let is_head = !is_post && value(Name::Method) == Some(b"HEAD");
        Exchange {
            down,
            up: None,
            phase: Phase::Waiting,
            head: Some(head),
            is_grpc,
            asked: Boundary::default(),
            answered: Boundary::default(),
            code: None,
            http_status: 0,
            reset_late: None,
            length_promised: false,
            request_ended,
            is_head,
            owes_credit: false,
            replay: Replay::default(),
            head_counted: 0,
            sent_at: 0,
        }
    }

    /// Counts the request's header list in the budget, for as long as it is kept.
    #[inline(always)]
    pub fn count_head(&mut self, shared: &mut Shared) {
        self.head_counted = self.head.as_ref().map_or(0, |head| head.list_size() as u32);
        shared.budget.add(self.head_counted.into());
    }

    /// The size of the request's header list, or of trailers that wait with it, if a server that takes `max` is not to see it.
    #[inline(always)]
    pub fn exceeds(&self, max: usize, interner: &Interner) -> Option<usize> {
        let lists = self.head.as_deref().into_iter().chain(self.replay.trailers());
        lists.into_iter().find_map(|list| list.exceeds(max, interner))
    }

    /// Opens a stream on `wire` and sends it what there is of the request. `false` if the wire has no room for it.
    #[inline(always)]
    pub fn connect(&mut self, wire: WireKey, user: u64, wires: &mut Wires) -> bool {
        let Some((to, shared)) = wires.touch(wire) else {
            return false;
        };
        let Some(head) = &self.head else {
            return false;
        };
        let Some(stream) = to.engine.open(user, self.is_head) else {
            return false;
        };
        self.sent_at = to.position();
        self.up = Some(End { wire, stream });
        self.phase = Phase::Asked;
        let bare = self.request_ended && self.replay.is_empty() && self.replay.trailers().is_none();
        to.engine.send_headers(stream, head, false, bare, shared);
        if bare {
            return true;
        }
        let ends_with_data = self.request_ended && self.replay.trailers().is_none();
        if !self.replay.is_empty() || ends_with_data {
            to.engine.send_data(stream, self.replay.bytes(), ends_with_data, shared);
        }
        if let Some(trailers) = self.replay.trailers() {
            let mut copy = Fields::new();
            trailers.copy_to(&mut copy, &mut shared.interner);
            to.engine.send_trailers(stream, &mut copy, shared);
            copy.clear(&mut shared.interner);
        }
        if self.owes_credit {
            // The caller may have used its first window up while there was nobody to forward credit for.
            self.owes_credit = false;
            self.refill_request(wires);
        }
        true
    }

    /// Payload of the request. Returns whether some of it is the first that is held.
    #[inline(always)]
    pub fn request_data(&mut self, bytes: &[u8], end: bool, wires: &mut Wires) -> bool {
        self.request_ended |= end;
        if self.is_grpc {
            self.asked.follow(bytes);
        }
        if matches!(self.phase, Phase::Waiting | Phase::Asked) {
            self.replay.keep(bytes, self.phase == Phase::Waiting, &mut wires.shared);
        }
        let Some(up) = self.up else {
            self.owes_credit = true;
            return false;
        };
        let begins = pass_on(up, bytes, end, wires);
        if !end {
            self.refill_request(wires);
        }
        begins
    }

    /// Trailers of the request; they stand in the wires' shared fields.
    pub fn request_trailers(&mut self, wires: &mut Wires) {
        self.request_ended = true;
        if matches!(self.phase, Phase::Waiting | Phase::Asked) && self.replay.lost().is_none() {
            let mut kept = Fields::new();
            wires.shared.copy_fields(&mut kept);
            self.replay.keep_trailers(kept, &mut wires.shared);
        }
        self.send_trailers(self.up, wires);
    }

    /// The response's head, or an informational one; it stands in the wires' shared fields.
    #[inline(always)]
    pub fn response_head(&mut self, status: u16, informational: bool, end: bool, wires: &mut Wires) {
        if !informational {
            self.phase = if end { Phase::Answered } else { Phase::Answering };
            self.http_status = status;
            self.length_promised = wires.shared.fields().names().has(Name::ContentLength);
            self.forget_request(wires);
            if end {
                self.read_status(wires);
            }
        }
        if let Some((wire, shared)) = wires.touch(self.down.wire) {
            wire.engine
                .pass_on_headers(self.down.stream, informational, end, shared);
        }
    }

    /// Payload of the response. Returns whether some of it is the first that is held.
    #[inline(always)]
    pub fn response_data(&mut self, bytes: &[u8], end: bool, wires: &mut Wires) -> bool {
        if self.is_grpc {
            self.answered.follow(bytes);
        }
        if end {
            self.phase = Phase::Answered;
        }
        let begins = pass_on(self.down, bytes, end, wires);
        if !end {
            self.refill_response(wires);
        }
        begins
    }

    /// The response's trailers; they stand in the wires' shared fields.
    #[inline(always)]
    pub fn response_trailers(&mut self, wires: &mut Wires) {
        self.phase = Phase::Answered;
        self.read_status(wires);
        self.send_trailers(Some(self.down), wires);
    }

    /// Gives the caller the credit that the server has granted, or that the path needs.
    pub fn refill_request(&self, wires: &mut Wires) {
        if let Some(up) = self.up {
            refill(self.down, up, wires);
        }
    }

    /// Gives the server the credit that the caller has granted, or that the path needs.
    #[inline(always)]
    pub fn refill_response(&self, wires: &mut Wires) {
        if let Some(up) = self.up {
            refill(up, self.down, wires);
        }
    }

    /// The caller reset its stream: so do we upstream, with the code that came.
    pub fn caller_reset(&mut self, reason: Reason, wires: &mut Wires) {
        self.reset_up(reason, wires);
        self.phase = Phase::Over;
    }

    /// The server reset its stream. A whole answer goes out first; else the caller learns what the server said.
    pub fn server_reset(&mut self, mut reason: Reason, wires: &mut Wires) {
        self.up = None;
        if reason == Reason::REFUSED_STREAM && self.phase == Phase::Answering {
            // "Not processed" would be a lie behind the beginning of an answer, and the caller might act on it.
            reason = Reason::INTERNAL_ERROR;
        }
        let is_whole = self.phase == Phase::Answered;
        if !is_whole {
            self.phase = Phase::Over;
        }
        let Some((wire, shared)) = wires.touch(self.down.wire) else {
            return;
        };
        if is_whole {
            wire.engine.reset_after_end(self.down.stream, reason, shared);
        } else {
            wire.engine.reset(self.down.stream, reason, shared);
        }
    }

    /// Nothing of the request was processed upstream: it can be sent again, whole. What is left of the stream there is reset.
    ///
    /// # Errors
    /// When it cannot.
    pub fn take_back(&mut self, wires: &mut Wires) -> Result<(), Lost> {
        self.reset_up(Reason::CANCEL, wires);
        if let Some(lost) = self.replay.lost() {
            return Err(lost);
        }
        if self.phase != Phase::Asked || self.head.as_ref().is_none_or(|head| head.is_empty()) {
            return Err(Lost::Answered);
        }
        self.phase = Phase::Waiting;
        // What the first server did not grant, the next one may.
        self.owes_credit = true;
        Ok(())
    }

    /// Whether not one byte of the request has reached the socket of `wire`, which took `flushed` bytes in all.
    pub fn is_unsent(&self, flushed: u64) -> bool {
        self.phase == Phase::Asked && self.sent_at >= flushed
    }

    /// Ends it by an answer of our own: a status where that can be said, else a reset. The server is told to stop.
    pub fn answer(&mut self, answer: &Answer, wires: &mut Wires) {
        self.reset_up(Reason::CANCEL, wires);
        let began = matches!(self.phase, Phase::Answering);
        if self.phase.is_last() {
            return;
        }
        self.phase = Phase::Over;
        let down = self.down;
        let Some((wire, shared)) = wires.touch(down.wire) else {
            return;
        };
        if !began {
            answer.send_whole(self.is_grpc, self.is_head, &mut wire.engine, down.stream, shared);
            self.code = Some(answer.code);
        } else if self.is_grpc && self.answered.is_between_messages() && !self.length_promised {
            answer.send_trailers(&mut wire.engine, down.stream, shared);
            self.code = Some(answer.code);
        } else {
            wire.engine.reset(down.stream, Reason::INTERNAL_ERROR, shared);
        }
        // Whatever of the request is still under way has no reader.
        wire.engine.reset_after_end(down.stream, Reason::NO_ERROR, shared);
    }

    /// Ends it at once, on both sides, whatever is held.
    pub fn cut(&mut self, reason: Reason, wires: &mut Wires) {
        self.reset_up(Reason::CANCEL, wires);
        if let Some((wire, shared)) = wires.touch(self.down.wire) {
            wire.engine.reset(self.down.stream, reason, shared);
        }
        self.phase = Phase::Over;
    }

    /// Bytes that are held for the caller, for the server, and to be sent (again).
    pub fn held(&self, wires: &Wires) -> (usize, usize, usize) {
        let of = |end: End| {
            let wire = wires.slots.get(end.wire);
            wire.map_or(0, |wire| wire.engine.held(end.stream))
        };
        let kept = self.replay.bytes().len() + self.head_counted as usize;
        (of(self.down), self.up.map_or(0, of), kept)
    }

    /// Takes a field out of the request's header list, and out of its trailers if they are kept.
    pub fn remove_from_request(&mut self, name: Name, shared: &mut Shared) {
        if let Some(head) = &mut self.head {
            head.remove_all(name, &mut shared.interner);
        }
        self.replay.remove_from_trailers(name, shared);
    }

    /// Gives up that the request can be sent again, where it is under way already.
    pub fn forget_replay(&mut self, wires: &mut Wires) {
        if self.phase == Phase::Asked {
            self.forget_request(wires);
            self.replay.give_up(Lost::Relieved, &mut wires.shared);
        }
    }

    /// Whether a server that is well would say something now: its request is whole, and not one message of the response is.
    #[inline]
    pub fn is_owed(&self) -> bool {
        let has_begun = self.http_status != 0;
        self.request_ended && !self.phase.is_last() && !self.answered.has_whole() && (self.is_grpc || !has_begun)
    }

    /// Whether nothing is left of it on either side.
    #[inline]
    pub fn is_finished(&self, wires: &Wires) -> bool {
        let open = |end: End| {
            wires
                .slots
                .get(end.wire)
                .is_some_and(|wire| wire.engine.is_open(end.stream))
        };
        self.phase.is_last() && !open(self.down) && !self.up.is_some_and(open)
    }

    /// Gives back what it holds. To be called before it is dropped.
    #[inline(always)]
    pub fn release(&mut self, wires: &mut Wires) {
        self.forget_request(wires);
    }

    #[inline(always)]
    fn forget_request(&mut self, wires: &mut Wires) {
        let counted = std::mem::take(&mut self.head_counted);
        wires.shared.budget.release(counted.into());
        if let Some(head) = &mut self.head {
            head.clear(&mut wires.shared.interner);
            if counted > LARGE_HEAD {
                // Whoever uses it next needs less.
                head.shrink();
            }
        }
        self.replay.forget(&mut wires.shared);
    }

    fn reset_up(&mut self, reason: Reason, wires: &mut Wires) {
        let Some(up) = self.up.take() else { return };
        let late = self.reset_late.take();
        let Some((wire, shared)) = wires.touch(up.wire) else {
            return;
        };
        match late {
            None => wire.engine.reset(up.stream, reason, shared),
            Some(due) => {
                let id = wire.engine.abandon(up.stream, shared);
                wires.late.extend(id.map(|stream| LateReset {
                    due,
                    wire: up.wire,
                    stream,
                    reason,
                }));
            }
        }
    }

    #[inline(always)]
    fn read_status(&mut self, wires: &Wires) {
        let shared = &wires.shared;
        if let Some(status) = shared.fields().value_of(Name::GrpcStatus, &shared.interner) {
            self.code = Some(grpc::Code::parse(status));
        }
    }

    #[inline(always)]
    fn send_trailers(&self, to: Option<End>, wires: &mut Wires) {
        let Some(to) = to else { return };
        if let Some((wire, shared)) = wires.touch(to.wire) {
            wire.engine.pass_on_trailers(to.stream, shared);
        }
    }
}

/// Payload for `to`: what has no room is held. Returns whether that begins with these bytes.
#[inline(always)]
fn pass_on(to: End, bytes: &[u8], end: bool, wires: &mut Wires) -> bool {
    let Some((wire, shared)) = wires.touch(to.wire) else {
        return false;
    };
    let held = bytes.len() - wire.engine.send_data(to.stream, bytes, end, shared).min(bytes.len());
    held > 0 && wire.engine.held(to.stream) == held
}

/// Lets the sender `from` send what the reader `to` has granted, or what its own path needs, less what is under way
/// and what is held already.
#[inline(always)]
fn refill(from: End, to: End, wires: &mut Wires) {
    let Some(sender) = wires.slots.get(from.wire) else {
        return;
    };
    let Some(window) = sender.engine.recv_window(from.stream) else {
        return;
    };
    let first = sender.engine.settings().first_stream_window as i64;
    // A short message leaves most of the first window: who may send more will show it.
    let enough = if sender.engine.path_need() > 0 {
        first - first / 4
    } else {
        first / 2
    };
    if window <= first && window > enough {
        return;
    }
    let Some(reader) = wires.slots.get(to.wire) else { return };
    let missing = credit_due(&sender.engine, window, &reader.engine, to.stream);
    if missing > 0
        && let Some((wire, shared)) = wires.touch(from.wire)
    {
        wire.engine.grant(from.stream, missing as u32, shared);
    }
}

/// How much credit the stream of a sender gets now that has `window` left, for the reader's stream `to`. Small amounts wait,
/// so that a stream does not cost an update for each of its frames.
#[inline(always)]
pub(crate) fn credit_due(sender: &Connection, window: i64, reader: &Connection, to: StreamKey) -> i64 {
    let mut room = reader.room(to);
    if room >= 0 && sender.open_streams() == 1 {
        // What the reader has used up is on its way to it and read soon, and then it takes as much as when it began. One whose
        // window its SETTINGS have put below zero wants less.
        room = room.max(reader.their_first_window());
    }
    let have = window + reader.held(to) as i64;
    credit_for(sender.settings(), sender.open_streams(), sender.path_need(), room, have)
}

/// A near sender may have, beyond what the reader grants, the first window, or as much again as is granted divided by the
/// streams of its connection. So a stream that is alone is always ahead of its reader: it has something to send while grants
/// are under way. Where there are many, each sends while others wait, and what piles up here before their readers, and
/// small calls wait behind, stays small.
#[inline(always)]
pub(crate) fn credit_for(settings: &Settings, streams: usize, need: i64, room: i64, have: i64) -> i64 {
    let first = settings.first_stream_window as i64;
    let target = if need > 0 {
        let ceiling = need.clamp(settings.stream_window as i64, settings.stream_window_ceiling as i64);
        ceiling.min(room.max(need)).max(first)
    } else {
        let granted = room.clamp(0, settings.stream_window as i64);
        granted + first.max(granted / streams.max(1) as i64)
    };
    let target = target.min(MAX_WINDOW);
    let missing = target - have;
    if missing > 0 && missing >= worth_giving(target, need) {
        // A window can be below zero, and one update cannot give more than a window.
        missing.min(MAX_WINDOW)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_what_the_reader_granted_within_the_ceiling() {
        let settings = Settings::default();
        let first = i64::from(settings.first_stream_window);
        assert_eq!(credit_for(&settings, 1, 0, 50_000, 0), 50_000 + first);
        assert_eq!(credit_for(&settings, 1, 0, 200_000, 0), 2 * 200_000);
        assert_eq!(credit_for(&settings, 2, 0, 200_000, 0), 200_000 + 100_000);
        assert_eq!(credit_for(&settings, 9, 0, 200_000, 0), 200_000 + first);
        assert_eq!(credit_for(&settings, 1, 0, 1 << 30, 0), 2 * (256 << 10));
        assert_eq!(credit_for(&settings, 1, 2 << 20, 1 << 30, 0), 2 << 20);
        assert_eq!(credit_for(&settings, 1, 1 << 30, 1 << 30, 0), 4 << 20);
    }

    #[test]
    fn a_window_has_31_bits_whatever_the_settings_say() {
        let settings = Settings {
            stream_window: MAX_WINDOW as u32,
            stream_window_ceiling: MAX_WINDOW as u32,
            ..Settings::default()
        };
        for need in [0, 1, MAX_WINDOW] {
            let have = 65_535;
            assert_eq!(have + credit_for(&settings, 1, need, MAX_WINDOW, have), MAX_WINDOW);
            // A first window that was lowered below what has come already.
            assert_eq!(credit_for(&settings, 1, need, MAX_WINDOW, -65_534), MAX_WINDOW);
        }
    }

    #[test]
    fn a_sender_never_waits_without_credit_when_nothing_is_held() {
        for first in [1, 7, 100, 65_535] {
            let settings = Settings {
                first_stream_window: first,
                ..Settings::default()
            };
            for room in [i64::MIN / 2, -5, 0, 1, 50, 1_000_000] {
                for streams in [0, 1, 2, 1_000] {
                    let due = credit_for(&settings, streams, 0, room, 0);
                    assert!(due > 0, "first {first}, room {room}, {streams} streams");
                }
            }
        }
    }

    #[test]
    fn what_is_held_is_not_granted_again() {
        let settings = Settings::default();
        assert_eq!(credit_for(&settings, 1, 0, 65_535, 2 * 65_535), 0);
        assert_eq!(credit_for(&settings, 1, 0, 0, 65_535), 0);
        assert_eq!(credit_for(&settings, 1, 0, 65_535, 70_000), 0, "little is left to wait");
    }

    #[test]
    fn a_near_stream_that_is_alone_is_ahead_of_its_reader_and_costs_no_more_updates_than_that() {
        let settings = Settings::default();
        let (window, piece) = (256 << 10, 16 << 10);
        let (mut room, mut have) = (window, i64::from(settings.first_stream_window));
        have += credit_for(&settings, 1, 0, room, have);
        let (mut grants, mut updates) = (0, 0);
        for _ in 0..1_000 {
            (room, have) = (room - piece, have - piece);
            // The reader grants half of its window once it has read so much.
            if room <= 0 {
                room += window / 2;
                grants += 1;
            }
            let due = credit_for(&settings, 1, 0, room, have);
            updates += i64::from(due > 0);
            have += due;
            assert!(have >= room, "the sender may send what the reader takes");
        }
        assert!(updates <= grants, "{updates} updates for {grants} grants");
    }
}
