//! A sidecar tells the C library how to copy memory where the processor's own way can be slow: by starting once more, as
//! the same process.

use std::fs;

use anyhow::{Context, Result, ensure};
use support::Sidecar;

#[test]
fn a_sidecar_starts_again_where_copies_would_be_slow_and_somebody_who_decides_that_is_obeyed() {
    support::test(|mesh| {
        let pod = mesh.pod("lone")?;
        let ours = "glibc.cpu.x86_rep_movsb_threshold=0x40000000";
        let decided = "glibc.cpu.x86_rep_movsb_threshold=4096";
        let other = "glibc.malloc.check=0";
        for (given, told) in [
            (None, Some(ours.to_owned())),
            (Some(other), Some(format!("{other}:{ours}"))),
            (Some(decided), None),
        ] {
            let given: Vec<_> = given.map(|value| ("GLIBC_TUNABLES", value)).into_iter().collect();
            let mut sidecar = pod.sidecar_with(&given)?;
            let found = environment(&sidecar)?;
            let value = |name: &str| {
                let mut values = found
                    .iter()
                    .filter_map(|variable| variable.strip_prefix(name)?.strip_prefix('='));
                (values.next().map(str::to_owned), values.next())
            };
            let starts_again = told.is_some() && are_slow()?;
            ensure!(
                value("SIDECAR_STARTED_AGAIN").0.is_some() == starts_again,
                "with {given:?} on this processor its environment is {found:?}"
            );
            let expected = match starts_again {
                true => told,
                false => given.first().map(|(_, value)| value.to_string()),
            };
            ensure!(
                value("GLIBC_TUNABLES") == (expected, None),
                "glibc is told otherwise: {found:?}"
            );
            let name = fs::read_to_string(format!("/proc/{}/comm", sidecar.pid()))?;
            ensure!(name.trim() == "sidecar", "it is called {name}");
            sidecar.kill()?;
        }
        Ok(())
    });
}

fn environment(sidecar: &Sidecar) -> Result<Vec<String>> {
    let variables = fs::read(format!("/proc/{}/environ", sidecar.pid()))?;
    let variables = variables.split(|byte| *byte == 0);
    Ok(variables
        .map(|variable| String::from_utf8_lossy(variable).into_owned())
        .collect())
}

/// Whether the kernel says that it is one of AMD's processors since Zen 3 (family 25).
fn are_slow() -> Result<bool> {
    let said = fs::read_to_string("/proc/cpuinfo")?;
    let value = |name: &str| -> Result<&str> {
        let mut lines = said.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(key, _)| key.trim() == name);
        line.map(|(_, value)| value.trim())
            .with_context(|| format!("it has no {name}"))
    };
    Ok(cfg!(target_arch = "x86_64")
        && value("vendor_id")? == "AuthenticAMD"
        && value("cpu family")?.parse::<u32>()? >= 25)
}
