//! What the chosen parts need before they can run.

use std::{
    cell::RefCell,
    io::{self, Write},
    path::PathBuf,
    process::Stdio,
    time::Instant,
};

use anyhow::{Result, bail};
use support::{build, interrupt, needs, tools};

use crate::{
    clock,
    parts::{Kind, Part, cargo},
};

/// Prepares, and returns what the tests find in their environment.
pub(crate) fn prepare(parts: &[&Part]) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut environment = Vec::new();
    let has = |kind| parts.iter().any(|part| part.kind == kind);
    if has(Kind::PodTests) {
        step("what the machine has: root, packages, namespaces, nftables", |say| {
            needs::prepare(say)
        })?;
        step("peers", |say| tools::prepare(say))?;
        step("the sidecar, as it is released", |_| {
            build::sidecar().map(|path| environment.push(("PORTUNUS_SIDECAR", path)))
        })?;
        step("the sidecar with shared libraries, whose clock tests set", |_| {
            build::sidecar_shared().map(|path| environment.push(("PORTUNUS_SIDECAR_SHARED", path)))
        })?;
        step("control, as it is released", |_| {
            build::injector().map(|path| environment.push(("PORTUNUS_INJECTOR", path)))
        })?;
        step("the tonic application", |_| {
            build::peer().map(|path| environment.push(("PORTUNUS_PEER", path)))
        })?;
    }
    if has(Kind::Tests) || has(Kind::PodTests) {
        step("the tests themselves are compiled", |_| compile())?;
    }
    println!();
    Ok(environment)
}

/// Says what is done, each lengthy piece of it, and how long it took.
fn step(what: &str, work: impl FnOnce(&dyn Fn(&str)) -> Result<()>) -> Result<()> {
    print!("setup: {what}");
    io::stdout().flush()?;
    let began = Instant::now();
    let pieces = RefCell::new(0);
    work(&|piece| {
        *pieces.borrow_mut() += 1;
        print!("\n       {piece}");
        let _ = io::stdout().flush();
    })?;
    if interrupt::heard() {
        bail!("interrupted");
    }
    println!(
        "{} {}",
        if *pieces.borrow() > 0 {
            "\n       done in"
        } else {
            " …"
        },
        clock(began.elapsed())
    );
    Ok(())
}

/// So that a part's time is the time of its tests.
fn compile() -> Result<()> {
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--locked",
        "--no-run",
        "--quiet",
        "--lib",
        "--bins",
        "--tests",
    ]);
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("the tests do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
