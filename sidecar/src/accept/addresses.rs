//! The addresses of this pod, read from its interfaces when they are asked for and what is known is too old.

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::ifaddrs::getifaddrs;
use parking_lot::Mutex;

/// The addresses of all interfaces but loopback. Cheap to ask: the kernel is consulted again only when a miss meets
/// knowledge older than 2 s, or a hit knowledge older than 30 s.
#[derive(Debug, Default)]
pub struct PodAddresses {
    known: Mutex<Option<Known>>,
}

#[derive(Debug)]
struct Known {
    addresses: HashSet<IpAddr>,
    read_at: Instant,
}

impl PodAddresses {
    /// Knows nothing yet; the first question reads the interfaces.
    pub fn new() -> PodAddresses {
        PodAddresses::default()
    }

    /// An address of this pod that others could call it by, IPv4 where it has one.
    pub fn one_of_them() -> Option<IpAddr> {
        let addresses = read_interfaces()?;
        let of_link = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        addresses.into_iter().filter(|ip| !of_link(ip)).min()
    }

    /// Whether `ip` is an address of this pod. Loopback is not.
    pub fn contains(&self, ip: IpAddr, now: Instant) -> bool {
        self.ask(ip, now, read_interfaces)
    }

    fn ask(&self, ip: IpAddr, now: Instant, read: impl FnOnce() -> Option<HashSet<IpAddr>>) -> bool {
        let ip = ip.to_canonical();
        if ip.is_loopback() {
            return false;
        }
        let mut known = self.known.lock();
        let fresh = known.as_ref().is_some_and(|known| {
            let patience = if known.addresses.contains(&ip) {
                HIT_STAYS
            } else {
                MISS_STAYS
            };
            now.saturating_duration_since(known.read_at) < patience
        });
        if !fresh && let Some(addresses) = read() {
            *known = Some(Known {
                addresses,
                read_at: now,
            });
        }
        known.as_ref().is_some_and(|known| known.addresses.contains(&ip))
    }
}

/// `None` if the kernel will not say; what was known then stays.
fn read_interfaces() -> Option<HashSet<IpAddr>> {
    let interfaces = getifaddrs().ok()?;
    Some(
        interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
            })
            .filter(|ip| !ip.is_loopback())
            .collect(),
    )
}

const HIT_STAYS: Duration = Duration::from_secs(30);
const MISS_STAYS: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "10.1.2.3";

    fn interfaces(addresses: &[&str]) -> Option<HashSet<IpAddr>> {
        Some(
            addresses
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect(),
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_new_address_is_known_two_seconds_after_a_miss() {
        let (pod, start) = (PodAddresses::new(), Instant::now());
        assert!(!pod.ask(ip(OURS), start, || interfaces(&[])));

        let soon = start + Duration::from_millis(1_900);
        assert!(!pod.ask(ip(OURS), soon, || panic!("too early to ask the kernel again")));

        let later = start + Duration::from_secs(2);
        assert!(pod.ask(ip(OURS), later, || interfaces(&[OURS])));
    }

    #[test]
    fn a_removed_address_is_forgotten() {
        let (pod, start) = (PodAddresses::new(), Instant::now());
        assert!(pod.ask(ip(OURS), start, || interfaces(&[OURS])));
        assert!(!pod.ask(ip(OURS), start + Duration::from_secs(30), || interfaces(&[])));
    }

    #[test]
    fn what_was_known_stays_when_the_kernel_will_not_say() {
        let (pod, start) = (PodAddresses::new(), Instant::now());
        assert!(pod.ask(ip(OURS), start, || interfaces(&[OURS])));
        assert!(pod.ask(ip(OURS), start + Duration::from_secs(60), || None));
    }

    #[test]
    fn a_mapped_address_is_the_same_address() {
        let pod = PodAddresses::new();
        assert!(pod.ask(ip("::ffff:10.1.2.3"), Instant::now(), || interfaces(&[OURS])));
    }

    #[test]
    fn loopback_is_no_address_of_the_pod() {
        let pod = PodAddresses::new();
        for loopback in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            assert!(!pod.contains(ip(loopback), Instant::now()), "{loopback}");
        }
    }

    #[test]
    fn the_address_this_host_sends_from_is_its_own() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        // Connecting a UDP socket sends nothing; without a route there is no address to ask about.
        if socket.connect("192.0.2.1:9").is_err() {
            let none = read_interfaces()
                .expect("the kernel tells")
                .iter()
                .all(|ip| !ip.is_ipv4());
            assert!(none, "a host with an IPv4 address and without any route");
            return;
        }
        let own = socket.local_addr().expect("an address").ip();
        assert!(PodAddresses::new().contains(own, Instant::now()), "{own}");
        assert!(!PodAddresses::new().contains(ip("192.0.2.1"), Instant::now()));
    }
}
