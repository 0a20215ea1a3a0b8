//! What the rooms are told, made from what the command line said.

use std::collections::HashMap;
use std::sync::Arc;

use crate::accept::OwnPorts;
use crate::config::Config;
use crate::connect::Dialled;
use crate::connect::resolve::{self, Names};
use crate::detect::Declared;
use crate::telemetry::Registry;
use crate::worker::{Mesh, Parts, Told};
use crate::{balance, connect, detect, redirect};

/// The parts of one worker.
pub(super) fn of(
    config: &Config,
    names: Names,
    mesh: Option<Mesh>,
    told: Arc<Told>,
    dialled: Arc<Dialled>,
    registry: Arc<Registry>,
) -> Parts {
    let protocols = |declared: &std::collections::BTreeMap<u16, Declared>| {
        let opaque = config.opaque_ports.ranges().iter().flat_map(|range| range.clone());
        let opaque = opaque.map(|port| (port, Declared::Opaque));
        declared
            .iter()
            .map(|(port, of)| (*port, *of))
            .chain(opaque)
            .collect::<HashMap<_, _>>()
    };
    Parts {
        outbound: config.outbound_listen.clone(),
        inbound: config.inbound_listen.clone(),
        outbound_default: config.outbound_default,
        inbound_default: config.inbound_default,
        own_ports: own_ports(config),
        inbound_protocols: protocols(&config.inbound_protocols),
        outbound_protocols: protocols(&config.outbound_protocols),
        srv: config
            .dns_srv
            .iter()
            .map(|srv| (srv.host.clone(), srv.record.clone()))
            .collect(),
        budget: config.memory_budget / config.workers as u64,
        http2: Arc::new(config.http2.clone()),
        accept: Default::default(),
        detect: detect::Settings {
            silence: config.detect_silence,
            ..Default::default()
        },
        tunnel: Default::default(),
        dial: connect::Settings {
            timeout: config.connect_timeout,
            ..Default::default()
        },
        dialled,
        balance: balance::Settings {
            algorithm: config.balancer,
            slow_start: config.slow_start,
            ..Default::default()
        },
        health: Arc::new(config.health.clone()),
        told,
        names,
        mesh,
        cut_expired: config.cut_expired,
        registry,
    }
}

/// How names are resolved.
pub(super) fn names(config: &Config) -> resolve::Settings {
    resolve::Settings {
        resolv_conf: config.resolv_conf.clone(),
        ttl_floor: config.dns_ttl_floor,
        ttl_ceiling: config.dns_ttl_ceiling,
        ..Default::default()
    }
}

/// What the redirect rules must lead here to be seen.
pub(super) fn redirect_probe(config: &Config) -> redirect::Settings {
    let ports = own_ports(config);
    redirect::Settings {
        outbound_port: ports.outbound,
        inbound_port: ports.inbound,
        admin_port: ports.admin,
        ..Default::default()
    }
}

fn own_ports(config: &Config) -> OwnPorts {
    let port = |addresses: &[std::net::SocketAddr], default| addresses.first().map_or(default, |addr| addr.port());
    let default = OwnPorts::default();
    OwnPorts {
        outbound: port(&config.outbound_listen, default.outbound),
        inbound: port(&config.inbound_listen, default.inbound),
        admin: port(&config.admin.listen, default.admin),
    }
}
