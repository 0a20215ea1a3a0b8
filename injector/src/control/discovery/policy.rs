//! Policies in the words of the protocol: what several of them say together.

use std::collections::BTreeMap;
use std::time::Duration;

use portunus_proto::mesh::v1;

use crate::cluster::{
    Algorithm, Balancer, HealthCheck, HealthMode, InboundPolicy, Mtls, Name, OutboundPolicy, Outlier, Snapshot,
    Workload,
};

/// What a workload accepts, by all policies that select it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    mode: Option<Mtls>,
    ports: BTreeMap<u16, Mtls>,
    from: Vec<Name>,
}

impl Accepts {
    /// Policies with a selector are narrower than those for the whole namespace, and win in whatever they say. Those of
    /// one width agree, since a state in which they do not is not taken.
    pub fn of(name: &Name, workload: &Workload, snapshot: &Snapshot) -> Accepts {
        let selecting = || {
            let policies = snapshot.inbound_policies.iter();
            policies.filter(|(policy, says)| says.selects(&policy.namespace, name, workload))
        };
        let mut accepts = Accepts::default();
        for (policy, says) in selecting().filter(|(_, says)| !says.selector.is_empty()) {
            accepts.add(policy, says);
        }
        let narrow = accepts.clone();
        for (policy, says) in selecting().filter(|(_, says)| says.selector.is_empty()) {
            let mut says = says.clone();
            if narrow.mode.is_some() {
                says.ports.clear();
            }
            accepts.add(policy, &says);
        }
        accepts
    }

    fn add(&mut self, policy: &Name, says: &InboundPolicy) {
        self.mode = self.mode.or(says.mode);
        for (port, mode) in &says.ports {
            self.ports.entry(*port).or_insert(*mode);
        }
        self.from.push(policy.clone());
    }

    /// How a port takes mTLS; `None` leaves it to the sidecar's own setting.
    pub fn mode(&self, port: u16) -> Option<Mtls> {
        self.ports.get(&port).copied().or(self.mode)
    }

    /// For the workload itself.
    pub fn to_wire(&self) -> v1::Inbound {
        let ports = self
            .ports
            .iter()
            .map(|(port, mode)| (u32::from(*port), mtls(Some(*mode)).into()));
        v1::Inbound {
            mtls: mtls(self.mode).into(),
            ports: ports.collect(),
            from: self.from.iter().map(Name::to_string).collect(),
            protocols: Default::default(),
        }
    }
}

/// A policy for one port and one for the whole service: field by field, the narrower wins.
pub fn merged(narrow: Option<(&Name, &OutboundPolicy)>, wide: Option<(&Name, &OutboundPolicy)>) -> v1::OutboundPolicy {
    let (Some((narrow_name, narrow)), Some((wide_name, wide))) = (narrow, wide) else {
        return narrow
            .or(wide)
            .map(|(name, policy)| outbound(name, policy))
            .unwrap_or_default();
    };
    let policy = OutboundPolicy {
        services: Vec::new(),
        hosts: Vec::new(),
        srv: None,
        balancer: Balancer {
            algorithm: narrow.balancer.algorithm.or(wide.balancer.algorithm),
            slow_start: narrow.balancer.slow_start.or(wide.balancer.slow_start),
        },
        health_check: HealthCheck {
            mode: narrow.health_check.mode.or(wide.health_check.mode),
            service: narrow
                .health_check
                .service
                .clone()
                .or_else(|| wide.health_check.service.clone()),
            interval: narrow.health_check.interval.or(wide.health_check.interval),
            timeout: narrow.health_check.timeout.or(wide.health_check.timeout),
            unhealthy_threshold: narrow
                .health_check
                .unhealthy_threshold
                .or(wide.health_check.unhealthy_threshold),
            healthy_threshold: narrow
                .health_check
                .healthy_threshold
                .or(wide.health_check.healthy_threshold),
        },
        outlier: Outlier {
            consecutive_failures: narrow
                .outlier
                .consecutive_failures
                .or(wide.outlier.consecutive_failures),
            base_ejection: narrow.outlier.base_ejection.or(wide.outlier.base_ejection),
            max_ejection: narrow.outlier.max_ejection.or(wide.outlier.max_ejection),
            max_ejection_percent: narrow
                .outlier
                .max_ejection_percent
                .or(wide.outlier.max_ejection_percent),
            off: narrow.outlier.off.or(wide.outlier.off),
        },
    };
    let mut merged = outbound(narrow_name, &policy);
    if narrow_name != wide_name {
        merged.from = format!("{narrow_name}, {wide_name}");
    }
    merged
}

/// A policy by itself.
pub fn outbound(name: &Name, policy: &OutboundPolicy) -> v1::OutboundPolicy {
    let (balancer, health, outlier) = (&policy.balancer, &policy.health_check, &policy.outlier);
    let algorithm = match balancer.algorithm {
        None => v1::balancer::Algorithm::Unset,
        Some(Algorithm::P2cEwma) => v1::balancer::Algorithm::P2cEwma,
        Some(Algorithm::RoundRobin) => v1::balancer::Algorithm::RoundRobin,
    };
    let mode = match health.mode {
        None => v1::health_check::Mode::Unset,
        Some(HealthMode::Check) => v1::health_check::Mode::Check,
        Some(HealthMode::Watch) => v1::health_check::Mode::Watch,
        Some(HealthMode::Off) => v1::health_check::Mode::Off,
    };
    v1::OutboundPolicy {
        balancer: Some(v1::Balancer {
            algorithm: algorithm.into(),
            slow_start: balancer.slow_start.and_then(duration),
        }),
        health_check: Some(v1::HealthCheck {
            mode: mode.into(),
            service: health.service.clone().unwrap_or_default(),
            interval: health.interval.and_then(duration),
            timeout: health.timeout.and_then(duration),
            unhealthy_threshold: health.unhealthy_threshold.unwrap_or(0),
            healthy_threshold: health.healthy_threshold.unwrap_or(0),
        }),
        outlier: Some(v1::Outlier {
            consecutive_failures: outlier.consecutive_failures.unwrap_or(0),
            base_ejection: outlier.base_ejection.and_then(duration),
            max_ejection: outlier.max_ejection.and_then(duration),
            max_ejection_percent: outlier.max_ejection_percent.unwrap_or(0),
            off: outlier.off.unwrap_or(false),
        }),
        from: name.to_string(),
        srv: String::new(),
    }
}

/// A policy for a host outside.
pub fn outside(name: &Name, policy: &OutboundPolicy, host: &str) -> v1::OutboundPolicy {
    v1::OutboundPolicy {
        srv: policy.srv.as_ref().map(|srv| srv.record(host)).unwrap_or_default(),
        ..outbound(name, policy)
    }
}

fn duration(is: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(is).ok()
}

fn mtls(mode: Option<Mtls>) -> v1::Mtls {
    match mode {
        None => v1::Mtls::Unset,
        Some(Mtls::Strict) => v1::Mtls::Strict,
        Some(Mtls::Permissive) => v1::Mtls::Permissive,
        Some(Mtls::Disabled) => v1::Mtls::Disabled,
    }
}
