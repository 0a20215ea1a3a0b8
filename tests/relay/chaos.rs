//! Every byte of every stream, under load: small windows, aborts, resets, slots used again.

use h2::Reason;
use portunus_sidecar::http2;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::bytes::Bytes;
use crate::world::{Begun, Caller, PATIENCE, Setup, World, collect, request, send_bytes};

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Both ends say all that they have to say.
    Whole,
    /// The caller resets it when it has read so many bytes.
    Aborted(u64),
    /// The server resets it when it has said so many.
    Reset(u64),
    /// Both do.
    Both(u64),
}

/// Many calls at once, of sizes up to `most`, of which about a third is broken off.
async fn load(callers: &[Caller], calls: u32, at_once: usize, most: u64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut running = JoinSet::new();
    for i in 0..calls {
        let (send, receive) = (rng.random_range(0..=most), rng.random_range(0..=most));
        let cut = rng.random_range(0..=receive);
        let fate = match rng.random_range(0..12) {
            0 | 1 => Fate::Aborted(cut),
            2 => Fate::Reset(cut),
            3 => Fate::Both(cut),
            _ => Fate::Whole,
        };
        let caller = callers[i as usize % callers.len()].clone();
        running.spawn(async move {
            let one = tokio::time::timeout(PATIENCE, one(caller, send, receive, fate));
            one.await
                .unwrap_or_else(|_| panic!("call {i} hangs: sends {send}, receives {receive}, {fate:?}"));
        });
        if running.len() >= at_once {
            running.join_next().await.expect("one is running").expect("it held");
        }
    }
    while let Some(done) = running.join_next().await {
        done.expect("it held");
    }
}

async fn one(mut caller: Caller, send: u64, receive: u64, fate: Fate) {
    let answer = match fate {
        Fate::Whole => {
            let answer = caller.call("/shop.Greeter/Hello", send, receive).await;
            let answer = answer.expect("answered");
            assert_eq!((answer.status, answer.grpc_status.as_deref()), (200, Some("0")));
            assert_eq!(answer.bytes, receive);
            return;
        }
        Fate::Reset(at) | Fate::Both(at) => format!("reset-at {at}"),
        Fate::Aborted(_) => String::new(),
    };
    let fields = [("x-receive", &*receive.to_string()), ("x-act", &answer)];
    let begun = caller.begin(request("/shop.Greeter/Hello", &fields)).await;
    let Begun {
        response,
        mut body,
        seed,
    } = begun.expect("begun");
    let reads = match fate {
        Fate::Aborted(at) | Fate::Both(at) => at,
        _ => u64::MAX,
    };
    let sending = async {
        send_bytes(&mut body, Bytes::new(seed), send, true).await.ok();
        std::future::pending::<()>().await;
    };
    let reading = async {
        let response = response.await?;
        let mut expected = Bytes::new(!seed);
        let mut stream = response.into_body();
        while expected.count() < reads {
            let Some(piece) = stream.data().await else { break };
            let piece = piece?;
            expected.check(&piece);
            stream.flow_control().release_capacity(piece.len())?;
        }
        Ok::<_, h2::Error>(())
    };
    tokio::select! {
        _ = reading => {}
        () = sending => {}
    }
    body.send_reset(Reason::CANCEL);
}

/// Load, and afterwards nothing is left of it: no call, no window.
async fn chaos(mut http2: http2::Settings, caller: (u32, u32), server: (u32, u32), calls: u32, most: u64) {
    // What is reserved at the end can be told by the number of connections.
    http2.connection_window_ceiling = http2.connection_window;
    let world = World::with(Setup {
        http2,
        server_windows: server,
        inbound: caller.0 == 65_535,
        ..Setup::default()
    })
    .await;
    let callers = [
        world.caller_with(caller).await,
        world.caller_with(caller).await,
        world.caller_with(caller).await,
    ];
    load(
        &callers,
        calls,
        40,
        most,
        u64::from(caller.0) << 32 | u64::from(server.0),
    )
    .await;
    world.until_all_ended().await;
    let mut last = world.caller().await;
    let size = most * 4;
    let answer = tokio::time::timeout(PATIENCE, last.call("/shop.Greeter/Last", size, size));
    let answer = answer.await.expect("windows are whole").expect("answered");
    assert_eq!(answer.bytes, size);
    drop((callers, last));
    world
        .until("portunus_connections", &["downstream"], |open| open == 0.0)
        .await;
    let wires = world.metric("portunus_connections", &["upstream"]);
    world
        .until("portunus_memory_held_bytes", &[], |held| {
            held <= wires * f64::from(1 << 20)
        })
        .await;
    assert_eq!(world.end().rpcs, 0);
}

fn small_first(first: u32) -> http2::Settings {
    http2::Settings {
        first_stream_window: first,
        ..http2::Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_before_windows_of_one_byte() {
    chaos(http2::Settings::default(), (1, 65_535), (1, 65_535), 300, 120).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_before_windows_of_seven_bytes() {
    chaos(http2::Settings::default(), (7, 65_535), (7, 65_535), 400, 700).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_when_one_side_is_narrow_and_the_other_wide() {
    chaos(
        http2::Settings::default(),
        (100, 65_535),
        (1 << 20, 4 << 20),
        400,
        4_000,
    )
    .await;
    chaos(
        http2::Settings::default(),
        (1 << 20, 4 << 20),
        (100, 65_535),
        400,
        4_000,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_before_windows_of_a_thousand_bytes() {
    chaos(
        http2::Settings::default(),
        (1_000, 65_535),
        (1_000, 65_535),
        500,
        30_000,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_before_windows_of_the_default() {
    chaos(
        http2::Settings::default(),
        (65_535, 65_535),
        (65_535, 65_535),
        600,
        150_000,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_is_lost_or_strays_before_windows_of_a_megabyte() {
    chaos(
        http2::Settings::default(),
        (1 << 20, 1 << 20),
        (1 << 20, 1 << 20),
        300,
        400_000,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_window_of_ours_of_one_byte_only_makes_calls_slow() {
    chaos(small_first(1), (65_535, 65_535), (65_535, 65_535), 300, 3_000).await;
    chaos(small_first(1), (1, 65_535), (1, 65_535), 200, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_window_of_ours_of_seven_or_a_hundred_bytes_only_makes_calls_slow() {
    chaos(small_first(7), (1_000, 65_535), (7, 65_535), 300, 500).await;
    chaos(small_first(100), (65_535, 65_535), (1 << 20, 1 << 20), 300, 100_000).await;
    chaos(small_first(100), (7, 65_535), (100, 65_535), 300, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_used_again_never_gets_the_bytes_of_the_stream_before() {
    let world = World::start().await;
    let caller = world.caller().await;
    load(&[caller], 6_000, 100, 300, 7).await;
    world.until_all_ended().await;
    assert_eq!(world.end().rpcs, 0);
}

#[tokio::test]
async fn a_window_that_shrinks_and_grows_under_way_costs_no_byte() {
    let world = World::start().await;
    for seed in 0..6u64 {
        let socket = tokio::net::TcpStream::connect(world.proxy).await.expect("it listens");
        let (sender, mut connection) = h2::client::handshake(socket).await.expect("a handshake");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut calls = JoinSet::new();
        for i in 0..20u64 {
            let mut sender = sender.clone();
            calls.spawn(async move {
                let seed = i << 8 | 0x5A;
                let size = 3_000 + 11_000 * (i % 5);
                let fields = [("x-receive", &*size.to_string()), ("x-seed", &*seed.to_string())];
                sender = sender.ready().await.expect("ready");
                let begun = sender.send_request(request("/shop.Greeter/Hello", &fields), false);
                let (response, mut body) = begun.expect("begun");
                send_bytes(&mut body, Bytes::new(seed), size, true).await.expect("sent");
                let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
                assert_eq!((answer.bytes, answer.grpc_status.as_deref()), (size, Some("0")));
            });
        }
        // h2 lets the next SETTINGS go only when the last was acknowledged: the windows move while the calls run.
        let mut moves = 0;
        let all = async {
            while let Some(done) = calls.join_next().await {
                done.expect("it held")
            }
        };
        tokio::pin!(all);
        let deadline = tokio::time::sleep(PATIENCE);
        tokio::pin!(deadline);
        loop {
            let window = [0, 1, 5, 100, 3_000, 20_000, 65_535][rng.random_range(0..7)];
            if connection.set_initial_window_size(window).is_ok() {
                moves += 1;
            }
            let a_while = tokio::time::sleep(std::time::Duration::from_millis(2));
            tokio::select! {
                () = &mut all => break,
                ended = &mut connection => panic!("the connection ended: {ended:?}"),
                () = a_while => {}
                () = &mut deadline => panic!("calls hang after {moves} moves of the window"),
            }
        }
        assert!(moves > 2, "the windows moved {moves} times");
    }
}

#[tokio::test]
async fn tables_of_any_size_stay_in_step() {
    let world = World::start().await;
    let mut calls = JoinSet::new();
    for table in [0, 64, 300, 4_096, 65_536] {
        let mut builder = h2::client::Builder::new();
        builder.header_table_size(table);
        let caller = world.caller_of(&builder).await;
        for i in 0..200u64 {
            let mut caller = caller.clone();
            calls.spawn(async move {
                let echo = format!("{table}-{}", i % 17);
                let fields = [("x-echo-a", &*echo), ("x-echo-b", "always"), ("x-receive", "0")];
                let Begun {
                    response,
                    mut body,
                    seed,
                } = caller.begin(request("/a.B/C", &fields)).await.expect("begun");
                send_bytes(&mut body, Bytes::new(seed), 10, true).await.expect("sent");
                let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
                assert_eq!(answer.head.get("x-echo-a").expect("it crossed"), &*echo);
                assert_eq!(answer.head.get("x-echo-b").expect("it crossed"), "always");
            });
            if calls.len() >= 90 {
                calls.join_next().await.expect("one is running").expect("it held");
            }
        }
    }
    while let Some(done) = calls.join_next().await {
        done.expect("it held");
    }
}
