//! Neighbours: what one stream or one connection does to the others, and what it costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes as Buf;
use parking_lot::Mutex;
use portunus_sidecar::http2;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::bytes::Bytes;
use crate::raw::{self, DATA, END_STREAM, GOAWAY, HEADERS, Raw, frame};
use crate::world::{Begun, PATIENCE, Setup, World, collect, request, send_bytes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_asleep_before_ten_thousand_small_frames_costs_no_sibling_anything() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        // Without credit reserved for connections, what is held can be told by the metric.
        http2: http2::Settings {
            connection_window: 65_535,
            connection_window_ceiling: 65_535,
            ..http2::Settings::default()
        },
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let streams = 1..=51u32;
    for i in streams.clone() {
        // The last one is the sleeper: what it is sent stays in the proxy until it grants more than its first window.
        caller.send(&raw::request(2 * i - 1, "/a.B/C", &[], true)).await;
    }
    let mut server = Raw::accept(&listener, &[]).await;
    for i in streams.clone() {
        server
            .until(|frame| frame.kind == HEADERS && frame.stream == 2 * i - 1)
            .await;
    }
    let sleeper = 101;
    for i in streams.clone() {
        server.send(&raw::response(2 * i - 1)).await;
    }
    for i in streams.clone() {
        // Until then the request's list is kept, and counted.
        caller
            .until(|frame| frame.kind == HEADERS && frame.stream == 2 * i - 1)
            .await;
    }
    // A window of nothing for all, then 1,000 for everybody who is awake.
    caller.send(&raw::settings(&[(4, 0)])).await;
    caller.until_read().await;
    let before = world.metric("portunus_memory_held_bytes", &[]);
    let small = frame(DATA, 0, sleeper, &[7; 10]);
    // As much as the stream's window takes is sent at once, in frames of ten bytes; that is 6,553 frames.
    server.send(&small.repeat(6_553)).await;
    server.until_read().await;
    world
        .until("portunus_memory_held_bytes", &[], |held| held >= before + 65_530.0)
        .await;
    let held = world.metric("portunus_memory_held_bytes", &[]) - before;
    assert!(held < 200_000.0, "{held} bytes for 65,530");
    let asleep = Instant::now();
    let mut round = 0u32;
    while asleep.elapsed() < Duration::from_secs(5) {
        round += 1;
        caller.send(&raw::update(0, 750)).await;
        for i in 1..=50u32 {
            caller.send(&raw::update(2 * i - 1, 15)).await;
            server.send(&raw::message(2 * i - 1, &[round as u8; 10], false)).await;
        }
        for _ in 1..=50 {
            let event = caller.until(|frame| frame.kind == DATA || frame.kind == GOAWAY).await;
            assert!(event.kind == DATA && event.stream != sleeper && event.payload[5..] == [round as u8; 10]);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(round > 1);
    // It wakes: all is there, and the rest of ten thousand frames comes, too.
    let mut got = 0;
    caller
        .send(&[raw::update(sleeper, 200_000), raw::update(0, 200_000)].concat())
        .await;
    while got < 65_530 {
        got += caller
            .until(|frame| frame.kind == DATA && frame.stream == sleeper)
            .await
            .payload
            .len();
    }
    server.send(&small.repeat(10_000 - 6_553)).await;
    while got < 100_000 {
        got += caller
            .until(|frame| frame.kind == DATA && frame.stream == sleeper)
            .await
            .payload
            .len();
    }
    server.send(&raw::trailers(sleeper)).await;
    caller
        .until(|frame| frame.stream == sleeper && frame.has(END_STREAM))
        .await;
}

#[tokio::test]
async fn empty_data_on_five_hundred_requests_is_harmless() {
    let world = World::start().await;
    let caller = world.caller().await;
    let mut calls = JoinSet::new();
    for i in 0..500u64 {
        let mut caller = caller.clone();
        calls.spawn(async move {
            let begun = caller.begin(request("/a.B/C", &[("x-receive", &*i.to_string())])).await;
            let Begun {
                response,
                mut body,
                seed,
            } = begun.expect("begun");
            body.send_data(Buf::new(), false).expect("sent");
            send_bytes(&mut body, Bytes::new(seed), i, true).await.expect("sent");
            let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
            assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (i, Some("0")));
        });
    }
    while let Some(done) = calls.join_next().await {
        done.expect("it held");
    }
    assert_eq!(world.metric("portunus_connections_opened_total", &["downstream"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_call_does_not_wait_for_a_bulk_streams_backlog() {
    let world = World::with(Setup {
        server_windows: (4 << 20, 16 << 20),
        ..Setup::default()
    })
    .await;
    let mut caller = world.caller_with((4 << 20, 16 << 20)).await;
    // Four bulk streams each way, on one connection.
    const EACH: u64 = 24 << 20;
    let mut bulk = JoinSet::new();
    for _ in 0..4 {
        let mut caller = caller.clone();
        bulk.spawn(async move { caller.call("/a.B/Bulk", EACH, EACH).await.expect("answered") });
    }
    let bulk_began = Instant::now();
    let mut took = Vec::new();
    while bulk.try_join_next().is_none() {
        let began = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, caller.call("/a.B/Small", 100, 100)).await;
        assert_eq!(answer.expect("in time").expect("answered").bytes, 100);
        took.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let all_took = bulk_began.elapsed();
    took.sort();
    // Told in bytes that went past meanwhile, at most, so that it does not matter how busy the machine is: both ends check
    // every byte. A backlog would be the streams' windows, 16 MiB each way.
    let median = took[took.len() / 2];
    let overtaken_by = median.as_secs_f64() / all_took.as_secs_f64() * (2 * 4 * EACH) as f64;
    assert!(
        took.len() > 5 && overtaken_by < (8 << 20) as f64,
        "{median:?} of {}, {overtaken_by} bytes of bulk",
        took.len()
    );
    while let Some(done) = bulk.join_next().await {
        done.expect("it held");
    }
}

#[tokio::test]
async fn connections_that_were_busy_once_do_not_use_the_budget_up() {
    let world = World::with(Setup {
        budget: 2 << 20,
        server_windows: (1 << 20, 4 << 20),
        ..Setup::default()
    })
    .await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        let mut caller = world.caller().await;
        let answer = caller.call("/a.B/C", 1 << 20, 0).await.expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"));
        idle.push(caller);
    }
    let held = world.metric("portunus_memory_held_bytes", &[]);
    assert!(held <= f64::from(1 << 20), "credit alone takes {held} bytes of 2 MiB");
    let mut caller = world.caller().await;
    for _ in 0..10 {
        let answer = caller.call("/a.B/C", 300_000, 300_000).await.expect("answered");
        assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (300_000, Some("0")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_budget_costs_the_streams_that_stall_and_those_that_come_and_no_others() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        budget: 2 << 20,
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let mut innocent = Raw::client(world.proxy, &[]).await;
    innocent.send(&raw::request(1, "/a.B/Innocent", &[], false)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    server.send(&raw::response(1)).await;
    // Readers that read nothing, each before an answer that fills its window.
    let mut stalled = Raw::client(world.proxy, &[(4, 0)]).await;
    let mut stream = 1;
    let mut refused = false;
    for i in 0..200u32 {
        stalled.send(&raw::request(2 * i + 1, "/a.B/Stalled", &[], true)).await;
        // Either it reaches the server, or it is refused here.
        let arrives = async {
            loop {
                let head = server.until(|frame| frame.kind == HEADERS);
                if let Ok(head) = tokio::time::timeout(Duration::from_millis(50), head).await {
                    return Some(head);
                }
                if world.metric("portunus_proxy_errors_total", &["memory_budget"]) >= 1.0 {
                    return None;
                }
            }
        };
        let reached = tokio::time::timeout(PATIENCE, arrives).await;
        let Some(head) = reached.expect("one or the other") else {
            refused = true;
            break;
        };
        stream = head.stream;
        server.fields(&head).await;
        server.send(&raw::response(stream)).await;
        for _ in 0..4 {
            server.send(&frame(DATA, 0, stream, &[1; 16_000])).await;
        }
        server.until_read().await;
    }
    assert!(refused, "{stream} streams were let in");
    let held = world.metric("portunus_memory_held_bytes", &[]);
    assert!(held < 3.0 * f64::from(1 << 20), "{held}");
    // The innocent goes on, in both directions, on the connection that the others stall.
    for round in 0..50u8 {
        innocent.send(&raw::message(1, &[round; 2_000], false)).await;
        server.until(|frame| frame.kind == DATA && frame.stream == 1).await;
        server.send(&raw::message(1, &[round; 2_000], false)).await;
        let data = innocent.until(|frame| frame.kind == DATA).await;
        assert_eq!(data.payload[5], round);
        innocent
            .send(&[raw::update(0, 2_005), raw::update(1, 2_005)].concat())
            .await;
        server
            .send(&[raw::update(0, 2_005), raw::update(1, 2_005)].concat())
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_merely_slow_outlives_those_that_do_not_read_at_all() {
    const BUDGET: u32 = 4 << 20;
    const ALL: usize = 4 << 20;
    let world = World::with(Setup {
        budget: BUDGET.into(),
        ..Setup::default()
    })
    .await;
    let asks = |bytes: usize| {
        let fields = [("x-receive", &*bytes.to_string()), ("x-seed", "1")];
        [raw::update(0, 8 << 20), raw::request(1, "/a.B/C", &fields, true)].concat()
    };
    let mut slow = Raw::narrow(world.proxy, &[(4, 8 << 20)]).await;
    slow.send(&asks(ALL)).await;
    let (mut asleep, mut got, mut most) = (Vec::new(), 0, 0.0_f64);
    loop {
        let frame = slow.next().await;
        let frame = frame.unwrap_or_else(|| panic!("the slow reader was cut after {got} bytes"));
        assert!(
            frame.kind != raw::RST_STREAM,
            "the slow reader was cut after {got} bytes"
        );
        got += if frame.kind == DATA { frame.payload.len() } else { 0 };
        if frame.kind == HEADERS && frame.has(END_STREAM) {
            break;
        }
        most = most.max(world.metric("portunus_memory_held_bytes", &[]));
        tokio::time::sleep(Duration::from_millis(10)).await;
        // One comes after the other, to be refused once the budget is spent.
        if asleep.len() * 2 * 16_384 < got {
            // What they do not take stands in the output, or with the stream.
            let window = if asleep.len() % 4 == 0 { 8 << 20 } else { 0 };
            let mut sleeper = Raw::narrow(world.proxy, &[(4, window)]).await;
            sleeper.send(&asks(ALL)).await;
            asleep.push(sleeper);
        }
    }
    assert!(got > ALL - 20_000, "{got} bytes");
    assert!(
        most > f64::from(BUDGET) * 0.8,
        "{most} bytes were held: that is no want"
    );
    assert!(most < f64::from(BUDGET) * 1.5, "{most} bytes were held");
    drop(asleep);
    world
        .until("portunus_memory_held_bytes", &[], |held| held < f64::from(BUDGET) / 8.0)
        .await;
}

#[tokio::test]
async fn a_call_that_is_cut_because_it_stalled_is_logged_with_its_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let log = Arc::new(Mutex::new(String::new()));
    let setup = Setup {
        budget: 1 << 20,
        access_log: Some(log.clone()),
        pair: false,
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let mut stalled = Raw::client(world.proxy, &[(4, 0)]).await;
    tokio::spawn(async move {
        let mut server = Raw::accept(&listener, &[]).await;
        loop {
            let head = server.until(|frame| frame.kind == HEADERS).await;
            server.fields(&head).await;
            server.send(&raw::response(head.stream)).await;
            for _ in 0..4 {
                server.send(&frame(DATA, 0, head.stream, &[1; 16_000])).await;
            }
        }
    });
    for i in 0..50 {
        stalled.send(&raw::request(2 * i + 1, "/a.B/Stalled", &[], true)).await;
    }
    world
        .until("portunus_proxy_errors_total", &["\"stalled\""], |cut| cut >= 1.0)
        .await;
    // The line comes later in the same turn.
    let began = Instant::now();
    while !log.lock().contains("\"error\":\"stalled\"") {
        assert!(began.elapsed() < PATIENCE, "{}", log.lock());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
