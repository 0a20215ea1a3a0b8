//! Whether this pod has a route to an address, asked of the kernel without sending anything.
//!
//! Connecting a datagram socket looks the route up and sends nothing. A pod without IPv6 learns in this way that the
//! AAAA records of a name are not for it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

/// What the kernel said lately.
#[derive(Debug, Default)]
pub struct Routes(HashMap<IpAddr, (bool, Instant)>);

impl Routes {
    /// Whether the kernel knows a way to `ip`, or knew one a few seconds ago.
    pub fn lead_to(&mut self, ip: IpAddr, now: Instant) -> bool {
        match self.0.get(&ip) {
            Some((routable, until)) if *until > now => *routable,
            Some(_) | None => {
                let routable = has_route(ip);
                self.0.insert(ip, (routable, now + FRESH));
                routable
            }
        }
    }

    /// Forgets what is old.
    pub fn prune(&mut self, now: Instant) {
        self.0.retain(|_, (_, until)| *until > now);
    }
}

/// Whether the kernel has a route to `ip`. A new socket each time: a connected one keeps its source address and then
/// refuses destinations that do not go with it.
fn has_route(ip: IpAddr) -> bool {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = match Socket::new(domain, Type::DGRAM.cloexec().nonblocking(), None) {
        Ok(socket) => socket,
        // A kernel without the family. Any other error (no descriptors left) says nothing about routes.
        Err(error) => return error.raw_os_error() != Some(Errno::EAFNOSUPPORT as i32),
    };
    socket.connect(&SocketAddr::new(ip, 9).into()).is_ok()
}

/// How long an answer of the kernel is good for: interfaces come and go.
const FRESH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_has_a_route_and_a_refused_address_has_none() {
        let mut routes = Routes::default();
        let now = Instant::now();
        assert!(routes.lead_to(Ipv4Addr::LOCALHOST.into(), now));
        // The broadcast address of IPv4 is refused to a socket that did not ask for it.
        assert!(!routes.lead_to(Ipv4Addr::BROADCAST.into(), now));
        routes.prune(now + FRESH);
        assert!(routes.0.is_empty());
    }
}
