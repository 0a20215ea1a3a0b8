//! `Workload`: a machine, or a part of one, with a sidecar or without.

use super::super::fields::{self, Field, Fields};
use super::super::finding::Findings;
use super::super::yaml::{Node, Value};
use super::{app_protocol, port_name};
use crate::cluster::{Labels, TokenHash, Workload, WorkloadPort};

/// How much one workload may weigh.
const MOST_WEIGHT: u32 = 10_000;

/// Reads `spec`.
pub fn read(spec: &mut Fields<'_>, labels: Labels, findings: &mut Findings) -> Workload {
    let service_account = spec.dns_label("serviceAccount", findings).unwrap_or("default");
    let mut addresses = Vec::new();
    if let Some(field) = spec.demand("addresses", "a list of at least one IP address", findings) {
        if field.node.value == Value::List(Vec::new()) {
            findings.mistake(
                field.node.at,
                field.path.clone(),
                "is empty; expected at least one IP address",
            );
        }
        for field in fields::items(&field, findings) {
            let Some(address) = fields::address(&field, findings) else {
                continue;
            };
            fields::once(&mut addresses, address, address, field, findings);
        }
    }
    let mut ports = Vec::<WorkloadPort>::new();
    for item in spec.list("ports", findings) {
        let Some(port) = port(&item, findings) else { continue };
        if ports.iter().any(|other| other.port == port.port) {
            findings.mistake(
                item.node.locate("port"),
                format!("{}.port", item.path),
                format!("is {} a second time", port.port),
            );
        } else if !port.name.is_empty() && ports.iter().any(|other| other.name == port.name) {
            let message = format!("is {:?} a second time", port.name);
            findings.mistake(item.node.locate("name"), format!("{}.name", item.path), message);
        } else {
            ports.push(port);
        }
    }
    let zone = spec.label_value("zone", findings).unwrap_or_default();
    let weight = weight(spec, findings).unwrap_or(1);
    let ready = spec.bool("ready", findings).unwrap_or(true);
    let no_token = "is empty, so this Workload has no sidecar and no identity";
    spec.warn_if_empty("joinTokenSha256", no_token, findings);
    spec.warn_if_empty("ports", "is empty, and says nothing", findings);
    let join_token = spec
        .get("joinTokenSha256")
        .and_then(|field| token_hash(&field, findings));
    Workload {
        labels,
        service_account: service_account.to_owned(),
        addresses,
        ports,
        zone: zone.to_owned(),
        weight,
        ready,
        join_token,
    }
}

/// Whoever writes 0 wants it to get no calls.
fn weight(spec: &mut Fields<'_>, findings: &mut Findings) -> Option<u32> {
    let field = spec.get("weight")?;
    if field.node.value == Value::Integer(0) {
        let expected = format!("a whole number from 1 to {MOST_WEIGHT}; what is to get no calls says ready: false");
        fields::wrong(&field, &expected, findings);
        return None;
    }
    fields::number(&field, 1, MOST_WEIGHT, findings)
}

/// `status` is what programs have seen, and the manifests are what people wish: it is not read. Somebody may expect it to be.
pub fn status(status: Option<Field<'_>>, findings: &mut Findings) {
    let conditions = status.as_ref().and_then(|status| status.node.get("conditions"));
    let Some(Value::List(conditions)) = conditions.map(|conditions| &conditions.value) else {
        return;
    };
    let is_unready = |condition: &&Node| {
        let ready = condition.text("type").is_some_and(|kind| kind == "Ready");
        ready && condition.text("status").is_some_and(|status| status != "True")
    };
    if let Some(condition) = conditions.iter().find(is_unready) {
        let message =
            "says that it is not ready, and is not read; to take it out of its services, say spec.ready: false";
        findings.warning(condition.at, "status.conditions", message);
    }
}

fn port(item: &Field<'_>, findings: &mut Findings) -> Option<WorkloadPort> {
    let mut fields = Fields::of(item, findings)?;
    let name = fields.get("name").and_then(|field| port_name(&field, findings));
    let name = name.unwrap_or_default();
    let port = fields.demand("port", "a whole number from 1 to 65535", findings);
    let port = port.and_then(|field| fields::port(&field, findings));
    let app_protocol = app_protocol(&mut fields, &name, findings);
    fields.done(&[], findings);
    Some(WorkloadPort {
        name,
        port: port?,
        app_protocol,
    })
}

/// Never says what stood there: somebody may have written the token itself.
fn token_hash(field: &Field<'_>, findings: &mut Findings) -> Option<TokenHash> {
    let hash = match &field.node.value {
        Value::Text(said) => TokenHash::parse(said).ok_or(""),
        _ => Err(", in quotes"),
    };
    let how = hash.as_ref().err().copied();
    if let Some(how) = how {
        findings.mistake(field.node.at, field.path.clone(), format!("is not {EXPECTED}{how}"));
    }
    hash.ok()
}

const EXPECTED: &str = "a SHA-256 of 64 hex digits, as `portunus token` prints it";
