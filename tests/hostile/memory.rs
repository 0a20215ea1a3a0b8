//! What strangers make a proxy keep that is no payload: it is counted in the budget, and whoever keeps most of it goes first.

use std::time::{Duration, Instant};

use support::relay::world::Caller;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::clients::{MEMORY, inbound, resident};
use crate::raw::{
    self, CONTINUATION, END_HEADERS, END_STREAM, HEADERS, Raw, block, frame, literal, message, response, trailers,
};
use crate::world::{PATIENCE, Setup, World};

/// What the worker may hold, and what the process may grow by: both ends of every connection are in it.
const BUDGET: u64 = 4 << 20;
const MOST: usize = 24 << 20;

/// A worker with a small budget, before a server that answers `/a.B/C`, answers `/a.B/Large` by a head of 15,000 bytes, and
/// nothing else.
async fn world() -> (World, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        budget: BUDGET,
        ..inbound()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let server = tokio::spawn(raw::serve(listener, |path, stream| match path {
        "/a.B/C" => [response(stream), message(stream, &[2; 1_000], false), trailers(stream)].concat(),
        "/a.B/Large" => {
            let mut list = block(&[(":status", "200"), ("content-type", "application/grpc")]);
            literal(&mut list, 0, b"x-large", &[b'l'; 15_000]);
            frame(HEADERS, END_HEADERS | END_STREAM, stream, &list)
        }
        _ => Vec::new(),
    }));
    (world, server)
}

/// How many of an innocent's calls are answered well in a time, and by how much the process grows meanwhile. A budget that
/// is spent lets nobody in; what it lets in goes on.
async fn meanwhile(world: &World, innocent: &mut Caller, time: Duration) -> (u32, usize) {
    let before = resident();
    let (began, mut most, mut answered, mut asked) = (Instant::now(), 0, 0, 0);
    while began.elapsed() < time {
        let answer = tokio::time::timeout(PATIENCE, innocent.call("/a.B/C", 100, 0)).await;
        let answer = answer.expect("in time").expect("answered");
        asked += 1;
        answered += u32::from(answer.grpc_status.as_deref() == Some("0"));
        most = most.max(resident().saturating_sub(before));
        let held = world.metric("portunus_memory_held_bytes", &[]);
        assert!(held <= BUDGET as f64 * 1.5, "{held} bytes are held of {BUDGET}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        answered * 10 >= asked * 9,
        "{answered} of {asked} calls of the innocent"
    );
    (answered, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_lists_of_calls_that_nobody_answers_cost_what_the_budget_allows() {
    let _alone = MEMORY.write().await;
    let (world, server) = world().await;
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 0).await.expect("answered");
    // 3 connections, 400 calls on each, 55,000 bytes of header list a call: 66 MB if all of them were kept.
    let attackers: Vec<_> = (0..3)
        .map(|_| {
            let proxy = world.proxy;
            tokio::spawn(async move {
                let mut attacker = Raw::client(proxy, &[]).await;
                let mut list = block(&[
                    (":method", "POST"),
                    (":scheme", "http"),
                    (":path", "/a.B/Nothing"),
                    (":authority", "x"),
                    ("content-type", "application/grpc"),
                ]);
                for n in 0..15 {
                    literal(&mut list, 0, format!("x-{n}").as_bytes(), &[b'h'; 3_600]);
                }
                let pieces: Vec<_> = list.chunks(16_000).collect();
                for n in 0..400u32 {
                    let stream = 2 * n + 1;
                    let mut frames = frame(HEADERS, END_STREAM, stream, pieces[0]);
                    for (i, piece) in pieces.iter().enumerate().skip(1) {
                        let last = if i + 1 == pieces.len() { END_HEADERS } else { 0 };
                        frames.extend(frame(CONTINUATION, last, stream, piece));
                    }
                    if !attacker.send_within(&frames, PATIENCE).await {
                        break;
                    }
                }
                attacker
            })
        })
        .collect();
    let (answered, most) = meanwhile(&world, &mut innocent, Duration::from_secs(4)).await;
    assert!(most < MOST, "the process grew by {most} bytes");
    assert!(answered > 0, "the budget comes back");
    for attacker in attackers {
        drop(attacker.await.expect("it has said all"));
    }
    world
        .until("portunus_memory_held_bytes", &[], |held| held < BUDGET as f64 / 2.0)
        .await;
    let answer = innocent.call("/a.B/C", 100, 0).await.expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("0"));
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_that_do_not_end_cost_what_the_budget_allows() {
    let _alone = MEMORY.write().await;
    let (world, server) = world().await;
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 0).await.expect("answered");
    // 200 connections, 240,000 bytes of a block on each: 48 MB. None of them is over a limit of its own.
    let mut attackers = Vec::new();
    let mut start = frame(HEADERS, END_STREAM, 1, &[0x82]);
    for _ in 0..15 {
        start.extend(frame(CONTINUATION, 0, 1, &[0x82; 16_000]));
    }
    for _ in 0..200 {
        let mut attacker = Raw::client(world.proxy, &[]).await;
        attacker.send_within(&start, PATIENCE).await;
        attackers.push(attacker);
    }
    let (answered, most) = meanwhile(&world, &mut innocent, Duration::from_secs(3)).await;
    assert!(most < MOST, "the process grew by {most} bytes");
    assert!(answered > 0, "the budget comes back");
    assert!(!innocent.has_ended(), "only who keeps much is told to go");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_cost_what_the_budget_allows() {
    let _alone = MEMORY.write().await;
    let (world, server) = world().await;
    let mut innocent = world.caller().await;
    innocent.call("/a.B/C", 100, 0).await.expect("answered");
    // Heads are not under flow control: 16 connections, 250 answers of 15,000 bytes on each, which makes 60 MB.
    let mut attackers = Vec::new();
    let all: Vec<_> = (0..250u32)
        .flat_map(|n| raw::request(2 * n + 1, "/a.B/Large", &[], true))
        .collect();
    for _ in 0..16 {
        let mut attacker = Raw::client(world.proxy, &[]).await;
        attacker.send(&all).await;
        attackers.push(attacker);
    }
    let (answered, most) = meanwhile(&world, &mut innocent, Duration::from_secs(4)).await;
    assert!(most < MOST, "the process grew by {most} bytes");
    assert!(answered > 0, "the budget comes back");
    assert!(!innocent.has_ended(), "only who keeps much is told to go");
    server.abort();
}

/// Answers every request of HTTP/1, and keeps nothing of it.
async fn answers_http_1(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        tokio::spawn(async move {
            let (mut piece, mut end) = ([0; 4 << 10], 0);
            while let Ok(n @ 1..) = socket.read(&mut piece).await {
                for byte in &piece[..n] {
                    end = match (end, byte) {
                        (0 | 2, b'\r') => end + 1,
                        (1 | 3, b'\n') => end + 1,
                        _ => 0,
                    };
                    if end == 4 {
                        end = 0;
                        if socket.write_all(ANSWER).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
}

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Asks once, by a head of this size, and says what came.
async fn asks_by_http_1(socket: &mut TcpStream, size: usize) -> String {
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "l".repeat(size));
    socket.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let read = tokio::time::timeout(PATIENCE, socket.read_buf(&mut answer)).await;
        if read.expect("in time").expect("readable") == 0 {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn assert_is_served(answer: &str) {
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_http_1_cost_what_is_allowed() {
    let _alone = MEMORY.write().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let setup = Setup {
        budget: BUDGET,
        declared: false,
        ..inbound()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let server = tokio::spawn(answers_http_1(listener));
    let mut innocent = TcpStream::connect(world.proxy).await.expect("connected");
    assert_is_served(&asks_by_http_1(&mut innocent, 10).await);

    let before = resident();
    let mut attackers = Vec::new();
    for _ in 0..500 {
        let mut attacker = TcpStream::connect(world.proxy).await.expect("connected");
        assert_is_served(&asks_by_http_1(&mut attacker, 59_000).await);
        attackers.push(attacker);
        // Who asks now and then is not the one who has been at rest for longest.
        assert_is_served(&asks_by_http_1(&mut innocent, 10).await);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < MOST, "the process grew by {grown} bytes");
    let crowded = [r#"direction="inbound""#, r#"reason="crowded""#];
    // Of each, once it has had its second to read what was said last.
    world
        .until("portunus_proxy_errors_total", &crowded, |ended| ended > 450.0)
        .await;
    let held = world.metric("portunus_http1_memory_held_bytes", &crowded[..1]);
    assert!((1.0..=BUDGET as f64).contains(&held), "{held} bytes are held");
    drop((attackers, innocent));
    world
        .until("portunus_http1_memory_held_bytes", &crowded[..1], |held| held == 0.0)
        .await;
    server.abort();
}
