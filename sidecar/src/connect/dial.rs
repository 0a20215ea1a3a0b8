//! Opens a TCP connection, within a time, to an address that is not a name.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::accept;

/// How connections are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long an answer to the first packet may take. Default 1 s: the kernel's first retry is part of it.
    pub timeout: Duration,
    /// Options of the socket.
    pub socket: accept::Options,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timeout: Duration::from_secs(1),
            socket: accept::Options::default(),
        }
    }
}

/// Why an address was not reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel, or the peer's, said no.
    #[error("cannot connect to {addr}: {source}")]
    Refused {
        /// Who was called.
        addr: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// Nobody answered.
    #[error("cannot connect to {addr}: no answer in {timeout:?}")]
    Silent {
        /// Who was called.
        addr: SocketAddr,
        /// How long we waited.
        timeout: Duration,
    },
}

/// Connects to `addr`.
pub async fn dial(addr: SocketAddr, settings: &Settings) -> Result<TcpStream, Error> {
    let refused = |source| Error::Refused { addr, source };
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
    .map_err(refused)?;
    settings.socket.set(&socket).map_err(refused)?;
    match tokio::time::timeout(settings.timeout, socket.connect(addr)).await {
        Ok(connected) => connected.map_err(refused),
        Err(_) => Err(Error::Silent {
            addr,
            timeout: settings.timeout,
        }),
    }
}
