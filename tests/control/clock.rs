//! Clocks are set, by an hour and by more than a year: nobody panics, nobody spins, and all is judged anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::traffic::{Call, Traffic};
use support::{Control, Pod, Program, Sidecar, lent};

use crate::certificates::{NONE_THERE, handshakes, without_certificate};
use crate::shop::{CALLER, NAME, Shop, certified, cpu, none_failed, timed};

#[test]
fn a_sidecar_whose_clock_is_set_neither_panics_nor_spins_judges_its_renewal_anew_and_is_well_once_the_clock_is() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let variables = clock.variables();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut shop = Shop::open(mesh, mesh.control(&DUE_IN_AN_HOUR)?, 1, &[], &variables)?;
        none_failed(
            &shop.calls(50, A_SECOND)?.end(A_SECOND)?,
            50,
            "before the clock was set",
        )?;
        // Whether a certificate serves, and what is to be heard.
        for (ahead, serves) in [("+1h", true), ("-1h", false), ("+400d", false), ("-400d", false)] {
            let (began, used) = (Instant::now(), cpu(&shop.sidecar)?);
            let (said, before) = (
                shop.sidecar.output().matches("the clock was set").count(),
                certified(&shop.sidecar),
            );
            let traffic = shop.calls(50, A_MINUTE)?;
            clock.set(ahead)?;
            timed(HALF_A_MINUTE, &format!("the sidecar has judged {ahead}"), || {
                let output = shop.sidecar.output();
                output.matches("the clock was set").count() > said
                    && is_ready(&shop.sidecar) == serves
                    && (certified(&shop.sidecar) > before) == serves
            })?;
            if serves {
                // Control's clock is right: the next certificate is due as it comes, too, and is no reason to ask all over again.
                traffic.flow(A_SECOND * 15);
                none_failed(&traffic.stop()?, 500, &format!("when the clock was set to {ahead}"))?;
                let renewals = certified(&shop.sidecar) - before;
                println!("at {ahead} it was certified {renewals} times");
                ensure!(renewals < 9.0, "at {ahead} it was certified {renewals} times");
            } else {
                let why = shop.sidecar.admin("/ready")?.body;
                println!("at {ahead}: {}", why.trim());
                ensure!(why.contains("certificate"), "at {ahead} it is not ready: {why}");
                // What is connected goes on; what is not finds no certificate.
                traffic.flow(A_SECOND);
                let (calls, failed) = (traffic.calls().len(), traffic.stop()?.failed());
                println!("at {ahead} {} of {calls} calls fail", failed.len());
                let named = failed.0.iter().all(|call| call.why.contains("certificate"));
                ensure!(named, "at {ahead} calls fail without the reason:{failed}");
            }
            std::thread::sleep(A_SECOND * 2);
            clock.set("+0")?;
            timed(HALF_A_MINUTE, "the sidecar is ready again", || is_ready(&shop.sidecar))?;
            let calls = shop.calls(50, A_SECOND)?.end(A_SECOND)?;
            none_failed(&calls, 50, &format!("after the clock was at {ahead}"))?;
            calm(&mut shop.sidecar, used, began, ahead)?;
        }
        ensure!(!shop.sidecar.output().contains("panicked"), "it panicked");
        Ok(())
    });
}

#[test]
fn a_callee_whose_clock_is_set_refuses_who_calls_anew_with_the_reason_and_is_well_once_the_clock_is() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let right = Clock::of(&mesh.folder().join("right-clock"))?;
        let (variables, callers) = (clock.variables(), right.variables());
        let [variables, callers] = [&variables, &callers].map(|all| {
            all.iter()
                .map(|(key, value)| (*key, value.as_str()))
                .collect::<Vec<_>>()
        });
        // The later of two variables of one name counts: the caller's clock stays right.
        let mut shop = Shop::open(mesh, mesh.control(&[])?, 1, &variables, &callers)?;
        none_failed(
            &shop.calls(50, A_SECOND)?.end(A_SECOND)?,
            50,
            "before the clock was set",
        )?;
        let mut anew = Vec::new();
        for number in 1..=4 {
            let pod = mesh.pod(&format!("anew-{number}"))?;
            let sidecar = pod.member(&shop.control, &CALLER, &[])?;
            anew.push((pod, sidecar));
        }
        // A certificate has a day from a minute ago on, by the callee's clock as well.
        let cases = [("+1h", true), ("-1h", false), ("+400d", false), ("-400d", false)];
        for ((ahead, serves), (pod, sidecar)) in cases.into_iter().zip(&anew) {
            let callee = &mut shop.greeters[0].sidecar;
            let (began, used) = (Instant::now(), cpu(callee)?);
            let said = callee.output().matches("the clock was set").count();
            let (ended, failed) = (
                without_certificate(callee)?,
                handshakes(sidecar, "outbound", NONE_THERE)?,
            );
            clock.set(ahead)?;
            timed(HALF_A_MINUTE, &format!("the callee has noticed {ahead}"), || {
                callee.output().matches("the clock was set").count() > said && is_ready(callee) == serves
            })?;
            // This one has no connection to it yet.
            let calls = Traffic::to(pod, NAME, 50, A_SECOND)?.end(A_SECOND)?;
            if serves {
                none_failed(&calls, 50, &format!("to a callee whose clock is at {ahead}"))?;
            } else {
                let why = callee.admin("/ready")?.body;
                println!("at {ahead}: {}{calls}", why.trim());
                ensure!(why.contains("certificate"), "at {ahead} it is not ready: {why}");
                let named = |call: &Call| call.code == "UNAVAILABLE" && call.why.contains("no mTLS with spiffe://");
                ensure!(
                    calls.0.iter().all(named),
                    "at {ahead} these do not fail with the reason:{calls}"
                );
                ensure!(
                    without_certificate(callee)? > ended && handshakes(sidecar, "outbound", NONE_THERE)? > failed,
                    "at {ahead} no end counted a handshake without a certificate"
                );
            }
            std::thread::sleep(A_SECOND * 2);
            clock.set("+0")?;
            timed(HALF_A_MINUTE, "the callee is ready again", || is_ready(callee))?;
            calm(callee, used, began, ahead)?;
            ensure!(!callee.output().contains("panicked"), "at {ahead} it panicked");
            let again = Traffic::to(pod, NAME, 50, Duration::from_secs(30))?;
            timed(HALF_A_MINUTE, "who was refused is let in", || {
                again.calls().0.last().is_some_and(Call::is_ok)
            })?;
            let calls = shop.calls(50, A_SECOND)?.end(A_SECOND)?;
            none_failed(&calls, 50, &format!("after the callee's clock was at {ahead}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_control_whose_clock_is_set_disturbs_no_call_and_certifies_once_the_clock_is_right() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let variables = clock.variables();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut control = mesh.control_to_be(&[])?;
        control.set_environment(&variables);
        control.launch()?;
        let shop = Shop::open(mesh, control, 1, &[], &[])?;
        let traffic = shop.calls(50, Duration::from_secs(250))?;
        for ahead in ["+1h", "-1h", "+400d", "-400d"] {
            let (began, used) = (Instant::now(), cpu(shop.control.program()?)?);
            let own = expiry(&shop.control);
            clock.set(ahead)?;
            let mut by_wrong_clock = None;
            if ahead == "+1h" {
                // It looks at the clock's file once a second.
                traffic.flow(A_SECOND * 2);
                // Its own certificate is good, and it certifies by the hour that it believes in: whoever joins keeps what it
                // gets until that has begun, and says so.
                let pod = mesh.pod("new-by-wrong-clock")?;
                let sidecar = begin(&pod, &shop.control)?;
                timed(HALF_A_MINUTE, "a new workload is told of two clocks", || {
                    let ready = sidecar.admin("/ready");
                    ready.is_ok_and(|ready| ready.status == 503 && ready.body.contains(TWO_CLOCKS))
                })?;
                ensure!(
                    certified(&sidecar) == 0.0,
                    "a certificate that has not begun was counted"
                );
                ensure!(
                    shop.sidecars()
                        .all(|sidecar| is_ready(sidecar) && certified(sidecar) == 1.0),
                    "somebody else was certified by that clock"
                );
                by_wrong_clock = Some((pod, sidecar));
            } else {
                timed(
                    HALF_A_MINUTE,
                    &format!("control has a certificate of its own at {ahead}"),
                    || expiry(&shop.control) != own,
                )?;
            }
            clock.set("+0")?;
            if let Some((_pod, sidecar)) = by_wrong_clock {
                timed(
                    HALF_A_MINUTE,
                    "who was certified by a wrong clock is so by a right one",
                    || is_ready(&sidecar) && certified(&sidecar) >= 1.0,
                )?;
            }
            timed(HALF_A_MINUTE, "all have a stream", || {
                let streams = shop
                    .control
                    .metrics()
                    .map(|metrics| metrics.sum("portunus_control_streams", &[]));
                streams.is_ok_and(|streams| streams == 2.0) && shop.sidecars().all(connected)
            })?;
            let pod = mesh.pod(&format!("new{}", ahead.replace('+', "-ahead-")))?;
            let _new = join(&pod, &shop.control)?;
            idle(cpu(shop.control.program()?)? - used, began, ahead)?;
        }
        ensure!(!shop.control.output().contains("panicked"), "it panicked");
        none_failed(&traffic.calls(), 500, "while control's clock was set")
    });
}

#[test]
fn a_mesh_whose_clocks_all_jump_by_an_hour_or_more_than_a_year_certifies_itself_anew_and_back_again() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let variables = clock.variables();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut control = mesh.control_to_be(&DUE_IN_AN_HOUR)?;
        control.set_environment(&variables);
        control.launch()?;
        let mut shop = Shop::open(mesh, control, 1, &variables, &[])?;
        for ahead in ["+1h", "+400d", "+0"] {
            let before: Vec<_> = shop.sidecars().map(certified).collect();
            let (began, used) = (
                Instant::now(),
                shop.sidecars().map(|one| cpu(one)).collect::<Result<Vec<_>>>()?,
            );
            let of_control = cpu(shop.control.program()?)?;
            clock.set(ahead)?;
            timed(HALF_A_MINUTE, &format!("all are certified at {ahead}"), || {
                let mut all = shop.sidecars().zip(&before);
                all.all(|(sidecar, before)| certified(sidecar) > *before && is_ready(sidecar) && connected(sidecar))
            })?;
            let calls = shop.calls(50, A_SECOND)?.end(A_SECOND)?;
            none_failed(&calls, 50, &format!("with all clocks at {ahead}"))?;
            let greeters = shop.greeters.iter_mut().map(|greeter| &mut greeter.sidecar);
            for (sidecar, used) in greeters.chain([&mut shop.sidecar]).zip(used) {
                calm(sidecar, used, began, ahead)?;
            }
            idle(cpu(shop.control.program()?)? - of_control, began, ahead)?;
        }
        let outputs = shop.sidecars().map(|sidecar| sidecar.output());
        ensure!(
            outputs
                .chain([shop.control.output()])
                .all(|output| !output.contains("panicked")),
            "somebody panicked"
        );
        Ok(())
    });
}

/// A new member is certified: control believes its own clock again, and is believed.
pub(crate) fn join(pod: &Pod, control: &Control) -> Result<Sidecar> {
    let sidecar = begin(pod, control)?;
    timed(HALF_A_MINUTE, "a new workload is certified", || is_ready(&sidecar))?;
    Ok(sidecar)
}

/// A new member begins, and is not waited for.
fn begin(pod: &Pod, control: &Control) -> Result<Sidecar> {
    let member = support::Member {
        account: "new",
        app: "new",
        ports: &[],
    };
    let enrolled = control.enrol(pod, &member)?;
    control.until_known()?;
    pod.sidecar_unready(&lent(&enrolled))
}

/// A clock that programs believe in and a test sets.
struct Clock {
    file: PathBuf,
    library: PathBuf,
}

impl Clock {
    fn of(file: &Path) -> Result<Clock> {
        let folders = fs::read_dir("/usr/lib")?.flatten();
        let mut libraries = folders
            .map(|folder| folder.path().join(LIBRARY))
            .filter(|library| library.exists());
        let clock = Clock {
            file: file.to_owned(),
            library: libraries
                .next()
                .context("libfaketime is not installed: apt-get install libfaketime")?,
        };
        clock.set("+0")?;
        Ok(clock)
    }

    /// So far it is ahead of the real one, or behind. The steady clock is left alone.
    fn set(&self, ahead: &str) -> Result<()> {
        let unfinished = self.file.with_extension("unfinished");
        fs::write(&unfinished, format!("{ahead}\n"))?;
        Ok(fs::rename(&unfinished, &self.file)?)
    }

    /// What makes a program believe in it (faketime(1)).
    fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

impl Drop for Clock {
    /// What the library leaves of programs that were killed.
    fn drop(&mut self) {
        for left in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = left.file_name().to_string_lossy().into_owned();
            let process = name
                .strip_prefix("sem.faketime_sem_")
                .or_else(|| name.strip_prefix("faketime_shm_"));
            if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
                let _ = fs::remove_file(left.path());
            }
        }
    }
}

fn is_ready(sidecar: &Sidecar) -> bool {
    sidecar.admin("/ready").is_ok_and(|ready| ready.status == 200)
}

fn connected(sidecar: &Sidecar) -> bool {
    sidecar
        .metrics()
        .is_ok_and(|metrics| metrics.sum("portunus_control_connected", &[]) == 1.0)
}

fn expiry(control: &Control) -> f64 {
    let own = [("certificate", "own")];
    control.metrics().map_or(0.0, |metrics| {
        metrics.sum("portunus_control_certificate_expiry_timestamp_seconds", &own)
    })
}

/// It runs, and has used a tenth of a CPU at most.
fn calm(program: &mut Program, used: f64, began: Instant, when: &str) -> Result<()> {
    ensure!(program.is_running(), "at {when} it ended");
    idle(cpu(program)? - used, began, when)
}

/// That many CPU seconds are a tenth of the time at most.
fn idle(used: f64, began: Instant, when: &str) -> Result<()> {
    let went_by = began.elapsed().as_secs_f64();
    println!("{used:.2} CPU seconds in {went_by:.1} s");
    ensure!(
        used < 0.1 * went_by + 0.5,
        "at {when} it used {used:.2} CPU seconds in {went_by:.1} s"
    );
    Ok(())
}

/// Certificates that are due when an hour has gone by, at whatever part of their life from 65 to 75 %, and serve still: they
/// begin a minute before they are made.
const DUE_IN_AN_HOUR: [&str; 2] = ["--certificate-lifetime", "75m"];
/// What a sidecar says that was certified by a clock which is far ahead of its own.
const TWO_CLOCKS: &str = "is not valid by this machine's clock: one of the two clocks is wrong";
/// Below the system's folder of each architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
const A_SECOND: Duration = Duration::from_secs(1);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
const A_MINUTE: Duration = Duration::from_secs(60);
