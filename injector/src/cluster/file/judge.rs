//! Judges what objects say of each other: names that come twice, references that lead nowhere, rules that contradict.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use portunus_proto::limits::{MOST_ENDPOINTS, MOST_PORTS};
use portunus_proto::{CONTROL_ACCOUNT, CONTROL_NAMESPACE};

use super::finding::Findings;
use super::{Object, Objects, kinds};
use crate::cluster::{InboundPolicy, Name, Service, ServicePort, Snapshot, TargetPort, Workload, selects};

/// Makes the state of all objects. It is only good if no mistake was found.
pub fn judge(objects: Objects, findings: &mut Findings) -> Snapshot {
    service_addresses(&objects, findings);
    workload_addresses(&objects, findings);
    beside_members(&objects, findings);
    tokens(&objects, findings);
    controls(&objects, findings);
    many_ports(&objects, findings);
    let snapshot = Snapshot {
        services: unique(&objects.services, findings),
        workloads: unique(&objects.workloads, findings),
        inbound_policies: unique(&objects.inbound, findings),
        outbound_policies: unique(&objects.outbound, findings),
    };
    endpoints(&objects, &snapshot, findings);
    // What could not be read may be what is looked for.
    if objects.are_all {
        selectors(&objects, &snapshot, findings);
        policy_ports(&objects, &snapshot, findings);
    }
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
                    let socket = SocketAddr::new(*address, port.port);
                    let message = format!("{socket} is served by another Workload, too: {}", other.place());
                    workload.mistake(&format!("spec.ports[{index}].port"), message, findings);
                }
            }
        }
    }
}

/// Whoever has no token has no identity, and is called in plain: at the address of a member this is most likely not meant.
/// Members that share an address are told apart by the ports that they list, and called in plain at any other.
fn beside_members(objects: &Objects, findings: &mut Findings) {
    let has_token = |workload: &&Object<Workload>| workload.value.join_token.is_some();
    let (members, others): (Vec<_>, Vec<_>) = objects.workloads.iter().partition(has_token);
    let mut owners = HashMap::new();
    for member in members {
        for (index, address) in member.value.addresses.iter().enumerate() {
            let other = owners.insert(*address, member);
            if let Some(other) = other.filter(|other| other.name != member.name) {
                let message = format!(
                    "{address} is the address of another Workload with spec.joinTokenSha256, too, so ports that neither of \
                     them lists are called in plain there: {}",
                    other.place()
                );
                member.warning(&format!("spec.addresses[{index}]"), message, findings);
            }
        }
    }
    for workload in others {
        for (index, address) in workload.value.addresses.iter().enumerate() {
            if let Some(member) = owners.get(address) {
                let message = format!(
                    "{address} is the address of a Workload with spec.joinTokenSha256, too, which this one has not, so its \
                     ports are called in plain there: {}",
                    member.place()
                );
                workload.warning(&format!("spec.addresses[{index}]"), message, findings);
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

/// Nobody is certified as control, of which only control itself knows the namespace.
fn controls(objects: &Objects, findings: &mut Findings) {
    for workload in &objects.workloads {
        let account = &workload.value.service_account;
        if workload.name.namespace == CONTROL_NAMESPACE && account == CONTROL_ACCOUNT {
            let message = format!(
                "is control's own in namespace {CONTROL_NAMESPACE}, where control is if it is not told another: \
                 it then gives this Workload no certificate"
            );
            workload.warning("spec.serviceAccount", message, findings);
        }
    }
}

/// Policies may name so many ports of one workload, all of them together.
fn many_ports(objects: &Objects, findings: &mut Findings) {
    for workload in &objects.workloads {
        let policies = objects.inbound.iter();
        let policies: Vec<_> = policies
            .filter(|policy| policy.selects(&workload.name, &workload.value))
            .collect();
        let ports: BTreeSet<_> = policies.iter().flat_map(|policy| policy.value.ports.keys()).collect();
        if let Some(last) = policies.last().filter(|_| ports.len() > MOST_PORTS) {
            let message = format!(
                "makes, with other policies, {} ports of Workload {} that have a mode; expected at most {MOST_PORTS}",
                ports.len(),
                workload.name
            );
            last.mistake("spec.mtls.ports", message, findings);
        }
    }
}

/// Selectors that select nothing are allowed: what they are for may come later.
fn selectors(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    for service in &objects.services {
        if service.value.selector.is_empty() {
            continue;
        }
        let selected = selected(service, snapshot);
        if selected.is_empty() {
            service.warning("spec.selector", "selects no Workload of its namespace", findings);
            continue;
        }
        if !selected.iter().any(|(_, workload)| workload.ready) {
            let message = "selects no Workload that is ready (spec.ready): calls to this Service fail";
            service.warning("spec.selector", message, findings);
        }
        for port in &service.value.ports {
            let TargetPort::Named(name) = &port.target else {
                continue;
            };
            if !selected
                .iter()
                .any(|(_, workload)| workload.ports.iter().any(|port| port.name == *name))
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

/// The workloads that a service selects.
fn selected<'s>(service: &Object<Service>, snapshot: &'s Snapshot) -> Vec<(&'s Name, &'s Workload)> {
    let in_namespace = |name: &Name| name.namespace == service.name.namespace;
    let workloads = snapshot.workloads.iter();
    let selected =
        workloads.filter(|(name, workload)| in_namespace(name) && selects(&service.value.selector, &workload.labels));
    selected.collect()
}

fn endpoints(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    for service in &objects.services {
        let selected = selected(service, snapshot);
        for port in &service.value.ports {
            if let Some(message) = wrong_endpoints(port, &selected) {
                let message = format!("port {} {message}", port.port);
                service.mistake("spec.ports", message, findings);
            }
        }
    }
}

/// A port that none of the workloads has is most often another than was meant. One that says nothing of its ports may have
/// any, and so may one to which a service leads there.
fn policy_ports(objects: &Objects, snapshot: &Snapshot, findings: &mut Findings) {
    for policy in objects.inbound.iter().filter(|policy| !policy.value.ports.is_empty()) {
        let selected = snapshot.workloads.iter();
        let selected: Vec<_> = selected
            .filter(|(name, workload)| policy.selects(name, workload))
            .collect();
        let may_have_any = |(_, workload): &(&Name, &Workload)| workload.ports.is_empty();
        if selected.is_empty() || selected.iter().any(may_have_any) {
            continue;
        }
        let mut ports: HashSet<u16> = selected
            .iter()
            .flat_map(|(_, workload)| workload.ports.iter().map(|port| port.port))
            .collect();
        for (name, service) in &snapshot.services {
            let led_to = selected.iter().filter(|(workload, says)| {
                workload.namespace == name.namespace && selects(&service.selector, &says.labels)
            });
            ports.extend(led_to.flat_map(|(_, says)| service.ports.iter().filter_map(|port| port.number(says))));
        }
        let strange = policy.value.ports.keys().filter(|port| !ports.contains(port));
        let strange: Vec<_> = strange.map(u16::to_string).collect();
        if !strange.is_empty() {
            let (named, more) = strange.split_at(strange.len().min(MOST_NAMED));
            let more = match more.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let message = format!(
                "names port {}{more}, which no Workload that is selected has",
                named.join(", ")
            );
            policy.warning("spec.mtls.ports", message, findings);
        }
    }
}

/// How many ports a sentence names.
const MOST_NAMED: usize = 5;

/// What no sidecar would take: of one port, too many endpoints, or one of them twice.
fn wrong_endpoints(port: &ServicePort, selected: &[(&Name, &Workload)]) -> Option<String> {
    let mut owners = HashMap::<SocketAddr, &Name>::new();
    for (name, workload) in selected {
        let Some(number) = port.number(workload) else { continue };
        for address in &workload.addresses {
            let socket = SocketAddr::new(*address, number);
            if let Some(other) = owners.insert(socket, name) {
                return Some(format!("leads to {socket} twice: of Workload {other}, and of {name}"));
            }
        }
    }
    let found = owners.len();
    (found > MOST_ENDPOINTS).then(|| format!("leads to {found} endpoints; expected at most {MOST_ENDPOINTS}"))
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
                if !objects.are_all {
                    continue;
                }
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
                && objects.are_all
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
