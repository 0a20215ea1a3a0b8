//! One HTTP/2 connection, in either role: bytes in, events out; commands in, bytes out. No socket, no clock.
//!
//! The owner feeds what it read to [`Connection::receive`] until that returns `None`, answers events by the commands of
//! `send.rs`, lets [`Connection::pump`] move what is held when the turn ends, and writes [`Connection::output`].

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Settings;
use super::abuse::{Abuse, Ledger};
use super::budget::Budget;
use super::closed::{Closed, How};
use super::frame::{self, BULK_BYTES, DEFAULT_WINDOW, MAX_STREAM_ID, Reason, setting};
use super::held::Pool;
use super::hpack::{self, Decoder, Encoder, Fields, Interner, Lists, Name};
use super::ids::Ids;
use super::message::Wrong;
use super::path::{self, Path};
use super::receive::Parser;
use super::stream::{Ending, Half, Stream, StreamKey};
use crate::slots::Slots;

/// What the connections of one worker have in common.
pub struct Shared {
    /// Header fields that some table of some connection holds.
    pub interner: Interner,
    /// Header lists that come again and again.
    pub(crate) lists: Lists,
    /// The header list of the event that was returned last, unless it is one of those.
    fields: Box<Fields>,
    /// The one of those that it is, then.
    known: Option<Rc<Fields>>,
    /// Memory that may be used.
    pub budget: Budget,
    /// The least header list that any peer has said it takes, of those that stand, or stood when they were last looked at.
    pub(crate) least_header_list: usize,
    pub(crate) pool: Pool,
    /// Memory for small copies.
    pub(crate) copies: Vec<Vec<u8>>,
    /// Output buffers of connections that have nothing to write.
    pub(crate) outputs: Vec<Vec<u8>>,
}

impl Shared {
    /// The tables of a worker that may hold `budget` bytes for its connections.
    pub fn new(budget: u64) -> Shared {
        Shared {
            interner: Interner::new(),
            lists: Lists::default(),
            fields: Box::default(),
            known: None,
            budget: Budget::new(budget),
            least_header_list: usize::MAX,
            pool: Pool::default(),
            copies: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// The header list of the event that was returned last.
    #[inline]
    pub fn fields(&self) -> &Fields {
        self.known.as_deref().unwrap_or(&self.fields)
    }

    /// The same, beside the interner.
    #[inline]
    pub(crate) fn fields_and_interner(&mut self) -> (&Fields, &mut Interner) {
        (self.known.as_deref().unwrap_or(&self.fields), &mut self.interner)
    }

    /// The same, to be changed.
    fn fields_mut(&mut self) -> &mut Fields {
        if self.known.is_some() {
            let mut own = std::mem::take(&mut self.fields);
            self.copy_fields(&mut own);
            self.fields = own;
            self.known = None;
        }
        &mut self.fields
    }

    /// Takes every field of this name out of it.
    pub fn remove_fields(&mut self, name: Name) {
        self.fields_mut();
        self.fields.remove_all(name, &mut self.interner);
    }

    /// Makes `other` an equal list.
    #[inline]
    pub fn copy_fields(&mut self, other: &mut Fields) {
        match &self.known {
            Some(known) => other.borrow(known.clone(), &mut self.interner),
            None => self.fields.copy_to(other, &mut self.interner),
        }
    }

    /// Takes that list, and leaves none in its place. `empty` is memory for the one or the other.
    #[inline(always)]
    pub fn take_fields(&mut self, mut empty: Box<Fields>) -> Box<Fields> {
        let Some(known) = self.known.take() else {
            return std::mem::replace(&mut self.fields, empty);
        };
        empty.borrow(known, &mut self.interner);
        self.fields.clear(&mut self.interner);
        empty
    }

    /// Whether the list that came last is one that comes again.
    #[cfg(test)]
    pub(crate) fn is_known(&self) -> bool {
        self.known.is_some()
    }

    /// Gives back all that it holds of its own tables: what is live then, somebody else holds.
    pub fn release(&mut self) {
        self.known = None;
        self.fields.clear(&mut self.interner);
        self.lists.release(&mut self.interner);
    }

    /// Decodes a header block, which becomes that list.
    #[inline]
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        decoder: &mut Decoder,
        limits: &hpack::Limits,
    ) -> Result<(), hpack::Error> {
        self.known = decoder.known(block).and_then(|known| self.lists.get(known).cloned());
        if self.known.is_some() {
            return Ok(());
        }
        decoder.decode(block, limits, &mut self.interner, &mut self.fields)?;
        decoder.learn(block, &self.fields, &mut self.lists, &mut self.interner);
        Ok(())
    }

    /// Throws away trailers that were held.
    pub(crate) fn drop_trailers(&mut self, mut trailers: Fields) {
        self.budget.release(trailers.list_size() as u64);
        trailers.clear(&mut self.interner);
    }
}

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer asks.
    Server,
    /// We ask.
    Client,
}

/// What kind of header list came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A new stream's request.
    Request,
    /// A final response, with its `:status`.
    Response(u16),
    /// An informational response (1xx).
    Informational(u16),
    /// Fields behind the last DATA.
    Trailers,
}

/// What the peer did.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A header list: it stands in [`Shared::fields`] until the next call.
    Headers {
        /// The stream.
        key: StreamKey,
        /// What the owner hung on it (0 for a request).
        user: u64,
        /// What the list is.
        head: Head,
        /// Whether the peer's half ends with it.
        end: bool,
    },
    /// A piece of payload. A frame may come in several pieces.
    Data {
        /// The stream.
        key: StreamKey,
        /// What the owner hung on it.
        user: u64,
        /// The payload.
        bytes: &'a [u8],
        /// Whether the peer's half ends with it.
        end: bool,
    },
    /// The stream is gone: the peer reset it, or did something to it that the RFC answers with a reset.
    Reset {
        /// What the owner hung on it.
        user: u64,
        /// The code that was sent or came.
        reason: Reason,
        /// Why we reset it; `None` if the peer did.
        fault: Option<StreamFault>,
        /// Whether the peer's half had ended before.
        theirs_ended: bool,
    },
    /// The peer granted more on a stream.
    Room {
        /// What the owner hung on it.
        user: u64,
    },
    /// The peer's SETTINGS changed; `rooms` if the windows of streams did.
    Settings {
        /// Whether the window of every stream changed.
        rooms: bool,
    },
    /// The peer acknowledged SETTINGS of ours that lowered the windows of streams that were open: what they had used of
    /// the higher one may have left them without credit.
    Lowered,
    /// The peer will take no new streams; those above `last` were not processed ([`Connection::take_unprocessed`]).
    GoAway {
        /// The last stream that the peer may have processed.
        last: u32,
        /// Why it goes.
        reason: Reason,
    },
    /// The answer to our PING.
    Pong([u8; 8]),
    /// A request was refused by the engine itself.
    Refused {
        /// The code that was sent.
        reason: Reason,
        /// What was wrong with it; `None` if there were too many streams.
        wrong: Option<Wrong>,
    },
}

/// What a peer did to a stream that we answer with RST_STREAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// A malformed message.
    #[error("the peer sent {0}")]
    Malformed(Wrong),
    /// More than the stream's window allowed, or an update that overflows it.
    #[error("the peer broke the stream's flow control")]
    FlowControl,
    /// Something after its half had ended.
    #[error("the peer sent a frame on a half that it had ended")]
    AfterEnd,
    /// An update of nothing, or a stream that depends on itself.
    #[error("the peer sent a frame that a stream cannot have")]
    Protocol,
}

/// Why the connection is over. GOAWAY stands in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {why}")]
pub struct Fatal {
    /// The code that we told the peer.
    pub reason: Reason,
    /// A sentence for the log.
    pub why: &'static str,
}

pub(crate) fn fatal<T>(reason: Reason, why: &'static str) -> Result<T, Fatal> {
    Err(Fatal { reason, why })
}

/// What the peer announced.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) said: bool,
    pub(crate) initial_window: u32,
    pub(crate) max_streams: u32,
    pub(crate) max_header_list: u32,
}

/// An HTTP/2 connection without its socket.
pub struct Connection {
    pub(crate) role: Role,
    pub(crate) settings: Arc<Settings>,
    pub(crate) streams: Slots<Stream>,
    pub(crate) ids: Ids,
    pub(crate) parser: Parser,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    pub(crate) peer: Peer,
    /// Whether the peer acknowledged our SETTINGS.
    pub(crate) acked: bool,
    /// What the peer may still send on the connection.
    pub(crate) recv_window: i64,
    /// What the connection's window is restored to.
    pub(crate) recv_target: i64,
    /// How much of `recv_window` stands in the worker's budget.
    pub(crate) reserved: u32,
    pub(crate) send_window: i64,
    /// Streams that hold bytes and have room, in their turn.
    pub(crate) ready: std::collections::VecDeque<StreamKey>,
    pub(crate) out: Vec<u8>,
    /// How much of `out` the socket took.
    out_taken: usize,
    /// Whether the socket did not take all of it: DATA may not fill it up as far, then.
    is_backed_up: bool,
    /// The DATA frame that `out` ends with.
    pub(crate) tail: Tail,
    /// The highest stream that the peer opened.
    pub(crate) last_theirs: u32,
    /// The next stream that we open.
    pub(crate) next_ours: u32,
    pub(crate) going: Going,
    /// The last stream that the peer's GOAWAY lets through.
    pub(crate) their_goaway: Option<u32>,
    pub(crate) closed: Closed,
    pub(crate) ledger: Ledger,
    /// Whether the peer is the pod's own application, which may cancel as it likes.
    pub(crate) own_application: bool,
    pub(crate) path: Path,
    /// The time of what is being received.
    pub(crate) now: Instant,
    /// What the peer did too much of.
    pub(crate) unruly: Option<Abuse>,
    /// Resets that we sent on streams that had no response: a peer may take many of them for an attack.
    pub(crate) early_resets: u32,
    /// Streams that are reset, which the peer has not been told: it counts them still.
    pub(crate) unsaid_resets: u32,
    /// Memory beside that of the streams that stands in the worker's budget ([`Connection::count_kept`]).
    pub(crate) kept: u32,
}

/// What is left of a stream that was taken out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub(crate) id: u32,
    pub(crate) user: u64,
    pub(crate) theirs: Half,
}

/// A DATA frame at the end of the output, which can still grow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tail {
    pub(crate) stream: u32,
    /// Where its header stands in the output.
    pub(crate) at: u32,
    /// Where it ends; 0 where there is none.
    pub(crate) end: u32,
}

/// How far our own going away is (RFC 9113, 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Going {
    /// We stay.
    No,
    /// 2^31-1 was said, and a PING asked whether it was heard.
    Announced,
    /// The last stream was said: later ones are ignored.
    Last(u32),
}

/// The payload of the PING that stands between the two steps of a graceful GOAWAY.
pub(crate) const DRAIN_PING: [u8; 8] = *b"ptn-gone";
/// The payload of the PING that measures the path.
pub(crate) const PATH_PING: [u8; 8] = *b"ptn-path";
/// Output that DATA may fill up to while the socket does not take all of it: what stands here cannot be overtaken by a small
/// call. Else it is [`BULK_BYTES`]. Headers, control frames and the last frame of DATA may exceed either.
const OUTPUT_BYTES: usize = 64 << 10;
/// Output buffers larger than this are kept for the next only while few are kept.
const LARGE_OUTPUT: usize = BULK_BYTES;
/// How many of these are few.
const LARGE_OUTPUTS: usize = 16;
/// Output at which no stream is begun: more than bulk of DATA, and with the largest header list less than what is beyond reason.
const CONGESTED_OUTPUT: usize = BULK_BYTES + BULK_BYTES / 2;
/// Output of which DATA is not the most.
const HONEST_OUTPUT: usize = 2 * BULK_BYTES;
/// Output that a peer does not read, at which it is cut.
const OUTPUT_CEILING: usize = 4 << 20;
/// Turns of streams that are gone, which are not worth looking for.
const STALE_TURNS: usize = 64;
/// Streams that we open before the peer's SETTINGS said how many it takes.
const STREAMS_BEFORE_SETTINGS: u32 = 100;

impl Connection {
    /// A connection whose peer asks. Our SETTINGS stand in the output at once.
    pub fn server(settings: Arc<Settings>, own_application: bool, now: Instant, shared: &mut Shared) -> Connection {
        Connection::new(Role::Server, settings, own_application, now, shared)
    }

    /// A connection on which we ask. The preface and our SETTINGS stand in the output at once.
    pub fn client(settings: Arc<Settings>, own_application: bool, now: Instant, shared: &mut Shared) -> Connection {
        Connection::new(Role::Client, settings, own_application, now, shared)
    }

    fn new(
        role: Role,
        settings: Arc<Settings>,
        own_application: bool,
        now: Instant,
        shared: &mut Shared,
    ) -> Connection {
        let mut connection = Connection {
            role,
            streams: Slots::default(),
            ids: Ids::default(),
            parser: Parser::new(role),
            decoder: Decoder::new(hpack::DEFAULT_TABLE_BYTES),
            encoder: Encoder::new(),
            peer: Peer {
                said: false,
                initial_window: DEFAULT_WINDOW,
                max_streams: STREAMS_BEFORE_SETTINGS,
                max_header_list: u32::MAX,
            },
            acked: false,
            recv_window: DEFAULT_WINDOW as i64,
            recv_target: DEFAULT_WINDOW as i64,
            reserved: 0,
            send_window: DEFAULT_WINDOW as i64,
            ready: Default::default(),
            out: Vec::new(),
            out_taken: 0,
            is_backed_up: false,
            tail: Tail::default(),
            last_theirs: 0,
            next_ours: 1,
            going: Going::No,
            their_goaway: None,
            closed: Closed::default(),
            ledger: Ledger::new(now),
            own_application,
            path: Path::new(now),
            now,
            unruly: None,
            early_resets: 0,
            unsaid_resets: 0,
            kept: 0,
            settings,
        };
        connection.say_settings(shared);
        connection
    }

    fn say_settings(&mut self, shared: &mut Shared) {
        self.borrow_output(shared);
        let settings = &self.settings;
        let mut values = Vec::with_capacity(4);
        if settings.header_table_bytes != 4_096 {
            values.push((setting::HEADER_TABLE_SIZE, settings.header_table_bytes));
        }
        match self.role {
            Role::Server => values.push((setting::MAX_CONCURRENT_STREAMS, settings.max_concurrent_streams)),
            Role::Client => values.push((setting::ENABLE_PUSH, 0)),
        }
        if settings.first_stream_window != DEFAULT_WINDOW {
            values.push((setting::INITIAL_WINDOW_SIZE, settings.first_stream_window));
        }
        if self.role == Role::Client {
            self.out.extend_from_slice(frame::PREFACE);
        }
        frame::put_settings(&mut self.out, &values);
    }

    /// Whether a new stream may be opened now (client role).
    pub fn has_capacity(&self) -> bool {
        self.their_goaway.is_none()
            && self.going == Going::No
            && (self.streams.len() as u32).saturating_add(self.unsaid_resets) < self.peer.max_streams
            && self.next_ours <= MAX_STREAM_ID
            && !self.is_congested()
    }

    /// Whether so much is to be written that no stream is begun any more: header lists know no window, and whoever reads slowly
    /// must not be cut for what others say to it.
    pub fn is_congested(&self) -> bool {
        self.output().len() > CONGESTED_OUTPUT
    }

    /// What it announces and tolerates.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many streams are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams the peer takes at once, as far as it said.
    pub fn max_streams(&self) -> u32 {
        self.peer.max_streams
    }

    /// Whether no new stream will begin here: either side said GOAWAY, or the identifiers are used up.
    pub fn is_draining(&self) -> bool {
        self.their_goaway.is_some() || self.going != Going::No || self.next_ours > MAX_STREAM_ID
    }

    /// How many streams the peer is likely to take: so many are opened before its SETTINGS say it.
    pub fn expect_streams(&mut self, streams: u32) {
        if !self.peer.said {
            self.peer.max_streams = streams;
        }
    }

    /// Whether the peer's SETTINGS came.
    pub fn heard_settings(&self) -> bool {
        self.peer.said
    }

    /// Whether the peer acknowledged our SETTINGS.
    pub fn settings_acknowledged(&self) -> bool {
        self.acked
    }

    /// Whether a header block has begun and not ended: the owner bounds how long that may last.
    pub fn is_inside_headers(&self) -> bool {
        self.parser.is_inside_block()
    }

    /// The largest header list that the peer takes, as RFC 9113, 6.5.2 counts.
    pub fn max_header_list(&self) -> usize {
        self.peer.max_header_list as usize
    }

    /// What the peer did too much of since this was last asked: it was sent a GOAWAY.
    pub fn take_unruly(&mut self) -> Option<Abuse> {
        self.unruly.take()
    }

    /// Streams that we reset before a response came, since the connection began.
    pub fn early_resets(&self) -> u32 {
        self.early_resets
    }

    /// Whether the stream is there still: one of its halves is open, or holds bytes.
    pub fn is_open(&self, key: StreamKey) -> bool {
        self.streams.contains(key)
    }

    /// Hangs `user` on the stream: it comes back with each of its events.
    pub fn set_user(&mut self, key: StreamKey, user: u64) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.user = user;
        }
    }

    /// What the peer may still send on the stream; `None` once its half has ended.
    pub fn recv_window(&self, key: StreamKey) -> Option<i64> {
        self.streams
            .get(key)
            .filter(|s| s.theirs != Half::Ended)
            .map(|s| s.recv_window)
    }

    /// The stream's identifier on the wire; 0 if it has none (any more).
    pub fn id(&self, key: StreamKey) -> u32 {
        self.streams.get(key).map_or(0, |s| s.id)
    }

    /// The identifier that the next stream of ours will have.
    pub fn next_stream(&self) -> u32 {
        self.next_ours
    }

    /// A number that is another one whenever a stream has begun meanwhile, on whichever side.
    pub fn begun(&self) -> u32 {
        self.last_theirs.wrapping_add(self.next_ours)
    }

    /// Whether the peer was told that we go and has not answered the PING behind that: it may open streams still.
    pub fn goes_unheard(&self) -> bool {
        self.going == Going::Announced
    }

    /// Whether any stream is open from this identifier on.
    pub fn waits_since(&self, id: u32) -> bool {
        self.streams.iter().any(|(_, stream)| stream.id >= id)
    }

    /// Bytes of ours that the stream holds.
    pub fn held(&self, key: StreamKey) -> usize {
        self.streams.get(key).map_or(0, |s| s.held.len())
    }

    /// What the peer still takes on the stream.
    pub fn room(&self, key: StreamKey) -> i64 {
        self.streams.get(key).map_or(0, |s| s.send_window)
    }

    /// What the peer takes on a stream before it has read anything (its SETTINGS_INITIAL_WINDOW_SIZE).
    pub fn their_first_window(&self) -> i64 {
        self.peer.initial_window.into()
    }

    /// Credit that the path to the peer needs to stay full.
    pub fn path_need(&self) -> i64 {
        self.path.need()
    }

    /// Whether a PING is under way that measures the path to the peer.
    pub fn measures_path(&self) -> bool {
        self.path.is_asked()
    }

    /// Everything that is to be written, in order.
    pub fn output(&self) -> &[u8] {
        &self.out[self.out_taken..]
    }

    /// The socket took `n` bytes of [`Connection::output`].
    pub fn written(&mut self, n: usize, shared: &mut Shared) {
        let taken = self.out_taken + n;
        self.tail = Tail::default();
        if taken == self.out.len() {
            self.return_output(shared);
        } else if taken > OUTPUT_BYTES {
            self.out.drain(..taken);
            self.out_taken = 0;
        } else {
            self.out_taken = taken;
        }
    }

    /// The turn's output was written: whether some of it is left, since the socket took no more.
    #[inline(always)]
    pub fn set_backed_up(&mut self, is_backed_up: bool) {
        self.is_backed_up = is_backed_up;
    }

    /// Whether the socket has left some of the output.
    pub fn is_backed_up(&self) -> bool {
        self.is_backed_up
    }

    /// How many bytes of DATA the output has room for.
    #[inline(always)]
    pub(crate) fn output_room(&self) -> usize {
        let most = if self.is_backed_up { OUTPUT_BYTES } else { BULK_BYTES };
        most.saturating_sub(self.out.len() - self.out_taken)
    }

    /// Whether the peer has left more unread than any peer needs to.
    pub fn output_overflows(&self) -> bool {
        self.out.len() - self.out_taken > OUTPUT_CEILING
    }

    /// Counts in the budget what the connection keeps beside its streams: output that is not read, with the memory of what
    /// is `sealed` of it, and header blocks that go on and on. To be asked when a turn's output was written.
    #[inline(always)]
    pub fn count_kept(&mut self, sealed: usize, shared: &mut Shared) {
        if sealed > 0 || !self.output().is_empty() || self.kept > 0 || self.parser.unfinished_block() > 0 {
            self.recount_kept(sealed, shared);
        }
    }

    #[cold]
    fn recount_kept(&mut self, sealed: usize, shared: &mut Shared) {
        let output = if self.output().is_empty() {
            0
        } else {
            self.out.capacity()
        };
        let kept = u32::try_from(output + sealed + self.parser.unfinished_block()).unwrap_or(u32::MAX);
        shared.budget.release(self.kept.into());
        shared.budget.add(kept.into());
        self.kept = kept;
    }

    /// What [`Connection::count_kept`] counted.
    pub fn kept(&self) -> u64 {
        self.kept.into()
    }

    /// How much of that no honest peer makes it keep. A reader that is merely slow leaves the DATA that [`BULK_BYTES`] allows,
    /// some frames more, and heads.
    pub fn kept_beyond_reason(&self) -> usize {
        let unread = self.output().len();
        let too_much = if unread > HONEST_OUTPUT { unread } else { 0 };
        too_much + self.parser.unfinished_block()
    }

    /// Whether held bytes could be moved into the output now.
    pub fn wants_pump(&self) -> bool {
        !self.ready.is_empty() && self.send_window > 0 && self.output_room() > 0
    }

    /// The owners' marks of all streams.
    pub fn users(&self) -> Vec<u64> {
        self.streams.iter().map(|(_, stream)| stream.user).collect()
    }

    /// The streams that the peer's GOAWAY says it did not process: they are gone, and their marks are returned.
    pub fn take_unprocessed(&mut self, shared: &mut Shared) -> Vec<u64> {
        let Some(last) = self.their_goaway else {
            return Vec::new();
        };
        let keys: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, s)| s.id > last || s.id == 0)
            .map(|(key, _)| key)
            .collect();
        keys.into_iter()
            .filter_map(|key| self.remove(key, How::OurReset, shared))
            .map(|stream| stream.user)
            .collect()
    }

    /// Gives back what the connection holds of the worker's tables. To be called before it is dropped.
    pub fn release(&mut self, shared: &mut Shared) {
        for key in self.streams.keys() {
            self.remove(key, How::OurReset, shared);
        }
        self.decoder.release(&mut shared.interner);
        self.encoder.release(&mut shared.interner);
        shared.budget.unreserve(std::mem::take(&mut self.reserved).into());
        shared.budget.release(std::mem::take(&mut self.kept).into());
    }

    #[inline(always)]
    pub(crate) fn borrow_output(&mut self, shared: &mut Shared) {
        if self.out.capacity() == 0 {
            self.out = shared.outputs.pop().unwrap_or_default();
        }
    }

    /// Gives the output's memory to whoever has something to say next; nothing may stand in it.
    pub(crate) fn return_output(&mut self, shared: &mut Shared) {
        self.out_taken = 0;
        self.out.clear();
        let mut buffer = std::mem::take(&mut self.out);
        if buffer.capacity() > 0 && shared.outputs.len() < 64 {
            let is_large = buffer.capacity() > LARGE_OUTPUT;
            if is_large && (buffer.capacity() > 2 * LARGE_OUTPUT || shared.outputs.len() >= LARGE_OUTPUTS) {
                buffer.shrink_to(OUTPUT_BYTES);
            }
            // The largest stays on top: who has the most to say is mostly the next to speak, and finds room.
            let under = shared
                .outputs
                .last()
                .is_some_and(|top| top.capacity() > buffer.capacity());
            let place = shared.outputs.len() - usize::from(under);
            shared.outputs.insert(place, buffer);
        }
    }

    pub(crate) fn by_id(&self, id: u32) -> Option<StreamKey> {
        self.ids.get(id)
    }

    /// Whether `id` was never opened.
    pub(crate) fn is_idle(&self, id: u32) -> bool {
        let theirs = (id % 2 == 1) == (self.role == Role::Server);
        if theirs {
            id > self.last_theirs
        } else {
            id >= self.next_ours
        }
    }

    /// Takes a stream out, with all that it holds, and remembers how it ended.
    pub(crate) fn remove(&mut self, key: StreamKey, how: How, shared: &mut Shared) -> Option<Gone> {
        let stream = self.streams.get_mut(key)?;
        let gone = Gone {
            id: stream.id,
            user: stream.user,
            theirs: stream.theirs,
        };
        if !stream.held.is_empty() {
            shared.drop_held(&mut stream.held);
        }
        if let Ending::Trailers(fields) = std::mem::replace(&mut stream.ending, Ending::Open) {
            shared.drop_trailers(*fields);
        }
        let had_a_turn = stream.scheduled;
        self.streams.discard(key);
        if gone.id != 0 {
            self.ids.remove(gone.id);
            self.closed.remember(gone.id, how);
        }
        if had_a_turn && self.ready.len() > STALE_TURNS && self.ready.len() > 2 * self.streams.len() {
            // While the connection has no room nobody takes turns, and streams that come and go would pile up here.
            self.ready.retain(|key| self.streams.contains(*key));
        }
        Some(gone)
    }

    /// Removes a stream that is over, and sends the reset that waited for that.
    #[inline(always)]
    pub(crate) fn finish(&mut self, key: StreamKey, shared: &mut Shared) {
        let Some(stream) = self.streams.get(key) else { return };
        let simple = stream.is_done() && stream.held.is_empty() && !stream.is_ending() && !stream.scheduled;
        if !simple {
            return self.finish_slowly(key, shared);
        }
        let id = stream.id;
        self.streams.discard(key);
        self.ids.remove(id);
        self.closed.remember(id, How::EndStream);
    }

    #[cold]
    fn finish_slowly(&mut self, key: StreamKey, shared: &mut Shared) {
        let Some(stream) = self.streams.get(key) else { return };
        let how = match stream.reset_after {
            Some(reason) if !stream.is_done() => {
                frame::put_rst_stream(&mut self.out, stream.id, reason);
                How::OurReset
            }
            _ => How::EndStream,
        };
        self.remove(key, how, shared);
    }

    /// The window that a stream's sender starts with. A lower one than the default counts once it is acknowledged.
    pub(crate) fn first_recv_window(&self) -> i64 {
        let ours = self.settings.first_stream_window;
        if self.acked {
            ours as i64
        } else {
            ours.max(DEFAULT_WINDOW) as i64
        }
    }

    /// Restores the connection's window once enough of it is used, while the budget lasts. A near peer's is restored together
    /// with a stream's ([`Connection::grant`]), or at three quarters, as long as bulk fits into the fourth; else at a half.
    #[inline(always)]
    pub(crate) fn restore_window(&mut self, shared: &mut Shared) {
        let used = self.recv_target - self.recv_window;
        let enough = match self.path.need() {
            0 if self.recv_target / 4 > BULK_BYTES as i64 => self.recv_target - self.recv_target / 4,
            need => path::worth_giving(self.recv_target, need),
        };
        if used < enough {
            self.settle_reservation(shared);
        } else {
            self.give_window(shared);
        }
    }

    #[inline(never)]
    pub(crate) fn give_window(&mut self, shared: &mut Shared) {
        let wanted = (self.settings.connection_window as i64)
            .max(self.path.need().min(self.settings.connection_window_ceiling as i64));
        // A connection grows when it has used much of what it had, as one that is not idle.
        let mut target = wanted.max(self.recv_target);
        // A window has 31 bits.
        let extra = |target: i64| (target - DEFAULT_WINDOW as i64).max(0) as u32;
        if extra(target) > self.reserved && !shared.budget.reserve((extra(target) - self.reserved).into()) {
            target = DEFAULT_WINDOW as i64;
            if target <= self.recv_window {
                self.settle_reservation(shared);
                return;
            }
        } else {
            self.reserved = self.reserved.max(extra(target));
        }
        let increment = target - self.recv_window;
        self.recv_target = target;
        self.recv_window = target;
        self.settle_reservation(shared);
        frame::put_window_update(&mut self.out, 0, increment as u32);
    }

    /// The reservation follows the credit that is out: what came is counted as held, or has left already.
    #[inline]
    fn settle_reservation(&mut self, shared: &mut Shared) {
        if self.reserved == 0 {
            return;
        }
        let out = (self.recv_window - DEFAULT_WINDOW as i64).max(0) as u32;
        if out < self.reserved {
            shared.budget.unreserve((self.reserved - out).into());
            self.reserved = out;
        }
    }

    /// The payload of the PING that asks a silent peer whether it lives.
    pub const KEEPALIVE_PAYLOAD: [u8; 8] = *b"ptn-live";

    /// How long the graceful GOAWAY waits for its PING, while nothing comes, before it names the last stream anyway.
    pub const GOAWAY_PATIENCE: Duration = Duration::from_secs(1);
    /// How long it waits for it whatever else comes.
    pub const GOAWAY_DEADLINE: Duration = Duration::from_secs(5);
}
