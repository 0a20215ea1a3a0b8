//! `v1 Service`. The kind is not ours: fields that the mesh does not need are passed over.

use portunus_proto::limits::MOST_ADDRESSES;

use super::super::fields::{self, Field, Fields};
use super::super::finding::Findings;
use super::super::yaml::Value;
use super::{app_protocol, port_name};
use crate::cluster::{Service, ServicePort, TargetPort};

/// Reads `spec`; `None` when the Service is none of the mesh's.
pub fn read(object: &mut Fields<'_>, findings: &mut Findings) -> Option<Service> {
    let spec = object.demand("spec", "ports and a selector", findings)?;
    let mut spec = Fields::of(&spec, findings)?;
    if spec.text("type", findings) == Some("ExternalName") {
        findings.note(
            spec.at(),
            "is left out: a Service of type ExternalName is a name for something outside",
        );
        return None;
    }
    let before = findings.mistakes();
    let addresses = addresses(&mut spec, findings);
    let (selector, read_so_far) = (spec.labels("selector", findings), findings.mistakes());
    if selector.is_empty() && read_so_far == before {
        let message = "is empty, so this Service selects no Workload and has no endpoint";
        findings.warning(spec.at(), "spec.selector", message);
    }
    let mut ports = Vec::<ServicePort>::new();
    let list = spec.list("ports", findings);
    let several = list.len() > 1;
    for item in list {
        let Some(port) = port(&item, several, findings) else {
            continue;
        };
        if ports.iter().any(|other| other.port == port.port) {
            findings.mistake(
                item.node.locate("port"),
                format!("{}.port", item.path),
                format!("is {} a second time", port.port),
            );
        } else if ports.iter().any(|other| other.name == port.name) {
            let message = format!("is {:?} a second time", port.name);
            findings.mistake(item.node.locate("name"), format!("{}.name", item.path), message);
        } else {
            ports.push(port);
        }
    }
    spec.warn_of_others(PASSED_OVER, findings);
    if ports.is_empty() && findings.mistakes() == before {
        findings.warning(
            spec.at(),
            "spec.ports",
            "there is no TCP port, so nothing can be reached by this Service",
        );
    }
    Some(Service {
        addresses,
        selector,
        ports,
    })
}

/// Fields of `v1 ServiceSpec` that the mesh does not need.
const PASSED_OVER: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "publishNotReadyAddresses",
    "sessionAffinity",
    "sessionAffinityConfig",
    "trafficDistribution",
];

fn addresses(spec: &mut Fields<'_>, findings: &mut Findings) -> Vec<std::net::IpAddr> {
    let list = spec.list("clusterIPs", findings);
    let one = spec.get("clusterIP");
    let fields = if list.is_empty() {
        one.into_iter().collect()
    } else {
        list
    };
    let mut addresses = Vec::new();
    for field in fields {
        // Kubernetes writes "None" for a headless service, and "" before it has given one.
        if matches!(&field.node.value, Value::Text(text) if text == "None" || text.is_empty()) {
            continue;
        }
        let Some(address) = fields::address(&field, findings) else {
            continue;
        };
        fields::once(&mut addresses, address, address, field, findings);
    }
    if addresses.len() > MOST_ADDRESSES {
        let message = format!("are {}; expected at most {MOST_ADDRESSES}", addresses.len());
        findings.mistake(spec.at(), spec.path("clusterIPs"), message);
    }
    addresses
}

fn port(item: &Field<'_>, several: bool, findings: &mut Findings) -> Option<ServicePort> {
    let mut fields = Fields::of(item, findings)?;
    let protocol = fields.one_of("protocol", &[("TCP", true), ("UDP", false), ("SCTP", false)], findings);
    if protocol == Some(false) {
        findings.note(item.node.at, format!("{} is left out: the mesh carries TCP", item.path));
        return None;
    }
    let name = match fields.get("name") {
        Some(field) if matches!(&field.node.value, Value::Text(text) if text.is_empty()) => String::new(),
        Some(field) => port_name(&field, findings)?,
        None => String::new(),
    };
    if name.is_empty() && several {
        findings.mistake(
            item.node.at,
            fields.path("name"),
            "is missing; a Service of several ports names each",
        );
    }
    let port = fields.demand("port", "a whole number from 1 to 65535", findings);
    let port = port.and_then(|field| fields::port(&field, findings));
    let target = match fields.get("targetPort") {
        None => port.map(TargetPort::Number),
        Some(field) => match &field.node.value {
            Value::Text(said) if said.bytes().all(|byte| byte.is_ascii_digit()) => {
                let expected = "a whole number without quotes, or the name of a port, which has a letter in it";
                fields::wrong(&field, expected, findings);
                None
            }
            Value::Text(_) => port_name(&field, findings).map(TargetPort::Named),
            Value::Integer(0) => port.map(TargetPort::Number),
            _ => fields::port(&field, findings).map(TargetPort::Number),
        },
    };
    let app_protocol = app_protocol(&mut fields, &name, findings);
    fields.warn_of_others(&["nodePort"], findings);
    Some(ServicePort {
        name,
        port: port?,
        target: target?,
        app_protocol,
    })
}
