//! Clocks are set, by an hour and by more than a year: nobody panics, nobody spins, and all is judged anew.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::{Control, Pod, Program, Sidecar};

use crate::shop::{Shop, certified, cpu, none_failed, timed};

#[test]
fn a_sidecar_whose_clock_is_set_neither_panics_nor_spins_and_is_well_once_the_clock_is() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let variables = clock.variables();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut shop = Shop::open(mesh, mesh.control(&[])?, 1, &[], &variables)?;
        none_failed(
            &shop.calls(50, A_SECOND)?.end(A_SECOND)?,
            50,
            "before the clock was set",
        )?;
        // A certificate has a day from a minute ago on; whether it serves, and what is to be heard.
        for (ahead, serves) in [("+1h", true), ("-1h", false), ("+400d", false), ("-400d", false)] {
            let (began, used) = (Instant::now(), cpu(&shop.sidecar)?);
            let said = shop.sidecar.output().matches("the clock was set").count();
            clock.set(ahead)?;
            timed(HALF_A_MINUTE, &format!("the sidecar has noticed {ahead}"), || {
                let output = shop.sidecar.output();
                output.matches("the clock was set").count() > said && is_ready(&shop.sidecar) == serves
            })?;
            if !serves {
                let why = shop.sidecar.admin("/ready")?.body;
                println!("at {ahead}: {}", why.trim());
                ensure!(why.contains("certificate"), "at {ahead} it is not ready: {why}");
                // What is connected goes on; what is not finds no certificate.
                let failed = shop.calls(50, A_SECOND)?.end(A_SECOND)?.failed();
                println!("at {ahead} {} of 50 calls fail", failed.len());
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
            if ahead == "+1h" {
                // Nothing is due, so that there is nothing to wait for.
                traffic.flow(A_SECOND * 3);
            } else {
                timed(
                    HALF_A_MINUTE,
                    &format!("control has a certificate of its own at {ahead}"),
                    || expiry(&shop.control) != own,
                )?;
            }
            clock.set("+0")?;
            timed(HALF_A_MINUTE, "all have a stream", || {
                let streams = shop
                    .control
                    .metrics()
                    .map(|metrics| metrics.sum("portunus_control_streams", &[]));
                streams.is_ok_and(|streams| streams == 2.0) && shop.sidecars().all(connected)
            })?;
            let pod = mesh.pod(&format!("new{}", ahead.replace('+', "-ahead-")))?;
            let _new = join(&pod, &shop.control)?;
            let used = cpu(shop.control.program()?)? - used;
            println!("{used:.2} CPU seconds in {:.1} s", began.elapsed().as_secs_f64());
            ensure!(
                used < 0.1 * began.elapsed().as_secs_f64() + 0.5,
                "{used} CPU seconds at {ahead}"
            );
        }
        ensure!(!shop.control.output().contains("panicked"), "it panicked");
        none_failed(&traffic.calls(), 500, "while control's clock was set")
    });
}

#[test]
fn a_mesh_whose_clocks_all_jump_by_more_than_a_year_certifies_itself_anew_and_back_again() {
    support::test(|mesh| {
        let clock = Clock::of(&mesh.folder().join("clock"))?;
        let variables = clock.variables();
        let variables: Vec<_> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut control = mesh.control_to_be(&[])?;
        control.set_environment(&variables);
        control.launch()?;
        let shop = Shop::open(mesh, control, 1, &variables, &[])?;
        for ahead in ["+400d", "+0"] {
            let before: Vec<_> = shop.sidecars().map(certified).collect();
            clock.set(ahead)?;
            timed(HALF_A_MINUTE, &format!("all are certified at {ahead}"), || {
                let mut all = shop.sidecars().zip(&before);
                all.all(|(sidecar, before)| certified(sidecar) > *before && is_ready(sidecar) && connected(sidecar))
            })?;
            let calls = shop.calls(50, A_SECOND)?.end(A_SECOND)?;
            none_failed(&calls, 50, &format!("with all clocks at {ahead}"))?;
        }
        Ok(())
    });
}

/// A new member is certified: control believes its own clock again, and is believed.
fn join(pod: &Pod, control: &Control) -> Result<Sidecar> {
    let member = support::Member {
        account: "new",
        app: "new",
        ports: &[],
    };
    let enrolled = control.enrol(pod, &member)?;
    let enrolled: Vec<_> = enrolled
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let sidecar = pod.sidecar_unready(&enrolled)?;
    timed(HALF_A_MINUTE, "a new workload is certified", || is_ready(&sidecar))?;
    Ok(sidecar)
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
    let (used, went_by) = (cpu(program)? - used, began.elapsed().as_secs_f64());
    println!("{used:.2} CPU seconds in {went_by:.1} s");
    ensure!(
        used < 0.1 * went_by + 0.5,
        "at {when} it used {used:.2} CPU seconds in {went_by:.1} s"
    );
    Ok(())
}

/// Below the system's folder of each architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";
const A_SECOND: Duration = Duration::from_secs(1);
const HALF_A_MINUTE: Duration = Duration::from_secs(30);
