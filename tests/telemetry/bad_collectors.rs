//! A sidecar before a collector that reads nothing, refuses, takes only a part, or whose packets are lost: calls go on, what waits is
//! bounded, and spans come again when it is back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use support::{Family, Mesh, Pod, Sidecar, wait_until};

use crate::access::resident;
use crate::application::{Application, Call, Reply, call, flood};
use crate::collector::{Bad, BadCollector, Collector, GRPC, HTTP, TOO_MANY};

const PORT: u16 = 10000;
/// Each of them is recorded. Their spans take 29 MiB where nothing bounds what waits.
const CALLS: usize = 40_000;
/// So many before, which show the sidecar as it is with calls.
const FIRST: usize = 500;
/// KiB that spans may take, wherever they wait.
const MOST: u64 = 8 << 10;
/// KiB that the sidecar may grow by beside them: buffers of calls, and pages that the allocator keeps.
const SLACK: u64 = 4 << 10;
/// How long a sidecar waits for a collector, if nothing else was said.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// What must be true after a collector's return.
const RECOVERY: Duration = Duration::from_secs(5);

#[test]
fn a_collector_that_accepts_and_reads_nothing_costs_no_call_and_a_bounded_memory_and_is_found_back() {
    support::test(|mesh| recovers_from(mesh, Bad::Silent));
}

#[test]
fn a_collector_of_a_byte_a_second_costs_no_call_and_a_bounded_memory_and_is_found_back() {
    support::test(|mesh| recovers_from(mesh, Bad::Slow));
}

#[test]
fn a_collector_that_answers_every_export_with_unavailable_costs_no_call_and_a_bounded_memory_and_is_found_back() {
    support::test(|mesh| {
        let collecting = mesh.pod("collector")?;
        let collector = Collector::complaining(&collecting, usize::MAX)?;
        let load = Load::start(mesh, &collecting)?;
        wait_until(
            Duration::from_secs(10),
            "the collector was asked, and asked again",
            || collector.exports().len() > 1,
        )?;
        load.is_not_taken()?;
        collector.complains_no_more();
        load.is_taken(&collector)
    });
}

/// A connection that nobody ends goes dead, and none can be made: no packet says so.
#[test]
fn a_collector_whose_packets_are_lost_costs_no_call_and_is_found_back() {
    support::test(|mesh| {
        let (collecting, caller, server) = (mesh.pod("collector")?, mesh.pod("caller")?, mesh.pod("server")?);
        let collector = Collector::start(&collecting)?;
        let sidecar = recording(&caller, &collecting, "grpc", GRPC)?;
        let _application = Application::start(&server, PORT, Arc::new(|_| Reply::status("0")), Vec::new())?;
        let to = server.at(Family::V4, PORT)?;
        let call_of = |method: &str| Call::of(&to.to_string(), &format!("a.B/{method}"));
        let has_come = |method: &str| {
            let (spans, name) = (collector.spans().unwrap_or_default(), format!("a.B/{method}"));
            spans.iter().any(|(_, span)| span.name == name)
        };
        call(&caller, to, &[call_of("Before")])?;
        wait_until(Duration::from_secs(10), "a span comes", || has_come("Before"))?;
        // The sidecar has heard so, too.
        until_counted(&sidecar, 1)?;

        collecting.swallow_packets()?;
        let (lost, began, mut calls) = (outcome(&sidecar, "exported")?, Instant::now(), 0);
        // Long enough to give up the connection, and some attempts to make another.
        while began.elapsed() < 3 * EXPORT_TIMEOUT {
            const ONCE: usize = 100;
            // None of them fails.
            flood(&caller, to, &call_of("Meanwhile"), ONCE)?;
            calls += ONCE;
        }
        ensure!(calls > 1_000, "only {calls} calls went through");
        ensure!(
            outcome(&sidecar, "exported")? == lost,
            "spans count as taken that nobody took"
        );
        let gone = outcome(&sidecar, "failed")? + outcome(&sidecar, "dropped")?;
        ensure!(gone > 0.0, "no span counts as lost after {:?}", began.elapsed());

        collecting.pass_packets()?;
        let back = Instant::now();
        wait_until(RECOVERY, "spans come again", || has_come("Meanwhile")).with_context(|| sidecar.output())?;
        println!(
            "{calls} calls without a collector, spans came {:?} after its return",
            back.elapsed()
        );
        // As long as what has waited leaves, there may be no room for more: then the next one comes.
        wait_until(Duration::from_secs(10), "a call of now has its span", || {
            call(&caller, to, &[call_of("Now")]).is_ok() && has_come("Now")
        })
    });
}

#[test]
fn what_a_collector_leaves_of_each_batch_by_grpc_is_dropped_and_costs_no_call() {
    support::test(|mesh| leaves_of_each_batch(mesh, "grpc", GRPC));
}

#[test]
fn what_a_collector_leaves_of_each_batch_by_http_is_dropped_and_costs_no_call() {
    support::test(|mesh| leaves_of_each_batch(mesh, "http/protobuf", HTTP));
}

fn leaves_of_each_batch(mesh: &Mesh, protocol: &str, port: u16) -> Result<()> {
    const LEFT: usize = 3;
    let (collecting, caller, server) = (mesh.pod("collector")?, mesh.pod("caller")?, mesh.pod("server")?);
    let collector = Collector::leaving(&collecting, LEFT)?;
    let sidecar = recording(&caller, &collecting, protocol, port)?;
    let _application = Application::start(&server, PORT, Arc::new(|_| Reply::status("0")), Vec::new())?;
    let to = server.at(Family::V4, PORT)?;
    const ONCE: usize = 500;
    for times in 1..=3 {
        // None of them fails.
        flood(&caller, to, &Call::of(&to.to_string(), "a.B/Call"), ONCE)?;
        let all = times * ONCE;
        until_counted(&sidecar, all)?;
        // Each batch came once, and what was left of it is not sent again.
        let batches: Vec<_> = collector.traces()?.iter().map(spans_in).collect();
        let came: usize = batches.iter().sum();
        let left: usize = batches.iter().map(|batch| LEFT.min(*batch)).sum();
        let [exported, dropped, failed] = counted(&sidecar)?.map(|spans| spans as usize);
        ensure!(
            (exported, dropped, failed, came) == (all - left, left, 0, all),
            "{exported} exported, {dropped} dropped and {failed} failed of {all}; they came in batches of {batches:?}"
        );
    }
    let said = |log: &str| log.lines().filter(|line| line.contains(TOO_MANY)).count();
    wait_until(Duration::from_secs(10), "it is said", || said(&sidecar.output()) > 0)?;
    let log = sidecar.output();
    ensure!(said(&log) == 1, "it was said {} times:\n{log}", said(&log));
    Ok(())
}

/// A sidecar that records every call.
fn recording(caller: &Pod, collecting: &Pod, protocol: &str, port: u16) -> Result<Sidecar> {
    caller.sidecar_with(&[
        (
            "PORTUNUS_TRACE_COLLECTOR",
            &collecting.at(Family::V4, port)?.to_string(),
        ),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("PORTUNUS_TRACE_SAMPLING", "100"),
        ("OTEL_SERVICE_NAME", "caller"),
    ])
}

fn recovers_from(mesh: &Mesh, bad: Bad) -> Result<()> {
    let collecting = mesh.pod("collector")?;
    let collector = BadCollector::start(&collecting, bad)?;
    let load = Load::start(mesh, &collecting)?;
    wait_until(Duration::from_secs(10), "the collector was asked", || {
        collector.connections() > 0
    })?;
    load.is_not_taken()?;
    collector.leave()?;
    load.is_taken(&Collector::start(&collecting)?)
}

/// Calls whose spans are large, and the sidecar that records them.
struct Load {
    caller: Pod,
    to: SocketAddr,
    of: Call,
    sidecar: Sidecar,
    _application: Application,
}

impl Load {
    /// The first of them have been answered.
    fn start(mesh: &Mesh, collecting: &Pod) -> Result<Load> {
        let (caller, server) = (mesh.pod("caller")?, mesh.pod("server")?);
        let to = server.at(Family::V4, PORT)?;
        let load = Load {
            sidecar: recording(&caller, collecting, "grpc", GRPC)?,
            _application: Application::start(&server, PORT, Arc::new(|_| Reply::status("0")), Vec::new())?,
            // Long names make large spans.
            of: Call::of(&to.to_string(), &format!("a.B/{}", "m".repeat(240))),
            caller,
            to,
        };
        flood(&load.caller, load.to, &load.of, FIRST)?;
        Ok(load)
    }

    /// Many more, while the collector takes no span.
    fn is_not_taken(&self) -> Result<()> {
        let Load {
            caller,
            to,
            of,
            sidecar,
            ..
        } = self;
        let (before, lost) = (resident(sidecar)?, outcome(sidecar, "dropped")?);
        let (began, mut most, mut longest) = (Instant::now(), before, Duration::ZERO);
        const ONCE: usize = 1_000;
        for _ in 0..CALLS / ONCE {
            // None of them fails.
            longest = longest.max(flood(caller, *to, of, ONCE)?);
            most = most.max(resident(sidecar)?);
        }
        let (grown, dropped) = (most.saturating_sub(before), outcome(sidecar, "dropped")?);
        println!(
            "{CALLS} calls in {:?}, none longer than {longest:?}; {dropped} spans dropped, {grown} KiB more than {before} \
             resident",
            began.elapsed()
        );
        ensure!(
            grown <= MOST + SLACK,
            "{grown} KiB more than {before} are resident, {MOST} and {SLACK} are allowed"
        );
        ensure!(
            dropped - lost > CALLS as f64 / 2.0,
            "of {CALLS} spans only {} are dropped",
            dropped - lost
        );
        ensure!(outcome(sidecar, "exported")? == 0.0, "nobody took any");
        let handled = || -> Result<f64> {
            let metrics = sidecar.metrics()?;
            Ok(metrics.sum("grpc_client_handled_total", &[("grpc_code", "OK")]))
        };
        let made = (FIRST + CALLS) as f64;
        // A call is counted when its answer has gone.
        wait_until(Duration::from_secs(10), "each call is counted", || {
            handled().is_ok_and(|handled| handled >= made)
        })?;
        let handled = handled()?;
        ensure!(handled == made, "{handled} calls went well");
        Ok(())
    }

    /// The collector takes spans from now on, and has had none before.
    fn is_taken(&self, good: &Collector) -> Result<()> {
        let Load {
            caller, to, sidecar, ..
        } = self;
        let back = Instant::now();
        wait_until(RECOVERY, "spans come again", || {
            good.spans().is_ok_and(|spans| !spans.is_empty())
        })
        .with_context(|| sidecar.output())?;
        println!("spans came {:?} after its return", back.elapsed());
        // Those of now do, too, and each is counted once, whatever became of it. As long as what has waited leaves, there may be
        // no room for more: then the next one comes.
        let mut now = 0;
        wait_until(Duration::from_secs(10), "a call of now has its span", || {
            now += usize::from(call(caller, *to, &[Call::of(&to.to_string(), "a.B/Now")]).is_ok());
            let spans = good.spans().unwrap_or_default();
            spans.iter().any(|(_, span)| span.name == "a.B/Now")
        })?;
        let all = FIRST + CALLS + now;
        until_counted(sidecar, all)?;
        let ([exported, dropped, failed], came) = (counted(sidecar)?, good.spans()?.len());
        ensure!(
            exported + dropped + failed == all as f64 && came as f64 >= exported,
            "{exported} exported, {dropped} dropped and {failed} failed of {all}; {came} came"
        );
        Ok(())
    }
}

/// Waits until so many spans are counted, whatever became of them.
fn until_counted(sidecar: &Sidecar, all: usize) -> Result<()> {
    wait_until(Duration::from_secs(10), "each span is counted", || {
        counted(sidecar).is_ok_and(|counted| counted.iter().sum::<f64>() >= all as f64)
    })
    .with_context(|| format!("{:?} of {all}", counted(sidecar)))
}

/// How many spans are exported, dropped, and failed.
fn counted(sidecar: &Sidecar) -> Result<[f64; 3]> {
    let metrics = sidecar.metrics()?;
    Ok(["exported", "dropped", "failed"].map(|outcome| metrics.sum(SPANS, &[("outcome", outcome)])))
}

fn spans_in(batch: &ExportTraceServiceRequest) -> usize {
    let scopes = batch.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.map(|scope| scope.spans.len()).sum()
}

fn outcome(sidecar: &Sidecar, outcome: &str) -> Result<f64> {
    Ok(sidecar.metrics()?.sum(SPANS, &[("outcome", outcome)]))
}

const SPANS: &str = "portunus_spans_total";
