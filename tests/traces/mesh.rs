//! An RPC through two sidecars is one trace in Jaeger: the caller's sidecar is the parent of the callee's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use support::{Family, Jaeger, Peer, Pod, Sidecar, Stack, interop, jaeger, wait_until};

use crate::failing::MEMORY;
use crate::jaeger::{span, tag};

#[test]
fn an_rpc_through_two_sidecars_is_one_trace_and_one_that_finds_no_application_says_why() {
    let _with_others = MEMORY.read();
    support::test(|mesh| {
        let pod = mesh.pod("jaeger")?;
        let jaeger = Jaeger::start(&pod)?;
        let dns = mesh.dns()?;
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let _sidecars = (sidecar(&client, &pod)?, sidecar(&server, &pod)?);
        dns.set("server.test", &server.addresses(), 5)?;
        let _app = Peer::start(&server, Stack::Tonic, 10000)?;
        interop::run(&client, Stack::Tonic, "server.test:10000", &["empty_unary"])?;
        let failed = interop::run(&client, Stack::Tonic, "server.test:10001", &["empty_unary"]);
        ensure!(failed.is_err(), "nobody listens there");

        let good = trace(&jaeger, "OK", 2)?;
        let (asked, answered) = (span(&good, "client")?, span(&good, "server")?);
        ensure!(answered["references"][0]["spanID"] == asked["spanID"], "{good:#}");
        ensure!(
            tag(asked, "rpc.method") == "grpc.testing.TestService/EmptyCall",
            "{asked:#}"
        );
        ensure!(tag(asked, "server.address") == "server.test" && tag(asked, "server.port") == 10000);
        let from = client
            .addresses()
            .iter()
            .any(|address| tag(answered, "network.peer.address") == &*address.to_string());
        ensure!(from, "the callee's sidecar names its peer: {answered:#}");

        // It was tried at both addresses.
        let bad = trace(&jaeger, "UNAVAILABLE", 3)?;
        let (asked, answered) = (span(&bad, "client")?, span(&bad, "server")?);
        ensure!(tag(answered, "error.type") == "unreachable", "{answered:#}");
        ensure!(tag(asked, "error.type") == "no_endpoint", "{asked:#}");
        let why = tag(asked, "otel.status_description").as_str().unwrap_or_default();
        ensure!(why.contains("10001"), "{why}");
        Ok(())
    });
}

fn sidecar(pod: &Pod, jaeger: &Pod) -> Result<Sidecar> {
    let collector = jaeger.at(Family::V4, jaeger::OTLP_GRPC)?.to_string();
    pod.sidecar_with(&[
        ("PORTUNUS_TRACE_COLLECTOR", &collector),
        ("PORTUNUS_TRACE_SAMPLING", "100"),
        ("OTEL_SERVICE_NAME", pod.name()),
    ])
}

/// A trace of so many spans, whose client span has this status.
fn trace(jaeger: &Jaeger, code: &str, spans: usize) -> Result<Value> {
    let mut found = None;
    let patience = Duration::from_secs(10);
    wait_until(
        patience,
        &format!("Jaeger has {spans} spans of a trace that ended {code}"),
        || {
            let page = jaeger.ask("/api/traces?service=client&limit=100").unwrap_or_default();
            let traces = page["data"].as_array().cloned().unwrap_or_default();
            found = traces.into_iter().find(|trace| {
                let ended = span(trace, "client").is_ok_and(|span| tag(span, "rpc.response.status_code") == code);
                ended && trace["spans"].as_array().is_some_and(|all| all.len() == spans)
            });
            found.is_some()
        },
    )
    .with_context(|| {
        format!(
            "it has {}",
            jaeger.ask("/api/traces?service=client&limit=100").unwrap_or_default()
        )
    })?;
    found.context("it was there")
}
