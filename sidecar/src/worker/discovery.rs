//! Who serves what is called: control and the name servers are asked, and what they say becomes endpoints.
//!
//! ```text
//!  of_address, inquire ──▶ control: a task follows it ──▶ Message::Learned ──▶ learned ──┬──▶ update ──▶ calls go on
//!                                                                                        ▼              ▲
//!                             the name servers: another ◀── resolve ◀── a name outside                  │
//!                                        └──▶ Message::DnsAnswered ──▶ dns_answered ──▶ name_endpoints ┘
//! ```
//!
//! What is not known in time is said, too ([`Message::Late`]): `route/lookup.rs` has what calls do then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::SpiffeId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Worker;
use super::run::{Inbox, Mesh, Message};
use crate::balance::EndpointSpec;
use crate::connect::PoolKey;
use crate::connect::resolve::{self, Answer, Names, Query, State};
use crate::outbound;
use crate::route::{self, Known, Lack, ServiceKey, Subject};
use crate::slots::Key;
use crate::telemetry::Gauge;

/// How long a call waits for the first that is known of its service: without the addresses of a name it goes to the address
/// that was dialled; without a word of control it fails.
const PATIENCE: Duration = Duration::from_secs(2);
/// After how long something is asked for again that there was no room for; twice as long each time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest between two times.
const ASK_AGAIN_AT_LEAST: Duration = Duration::from_secs(30);

impl Worker {
    /// The service that an address is by itself.
    #[inline(always)]
    pub(crate) fn of_address(&mut self, addr: SocketAddr) -> ServiceKey {
        let (service, is_new) = self.services.of_address(addr, self.now);
        if is_new {
            self.inquire(service);
            for gone in self.services.make_room(self.now) {
                self.drain_all(gone);
            }
        }
        service
    }

    /// Asks what there is to know of a service that is new, and follows it from now on.
    pub(crate) fn inquire(&mut self, key: ServiceKey) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        match &self.parts.mesh {
            Some(mesh) => {
                let followed = CancellationToken::new();
                follow_mesh(
                    mesh.clone(),
                    self.counts.unfollowed_subjects.clone(),
                    self.inbox.clone(),
                    key,
                    service.subject.clone(),
                    followed.clone(),
                );
                service.following.push(followed.drop_guard());
            }
            None => {
                let known = service.known.clone();
                self.learned(key, known);
            }
        }
    }

    /// What control says of a service.
    pub(super) fn learned(&mut self, key: ServiceKey, known: Arc<Known>) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        match (&*known, service.known.is_known()) {
            (Known::Pending, _) | (Known::Unusable(_), true) => return,
            // Calls are told why at once. A better answer is taken whenever it comes.
            (Known::Unusable(_), false) => {
                service.known = known;
                return self.stop_waiting(key);
            }
            (Known::Service(_) | Known::Endpoint(_) | Known::Outside(_), _) => {}
        }
        service.known = known.clone();
        service.apply_policy(&self.parts.balance, &self.parts.health);
        match (&*known, service.subject.clone()) {
            (Known::Outside(policy), Subject::Name { host, port }) => {
                let srv = policy.srv.clone().or_else(|| self.parts.srv.get(&host).cloned());
                self.resolve(key, Query { host, port, srv });
            }
            (Known::Service(view), _) => {
                let addresses = view.addresses.iter().copied();
                service.set_addresses(addresses.chain(view.endpoints.iter().map(|e| e.addr.ip())), self.now);
                let in_reach = view.in_reach(&mut self.routes);
                let endpoints: Vec<_> = in_reach.into_iter().map(spec_of).collect();
                self.services.set_answer(key, None);
                self.update(key, &endpoints);
            }
            // A name that is an address has no other endpoint than that.
            (Known::Endpoint(endpoint), _) => {
                service.set_addresses([endpoint.addr.ip()], self.now);
                self.services.set_answer(key, None);
                self.update(key, &[spec_of(endpoint)]);
            }
            (Known::Outside(_), Subject::Address(addr)) => self.update(key, &[plain(addr)]),
            (Known::Pending | Known::Unusable(_), _) => {}
        }
        let Some(Subject::Address(addr)) = self.services.get(key).map(|service| service.subject.clone()) else {
            return;
        };
        for named in self.services.named_at(addr) {
            self.name_endpoints(named);
        }
    }

    /// Follows what a name stands for, from now on. Where something else was asked for it before, the endpoints stay until
    /// that is answered.
    fn resolve(&mut self, key: ServiceKey, query: Query) {
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        if service.asked.as_ref() == Some(&query) {
            return self.name_endpoints(key);
        }
        let follows_mesh = usize::from(self.parts.mesh.is_some());
        service.following.truncate(follows_mesh);
        service.asked = Some(query.clone());
        if service.answer().is_none() {
            service.lookup.asks(Lack::Addresses);
        }
        let followed = CancellationToken::new();
        service.following.push(followed.clone().drop_guard());
        let unfollowed = self.counts.unfollowed_names.clone();
        follow(
            self.parts.names.clone(),
            unfollowed,
            self.inbox.clone(),
            key,
            query,
            followed,
        );
    }

    /// The addresses of a service, as the name servers give them now.
    pub(super) fn dns_answered(&mut self, key: ServiceKey, answer: Arc<Answer>) {
        let is_outside = self.services.get(key).is_some_and(|service| service.is_outside());
        if !is_outside || matches!(answer.state, State::Pending) {
            return;
        }
        self.services.set_answer(key, Some(answer.clone()));
        if self.parts.mesh.is_some() {
            for target in answer.routable() {
                self.of_address(target.addr);
            }
        }
        self.name_endpoints(key);
    }

    /// The endpoints of a name outside the mesh: its addresses, as far as it is known who is there.
    fn name_endpoints(&mut self, key: ServiceKey) {
        let Some(service) = self.services.get(key) else { return };
        let Some(answer) = service.answer().cloned() else {
            return;
        };
        let (mut endpoints, mut of_mesh, mut is_whole) = (Vec::new(), Vec::new(), true);
        for target in answer.routable() {
            let spec = EndpointSpec {
                addr: target.addr,
                weight: target.weight,
                priority: target.priority,
            };
            let known = match self.parts.mesh {
                Some(_) => self.services.who_is_at(target.addr),
                None => Some(&*service.known),
            };
            match known {
                None | Some(Known::Pending | Known::Unusable(_)) => is_whole = false,
                Some(Known::Endpoint(endpoint)) => endpoints.push((spec, endpoint.identity.clone())),
                Some(Known::Outside(_)) => endpoints.push((spec, None)),
                Some(Known::Service(_)) => of_mesh.push(target.addr.ip()),
            }
        }
        let Some(service) = self.services.get_mut(key) else {
            return;
        };
        service.set_addresses_of_mesh(of_mesh);
        if is_whole || !endpoints.is_empty() {
            self.update(key, &endpoints);
        } else if !service.balancer.is_empty() {
            // Those of before serve until it is known who is at the new ones.
            self.looked_up(key);
        } else if service.lookup.still(Lack::Owners) {
            tell_late(self.inbox.clone(), key);
        }
    }

    /// A service has these endpoints now, and calls that waited for them go on.
    fn update(&mut self, key: ServiceKey, endpoints: &[(EndpointSpec, Option<SpiffeId>)]) {
        let (changes, changed) = self.services.update(key, endpoints, self.now);
        for gone in changes.gone {
            self.retire(key, gone.addr);
        }
        for addr in changed {
            self.recall(key, addr);
            self.retire_others(addr);
        }
        self.looked_up(key);
    }

    /// A service is known as far as it will be: who waited goes on.
    fn looked_up(&mut self, key: ServiceKey) {
        let waited = self.services.get_mut(key).map(|service| service.lookup.done());
        self.resume(waited.unwrap_or_default());
    }

    /// Whoever was asked took too long: who waited goes on with what is known.
    pub(super) fn stop_waiting(&mut self, key: ServiceKey) {
        let waited = self.services.get_mut(key).map(|service| service.lookup.is_late());
        self.resume(waited.unwrap_or_default());
    }

    fn resume(&mut self, calls: Vec<u64>) {
        for mark in calls {
            outbound::resolved(self, Key::from_bits(mark));
        }
    }

    /// A service has `addr` no more. If no other has it, no new call goes there.
    pub(super) fn retire(&mut self, service: ServiceKey, addr: SocketAddr) {
        if !self.services.left(service, addr) {
            self.drain_all(addr);
        }
    }

    /// Nobody means `addr` any more: its connections end when their calls do.
    pub(super) fn drain_all(&mut self, addr: SocketAddr) {
        for pool in self.pools.at(addr) {
            self.drain(pool);
        }
    }

    /// Somebody else is at `addr` now than before: the connections to whom no service means any more end when their calls do.
    fn retire_others(&mut self, addr: SocketAddr) {
        for key in self.pools.at(addr) {
            let Some(pool) = self.pools.get(key) else { continue };
            if !self.services.leads_to(addr, &pool.via) {
                self.drain(key);
            }
        }
    }

    /// Calls of a service that wait for a connection to whoever was at `addr` before are for the one who is there now: what
    /// is dialled for them would lead to the wrong one, or in plain to one who proves itself.
    fn recall(&mut self, service: ServiceKey, addr: SocketAddr) {
        for key in self.pools.at(addr) {
            let Some(pool) = self.pools.get(key) else { continue };
            let means = |service: &route::Service| service.means(addr, &pool.via);
            if self.services.get(service).is_none_or(means) {
                continue;
            }
            let calls = &self.calls;
            let is_its = |mark| {
                calls
                    .get(Key::from_bits(mark))
                    .is_some_and(|call| call.service == service)
            };
            let waiting = self.pools.take_waiting(key, is_its);
            self.send_elsewhere(waiting);
        }
    }

    fn drain(&mut self, pool: PoolKey) {
        for key in self.pools.wires(pool).to_vec() {
            if let Some((wire, _)) = self.wires.touch(key) {
                wire.engine.begin_goaway();
            }
        }
        let waiting = self.pools.take_waiting(pool, |_| true);
        self.send_elsewhere(waiting);
    }

    fn send_elsewhere(&mut self, calls: Vec<u64>) {
        for mark in calls {
            let key = Key::from_bits(mark);
            self.leave_endpoint(key);
            self.send_again(key);
        }
    }
}

/// An endpoint as the balancer takes it, and who is there.
fn spec_of(endpoint: &route::Endpoint) -> (EndpointSpec, Option<SpiffeId>) {
    let spec = EndpointSpec {
        addr: endpoint.addr,
        weight: endpoint.weight,
        priority: 0,
    };
    (spec, endpoint.identity.clone())
}

/// An address by itself, where nobody is known to be.
fn plain(addr: SocketAddr) -> (EndpointSpec, Option<SpiffeId>) {
    let spec = EndpointSpec {
        addr,
        weight: 1,
        priority: 0,
    };
    (spec, None)
}

/// Why something is not followed.
enum Unfollowed {
    /// So much is that there is no room for more. There may be later.
    Full(String),
    /// It never will be.
    Never,
}

/// Tells the worker what control says of a name or an address, now and whenever that changes, until the service is forgotten.
fn follow_mesh(
    mesh: Mesh,
    unfollowed: Gauge,
    inbox: Arc<Inbox>,
    service: ServiceKey,
    subject: Subject,
    forgotten: CancellationToken,
) {
    let learned = |service, known| Message::Learned { service, known };
    let is_late = |known: &Known| matches!(known, Known::Pending);
    let ask = move || (mesh.ask)(subject.clone()).map_err(|full| Unfollowed::Full(full.to_string()));
    tokio::task::spawn_local(async move {
        let Some(source) = source(ask, &inbox, &unfollowed, service, &forgotten).await else {
            return;
        };
        tell(source, learned, is_late, inbox, service, forgotten).await
    });
}

/// Tells the worker the addresses of a name, now and whenever they change, until the service is forgotten.
fn follow(
    names: Names,
    unfollowed: Gauge,
    inbox: Arc<Inbox>,
    service: ServiceKey,
    query: Query,
    forgotten: CancellationToken,
) {
    let answered = |service, answer| Message::DnsAnswered { service, answer };
    // Who is at the addresses may not be known when they are: patience ends all the same.
    let is_late = |_: &Answer| true;
    let ask = move || {
        names.watch(query.clone()).map_err(|error| match error {
            resolve::Error::TooMany { .. } => Unfollowed::Full(error.to_string()),
            resolve::Error::NotAName(_) | resolve::Error::Stopped(_) => Unfollowed::Never,
        })
    };
    tokio::task::spawn_local(async move {
        let Some(source) = source(ask, &inbox, &unfollowed, service, &forgotten).await else {
            return;
        };
        tell(source, answered, is_late, inbox, service, forgotten).await
    });
}

/// Tells the worker that it takes long to learn of a service what was asked for just now.
fn tell_late(inbox: Arc<Inbox>, service: ServiceKey) {
    tokio::task::spawn_local(async move {
        tokio::time::sleep(PATIENCE).await;
        inbox.send(Message::Late(service));
    });
}

/// What is followed. Where there is no room for it, nobody waits, and it is asked for again, ever more seldom, until there
/// is, or the service is forgotten.
async fn source<T>(
    ask: impl Fn() -> Result<watch::Receiver<Arc<T>>, Unfollowed>,
    inbox: &Inbox,
    unfollowed: &Gauge,
    service: ServiceKey,
    forgotten: &CancellationToken,
) -> Option<watch::Receiver<Arc<T>>> {
    let mut waits = None;
    let mut pause = ASK_AGAIN_AFTER;
    loop {
        match ask() {
            Ok(source) => return Some(source),
            Err(Unfollowed::Never) => {
                inbox.send(Message::Late(service));
                return None;
            }
            Err(Unfollowed::Full(why)) => {
                if waits.is_none() {
                    // Said of the first: there may be thousands.
                    if unfollowed.get() == 0 {
                        tracing::warn!("no room for what is called: {why}; see portunus_unfollowed");
                    }
                    waits = Some(unfollowed.hold());
                    inbox.send(Message::Late(service));
                }
            }
        }
        tokio::select! {
            () = forgotten.cancelled() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(ASK_AGAIN_AT_LEAST),
        }
    }
}

/// Tells the worker the newest of something, in words of its own, until the service is forgotten; and once that it takes
/// long, unless something else than what `is_late` came before.
async fn tell<T>(
    mut source: watch::Receiver<Arc<T>>,
    says: fn(ServiceKey, Arc<T>) -> Message,
    is_late: fn(&T) -> bool,
    inbox: Arc<Inbox>,
    service: ServiceKey,
    forgotten: CancellationToken,
) {
    let patience = tokio::time::sleep(PATIENCE);
    tokio::pin!(patience);
    let mut patient = true;
    loop {
        let newest = source.borrow_and_update().clone();
        patient &= is_late(&newest);
        inbox.send(says(service, newest));
        tokio::select! {
            () = forgotten.cancelled() => return,
            changed = source.changed() => if changed.is_err() { return },
            () = &mut patience, if patient => {
                patient = false;
                inbox.send(Message::Late(service));
            }
        }
    }
}
