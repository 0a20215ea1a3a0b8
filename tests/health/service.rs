//! A service of several peers that do as they are told, behind one name and one worker of ours.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use portunus_sidecar::health::Settings;
use portunus_sidecar::telemetry::Format;
use support::relay::world::{Caller, PATIENCE, Setup, World};
use support::{Metrics, Pauses};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// A whole `HealthCheckResponse` or any other small message.
fn message(status: u8) -> Bytes {
    vec![0, 0, 0, 0, 2, 8, status].into()
}

/// What a peer says when it is asked for its health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Status(u8),
    Code(&'static str),
    Unimplemented,
    Http404,
    Nothing,
    /// Headers, and no message.
    Begins,
}

/// What a peer does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    Answers(Duration),
    /// Answers with this status.
    Ends(&'static str),
    /// Says how long its answer is, and then says more.
    Lies,
    /// Resets the stream.
    Resets(h2::Reason),
    /// Resets it behind the headers.
    Breaks(h2::Reason),
    /// Ends the whole connection.
    Leaves,
    Nothing,
    /// Headers, and a part of a message.
    Half,
    /// A message of 60,000 bytes.
    Much,
}

/// An endpoint.
pub(crate) struct Peer {
    says: watch::Sender<Says>,
    does: Mutex<Does>,
    watchable: std::sync::atomic::AtomicBool,
    calls: AtomicU64,
    checks: AtomicU64,
    begun: AtomicU64,
    connections: AtomicU64,
    last_call: Mutex<Instant>,
    /// Streams end when this is told.
    end_streams: tokio::sync::Notify,
    /// Connections say GOAWAY when this is told, and end when their streams have.
    drains: tokio::sync::Notify,
    ended: AtomicU64,
}

impl Peer {
    pub(crate) fn says(&self, says: Says) {
        self.says.send_replace(says);
    }

    pub(crate) fn does(&self, does: Does) {
        *self.does.lock() = does;
    }

    pub(crate) fn serves_watch(&self) {
        self.watchable.store(true, Relaxed);
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }

    pub(crate) fn checks(&self) -> u64 {
        self.checks.load(Relaxed)
    }

    /// How many were answered as [`Says::Begins`] says.
    pub(crate) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Connections that have ended since they said GOAWAY.
    pub(crate) fn drained(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Says GOAWAY on the connections that are open.
    pub(crate) fn drain(&self) {
        self.drains.notify_waiters();
    }

    pub(crate) fn last_call(&self) -> Instant {
        *self.last_call.lock()
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Ok((socket, _)) = listener.accept().await {
            self.connections.fetch_add(1, Relaxed);
            let peer = self.clone();
            tokio::spawn(async move {
                socket.set_nodelay(true).expect("a TCP socket");
                let Ok(mut connection) = h2::server::handshake(socket).await else {
                    return;
                };
                let drained = peer.drains.notified();
                tokio::pin!(drained);
                let mut drains = false;
                loop {
                    let (request, respond) = tokio::select! {
                        () = &mut drained, if !drains => {
                            drains = true;
                            connection.graceful_shutdown();
                            continue;
                        }
                        asked = connection.accept() => match asked {
                            Some(Ok(asked)) => asked,
                            Some(Err(_)) | None => break,
                        },
                    };
                    let peer = peer.clone();
                    if *peer.does.lock() == Does::Leaves && request.uri().path() == "/a.B/Call" {
                        peer.calls.fetch_add(1, Relaxed);
                        return;
                    }
                    // A caller that leaves ends its call here, too.
                    tokio::spawn(async move { peer.answer(request, respond).await });
                }
                peer.ended.fetch_add(u64::from(drains), Relaxed);
            });
        }
    }

    async fn answer(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
        match request.uri().path() {
            "/grpc.health.v1.Health/Check" => {
                let says = *self.says.borrow();
                self.checks.fetch_add(1, Relaxed);
                self.say(says, &mut respond).await
            }
            "/grpc.health.v1.Health/Watch" if self.watchable.load(Relaxed) => {
                self.checks.fetch_add(1, Relaxed);
                let mut says = self.says.subscribe();
                let first = *says.borrow();
                if let Says::Code(_) = first {
                    return self.say(first, &mut respond).await;
                }
                let mut body = respond.send_response(head(), false)?;
                loop {
                    if let Says::Status(status) = *says.borrow_and_update() {
                        body.send_data(message(status), false)?;
                    }
                    tokio::select! {
                        changed = says.changed() => if changed.is_err() { return Ok(()) },
                        reset = std::future::poll_fn(|cx| body.poll_reset(cx)) => return reset.map(drop),
                    }
                }
            }
            "/grpc.health.v1.Health/Watch" => {
                self.checks.fetch_add(1, Relaxed);
                self.say(Says::Unimplemented, &mut respond).await
            }
            "/a.B/Stream" => {
                let mut body = respond.send_response(head(), false)?;
                body.send_data(message(1), false)?;
                self.end_streams.notified().await;
                body.send_trailers(trailers("0"))
            }
            _ => {
                self.calls.fetch_add(1, Relaxed);
                *self.last_call.lock() = Instant::now();
                let does = *self.does.lock();
                self.act(does, &mut respond).await
            }
        }
    }

    async fn say(&self, says: Says, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
        let code = match says {
            Says::Status(status) => {
                let mut body = respond.send_response(head(), false)?;
                body.send_data(message(status), false)?;
                return body.send_trailers(trailers("0"));
            }
            Says::Http404 => {
                let response = Response::builder().status(404).header("content-type", "text/html");
                return respond
                    .send_response(response.body(()).expect("a response"), true)
                    .map(drop);
            }
            Says::Nothing => return std::future::poll_fn(|cx| respond.poll_reset(cx)).await.map(drop),
            Says::Begins => {
                let mut body = respond.send_response(head(), false)?;
                self.begun.fetch_add(1, Relaxed);
                return std::future::poll_fn(|cx| body.poll_reset(cx)).await.map(drop);
            }
            Says::Unimplemented => "12",
            Says::Code(code) => code,
        };
        let mut response = head();
        response.headers_mut().extend(trailers(code));
        respond.send_response(response, true).map(drop)
    }

    async fn act(&self, does: Does, respond: &mut SendResponse<Bytes>) -> Result<(), h2::Error> {
        match does {
            Does::Answers(after) => {
                tokio::time::sleep(after).await;
                self.say(Says::Status(1), respond).await
            }
            Does::Ends(status) => self.say(Says::Code(status), respond).await,
            Does::Lies => {
                let mut response = head();
                response.headers_mut().insert("content-length", 3.into());
                let mut body = respond.send_response(response, false)?;
                body.send_data(message(1), false)?;
                body.send_trailers(trailers("0"))
            }
            Does::Resets(reason) => {
                respond.send_reset(reason);
                Ok(())
            }
            Does::Breaks(reason) => {
                let mut body = respond.send_response(head(), false)?;
                body.send_reset(reason);
                Ok(())
            }
            // See where it accepts.
            Does::Leaves => Ok(()),
            Does::Nothing => self.say(Says::Nothing, respond).await,
            Does::Much => {
                let mut body = respond.send_response(head(), false)?;
                body.send_data([&[0, 0, 0, 0xea, 0x60][..], &[0; 60_000]].concat().into(), false)?;
                body.send_trailers(trailers("0"))
            }
            Does::Half => {
                let mut body = respond.send_response(head(), false)?;
                body.send_data(message(1).slice(..6), false)?;
                std::future::poll_fn(|cx| body.poll_reset(cx)).await.map(drop)
            }
        }
    }
}

fn head() -> Response<()> {
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(()).expect("a response")
}

fn trailers(code: &str) -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        code.parse().expect("a value"),
    )])
}

/// Peers, and a worker before them.
pub(crate) struct Service {
    pub(crate) world: World,
    pub(crate) peers: Vec<Arc<Peer>>,
    addresses: Vec<SocketAddr>,
    caller: Caller,
    _hosts: Hosts,
}

/// A hosts file, gone with the test.
struct Hosts(std::path::PathBuf);

impl Drop for Hosts {
    fn drop(&mut self) {
        // It lies in a folder for such.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What became of calls.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pub(crate) sent: u64,
    pub(crate) failed: Vec<String>,
    /// Those that nobody had answered in the end.
    pub(crate) unanswered: u64,
    took: Vec<Duration>,
}

impl Calls {
    /// The nearest rank; whoever was not answered took longest.
    pub(crate) fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.resize(took.len() + self.unanswered as usize, Duration::MAX);
        took.sort_unstable();
        let rank = (took.len() * 99).div_ceil(100);
        took.get(rank.saturating_sub(1)).copied().expect("there were calls")
    }
}

/// A stream that runs.
pub(crate) struct Running(tokio::task::JoinHandle<String>);

impl Running {
    /// Ends it, and says with which status.
    pub(crate) async fn finish(self, peer: &Peer) -> String {
        peer.end_streams.notify_waiters();
        tokio::time::timeout(PATIENCE, self.0)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }
}

impl Service {
    pub(crate) async fn start(peers: u8, health: Settings) -> Service {
        let setup = Setup {
            health,
            ..Setup::default()
        };
        Service::with(peers, setup).await
    }

    pub(crate) async fn with(peers: u8, setup: Setup) -> Service {
        static SERVICES: AtomicU64 = AtomicU64::new(0);
        let number = SERVICES.fetch_add(1, Relaxed) as u8;
        let ip = |at: u8| Ipv4Addr::new(127, (std::process::id() % 250) as u8 + 1, 200 + number, at + 1);
        let mut port = 0;
        let mut service = Vec::new();
        let mut addresses = Vec::new();
        let mut hosts = String::new();
        for at in 0..peers {
            let listener = TcpListener::bind((ip(at), port)).await.expect("a free port");
            let addr = listener.local_addr().expect("an address");
            port = addr.port();
            let peer = Arc::new(Peer {
                says: watch::Sender::new(Says::Status(1)),
                does: Mutex::new(Does::Answers(Duration::from_millis(2))),
                watchable: false.into(),
                calls: AtomicU64::new(0),
                checks: AtomicU64::new(0),
                begun: AtomicU64::new(0),
                connections: AtomicU64::new(0),
                last_call: Mutex::new(Instant::now()),
                end_streams: tokio::sync::Notify::new(),
                drains: tokio::sync::Notify::new(),
                ended: AtomicU64::default(),
            });
            tokio::spawn(peer.clone().serve(listener));
            hosts += &format!("{} greeter\n", addr.ip());
            addresses.push(addr);
            service.push(peer);
        }
        hosts += &format!("{} steady\n", addresses[0].ip());
        let file = std::env::temp_dir().join(format!("portunus-health-{}-{number}", std::process::id()));
        std::fs::write(&file, hosts).expect("a file can be written");
        let setup = Setup {
            hosts: Some(file.clone()),
            ..setup
        };
        let world = World::before(addresses[0], setup).await;
        // The crate takes a hundred small messages that it has not read yet for an attack: a pause of half a second is enough.
        let mut patient = h2::client::Builder::new();
        patient.data_frame_budget(1 << 24);
        Service {
            caller: world.caller_of(&patient).await,
            world,
            peers: service,
            addresses,
            _hosts: Hosts(file),
        }
    }

    fn request(&self, name: &str) -> Request<()> {
        let port = self.addresses[0].port();
        let request =
            Request::post(format!("http://{name}:{port}/a.B/Call")).header("content-type", "application/grpc");
        request.body(()).expect("a request")
    }

    /// One call: its status and message.
    pub(crate) async fn call(&self) -> (String, String) {
        let answer = self
            .caller
            .clone()
            .ask(self.request("greeter"))
            .await
            .expect("answered");
        (
            answer.grpc_status.unwrap_or_default(),
            answer.grpc_message.unwrap_or_default(),
        )
    }

    /// Makes calls with large answers that nobody reads, so that the worker has no room for a call from soon on, until what is
    /// returned drops.
    pub(crate) async fn spend_budget(&self) -> AbortOnDropHandle<()> {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (caller, request) = (self.world.caller_of(&builder).await, self.request("greeter"));
        let spending = tokio::spawn(async move {
            let mut calls = JoinSet::new();
            let mut ticks = tokio::time::interval(Duration::from_millis(5));
            loop {
                ticks.tick().await;
                let (mut caller, request) = (caller.clone(), request.clone());
                // Those that the worker ends, or refuses, have an answer.
                calls.spawn(async move { drop(caller.ask(request).await) });
                while calls.try_join_next().is_some() {}
            }
        });
        self.until(|| self.refused_for_memory() > 0.0).await;
        AbortOnDropHandle::new(spending)
    }

    /// How many calls were refused since the worker had no memory for them.
    pub(crate) fn refused_for_memory(&self) -> f64 {
        self.world.metric("portunus_proxy_errors_total", &["\"memory_budget\""])
    }

    /// How many checks have found anything.
    pub(crate) fn found(&self) -> f64 {
        self.world.metric(CHECKS, &[])
    }

    /// How many of them have found anything but that all is well: of one scrape, so that none ends between two.
    pub(crate) fn found_wrong(&self) -> f64 {
        let scraped = Metrics::parse(&self.world.registry.scrape(Format::Prometheus));
        scraped.sum(CHECKS, &[]) - scraped.sum(CHECKS, &[("outcome", "serving")])
    }

    /// What the worker says of an endpoint.
    pub(crate) fn state(&self, at: usize) -> String {
        let views = self.world.open.endpoints();
        let named = |view: &&portunus_sidecar::worker::EndpointView| {
            view.addr == self.addresses[at] && view.service.starts_with("greeter:")
        };
        views
            .iter()
            .find(named)
            .map(|view| view.state.clone())
            .unwrap_or_default()
    }

    /// A stream at that endpoint, which runs until it is told to end.
    pub(crate) async fn open_stream_at(&self, at: usize) -> Running {
        // Straight to the address: no name, no choice; but through the worker and the pool that others use.
        let request = Request::post(format!("http://{}/a.B/Stream", self.addresses[at]));
        let request = request
            .header("content-type", "application/grpc")
            .body(())
            .expect("a request");
        let mut caller = self.caller.clone();
        assert_eq!(at, 0, "the address that is dialled");
        let (begun, begins) = tokio::sync::oneshot::channel();
        let running = tokio::spawn(async move {
            let begun_call = caller.begin(request).await.expect("it begins");
            let mut body = begun_call.body;
            body.send_data(Bytes::new(), true).expect("it can end");
            let response = begun_call.response.await.expect("answered");
            begun.send(()).expect("the test waits");
            let answer = support::relay::world::collect(response, 0).await.expect("whole");
            answer.grpc_status.unwrap_or_default()
        });
        begins.await.expect("it begins");
        Running(running)
    }

    /// So many calls a second, whoever is slow, for so long. Those that are not answered then are left alone.
    pub(crate) async fn load(&self, rate: u64, time: Duration) -> Calls {
        let ends = Instant::now() + time;
        self.load_while("greeter", rate, || Instant::now() < ends).await
    }

    /// The same, and beside them as many calls by a name that only the first peer has, by the same connection and worker: what
    /// a busy machine does to the ones, it does to the others.
    pub(crate) async fn load_beside(&self, rate: u64, time: Duration) -> (Calls, Calls) {
        let ends = Instant::now() + time;
        let goes_on = || Instant::now() < ends;
        tokio::join!(
            self.load_while("greeter", rate, goes_on),
            self.load_while("steady", rate, goes_on)
        )
    }

    /// The same, until something is so.
    pub(crate) async fn load_until(&self, rate: u64, is: impl Fn() -> bool) -> Calls {
        // The balancer avoids what fails, so the calls that show it are few.
        let ends = Instant::now() + PATIENCE * 3;
        let calls = self
            .load_while("greeter", rate, || !is() && Instant::now() < ends)
            .await;
        let states: Vec<_> = (0..self.peers.len()).map(|at| self.state(at)).collect();
        assert!(is(), "it did not come to be; {states:?}, {} calls", calls.sent);
        calls
    }

    /// One call after the other, until something is so. How many of them failed.
    pub(crate) async fn calls_until(&self, is: impl Fn() -> bool) -> usize {
        let (mut failed, ends) = (0, Instant::now() + PATIENCE * 3);
        while !is() {
            assert!(Instant::now() < ends, "it did not come to be; {failed} calls failed");
            let answer = self.caller.clone().ask(self.request("greeter")).await;
            failed += usize::from(!answer.is_ok_and(|answer| answer.grpc_status.as_deref() == Some("0")));
        }
        failed
    }

    /// Waits until that is so, without any call.
    pub(crate) async fn until(&self, is: impl Fn() -> bool) {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        let ends = Instant::now() + PATIENCE;
        while !is() {
            looks.tick().await;
            assert!(Instant::now() < ends, "it did not come to be");
        }
    }

    async fn load_while(&self, name: &str, rate: u64, goes_on: impl Fn() -> bool) -> Calls {
        let mut calls = Calls::default();
        let mut running = JoinSet::new();
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate as u32);
        while goes_on() {
            ticks.tick().await;
            calls.sent += 1;
            let (mut caller, request) = (self.caller.clone(), self.request(name));
            running.spawn(async move {
                let began = Instant::now();
                let answer = caller.ask(request).await;
                (began.elapsed(), answer)
            });
            while let Some(ended) = running.try_join_next() {
                calls.add(ended.expect("it does not panic"));
            }
        }
        // Who answers at all answers soon, but for a pause of the machine.
        const SOON: Duration = Duration::from_secs(1);
        let pauses = Pauses::watch();
        loop {
            match tokio::time::timeout(SOON, running.join_next()).await {
                Ok(Some(ended)) => calls.add(ended.expect("it does not panic")),
                Ok(None) => break,
                Err(_) if pauses.longest() > SOON / 4 => {}
                Err(_) => break,
            }
        }
        calls.unanswered = running.len() as u64;
        // The rest is not cancelled: a caller without patience would be a help.
        running.detach_all();
        calls
    }
}

impl Calls {
    fn add(&mut self, (took, answer): (Duration, Result<support::relay::world::Answer, h2::Error>)) {
        match answer {
            Ok(answer) if answer.grpc_status.as_deref() == Some("0") => self.took.push(took),
            Ok(answer) => self
                .failed
                .push(answer.grpc_message.or(answer.grpc_status).unwrap_or_default()),
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}

const CHECKS: &str = "portunus_health_checks_total";
