//! The name servers: who they are, and asking them one question.
//!
//! Which server to ask, and when to give up on it, is decided here: hickory, which speaks DNS (`server.rs`), would not
//! ask the next server after SERVFAIL.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_resolver::{
    config::{ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        op::ResponseCode,
        rr::{Name, RData, Record},
    },
    system_conf::parse_resolv_conf,
};
use tokio::{task::JoinSet, time};

use super::{
    Settings, file,
    question::{Cause, Data, Found, Kind, Question, Service, Trouble},
    search::Search,
    server::Server,
};

/// The name servers and the search list that hold now.
pub(super) struct Servers {
    pub(super) search: Search,
    servers: Vec<Server>,
    /// Why there are none, if so.
    fault: Option<String>,
    /// Which one answered last: it is asked first.
    preferred: AtomicUsize,
    timeout: Duration,
    ask_interval: Duration,
    max_addresses: usize,
    max_services: usize,
    /// Of a set that is too large, each process keeps a part of its own, and always the same.
    part: RandomState,
}

/// What stands in resolv.conf, or why it could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResolvConf(Result<Vec<u8>, String>);

impl ResolvConf {
    pub(super) fn read(path: &Path) -> Self {
        let read = file::read_at_most(path, MAX_RESOLV_CONF);
        Self(read.map_err(|error| format!("cannot read {}: {error}", path.display())))
    }
}

impl Servers {
    /// The servers that a `resolv.conf` names, or the settings do instead; a sentence if that comes to none.
    pub(super) fn new(conf: &ResolvConf, settings: &Settings) -> Result<Self, String> {
        let parsed = conf.0.clone().and_then(|text| {
            parse_resolv_conf(text).map_err(|error| format!("cannot use {}: {error}", settings.resolv_conf.display()))
        });
        let (config, options) = match (parsed, &settings.servers) {
            (Ok(parsed), _) => parsed,
            (Err(_), Some(_)) => (ResolverConfig::default(), ResolverOpts::default()),
            (Err(fault), None) => return Err(fault),
        };
        let addrs = settings.servers.clone().unwrap_or_else(|| {
            config
                .name_servers()
                .iter()
                .map(|server| SocketAddr::new(server.ip, settings.server_port))
                .take(MAX_SERVERS)
                .collect()
        });
        let timeout = settings
            .timeout
            .unwrap_or_else(|| options.timeout.clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT));
        let servers = addrs
            .iter()
            .map(|addr| Server::new(*addr, timeout, settings))
            .collect::<Result<_, _>>()?;
        // `search` and `domain` exclude each other; without either it is the domain of the host's own name.
        let mut domains: Vec<Name> = config.search().iter().take(MAX_SEARCH).cloned().collect();
        if domains.is_empty() {
            domains.extend(config.domain().cloned());
        }
        let ndots = options.ndots.min(15);
        Ok(Self {
            search: Search { domains, ndots },
            servers,
            fault: None,
            timeout,
            ..Self::none(settings, None)
        })
    }

    /// No servers, and why: each question is answered with that.
    pub(super) fn none(settings: &Settings, fault: Option<String>) -> Self {
        Self {
            search: Search::default(),
            servers: Vec::new(),
            fault,
            preferred: AtomicUsize::new(0),
            timeout: settings.timeout.unwrap_or(LONGEST_TIMEOUT),
            ask_interval: settings.ask_interval,
            max_addresses: settings.max_addresses,
            max_services: settings.max_services,
            part: RandomState::new(),
        }
    }

    /// Asks one question. A server that says yes or no is believed. One that fails, or is silent for an interval, has
    /// the next one asked beside it.
    pub(super) async fn ask(self: Arc<Self>, question: Question) -> Result<Found, Trouble> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut order = (0..self.servers.len()).map(|at| (first + at) % self.servers.len());
        let mut asked = JoinSet::new();
        let mut worst: Option<Trouble> = None;
        let mut more = true;
        loop {
            if asked.is_empty() || more {
                match order.next() {
                    Some(at) => {
                        let (servers, question) = (self.clone(), question.clone());
                        asked.spawn(async move { (at, servers.ask_one(at, &question).await) });
                    }
                    None if asked.is_empty() => return Err(worst.unwrap_or_else(|| self.nobody())),
                    None => {}
                }
            }
            more = false;
            tokio::select! {
                Some(done) = asked.join_next() => match done {
                    Ok((at, Err(trouble))) if trouble.cause != Cause::Denied => {
                        tracing::debug!(server = %self.servers[at].addr, reason = &*trouble.sentence, "no answer");
                        // That one server said something tells more than that another was silent.
                        if worst.as_ref().is_none_or(|worst| worst.cause == Cause::Silent) {
                            worst = Some(trouble);
                        }
                        more = true;
                    }
                    Ok((at, told)) => {
                        self.preferred.store(at, Ordering::Relaxed);
                        return told;
                    }
                    Err(lost) => {
                        worst = Some(Trouble { cause: Cause::Failed, sentence: format!("the question broke off: {lost}").into() });
                    }
                },
                () = time::sleep(self.ask_interval) => more = true,
            }
        }
    }

    async fn ask_one(&self, at: usize, question: &Question) -> Result<Found, Trouble> {
        let server = &self.servers[at];
        let addr = server.addr;
        let lookup = server.lookup(question);
        // hickory bounds each message; this bounds all of them, for chains of CNAME and TCP after UDP.
        let told = time::timeout(self.timeout * 2, lookup)
            .await
            .unwrap_or(Err(NetError::Timeout));
        let about = |cause, what: &dyn std::fmt::Display| Trouble {
            cause,
            sentence: format!("{addr} {what} for {} {}", question.kind.record_type(), question.name).into(),
        };
        let lookup = told.map_err(|error| match &error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NoError => about(Cause::Denied, &"has no record"),
                ResponseCode::NXDomain => about(Cause::Denied, &"says NXDOMAIN"),
                code => about(Cause::Failed, &format_args!("says {code}")),
            },
            NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => about(Cause::Failed, &"says SERVFAIL"),
            NetError::Dns(DnsError::ResponseCode(code)) => about(Cause::Failed, &format_args!("says {code}")),
            NetError::Timeout => about(Cause::Silent, &format_args!("did not answer within {:?}", self.timeout)),
            NetError::Io(error) => about(Cause::Silent, &format_args!("cannot be asked ({error})")),
            NetError::NoConnections => about(Cause::Silent, &"cannot be reached"),
            error => about(Cause::Failed, &format_args!("gave no usable answer ({error})")),
        })?;
        self.read(&lookup, question).ok_or_else(|| match question.kind {
            Kind::A | Kind::Aaaa => about(Cause::Failed, &"gave no usable address"),
            Kind::Srv => about(Cause::Denied, &"offers no service"),
        })
    }

    /// The records that answer the question: its own and those of the names that it is an alias of.
    fn read(&self, lookup: &Lookup, question: &Question) -> Option<Found> {
        let (names, mut ttl) = aliases(lookup.answers(), &question.name);
        let mut ips = Vec::new();
        let mut services = Vec::new();
        for record in lookup.answers().iter().filter(|record| names.contains(&record.name)) {
            match (&record.data, question.kind) {
                (RData::A(a), Kind::A) => ips.push(IpAddr::V4(a.0)),
                (RData::AAAA(aaaa), Kind::Aaaa) => ips.push(IpAddr::V6(aaaa.0).to_canonical()),
                (RData::SRV(srv), Kind::Srv) => services.push(Service {
                    priority: srv.priority,
                    weight: srv.weight,
                    port: srv.port,
                    target: absolute(&srv.target),
                }),
                _ => continue,
            }
            ttl = ttl.min(record.ttl);
        }
        let data = match question.kind {
            Kind::A | Kind::Aaaa => Data::Addresses(self.usable(ips)),
            Kind::Srv => Data::Services(self.offered(services)),
        };
        let empty = match &data {
            Data::Addresses(ips) => ips.is_empty(),
            Data::Services(services) => services.is_empty(),
        };
        (!empty).then(|| Found {
            data,
            ttl: Duration::from_secs(u64::from(ttl)),
        })
    }

    /// Addresses that something can listen on, sorted, as many as are allowed.
    fn usable(&self, mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
        ips.retain(can_be_listened_on);
        ips.sort_unstable();
        ips.dedup();
        if ips.len() > self.max_addresses {
            ips.sort_by_cached_key(|ip| self.part.hash_one(ip));
            ips.truncate(self.max_addresses);
            ips.sort_unstable();
        }
        ips
    }

    /// Services that are offered: the root as target says that one is not (RFC 2782).
    fn offered(&self, mut services: Vec<Service>) -> Vec<Service> {
        services.retain(|service| !service.target.is_root() && service.port != 0);
        services.sort_unstable();
        services.dedup();
        services.truncate(self.max_services);
        services
    }

    fn nobody(&self) -> Trouble {
        let sentence = self.fault.as_deref().unwrap_or("no name server is configured");
        Trouble {
            cause: Cause::Silent,
            sentence: sentence.into(),
        }
    }
}

/// Whether something can listen on an address: not on those that mean nobody or everybody.
pub(super) fn can_be_listened_on(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && *ip != IpAddr::from([255; 4])
}

/// The name of the question and the names that it is an alias of, with the least TTL on the way.
fn aliases<'a>(records: &'a [Record], name: &'a Name) -> (HashSet<&'a Name>, u32) {
    let mut names = HashSet::from([name]);
    let mut ttl = u32::MAX;
    for _ in 0..MAX_ALIASES {
        let before = names.len();
        for record in records {
            if let RData::CNAME(to) = &record.data
                && names.contains(&record.name)
                && names.insert(&to.0)
            {
                ttl = ttl.min(record.ttl);
            }
        }
        if names.len() == before {
            break;
        }
    }
    (names, ttl)
}

fn absolute(name: &Name) -> Name {
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    name
}

/// More of resolv.conf is not read.
const MAX_RESOLV_CONF: u64 = 64 * 1024;
/// More name servers, and more search domains, are not used: as many as the C library takes, and some.
const MAX_SERVERS: usize = 8;
const MAX_SEARCH: usize = 32;
/// As long a chain of aliases as hickory follows, and one.
const MAX_ALIASES: usize = 9;
/// What `options timeout:` of resolv.conf may come to.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
