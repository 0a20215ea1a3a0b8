//! What an operator sees of endpoints. A worker keeps no text for that: it tells what it has of its services twice a second, and
//! whoever looks makes views of it, on a thread of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Open;
use crate::balance::{self, View};
use crate::route::{Known, Service, Services};

/// An endpoint as the operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EndpointView {
    /// What its service is called.
    pub service: String,
    /// The OutboundPolicies that say how that is reached, as `namespace/name`; empty when there is none.
    pub policy: String,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Where it stands, as control says; empty when nobody says.
    pub zone: String,
    /// Ready, backoff, ejected, unhealthy or draining.
    pub state: String,
    /// Calls that it serves now.
    pub in_flight: u32,
    /// Its peak EWMA of latency, in milliseconds.
    pub latency_ms: f64,
    /// Calls that were sent to it.
    pub picked: u64,
}

/// A service of a worker's at one moment. What changes seldom is shared with the worker.
#[derive(Debug)]
pub(super) struct Shown {
    name: Arc<str>,
    known: Arc<Known>,
    endpoints: Vec<View>,
    /// Of a name outside the mesh: what is known of its addresses that are a workload's.
    owners: Vec<(SocketAddr, Arc<Known>)>,
}

impl Shown {
    /// All services that have endpoints, as they are now.
    pub(super) fn all(services: &Services, now: Instant) -> Arc<[Shown]> {
        let shown = services.iter().map(|(_, service)| Shown::of(service, services, now));
        shown.filter(|shown| !shown.endpoints.is_empty()).collect()
    }

    fn of(service: &Service, services: &Services, now: Instant) -> Shown {
        let endpoints: Vec<_> = service.balancer.endpoints(now).collect();
        let owner = |view: &View| match services.known_at(view.addr) {
            Some(known) if matches!(**known, Known::Endpoint(_)) => Some((view.addr, known.clone())),
            Some(_) | None => None,
        };
        let owners = match service.is_outside() {
            true => endpoints.iter().filter_map(owner).collect(),
            false => Vec::new(),
        };
        Shown {
            name: service.name.clone(),
            known: service.known.clone(),
            endpoints,
            owners,
        }
    }

    /// Its endpoints, in words.
    fn views(&self) -> impl Iterator<Item = EndpointView> {
        let mut zones = self.known.zones();
        zones.extend(self.owners.iter().flat_map(|(_, known)| known.zones()));
        let policy = self.known.policy().map_or("", |policy| &policy.from);
        self.endpoints.iter().map(move |view| EndpointView {
            service: self.name.to_string(),
            policy: policy.to_owned(),
            addr: view.addr,
            zone: zones
                .get(&view.addr)
                .map_or_else(String::new, |zone| (*zone).to_owned()),
            state: state(view.state).to_owned(),
            in_flight: view.in_flight,
            latency_ms: view.latency.map_or(0.0, milliseconds),
            picked: view.picked,
        })
    }
}

impl Open {
    /// The endpoints of the worker's services, as they were last.
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let shown = self.endpoints.lock().clone();
        shown.iter().flat_map(Shown::views).collect()
    }
}

/// What a page shows of a latency: milliseconds, with three decimals at most.
fn milliseconds(latency: Duration) -> f64 {
    (latency.as_secs_f64() * 1e6).round() / 1e3
}

fn state(state: balance::State) -> &'static str {
    match state {
        balance::State::Ready => "ready",
        balance::State::Backoff { .. } => "backoff",
        balance::State::Ejected { .. } => "ejected",
        balance::State::Unhealthy(_) => "unhealthy",
        balance::State::Draining => "draining",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::EndpointSpec;
    use crate::route::{Endpoint, Named, Policy};

    /// What is kept of an endpoint has no text and no memory of its own, however often it is looked at.
    const fn is_plain<T: Copy>() {}
    const _: () = is_plain::<View>();

    fn endpoint(addr: SocketAddr, zone: &str) -> Endpoint {
        Endpoint {
            addr,
            identity: None,
            zone: zone.to_owned(),
            weight: 1,
            is_ready: true,
            workload: String::new(),
        }
    }

    #[test]
    fn what_is_shown_of_a_service_is_what_is_known_of_it_and_nothing_is_copied_before_somebody_looks() {
        let now = Instant::now();
        let mut services = Services::new(balance::Settings::default(), Arc::default(), true);
        let [first, second] = [1, 2].map(|last| SocketAddr::from(([10, 0, 0, last], 80)));
        let at = |addr| {
            let spec = EndpointSpec {
                addr,
                weight: 1,
                priority: 0,
            };
            (spec, None)
        };
        // A name outside the mesh, one of whose addresses is a workload's.
        let Named::New(name) = services.named(b"outside.test", 80, now) else {
            panic!("it is a new name")
        };
        let policy = Policy {
            from: "shop/outside".to_owned(),
            ..Policy::default()
        };
        services.get_mut(name).expect("it is there").known = Arc::new(Known::Outside(Arc::new(policy)));
        services.update(name, &[at(first), at(second)], now);
        let (owner, _) = services.of_address(second, now);
        services.get_mut(owner).expect("it is there").known = Arc::new(Known::Endpoint(endpoint(second, "b")));
        // Without an endpoint there is nothing to show.
        services.of_address(first, now);
        let shown = Shown::all(&services, now);
        let [shown] = &shown[..] else {
            panic!("one has endpoints: {shown:?}")
        };
        let service = services.get(name).expect("it is there");
        assert!(Arc::ptr_eq(&shown.name, &service.name) && Arc::ptr_eq(&shown.known, &service.known));
        let views: Vec<_> = shown.views().collect();
        let told: Vec<_> = views
            .iter()
            .map(|view| (&*view.service, &*view.policy, view.addr, &*view.zone, &*view.state))
            .collect();
        let of = |addr, zone| ("outside.test:80", "shop/outside", addr, zone, "ready");
        assert_eq!(told, [of(first, ""), of(second, "b")]);
    }

    #[test]
    fn a_latency_is_shown_in_milliseconds_with_three_decimals_at_most() {
        for (nanos, text) in [
            (0, "0.0"),
            (1_234_567, "1.235"),
            (437_284, "0.437"),
            (1_000_000, "1.0"),
            (12_345_678_901, "12345.679"),
        ] {
            let shown = serde_json::json!(milliseconds(Duration::from_nanos(nanos))).to_string();
            assert_eq!(shown, text, "{nanos} ns");
        }
    }
}
