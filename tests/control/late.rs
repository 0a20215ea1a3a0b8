//! A sidecar that is started before its `Workload` is written: it waits, says for what, and is ready once that is there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use support::{Control, Member, Pauses, Pod, Sidecar, lent};

use crate::shop::timed;

#[test]
fn a_sidecar_that_starts_before_its_workload_is_written_is_ready_within_two_seconds_of_that() {
    support::test(|mesh| {
        let control = mesh.control(&[])?;
        let mut times = Vec::new();
        // Soon after its first question, while a question of its is held back, and after several of them.
        for (number, pause) in [(1, 0), (2, 5), (3, 12)] {
            let name = format!("late-{number}");
            let pod = mesh.pod(&name)?;
            let (sidecar, workload) = begin_without_workload(&control, &pod)?;
            timed(SOON, "it says what it lacks", || {
                sidecar
                    .admin("/ready")
                    .is_ok_and(|ready| ready.status == 503 && ready.body.contains("is that of no Workload"))
            })?;
            std::thread::sleep(Duration::from_secs(pause));
            control.apply(&format!("workload-{name}"), &workload)?;
            let pauses = Pauses::watch();
            let took = timed(SOON, "it is ready", || is_ready(&sidecar))?;
            times.push(took.saturating_sub(pauses.longest() * 2));
            let asked = refused(&control, "unknown_token")?;
            println!("{asked} questions were refused so far");
        }
        // Two seconds, and what a busy machine takes.
        let slow: Vec<_> = times
            .iter()
            .filter(|took| **took > Duration::from_millis(2_500))
            .collect();
        ensure!(slow.is_empty(), "they were ready after {times:?}");
        // 17 s of waiting, and nobody was asked all over again.
        let asked = refused(&control, "unknown_token")?;
        ensure!(asked <= 9.0, "{asked} questions were refused");
        ensure!(
            refused(&control, "too_many_attempts")? == 0.0,
            "waiting was taken for guessing"
        );
        Ok(())
    });
}

#[test]
fn a_sidecar_that_waits_for_its_workload_does_not_keep_control_from_stopping() {
    support::test(|mesh| {
        let mut control = mesh.control(&[])?;
        let pod = mesh.pod("late")?;
        let (sidecar, _) = begin_without_workload(&control, &pod)?;
        timed(SOON, "its second question is held back", || {
            let open = control
                .metrics()
                .map(|metrics| metrics.sum("portunus_control_connections", &[]));
            refused(&control, "unknown_token").is_ok_and(|asked| asked >= 1.0) && open.is_ok_and(|open| open >= 1.0)
        })?;
        let told = Instant::now();
        control.stop()?;
        println!("{:>8} ms until control has stopped", told.elapsed().as_millis());
        ensure!(
            told.elapsed() < Duration::from_secs(3),
            "that took {:?}",
            told.elapsed()
        );
        control.launch()?;
        control.revise(&pod, &LATE)?;
        let took = timed(SOON, "it is ready", || is_ready(&sidecar))?;
        ensure!(took < Duration::from_secs(4), "that took {took:?}");
        Ok(())
    });
}

/// A pod's sidecar, started with a token of a `Workload` that is not written; and that, to be written later.
fn begin_without_workload(control: &Control, pod: &Pod) -> Result<(Sidecar, String)> {
    let settings = control.enrol(pod, &LATE)?;
    let name = format!("workload-{}", pod.name());
    let workload = std::fs::read_to_string(control.source().join(format!("{name}.yaml")))?;
    control.remove(&name)?;
    control.until_known()?;
    Ok((pod.sidecar_unready(&lent(&settings))?, workload))
}

const LATE: Member<'_> = Member {
    account: "late",
    app: "late",
    ports: &[],
};

fn is_ready(sidecar: &Sidecar) -> bool {
    sidecar.admin("/ready").is_ok_and(|ready| ready.status == 200)
}

fn refused(control: &Control, reason: &str) -> Result<f64> {
    Ok(control
        .metrics()?
        .sum("portunus_control_refused_total", &[("reason", reason)]))
}

const SOON: Duration = Duration::from_secs(15);
