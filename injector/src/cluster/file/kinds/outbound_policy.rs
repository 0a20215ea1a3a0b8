//! `OutboundPolicy`: how callers reach services, and names outside.

use std::time::Duration;

use portunus_proto::limits::LONGEST_HOST;

use super::super::fields::{self, Field, Fields, Later};
use super::super::finding::Findings;
use crate::cluster::{Algorithm, Balancer, HealthCheck, HealthMode, OutboundPolicy, Outlier, Srv};

/// No ejection is shorter.
const LEAST: Duration = Duration::from_millis(10);
/// The shortest interval of health checks, and the shortest timeout: sidecars ask no more often.
const SHORTEST_CHECK: Duration = Duration::from_millis(100);
/// No threshold above this makes sense.
const MOST_THRESHOLD: u32 = 1_000;

/// Fields of `spec` that are planned.
pub const LATER: &[Later] = &[
    ("retry", "retry by policy"),
    ("timeout", "set deadlines by policy"),
    ("hedge", "hedge"),
    ("limits", "limit calls by policy"),
];

/// Reads `spec`.
pub fn read(spec: &mut Fields<'_>, findings: &mut Findings) -> OutboundPolicy {
    let mut services = Vec::new();
    for item in spec.list("targetRefs", findings) {
        let Some(target) = target(&item, findings) else {
            continue;
        };
        fields::once(&mut services, target, "the same target", item, findings);
    }
    let mut hosts = Vec::new();
    for item in spec.list("hosts", findings) {
        let Some(host) = host(&item, findings) else { continue };
        let name = format!("{host:?}");
        fields::once(&mut hosts, host, name, item, findings);
    }
    let said = |fields: &mut Fields<'_>, key| fields.get(key).is_some();
    if !said(spec, "targetRefs") && !said(spec, "hosts") {
        let message = "is missing, and so is spec.hosts; expected whom this policy is about";
        findings.mistake(spec.at(), "spec.targetRefs", message);
    }
    let srv = srv(spec, &hosts, findings);
    OutboundPolicy {
        services,
        hosts,
        srv,
        balancer: balancer(spec, findings),
        health_check: health_check(spec, findings),
        outlier: outlier(spec, findings),
    }
}

fn target(item: &Field<'_>, findings: &mut Findings) -> Option<(String, Option<String>)> {
    let mut fields = Fields::of(item, findings)?;
    if let Some(group) = fields.get("group") {
        fields::one_of(&group, &[("", ()), ("core", ())], findings);
    }
    if let Some(kind) = fields.demand("kind", "Service", findings) {
        fields::one_of(&kind, &[("Service", ())], findings);
    }
    let name = fields.demand("name", "a Service's name", findings);
    let name = name.and_then(|name| fields::dns_label(&name, findings));
    let section = fields.get("sectionName");
    fields.done(&[("namespace", "reach into other namespaces")], findings);
    let section = match section {
        None => None,
        Some(section) => Some(fields::dns_label(&section, findings)?.to_owned()),
    };
    Some((name?.to_owned(), section))
}

fn host(item: &Field<'_>, findings: &mut Findings) -> Option<String> {
    let said = fields::text(item, HOST, findings)?;
    let host = said.strip_suffix('.').unwrap_or(said).to_ascii_lowercase();
    let is_label = |label: &str| fields::is_dns_label(&label.replace('_', "a"));
    if host.len() > LONGEST_HOST || !host.split('.').all(is_label) || host.parse::<std::net::IpAddr>().is_ok() {
        fields::wrong(item, HOST, findings);
        return None;
    }
    Some(host)
}

const HOST: &str = "a host's name without port, such as api.example.com";

fn srv(spec: &mut Fields<'_>, hosts: &[String], findings: &mut Findings) -> Option<Srv> {
    let mut fields = spec.map("dns", findings)?;
    let (at, srv) = (fields.at(), fields.get("srv"));
    fields.done(&[], findings);
    let srv = srv?;
    if hosts.is_empty() {
        findings.warning(
            at,
            srv.path.clone(),
            "says nothing without spec.hosts: it is about names outside",
        );
    }
    let said = fields::text(&srv, SRV, findings)?;
    let name = said.strip_suffix('.').unwrap_or(said).to_ascii_lowercase();
    let is_label = |label: &str| fields::is_dns_label(label.strip_prefix('_').unwrap_or(label));
    if name.len() > LONGEST_HOST || !name.split('.').all(is_label) {
        fields::wrong(&srv, SRV, findings);
        return None;
    }
    let is_prefix = name.split('.').all(|label| label.starts_with('_'));
    let read = if is_prefix { Srv::Prefix(name) } else { Srv::Name(name) };
    // Before a host a prefix must still make a name.
    if let Some(host) = hosts.iter().find(|host| read.record(host).len() > LONGEST_HOST) {
        let message = format!("makes, before the host {host}, a name of more than {LONGEST_HOST} bytes");
        findings.mistake(srv.node.at, srv.path, message);
    }
    Some(read)
}

const SRV: &str =
    "_grpc._tcp, which is looked for at each host, or the whole name of SRV records, such as _grpc._tcp.example.com";

fn balancer(spec: &mut Fields<'_>, findings: &mut Findings) -> Balancer {
    let Some(mut fields) = spec.map("balancer", findings) else {
        return Balancer::default();
    };
    let algorithms = [("P2cEwma", Algorithm::P2cEwma), ("RoundRobin", Algorithm::RoundRobin)];
    let balancer = Balancer {
        algorithm: fields.one_of("algorithm", &algorithms, findings),
        slow_start: fields.duration("slowStart", Duration::ZERO, findings),
    };
    fields.done(&[], findings);
    balancer
}

fn health_check(spec: &mut Fields<'_>, findings: &mut Findings) -> HealthCheck {
    let Some(mut fields) = spec.map("healthCheck", findings) else {
        return HealthCheck::default();
    };
    let modes = [
        ("Check", HealthMode::Check),
        ("Watch", HealthMode::Watch),
        ("Off", HealthMode::Off),
    ];
    let check = HealthCheck {
        mode: fields.one_of("mode", &modes, findings),
        service: fields.text("service", findings).map(str::to_owned),
        interval: fields.duration("interval", SHORTEST_CHECK, findings),
        timeout: fields.duration("timeout", SHORTEST_CHECK, findings),
        unhealthy_threshold: fields.number("unhealthyThreshold", 1, MOST_THRESHOLD, findings),
        healthy_threshold: fields.number("healthyThreshold", 1, MOST_THRESHOLD, findings),
    };
    if check.service.as_ref().is_some_and(|service| service.len() > 255) {
        findings.mistake(
            fields.at(),
            fields.path("service"),
            "is too long; expected at most 255 bytes",
        );
    }
    if let (Some(interval), Some(timeout)) = (check.interval, check.timeout)
        && timeout > interval
    {
        findings.warning(
            fields.at(),
            fields.path("timeout"),
            "is longer than interval: an endpoint that does not answer is checked less often than that",
        );
    }
    fields.done(&[], findings);
    check
}

fn outlier(spec: &mut Fields<'_>, findings: &mut Findings) -> Outlier {
    let Some(mut fields) = spec.map("outlier", findings) else {
        return Outlier::default();
    };
    let outlier = Outlier {
        off: fields.one_of("mode", &[("On", false), ("Off", true)], findings),
        consecutive_failures: fields.number("consecutiveFailures", 1, MOST_THRESHOLD, findings),
        base_ejection: fields.duration("baseEjection", LEAST, findings),
        max_ejection: fields.duration("maxEjection", LEAST, findings),
        max_ejection_percent: fields.number("maxEjectionPercent", 1, 100, findings),
    };
    if let (Some(base), Some(max)) = (outlier.base_ejection, outlier.max_ejection)
        && max < base
    {
        findings.mistake(
            fields.at(),
            fields.path("maxEjection"),
            "is shorter than baseEjection; expected at least that",
        );
    }
    fields.done(&[], findings);
    outlier
}
