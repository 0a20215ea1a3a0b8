//! A line: our end of a wire to the worker, as a client, and the calls on it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::mem;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use http::{HeaderMap, Method, Request};

use super::talk::{Answer, Asks, Talk, Waiting};
use super::translate::{head_fields, push_all, read_fields, read_response};
use super::{Error, Heard, Tables};
use crate::connect::pipe::Pipe;
use crate::http2::hpack::Fields;
use crate::http2::{Connection, Event, Head, Reason, Settings, Shared, StreamKey};
use crate::slots::{Key, Slots};

/// Bytes that a call's server may send before any of them is taken: HTTP/2's own first window.
const WINDOW: u32 = 65_535;

/// A hand on a line. The line ends with the last one.
#[derive(Clone)]
pub(super) struct Handle(Rc<RefCell<Line>>);

pub(super) type TalkKey = Key<Talk>;

/// A connection to the worker, and the calls on it.
pub(super) struct Line {
    engine: Connection,
    /// `None` once the worker has closed it.
    pipe: Option<Pipe>,
    tables: Tables,
    talks: Slots<Talk>,
    /// Wakes the task that reads, and that writes on when there is room again.
    driver: Waker,
    /// Those who wait for a stream.
    queue: Waiting,
    /// Whom to wake once nobody holds the line.
    woken: Vec<Waker>,
    /// Calls whose held bytes moved; kept for its memory alone.
    moved: Vec<u64>,
}

impl Handle {
    pub(super) fn new(settings: Arc<Settings>, tables: &Tables, pipe: Pipe) -> Handle {
        let settings = Settings {
            first_stream_window: WINDOW,
            ..(*settings).clone()
        };
        // The worker has the same settings, so it is known what its own will say.
        let streams = settings.max_concurrent_streams;
        let mut engine = Connection::client(Arc::new(settings), true, Instant::now(), &mut tables.0.borrow_mut());
        engine.expect_streams(streams);
        let handle = Handle(Rc::new(RefCell::new(Line {
            engine,
            pipe: Some(pipe),
            tables: tables.clone(),
            talks: Slots::default(),
            driver: Waker::noop().clone(),
            queue: Waiting::default(),
            woken: Vec::new(),
            moved: Vec::new(),
        })));
        // The preface leaves.
        handle.with(|_, _| ());
        handle
    }

    /// Reads what comes, for as long as there is a line.
    pub(super) fn drive(&self) -> impl Future<Output = ()> + use<> {
        let line = Rc::downgrade(&self.0);
        poll_fn(move |cx| match Weak::upgrade(&line) {
            Some(line) => Handle(line).with(|line, shared| line.poll_read(cx, shared)),
            None => Poll::Ready(()),
        })
    }

    /// Does something with the line, writes what that has to say, and wakes whoever is concerned.
    pub(super) fn with<R>(&self, act: impl FnOnce(&mut Line, &mut Shared) -> R) -> R {
        let mut line = self.0.borrow_mut();
        let tables = line.tables.clone();
        let result = {
            let mut shared = tables.0.borrow_mut();
            let result = act(&mut line, &mut shared);
            line.flush(&mut shared);
            result
        };
        let woken = mem::take(&mut line.woken);
        // Whoever is woken may come at once.
        drop(line);
        woken.into_iter().for_each(Waker::wake);
        result
    }
}

impl Line {
    pub(super) fn is_open(&self) -> bool {
        self.pipe.is_some() && !self.engine.is_draining()
    }

    /// Waits until another stream can be opened.
    pub(super) fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !self.is_open() {
            return Poll::Ready(Err(Error::Draining));
        }
        if self.can_begin() {
            return Poll::Ready(Ok(()));
        }
        self.queue.add(cx);
        Poll::Pending
    }

    /// Whether the worker takes another stream, and has taken what was said before.
    fn can_begin(&self) -> bool {
        self.engine.has_capacity() && self.engine.output().is_empty()
    }

    /// Begins a call.
    pub(super) fn begin(&mut self, request: &Request<()>, end: bool, shared: &mut Shared) -> Result<TalkKey, Error> {
        let key = self.talks.insert(Talk::new(end));
        let is_head = request.method() == Method::HEAD;
        let Some(stream) = self.engine.open(key.to_bits(), is_head) else {
            self.talks.remove(key);
            return Err(Error::Draining);
        };
        if let Some(talk) = self.talks.get_mut(key) {
            talk.stream = stream;
        }
        let mut fields = head_fields(request, shared);
        self.engine.send_headers(stream, &fields, false, end, shared);
        fields.clear(&mut shared.interner);
        Ok(key)
    }

    /// Waits until what was sent on the call has left this side.
    pub(super) fn poll_room(&mut self, key: TalkKey, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let Some(talk) = self.talks.get_mut(key) else {
            return Poll::Ready(Err(Error::AfterEnd));
        };
        if let Asks::Ended(why) = talk.asks {
            return Poll::Ready(Err(why));
        }
        if self.engine.held(talk.stream) == 0 {
            return Poll::Ready(Ok(()));
        }
        talk.writer.add(cx);
        Poll::Pending
    }

    /// Sends a piece of the request.
    pub(super) fn send(&mut self, key: TalkKey, bytes: &[u8], end: bool, shared: &mut Shared) {
        let Some(talk) = self.talks.get_mut(key) else { return };
        // A frame that carries nothing and ends nothing is only work for its reader.
        if bytes.is_empty() && !end {
            return;
        }
        if end {
            talk.asks = Asks::Ended(Error::AfterEnd);
        }
        self.engine.send_data(talk.stream, bytes, end, shared);
    }

    /// Ends the request with trailers, behind what is held of it.
    pub(super) fn send_trailers(&mut self, key: TalkKey, map: &HeaderMap, shared: &mut Shared) -> Result<(), Error> {
        let talk = self.talks.get_mut(key).ok_or(Error::AfterEnd)?;
        if let Asks::Ended(why) = talk.asks {
            return Err(why);
        }
        talk.asks = Asks::Ended(Error::AfterEnd);
        let mut fields = Fields::new();
        push_all(&mut fields, map);
        self.engine.send_trailers(talk.stream, &mut fields, shared);
        fields.clear(&mut shared.interner);
        Ok(())
    }

    /// Waits for what comes next on the call.
    pub(super) fn poll_next(
        &mut self,
        key: TalkKey,
        cx: &mut Context<'_>,
        shared: &mut Shared,
    ) -> Poll<Result<Option<Heard>, Error>> {
        let Some(talk) = self.talks.get_mut(key) else {
            return Poll::Ready(Ok(None));
        };
        if let Some(head) = talk.head.take() {
            return Poll::Ready(Ok(Some(Heard::Head(head))));
        }
        if !talk.held.is_empty() {
            let bytes = talk.take_held(shared);
            let stream = talk.stream;
            self.grant(stream, shared);
            return Poll::Ready(Ok(Some(Heard::Data(bytes))));
        }
        if let Some(trailers) = talk.trailers.take() {
            return Poll::Ready(Ok(Some(Heard::Trailers(trailers))));
        }
        match talk.answer {
            Answer::Open => talk.reader.add(cx),
            Answer::Whole => return Poll::Ready(Ok(None)),
            Answer::Broken(why) => return Poll::Ready(Err(why)),
        }
        Poll::Pending
    }

    /// Gives the window back, of which nothing is held. Small amounts wait: an update costs more than they are worth.
    fn grant(&mut self, stream: StreamKey, shared: &mut Shared) {
        let Some(window) = self.engine.recv_window(stream) else {
            return;
        };
        let missing = i64::from(WINDOW) - window;
        if missing >= i64::from(WINDOW / 2) {
            self.engine.grant(stream, missing as u32, shared);
        }
    }

    /// The call is dropped: what has not ended is cancelled.
    pub(super) fn end(&mut self, key: TalkKey, shared: &mut Shared) {
        let Some(mut talk) = self.talks.remove(key) else { return };
        shared.drop_held(&mut talk.held);
        self.engine.reset(talk.stream, Reason::CANCEL, shared);
    }

    /// Reads all that is there, and waits for more; ready when the line is closed.
    fn poll_read(&mut self, cx: &mut Context<'_>, shared: &mut Shared) -> Poll<()> {
        if !self.driver.will_wake(cx.waker()) {
            self.driver = cx.waker().clone();
        }
        while let Some(pipe) = &self.pipe {
            if !pipe.is_readable(cx.waker()) {
                return Poll::Pending;
            }
            let bytes = pipe.take().unwrap_or_default();
            if bytes.is_empty() {
                self.close(shared);
                break;
            }
            self.receive(&bytes, shared);
        }
        Poll::Ready(())
    }

    fn receive(&mut self, mut input: &[u8], shared: &mut Shared) {
        let now = Instant::now();
        loop {
            match self.engine.receive(&mut input, shared, now) {
                Ok(Some(event)) => self.hear(event, shared),
                Ok(None) => return,
                Err(fatal) => {
                    tracing::warn!(reason = %fatal.reason, "a local wire ended: {}", fatal.why);
                    self.flush(shared);
                    self.close(shared);
                    return;
                }
            }
        }
    }

    fn hear(&mut self, event: Event<'_>, shared: &mut Shared) {
        match event {
            Event::Headers { user, head, end, .. } => self.hear_fields(Key::from_bits(user), head, end, shared),
            Event::Data { user, bytes, end, .. } => {
                let Some(talk) = self.talks.get_mut(Key::from_bits(user)) else {
                    return;
                };
                shared.hold(&mut talk.held, bytes);
                if end {
                    talk.answer = Answer::Whole;
                }
                talk.reader.wake(&mut self.woken);
            }
            Event::Reset {
                user,
                reason,
                theirs_ended,
                ..
            } => {
                let Some(talk) = self.talks.get_mut(Key::from_bits(user)) else {
                    return;
                };
                if theirs_ended {
                    // The response is whole: only the request is stopped (RFC 9113, 8.1).
                    talk.stop(Error::Reset(reason), &mut self.woken);
                } else {
                    talk.break_off(Error::Reset(reason), &mut self.woken, shared);
                }
            }
            Event::GoAway { .. } => {
                for user in self.engine.take_unprocessed(shared) {
                    if let Some(talk) = self.talks.get_mut(Key::from_bits(user)) {
                        talk.break_off(Error::Reset(Reason::REFUSED_STREAM), &mut self.woken, shared);
                    }
                }
            }
            // What there is room for moves when the line is written.
            Event::Room { .. } | Event::Settings { .. } => {}
            Event::Lowered | Event::Pong(_) | Event::Refused { .. } => {}
        }
    }

    fn hear_fields(&mut self, key: TalkKey, head: Head, end: bool, shared: &mut Shared) {
        let Some(talk) = self.talks.get_mut(key) else { return };
        let read = match head {
            Head::Informational(_) | Head::Request => return,
            Head::Response(status) => read_response(status, shared).map(|head| talk.head = Some(head)),
            Head::Trailers => read_fields(shared).map(|trailers| talk.trailers = Some(trailers)),
        };
        if read.is_none() {
            let reason = Reason::INTERNAL_ERROR;
            self.engine.reset(talk.stream, reason, shared);
            talk.break_off(Error::Reset(reason), &mut self.woken, shared);
            return;
        }
        if end {
            talk.answer = Answer::Whole;
        }
        talk.reader.wake(&mut self.woken);
    }

    /// Moves what is held and writes what is to be said, as far as there is room.
    fn flush(&mut self, shared: &mut Shared) {
        loop {
            if self.engine.wants_pump() {
                self.engine.pump(shared, &mut self.moved);
                for user in self.moved.drain(..) {
                    if let Some(talk) = self.talks.get_mut(Key::from_bits(user)) {
                        talk.writer.wake(&mut self.woken);
                    }
                }
            }
            let output = self.engine.output();
            if output.is_empty() {
                break;
            }
            let wrote = match &self.pipe {
                Some(pipe) => pipe.write(output, &self.driver),
                None => Poll::Ready(Ok(output.len())),
            };
            match wrote {
                Poll::Ready(Ok(n)) => self.engine.written(n, shared),
                Poll::Ready(Err(_)) => {
                    // The worker has gone, but what it said before is to be read first: the driver will find the end.
                    let all = output.len();
                    self.engine.written(all, shared);
                }
                Poll::Pending => break,
            }
        }
        if self.can_begin() || !self.is_open() {
            self.queue.wake(&mut self.woken);
        }
    }

    /// The worker has closed the wire, or we do.
    fn close(&mut self, shared: &mut Shared) {
        if self.pipe.take().is_none() {
            return;
        }
        for (_, talk) in self.talks.iter_mut() {
            match talk.answer {
                Answer::Open => talk.break_off(Error::Closed, &mut self.woken, shared),
                Answer::Whole | Answer::Broken(_) => talk.stop(Error::Closed, &mut self.woken),
            }
        }
        self.engine.release(shared);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let tables = self.tables.clone();
        // The driver is woken by its pipe.
        self.close(&mut tables.0.borrow_mut());
    }
}
