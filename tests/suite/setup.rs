//! What the chosen parts need before they can run: what is installed and built for the tests once, beside what cargo builds.

use std::{path::PathBuf, process::Stdio, sync::OnceLock, thread, time::Instant};

use anyhow::{Result, anyhow, bail};
use support::{build, interrupt, needs, tools};

use crate::{
    clock,
    parts::{Kind, Part, cargo},
};

/// What the tests find in their environment.
type Environment = Vec<(&'static str, PathBuf)>;

/// Prepares, and returns what the tests find in their environment.
pub(crate) fn prepare(parts: &[&Part]) -> Result<Environment> {
    let has = |kind| parts.iter().any(|part| part.kind == kind);
    let (tests, pods) = (has(Kind::Tests) || has(Kind::PodTests), has(Kind::PodTests));
    if pods {
        needs::root()?;
    }
    let setup = Setup::default();
    // Side by side: one waits for the network while the other compiles, and each has work that one core alone can do.
    let (others, ours) = thread::scope(|scope| {
        let others = scope.spawn(|| if pods { setup.others() } else { Ok(()) });
        let ours = setup.ours(tests, pods);
        (others.join(), ours)
    });
    if let Some(why) = setup.failed.get() {
        bail!("{why}");
    }
    others.map_err(|_| anyhow!("the setup panicked"))??;
    let environment = ours?;
    println!();
    Ok(environment)
}

/// Steps that are made side by side; once one has failed no other begins.
#[derive(Default)]
struct Setup {
    /// Why the first failed that did.
    failed: OnceLock<String>,
}

impl Setup {
    /// What others have written.
    fn others(&self) -> Result<()> {
        self.step("what the machine has: root, packages, namespaces, nftables", |say| {
            needs::prepare(say)
        })?;
        self.step("peers", |say| tools::prepare(say))
    }

    /// What this workspace has.
    fn ours(&self, tests: bool, pods: bool) -> Result<Environment> {
        let mut environment = Vec::new();
        if pods {
            let mut built = |what, variable, build: fn() -> Result<PathBuf>| {
                self.step(what, |_| build().map(|path| environment.push((variable, path))))
            };
            built("the sidecar, as it is released", "PORTUNUS_SIDECAR", build::sidecar)?;
            built("control, as it is released", "PORTUNUS_INJECTOR", build::injector)?;
            built(
                "the sidecar with shared libraries, whose clock tests set",
                "PORTUNUS_SIDECAR_SHARED",
                build::sidecar_shared,
            )?;
            built("the tonic application", "PORTUNUS_PEER", build::peer)?;
        }
        if tests {
            self.step("the tests themselves are compiled", |_| compile())?;
        }
        Ok(environment)
    }

    /// Says what is done, each lengthy piece of it, and how long it took.
    fn step(&self, what: &str, work: impl FnOnce(&dyn Fn(&str)) -> Result<()>) -> Result<()> {
        if self.failed.get().is_some() {
            bail!("something else failed");
        }
        println!("setup: {what} …");
        let began = Instant::now();
        let mut worked = work(&|piece| println!("setup: {piece} …"));
        if interrupt::heard() {
            worked = Err(anyhow!("interrupted"));
        }
        match &worked {
            Ok(()) => println!("setup: {what}: {}", clock(began.elapsed())),
            Err(error) => {
                println!("setup: {what}: failed; what runs beside it is waited for");
                let _ = self.failed.set(format!("{error:#}"));
            }
        }
        worked
    }
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
