//! `cargo suite [NAME...]`: installs what the tests need, runs every test, and says what each part did.

mod harness;
mod parts;
mod run;
mod setup;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use clap::Parser;
use nix::sys::stat::{Mode, umask};
use support::interrupt;

use crate::{parts::Part, run::Outcome};

/// Installs what the tests need and runs them, part by part.
#[derive(Debug, Parser)]
struct Args {
    /// Only the parts whose name contains one of these; one that no part has lists them all.
    #[arg(value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    names: Vec<String>,
}

fn main() -> ExitCode {
    match suite(&Args::parse().names) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\nsuite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn suite(names: &[String]) -> Result<bool> {
    interrupt::listen()?;
    // What is built and copied here is read by programs of other users.
    umask(Mode::from_bits_truncate(0o022));
    let began = Instant::now();
    let workspace = parts::discover()?;
    let parts: Vec<_> = workspace.parts.iter().filter(|part| part.is_meant(names)).collect();
    if parts.is_empty() {
        let all: Vec<_> = workspace.parts.iter().map(|part| part.name.as_str()).collect();
        bail!(
            "no part's name contains {}: the parts are {}",
            names.join(" or "),
            all.join(", ")
        );
    }
    println!(
        "{} parts: {}\n",
        parts.len(),
        parts
            .iter()
            .map(|part| part.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );

    let environment = setup::prepare(&parts)?;
    let mut outcomes = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        println!("[{}/{}] {}: {}", number + 1, parts.len(), part.name, part.about);
        let outcome = run::part(part, &environment, &workspace.logs)?;
        println!("      {} in {}\n", outcome.words(), clock(outcome.took));
        outcomes.push((*part, outcome));
        if interrupt::heard() {
            bail!("interrupted after {}", clock(began.elapsed()));
        }
    }
    Ok(conclude(&outcomes, began.elapsed()))
}

fn conclude(outcomes: &[(&Part, Outcome)], took: Duration) -> bool {
    println!("{:<16} {:>8}  result", "part", "time");
    for (part, outcome) in outcomes {
        let log = if outcome.failed == 0 {
            String::new()
        } else {
            format!("  ({})", outcome.log.display())
        };
        println!("{:<16} {:>8}  {}{log}", part.name, clock(outcome.took), outcome.words());
        for (test, reason) in &part.left_out {
            println!("{:<26} left out: {test}: {reason}", "");
        }
    }
    println!("{:<16} {:>8}\n", "all", clock(took));
    let passed: usize = outcomes.iter().map(|(_, outcome)| outcome.passed).sum();
    let failed: usize = outcomes.iter().map(|(_, outcome)| outcome.failed).sum();
    println!("{passed} passed, {failed} failed");
    failed == 0
}

/// `3.2 s`, `4 min 05 s`.
fn clock(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..60 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        seconds => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}
