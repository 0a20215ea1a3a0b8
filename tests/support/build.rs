//! The programs of this workspace that pods run, built when nobody has said where they are.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tools::once;

/// The sidecar, built as it is released: `$PORTUNUS_SIDECAR`, which the suite sets, or what cargo builds.
pub fn sidecar() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || {
        find(
            "PORTUNUS_SIDECAR",
            &["--release", "--package", "portunus-sidecar", "--bin", "sidecar"],
        )
    })
}

/// The sidecar with shared libraries, for tests that give it one of their own (`LD_PRELOAD`): as it is released it loads none.
/// `$PORTUNUS_SIDECAR_SHARED`, which the suite sets, or what cargo builds.
pub fn sidecar_shared() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || {
        find("PORTUNUS_SIDECAR_SHARED", &["--workspace", "--bin", "sidecar"])
    })
}

/// Control, built as it is released: `$PORTUNUS_INJECTOR`, which the suite sets, or what cargo builds.
pub fn injector() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || {
        find(
            "PORTUNUS_INJECTOR",
            &["--release", "--package", "portunus-injector", "--bin", "injector"],
        )
    })
}

/// The tonic application: `$PORTUNUS_PEER`, which the suite sets, or what cargo builds.
pub fn peer() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    once(&BUILT, || find("PORTUNUS_PEER", &["--workspace", "--bin", "peer"]))
}

fn find(variable: &str, args: &[&str]) -> Result<PathBuf> {
    match std::env::var_os(variable) {
        Some(path) if !path.is_empty() => Ok(PathBuf::from(path)),
        _ => cargo_build(args),
    }
}

fn cargo_build(args: &[&str]) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--message-format", "json-render-diagnostics"])
        .args(args);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "`cargo build {}` failed:\n{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let messages = output.stdout.split(|byte| *byte == b'\n');
    let mut executables = messages
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executables.next_back().context("cargo built no program")
}
