//! From the wire to our types: what control says is taken whole, or refused in a sentence that names what is wrong.
//!
//! Control is believed about the mesh, and not about sizes: a list that is too long, a number that makes no sense or an
//! address that nobody can have is refused here, once, and nothing behind this door checks again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::limits::{
    LONGEST_CERTIFICATE, LONGEST_HOST, MOST_ADDRESSES, MOST_CHAIN, MOST_ENDPOINTS, MOST_PORTS, MOST_ROOTS,
    can_be_called,
};
use portunus_proto::mesh::v1;
use portunus_proto::{Declared, Invalid, SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::balance::Algorithm;
use crate::health;
use crate::policy::{Inbound, Mode};
use crate::route::{Endpoint, HealthPolicy, Known, OutlierPolicy, Policy, Subject, View};
use crate::telemetry::cut;

/// The longest `namespace/name`, or name that is followed, in bytes.
const LONGEST_NAME: usize = 320;
/// The largest weight: beside one of these, one of 1 is next to nothing.
const LARGEST_WEIGHT: u32 = 1_000_000;
/// The longest duration of a policy.
const LONGEST_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

/// Why an answer of control is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A list or a text is too long.
    #[error("{what} are {found}; at most {most} are taken")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many came.
        found: usize,
        /// How many may.
        most: usize,
    },
    /// All that is followed together would have too many endpoints.
    #[error("with its {found} endpoints, all that is followed would have more than {most}")]
    TooManyInAll {
        /// How many came.
        found: usize,
        /// How many may be kept in all.
        most: usize,
    },
    /// A text that is too long.
    #[error("{what} has {found} bytes; at most {LONGEST_NAME} are taken")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        found: usize,
    },
    /// A text that is no address, or an address that no workload can have.
    #[error("{0:?} is not an address that can be called")]
    Address(String),
    /// A port that does not exist.
    #[error("{0} is not a port")]
    Port(u32),
    /// An identity that is none.
    #[error("the identity {id:?} of {endpoint} is not a SPIFFE id: {source}")]
    Identity {
        /// The text.
        id: String,
        /// Whose it is.
        endpoint: SocketAddr,
        /// Why it is none.
        source: Invalid,
    },
    /// A weight beyond all proportion.
    #[error("the weight {weight} of {endpoint} is above {LARGEST_WEIGHT}")]
    Weight {
        /// The weight.
        weight: u32,
        /// Whose it is.
        endpoint: SocketAddr,
    },
    /// A number that stands for nothing that this version knows.
    #[error("{what} is {number}, which this sidecar does not know; is it older than control?")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its number.
        number: i32,
    },
    /// A duration that makes no sense.
    #[error("{0} must be a duration from 1 ms to 24 h")]
    Duration(&'static str),
    /// A text that is no name of DNS.
    #[error("{0:?} is not the name of SRV records")]
    Srv(String),
    /// A share that is none.
    #[error("outlier.max_ejection_percent is {0}; it must be from 0 to 100")]
    Percent(u32),
    /// A trust domain that is none.
    #[error("{name:?} is not a trust domain: {source}")]
    TrustDomain {
        /// The text.
        name: String,
        /// Why it is none.
        source: Invalid,
    },
    /// A trust domain that is another's.
    #[error("the trust bundle is of {found}, and this sidecar is of {ours}")]
    ForeignBundle {
        /// Whose it is.
        found: TrustDomain,
        /// Ours.
        ours: TrustDomain,
    },
    /// A bundle, or a chain, that has nothing in it.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A certificate beyond all proportion.
    #[error("a certificate of {0} has more than 16 KiB")]
    Certificate(&'static str),
}

/// What to ask control for.
pub(super) fn ask(subject: &Subject) -> v1::Subject {
    use v1::subject::What;
    let what = match subject {
        Subject::Name { host, port } => What::Name(v1::NamePort {
            host: host.clone(),
            port: u32::from(*port),
        }),
        Subject::Address(addr) => What::Address(v1::Address {
            ip: addr.ip().to_canonical().to_string(),
            port: u32::from(addr.port()),
        }),
    };
    v1::Subject { what: Some(what) }
}

/// A subject in the one form in which control knows it; nothing if no mesh can know it. What the application dials is not
/// ours to choose: control must never be asked what it takes for a mistake of ours.
pub(super) fn askable(subject: Subject) -> Option<Subject> {
    match subject {
        Subject::Name { host, port } => {
            let is_good = (1..=LONGEST_HOST).contains(&host.len()) && port > 0;
            is_good.then_some(Subject::Name { host, port })
        }
        Subject::Address(addr) => {
            let ip = addr.ip().to_canonical();
            let is_good = can_be_called(ip) && addr.port() > 0;
            is_good.then(|| Subject::Address(SocketAddr::new(ip, addr.port())))
        }
    }
}

/// What an update speaks of.
pub(super) fn subject(wire: Option<v1::Subject>) -> Result<Subject, Refused> {
    match wire.and_then(|wire| wire.what).ok_or(Refused::Missing("subject"))? {
        v1::subject::What::Name(name) => Ok(Subject::Name {
            port: port(name.port)?,
            host: short("subject.name.host", name.host)?,
        }),
        v1::subject::What::Address(addr) => Ok(Subject::Address(address(&addr.ip, addr.port)?)),
    }
}

/// What an update says.
pub(super) fn known(wire: Option<v1::update::What>) -> Result<Known, Refused> {
    match wire.ok_or(Refused::Missing("what is known"))? {
        v1::update::What::Service(service) => Ok(Known::Service(Arc::new(view(service)?))),
        v1::update::What::Endpoint(one) => Ok(Known::Endpoint(endpoint(one, &mut HashMap::new())?)),
        v1::update::What::Unknown(unknown) => Ok(Known::Outside(Arc::new(policy(unknown.policy)?))),
    }
}

/// How many endpoints are kept for it.
pub(super) fn weight(known: &Known) -> usize {
    match known {
        Known::Service(view) => view.endpoints.len(),
        Known::Endpoint(_) => 1,
        Known::Pending | Known::Unusable(_) | Known::Outside(_) => 0,
    }
}

/// What the workload accepts.
pub(super) fn inbound(wire: &v1::Inbound) -> Result<Inbound, Refused> {
    few("ports with a mode", wire.ports.len(), MOST_PORTS)?;
    let mut ports = BTreeMap::new();
    for (number, mode) in &wire.ports {
        if let Some(mode) = self::mode(*mode)? {
            ports.insert(port(*number)?, mode);
        }
    }
    few("ports with a protocol", wire.protocols.len(), MOST_PORTS)?;
    let mut protocols = BTreeMap::new();
    for (number, word) in &wire.protocols {
        let port = port(*number)?;
        match Declared::from_app_protocol(word) {
            Ok(declared) => drop(protocols.insert(port, declared)),
            // A word of a later version is no reason to refuse what is said of mTLS.
            Err(unknown) => tracing::warn!(port, "appProtocol {}", cut(&unknown.to_string())),
        }
    }
    Ok(Inbound {
        default: self::mode(wire.mtls)?,
        ports,
        protocols,
    })
}

/// The roots of a bundle that is of our trust domain.
pub(super) fn roots(wire: v1::Bundle, ours: &TrustDomain) -> Result<Vec<CertificateDer<'static>>, Refused> {
    let found: TrustDomain = wire.trust_domain.parse().map_err(|source| Refused::TrustDomain {
        name: cut(&wire.trust_domain),
        source,
    })?;
    if found != *ours {
        let ours = ours.clone();
        return Err(Refused::ForeignBundle { found, ours });
    }
    certificates("the trust bundle", wire.roots, MOST_ROOTS)
}

/// A chain, the leaf first.
pub(super) fn chain(wire: Vec<Vec<u8>>) -> Result<Vec<CertificateDer<'static>>, Refused> {
    certificates("the certificate's chain", wire, MOST_CHAIN)
}

/// The `namespace/name` of a workload.
pub(super) fn workload(text: String) -> Result<String, Refused> {
    if text.is_empty() {
        return Err(Refused::Missing("workload"));
    }
    short("workload", text)
}

fn certificates(of: &'static str, wire: Vec<Vec<u8>>, most: usize) -> Result<Vec<CertificateDer<'static>>, Refused> {
    few("certificates", wire.len(), most)?;
    if wire.is_empty() {
        return Err(Refused::Empty(of));
    }
    if wire.iter().any(|der| der.len() > LONGEST_CERTIFICATE) {
        return Err(Refused::Certificate(of));
    }
    Ok(wire.into_iter().map(CertificateDer::from).collect())
}

fn view(wire: v1::Service) -> Result<View, Refused> {
    few("endpoints", wire.endpoints.len(), MOST_ENDPOINTS)?;
    few("the service's addresses", wire.addresses.len(), MOST_ADDRESSES)?;
    let name = format!("{}.{}:{}", wire.name, wire.namespace, port(wire.port)?);
    let mut seen = HashMap::with_capacity(wire.endpoints.len());
    let mut identities = HashMap::new();
    let mut twice = 0;
    let mut endpoints = Vec::with_capacity(wire.endpoints.len());
    for one in wire.endpoints {
        let one = endpoint(one, &mut identities)?;
        match seen.entry(one.addr) {
            Entry::Vacant(place) => {
                place.insert(endpoints.len());
                endpoints.push(one);
            }
            Entry::Occupied(place) => {
                twice += 1;
                prefer(&mut endpoints[*place.get()], one);
            }
        }
    }
    if twice > 0 {
        tracing::warn!(
            service = cut(&name),
            twice,
            "control names endpoints of a service twice; each is taken once"
        );
    }
    Ok(View {
        name: short("the service's name", name)?,
        addresses: wire.addresses.iter().map(|text| ip(text)).collect::<Result<_, _>>()?,
        endpoints,
        policy: policy(wire.policy)?,
    })
}

/// An endpoint that stands there twice is one: a slip about one of them is no reason to know nothing of the others. It is the
/// first, but never in plain where one of the two has an identity.
fn prefer(first: &mut Endpoint, second: Endpoint) {
    if first.identity.is_none() && second.identity.is_some() {
        *first = second;
    }
}

/// Endpoints of one service mostly have one identity: its text is kept once.
fn endpoint(wire: v1::Endpoint, identities: &mut HashMap<String, SpiffeId>) -> Result<Endpoint, Refused> {
    let addr = address(&wire.ip, wire.port)?;
    let identity = if wire.identity.is_empty() {
        None
    } else if let Some(id) = identities.get(&wire.identity) {
        Some(id.clone())
    } else {
        let id = SpiffeId::parse(&wire.identity).map_err(|source| Refused::Identity {
            id: cut(&wire.identity),
            endpoint: addr,
            source,
        })?;
        identities.insert(wire.identity, id.clone());
        Some(id)
    };
    if wire.weight > LARGEST_WEIGHT {
        return Err(Refused::Weight {
            weight: wire.weight,
            endpoint: addr,
        });
    }
    Ok(Endpoint {
        addr,
        identity,
        zone: short("an endpoint's zone", wire.zone)?,
        weight: wire.weight.max(1),
        is_ready: wire.ready,
        workload: short("an endpoint's workload", wire.workload)?,
    })
}

fn policy(wire: Option<v1::OutboundPolicy>) -> Result<Policy, Refused> {
    let wire = wire.unwrap_or_default();
    let (balancer, health, outlier) = (
        wire.balancer.unwrap_or_default(),
        wire.health_check.unwrap_or_default(),
        wire.outlier.unwrap_or_default(),
    );
    let duration = |what, wire: Option<(i64, i32)>| wire.map(|wire| duration(what, wire)).transpose();
    let number = |number: u32| (number > 0).then_some(number);
    if outlier.max_ejection_percent > 100 {
        return Err(Refused::Percent(outlier.max_ejection_percent));
    }
    Ok(Policy {
        algorithm: algorithm(balancer.algorithm)?,
        // No slow start at all is one that takes no time.
        slow_start: match balancer.slow_start.map(|of| (of.seconds, of.nanos)) {
            Some((0, 0)) => Some(Duration::ZERO),
            other => duration("balancer.slow_start", other)?,
        },
        health: HealthPolicy {
            mode: health_mode(health.mode)?,
            service: match short("health_check.service", health.service)? {
                service if service.is_empty() => None,
                service => Some(service),
            },
            interval: duration(
                "health_check.interval",
                health.interval.map(|of| (of.seconds, of.nanos)),
            )?,
            timeout: duration("health_check.timeout", health.timeout.map(|of| (of.seconds, of.nanos)))?,
            unhealthy_threshold: number(health.unhealthy_threshold),
            healthy_threshold: number(health.healthy_threshold),
        },
        outlier: OutlierPolicy {
            consecutive_failures: number(outlier.consecutive_failures),
            base_ejection: duration(
                "outlier.base_ejection",
                outlier.base_ejection.map(|of| (of.seconds, of.nanos)),
            )?,
            max_ejection: duration(
                "outlier.max_ejection",
                outlier.max_ejection.map(|of| (of.seconds, of.nanos)),
            )?,
            max_ejection_percent: number(outlier.max_ejection_percent),
            is_off: outlier.off,
        },
        srv: srv(wire.srv)?,
        from: cut(&wire.from),
    })
}

/// The name of SRV records, in the one form in which name servers are asked for it.
fn srv(name: String) -> Result<Option<String>, Refused> {
    if name.is_empty() {
        return Ok(None);
    }
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(may_stand);
    if name.len() > LONGEST_HOST || !name.split('.').all(is_label) {
        return Err(Refused::Srv(cut(&name)));
    }
    Ok(Some(name.to_ascii_lowercase()))
}

fn algorithm(number: i32) -> Result<Option<Algorithm>, Refused> {
    use v1::balancer::Algorithm as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Unset) => Ok(None),
        Ok(Wire::P2cEwma) => Ok(Some(Algorithm::P2cEwma)),
        Ok(Wire::RoundRobin) => Ok(Some(Algorithm::RoundRobin)),
        Err(_) => Err(Refused::Unknown {
            what: "balancer.algorithm",
            number,
        }),
    }
}

fn health_mode(number: i32) -> Result<Option<health::Mode>, Refused> {
    use v1::health_check::Mode as Wire;
    match Wire::try_from(number) {
        Ok(Wire::Unset) => Ok(None),
        Ok(Wire::Check) => Ok(Some(health::Mode::Check)),
        Ok(Wire::Watch) => Ok(Some(health::Mode::Watch)),
        Ok(Wire::Off) => Ok(Some(health::Mode::Off)),
        Err(_) => Err(Refused::Unknown {
            what: "health_check.mode",
            number,
        }),
    }
}

fn mode(number: i32) -> Result<Option<Mode>, Refused> {
    match v1::Mtls::try_from(number) {
        Ok(v1::Mtls::Unset) => Ok(None),
        Ok(v1::Mtls::Strict) => Ok(Some(Mode::Strict)),
        Ok(v1::Mtls::Permissive) => Ok(Some(Mode::Permissive)),
        Ok(v1::Mtls::Disabled) => Ok(Some(Mode::Disabled)),
        Err(_) => Err(Refused::Unknown {
            what: "inbound.mtls",
            number,
        }),
    }
}

/// Seconds and nanoseconds, as protobuf has them.
fn duration(what: &'static str, (seconds, nanos): (i64, i32)) -> Result<Duration, Refused> {
    let whole = u64::try_from(seconds).ok();
    let rest = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let duration = whole.zip(rest).map(|(whole, rest)| Duration::new(whole, rest));
    let range = Duration::from_millis(1)..=LONGEST_DURATION;
    duration
        .filter(|duration| range.contains(duration))
        .ok_or(Refused::Duration(what))
}

fn address(text: &str, number: u32) -> Result<SocketAddr, Refused> {
    Ok(SocketAddr::new(ip(text)?, port(number)?))
}

fn ip(text: &str) -> Result<IpAddr, Refused> {
    let ip: Option<IpAddr> = text.parse().ok();
    ip.map(|ip| ip.to_canonical())
        .filter(|ip| can_be_called(*ip))
        .ok_or_else(|| Refused::Address(cut(text)))
}

fn port(number: u32) -> Result<u16, Refused> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Refused::Port(number)),
    }
}

fn few(what: &'static str, found: usize, most: usize) -> Result<(), Refused> {
    if found > most {
        return Err(Refused::TooMany { what, found, most });
    }
    Ok(())
}

fn short(what: &'static str, text: String) -> Result<String, Refused> {
    if text.len() > LONGEST_NAME {
        return Err(Refused::TooLong {
            what,
            found: text.len(),
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
