//! Where a connection may lead: never back into the proxy, and inbound only to what this pod itself serves.

use std::net::{IpAddr, SocketAddr};

use super::Original;

/// The proxy's own ports: a connection that leads to one of them on this pod would go round in circles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPorts {
    /// Takes what the application sends. Default 4140.
    pub outbound: u16,
    /// Takes what the network sends. Default 4143.
    pub inbound: u16,
    /// Answers the operator. Default 4191.
    pub admin: u16,
}

impl OwnPorts {
    fn contains(&self, port: u16) -> bool {
        port == self.outbound || port == self.inbound || port == self.admin
    }
}

impl Default for OwnPorts {
    fn default() -> Self {
        OwnPorts {
            outbound: 4140,
            inbound: 4143,
            admin: 4191,
        }
    }
}

/// Why a connection is ended at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It would reach the proxy again.
    #[error("{0} is the proxy's own port: the connection would come back here; call the application's port instead")]
    OwnPort(SocketAddr),
    /// The proxy itself has dialled it, and the kernel led it back.
    #[error("the connection to {0} is the proxy's own, and the redirect rules led it back here: see /ready")]
    OwnConnection(SocketAddr),
    /// It came straight to the proxy's port, so nobody knows where it should go.
    #[error(
        "the connection came straight to {0} instead of being redirected, so its destination is unknown; call the application's port, and see whether the redirect rules are in place"
    )]
    NotRedirected(SocketAddr),
    /// What listens on loopback is not for the network.
    #[error(
        "{0} is a loopback address: what listens there is not for the network; let the application listen on the pod's address"
    )]
    Loopback(SocketAddr),
    /// A neighbour tried to go through this pod to somebody else.
    #[error("{0} is no address of this pod: the inbound proxy reaches its own application only")]
    NotThisPod(SocketAddr),
    /// No connection can be made to it.
    #[error("{0} is no address that a connection can be made to")]
    NoHost(SocketAddr),
}

/// Where a connection of this pod's application leads. `is_own` says whether an address is one of this pod's.
///
/// # Errors
/// When it would come back to the proxy, or the destination cannot be known or reached.
pub fn outbound(
    original: Original,
    ports: &OwnPorts,
    is_own: impl FnOnce(IpAddr) -> bool,
) -> Result<SocketAddr, Refusal> {
    let meant = destination(original, ports)?;
    if ports.contains(meant.port()) && (meant.ip().is_loopback() || is_own(meant.ip())) {
        return Err(Refusal::OwnPort(meant));
    }
    Ok(meant)
}

/// Where a connection from the network leads: to the address of this pod that the caller meant, and nowhere else.
///
/// # Errors
/// When that address is not this pod's, is loopback, or is the proxy itself.
pub fn inbound(
    original: Original,
    ports: &OwnPorts,
    is_own: impl FnOnce(IpAddr) -> bool,
) -> Result<SocketAddr, Refusal> {
    let meant = destination(original, ports)?;
    if meant.ip().is_loopback() {
        return Err(Refusal::Loopback(meant));
    }
    if !is_own(meant.ip()) {
        return Err(Refusal::NotThisPod(meant));
    }
    if ports.contains(meant.port()) {
        return Err(Refusal::OwnPort(meant));
    }
    Ok(meant)
}

fn destination(original: Original, ports: &OwnPorts) -> Result<SocketAddr, Refusal> {
    let meant = match original {
        Original::Redirected(meant) => meant,
        Original::Direct(local) if ports.contains(local.port()) => return Err(Refusal::OwnPort(local)),
        Original::Direct(local) => return Err(Refusal::NotRedirected(local)),
    };
    let ip = meant.ip();
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || broadcast || meant.port() == 0 {
        return Err(Refusal::NoHost(meant));
    }
    Ok(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: [&str; 2] = ["10.0.0.5", "fd00::5"];

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn led(text: &str) -> Original {
        Original::Redirected(at(text))
    }

    fn is_own(ip: IpAddr) -> bool {
        POD.iter().any(|own| ip == own.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn outbound_leads_where_the_application_meant() {
        for meant in [
            "10.96.0.1:50051",
            "[fd00:96::1]:50051",
            "10.0.0.5:50051",
            "10.0.0.6:4143",
        ] {
            assert_eq!(outbound(led(meant), &OwnPorts::default(), is_own), Ok(at(meant)));
        }
    }

    #[test]
    fn outbound_never_leads_back_into_the_proxy() {
        for own in [
            "10.0.0.5:4140",
            "10.0.0.5:4143",
            "10.0.0.5:4191",
            "[fd00::5]:4143",
            "127.0.0.1:4140",
        ] {
            assert_eq!(
                outbound(led(own), &OwnPorts::default(), is_own),
                Err(Refusal::OwnPort(at(own)))
            );
        }
    }

    #[test]
    fn a_connection_straight_to_the_proxy_is_a_loop() {
        for own in ["127.0.0.1:4140", "10.0.0.5:4143"] {
            let direct = Original::Direct(at(own));
            assert_eq!(
                outbound(direct, &OwnPorts::default(), is_own),
                Err(Refusal::OwnPort(at(own)))
            );
            assert_eq!(
                inbound(direct, &OwnPorts::default(), is_own),
                Err(Refusal::OwnPort(at(own)))
            );
        }
    }

    #[test]
    fn a_listener_elsewhere_says_that_nothing_was_redirected() {
        let direct = Original::Direct(at("127.0.0.1:5000"));
        assert_eq!(
            outbound(direct, &OwnPorts::default(), is_own),
            Err(Refusal::NotRedirected(at("127.0.0.1:5000")))
        );
    }

    #[test]
    fn inbound_leads_to_the_address_of_the_pod_that_the_caller_meant() {
        for meant in ["10.0.0.5:50051", "[fd00::5]:50051"] {
            assert_eq!(inbound(led(meant), &OwnPorts::default(), is_own), Ok(at(meant)));
        }
    }

    #[test]
    fn a_neighbour_cannot_go_through_this_pod() {
        for other in ["10.0.0.6:50051", "[fd00::6]:50051", "169.254.169.254:80"] {
            assert_eq!(
                inbound(led(other), &OwnPorts::default(), is_own),
                Err(Refusal::NotThisPod(at(other)))
            );
        }
    }

    #[test]
    fn what_listens_on_loopback_alone_stays_unreachable_from_the_network() {
        for loopback in ["127.0.0.1:50051", "127.1.2.3:50051", "[::1]:50051"] {
            // Not even if somebody believes that loopback is the pod's own.
            assert_eq!(
                inbound(led(loopback), &OwnPorts::default(), |_| true),
                Err(Refusal::Loopback(at(loopback)))
            );
        }
    }

    #[test]
    fn inbound_never_leads_into_the_proxy() {
        for own in ["10.0.0.5:4140", "10.0.0.5:4143", "[fd00::5]:4191"] {
            assert_eq!(
                inbound(led(own), &OwnPorts::default(), is_own),
                Err(Refusal::OwnPort(at(own)))
            );
        }
    }

    #[test]
    fn addresses_of_no_host_lead_nowhere() {
        for none in [
            "0.0.0.0:80",
            "[::]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "255.255.255.255:80",
            "10.0.0.5:0",
        ] {
            assert_eq!(
                outbound(led(none), &OwnPorts::default(), |_| true),
                Err(Refusal::NoHost(at(none)))
            );
            assert_eq!(
                inbound(led(none), &OwnPorts::default(), |_| true),
                Err(Refusal::NoHost(at(none)))
            );
        }
    }
}
