//! Handshakes: from a socket to a session, in bounded time and memory.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use portunus_proto::SpiffeId;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::credential::{Credential, nothing_to_show};
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
/// What one may have waiting that is not asked how much others have: more than an honest flight.
const HONEST_WAITING: usize = 8 * 1024;
/// The most that waits beyond that, of all handshakes of this process together. Who has proven nothing must not fill the
/// memory, by very many handshakes that each have sent the most that one may.
const MOST_BEYOND: usize = 8 * 1024 * 1024;
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

/// Ends the handshake of one that calls us when we have no certificate to show, and says so: by the alert that rustls has for
/// that, which a caller of this mesh knows as [`Error::NothingToShow`]. No later than `within`, and 400 ms for the alert.
pub async fn turn_away(socket: TcpStream, first: Vec<u8>, within: Duration) {
    let Ok(connection) = UnbufferedServerConnection::new(nothing_to_show()) else {
        return;
    };
    let mut handshake = Handshake::new(socket, Engine::Server(Box::new(connection)), first);
    if let Ok(Err(_)) = timeout(within, handshake.shake()).await {
        handshake.say_why().await;
    }
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
    beyond: Beyond,
}

/// What the handshakes of this process have waiting beyond [`HONEST_WAITING`] each.
static BEYOND: AtomicUsize = AtomicUsize::new(0);

/// How much of that is one handshake's.
struct Beyond {
    all: &'static AtomicUsize,
    own: usize,
}

impl Beyond {
    fn of(all: &'static AtomicUsize) -> Beyond {
        Beyond { all, own: 0 }
    }

    /// So much is waiting, and more is about to be read: whether there is room for that.
    fn has_room(&mut self, waiting: usize) -> bool {
        let own = (waiting + READ_ROOM).saturating_sub(HONEST_WAITING);
        if own <= self.own {
            self.all.fetch_sub(self.own - own, Relaxed);
            self.own = own;
            return true;
        }
        let more = own - self.own;
        self.own = own;
        self.all.fetch_add(more, Relaxed) + more <= MOST_BEYOND
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Relaxed);
    }
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
            beyond: Beyond::of(&BEYOND),
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
            // It has not said its hello, so nothing of ours was judged.
            (Err(Error::ByPeer(alert)), _)
                if alert.is_access_denied() && self.engine.state().protocol_version().is_none() =>
            {
                Err(Error::NothingToShow)
            }
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
        let waiting = self.incoming.len();
        if waiting >= MOST_WAITING || self.read >= MOST_IN_ALL || !self.beyond.has_room(waiting) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_handshakes_keep_little_more_than_honest_ones_and_honest_ones_are_none_the_worse_for_them() {
        static ALL: AtomicUsize = AtomicUsize::new(0);
        let mut greedy = Vec::new();
        for _ in 0..5_000 {
            let (mut one, mut waiting) = (Beyond::of(&ALL), 0);
            while waiting < MOST_WAITING && one.has_room(waiting) {
                waiting += READ_ROOM;
            }
            // One for which there was no room is ended.
            if waiting >= MOST_WAITING {
                greedy.push((one, waiting));
            }
        }
        let waiting: usize = greedy.iter().map(|(_, waiting)| waiting).sum();
        assert!(
            waiting > MOST_BEYOND / 2,
            "while there is room, each has the most that one may"
        );
        assert!(
            waiting <= MOST_BEYOND + greedy.len() * HONEST_WAITING,
            "{waiting} bytes"
        );
        let mut honest = Beyond::of(&ALL);
        for waiting in [0, 300, 4_000, 0, 2_000] {
            assert!(honest.has_room(waiting));
        }
        assert!(!honest.has_room(20_000));
        assert!(honest.has_room(100), "and who takes up what was waiting goes on");
        drop((greedy, honest));
        assert_eq!(ALL.load(Relaxed), 0);
    }
}
