//! Where a connection was going before the pod's redirect rules led it here.

use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

/// The original destination of an accepted connection. IPv4 is always told as IPv4, also on an IPv6 socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Original {
    /// The redirect rules led it here; this is the address that its client meant.
    Redirected(SocketAddr),
    /// Its client meant this very address of ours: no rule touched it.
    Direct(SocketAddr),
}

impl Original {
    /// Asks the kernel (`SO_ORIGINAL_DST`). `local` is the address on which the connection was accepted.
    pub(super) fn of(socket: &TcpStream, local: SocketAddr) -> Original {
        let local = canonical(local);
        let socket = SockRef::from(socket);
        // A v4-mapped connection lives in the IPv4 conntrack, whatever family its socket has.
        let found = if local.is_ipv4() {
            socket.original_dst_v4()
        } else {
            socket.original_dst_v6()
        };
        // ENOENT: conntrack knows nothing of it. ENOPROTOOPT: there is no conntrack. No rule can have led it here.
        let Some(meant) = found.ok().and_then(|address| address.as_socket()).map(canonical) else {
            return Original::Direct(local);
        };
        match (meant.ip(), meant.port()) == (local.ip(), local.port()) {
            true => Original::Direct(local),
            false => Original::Redirected(meant),
        }
    }

    /// The address that the client meant.
    pub fn address(&self) -> SocketAddr {
        match self {
            Original::Redirected(address) | Original::Direct(address) => *address,
        }
    }

    /// The address that the client meant, if rules led it here.
    pub fn redirected(&self) -> Option<SocketAddr> {
        match self {
            Original::Redirected(address) => Some(*address),
            Original::Direct(_) => None,
        }
    }
}

/// `::ffff:192.0.2.1` as `192.0.2.1`. The scope of a link-local address is kept.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(ip) => SocketAddr::new(ip.into(), v6.port()),
            None => address,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_told_as_ipv4() {
        let mapped = "[::ffff:192.0.2.7]:50051".parse().expect("an address");
        assert_eq!(canonical(mapped), "192.0.2.7:50051".parse().expect("an address"));
    }

    #[test]
    fn a_link_local_address_keeps_its_scope() {
        let scoped = "[fe80::1%3]:50051".parse().expect("an address");
        assert_eq!(canonical(scoped), scoped);
    }
}
