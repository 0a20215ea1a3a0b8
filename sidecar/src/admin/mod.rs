//! The operator's door: live, ready, metrics, configuration, drain.
//!
//! It stands open to the whole network (probes and scrapers come from anywhere), so it is bounded in every way: a
//! connection carries one request, all of it within seconds, and when as many as may be are open the oldest makes room.
//! Strangers can thus neither hold a probe off nor make the proxy grow.

mod answer;
mod conditions;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub use answer::Pages;
pub use conditions::{Condition, Conditions};

/// How the door is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens. IPv6 addresses take IPv6 alone. Default 4191 of all addresses.
    pub listen: Vec<SocketAddr>,
    /// How many connections may be open. Default 64.
    pub max_connections: usize,
    /// How long a connection may take, from its first byte to its last. Default 10 s.
    pub timeout: Duration,
    /// How long a request's body may be, in bytes. Default 1 KiB; no page reads one.
    pub max_body: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            listen: vec![
                (Ipv4Addr::UNSPECIFIED, 4191).into(),
                (std::net::Ipv6Addr::UNSPECIFIED, 4191).into(),
            ],
            max_connections: 64,
            timeout: Duration::from_secs(10),
            max_body: 1_024,
        }
    }
}

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened at.
    #[error("the admin pages cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// This machine has none of the families of the addresses.
    #[error("the admin pages have no address to listen at: this machine has no IPv6, and no IPv4 address was given")]
    Nowhere,
}

/// The door, open until [`Door::close`].
#[derive(Debug)]
pub struct Door {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Door {
    /// Opens it, on the runtime that calls.
    pub fn open(settings: &Settings, pages: Pages) -> Result<Door, Error> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &settings.listen {
            match listen(*address) {
                Ok(listener) => {
                    addresses.push(listener.local_addr().unwrap_or(*address));
                    listeners.push(listener);
                }
                Err(why) if address.is_ipv6() && lacks_family(&why) => {
                    warn!(%address, "no IPv6 here: the admin pages do without that address");
                }
                Err(source) => {
                    return Err(Error::Listen {
                        address: *address,
                        source,
                    });
                }
            }
        }
        if listeners.is_empty() {
            return Err(Error::Nowhere);
        }
        info!(?addresses, "the admin pages are open");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listeners, settings.clone(), Arc::new(pages), stop.clone()));
        Ok(Door {
            addresses,
            stop,
            serving,
        })
    }

    /// Where it listens, ports that the system chose included.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Closes it; answers that are on their way get a moment.
    pub async fn close(self) {
        self.stop.cancel();
        if let Err(why) = self.serving.await {
            warn!(%why, "the admin pages ended in an unforeseen way");
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A proxy that was killed must be able to come back while its last connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(64)?;
    TcpListener::from_std(socket.into())
}

/// Whether the machine has no such addresses at all: IPv6 is compiled out (EAFNOSUPPORT) or disabled (EADDRNOTAVAIL).
fn lacks_family(error: &io::Error) -> bool {
    use nix::errno::Errno;
    [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

async fn serve(listeners: Vec<TcpListener>, settings: Settings, pages: Arc<Pages>, stop: CancellationToken) {
    let mut connections = Connections {
        open: JoinSet::new(),
        by_age: VecDeque::new(),
        max: settings.max_connections,
    };
    while let Some(accepted) = stop.run_until_cancelled(accept(&listeners)).await {
        match accepted {
            Ok((stream, peer)) => {
                connections.admit(talk(stream, peer.ip().to_canonical(), settings.clone(), pages.clone()))
            }
            Err(why) => {
                // Out of file descriptors or memory: what is open must end before more can come.
                warn!(%why, "the admin pages cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listeners);
    let last_words = async { while connections.open.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
        debug!("admin connections were cut");
    }
}

/// How long running answers may take once the door closes.
const LAST_WORDS: Duration = Duration::from_millis(500);

async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|cx| {
        let ready = listeners.iter().find_map(|listener| match listener.poll_accept(cx) {
            Poll::Ready(accepted) => Some(accepted),
            Poll::Pending => None,
        });
        ready.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// The open connections, oldest first.
struct Connections {
    open: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
    max: usize,
}

impl Connections {
    fn admit(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        while self.open.try_join_next().is_some() {}
        if self.by_age.len() >= self.max {
            self.by_age.retain(|connection| !connection.is_finished());
        }
        if self.by_age.len() >= self.max
            && let Some(oldest) = self.by_age.pop_front()
        {
            oldest.abort();
        }
        self.by_age.push_back(self.open.spawn(connection));
    }
}

/// One connection: one request and its answer.
async fn talk(stream: TcpStream, peer: IpAddr, settings: Settings, pages: Arc<Pages>) {
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        // Read to its end: a socket that closes over unread bytes resets, and the answer may be lost.
        let answer = match Limited::new(body, settings.max_body).collect().await {
            Ok(_) => answer::answer(&pages, peer, &head),
            Err(_) => answer::too_long(),
        };
        Ok::<_, std::convert::Infallible>(answer)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.timeout)
        .keep_alive(false)
        .max_headers(64)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(settings.timeout, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => debug!(%peer, %why, "an admin connection ended badly"),
        Err(_) => debug!(%peer, "an admin connection took too long"),
    }
}

#[cfg(test)]
mod tests;
