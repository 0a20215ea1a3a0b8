//! httpwg-cli, another independent suite for RFC 9113, finds no fault in either door of the sidecar, nor within mTLS.
//!
//! It lets all of its cases go at once, and gives each answer a time: on a busy machine one may be late. So it is run
//! three times, and the median counts.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use support::{Conformance, Family, Mesh, Pod, User, tools};

#[test]
fn every_case_of_httpwg_passes_through_outbound_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    every_case_passes(Conformance::through_outbound);
}

#[test]
fn every_case_of_httpwg_passes_through_inbound_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    every_case_passes(Conformance::through_inbound);
}

#[test]
fn every_case_of_httpwg_passes_through_inbound_in_mtls_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    every_case_passes(Conformance::through_inbound_in_mtls);
}

fn every_case_passes(way: impl FnOnce(&Mesh) -> Result<Conformance>) {
    support::test(|mesh| judge(&way(mesh)?));
}

fn judge(way: &Conformance) -> Result<()> {
    for family in Family::ALL {
        let before = way.connections()?;
        let mut runs = (0..RUNS)
            .map(|_| Run::of(&way.client, way.address(family)?))
            .collect::<Result<Vec<_>>>()?;
        let taken = way.connections()? - before;
        ensure!(
            taken >= (RUNS * CASES) as f64,
            "{family}: the engine has had {taken} connections of {RUNS} times {CASES} cases: the rest went past it"
        );
        runs.sort_by_key(|run| run.passed);
        let median = &runs[RUNS / 2];
        println!(
            "{family}: {:?} of {CASES} cases passed",
            runs.iter().map(|run| run.passed).collect::<Vec<_>>()
        );
        ensure!(
            median.passed == CASES,
            "{family}: {} of {CASES} cases passed in the median run:\n{}",
            median.passed,
            median.said
        );
    }
    Ok(())
}

struct Run {
    passed: usize,
    /// What it wrote, without those that passed.
    said: String,
}

impl Run {
    fn of(client: &Pod, server: SocketAddr) -> Result<Run> {
        let mut command = client.command(User::App, tools::httpwg()?);
        command.args(["--address", &server.to_string()]);
        // A proxy answers once its backend has: longer than the quarter of a second that it waits at first on a busy
        // machine. A case that passes does so by what it hears, so patience makes none pass that should not.
        command.args(["--connect-timeout", "4000", "--frame-timeout", "4000"]);
        command.env("NO_COLOR", "1");
        let mut program = client.start("httpwg", command)?;
        program.wait(Duration::from_secs(60)).context("httpwg-cli runs")?;
        let output = program.output();
        // The last line tells how many passed; one that panicked is in neither list.
        ensure!(
            output.contains(&format!("/{CASES}")) && output.contains("tests in"),
            "httpwg-cli has not come to the end of its {CASES} cases:\n{output}"
        );
        let has_passed = |line: &&str| line.contains("Test passed: ");
        let noise = |line: &&str| has_passed(line) || line.starts_with("Holding ");
        Ok(Run {
            passed: output.lines().filter(has_passed).count(),
            said: output
                .lines()
                .filter(|line| !noise(line))
                .collect::<Vec<_>>()
                .join("\n"),
        })
    }
}

const RUNS: usize = 3;
const CASES: usize = 107;
