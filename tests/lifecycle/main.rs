//! A sidecar begins, ends, is killed and comes back without the application's calls noticing, and says how it is.

mod copies;
mod goaway;
mod liveness;
mod logs;
mod user;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use support::{
    Family, Mesh, Peer, Pod, Sidecar, Stack, User, build, http, peer,
    traffic::{self, Endpoint, NAME, Traffic, addresses, alone, among_others, now},
    wait_until,
};

#[test]
fn sigterm_under_load_fails_no_call_while_others_take_over() {
    let _among = among_others();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        // Calls run for a while, so that some are under way when the signal comes.
        let mut endpoints = Endpoint::several(mesh, 2, Duration::from_millis(300))?;
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let caller = mesh.pod("caller")?;
        let _sidecar = caller.sidecar()?;
        let time = Duration::from_secs(8);
        let traffic = Traffic::start(&caller, 200, time)?;
        traffic.flow(Duration::from_secs(2));
        let asked = now();
        let ended = endpoints[0].sidecar.stop(Duration::from_secs(20))?;
        let after = now();
        let said = endpoints[0].sidecar.output();
        ensure!(
            ended.success() && said.contains("nothing was cut"),
            "the sidecar ended with {ended}:\n{said}"
        );
        let calls = traffic.end(time)?;
        ensure!(calls.failed().is_empty(), "calls failed:{}", calls.failed());
        let under_way =
            calls.between(0.0, asked).0.iter().any(|call| {
                call.from == endpoints[0].pod.name() && call.at < asked && call.at + call.ms / 1_000.0 > asked
            });
        ensure!(under_way, "no call was under way: nothing was shown");
        let since = calls.between(after + 0.5, f64::MAX);
        ensure!(
            since.len() > 200 && since.share(&endpoints[1]) == 1.0,
            "of {} calls after the end {} were answered beside it",
            since.len(),
            since.share(&endpoints[0])
        );
        Ok(())
    });
}

#[test]
fn after_sigterm_outbound_goes_on_until_the_application_closes() {
    let _among = among_others();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 1, Duration::from_millis(2))?;
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let caller = mesh.pod("caller")?;
        let mut sidecar = caller.sidecar()?;
        let time = Duration::from_secs(6);
        let traffic = Traffic::start(&caller, 100, time)?;
        sidecar.signal(Signal::SIGTERM)?;
        let asked = now();
        wait_until(Duration::from_secs(2), "it is not ready any more", || {
            sidecar.admin("/ready").is_ok_and(|answer| answer.status == 503)
        })?;
        // The application also opens new connections while it winds down.
        traffic.flow(Duration::from_secs(1));
        let late = peer::caller(&caller, Stack::Tonic, &format!("{NAME}:{}", traffic::PORT), 20, SECOND)?;
        let mut late = late;
        ensure!(late.wait(SECOND * 10)?.success(), "the late caller ended well");
        let said = late.output();
        ensure!(
            said.lines().filter(|line| line.contains("\"OK\"")).count() == 20,
            "a caller that connects after SIGTERM is not served: {said}"
        );
        let calls = traffic.end(time)?;
        ensure!(calls.failed().is_empty(), "calls failed:{}", calls.failed());
        ensure!(
            calls.between(asked + 2.0, f64::MAX).len() > 100,
            "the application did not go on calling"
        );
        let ended = sidecar
            .wait(Duration::from_secs(5))
            .context("the application is gone")?;
        let said = sidecar.output();
        ensure!(
            ended.success() && said.contains("nothing was cut"),
            "it ended with {ended}:\n{said}"
        );
        Ok(())
    });
}

#[test]
fn several_workers_carry_drain_and_end_as_one() {
    let _among = among_others();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, Duration::from_millis(2))?;
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let caller = mesh.pod("caller")?;
        let mut sidecar = caller.sidecar_with(&[("PORTUNUS_WORKERS", "3")])?;
        let target = format!("{NAME}:{}", traffic::PORT);
        let callers = (0..8).map(|_| peer::caller(&caller, Stack::Tonic, &target, 40, SECOND * 3));
        let callers = callers.collect::<Result<Vec<_>>>()?;
        wait_until(SECOND * 10, "every caller is served", || {
            callers.iter().all(|caller| caller.output().contains("\"OK\""))
        })?;
        sidecar.signal(Signal::SIGTERM)?;
        for mut caller in callers {
            ensure!(caller.wait(SECOND * 20)?.success(), "a caller ended well");
            let said = caller.output();
            let answered = said.lines().filter(|line| line.contains("\"OK\"")).count();
            ensure!(answered == 120, "of 120 calls {answered} were answered:\n{said}");
        }
        let ended = sidecar.wait(SECOND * 5)?;
        let said = sidecar.output();
        ensure!(
            ended.success() && said.contains("workers=3") && said.contains("nothing was cut"),
            "it ended with {ended}:\n{said}"
        );
        Ok(())
    });
}

#[test]
fn a_second_signal_cuts_what_runs_and_counts_it() {
    support::test(|mesh| cut(mesh, "25s", true));
}

#[test]
fn the_end_of_the_grace_period_cuts_what_runs_and_counts_it() {
    support::test(|mesh| cut(mesh, "1s", false));
}

fn cut(mesh: &Mesh, grace: &str, second: bool) -> Result<()> {
    let dns = mesh.dns()?;
    let endpoint = Endpoint::start(mesh, 1, Duration::from_secs(20))?;
    dns.set(NAME, &addresses([&endpoint]), 5)?;
    let caller = mesh.pod("caller")?;
    let mut sidecar = caller.sidecar_with(&[("PORTUNUS_SHUTDOWN_GRACE_PERIOD", grace)])?;
    let target = format!("{NAME}:{}", traffic::PORT);
    let mut call = peer::caller(&caller, Stack::Tonic, &target, 1, SECOND)?;
    wait_until(SECOND * 10, "the call is under way", || {
        sidecar.metrics().is_ok_and(|metrics| {
            metrics.sum("grpc_client_started_total", &[]) == 1.0
                && metrics.sum(
                    "portunus_connections",
                    &[("direction", "outbound"), ("side", "upstream")],
                ) >= 1.0
        })
    })?;
    sidecar.signal(Signal::SIGTERM)?;
    if second {
        wait_until(SECOND * 2, "the first signal was heard", || {
            sidecar.admin("/ready").is_ok_and(|answer| answer.status == 503)
        })?;
        ensure!(sidecar.is_running(), "the first signal cut it");
        sidecar.signal(Signal::SIGTERM)?;
    }
    let ended = sidecar.wait(SECOND * 4)?;
    let said = sidecar.output();
    ensure!(ended.success(), "it ended with {ended}:\n{said}");
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        last.contains("was cut") && last.contains("rpcs=1 ") && last.ends_with("connections=1"),
        "its last words count nothing: {last}"
    );
    call.says("UNAVAILABLE", SECOND * 3)?;
    ensure!(
        call.output().contains("grace period"),
        "the caller is not told why: {}",
        call.output()
    );
    Ok(())
}

#[test]
fn killed_and_started_again_under_load_it_listens_within_200_ms() {
    let _alone = alone();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, Duration::from_millis(2))?;
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let caller = mesh.pod("caller")?;
        let mut sidecar = caller.sidecar()?;
        let traffic = Traffic::start(&caller, 300, Duration::from_secs(120))?;
        let mut times = Vec::new();
        for round in 0..9 {
            traffic.flow(Duration::from_millis(700));
            let began = Instant::now();
            sidecar.restart()?;
            times.push(began.elapsed());
            let back = now();
            wait_until(
                SECOND * 10,
                &format!("calls go well again after restart {round}"),
                || {
                    traffic
                        .calls()
                        .between(back, f64::MAX)
                        .0
                        .iter()
                        .any(traffic::Call::is_ok)
                },
            )?;
            let soon = traffic.calls().between(back + 1.0, f64::MAX).failed();
            ensure!(soon.is_empty(), "a second later calls still fail:{soon}");
        }
        // From the kill to ready, `ip netns exec` and all. The third of nine, so that pauses of a busy machine do not count.
        times.sort();
        ensure!(
            times[2] < Duration::from_millis(200),
            "from a kill to ready it took {times:?}"
        );
        Ok(())
    });
}

#[test]
fn it_is_not_ready_while_the_redirect_rules_are_missing() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let program = pod.place(&build::sidecar()?)?;
        let mut command = pod.command(User::Sidecar, &program);
        command.arg("proxy");
        let _proxy = pod.start("sidecar", command)?;
        let rules = |arguments: &[&str]| {
            let mut command = pod.command(User::Root, &program);
            command.arg("redirect").args(arguments);
            pod.run("redirect", command)
        };
        wait_until(SECOND * 10, "it listens, and says that rules are missing", || {
            is_ready(&pod).is_some_and(|(status, why)| status == 503 && why.contains("redirect"))
        })?;
        // It stays so.
        let began = Instant::now();
        while began.elapsed() < SECOND {
            let (status, why) = is_ready(&pod).context("the admin port is closed")?;
            ensure!(status == 503, "it became ready without rules: {status} {why}");
        }
        rules(&[])?;
        wait_until(SECOND * 5, "it is ready with rules", || {
            is_ready(&pod).is_some_and(|(status, _)| status == 200)
        })?;
        rules(&["--remove"])?;
        wait_until(SECOND * 15, "it misses the rules that were removed", || {
            is_ready(&pod).is_some_and(|(status, _)| status == 503)
        })?;
        rules(&[])?;
        wait_until(SECOND * 5, "it is ready again", || {
            is_ready(&pod).is_some_and(|(status, _)| status == 200)
        })
    });
}

#[test]
fn a_port_that_the_rules_keep_is_a_wrong_setting_of_both_commands() {
    for arguments in [
        ["proxy", "--admin-listen=127.0.0.1:4192"],
        ["redirect", "--proxy-admin=4192"],
        ["redirect", "--proxy-inbound=4192"],
    ] {
        let sidecar = build::sidecar().expect("it is built");
        let output = Command::new(sidecar).args(arguments).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {said}");
        assert!(said.contains("has port 4192") && said.lines().count() == 1, "{said}");
    }
}

fn is_ready(pod: &Pod) -> Option<(u16, String)> {
    let answer = http::get(pod, SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN)), "/ready").ok()?;
    Some((answer.status, answer.body))
}

#[test]
fn the_network_may_probe_and_scrape_and_only_the_pod_itself_may_look_inside_or_drain() {
    support::test(|mesh| {
        let (pod, neighbour, meshed) = (mesh.pod("pod")?, mesh.pod("neighbour")?, mesh.pod("meshed")?);
        let (mut sidecar, _other) = (pod.sidecar()?, meshed.sidecar()?);
        for family in Family::ALL {
            let address = pod.at(family, ADMIN)?;
            for caller in [&neighbour, &meshed] {
                for page in ["/live", "/ready", "/metrics"] {
                    let answer = http::get(caller, address, page)?;
                    ensure!(
                        answer.status == 200,
                        "{page} says {} to {}",
                        answer.status,
                        caller.name()
                    );
                }
                for (method, page) in [("GET", "/config"), ("GET", "/endpoints"), ("POST", "/drain")] {
                    let answer = http::ask(caller, address, method, page)?;
                    ensure!(
                        answer.status == 403,
                        "{method} {page} says {} to {}",
                        answer.status,
                        caller.name()
                    );
                }
            }
        }
        ensure!(sidecar.admin("/ready")?.status == 200, "a stranger drained it");
        for page in ["/config", "/endpoints"] {
            let answer = sidecar.admin(page)?;
            let read: Result<serde_json::Value, _> = serde_json::from_str(&answer.body);
            ensure!(
                answer.status == 200 && read.is_ok(),
                "{page} says {} {} to its own pod",
                answer.status,
                answer.body
            );
        }
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN));
        let asked = http::ask(&pod, own, "POST", "/drain")?;
        ensure!(asked.status == 202, "/drain says {} to its own pod", asked.status);
        let ended = sidecar.wait(SECOND * 10)?;
        ensure!(ended.success(), "drained, it ended with {ended}");
        Ok(())
    });
}

/// A sample, as Prometheus's own library reads it.
#[derive(Debug, Deserialize)]
struct Sample {
    name: String,
    labels: std::collections::BTreeMap<String, String>,
    value: f64,
}

#[test]
fn the_metrics_are_read_by_prometheus_own_library_in_both_formats() {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let sidecars = (client.sidecar()?, server.sidecar()?);
        dns.set("server.test", &server.addresses(), 5)?;
        let _app = Peer::start(&server, Stack::Tonic, 10000)?;
        let cases = [
            "empty_unary",
            "ping_pong",
            "status_code_and_message",
            "unimplemented_method",
        ];
        support::interop::run(&client, Stack::Tonic, "server.test:10000", &cases)?;
        for (pod, sidecar, prefix, direction) in [
            (&client, &sidecars.0, "grpc_client", "outbound"),
            (&server, &sidecars.1, "grpc_server", "inbound"),
        ] {
            let samples = samples(pod, sidecar)?;
            let sum = |name: &str, labels: &[(&str, &str)]| -> f64 {
                let has = |sample: &&Sample| {
                    sample.name == name
                        && labels
                            .iter()
                            .all(|(label, value)| sample.labels.get(*label).is_some_and(|found| found == value))
                };
                samples.iter().filter(has).map(|sample| sample.value).sum()
            };
            let method = ("grpc_method", "EmptyCall");
            for (what, value) in [
                ("started", sum(&format!("{prefix}_started_total"), &[method])),
                (
                    "handled",
                    sum(&format!("{prefix}_handled_total"), &[method, ("grpc_code", "OK")]),
                ),
                ("timed", sum(&format!("{prefix}_handling_seconds_count"), &[method])),
                (
                    "unimplemented",
                    // The application has no health service either, which the caller's sidecar asks for.
                    sum(
                        &format!("{prefix}_handled_total"),
                        &[
                            ("grpc_code", "Unimplemented"),
                            ("grpc_service", "grpc.testing.TestService"),
                        ],
                    ),
                ),
            ] {
                ensure!(value == 1.0, "{prefix}: {what} is {value}");
            }
            ensure!(
                sum("portunus_requests_total", &[("direction", direction)]) >= 4.0,
                "{direction} counts no requests"
            );
            for name in [
                "portunus_connections",
                "portunus_build_info",
                "portunus_memory_budget_bytes",
            ] {
                ensure!(samples.iter().any(|sample| sample.name == name), "there is no {name}");
            }
        }
        Ok(())
    });
}

fn samples(pod: &Pod, sidecar: &Sidecar) -> Result<Vec<Sample>> {
    ensure!(sidecar.admin("/metrics")?.status == 200, "there are metrics");
    let mut command = peer::python(pod, "read_metrics.py")?;
    command.arg(format!("--url=http://127.0.0.1:{ADMIN}/metrics"));
    let said = pod.run("read-metrics", command)?;
    said.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("the reader wrote {line}")))
        .collect()
}

const ADMIN: u16 = 4191;
const SECOND: Duration = Duration::from_secs(1);
