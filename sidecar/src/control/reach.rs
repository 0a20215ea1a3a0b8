//! From addresses to a gRPC channel to control: names, TCP, TLS, HTTP/2, each with its deadline.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use portunus_proto::svid::NotSvid;
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::Error;
use super::alert::{Noting, Refusal};
use super::pace::{Came, Pace};
use super::settings::Settings;
use crate::connect::resolve::{Answer, Names, Query, State};
use crate::telemetry::sentence;
use crate::tls::{self, Bundle, Credential, Refused};

/// The credit of a stream and of the connection, in bytes: as much of control's words waits to be read.
const WINDOW: u32 = 256 << 10;
/// The most header bytes of an answer.
const MOST_HEADERS: u32 = 16 << 10;
/// How soon the names are looked at again while no address may be called.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The same while no name has any; it doubles each time, since the first answer mostly comes soon.
const LEAST_PATIENCE: Duration = Duration::from_millis(2);
/// How many addresses a sentence names.
const MOST_NAMED: usize = 3;

/// Where control is, and when which address may be called. Each task has its own.
#[derive(Clone)]
pub(super) struct Controls {
    settings: Arc<Settings>,
    tracker: TaskTracker,
    /// What is known of each of the settings' addresses.
    found: Vec<Found>,
    paces: HashMap<SocketAddr, Pace>,
    /// Where the turn is among the addresses. The first is drawn, so that many sidecars share several controls.
    turn: usize,
    /// Why each address was not reached.
    unreached: BTreeMap<SocketAddr, String>,
    /// What those said who were reached, and answered no.
    noes: BTreeMap<SocketAddr, String>,
}

/// One of the settings' addresses.
#[derive(Clone)]
enum Found {
    /// It needs nobody to find it.
    At(SocketAddr),
    /// It has a name.
    Named(watch::Receiver<Arc<Answer>>),
}

/// A channel, and whom it leads to. It is one connection, and has no other when that is over.
pub(super) struct Reached {
    pub(super) addr: SocketAddr,
    pub(super) channel: Channel,
    /// Whether our certificate is refused there.
    pub(super) refusal: Refusal,
}

/// Why nobody is reached.
pub(super) enum Nobody {
    /// Control said no, or was left, a while ago, and may not be called yet: what was said of it then still holds.
    Resting,
    /// For this reason, in a sentence.
    Because(String),
}

/// Why an address was not reached.
#[derive(Debug, thiserror::Error)]
enum Unreached {
    #[error("{0}")]
    Tcp(#[from] io::Error),
    #[error("nobody answers within {0:?}")]
    Silent(Duration),
    #[error("it answers, but {}", not_believed(.0))]
    Tls(#[from] tls::Error),
    #[error("{}", sentence(.0))]
    Http2(#[from] tonic::transport::Error),
}

/// Why whoever answers is not taken for control: that it may be the setting that is wrong, only who reads of it can know.
fn not_believed(error: &tls::Error) -> String {
    match error {
        tls::Error::Refused(Refused::WrongIdentity { expected, found }) => {
            format!("it is {found}, and {expected} is expected: --control-identity says who control is")
        }
        tls::Error::Refused(why @ Refused::Leaf(NotSvid::ForeignTrustDomain { .. })) => {
            format!("{why}: --control-identity says who control is, and so of which trust domain")
        }
        other => other.to_string(),
    }
}

impl Unreached {
    /// What that means for the next call.
    fn came(&self) -> Came {
        match self {
            Unreached::Tcp(_) | Unreached::Silent(_) | Unreached::Tls(tls::Error::TooSlow(_)) => Came::Away,
            Unreached::Tls(_) | Unreached::Http2(_) => Came::Broken,
        }
    }
}

impl Controls {
    pub(super) fn new(settings: Arc<Settings>, names: &Names, tracker: &TaskTracker) -> Result<Controls, Error> {
        if settings.addresses.is_empty() {
            return Err(Error::NoAddress);
        }
        let find = |address: &super::Address| match address.host.parse::<IpAddr>() {
            Ok(ip) => Ok(Found::At(SocketAddr::new(ip, address.port))),
            Err(_) => names
                .watch(Query::addresses(&address.host, address.port))
                .map(Found::Named),
        };
        let found = settings.addresses.iter().map(find).collect::<Result<_, _>>()?;
        Ok(Controls {
            settings,
            tracker: tracker.clone(),
            found,
            paces: HashMap::new(),
            turn: rand::rng().random_range(0..1_000),
            unreached: BTreeMap::new(),
            noes: BTreeMap::new(),
        })
    }

    /// Calls one address after the other, each when it may be called, until one is reached.
    ///
    /// # Errors
    /// Why none was reached: once all of them were tried, or `until` has passed.
    pub(super) async fn reach(
        &mut self,
        bundle: &Bundle,
        credential: Option<&Credential>,
        until: Instant,
    ) -> Result<Reached, Nobody> {
        let mut patience = LEAST_PATIENCE;
        loop {
            let now = Instant::now();
            let addrs = self.addresses();
            self.paces.retain(|addr, _| addrs.contains(addr));
            self.unreached.retain(|addr, _| addrs.contains(addr));
            self.noes.retain(|addr, _| addrs.contains(addr));
            let due = |addr: &SocketAddr| self.paces.get(addr).map_or(now, |pace| pace.not_before());
            // The earliest; of several that may be called, whose turn it is.
            let next = addrs
                .iter()
                .map(|addr| (due(addr).max(now), *addr))
                .min_by_key(|(at, _)| *at);
            match next {
                Some((at, addr)) if at <= now => match self.open(addr, bundle, credential).await {
                    Ok((channel, refusal)) => {
                        self.unreached.clear();
                        return Ok(Reached { addr, channel, refusal });
                    }
                    Err(why) => {
                        let came = why.came();
                        self.unreached.insert(addr, why.to_string());
                        self.came(addr, came);
                        // All were tried: whoever waits shall know why.
                        if addrs.iter().all(|addr| self.unreached.contains_key(addr)) {
                            return Err(self.why());
                        }
                    }
                },
                Some((at, _)) => sleep_until(at.min(until).min(now + LOOK_AGAIN)).await,
                None => {
                    sleep_until(until.min(now + patience)).await;
                    patience = (2 * patience).min(LOOK_AGAIN);
                }
            }
            if Instant::now() >= until {
                return Err(self.why());
            }
        }
    }

    /// Takes what came of a call. Unless it was us who ended it, the turn goes on to another address.
    pub(super) fn came(&mut self, addr: SocketAddr, came: Came) {
        let now = Instant::now();
        self.paces.entry(addr).or_insert_with(|| Pace::new(now)).came(came, now);
        match came {
            Came::Served(_) | Came::Left => drop(self.noes.remove(&addr)),
            Came::Away | Came::Broken | Came::Failed | Came::Unproven(_) => {}
        }
        if came != Came::Left {
            self.turn = self.turn.wrapping_add(1);
        }
    }

    /// Keeps why one that was reached answered no, for as long as it is not called again: while others cannot be reached, that
    /// is what an operator must know.
    pub(super) fn says_no(&mut self, addr: SocketAddr, why: String) {
        self.noes.insert(addr, why);
    }

    /// Every address may be called at once: what is asked next is something else.
    pub(super) fn forgive(&mut self) {
        self.paces.clear();
    }

    /// All addresses, that first whose turn it is.
    fn addresses(&self) -> Vec<SocketAddr> {
        let mut addrs: Vec<SocketAddr> = Vec::new();
        let mut add = |addr| {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        };
        for found in &self.found {
            match found {
                Found::At(addr) => add(*addr),
                Found::Named(answer) => answer.borrow().routable().for_each(|target| add(target.addr)),
            }
        }
        if !addrs.is_empty() {
            let turn = self.turn % addrs.len();
            addrs.rotate_left(turn);
        }
        addrs
    }

    async fn open(
        &self,
        addr: SocketAddr,
        bundle: &Bundle,
        credential: Option<&Credential>,
    ) -> Result<(Channel, Refusal), Unreached> {
        let settings = &self.settings;
        let socket = dial(addr, settings.connect_timeout).await?;
        socket.set_nodelay(true)?;
        let within = settings.handshake_timeout;
        let stream = tls::call_control(socket, bundle, credential, &settings.identity, within).await?;
        let refusal = Refusal::default();
        let noting = Noting {
            stream,
            refusal: refusal.clone(),
        };
        let mut once = Some(TokioIo::new(noting));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once.take();
            // A new connection is a new decision, and made above.
            std::future::ready(stream.ok_or_else(|| io::Error::other("the connection to control is over")))
        });
        let endpoint = Endpoint::from_static("http://control.portunus")
            .origin(Uri::from_static("https://control.portunus"))
            .user_agent(concat!("portunus-sidecar/", env!("CARGO_PKG_VERSION")))?
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW)
            .http2_max_header_list_size(MOST_HEADERS)
            .http2_keep_alive_interval(settings.keepalive)
            .keep_alive_timeout(settings.keepalive)
            .keep_alive_while_idle(true)
            .executor(Tracked(self.tracker.clone()));
        Ok((endpoint.connect_with_connector(connector).await?, refusal))
    }

    /// Why nobody is reached.
    fn why(&self) -> Nobody {
        if !self.unreached.is_empty() {
            let noes = self.noes.iter().filter(|(addr, _)| !self.unreached.contains_key(addr));
            let each = noes.chain(&self.unreached).take(MOST_NAMED);
            let each: Vec<_> = each.map(|(addr, why)| format!("{addr}: {why}")).collect();
            return Nobody::Because(format!("control cannot be reached: {}", each.join("; ")));
        }
        let states = self.found.iter().zip(&self.settings.addresses);
        let unknown: Vec<_> = states
            .filter_map(|(found, address)| match found {
                Found::At(_) => None,
                Found::Named(answer) => {
                    let answer = answer.borrow();
                    match &answer.state {
                        State::Failed { reason } => Some(reason.to_string()),
                        State::Pending => Some(format!("{address} is not resolved yet")),
                        State::Fresh | State::Stale { .. } if answer.routable().next().is_none() => {
                            Some(format!("there is no route to {address}"))
                        }
                        State::Fresh | State::Stale { .. } => None,
                    }
                }
            })
            .take(MOST_NAMED)
            .collect();
        if unknown.is_empty() {
            Nobody::Resting
        } else {
            Nobody::Because(format!("control cannot be found: {}", unknown.join("; ")))
        }
    }
}

/// A first packet that is lost the kernel sends again after a second, which is as long as is waited: so another socket asks in
/// the middle of that time, and whoever is back is noticed within a second.
async fn dial(addr: SocketAddr, within: Duration) -> Result<TcpStream, Unreached> {
    let again = async {
        sleep(within / 2).await;
        TcpStream::connect(addr).await
    };
    let either = async {
        tokio::select! {
            socket = TcpStream::connect(addr) => socket,
            socket = again => socket,
        }
    };
    let socket = timeout(within, either).await;
    Ok(socket.map_err(|_| Unreached::Silent(within))??)
}

/// Has somebody who waits for what tonic starts.
struct Tracked(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[tokio::test]
    async fn whoever_loses_the_first_packet_and_is_back_is_reached_within_the_second() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        listener.bind(&any.into()).expect("a port is free");
        listener.listen(0).expect("it listens");
        let addr = listener.local_addr().ok().and_then(|addr| addr.as_socket());
        let addr = addr.expect("it has one");
        // Its queue is full, and the kernel drops what comes further (listen(2)).
        let (within, mut waiting) = (Duration::from_secs(1), Vec::new());
        while let Ok(socket) = dial(addr, Duration::from_millis(200)).await {
            waiting.push(socket);
        }
        let dialled = tokio::spawn(dial(addr, within));
        sleep(within / 4).await;
        for _ in &waiting {
            listener.accept().expect("somebody waits");
        }
        assert!(dialled.await.expect("it does not panic").is_ok());
    }

    #[test]
    fn whoever_takes_a_connection_and_says_nothing_is_as_good_as_away() {
        let silent = tls::Error::TooSlow(Duration::from_secs(5));
        assert_eq!(Unreached::from(silent).came(), Came::Away);
        assert_eq!(Unreached::from(tls::Error::Truncated).came(), Came::Broken);
    }
}
