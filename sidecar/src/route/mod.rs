//! Which service an RPC means, and what is known of it.
//!
//! The name in `:authority` if the address that the application dialled is, or lately was, among its addresses; else
//! that address itself. (Service addresses that the control plane names come first, once there is one.)

mod known;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::DropGuard;

use crate::balance::{self, Balancer, EndpointKey, EndpointSpec};
use crate::connect::resolve::Answer;
use crate::http2::slots::{Key, Slots};

pub use known::{Endpoint, HealthMode, HealthPolicy, Known, OutlierPolicy, Policy, Subject, View};

/// The key of a service.
pub type ServiceKey = Key<Service>;

/// Names that one worker knows at most; RPCs to further ones go to the address that was dialled.
const MOST_SERVICES: usize = 1_000;
/// How often services that nobody calls are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(10);
/// A service that nobody has called for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// A service: its endpoints, and the calls that wait for its first addresses.
pub struct Service {
    /// What it is called: `name:port`, or an address.
    pub name: String,
    /// What the name servers said last; `None` for an address.
    pub answer: Option<Arc<Answer>>,
    /// Its endpoints.
    pub balancer: Balancer,
    /// Calls that wait for the first answer.
    pub waiting: Vec<u64>,
    /// When it was called last.
    pub used: Instant,
    /// Whose drop ends the following of its name.
    pub following: Option<DropGuard>,
    is_name: bool,
    tag: u16,
}

/// The services of one worker.
pub struct Services {
    slots: Slots<Service>,
    by_name: HashMap<String, ServiceKey>,
    by_address: HashMap<SocketAddr, ServiceKey>,
    /// The address that was asked for last: mostly it is asked for again.
    last_address: Option<(SocketAddr, ServiceKey)>,
    /// Named services by a number that an interned `:authority` can carry: what spares an RPC the look-up of its name.
    tagged: Vec<Tagged>,
    settings: balance::Settings,
    /// When idle services were looked for last.
    tidied: Option<Instant>,
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
    /// It was not: somebody has to resolve `host`.
    New(ServiceKey, String),
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
    /// No services yet.
    pub fn new(settings: balance::Settings) -> Services {
        Services {
            slots: Slots::default(),
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            last_address: None,
            tagged: Vec::new(),
            settings,
            tidied: None,
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
        let Some(service) = self.slots.get(key).filter(|service| service.is_name) else {
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
        let key = self.slots.insert(Service {
            name: name.clone(),
            answer: None,
            balancer: Balancer::new(self.settings),
            waiting: Vec::new(),
            used: now,
            following: None,
            is_name: true,
            tag,
        });
        self.tagged[tag as usize].key = key;
        self.by_name.insert(name, key);
        Named::New(key, host)
    }

    /// The service that an address is by itself.
    #[inline(always)]
    pub fn of_address(&mut self, addr: SocketAddr, now: Instant) -> ServiceKey {
        if let Some((last, key)) = self.last_address
            && last == addr
            && let Some(service) = self.slots.get_mut(key)
        {
            service.used = now;
            return key;
        }
        let key = self.find_address(addr, now);
        if let Some(service) = self.slots.get_mut(key) {
            service.used = now;
        }
        self.last_address = Some((addr, key));
        key
    }

    fn find_address(&mut self, addr: SocketAddr, now: Instant) -> ServiceKey {
        if let Some(key) = self.by_address.get(&addr) {
            return *key;
        }
        let mut balancer = Balancer::new(self.settings);
        balancer.update(
            &[EndpointSpec {
                addr,
                weight: 1,
                priority: 0,
            }],
            now,
        );
        let name = addr.to_string();
        let key = self.slots.insert(Service {
            name,
            answer: None,
            balancer,
            waiting: Vec::new(),
            used: now,
            following: None,
            is_name: false,
            tag: 0,
        });
        self.by_address.insert(addr, key);
        key
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
        for (_, service) in self.slots.iter_mut() {
            if let Some(endpoint) = service.balancer.at(addr) {
                show(&mut service.balancer, endpoint);
            }
        }
    }

    /// Whether any service has an endpoint at `addr`, one that drains included.
    pub fn has_endpoint(&self, addr: SocketAddr) -> bool {
        self.slots
            .iter()
            .any(|(_, service)| service.balancer.at(addr).is_some())
    }

    /// Every service.
    pub fn iter(&self) -> impl Iterator<Item = (ServiceKey, &Service)> {
        self.slots.iter()
    }

    /// Forgets the services that nobody has called for long; returns where their endpoints were.
    pub fn forget_idle(&mut self, now: Instant) -> Vec<SocketAddr> {
        if self
            .tidied
            .is_some_and(|last| now.saturating_duration_since(last) < TIDY_EVERY)
        {
            return Vec::new();
        }
        self.tidied = Some(now);
        let idle = |service: &Service| {
            service.waiting.is_empty()
                && now.saturating_duration_since(service.used) > FORGET_AFTER
                && service.balancer.endpoints(now).all(|endpoint| endpoint.in_flight == 0)
        };
        let keys: Vec<_> = self.slots.iter().filter(|(_, s)| idle(s)).map(|(key, _)| key).collect();
        let forgotten: Vec<_> = keys.into_iter().filter_map(|key| self.slots.remove(key)).collect();
        self.by_name.retain(|_, key| self.slots.contains(*key));
        self.by_address.retain(|_, key| self.slots.contains(*key));
        let endpoints = forgotten.iter().flat_map(|service| service.balancer.endpoints(now));
        endpoints.map(|endpoint| endpoint.addr).collect()
    }
}

impl Service {
    /// Whether `addr` is, or lately was, among the addresses of the name; `None` while nothing is known.
    pub fn owns(&self, addr: SocketAddr, now: Instant) -> Option<bool> {
        if !self.is_name {
            return Some(true);
        }
        self.answer.as_ref().map(|answer| answer.has_or_had(addr.ip(), now))
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

    #[test]
    fn an_address_is_somebodys_until_the_last_service_that_has_it_is_forgotten() {
        let mut services = Services::new(balance::Settings::default());
        let began = Instant::now();
        let addr = SocketAddr::from(([10, 0, 0, 1], 50051));
        let Named::New(name, _) = services.named(b"greeter", 50051, began) else {
            panic!("it is a new name")
        };
        let spec = EndpointSpec {
            addr,
            weight: 1,
            priority: 0,
        };
        services
            .get_mut(name)
            .expect("it is there")
            .balancer
            .update(&[spec], began);
        services.of_address(addr, began + FORGET_AFTER);
        assert!(services.has_endpoint(addr));
        // The name is forgotten first, then the address by itself.
        let late = began + FORGET_AFTER + TIDY_EVERY;
        assert_eq!(services.forget_idle(late), [addr]);
        assert!(services.has_endpoint(addr));
        assert_eq!(services.forget_idle(late + FORGET_AFTER), [addr]);
        assert!(!services.has_endpoint(addr));
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
