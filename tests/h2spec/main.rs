//! h2spec, an independent suite for RFC 9113 and RFC 7541, finds no fault in either door of the sidecar, nor within mTLS.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use support::{Conformance, Family, Mesh, Pod, User, tools};

#[test]
fn every_case_of_h2spec_passes_through_outbound_over_ipv4_and_ipv6() {
    every_case_passes(Conformance::through_outbound);
}

#[test]
fn every_case_of_h2spec_passes_through_inbound_over_ipv4_and_ipv6() {
    every_case_passes(Conformance::through_inbound);
}

#[test]
fn every_case_of_h2spec_passes_through_inbound_in_mtls_over_ipv4_and_ipv6() {
    every_case_passes(Conformance::through_inbound_in_mtls);
}

fn every_case_passes(way: impl FnOnce(&Mesh) -> Result<Conformance>) {
    support::test(|mesh| {
        let way = way(mesh)?;
        for family in Family::ALL {
            let before = way.connections()?;
            let said = h2spec(&way.client, way.address(family)?)?;
            judge(&said, way.connections()? - before)?;
        }
        Ok(())
    });
}

/// Runs it in a pod, and returns what it wrote.
fn h2spec(client: &Pod, server: SocketAddr) -> Result<String> {
    let mut command = client.command(User::App, tools::go("h2spec")?);
    let host = match server.ip() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    command.args([
        "--host",
        &host,
        "--port",
        &server.port().to_string(),
        "--path",
        "/index.html",
    ]);
    // A proxy answers once its backend has: longer than the two seconds that h2spec waits at first on a busy machine.
    command.args(["--timeout", "4"]);
    let mut program = client.start("h2spec", command)?;
    program.wait(Duration::from_secs(300)).context("h2spec runs")?;
    Ok(program.output())
}

/// All 146, by the engine and not past it.
fn judge(said: &str, connections: f64) -> Result<()> {
    let failures = said.split("Failures:").nth(1).unwrap_or_default();
    ensure!(
        said.contains("146 tests, 146 passed, 0 skipped, 0 failed"),
        "h2spec says: {}\n{failures}",
        said.lines().last().unwrap_or_default()
    );
    ensure!(
        connections >= 146.0,
        "the engine has had {connections} connections of 146 cases: the rest went past it"
    );
    Ok(())
}
