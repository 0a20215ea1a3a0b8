//! Listens to both sides of an undeclared connection until one of them has said what is spoken.
//!
//! ```text
//!   the client says enough ──────────────────────────────▶ what it said: HTTP/2, HTTP/1, TLS, anything else
//!   the client is silent for 200 ms ─▶ the upstream connection is opened, and both are listened to:
//!        the client says enough ─────────────────────────▶ what it said
//!        the server says SETTINGS ───────────────────────▶ goes on waiting for the client
//!        the server says anything else ──────────────────▶ opaque
//!        either ends its side ───────────────────────────▶ opaque: the tunnel passes the end on
//! ```
//!
//! The timer opens a connection; it never decides what the client speaks. A gRPC client may be silent for as long as its
//! server lets it. Where the server is known to speak first, the timer is shorter ([`Expected`]); but what the client has
//! said by then is heard before (inside TLS: what has been read of it).

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::Poll,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::{Instant, sleep_until},
};

use super::{
    Declared, Detected, Error, Expected, Guess, MOST_FIRST_BYTES, Opened, PREFACE, Protocol, ServerOpening, Settings,
    Verdict, classify, client_hello::HANDSHAKE_RECORD, server_opening,
};
use crate::connect::Stream;
use crate::waiting::Waiting;

/// Finds out what `client` carries. `dial` opens the connection to its original destination, if it is needed to listen
/// to the server; when that is, `expected` says. When a tunnel is decided while a dial is under way, its
/// end is awaited, so `dial` must have a deadline of its own.
///
/// Reads at most [`MOST_FIRST_BYTES`] of each side; all that was read is in the result. Dropping the future closes the
/// upstream connection.
///
/// # Errors
/// When the connection ends here. Where a server refused or reset, and where the reason is ours, a TCP `client` is left so
/// that dropping it resets it.
pub async fn detect<E: std::error::Error + 'static>(
    mut client: impl Speaker,
    declared: Declared,
    expected: Expected,
    dial: impl AsyncFnOnce() -> Result<Stream, E>,
    waiting: &Waiting,
    settings: &Settings,
) -> Result<Detected, Error<E>> {
    let server_may_speak_first = match declared {
        Declared::Http2 => return Ok(Detected::declared(Protocol::Http2)),
        Declared::Opaque => return Ok(Detected::declared(Protocol::Opaque)),
        Declared::Http | Declared::GrpcWeb | Declared::Tls => false,
        Declared::Nothing => true,
    };
    let expected = server_may_speak_first.then_some(expected);
    let listened = listen(&mut client, expected, dial, waiting, settings).await;
    if let Err(Error::Dial(_) | Error::Upstream(_) | Error::Crowded) = &listened {
        client.refuse();
    }
    listened
}

async fn listen<E: std::error::Error + 'static>(
    client: &mut impl Speaker,
    expected: Option<Expected>,
    dial: impl AsyncFnOnce() -> Result<Stream, E>,
    waiting: &Waiting,
    settings: &Settings,
) -> Result<Detected, Error<E>> {
    let place = waiting.enter();
    let mut dialling = pin!(dial());
    let mut server = Server::Undialled;
    let mut said = Vec::new();
    // Never, where no server speaks first.
    let mut silence_ends = expected.map(|expected| Instant::now() + settings.silence_of(expected));
    let mut dribble_ends = None;

    let (protocol, guess) = loop {
        let may_dial = silence_ends.is_some() && matches!(server, Server::Undialled) && said.is_empty();
        let alarm = if may_dial { silence_ends } else { dribble_ends };

        tokio::select! {
            // The client first: what it says is surer than what its server does.
            biased;

            heard = client.hear(&mut said) => match heard {
                Ok(0) => break (Protocol::Opaque, Guess::ClientClosed),
                Ok(_) => match decided(classify(&said)) {
                    Some(protocol) => break (protocol, server.guess_for_client()),
                    None => dribble_ends = dribble_ends.or(Some(Instant::now() + settings.dribble)),
                },
                Err(gone) => {
                    server.reset();
                    return Err(Error::Client(gone));
                }
            },

            opened = &mut dialling, if matches!(server, Server::Dialled) => {
                let socket = opened.map_err(Error::Dial)?;
                server = Server::Open(Opened { socket, server_bytes: Vec::new() });
            }

            heard = server.hear() => match heard.map_err(Error::Upstream)? {
                0 => break (Protocol::Opaque, Guess::ServerClosed),
                _ => match server.opening() {
                    ServerOpening::Opaque => break (Protocol::Opaque, Guess::ServerFirst),
                    ServerOpening::NeedMore => dribble_ends = dribble_ends.or(Some(Instant::now() + settings.dribble)),
                    ServerOpening::Settings if said.is_empty() => dribble_ends = None,
                    ServerOpening::Settings => {}
                },
            },

            () = ring(alarm) => match may_dial {
                // The event loop has not told of it yet, and will.
                true if client.has_spoken().map_err(Error::Client)? => silence_ends = None,
                true => server = Server::Dialled,
                false if !said.is_empty() && PREFACE.starts_with(&said) => {
                    return Err(Error::Dribble { bytes: said.len(), within: settings.dribble });
                }
                // It might be meant for us, and whoever it is meant for would not wait either.
                false if said.first() == Some(&HANDSHAKE_RECORD) => {
                    return Err(Error::HalfHello { bytes: said.len(), within: settings.dribble });
                }
                false => break (Protocol::Opaque, Guess::Incomplete),
            },

            () = place.needed() => {
                server.reset();
                return Err(Error::Crowded);
            }
        }
    };
    drop(place);

    let upstream = match server {
        Server::Undialled => None,
        Server::Dialled if protocol == Protocol::Http2 => None,
        Server::Dialled => Some(Opened {
            socket: dialling.await.map_err(Error::Dial)?,
            server_bytes: Vec::new(),
        }),
        Server::Open(opened) => Some(opened),
    };
    Ok(Detected {
        protocol,
        guess,
        client_bytes: said,
        upstream,
    })
}

impl Detected {
    fn declared(protocol: Protocol) -> Detected {
        Detected {
            protocol,
            guess: Guess::Declared,
            client_bytes: Vec::new(),
            upstream: None,
        }
    }
}

impl Detected {
    /// The same, where something was declared all the same: whatever the first bytes resemble, it is that.
    pub fn as_declared(self, declared: Declared) -> Detected {
        let protocol = match declared {
            Declared::Opaque => Protocol::Opaque,
            Declared::Http2 => Protocol::Http2,
            Declared::Nothing | Declared::Http | Declared::GrpcWeb | Declared::Tls => return self,
        };
        Detected {
            protocol,
            guess: Guess::Declared,
            ..self
        }
    }
}

/// How far the upstream connection is.
enum Server {
    Undialled,
    Dialled,
    Open(Opened),
}

impl Server {
    /// Bytes or the end from the server; never, while there is nothing to hear or it has said all that we keep.
    async fn hear(&mut self) -> io::Result<usize> {
        match self {
            Server::Open(opened) if opened.server_bytes.len() < MOST_FIRST_BYTES => {
                (&mut opened.socket).hear(&mut opened.server_bytes).await
            }
            Server::Undialled | Server::Dialled | Server::Open(_) => std::future::pending().await,
        }
    }

    fn opening(&self) -> ServerOpening {
        match self {
            Server::Undialled | Server::Dialled => ServerOpening::NeedMore,
            Server::Open(opened) => server_opening(&opened.server_bytes),
        }
    }

    fn guess_for_client(&self) -> Guess {
        match self {
            Server::Undialled | Server::Dialled => Guess::ClientFirst,
            Server::Open(opened) if opened.server_bytes.is_empty() => Guess::ClientAfterSilence,
            Server::Open(_) => Guess::ClientAfterSettings,
        }
    }

    fn reset(&self) {
        if let Server::Open(opened) = self {
            // Fails only where the server is gone already.
            let _ = opened.socket.socket().set_zero_linger();
        }
    }
}

fn decided(verdict: Verdict) -> Option<Protocol> {
    match verdict {
        Verdict::NeedMore => None,
        Verdict::Http2 => Some(Protocol::Http2),
        Verdict::Http1 => Some(Protocol::Http1),
        Verdict::Tls(hello) => Some(Protocol::Tls(hello)),
        Verdict::Opaque => Some(Protocol::Opaque),
    }
}

/// Whom we listen to: a TCP connection (`&TcpStream`), or any stream that was decrypted from one (`&mut S`).
pub trait Speaker {
    /// Appends what comes next, at most until [`MOST_FIRST_BYTES`] are there; 0 is the end. Nothing is lost when the
    /// future is dropped before it is done.
    fn hear(&mut self, said: &mut Vec<u8>) -> impl Future<Output = io::Result<usize>>;

    /// Whether there is something to hear, its end too, that [`Speaker::hear`] has not been woken for.
    ///
    /// # Errors
    /// When it is gone.
    fn has_spoken(&self) -> io::Result<bool>;

    /// Leaves it so that dropping it resets it, if it is able to.
    fn refuse(&self);
}

impl Speaker for &TcpStream {
    async fn hear(&mut self, said: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            self.readable().await?;
            match take(said, |room| self.try_read(room)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                heard => return heard,
            }
        }
    }

    fn has_spoken(&self) -> io::Result<bool> {
        match SockRef::from(*self).peek(&mut [MaybeUninit::uninit()]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(gone) => Err(gone),
        }
    }

    fn refuse(&self) {
        // Fails only where the client is gone already.
        let _ = self.set_zero_linger();
    }
}

impl<S: AsyncRead + Unpin> Speaker for &mut S {
    async fn hear(&mut self, said: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|cx| {
            let heard = take(said, |room| {
                let mut room = ReadBuf::new(room);
                match Pin::new(&mut **self).poll_read(cx, &mut room) {
                    Poll::Ready(read) => read.map(|()| room.filled().len()),
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            });
            match heard {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
                heard => Poll::Ready(heard),
            }
        })
        .await
    }

    /// Whoever decrypts was asked last of all, and holds back nothing.
    fn has_spoken(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn refuse(&self) {}
}

/// Appends what is here. It comes by way of the stack: the memory is that of the bytes, however many say little at once.
fn take(said: &mut Vec<u8>, read: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
    let mut bytes = [0; A_READ];
    let room = MOST_FIRST_BYTES.saturating_sub(said.len()).min(A_READ);
    let heard = read(&mut bytes[..room])?;
    said.reserve_exact(heard);
    said.extend_from_slice(&bytes[..heard]);
    Ok(heard)
}

async fn ring(alarm: Option<Instant>) {
    match alarm {
        // A timer of tokio's is late by up to a millisecond.
        Some(at) if at <= Instant::now() => {}
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// More than any client's first flight without requests; what else it sent stays in its socket.
const A_READ: usize = 4 << 10;

#[cfg(test)]
mod tests;
