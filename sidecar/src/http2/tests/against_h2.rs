//! The engine against the `h2` crate, in both roles: legal conversations end alike, and illegal frames are answered alike,
//! but for the differences that stand here with their reasons.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::peer::*;
use crate::http2::connection::{Connection, Event, Head, Role, Shared};
use crate::http2::frame::{ACK, END_HEADERS, END_STREAM, PADDED, PREFACE, PRIORITY_FLAG, Reason, kind, setting};
use crate::http2::hpack::Name;
use crate::http2::settings::Settings;

// ---- legal conversations ----

/// One call.
#[derive(Clone, Debug)]
struct Plan {
    request: usize,
    request_trailers: bool,
    response: usize,
    response_trailers: bool,
    /// The server answers without waiting for the request's end.
    early: bool,
    /// The server resets the stream behind the head of its answer.
    cut: bool,
}

fn plan() -> impl Strategy<Value = Plan> {
    let size = || prop_oneof![Just(0usize), 1..50usize, 1..70_000usize, 1..300_000usize];
    (
        size(),
        any::<bool>(),
        size(),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(request, request_trailers, response, response_trailers, early, cut)| Plan {
                request,
                request_trailers,
                response,
                response_trailers,
                early,
                cut,
            },
        )
}

/// The bytes of a call in one direction.
fn payload(call: usize, answer: bool, n: usize) -> Vec<u8> {
    let seed = call * 2 + usize::from(answer);
    (0..n).map(|at| (seed * 131 + at * 7 + at / 251) as u8).collect()
}

/// How a call ended, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Whole { bytes: Vec<u8>, trailers: bool },
    Reset(u32),
}

fn expected(call: usize, plan: &Plan) -> Ended {
    if plan.cut {
        return Ended::Reset(Reason::INTERNAL_ERROR.0);
    }
    Ended::Whole {
        bytes: payload(call, true, plan.response),
        trailers: plan.response_trailers,
    }
}

/// The engine with a socket.
struct Shell {
    role: Role,
    io: DuplexStream,
    conn: Connection,
    shared: Shared,
    plans: Arc<Vec<Plan>>,
    /// What came of each call.
    got: Vec<Vec<u8>>,
    trailers: Vec<bool>,
    ended: Vec<Option<Ended>>,
}

impl Shell {
    fn new(role: Role, io: DuplexStream, settings: Settings, plans: Arc<Vec<Plan>>) -> Shell {
        let mut shared = Shared::new(1 << 30);
        let (settings, now) = (Arc::new(settings), Instant::now());
        let conn = match role {
            Role::Server => Connection::server(settings, false, now, &mut shared),
            Role::Client => Connection::client(settings, false, now, &mut shared),
        };
        Shell {
            role,
            io,
            conn,
            shared,
            got: vec![Vec::new(); plans.len()],
            trailers: vec![false; plans.len()],
            ended: vec![None; plans.len()],
            plans,
        }
    }

    /// Until the peer closes the connection, or every call has ended (client role).
    async fn run(mut self) -> Shell {
        let mut asked = 0;
        let mut buffer = vec![0; 30_000];
        loop {
            if self.role == Role::Client {
                while asked < self.plans.len() && self.conn.heard_settings() && self.conn.has_capacity() {
                    self.ask(asked);
                    asked += 1;
                }
            }
            self.conn.pump(&mut self.shared, &mut Vec::new());
            let output = self.conn.output().to_vec();
            if output.is_empty() && self.role == Role::Client && self.ended.iter().all(Option::is_some) {
                return self;
            }
            let (mut reader, mut writer) = tokio::io::split(&mut self.io);
            let (read, written) = tokio::select! {
                n = reader.read(&mut buffer) => (Some(n.unwrap_or(0)), None),
                n = writer.write(&output), if !output.is_empty() => (None, Some(n.unwrap_or(0))),
            };
            if read == Some(0) || written == Some(0) {
                return self;
            }
            self.conn.written(written.unwrap_or(0), &mut self.shared);
            let mut input = &buffer[..read.unwrap_or(0)];
            loop {
                let event = self
                    .conn
                    .receive(&mut input, &mut self.shared, Instant::now())
                    .expect("h2 keeps to the protocol");
                let Some(event) = event else { break };
                self.on_event(event);
            }
        }
    }

    fn ask(&mut self, call: usize) {
        let plan = self.plans[call].clone();
        let key = self.conn.open(call as u64, false).expect("there is capacity");
        let path = format!("/{call}");
        let fields = fields_of(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path.as_str()),
            (":authority", "a"),
        ]);
        let shared = &mut self.shared;
        let bare = plan.request == 0 && !plan.request_trailers;
        self.conn.send_headers(key, &fields, false, bare, shared);
        if plan.request > 0 {
            let bytes = payload(call, false, plan.request);
            self.conn.send_data(key, &bytes, !plan.request_trailers, shared);
        }
        if plan.request_trailers {
            self.conn.send_trailers(key, &mut fields_of(&[("x-end", "1")]), shared);
        }
    }

    fn answer(&mut self, call: usize, key: crate::http2::StreamKey) {
        let plan = self.plans[call].clone();
        let shared = &mut self.shared;
        let bare = plan.response == 0 && !plan.response_trailers && !plan.cut;
        self.conn
            .send_headers(key, &fields_of(&[(":status", "200")]), false, bare, shared);
        if plan.cut {
            self.conn.reset(key, Reason::INTERNAL_ERROR, shared);
            return;
        }
        if plan.response > 0 {
            let bytes = payload(call, true, plan.response);
            self.conn.send_data(key, &bytes, !plan.response_trailers, shared);
        }
        if plan.response_trailers {
            self.conn.send_trailers(key, &mut fields_of(&[("x-end", "1")]), shared);
        }
    }

    fn on_event(&mut self, event: Event<'_>) {
        match event {
            Event::Headers { key, user, head, end } => {
                let mut call = user as usize;
                if head == Head::Request {
                    let path = self
                        .shared
                        .fields
                        .find(Name::Path, &self.shared.interner)
                        .expect("a path");
                    call = std::str::from_utf8(&path.value[1..])
                        .expect("text")
                        .parse()
                        .expect("a number");
                    self.conn.set_user(key, call as u64);
                    if self.plans[call].early && !end {
                        self.answer(call, key);
                    }
                }
                if head == Head::Trailers {
                    let field = self.shared.fields().get(0, &self.shared.interner).expect("one field");
                    assert_eq!((field.name_text, field.value), (&b"x-end"[..], &b"1"[..]));
                    self.trailers[call] = true;
                }
                if end {
                    self.on_end(call, key, head == Head::Request);
                }
            }
            Event::Data { key, user, bytes, end } => {
                let call = user as usize;
                self.got[call].extend_from_slice(bytes);
                self.conn.grant(key, bytes.len() as u32, &mut self.shared);
                if end {
                    self.on_end(call, key, false);
                }
            }
            Event::Reset {
                user, reason, fault, ..
            } => {
                assert_eq!(fault, None, "h2 keeps to the protocol");
                self.ended[user as usize].get_or_insert(Ended::Reset(reason.0));
            }
            Event::Refused { .. } => panic!("{event:?}"),
            _ => {}
        }
    }

    fn on_end(&mut self, call: usize, key: crate::http2::StreamKey, bare: bool) {
        if self.role == Role::Client {
            self.ended[call].get_or_insert(Ended::Whole {
                bytes: std::mem::take(&mut self.got[call]),
                trailers: self.trailers[call],
            });
            return;
        }
        let plan = &self.plans[call];
        assert_eq!(self.got[call], payload(call, false, plan.request), "request {call}");
        assert_eq!(self.trailers[call], plan.request_trailers);
        if !plan.early || bare {
            self.answer(call, key);
        }
    }
}

async fn h2_client_calls(io: DuplexStream, plans: Arc<Vec<Plan>>, window: u32) -> Vec<Ended> {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake::<_, Bytes>(io)
        .await
        .expect("a handshake");
    let connection = tokio::spawn(connection);
    let calls: Vec<_> = plans
        .iter()
        .cloned()
        .enumerate()
        .map(|(call, plan)| tokio::spawn(h2_call(client.clone(), call, plan)))
        .collect();
    let mut ended = Vec::new();
    for call in calls {
        ended.push(call.await.expect("a call"));
    }
    drop(client);
    connection.await.expect("a connection").expect("that ends well");
    ended
}

async fn h2_call(client: h2::client::SendRequest<Bytes>, call: usize, plan: Plan) -> Ended {
    let request = http::Request::post(format!("http://a/{call}"))
        .body(())
        .expect("a request");
    let mut client = client.ready().await.expect("a connection");
    let bare = plan.request == 0 && !plan.request_trailers;
    let (response, mut stream) = client.send_request(request, bare).expect("a stream");
    let asking = async move {
        // Whoever is cut or answered early may find the stream gone.
        if plan.request > 0 {
            let bytes = Bytes::from(payload(call, false, plan.request));
            stream.send_data(bytes, !plan.request_trailers).ok();
        }
        if plan.request_trailers {
            stream.send_trailers(end_trailers()).ok();
        }
    };
    asking.await;
    let answering = async move {
        let mut body = response.await?.into_body();
        let mut bytes = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            bytes.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await?.is_some_and(|trailers| trailers["x-end"] == "1");
        Ok(Ended::Whole { bytes, trailers })
    };
    let answered: Result<Ended, h2::Error> = answering.await;
    answered.unwrap_or_else(|error| Ended::Reset(error.reason().expect("a reset").into()))
}

fn end_trailers() -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-end", http::HeaderValue::from_static("1"));
    trailers
}

async fn h2_server_answers(io: DuplexStream, plans: Arc<Vec<Plan>>, window: u32) {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(window)
        .handshake::<_, Bytes>(io)
        .await
        .expect("a handshake");
    // The client closes without a word when all calls have ended.
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let call: usize = request.uri().path()[1..].parse().expect("a number");
        let plan = plans[call].clone();
        tokio::spawn(async move {
            let mut body = request.into_body();
            let reading = async move {
                let mut bytes = Vec::new();
                while let Some(Ok(piece)) = body.data().await {
                    body.flow_control().release_capacity(piece.len()).ok();
                    bytes.extend_from_slice(&piece);
                }
                let trailers = matches!(body.trailers().await, Ok(Some(_)));
                (bytes, trailers)
            };
            let mut reading = Box::pin(reading);
            let mut read = None;
            if !plan.early {
                read = Some(reading.as_mut().await);
            }
            let bare = plan.response == 0 && !plan.response_trailers && !plan.cut;
            let mut stream = respond.send_response(http::Response::new(()), bare).expect("an answer");
            if plan.cut {
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return;
            }
            if plan.response > 0 {
                let bytes = Bytes::from(payload(call, true, plan.response));
                stream.send_data(bytes, !plan.response_trailers).expect("an answer");
            }
            if plan.response_trailers {
                stream.send_trailers(end_trailers()).expect("an answer");
            }
            let (bytes, trailers) = match read {
                Some(read) => read,
                None => reading.await,
            };
            assert!(bytes == payload(call, false, plan.request), "request {call}");
            assert_eq!(trailers, plan.request_trailers);
        });
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(20), work).await })
        .expect("it ends in time")
}

fn settings_of(first_stream_window: u32) -> Settings {
    Settings {
        first_stream_window,
        ..Settings::default()
    }
}

fn window() -> impl Strategy<Value = u32> {
    prop_oneof![Just(100u32), Just(1_000), Just(65_535), Just(200_000)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_h2_client_and_our_server_understand_each_other(
        plans in vec(plan(), 1..20), ours in window(), theirs in window(), pipe in 1_000..100_000usize,
    ) {
        let plans = Arc::new(plans);
        let ended = block_on(async {
            let (a, b) = duplex(pipe);
            let server = tokio::spawn(Shell::new(Role::Server, a, settings_of(ours), plans.clone()).run());
            let ended = h2_client_calls(b, plans.clone(), theirs).await;
            let mut server = server.await.expect("the engine");
            assert_eq!(server.conn.open_streams(), 0);
            server.conn.release(&mut server.shared);
            assert_eq!(server.shared.budget.used(), 0);
            ended
        });
        for (call, (plan, ended)) in plans.iter().zip(&ended).enumerate() {
            prop_assert!(*ended == expected(call, plan), "call {}: {:?}", call, plan);
        }
    }

    #[test]
    fn our_client_and_an_h2_server_understand_each_other(
        plans in vec(plan(), 1..20), ours in window(), theirs in window(), pipe in 1_000..100_000usize,
    ) {
        let plans = Arc::new(plans);
        let mut client = block_on(async {
            let (a, b) = duplex(pipe);
            let server = tokio::spawn(h2_server_answers(b, plans.clone(), theirs));
            let client = Shell::new(Role::Client, a, settings_of(ours), plans.clone()).run().await;
            server.abort();
            client
        });
        for (call, plan) in plans.iter().enumerate() {
            prop_assert!(client.ended[call] == Some(expected(call, plan)), "call {}: {:?}", call, plan);
        }
        client.conn.release(&mut client.shared);
        assert_eq!(client.shared.budget.used(), 0);
    }
}

// ---- illegal frames ----

/// What a peer made of a conversation, as it shows on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It went on.
    Fine,
    /// A stream was reset.
    Stream(Reason),
    /// The connection ended.
    Connection(Reason),
}
use Verdict::{Connection as C, Fine, Stream as S};

/// The last frame of a conversation that goes on.
const SYNC: [u8; 8] = *b"are you?";

fn verdict(said: &[Frame]) -> Verdict {
    let error = |frame: &&Frame| frame.kind == kind::GOAWAY && goaway_of(frame).1 != Reason::NO_ERROR;
    if let Some(goaway) = said.iter().find(error) {
        return C(goaway_of(goaway).1);
    }
    match said.iter().find(|frame| frame.kind == kind::RST_STREAM) {
        Some(reset) => S(Reason(u32::from_be_bytes(
            reset.payload[..].try_into().expect("4 bytes"),
        ))),
        None => Fine,
    }
}

/// What h2 as a server says to these frames.
fn h2_server_says(frames: &[Frame]) -> Verdict {
    block_on(async {
        let (mut ours, theirs) = duplex(1 << 20);
        let server = tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(theirs).await else {
                return;
            };
            // Requests are kept, and not answered.
            let mut kept: Vec<(_, h2::server::SendResponse<Bytes>)> = Vec::new();
            while let Some(Ok(request)) = connection.accept().await {
                kept.push(request);
            }
        });
        ours.write_all(PREFACE).await.expect("h2 reads");
        let said = talk(&mut ours, frames).await;
        server.abort();
        verdict(&said)
    })
}

/// What h2 as a client that has asked says to these frames.
fn h2_client_says(frames: &[Frame]) -> Verdict {
    block_on(async {
        let (mut ours, theirs) = duplex(1 << 20);
        let client = tokio::spawn(async move {
            let Ok((mut client, connection)) = h2::client::handshake(theirs).await else {
                return;
            };
            let connection = tokio::spawn(connection);
            let mut kept = Vec::new();
            for _ in 0..2 {
                let request = http::Request::post("http://a/a.B/C").body(()).expect("a request");
                let (response, stream) = client.send_request(request, true).expect("a stream");
                kept.push((tokio::spawn(response), stream));
            }
            connection.await.ok();
        });
        let mut preface = [0; PREFACE.len()];
        ours.read_exact(&mut preface).await.expect("h2 speaks");
        // The requests are there before they are answered.
        let mut seen = Vec::new();
        let mut buffer = [0; 4_096];
        while !whole_frames(&seen)
            .iter()
            .any(|f| f.kind == kind::HEADERS && f.stream == 3)
        {
            let n = ours.read(&mut buffer).await.expect("h2 speaks");
            assert!(n > 0);
            seen.extend_from_slice(&buffer[..n]);
        }
        let said = talk(&mut ours, frames).await;
        client.abort();
        verdict(&said)
    })
}

/// Says SETTINGS, the frames and a PING, and hears until the PING is answered or the connection ends.
async fn talk(io: &mut DuplexStream, frames: &[Frame]) -> Vec<Frame> {
    let mut all = vec![settings(&[])];
    all.extend_from_slice(frames);
    all.push(ping(SYNC));
    // Who has had enough may not read on.
    io.write_all(&bytes_of(&all)).await.ok();
    let mut heard = Vec::new();
    let mut buffer = [0; 4_096];
    loop {
        match io.read(&mut buffer).await {
            Ok(n) if n > 0 => heard.extend_from_slice(&buffer[..n]),
            _ => return whole_frames(&heard),
        }
        let said = whole_frames(&heard);
        if said.contains(&pong(SYNC)) {
            return said;
        }
    }
}

fn whole_frames(bytes: &[u8]) -> Vec<Frame> {
    let mut whole = 0;
    while let Some(header) = bytes[whole..].first_chunk::<9>() {
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if bytes.len() < whole + 9 + len {
            break;
        }
        whole += 9 + len;
    }
    frames_of(&bytes[..whole])
}

fn ours_says(role: Role, frames: &[Frame]) -> Verdict {
    let mut end = match role {
        Role::Server => End::server(),
        Role::Client => {
            let mut client = End::client();
            client.ask(true);
            client.ask(true);
            client.said();
            client
        }
    };
    end.feed(frames);
    verdict(&end.said())
}

/// A conversation with an error or something odd in it, and what it must lead to.
type Case<'a> = (&'a str, Vec<Frame>, Verdict);

/// Where h2 says something else, and why that is its affair.
type Difference<'a> = (&'a [&'a str], Verdict, &'a str);

const PROTOCOL: Reason = Reason::PROTOCOL_ERROR;
const SIZE: Reason = Reason::FRAME_SIZE_ERROR;
const FLOW: Reason = Reason::FLOW_CONTROL_ERROR;
const CLOSED: Reason = Reason::STREAM_CLOSED;

#[test]
fn a_server_answers_odd_frames_as_h2_does_or_for_a_reason() {
    let max = (1 << 31) - 1;
    let reset_by_peer = || vec![ask(1, false), rst(1, Reason::CANCEL)];
    let and = |mut first: Vec<Frame>, then: Frame| {
        first.push(then);
        first
    };
    let with_priority = [&[0, 0, 0, 1, 15][..], &block(&request())].concat();
    let list = |more: &[(&'static str, &'static str)]| [&request()[..], more].concat();
    let cases: Vec<Case<'_>> = vec![
        ("a request", vec![ask(1, true)], Fine),
        ("an unknown frame", vec![raw(0x55, 0xff, 1, b"?")], Fine),
        ("padding", vec![ask(1, false), padded_data(1, b"x", 200, true)], Fine),
        (
            "SETTINGS on a stream",
            vec![raw(kind::SETTINGS, 0, 1, &[])],
            C(PROTOCOL),
        ),
        (
            "an ACK with payload",
            vec![raw(kind::SETTINGS, ACK, 0, &[0; 6])],
            C(SIZE),
        ),
        ("SETTINGS of 5 bytes", vec![raw(kind::SETTINGS, 0, 0, &[0; 5])], C(SIZE)),
        (
            "ENABLE_PUSH 2",
            vec![settings(&[(setting::ENABLE_PUSH, 2)])],
            C(PROTOCOL),
        ),
        (
            "a window of 2^31",
            vec![settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)])],
            C(FLOW),
        ),
        (
            "frames of 16,383",
            vec![settings(&[(setting::MAX_FRAME_SIZE, 16_383)])],
            C(PROTOCOL),
        ),
        ("PING of 7 bytes", vec![raw(kind::PING, 0, 0, &[0; 7])], C(SIZE)),
        ("PING on a stream", vec![raw(kind::PING, 0, 1, &[0; 8])], C(PROTOCOL)),
        ("GOAWAY of 7 bytes", vec![raw(kind::GOAWAY, 0, 0, &[0; 7])], C(SIZE)),
        (
            "GOAWAY on a stream",
            vec![raw(kind::GOAWAY, 0, 1, &[0; 8])],
            C(PROTOCOL),
        ),
        ("DATA on stream 0", vec![data(0, b"x", false)], C(PROTOCOL)),
        ("HEADERS on stream 0", vec![ask(0, true)], C(PROTOCOL)),
        ("HEADERS on an even stream", vec![ask(2, true)], C(PROTOCOL)),
        ("a lower identifier", vec![ask(5, true), ask(3, true)], C(PROTOCOL)),
        ("DATA on an idle stream", vec![data(1, b"x", false)], C(PROTOCOL)),
        (
            "RST_STREAM on an idle stream",
            vec![rst(1, Reason::CANCEL)],
            C(PROTOCOL),
        ),
        ("RST_STREAM on stream 0", vec![rst(0, Reason::CANCEL)], C(PROTOCOL)),
        (
            "RST_STREAM of 3 bytes",
            vec![ask(1, false), raw(kind::RST_STREAM, 0, 1, &[0; 3])],
            C(SIZE),
        ),
        ("an update on an idle stream", vec![window_update(1, 1)], C(PROTOCOL)),
        (
            "an update of 3 bytes",
            vec![raw(kind::WINDOW_UPDATE, 0, 0, &[0; 3])],
            C(SIZE),
        ),
        ("an update of nothing", vec![window_update(0, 0)], C(PROTOCOL)),
        ("an update that overflows", vec![window_update(0, max)], C(FLOW)),
        (
            "an update that overflows a stream",
            vec![ask(1, false), window_update(1, max)],
            S(FLOW),
        ),
        (
            "PUSH_PROMISE of a client",
            vec![ask(1, false), raw(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])],
            C(PROTOCOL),
        ),
        (
            "CONTINUATION of nothing",
            vec![ask(1, false), raw(kind::CONTINUATION, END_HEADERS, 1, &[])],
            C(PROTOCOL),
        ),
        (
            "DATA in a block",
            vec![raw(kind::HEADERS, 0, 1, &block(&request())), data(1, b"x", false)],
            C(PROTOCOL),
        ),
        (
            "another stream's block in a block",
            vec![
                raw(kind::HEADERS, 0, 1, &[]),
                raw(kind::CONTINUATION, END_HEADERS, 3, &[]),
            ],
            C(PROTOCOL),
        ),
        (
            "a block with index 0",
            vec![raw(kind::HEADERS, END_HEADERS, 1, &[0x80])],
            C(Reason::COMPRESSION_ERROR),
        ),
        (
            "more padding than bytes",
            vec![ask(1, false), raw(kind::DATA, PADDED, 1, &[9, 0])],
            C(PROTOCOL),
        ),
        (
            "DATA after the end",
            vec![ask(1, true), data(1, b"x", false)],
            S(CLOSED),
        ),
        (
            "DATA after their reset",
            and(reset_by_peer(), data(1, b"x", false)),
            S(CLOSED),
        ),
        (
            "an update after their reset",
            and(reset_by_peer(), window_update(1, 1)),
            Fine,
        ),
        ("RST_STREAM twice", and(reset_by_peer(), rst(1, Reason::CANCEL)), Fine),
        (
            "trailers without an end",
            vec![ask(1, false), headers(1, &[("a", "b")], false)],
            S(PROTOCOL),
        ),
        (
            "trailers with a pseudo field",
            vec![ask(1, false), headers(1, &[(":path", "/")], true)],
            S(PROTOCOL),
        ),
        (
            "no :path",
            vec![headers(1, &[(":method", "GET"), (":scheme", "http")], true)],
            S(PROTOCOL),
        ),
        (
            ":status in a request",
            vec![headers(1, &[&[(":status", "200")], &request()[..]].concat(), true)],
            S(PROTOCOL),
        ),
        (
            "a pseudo field behind others",
            vec![headers(1, &[&[("a", "b")], &request()[..]].concat(), true)],
            S(PROTOCOL),
        ),
        (
            ":path twice",
            vec![headers(1, &list(&[(":path", "/")]), true)],
            S(PROTOCOL),
        ),
        (
            "connection",
            vec![headers(1, &list(&[("connection", "close")]), true)],
            S(PROTOCOL),
        ),
        (
            "te: gzip",
            vec![headers(1, &list(&[("te", "gzip")]), true)],
            S(PROTOCOL),
        ),
        (
            "content-length that is too long",
            vec![
                headers(1, &list(&[("content-length", "5")]), false),
                data(1, b"x", true),
            ],
            S(PROTOCOL),
        ),
        (
            "content-length that is too short",
            vec![
                headers(1, &list(&[("content-length", "0")]), false),
                data(1, b"x", true),
            ],
            S(PROTOCOL),
        ),
        (
            "an upper-case name",
            vec![headers(1, &list(&[("X-A", "b")]), true)],
            S(PROTOCOL),
        ),
        (
            "an update of nothing on a stream",
            vec![ask(1, false), window_update(1, 0)],
            S(PROTOCOL),
        ),
        (
            "PRIORITY that depends on itself",
            vec![ask(1, false), priority(1, 1)],
            S(PROTOCOL),
        ),
        (
            "HEADERS that depend on themselves",
            vec![raw(kind::HEADERS, PRIORITY_FLAG | END_HEADERS, 1, &with_priority)],
            S(PROTOCOL),
        ),
        (
            "PRIORITY of 4 bytes",
            vec![ask(1, false), raw(kind::PRIORITY, 0, 1, &[0; 4])],
            S(SIZE),
        ),
        ("PRIORITY on stream 0", vec![priority(0, 1)], C(PROTOCOL)),
        (
            "padded DATA without its length",
            vec![ask(1, false), raw(kind::DATA, PADDED, 1, &[])],
            C(SIZE),
        ),
        (
            "a frame larger than allowed",
            vec![ask(1, false), data(1, &[0; 16_385], false)],
            C(SIZE),
        ),
        (
            "HEADERS after the end",
            vec![
                ask(1, true),
                raw(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("a", "b")])),
            ],
            S(CLOSED),
        ),
        (
            "control bytes in a value",
            vec![headers(1, &list(&[("a", "b\nc")]), true)],
            S(PROTOCOL),
        ),
        (
            "GOAWAY that takes back another",
            vec![goaway(1, Reason::NO_ERROR), goaway(3, Reason::NO_ERROR)],
            C(PROTOCOL),
        ),
    ];
    let differences: [Difference<'_>; 5] = [
        (
            &[
                "an ACK with payload",
                "SETTINGS of 5 bytes",
                "PING of 7 bytes",
                "GOAWAY of 7 bytes",
                "RST_STREAM of 3 bytes",
                "an update of 3 bytes",
                "padded DATA without its length",
                "PRIORITY of 4 bytes",
                "a window of 2^31",
                "a block with index 0",
            ],
            C(PROTOCOL),
            "h2 has one code for all that it cannot parse; the RFC names others (4.2, 4.3, 6.3, 6.5.2)",
        ),
        (
            &["DATA after the end", "HEADERS after the end"],
            C(PROTOCOL),
            "a stream error (5.1, half-closed): a relay's other streams do not pay for it",
        ),
        (
            &["trailers with a pseudo field", "no :path"],
            Fine,
            "h2 leaves these to its user, who finds them malformed when they ask (8.1.1, 8.3.1)",
        ),
        (
            &["an upper-case name", "control bytes in a value"],
            C(PROTOCOL),
            "a malformed message is a stream error (8.1.1); this is why it must not reach the next hop",
        ),
        (
            &["an update of nothing on a stream"],
            C(PROTOCOL),
            "a stream error (6.9)",
        ),
    ];
    compare(Role::Server, cases, &differences, h2_server_says);
}

#[test]
fn a_client_answers_odd_frames_as_h2_does_or_for_a_reason() {
    let status = |value: &'static str, end: bool| headers(1, &[(":status", value)], end);
    let cases: Vec<Case<'_>> = vec![
        ("an answer", vec![answer(1, false), data(1, b"x", true)], Fine),
        ("an answer with trailers", vec![answer(1, false), trailers(1)], Fine),
        (
            "103 before the answer",
            vec![status("103", false), answer(1, true)],
            Fine,
        ),
        (
            "a push that was not allowed",
            vec![raw(
                kind::PUSH_PROMISE,
                END_HEADERS,
                1,
                &[&[0, 0, 0, 2][..], &block(&request())].concat(),
            )],
            C(PROTOCOL),
        ),
        (
            "ENABLE_PUSH 1 of a server",
            vec![settings(&[(setting::ENABLE_PUSH, 1)])],
            C(PROTOCOL),
        ),
        ("an answer that nobody asked for", vec![answer(5, true)], C(PROTOCOL)),
        ("an answer on an even stream", vec![answer(2, true)], C(PROTOCOL)),
        ("DATA that nobody asked for", vec![data(5, b"x", false)], C(PROTOCOL)),
        ("DATA before the answer", vec![data(1, b"x", false)], S(PROTOCOL)),
        (
            "RST_STREAM on an idle stream",
            vec![rst(5, Reason::CANCEL)],
            C(PROTOCOL),
        ),
        ("no :status", vec![headers(1, &[("a", "b")], true)], S(PROTOCOL)),
        ("a status of two digits", vec![status("20", true)], S(PROTOCOL)),
        (
            ":status twice",
            vec![headers(1, &[(":status", "200"), (":status", "200")], true)],
            S(PROTOCOL),
        ),
        (
            ":path in an answer",
            vec![headers(1, &[(":status", "200"), (":path", "/")], true)],
            S(PROTOCOL),
        ),
        ("103 that ends", vec![status("103", true)], S(PROTOCOL)),
        ("101", vec![status("101", false)], S(PROTOCOL)),
        (
            "trailers without an end",
            vec![answer(1, false), headers(1, &[("a", "b")], false)],
            S(PROTOCOL),
        ),
        (
            "content-length that is too long",
            vec![
                headers(1, &[(":status", "200"), ("content-length", "5")], false),
                data(1, b"x", true),
            ],
            S(PROTOCOL),
        ),
        (
            "DATA after the end of all",
            vec![answer(1, true), data(1, b"x", false)],
            C(CLOSED),
        ),
        (
            "an answer after the end of all",
            vec![answer(1, true), answer(1, true)],
            C(CLOSED),
        ),
        (
            "RST_STREAM after the answer",
            vec![answer(1, true), rst(1, Reason::NO_ERROR)],
            Fine,
        ),
        (
            "GOAWAY that takes back another",
            vec![goaway(1, Reason::NO_ERROR), goaway(3, Reason::NO_ERROR)],
            C(PROTOCOL),
        ),
        (
            "connection",
            vec![headers(1, &[(":status", "200"), ("connection", "x")], true)],
            S(PROTOCOL),
        ),
    ];
    let differences: [Difference<'_>; 5] = [
        (
            &["a push that was not allowed"],
            S(PROTOCOL),
            "a connection error (6.6, 8.4), since ENABLE_PUSH 0 was acknowledged; here h2's was not",
        ),
        (
            &["ENABLE_PUSH 1 of a server"],
            Fine,
            "a connection error (6.5.2), which h2 does not look for",
        ),
        (
            &["no :status", ":path in an answer", "103 that ends", "101"],
            Fine,
            "malformed (8.1, 8.1.1, 8.3.2, 8.6); h2 leaves these to its user",
        ),
        (
            &["DATA before the answer", "a status of two digits"],
            C(PROTOCOL),
            "a malformed message is a stream error (8.1.1)",
        ),
        (
            &["DATA after the end of all", "an answer after the end of all"],
            S(CLOSED),
            "a connection error (5.1, closed): END_STREAM came before",
        ),
    ];
    compare(Role::Client, cases, &differences, h2_client_says);
}

fn compare(role: Role, cases: Vec<Case<'_>>, differences: &[Difference<'_>], h2_says: fn(&[Frame]) -> Verdict) {
    let mut wrong = Vec::new();
    for (name, frames, expected) in &cases {
        let (ours, theirs) = (ours_says(role, frames), h2_says(frames));
        if ours != *expected {
            wrong.push(format!("{name}: we say {ours:?} instead of {expected:?}"));
        }
        let different = differences.iter().find(|(names, ..)| names.contains(name));
        let expected_of_h2 = different.map_or(*expected, |(_, verdict, _)| *verdict);
        if theirs != expected_of_h2 {
            wrong.push(format!("{name}: h2 says {theirs:?} instead of {expected_of_h2:?}"));
        }
        if different.is_some_and(|(_, verdict, why)| verdict == expected || why.is_empty()) {
            wrong.push(format!("{name}: no difference, or no reason for it"));
        }
    }
    let named = |name: &&str| cases.iter().any(|case| case.0 == *name);
    assert!(differences.iter().flat_map(|(names, ..)| *names).all(named));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
