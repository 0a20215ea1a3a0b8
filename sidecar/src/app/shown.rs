//! What is counted only when somebody looks: names, questions to DNS, endpoints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::Opens;
use crate::connect::resolve::{Names, State};
use crate::telemetry::{self, Registry};

/// Shows how far names can be trusted, and what the name servers said.
pub(super) fn names(registry: &Arc<Registry>, names: &Names) {
    let known = names.clone();
    registry.observe(&telemetry::DNS_NAMES, move |samples| {
        // States that no name is in are shown, too: an alert must not wait for a series to appear.
        for state in ["fresh", "stale", "unknown"] {
            samples.push([state], 0.0);
        }
        for (_, answer) in known.known() {
            let state = match answer.state {
                State::Fresh => "fresh",
                State::Stale { .. } => "stale",
                State::Pending | State::Failed { .. } => "unknown",
            };
            samples.push([state], 1.0);
        }
    });
    let asked = names.clone();
    registry.observe(&telemetry::DNS_LOOKUPS, move |samples| {
        for ((kind, outcome), times) in asked.lookups() {
            samples.push([kind, outcome], times as f64);
        }
    });
}

/// Shows each service's endpoints by state. Workers judge for themselves: an endpoint is ready if it is so to one of them.
pub(super) fn endpoints(registry: &Arc<Registry>, opens: Arc<ArcSwapOption<Opens>>) {
    registry.observe(&telemetry::ENDPOINTS, move |samples| {
        let mut endpoints: BTreeMap<(String, SocketAddr), String> = BTreeMap::new();
        let opens = opens.load();
        for view in opens.iter().flat_map(|opens| opens.endpoints()) {
            let state = endpoints.entry((view.service, view.addr)).or_default();
            if state.is_empty() || view.state == "ready" {
                *state = view.state;
            }
        }
        for ((service, _), state) in &endpoints {
            samples.push([service, state], 1.0);
        }
    });
}
