//! h2 by hand: a connection of the crate in either role, over a pipe in memory, polled until it rests. No runtime, no time.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::peer::{Frame, frames_of};
use super::Act;
use crate::http2::connection::Role;
use crate::http2::frame::PREFACE;
use crate::http2::settings::Settings;

pub(super) struct Theirs {
    pipe: Pipe,
    conn: Conn,
    streams: BTreeMap<u32, Stream>,
}

enum Conn {
    Greeting(server::Handshake<Pipe, Bytes>),
    Server(server::Connection<Pipe, Bytes>),
    Client(client::Connection<Pipe, Bytes>, client::SendRequest<Bytes>),
    Over,
}

/// Handles are kept: h2 would reset streams that nobody wants any more.
struct Stream {
    respond: Option<server::SendResponse<Bytes>>,
    send: Option<SendStream<Bytes>>,
    _receive: Option<RecvStream>,
    _response: Option<client::ResponseFuture>,
}

/// Credit for the connection that nobody uses up, as our engine gives it: the windows of streams are what is compared.
const CONNECTION_WINDOW: u32 = 1 << 24;
/// Longer than any test: what h2 has reset, it ignores.
const FOR_EVER: Duration = Duration::from_secs(100_000);

impl Theirs {
    /// A connection that has said what it says first. A server has heard the preface.
    pub(super) fn new(role: Role, settings: &Settings) -> Theirs {
        let pipe = Pipe::default();
        let conn = match role {
            Role::Server => {
                pipe.0.borrow_mut().to_h2.extend(PREFACE);
                let shaking = server::Builder::new()
                    .initial_window_size(settings.first_stream_window)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_concurrent_streams(settings.max_concurrent_streams)
                    .reset_stream_duration(FOR_EVER)
                    .handshake(pipe.clone());
                Conn::Greeting(shaking)
            }
            Role::Client => {
                let shaking = pin!(
                    client::Builder::new()
                        .enable_push(false)
                        .initial_window_size(settings.first_stream_window)
                        .initial_connection_window_size(CONNECTION_WINDOW)
                        .reset_stream_duration(FOR_EVER)
                        .handshake(pipe.clone())
                );
                let Poll::Ready(Ok((ask, conn))) = shaking.poll(&mut context()) else {
                    panic!("h2 greets at once");
                };
                Conn::Client(conn, ask)
            }
        };
        let mut theirs = Theirs {
            pipe,
            conn,
            streams: BTreeMap::new(),
        };
        theirs.rest();
        theirs.said();
        theirs
    }

    /// The peer's bytes; what h2 says to them.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.pipe.0.borrow_mut().to_h2.extend(bytes);
        self.rest();
        self.said()
    }

    /// Whether h2 has closed the connection.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.conn, Conn::Over)
    }

    /// Does what the engine's owner has done. What h2 makes impossible is left undone: it shows in its next verdicts.
    pub(super) fn act(&mut self, act: Act) {
        match act {
            Act::Ask { end } => self.ask(end),
            Act::Answer { id, end } => {
                if let Some(stream) = self.streams.get_mut(&id)
                    && let Some(respond) = &mut stream.respond
                {
                    stream.send = respond.send_response(http::Response::new(()), end).ok();
                }
            }
            Act::Send { id, n, end } => {
                if let Some(send) = self.streams.get_mut(&id).and_then(|stream| stream.send.as_mut()) {
                    send.send_data(Bytes::from(vec![b'x'; n]), end).ok();
                }
            }
            Act::Reset { id } => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    match (&mut stream.send, &mut stream.respond) {
                        (Some(send), _) => send.send_reset(h2::Reason::CANCEL),
                        (None, Some(respond)) => respond.send_reset(h2::Reason::CANCEL),
                        (None, None) => {}
                    }
                }
            }
        }
        self.rest();
        self.said();
    }

    fn ask(&mut self, end: bool) {
        let Conn::Client(_, ask) = &mut self.conn else { return };
        let request = http::Request::post("http://a/a.B/C").body(()).expect("a request");
        if ask.poll_ready(&mut context()).is_ready()
            && let Ok((response, send)) = ask.send_request(request, end)
        {
            let id = send.stream_id().as_u32();
            let stream = Stream {
                respond: None,
                send: Some(send),
                _receive: None,
                _response: Some(response),
            };
            self.streams.insert(id, stream);
        }
    }

    /// Polls until nothing moves any more.
    fn rest(&mut self) {
        loop {
            let before = self.pipe.moved();
            self.poll();
            if self.is_over() || self.pipe.moved() == before {
                return;
            }
        }
    }

    fn poll(&mut self) {
        let cx = &mut context();
        match &mut self.conn {
            Conn::Greeting(shaking) => match Pin::new(shaking).poll(cx) {
                Poll::Ready(Ok(conn)) => {
                    self.conn = Conn::Server(conn);
                    self.poll();
                }
                Poll::Ready(Err(_)) => self.conn = Conn::Over,
                Poll::Pending => {}
            },
            Conn::Server(conn) => loop {
                match conn.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let id = respond.stream_id().as_u32();
                        let stream = Stream {
                            respond: Some(respond),
                            send: None,
                            _receive: Some(request.into_body()),
                            _response: None,
                        };
                        self.streams.insert(id, stream);
                    }
                    Poll::Ready(_) => {
                        self.conn = Conn::Over;
                        return;
                    }
                    Poll::Pending => return,
                }
            },
            Conn::Client(conn, _) => {
                if Pin::new(conn).poll(cx).is_ready() {
                    self.conn = Conn::Over;
                }
            }
            Conn::Over => {}
        }
    }

    fn said(&mut self) -> Vec<Frame> {
        let bytes = std::mem::take(&mut self.pipe.0.borrow_mut().from_h2);
        frames_of(bytes.strip_prefix(&PREFACE[..]).unwrap_or(&bytes))
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Both ends of h2's socket.
#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Waiting>>);

#[derive(Default)]
struct Waiting {
    to_h2: VecDeque<u8>,
    from_h2: Vec<u8>,
    /// All that ever moved.
    moved: usize,
}

impl Pipe {
    fn moved(&self) -> usize {
        self.0.borrow().moved
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.to_h2.is_empty() {
            return Poll::Pending;
        }
        let n = {
            let (first, _) = inner.to_h2.as_slices();
            let n = first.len().min(buf.remaining());
            buf.put_slice(&first[..n]);
            n
        };
        inner.to_h2.drain(..n);
        inner.moved += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        inner.from_h2.extend_from_slice(bytes);
        inner.moved += bytes.len();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
