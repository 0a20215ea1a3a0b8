//! A log that nobody reads holds nobody up.

use std::{
    io::{self, PipeWriter},
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use support::{
    Dns, Mesh, Metrics, Pod, Program, User, build, http, in_netns,
    traffic::{Endpoint, NAME, Traffic, addresses, alone, among_others},
    unread::{full_pipe, read_all},
    wait_until,
};

#[test]
fn calls_go_on_and_probes_are_answered_while_nobody_reads_the_log_and_its_reader_misses_no_count() {
    let _alone = alone();
    support::test(|mesh| {
        let (reader, writer) = full_pipe()?;
        let (caller, mut sidecar, _others) = carry_with_errors_to(mesh, writer)?;
        let dropped = || -> Result<f64> {
            let scraped = Metrics::parse(&http::get(&caller, ADMIN, "/metrics")?.body);
            Ok(scraped.sum("portunus_log_dropped_total", &[]))
        };
        // A worker writes a line about each connection that leads nowhere, up to a hundred about one peer: more of them come
        // than the queue holds.
        let mut peers = (1..=250).flat_map(|third| (1..=250).map(move |last| Ipv4Addr::new(127, 1, third, last)));
        while dropped()? == 0.0 {
            let peer = peers.next().context("the log takes all that is said")?;
            in_netns(&caller, || (0..100).try_for_each(|_| lead_nowhere(peer)))??;
        }
        call(&caller)?;
        for page in ["/ready", "/live"] {
            let answer = http::get(&caller, ADMIN, page)?;
            ensure!(answer.status == 200, "{page} says {answer:?}");
        }

        let reading = thread::spawn(move || read_all(reader));
        let status = sidecar.stop(SECOND * 10)?;
        ensure!(status.success(), "it ended with {status}");
        let log = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        let refused = log.matches("is the proxy's own port").count();
        let said = log.matches("lines of the log were dropped").count();
        ensure!(
            refused > 1_000 && said == 1,
            "it has {refused} lines about connections, and says {said} times that there were more"
        );
        let last = log.lines().last().unwrap_or_default();
        ensure!(last.contains("the proxy ends"), "its last words are missing: {last}");
        Ok(())
    });
}

#[test]
fn a_proxy_whose_log_nobody_reads_ends_when_asked() {
    let _among = among_others();
    support::test(|mesh| {
        let (_reader, writer) = full_pipe()?;
        let (_caller, mut sidecar, _others) = carry_with_errors_to(mesh, writer)?;
        let status = sidecar.stop(SECOND * 5)?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    });
}

/// A caller whose sidecar writes its log there, and has carried calls.
fn carry_with_errors_to(mesh: &Mesh, errors: PipeWriter) -> Result<(Pod, Program, (Dns, Vec<Endpoint>))> {
    let dns = mesh.dns()?;
    let endpoints = Endpoint::several(mesh, 1, Duration::ZERO)?;
    dns.set(NAME, &addresses(&endpoints), 5)?;
    let caller = mesh.pod("caller")?;
    let program = caller.place(&build::sidecar()?)?;
    let mut rules = caller.command(User::Root, &program);
    rules.arg("redirect");
    caller.run("redirect", rules)?;
    let mut command = caller.command(User::Sidecar, &program);
    command.arg("proxy");
    let sidecar = caller.start_with_errors("sidecar", command, errors)?;
    wait_until(SECOND * 10, "the sidecar is ready", || {
        http::get(&caller, ADMIN, "/ready").is_ok_and(|answer| answer.status == 200)
    })?;
    call(&caller)?;
    Ok((caller, sidecar, (dns, endpoints)))
}

/// A connection to the proxy itself. It is reset, perhaps before it is made.
fn lead_nowhere(peer: Ipv4Addr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((peer, 0)).into())?;
    match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, OUTBOUND)).into()) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn call(caller: &Pod) -> Result<()> {
    let calls = Traffic::start(caller, 200, SECOND)?.end(SECOND)?;
    ensure!(calls.failed().is_empty(), "calls failed:{}", calls.failed());
    Ok(())
}

const OUTBOUND: u16 = 4140;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4191);
const SECOND: Duration = Duration::from_secs(1);
