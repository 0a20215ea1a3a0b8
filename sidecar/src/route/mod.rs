//! Which service an RPC means, and what is known of it.
//!
//! The name in `:authority` if the address that the application dialled is, or lately was, among its addresses; else
//! that address itself. What control says of either comes first ([`Known`]); DNS names the endpoints of names outside the
//! mesh, or of all if there is no control.

mod index;
mod known;
mod lookup;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portunus_proto::SpiffeId;
use tokio_util::sync::DropGuard;

use crate::balance::{self, Balancer, EndpointKey, EndpointSpec};
use crate::connect::Via;
use crate::connect::resolve::{Answer, Query};
use crate::health;
use crate::slots::{Key, Slots};

use index::Index;
pub use known::{Endpoint, HealthPolicy, Known, OutlierPolicy, Policy, Subject, View};
pub use lookup::{Lack, Lookup, Turn};

/// The key of a service.
pub type ServiceKey = Key<Service>;

/// Names that one worker knows at most; RPCs to further ones go to the address that was dialled.
const MOST_SERVICES: usize = 1_000;
/// Addresses by themselves that one worker knows at most, beside those of names and those that are being called: the ones
/// that were not called for longest make room.
const MOST_ADDRESSES: usize = 10_000;
/// So many of them go at once, since to look for them takes time.
const ROOM: usize = MOST_ADDRESSES / 16;
/// How often services that nobody calls are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// A service that nobody has called for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// How long an address means a service of the mesh that it no longer belongs to.
const LATELY: Duration = Duration::from_secs(600);

/// A service: its endpoints, and the calls that wait for its first addresses.
pub struct Service {
    /// What it is called: `name:port`, or an address.
    pub name: Arc<str>,
    /// What stands behind the name: a host and a port, or an address.
    pub subject: Subject,
    /// What control says of it. Without control everything is outside the mesh.
    pub known: Arc<Known>,
    /// What the name servers are asked; `None` for an address, and for a name of the mesh.
    pub asked: Option<Query>,
    /// What they said last.
    answer: Option<Arc<Answer>>,
    /// Its endpoints.
    pub balancer: Balancer,
    /// How far it is known, and which calls wait until it is.
    pub lookup: Lookup,
    /// Why an endpoint was not reached, the last time that one was not: what calls are told while none is tried again yet.
    pub unreached: Option<Box<str>>,
    /// When it was called last.
    pub used: Instant,
    /// Whose drop ends the following of what control says, and of what the name servers say.
    pub following: Vec<DropGuard>,
    /// Who is at an address, where it is not just anybody.
    identities: HashMap<SocketAddr, SpiffeId>,
    /// Addresses that are, or lately were, those of the mesh's service, and until when they count; in order.
    addresses: Vec<(IpAddr, Option<Instant>)>,
    /// Addresses of a name outside the mesh that are a service's of the mesh.
    addresses_of_mesh: Vec<IpAddr>,
    /// How its endpoints' health is checked: not at all, for an address.
    pub health: Arc<health::Settings>,
    tag: u16,
}

/// The services of one worker.
pub struct Services {
    slots: Slots<Service>,
    by_name: HashMap<String, ServiceKey>,
    by_address: HashMap<SocketAddr, ServiceKey>,
    /// Those that have an endpoint at an address, one that drains included.
    by_endpoint: Index,
    /// The names outside the mesh that have an address.
    by_target: Index,
    /// The address that was asked for last: mostly it is asked for again.
    last_address: Option<(SocketAddr, ServiceKey)>,
    /// Named services by a number that an interned `:authority` can carry: what spares an RPC the look-up of its name.
    tagged: Vec<Tagged>,
    settings: balance::Settings,
    /// What is known of a name or an address before anybody was asked.
    at_first: Arc<Known>,
    health: Arc<health::Settings>,
    no_health: Arc<health::Settings>,
    /// When idle services were looked for last.
    tidied: Option<Instant>,
    /// When room for addresses was looked for last and not found.
    crowded: Option<Instant>,
}

struct Tagged {
    /// Goes up when the place is used again, so that an old tag finds nothing.
    epoch: u16,
    port: u16,
    key: ServiceKey,
}

/// What is known of the name that an RPC carries.
pub enum Named {
    /// It is known already.
    Known(ServiceKey),
    /// It was not: somebody has to ask for it.
    New(ServiceKey),
    /// It is no name.
    None,
    /// There are too many names already.
    TooMany,
}

/// What the number on an interned `:authority` says.
pub enum ByTag {
    /// It names this service.
    Service(ServiceKey),
    /// It is no name.
    NoName,
    /// Nobody has looked yet.
    Unknown,
}

/// The tag of an authority that is no name.
pub const NO_NAME: u32 = u32::MAX;

impl Services {
    /// No services yet. Without a mesh, nobody has to be asked whether something belongs to it.
    pub fn new(settings: balance::Settings, health: Arc<health::Settings>, has_mesh: bool) -> Services {
        let at_first = match has_mesh {
            true => Known::Pending,
            false => Known::Outside(Arc::default()),
        };
        Services {
            at_first: Arc::new(at_first),
            slots: Slots::default(),
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            by_endpoint: Index::default(),
            by_target: Index::default(),
            last_address: None,
            tagged: Vec::new(),
            settings,
            health,
            no_health: Arc::new(health::Settings::off()),
            tidied: None,
            crowded: None,
        }
    }

    /// What a tag of [`Services::tag`] stands for, if its service is there still and was meant for `port`.
    pub fn by_tag(&self, tag: u32, port: u16) -> ByTag {
        if tag == NO_NAME {
            return ByTag::NoName;
        }
        let place = (tag as u16).checked_sub(1).map(usize::from);
        match place.and_then(|place| self.tagged.get(place)) {
            Some(tagged)
                if tagged.epoch == (tag >> 16) as u16 && tagged.port == port && self.slots.contains(tagged.key) =>
            {
                ByTag::Service(tagged.key)
            }
            _ => ByTag::Unknown,
        }
    }

    /// A number other than 0 that stands for a named service.
    pub fn tag(&self, key: ServiceKey) -> u32 {
        let Some(service) = self.slots.get(key).filter(|service| service.is_name()) else {
            return 0;
        };
        let epoch = self.tagged.get(service.tag as usize).map_or(0, |tagged| tagged.epoch);
        (epoch as u32) << 16 | (service.tag as u32 + 1)
    }

    fn place(&mut self, port: u16) -> u16 {
        let free = self.tagged.iter().position(|tagged| !self.slots.contains(tagged.key));
        match free {
            Some(place) => {
                self.tagged[place].epoch = self.tagged[place].epoch.wrapping_add(1);
                self.tagged[place].port = port;
                place as u16
            }
            None => {
                self.tagged.push(Tagged {
                    epoch: 0,
                    port,
                    key: Key::NONE,
                });
                (self.tagged.len() - 1) as u16
            }
        }
    }

    /// The service of the name in `authority`, on the port that was dialled.
    pub fn named(&mut self, authority: &[u8], port: u16, now: Instant) -> Named {
        let Some(host) = host_of(authority) else {
            return Named::None;
        };
        // Names are the same in any case (RFC 4343).
        let host = host.to_ascii_lowercase();
        let name = format!("{host}:{port}");
        if let Some(key) = self.by_name.get(&name) {
            return Named::Known(*key);
        }
        if self.by_name.len() >= MOST_SERVICES {
            return Named::TooMany;
        }
        let tag = self.place(port);
        let subject = Subject::Name { host, port };
        let key = self.insert(name.clone(), subject, tag, now);
        self.tagged[tag as usize].key = key;
        self.by_name.insert(name, key);
        Named::New(key)
    }

    fn insert(&mut self, name: String, subject: Subject, tag: u16, now: Instant) -> ServiceKey {
        let health = match subject {
            Subject::Name { .. } => self.health.clone(),
            Subject::Address(_) => self.no_health.clone(),
        };
        self.slots.insert(Service {
            name: name.into(),
            subject,
            known: self.at_first.clone(),
            asked: None,
            answer: None,
            balancer: Balancer::new(self.settings),
            lookup: Lookup::default(),
            unreached: None,
            used: now,
            following: Vec::new(),
            identities: HashMap::new(),
            addresses: Vec::new(),
            addresses_of_mesh: Vec::new(),
            health,
            tag,
        })
    }

    /// The service that an address is by itself; and whether it is a new one.
    #[inline(always)]
    pub fn of_address(&mut self, addr: SocketAddr, now: Instant) -> (ServiceKey, bool) {
        if let Some((last, key)) = self.last_address
            && last == addr
            && let Some(service) = self.slots.get_mut(key)
        {
            service.used = now;
            return (key, false);
        }
        let (key, is_new) = self.find_address(addr, now);
        if let Some(service) = self.slots.get_mut(key) {
            service.used = now;
        }
        self.last_address = Some((addr, key));
        (key, is_new)
    }

    fn find_address(&mut self, addr: SocketAddr, now: Instant) -> (ServiceKey, bool) {
        if let Some(key) = self.by_address.get(&addr) {
            return (*key, false);
        }
        let key = self.insert(addr.to_string(), Subject::Address(addr), 0, now);
        self.by_address.insert(addr, key);
        (key, true)
    }

    /// What is known of an address, if anybody has asked.
    pub fn who_is_at(&self, addr: SocketAddr) -> Option<&Known> {
        self.known_at(addr).map(|known| &**known)
    }

    /// The same, to be kept.
    pub fn known_at(&self, addr: SocketAddr) -> Option<&Arc<Known>> {
        let key = self.by_address.get(&addr)?;
        self.slots.get(*key).map(|service| &service.known)
    }

    /// Why what control said of a service cannot be used, or of an address of its, where the service is not known for that.
    pub fn unusable(&self, service: &Service) -> Option<Arc<str>> {
        let of = |known: &Known| match known {
            Known::Unusable(why) => Some(why.clone()),
            Known::Pending | Known::Service(_) | Known::Endpoint(_) | Known::Outside(_) => None,
        };
        let targets = service.answer.iter().flat_map(|answer| answer.routable());
        of(&service.known).or_else(|| targets.filter_map(|target| self.who_is_at(target.addr)).find_map(of))
    }

    /// The names outside the mesh that have this address.
    pub fn named_at(&self, addr: SocketAddr) -> Vec<ServiceKey> {
        self.by_target.at(addr).to_vec()
    }

    /// What the name servers say now of a name; `None` once they are not asked any more.
    pub fn set_answer(&mut self, key: ServiceKey, answer: Option<Arc<Answer>>) {
        let Some(service) = self.slots.get_mut(key) else {
            return;
        };
        if answer.is_none() {
            service.asked = None;
            service.following.truncate(1);
        }
        let before = std::mem::replace(&mut service.answer, answer.clone());
        for target in before.iter().flat_map(|answer| answer.routable()) {
            self.by_target.remove(target.addr, key);
        }
        for target in answer.iter().flat_map(|answer| answer.routable()) {
            self.by_target.add(target.addr, key);
        }
    }

    /// The service of `key`.
    pub fn get(&self, key: ServiceKey) -> Option<&Service> {
        self.slots.get(key)
    }

    /// The service of `key`.
    pub fn get_mut(&mut self, key: ServiceKey) -> Option<&mut Service> {
        self.slots.get_mut(key)
    }

    /// Shows every service's balancer the endpoint that it has at `addr`.
    pub fn of_endpoint(&mut self, addr: SocketAddr, mut show: impl FnMut(&mut Balancer, EndpointKey)) {
        for key in self.by_endpoint.at(addr) {
            if let Some(service) = self.slots.get_mut(*key)
                && let Some(endpoint) = service.balancer.at(addr)
            {
                show(&mut service.balancer, endpoint);
            }
        }
    }

    /// A service takes the endpoints that there are now: see [`Service::update`].
    pub fn update(
        &mut self,
        key: ServiceKey,
        endpoints: &[(EndpointSpec, Option<SpiffeId>)],
        now: Instant,
    ) -> (balance::Changes, Vec<SocketAddr>) {
        let Some(service) = self.slots.get_mut(key) else {
            return Default::default();
        };
        for (spec, _) in endpoints {
            self.by_endpoint.add(spec.addr, key);
        }
        service.update(endpoints, now)
    }

    /// A service has no endpoint at `addr` any more, nor one that drains. Says whether any other has.
    pub fn left(&mut self, key: ServiceKey, addr: SocketAddr) -> bool {
        self.by_endpoint.remove(addr, key);
        !self.by_endpoint.at(addr).is_empty()
    }

    /// Whether any service means, at `addr`, whoever is reached in this way.
    pub fn leads_to(&self, addr: SocketAddr, via: &Via) -> bool {
        let mut services = self.by_endpoint.at(addr).iter().filter_map(|key| self.slots.get(*key));
        services.any(|service| service.means(addr, via))
    }

    /// Every service.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ServiceKey, &mut Service)> {
        self.slots.iter_mut()
    }

    /// Every service.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceKey, &Service)> {
        self.slots.iter()
    }

    /// Forgets the services that nobody has called for long; returns where their endpoints were, as far as no other service
    /// has one there.
    pub fn forget_idle(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self
            .tidied
            .is_some_and(|last| now.saturating_duration_since(last) < TIDY_EVERY)
        {
            return Vec::new();
        }
        self.tidied = Some(now);
        let idle = |service: &Service| {
            now.saturating_duration_since(service.used) > FORGET_AFTER && self.can_be_forgotten(service, now)
        };
        let idle = self.slots.iter().filter(|(_, service)| idle(service));
        let keys: Vec<_> = idle.map(|(key, _)| key).collect();
        self.forget(keys, now)
    }

    /// Forgets addresses that nobody has called for longest, where there are too many; returns where their endpoints were,
    /// as far as no other service has one there.
    pub fn make_room(&mut self, now: Instant) -> Vec<SocketAddr> {
        let is_crowded = |since: Instant| now.saturating_duration_since(since) < TIDY_EVERY;
        if self.by_address.len() <= MOST_ADDRESSES || self.crowded.is_some_and(is_crowded) {
            return Vec::new();
        }
        let idle = self.by_address.values().filter_map(|key| {
            let service = self.slots.get(*key)?;
            let can_go = service.used < now && self.can_be_forgotten(service, now);
            can_go.then_some((service.used, *key))
        });
        let mut idle: Vec<_> = idle.collect();
        if idle.len() > ROOM {
            idle.select_nth_unstable_by_key(ROOM, |(used, _)| *used);
            idle.truncate(ROOM);
        } else {
            self.crowded = Some(now);
        }
        self.forget(idle.into_iter().map(|(_, key)| key).collect(), now)
    }

    /// Whether nothing is lost with it: no call waits for it or runs, and it is no address of a name that has to know who is
    /// there.
    fn can_be_forgotten(&self, service: &Service, now: Instant) -> bool {
        let is_target = |addr: SocketAddr| !self.by_target.at(addr).is_empty() && !service.following.is_empty();
        !service.lookup.is_awaited()
            && !matches!(service.subject, Subject::Address(addr) if is_target(addr))
            && service.balancer.endpoints(now).all(|endpoint| endpoint.in_flight == 0)
    }

    fn forget(&mut self, keys: Vec<ServiceKey>, now: Instant) -> Vec<SocketAddr> {
        let mut left = Vec::new();
        for key in keys {
            self.set_answer(key, None);
            let Some(service) = self.slots.remove(key) else {
                continue;
            };
            match service.subject {
                Subject::Name { .. } => drop(self.by_name.remove(&*service.name)),
                Subject::Address(addr) => drop(self.by_address.remove(&addr)),
            }
            for endpoint in service.balancer.endpoints(now) {
                if !self.left(key, endpoint.addr) {
                    left.push(endpoint.addr);
                }
            }
        }
        left
    }
}

impl Service {
    /// Whether it is a name, not an address by itself.
    pub fn is_name(&self) -> bool {
        matches!(self.subject, Subject::Name { .. })
    }

    /// Does as the policy says that is known, and by the sidecar's own settings otherwise. An address by itself is not
    /// checked unless a policy says how.
    pub fn apply_policy(&mut self, balance: &balance::Settings, health: &Arc<health::Settings>) {
        let none = Policy::default();
        let policy = self.known.policy().unwrap_or(&none);
        self.balancer.set(policy.balance(balance));
        let is_checked = self.is_name() || policy.health.mode.is_some();
        let checks = match is_checked {
            true => policy.health(health),
            false => health::Settings::off(),
        };
        if checks != *self.health {
            self.health = Arc::new(checks);
        }
    }

    /// `name.namespace:port` of a service of the mesh for which control names no endpoint at all.
    pub fn without_workloads(&self) -> Option<&str> {
        match &*self.known {
            Known::Service(view) if view.endpoints.is_empty() => Some(&view.name),
            Known::Service(_) | Known::Pending | Known::Unusable(_) | Known::Endpoint(_) | Known::Outside(_) => None,
        }
    }

    /// How many of the mesh's endpoints take no new calls, as control says.
    pub fn unready(&self) -> usize {
        match &*self.known {
            Known::Service(view) => view.endpoints.iter().filter(|endpoint| !endpoint.is_ready).count(),
            Known::Pending | Known::Unusable(_) | Known::Endpoint(_) | Known::Outside(_) => 0,
        }
    }

    /// What the name servers said last; `None` for an address, and for a name of the mesh.
    pub fn answer(&self) -> Option<&Arc<Answer>> {
        self.answer.as_ref()
    }

    /// Whether it is a name that the mesh does not know.
    pub fn is_outside(&self) -> bool {
        self.is_name() && matches!(*self.known, Known::Outside(_))
    }

    /// Whether `addr` is, or lately was, among the addresses of the name; `None` while that is not known, nor who is at any
    /// of them.
    #[inline(always)]
    pub fn owns(&self, addr: SocketAddr, now: Instant) -> Option<bool> {
        match (&*self.known, &self.subject) {
            (Known::Pending | Known::Unusable(_), _) => None,
            (_, Subject::Address(_)) => Some(true),
            (Known::Outside(_), _) => {
                let answer = self.answer.as_ref()?;
                let is_its =
                    answer.has_or_had(addr.ip(), now) && !self.addresses_of_mesh.contains(&addr.ip().to_canonical());
                (!is_its || self.lookup.lack().is_none()).then_some(is_its)
            }
            (Known::Service(_) | Known::Endpoint(_), _) => {
                let ip = addr.ip().to_canonical();
                let found = self.addresses.binary_search_by(|(known, _)| known.cmp(&ip));
                Some(found.is_ok_and(|at| self.addresses[at].1.is_none_or(|until| now < until)))
            }
        }
    }

    /// Who must be at an endpoint; `None` if it is called in plain.
    pub fn identity(&self, addr: SocketAddr) -> Option<&SpiffeId> {
        self.identities.get(&addr)
    }

    /// Whether it means, at `addr`, whoever is reached in this way.
    pub fn means(&self, addr: SocketAddr, via: &Via) -> bool {
        match via {
            Via::Own => true,
            Via::Plain => self.identity(addr).is_none(),
            Via::Mesh(identity) => self.identity(addr) == Some(identity),
        }
    }

    /// Takes the endpoints that there are now, each with who is there. Returns what became of the others, and the addresses
    /// where somebody else is now.
    fn update(
        &mut self,
        endpoints: &[(EndpointSpec, Option<SpiffeId>)],
        now: Instant,
    ) -> (balance::Changes, Vec<SocketAddr>) {
        let specs: Vec<_> = endpoints.iter().map(|(spec, _)| *spec).collect();
        let changes = self.balancer.update(&specs, now);
        let identities = endpoints
            .iter()
            .filter_map(|(spec, identity)| Some((spec.addr, identity.clone()?)));
        let before = std::mem::replace(&mut self.identities, identities.collect());
        let changed = |spec: &EndpointSpec| before.get(&spec.addr) != self.identities.get(&spec.addr);
        let changed: Vec<_> = specs
            .iter()
            .filter(|spec| changed(spec))
            .map(|spec| spec.addr)
            .collect();
        for addr in &changed {
            // The pool that hangs there leads to whoever was there before.
            if let Some(endpoint) = self.balancer.at(*addr) {
                self.balancer.set_mark(endpoint, 0);
            }
        }
        (changes, changed)
    }

    /// The addresses by which an application may mean the mesh's service, from now on; those of before count a while longer,
    /// since whoever resolved the name may still dial them.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>, now: Instant) {
        self.addresses
            .retain(|(_, until)| until.is_none_or(|until| now < until));
        for (_, until) in &mut self.addresses {
            until.get_or_insert(now + LATELY);
        }
        for ip in addresses {
            match self.addresses.binary_search_by(|(known, _)| known.cmp(&ip)) {
                Ok(at) => self.addresses[at].1 = None,
                Err(at) => self.addresses.insert(at, (ip, None)),
            }
        }
    }

    /// The addresses of this name outside the mesh that are a service's of the mesh: whoever dials them means that.
    pub fn set_addresses_of_mesh(&mut self, addresses: Vec<IpAddr>) {
        self.addresses_of_mesh = addresses;
    }
}

/// The host of an authority: a name, without port and user; `None` for an address, or for what is no name.
fn host_of(authority: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(authority).ok()?;
    if text.contains('@') || text.starts_with('[') {
        return None;
    }
    let host = match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        Some(_) => return None,
        None => text,
    };
    let is_name = !host.is_empty()
        && host.len() <= 254
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && host.parse::<std::net::IpAddr>().is_err();
    is_name.then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(addr: SocketAddr) -> [(EndpointSpec, Option<SpiffeId>); 1] {
        let spec = EndpointSpec {
            addr,
            weight: 1,
            priority: 0,
        };
        [(spec, None)]
    }

    fn services() -> Services {
        Services::new(balance::Settings::default(), Arc::default(), false)
    }

    #[test]
    fn an_address_is_somebodys_until_the_last_service_that_has_it_is_forgotten() {
        let mut services = services();
        let began = Instant::now();
        let addr = SocketAddr::from(([10, 0, 0, 1], 50051));
        let Named::New(name) = services.named(b"greeter", 50051, began) else {
            panic!("it is a new name")
        };
        services.update(name, &at(addr), began);
        let (alone, _) = services.of_address(addr, began + FORGET_AFTER);
        services.update(alone, &at(addr), began);
        let reached = |services: &mut Services| {
            let mut reached = 0;
            services.of_endpoint(addr, |_, _| reached += 1);
            reached
        };
        assert_eq!(reached(&mut services), 2);
        // The name is forgotten first, then the address by itself.
        let late = began + FORGET_AFTER + TIDY_EVERY;
        assert_eq!(services.forget_idle(late), []);
        assert_eq!(reached(&mut services), 1);
        assert!(services.leads_to(addr, &Via::Plain));
        assert_eq!(services.forget_idle(late + FORGET_AFTER), [addr]);
        assert_eq!(reached(&mut services), 0);
        assert!(!services.leads_to(addr, &Via::Plain));
    }

    #[test]
    fn addresses_that_were_not_called_for_longest_make_room_for_others_unless_calls_are_there() {
        let mut services = services();
        let began = Instant::now();
        let nth = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from_bits(0x0a00_0000 + n), 80));
        let mut keys = Vec::new();
        for n in 0..MOST_ADDRESSES as u32 {
            let now = began + Duration::from_millis(n.into());
            let (key, is_new) = services.of_address(nth(n), now);
            assert!(is_new);
            services.update(key, &at(nth(n)), now);
            assert_eq!(services.make_room(now), []);
            keys.push(key);
        }
        let busy = services.get_mut(keys[0]).expect("it is there");
        let endpoint = busy.balancer.at(nth(0)).expect("it has one");
        assert!(busy.balancer.begin(endpoint, true).is_some(), "a call is there");
        services.get_mut(keys[1]).expect("it is there").lookup = Lookup::Waits(Lack::Word, vec![1]);
        let now = began + Duration::from_secs(60);
        services.of_address(nth(2), now);
        let (newest, is_new) = services.of_address(nth(99_999), now);
        assert!(is_new);
        let gone = services.make_room(now);
        assert_eq!(gone.len(), ROOM);
        assert!(services.get(newest).is_some());
        for (n, key) in keys.iter().enumerate() {
            let stays = !(3..3 + ROOM).contains(&n);
            assert_eq!(services.get(*key).is_some(), stays, "the {n}th");
            assert_eq!(gone.contains(&nth(n as u32)), !stays);
        }
    }

    #[test]
    fn an_authority_names_a_host_or_it_does_not() {
        assert_eq!(host_of(b"greeter.shop:50051"), Some("greeter.shop"));
        assert_eq!(host_of(b"greeter"), Some("greeter"));
        for no in [
            "",
            ":80",
            "10.0.0.1:80",
            "[fd00::1]:80",
            "user@host",
            "a b",
            "host:port",
            "127.0.0.1",
        ] {
            assert_eq!(host_of(no.as_bytes()), None, "{no}");
        }
        assert_eq!(host_of(&[0xff, b'a']), None);
    }
}
