//! A tunnel between real sockets: what a client and a server see must be what they would see without it.

use std::{
    future::Future,
    io::ErrorKind,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{sleep, timeout},
};

use super::{super::direction::A_TURN, *};

/// The ends of a tunnel that runs.
struct Ends {
    client: TcpStream,
    server: TcpStream,
    tunnel: JoinHandle<Summary>,
    cut: CancellationToken,
}

impl Ends {
    async fn new() -> Ends {
        Ends::after("", "", None).await
    }

    /// With first bytes of both sides, and socket buffers of the given size in place of the kernel's own choice.
    async fn after(client_bytes: &str, server_bytes: &str, buffers: Option<u32>) -> Ends {
        let ((client, accepted), (upstream, server)) = (connection(buffers).await, connection(buffers).await);
        let (client_bytes, server_bytes) = (client_bytes.into(), server_bytes.into());
        let cut = CancellationToken::new();
        let tunnel = spawn_local({
            let cut = cut.clone();
            async move {
                let (settings, carried) = (Settings::default(), Carried::default());
                carry(
                    accepted,
                    client_bytes,
                    upstream,
                    server_bytes,
                    &settings,
                    &carried,
                    &cut,
                )
                .await
            }
        });
        Ends {
            client,
            server,
            tunnel,
            cut,
        }
    }
}

async fn connection(buffers: Option<u32>) -> (TcpStream, TcpStream) {
    let socket = || {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(size) = buffers {
            socket.set_recv_buffer_size(size).expect("set");
            socket.set_send_buffer_size(size).expect("set");
        }
        socket
    };
    let listener = socket();
    listener
        .bind("127.0.0.1:0".parse().expect("an address"))
        .expect("bound");
    let listener: TcpListener = listener.listen(1).expect("listens");
    let client = socket()
        .connect(listener.local_addr().expect("bound"))
        .await
        .expect("connects");
    (client, listener.accept().await.expect("accepts").0)
}

/// As in a worker: everything on one thread. No test may wait for ever.
async fn on_a_worker(test: impl Future<Output = ()>) {
    let test = timeout(Duration::from_secs(60), test);
    LocalSet::new()
        .run_until(test)
        .await
        .expect("the test ends within a minute");
}

async fn all_of(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await.expect("ends cleanly");
    all
}

async fn kind_of_break(socket: &mut TcpStream) -> ErrorKind {
    loop {
        match socket.read(&mut [0; 4_096]).await {
            Ok(0) => panic!("a clean end instead of a break"),
            Ok(_) => {}
            Err(error) => return error.kind(),
        }
    }
}

/// Bytes of which each tells its place, by a generator seeded per stream.
fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn first_bytes_arrive_first_on_both_sides() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::after("first ", "220 ready ", None).await;
        client.write_all(b"then").await.expect("written");
        server.write_all(b"go on").await.expect("written");
        client.shutdown().await.expect("half-closed");
        server.shutdown().await.expect("half-closed");

        assert_eq!(all_of(&mut server).await, b"first then");
        assert_eq!(all_of(&mut client).await, b"220 ready go on");
        let summary = tunnel.await.expect("ends");
        assert_eq!(
            summary,
            Summary {
                bytes_up: 10,
                bytes_down: 15,
                end: End::Finished
            }
        );
    })
    .await;
}

#[tokio::test]
async fn a_half_closed_side_still_hears_the_other() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::new().await;
        client.write_all(b"request").await.expect("written");
        client.shutdown().await.expect("half-closed");
        assert_eq!(all_of(&mut server).await, b"request");

        let answer = bytes(1, 1 << 20);
        let (written, heard) = tokio::join!(
            async {
                sleep(Duration::from_millis(50)).await;
                server.write_all(&answer).await.expect("written");
                server.shutdown().await
            },
            all_of(&mut client)
        );
        written.expect("half-closed");
        assert!(heard == answer);
        assert_eq!(tunnel.await.expect("ends").end, End::Finished);
    })
    .await;
}

#[tokio::test]
async fn a_server_that_closes_its_side_still_hears_the_client() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::new().await;
        server.shutdown().await.expect("half-closed");
        assert_eq!(all_of(&mut client).await, b"");

        client.write_all(b"the rest").await.expect("written");
        client.shutdown().await.expect("half-closed");
        assert_eq!(all_of(&mut server).await, b"the rest");
        assert_eq!(tunnel.await.expect("ends").end, End::Finished);
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_server() {
    on_a_worker(async {
        let Ends {
            client,
            mut server,
            tunnel,
            ..
        } = Ends::new().await;
        reset(client);
        assert_eq!(kind_of_break(&mut server).await, ErrorKind::ConnectionReset);
        let broken = End::Broken {
            side: Side::Client,
            kind: ErrorKind::ConnectionReset,
            tls: None,
        };
        assert_eq!(tunnel.await.expect("ends").end, broken);
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_server_reaches_the_client() {
    on_a_worker(async {
        let Ends {
            mut client,
            server,
            tunnel,
            ..
        } = Ends::new().await;
        reset(server);
        assert_eq!(kind_of_break(&mut client).await, ErrorKind::ConnectionReset);
        let broken = End::Broken {
            side: Side::Upstream,
            kind: ErrorKind::ConnectionReset,
            tls: None,
        };
        assert_eq!(tunnel.await.expect("ends").end, broken);
    })
    .await;
}

#[tokio::test]
async fn a_reset_after_a_half_close_reaches_the_server() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::new().await;
        client.shutdown().await.expect("half-closed");
        assert_eq!(all_of(&mut server).await, b"");
        reset(client);
        server.write_all(b"x").await.expect("the tunnel takes it");
        assert_eq!(
            server.read(&mut [0; 1]).await.unwrap_or_default(),
            0,
            "the end was told already"
        );
        assert!(matches!(
            tunnel.await.expect("ends").end,
            End::Broken { side: Side::Client, .. }
        ));

        while server.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_reset_is_passed_on_while_the_other_side_does_not_read() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::after("", "", Some(16 << 10)).await;
        fill(&mut client).await;
        reset(client);
        assert_eq!(kind_of_break(&mut server).await, ErrorKind::ConnectionReset);
        assert!(matches!(
            tunnel.await.expect("ends").end,
            End::Broken { side: Side::Client, .. }
        ));
    })
    .await;
}

#[tokio::test]
async fn a_last_answer_before_a_reset_is_delivered() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::new().await;
        // As a web server that refuses an upload: it answers, and closes without reading what still comes.
        client.write_all(&bytes(2, 1 << 20)).await.expect("written");
        server.read_exact(&mut [0; 1_000]).await.expect("a part of it");
        server.write_all(b"413 too large").await.expect("written");
        drop(server);

        let mut answer = [0; 13];
        client
            .read_exact(&mut answer)
            .await
            .expect("the answer comes before the reset");
        assert_eq!(&answer, b"413 too large");
        let broken = End::Broken {
            side: Side::Upstream,
            kind: ErrorKind::ConnectionReset,
            tls: None,
        };
        assert_eq!(tunnel.await.expect("ends").end, broken);
        assert_eq!(kind_of_break(&mut client).await, ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn ten_megabytes_cross_both_ways_at_once_unharmed() {
    on_a_worker(async {
        let Ends {
            client, server, tunnel, ..
        } = Ends::after("", "", None).await;
        let (up, down) = (bytes(3, 10 << 20), bytes(4, 10 << 20));
        let (mut from_server, mut to_server) = client.into_split();
        let (mut from_client, mut to_client) = server.into_split();
        let (mut heard_up, mut heard_down) = (Vec::new(), Vec::new());
        let spoken = tokio::join!(
            async {
                to_server.write_all(&up).await?;
                to_server.shutdown().await
            },
            async {
                to_client.write_all(&down).await?;
                to_client.shutdown().await
            },
            from_client.read_to_end(&mut heard_up),
            from_server.read_to_end(&mut heard_down),
        );
        spoken.0.and(spoken.1).expect("written");
        assert!(heard_up == up && heard_down == down);
        let summary = tunnel.await.expect("ends");
        assert_eq!(
            summary,
            Summary {
                bytes_up: 10 << 20,
                bytes_down: 10 << 20,
                end: End::Finished
            }
        );
    })
    .await;
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer_and_loses_nothing() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            ..
        } = Ends::after("", "", Some(16 << 10)).await;
        let taken = fill(&mut client).await;
        // Four socket buffers, which the kernel doubles and overdraws, and what one direction of the tunnel keeps.
        assert!(taken <= 8 * (32 << 10) + A_TURN, "{taken} bytes were taken");

        // The other direction goes on meanwhile.
        server.write_all(b"still here").await.expect("written");
        let mut heard = [0; 10];
        client.read_exact(&mut heard).await.expect("heard");

        client.shutdown().await.expect("half-closed");
        assert!(all_of(&mut server).await == bytes(FILL, taken));
        server.shutdown().await.expect("half-closed");
        assert_eq!(tunnel.await.expect("ends").end, End::Finished);
    })
    .await;
}

#[tokio::test]
async fn a_tunnel_with_much_to_carry_takes_turns_with_its_neighbours() {
    let ((mut client, accepted), (upstream, server)) = (connection(None).await, connection(None).await);
    let backlog = fill(&mut client).await as u64;
    let (settings, carried, cut) = (Settings::default(), Carried::default(), CancellationToken::new());
    let mut tunnel = pin!(carry(
        accepted,
        Vec::new(),
        upstream,
        Vec::new(),
        &settings,
        &carried,
        &cut
    ));

    let mut heard = vec![0; 1 << 20];
    let enough = backlog.min(10 * A_TURN as u64);
    while carried.up() < enough {
        let before = carried.up();
        let turn = std::future::poll_fn(|cx| Poll::Ready(tunnel.as_mut().poll(cx).is_pending()));
        assert!(turn.await, "the tunnel goes on");
        assert!(
            carried.up() - before <= A_TURN as u64,
            "{} bytes in a turn",
            carried.up() - before
        );
        let _ = server.try_read(&mut heard);
        yield_now().await;
    }
}

async fn turn(direction: &mut Direction, from: &mut TcpStream, to: &mut TcpStream, carried: &AtomicU64) -> bool {
    poll_fn(|cx| Poll::Ready(direction.turn(from, to, true, carried, cx).is_ok())).await
}

#[tokio::test]
async fn a_buffer_is_kept_only_while_bytes_wait() {
    let ((mut client, mut accepted), (mut upstream, mut server)) =
        (connection(None).await, connection(Some(16 << 10)).await);
    let carried = AtomicU64::new(0);
    let mut direction = Direction::new(b"first".to_vec());
    let total = 5 + fill(&mut client).await as u64;
    while !direction.writes() || carried.load(Relaxed) == 0 {
        accepted.readable().await.expect("open");
        assert!(turn(&mut direction, &mut accepted, &mut upstream, &carried).await);
    }
    assert!(
        direction.kept_capacity() <= A_TURN,
        "no more is read while the other side is full"
    );

    let reads = async {
        let mut rest = vec![0; total as usize];
        server.read_exact(&mut rest).await.expect("all of it");
    };
    let writes = async {
        while carried.load(Relaxed) < total {
            upstream.writable().await.expect("open");
            assert!(turn(&mut direction, &mut accepted, &mut upstream, &carried).await);
            yield_now().await;
        }
    };
    tokio::join!(reads, writes);
    assert_eq!(direction.kept_capacity(), 0);
}

#[tokio::test]
async fn a_tunnel_goes_on_until_it_is_cut_and_then_both_sides_know() {
    on_a_worker(async {
        let Ends {
            mut client,
            mut server,
            tunnel,
            cut,
        } = Ends::new().await;
        client.write_all(b"x").await.expect("written");
        server.read_exact(&mut [0; 1]).await.expect("heard");

        cut.cancel();
        assert_eq!(
            tunnel.await.expect("ends"),
            Summary {
                bytes_up: 1,
                bytes_down: 0,
                end: End::Cut
            }
        );
        assert_eq!(kind_of_break(&mut client).await, ErrorKind::ConnectionReset);
        assert_eq!(kind_of_break(&mut server).await, ErrorKind::ConnectionReset);
    })
    .await;
}

#[tokio::test]
async fn an_idle_tunnel_costs_less_than_a_kibibyte() {
    let ((_client, accepted), (upstream, _server)) = (connection(None).await, connection(None).await);
    let (settings, carried, cut) = (Settings::default(), Carried::default(), CancellationToken::new());
    let tunnel = carry(accepted, Vec::new(), upstream, Vec::new(), &settings, &carried, &cut);
    let size = size_of_val(&tunnel);
    assert!(size < 1_024, "{size} bytes");
}

#[test]
fn nothing_prevents_a_tunnel_from_moving_between_threads() {
    fn moves<T: Send>(
        _: fn(TcpStream, TcpStream, &'static Settings, &'static Carried, &'static CancellationToken) -> T,
    ) {
    }
    moves(|client, upstream, settings, carried, cut| {
        carry(client, Vec::new(), upstream, Vec::new(), settings, carried, cut)
    });
}

const FILL: u64 = 5;

/// Writes until nothing is taken any more, and says how much was.
async fn fill(to: &mut TcpStream) -> usize {
    let all = bytes(FILL, 8 << 20);
    let mut taken = 0;
    while let Ok(written) = timeout(Duration::from_millis(300), to.write(&all[taken..])).await {
        taken += written.expect("open");
        assert!(taken < all.len(), "nothing stopped the writer");
    }
    taken
}
