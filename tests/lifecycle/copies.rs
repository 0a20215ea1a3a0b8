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
        let others = "glibc.malloc.arena_max=2:glibc.malloc.check=0";
        for (given, told) in [
            (None, Some(&[ours][..])),
            (
                Some(others),
                Some(&["glibc.malloc.arena_max=2", "glibc.malloc.check=0", ours]),
            ),
            (Some(decided), None),
        ] {
            let given: Vec<_> = given.map(|value| ("GLIBC_TUNABLES", value)).into_iter().collect();
            let mut sidecar = pod.sidecar_with(&given)?;
            let found = environment(&sidecar)?;
            let starts_again = told.is_some() && are_slow()?;
            ensure!(
                found
                    .iter()
                    .any(|variable| variable.starts_with("SIDECAR_STARTED_AGAIN="))
                    == starts_again,
                "with {given:?} on this processor its environment is {found:?}"
            );
            let expected: Vec<_> = match starts_again {
                true => told.unwrap_or_default().to_vec(),
                false => given.iter().map(|(_, value)| *value).collect(),
            };
            // glibc 2.36 cuts the value up where it stands, at its colons.
            let of_glibc = found
                .iter()
                .flat_map(|variable| variable.trim_start_matches("GLIBC_TUNABLES=").split(':'));
            let heeded: Vec<_> = of_glibc.filter(|part| part.starts_with("glibc.")).collect();
            ensure!(heeded == expected, "glibc is told otherwise: {found:?}");
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
