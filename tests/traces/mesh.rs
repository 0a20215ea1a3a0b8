//! An RPC through two sidecars is one trace in Jaeger: the caller's sidecar is the parent of the callee's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use support::{Control, Family, Jaeger, Member, Mesh, Peer, Pod, Sidecar, Stack, interop, jaeger, wait_until};

use crate::failing::MEMORY;
use crate::jaeger::{span, spans, tag};

#[test]
fn an_rpc_through_two_sidecars_is_one_trace_and_one_that_finds_no_application_says_why() {
    let _with_others = MEMORY.read();
    support::test(|mesh| are_drawn(mesh, None));
}

#[test]
fn between_members_too_and_each_says_whom_it_has_proven() {
    let _with_others = MEMORY.read();
    support::test(|mesh| are_drawn(mesh, Some(&mesh.control(&[])?)));
}

/// One RPC that is answered and one that finds no application, in plain or between members of control's mesh.
fn are_drawn(mesh: &Mesh, control: Option<&Control>) -> Result<()> {
    let pod = mesh.pod("jaeger")?;
    let jaeger = Jaeger::start(&pod)?;
    let dns = mesh.dns()?;
    let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
    let _sidecars = (
        sidecar(&client, &pod, control, &[])?,
        sidecar(&server, &pod, control, &[10000])?,
    );
    dns.set("server.test", &server.addresses(), 5)?;
    let _app = Peer::start(&server, Stack::Tonic, 10000)?;
    interop::run(&client, Stack::Tonic, "server.test:10000", &["empty_unary"])?;
    let failed = interop::run(&client, Stack::Tonic, "server.test:10001", &["empty_unary"]);
    ensure!(failed.is_err(), "nobody listens there");

    let good = trace(&jaeger, "OK", 2)?;
    // It was tried at both addresses.
    let bad = trace(&jaeger, "UNAVAILABLE", 3)?;
    let proven = |account| control.map_or(Value::Null, |_| Control::id(account).into());
    let from: Vec<Value> = client.addresses().iter().map(|ip| ip.to_string().into()).collect();
    for (trace, port) in [(&good, 10000), (&bad, 10001)] {
        let asked = span(trace, "client")?;
        ensure!(asked["references"] == json!([]), "it begins here: {asked:#}");
        ensure!(tag(asked, "server.address") == "server.test" && tag(asked, "server.port") == port);
        ensure!(*tag(asked, "portunus.peer.identity") == proven("server"), "{asked:#}");
        for answered in spans(trace, "server") {
            let parent = &answered["references"][0];
            ensure!(
                parent["refType"] == "CHILD_OF" && parent["spanID"] == asked["spanID"],
                "{trace:#}"
            );
            ensure!(
                from.contains(tag(answered, "network.peer.address")),
                "the callee's sidecar names its peer: {answered:#}"
            );
            ensure!(
                *tag(answered, "portunus.peer.identity") == proven("client"),
                "{answered:#}"
            );
        }
        for each in spans(trace, "client").chain(spans(trace, "server")) {
            ensure!(
                tag(each, "rpc.system.name") == "grpc"
                    && tag(each, "rpc.method") == "grpc.testing.TestService/EmptyCall",
                "{each:#}"
            );
        }
    }
    for answered in spans(&bad, "server") {
        ensure!(tag(answered, "error.type") == "unreachable", "{answered:#}");
    }
    let asked = span(&bad, "client")?;
    ensure!(tag(asked, "error.type") == "no_endpoint", "{asked:#}");
    let why = tag(asked, "otel.status_description").as_str().unwrap_or_default();
    ensure!(why.contains("10001"), "{why}");
    Ok(())
}

fn sidecar(pod: &Pod, jaeger: &Pod, control: Option<&Control>, ports: &[u16]) -> Result<Sidecar> {
    let collector = jaeger.at(Family::V4, jaeger::OTLP_GRPC)?.to_string();
    let settings = [
        ("PORTUNUS_TRACE_COLLECTOR", &*collector),
        ("PORTUNUS_TRACE_SAMPLING", "100"),
        ("OTEL_SERVICE_NAME", pod.name()),
    ];
    let Some(control) = control else {
        return pod.sidecar_with(&settings);
    };
    let member = Member {
        account: pod.name(),
        app: pod.name(),
        ports,
    };
    pod.member(
        control,
        &member,
        &[&settings[..], &[("PORTUNUS_MTLS", "strict")]].concat(),
    )
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
