//! h2spec, an independent suite for RFC 9113 and RFC 7541, finds no fault in either door of the sidecar, nor within mTLS.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use support::{Family, Member, Mesh, Pod, Sidecar, User, WayIn, nghttpd, tools, way_in};

#[test]
fn every_case_of_h2spec_passes_through_outbound_over_ipv4_and_ipv6() {
    support::test(through_outbound);
}

#[test]
fn every_case_of_h2spec_passes_through_inbound_over_ipv4_and_ipv6() {
    support::test(through_inbound);
}

#[test]
fn every_case_of_h2spec_passes_through_inbound_in_mtls_over_ipv4_and_ipv6() {
    support::test(through_inbound_in_mtls);
}

/// The application is h2spec; the backend knows nothing of a mesh.
fn through_outbound(mesh: &Mesh) -> Result<()> {
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    // Declared, so that what is no HTTP/2 is refused as such rather than tunnelled past the engine.
    let sidecar = client.sidecar_with(&[("PORTUNUS_OUTBOUND_PROTOCOL", &format!("{PORT}=h2c"))])?;
    let _backend = nghttpd::start(&server, PORT)?;
    for family in Family::ALL {
        let before = connections(&sidecar, "outbound")?;
        let said = h2spec(&client, server.at(family, PORT)?)?;
        judge(&said, connections(&sidecar, "outbound")? - before)?;
    }
    Ok(())
}

/// The caller is h2spec, from a pod without a sidecar.
fn through_inbound(mesh: &Mesh) -> Result<()> {
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let sidecar = server.sidecar_with(&[("PORTUNUS_PROTOCOL", &format!("{PORT}=h2c"))])?;
    let _backend = nghttpd::start(&server, PORT)?;
    for family in Family::ALL {
        let before = connections(&sidecar, "inbound")?;
        let said = h2spec(&client, server.at(family, PORT)?)?;
        judge(&said, connections(&sidecar, "inbound")? - before)?;
    }
    Ok(())
}

/// The same where nothing comes in plain. h2spec has no certificate to show: a relay of ours shows one for it.
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
    for family in Family::ALL {
        let before = connections(&sidecar, "inbound")?;
        let said = h2spec(&client, way_in::loopback(family, PORT))?;
        judge(&said, connections(&sidecar, "inbound")? - before)?;
    }
    Ok(())
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

/// Connections that the engine took in.
fn connections(sidecar: &Sidecar, direction: &str) -> Result<f64> {
    let labels = [("direction", direction), ("side", "downstream")];
    Ok(sidecar.metrics()?.sum("portunus_connections_opened_total", &labels))
}

const PORT: u16 = 8080;
