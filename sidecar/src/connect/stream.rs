//! A connection that carries bytes, plain or in the mesh's TLS.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::dialled::Mine;
use crate::accept::Options;
use crate::{tls, tunnel};

/// What a tunnel has at one of its ends.
pub struct Stream {
    /// Told before the socket is closed.
    _mine: Option<Box<Mine>>,
    kind: Kind,
    judged: Option<Judged>,
}

/// Hears what the server made of our certificate: `ok`, or the reason of its refusal.
type Judged = Box<dyn FnOnce(&'static str)>;

enum Kind {
    /// As it is.
    Plain(TcpStream),
    /// Inside the mesh's TLS.
    Tls(Box<tls::Stream>),
}

impl Stream {
    /// Bytes as they are.
    pub fn plain(socket: TcpStream) -> Stream {
        Stream {
            _mine: None,
            kind: Kind::Plain(socket),
            judged: None,
        }
    }

    /// Bytes inside the mesh's TLS.
    pub fn tls(stream: tls::Stream) -> Stream {
        Stream {
            _mine: None,
            kind: Kind::Tls(Box::new(stream)),
            judged: None,
        }
    }

    /// It is one that was dialled here.
    pub fn dialled(self, mine: Box<Mine>) -> Stream {
        Stream {
            _mine: Some(mine),
            ..self
        }
    }

    /// Tells what the server made of our certificate, which in TLS 1.3 it may refuse when the handshake is over for us: it
    /// has taken it once it says something, or ends in order. Never, where we end the connection before.
    pub fn when_judged(self, told: impl FnOnce(&'static str) + 'static) -> Stream {
        Stream {
            judged: Some(Box::new(told)),
            ..self
        }
    }

    /// When the first of the two certificates ends that its TLS was made with.
    pub fn certified_until(&self) -> Option<SystemTime> {
        match &self.kind {
            Kind::Plain(_) => None,
            Kind::Tls(stream) => Some(stream.certified_until()),
        }
    }

    /// The TCP connection below.
    pub fn socket(&self) -> &TcpStream {
        match &self.kind {
            Kind::Plain(socket) => socket,
            Kind::Tls(stream) => stream.socket(),
        }
    }
}

impl tunnel::Stream for Stream {
    fn set_options(&self, options: &Options) {
        self.socket().set_options(options);
    }

    fn reset(self) {
        // Fails only where the peer is gone already.
        let _ = self.socket().set_zero_linger();
    }

    async fn broken(&self) -> io::ErrorKind {
        self.socket().broken().await
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Plain(socket) => socket.fmt(f),
            Kind::Tls(stream) => write!(f, "mTLS with {}", stream.peer().id()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = match &mut this.kind {
            Kind::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Kind::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        };
        if let Poll::Ready(read) = &read
            && let Some(told) = this.judged.take()
        {
            told(verdict(read));
        }
        read
    }
}

/// The reason where a server ended the connection behind the handshake, and said nothing.
pub const NO_WORD: &str = "refused_by_peer";

/// What a server has said of our certificate by what came first from it.
fn verdict(first: &io::Result<()>) -> &'static str {
    let Err(error) = first else { return "ok" };
    match tls::Error::within(error) {
        None | Some(tls::Error::Truncated | tls::Error::Io(_)) => NO_WORD,
        Some(why) => why.reason(),
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Kind::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Kind::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
