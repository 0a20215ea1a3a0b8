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
use super::slots::Key;
use super::stream::{Half, Stream, StreamKey};

/// Where in the peer's bytes we are.
pub(crate) struct Parser {
    /// Bytes of the client's preface that are still to come (server role).
    preface_left: u8,
    /// A frame that has not come whole; never DATA, whose payload is handed on as it comes.
    partial: Vec<u8>,
    data: Option<Data>,
    /// Payload bytes to pass over.
    skip: u32,
    block: Option<Box<Block>>,
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
        let preface_left = if role == Role::Server { PREFACE.len() as u8 } else { 0 };
        Parser {
            preface_left,
            partial: Vec::new(),
            data: None,
            skip: 0,
            block: None,
        }
    }

    /// Whether the rest of a DATA frame is still to come, which counts already.
    #[cfg(test)]
    pub(crate) fn is_inside_data(&self) -> bool {
        self.data.is_some()
    }

    pub(crate) fn is_inside_block(&self) -> bool {
        self.block.is_some() || self.partial.len() > HEADER_BYTES
    }
}

impl Connection {
    /// Reads `input` up to the next event, and moves it past what was read; `None` once it is used up.
    ///
    /// After an error the connection is over: GOAWAY stands in the output, and nothing more is to be received.
    pub fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.borrow_output(shared);
        let result = self.next_event(input, shared, now);
        match &result {
            Err(error) => self.say_goaway(self.last_theirs, error.reason, error.why),
            // What came needed no answer: the memory for one is not kept by a connection that may be idle now.
            Ok(None) if self.out.is_empty() => self.return_output(shared),
            Ok(_) => {}
        }
        result
    }

    fn next_event<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        loop {
            if let Some(data) = self.parser.data {
                match self.go_on_with_data(data, input, shared, now)? {
                    Step::Event(event) => return Ok(Some(event)),
                    Step::Again => continue,
                    Step::Hungry => return Ok(None),
                }
            }
            if input.is_empty() {
                return Ok(None);
            }
            if self.parser.skip > 0 {
                let n = input.len().min(self.parser.skip as usize);
                *input = &input[n..];
                self.parser.skip -= n as u32;
                continue;
            }
            if self.parser.preface_left > 0 {
                self.read_preface(input)?;
                continue;
            }
            if let Some(event) = self.read_frame(input, shared, now)? {
                return Ok(Some(event));
            }
        }
    }

    fn read_preface(&mut self, input: &mut &[u8]) -> Result<(), Fatal> {
        let left = self.parser.preface_left as usize;
        let n = left.min(input.len());
        let expected = &PREFACE[PREFACE.len() - left..][..n];
        if &input[..n] != expected {
            return fatal(
                Reason::PROTOCOL_ERROR,
                "the client's first bytes are not HTTP/2's preface",
            );
        }
        self.parser.preface_left -= n as u8;
        *input = &input[n..];
        Ok(())
    }

    fn read_frame<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        // Most frames come whole, and are read where they stand.
        if self.parser.partial.is_empty()
            && let Some(bytes) = input.first_chunk::<HEADER_BYTES>()
        {
            let header = Header::parse(bytes);
            self.check_frame(&header)?;
            if header.kind == kind::DATA {
                *input = &input[HEADER_BYTES..];
                return self.begin_data(header, shared, now);
            }
            let whole = HEADER_BYTES + header.len as usize;
            if input.len() >= whole {
                let payload = &input[HEADER_BYTES..whole];
                *input = &input[whole..];
                return self.on_frame(header, payload, shared, now);
            }
        }
        self.read_partial_frame(input, shared, now)
    }

    fn read_partial_frame<'a>(
        &mut self,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
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
                return self.begin_data(header, shared, now);
            }
        }
        let whole = HEADER_BYTES + header.len as usize;
        take_up_to(&mut self.parser.partial, whole, input);
        if self.parser.partial.len() < whole {
            return Ok(None);
        }
        // The memory goes with the frame: an idle connection keeps none.
        let frame = std::mem::take(&mut self.parser.partial);
        self.on_frame(header, &frame[HEADER_BYTES..], shared, now)
    }

    /// What can be said of a frame by its header alone.
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
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        match header.kind {
            kind::HEADERS => self.on_headers(header, payload, shared, now),
            kind::CONTINUATION => self.on_continuation(header, payload, shared, now),
            kind::WINDOW_UPDATE => self.on_window_update(header, payload, shared, now),
            kind::RST_STREAM => self.on_rst_stream(header, payload, shared, now),
            kind::SETTINGS => self.on_settings(header, payload, shared, now),
            kind::PING => self.on_ping(header, payload, now),
            kind::GOAWAY => self.on_goaway(header, payload, now),
            kind::PRIORITY => self.on_priority(header, payload, shared, now),
            kind::PUSH_PROMISE => fatal(Reason::PROTOCOL_ERROR, "PUSH_PROMISE, which was never allowed"),
            _ => self.check_control(now).map(|()| None),
        }
    }

    // ---- DATA (6.1) ----

    fn begin_data<'a>(
        &mut self,
        header: Header,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "DATA on stream 0");
        }
        let padded = header.has(PADDED);
        if padded && header.len == 0 {
            return fatal(Reason::FRAME_SIZE_ERROR, "padded DATA without a pad length");
        }
        let len = header.len as i64;
        self.recv_window -= len;
        if self.recv_window < 0 {
            return fatal(
                Reason::FLOW_CONTROL_ERROR,
                "more DATA than the connection's window allows",
            );
        }
        self.parser.data = Some(Data {
            key: Key::NONE,
            left: header.len - padded as u32,
            padding: 0,
            pad_length_due: padded,
            length_due: true,
            end: header.has(END_STREAM),
        });
        // The connection's window goes back at once, whatever becomes of the bytes: no stream blocks another.
        self.restore_window(shared);
        let Some(key) = self.by_id(header.stream) else {
            return self.data_on_closed(header.stream, header.len, now);
        };
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        match stream.theirs {
            Half::Body => {}
            Half::Head => {
                return self.fault(
                    key,
                    StreamFault::Malformed(Wrong::Premature),
                    Reason::PROTOCOL_ERROR,
                    shared,
                    now,
                );
            }
            Half::Ended => return self.fault(key, StreamFault::AfterEnd, Reason::STREAM_CLOSED, shared, now),
        }
        stream.recv_window -= len;
        if stream.recv_window < 0 {
            return self.fault(key, StreamFault::FlowControl, Reason::FLOW_CONTROL_ERROR, shared, now);
        }
        if let Some(data) = &mut self.parser.data {
            data.key = key;
        }
        if len == 0 {
            if !header.has(END_STREAM) {
                self.parser.data = None;
                return self.check_control(now).map(|()| None);
            }
        } else {
            if !padded {
                self.ledger.useful(header.len as usize);
            }
            if self.path.data(len as u64, now) {
                frame::put_ping(&mut self.out, 0, PATH_PING);
            }
        }
        Ok(None)
    }

    /// DATA of a stream that is gone counts in the connection's window, and is thrown away.
    fn data_on_closed<'a>(&mut self, id: u32, len: u32, now: Instant) -> Result<Option<Event<'a>>, Fatal> {
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "DATA on a stream that was never opened");
        }
        match self.closed.how(id) {
            Some(How::OurReset) if len == 0 => self.check_control(now).map(|()| None),
            Some(How::OurReset) => Ok(None),
            Some(How::TheirReset) => {
                frame::put_rst_stream(&mut self.out, id, Reason::STREAM_CLOSED);
                self.check_resets(now).map(|()| None)
            }
            Some(How::EndStream) => fatal(Reason::STREAM_CLOSED, "DATA on a stream that had ended"),
            None => fatal(Reason::PROTOCOL_ERROR, "DATA on a stream that was passed over"),
        }
    }

    fn go_on_with_data<'a>(
        &mut self,
        mut data: Data,
        input: &mut &'a [u8],
        shared: &mut Shared,
        now: Instant,
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
            self.parser.data = Some(data);
            if data.left > 0 {
                self.ledger.useful(data.left as usize);
            } else if !data.end {
                self.check_control(now)?;
                only_padding = true;
            }
        }
        if std::mem::take(&mut data.length_due) {
            self.parser.data = Some(data);
            if self.breaks_length(data) {
                // The rest of the frame belongs to nobody.
                self.parser.data = Some(Data { key: Key::NONE, ..data });
                let fault = StreamFault::Malformed(Wrong::ContentLengthMismatch);
                let event = self.fault(data.key, fault, Reason::PROTOCOL_ERROR, shared, now)?;
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
        self.parser.data = if data.left == 0 {
            self.parser.skip = data.padding;
            None
        } else {
            Some(data)
        };
        let end = data.end && data.left == 0;
        let Some(stream) = self.streams.get_mut(data.key) else {
            return Ok(Step::Again);
        };
        if end {
            stream.theirs = Half::Ended;
        }
        let user = stream.user;
        // Padding alone is told, too: the owner gives its credit back.
        if bytes.is_empty() && !end && !only_padding {
            return Ok(Step::Again);
        }
        if end {
            self.settle(data.key, shared);
        }
        // A frame of nothing but padding is an event, too: it has used credit, which its sender may wait for.
        Ok(Step::Event(Event::Data {
            key: data.key,
            user,
            bytes,
            end,
        }))
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

    fn on_headers<'a>(
        &mut self,
        header: Header,
        mut payload: &[u8],
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "HEADERS on stream 0");
        }
        if header.has(PADDED) {
            let Some((&padding, rest)) = payload.split_first() else {
                return fatal(Reason::FRAME_SIZE_ERROR, "padded HEADERS without a pad length");
            };
            let Some(left) = rest.len().checked_sub(padding as usize) else {
                return fatal(Reason::PROTOCOL_ERROR, "more padding than the frame has bytes");
            };
            payload = &rest[..left];
        }
        let mut depends_on_itself = false;
        if header.has(PRIORITY_FLAG) {
            let Some((priority, rest)) = payload.split_first_chunk::<5>() else {
                return fatal(Reason::FRAME_SIZE_ERROR, "HEADERS too short for their priority");
            };
            depends_on_itself = dependency(priority) == header.stream;
            payload = rest;
        }
        if header.has(END_HEADERS) {
            return self.on_block(
                header.stream,
                header.has(END_STREAM),
                depends_on_itself,
                payload,
                shared,
                now,
            );
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

    fn on_continuation<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
        now: Instant,
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
            now,
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
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let limits = hpack::Limits {
            list_bytes: self.settings.max_header_list_bytes,
            fields: self.settings.max_header_fields,
        };
        shared.fields.clear(&mut shared.interner);
        if self
            .decoder
            .decode(block, &limits, &mut shared.interner, &mut shared.fields)
            .is_err()
        {
            return fatal(Reason::COMPRESSION_ERROR, "a header block that cannot be decoded");
        }
        self.check_amplification(block.len(), shared.fields.list_size(), now)?;
        match self.by_id(id) {
            Some(key) if depends_on_itself => {
                self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared, now)
            }
            Some(key) if self.role == Role::Server => self.on_trailers(key, end, shared, now),
            Some(key) => self.on_response(key, end, shared, now),
            None if self.role == Role::Server && id % 2 == 1 && id > self.last_theirs => {
                self.on_request(id, end, depends_on_itself, shared, now)
            }
            None => self.block_on_closed(id, now),
        }
    }

    fn block_on_closed<'a>(&mut self, id: u32, now: Instant) -> Result<Option<Event<'a>>, Fatal> {
        let ours = (id % 2 == 1) == (self.role == Role::Client);
        if self.is_idle(id) || (self.role == Role::Server && ours) || (self.role == Role::Client && !ours) {
            return fatal(Reason::PROTOCOL_ERROR, "HEADERS on a stream that cannot be opened so");
        }
        match self.closed.how(id) {
            Some(How::OurReset) => self.check_control(now).map(|()| None),
            Some(How::TheirReset) => {
                frame::put_rst_stream(&mut self.out, id, Reason::STREAM_CLOSED);
                self.check_resets(now).map(|()| None)
            }
            Some(How::EndStream) => fatal(Reason::STREAM_CLOSED, "HEADERS on a stream that had ended"),
            None => fatal(
                Reason::PROTOCOL_ERROR,
                "a new stream with a lower identifier than the last",
            ),
        }
    }

    fn on_request<'a>(
        &mut self,
        id: u32,
        end: bool,
        depends_on_itself: bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.last_theirs = id;
        if matches!(self.going, Going::Last(_)) {
            // Our last GOAWAY named the last stream: the peer knows that this one is not processed (6.8). What else
            // belongs to it is under way, and harmless.
            self.closed.remember(id, How::OurReset);
            return self.check_control(now).map(|()| None);
        }
        if self.streams.len() >= self.settings.max_concurrent_streams as usize {
            return self.refuse(id, Reason::REFUSED_STREAM, None, now);
        }
        if depends_on_itself {
            return self.refuse(id, Reason::PROTOCOL_ERROR, Some(Wrong::DependsOnItself), now);
        }
        let head = match message::request(&shared.fields, &shared.interner) {
            Ok(head) => head,
            Err(wrong) => return self.refuse(id, Reason::PROTOCOL_ERROR, Some(wrong), now),
        };
        if end && head.length.is_some_and(|length| length != 0) {
            return self.refuse(id, Reason::PROTOCOL_ERROR, Some(Wrong::ContentLengthMismatch), now);
        }
        let theirs = if end { Half::Ended } else { Half::Body };
        let mut stream = Stream::new(0, theirs, self.first_recv_window(), self.peer.initial_window as i64);
        stream.id = id;
        stream.length_left = head.length;
        let key = self.streams.insert(stream);
        self.ids.insert(id, key);
        self.ledger.useful(0);
        Ok(Some(Event::Headers {
            key,
            user: 0,
            head: Head::Request,
            end,
        }))
    }

    fn refuse<'a>(
        &mut self,
        id: u32,
        reason: Reason,
        wrong: Option<Wrong>,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        frame::put_rst_stream(&mut self.out, id, reason);
        self.closed.remember(id, How::OurReset);
        // Who does not know the limit yet may pass it; what comes later, or malformed, is its own doing.
        if wrong.is_some() || self.acked {
            self.check_resets(now)?;
        } else {
            // Not to acknowledge is no licence either.
            self.check_control(now)?;
        }
        Ok(Some(Event::Refused { reason, wrong }))
    }

    fn on_trailers<'a>(
        &mut self,
        key: StreamKey,
        end: bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        if stream.theirs == Half::Ended {
            return self.fault(key, StreamFault::AfterEnd, Reason::STREAM_CLOSED, shared, now);
        }
        let wrong = match message::trailers(&shared.fields, &shared.interner) {
            Err(wrong) => Some(wrong),
            Ok(()) if !end => Some(Wrong::TrailersOpen),
            Ok(()) if stream.length_left.is_some_and(|left| left != 0) => Some(Wrong::ContentLengthMismatch),
            Ok(()) => None,
        };
        if let Some(wrong) = wrong {
            return self.fault(key, StreamFault::Malformed(wrong), Reason::PROTOCOL_ERROR, shared, now);
        }
        stream.theirs = Half::Ended;
        let user = stream.user;
        self.ledger.useful(0);
        self.settle(key, shared);
        Ok(Some(Event::Headers {
            key,
            user,
            head: Head::Trailers,
            end,
        }))
    }

    fn on_response<'a>(
        &mut self,
        key: StreamKey,
        end: bool,
        shared: &mut Shared,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        match stream.theirs {
            Half::Head => {}
            Half::Body | Half::Ended => return self.on_trailers(key, end, shared, now),
        }
        let head = match message::response(&shared.fields, &shared.interner) {
            Ok(head) if head.status < 200 && end => Err(Wrong::Premature),
            other => other,
        };
        let head = match head {
            Ok(head) => head,
            Err(wrong) => return self.fault(key, StreamFault::Malformed(wrong), Reason::PROTOCOL_ERROR, shared, now),
        };
        if head.status < 200 {
            let user = stream.user;
            // Each informational response makes work and carries little.
            self.check_control(now)?;
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
            return self.fault(key, fault, Reason::PROTOCOL_ERROR, shared, now);
        }
        stream.theirs = if end { Half::Ended } else { Half::Body };
        let user = stream.user;
        self.ledger.useful(0);
        if end {
            self.settle(key, shared);
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
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream == 0 {
            return fatal(Reason::PROTOCOL_ERROR, "PRIORITY on stream 0");
        }
        let Some(priority) = payload.first_chunk::<5>().filter(|_| payload.len() == 5) else {
            return match self.by_id(header.stream) {
                Some(key) => self.fault(key, StreamFault::Protocol, Reason::FRAME_SIZE_ERROR, shared, now),
                None if self.is_idle(header.stream) => fatal(Reason::FRAME_SIZE_ERROR, "PRIORITY that is not 5 bytes"),
                None => self.fault_on_closed(header.stream, Reason::FRAME_SIZE_ERROR, now),
            };
        };
        if dependency(priority) == header.stream {
            return match self.by_id(header.stream) {
                Some(key) => self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared, now),
                None if self.is_idle(header.stream) => fatal(Reason::PROTOCOL_ERROR, "a stream that depends on itself"),
                None => self.check_control(now).map(|()| None),
            };
        }
        self.check_control(now).map(|()| None)
    }

    fn on_rst_stream<'a>(
        &mut self,
        header: Header,
        payload: &[u8],
        shared: &mut Shared,
        now: Instant,
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
            return self.check_control(now).map(|()| None);
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
            self.check_resets(now)?;
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
        now: Instant,
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
            self.check_control(now)?;
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
            self.check_control(now)?;
        } else {
            self.check_work_on_all(now)?;
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
            setting::MAX_HEADER_LIST_SIZE => self.peer.max_header_list = value,
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

    fn on_ping<'a>(&mut self, header: Header, payload: &[u8], now: Instant) -> Result<Option<Event<'a>>, Fatal> {
        if header.stream != 0 {
            return fatal(Reason::PROTOCOL_ERROR, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fatal(Reason::FRAME_SIZE_ERROR, "PING that is not 8 bytes");
        };
        if !header.has(ACK) {
            frame::put_ping(&mut self.out, ACK, payload);
            return self.check_control(now).map(|()| None);
        }
        self.check_control(now)?;
        match payload {
            PATH_PING => self.path.answered(now),
            DRAIN_PING => self.finish_goaway(),
            _ => {}
        }
        Ok(Some(Event::Pong(payload)))
    }

    fn on_goaway<'a>(&mut self, header: Header, payload: &[u8], now: Instant) -> Result<Option<Event<'a>>, Fatal> {
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
        self.check_work_on_all(now)?;
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
        now: Instant,
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
            return self.check_control(now).map(|()| None);
        }
        if self.is_idle(header.stream) {
            return fatal(
                Reason::PROTOCOL_ERROR,
                "WINDOW_UPDATE on a stream that was never opened",
            );
        }
        let Some(key) = self.by_id(header.stream) else {
            return self.check_control(now).map(|()| None);
        };
        if increment == 0 {
            return self.fault(key, StreamFault::Protocol, Reason::PROTOCOL_ERROR, shared, now);
        }
        let stream = self.streams.get_mut(key).expect("ids lead to streams that are open");
        stream.send_window += increment;
        if stream.send_window > MAX_WINDOW {
            return self.fault(key, StreamFault::FlowControl, Reason::FLOW_CONTROL_ERROR, shared, now);
        }
        if stream.send_window > 0 && !stream.held.is_empty() && !stream.scheduled {
            stream.scheduled = true;
            self.ready.push_back(key);
        }
        let user = stream.user;
        self.check_control(now)?;
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
        now: Instant,
    ) -> Result<Option<Event<'a>>, Fatal> {
        self.check_resets(now)?;
        Ok(self.reset_for(key, fault, reason, shared))
    }

    /// A stream error on a stream that has ended already, which the peer may not know; what we have reset is ignored.
    fn fault_on_closed<'a>(&mut self, id: u32, reason: Reason, now: Instant) -> Result<Option<Event<'a>>, Fatal> {
        if self.closed.how(id) == Some(How::OurReset) {
            return self.check_control(now).map(|()| None);
        }
        frame::put_rst_stream(&mut self.out, id, reason);
        self.check_resets(now).map(|()| None)
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

    fn check_resets(&mut self, now: Instant) -> Result<(), Fatal> {
        self.judge(
            Abuse::Resets,
            1,
            "too many streams that were reset before they were answered",
            now,
        )
    }

    fn check_control(&mut self, now: Instant) -> Result<(), Fatal> {
        self.judge(Abuse::ControlFrames, 1, "too many frames that carry nothing", now)
    }

    /// A block of a few bytes can refer to the largest entry of its table again and again: what it unfolds into beyond all
    /// that the table holds is work for us, and for the next hop.
    fn check_amplification(&mut self, block: usize, list: usize, now: Instant) -> Result<(), Fatal> {
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
            now,
        )
    }

    /// A frame that makes us look at every stream costs as much.
    fn check_work_on_all(&mut self, now: Instant) -> Result<(), Fatal> {
        let cost = 1 + self.streams.len() as i32 / 16;
        self.judge(Abuse::ControlFrames, cost, "too many frames that carry nothing", now)
    }

    /// First a graceful GOAWAY, which lets a clumsy peer start afresh; then the end.
    fn judge(&mut self, what: Abuse, cost: i32, why: &'static str, now: Instant) -> Result<(), Fatal> {
        match self.ledger.spend(what, cost, now) {
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
