//! The promises of a line and its calls, with an engine of ours at the other end of the pipe that does as it is told.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use http::{HeaderMap, Method, Request};

use super::*;
use crate::http2::hpack::Fields;
use crate::http2::{Connection, Event, Head, StreamKey};

/// Turns of both sides after which something that has not happened will not happen.
const TURNS: usize = 1_000;
const BUDGET: u64 = 1 << 20;

/// The worker's end.
struct Far {
    engine: Connection,
    shared: Shared,
    pipe: Pipe,
    heard: Vec<Told>,
    has_ended: bool,
}

/// What the line said; streams by their identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Request(u32, Vec<(String, String)>),
    Data(u32, Vec<u8>),
    Trailers(u32, Vec<(String, String)>),
    End(u32),
    Reset(u32, Reason),
    Pong,
}

fn here(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn line(settings: Settings) -> (Caller, Far, Tables) {
    let tables = Tables::new(BUDGET);
    let settings = Arc::new(settings);
    let (caller, pipe) = open(settings.clone(), &tables);
    let mut shared = Shared::new(BUDGET);
    let far = Far {
        engine: Connection::server(settings, true, Instant::now(), &mut shared),
        shared,
        pipe,
        heard: Vec::new(),
        has_ended: false,
    };
    (caller, far, tables)
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://greeter.test:80{path}"))
        .body(())
        .expect("a request")
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let fields = fields.iter().map(|(name, value)| {
        (
            name.parse::<http::HeaderName>().expect("a name"),
            value.parse::<http::HeaderValue>().expect("a value"),
        )
    });
    fields.collect()
}

impl Far {
    /// Reads what came and writes what is to be said.
    fn turn(&mut self) {
        while let Some(bytes) = self.pipe.take() {
            if bytes.is_empty() {
                self.has_ended = true;
                return;
            }
            self.receive(&bytes);
        }
        let mut moved = Vec::new();
        loop {
            self.engine.pump(&mut self.shared, &mut moved);
            let output = self.engine.output();
            if output.is_empty() {
                return;
            }
            let Poll::Ready(Ok(n)) = self.pipe.write(output, Waker::noop()) else {
                return;
            };
            self.engine.written(n, &mut self.shared);
        }
    }

    fn receive(&mut self, mut input: &[u8]) {
        let now = Instant::now();
        while let Some(event) = self
            .engine
            .receive(&mut input, &mut self.shared, now)
            .expect("a line breaks no rule")
        {
            match event {
                Event::Headers { key, head, end, .. } => {
                    let id = self.engine.id(key);
                    self.engine.set_user(key, id.into());
                    let fields = self.shared.fields().iter(&self.shared.interner);
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let fields = fields.map(|field| (text(field.name_text), text(field.value))).collect();
                    self.heard.push(match head {
                        Head::Request => Told::Request(id, fields),
                        _ => Told::Trailers(id, fields),
                    });
                    self.heard.extend(end.then_some(Told::End(id)));
                }
                Event::Data { user, bytes, end, .. } => {
                    let id = user as u32;
                    if !bytes.is_empty() {
                        self.heard.push(Told::Data(id, bytes.to_vec()));
                    }
                    self.heard.extend(end.then_some(Told::End(id)));
                }
                Event::Reset { user, reason, .. } => self.heard.push(Told::Reset(user as u32, reason)),
                Event::Pong(_) => self.heard.push(Told::Pong),
                _ => {}
            }
        }
    }

    /// Both sides go on until this is so.
    async fn until(&mut self, what: &str, is: impl Fn(&Far) -> bool) {
        for _ in 0..TURNS {
            self.turn();
            if is(self) {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("{what} never comes: {:?}", self.heard);
    }

    async fn until_told(&mut self, told: &Told) {
        self.until(&format!("{told:?}"), |far| far.heard.contains(told)).await;
    }

    /// Both sides go on until neither has anything to say.
    async fn settle(&mut self) {
        for _ in 0..20 {
            self.turn();
            tokio::task::yield_now().await;
        }
    }

    /// Bytes of payload that came on a stream.
    fn data(&self, stream: u32) -> Vec<u8> {
        let data = self.heard.iter().filter_map(|told| match told {
            Told::Data(id, bytes) if *id == stream => Some(&bytes[..]),
            _ => None,
        });
        data.collect::<Vec<_>>().concat()
    }

    fn key(&self, stream: u32) -> StreamKey {
        self.engine.by_id(stream).expect("the stream is open")
    }

    fn answer(&mut self, stream: u32) {
        let key = self.key(stream);
        let mut fields = Fields::new();
        fields.push(b":status", b"200", false);
        fields.push(b"content-type", b"application/grpc", false);
        self.engine.send_headers(key, &fields, false, false, &mut self.shared);
    }

    fn data_back(&mut self, stream: u32, bytes: &[u8], end: bool) {
        let key = self.key(stream);
        self.engine.send_data(key, bytes, end, &mut self.shared);
    }

    fn trailers_back(&mut self, stream: u32) {
        let key = self.key(stream);
        let mut fields = Fields::new();
        fields.push(b"grpc-status", b"0", false);
        self.engine.send_trailers(key, &mut fields, &mut self.shared);
    }

    fn reset(&mut self, stream: u32, reason: Reason) {
        let key = self.key(stream);
        self.engine.reset(key, reason, &mut self.shared);
    }
}

/// A future that is polled only when it was woken, as an executor would.
struct Waiting<F: Future> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

impl<F: Future> Waiting<F> {
    fn new(future: F) -> Waiting<F> {
        Waiting {
            future: Box::pin(future),
            woken: Arc::new(Woken(AtomicBool::new(true))),
        }
    }

    /// What it came to, if it has come to anything.
    fn poll(&mut self) -> Option<F::Output> {
        if !self.woken.0.swap(false, Relaxed) {
            return None;
        }
        let waker = self.woken.clone().into();
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }
}

/// What the call hears next, while the far end goes on.
async fn next(call: &Call, far: &mut Far) -> Result<Option<Heard>, Error> {
    let mut next = Waiting::new(call.next());
    for _ in 0..TURNS {
        if let Some(heard) = next.poll() {
            return heard;
        }
        far.turn();
        tokio::task::yield_now().await;
    }
    panic!("nothing is heard");
}

#[test]
fn a_call_says_what_it_was_told_and_hears_the_answer_in_order() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let mut request = post("/a.B/C?d=e");
        request.headers_mut().insert("te", "trailers".parse().expect("a value"));
        let call = caller.call(request, false).await.expect("a stream");
        call.send(b"one", false).await.expect("room");
        call.send(b"", false).await.expect("nothing is sent");
        call.send(b"two", false).await.expect("room");
        call.trailers(&map(&[("x-last", "word")])).expect("the request is open");
        far.until_told(&Told::End(1)).await;
        let fields = |fields: &[(&str, &str)]| -> Vec<_> {
            fields
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect()
        };
        let asked = fields(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "greeter.test:80"),
            (":path", "/a.B/C?d=e"),
            ("te", "trailers"),
        ]);
        assert_eq!(far.heard[0], Told::Request(1, asked));
        assert_eq!(far.data(1), b"onetwo");
        assert!(far.heard.contains(&Told::Trailers(1, fields(&[("x-last", "word")]))));

        far.answer(1);
        far.data_back(1, b"answer", false);
        far.trailers_back(1);
        let Ok(Some(Heard::Head(head))) = next(&call, &mut far).await else {
            panic!("a head comes first");
        };
        assert_eq!((head.status().as_u16(), head.headers().len()), (200, 1));
        let Ok(Some(Heard::Data(data))) = next(&call, &mut far).await else {
            panic!("data comes next");
        };
        assert_eq!(data, b"answer"[..]);
        let Ok(Some(Heard::Trailers(trailers))) = next(&call, &mut far).await else {
            panic!("trailers come last");
        };
        assert_eq!(trailers["grpc-status"], "0");
        assert!(matches!(next(&call, &mut far).await, Ok(None)));
        assert!(matches!(next(&call, &mut far).await, Ok(None)));
    });
}

#[test]
fn what_its_sender_calls_sensitive_is_never_indexed_and_comes_back_so() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let call = caller.call(post("/"), true).await.expect("a stream");
        far.until_told(&Told::End(1)).await;
        let key = far.key(1);
        let mut fields = Fields::new();
        fields.push(b":status", b"200", false);
        fields.push(b"x-secret", b"s", true);
        far.engine.send_headers(key, &fields, false, true, &mut far.shared);
        let Ok(Some(Heard::Head(head))) = next(&call, &mut far).await else {
            panic!("a head");
        };
        assert!(head.headers()["x-secret"].is_sensitive());
        let mut request = post("/");
        request
            .headers_mut()
            .insert("x-secret", head.headers()["x-secret"].clone());
        let _call = caller.call(request, true).await.expect("a stream");
        let mut seen = None;
        while let Some(bytes) = far.pipe.take() {
            let mut input = &bytes[..];
            while let Some(event) = far
                .engine
                .receive(&mut input, &mut far.shared, Instant::now())
                .expect("a line breaks no rule")
            {
                if matches!(event, Event::Headers { .. }) {
                    let mut fields = far.shared.fields().iter(&far.shared.interner);
                    seen = fields
                        .find(|field| field.name_text == b"x-secret")
                        .map(|f| f.never_indexed);
                }
            }
        }
        assert_eq!(seen, Some(true));
    });
}

#[test]
fn a_reader_asleep_is_sent_one_window_and_no_more_and_then_gets_all() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        let call = caller.call(post("/"), true).await.expect("a stream");
        far.until_told(&Told::End(1)).await;
        far.answer(1);
        let all: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        // As a server of small messages would.
        for message in all.chunks(10) {
            far.data_back(1, message, false);
        }
        far.data_back(1, b"", true);
        far.settle().await;
        let waits = far.engine.held(far.key(1));
        assert!(waits >= all.len() - 65_535, "{waits} bytes were not sent");
        let used = tables.used();
        assert!(used < 3 * 65_536, "{used} bytes for a window of 65,535");
        let mut got = Vec::new();
        loop {
            match next(&call, &mut far).await.expect("whole") {
                Some(Heard::Head(_)) => {}
                Some(Heard::Data(data)) => got.extend_from_slice(&data),
                Some(Heard::Trailers(_)) => panic!("there are none"),
                None => break,
            }
        }
        assert!(got == all);
    });
}

#[test]
fn a_sender_waits_for_a_server_that_takes_nothing_and_goes_on_when_it_does() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        let call = caller.call(post("/"), false).await.expect("a stream");
        let all: Vec<u8> = (0..500_000u32).map(|i| (i % 251) as u8).collect();
        let mut sending = Waiting::new(call.send(&all, true));
        assert_eq!(sending.poll(), None);
        far.settle().await;
        assert_eq!(sending.poll(), None, "nobody takes it");
        far.settle().await;
        assert_eq!(far.data(1).len(), 65_535);
        let used = tables.used();
        assert!(used < 64 << 10, "{used} bytes held for one that waits");
        // The server takes what came, and says so each time.
        let (mut taken, mut sent) = (0, None);
        for _ in 0..TURNS {
            let more = far.data(1).len() - taken;
            taken += more;
            if let (true, Some(key)) = (more > 0, far.engine.by_id(1)) {
                far.engine.grant(key, more as u32, &mut far.shared);
            }
            far.settle().await;
            sent = sent.or(sending.poll());
            if far.heard.contains(&Told::End(1)) {
                break;
            }
        }
        assert_eq!(sent, Some(Ok(())));
        assert!(far.data(1) == all);
        assert_eq!(call.send(b"more", false).await, Err(Error::AfterEnd));
    });
}

#[test]
fn calls_of_one_line_send_side_by_side_and_one_that_waits_stops_no_other() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let slow = caller.call(post("/slow"), false).await.expect("a stream");
        let quick = caller.call(post("/quick"), false).await.expect("a stream");
        let bulk = vec![7; 200_000];
        let mut sending = Waiting::new(slow.send(&bulk, true));
        for _ in 0..10 {
            assert_eq!(sending.poll(), None, "nobody takes it");
            far.settle().await;
        }
        quick.send(b"quick", true).await.expect("room");
        far.until_told(&Told::End(3)).await;
        assert_eq!(far.data(3), b"quick");
    });
}

#[test]
fn a_call_that_is_dropped_is_cancelled() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let call = caller.call(post("/"), false).await.expect("a stream");
        let other = caller.call(post("/"), true).await.expect("a stream");
        drop(call);
        far.until_told(&Told::Reset(1, Reason::CANCEL)).await;
        far.answer(3);
        far.trailers_back(3);
        while next(&other, &mut far).await.expect("whole").is_some() {}
        drop(other);
        far.settle().await;
        assert!(!far.heard.contains(&Told::Reset(3, Reason::CANCEL)), "it had ended");
    });
}

#[test]
fn the_wire_is_closed_with_the_last_who_holds_it() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        let call = caller.call(post("/"), true).await.expect("a stream");
        drop(caller);
        far.until_told(&Told::End(1)).await;
        far.answer(1);
        far.trailers_back(1);
        while next(&call, &mut far).await.expect("whole").is_some() {}
        assert!(!far.has_ended, "a call goes on without its caller");
        drop(call);
        far.until("the end", |far| far.has_ended).await;
        assert_eq!(tables.used(), 0);
        assert_eq!(Rc::strong_count(&tables.0), 1, "nobody is left who reads");
    });
}

#[test]
fn a_reset_ends_both_directions_and_throws_away_what_was_not_taken() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        let call = caller.call(post("/"), false).await.expect("a stream");
        far.settle().await;
        far.answer(1);
        far.data_back(1, &[7; 5_000], false);
        far.settle().await;
        far.reset(1, Reason::ENHANCE_YOUR_CALM);
        far.settle().await;
        let reset = Error::Reset(Reason::ENHANCE_YOUR_CALM);
        assert_eq!(next(&call, &mut far).await.expect_err("broken off"), reset);
        assert_eq!(call.send(b"more", false).await, Err(reset));
        assert_eq!(call.trailers(&HeaderMap::new()), Err(reset));
        assert_eq!(tables.used(), 0);
    });
}

#[test]
fn a_whole_answer_is_heard_though_the_request_is_stopped() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let call = caller.call(post("/"), false).await.expect("a stream");
        far.settle().await;
        far.answer(1);
        far.data_back(1, b"enough", false);
        far.trailers_back(1);
        far.reset(1, Reason::NO_ERROR);
        far.settle().await;
        assert_eq!(call.send(b"more", false).await, Err(Error::Reset(Reason::NO_ERROR)));
        let mut heard = 0;
        while next(&call, &mut far).await.expect("whole").is_some() {
            heard += 1;
        }
        assert_eq!(heard, 3, "head, data, trailers");
    });
}

#[test]
fn a_worker_that_does_not_read_is_told_one_pipe_of_requests_and_the_rest_when_it_does() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        // SETTINGS are acknowledged: nothing that it says later wakes the line.
        far.settle().await;
        let caller = Rc::new(caller);
        let begun = Rc::new(std::cell::Cell::new(0));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (caller, begun) = (caller.clone(), begun.clone());
            calls.spawn_local(async move {
                let mut request = post("/");
                let value = "x".repeat(2_000).parse().expect("a value");
                request.headers_mut().insert("x-long", value);
                let call = caller.call(request, true).await.expect("a stream");
                begun.set(begun.get() + 1);
                call
            });
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(begun.get() < 40, "{} requests of 2,000 bytes have begun", begun.get());
        far.until("every request", |far| {
            let ends = far.heard.iter().filter(|told| matches!(told, Told::End(_)));
            ends.count() == 200
        })
        .await;
    });
}

#[test]
fn a_call_waits_for_a_stream_until_another_one_ends() {
    here(async {
        let settings = Settings {
            max_concurrent_streams: 1,
            ..Settings::default()
        };
        let (caller, mut far, _) = line(settings);
        let first = caller.call(post("/first"), true).await.expect("a stream");
        let mut second = Waiting::new(caller.call(post("/second"), true));
        assert!(second.poll().is_none(), "there is one stream");
        far.settle().await;
        assert!(second.poll().is_none(), "there is one stream");
        drop(first);
        let _second = second.poll().expect("it is woken").expect("the stream is free");
        far.until_told(&Told::End(3)).await;
    });
}

#[test]
fn a_worker_that_drains_gets_no_new_calls_and_running_ones_end() {
    here(async {
        let settings = Settings {
            max_concurrent_streams: 1,
            ..Settings::default()
        };
        let (caller, mut far, _) = line(settings);
        far.settle().await;
        let running = caller.call(post("/"), true).await.expect("a stream");
        far.settle().await;
        let mut waiting = Waiting::new(caller.call(post("/"), true));
        assert!(waiting.poll().is_none(), "there is one stream");
        far.engine.begin_goaway();
        // The PING between the two steps is answered, though nobody waits for anything.
        far.until_told(&Told::Pong).await;
        let waited = waiting.poll().expect("it is woken");
        assert_eq!(waited.map(drop), Err(Error::Draining));
        assert!(!caller.is_open());
        assert_eq!(caller.call(post("/"), true).await.map(drop), Err(Error::Draining));
        far.answer(1);
        far.trailers_back(1);
        while next(&running, &mut far).await.expect("whole").is_some() {}
        assert!(far.engine.is_drained());
    });
}

#[test]
fn a_request_that_goaway_excludes_is_refused() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        far.settle().await;
        let call = caller.call(post("/"), true).await.expect("a stream");
        far.engine.say_goaway(0, Reason::NO_ERROR, "");
        far.settle().await;
        assert_eq!(
            next(&call, &mut far).await.expect_err("it was not processed"),
            Error::Reset(Reason::REFUSED_STREAM)
        );
    });
}

#[test]
fn a_wire_that_is_closed_ends_its_calls_but_what_was_whole_is_heard() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        let whole = caller.call(post("/"), true).await.expect("a stream");
        let half = caller.call(post("/"), false).await.expect("a stream");
        let bulk = vec![7; 200_000];
        let mut sending = Waiting::new(half.send(&bulk, true));
        for _ in 0..10 {
            assert_eq!(sending.poll(), None, "nobody takes it");
            far.settle().await;
        }
        for stream in [1, 3] {
            far.answer(stream);
            far.data_back(stream, b"data", false);
        }
        far.trailers_back(1);
        far.settle().await;
        drop(far);
        tokio::task::yield_now().await;
        let mut heard = 0;
        while whole.next().await.expect("whole").is_some() {
            heard += 1;
        }
        assert_eq!(heard, 3);
        assert_eq!(half.next().await.expect_err("half"), Error::Closed);
        assert_eq!(sending.poll(), Some(Err(Error::Closed)));
        assert_eq!(caller.call(post("/"), true).await.map(drop), Err(Error::Draining));
        assert_eq!(tables.used(), 0);
    });
}

#[test]
fn informational_responses_are_passed_over() {
    here(async {
        let (caller, mut far, _) = line(Settings::default());
        let request = Request::builder()
            .method(Method::HEAD)
            .uri("http://a/")
            .body(())
            .expect("a request");
        let call = caller.call(request, true).await.expect("a stream");
        far.until_told(&Told::End(1)).await;
        let key = far.key(1);
        let mut early = Fields::new();
        early.push(b":status", b"103", false);
        far.engine.send_headers(key, &early, true, false, &mut far.shared);
        // What has no body may say how long it would be.
        let mut head = Fields::new();
        head.push(b":status", b"204", false);
        head.push(b"content-length", b"77", false);
        far.engine.send_headers(key, &head, false, true, &mut far.shared);
        let Ok(Some(Heard::Head(head))) = next(&call, &mut far).await else {
            panic!("a head");
        };
        assert_eq!(head.status().as_u16(), 204);
        assert!(matches!(next(&call, &mut far).await, Ok(None)));
    });
}

#[test]
fn thousands_of_calls_leave_nothing_behind() {
    here(async {
        let (caller, mut far, tables) = line(Settings::default());
        for i in 0..5_000u32 {
            let stream = 1 + 2 * i;
            let call = caller.call(post("/"), false).await.expect("a stream");
            call.send(&[1; 100], i % 2 == 0).await.expect("room");
            far.until("the request", |far| !far.data(stream).is_empty()).await;
            far.heard.clear();
            match i % 3 {
                0 => drop(call),
                1 => {
                    far.reset(stream, Reason::INTERNAL_ERROR);
                    next(&call, &mut far).await.expect_err("reset");
                }
                _ => {
                    far.answer(stream);
                    far.data_back(stream, &[2; 300], false);
                    far.trailers_back(stream);
                    while next(&call, &mut far).await.expect("whole").is_some() {}
                }
            }
        }
        far.settle().await;
        assert_eq!(far.engine.open_streams(), 0);
        drop(caller);
        assert_eq!(tables.used(), 0);
        let shared = &mut *tables.0.borrow_mut();
        shared.release();
        assert_eq!(shared.interner.live(), 0, "every header field is given back");
    });
}
