//! A path of 20 ms there and back is full of bulk: what arrives is measured beside raw TCP over the same kind of path.

mod ends;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use ends::{Bulk, Raw, Windows};
use support::{Distance, Family, Mesh, Pod, Sidecar, distance::Path, in_netns, traffic::alone};

#[test]
fn server_streaming_from_a_server_20_ms_away_reaches_80_percent_of_raw_tcp() {
    support::test(|mesh| far_server(mesh, Way::Down));
}

#[test]
fn client_streaming_to_a_server_20_ms_away_reaches_80_percent_of_raw_tcp() {
    support::test(|mesh| far_server(mesh, Way::Up));
}

#[test]
fn server_streaming_to_a_caller_20_ms_away_reaches_80_percent_of_raw_tcp() {
    support::test(|mesh| far_caller(mesh, Way::Down));
}

#[test]
fn client_streaming_from_a_caller_20_ms_away_reaches_80_percent_of_raw_tcp() {
    support::test(|mesh| far_caller(mesh, Way::Up));
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the server to the caller.
    Down,
    /// From the caller to the server.
    Up,
}

/// The sidecar is beside the caller: `caller - outbound - 20 ms - server`.
fn far_server(mesh: &Mesh, way: Way) -> Result<()> {
    let _alone = alone();
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let sidecar = client.sidecar()?;
    let meant = server.at(Family::V4, PORT)?;
    let _path = in_netns(&server, || Distance::start(meant, at_home(PORT), PATH))??;
    let windows = match way {
        Way::Down => Windows::FIRST,
        Way::Up => Windows::LARGE,
    };
    let bulk = || Bulk::start(way, windows, (&server, at_home(PORT)), (&client, meant));
    is_full(way, &server, bulk)?;
    has_carried(&sidecar, "grpc_client_started_total")
}

/// The sidecar is beside the server: `caller - 20 ms - inbound - server`.
fn far_caller(mesh: &Mesh, way: Way) -> Result<()> {
    let _alone = alone();
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let sidecar = server.sidecar()?;
    let meant = server.at(Family::V4, PORT)?;
    let _path = in_netns(&client, || Distance::start(at_home(PORT), meant, PATH))??;
    let windows = match way {
        Way::Down => Windows::LARGE,
        Way::Up => Windows::FIRST,
    };
    let bulk = || Bulk::start(way, windows, (&server, meant), (&client, at_home(PORT)));
    is_full(way, &client, bulk)?;
    has_carried(&sidecar, "grpc_server_started_total")
}

/// Each try compares with raw TCP anew, in a pod that has no sidecar: the machine may be busy with something else.
fn is_full(way: Way, plain: &Pod, bulk: impl Fn() -> Result<Bulk>) -> Result<()> {
    let mut best = 0.0;
    for _ in 0..TRIES {
        let raw = arriving(in_netns(plain, || Raw::start(way, PATH))??.received())?;
        if raw > 1.05 * PATH.rate as f64 {
            println!("raw TCP carries {raw} B/s, more than the path does: something stood still before");
            continue;
        }
        let ours = arriving(bulk()?.received())?;
        println!("{:.1} MB/s, raw TCP {:.1} MB/s", ours / 1e6, raw / 1e6);
        best = f64::max(best, ours / raw);
        if best >= ENOUGH {
            return Ok(());
        }
    }
    bail!(
        "bulk reaches {:.0} % of what raw TCP does, in the best of {TRIES} tries",
        100.0 * best
    )
}

/// Bytes that arrive in a second, once windows have had the time to grow: fifty round trips.
fn arriving(received: &AtomicU64) -> Result<f64> {
    let asked = Instant::now();
    while received.load(Relaxed) == 0 {
        ensure!(asked.elapsed() < PATIENCE, "nothing arrives");
        thread::sleep(PATH.delay);
    }
    thread::sleep(50 * 2 * PATH.delay);
    let (before, began) = (received.load(Relaxed), Instant::now());
    thread::sleep(MEASURED);
    Ok((received.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64())
}

/// It was no tunnel, and went not past it.
fn has_carried(sidecar: &Sidecar, calls: &str) -> Result<()> {
    let started = sidecar.metrics()?.sum(calls, &[]);
    ensure!(started >= 1.0, "the sidecar has carried no call");
    Ok(())
}

fn at_home(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

const PORT: u16 = 50051;
/// A little less than 1 Gbit/s. 2 MB fill it, there and back, which is eight times what a sender may have under way
/// that nobody has measured.
const PATH: Path = Path {
    delay: Duration::from_millis(10),
    rate: 100_000_000,
};
const MEASURED: Duration = Duration::from_secs(3);
const TRIES: usize = 10;
const PATIENCE: Duration = Duration::from_secs(20);
const ENOUGH: f64 = 0.8;
