//! Control as it is started, with the limits that hold if nobody says others, under a flood: who is silent, or stops in the middle
//! of a handshake, is closed in time, and neither members nor newcomers are the worse for it.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use support::crowd::{crowd, hello};
use support::{Control, Family, Pod, in_netns};

use crate::certificates::{A_LIFE, A_MINUTE, certifications_that_failed};
use crate::clock::join;
use crate::shop::{Shop, certified, none_failed, timed};

#[test]
fn the_silent_and_those_of_half_a_handshake_are_closed_in_time_while_members_renew_and_a_newcomer_joins() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&A_MINUTE)?, 1, &[], &[])?;
        let (attacker, newcomer) = (mesh.pod("attacker")?, mesh.pod("newcomer")?);
        let traffic = shop.calls(50, Duration::from_secs(120))?;
        let (flood, newcomer) = flooded(&attacker, &shop.control, || {
            timed(AT_MOST, "as many shake hands as may", || {
                let metrics = shop.control.metrics();
                metrics.is_ok_and(|metrics| metrics.sum("portunus_control_connections", &[]) >= HANDSHAKES)
            })?;
            let before: Vec<_> = shop.sidecars().map(certified).collect();
            let newcomer = join(&newcomer, &shop.control)?;
            timed(A_LIFE, "every member has renewed its certificate", || {
                let mut all = shop.sidecars().zip(&before);
                all.all(|(sidecar, before)| certified(sidecar) > *before)
            })?;
            ensure!(shop.control.admin("/ready")?.status == 200, "control is not ready");
            Ok(newcomer)
        })?;
        println!(
            "{} connections, of which the longest lived {:?}",
            flood.count, flood.longest
        );
        ensure!(flood.longest < AT_MOST, "a connection lived {:?}", flood.longest);

        // Those at the sidecars' door are counted, each once.
        let refused = || -> Result<(f64, f64)> {
            let metrics = shop.control.metrics()?;
            let refused = |reason| metrics.sum("portunus_control_refused_total", &[("reason", reason)]);
            Ok((refused("no_room"), refused("handshake_timeout")))
        };
        timed(AT_MOST, "each is counted", || {
            refused().is_ok_and(|(no_room, too_slow)| no_room + too_slow >= flood.count as f64)
        })?;
        let (no_room, too_slow) = refused()?;
        println!("{no_room} made room, {too_slow} were too slow");
        ensure!(
            no_room + too_slow == flood.count as f64 && too_slow >= HANDSHAKES,
            "of {} connections {no_room} made room, and {too_slow} were too slow",
            flood.count
        );
        for sidecar in shop.sidecars().chain([&newcomer]) {
            let failed = certifications_that_failed(sidecar);
            ensure!(failed == 0.0, "somebody was not certified {failed} times");
            ensure!(!sidecar.output().contains("control is away"), "somebody missed control");
        }
        none_failed(&traffic.stop()?, 500, "while control was flooded")
    });
}

/// What a flood was.
#[derive(Default)]
struct Flood {
    /// How many connections there were, at the door of sidecars.
    count: usize,
    /// How long the longest lived, at any door.
    longest: Duration,
}

/// Floods control from a pod, crowd after crowd, while something happens.
fn flooded<T>(from: &Pod, control: &Control, meanwhile: impl FnOnce() -> Result<T>) -> Result<(Flood, T)> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = scope.spawn(|| in_netns(from, || crowds(control, &over))?);
        let happened = meanwhile();
        over.store(true, Relaxed);
        let flood = flood.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((flood?, happened?))
    })
}

fn crowds(control: &Control, over: &AtomicBool) -> Result<Flood> {
    let (sidecars, admin) = (control.at(Family::V4)?, control.pod().at(Family::V4, 9995)?);
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let hello = hello(config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut flood = Flood::default();
    while !over.load(Relaxed) {
        let lived = runtime.block_on(async {
            tokio::join!(
                crowd(sidecars, 2_000, b""),
                crowd(sidecars, 500, &hello[..hello.len() / 2]),
                crowd(sidecars, 500, &hello),
                crowd(admin, 500, b""),
            )
        });
        flood.count += 3_000;
        flood.longest = flood.longest.max(lived.0).max(lived.1).max(lived.2).max(lived.3);
    }
    Ok(flood)
}

/// How many may shake hands at once.
const HANDSHAKES: f64 = 512.0;
/// A connection that has proven nothing is closed within this time.
const AT_MOST: Duration = Duration::from_secs(15);
