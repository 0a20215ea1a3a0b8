//! What `/live` and `/ready` say of workers that hang or hear nobody.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use support::{
    Family, Pod, Sidecar, in_netns,
    traffic::{Endpoint, NAME, Traffic, addresses, alone},
    wait_until,
};

#[test]
fn a_worker_that_hangs_is_told_by_live_and_ready_until_it_turns_again() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let mut sidecar = pod.sidecar_with(&[("PORTUNUS_WORKERS", "3")])?;
        let began = Instant::now();
        let hanging = sidecar.hang_thread("worker-1")?;
        wait_until(SECOND * 20, "the worker is missed", || {
            sidecar.admin("/live").is_ok_and(|answer| answer.status == 503)
        })?;
        let after = began.elapsed();
        ensure!(after > SECOND * 8, "it was taken for hanging after {after:?}");
        let live = sidecar.admin("/live")?;
        ensure!(
            live.body.starts_with("not live: worker-1 has not turned for 1") && !live.body.contains("worker-0"),
            "/live says {live:?}"
        );
        let ready = sidecar.admin("/ready")?;
        ensure!(
            ready.status == 503 && ready.body.contains("worker-1 has not turned"),
            "/ready says {ready:?}"
        );
        ensure!(sidecar.admin("/metrics")?.status == 200, "the admin pages hang as well");
        drop(hanging);
        wait_until(SECOND * 5, "all is well again", || {
            ["/live", "/ready"]
                .iter()
                .all(|page| sidecar.admin(page).is_ok_and(|answer| answer.status == 200))
        })?;
        sidecar.says("worker-1 turns again", SECOND * 5)?;
        let said = sidecar.output();
        ensure!(said.matches("worker-1 hangs").count() == 1, "the log says:\n{said}");
        let ended = sidecar.stop(SECOND * 10)?;
        ensure!(ended.success(), "it ended with {ended}");
        Ok(())
    });
}

#[test]
fn idle_workers_live_and_so_do_busy_ones_and_a_process_that_was_stopped_as_a_whole() {
    let _alone = alone();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 1, Duration::from_millis(2))?;
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let (caller, idle, stopped) = (mesh.pod("caller")?, mesh.pod("idle")?, mesh.pod("stopped")?);
        let workers = |pod: &Pod| pod.sidecar_with(&[("PORTUNUS_WORKERS", "2")]);
        let sidecars = [workers(&caller)?, workers(&idle)?, workers(&stopped)?];
        let [_, _, frozen] = &sidecars;
        frozen.pause()?;
        let time = SECOND * 15;
        let traffic = Traffic::start(&caller, 1_000, time)?;
        let began = Instant::now();
        let mut looks = 0;
        while began.elapsed() < SECOND * 13 {
            is_live(&sidecars[0]).context("the busy one")?;
            is_live(&sidecars[1]).context("the idle one")?;
            looks += 1;
        }
        ensure!(looks > 100, "only {looks} looks were had");
        frozen.resume()?;
        let began = Instant::now();
        while began.elapsed() < SECOND * 2 {
            is_live(frozen).context("the one that was stopped")?;
        }
        let calls = traffic.end(time)?;
        ensure!(calls.failed().is_empty(), "calls failed:{}", calls.failed());
        Ok(())
    });
}

#[test]
fn a_worker_that_does_not_end_is_not_waited_for_and_not_said_to_have_cut_nothing() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let settings = [("PORTUNUS_WORKERS", "2"), ("PORTUNUS_SHUTDOWN_GRACE_PERIOD", "0s")];
        let mut sidecar = pod.sidecar_with(&settings)?;
        let hanging = sidecar.hang_thread("worker-0")?;
        sidecar.signal(Signal::SIGTERM)?;
        sidecar.says("the proxy ends; ", SECOND * 5)?;
        drop(hanging);
        let ended = sidecar.wait(SECOND * 5)?;
        let said = sidecar.output();
        let last = said.lines().last().unwrap_or_default();
        ensure!(
            ended.success() && last.contains("workers=1") && !last.contains("nothing"),
            "it ended with {ended}: {last}"
        );
        Ok(())
    });
}

#[test]
fn it_is_not_ready_once_a_listener_has_failed_and_says_which() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let mut sidecar =
            pod.sidecar_with(&[("PORTUNUS_WORKERS", "2"), ("PORTUNUS_INBOUND_LISTEN", "0.0.0.0:4143")])?;
        let shut = sidecar.shut_listeners(4143)?;
        ensure!(shut == 2, "{shut} listeners were shut");
        let mut last = None;
        wait_until(SECOND * 5, "it is not ready", || {
            last = sidecar.admin("/ready").ok();
            last.as_ref().is_some_and(|answer| {
                let of = |worker: &str| {
                    answer
                        .body
                        .contains(&format!("{worker}: 0.0.0.0:4143 takes no connections"))
                };
                answer.status == 503 && of("worker-0") && of("worker-1")
            })
        })
        .with_context(|| format!("/ready says {last:?}"))?;
        ensure!(
            sidecar.admin("/live")?.status == 200,
            "what it carries goes on: that is for nobody to restart"
        );
        let ended = sidecar.stop(SECOND * 10)?;
        ensure!(ended.success(), "it ended with {ended}");
        Ok(())
    });
}

#[test]
fn a_proxy_that_drains_is_not_said_to_hear_nobody() {
    support::test(|mesh| {
        let (pod, server) = (mesh.pod("pod")?, mesh.pod("server")?);
        let mut sidecar = pod.sidecar()?;
        // While the application is connected, the proxy does not end before it was looked at.
        let address = server.at(Family::V4, 7000)?;
        let listener = in_netns(&server, || TcpListener::bind(address))??;
        let mut connected = in_netns(&pod, || TcpStream::connect(address))??;
        connected.write_all(b"word")?;
        let accepted = listener.accept()?;
        sidecar.signal(Signal::SIGTERM)?;
        let mut said = String::new();
        wait_until(SECOND * 5, "it is not ready", || {
            let answer = sidecar.admin("/ready").ok().filter(|answer| answer.status == 503);
            said = answer.map(|answer| answer.body).unwrap_or_default();
            !said.is_empty()
        })?;
        ensure!(said == "not ready: the proxy is stopping\n", "/ready says {said}");
        drop((connected, accepted));
        ensure!(sidecar.wait(SECOND * 10)?.success());
        Ok(())
    });
}

fn is_live(sidecar: &Sidecar) -> Result<()> {
    let answer = sidecar.admin("/live")?;
    ensure!(answer.status == 200, "/live says {answer:?}");
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);
