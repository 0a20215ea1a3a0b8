//! What came: bytes into frames, frames into events (RFC 9113, 4 to 6).

use std::time::Instant;

use super::abuse::{Abuse, Verdict};
use super::closed::How;
use super::connection::{
    Connection, DRAIN_PING, Event, Fatal, Going, Head, PATH_PING, Role, Shared, StreamFault, fatal,
};
use super::frame::{
    self, ACK, DEFAULT_WINDOW, END_HEADERS, END_STREAM, HEADER_BYTES, Header, MAX_PAYLOAD, MAX_WINDOW, PADDED, PREFACE,
    PRIORITY_FLAG, Reason, kind, setting,
};
use super::hpack;
use super::message::{self, Wrong};
use super::stream::{Half, Stream, StreamKey};
use crate::slots::Key;

/// Where in the peer's bytes we are.
pub(crate) struct Parser {
    at: At,
    /// A frame that has not come whole; never DATA, whose payload is handed on as it comes.
    partial: Vec<u8>,
    block: Option<Box<Block>>,
}

/// What the next byte belongs to.
enum At {
    /// A frame, which it begins or goes on with.
    Frame,
    /// The client's preface, of which so many bytes are still to come (server role).
    Preface { left: usize },
    /// The payload of DATA.
    Data(Data),
    /// Padding behind DATA.
    Padding { left: usize },
}

/// A DATA frame whose payload is coming.
#[derive(Clone, Copy)]
struct Data {
    /// `Key::NONE` when its stream is gone.
    key: StreamKey,
    left: u32,
    padding: u32,
    /// The byte that says how long the padding is has not come yet.
    pad_length_due: bool,
    /// The payload has not been compared with `content-length` yet.
    length_due: bool,
    end: bool,
}

/// A header block that goes on in CONTINUATION frames.
struct Block {
    stream: u32,
    end_stream: bool,
    depends_on_itself: bool,
    continuations: u32,
    bytes: Vec<u8>,
}

impl Parser {
    pub(crate) fn new(role: Role) -> Parser {
        let at = match role {
            Role::Server => At::Preface { left: PREFACE.len() },
            Role::Client => At::Frame,
        };
        Parser {
            at,
            partial: Vec::new(),
            block: None,
        }
    }

    /// Whether the rest of a DATA frame is still to come, which counts already.
    #[cfg(test)]
    pub(crate) fn is_inside_data(&self) -> bool {
        matches!(self.at, At::Data(_))
    }

    /// Memory of a header block that takes more than one frame.
    pub(crate) fn unfinished_block(&self) -> usize {
        self.block
            .as_ref()
            .filter(|block| block.bytes.len() > MAX_PAYLOAD)
            .map_or(0, |block| block.bytes.capacity())
    }

    pub(crate) fn is_inside_block(&self) -> bool {
        self.block.is_some() || self.partial.len() > HEADER_BYTES
    }
}

impl Connection {
    /// Reads `input` up to the next event, and moves it past what was read; `None` once it is used up.
    ///
    /// After an error the connection is over: GOAWAY stands in the output, and nothing more is to be received.
    #[inline(always)]
    pub fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.borrow_output(shared);
        self.now = now;
        let result = self.next_event(input, shared);
        match &result {
            Err(error) => self.say_goaway(self.last_theirs, error.reason, error.why),
            // What came needed no answer: the memory for one is not kept by a connection that may be idle now.
            Ok(None) if self.out.is_empty() => self.return_output(shared),
            Ok(_) => {}
        }
        result
    }

    #[inline(always)]
    fn next_event<'a>(&mut self, input: &mut &'a [u8], shared: &mut Shared) -> Result<Option<Event<'a>>, Fatal> {
        loop {
            match self.parser.at {
                At::Frame if input.is_empty() => return Ok(None),
                At::Frame => match self.read_frame(input, shared) {
                    Ok(None) => {}
                    done => return done,
                },
                At::Data(data) => match self.go_on_with_data(data, input, shared)? {
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Again => {}
                    Step::Hungry => return Ok(None),
                },
                At::Padding { left } | At::Preface { left } if input.is_empty() => {
                    debug_assert!(left > 0, "what is over is left");
                    return Ok(None);
                }
                At::Padding { left } => {
                    let n = input.len().min(left);
                    *input = &input[n..];
                    self.parser.at = if n == left {
                        At::Frame
                    } else {
                        At::Padding { left: left - n }
                    };
                }
                At::Preface { left } => self.read_preface(left, input)?,
            }
        }
    }

    fn read_preface(&mut self, left: usize, input: &mut &[u8]) -> Result<(), Fatal> {
        let n = left.min(input.len());
        let expected = &PREFACE[PREFACE.len() - left..][..n];
        if &input[..n] != expected {
            return fatal(
                Reason::PROTOCOL_ERROR,
                "the client's first bytes are not HTTP/2's preface",
            );
        }
        self.parser.at = if n == left {
            At::Frame
        } else {
            At::Preface { left: left - n }
        };
        *input = &input[n..];
        Ok(())
    }

    #[inline(always)]
    fn read_frame<'a>(&mut self, input: &mut &'a [u8], shared: &mut Shared) -> Result<Option<Event<'a>>, Fatal> {
        // Most frames come whole, and are read where they stand.
        if self.parser.partial.is_empty()
            && let Some(bytes) = input.first_chunk::<HEADER_BYTES>()
        {
            let header = Header::parse(bytes);
            self.check_frame(&header)?;
            if header.kind == kind::DATA {
                *input = &input[HEADER_BYTES..];
                return self.on_data(header, input, shared);
            }
            let whole = HEADER_BYTES + header.len as usize;
            if input.len() >= whole {
                let payload = &input[HEADER_BYTES..whole];
                *input = &input[whole..];
                if header.kind == kind::HEADERS && header.flags & (PADDED | PRIORITY_FLAG | END_HEADERS) == END_HEADERS
                {
                    return self.on_whole_block(header, payload, false, shared);
                }
                return self.on_frame(header, payload, shared);
            }
        }
        self.read_partial_frame(input, shared)
    }

    #[cold]
    fn read_partial_frame<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        take_up_to(&mut self.parser.partial, HEADER_BYTES, input);
        let Some(bytes) = self.parser.partial.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = Header::parse(bytes);
        if self.parser.partial.len() == HEADER_BYTES {
            self.check_frame(&header)?;
            if header.kind == kind::DATA {
                self.parser.partial.clear();
                return self.on_data(header, input, shared);
            }
        }
        let whole = HEADER_BYTES + header.len as usize;
        take_up_to(&mut self.parser.partial, whole, input);
        if self.parser.partial.len() < whole {
            return Ok(None);
        }
        // The memory goes with the frame: an idle connection keeps none.
        let frame = std::mem::take(&mut self.parser.partial);
        self.on_frame(header, &frame[HEADER_BYTES..], shared)
    }

    /// What can be said of a frame by its header alone.
    #[inline(always)]
    fn check_frame(&mut self, header: &Header) -> Result<(), Fatal> {
        if header.len as usize > MAX_PAYLOAD {
            return fatal(Reason::FRAME_SIZE_ERROR, "a frame larger than 16,384 bytes");
        }
        if !self.peer.said && (header.kind != kind::SETTINGS || header.has(ACK)) {
            return fatal(Reason::PROTOCOL_ERROR, "the first frame is not SETTINGS");
        }
        if let Some(block) = &self.parser.block
            && (header.kind != kind::CONTINUATION || header.stream != block.stream)
        {
            return fatal(Reason::PROTOCOL_ERROR, "a header block is broken off by another frame");
        }
        Ok(())
    }

    fn on_frame<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        match header.kind {
            kind::HEADERS => self.on_headers(header, payload, shared),
            kind::CONTINUATION => self.on_continuation(header, payload, shared),
            kind::WINDOW_UPDATE => self.on_window_update(header, payload, shared),
            kind::RST_STREAM => self.on_rst_stream(header, payload, shared),
            kind::SETTINGS => self.on_settings(header, payload, shared),
            kind::PING => self.on_ping(header, payload),
            kind::GOAWAY => self.on_goaway(header, payload),
            kind::PRIORITY => self.on_priority(header, payload, shared),
            kind::PUSH_PROMISE => fatal(Reason::PROTOCOL_ERROR, "PUSH_PROMISE, which was never allowed"),
            _ => self.check_control().map(|()| None),
        }
    }

    // ---- DATA (6.1) ----

    #[inline(always)]
    fn on_data<'a>(
        &mut self,
        header: Header,
        input: &mut &'a [u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "DATA on stream 0");
        }
        let padded = header.has(PADDED);
        if padded && header.len == 0 {
            return fatal(Reason::FRAME_SIZE_ERROR, "padded DATA without a pad length");
        }
        self.recv_window -= header.len as i64;
        if self.recv_window < 0 {
            return fatal(
                Reason::FLOW_CONTROL_ERROR,
                "more DATA than the connection's window allows",
            );
        }
        // The connection's window goes back at once, whatever becomes of the bytes: no stream blocks another.
        self.restore_window(shared);
        let mut data = Data {
            key: Key::NONE,
            left: header.len - padded as u32,
            padding: 0,
            pad_length_due: padded,
            length_due: true,
            end: header.has(END_STREAM),
        };
        let refused = match self.by_id(header.stream) {
            None => Refused::Closed,
            Some(key) => match self.take_data(key, &header) {
                Ok(whole) if whole && input.len() >= header.len as usize => {
                    let bytes;
                    (bytes, *input) = input.split_at(header.len as usize);
                    return Ok(Some(self.hand_on(key, bytes, data.end, shared)));
                }
                Ok(_) if header.len == 0 && !data.end => return self.check_control().map(|()| None),
                Ok(_) => {
                    data.key = key;
                    self.parser.at = At::Data(data);
                    return Ok(None);
                }
                Err((fault, reason)) => Refused::Open(key, fault, reason),
            },
        };
        // The payload is still to come, and belongs to nobody.
        self.parser.at = At::Data(data);
        match refused {
            Refused::Closed => self.data_on_closed(header.stream, header.len),
            Refused::Open(key, fault, reason) => self.fault(key, fault, reason, shared),
        }
    }

    /// Counts DATA in its stream's window. Says whether nothing else is to be asked of it than where it goes.
    #[inline(always)]
    fn take_data(&mut self, key: StreamKey, header: &Header) -> Result<bool, (StreamFault, Reason)> {
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        match stream.theirs {
            Half::Body => {}
            Half::Head => return Err((StreamFault::Malformed(Wrong::Premature), Reason::PROTOCOL_ERROR)),
            Half::Ended => return Err((StreamFault::AfterEnd, Reason::STREAM_CLOSED)),
        }
        stream.recv_window -= header.len as i64;
        if stream.recv_window < 0 {
            return Err((StreamFault::FlowControl, Reason::FLOW_CONTROL_ERROR));
        }
        let simple = !header.has(PADDED) && stream.length_left.is_none();
        if header.len == 0 {
            return Ok(simple && header.has(END_STREAM));
        }
        if !header.has(PADDED) {
            self.ledger.useful(header.len as usize);
        }
        if self.path.data(header.len, self.now) {
            frame::put_ping(&mut self.out, 0, PATH_PING);
        }
        Ok(simple)
    }

    /// Payload for the stream's owner.
    #[inline(always)]
    fn hand_on<'a>(&mut self, key: StreamKey, bytes: &'a [u8], end: bool, shared: &mut Shared) -> Event<'a> {
        let stream = self.streams.get_mut(key).expect("it was just looked at");
        let user = stream.user;
        if end {
            stream.theirs = Half::Ended;
            if stream.is_over() {
                self.finish(key, shared);
            }
        }
        Event::Data { key, user, bytes, end }
    }

    /// DATA of a stream that is gone counts in the connection's window, and is thrown away.
    fn data_on_closed<'a>(&mut self, id: u32, len: u32) -> Result<Option<Event<'a>>, Fatal> {
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "DATA on a stream that was never opened");
        }
        match self.closed.how(id) {
            Some(How::OurReset) if len == 0 => self.check_control().map(|()| None),
            Some(How::OurReset) => Ok(None),
            Some(How::TheirReset) => {
                frame::put_rst_stream(&mut self.out, id, Reason::STREAM_CLOSED);
                self.check_resets().map(|()| None)
            }
            Some(How::EndStream) => fatal(Reason::STREAM_CLOSED, "DATA on a stream that had ended"),
            None => fatal(Reason::PROTOCOL_ERROR, "DATA on a stream that was passed over"),
        }
    }

    /// The next piece of a DATA frame that did not come whole, is padded, or has a `content-length` to keep.
    fn go_on_with_data<'a>(
        &mut self,
        mut data: Data,
        input: &mut &'a [u8],
        shared: &mut Shared,
    ) -> Result<Step<'a>, Fatal> {
        let mut only_padding = false;
        if data.pad_length_due {
            let Some((&padding, rest)) = input.split_first() else {
                return Ok(Step::Hungry);
            };
            *input = rest;
            if padding as u32 > data.left {
                return fatal(Reason::PROTOCOL_ERROR, "more padding than the frame has bytes");
            }
            data.padding = padding as u32;
            data.left -= data.padding;
            data.pad_length_due = false;
            self.parser.at = At::Data(data);
            if data.left > 0 {
                self.ledger.useful(data.left as usize);
            } else if !data.end {
                self.check_control()?;
                only_padding = true;
            }
        }
        if std::mem::take(&mut data.length_due) {
            self.parser.at = At::Data(data);
            if self.breaks_length(data) {
                // The rest of the frame belongs to nobody.
                self.parser.at = At::Data(Data { key: Key::NONE, ..data });
                let fault = StreamFault::Malformed(Wrong::ContentLengthMismatch);
                let event = self.fault(data.key, fault, Reason::PROTOCOL_ERROR, shared)?;
                return Ok(event.map_or(Step::Again, Step::Event));
            }
        }
        if data.left > 0 && input.is_empty() {
            return Ok(Step::Hungry);
        }
        let n = input.len().min(data.left as usize);
        let (bytes, rest) = input.split_at(n);
        *input = rest;
        data.left -= n as u32;
        self.parser.at = match (data.left, data.padding) {
            (0, 0) => At::Frame,
            (0, left) => At::Padding { left: left as usize },
            _ => At::Data(data),
        };
        let end = data.end && data.left == 0;
        // A frame of nothing but padding is an event, too: it has used credit, which its sender may wait for.
        if (bytes.is_empty() && !end && !only_padding) || !self.streams.contains(data.key) {
            return Ok(Step::Again);
        }
        Ok(Step::Event(self.hand_on(data.key, bytes, end, shared)))
    }

    /// Whether a frame has more or, as the last, less payload than `content-length` still promises. It is asked of the
    /// whole frame, so that it does not matter how its bytes come.
    fn breaks_length(&mut self, data: Data) -> bool {
        let Some(stream) = self.streams.get_mut(data.key) else {
            return false;
        };
        let Some(left) = stream.length_left else { return false };
        match left.checked_sub(data.left.into()) {
            Some(left) if !data.end || left == 0 => {
                stream.length_left = Some(left);
                false
            }
            _ => true,
        }
    }

    // ---- HEADERS and CONTINUATION (6.2, 6.10) ----

    #[inline(always)]
    fn on_headers<'a>(
        &mut self,
        header: Header,
        mut payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let mut padding = 0;
        if header.has(PADDED) {
            let Some((&length, rest)) = payload.split_first() else {
                return fatal(Reason::FRAME_SIZE_ERROR, "padded HEADERS without a pad length");
            };
            (padding, payload) = (length as usize, rest);
        }
        let mut depends_on_itself = false;
        if header.has(PRIORITY_FLAG) {
            let Some((priority, rest)) = payload.split_first_chunk::<5>() else {
                return fatal(Reason::FRAME_SIZE_ERROR, "HEADERS too short for their priority");
            };
            depends_on_itself = dependency(priority) == header.stream;
            payload = rest;
        }
        // What is behind the priority is what padding may take of.
        let Some(left) = payload.len().checked_sub(padding) else {
            return fatal(Reason::PROTOCOL_ERROR, "more padding than the frame has bytes");
        };
        payload = &payload[..left];
        if header.has(END_HEADERS) {
            return self.on_whole_block(header, payload, depends_on_itself, shared);
        }
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "HEADERS on stream 0");
        }
        self.parser.block = Some(Box::new(Block {
            stream: header.stream,
            end_stream: header.has(END_STREAM),
            depends_on_itself,
            continuations: 0,
            bytes: payload.to_vec(),
        }));
        Ok(None)
    }

    /// HEADERS with all of its block.
    #[inline(always)]
    fn on_whole_block<'a>(
        &mut self,
        header: Header,
        block: &[u8],
        depends_on_itself: bool,
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "HEADERS on stream 0");
        }
        self.on_block(header.stream, header.has(END_STREAM), depends_on_itself, block, shared)
    }

    #[cold]
    fn on_continuation<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let Some(block) = &mut self.parser.block else {
            return fatal(Reason::PROTOCOL_ERROR, "CONTINUATION without HEADERS before it");
        };
        block.continuations += 1;
        block.bytes.extend_from_slice(payload);
        if block.continuations > self.settings.max_continuations
            || block.bytes.len() > self.settings.max_header_block_bytes as usize
        {
            return fatal(
                Reason::ENHANCE_YOUR_CALM,
                "a header block in too many CONTINUATION frames",
            );
        }
        if !header.has(END_HEADERS) {
            return Ok(None);
        }
        let block = self.parser.block.take().expect("it was just looked at");
        self.on_block(
            block.stream,
            block.end_stream,
            block.depends_on_itself,
            &block.bytes,
            shared,
        )
    }

    /// A whole header block. It is always decoded, so that the table stays in step.
    fn on_block<'a>(
        &mut self,
        id: u32,
        end: bool,
        depends_on_itself: bool,
        block: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let limits = hpack::Limits {
            list_bytes: self.settings.max_header_list_bytes,
            fields: self.settings.max_header_fields,
        };
        if shared.decode(block, &mut self.decoder, &limits).is_err() {
            return fatal(Reason::COMPRESSION_ERROR, "a header block that cannot be decoded");
        }
        self.check_amplification(block.len(), shared.fields().list_size())?;
        match self.by_id(id) {
            Some(key) if depends_on_itself => self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared),
            Some(key) if self.role == Role::Server => self.on_trailers(key, end, shared),
            Some(key) => self.on_response(key, end, shared),
            None if self.role == Role::Server && id % 2 == 1 && id > self.last_theirs => {
                self.on_request(id, end, depends_on_itself, shared)
            }
            None => self.block_on_closed(id),
        }
    }

    fn block_on_closed<'a>(&mut self, id: u32) -> Result<Option<Event<'a>>, Fatal> {
        let ours = (id % 2 == 1) == (self.role == Role::Client);
        if self.is_idle(id) || (self.role == Role::Server && ours) || (self.role == Role::Client && !ours) {
            return fatal(Reason::PROTOCOL_ERROR, "HEADERS on a stream that cannot be opened so");
        }
        match self.closed.how(id) {
            Some(How::OurReset) => self.check_control().map(|()| None),
            Some(How::TheirReset) => {
                frame::put_rst_stream(&mut self.out, id, Reason::STREAM_CLOSED);
                self.check_resets().map(|()| None)
            }
            Some(How::EndStream) => fatal(Reason::STREAM_CLOSED, "HEADERS on a stream that had ended"),
            None => fatal(
                Reason::PROTOCOL_ERROR,
                "a new stream with a lower identifier than the last",
            ),
        }
    }

    #[inline(always)]
    fn on_request<'a>(
        &mut self,
        id: u32,
        end: bool,
        depends_on_itself: bool,
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.last_theirs = id;
        if matches!(self.going, Going::Last(_)) {
            // Our last GOAWAY named the last stream: the peer knows that this one is not processed (6.8). What else
            // belongs to it is under way, and harmless.
            self.closed.remember(id, How::OurReset);
            return self.check_control().map(|()| None);
        }
        if self.streams.len() >= self.settings.max_concurrent_streams as usize {
            return self.refuse(id, Reason::REFUSED_STREAM, None);
        }
        if depends_on_itself {
            return self.refuse(id, Reason::PROTOCOL_ERROR, Some(Wrong::DependsOnItself));
        }
        let head = match message::request(shared.fields(), &shared.interner) {
            Ok(head) => head,
            Err(wrong) => return self.refuse(id, Reason::PROTOCOL_ERROR, Some(wrong)),
        };
        if end && head.length.is_some_and(|length| length != 0) {
            return self.refuse(id, Reason::PROTOCOL_ERROR, Some(Wrong::ContentLengthMismatch));
        }
        let theirs = if end { Half::Ended } else { Half::Body };
        let (receive, send) = (self.first_recv_window(), self.peer.initial_window as i64);
        let key = self.streams.insert_with(|| Stream {
            id,
            length_left: head.length,
            ..Stream::new(0, theirs, receive, send)
        });
        self.ids.insert(id, key);
        self.ledger.useful(0);
        Ok(Some(Event::Headers {
            key,
            user: 0,
            head: Head::Request,
            end,
        }))
    }

    fn refuse<'a>(&mut self, id: u32, reason: Reason, wrong: Option<Wrong>) -> Result<Option<Event<'a>>, Fatal> {
        frame::put_rst_stream(&mut self.out, id, reason);
        self.closed.remember(id, How::OurReset);
        // Who does not know the limit yet may pass it; what comes later, or malformed, is its own doing.
        if wrong.is_some() || self.acked {
            self.check_resets()?;
        } else {
            // Not to acknowledge is no licence either.
            self.check_control()?;
        }
        Ok(Some(Event::Refused { reason, wrong }))
    }

    #[inline(always)]
    fn on_trailers<'a>(&mut self, key: StreamKey, end: bool, shared: &mut Shared) -> Result<Option<Event<'a>>, Fatal> {
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        if stream.theirs == Half::Ended {
            return self.fault(key, StreamFault::AfterEnd, Reason::STREAM_CLOSED, shared);
        }
        let wrong = match message::trailers(shared.fields(), &shared.interner) {
            Err(wrong) => Some(wrong),
            Ok(()) if !end => Some(Wrong::TrailersOpen),
            Ok(()) if stream.length_left.is_some_and(|left| left != 0) => Some(Wrong::ContentLengthMismatch),
            Ok(()) => None,
        };
        if let Some(wrong) = wrong {
            return self.fault(key, StreamFault::Malformed(wrong), Reason::PROTOCOL_ERROR, shared);
        }
        stream.theirs = Half::Ended;
        let user = stream.user;
        let over = stream.is_over();
        self.ledger.useful(0);
        if over {
            self.finish(key, shared);
        }
        Ok(Some(Event::Headers {
            key,
            user,
            head: Head::Trailers,
            end,
        }))
    }

    #[inline(always)]
    fn on_response<'a>(&mut self, key: StreamKey, end: bool, shared: &mut Shared) -> Result<Option<Event<'a>>, Fatal> {
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        match stream.theirs {
            Half::Head => {}
            Half::Body | Half::Ended => return self.on_trailers(key, end, shared),
        }
        let head = match message::response(shared.fields(), &shared.interner) {
            Ok(head) if head.status < 200 && end => Err(Wrong::Premature),
            other => other,
        };
        let head = match head {
            Ok(head) => head,
            Err(wrong) => return self.fault(key, StreamFault::Malformed(wrong), Reason::PROTOCOL_ERROR, shared),
        };
        if head.status < 200 {
            let user = stream.user;
            // Each informational response makes work and carries little.
            self.check_control()?;
            return Ok(Some(Event::Headers {
                key,
                user,
                head: Head::Informational(head.status),
                end,
            }));
        }
        // What has no content may say how long it would be, but DATA with payload makes it malformed (8.1.1).
        let no_content = stream.head_request || head.status == 204 || head.status == 304;
        stream.length_left = if no_content { Some(0) } else { head.length };
        if end && stream.length_left.is_some_and(|left| left != 0) {
            let fault = StreamFault::Malformed(Wrong::ContentLengthMismatch);
            return self.fault(key, fault, Reason::PROTOCOL_ERROR, shared);
        }
        stream.theirs = if end { Half::Ended } else { Half::Body };
        let user = stream.user;
        let over = end && stream.is_over();
        self.ledger.useful(0);
        if over {
            self.finish(key, shared);
        }
        Ok(Some(Event::Headers {
            key,
            user,
            head: Head::Response(head.status),
            end,
        }))
    }

    // ---- PRIORITY, RST_STREAM (6.3, 6.4) ----

    fn on_priority<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "PRIORITY on stream 0");
        }
        let Some(priority) = payload.first_chunk::<5>().filter(|_| payload.len() == 5) else {
            return match self.by_id(header.stream) {
                Some(key) => self.fault(key, StreamFault::Protocol, Reason::FRAME_SIZE_ERROR, shared),
                None if self.is_idle(header.stream) => fatal(Reason::FRAME_SIZE_ERROR, "PRIORITY that is not 5 bytes"),
                None => self.fault_on_closed(header.stream, Reason::FRAME_SIZE_ERROR),
            };
        };
        if dependency(priority) == header.stream {
            return match self.by_id(header.stream) {
                Some(key) => self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared),
                None if self.is_idle(header.stream) => fatal(Reason::PROTOCOL_ERROR, "a stream that depends on itself"),
                None => self.check_control().map(|()| None),
            };
        }
        self.check_control().map(|()| None)
    }

    fn on_rst_stream<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "RST_STREAM on stream 0");
        }
        let Ok(code) = <[u8; 4]>::try_from(payload) else {
            return fatal(Reason::FRAME_SIZE_ERROR, "RST_STREAM that is not 4 bytes");
        };
        if self.is_idle(header.stream) {
            return fatal(Reason::PROTOCOL_ERROR, "RST_STREAM on a stream that was never opened");
        }
        let Some(key) = self.by_id(header.stream) else {
            return self.check_control().map(|()| None);
        };
        let reason = Reason(u32::from_be_bytes(code));
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        let theirs_ended = stream.theirs == Half::Ended;
        if self.role == Role::Client && theirs_ended {
            // The answer was whole: this ends only our half, and there is nobody to tell (8.1).
            let user = stream.user;
            self.remove(key, How::TheirReset, shared);
            return Ok(Some(Event::Reset {
                user,
                reason,
                fault: None,
                theirs_ended,
            }));
        }
        // A stranger that resets what it has just asked for makes work for nothing (CVE-2023-44487).
        let premature = self.role == Role::Server && !self.own_application && stream.ours == Half::Head;
        let user = stream.user;
        if premature {
            // Before the stream is taken out: after the last straw, too, its owner finds it among those to be ended.
            self.check_resets()?;
        }
        self.remove(key, How::TheirReset, shared);
        Ok(Some(Event::Reset {
            user,
            reason,
            fault: None,
            theirs_ended,
        }))
    }

    // ---- SETTINGS (6.5) ----

    fn on_settings<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream != 0 {
            return fatal(Reason::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        if header.has(ACK) {
            if !payload.is_empty() {
                return fatal(
                    Reason::FRAME_SIZE_ERROR,
                    "an acknowledgement of SETTINGS with a payload",
                );
            }
            self.check_control()?;
            return Ok(self.on_settings_ack().then_some(Event::Lowered));
        }
        if !payload.len().is_multiple_of(6) {
            return fatal(Reason::FRAME_SIZE_ERROR, "SETTINGS that are no multiple of 6 bytes");
        }
        if !self.peer.said {
            self.peer.said = true;
            // No limit, until one is named (6.5.2).
            self.peer.max_streams = u32::MAX;
        }
        let window_before = self.peer.initial_window;
        for entry in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([entry[0], entry[1]]);
            let value = u32::from_be_bytes([entry[2], entry[3], entry[4], entry[5]]);
            self.apply_setting(id, value, shared)?;
        }
        let moved = self.peer.initial_window as i64 - window_before as i64;
        if moved != 0 {
            self.move_send_windows(moved)?;
        }
        self.out.extend_from_slice(&frame::header(0, kind::SETTINGS, ACK, 0));
        if moved == 0 {
            self.check_control()?;
        } else {
            self.check_work_on_all()?;
        }
        Ok(Some(Event::Settings { rooms: moved != 0 }))
    }

    fn apply_setting(&mut self, id: u16, value: u32, shared: &mut Shared) -> Result<(), Fatal> {
        match id {
            setting::HEADER_TABLE_SIZE => self.encoder.set_max_table_bytes(value, &mut shared.interner),
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return fatal(Reason::PROTOCOL_ERROR, "an ENABLE_PUSH that this side cannot say");
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
            setting::INITIAL_WINDOW_SIZE => {
                if value as i64 > MAX_WINDOW {
                    return fatal(Reason::FLOW_CONTROL_ERROR, "an INITIAL_WINDOW_SIZE above 2^31-1");
                }
                self.peer.initial_window = value;
            }
            // Ours stay at 16,384 bytes, which every peer takes: larger ones only make neighbours wait.
            setting::MAX_FRAME_SIZE if !(16_384..=16_777_215).contains(&value) => {
                return fatal(Reason::PROTOCOL_ERROR, "a MAX_FRAME_SIZE out of range");
            }
            setting::MAX_HEADER_LIST_SIZE => {
                self.peer.max_header_list = value;
                shared.least_header_list = shared.least_header_list.min(value as usize);
            }
            _ => {}
        }
        Ok(())
    }

    fn move_send_windows(&mut self, by: i64) -> Result<(), Fatal> {
        for (key, stream) in self.streams.iter_mut() {
            stream.send_window += by;
            if stream.send_window > MAX_WINDOW {
                return fatal(Reason::FLOW_CONTROL_ERROR, "SETTINGS made a stream's window overflow");
            }
            if stream.send_window > 0 && !stream.held.is_empty() && !stream.scheduled {
                stream.scheduled = true;
                self.ready.push_back(key);
            }
        }
        Ok(())
    }

    /// Whether that lowered the window of a stream.
    fn on_settings_ack(&mut self) -> bool {
        if self.acked {
            return false;
        }
        self.acked = true;
        self.decoder.set_max_table_bytes(self.settings.header_table_bytes);
        let lowered = self.settings.first_stream_window as i64 - DEFAULT_WINDOW as i64;
        if lowered >= 0 || self.streams.is_empty() {
            return false;
        }
        for (_, stream) in self.streams.iter_mut() {
            stream.recv_window += lowered;
        }
        true
    }

    // ---- PING, GOAWAY, WINDOW_UPDATE (6.7 to 6.9) ----

    fn on_ping<'a>(&mut self, header: Header, payload: &[u8]) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream != 0 {
            return fatal(Reason::PROTOCOL_ERROR, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fatal(Reason::FRAME_SIZE_ERROR, "PING that is not 8 bytes");
        };
        if !header.has(ACK) {
            frame::put_ping(&mut self.out, ACK, payload);
            return self.check_control().map(|()| None);
        }
        self.check_control()?;
        match payload {
            PATH_PING => self.path.answered(self.now),
            DRAIN_PING => self.finish_goaway(),
            _ => {}
        }
        Ok(Some(Event::Pong(payload)))
    }

    fn on_goaway<'a>(&mut self, header: Header, payload: &[u8]) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream != 0 {
            return fatal(Reason::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        let Some((last, rest)) = payload.split_first_chunk::<4>() else {
            return fatal(Reason::FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes");
        };
        let Some(code) = rest.first_chunk::<4>() else {
            return fatal(Reason::FRAME_SIZE_ERROR, "GOAWAY shorter than 8 bytes");
        };
        let last = u32::from_be_bytes(*last) & frame::MAX_STREAM_ID;
        if self.their_goaway.is_some_and(|before| last > before) {
            return fatal(Reason::PROTOCOL_ERROR, "GOAWAY that takes back what the last one said");
        }
        self.check_work_on_all()?;
        // A server has no streams of its own here, so the identifier matters to the client role alone.
        self.their_goaway = Some(last);
        Ok(Some(Event::GoAway {
            last,
            reason: Reason(u32::from_be_bytes(*code)),
        }))
    }

    fn on_window_update<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let Ok(bytes) = <[u8; 4]>::try_from(payload) else {
            return fatal(Reason::FRAME_SIZE_ERROR, "WINDOW_UPDATE that is not 4 bytes");
        };
        let increment = (u32::from_be_bytes(bytes) & frame::MAX_STREAM_ID) as i64;
        if header.stream == 0 {
            if increment == 0 {
                return fatal(Reason::PROTOCOL_ERROR, "WINDOW_UPDATE of 0 on the connection");
            }
            self.send_window += increment;
            if self.send_window > MAX_WINDOW {
                return fatal(
                    Reason::FLOW_CONTROL_ERROR,
                    "WINDOW_UPDATE made the connection's window overflow",
                );
            }
            return self.check_control().map(|()| None);
        }
        if self.is_idle(header.stream) {
            return fatal(
                Reason::PROTOCOL_ERROR,
                "WINDOW_UPDATE on a stream that was never opened",
            );
        }
        let Some(key) = self.by_id(header.stream) else {
            return self.check_control().map(|()| None);
        };
        if increment == 0 {
            return self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared);
        }
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        stream.send_window += increment;
        if stream.send_window > MAX_WINDOW {
            return self.fault(key, StreamFault::FlowControl, Reason::FLOW_CONTROL_ERROR, shared);
        }
        if stream.send_window > 0 && !stream.held.is_empty() && !stream.scheduled {
            stream.scheduled = true;
            self.ready.push_back(key);
        }
        let user = stream.user;
        self.check_control()?;
        Ok(Some(Event::Room { user }))
    }

    // ---- faults and budgets ----

    /// Answers a stream error: the stream is reset, its owner told.
    fn fault<'a>(
        &mut self,
        key: StreamKey,
        fault: StreamFault,
        reason: Reason,
        shared: &mut Shared,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.check_resets()?;
        Ok(self.reset_for(key, fault, reason, shared))
    }

    /// A stream error on a stream that has ended already, which the peer may not know; what we have reset is ignored.
    fn fault_on_closed<'a>(&mut self, id: u32, reason: Reason) -> Result<Option<Event<'a>>, Fatal> {
        if self.closed.how(id) == Some(How::OurReset) {
            return self.check_control().map(|()| None);
        }
        frame::put_rst_stream(&mut self.out, id, reason);
        self.check_resets().map(|()| None)
    }

    fn reset_for<'a>(
        &mut self,
        key: StreamKey,
        fault: StreamFault,
        reason: Reason,
        shared: &mut Shared,
    ) -> Option<Event<'a>> {
        let stream = self.remove(key, How::OurReset, shared)?;
        frame::put_rst_stream(&mut self.out, stream.id, reason);
        let theirs_ended = stream.theirs == Half::Ended;
        Some(Event::Reset {
            user: stream.user,
            reason,
            fault: Some(fault),
            theirs_ended,
        })
    }

    fn check_resets(&mut self) -> Result<(), Fatal> {
        self.judge(
            Abuse::Resets,
            1,
            "too many streams that were reset before they were answered",
        )
    }

    fn check_control(&mut self) -> Result<(), Fatal> {
        self.judge(Abuse::ControlFrames, 1, "too many frames that carry nothing")
    }

    /// A block of a few bytes can refer to the largest entry of its table again and again: what it unfolds into beyond all
    /// that the table holds is work for us, and for the next hop.
    #[inline]
    fn check_amplification(&mut self, block: usize, list: usize) -> Result<(), Fatal> {
        if list <= 4_096 {
            return Ok(());
        }
        let usual = 4 * block + 2 * self.settings.header_table_bytes as usize + 4_096;
        let cost = list.saturating_sub(usual) / 256;
        if cost == 0 {
            return Ok(());
        }
        let cost = i32::try_from(cost).unwrap_or(i32::MAX / 2);
        self.judge(
            Abuse::ControlFrames,
            cost,
            "header blocks that unfold into far more than was sent",
        )
    }

    /// A frame that makes us look at every stream costs as much.
    fn check_work_on_all(&mut self) -> Result<(), Fatal> {
        let cost = 1 + self.streams.len() as i32 / 16;
        self.judge(Abuse::ControlFrames, cost, "too many frames that carry nothing")
    }

    /// First a graceful GOAWAY, which lets a clumsy peer start afresh; then the end.
    fn judge(&mut self, what: Abuse, cost: i32, why: &'static str) -> Result<(), Fatal> {
        match self.ledger.spend(what, cost, self.now) {
            Verdict::Fine => Ok(()),
            Verdict::Warn => {
                self.unruly = Some(what);
                self.begin_goaway();
                Ok(())
            }
            Verdict::Cut => {
                self.unruly = Some(what);
                fatal(Reason::ENHANCE_YOUR_CALM, why)
            }
        }
    }
}

/// Why DATA has no owner.
enum Refused {
    /// Its stream is gone.
    Closed,
    /// Its stream may not have it.
    Open(StreamKey, StreamFault, Reason),
}

enum Step<'a> {
    Event(Event<'a>),
    Again,
    Hungry,
}

/// The stream that a priority depends on.
fn dependency(priority: &[u8; 5]) -> u32 {
    u32::from_be_bytes([priority[0], priority[1], priority[2], priority[3]]) & frame::MAX_STREAM_ID
}

/// Moves bytes from `input` until `partial` has `len`.
fn take_up_to(partial: &mut Vec<u8>, len: usize, input: &mut &[u8]) {
    let n = len.saturating_sub(partial.len()).min(input.len());
    partial.extend_from_slice(&input[..n]);
    *input = &input[n..];
}
