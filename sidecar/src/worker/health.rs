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

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::Authority;
use rand::RngExt;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Worker;
use super::local::Local;
use super::run::Message;
use crate::balance::health::{Finding, Lack, Says, Verdict};
use crate::balance::{EndpointKey, State, Turn, TurnTo};
use crate::connect::local::{Caller, Error, Heard};
use crate::health::{Ended, Mode, Pieces, Rpc, Settings};
use crate::route::ServiceKey;
use crate::telemetry::Event;

/// Checks that a worker has under way at a time. Those of `Watch` count until their first answer.
const MOST_AT_ONCE: usize = 64;
/// An endpoint that no RPC was sent to for so long is not checked any more, nor are those of a service that nobody called.
const IN_USE: Duration = Duration::from_secs(60);

/// The endpoints that may be checked, and the checks that run.
pub(super) struct Checks {
    local: Local,
    permits: Rc<Semaphore>,
    endpoints: HashMap<(ServiceKey, EndpointKey), Use>,
    /// What was said once of a service already.
    told: HashSet<(ServiceKey, &'static str)>,
}

/// How an endpoint is used.
struct Use {
    /// How often it had been picked, and when that was seen to have changed.
    picked: u64,
    used: Option<Instant>,
    /// When it stood in the list of endpoints last.
    named: Instant,
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
            told: HashSet::new(),
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
                let seen = self.health.endpoints.entry(at).or_insert(Use {
                    picked: 0,
                    used: None,
                    named: self.now,
                    check: None,
                });
                seen.named = self.now;
                // One that is not picked because it is unwell is in use as long as its service is.
                if seen.picked != view.picked || (seen.check.is_some() && view.state != State::Ready) {
                    seen.picked = view.picked;
                    seen.used = Some(self.now);
                }
                if seen.used == Some(self.now) && seen.check.is_none() {
                    let check = self.health.start(at, view.addr, &service.name, &service.health);
                    if let Some(seen) = self.health.endpoints.get_mut(&at) {
                        seen.check = Some(check);
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
        self.health.endpoints.retain(|(service, endpoint), seen| {
            let Some(service) = services.get_mut(*service) else {
                return false;
            };
            let in_use = |used: Instant| now.saturating_duration_since(used) <= IN_USE;
            let is_in_use = seen.named == now && seen.used.is_some_and(in_use) && service.health.mode != Mode::Off;
            if !is_in_use && seen.check.take().is_some() {
                service.balancer.forget_health(*endpoint);
            }
            let is_other = |check: &mut Running| !Arc::ptr_eq(&service.health, &check.settings);
            if seen.check.take_if(is_other).is_some() {
                // The next look starts it with the new settings.
                seen.picked = 0;
            }
            // A service that is idle, or not checked, is not looked through.
            seen.named == now || service.balancer.addr(*endpoint).is_some()
        });
        self.health.told.retain(|(service, _)| services.get(*service).is_some());
    }

    /// A check has found something.
    pub(super) fn checked(&mut self, checked: Checked) {
        self.counts.checked(checked.found);
        // One that was stopped meanwhile has no say.
        let at = (checked.service, checked.endpoint);
        if self.health.endpoints.get(&at).is_none_or(|seen| seen.check.is_none()) {
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
            && self.health.told.insert((checked.service, what))
        {
            let addr = service.balancer.addr(checked.endpoint);
            tracing::info!(service = service.name, addr = ?addr, "{what}");
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
        TurnTo::Verdict(Verdict::Unhealthy(why)) => tracing::warn!(service, %addr, "endpoint is unhealthy: {why}"),
        TurnTo::Verdict(Verdict::Healthy) => tracing::info!(service, %addr, "endpoint is healthy"),
        TurnTo::Verdict(Verdict::Unknown) => tracing::info!(service, %addr, "endpoint's health is not known any more"),
    }
}

/// What a finding is called in metrics.
pub(super) fn word(found: Finding) -> &'static str {
    match found {
        Finding::Serving => "serving",
        Finding::Unimplemented => "unimplemented",
        Finding::Alive => "no_verdict",
        Finding::Refused(Says::NotServing) => "not_serving",
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

/// Checks one endpoint, until it is stopped.
struct Checker {
    local: Local,
    permits: Rc<Semaphore>,
    service: ServiceKey,
    endpoint: EndpointKey,
    addr: SocketAddr,
    authority: Authority,
    settings: Arc<Settings>,
}

/// How a `Watch` ended.
enum Watched {
    /// It is not served.
    Unimplemented,
    /// Of itself, or because nothing came.
    Ended(Ended),
}

impl Checker {
    async fn run(self) {
        let mut caller = self.local.checks(self.service, self.addr);
        let mut watches = self.settings.mode == Mode::Watch;
        // Those that came into use together are not checked together.
        let first = rand::rng().random_range(0.0..=0.25);
        tokio::time::sleep(self.settings.interval.min(Duration::from_secs(1)).mul_f64(first)).await;
        loop {
            let began = tokio::time::Instant::now();
            if !caller.is_open() {
                caller = self.local.checks(self.service, self.addr);
            }
            let ended = if watches {
                match self.watch(&caller).await {
                    Watched::Unimplemented => {
                        watches = false;
                        continue;
                    }
                    Watched::Ended(ended) => ended,
                }
            } else {
                let _permit = self.permits.acquire().await;
                let asked = tokio::time::timeout(self.settings.timeout, self.check(&caller));
                asked.await.unwrap_or(Ended::Found(Finding::Failed(Lack::Silent)))
            };
            if let Ended::Found(found) = ended {
                self.tell(found);
            }
            let pause = self.settings.interval.mul_f64(rand::rng().random_range(0.9..=1.0));
            if watches {
                // A stream that ended after an hour is opened again as late as one that ended at once.
                tokio::time::sleep(pause.min(Duration::from_secs(1))).await;
            } else {
                tokio::time::sleep_until(began + pause).await;
            }
        }
    }

    fn tell(&self, found: Finding) {
        self.local.tell(Message::Checked(Checked {
            service: self.service,
            endpoint: self.endpoint,
            found,
        }));
    }

    /// One question, one answer.
    async fn check(&self, caller: &Caller) -> Ended {
        let mut said = None;
        let mut pieces = Pieces::default();
        let answer = self.ask(caller, Rpc::Check, &mut pieces, |found| said = Some(found));
        match answer.await {
            Ok(()) => pieces.ended(said),
            Err(Error::Draining | Error::AfterEnd) => Ended::NotAsked,
            Err(Error::Reset(_) | Error::Closed) => Ended::Found(Finding::Failed(Lack::Failed)),
        }
    }

    /// Tells all that the stream says, until it ends, or does not begin in time.
    async fn watch(&self, caller: &Caller) -> Watched {
        let mut permit = self.permits.acquire().await.ok();
        let begun = CancellationToken::new();
        let mut pieces = Pieces::default();
        let mut last = None;
        let answer = self.ask(caller, Rpc::Watch, &mut pieces, |found| {
            permit.take();
            begun.cancel();
            last = Some(found);
            self.tell(found);
        });
        let late = async {
            tokio::time::sleep(self.settings.timeout).await;
            if begun.is_cancelled() {
                std::future::pending::<()>().await;
            }
        };
        let answer = tokio::select! {
            answer = answer => answer,
            () = late => return Watched::Ended(Ended::Found(Finding::Failed(Lack::Silent))),
        };
        match answer {
            Ok(()) if pieces.is_unimplemented() => Watched::Unimplemented,
            // It was served, and is not any more: what it said last is old.
            Ok(()) => Watched::Ended(match pieces.ended(None) {
                Ended::Found(Finding::Alive) if last.is_some() => Ended::Found(Finding::Failed(Lack::Failed)),
                ended => ended,
            }),
            Err(Error::Draining | Error::AfterEnd) => Watched::Ended(Ended::NotAsked),
            Err(Error::Reset(_) | Error::Closed) => Watched::Ended(Ended::Found(Finding::Failed(Lack::Failed))),
        }
    }

    /// Asks, and listens to the end of the answer.
    async fn ask(
        &self,
        caller: &Caller,
        rpc: Rpc,
        pieces: &mut Pieces,
        mut says: impl FnMut(Finding),
    ) -> Result<(), Error> {
        let head = rpc.head(&self.authority, self.settings.timeout);
        let call = caller.call(head, false).await?;
        match call.send(&self.settings.question(), true).await {
            // The answer may be there already.
            Ok(()) | Err(Error::AfterEnd | Error::Reset(_)) => {}
            Err(why) => return Err(why),
        }
        while let Some(heard) = call.next().await? {
            match heard {
                Heard::Head(head) => pieces.head(&head),
                Heard::Data(data) => {
                    if let Some(found) = pieces.data(&data) {
                        says(found);
                    }
                }
                Heard::Trailers(trailers) => pieces.trailers(&trailers),
            }
        }
        Ok(())
    }
}
