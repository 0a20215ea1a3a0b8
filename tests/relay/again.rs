//! What was not processed is sent again, once and unnoticed; what may have been processed never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes as Buf;
use portunus_sidecar::balance::Algorithm;
use portunus_sidecar::failure::Failure;
use portunus_sidecar::health;
use portunus_sidecar::policy::Mode;
use portunus_sidecar::route::{Endpoint, Known, Policy, View};
use support::pki::{self, Pki};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::raw::{self, HEADERS, Raw};
use crate::world::{Answer, Begun, Caller, PATIENCE, Setup, World, collect, request};

async fn before_raw() -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (World::before(addr, Setup::default()).await, listener)
}

/// The same with one worker, whatever other worlds have: what is tried here is what it does with its own server.
async fn before_raw_alone() -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let setup = Setup {
        pair: false,
        ..Setup::default()
    };
    (World::before(addr, setup).await, listener)
}

/// A call with a request of one piece, on a task of its own.
fn call(caller: &Caller, body: Vec<u8>) -> tokio::task::JoinHandle<Result<Answer, h2::Error>> {
    let mut caller = caller.clone();
    tokio::spawn(async move {
        let Begun {
            response, body: mut to, ..
        } = caller.begin(request("/a.B/C", &[])).await?;
        to.send_data(Buf::from(body), true)?;
        collect(response.await?, 0).await
    })
}

/// Reads one request to its end, and says on which stream it came and how much it was.
async fn whole_request(server: &mut Raw) -> (u32, Vec<u8>) {
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    let mut body = Vec::new();
    let mut ended = head.has(raw::END_STREAM);
    while !ended {
        let data = server.until(|frame| frame.stream == head.stream).await;
        if data.kind == HEADERS {
            server.fields(&data).await;
        } else {
            body.extend_from_slice(&data.payload);
        }
        ended = data.has(raw::END_STREAM);
    }
    (head.stream, body)
}

async fn answer(server: &mut Raw, stream: u32) {
    server
        .send(&[raw::response(stream), raw::trailers(stream)].concat())
        .await;
}

fn is(answer: &Answer, status: &str, sentence: &str) {
    assert_eq!(answer.grpc_status.as_deref(), Some(status), "{answer:?}");
    let said = answer.grpc_message.as_deref().unwrap_or_default();
    assert!(said.contains(sentence), "{said}");
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_with_its_body_and_nobody_notices() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let body: Vec<u8> = (0..40_000u32).map(|i| i as u8).collect();
    let waits = call(&caller, body.clone());
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, first) = whole_request(&mut server).await;
    server
        .send(&[raw::reset(stream, 7), raw::update(0, 60_000)].concat())
        .await;
    let (stream, second) = whole_request(&mut server).await;
    assert!(first == body && second == body, "the request is the same");
    answer(&mut server, stream).await;
    is(&waits.await.expect("it held").expect("answered"), "0", "");
    assert_eq!(world.metric_of_all("portunus_retries_total", &[]), 1.0);
}

#[tokio::test]
async fn a_stream_that_is_refused_twice_is_unavailable_and_says_so() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    for _ in 0..2 {
        let (stream, _) = whole_request(&mut server).await;
        server.send(&raw::reset(stream, 7)).await;
    }
    let answer = waits.await.expect("it held").expect("answered");
    is(
        &answer,
        "14",
        "refused the request before processing it, and so did another try",
    );
    assert_eq!(
        answer
            .trailers
            .get("portunus-error")
            .or(answer.head.get("portunus-error"))
            .expect("a reason"),
        "refused"
    );
}

#[tokio::test]
async fn trailers_that_wait_for_a_server_are_not_sent_to_one_that_takes_no_such_list() {
    let (world, listener) = before_raw_alone().await;
    let mut caller = world.caller().await;
    let Begun { response, mut body, .. } = caller.begin(request("/a.B/C", &[])).await.expect("begun");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-long", "v".repeat(2_000).parse().expect("a value"));
    body.send_data(Buf::from_static(b"body"), false).expect("there is room");
    body.send_trailers(trailers).expect("it is open");
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    // It takes no more than 1,000 bytes from now on, and the request is sent again to whoever has room for it.
    server
        .send(&[raw::settings(&[(6, 1_000)]), raw::reset(stream, 7)].concat())
        .await;
    let answer = collect(response.await.expect("answered"), 0).await.expect("whole");
    is(
        &answer,
        "8",
        "takes header lists of at most 1000 bytes, and this request's has 20",
    );
}

#[tokio::test]
async fn a_request_larger_than_the_replay_buffer_is_not_sent_again() {
    let (world, listener) = before_raw().await;
    let mut caller = world.caller_with((1 << 20, 1 << 20)).await;
    let Begun { response, mut body, .. } = caller.begin(request("/a.B/C", &[])).await.expect("begun");
    let sending = tokio::spawn(async move {
        let bytes = crate::bytes::Bytes::new(1);
        crate::world::send_bytes(&mut body, bytes, 100_000, true).await
    });
    let mut server = Raw::accept(&listener, &[(4, 1 << 20)]).await;
    server.send(&raw::update(0, 1 << 20)).await;
    let (stream, first) = whole_request(&mut server).await;
    assert_eq!(first.len(), 100_000);
    server.send(&raw::reset(stream, 7)).await;
    let answer = collect(response.await.expect("answered"), 0).await.expect("whole");
    is(&answer, "14", "too large to be sent again");
    sending.await.expect("it held").expect("sent");
    assert_eq!(world.metric("portunus_retries_total", &[]), 0.0);
}

#[tokio::test]
async fn streams_above_the_last_of_a_goaway_are_sent_again_on_another_connection() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let first = call(&caller, b"first".to_vec());
    let mut server = Raw::accept(&listener, &[]).await;
    let (low, _) = whole_request(&mut server).await;
    let second = call(&caller, b"second".to_vec());
    let (high, _) = whole_request(&mut server).await;
    assert!(high > low);
    server.send(&raw::goaway(low, 0)).await;
    let mut other = Raw::accept(&listener, &[]).await;
    let (stream, body) = whole_request(&mut other).await;
    assert_eq!(body, b"second");
    answer(&mut other, stream).await;
    is(&second.await.expect("it held").expect("answered"), "0", "");
    // What was not above goes on where it was, and what is new goes to the new connection.
    let third = call(&caller, b"third".to_vec());
    let (stream, body) = whole_request(&mut other).await;
    assert_eq!(body, b"third");
    answer(&mut other, stream).await;
    is(&third.await.expect("it held").expect("answered"), "0", "");
    answer(&mut server, low).await;
    is(&first.await.expect("it held").expect("answered"), "0", "");
}

#[tokio::test]
async fn a_goaway_in_two_steps_costs_no_call() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let first = call(&caller, b"first".to_vec());
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    server.send(&raw::goaway((1 << 31) - 1, 0)).await;
    let second = call(&caller, b"second".to_vec());
    let mut other = Raw::accept(&listener, &[]).await;
    server.send(&raw::goaway(stream, 0)).await;
    answer(&mut server, stream).await;
    is(&first.await.expect("it held").expect("answered"), "0", "");
    let (stream, _) = whole_request(&mut other).await;
    answer(&mut other, stream).await;
    is(&second.await.expect("it held").expect("answered"), "0", "");
    // A connection that both sides are done with is closed.
    assert!(server.closes_within(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn a_connection_lost_after_the_request_left_is_unavailable_and_not_tried_again() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    whole_request(&mut server).await;
    drop(server);
    let answer = waits.await.expect("it held").expect("answered");
    is(&answer, "14", "may have processed it");
    assert_eq!(
        world.metric_of_all("portunus_proxy_errors_total", &["connection_lost"]),
        1.0
    );
}

#[tokio::test]
async fn an_answer_that_had_begun_ends_with_a_status_when_its_connection_is_lost_between_messages() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    server
        .send(&[raw::response(stream), raw::message(stream, b"one", false)].concat())
        .await;
    server.until_read().await;
    drop(server);
    let answer = waits.await.expect("it held").expect("answered");
    assert_eq!(answer.bytes, 8);
    is(&answer, "14", "may have processed it");
}

#[tokio::test]
async fn inside_a_message_a_lost_connection_is_a_reset_not_a_status() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    let half = raw::frame(raw::DATA, 0, stream, &[0, 0, 0, 0, 9, 1, 2, 3]);
    server.send(&[raw::response(stream), half].concat()).await;
    server.until_read().await;
    drop(server);
    let error = waits.await.expect("it held").expect_err("it broke off");
    assert!(error.is_reset(), "{error}");
}

#[tokio::test]
async fn a_finished_answer_arrives_whole_though_its_connection_is_lost_before_the_caller_reads() {
    let (world, listener) = before_raw_alone().await;
    let mut caller = Raw::client(world.proxy, &[(4, 0)]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], false)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    server.send(&raw::response(1)).await;
    server
        .send(&[raw::message(1, &[9; 10_000], false), raw::trailers(1)].concat())
        .await;
    drop(server);
    world
        .until("portunus_connections", &["upstream"], |open| open == 0.0)
        .await;
    caller.until(|frame| frame.kind == HEADERS).await;
    caller.send(&raw::update(1, 20_000)).await;
    let mut got = 0;
    while got < 10_005 {
        got += caller.until(|frame| frame.kind == raw::DATA).await.payload.len();
    }
    let last = caller.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(raw::text(&caller.fields(&last).await, "grpc-status"), Some("0"));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_unavailable_at_once_and_says_why() {
    let nobody = crate::world::free_port();
    let world = World::before(nobody, Setup::default()).await;
    let mut caller = world.caller().await;
    let began = Instant::now();
    let answer = caller.call("/a.B/C", 0, 0).await.expect("answered");
    let took = began.elapsed();
    is(&answer, "14", "refused");
    assert!(answer.grpc_message.expect("a sentence").contains(&nobody.to_string()));
    assert!(took < Duration::from_secs(5), "{took:?}");
    if world.far.is_none() {
        let unsent = world.metric("portunus_requests_total", &["outbound", "tls=\"none\""]);
        assert_eq!(unsent, 1.0, "neither plain nor in mTLS");
    }
}

#[tokio::test]
async fn a_server_of_one_stream_at_a_time_gets_as_many_connections_as_there_are_calls() {
    for (streams, calls) in [(1, 30), (10, 120)] {
        let world = World::with(Setup {
            server_streams: Some(streams),
            ..Setup::default()
        })
        .await;
        let caller = world.caller().await;
        for _ in 0..3 {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..calls {
                let mut caller = caller.clone();
                all.spawn(async move { caller.call("/a.B/C", 100, 30_000).await });
            }
            while let Some(done) = all.join_next().await {
                is(&done.expect("it held").expect("answered"), "0", "");
            }
        }
        let connections = world.server.connections.load(std::sync::atomic::Ordering::Relaxed);
        assert!((2..=64).contains(&connections), "{connections}");
    }
}

#[tokio::test]
async fn a_stopped_server_is_noticed_within_five_seconds_by_one_ping() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let began = Instant::now();
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    server.until_settled().await;
    let answer = waits.await.expect("it held").expect("answered");
    let took = began.elapsed();
    is(&answer, "14", "did not answer a PING");
    assert!(
        took > Duration::from_millis(3_000) && took < Duration::from_millis(6_500),
        "{took:?}"
    );
    let mut pings = 0;
    while let Some(frame) = server.next().await {
        pings += (frame.kind == raw::PING && !frame.has(raw::ACK)) as u32;
    }
    assert_eq!(pings, 1);
}

#[tokio::test]
async fn a_server_that_answers_its_ping_may_be_silent_as_long_as_it_likes() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let waits = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    let began = Instant::now();
    let mut pings = 0;
    let mut stream = 0;
    while began.elapsed() < Duration::from_secs(8) {
        let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(200), server.next()).await else {
            continue;
        };
        match frame.kind {
            raw::PING if !frame.has(raw::ACK) => {
                pings += 1;
                server.send(&raw::frame(raw::PING, raw::ACK, 0, &frame.payload)).await;
            }
            raw::SETTINGS if !frame.has(raw::ACK) => server.send(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[])).await,
            HEADERS => stream = frame.stream,
            _ => {}
        }
    }
    assert_eq!(pings, 1, "gRPC servers punish more");
    answer(&mut server, stream).await;
    is(&waits.await.expect("it held").expect("answered"), "0", "");
}

/// Answers one PING, with a call that waits.
async fn until_pinged(server: &mut Raw) {
    let ping = loop {
        let frame = server.next().await.expect("the connection goes on");
        match frame.kind {
            raw::PING if !frame.has(raw::ACK) => break frame,
            raw::SETTINGS if !frame.has(raw::ACK) => server.send(&raw::frame(raw::SETTINGS, raw::ACK, 0, &[])).await,
            _ => {}
        }
    };
    server.send(&raw::frame(raw::PING, raw::ACK, 0, &ping.payload)).await;
}

#[tokio::test]
async fn a_server_that_freezes_after_it_answered_a_ping_is_noticed_by_the_next_call() {
    let (world, listener) = before_raw_alone().await;
    let caller = world.caller().await;
    let stream = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    until_pinged(&mut server).await;
    // From here on it neither reads nor writes.
    let next = call(&caller, vec![2; 10]);
    let answer = tokio::time::timeout(PATIENCE, next)
        .await
        .expect("it does not wait for ever");
    is(
        &answer.expect("it held").expect("answered"),
        "14",
        "did not answer a PING",
    );
    is(
        &stream.await.expect("it held").expect("answered"),
        "14",
        "did not answer a PING",
    );
}

#[tokio::test]
async fn a_server_that_takes_its_time_with_every_call_gets_no_more_pings_than_grpc_allows() {
    let (world, listener) = before_raw_alone().await;
    let caller = world.caller().await;
    let mut waits = vec![call(&caller, vec![1; 10])];
    let mut server = Raw::accept(&listener, &[]).await;
    for _ in 0..3 {
        until_pinged(&mut server).await;
        waits.push(call(&caller, vec![2; 10]));
    }
    let fourth = tokio::time::timeout(Duration::from_secs(4), until_pinged(&mut server)).await;
    assert!(fourth.is_err(), "grpc-go ends a connection for the fourth");
    assert!(waits.iter().all(|call| !call.is_finished()));
}

#[tokio::test]
async fn the_ping_that_measures_the_path_is_one_of_those_that_grpc_allows() {
    let (world, listener) = before_raw_alone().await;
    let caller = world.caller().await;
    let large = call(&caller, vec![1; 10]);
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    let pieces = raw::message(stream, &[9; 12_000], false).repeat(3);
    server
        .send(&[raw::response(stream), pieces, raw::trailers(stream)].concat())
        .await;
    is(&large.await.expect("it held").expect("answered"), "0", "");
    // It reached the server after all that it has sent.
    until_pinged(&mut server).await;
    let mut waits = Vec::new();
    for _ in 0..2 {
        waits.push(call(&caller, vec![2; 10]));
        until_pinged(&mut server).await;
    }
    waits.push(call(&caller, vec![2; 10]));
    let fourth = tokio::time::timeout(Duration::from_secs(4), until_pinged(&mut server)).await;
    assert!(fourth.is_err(), "grpc-go ends a connection for the fourth");
    assert!(waits.iter().all(|call| !call.is_finished()));
}

#[tokio::test]
async fn a_request_of_which_no_byte_left_goes_to_another_connection_when_its_own_is_lost() {
    let (world, listener) = before_raw().await;
    let mut bulk = world.caller().await;
    let Begun { mut body, response, .. } = bulk.begin(request("/a.B/Bulk", &[])).await.expect("begun");
    let mut server = Raw::accept(&listener, &[(4, 1 << 30)]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    server
        .send(&[raw::update(0, 1 << 30), raw::update(head.stream, 1 << 20)].concat())
        .await;
    server.until_read().await;
    // The server reads no more: at last the proxy's socket takes no more either.
    let sending =
        tokio::spawn(
            async move { crate::world::send_bytes(&mut body, crate::bytes::Bytes::new(1), 64 << 20, true).await },
        );
    let stuck = || world.metric("portunus_memory_held_bytes", &[]);
    let mut last = 0.0;
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        same = if stuck() == last && last > 60_000.0 {
            same + 1
        } else {
            0
        };
        last = stuck();
    }
    // Three requests stand behind what does not leave.
    let caller = world.caller().await;
    let behind: Vec<_> = (0..3).map(|_| call(&caller, b"unsent".to_vec())).collect();
    world.until("grpc_client_started_total", &[], |n| n == 4.0).await;
    drop(server);
    let mut other = Raw::accept(&listener, &[]).await;
    for _ in 0..3 {
        let (stream, body) = whole_request(&mut other).await;
        assert_eq!(body, b"unsent");
        answer(&mut other, stream).await;
    }
    for call in behind {
        is(&call.await.expect("it held").expect("answered"), "0", "");
    }
    // The one that had begun to leave is not sent again.
    let bulk = collect(response.await.expect("answered"), 0).await.expect("whole");
    is(&bulk, "14", "may have processed it");
    let _ = sending.await.expect("it held");
}

#[tokio::test]
async fn a_call_does_not_wait_for_a_draining_connection_when_no_other_can_be_made() {
    let (world, listener) = before_raw().await;
    let caller = world.caller().await;
    let running = call(&caller, b"first".to_vec());
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    drop(listener);
    server.send(&raw::goaway(stream, 0)).await;
    server.until_read().await;
    let began = Instant::now();
    let refused = call(&caller, b"second".to_vec());
    is(&refused.await.expect("it held").expect("answered"), "14", "refused");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    answer(&mut server, stream).await;
    is(&running.await.expect("it held").expect("answered"), "0", "");
}

#[tokio::test]
async fn an_answer_that_came_before_its_connection_broke_arrives_whole_however_large() {
    let (world, listener) = before_raw_alone().await;
    for _ in 0..10 {
        let mut caller = world.caller_with((1 << 20, 1 << 20)).await;
        let Begun { response, mut body, .. } = caller.begin(request("/a.B/C", &[])).await.expect("begun");
        let mut server = Raw::accept(&listener, &[(4, 1 << 20)]).await;
        let head = server.until(|frame| frame.kind == HEADERS).await;
        server.fields(&head).await;
        server
            .send(&[raw::response(head.stream), raw::update(0, 1 << 20)].concat())
            .await;
        // A first piece brings credit for the rest.
        server
            .send(&raw::frame(raw::DATA, 0, head.stream, &[5; 16_000]).repeat(3))
            .await;
        server.grants_at_least(head.stream, 200_000).await;
        // More of the request is under way than the server will ever read: when it closes, that is a reset.
        let sending = tokio::spawn(async move {
            crate::world::send_bytes(&mut body, crate::bytes::Bytes::new(1), 400_000, false).await
        });
        let mut answer: Vec<u8> = Vec::new();
        for _ in 0..12 {
            answer.extend(raw::frame(raw::DATA, 0, head.stream, &[5; 16_000]));
        }
        answer.extend(raw::trailers(head.stream));
        server.send(&answer).await;
        // What the kernel has not delivered when a socket is closed so is lost; what it has, is not.
        server.until_delivered().await;
        drop(server);
        let answer = collect(response.await.expect("answered"), 0).await.expect("whole");
        assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (240_000, Some("0")));
        let _ = sending.await.expect("it held");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_that_wait_for_a_slow_server_end_with_their_deadline_one_after_another() {
    let world = World::with(Setup {
        server_streams: Some(1),
        // One worker, whatever other worlds have: a server that is just being rid of a thousand streams may refuse the next
        // one twice.
        pair: false,
        ..Setup::default()
    })
    .await;
    let mut calls = Vec::new();
    for _ in 0..4 {
        let mut caller = world.caller().await;
        for _ in 0..900 {
            // None of the requests ends, so none is answered; most never find a stream.
            let fields = [("grpc-timeout", "3S"), ("x-receive", "0")];
            calls.push(
                caller
                    .begin(request("/a.B/C", &fields))
                    .await
                    .expect("the connection lives"),
            );
        }
    }
    for Begun { response, body, seed } in calls {
        let answer = collect(response.await.expect("a response"), seed)
            .await
            .expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("4"));
        drop(body);
    }
    let answer = world.caller().await.call("/a.B/C", 10, 10).await.expect("answered");
    is(&answer, "0", "");
}

#[tokio::test]

async fn what_an_application_says_in_the_proxys_name_is_not_passed_on_to_be_believed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        inbound: true,
        pair: false,
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let caller = world.caller().await;
    let waits = call(&caller, b"once".to_vec());
    let mut server = Raw::accept(&listener, &[]).await;
    let (stream, _) = whole_request(&mut server).await;
    // It passes on what it heard of a third party, and has processed this call.
    let fields = [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("portunus-error", "unreachable"),
    ];
    let head = raw::frame(
        HEADERS,
        raw::END_HEADERS | raw::END_STREAM,
        stream,
        &raw::block(&fields),
    );
    server.send(&head).await;
    let answer = waits.await.expect("it held").expect("answered");
    is(&answer, "14", "");
    assert!(!answer.head.contains_key("portunus-error"), "{answer:?}");
}

#[tokio::test]
async fn a_server_that_takes_connections_and_resets_them_at_once_is_not_dialled_again_and_again() {
    for inbound in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let setup = Setup {
            inbound,
            pair: false,
            ..Setup::default()
        };
        let world = World::before(addr, setup).await;
        let taken = Arc::new(AtomicUsize::new(0));
        let takes = taken.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                takes.fetch_add(1, Relaxed);
                socket.set_zero_linger().expect("a TCP socket");
            }
        });
        let mut caller = world.caller().await;
        for asked in 1..=30 {
            let answer = caller.ask(request("/a.B/C", &[("grpc-timeout", "5S")])).await;
            let answer = answer.expect("answered");
            assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{answer:?}");
            let taken = taken.load(Relaxed);
            assert!(
                taken <= asked,
                "{asked} calls made {taken} connections, inbound: {inbound}"
            );
        }
    }
}

/// One worker, in a mesh whose control says that these serve what it is asked for, in turns: how many calls each is
/// sent is then no matter of chance. None of them is checked.
async fn before_service(pki: &Pki, endpoints: Vec<Endpoint>) -> World {
    let meant = endpoints[0].addr;
    let known = Known::Service(Arc::new(View {
        name: "svc.shop:1".to_owned(),
        addresses: Vec::new(),
        endpoints,
        policy: Policy {
            algorithm: Some(Algorithm::RoundRobin),
            ..Policy::default()
        },
    }));
    let credential = pki.credential(&pki.id("caller"), Duration::from_secs(3_600));
    let near = Setup {
        pair: false,
        mesh: Some(pki::mesh_of(credential, Mode::Strict, move |_| known.clone())),
        health: health::Settings {
            mode: health::Mode::Off,
            ..Default::default()
        },
        ..Setup::default()
    };
    World::before(meant, near).await
}

#[tokio::test]
async fn an_application_that_is_gone_takes_no_share_of_the_calls_though_its_sidecar_lives() {
    const CALLS: u32 = 300;
    let pki = Pki::new("mesh.test");
    let id = pki.id("server");
    let far = || Setup {
        inbound: true,
        pair: false,
        mesh: Some(pki.mesh(&id, Mode::Strict, |_| None)),
        ..Setup::default()
    };
    let serves = World::with(far()).await;
    let is_gone = World::before(crate::world::free_port(), far()).await;
    let endpoint = |world: &World| pki::endpoint(world.proxy, id.clone());
    let world = before_service(&pki, vec![endpoint(&is_gone), endpoint(&serves)]).await;
    let mut caller = world.caller().await;
    for _ in 0..CALLS {
        let answer = caller.call("/a.B/C", 10, 10).await.expect("answered");
        is(&answer, "0", "");
    }
    // It is tried now and then, ever more seldom.
    let tried = world.metric("portunus_retries_total", &[]);
    assert!(
        (1.0..20.0).contains(&tried),
        "{tried} of {CALLS} calls went there first"
    );
}

/// A server that answers as a sidecar does whose memory budget is spent, as long as that is so; and how many requests and
/// connections it had.
struct Full {
    endpoint: Endpoint,
    is_full: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Full {
    async fn start(pki: &Pki) -> Full {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let full = Full {
            endpoint: Endpoint {
                identity: None,
                ..pki::endpoint(listener.local_addr().expect("an address"), pki.id("server"))
            },
            is_full: Arc::new(AtomicBool::new(true)),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let says = Failure::MemoryBudget { used: 12_345 }.answer();
        let refusal = raw::block(&[
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", says.code.as_str()),
            ("grpc-message", &says.sentence),
            ("portunus-error", says.reason),
        ]);
        let (is_full, requests, connections) = (full.is_full.clone(), full.requests.clone(), full.connections.clone());
        tokio::spawn(raw::serve(listener, move |_, stream| {
            requests.fetch_add(1, Relaxed);
            if stream == 1 {
                connections.fetch_add(1, Relaxed);
            }
            match is_full.load(Relaxed) {
                true => raw::frame(HEADERS, raw::END_HEADERS | raw::END_STREAM, stream, &refusal),
                false => [raw::response(stream), raw::trailers(stream)].concat(),
            }
        }));
        full
    }
}

#[tokio::test]
async fn a_server_whose_sidecar_has_no_memory_stays_in_use_and_callers_are_told_whose_budget_it_is() {
    const CALLS: usize = 20;
    let pki = Pki::new("mesh.test");
    let full = Full::start(&pki).await;
    let world = before_service(&pki, vec![full.endpoint.clone()]).await;
    let mut caller = world.caller().await;
    for asked in 1..=CALLS {
        let answer = caller.ask(request("/a.B/C", &[])).await.expect("answered");
        is(
            &answer,
            "8",
            &format!(
                "the sidecar of {} refused the call: the sidecar holds 12345 bytes",
                full.endpoint.addr
            ),
        );
        assert_eq!(answer.head["portunus-error"], "memory_budget_there");
        assert_eq!(full.requests.load(Relaxed), asked, "each is sent there, and once");
    }
    let told = world.metric("portunus_proxy_errors_total", &["\"memory_budget_there\""]);
    assert_eq!((told, world.metric("portunus_retries_total", &[])), (CALLS as f64, 0.0));
    // It waits for nothing to be called again: not for a back-off, and not for a connection.
    full.is_full.store(false, Relaxed);
    let answer = caller.ask(request("/a.B/C", &[])).await.expect("answered");
    is(&answer, "0", "");
    assert_eq!(full.connections.load(Relaxed), 1);
}

#[tokio::test]
async fn a_call_that_a_sidecar_has_no_memory_for_goes_to_another_endpoint_and_the_next_ones_try_both() {
    const CALLS: u64 = 100;
    let pki = Pki::new("mesh.test");
    let serves = World::with(Setup {
        pair: false,
        ..Setup::default()
    })
    .await;
    let full = Full::start(&pki).await;
    let other = Endpoint {
        addr: serves.meant,
        ..full.endpoint.clone()
    };
    let world = before_service(&pki, vec![full.endpoint.clone(), other]).await;
    let mut caller = world.caller().await;
    for _ in 0..CALLS {
        let answer = caller.call("/a.B/C", 10, 10).await.expect("answered");
        is(&answer, "0", "");
    }
    assert_eq!(serves.server.requests.load(Relaxed), CALLS, "each came once");
    let tried = full.requests.load(Relaxed);
    assert_eq!(tried, CALLS as usize / 2, "it keeps its turns");
    assert_eq!(world.metric("portunus_retries_total", &[]), tried as f64);
    assert_eq!(world.metric("portunus_proxy_errors_total", &[]), 0.0);
}

#[tokio::test]
async fn a_server_that_ends_connections_behind_its_settings_is_not_dialled_again_and_again() {
    ends_connections_with(raw::settings(&[])).await;
}

#[tokio::test]
async fn a_server_that_goes_away_behind_its_settings_is_not_dialled_again_and_again() {
    ends_connections_with([raw::settings(&[]), raw::goaway(0, 0)].concat()).await;
}

/// A server in mTLS ends each connection with these words, and a reset: its calls fail, each after two tries at most.
async fn ends_connections_with(words: Vec<u8>) {
    let pki = Pki::new("mesh.test");
    let id = pki.id("server");
    let (chain, key) = pki.certify(&id, Duration::from_secs(3_600));
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3 is among them")
        .with_no_client_auth()
        .with_single_cert(chain, key);
    let mut config = config.expect("a certificate");
    config.alpn_protocols = vec![b"portunus/h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let taken = Arc::new(AtomicUsize::new(0));
    let takes = taken.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            takes.fetch_add(1, Relaxed);
            let mut stream = acceptor.accept(socket).await.expect("a handshake");
            let mut preface = [0; raw::PREFACE.len()];
            stream.read_exact(&mut preface).await.expect("a preface");
            stream.write_all(&words).await.expect("it goes on");
            stream.flush().await.expect("it goes on");
            stream.get_ref().0.set_zero_linger().expect("a TCP socket");
        }
    });
    let setup = Setup {
        pair: false,
        mesh: Some(pki.mesh(&pki.id("caller"), Mode::Strict, move |_| Some(id.clone()))),
        ..Setup::default()
    };
    let world = World::before(addr, setup).await;
    let mut caller = world.caller().await;
    for asked in 1..=10 {
        let answer = caller.ask(request("/a.B/C", &[("grpc-timeout", "5S")])).await;
        let answer = answer.expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{answer:?}");
        let taken = taken.load(Relaxed);
        assert!(taken <= 2 * asked, "{asked} calls made {taken} connections");
    }
}
