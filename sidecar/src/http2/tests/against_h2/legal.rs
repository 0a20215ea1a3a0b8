//! Legal conversations: calls of every size and ending cross between the engine and h2, over a pipe that takes what it
//! takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::super::peer::fields_of;
use crate::http2::connection::{Connection, Event, Head, Role, Shared};
use crate::http2::frame::Reason;
use crate::http2::hpack::Name;
use crate::http2::settings::Settings;

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
        let mut peer_reads = true;
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
                n = writer.write(&output), if peer_reads && !output.is_empty() => (None, Some(n.unwrap_or(0))),
            };
            if read == Some(0) {
                return self;
            }
            // A peer that has closed hears nothing more, but what it said before that is still to be read.
            peer_reads &= written != Some(0);
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
                        .fields()
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
            let server = Shell::new(Role::Server, a, settings_of(ours), plans.clone());
            let (mut server, ended) = tokio::join!(server.run(), h2_client_calls(b, plans.clone(), theirs));
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
