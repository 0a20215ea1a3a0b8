//! What the mesh says of a name, or of an address, that an application dialled.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::SpiffeId;

use crate::balance::health::Thresholds;
use crate::balance::{self, Algorithm};
use crate::connect::resolve::Routes;
use crate::health;

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A name of `:authority`, in lower case and without a trailing dot, with the port that was dialled.
    Name {
        /// The name.
        host: String,
        /// The port.
        port: u16,
    },
    /// An address that was dialled.
    Address(SocketAddr),
}

/// The newest that is known of a [`Subject`].
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Known {
    /// Nobody has answered yet. Once somebody has, this does not come back: what was known stays while control is away.
    #[default]
    Pending,
    /// Control has answered, and the answer cannot be taken, for this reason; before it nothing was known. As good as no
    /// answer, but that nobody has to look for one.
    Unusable(Arc<str>),
    /// It is a service of the mesh.
    Service(Arc<View>),
    /// It is the address of a workload.
    Endpoint(Endpoint),
    /// The mesh knows nothing of it; there may be a policy for the name all the same.
    Outside(Arc<Policy>),
}

impl Known {
    /// Whether it is known what it is: until then nothing is sent there.
    pub fn is_known(&self) -> bool {
        match self {
            Known::Service(_) | Known::Endpoint(_) | Known::Outside(_) => true,
            Known::Pending | Known::Unusable(_) => false,
        }
    }

    /// How it is reached, if control says so.
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Known::Service(view) => Some(&view.policy),
            Known::Outside(policy) => Some(policy),
            Known::Pending | Known::Unusable(_) | Known::Endpoint(_) => None,
        }
    }

    /// Where its endpoints stand, as far as somebody says so.
    pub fn zones(&self) -> HashMap<SocketAddr, &str> {
        let endpoints = match self {
            Known::Service(view) => view.endpoints.as_slice(),
            Known::Endpoint(endpoint) => std::slice::from_ref(endpoint),
            Known::Pending | Known::Unusable(_) | Known::Outside(_) => &[],
        };
        let said = endpoints.iter().filter(|endpoint| !endpoint.zone.is_empty());
        said.map(|endpoint| (endpoint.addr, endpoint.zone.as_str())).collect()
    }
}

/// A service of the mesh, as this sidecar sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// `name.namespace:port`.
    pub name: String,
    /// The service's own addresses.
    pub addresses: Vec<IpAddr>,
    /// Who serves it.
    pub endpoints: Vec<Endpoint>,
    /// How it is reached.
    pub policy: Policy,
}

impl View {
    /// The endpoints that take new calls and that this pod has a way to: one without IPv6 has no use for a workload's IPv6
    /// address, nor the other way round.
    pub fn in_reach(&self, routes: &mut Routes) -> Vec<&Endpoint> {
        let now = tokio::time::Instant::now();
        routes.prune(now);
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.is_ready);
        ready
            .filter(|endpoint| routes.lead_to(endpoint.addr.ip(), now))
            .collect()
    }
}

/// One address of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Who must be there: with an identity it is called in mTLS and nothing less, without in plain.
    pub identity: Option<SpiffeId>,
    /// Where it stands; empty if nobody says. Shown, and nothing else.
    pub zone: String,
    /// Its share among the others; never 0.
    pub weight: u32,
    /// Whether it takes new calls.
    pub is_ready: bool,
    /// `namespace/name` of the workload.
    pub workload: String,
}

/// How a service is reached. What is `None` has the sidecar's own setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// How an endpoint is picked.
    pub algorithm: Option<Algorithm>,
    /// How long a new endpoint takes to get its whole share.
    pub slow_start: Option<Duration>,
    /// How its health is asked for.
    pub health: HealthPolicy,
    /// When an endpoint is left alone for its failures.
    pub outlier: OutlierPolicy,
    /// Of a name outside: the SRV records that name its endpoints.
    pub srv: Option<String>,
    /// The resources that say this, as `namespace/name`, for people; empty when there is none.
    pub from: String,
}

impl Policy {
    /// How endpoints are picked and left alone.
    pub fn balance(&self, own: &balance::Settings) -> balance::Settings {
        let outlier = &self.outlier;
        let failures = match outlier.is_off {
            true => 0,
            false => outlier.consecutive_failures.unwrap_or(own.outlier.consecutive_failures),
        };
        balance::Settings {
            algorithm: self.algorithm.unwrap_or(own.algorithm),
            slow_start: self.slow_start.unwrap_or(own.slow_start),
            outlier: balance::eject::Settings {
                consecutive_failures: failures,
                base_ejection: outlier.base_ejection.unwrap_or(own.outlier.base_ejection),
                max_ejection: outlier.max_ejection.unwrap_or(own.outlier.max_ejection),
                max_ejection_percent: outlier.max_ejection_percent.unwrap_or(own.outlier.max_ejection_percent),
            },
            ..*own
        }
    }

    /// How health is checked. An interval, and a timeout, is [`health::SHORTEST`] at least.
    pub fn health(&self, own: &health::Settings) -> health::Settings {
        let said = &self.health;
        health::Settings {
            mode: said.mode.unwrap_or(own.mode),
            service: said.service.clone().unwrap_or_else(|| own.service.clone()),
            interval: said.interval.unwrap_or(own.interval).max(health::SHORTEST),
            timeout: said.timeout.unwrap_or(own.timeout).max(health::SHORTEST),
            thresholds: Thresholds {
                unhealthy: said.unhealthy_threshold.unwrap_or(own.thresholds.unhealthy),
                healthy: said.healthy_threshold.unwrap_or(own.thresholds.healthy),
            },
        }
    }
}

/// How health is asked for. What is `None` has the sidecar's own setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HealthPolicy {
    /// By which method, if at all.
    pub mode: Option<health::Mode>,
    /// The service that is asked for in `grpc.health.v1`; empty for the server as a whole.
    pub service: Option<String>,
    /// From one question to the next.
    pub interval: Option<Duration>,
    /// How long an answer may take.
    pub timeout: Option<Duration>,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row that make it healthy again.
    pub healthy_threshold: Option<u32>,
}

/// When an endpoint is left alone for its failures. What is `None` has the sidecar's own setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutlierPolicy {
    /// Failures in a row.
    pub consecutive_failures: Option<u32>,
    /// For how long at first; it doubles with each time in a row.
    pub base_ejection: Option<Duration>,
    /// For how long at most.
    pub max_ejection: Option<Duration>,
    /// How many of the endpoints at once, in percent.
    pub max_ejection_percent: Option<u32>,
    /// Whether this is never done.
    pub is_off: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_does_not_say_has_the_sidecars_own_setting() {
        let balance = balance::Settings {
            slow_start: Duration::from_secs(7),
            ..Default::default()
        };
        let health = health::Settings {
            interval: Duration::from_secs(9),
            ..Default::default()
        };
        let none = Policy::default();
        assert_eq!(
            (none.balance(&balance), none.health(&health)),
            (balance, health.clone())
        );
        let some = Policy {
            health: HealthPolicy {
                mode: Some(health::Mode::Watch),
                timeout: Some(Duration::ZERO),
                ..Default::default()
            },
            outlier: OutlierPolicy {
                is_off: true,
                ..Default::default()
            },
            ..Default::default()
        };
        let checks = some.health(&health);
        assert_eq!((checks.mode, checks.interval), (health::Mode::Watch, health.interval));
        assert_eq!(checks.timeout, Duration::from_millis(100), "not spinning");
        assert_eq!(some.balance(&balance).outlier.consecutive_failures, 0);
    }
}
