//! What we say: header lists, DATA in turns, resets, credit, GOAWAY.
//!
//! A block is encoded when it is written, never earlier: the peer's table follows the order of the bytes.

use super::closed::How;
use super::connection::{Connection, DRAIN_PING, Going, Role, Shared, Tail};
use super::frame::{self, END_HEADERS, END_STREAM, HEADER_BYTES, MAX_PAYLOAD, MAX_STREAM_ID, Reason, kind};
use super::hpack::{Fields, Interner};
use super::stream::{Ending, Half, Stream, StreamKey};

/// The payload of as many full frames as have a byte of it within so many bytes of output: the last is not cut by its end. Else
/// a small frame before eight full ones would leave an odd rest, and that another one of the next eight.
const fn payload_within(output: usize) -> usize {
    (output + MAX_PAYLOAD - 1) / (HEADER_BYTES + MAX_PAYLOAD) * MAX_PAYLOAD
}

impl Connection {
    /// Opens a stream (client role), with `user` as its owner's mark; `None` without capacity. It gets its identifier
    /// when its HEADERS are written.
    #[inline(always)]
    pub fn open(&mut self, user: u64, is_head: bool) -> Option<StreamKey> {
        if self.role != Role::Client || !self.has_capacity() {
            return None;
        }
        let (receive, send) = (self.first_recv_window(), self.peer.initial_window as i64);
        Some(self.streams.insert_with(|| Stream {
            head_request: is_head,
            ..Stream::new(user, Half::Head, receive, send)
        }))
    }

    /// Sends a request, a final response, or a 1xx (`informational`), and END_STREAM with it if `end`.
    #[inline(always)]
    pub fn send_headers(
        &mut self,
        key: StreamKey,
        fields: &Fields,
        informational: bool,
        end: bool,
        shared: &mut Shared,
    ) {
        if let Some(id) = self.begin_headers(key, informational, end, shared) {
            self.put_block(id, fields, end, &mut shared.interner);
            self.end_headers(key, end, shared);
        }
    }

    /// The same, of the header list that came last: [`Shared::fields`].
    #[inline(always)]
    pub fn pass_on_headers(&mut self, key: StreamKey, informational: bool, end: bool, shared: &mut Shared) {
        if let Some(id) = self.begin_headers(key, informational, end, shared) {
            self.pass_on_block(id, end, shared);
            self.end_headers(key, end, shared);
        }
    }

    /// The identifier of a stream whose head may be sent now.
    #[inline(always)]
    fn begin_headers(&mut self, key: StreamKey, informational: bool, end: bool, shared: &mut Shared) -> Option<u32> {
        self.borrow_output(shared);
        let stream = self.streams.get_mut(key)?;
        if stream.ours != Half::Head {
            return None;
        }
        if stream.id == 0 {
            stream.id = self.next_ours;
            self.ids.insert(stream.id, key);
            self.next_ours += 2;
        }
        if !informational {
            stream.ours = if end { Half::Ended } else { Half::Body };
        }
        Some(stream.id)
    }

    #[inline(always)]
    fn end_headers(&mut self, key: StreamKey, end: bool, shared: &mut Shared) {
        self.ledger.useful(0);
        if end {
            self.ended(key, shared);
        }
    }

    /// Sends `bytes`, as far as there is room at once, and holds the rest. END_STREAM follows the last byte if `end`.
    ///
    /// Returns how much left at once. What is held leaves by [`Connection::pump`], which says so.
    pub fn send_data(&mut self, key: StreamKey, bytes: &[u8], end: bool, shared: &mut Shared) -> usize {
        self.borrow_output(shared);
        let output = self.output_room();
        let Some(stream) = self.streams.get_mut(key) else {
            return 0;
        };
        if stream.ours != Half::Body || stream.is_ending() {
            return 0;
        }
        // Whoever waits for the output or the connection's window was first.
        let is_first = stream.held.is_empty() && self.ready.is_empty();
        let room = stream.send_window.min(self.send_window);
        if !is_first || bytes.len() as i64 > room || bytes.len() > output && bytes.len() > payload_within(output) {
            let fits = if is_first {
                payload_within(output).min(room.max(0) as usize)
            } else {
                0
            };
            return self.hold_data(key, bytes.split_at(fits.min(bytes.len())), end, shared);
        }
        if bytes.is_empty() && !end {
            return 0;
        }
        stream.send_window -= bytes.len() as i64;
        self.send_window -= bytes.len() as i64;
        if end {
            stream.ours = Half::Ended;
        }
        let id = stream.id;
        self.put_data(id, bytes, end);
        self.ledger.useful(bytes.len());
        if end {
            self.ended(key, shared);
        }
        bytes.len()
    }

    /// Sends what has room, and holds the rest; of nothing, only the end has to wait.
    fn hold_data(&mut self, key: StreamKey, (now, later): (&[u8], &[u8]), end: bool, shared: &mut Shared) -> usize {
        let Some(stream) = self.streams.get_mut(key) else {
            return 0;
        };
        if later.is_empty() && stream.held.is_empty() {
            // An empty END_STREAM needs no room (RFC 9113, 6.9.1), and nothing is before it.
            if end {
                stream.ours = Half::Ended;
                let id = stream.id;
                self.put_data(id, now, true);
                self.ended(key, shared);
            }
            return now.len();
        }
        stream.send_window -= now.len() as i64;
        self.send_window -= now.len() as i64;
        shared.hold(&mut stream.held, later);
        if end {
            stream.ending = Ending::Data;
        }
        if !stream.scheduled && stream.send_window > 0 {
            stream.scheduled = true;
            self.ready.push_back(key);
        }
        let id = stream.id;
        if !now.is_empty() {
            self.put_data(id, now, false);
            self.ledger.useful(now.len());
        }
        now.len()
    }

    /// Sends trailers, behind the last held byte: `fields` is taken, if they have to wait for that.
    pub fn send_trailers(&mut self, key: StreamKey, fields: &mut Fields, shared: &mut Shared) {
        if let Some(id) = self.begin_trailers(key, shared) {
            self.put_block(id, fields, true, &mut shared.interner);
            self.ended(key, shared);
        } else if let Some(stream) = self.waits_for_trailers(key) {
            shared.budget.add(fields.list_size() as u64);
            stream.ending = Ending::Trailers(Box::new(std::mem::take(fields)));
        }
    }

    /// The same, of the header list that came last: [`Shared::fields`].
    #[inline(always)]
    pub fn pass_on_trailers(&mut self, key: StreamKey, shared: &mut Shared) {
        if let Some(id) = self.begin_trailers(key, shared) {
            self.pass_on_block(id, true, shared);
            self.ended(key, shared);
        } else if let Some(stream) = self.waits_for_trailers(key) {
            let fields = shared.take_fields(Box::default());
            shared.budget.add(fields.list_size() as u64);
            stream.ending = Ending::Trailers(fields);
        }
    }

    /// The identifier of a stream whose trailers may be sent now.
    #[inline(always)]
    fn begin_trailers(&mut self, key: StreamKey, shared: &mut Shared) -> Option<u32> {
        self.borrow_output(shared);
        let stream = self.streams.get_mut(key)?;
        if stream.ours != Half::Body || stream.is_ending() || !stream.held.is_empty() {
            return None;
        }
        stream.ours = Half::Ended;
        Some(stream.id)
    }

    /// A stream whose trailers have to follow what is held.
    fn waits_for_trailers(&mut self, key: StreamKey) -> Option<&mut Stream> {
        let stream = self.streams.get_mut(key)?;
        (stream.ours == Half::Body && !stream.is_ending()).then_some(stream)
    }

    /// Resets the stream: what it held is thrown away, and the key finds nothing from now on.
    pub fn reset(&mut self, key: StreamKey, reason: Reason, shared: &mut Shared) {
        if let Some(id) = self.abandon(key, shared) {
            self.say_reset(id, reason, shared);
        }
    }

    /// Resets the stream but does not say so yet: what comes for it is ignored until [`Connection::say_reset`].
    pub fn abandon(&mut self, key: StreamKey, shared: &mut Shared) -> Option<u32> {
        let stream = self.remove(key, How::OurReset, shared)?;
        if stream.id == 0 {
            return None;
        }
        if self.role == Role::Client && stream.theirs == Half::Head {
            self.early_resets += 1;
        }
        self.unsaid_resets += 1;
        Some(stream.id)
    }

    /// Says that a stream was reset.
    pub fn say_reset(&mut self, id: u32, reason: Reason, shared: &mut Shared) {
        self.borrow_output(shared);
        self.unsaid_resets = self.unsaid_resets.saturating_sub(1);
        frame::put_rst_stream(&mut self.out, id, reason);
    }

    /// Resets the stream once all that was said on our half has left (RFC 9113, 8.1).
    pub fn reset_after_end(&mut self, key: StreamKey, reason: Reason, shared: &mut Shared) {
        self.borrow_output(shared);
        if let Some(stream) = self.streams.get_mut(key) {
            stream.reset_after = Some(reason);
            if stream.is_over() {
                self.finish(key, shared);
            }
        }
    }

    /// Lets the peer send `n` bytes more on the stream; and on the connection, once a quarter of its window is used: what is
    /// said now wakes nobody later.
    pub fn grant(&mut self, key: StreamKey, n: u32, shared: &mut Shared) {
        self.borrow_output(shared);
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        // Without an identifier it would be credit for the connection.
        if n == 0 || stream.id == 0 || stream.theirs == Half::Ended {
            return;
        }
        stream.recv_window += n as i64;
        frame::put_window_update(&mut self.out, stream.id, n);
        if (self.recv_target - self.recv_window) * 4 >= self.recv_target {
            self.give_window(shared);
        }
    }

    /// Asks whether the peer is there.
    pub fn ping(&mut self, payload: [u8; 8], shared: &mut Shared) {
        self.borrow_output(shared);
        frame::put_ping(&mut self.out, 0, payload);
    }

    /// Moves held bytes into the output while there is room, one frame a stream in turn. The marks of the streams that
    /// moved are appended to `moved`.
    pub fn pump(&mut self, shared: &mut Shared, moved: &mut Vec<u64>) {
        while self.wants_pump() {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            let room = stream.send_window.min(self.send_window).max(0) as usize;
            let n = stream.held.len().min(room).min(MAX_PAYLOAD);
            if n == 0 {
                stream.scheduled = false;
                continue;
            }
            self.borrow_output(shared);
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            stream.send_window -= n as i64;
            self.send_window -= n as i64;
            let last = n == stream.held.len();
            let end = last && matches!(stream.ending, Ending::Data);
            self.out.extend_from_slice(&frame::header(
                n,
                kind::DATA,
                if end { END_STREAM } else { 0 },
                stream.id,
            ));
            let freed = stream.held.pop_into(n, &mut self.out, &mut shared.pool);
            shared.budget.release(freed as u64);
            moved.push(stream.user);
            self.ledger.useful(n);
            if !last {
                if stream.send_window > 0 {
                    self.ready.push_back(key);
                } else {
                    stream.scheduled = false;
                }
                continue;
            }
            stream.scheduled = false;
            match std::mem::replace(&mut stream.ending, Ending::Open) {
                Ending::Open => continue,
                Ending::Data => stream.ours = Half::Ended,
                Ending::Trailers(fields) => {
                    stream.ours = Half::Ended;
                    let id = stream.id;
                    self.put_block(id, &fields, true, &mut shared.interner);
                    shared.drop_trailers(*fields);
                }
            }
            self.ended(key, shared);
        }
    }

    /// The first step of a graceful end (RFC 9113, 6.8): no identifier is excluded yet, since requests may be under way;
    /// the answer to a PING says that the peer has heard it. Client role: no stream is opened any more.
    pub fn begin_goaway(&mut self) {
        if self.going != Going::No {
            return;
        }
        self.going = Going::Announced;
        if self.role == Role::Client {
            frame::put_goaway(&mut self.out, 0, Reason::NO_ERROR, "");
            self.going = Going::Last(0);
            return;
        }
        frame::put_goaway(&mut self.out, MAX_STREAM_ID, Reason::NO_ERROR, "");
        frame::put_ping(&mut self.out, 0, DRAIN_PING);
    }

    /// The second step: the last stream is named, later ones are ignored.
    pub fn finish_goaway(&mut self) {
        if self.going == Going::Announced {
            self.going = Going::Last(self.last_theirs);
            frame::put_goaway(&mut self.out, self.last_theirs, Reason::NO_ERROR, "");
        }
    }

    /// The end of the connection for `reason`, with a sentence for the peer's log.
    pub fn say_goaway(&mut self, last: u32, reason: Reason, why: &str) {
        // What was said once is not taken back: streams above it count as not processed (RFC 9113, 6.8).
        let last = match self.going {
            Going::Last(before) => last.min(before),
            Going::No | Going::Announced => last,
        };
        frame::put_goaway(&mut self.out, last, reason, why);
        self.going = Going::Last(last);
    }

    /// Whether a graceful end is over: the last stream was named, and none is left.
    pub fn is_drained(&self) -> bool {
        matches!(self.going, Going::Last(_)) && self.streams.is_empty()
    }

    #[inline(always)]
    fn ended(&mut self, key: StreamKey, shared: &mut Shared) {
        if self.role == Role::Server {
            self.ledger.answered();
        }
        if self.streams.get(key).is_some_and(Stream::is_over) {
            self.finish(key, shared);
        }
    }

    /// A DATA frame; or more of the one that the output ends with, if that is this stream's.
    #[inline(always)]
    fn put_data(&mut self, id: u32, bytes: &[u8], end: bool) {
        let tail = self.tail;
        let grows = tail.stream == id && tail.end as usize == self.out.len() && tail.end > 0;
        let at = tail.at as usize;
        let len = if grows { self.out.len() - at - HEADER_BYTES } else { 0 };
        if grows && len + bytes.len() <= MAX_PAYLOAD {
            let header = frame::header(len + bytes.len(), kind::DATA, if end { END_STREAM } else { 0 }, id);
            self.out[at..at + HEADER_BYTES].copy_from_slice(&header);
            self.out.extend_from_slice(bytes);
            self.tail.end = self.out.len() as u32;
            return;
        }
        let mut last = bytes;
        while last.len() > MAX_PAYLOAD {
            let (now, later) = last.split_at(MAX_PAYLOAD);
            self.put_frame(id, now, 0);
            last = later;
        }
        self.put_frame(id, last, if end { END_STREAM } else { 0 });
    }

    #[inline(never)]
    fn put_frame(&mut self, id: u32, payload: &[u8], flags: u8) {
        let at = self.out.len();
        self.out.reserve(HEADER_BYTES + payload.len());
        self.out
            .extend_from_slice(&frame::header(payload.len(), kind::DATA, flags, id));
        self.out.extend_from_slice(payload);
        // A peer that leaves gigabytes unread is cut long before.
        self.tail = Tail {
            stream: id,
            at: at as u32,
            end: self.out.len() as u32,
        };
    }

    /// The block of the header list that came last.
    #[inline(always)]
    fn pass_on_block(&mut self, id: u32, end: bool, shared: &mut Shared) {
        let (fields, interner) = shared.fields_and_interner();
        self.put_block(id, fields, end, interner);
    }

    /// A header block, in as many frames as it needs.
    fn put_block(&mut self, id: u32, fields: &Fields, end: bool, interner: &mut Interner) {
        let at = self.out.len();
        self.out.extend_from_slice(&[0; HEADER_BYTES]);
        self.encoder.encode(fields, interner, &mut self.out);
        let len = self.out.len() - at - HEADER_BYTES;
        let end_stream = if end { END_STREAM } else { 0 };
        if len <= MAX_PAYLOAD {
            let header = frame::header(len, kind::HEADERS, end_stream | END_HEADERS, id);
            self.out[at..at + HEADER_BYTES].copy_from_slice(&header);
            return;
        }
        // Rare: the block is cut into HEADERS and CONTINUATION, which nothing may come between.
        let block = self.out.split_off(at + HEADER_BYTES);
        self.out.truncate(at);
        let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
        let mut kind_and_flags = (kind::HEADERS, end_stream);
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
            let header = frame::header(piece.len(), kind_and_flags.0, kind_and_flags.1 | last, id);
            self.out.extend_from_slice(&header);
            self.out.extend_from_slice(piece);
            kind_and_flags = (kind::CONTINUATION, 0);
        }
    }
}
