//! How calls end: by a deadline, by a caller that leaves, by either side's reset, and what is left behind: nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes as Buf;
use h2::Reason;
use http::Response;
use parking_lot::Mutex;
use portunus_sidecar::telemetry::Format;
use portunus_sidecar::worker::Command;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bytes::Bytes;
use crate::raw::{self, DATA, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, Raw};
use crate::world::{Begun, PATIENCE, Setup, World, collect, request, send_bytes};

/// What "within 50 ms" may be on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(2);

async fn before_raw(setup: Setup) -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (World::before(addr, setup).await, listener)
}

/// A caller and a server that speak frames, and a request of the one that has reached the other.
async fn asked(fields: &[(&str, &str)], end: bool) -> (World, Raw, Raw, Vec<raw::Field>) {
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/C", fields, end)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    let fields = server.fields(&head).await;
    (world, caller, server, fields)
}

#[tokio::test]
async fn a_deadline_is_told_to_the_caller_and_the_server_when_it_passes() {
    let began = Instant::now();
    let (world, mut caller, mut server, fields) = asked(&[("grpc-timeout", "3S")], true).await;
    let left = raw::text(&fields, "grpc-timeout").expect("what remains");
    let nanos: u64 = match left.split_at(left.len() - 1) {
        (n, "n") => n.parse().expect("a number"),
        (n, "u") => n.parse::<u64>().expect("a number") * 1_000,
        (n, "m") => n.parse::<u64>().expect("a number") * 1_000_000,
        _ => panic!("{left}"),
    };
    assert!(nanos <= 3_000_000_000 && nanos > 100_000_000, "{left}");
    assert_eq!(fields.iter().filter(|field| field.name == "grpc-timeout").count(), 1);
    let head = caller.until(|frame| frame.kind == HEADERS).await;
    let took = began.elapsed();
    let said = caller.fields(&head).await;
    assert_eq!(raw::text(&said, "grpc-status"), Some("4"));
    assert!(
        raw::text(&said, "grpc-message")
            .expect("a sentence")
            .contains("had not begun to answer")
    );
    let reset = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 8);
    assert!(
        took >= Duration::from_millis(2_995) && took < Duration::from_secs(3) + SOON,
        "{took:?}"
    );
    assert_eq!(world.metric("portunus_proxy_errors_total", &["deadline"]), 1.0);
}

#[tokio::test]
async fn a_deadline_ends_an_answer_between_its_messages_by_a_status() {
    let (_world, mut caller, mut server, _) = asked(&[("grpc-timeout", "3S")], true).await;
    server
        .send(&[raw::response(1), raw::message(1, b"one", false)].concat())
        .await;
    let head = caller.until(|frame| frame.kind == HEADERS).await;
    caller.fields(&head).await;
    caller.until(|frame| frame.kind == DATA).await;
    let last = caller.until(|frame| frame.kind == HEADERS).await;
    assert!(last.has(END_STREAM));
    assert_eq!(raw::text(&caller.fields(&last).await, "grpc-status"), Some("4"));
    let reset = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 8);
}

#[tokio::test]
async fn timeouts_of_the_wrong_form_are_passed_on_counted_and_end_nothing() {
    let wrong = ["1", "123456789m", "-5m", "1x", "m", "1.5S"];
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    for (i, wrong) in wrong.iter().enumerate() {
        caller
            .send(&raw::request(
                1 + 2 * i as u32,
                "/a.B/C",
                &[("grpc-timeout", wrong)],
                true,
            ))
            .await;
    }
    let mut server = Raw::accept(&listener, &[]).await;
    for wrong in wrong {
        let head = server.until(|frame| frame.kind == HEADERS).await;
        assert_eq!(raw::text(&server.fields(&head).await, "grpc-timeout"), Some(wrong));
        server
            .send(&[raw::response(head.stream), raw::trailers(head.stream)].concat())
            .await;
        caller
            .until(|frame| frame.stream == head.stream && frame.has(END_STREAM))
            .await;
    }
    assert_eq!(world.metric("portunus_invalid_timeouts_total", &[]), wrong.len() as f64);
}

#[tokio::test]
async fn a_callers_cancel_reaches_the_server_at_once() {
    let (_world, mut caller, mut server, _) = asked(&[], false).await;
    let began = Instant::now();
    caller.send(&raw::reset(1, 8)).await;
    let reset = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 8);
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn a_caller_that_vanishes_is_a_cancel_to_the_server() {
    let (_world, caller, mut server, _) = asked(&[], false).await;
    drop(caller);
    let reset = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 8);
}

#[tokio::test]
async fn only_a_server_can_say_that_nothing_was_processed() {
    // From a caller it is a cancel.
    let (_world, mut caller, mut server, _) = asked(&[], false).await;
    caller.send(&raw::reset(1, 7)).await;
    let reset = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 8);
    // Behind the beginning of an answer it is not true.
    let (_world, mut caller, mut server, _) = asked(&[], true).await;
    server.send(&[raw::response(1), raw::reset(1, 7)].concat()).await;
    let reset = caller.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!(reset.number(), 2, "INTERNAL_ERROR");
}

#[tokio::test]
async fn a_servers_code_crosses_as_it_is() {
    for code in [2, 8, 11, 12, 4_711] {
        let (_world, mut caller, mut server, _) = asked(&[], true).await;
        server.send(&raw::reset(1, code)).await;
        let reset = caller.until(|frame| frame.kind == RST_STREAM).await;
        assert_eq!(reset.number(), code);
    }
}

#[tokio::test]
async fn an_answer_that_is_whole_before_its_request_arrives_whole_and_stops_the_request() {
    let (_world, mut caller, mut server, _) = asked(&[], false).await;
    let answer = [
        raw::response(1),
        raw::message(1, &[5; 3_000], false),
        raw::trailers(1),
        raw::reset(1, 0),
    ];
    server.send(&answer.concat()).await;
    let mut got = 0;
    loop {
        let event = caller.event().await.expect("the connection goes on");
        match event.kind {
            DATA => got += event.payload.len(),
            HEADERS => drop(caller.fields(&event).await),
            RST_STREAM => {
                assert_eq!(event.number(), 0, "NO_ERROR");
                break;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(got, 3_005);
}

#[tokio::test]
async fn an_early_answer_of_a_library_server_arrives_whole() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    for _ in 0..50 {
        let asked = request("/a.B/C", &[("x-act", "early"), ("x-receive", "100000")]);
        let Begun {
            response,
            mut body,
            seed,
        } = caller.begin(asked).await.expect("begun");
        let sending = tokio::spawn(async move { send_bytes(&mut body, Bytes::new(seed), 1 << 20, true).await });
        let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
        assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (100_000, Some("0")));
        // Whether the request was still sent or stopped is the server's affair.
        let _ = sending.await.expect("it held");
    }
    drop(caller);
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test]
async fn both_ends_resetting_in_one_turn_leave_nothing_behind() {
    let (world, mut caller, mut server, _) = asked(&[], false).await;
    // Fewer than a connection is replaced for.
    for i in 1..60u32 {
        let stream = 1 + 2 * i;
        let reset = raw::reset(stream - 2, 8);
        tokio::join!(server.send(&reset), caller.send(&reset));
        caller.send(&raw::request(stream, "/a.B/C", &[], false)).await;
        server
            .until(|frame| frame.kind == HEADERS && frame.stream == stream)
            .await;
    }
    server
        .send(&[raw::response(119), raw::trailers(119), raw::reset(119, 0)].concat())
        .await;
    caller.until(|frame| frame.stream == 119 && frame.has(END_STREAM)).await;
    drop(caller);
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_cancels_leave_no_stream_and_no_byte_of_window() {
    let (world, listener) = before_raw(Setup::default()).await;
    // A server that takes what comes and says nothing; connections are replaced under it.
    let server = tokio::spawn(async move {
        let mut connections = 0u32;
        loop {
            let mut server = Raw::accept(&listener, &[]).await;
            connections += 1;
            tokio::spawn(async move {
                while let Some(event) = server.event().await {
                    if event.kind != HEADERS {
                        continue;
                    }
                    let fields = server.fields(&event).await;
                    if raw::text(&fields, ":path") == Some("/a.B/Last") {
                        server.send(&raw::response(event.stream)).await;
                        let mut sent = 0;
                        while sent < 60_000 {
                            server.send(&raw::frame(DATA, 0, event.stream, &[7; 10_000])).await;
                            sent += 10_000;
                        }
                        server.send(&raw::trailers(event.stream)).await;
                    }
                }
            });
            assert!(connections < 10_000);
        }
    });
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.until_settled().await;
    let mut stream = 1;
    for _ in 0..1_000 {
        let mut burst = Vec::new();
        for i in 0..100 {
            burst.extend(raw::request(stream, "/a.B/C", &[], false));
            if i % 3 == 0 {
                burst.extend(raw::frame(DATA, 0, stream, &[1; 50]));
            }
            burst.extend(raw::reset(stream, 8));
            stream += 2;
        }
        caller.send(&burst).await;
        caller.until_read().await;
    }
    world.until_all_ended().await;
    assert_eq!(world.metric("grpc_client_handled_total", &["Canceled"]), 100_000.0);
    // The whole window of the connection is there, in both directions.
    caller.send(&raw::request(stream, "/a.B/Last", &[], false)).await;
    let mut left = 65_535;
    while left > 0 {
        let now = left.min(16_384);
        caller.send(&raw::frame(DATA, 0, stream, &vec![3; now])).await;
        left -= now;
    }
    let mut got = 0;
    while got < 60_000 {
        got += caller.until(|frame| frame.kind == DATA).await.payload.len();
    }
    assert!(world.metric("portunus_connections", &["upstream"]) < 64.0);
    server.abort();
    drop(caller);
    world
        .until("portunus_connections", &["downstream"], |open| open == 0.0)
        .await;
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_of_one_caller_cost_no_call_of_another_on_the_shared_connection() {
    let world = World::start().await;
    let mut innocent = world.caller().await;
    // It has begun, and goes on meanwhile.
    let Begun {
        response,
        mut body,
        seed,
    } = innocent
        .begin(request("/a.B/Innocent", &[("x-receive", "50000")]))
        .await
        .expect("begun");
    body.send_data(Buf::from(Bytes::new(seed).take(5)), false)
        .expect("sent");
    let response = response.await.expect("answered");
    let hasty = world.caller().await;
    for _ in 0..100 {
        for _ in 0..40 {
            let mut hasty = hasty.clone();
            let Begun { mut body, .. } = hasty.begin(request("/a.B/C", &[])).await.expect("begun");
            body.send_reset(Reason::CANCEL);
        }
        tokio::task::yield_now().await;
    }
    let mut rest = Bytes::new(seed);
    rest.take(5);
    let sent = send_bytes(&mut body, rest, 1_000, true).await;
    let answer = collect(response, seed).await.expect("nobody cut it");
    assert_eq!(answer.grpc_message, None, "{sent:?}");
    assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (50_000, Some("0")));
    drop(hasty);
    world.until_all_ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_leave_a_server_that_hangs_cost_no_call_of_another_on_the_shared_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), Setup::default()).await;
    let mut innocent = world.caller().await;
    let Begun {
        response, body: _asks, ..
    } = innocent.begin(request("/a.B/Innocent", &[])).await.expect("begun");
    let (socket, _) = listener.accept().await.expect("the proxy comes");
    let mut server = h2::server::handshake(socket).await.expect("a handshake");
    let (_, mut respond) = server.accept().await.expect("a call").expect("a good one");
    let mut body = respond.send_response(Response::new(()), false).expect("it is there");
    let response = tokio::select! {
        response = response => response.expect("an answer"),
        _ = server.accept() => panic!("nobody else calls"),
    };

    // From here on it reads nothing. Calls come, are old, and their callers leave all at once.
    let mut leaving = Vec::new();
    for _ in 0..4 {
        let mut caller = world.caller().await;
        for _ in 0..15 {
            leaving.push(caller.begin(request("/a.B/C", &[])).await.expect("begun"));
        }
    }
    world
        .until("grpc_client_started_total", &["C"], |now| now == 60.0)
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(leaving);
    world
        .until("grpc_client_handled_total", &["Canceled"], |now| now == 60.0)
        .await;

    // It goes on. It takes every call up, hears of each that nobody wants it, and answers the innocent.
    let mut taken = Vec::new();
    while taken.len() < 60 {
        let call = timeout(PATIENCE, server.accept()).await.expect("soon");
        let call = call.expect("the connection lasts");
        taken.push(call.expect("nobody is called an attacker"));
    }
    let cancelled = async {
        for (_, respond) in &mut taken {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            assert_eq!(reason.expect("it is told"), Reason::CANCEL);
        }
    };
    tokio::select! {
        () = cancelled => {}
        () = tokio::time::sleep(PATIENCE) => panic!("some are never told"),
        ended = server.accept() => panic!("{:?}", ended.map(|call| call.map(drop))),
    }
    let ok =
        [("grpc-status", "0")].map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
    body.send_trailers(ok.into_iter().collect()).expect("it is open");
    let answer = tokio::select! {
        answer = collect(response, 0) => answer.expect("a whole one"),
        _ = server.accept() => panic!("the connection ends"),
        () = tokio::time::sleep(PATIENCE) => panic!("it is not answered"),
    };
    assert_eq!(answer.grpc_status.as_deref(), Some("0"));
}

#[tokio::test]
async fn requests_that_are_cut_for_their_trailers_are_told_to_the_server_like_cancels() {
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], false)).await;
    let mut server = Raw::accept(&listener, &[(6, 2_000)]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    let large = raw::block(&[("large", &"x".repeat(3_000))]);
    let calls = (3..).step_by(2).take(30).map(|stream| {
        let trailers = raw::frame(HEADERS, raw::END_HEADERS | END_STREAM, stream, &large);
        [raw::request(stream, "/a.B/C", &[], false), trailers].concat()
    });
    caller.send(&calls.collect::<Vec<_>>().concat()).await;
    let mut resets = 0;
    // Then it is asked whether it has taken them up, and the others go by another connection.
    loop {
        let frame = server.next().await.expect("the connection goes on");
        match frame.kind {
            PING if !frame.has(raw::ACK) => break,
            RST_STREAM => resets += 1,
            _ => {}
        }
        assert!(
            resets <= 16,
            "servers take more that they have not taken up for an attack"
        );
    }
}

#[tokio::test]
async fn draining_says_goaway_in_two_steps_and_running_calls_end() {
    let setup = Setup {
        inbound: true,
        ..Setup::default()
    };
    let (world, listener) = before_raw(setup).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], false)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    caller.until_settled().await;
    world.tell(Command::DrainInbound);
    let mut steps = Vec::new();
    while steps.len() < 2 {
        let next = caller.next().await.expect("the connection goes on");
        match next.kind {
            GOAWAY => steps.push(next.number()),
            PING => {
                // What was under way when the first step was said is served.
                caller.send(&raw::request(3, "/a.B/C", &[], false)).await;
                caller.send(&raw::frame(PING, raw::ACK, 0, &next.payload)).await;
            }
            _ => {}
        }
    }
    assert_eq!(steps, [(1 << 31) - 1, 3]);
    server.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
    // What comes behind the second step is not, and what belongs to it harms nobody.
    let late = [raw::request(5, "/a.B/C", &[], false), raw::message(5, b"late", true)].concat();
    caller.send(&[late, raw::message(1, b"more", true)].concat()).await;
    server.until(|frame| frame.kind == DATA && frame.stream == 1).await;
    for stream in [1, 3] {
        server
            .send(&[raw::response(stream), raw::trailers(stream), raw::reset(stream, 0)].concat())
            .await;
        caller
            .until(|frame| frame.stream == stream && frame.has(END_STREAM))
            .await;
    }
    assert!(
        caller.closes_within(Duration::from_secs(20)).await,
        "a drained connection is closed"
    );
    // The port takes nobody any more.
    let refused = tokio::net::TcpStream::connect(world.proxy).await;
    assert!(refused.is_err());
    assert_eq!(world.end().rpcs, 0);
}

/// A caller with a small socket whose connection drains, told so and asked to the end, and then its answer of so many bytes, of
/// which it has read nothing.
async fn answered_while_it_drains(bytes: usize) -> (World, Raw) {
    let setup = Setup {
        inbound: true,
        ..Setup::default()
    };
    let (world, listener) = before_raw(setup).await;
    let mut caller = Raw::narrow(world.proxy, &[(4, 8 << 20)]).await;
    let request = raw::request(1, "/a.B/C", &[], true);
    caller.send(&[raw::update(0, 8 << 20), request].concat()).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    world.tell(Command::DrainInbound);
    caller.until(|frame| frame.kind == GOAWAY && frame.number() == 1).await;
    let pieces = vec![raw::frame(DATA, 0, 1, &[7; 10_000]); bytes / 10_000].concat();
    server
        .send(&[raw::response(1), pieces, raw::trailers(1)].concat())
        .await;
    server.until_read().await;
    (world, caller)
}

/// Reads the answer to its end, one frame after the other, and says `said` at each of them. How many bytes it has.
async fn reads_all(caller: &mut Raw, said: &[u8]) -> usize {
    let mut got = 0;
    while let Some(frame) = caller.next().await {
        match frame.kind {
            DATA => got += frame.payload.len(),
            HEADERS if frame.has(END_STREAM) => break,
            _ => continue,
        }
        caller.send_within(said, PATIENCE).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    got
}

#[tokio::test]
async fn a_reader_that_rests_while_its_connection_drains_gets_all_of_its_answer() {
    // Whatever of it stands with the kernel, in the output and with its stream.
    let mut all = JoinSet::new();
    for bytes in (60_000..=340_000).step_by(20_000) {
        all.spawn(async move {
            let (_world, mut caller) = answered_while_it_drains(bytes).await;
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            assert_eq!(reads_all(&mut caller, &[]).await, bytes);
            assert!(caller.closes_within(Duration::from_secs(5)).await);
        });
    }
    while let Some(one) = all.join_next().await {
        one.expect("it held");
    }
}

#[tokio::test]
async fn a_reader_that_speaks_while_it_reads_the_end_of_a_drained_connection_gets_all_of_it() {
    const BYTES: usize = 300_000;
    for _ in 0..10 {
        let (_world, mut caller) = answered_while_it_drains(BYTES).await;
        let began = Instant::now();
        let got = reads_all(&mut caller, &raw::frame(PING, 0, 0, &[1; 8])).await;
        // It is listened to for a second: on a busy machine it may take longer than that.
        if got < BYTES && began.elapsed() > Duration::from_millis(500) {
            continue;
        }
        assert_eq!(got, BYTES);
        assert!(caller.closes_within(Duration::from_secs(5)).await);
        return;
    }
    panic!("it never reads in time");
}

#[tokio::test]
async fn an_answer_that_the_end_cuts_is_recorded() {
    let log = Arc::new(Mutex::new(String::new()));
    let setup = Setup {
        access_log: Some(log.clone()),
        pair: false,
        ..Setup::default()
    };
    let (world, listener) = before_raw(setup).await;
    // It has no room for the answer, which is whole.
    let mut caller = Raw::client(world.proxy, &[(4, 10)]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], true)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    let answer = [raw::response(1), raw::message(1, &[7; 1_000], false), raw::trailers(1)];
    server.send(&answer.concat()).await;
    server.until_read().await;
    caller.until(|frame| frame.kind == DATA).await;
    let registry = world.registry.clone();
    let cut = tokio::task::spawn_blocking(move || world.end()).await.expect("it held");
    assert_eq!(cut.rpcs, 1);
    let said = caller.until_closed().await.expect("the end is said");
    assert_eq!((said.kind, said.goaway_code()), (GOAWAY, 0));
    let page = registry.scrape(Format::Prometheus);
    let handled = page
        .lines()
        .filter(|line| line.starts_with("grpc_server_handled_total") || line.starts_with("grpc_client_handled_total"));
    let handled: Vec<_> = handled.collect();
    assert!(
        handled
            .iter()
            .any(|line| line.contains("Unavailable") && line.ends_with(" 1")),
        "{handled:?}"
    );
    let log = log.lock();
    assert!(log.contains("\"error\":\"stopping\""), "{log}");
}

#[tokio::test]
async fn the_end_cuts_what_runs_says_so_and_counts_it() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    let mut calls = Vec::new();
    for _ in 0..7 {
        let begun = caller
            .begin(request("/a.B/C", &[("x-act", "silent")]))
            .await
            .expect("begun");
        calls.push(begun);
    }
    while world.server.requests.load(Relaxed) < 7 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cut = tokio::task::spawn_blocking(move || world.end()).await.expect("it held");
    assert_eq!(cut.rpcs, 7);
    assert!(cut.connections >= 1, "{cut:?}");
    for call in calls {
        let answer = collect(call.response.await.expect("answered"), 0).await.expect("whole");
        assert_eq!(answer.grpc_status.as_deref(), Some("14"));
        assert!(answer.grpc_message.expect("a sentence").contains("stopped"));
    }
}
