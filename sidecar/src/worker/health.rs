//! Looks after endpoints: which of them are checked, what their RPCs and their checks say of them, and who hears of it.
//!
//! ```text
//!  look_at_endpoints, twice a second                       task an endpoint, while it is in use
//!    RPCs that wait ──▶ Balancer::sees, looked               pause ──▶ Check, or Watch, by a local end
//!    in use? ─────────▶ start and stop tasks                   ▲                    │
//!    Balancer::take_turns ──▶ log, counters                    └────────────────────┤
//!  Message::Checked ──▶ Balancer::found ◀───────────────────────────────────────────┘
//! ```
//!
//! Each worker has its own view, and checks for itself.

mod check;
mod told;
mod usage;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::Authority;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use told::Told;

use super::Worker;
use super::local::Local;
use crate::balance::health::{Finding, Lack, Says, Verdict};
use crate::balance::{EndpointKey, State, Turn, TurnTo};
use crate::health::{Mode, Settings};
use crate::route::ServiceKey;
use crate::telemetry::Event;
use check::Checker;
use usage::{IN_USE, Usage};

/// Checks that a worker has under way at a time. Those of `Watch` count until their first answer.
const MOST_AT_ONCE: usize = 64;

/// The endpoints that may be checked, and the checks that run.
pub(super) struct Checks {
    local: Local,
    permits: Rc<Semaphore>,
    endpoints: HashMap<(ServiceKey, EndpointKey), Candidate>,
}

/// An endpoint that may be checked.
struct Candidate {
    usage: Usage,
    /// The check that runs, if it is in use.
    check: Option<Running>,
}

struct Running {
    /// The settings that it was started with.
    settings: Arc<Settings>,
    _stops: DropGuard,
}

/// A check has ended.
pub(super) struct Checked {
    service: ServiceKey,
    endpoint: EndpointKey,
    found: Finding,
}

impl Checks {
    pub(super) fn new(local: Local) -> Checks {
        Checks {
            local,
            permits: Rc::new(Semaphore::new(MOST_AT_ONCE)),
            endpoints: HashMap::new(),
        }
    }

    fn start(&self, at: (ServiceKey, EndpointKey), addr: SocketAddr, name: &str, settings: &Arc<Settings>) -> Running {
        let stop = CancellationToken::new();
        let checker = Checker {
            local: self.local.clone(),
            permits: self.permits.clone(),
            service: at.0,
            endpoint: at.1,
            addr,
            // What RPCs there say, too; a name that is no authority cannot have been one.
            authority: name
                .parse()
                .or_else(|_| addr.to_string().parse())
                .unwrap_or_else(|_| Authority::from_static("localhost")),
            settings: settings.clone(),
        };
        let stopped = stop.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = checker.run() => {}
            }
        });
        Running {
            settings: settings.clone(),
            _stops: stop.drop_guard(),
        }
    }
}

impl Worker {
    /// Looks at all endpoints: at whom RPCs wait, who is to be checked, and what has become of each.
    pub(super) fn look_at_endpoints(&mut self) {
        for (_, call) in self.calls.iter_mut() {
            let so_far = std::mem::replace(&mut call.looked, call.exchange.answered.mark());
            // What moves is not stuck; nor is what only its caller's reading holds up.
            if call.checks || !call.exchange.is_owed() || so_far != call.looked {
                continue;
            }
            let waited = call.waited(self.tick);
            if let Some(place) = call.choice.as_ref().and_then(|choice| choice.place.as_ref())
                && let Some(service) = self.services.get_mut(call.service)
                && call.exchange.held(&self.wires).0 == 0
            {
                service.balancer.sees(place, waited, self.now);
            }
        }
        let mut ejected = Vec::new();
        for (key, service) in self.services.iter_mut() {
            let in_spite = service.balancer.looked(self.now, &mut self.rng);
            self.counts.unhealthy_picks.add(in_spite);
            for turn in service.balancer.take_turns() {
                if let TurnTo::Ejected { cause, .. } = turn.to {
                    self.counts.ejected(cause);
                    ejected.push((key, turn.addr));
                }
                log(&service.name, turn);
            }
            if service.health.mode == Mode::Off || self.now.saturating_duration_since(service.used) > IN_USE {
                continue;
            }
            for view in service.balancer.endpoints(self.now) {
                if view.state == State::Draining {
                    continue;
                }
                let at = (key, view.key);
                let candidate = self.health.endpoints.entry(at).or_insert_with(|| Candidate {
                    usage: Usage::new(self.now),
                    check: None,
                });
                let is_kept_away = candidate.check.is_some() && view.state != State::Ready;
                if candidate.usage.seen(view.picked, is_kept_away, self.now) && candidate.check.is_none() {
                    let check = self.health.start(at, view.addr, &service.name, &service.health);
                    if let Some(candidate) = self.health.endpoints.get_mut(&at) {
                        candidate.check = Some(check);
                    }
                }
            }
        }
        self.stop_checks();
        if !ejected.is_empty() {
            self.tell_of_ejections(&ejected);
        }
    }

    /// The spans of RPCs that are still at these endpoints say so.
    fn tell_of_ejections(&mut self, ejected: &[(ServiceKey, SocketAddr)]) {
        for (_, call) in self.calls.iter_mut() {
            let Some(at) = call.choice.as_ref().map(|choice| (call.service, choice.addr)) else {
                continue;
            };
            if ejected.contains(&at)
                && let Some(span) = call.span()
            {
                span.event(self.now, Event::Ejected(at.1));
            }
        }
    }

    /// Ends the checks of endpoints that are not in use any more, or are to be checked otherwise.
    fn stop_checks(&mut self) {
        let (now, services) = (self.now, &mut self.services);
        self.health.endpoints.retain(|(service, endpoint), candidate| {
            let Some(service) = services.get_mut(*service) else {
                return false;
            };
            let is_in_use = candidate.usage.is_in_use(now) && service.health.mode != Mode::Off;
            if !is_in_use && candidate.check.take().is_some() {
                service.balancer.forget_health(*endpoint);
            }
            let is_other = |check: &mut Running| !Arc::ptr_eq(&service.health, &check.settings);
            if candidate.check.take_if(is_other).is_some() {
                // The next look starts it with the new settings.
                candidate.usage.look_anew();
            }
            // A service that is idle, or not checked, is not looked through.
            candidate.usage.is_named(now) || service.balancer.addr(*endpoint).is_some()
        });
    }

    /// A check has found something.
    pub(super) fn checked(&mut self, checked: Checked) {
        self.counts.checked(checked.found);
        // One that was stopped meanwhile has no say.
        let at = (checked.service, checked.endpoint);
        if self
            .health
            .endpoints
            .get(&at)
            .is_none_or(|candidate| candidate.check.is_none())
        {
            return;
        }
        let Some(service) = self.services.get_mut(checked.service) else {
            return;
        };
        let once = match checked.found {
            Finding::Unimplemented => Some(
                "the endpoints of this service have no grpc.health.v1: they count as healthy, while their calls succeed",
            ),
            Finding::Alive => Some(
                "health checks of this service are answered by something else than grpc.health.v1, or not without \
                 credentials: they tell nothing",
            ),
            Finding::Serving | Finding::Refused(_) | Finding::Failed(_) => None,
        };
        if let Some(what) = once
            && self.parts.told.first(&service.name, what)
        {
            let addr = service.balancer.addr(checked.endpoint).map(tracing::field::display);
            tracing::info!(service = &*service.name, addr, "{what}");
        }
        let thresholds = service.health.thresholds;
        service
            .balancer
            .found(checked.endpoint, checked.found, thresholds, self.now);
    }
}

/// One line for each change.
fn log(service: &str, turn: Turn) {
    let addr = turn.addr;
    match turn.to {
        TurnTo::Ejected { cause, lasts } => {
            let cause = cause.word();
            tracing::warn!(service, %addr, cause, "endpoint ejected for {lasts:.1?}");
        }
        TurnTo::Back => tracing::info!(service, %addr, "endpoint is back from its ejection, slowly"),
        TurnTo::Verdict(Verdict::Unhealthy(why), turns) => {
            tracing::warn!(service, %addr, turns, "endpoint is unhealthy: {why}");
        }
        TurnTo::Verdict(Verdict::Healthy, turns) => tracing::info!(service, %addr, turns, "endpoint is healthy"),
        TurnTo::Verdict(Verdict::Unknown, turns) => {
            tracing::info!(service, %addr, turns, "endpoint's health is not known any more");
        }
    }
}

/// What a finding is called in metrics.
pub(super) fn word(found: Finding) -> &'static str {
    match found {
        Finding::Serving => "serving",
        Finding::Unimplemented => "unimplemented",
        Finding::Alive => "no_verdict",
        Finding::Refused(Says::NotServing | Says::Other(_)) => "not_serving",
        Finding::Refused(Says::ServiceUnknown) => "service_unknown",
        Finding::Failed(Lack::Silent) => "silent",
        Finding::Failed(Lack::Failed) => "failed",
    }
}

/// Every finding's word.
pub(super) const WORDS: [&str; 7] = [
    "serving",
    "unimplemented",
    "no_verdict",
    "not_serving",
    "service_unknown",
    "silent",
    "failed",
];
