//! Hostile clients: each is asked to go, then cut; who calls on another connection notices nothing, and memory is bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use portunus_sidecar::{detect, http2};
use tokio::net::TcpListener;
use tokio::sync::RwLock;

use crate::bytes::Bytes;
use crate::raw::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
    block, frame, literal, reset, response, settings, trailers, update,
};
use crate::world::{self, PATIENCE, Setup, World};

const ENHANCE_YOUR_CALM: u32 = 11;

/// Whoever measures the process's memory is alone.
pub(crate) static MEMORY: RwLock<()> = RwLock::const_new(());

pub(crate) fn inbound() -> Setup {
    Setup {
        inbound: true,
        declared: true,
        ..Setup::default()
    }
}

/// Floods a world with `burst`, again and again, until it is cut. Says how it was told to go.
async fn flood(what: &str, setup: Setup, first: &[u8], mut burst: impl FnMut(u32) -> Vec<u8>) -> Vec<u32> {
    let world = World::with(setup).await;
    // The innocent has a connection of its own, and goes on calling.
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 100).await.expect("answered");
    let mut attacker = Raw::client(world.proxy, &[]).await;
    attacker.send(first).await;
    let mut codes = Vec::new();
    let began = Instant::now();
    let mut n = 0;
    'flood: loop {
        assert!(began.elapsed() < PATIENCE, "{what} goes on");
        let open = attacker.send_within(&burst(n), Duration::from_millis(200)).await;
        n += 1;
        if n % 5 == 0 {
            let answer = innocent.call("/a.B/C", 1_000, 1_000).await.expect("answered");
            assert_eq!(
                (answer.bytes, answer.grpc_status.as_deref()),
                (1_000, Some("0")),
                "{what}"
            );
        }
        while let Ok(next) = tokio::time::timeout(Duration::from_millis(1), attacker.next()).await {
            match next {
                Some(frame) if frame.kind == GOAWAY => codes.push(frame.goaway_code()),
                Some(_) => {}
                None => break 'flood,
            }
        }
        let _ = open;
    }
    for _ in 0..20 {
        let answer = innocent.call("/a.B/C", 1_000, 1_000).await.expect("answered");
        assert_eq!(
            (answer.bytes, answer.grpc_status.as_deref()),
            (1_000, Some("0")),
            "{what}"
        );
    }
    assert!(!innocent.has_ended());
    codes
}

fn is_polite_first(what: &str, codes: &[u32]) {
    // The first GOAWAY is graceful. The last is not, unless the socket was closed before it could be read.
    assert_eq!(codes.first(), Some(&0), "{what}: {codes:?}");
    assert_eq!(codes.last(), Some(&ENHANCE_YOUR_CALM), "{what}: {codes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_carry_nothing_are_answered_with_a_polite_goaway_and_then_an_end() {
    let _with_others = MEMORY.read().await;
    let floods: [(&str, Vec<u8>, Vec<u8>); 7] = [
        ("PING", vec![], frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", vec![], settings(&[])),
        (
            "SETTINGS that move windows",
            vec![],
            [settings(&[(4, 1)]), settings(&[(4, 60_000)])].concat(),
        ),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 1, &[0, 0, 0, 9, 1])),
        (
            "WINDOW_UPDATE",
            raw::request(1, "/a.B/C", &[("x-act", "silent")], false),
            update(1, 1),
        ),
        (
            "empty DATA",
            raw::request(1, "/a.B/C", &[("x-act", "silent")], false),
            frame(DATA, 0, 1, &[]),
        ),
        ("unknown frames", vec![], frame(0xAA, 0, 0, b"?")),
    ];
    for (what, first, piece) in floods {
        let burst = piece.repeat(500);
        let codes = flood(what, inbound(), &first, |_| burst.clone()).await;
        is_polite_first(what, &codes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_resets_what_it_asks_for_is_cut_and_the_own_application_is_not() {
    let _with_others = MEMORY.read().await;
    let rapid = |n: u32| {
        let pair = |i: u32| {
            let stream = 2 * (n * 50 + i) + 1;
            [raw::request(stream, "/a.B/C", &[], false), reset(stream, 8)].concat()
        };
        (0..50).map(pair).collect::<Vec<_>>().concat()
    };
    let codes = flood("rapid reset", inbound(), &[], rapid).await;
    is_polite_first("rapid reset", &codes);
    // The pod's own application may cancel as it likes.
    let world = World::start().await;
    let mut own = Raw::client(world.proxy, &[]).await;
    for n in 0..100 {
        own.send(&rapid(n)).await;
        own.until_read().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_makes_us_reset_is_cut() {
    let _with_others = MEMORY.read().await;
    // CVE-2025-8671, "made you reset": each of these makes the server's end reset the stream.
    type Provocation = fn(u32) -> Vec<u8>;
    let provocations: [(&str, Provocation); 5] = [
        ("an update of nothing", |stream| update(stream, 0)),
        ("a window that overflows", |stream| update(stream, 0x7FFF_FFFF)),
        ("PRIORITY of four bytes", |stream| frame(PRIORITY, 0, stream, &[0; 4])),
        ("DATA behind the end", |stream| {
            [frame(DATA, END_STREAM, stream, b"x"), frame(DATA, 0, stream, b"x")].concat()
        }),
        ("trailers with a pseudo field", |stream| {
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[(":path", "/")]))
        }),
    ];
    for (what, provoke) in provocations {
        let codes = flood(what, inbound(), &[], |n| {
            let one = |i: u32| {
                let stream = 2 * (n * 50 + i) + 1;
                [
                    raw::request(stream, "/a.B/C", &[("x-act", "silent")], false),
                    provoke(stream),
                ]
                .concat()
            };
            (0..50).map(one).collect::<Vec<_>>().concat()
        })
        .await;
        is_polite_first(what, &codes);
    }
    let codes = flood("malformed requests", inbound(), &[], |n| {
        let one = |i: u32| raw::request(2 * (n * 50 + i) + 1, "/a.B/C", &[("connection", "x")], true);
        (0..50).map(one).collect::<Vec<_>>().concat()
    })
    .await;
    is_polite_first("malformed requests", &codes);
}

/// The server is the `h2` crate's, which ends the connection over each of these if it gets there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_a_stranger_ends_the_connection_that_others_share() {
    let _with_others = MEMORY.read().await;
    let world = World::with(inbound()).await;
    let mut innocent = world.caller().await;
    let request = world::request("/a.B/C", &[("x-receive", "1000")]);
    let begun = innocent.begin(request).await.expect("a connection");
    let response = begun.response.await.expect("it begins");
    let usual = [
        (":method", &b"POST"[..]),
        (":scheme", b"http"),
        (":path", b"/a.B/C"),
        (":authority", b"127.0.0.1:1"),
    ];
    let mut attacker = Raw::client(world.proxy, &[]).await;
    let bad = [
        (":method", &b"PO\xe6T"[..]),
        (":method", b"PO ST"),
        (":method", b"P\"T"),
        (":scheme", b"ht\xd5p"),
        (":path", b"/a.\x98/C"),
        (":path", b"/a\xff"),
        (":authority", b"\xa0"),
        ("x\"y", b"1"),
        ("x\u{7f}", b"1"),
        ("X-Upper", b"1"),
        ("x", b"\x01"),
        (":unknown", b"1"),
    ];
    for (stream, (name, value)) in (1u32..).step_by(2).zip(bad) {
        let mut list = Vec::new();
        for (known, text) in usual {
            literal(&mut list, 0, known.as_bytes(), if known == name { value } else { text });
        }
        if usual.iter().all(|(known, _)| *known != name) {
            literal(&mut list, 0, name.as_bytes(), value);
        }
        attacker
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &list))
            .await;
        let answer = attacker.event().await.expect("an answer");
        assert_eq!(
            (answer.kind, answer.stream),
            (RST_STREAM, stream),
            "{name}: {}",
            value.escape_ascii()
        );
    }
    let mut body = begun.body;
    world::send_bytes(&mut body, Bytes::new(begun.seed), 500, true)
        .await
        .expect("sent");
    let answer = world::collect(response, begun.seed).await.expect("it ends well");
    assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (1_000, Some("0")));
    assert_eq!(
        world.server.connections.load(Relaxed),
        1,
        "everything went by one connection"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused_and_a_flood_of_them_is_cut() {
    let _with_others = MEMORY.read().await;
    let codes = flood("too many streams", inbound(), &[], |n| {
        let one = |i: u32| raw::request(2 * (n * 500 + i) + 1, "/a.B/C", &[("x-act", "silent")], false);
        (0..500).map(one).collect::<Vec<_>>().concat()
    })
    .await;
    is_polite_first("too many streams", &codes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_header_blocks_are_cut() {
    let _with_others = MEMORY.read().await;
    let (name, empty) = ("many CONTINUATION", frame(CONTINUATION, 0, 1, &[]).repeat(10));
    let codes = flood(name, inbound(), &frame(HEADERS, 0, 1, &[0x82]), |_| empty.clone()).await;
    assert_eq!(codes, [ENHANCE_YOUR_CALM], "{name}");
    let (name, large) = ("large CONTINUATION", frame(CONTINUATION, 0, 1, &[0x82; 16_384]));
    let codes = flood(name, inbound(), &frame(HEADERS, 0, 1, &[0x82]), |_| large.clone()).await;
    assert_eq!(codes, [ENHANCE_YOUR_CALM], "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_of_references_costs_no_memory_and_ends_who_throws_it() {
    let _alone = MEMORY.write().await;
    let world = World::with(inbound()).await;
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 100).await.expect("answered");
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
    ]);
    // A field of 4,000 bytes in the table, and many references to it.
    let mut plant = head.clone();
    literal(&mut plant, 0x40, b"x-bomb", "b".repeat(4_000).as_bytes());
    let bomb = |references: usize| [&head[..], &vec![0x80 | 62; references]].concat();
    let before = resident();
    for _ in 0..50 {
        let mut attacker = Raw::client(world.proxy, &[]).await;
        attacker
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &plant))
            .await;
        // A few make a list over the limit: that call fails.
        attacker
            .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &bomb(20)))
            .await;
        let refused = attacker.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
        let fields = attacker.fields(&refused).await;
        assert_eq!(raw::text(&fields, "grpc-status"), Some("8"));
        // 15,000 are 60 MB if anybody spells them out.
        for stream in [5, 7, 9] {
            attacker
                .send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb(15_000)))
                .await;
        }
        let last = attacker.until_closed().await.expect("it is told why");
        assert_eq!(last.goaway_code(), ENHANCE_YOUR_CALM);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes for 150 bombs");
    assert_eq!(innocent.call("/a.B/C", 100, 100).await.expect("answered").bytes, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_grant_nothing_cost_what_the_budget_allows_and_no_neighbour_anything() {
    let _alone = MEMORY.write().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        budget: 16 << 20,
        ..inbound()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    // A server that answers each request at once, with as much as it may, and more whenever it may.
    let server = tokio::spawn(raw::serve(listener, |path, stream| match path {
        "/a.B/Stalled" => [response(stream), frame(DATA, 0, stream, &[1; 16_000]).repeat(4)].concat(),
        _ => [
            response(stream),
            raw::message(stream, &[2; 1_000], false),
            trailers(stream),
        ]
        .concat(),
    }));
    let before = resident();
    // 4 connections with 900 streams each: 240 MB if every answer were kept.
    let mut attackers = Vec::new();
    for _ in 0..4 {
        let mut attacker = Raw::client(world.proxy, &[(4, 0)]).await;
        let all: Vec<_> = (0..900u32)
            .flat_map(|i| raw::request(2 * i + 1, "/a.B/Stalled", &[], true))
            .collect();
        attacker.send(&all).await;
        attackers.push(attacker);
    }
    let began = Instant::now();
    let mut most = 0;
    let mut answered = 0;
    while began.elapsed() < Duration::from_secs(4) || (answered == 0 && began.elapsed() < PATIENCE) {
        let mut innocent = world.caller().await;
        let answer = tokio::time::timeout(PATIENCE, innocent.call("/a.B/C", 100, 0))
            .await
            .expect("in time");
        // A spent budget lets nobody in; what it lets in goes on.
        let answer = answer.expect("answered");
        answered += (answer.grpc_status.as_deref() == Some("0")) as u32;
        most = most.max(resident().saturating_sub(before));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held = world.metric("portunus_memory_held_bytes", &[]);
    assert!(held <= f64::from(20 << 20), "{held} bytes are held of 16 MiB");
    assert!(most < 64 << 20, "the process grew by {most} bytes");
    assert!(answered > 0, "the budget comes back");
    server.abort();
}

#[tokio::test]
async fn who_is_slow_with_its_first_words_is_closed() {
    let _with_others = MEMORY.read().await;
    let setup = || Setup {
        http2: http2::Settings {
            preface_timeout: Duration::from_millis(500),
            headers_timeout: Duration::from_millis(500),
            ..http2::Settings::default()
        },
        detect: detect::Settings {
            dribble: Duration::from_millis(500),
            ..detect::Settings::default()
        },
        ..inbound()
    };
    let limit = Duration::from_secs(10);
    let world = World::with(setup()).await;
    // Declared HTTP/2, and silent.
    assert!(Raw::silent(world.proxy).await.closes_within(limit).await, "silence");
    // Half a preface.
    let mut half = Raw::silent(world.proxy).await;
    half.send(b"PRI * HTTP/2.0\r\n").await;
    assert!(half.closes_within(limit).await, "half a preface");
    // A preface without SETTINGS.
    let mut bare = Raw::silent(world.proxy).await;
    bare.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert!(bare.closes_within(limit).await, "no SETTINGS");
    // SETTINGS that are never acknowledged.
    let mut deaf = Raw::client(world.proxy, &[]).await;
    assert!(deaf.closes_within(limit).await, "no acknowledgement");
    // A header block that trickles.
    let world = World::with(Setup {
        http2: http2::Settings {
            headers_timeout: Duration::from_millis(500),
            ..http2::Settings::default()
        },
        ..inbound()
    })
    .await;
    let mut slow = Raw::client(world.proxy, &[]).await;
    slow.until_settled().await;
    slow.send(&frame(HEADERS, 0, 1, &[0x82])).await;
    let began = Instant::now();
    let mut closed = false;
    while !closed && began.elapsed() < limit {
        slow.send(&frame(CONTINUATION, 0, 1, &[0x87])).await;
        closed = slow.closes_within(Duration::from_millis(100)).await;
    }
    assert!(closed, "a block that trickles");
    // Undeclared: half a preface is nothing yet.
    let world = World::with(Setup {
        declared: false,
        ..setup()
    })
    .await;
    let mut half = Raw::silent(world.proxy).await;
    half.send(b"PRI * HT").await;
    assert!(half.closes_within(limit).await, "half a preface, undeclared");
    // Whoever is in time stays, however idle. On a busy machine it may take more than one to be in time.
    let mut stays = false;
    for _ in 0..10 {
        let mut idle = Raw::client(world.proxy, &[]).await;
        let began = Instant::now();
        idle.until_settled().await;
        let in_time = began.elapsed() < Duration::from_millis(300);
        stays = !idle.closes_within(Duration::from_millis(2_500)).await;
        if stays || in_time {
            break;
        }
    }
    assert!(stays);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_calls_is_told_to_go_and_closed_however_alive_it_shows_itself_and_no_other_is() {
    let _with_others = MEMORY.read().await;
    const IDLE: Duration = Duration::from_secs(3);
    let setup = Setup {
        http2: http2::Settings {
            idle_timeout: IDLE,
            ..http2::Settings::default()
        },
        ..inbound()
    };
    let world = World::with(setup).await;
    let mut waits = world.caller().await;
    let call = waits.begin(world::request("/a.B/C", &[("x-act", "silent")]));
    let _call = call.await.expect("it begins");
    let mut uses = world.caller().await;
    let began = Instant::now();
    let mut silent = Raw::client(world.proxy, &[]).await;
    let mut lively = Raw::client(world.proxy, &[]).await;
    silent.until_settled().await;
    lively.until_settled().await;
    let mut told = Vec::new();
    let mut ended = Vec::new();
    while ended.len() < 2 || began.elapsed() < 2 * IDLE {
        assert!(began.elapsed() < PATIENCE, "told {told:?}, ended {ended:?}");
        for (who, raw) in [("silent", &mut silent), ("lively", &mut lively)] {
            if ended.contains(&who) {
                continue;
            }
            if who == "lively" {
                raw.send(&frame(PING, 0, 0, b"I live!!")).await;
            }
            while let Ok(next) = tokio::time::timeout(Duration::from_millis(20), raw.next()).await {
                match next {
                    Some(next) if next.kind == GOAWAY && !told.contains(&who) => {
                        assert_eq!((next.number(), next.goaway_code()), ((1 << 31) - 1, 0), "{who}");
                        told.push(who);
                    }
                    // Whoever is told to go says that it has heard.
                    Some(next) if next.kind == PING && !next.has(raw::ACK) => {
                        raw.send(&frame(PING, raw::ACK, 0, &next.payload)).await;
                    }
                    Some(_) => {}
                    None => {
                        assert!(began.elapsed() >= IDLE, "{who} was closed early");
                        ended.push(who);
                        break;
                    }
                }
            }
        }
        // Each of these is over before anybody looks.
        let answer = uses.call("/a.B/C", 10, 10).await.expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"));
    }
    assert!(told.contains(&"silent") && told.contains(&"lively"), "{told:?}");
    assert!(
        !waits.has_ended() && !uses.has_ended(),
        "who calls, or waits for an answer, stays"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_silent_connections_cost_little_and_hold_up_nobody() {
    let _alone = MEMORY.write().await;
    let world = World::with(inbound()).await;
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 100).await.expect("answered");
    let before = resident();
    let mut silent = Vec::new();
    for _ in 0..2_000 {
        silent.push(tokio::net::TcpStream::connect(world.proxy).await.expect("it listens"));
    }
    world
        .until("portunus_connections", &["inbound", "downstream"], |open| {
            open >= 2_001.0
        })
        .await;
    for _ in 0..20 {
        let answer = innocent.call("/a.B/C", 100, 100).await.expect("answered");
        assert_eq!(answer.bytes, 100);
    }
    let grown = resident().saturating_sub(before);
    // Both ends of each connection are in this process.
    assert!(grown < 24 << 20, "{grown} bytes for 2,000 connections");
}

#[tokio::test]
async fn first_words_that_are_wrong_end_the_connection() {
    let _with_others = MEMORY.read().await;
    let world = World::with(inbound()).await;
    for (what, code, says) in [
        ("HTTP/1", 1, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        (
            "PING before SETTINGS",
            1,
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "an acknowledgement first",
            1,
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 1, 0, &[])].concat(),
        ),
        (
            "SETTINGS too large",
            6,
            [
                &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
                &frame(SETTINGS, 0, 0, &[0; 16_386])[..60],
            ]
            .concat(),
        ),
    ] {
        let mut raw = Raw::silent(world.proxy).await;
        raw.send(&says).await;
        let last = raw.until_closed().await.expect(what);
        assert_eq!(last.goaway_code(), code, "{what}");
    }
}

/// Bytes of memory that the process has.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux says it");
    let pages: usize = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * 4_096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_large_heads_before_a_slow_application_costs_no_call_of_another_on_the_shared_connection() {
    let _with_others = MEMORY.read().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), inbound()).await;
    let server = tokio::spawn(raw::serve(listener, |_, stream| {
        // It reads some 10 MB of heads in a second.
        std::thread::sleep(Duration::from_millis(1));
        [
            response(stream),
            raw::message(stream, &[2; 100], false),
            trailers(stream),
        ]
        .concat()
    }));
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 0).await.expect("answered");
    let (proxy, calls) = (world.proxy, Arc::new(AtomicU32::new(0)));
    let goes_on = calls.clone();
    let attacker = tokio::spawn(async move {
        // Valid requests, within every limit: 900 of 14 KB.
        let large = "h".repeat(3_500);
        let fields = ["x-0", "x-1", "x-2", "x-3"].map(|name| (name, &*large));
        let mut attacker = Raw::client(proxy, &[]).await;
        for from in (0..10).map(|n| 900 * n) {
            let calls = from..from + 900;
            let burst: Vec<_> = calls
                .flat_map(|n| raw::request(2 * n + 1, "/a.B/C", &fields, true))
                .collect();
            attacker.send(&[update(0, 1 << 20), burst].concat()).await;
            let mut answered = 0;
            while answered < 900 {
                let event = attacker.event().await.expect("it breaks no rule");
                if event.kind == HEADERS {
                    attacker.fields(&event).await;
                }
                answered += u32::from(event.kind == HEADERS && event.has(END_STREAM));
            }
            if goes_on.load(Relaxed) > 3 {
                break;
            }
        }
    });
    while !attacker.is_finished() {
        let answer = tokio::time::timeout(PATIENCE, innocent.call("/a.B/C", 100, 0)).await;
        let answer = answer.expect("in time").expect("answered");
        assert_eq!((answer.grpc_status.as_deref(), answer.bytes), (Some("0"), 105));
        calls.fetch_add(1, Relaxed);
    }
    attacker.await.expect("each of its calls is answered as well");
    assert!(calls.load(Relaxed) > 3, "{calls:?} calls of the innocent");
    assert_eq!(world.metric("portunus_proxy_errors_total", &[]), 0.0);
    server.abort();
}
