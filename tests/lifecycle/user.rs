//! A sidecar that runs as another user than the one whose connections the redirect rules leave alone: it says so.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use support::{
    Family, Mesh, Peer, Pod, Sidecar, Stack, User, peer,
    traffic::{self},
    wait_until,
};

/// What the log and `/ready` say of it.
const LOOP: &str = "the redirect rules lead this proxy's own connections back to it: it runs as user 0, and the rules \
                    exempt another";

#[test]
fn under_the_wrong_user_it_is_never_ready_and_says_why_before_any_call() {
    support::test(|mesh| {
        let caller = mesh.pod("caller")?;
        let mut sidecar = caller.sidecar_as(User::Root, &[])?;
        sidecar.says(LOOP, SECOND * 10)?;
        is_named(&sidecar)?;
        ends_soon(&mut sidecar)
    });
}

#[test]
fn under_the_wrong_user_a_call_ends_by_name_and_is_not_multiplied() {
    support::test(|mesh| {
        // Its own address is out of the rules, so that nothing but a call shows what is wrong.
        let (caller, greeter) = (mesh.pod("caller")?, mesh.pod("greeter")?);
        let own = caller.address(Family::V4)?.to_string();
        let settings = [("PORTUNUS_SKIP_SUBNETS", own.as_str()), ("PORTUNUS_WORKERS", "2")];
        let mut sidecar = caller.sidecar_as(User::Root, &settings)?;
        wait_until(SECOND * 10, "nothing is known to be wrong", || {
            sidecar.admin("/ready").is_ok_and(|answer| answer.status == 200)
        })?;
        one_call_is_refused(mesh, &caller, &greeter)?;
        is_named(&sidecar)?;
        let metrics = sidecar.metrics()?;
        let errors = |reason| {
            metrics.sum(
                "portunus_proxy_errors_total",
                &[("direction", "outbound"), ("reason", reason)],
            )
        };
        let (loops, deadlines) = (errors("loop"), errors("deadline"));
        ensure!((2.0..=20.0).contains(&loops), "{loops} were counted as loops");
        ensure!(deadlines == 0.0, "{deadlines} calls came to their deadline");
        let begun = metrics.sum("grpc_client_started_total", &[]);
        ensure!(begun <= 4.0, "one call became {begun}");
        ends_soon(&mut sidecar)
    });
}

#[test]
fn under_the_users_of_the_rules_nothing_is_said_of_loops() {
    support::test(|mesh| {
        let (caller, greeter) = (mesh.pod("caller")?, mesh.pod("greeter")?);
        let _app = Peer::greeter(&greeter, Stack::Tonic, traffic::PORT, Duration::ZERO)?;
        let mut sidecar = caller.sidecar_with(&[("PORTUNUS_WORKERS", "2")])?;
        let target = greeter.at(Family::V4, traffic::PORT)?.to_string();
        let mut program = peer::caller(&caller, Stack::Tonic, &target, 50, SECOND * 2)?;
        ensure!(program.wait(SECOND * 20)?.success(), "the caller ended well");
        let said = program.output();
        ensure!(said.matches("\"OK\"").count() == 100, "calls failed:\n{said}");
        ensure!(sidecar.admin("/ready")?.status == 200, "it is not ready");
        let loops = sidecar
            .metrics()?
            .sum("portunus_proxy_errors_total", &[("reason", "loop")]);
        ensure!(loops == 0.0, "{loops} loops were counted");
        ends_soon(&mut sidecar)?;
        let said = sidecar.output();
        ensure!(!said.contains("back to it"), "the log says:\n{said}");
        Ok(())
    });
}

/// One call, which names what is wrong well before its deadline.
fn one_call_is_refused(_mesh: &Mesh, caller: &Pod, greeter: &Pod) -> Result<()> {
    let _app = Peer::greeter(greeter, Stack::Tonic, traffic::PORT, Duration::ZERO)?;
    let target = greeter.at(Family::V4, traffic::PORT)?.to_string();
    let mut program = peer::caller(caller, Stack::Tonic, &target, 1, SECOND)?;
    ensure!(program.wait(SECOND * 30)?.success(), "the caller ended well");
    let said = program.output();
    ensure!(
        said.contains("UNAVAILABLE") && said.contains(LOOP),
        "the call does not say what is wrong:\n{said}"
    );
    Ok(())
}

/// The log and `/ready` name what is wrong, the log once.
fn is_named(sidecar: &Sidecar) -> Result<()> {
    wait_until(SECOND * 5, "/ready names it", || {
        sidecar
            .admin("/ready")
            .is_ok_and(|answer| answer.status == 503 && answer.body.contains(LOOP))
    })?;
    let said = sidecar.output();
    let lines = said.lines().filter(|line| line.contains("back to it"));
    ensure!(lines.count() == 1, "the log says:\n{said}");
    ensure!(said.contains("ERROR"), "it is no error:\n{said}");
    Ok(())
}

fn ends_soon(sidecar: &mut Sidecar) -> Result<()> {
    sidecar.signal(Signal::SIGTERM)?;
    let ended = sidecar.wait(SECOND * 30)?;
    ensure!(ended.success(), "it ended with {ended}");
    Ok(())
}

const SECOND: Duration = Duration::from_secs(1);
