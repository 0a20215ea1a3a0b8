//! What the cluster says: a state as a whole, parsed and judged, from whatever source. One writer, many readers.

pub mod file;
mod token;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::Declared;
use tokio::sync::watch;

pub use token::{JoinToken, NoToken};

/// Where the states of a cluster are seen, each as a whole: the newest that was accepted; `None` until there is one.
pub type States = watch::Receiver<Option<Arc<Snapshot>>>;

/// Everything that control knows of a cluster at one time. Whatever stands here has been judged: names are names, every
/// reference by name of a port is resolved where it is used, and no two objects of a kind have the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `v1 Service`.
    pub services: BTreeMap<Name, Service>,
    /// `Workload`; later pods, too.
    pub workloads: BTreeMap<Name, Workload>,
    /// `InboundPolicy`.
    pub inbound_policies: BTreeMap<Name, InboundPolicy>,
    /// `OutboundPolicy`.
    pub outbound_policies: BTreeMap<Name, OutboundPolicy>,
}

/// The name of an object and its namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// `default` where a manifest says none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// `metadata.labels`, or a selector's `matchLabels`.
pub type Labels = BTreeMap<String, String>;

/// A service: addresses of its own, and the workloads that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `spec.clusterIPs`; none for a headless service.
    pub addresses: Vec<IpAddr>,
    /// `spec.selector`; a service without one selects nothing.
    pub selector: Labels,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; may be empty where there is one port only.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `targetPort`; the same as `port` if unsaid.
    pub target: TargetPort,
    /// `appProtocol`, or what the prefix of the port's name says.
    pub app_protocol: Declared,
}

/// Which port of a workload a service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one that each workload calls so; a workload that has none is no endpoint.
    Named(String),
}

/// A machine, or a part of one, with a sidecar or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What selectors match.
    pub labels: Labels,
    /// `spec.serviceAccount`; `default` if unsaid.
    pub service_account: String,
    /// `spec.addresses`.
    pub addresses: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<WorkloadPort>,
    /// `spec.zone`: where it stands; empty if unsaid.
    pub zone: String,
    /// `spec.weight`; 1 if unsaid.
    pub weight: u32,
    /// `spec.ready`: whether it is given new calls; it is if unsaid.
    pub ready: bool,
    /// `spec.joinTokenSha256`. A workload without one has no sidecar, so it has no identity either.
    pub join_token: Option<TokenHash>,
}

/// One port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPort {
    /// `name`; may be empty.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `appProtocol`, or what the prefix of the port's name says.
    pub app_protocol: Declared,
}

/// The SHA-256 of a join token's 32 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

/// What workloads accept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPolicy {
    /// `spec.selector.matchLabels`; one without any selects every workload of its namespace.
    pub selector: Labels,
    /// `spec.mtls.mode`.
    pub mode: Option<Mtls>,
    /// `spec.mtls.ports`.
    pub ports: BTreeMap<u16, Mtls>,
}

/// Whether a port takes mTLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtls {
    /// Only.
    Strict,
    /// And plain, too.
    Permissive,
    /// Not at all.
    Disabled,
}

/// How callers reach services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPolicy {
    /// `spec.targetRefs`: services of its namespace, each with a port's name (`sectionName`) if only that one is meant.
    pub services: Vec<(String, Option<String>)>,
    /// `spec.hosts`: names outside, in lower case.
    pub hosts: Vec<String>,
    /// `spec.balancer`.
    pub balancer: Balancer,
    /// `spec.healthCheck`.
    pub health_check: HealthCheck,
    /// `spec.outlier`.
    pub outlier: Outlier,
    /// `spec.dns.srv`.
    pub srv: Option<Srv>,
}

/// `spec.dns.srv`: which SRV records (RFC 2782) name the endpoints of a host outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Srv {
    /// Those of this service at each host: `_grpc._tcp`.
    Prefix(String),
    /// Those of this name, whatever the host is.
    Name(String),
}

/// `spec.balancer`. What is unset has the sidecar's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    /// `algorithm`.
    pub algorithm: Option<Algorithm>,
    /// `slowStart`.
    pub slow_start: Option<Duration>,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The better of two.
    P2cEwma,
    /// One after another.
    RoundRobin,
}

/// `spec.healthCheck`. What is unset has the sidecar's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheck {
    /// `mode`.
    pub mode: Option<HealthMode>,
    /// `service`: what is asked for in `grpc.health.v1`.
    pub service: Option<String>,
    /// `interval`.
    pub interval: Option<Duration>,
    /// `timeout`.
    pub timeout: Option<Duration>,
    /// `unhealthyThreshold`.
    pub unhealthy_threshold: Option<u32>,
    /// `healthyThreshold`.
    pub healthy_threshold: Option<u32>,
}

/// How health is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthMode {
    /// By `Check`, again and again.
    Check,
    /// By `Watch`, where it is served.
    Watch,
    /// Not at all.
    Off,
}

/// `spec.outlier`. What is unset has the sidecar's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlier {
    /// `consecutiveFailures`.
    pub consecutive_failures: Option<u32>,
    /// `baseEjection`.
    pub base_ejection: Option<Duration>,
    /// `maxEjection`.
    pub max_ejection: Option<Duration>,
    /// `maxEjectionPercent`.
    pub max_ejection_percent: Option<u32>,
    /// `mode`: whether it is `Off`.
    pub off: Option<bool>,
}

impl ServicePort {
    /// Which port of a workload this one leads to; `None` if that has none of this name.
    pub fn number(&self, workload: &Workload) -> Option<u16> {
        match &self.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Named(called) => {
                let found = workload.ports.iter().find(|port| port.name == *called);
                found.map(|port| port.port)
            }
        }
    }
}

impl Srv {
    /// The name of the records that name a host's endpoints.
    pub fn record(&self, host: &str) -> String {
        match self {
            Srv::Prefix(prefix) => format!("{prefix}.{host}"),
            Srv::Name(name) => name.clone(),
        }
    }
}

impl InboundPolicy {
    /// Whether this policy, of `namespace`, is about a workload.
    pub fn selects(&self, namespace: &str, name: &Name, workload: &Workload) -> bool {
        name.namespace == namespace && (self.selector.is_empty() || selects(&self.selector, &workload.labels))
    }
}

impl fmt::Display for Mtls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mtls::Strict => "strict",
            Mtls::Permissive => "permissive",
            Mtls::Disabled => "disabled",
        })
    }
}

impl Name {
    /// The name `name` in `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// Whether a selector selects what has these labels; one without any label selects nothing here.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
