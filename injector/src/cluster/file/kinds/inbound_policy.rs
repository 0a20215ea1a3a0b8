//! `InboundPolicy`: what workloads accept.

use std::collections::BTreeMap;

use super::super::fields::{self, Field, Fields, Later};
use super::super::finding::Findings;
use crate::cluster::{InboundPolicy, Labels, Mtls};

const MODES: [(&str, Mtls); 3] = [
    ("strict", Mtls::Strict),
    ("permissive", Mtls::Permissive),
    ("disabled", Mtls::Disabled),
];

/// Fields of `spec` that are planned.
pub const LATER: &[Later] = &[
    ("rules", "judge who may call what"),
    ("rateLimits", "limit rates"),
    ("edge", "serve gRPC-Web"),
];

/// Reads `spec`.
pub fn read(spec: &mut Fields<'_>, findings: &mut Findings) -> InboundPolicy {
    let mut selector = Labels::new();
    if let Some(mut fields) = spec.map("selector", findings) {
        selector = fields.labels("matchLabels", findings);
        let everything = "is empty, so this policy is about every Workload of its namespace";
        fields.warn_if_empty("matchLabels", everything, findings);
        fields.done(&[("matchExpressions", "select by expressions")], findings);
    }
    let mut mode = None;
    let mut ports = BTreeMap::new();
    match (spec.get("mtls").is_some(), spec.map("mtls", findings)) {
        (false, _) => findings.warning(spec.at(), "spec.mtls", "is missing, so this policy says nothing"),
        (true, None) => {}
        (true, Some(mut fields)) => {
            let before = findings.mistakes();
            mode = fields.one_of("mode", &MODES, findings);
            for item in fields.list("ports", findings) {
                let Some((port, mode)) = port(&item, findings) else {
                    continue;
                };
                if ports.insert(port, mode).is_some() {
                    let message = format!("is {port} a second time");
                    findings.mistake(item.node.locate("port"), format!("{}.port", item.path), message);
                }
            }
            let nothing = "is empty, and says nothing";
            let warned =
                fields.warn_if_empty("mode", nothing, findings) | fields.warn_if_empty("ports", nothing, findings);
            if mode.is_none() && ports.is_empty() && !warned && findings.mistakes() == before {
                findings.warning(fields.at(), "spec.mtls", "is empty, so this policy says nothing");
            }
            fields.done(&[], findings);
        }
    }
    InboundPolicy { selector, mode, ports }
}

fn port(item: &Field<'_>, findings: &mut Findings) -> Option<(u16, Mtls)> {
    let mut fields = Fields::of(item, findings)?;
    let port = fields.demand("port", "a whole number from 1 to 65535", findings);
    let mode = fields.demand("mode", "one of strict, permissive, disabled", findings);
    fields.done(&[], findings);
    let port = port.and_then(|field| fields::port(&field, findings));
    let mode = mode.and_then(|field| fields::one_of(&field, &MODES, findings));
    Some((port?, mode?))
}
