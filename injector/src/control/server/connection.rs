//! The life of one connection: handshake, who it is, calls, end.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use portunus_logbook::Line;
use portunus_proto::svid::{self, SKEW, Usage};
use rustls::AlertDescription;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::Service;
use tracing::{debug, info};

use super::House;
use super::limits::Full;
use crate::control::identity::{Asker, Proven};
use crate::control::numbers::Open;

/// Who is at the other end, as services see it.
#[derive(Clone, Debug)]
pub struct Visitor {
    /// From where, and who.
    pub asker: Asker,
    /// Cancelled when streams must end: control stops, or the client's certificate has ended.
    pub leave: CancellationToken,
}

/// How many calls run, and since when there is none.
struct Calls {
    running: AtomicUsize,
    last: Mutex<Instant>,
}

/// A call, until its answer is sent or given up.
struct Call(Arc<Calls>);

/// Serves one connection to its end.
pub async fn run(stream: TcpStream, from: SocketAddr, house: Arc<House>) {
    let numbers = house.server.numbers.clone();
    let _open = Open::one(&numbers.connections);
    let _ = stream.set_nodelay(true);
    let refused = |reason| {
        debug!(%from, reason, "a connection was refused");
        numbers.refused("connection", reason);
    };
    let acceptor = TlsAcceptor::from(house.server.serving.borrow().config.clone());
    let shaking = house.doorman.shake(from.ip());
    let limit = house.server.limits.handshake;
    let tls = tokio::select! {
        tls = timeout(limit, shake(acceptor, stream)) => tls,
        () = shaking.room.cancelled() => return refused("no_room"),
        () = house.stop.cancelled() => return,
    };
    drop(shaking);
    let tls = match tls {
        Err(_) => return refused("handshake_timeout"),
        Ok(Err(why)) => {
            // rustls names what is wrong with a certificate, in its own words and ours.
            if let Some(Line { left_out }) = house.server.services.line(from.ip()) {
                info!(%from, why = said(&why), left_out, "a handshake failed");
            }
            numbers.refused("connection", "handshake");
            return;
        }
        Ok(Ok(tls)) => tls,
    };
    let domain = house.server.services.trust_domain();
    let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // The verifier has judged it, so there is none without an identity.
    let proven = leaf.and_then(|der| {
        let leaf = svid::judge(der, &domain, &[Usage::Client]).ok()?;
        Some((Proven::by(leaf.id, der), leaf.not_after))
    });
    match proven {
        None => {
            let place = house.doorman.let_in(from.ip());
            let served = serve(tls, from, None, &house);
            if place.room.run_until_cancelled(served).await.is_none() {
                refused("no_room");
            }
        }
        Some((proven, not_after)) => match house.doorman.seat(from.ip(), &proven.id) {
            Ok(_seat) => serve(tls, from, Some((proven, not_after)), &house).await,
            Err(full) => {
                let reason = match full {
                    Full::House => "too_many",
                    Full::Network => "too_many_of_address",
                    Full::Identity => "too_many_of_identity",
                };
                // It knocks again and again, and learns no reason.
                if let Some(Line { left_out }) = house.server.services.line(from.ip()) {
                    info!(%from, id = %proven.id, reason, left_out, "a member finds no seat");
                }
                refused(reason);
            }
        },
    }
}

/// Why a handshake failed. What other roots mean is said in words, since rustls names only the alert.
fn said(why: &io::Error) -> String {
    let tls = why.get_ref().and_then(|why| why.downcast_ref());
    match tls {
        Some(rustls::Error::AlertReceived(AlertDescription::UnknownCA)) => format!(
            "the peer does not trust the root that control's certificate stands under: does its --trust-bundle have a root of \
             this control's? ({why})"
        ),
        Some(_) | None => why.to_string(),
    }
}

/// Shakes hands. Of those who have hung up already, after control stood still, there may be hundreds before those who have not:
/// they cost nothing.
async fn shake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let ready = stream.ready(Interest::READABLE).await?;
    if ready.is_read_closed() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    acceptor.accept(stream).await
}

async fn serve(tls: TlsStream<TcpStream>, from: SocketAddr, proven: Option<(Proven, SystemTime)>, house: &Arc<House>) {
    let limits = &house.server.limits;
    let begun = Instant::now();
    let (proven, idle, ends) = match proven {
        None => (None, limits.stranger.0, begun + limits.stranger.1),
        Some((proven, not_after)) => {
            let left = (not_after + SKEW).duration_since(SystemTime::now());
            let left = left.unwrap_or_default();
            (Some(proven), limits.idle, begun + left.min(LONGEST))
        }
    };
    let visitor = Visitor {
        asker: Asker {
            address: from.ip(),
            proven,
        },
        leave: house.stop.child_token(),
    };
    let calls = Arc::new(Calls {
        running: AtomicUsize::new(0),
        last: Mutex::new(begun),
    });
    let answer = service_fn(|request| answer(request, house.clone(), visitor.clone(), Call::new(&calls)));
    let (every, patience) = limits.keep_alive;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(16 << 10)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(256 << 10)
        .max_send_buf_size(256 << 10)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(every)
        .keep_alive_timeout(patience)
        .serve_connection(TokioIo::new(tls), answer);
    tokio::pin!(connection);
    let mut look = begun + idle;
    let mut end = None;
    loop {
        tokio::select! {
            done = &mut connection => {
                if let Err(why) = done {
                    debug!(%from, %why, "a connection broke");
                }
                return;
            }
            () = visitor.leave.cancelled(), if end.is_none() => {
                connection.as_mut().graceful_shutdown();
                end = Some(Instant::now() + limits.grace);
            }
            () = sleep_until(ends), if !visitor.leave.is_cancelled() => visitor.leave.cancel(),
            () = sleep_until(look), if end.is_none() => match calls.idle_since() {
                Some(since) if since + idle <= Instant::now() => {
                    connection.as_mut().graceful_shutdown();
                    end = Some(Instant::now() + LINGER);
                }
                Some(since) => look = since + idle,
                None => look = Instant::now() + idle,
            },
            () = sleep_until(end.unwrap_or(begun)), if end.is_some() => return,
        }
    }
}

/// No connection needs to be older; tokio's clock has an end.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long a connection that was told to end may take.
const LINGER: Duration = Duration::from_secs(1);

async fn answer(
    mut request: Request<Incoming>,
    house: Arc<House>,
    visitor: Visitor,
    call: Call,
) -> Result<Response<impl hyper::body::Body<Data = bytes::Bytes, Error = tonic::Status>>, Infallible> {
    let is_of = |service: &str| request.uri().path().starts_with(service);
    let (identity, discovery) = (
        is_of("/portunus.mesh.v1.Identity/"),
        is_of("/portunus.mesh.v1.Discovery/"),
    );
    request.extensions_mut().insert(visitor);
    let request = request.map(Body::new);
    let response = if identity {
        let mut service = house.identity.clone();
        service.call(request).await
    } else if discovery {
        let mut service = house.discovery.clone();
        service.call(request).await
    } else {
        Ok(tonic::Status::unimplemented("control serves portunus.mesh.v1 and nothing else").into_http())
    };
    // The call lasts until the last of its answer.
    response.map(|response| {
        response.map(|body| {
            body.map_frame(move |frame| {
                let _ = &call;
                frame
            })
        })
    })
}

impl Calls {
    fn idle_since(&self) -> Option<Instant> {
        (self.running.load(Relaxed) == 0).then(|| *self.last.lock())
    }
}

impl Call {
    fn new(calls: &Arc<Calls>) -> Call {
        calls.running.fetch_add(1, Relaxed);
        Call(calls.clone())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        *self.0.last.lock() = Instant::now();
        self.0.running.fetch_sub(1, Relaxed);
    }
}
