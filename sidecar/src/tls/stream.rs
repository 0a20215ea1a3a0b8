//! A session with its socket, for tunnels: bytes in and out, and the end of each direction.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::engine::Engine;
use super::error::Error;
use super::peer::Peer;
use super::session::{LEAST_BUFFER, Session};
use super::socket::read_once;

/// The most that is sealed at once: four full records.
const MOST_SEALED: usize = 64 * 1024;

/// A TLS connection as a stream of bytes.
///
/// The peer's `close_notify` is the end of what is read; an end of the connection without it is an error
/// (`UnexpectedEof`), because what came may not be all. An alert is `PermissionDenied` as long as it may be about our
/// certificate, and `InvalidData` from then on. Shutting down sends `close_notify`, then ends the socket's
/// side.
pub struct Stream {
    socket: TcpStream,
    session: Session,
    /// Plaintext that the reader had no room for.
    unread: Vec<u8>,
    taken: usize,
    /// The peer has taken our certificate: what it ends the connection for from then on is no refusal of that.
    judged: bool,
}

impl Stream {
    /// Joins what a handshake gave.
    pub fn new(socket: TcpStream, session: Session) -> Stream {
        // A client has judged us before its side of the handshake ends, a server may not have.
        let judged = matches!(session.engine, Engine::Server(_));
        Stream {
            judged,
            socket,
            session,
            unread: Vec::new(),
            taken: 0,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        self.session.peer()
    }

    /// When the first of the two certificates ends that it was made with.
    pub fn certified_until(&self) -> SystemTime {
        self.session.certified_until()
    }

    /// The socket, for its options and addresses.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Takes it apart; plaintext that was not read yet comes with it.
    pub fn into_parts(mut self) -> (TcpStream, Session, Vec<u8>) {
        self.unread.drain(..self.taken);
        (self.socket, self.session, self.unread)
    }

    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.session.output().is_empty() {
            let n = ready!(Pin::new(&mut self.socket).poll_write(cx, self.session.output()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.session.sent(n);
        }
        Poll::Ready(Ok(()))
    }

    fn take_unread(&mut self, into: &mut ReadBuf<'_>) {
        let unread = &self.unread[self.taken..];
        let n = unread.len().min(into.remaining());
        into.put_slice(&unread[..n]);
        self.taken += n;
        if self.taken == self.unread.len() {
            (self.unread, self.taken) = (Vec::new(), 0);
        }
    }

    /// One read into a buffer, and whether it was the end. Pending once the socket has nothing.
    fn poll_open(
        socket: &TcpStream,
        session: &mut Session,
        buffer: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, Error>> {
        loop {
            let opened = session.read(buffer, |room| read_once(socket, room))?;
            if opened.plain > 0 || opened.ended {
                return Poll::Ready(Ok(opened.plain));
            }
            ready!(socket.poll_read_ready(cx))?;
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.unread.is_empty() {
            this.take_unread(into);
            return Poll::Ready(Ok(()));
        }
        let opened = if into.remaining() >= LEAST_BUFFER {
            let buffer = into.initialize_unfilled();
            let opened = Stream::poll_open(&this.socket, &mut this.session, buffer, cx);
            if let Poll::Ready(Ok(n)) = opened {
                into.advance(n);
            }
            opened
        } else {
            let mut buffer = vec![0; LEAST_BUFFER];
            let opened = Stream::poll_open(&this.socket, &mut this.session, &mut buffer, cx);
            if let Poll::Ready(Ok(n)) = opened
                && n > 0
            {
                buffer.truncate(n);
                this.unread = buffer;
                this.take_unread(into);
            }
            opened
        };
        // An answer to the peer's KeyUpdate, or the alert for what it broke. If the socket is full, the next write
        // has it.
        let flushed = this.poll_output(cx);
        match opened {
            Poll::Ready(Ok(_)) => {
                this.judged = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error @ Error::ByPeer(_))) if this.judged => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Pending => match flushed {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_output(cx))?;
        let n = bytes.len().min(MOST_SEALED);
        this.session.seal(&bytes[..n])?;
        // It is ours now: what the socket does not take at once goes before the next bytes, or with the flush.
        match this.poll_output(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_output(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.session.close();
        ready!(this.poll_output(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
