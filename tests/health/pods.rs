//! Health checks as they go between members of a mesh: in mTLS, to the health services that grpcio and tonic bring.

use std::time::Duration;

use anyhow::{Result, ensure};
use support::traffic::{self, Call, Calls, Endpoint, PORT, Reply, Streams, Traffic, alone, among_others, now};
use support::{Capture, Family, Mesh, Pauses, Sidecar, Stack, wait_until};

use crate::shop::{App, Greeter, NAME, PATIENCE, Shop};

/// Calls a second.
const RATE: u32 = 100;
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

#[test]
fn whoever_says_not_serving_gets_no_new_call_after_an_interval_in_mtls_while_its_streams_go_on_and_comes_back() {
    let interval = Duration::from_millis(800);
    support::test(|mesh| {
        let shop = open(mesh, "mode: Check, interval: 800ms, timeout: 30s")?;
        follow(&shop, interval + Duration::from_millis(100))?;
        for greeter in &shop.greeters {
            ensure!(
                greeter.heard("Check")? > 0.0 && greeter.heard("Watch")? == 0.0,
                "{} was not asked by Check alone",
                greeter.pod.name()
            );
        }
        Ok(())
    });
}

#[test]
fn a_watch_in_mtls_tells_at_once_that_an_endpoint_does_not_serve_and_that_it_serves_again() {
    support::test(|mesh| {
        // An interval that would be noticed.
        let shop = open(mesh, "mode: Watch, interval: 1h, timeout: 5s")?;
        follow(&shop, Duration::from_millis(100))?;
        for greeter in &shop.greeters {
            let (watches, checks) = (greeter.heard("Watch")?, greeter.heard("Check")?);
            ensure!(
                (watches, checks) == (1.0, 0.0),
                "{} was asked by {watches} Watch and {checks} Check",
                greeter.pod.name()
            );
        }
        Ok(())
    });
}

#[test]
fn calls_leave_an_application_that_stands_still_within_two_seconds_in_mtls_and_come_back() {
    support::test(|mesh| {
        // All else is as it is where no policy says anything.
        let shop = open(mesh, "mode: Check")?;
        let _alone = alone();
        // One of three will do: what holds up one of three programs is not always seen by who watches for pauses.
        for (tries, greeter) in (1..).zip(&shop.greeters) {
            let name = greeter.pod.name();
            let (last, late) = is_called_last_while_it_stands_still(&shop, greeter)?;
            println!("{name} was called {last:.3} s after it had stood still; {late:.3} s are allowed");
            if last <= late {
                break;
            }
            ensure!(tries < 3, "{name} was called {last:.3} s after it had stood still");
        }
        shop.greeters.iter().try_for_each(Greeter::has_seen_mtls_alone)
    });
}

/// Its application stops, and goes on later. How long after that a call began there, or failed, at the latest; and how long that
/// may be.
fn is_called_last_while_it_stands_still(shop: &Shop, greeter: &Greeter) -> Result<(f64, f64)> {
    let name = greeter.pod.name();
    let traffic = Traffic::to(&shop.caller, NAME, RATE, LONG)?;
    wait_until(PATIENCE, "all are called, and checked", || {
        traffic.calls().answered_by().len() == shop.greeters.len() && shop.checks("serving") >= 3.0
    })?;
    let pauses = Pauses::watch();
    let (ejections, calls) = (shop.ejections("silent")?, greeter.calls()?);
    greeter.app.program.pause()?;
    let stood = now();
    wait_until(PATIENCE, "calls go on elsewhere", || {
        traffic.calls().between(stood + 3.0, f64::MAX).len() >= 100
    })?;
    // Three programs, one after the other, have to run for it.
    let late = (Duration::from_secs(2) + pauses.longest() * 3).as_secs_f64();
    let ejections = shop.ejections("silent")? - ejections;
    ensure!(ejections >= 1.0, "{name} was not ejected for its silence");
    let calls = greeter.calls()? - calls;
    let went_on = now();
    greeter.app.program.resume()?;
    wait_until(PATIENCE, &format!("{name} is called again"), || {
        let calls = traffic.calls().between(went_on, f64::MAX).0;
        calls.iter().filter(|call| call.from == name).count() >= 20
    })?;
    let all = traffic.stop()?;
    // What waited there may have failed, and nothing else.
    let failed = all.failed();
    ensure!(
        failed.len() as f64 <= calls,
        "{calls} calls came to {name}, and these failed:{failed}"
    );
    let was_there = |call: &&Call| !call.is_ok() || (call.from == name && call.at < went_on);
    let last = all.0.iter().filter(was_there).map(|call| call.at - stood);
    Ok((last.fold(0.0, f64::max), late))
}

#[test]
fn a_service_is_asked_for_by_the_name_that_the_policy_says() {
    for mode in ["Check", "Watch"] {
        support::test(|mesh| {
            let _among = among_others();
            let shop = open(
                mesh,
                &format!("mode: {mode}, interval: 300ms, timeout: 30s, service: helloworld.Greeter"),
            )?;
            let traffic = Traffic::to(&shop.caller, NAME, RATE, LONG)?;
            wait_until(PATIENCE, "all serve what is asked for", || {
                let heard = |greeter: &Greeter| greeter.heard(mode).is_ok_and(|asked| asked > 0.0);
                shop.checks("serving") >= 3.0 && shop.greeters.iter().all(heard)
            })?;
            ensure!(shop.checks("service_unknown") == 0.0, "by {mode}, the service is known");
            let failed = traffic.calls().failed();
            ensure!(failed.is_empty(), "by {mode}, calls failed:{failed}");
            Ok(())
        });
    }
}

#[test]
fn where_nobody_knows_the_service_that_is_asked_for_calls_fail_at_once_and_say_so() {
    for mode in ["Check", "Watch"] {
        support::test(|mesh| {
            let _among = among_others();
            let shop = open(mesh, &format!("mode: {mode}, interval: 300ms, service: shop.Nothing"))?;
            let traffic = Traffic::to(&shop.caller, NAME, RATE, LONG)?;
            for greeter in &shop.greeters {
                shop.until(greeter, "unhealthy")?;
            }
            let since = now();
            let after = || traffic.calls().between(since, f64::MAX);
            wait_until(PATIENCE, "calls fail", || after().len() >= 20)?;
            let says = "3 of 3 endpoints say SERVICE_UNKNOWN";
            let calls = after();
            ensure!(
                calls
                    .0
                    .iter()
                    .all(|call| call.code == "UNAVAILABLE" && call.why.contains(says)),
                "by {mode}:{calls}"
            );
            Ok(())
        });
    }
}

#[test]
fn applications_without_a_health_service_are_healthy_and_reported_once() {
    let apps = [
        App::GreeterWithoutHealth(Stack::Python),
        App::GreeterWithoutHealth(Stack::Tonic),
        App::Interop(Stack::Go),
    ];
    support::test(|mesh| are_left_in_peace_and_reported_once(mesh, &apps, "unimplemented", "have no grpc.health.v1"));
}

#[test]
fn applications_that_answer_checks_with_something_else_are_alive_and_reported_once() {
    let (unauthenticated, permission_denied) = (16, 7);
    let apps = [
        App::GreeterThatAnswersChecksWith(Stack::Python, unauthenticated),
        App::GreeterThatAnswersChecksWith(Stack::Tonic, permission_denied),
        App::Web,
    ];
    support::test(|mesh| are_left_in_peace_and_reported_once(mesh, &apps, "no_verdict", "they tell nothing"));
}

/// However often these are checked, they are called as any other, and the log has one line that says this.
fn are_left_in_peace_and_reported_once(mesh: &Mesh, apps: &[App], outcome: &str, line: &str) -> Result<()> {
    let _among = among_others();
    let workers = [("PORTUNUS_WORKERS", "2")];
    let shop = Shop::open(mesh, "mode: Check, interval: 200ms, timeout: 30s", &workers, apps)?;
    // Who greets nobody answers UNIMPLEMENTED, or 404: that calls were answered is what counts here.
    let callers: Result<Vec<_>> = (0..8)
        .map(|_| Traffic::to(&shop.caller, NAME, RATE / 4, LONG))
        .collect();
    let callers = callers?;
    wait_until(PATIENCE, "each is checked again and again", || {
        let often = |greeter: &Greeter| greeter.heard("Check").is_ok_and(|checks| checks >= 10.0);
        shop.greeters.iter().all(often)
    })?;
    for greeter in &shop.greeters {
        let state = shop.state(greeter)?;
        ensure!(state == "ready", "{} is {state}", greeter.pod.name());
        greeter.has_seen_mtls_alone()?;
    }
    let mut found = shop.outcomes()?;
    found.retain(|_, checks| *checks > 0.0);
    ensure!(found.keys().eq([outcome]), "they have found {found:?}");
    let log = shop.sidecar.output();
    let lines: Vec<_> = log.lines().filter(|said| said.contains(line)).collect();
    ensure!(lines.len() == 1, "it was reported {} times: {lines:#?}", lines.len());
    let answered = |call: &Call| call.is_ok() || call.code == "UNIMPLEMENTED" || call.why.contains("404 Not Found");
    for traffic in &callers {
        let calls = Calls(traffic.calls().0.into_iter().filter(|call| !answered(call)).collect());
        ensure!(calls.is_empty(), "calls failed:{calls}");
    }
    Ok(())
}

#[test]
fn names_of_dns_are_checked_as_the_command_line_says_where_there_is_no_policy() {
    support::test(|mesh| {
        let _among = among_others();
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, Duration::ZERO)?;
        dns.set(traffic::NAME, &traffic::addresses(&endpoints), 5)?;
        let asked = |method: &str| -> Result<f64> {
            let labels = [("grpc_service", "grpc.health.v1.Health"), ("grpc_method", method)];
            let metrics: Result<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.sidecar.metrics()).collect();
            let asked = metrics?
                .iter()
                .map(|metrics| metrics.sum("grpc_server_started_total", &labels))
                .sum();
            Ok(asked)
        };
        let caller = |name: &str, settings: &[(&str, &str)]| -> Result<(Sidecar, Traffic)> {
            let pod = mesh.pod_of(name, &[Family::V4])?;
            let sidecar = pod.sidecar_with(settings)?;
            let traffic = Traffic::start(&pod, RATE, LONG)?;
            Ok((sidecar, traffic))
        };
        let both = |traffic: &Traffic, calls: usize| {
            wait_until(PATIENCE, "both are called", || {
                let calls_so_far = traffic.calls();
                calls_so_far.answered_by().len() == 2 && calls_so_far.len() >= calls
            })
        };
        // More calls than the first check of a default interval is waited for.
        let off = caller("off", &[("PORTUNUS_HEALTH_CHECK", "off")])?;
        both(&off.1, 300)?;
        ensure!(
            (asked("Check")?, asked("Watch")?) == (0.0, 0.0),
            "off, and they are asked"
        );
        drop(off);

        let watch = caller("watch", &[("PORTUNUS_HEALTH_CHECK", "watch")])?;
        wait_until(PATIENCE, "both are watched", || {
            asked("Watch").is_ok_and(|asked| asked == 2.0)
        })?;
        both(&watch.1, 300)?;
        ensure!(
            (asked("Check")?, asked("Watch")?) == (0.0, 2.0),
            "watch, and they are asked otherwise"
        );
        drop(watch);

        let often = caller("often", &[("PORTUNUS_HEALTH_CHECK_INTERVAL", "100ms")])?;
        wait_until(PATIENCE, "both are asked often", || {
            asked("Check").is_ok_and(|asked| asked >= 20.0)
        })?;
        let serving = often
            .0
            .metrics()?
            .sum("portunus_health_checks_total", &[("outcome", "serving")]);
        ensure!(serving > 10.0, "{serving} checks said SERVING");
        Ok(())
    });
}

/// Three greeters, each with its stack's own health service.
fn open(mesh: &Mesh, health_check: &str) -> Result<Shop> {
    let stacks = [Stack::Python, Stack::Tonic, Stack::Tonic];
    Shop::open(mesh, health_check, &[], &stacks.map(App::Greeter))
}

/// One after the other turns, and turns again: calls follow within `noticed`, and streams do not notice.
fn follow(shop: &Shop, noticed: Duration) -> Result<()> {
    let _alone = alone();
    let on_the_wire = format!("tcp port {PORT}");
    let greeters = shop.greeters.iter();
    let wires: Result<Vec<_>> = greeters
        .map(|greeter| Capture::start(&greeter.pod, "eth0", &on_the_wire))
        .collect();
    let wires = wires?;
    let streams = Streams::open(&shop.caller, NAME, 24)?;
    let traffic = Traffic::to(&shop.caller, NAME, RATE, LONG)?;
    wait_until(PATIENCE, "all are called, and checked", || {
        traffic.calls().answered_by().len() == shop.greeters.len() && shop.checks("serving") >= 3.0
    })?;
    for greeter in shop.greeters.iter().take(2) {
        is_left_and_found_again(shop, greeter, &traffic, &streams, noticed)?;
    }
    let replies = streams.replies();
    let ended: Vec<_> = replies.iter().filter(|reply| reply.code.is_some()).collect();
    ensure!(ended.is_empty(), "streams ended: {ended:?}");
    let failed = traffic.calls().failed();
    ensure!(failed.is_empty(), "calls failed:{failed}");
    for wire in wires {
        let seen = wire.stop()?;
        ensure!(seen.lines().count() > 100, "the wire was not seen:\n{seen}");
        ensure!(!seen.contains("PRI * HTTP/2.0"), "HTTP/2 was plain on the wire");
    }
    shop.greeters.iter().try_for_each(Greeter::has_seen_mtls_alone)
}

/// It says NOT_SERVING, and then SERVING.
fn is_left_and_found_again(
    shop: &Shop,
    greeter: &Greeter,
    traffic: &Traffic,
    streams: &Streams,
    noticed: Duration,
) -> Result<()> {
    let name = greeter.pod.name();
    // When calls began there, in seconds after a moment.
    let called_since = |moment: f64| -> Vec<f64> {
        let calls = traffic.calls().between(moment, f64::MAX).0;
        let own = calls.iter().filter(|call| call.from == name);
        own.map(|call| call.at - moment).collect()
    };
    // One of three times will do: what holds up one of three programs is not always seen by who watches for pauses.
    let mut tries = 0;
    let known = loop {
        tries += 1;
        let pauses = Pauses::watch();
        let turned = greeter.app.turn("NOT_SERVING")?;
        shop.until(greeter, "unhealthy")?;
        let known = now();
        wait_until(PATIENCE, "calls go on elsewhere", || {
            traffic.calls().between(known + 1.0, f64::MAX).len() >= 50
        })?;
        // Three programs, one after the other, have to run for it.
        let late = (noticed + pauses.longest() * 3).as_secs_f64();
        let last = called_since(turned).into_iter().fold(0.0, f64::max);
        println!("{name} was called {last:.3} s after it had said NOT_SERVING; {late:.3} s are allowed");
        if last <= late {
            break known;
        }
        ensure!(tries < 3, "{name} was called {last:.3} s after it had said NOT_SERVING");
        let turned = greeter.app.turn("SERVING")?;
        shop.until(greeter, "ready")?;
        wait_until(PATIENCE, &format!("{name} is called again"), || {
            !called_since(turned).is_empty()
        })?;
    };
    wait_until(PATIENCE, &format!("streams of {name} go on"), || {
        let replies = streams.replies();
        let goes_on = |reply: &Reply| reply.from == name && reply.at > known + 1.0;
        replies.iter().any(goes_on)
    })?;
    let turned = greeter.app.turn("SERVING")?;
    shop.until(greeter, "ready")?;
    wait_until(PATIENCE, &format!("{name} is called again"), || {
        called_since(turned).len() >= 20
    })
}
