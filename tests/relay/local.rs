//! Calls that the process makes itself, in the worker's thread: through the same pools, balancer and records as any.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::{HeaderMap, Request};
use nix::time::{ClockId, clock_gettime};
use portunus_sidecar::connect::local::{Call, Caller, Error, Heard};
use portunus_sidecar::http2::Reason;
use portunus_sidecar::worker::Command;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::{JoinSet, spawn_local};

use crate::bytes::Bytes;
use crate::raw::{self, DATA, HEADERS, RST_STREAM, Raw};
use crate::world::{PATIENCE, Setup, World, free_port, request};

/// What "at once" may be on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(2);

/// What was heard of an answer.
#[derive(Debug, Default)]
struct Answer {
    head: HeaderMap,
    bytes: u64,
    trailers: HeaderMap,
}

impl Answer {
    /// Of the headers or the trailers.
    fn text(&self, name: &str) -> Option<&str> {
        let value = self.trailers.get(name).or(self.head.get(name))?;
        value.to_str().ok()
    }
}

/// Listens to the end of the answer, and checks each of its bytes.
async fn hear(call: &Call, seed: u64) -> Result<Answer, Error> {
    let mut expected = Bytes::new(!seed);
    let mut answer = Answer::default();
    while let Some(heard) = call.next().await? {
        match heard {
            Heard::Head(head) => answer.head = head.into_parts().0.headers,
            Heard::Data(bytes) => {
                expected.check(&bytes);
                answer.bytes += bytes.len() as u64;
            }
            Heard::Trailers(trailers) => answer.trailers = trailers,
        }
    }
    Ok(answer)
}

fn seeded(seed: u64, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = request("/a.B/Local", fields);
    request.headers_mut().insert("x-seed", seed.into());
    request
}

/// A call that sends so many bytes in messages of some size, and asks for so many.
async fn exchange(caller: &Caller, seed: u64, send: u64, receive: u64) -> Result<Answer, Error> {
    let request = seeded(seed, &[("x-receive", &receive.to_string())]);
    let call = caller.call(request, false).await?;
    let sending = async {
        let mut bytes = Bytes::new(seed);
        while bytes.count() < send {
            let n = (send - bytes.count()).min(1 + seed % 40_000);
            call.send(&bytes.take(n as usize), false).await?;
        }
        call.send(&[], true).await
    };
    let (sent, answer) = tokio::join!(sending, hear(&call, seed));
    sent?;
    answer
}

/// A call without a body, answered.
async fn ask(caller: &Caller, fields: &[(&str, &str)]) -> Result<Answer, Error> {
    let call = caller.call(seeded(0, fields), true).await?;
    hear(&call, 0).await
}

async fn before_raw(setup: Setup) -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (World::before(addr, setup).await, listener)
}

/// A listener of the test's own.
async fn a_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

#[tokio::test]
async fn a_local_call_goes_through_the_pool_the_balancer_and_the_records_that_wires_use() {
    let world = World::start().await;
    let mut wire = world.caller().await;
    for _ in 0..3 {
        wire.call("/a.B/Local", 100, 100).await.expect("answered");
    }
    let (meant, seed) = (world.meant, world.seed());
    let answer = world
        .within(async move |local| {
            let caller = local.outbound(meant);
            let mut answer = None;
            for _ in 0..4 {
                answer = Some(exchange(&caller, seed, 100, 100).await.expect("answered"));
            }
            answer.expect("four")
        })
        .await;
    assert_eq!((answer.bytes, answer.text("grpc-status")), (100, Some("0")));
    world.until_all_ended().await;
    assert_eq!(
        world.server.connections.load(Relaxed),
        1,
        "the pool's one connection serves both"
    );
    let method = &["grpc_method=\"Local\"", "grpc_service=\"a.B\""];
    assert_eq!(world.metric("grpc_client_started_total", method), 7.0);
    let ok = &[method[0], "grpc_code=\"OK\"", "grpc_type=\"unary\""];
    world.until("grpc_client_handled_total", ok, |calls| calls == 7.0).await;
    assert_eq!(world.metric("grpc_client_handling_seconds_count", &[method[0]]), 7.0);
    assert_eq!(world.metric("portunus_requests_total", &["outbound"]), 7.0);
    let picked = |world: &World| -> u64 { world.open.endpoints().iter().map(|view| view.picked).sum() };
    let began = Instant::now();
    while picked(&world) != 7 {
        assert!(began.elapsed() < PATIENCE, "the balancer picked {}", picked(&world));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It is no connection, though.
    assert_eq!(world.metric("portunus_connections_opened_total", &["downstream"]), 1.0);
}

#[tokio::test]
async fn an_inbound_local_call_reaches_the_application_as_one_from_the_network_would() {
    let setup = Setup {
        inbound: true,
        ..Setup::default()
    };
    let (world, listener) = before_raw(setup).await;
    let meant = world.meant;
    let asking = world.within(async move |local| {
        let forged = [("x-forwarded-client-cert", "By=me")];
        ask(&local.inbound(meant), &forged).await.expect("answered")
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        let head = server.until(|frame| frame.kind == HEADERS).await;
        let fields = server.fields(&head).await;
        server
            .send(&[raw::response(head.stream), raw::trailers(head.stream)].concat())
            .await;
        (fields, server)
    };
    let (answer, (fields, _server)) = tokio::join!(asking, serving);
    assert_eq!(answer.text("grpc-status"), Some("0"));
    assert_eq!(raw::text(&fields, "x-forwarded-proto"), Some("http"));
    assert_eq!(raw::text(&fields, "x-forwarded-client-cert"), None);
    world.until_all_ended().await;
    assert_eq!(world.metric("grpc_server_handled_total", &["Local"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_of_many_local_calls_arrives_in_its_own_stream() {
    // Small windows on the server's side, and room for few streams: all that waits, waits often.
    let setup = Setup {
        server_windows: (5_000, 70_000),
        server_streams: Some(7),
        ..Setup::default()
    };
    let world = World::with(setup).await;
    let meant = world.meant;
    let seeds: Vec<u64> = (0..200).map(|_| world.seed()).collect();
    let whole = world
        .within(async move |local| {
            let callers = [Rc::new(local.outbound(meant)), Rc::new(local.outbound(meant))];
            let mut calls = JoinSet::new();
            for seed in seeds {
                let caller = callers[seed as usize / 256 % 2].clone();
                calls.spawn_local(async move {
                    let (send, receive) = (seed * 7_919 % 150_000, seed * 104_729 % 150_000);
                    if seed / 256 % 5 == 4 {
                        // Some leave in the middle.
                        let call = caller.call(seeded(seed, &[("x-receive", "1000000")]), false).await;
                        let call = call.expect("a stream");
                        let mut bytes = Bytes::new(seed);
                        call.send(&bytes.take(3_000), false).await.expect("room");
                        call.next().await.expect("a head");
                        call.next().await.expect("data");
                        return 0;
                    }
                    let answer = exchange(&caller, seed, send, receive).await.expect("answered");
                    assert_eq!((answer.bytes, answer.text("grpc-status")), (receive, Some("0")));
                    1
                });
            }
            calls.join_all().await.into_iter().sum::<u32>()
        })
        .await;
    assert_eq!(whole, 160);
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test]
async fn a_local_reader_asleep_stops_its_server_and_nobody_else_and_memory_stays_small() {
    let world = World::start().await;
    let (meant, seed, other) = (world.meant, world.seed(), world.seed());
    const BYTES: u64 = 16 << 20;
    let (wake, asleep) = tokio::sync::oneshot::channel::<()>();
    let reading = world.within(async move |local| {
        let caller = Rc::new(local.outbound(meant));
        let call = caller
            .call(seeded(seed, &[("x-receive", &BYTES.to_string())]), true)
            .await
            .expect("a stream");
        // Siblings on the same line go on meanwhile.
        let sibling = caller.clone();
        spawn_local(async move {
            for _ in 0..20 {
                let answer = exchange(&sibling, other, 1_000, 300_000).await.expect("answered");
                assert_eq!(answer.bytes, 300_000);
            }
        })
        .await
        .expect("it held");
        asleep.await.expect("the test goes on");
        hear(&call, seed).await.expect("whole")
    });
    let watching = async {
        world
            .until("grpc_client_handled_total", &["OK"], |handled| handled == 20.0)
            .await;
        // What the worker holds for it, what the line does, and credit that connections were given.
        world.until("portunus_memory_held_bytes", &[], |held| held > 0.0).await;
        let held = world.metric("portunus_memory_held_bytes", &[]);
        assert!(held < f64::from(4 << 20), "{held} bytes are held");
        wake.send(()).expect("it sleeps");
    };
    let (answer, ()) = tokio::join!(reading, watching);
    assert_eq!((answer.bytes, answer.text("grpc-status")), (BYTES, Some("0")));
}

#[tokio::test]
async fn a_local_sender_waits_for_a_server_that_takes_nothing() {
    let (world, listener) = before_raw(Setup::default()).await;
    let meant = world.meant;
    let (told, sent) = std::sync::mpsc::channel();
    let sending = world.within(async move |local| {
        let call = local
            .outbound(meant)
            .call(seeded(0, &[]), false)
            .await
            .expect("a stream");
        for _ in 0..10_000 {
            match call.send(&[7; 1_000], false).await {
                Ok(()) => told.send(()).expect("the test listens"),
                Err(why) => return why,
            }
        }
        panic!("nobody took that");
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        let mut got = 0;
        while got < 65_535 {
            got += server.until(|frame| frame.kind == DATA).await.payload.len();
        }
        // It grants nothing, so little more can be on its way.
        server.until_read().await;
        let mut before = sent.try_iter().count();
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match sent.try_iter().count() {
                0 => break,
                more => before += more,
            }
        }
        assert!(before < 1_000, "{before} messages of 1,000 bytes have left");
        server.send(&raw::reset(1, 8)).await;
    };
    let (why, ()) = tokio::join!(sending, serving);
    assert_eq!(why, Error::Reset(Reason::CANCEL));
}

#[tokio::test]
async fn a_local_call_that_is_dropped_is_cancelled_at_the_server_at_once() {
    let (world, listener) = before_raw(Setup::default()).await;
    let meant = world.meant;
    let (leave, left) = tokio::sync::oneshot::channel::<()>();
    let (done, end) = tokio::sync::oneshot::channel::<()>();
    let calling = world.within(async move |local| {
        let caller = local.outbound(meant);
        let call = caller.call(seeded(0, &[]), false).await.expect("a stream");
        left.await.expect("the test goes on");
        drop(call);
        end.await.expect("the test goes on");
        assert!(caller.is_open(), "the call alone was ended");
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        server.until(|frame| frame.kind == HEADERS).await;
        let began = Instant::now();
        leave.send(()).expect("it waits");
        let reset = server.until(|frame| frame.kind == RST_STREAM).await;
        assert_eq!(reset.number(), 8, "CANCEL");
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        world.until_all_ended().await;
        assert_eq!(world.metric("grpc_client_handled_total", &["Canceled"]), 1.0);
        done.send(()).expect("it waits");
    };
    tokio::join!(calling, serving);
}

#[tokio::test]
async fn a_local_caller_that_is_dropped_with_its_calls_leaves_nothing_behind() {
    let (world, listener) = before_raw(Setup::default()).await;
    let meant = world.meant;
    let (leave, left) = tokio::sync::oneshot::channel::<()>();
    let calling = world.within(async move |local| {
        let caller = local.outbound(meant);
        let _call = caller.call(seeded(0, &[]), false).await.expect("a stream");
        left.await.expect("the test goes on");
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        server.until(|frame| frame.kind == HEADERS).await;
        leave.send(()).expect("it waits");
        let reset = server.until(|frame| frame.kind == RST_STREAM).await;
        assert_eq!(reset.number(), 8, "CANCEL");
        server
    };
    let ((), _server) = tokio::join!(calling, serving);
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test]
async fn a_servers_reset_reaches_the_local_call_as_it_is() {
    let (world, listener) = before_raw(Setup::default()).await;
    let meant = world.meant;
    let calling = world.within(async move |local| {
        let caller = local.outbound(meant);
        let mut whys = Vec::new();
        for _ in 0..2 {
            let call = caller.call(seeded(0, &[]), false).await.expect("a stream");
            whys.push(hear(&call, 0).await.expect_err("it was reset"));
        }
        whys
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        server.until(|frame| frame.kind == HEADERS).await;
        server.send(&raw::reset(1, 11)).await;
        // In the middle of an answer, too.
        server.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
        server.send(&[raw::response(3), raw::reset(3, 4_711)].concat()).await;
        server
    };
    let (whys, _server) = tokio::join!(calling, serving);
    let reset = |code| Error::Reset(Reason(code));
    assert_eq!(whys, [reset(11), reset(4_711)]);
}

#[tokio::test]
async fn a_deadline_ends_a_local_call_with_its_reason_and_cancels_at_the_server() {
    let world = World::start().await;
    let meant = world.meant;
    let began = Instant::now();
    let answer = world
        .within(async move |local| {
            let fields = [("grpc-timeout", "2S"), ("x-act", "silent")];
            ask(&local.outbound(meant), &fields)
                .await
                .expect("answered by the proxy")
        })
        .await;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1_995) && took < Duration::from_secs(2) + SOON,
        "{took:?}"
    );
    assert_eq!(
        (answer.text("grpc-status"), answer.text("portunus-error")),
        (Some("4"), Some("deadline"))
    );
    assert!(
        answer
            .text("grpc-message")
            .expect("a sentence")
            .contains("had not begun to answer")
    );
    assert_eq!(world.metric("portunus_proxy_errors_total", &["deadline"]), 1.0);
    let began = Instant::now();
    while world.server.left.load(Relaxed) == 0 {
        assert!(began.elapsed() < PATIENCE, "the server hears nothing of it");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_local_call_to_nobody_is_answered_with_the_reason() {
    for inbound in [false, true] {
        let dead: SocketAddr = free_port();
        let world = World::before(dead, Setup::default()).await;
        let answer = world
            .within(async move |local| {
                let caller = if inbound {
                    local.inbound(dead)
                } else {
                    local.outbound(dead)
                };
                ask(&caller, &[]).await.expect("answered by the proxy")
            })
            .await;
        let reason = if inbound { "unreachable" } else { "no_endpoint" };
        assert_eq!(
            (answer.text("grpc-status"), answer.text("portunus-error")),
            (Some("14"), Some(reason))
        );
        let sentence = answer.text("grpc-message").expect("a sentence");
        assert!(sentence.contains(&dead.to_string()), "{sentence}");
        assert_eq!(world.metric("portunus_proxy_errors_total", &[reason]), 1.0);
    }
}

/// Whoever calls every port of a pod: those where nobody listens, one where somebody takes connections and ends them, one that
/// does not speak HTTP/2.
#[tokio::test]
async fn calls_to_ports_where_nobody_answers_are_unreachable_and_nothing_is_kept_of_these_ports() {
    const PORTS: u16 = 300;
    let (rude, other) = (a_port().await, a_port().await);
    let mut ports = vec![rude.local_addr(), other.local_addr()];
    tokio::spawn(async move {
        while let Ok((socket, _)) = rude.accept().await {
            drop(socket);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = other.accept().await {
            // Whoever hears this ends the connection.
            let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await;
        }
    });
    // Nobody listens at any of these: no program of this machine knows of them.
    let nobody = |n: u16| SocketAddr::from(([127, 99, (n >> 8) as u8, n as u8], 1 + n));
    ports.extend((0..PORTS).map(|n| Ok(nobody(n))));
    let setup = Setup {
        inbound: true,
        ..Setup::default()
    };
    let world = World::before(free_port(), setup).await;
    for port in ports {
        let port = port.expect("an address");
        let answer = world.within(async move |local| ask(&local.inbound(port), &[]).await.expect("answered"));
        let answer = answer.await;
        let reason = answer.text("portunus-error");
        // Of one that took the request nobody knows.
        assert!(
            reason == Some("unreachable") || port.port() > PORTS && reason == Some("connection_lost"),
            "{port}: {answer:?}"
        );
    }
    world.until_all_ended().await;
    let began = Instant::now();
    // What is told is half a second old, or a second where there is nothing to do.
    while began.elapsed() < Duration::from_millis(1_500) || world.open.pools.load(Relaxed) > 0 {
        let left = world.open.pools.load(Relaxed);
        assert!(began.elapsed() < PATIENCE, "of {left} addresses something is left");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn draining_lets_a_running_local_call_end_takes_no_new_one_and_waits_for_neither() {
    let (world, listener) = before_raw(Setup::default()).await;
    let meant = world.meant;
    let calling = world.within(async move |local| {
        let caller = local.outbound(meant);
        let call = caller.call(seeded(0, &[]), true).await.expect("a stream");
        let answer = hear(&call, 0).await.expect("whole");
        (answer, caller.call(seeded(0, &[]), true).await.map(drop))
    });
    let serving = async {
        let mut server = Raw::accept(&listener, &[]).await;
        server.until(|frame| frame.kind == HEADERS).await;
        world.tell(Command::DrainInbound);
        world.tell(Command::DrainOutbound);
        let (said, saying) = tokio::sync::oneshot::channel();
        // Whatever was told before this job has been obeyed when a call of it is.
        let drains = world.within(async move |local| {
            let caller = local.outbound(meant);
            while caller.is_open() {
                tokio::task::yield_now().await;
            }
            said.send(()).expect("the test waits");
        });
        tokio::join!(drains, async { saying.await.expect("it drains") });
        assert_eq!(
            world.open.inbound.load(Relaxed) + world.open.outbound.load(Relaxed),
            0,
            "no stranger is connected"
        );
        server.send(&[raw::response(1), raw::trailers(1)].concat()).await;
        server
    };
    let ((answer, new), _server) = tokio::join!(calling, serving);
    assert_eq!(answer.text("grpc-status"), Some("0"));
    assert_eq!(new, Err(Error::Draining));
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test]
async fn the_end_cuts_local_calls_that_run_and_counts_them() {
    let world = World::start().await;
    let (meant, seed) = (world.meant, world.seed());
    world
        .within(async move |local| {
            let caller = local.outbound(meant);
            let call = caller
                .call(seeded(seed, &[("x-act", "silent")]), true)
                .await
                .expect("a stream");
            spawn_local(async move {
                let _caller = caller;
                hear(&call, seed).await
            });
        })
        .await;
    let began = Instant::now();
    while world.server.requests.load(Relaxed) < 1 {
        assert!(began.elapsed() < PATIENCE, "the call does not arrive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let cut = tokio::task::spawn_blocking(move || world.end()).await.expect("it held");
    assert_eq!((cut.rpcs, cut.connections), (1, 0));
}

#[tokio::test]
async fn local_calls_that_wait_cost_no_work() {
    let world = World::start().await;
    let (meant, seed) = (world.meant, world.seed());
    let cost = world
        .within(async move |local| {
            let caller = local.outbound(meant);
            let silent = caller
                .call(seeded(seed, &[("x-act", "silent")]), true)
                .await
                .expect("a stream");
            let stalled = caller
                .call(seeded(seed, &[("x-receive", "10000000")]), true)
                .await
                .expect("a stream");
            let heard = stalled.next().await.expect("a head");
            assert!(matches!(heard, Some(Heard::Head(_))));
            let spent = || {
                let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the kernel counts");
                Duration::from(time)
            };
            // What was on its way arrives.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let before = spent();
            let silence = tokio::time::timeout(Duration::from_millis(1_000), silent.next()).await;
            silence.expect_err("the server is silent");
            spent() - before
        })
        .await;
    assert!(
        cost < Duration::from_millis(30),
        "{cost:?} of CPU for a second of waiting"
    );
}
