//! Takes a connection and learns where it was going.
//!
//! A listener belongs to one worker ([`listen`]); [`accept`] takes its next connection and asks the kernel for the
//! original destination ([`Original`]). Where that may lead is decided by [`outbound`] and [`inbound`], which know the
//! pod's addresses ([`PodAddresses`]) and the proxy's ports, and refuse with a reason ([`Refusal`]).

mod addresses;
mod destination;
mod listener;
mod options;
mod original_dst;

use std::{io, net::SocketAddr, time::Duration};

pub use addresses::PodAddresses;
pub use destination::{OwnPorts, Refusal, inbound, outbound};
pub use listener::{Accepted, accept, listen};
pub use options::Options;
pub use original_dst::Original;

/// How connections are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Connections that the kernel completes and keeps for us until we take them (`net.core.somaxconn` caps it).
    /// Default 4,096.
    pub backlog: u32,
    /// How long to leave the listener alone when there is no descriptor or memory for another connection. Default 50 ms.
    pub pause: Duration,
    /// The socket options of every accepted connection.
    pub options: Options,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            backlog: 4_096,
            pause: Duration::from_millis(50),
            options: Options::default(),
        }
    }
}

/// Why connections cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else listens there.
    #[error("port {port} is taken: another process listens on {addr}; stop it or give this one another port", port = addr.port())]
    Taken {
        /// Where we wanted to listen.
        addr: SocketAddr,
    },
    /// Ports below `net.ipv4.ip_unprivileged_port_start` need a capability.
    #[error("may not listen on {addr}: ports this low need CAP_NET_BIND_SERVICE; use a port above 1023")]
    NotPermitted {
        /// Where we wanted to listen.
        addr: SocketAddr,
    },
    /// No interface has the address.
    #[error("cannot listen on {addr}: this host has no address {ip}", ip = addr.ip())]
    NoSuchAddress {
        /// Where we wanted to listen.
        addr: SocketAddr,
    },
    /// Any other reason not to listen.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where we wanted to listen.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No descriptor or memory for another connection; the pause is over, and the next call tries again.
    #[error(
        "no room for another connection ({source}); waiting connections stay in the backlog; raise the limit of open files"
    )]
    Starved {
        /// What the kernel said.
        source: io::Error,
    },
    /// The listener itself is of no use any more.
    #[error("the listener failed: {source}")]
    Listener {
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Whether the listener goes on, so that the next [`accept`] may well succeed.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Starved { .. } => true,
            Error::Taken { .. }
            | Error::NotPermitted { .. }
            | Error::NoSuchAddress { .. }
            | Error::Listen { .. }
            | Error::Listener { .. } => false,
        }
    }
}
