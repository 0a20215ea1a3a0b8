//! Judges what objects say of each other: names that come twice, references that lead nowhere, rules that contradict.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::finding::Findings;
use super::{Object, Objects, kinds};
use crate::cluster::{InboundPolicy, Name, Snapshot, TargetPort, Workload, selects};

/// Makes the state of all objects. It is only good if no mistake was found.
pub fn judge(objects: Objects, findings: &mut Findings) -> Snapshot {
    service_addresses(&objects, findings);
    workload_addresses(&objects, findings);
    tokens(&objects, findings);
    let snapshot = Snapshot {
        services: unique(&objects.services, findings),
        workloads: unique(&objects.workloads, findings),
        inbound_policies: unique(&objects.inbound, findings),
        outbound_policies: unique(&objects.outbound, findings),
    };
    selectors(&objects, &snapshot, findings);
    contradictions(&objects, &snapshot, findings);
    targets(&objects, &snapshot, findings);
    hosts(&objects, findings);
    snapshot
}

impl<T> Object<T> {
    fn mistake(&self, field: &str, message: impl Into<String>, findings: &mut Findings) {
        self.enter(findings);
        findings.mistake(self.document.locate(field), field, message);
    }

    fn warning(&self, field: &str, message: impl Into<String>, findings: &mut Findings) {
        self.enter(findings);
        findings.warning(self.document.locate(field), field, message);
    }

    fn enter(&self, findings: &mut Findings) {
        findings.enter_file(self.file.clone());
        findings.enter_object(kinds::title(&self.document));
    }

    /// Where it stands, for the sentence of another.
    fn place(&self) -> String {
        format!("{} ({}:{})", self.name, self.file, self.document.at.line)
    }
}

fn unique<T: Clone>(objects: &[Object<T>], findings: &mut Findings) -> BTreeMap<Name, T> {
    let mut first = BTreeMap::<&Name, &Object<T>>::new();
    for object in objects {
        if let Some(other) = first.get(&object.name) {
            let message = format!("is the name of another: {}", other.place());
            object.mistake("metadata.name", message, findings);
        } else {
            first.insert(&object.name, object);
        }
    }
    let pair = |(name, object): (&Name, &Object<T>)| (name.clone(), object.value.clone());
    first.into_iter().map(pair).collect()
}

fn service_addresses(objects: &Objects, findings: &mut Findings) {
    let mut owners = HashMap::<IpAddr, &Object<_>>::new();
    for service in &objects.services {
        for address in &service.value.addresses {
            if let Some(other) = owners.insert(*address, service)
                && other.name != service.name
            {
                let message = format!("{address} is an address of another Service, too: {}", other.place());
                service.mistake("spec.clusterIP", message, findings);
            }
        }
    }
    for workload in &objects.workloads {
        for (index, address) in workload.value.addresses.iter().enumerate() {
            if let Some(service) = owners.get(address) {
                let message = format!("{address} is the address of a Service, too: {}", service.place());
                workload.mistake(&format!("spec.addresses[{index}]"), message, findings);
            }
        }
    }
}

fn workload_addresses(objects: &Objects, findings: &mut Findings) {
    let mut owners = HashMap::<(IpAddr, u16), &Object<Workload>>::new();
    for workload in &objects.workloads {
        for (index, port) in workload.value.ports.iter().enumerate() {
            for address in &workload.value.addresses {
                if let Some(other) = owners.insert((*address, port.port), workload)
                    && other.name != workload.name
                {
                    let socket = std::net::SocketAddr::new(*address, port.port);
                    let message = format!("{socket} is served by another Workload, too: {}", other.place());
                    workload.mistake(&format!("spec.ports[{index}].port"), message, findings);
                }
            }
        }
    }
}

fn tokens(objects: &Objects, findings: &mut Findings) {
    let mut owners = HashMap::<[u8; 32], &Object<Workload>>::new();
    for workload in &objects.workloads {
        let Some(hash) = &workload.value.join_token else {
            continue;
        };
        if let Some(other) = owners.insert(hash.0, workload) {
            let message = format!(
                "is that of another Workload, too, so a token proves neither: {}",
                other.place()
            );
            workload.mistake("spec.joinTokenSha256", message, findings);
        }
    }
}

/// Selectors that select nothing are allowed: what they are for may come later.
fn selectors(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    for service in &objects.services {
        if service.value.selector.is_empty() {
            continue;
        }
        let in_namespace = |name: &Name| name.namespace == service.name.namespace;
        let selected = snapshot
            .workloads
            .iter()
            .filter(|(name, workload)| in_namespace(name) && selects(&service.value.selector, &workload.labels));
        let selected: Vec<_> = selected.map(|(_, workload)| workload).collect();
        if selected.is_empty() {
            service.warning("spec.selector", "selects no Workload of its namespace", findings);
            continue;
        }
        if !selected.iter().any(|workload| workload.ready) {
            let message = "selects no Workload that is ready (spec.ready): calls to this Service fail";
            service.warning("spec.selector", message, findings);
        }
        for port in &service.value.ports {
            let TargetPort::Named(name) = &port.target else {
                continue;
            };
            if !selected
                .iter()
                .any(|workload| workload.ports.iter().any(|port| port.name == *name))
            {
                let message = format!("no Workload that is selected has a port called {name:?}");
                service.warning("spec.ports", message, findings);
            }
        }
    }
    for policy in &objects.inbound {
        if !snapshot
            .workloads
            .iter()
            .any(|(name, workload)| policy.selects(name, workload))
        {
            policy.warning("spec.selector", "selects no Workload of its namespace", findings);
        }
    }
}

impl Object<InboundPolicy> {
    fn selects(&self, name: &Name, workload: &Workload) -> bool {
        self.value.selects(&self.name.namespace, name, workload)
    }
}

/// A policy with a selector is narrower than one for the whole namespace, and wins. Two of the same width must agree on
/// whatever both of them say for one workload.
fn contradictions(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    let mut told = Vec::new();
    for (name, workload) in &snapshot.workloads {
        for narrow in [false, true] {
            let same_width = |policy: &&Object<InboundPolicy>| policy.value.selector.is_empty() != narrow;
            let policies = objects.inbound.iter().filter(same_width);
            let policies: Vec<_> = policies.filter(|policy| policy.selects(name, workload)).collect();
            for (index, second) in policies.iter().enumerate() {
                for first in &policies[..index] {
                    let pair = (first.name.clone(), second.name.clone());
                    let Some((field, message)) = contradiction(first, second, name) else {
                        continue;
                    };
                    if !told.contains(&pair) {
                        told.push(pair);
                        second.mistake(&field, message, findings);
                    }
                }
            }
        }
    }
}

fn contradiction(
    first: &Object<InboundPolicy>,
    second: &Object<InboundPolicy>,
    workload: &Name,
) -> Option<(String, String)> {
    let (one, other) = (&first.value, &second.value);
    let place = first.place();
    if let (Some(a), Some(b)) = (one.mode, other.mode)
        && a != b
    {
        let message = format!("contradicts InboundPolicy {place} for Workload {workload}: that one says {a}");
        return Some(("spec.mtls.mode".to_owned(), message));
    }
    let differs = |(port, mode): &(&u16, &_)| one.ports.get(port).is_some_and(|said| said != *mode);
    let (port, _) = other.ports.iter().find(differs)?;
    let message = format!("contradicts InboundPolicy {place} for port {port} of Workload {workload}");
    Some(("spec.mtls.ports".to_owned(), message))
}

fn targets(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    let mut sorted: Vec<_> = objects.outbound.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut taken = HashMap::new();
    for policy in sorted {
        for (index, (service, section)) in policy.value.services.iter().enumerate() {
            let field = format!("spec.targetRefs[{index}]");
            let name = Name::new(policy.name.namespace.clone(), service.clone());
            let Some(found) = snapshot.services.get(&name) else {
                let elsewhere = snapshot.services.keys().find(|other| other.name == *service);
                let message = match elsewhere {
                    Some(other) => {
                        format!("there is no Service {name}, but there is {other}; a policy is about its own namespace")
                    }
                    None => format!("there is no Service {name}"),
                };
                policy.mistake(&format!("{field}.name"), message, findings);
                continue;
            };
            if let Some(section) = section
                && !found.ports.iter().any(|port| port.name == *section)
            {
                let message = format!("Service {name} has no port called {section:?}");
                policy.mistake(&format!("{field}.sectionName"), message, findings);
            }
            if let Some(winner) = taken.insert((name.clone(), section), policy) {
                let message = format!(
                    "is the target of OutboundPolicy {}, too, which wins by its name",
                    winner.place()
                );
                policy.warning(&field, message, findings);
                taken.insert((name, section), winner);
            }
        }
    }
}

fn hosts(objects: &Objects, findings: &mut Findings) {
    let mut sorted: Vec<_> = objects.outbound.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut taken = HashMap::new();
    for policy in sorted {
        for (index, host) in policy.value.hosts.iter().enumerate() {
            let key = (&policy.name.namespace, host);
            if let Some(winner) = taken.insert(key, policy) {
                let message = format!(
                    "is a host of OutboundPolicy {}, too, which wins by its name",
                    winner.place()
                );
                policy.warning(&format!("spec.hosts[{index}]"), message, findings);
                taken.insert(key, winner);
            }
        }
    }
}
