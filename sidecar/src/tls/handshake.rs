//! Handshakes: from a socket to a session, in bounded time and memory.

use std::io;
use std::time::Duration;

use portunus_proto::SpiffeId;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::credential::Credential;
use super::engine::{Engine, Step};
use super::error::Error;
use super::output::Output;
use super::peer::Shown;
use super::session::{Alpn, Session};
use super::socket::linger;
use super::verify::Verifier;

/// What one read takes.
const READ_ROOM: usize = 4 * 1024;
/// The most that waits to be understood. rustls allows a message 64 KiB; an honest flight has 5 KiB.
const MOST_WAITING: usize = 72 * 1024;
/// The most that a handshake may send us in all.
const MOST_IN_ALL: usize = 128 * 1024;
/// How long a peer that was refused has to read why.
const LINGER: Duration = Duration::from_millis(200);
/// rustls wants a name for the server, and neither sends nor checks it: an identity is what we go by.
pub(super) const NO_NAME: &str = "portunus.invalid";

/// Shakes hands with one that calls us. `first` has the bytes that were read from the socket already.
///
/// The caller has to show a certificate of our trust domain. After a refusal the caller is told why, by an alert,
/// which may take 400 ms more.
///
/// # Errors
/// When we refuse the caller, it refuses us, or it does not finish within the time.
pub async fn accept(
    socket: TcpStream,
    first: Vec<u8>,
    credential: &Credential,
    within: Duration,
) -> Result<(TcpStream, Session), Error> {
    let (config, verifier) = credential.for_caller();
    let connection = UnbufferedServerConnection::new(config).map_err(Error::of)?;
    Handshake::new(socket, Engine::Server(Box::new(connection)), first)
        .finish(&verifier, credential, within)
        .await
}

/// Shakes hands with a server, which has to be `expected` and nobody else.
///
/// When this returns, the server may not have judged our certificate yet (RFC 8446, 4.4.4): only its first bytes say
/// that it has; its refusal comes from the session's first read, as [`Error::ByPeer`].
///
/// # Errors
/// When we refuse the server, it refuses us, or it does not finish within the time.
pub async fn connect(
    socket: TcpStream,
    credential: &Credential,
    expected: &SpiffeId,
    alpn: Alpn,
    within: Duration,
) -> Result<(TcpStream, Session), Error> {
    let (config, verifier) = credential.for_server(expected);
    let name = ServerName::try_from(NO_NAME).expect("it is a DNS name");
    let protocols = vec![alpn.protocol().to_vec()];
    let connection = UnbufferedClientConnection::new_with_alpn(config, name, protocols).map_err(Error::of)?;
    Handshake::new(socket, Engine::Client(Box::new(connection)), Vec::new())
        .finish(&verifier, credential, within)
        .await
}

struct Handshake {
    socket: TcpStream,
    engine: Engine,
    output: Output,
    /// Bytes of the peer's that were not used up.
    incoming: Vec<u8>,
    /// Plaintext that came behind the peer's last message.
    early: Vec<u8>,
    /// Whether the peer has ended its side already.
    ended: bool,
    read: usize,
}

impl Handshake {
    fn new(socket: TcpStream, engine: Engine, first: Vec<u8>) -> Handshake {
        Handshake {
            socket,
            engine,
            output: Output::default(),
            read: first.len(),
            incoming: first,
            early: Vec::new(),
            ended: false,
        }
    }

    async fn finish(
        mut self,
        verifier: &Verifier,
        credential: &Credential,
        within: Duration,
    ) -> Result<(TcpStream, Session), Error> {
        let finished = match timeout(within, self.shake()).await {
            Ok(finished) => finished,
            Err(_) => return Err(Error::TooSlow(within)),
        };
        let agreed = match (finished, verifier.take_verdict()) {
            (_, Some(Err(refused))) => Err(refused.into()),
            (Err(error), _) => Err(error),
            (Ok(()), None) => Err(Error::Protocol("nobody judged the peer's certificate".to_owned())),
            (Ok(()), Some(Ok(peer))) => match Alpn::of(self.engine.state().alpn_protocol()) {
                Some(alpn) => Ok((peer, alpn)),
                None => Err(Error::NoProtocol),
            },
        };
        match agreed {
            Ok((peer, alpn)) => {
                let shown = Shown {
                    id: credential.id().clone(),
                    not_after: credential.not_after(),
                };
                let session = Session::new(self.engine, peer, shown, alpn, self.early, self.ended, self.incoming);
                Ok((self.socket, session))
            }
            Err(error) => {
                self.say_why().await;
                Err(error)
            }
        }
    }

    /// Until both sides have finished, all of ours is sent, and all that came is opened.
    async fn shake(&mut self) -> Result<(), Error> {
        loop {
            let (discard, step) = self.engine.step(&mut self.incoming, &mut self.output);
            self.incoming.drain(..discard);
            match step.map_err(Error::of)? {
                Step::Again => {}
                Step::Flush => self.flush().await?,
                Step::Plain => {
                    let early = &mut self.early;
                    self.engine.plain(|bytes| early.extend_from_slice(bytes));
                }
                Step::Ready if !self.engine.state().is_handshaking() => return self.flush().await,
                Step::Ready | Step::Blocked => {
                    self.flush().await?;
                    self.fill().await?;
                }
                Step::Ended => self.ended = true,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Error> {
        while !self.output.pending().is_empty() {
            let n = self.socket.write(self.output.pending()).await?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            self.output.sent(n);
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<(), Error> {
        if self.incoming.len() >= MOST_WAITING || self.read >= MOST_IN_ALL {
            return Err(Error::TooLong);
        }
        self.incoming.reserve(READ_ROOM);
        let n = (&mut self.socket)
            .take(READ_ROOM as u64)
            .read_buf(&mut self.incoming)
            .await?;
        if n == 0 {
            return Err(Error::Truncated);
        }
        self.read += n;
        Ok(())
    }

    /// Sends the alert, if there is one, and lets the peer read it.
    async fn say_why(&mut self) {
        self.engine.alert(&mut self.output);
        // The peer is refused, whether it hears why or not.
        if let Ok(Ok(())) = timeout(LINGER, self.flush()).await {
            linger(&mut self.socket, LINGER).await;
        }
    }
}
