//! Opens a connection, within a time, to an address that is not a name: plain, or in the mesh's TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use portunus_proto::SpiffeId;
use tokio::net::{TcpSocket, TcpStream};

use super::pool::Via;
use super::stream::Stream;
use super::wire::Transport;
use crate::accept;
use crate::tls::{self, Alpn, Credential};

/// How connections are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long an answer to the first packet may take. Default 1 s: the kernel's first retry is part of it.
    pub timeout: Duration,
    /// How long the TLS handshake behind it may take. Default 2 s.
    pub handshake: Duration,
    /// Options of the socket.
    pub socket: accept::Options,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            timeout: Duration::from_secs(1),
            handshake: Duration::from_secs(2),
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
    /// Whoever is there, and we, do not accept each other.
    #[error("no mTLS with {identity} at {addr}: {source}")]
    Tls {
        /// Who was called.
        addr: SocketAddr,
        /// Who should be there.
        identity: SpiffeId,
        /// What went wrong.
        source: tls::Error,
    },
    /// We have nothing to show.
    #[error("{identity} at {addr} is called in mTLS alone, and this sidecar has no valid certificate: see /ready")]
    NoCertificate {
        /// Who was called.
        addr: SocketAddr,
        /// Who should be there.
        identity: SpiffeId,
    },
}

impl Error {
    /// One word, for a metric.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Refused { .. } => "refused",
            Error::Silent { .. } => "silent",
            Error::Tls { source, .. } => source.reason(),
            Error::NoCertificate { .. } => "no_own_certificate",
        }
    }
}

/// What this sidecar proves itself by, as it is now: nothing while it has no certificate that is valid.
pub type Own = Arc<ArcSwapOption<Credential>>;

/// Opens connections as their destinations demand.
#[derive(Clone)]
pub struct Dialler {
    settings: Settings,
    own: Own,
}

impl Dialler {
    /// One that proves itself by `own`, where a destination has an identity.
    pub fn new(settings: Settings, own: Own) -> Dialler {
        Dialler { settings, own }
    }

    /// Opens a connection that HTTP/2 is spoken on.
    ///
    /// # Errors
    /// When nobody answers, or not the one who should be there.
    pub async fn dial(self, addr: SocketAddr, via: Via) -> Result<Transport, Error> {
        let socket = dial(addr, &self.settings).await?;
        match via {
            Via::Own | Via::Plain => Ok(Transport::Socket(socket)),
            Via::Mesh(identity) => {
                let (socket, session) = self.shake_hands(socket, addr, identity, Alpn::H2).await?;
                Ok(Transport::Tls(socket, Box::new(session)))
            }
        }
    }

    /// Opens a connection that carries bytes.
    ///
    /// # Errors
    /// When nobody answers, or not the one who should be there.
    pub async fn open(&self, addr: SocketAddr, via: Via) -> Result<Stream, Error> {
        let socket = dial(addr, &self.settings).await?;
        match via {
            Via::Own | Via::Plain => Ok(Stream::Plain(socket)),
            Via::Mesh(identity) => {
                let (socket, session) = self.shake_hands(socket, addr, identity, Alpn::Tcp).await?;
                Ok(Stream::Tls(Box::new(tls::Stream::new(socket, session))))
            }
        }
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        addr: SocketAddr,
        identity: SpiffeId,
        alpn: Alpn,
    ) -> Result<(TcpStream, tls::Session), Error> {
        let Some(own) = self.own.load_full() else {
            return Err(Error::NoCertificate { addr, identity });
        };
        let shaken = tls::connect(socket, &own, &identity, alpn, self.settings.handshake).await;
        shaken.map_err(|source| Error::Tls { addr, identity, source })
    }
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
