//! A state, arranged for questions: names and addresses to services, endpoints and policy.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use portunus_proto::limits::MOST_PORTS;
use portunus_proto::mesh::v1::{self, subject, update};
use portunus_proto::{ADMIN_PORT, Declared, SpiffeId, TrustDomain};
use prost::Message;
use sha2::{Digest, Sha256};

use super::policy::{self, Accepts};
use crate::cluster::{Mtls, Name, OutboundPolicy, ServicePort, Snapshot, selects};

/// The names that do not stand in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Realm {
    /// Of all identities.
    pub trust_domain: TrustDomain,
    /// What services' names end in, `cluster.local`.
    pub cluster_domain: String,
}

/// A state and what follows from it, made once for all who ask.
#[derive(Debug)]
pub struct World {
    realm: Realm,
    snapshot: Arc<Snapshot>,
    /// Which workloads a service selects.
    members: BTreeMap<Name, Vec<Name>>,
    accepts: BTreeMap<Name, Accepts>,
    /// What each workload's ports are declared to speak.
    protocols: BTreeMap<Name, BTreeMap<u16, Declared>>,
    services: HashMap<IpAddr, Name>,
    workloads: HashMap<SocketAddr, Name>,
    /// Which member has an address to itself, whatever the port; `None` where several share it.
    alone: HashMap<IpAddr, Option<Name>>,
    /// By service and port's name.
    policies: HashMap<(Name, Option<String>), Name>,
    /// By namespace and host.
    hosts: HashMap<(String, String), Name>,
    /// What was told of services, by their ports: made once for all who ask, when the first does.
    prints: Mutex<HashMap<(Name, u16), Print>>,
}

/// An answer in short: answers that differ have prints that differ.
pub type Print = [u8; 32];

/// The print of a message. Maps have no order of their own, but the only ones in the protocol are those of `Inbound`, and to
/// tell it twice does no harm.
pub fn print(message: &impl Message) -> Print {
    Sha256::digest(message.encode_to_vec()).into()
}

/// What stands behind a subject.
enum Found<'w> {
    Service(&'w Name, &'w ServicePort),
    Endpoint(&'w Name, SocketAddr),
    Outside(Option<v1::OutboundPolicy>),
}

impl World {
    /// Arranges a state.
    pub fn of(snapshot: Arc<Snapshot>, realm: Realm) -> World {
        let mut world = World {
            realm,
            members: BTreeMap::new(),
            accepts: BTreeMap::new(),
            protocols: BTreeMap::new(),
            services: HashMap::new(),
            workloads: HashMap::new(),
            alone: HashMap::new(),
            policies: HashMap::new(),
            hosts: HashMap::new(),
            prints: Mutex::default(),
            snapshot: snapshot.clone(),
        };
        for (name, service) in &snapshot.services {
            let of_namespace = Name::new(name.namespace.clone(), "")..;
            let workloads = snapshot.workloads.range(of_namespace);
            let workloads = workloads.take_while(|(workload, _)| workload.namespace == name.namespace);
            let selected = workloads.filter(|(_, workload)| selects(&service.selector, &workload.labels));
            world
                .members
                .insert(name.clone(), selected.map(|(name, _)| name.clone()).collect());
            for address in &service.addresses {
                world.services.insert(*address, name.clone());
            }
        }
        for (name, workload) in &snapshot.workloads {
            world
                .accepts
                .insert(name.clone(), Accepts::of(name, workload, &snapshot));
            for address in &workload.addresses {
                if workload.join_token.is_some() {
                    world
                        .alone
                        .entry(*address)
                        .and_modify(|other| *other = None)
                        .or_insert_with(|| Some(name.clone()));
                }
                for port in &workload.ports {
                    world
                        .workloads
                        .insert(SocketAddr::new(*address, port.port), name.clone());
                }
            }
        }
        world.declare();
        // Of two for one target the first in the order of names wins.
        for (name, policy) in &snapshot.outbound_policies {
            for (service, section) in &policy.services {
                let service = Name::new(name.namespace.clone(), service.clone());
                world
                    .policies
                    .entry((service, section.clone()))
                    .or_insert_with(|| name.clone());
            }
            for host in &policy.hosts {
                let key = (name.namespace.clone(), host.clone());
                world.hosts.entry(key).or_insert_with(|| name.clone());
            }
        }
        world
    }

    /// The id that a workload has if it has a sidecar.
    pub fn identity(&self, name: &Name) -> Option<SpiffeId> {
        let workload = self.snapshot.workloads.get(name)?;
        workload.join_token.as_ref()?;
        SpiffeId::of(&self.realm.trust_domain, &name.namespace, &workload.service_account).ok()
    }

    /// What a workload accepts.
    pub fn inbound(&self, workload: &Name) -> v1::Inbound {
        let accepted = self.accepts.get(workload).map(Accepts::to_wire).unwrap_or_default();
        let declared = self.protocols.get(workload).into_iter().flatten();
        let words = declared.filter_map(|(port, declared)| Some((u32::from(*port), declared.word()?.to_owned())));
        v1::Inbound {
            protocols: words.take(MOST_PORTS).collect(),
            ..accepted
        }
    }

    /// What a Workload says of its port comes first. Where it says nothing, the Services that lead there do; where these
    /// do not agree, nobody has said anything.
    fn declare(&mut self) {
        for (name, workload) in &self.snapshot.workloads {
            let ports = workload.ports.iter().map(|port| (port.port, port.app_protocol));
            let declared = ports.filter(|(_, declared)| *declared != Declared::Nothing);
            self.protocols.insert(name.clone(), declared.collect());
        }
        let mut by_services = HashMap::<(&Name, u16), Declared>::new();
        for (name, service) in &self.snapshot.services {
            let ports = || {
                service
                    .ports
                    .iter()
                    .filter(|port| port.app_protocol != Declared::Nothing)
            };
            for workload in self.members.get(name).into_iter().flatten() {
                for (port, number) in ports().filter_map(|port| Some((port, self.number(workload, port)?))) {
                    by_services
                        .entry((workload, number))
                        .and_modify(|before| {
                            if *before != port.app_protocol {
                                *before = Declared::Nothing;
                            }
                        })
                        .or_insert(port.app_protocol);
                }
            }
        }
        for ((workload, number), declared) in by_services {
            let of_workload = self.protocols.entry(workload.clone()).or_default();
            of_workload.entry(number).or_insert(declared);
        }
    }

    /// Which port of a workload a service's leads to.
    fn number(&self, workload: &Name, port: &ServicePort) -> Option<u16> {
        port.number(self.snapshot.workloads.get(workload)?)
    }

    /// What there is under a name or an address, for a workload that asks.
    pub fn view(&self, asker: &Name, subject: &v1::Subject) -> v1::Update {
        v1::Update {
            subject: Some(subject.clone()),
            what: Some(self.tell(self.find(asker, subject))),
        }
    }

    /// The print of what there is: of a service it costs next to nothing, once somebody has asked.
    pub fn print(&self, asker: &Name, subject: &v1::Subject) -> Print {
        let found = self.find(asker, subject);
        let key = match &found {
            Found::Service(name, port) => Some(((*name).clone(), port.port)),
            Found::Endpoint(..) | Found::Outside(_) => None,
        };
        if let Some(print) = key.as_ref().and_then(|key| self.prints.lock().get(key).copied()) {
            return print;
        }
        let print = print(&v1::Update {
            subject: None,
            what: Some(self.tell(found)),
        });
        if let Some(key) = key {
            self.prints.lock().insert(key, print);
        }
        print
    }

    fn find(&self, asker: &Name, subject: &v1::Subject) -> Found<'_> {
        match &subject.what {
            Some(subject::What::Name(name)) => self.by_name(asker, name),
            Some(subject::What::Address(address)) => self.by_address(address).unwrap_or(Found::Outside(None)),
            None => Found::Outside(None),
        }
    }

    fn tell(&self, found: Found<'_>) -> update::What {
        match found {
            Found::Service(name, port) => update::What::Service(self.service(name, port)),
            Found::Endpoint(name, addr) => update::What::Endpoint(self.endpoint(name, addr.ip(), addr.port())),
            Found::Outside(policy) => update::What::Unknown(v1::Unknown { policy }),
        }
    }

    fn by_name(&self, asker: &Name, asked: &v1::NamePort) -> Found<'_> {
        let host = asked.host.strip_suffix('.').unwrap_or(&asked.host).to_ascii_lowercase();
        let Ok(port) = u16::try_from(asked.port) else {
            return Found::Outside(None);
        };
        let service = self
            .service_called(asker, &host)
            .and_then(|name| self.of_service(&name, port));
        service.unwrap_or_else(|| {
            let policy = self.hosts.get(&(asker.namespace.clone(), host.clone()));
            let policy = policy.and_then(|name| self.policy(name));
            Found::Outside(policy.map(|(name, policy)| policy::outside(name, policy, &host)))
        })
    }

    /// `svc`, `svc.ns`, `svc.ns.svc`, `svc.ns.svc.<cluster domain>`.
    fn service_called(&self, asker: &Name, host: &str) -> Option<Name> {
        let full = host
            .strip_suffix(&self.realm.cluster_domain)
            .and_then(|rest| rest.strip_suffix('.'));
        let parts: Vec<_> = full.unwrap_or(host).split('.').collect();
        match (parts.as_slice(), full.is_some()) {
            ([service], false) => Some(Name::new(asker.namespace.clone(), *service)),
            ([service, namespace], false) | ([service, namespace, "svc"], _) => Some(Name::new(*namespace, *service)),
            _ => None,
        }
    }

    fn by_address(&self, asked: &v1::Address) -> Option<Found<'_>> {
        let address = asked.ip.parse::<IpAddr>().ok()?.to_canonical();
        let port = u16::try_from(asked.port).ok()?;
        if let Some(service) = self.services.get(&address) {
            return self.of_service(service, port);
        }
        let addr = SocketAddr::new(address, port);
        let workload = self.workloads.get(&addr).or_else(|| self.unlisted(addr))?;
        Some(Found::Endpoint(workload, addr))
    }

    /// The member behind a port that no Workload lists: its sidecar answers there, too, but for its own admin port, which
    /// the redirect rules leave alone.
    fn unlisted(&self, addr: SocketAddr) -> Option<&Name> {
        let member = self.alone.get(&addr.ip())?.as_ref();
        member.filter(|_| addr.port() != ADMIN_PORT)
    }

    fn of_service(&self, name: &Name, port: u16) -> Option<Found<'_>> {
        let (name, service) = self.snapshot.services.get_key_value(name)?;
        let port = service.ports.iter().find(|candidate| candidate.port == port)?;
        Some(Found::Service(name, port))
    }

    fn service(&self, name: &Name, port: &ServicePort) -> v1::Service {
        let addresses = self
            .snapshot
            .services
            .get(name)
            .map(|service| service.addresses.as_slice());
        v1::Service {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            port: port.port.into(),
            addresses: addresses.unwrap_or_default().iter().map(IpAddr::to_string).collect(),
            endpoints: self.endpoints(name, port),
            policy: self.policy_of(name, port),
        }
    }

    fn endpoints(&self, service: &Name, port: &ServicePort) -> Vec<v1::Endpoint> {
        let mut endpoints = Vec::new();
        for name in self.members.get(service).into_iter().flatten() {
            let Some(workload) = self.snapshot.workloads.get(name) else {
                continue;
            };
            let Some(number) = self.number(name, port) else {
                continue;
            };
            endpoints.extend(
                workload
                    .addresses
                    .iter()
                    .map(|address| self.endpoint(name, *address, number)),
            );
        }
        endpoints
    }

    /// An endpoint has an identity if there is a sidecar, and it takes mTLS on this port, which is not the sidecar's own.
    fn endpoint(&self, name: &Name, address: IpAddr, port: u16) -> v1::Endpoint {
        let takes_mtls = self.accepts.get(name).and_then(|accepts| accepts.mode(port)) != Some(Mtls::Disabled);
        let identity = self.identity(name).filter(|_| takes_mtls && port != ADMIN_PORT);
        let workload = self.snapshot.workloads.get(name);
        v1::Endpoint {
            ip: address.to_string(),
            port: port.into(),
            identity: identity.map(|id| id.to_string()).unwrap_or_default(),
            zone: workload.map(|workload| workload.zone.clone()).unwrap_or_default(),
            weight: workload.map_or(1, |workload| workload.weight),
            ready: workload.is_some_and(|workload| workload.ready),
            workload: name.to_string(),
        }
    }

    fn policy_of(&self, name: &Name, port: &ServicePort) -> Option<v1::OutboundPolicy> {
        let of = |section: Option<String>| {
            let policy = self.policies.get(&(name.clone(), section))?;
            self.policy(policy)
        };
        let named = Some(port.name.clone()).filter(|name| !name.is_empty());
        let narrow = named.and_then(|section| of(Some(section)));
        let wide = of(None);
        (narrow.is_some() || wide.is_some()).then(|| policy::merged(narrow, wide))
    }

    fn policy(&self, name: &Name) -> Option<(&Name, &OutboundPolicy)> {
        self.snapshot.outbound_policies.get_key_value(name)
    }
}
