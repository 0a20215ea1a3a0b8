//! What Jaeger has is what was recorded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use portunus_sidecar::grpc::Code;
use portunus_sidecar::telemetry::export::Protocol;
use portunus_sidecar::telemetry::{Event, Kind};
use serde_json::Value;
use support::{Jaeger, Mesh, in_netns, jaeger, wait_until};

use crate::failing::MEMORY;
use crate::recorder::{Recorder, settings};

#[test]
fn both_spans_of_a_failed_rpc_arrive_by_grpc_as_parent_and_child_with_the_reason() {
    let _with_others = MEMORY.read();
    support::test(|mesh| both_spans_arrive(mesh, Protocol::Grpc, jaeger::OTLP_GRPC));
}

#[test]
fn both_spans_of_a_failed_rpc_arrive_by_http_as_parent_and_child_with_the_reason() {
    let _with_others = MEMORY.read();
    support::test(|mesh| both_spans_arrive(mesh, Protocol::Http, jaeger::OTLP_HTTP));
}

fn both_spans_arrive(mesh: &Mesh, protocol: Protocol, port: u16) -> Result<()> {
    let pod = mesh.pod("jaeger")?;
    let jaeger = Jaeger::start(&pod)?;
    let id = in_netns(&pod, || a_call_fails(protocol, port))??;
    let trace = jaeger.trace(&id, 2)?;

    let client = span(&trace, "client")?;
    let server = span(&trace, "server")?;
    ensure!(
        client["references"] == Value::Array(Vec::new()),
        "the client's span has a parent: {client:#}"
    );
    let parent = &server["references"][0];
    ensure!(
        parent["refType"] == "CHILD_OF" && parent["spanID"] == client["spanID"],
        "{server:#}"
    );
    for of in [client, server] {
        ensure!(of["operationName"] == "helloworld.Greeter/SayHello", "{of:#}");
        for (key, value) in [
            ("rpc.system.name", "grpc"),
            ("rpc.method", "helloworld.Greeter/SayHello"),
            ("rpc.response.status_code", "UNAVAILABLE"),
            ("server.address", "greeter.test"),
            ("network.peer.address", "10.0.0.7"),
        ] {
            ensure!(tag(of, key) == value, "{key} is {}", tag(of, key));
        }
        ensure!(tag(of, "server.port") == 50051 && tag(of, "error") == true, "{of:#}");
    }
    ensure!(tag(client, "span.kind") == "client" && tag(server, "span.kind") == "server");
    // Who failed it says so in a word and a sentence; to the other it is a status.
    ensure!(tag(server, "error.type") == "unreachable" && tag(client, "error.type") == "UNAVAILABLE");
    ensure!(tag(server, "otel.status_description") == "10.0.0.7:50051 refused; is the application listening there?");
    ensure!(tag(server, "portunus.peer.identity") == "spiffe://mesh.test/ns/a/sa/client");
    let events = server["logs"].to_string() + &client["logs"].to_string();
    for event in ["endpoint chosen", "retry", "backoff", "failure"] {
        ensure!(events.contains(&format!("\"{event}\"")), "no {event} among {events}");
    }
    let duration = client["duration"].as_u64().context("a span has a duration")?;
    ensure!(duration == 7_000, "{duration} microseconds");

    // The same by the API that speaks OTLP.
    let v3 = jaeger.ask(&format!("/api/v3/traces/{id}"))?.to_string();
    ensure!(v3.contains("service.instance.id") && v3.contains("client-0"), "{v3}");
    Ok(())
}

/// The callee's sidecar cannot reach its application; returns the trace.
fn a_call_fails(protocol: Protocol, port: u16) -> Result<String> {
    let collector = format!("127.0.0.1:{port}");
    // Jaeger has just started, and takes its time for the first span.
    let mut first = Recorder::new(settings("first", &collector, protocol)?)?;
    first.record(1)?;
    first.wait_for("exported", 1, Duration::from_secs(10))?;
    let mut outbound = Recorder::new(settings("client", &collector, protocol)?)?;
    let mut inbound = Recorder::new(settings("server", &collector, protocol)?)?;
    let peer = ([10, 0, 0, 7], 50051).into();
    let began = Instant::now();

    let (mut client, traceparent) = outbound.begin(Kind::Client, None)?;
    client.event(began, Event::EndpointChosen(([10, 0, 0, 6], 50051).into()));
    client.event(began, Event::Backoff(([10, 0, 0, 6], 50051).into()));
    client.event(
        began,
        Event::Retry {
            reason: "not_processed",
        },
    );
    client.event(began, Event::EndpointChosen(peer));
    client.peer(peer);

    let (mut server, _) = inbound.begin(Kind::Server, Some(&traceparent))?;
    server.peer(peer);
    server.identity("spiffe://mesh.test/ns/a/sa/client");
    let sentence = "10.0.0.7:50051 refused; is the application listening there?";
    server.event(Instant::now(), Event::failed("unreachable", sentence));
    server.finish(Instant::now(), Code::Unavailable, 1, 0);
    let id = server.context().trace_id.to_hex();
    inbound.tracing.end(server);

    client.finish(client.began() + Duration::from_millis(7), Code::Unavailable, 1, 0);
    outbound.tracing.end(client);
    // No waiting for a batch: what is recorded when the process ends is delivered.
    let ends = [outbound, inbound].map(|recorder| {
        let registry = recorder.registry.clone();
        (
            recorder.stop(),
            registry.scrape(portunus_sidecar::telemetry::Format::Prometheus),
        )
    });
    for (in_time, page) in ends {
        ensure!(in_time, "the exporter does not end");
        ensure!(page.contains("portunus_spans_total{outcome=\"exported\"} 1"), "{page}");
    }
    Ok(id)
}

#[test]
fn a_burst_of_spans_arrives_whole() {
    let _with_others = MEMORY.read();
    support::test(|mesh| {
        let pod = mesh.pod("jaeger")?;
        let jaeger = Jaeger::start(&pod)?;
        in_netns(&pod, burst)??;
        // It has taken all, and stores them by and by.
        let mut stored = 0;
        let all = wait_until(Duration::from_secs(10), "Jaeger has stored every span", || {
            let page = jaeger.ask("/api/traces?service=burst&limit=5000").ok();
            stored = page
                .and_then(|page| Some(page["data"].as_array()?.len()))
                .unwrap_or(stored);
            stored == BURST
        });
        all.with_context(|| format!("{stored} of {BURST} traces"))
    });
}

const BURST: usize = 2_000;

fn burst() -> Result<()> {
    let mut recorder = Recorder::new(settings("burst", "127.0.0.1", Protocol::Grpc)?)?;
    recorder.record(BURST)?;
    recorder.wait_for("exported", BURST as u64, Duration::from_secs(10))
}

pub(crate) fn span<'a>(trace: &'a Value, service: &str) -> Result<&'a Value> {
    spans(trace, service)
        .next()
        .with_context(|| format!("no span of {service} in {trace:#}"))
}

/// All spans of a trace that a service has recorded.
pub(crate) fn spans<'a>(trace: &'a Value, service: &str) -> impl Iterator<Item = &'a Value> {
    let is_of = move |span: &&Value| {
        let process = span["processID"].as_str().unwrap_or_default();
        trace["processes"][process]["serviceName"] == service
    };
    trace["spans"].as_array().into_iter().flatten().filter(is_of)
}

pub(crate) fn tag<'a>(span: &'a Value, key: &str) -> &'a Value {
    let tags = span["tags"].as_array().map_or(&[][..], Vec::as_slice);
    tags.iter()
        .find(|tag| tag["key"] == key)
        .map_or(&Value::Null, |tag| &tag["value"])
}
