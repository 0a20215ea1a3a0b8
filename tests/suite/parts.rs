//! The parts of the suite: what cargo itself checks, the unit tests, and each `[[test]]` of the workspace, as found.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// What is run and judged as one.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    /// What it shows, in a sentence.
    pub(crate) about: String,
    /// The arguments of cargo, run one after the other.
    pub(crate) commands: Vec<Vec<String>>,
    pub(crate) limit: Duration,
    pub(crate) kind: Kind,
    /// Tests that are not run, each with the reason.
    pub(crate) left_out: Vec<(String, String)>,
}

/// How a part's output tells what passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By the exit code.
    Check,
    /// Test by test, in this process's own world.
    Tests,
    /// Test by test, in pods and with peers.
    PodTests,
}

/// All that was found.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) parts: Vec<Part>,
    pub(crate) logs: PathBuf,
}

impl Part {
    /// Whether one of the names asked for is part of its own; without any, all are meant.
    pub(crate) fn is_meant(&self, names: &[String]) -> bool {
        names.is_empty() || names.iter().any(|name| self.name.contains(name.as_str()))
    }
}

pub(crate) fn discover() -> Result<Workspace> {
    let metadata = metadata()?;
    let mut parts = vec![
        check("fmt", "the code is formatted", &["fmt", "--all", "--check"]),
        check(
            "clippy",
            "no lint complains, in any target",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "-D",
                "warnings",
            ],
        ),
        unit(),
    ];
    for package in &metadata.packages {
        let notes = package.metadata.clone().unwrap_or_default().suite;
        for target in package
            .targets
            .iter()
            .filter(|target| target.kind.iter().any(|kind| kind == "test"))
        {
            let part = test(package, target, &notes)?;
            let again = notes.again.get(&target.name).map(|again| again.of(&part));
            parts.push(part);
            parts.extend(again);
        }
    }
    Ok(Workspace {
        parts,
        logs: metadata.target_directory.join("suite"),
    })
}

fn check(name: &str, about: &str, command: &[&str]) -> Part {
    Part {
        name: name.to_string(),
        about: about.to_string(),
        commands: vec![owned(command)],
        limit: minutes(20),
        kind: Kind::Check,
        left_out: Vec::new(),
    }
}

fn unit() -> Part {
    Part {
        name: "unit".to_string(),
        about: "the tests beside the code, and the examples in its documentation".to_string(),
        commands: vec![
            [
                owned(&[
                    "test",
                    "--workspace",
                    "--locked",
                    "--no-fail-fast",
                    "--lib",
                    "--bins",
                    "--",
                    "--include-ignored",
                ]),
                at_once(UNIT_THREADS),
            ]
            .concat(),
            owned(&["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]),
        ],
        limit: minutes(USUAL_MINUTES),
        kind: Kind::Tests,
        left_out: Vec::new(),
    }
}

/// So many tests run at once, or as many as there are cores if those are more.
fn at_once(threads: usize) -> Vec<String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    owned(&["--test-threads", &threads.max(cores).to_string()])
}

fn test(package: &Package, target: &Target, notes: &Notes) -> Result<Part> {
    // The whole workspace, so that its dependencies have the features that they were built with before.
    let mut command = owned(&[
        "test",
        "--workspace",
        "--locked",
        "--test",
        &target.name,
        "--",
        "--include-ignored",
    ]);
    if let Some(threads) = notes.threads.get(&target.name) {
        command.extend(at_once(*threads));
    }
    // A list like `other: reason` is of tests of that other part.
    let left_out: Vec<_> = notes.left_out.get(&target.name).into_iter().flatten().collect();
    if !left_out.is_empty() {
        command.push("--exact".to_string());
    }
    for (test, reason) in &left_out {
        ensure!(
            !reason.trim().is_empty(),
            "{}: the test {test} is left out without a reason",
            target.name
        );
        command.extend(owned(&["--skip", test]));
    }
    Ok(Part {
        name: target.name.clone(),
        about: first_sentence(&target.src_path)?,
        commands: vec![command],
        limit: minutes(notes.minutes.get(&target.name).copied().unwrap_or(USUAL_MINUTES)),
        kind: if package.name == env!("CARGO_PKG_NAME") {
            Kind::PodTests
        } else {
            Kind::Tests
        },
        left_out: left_out
            .into_iter()
            .map(|(test, reason)| (test.clone(), reason.clone()))
            .collect(),
    })
}

/// The first paragraph of a file's `//!`, which says the idea of it.
fn first_sentence(source: &Path) -> Result<String> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read {}", source.display()))?;
    let lines = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let paragraph: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
    ensure!(
        !paragraph.is_empty(),
        "{} does not begin with a `//!` line that says its idea",
        source.display()
    );
    Ok(paragraph.join(" ").trim_end_matches('.').to_string())
}

fn metadata() -> Result<Metadata> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "`cargo metadata` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("cargo described the workspace in an unknown way")
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command.env("CARGO_TERM_COLOR", "never");
    // Tests that go past the mesh show nothing of it.
    command.env_remove("PORTUNUS_TEST_DIRECT");
    // Which parts are run in which world is said in the workspace.
    command
        .env_remove("PORTUNUS_TEST_MTLS")
        .env_remove("PORTUNUS_TEST_PAIRS");
    command
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    targets: Vec<Target>,
    metadata: Option<PackageMetadata>,
}

#[derive(Debug, Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
    src_path: PathBuf,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct PackageMetadata {
    #[serde(default)]
    suite: Notes,
}

/// `[package.metadata.suite]` of a package.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Notes {
    /// Part -> its time limit.
    minutes: BTreeMap<String, u64>,
    /// Part -> how many of its tests run at once, where most of them wait; else as many as there are cores.
    threads: BTreeMap<String, usize>,
    /// Part -> test -> why it is left out.
    left_out: BTreeMap<String, BTreeMap<String, String>>,
    /// Part -> how it is run once more, as a part of its own.
    again: BTreeMap<String, Again>,
}

/// The same tests in another world.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Again {
    /// What the part is called.
    name: String,
    /// What is different.
    about: String,
    /// What makes it so, as an environment variable with its value.
    env: (String, String),
}

impl Again {
    fn of(&self, part: &Part) -> Part {
        let (variable, value) = &self.env;
        let within = |command: &Vec<String>| {
            let mut command = command.clone();
            command.splice(1..1, owned(&["--config", &format!("env.{variable}='{value}'")]));
            command
        };
        Part {
            name: self.name.clone(),
            about: format!("{}; {}", part.about, self.about),
            commands: part.commands.iter().map(within).collect(),
            limit: part.limit,
            kind: part.kind,
            left_out: part.left_out.clone(),
        }
    }
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

const USUAL_MINUTES: u64 = 10;
/// Tests beside the code wait, too: for peers that are silent, or for clocks.
const UNIT_THREADS: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_target_of_the_workspace_is_a_part_that_says_what_it_shows() -> Result<()> {
        let found = discover()?.parts;
        for name in ["fmt", "clippy", "unit", "pods", "interop"] {
            let part = found
                .iter()
                .find(|part| part.name == name)
                .with_context(|| format!("no part {name}"))?;
            ensure!(!part.about.is_empty(), "{name} says nothing");
        }
        Ok(())
    }

    #[test]
    fn parts_are_meant_by_a_piece_of_their_name() {
        let part = check("interop", "", &[]);
        assert!(part.is_meant(&[]));
        assert!(part.is_meant(&["inter".to_string()]));
        assert!(!part.is_meant(&["pods".to_string()]));
    }
}
