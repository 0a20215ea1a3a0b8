//! A sidecar tells the C library how to copy memory where the processor's own way can be slow: by starting once more, as
//! the same process.

use std::fs;

use anyhow::{Context, Result, ensure};
use support::Sidecar;

#[test]
fn a_sidecar_starts_again_where_copies_would_be_slow_and_somebody_who_decides_that_is_obeyed() {
    support::test(|mesh| {
        let pod = mesh.pod("lone")?;
        for (settings, decided) in [
            (&[][..], false),
            (&[("SIDECAR_COPIES", "as they are")], true),
            (&[("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=4096")], true),
        ] {
            let mut sidecar = pod.sidecar_with(settings)?;
            let starts_again = are_slow()? && !decided;
            let told = "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x40000000";
            let environment = environment(&sidecar)?;
            ensure!(
                environment.iter().any(|variable| variable == told) == starts_again,
                "with {settings:?} on this processor its environment is {environment:?}"
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
