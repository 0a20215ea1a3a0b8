//! httpwg-cli, another independent suite for RFC 9113, finds no fault in either door of the sidecar, nor within mTLS.
//!
//! It lets all of its cases go at once, and gives each answer a time: on a busy machine one may be late. So it is run
//! three times, and the median counts.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use support::{Family, Member, Mesh, Pod, Sidecar, User, WayIn, nghttpd, tools, way_in};

#[test]
fn every_case_of_httpwg_passes_through_outbound_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    support::test(through_outbound);
}

#[test]
fn every_case_of_httpwg_passes_through_inbound_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    support::test(through_inbound);
}

#[test]
fn every_case_of_httpwg_passes_through_inbound_in_mtls_over_ipv4_and_ipv6_in_the_median_of_three_runs() {
    support::test(through_inbound_in_mtls);
}

/// The application is httpwg-cli; the backend knows nothing of a mesh.
fn through_outbound(mesh: &Mesh) -> Result<()> {
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    // Declared, so that what is no HTTP/2 is refused as such rather than tunnelled past the engine.
    let sidecar = client.sidecar_with(&[("PORTUNUS_OUTBOUND_PROTOCOL", &format!("{PORT}=h2c"))])?;
    let _backend = nghttpd::start(&server, PORT)?;
    every_case_passes(&client, |family| server.at(family, PORT), &sidecar, "outbound")
}

/// The caller is httpwg-cli, from a pod without a sidecar.
fn through_inbound(mesh: &Mesh) -> Result<()> {
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let sidecar = server.sidecar_with(&[("PORTUNUS_PROTOCOL", &format!("{PORT}=h2c"))])?;
    let _backend = nghttpd::start(&server, PORT)?;
    every_case_passes(&client, |family| server.at(family, PORT), &sidecar, "inbound")
}

/// The same where nothing comes in plain. httpwg-cli has no certificate to show: a relay of ours shows one for it.
fn through_inbound_in_mtls(mesh: &Mesh) -> Result<()> {
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let control = mesh.control(&[])?;
    let member = Member {
        account: "server",
        app: "server",
        ports: &[PORT],
    };
    let sidecar = server.member(&control, &member, &[("PORTUNUS_MTLS", "strict")])?;
    let _backend = nghttpd::start(&server, PORT)?;
    let _way_in = WayIn::open(&client, &control, &server, "server", PORT)?;
    every_case_passes(
        &client,
        |family| Ok(way_in::loopback(family, PORT)),
        &sidecar,
        "inbound",
    )
}

fn every_case_passes(
    client: &Pod,
    server: impl Fn(Family) -> Result<SocketAddr>,
    sidecar: &Sidecar,
    direction: &str,
) -> Result<()> {
    for family in Family::ALL {
        let before = connections(sidecar, direction)?;
        let mut runs = (0..RUNS)
            .map(|_| Run::of(client, server(family)?))
            .collect::<Result<Vec<_>>>()?;
        let taken = connections(sidecar, direction)? - before;
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

/// Connections that the engine took in.
fn connections(sidecar: &Sidecar, direction: &str) -> Result<f64> {
    let labels = [("direction", direction), ("side", "downstream")];
    Ok(sidecar.metrics()?.sum("portunus_connections_opened_total", &labels))
}

const PORT: u16 = 8080;
const RUNS: usize = 3;
const CASES: usize = 107;
