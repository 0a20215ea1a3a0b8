//! Opens a connection, within a time, to an address that is not a name: plain, or in the mesh's TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use portunus_proto::SpiffeId;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use super::dialled::{Dialled, Loop, Mine};
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
    /// It was we ourselves who answered.
    #[error("cannot connect to {addr}: {source}")]
    Loop {
        /// Who was called.
        addr: SocketAddr,
        /// Why that is.
        source: Loop,
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
            Error::Loop { .. } => "loop",
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
    dialled: Arc<Dialled>,
}

impl Dialler {
    /// One that proves itself by `own`, where a destination has an identity, and keeps in `dialled` what it has open.
    pub fn new(settings: Settings, own: Own, dialled: Arc<Dialled>) -> Dialler {
        Dialler { settings, own, dialled }
    }

    /// Whether a connection that arrived here is one that was dialled here: it is to be refused.
    pub fn takes_back(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.dialled.takes_back(from, to)
    }

    /// Opens a connection that HTTP/2 is spoken on.
    ///
    /// # Errors
    /// When nobody answers, or not the one who should be there.
    pub async fn dial(self, addr: SocketAddr, via: Via) -> Result<(Transport, Box<Mine>), Error> {
        let (socket, mine) = self.connect(addr).await?;
        match via {
            Via::Own | Via::Plain => Ok((Transport::Socket(socket), mine)),
            Via::Mesh(identity) => {
                let (socket, session) = self.shake_hands(socket, addr, identity, Alpn::H2, &mine).await?;
                Ok((Transport::Tls(socket, Box::new(session)), mine))
            }
        }
    }

    /// Opens a connection that carries bytes.
    ///
    /// # Errors
    /// When nobody answers, or not the one who should be there.
    pub async fn open(&self, addr: SocketAddr, via: Via) -> Result<Stream, Error> {
        let (socket, mine) = self.connect(addr).await?;
        let stream = match via {
            Via::Own | Via::Plain => Stream::plain(socket),
            Via::Mesh(identity) => {
                let (socket, session) = self.shake_hands(socket, addr, identity, Alpn::Tcp, &mine).await?;
                Stream::tls(tls::Stream::new(socket, session))
            }
        };
        Ok(stream.dialled(mine))
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        addr: SocketAddr,
        identity: SpiffeId,
        alpn: Alpn,
        mine: &Mine,
    ) -> Result<(TcpStream, tls::Session), Error> {
        let Some(own) = self.own.load_full() else {
            return Err(Error::NoCertificate { addr, identity });
        };
        let shaken = tls::connect(socket, &own, &identity, alpn, self.settings.handshake).await;
        shaken.map_err(|source| match mine.has_looped() {
            true => Error::Loop {
                addr,
                source: Loop::here(),
            },
            false => Error::Tls { addr, identity, source },
        })
    }

    /// Connects to `addr`.
    async fn connect(&self, addr: SocketAddr) -> Result<(TcpStream, Box<Mine>), Error> {
        let refused = |source| Error::Refused { addr, source };
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)).map_err(refused)?;
        self.settings.socket.set(&socket).map_err(refused)?;
        let (socket, mine) = self.dialled.connect(socket, addr).map_err(refused)?;
        let timeout = self.settings.timeout;
        match tokio::time::timeout(timeout, socket.writable()).await {
            Ok(connected) => connected.map_err(refused)?,
            Err(_) => return Err(Error::Silent { addr, timeout }),
        }
        match socket.take_error().map_err(refused)? {
            Some(source) => Err(refused(source)),
            None => Ok((socket, Box::new(mine))),
        }
    }
}
