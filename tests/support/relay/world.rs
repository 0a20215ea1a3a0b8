//! A world of three: callers and a server that are the `h2` crate's, and one worker of ours between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes as Buf;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use portunus_sidecar::connect::resolve::{self, Names};
use portunus_sidecar::detect::{self, Declared};
use portunus_sidecar::policy::Mode;
use portunus_sidecar::telemetry::export::{self, Endpoint, Exporter, Protocol, Target};
use portunus_sidecar::telemetry::trace::{self, Root, Sampler};
use portunus_sidecar::telemetry::{Format, Intake, Registry, access};
use portunus_sidecar::worker::{self, AccessLog, Command, Cut, Local, Open, Orders, Parts};
use portunus_sidecar::{balance, health, http2, telemetry};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bytes::Bytes;
use crate::pki::Pki;

/// What any wait in a test may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Makes every world one of two workers.
pub const PAIRS: &str = "PORTUNUS_TEST_PAIRS";

/// A worker of ours, and a server behind it.
pub struct World {
    worker: Option<std::thread::JoinHandle<Cut>>,
    commands: tokio::sync::mpsc::UnboundedSender<Command>,
    /// Where the worker takes calls.
    pub proxy: SocketAddr,
    /// Where they are going.
    pub meant: SocketAddr,
    /// What the worker has open.
    pub open: Arc<Open>,
    jobs: tokio::sync::mpsc::UnboundedSender<Job>,
    /// What the server saw.
    pub server: Arc<Seen>,
    seeds: Arc<AtomicU64>,
    stop: CancellationToken,
    /// What the worker counts.
    pub registry: Arc<Registry>,
    /// The worker at the server's side, if there are two with mTLS between them.
    pub far: Option<Box<World>>,
    /// Sends spans as long as it lives.
    _exporter: Option<Exporter>,
}

/// Something to be done in the worker's thread.
type Job = Box<dyn FnOnce(Local) + Send>;

/// What a server saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Connections that came.
    pub connections: AtomicU64,
    /// Requests that came.
    pub requests: AtomicU64,
    /// Requests that their caller left before they were answered.
    pub left: AtomicU64,
}

/// What a caller saw.
#[derive(Debug)]
pub struct Answer {
    /// `:status`.
    pub status: u16,
    /// Of the headers or the trailers.
    pub grpc_status: Option<String>,
    /// Of the headers or the trailers.
    pub grpc_message: Option<String>,
    /// Bytes of payload, all of them checked.
    pub bytes: u64,
    /// The head's fields.
    pub head: HeaderMap,
    /// The trailers' fields.
    pub trailers: HeaderMap,
}

/// How the ends are set up.
#[derive(Clone)]
pub struct Setup {
    /// The worker's limits.
    pub http2: http2::Settings,
    /// How it detects.
    pub detect: detect::Settings,
    /// Bytes that it may hold.
    pub budget: u64,
    /// Whether calls come from the network, rather than from the application.
    pub inbound: bool,
    /// Whether the port is declared HTTP/2.
    pub declared: bool,
    /// The mesh that the worker belongs to.
    pub mesh: Option<worker::Mesh>,
    /// Whether there are two workers, the caller's and the server's, with mTLS between them. So it is for all worlds where
    /// the environment has [`PAIRS`].
    pub pair: bool,
    /// Whether streams are cut when a certificate ends that their connection was made with.
    pub cut_expired: bool,
    /// The window that the server gives each stream, and its connection.
    pub server_windows: (u32, u32),
    /// Streams that the server takes at once.
    pub server_streams: Option<u32>,
    /// The largest header list that the server announces.
    pub server_header_list: Option<u32>,
    /// Where names stand that a worker may resolve; nobody is asked for others.
    pub hosts: Option<std::path::PathBuf>,
    /// How the health of endpoints is checked that a name has.
    pub health: health::Settings,
    /// Where the access log goes, if there is one.
    pub access_log: Option<Arc<Mutex<String>>>,
    /// How endpoints are picked.
    pub balance: balance::Settings,
    /// Who gets a span of each call, if anybody.
    pub collector: Option<SocketAddr>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            http2: http2::Settings::default(),
            detect: detect::Settings::default(),
            budget: 256 << 20,
            inbound: false,
            declared: false,
            mesh: None,
            cut_expired: false,
            pair: std::env::var_os(PAIRS).is_some(),
            server_windows: (65_535, 65_535),
            server_streams: None,
            server_header_list: None,
            hosts: None,
            health: health::Settings::default(),
            access_log: None,
            balance: balance::Settings::default(),
            collector: None,
        }
    }
}

impl World {
    /// A world with everything at its defaults.
    pub async fn start() -> World {
        World::with(Setup::default()).await
    }

    /// A world that is set up so.
    pub async fn with(setup: Setup) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = listener.local_addr().expect("an address");
        let seen = Arc::new(Seen::default());
        tokio::spawn(serve(listener, setup.clone(), seen.clone()));
        let mut world = World::before(server, setup).await;
        world.server = seen;
        world
    }

    /// A world whose server is somebody else's.
    pub async fn before(server: SocketAddr, setup: Setup) -> World {
        if !setup.pair || setup.inbound {
            return World::alone(server, setup).await;
        }
        let pki = Pki::new("mesh.test");
        let (near, far) = (pki.id("near"), pki.id("far"));
        let far_side = Setup {
            inbound: true,
            pair: false,
            mesh: Some(pki.mesh(&far, Mode::Strict, |_| None)),
            ..setup.clone()
        };
        let far_world = World::alone(server, far_side).await;
        let near_side = Setup {
            mesh: Some(pki.mesh(&near, Mode::Strict, move |_| Some(far.clone()))),
            ..setup
        };
        let mut world = World::alone(far_world.proxy, near_side).await;
        world.far = Some(Box::new(far_world));
        world
    }

    async fn alone(server: SocketAddr, setup: Setup) -> World {
        let proxy = free_port();
        let stop = CancellationToken::new();
        let registry = Registry::new(&telemetry::Settings::default());
        let resolving = match setup.hosts {
            None => resolve::Settings::default(),
            Some(hosts) => resolve::Settings {
                hosts,
                servers: Some(Vec::new()),
                ..Default::default()
            },
        };
        let names = Names::start(resolving, &TaskTracker::new(), stop.clone());
        let declared: HashMap<_, _> = setup
            .declared
            .then_some((server.port(), Declared::Http2))
            .into_iter()
            .collect();
        let parts = Parts {
            outbound: if setup.inbound { Vec::new() } else { vec![proxy] },
            inbound: if setup.inbound { vec![proxy] } else { Vec::new() },
            outbound_default: Some(server),
            inbound_default: Some(server),
            own_ports: Default::default(),
            inbound_protocols: declared.clone(),
            outbound_protocols: declared,
            srv: HashMap::new(),
            budget: setup.budget,
            http2: Arc::new(setup.http2),
            accept: Default::default(),
            detect: setup.detect,
            tunnel: Default::default(),
            dial: Default::default(),
            dialled: Default::default(),
            balance: setup.balance,
            health: Arc::new(setup.health),
            told: Default::default(),
            names,
            mesh: setup.mesh,
            cut_expired: setup.cut_expired,
            registry: registry.clone(),
        };
        let (commands, told) = tokio::sync::mpsc::unbounded_channel();
        let (listens, listening) = tokio::sync::oneshot::channel();
        let (jobs, mut asked) = tokio::sync::mpsc::unbounded_channel::<Job>();
        let exporting = setup.collector.map(|collector| export(collector, &registry));
        let (exporter, tracing) = exporting.unzip();
        let open = Arc::new(Open::default());
        let orders_open = open.clone();
        let worker = std::thread::spawn(move || {
            let listening = Box::new(move |local: &Local| {
                let local = local.clone();
                tokio::task::spawn_local(async move {
                    while let Some(job) = asked.recv().await {
                        job(local.clone());
                    }
                });
                listens.send(()).expect("the test waits");
            });
            let orders = Orders {
                tracing,
                access_log: setup.access_log.map(|lines| -> AccessLog {
                    let write = move |line: &[u8]| lines.lock().push_str(&String::from_utf8_lossy(line));
                    (access::Form::Json, Box::new(write))
                }),
                commands: told,
                open: orders_open,
                listening,
                deaf: Box::new(|why| panic!("{why}")),
            };
            worker::run(parts, orders).expect("it can listen")
        });
        listening.await.expect("it listens");
        World {
            worker: Some(worker),
            commands,
            proxy,
            meant: server,
            open,
            jobs,
            server: Arc::default(),
            seeds: Arc::default(),
            stop,
            registry,
            far: None,
            _exporter: exporter,
        }
    }

    /// A caller with a connection of its own.
    pub async fn caller(&self) -> Caller {
        self.caller_with((65_535, 65_535)).await
    }

    /// A caller that gives each stream and the connection so much.
    pub async fn caller_with(&self, windows: (u32, u32)) -> Caller {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(windows.0)
            .initial_connection_window_size(windows.1)
            // Where a busy machine keeps readers waiting, the h2 crate takes their small frames for an attack.
            .data_frame_budget(1 << 24);
        self.caller_of(&builder).await
    }

    /// A caller that is built so.
    pub async fn caller_of(&self, builder: &h2::client::Builder) -> Caller {
        let socket = TcpStream::connect(self.proxy)
            .await
            .expect("the proxy takes connections");
        socket.set_nodelay(true).expect("a TCP socket");
        let (sender, connection) = builder.handshake::<_, Buf>(socket).await.expect("a handshake");
        let connection = tokio::spawn(async move {
            // How it ended is seen by its calls.
            let _ = connection.await;
        });
        Caller {
            sender,
            seeds: self.seeds.clone(),
            connection: Arc::new(connection),
        }
    }

    /// Does something in the worker's thread, where calls of the process's own can be made.
    ///
    /// # Panics
    /// When the job does.
    pub async fn within<T, F>(&self, job: impl FnOnce(Local) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (done, doing) = tokio::sync::oneshot::channel();
        let job: Job = Box::new(move |local| {
            tokio::task::spawn_local(async move { drop(done.send(job(local).await)) });
        });
        assert!(self.jobs.send(job).is_ok(), "the worker lives");
        doing.await.expect("the job does not panic")
    }

    /// A number for a call's bytes that no other call has.
    pub fn seed(&self) -> u64 {
        seed(&self.seeds)
    }

    /// Tells the worker something.
    pub fn tell(&self, command: Command) {
        self.commands.send(command).expect("the worker lives");
    }

    /// [`World::metric`] of both workers, if there are two.
    pub fn metric_of_all(&self, name: &str, labels: &[&str]) -> f64 {
        let far = self.far.as_ref().map_or(0.0, |far| far.metric_of_all(name, labels));
        self.metric(name, labels) + far
    }

    /// The sum of a metric's samples that have all of `labels` in their text; of the caller's worker, if there are two.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.registry.scrape(Format::Prometheus);
        let samples = page.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
        });
        samples
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a metric is what it should be.
    ///
    /// # Panics
    /// When it does not become that.
    pub async fn until(&self, name: &str, labels: &[&str], is: impl Fn(f64) -> bool) {
        let began = Instant::now();
        while !is(self.metric(name, labels)) {
            let now = self.metric(name, labels);
            assert!(began.elapsed() < PATIENCE, "{name}{labels:?} stays {now}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until every call that began has been recorded.
    pub async fn until_all_ended(&self) {
        let began = Instant::now();
        loop {
            let started = self.metric("grpc_client_started_total", &[]) + self.metric("grpc_server_started_total", &[]);
            let handled = self.metric("grpc_client_handled_total", &[]) + self.metric("grpc_server_handled_total", &[]);
            if started == handled {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{started} calls began, {handled} ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the worker, and says what that cut.
    pub fn end(mut self) -> Cut {
        self.stop.cancel();
        let worker = self.worker.take().expect("it ends once");
        self.commands.send(Command::End).expect("the worker lives");
        worker.join().expect("the worker does not panic")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(worker) = self.worker.take() {
            // A worker that has ended already hears nothing; its thread says how it ended.
            let _ = self.commands.send(Command::End);
            let ended = worker.join();
            if !std::thread::panicking() {
                ended.expect("the worker does not panic");
            }
        }
    }
}

/// Somebody who calls.
#[derive(Clone)]
pub struct Caller {
    sender: SendRequest<Buf>,
    seeds: Arc<AtomicU64>,
    connection: Arc<tokio::task::JoinHandle<()>>,
}

/// A call whose request goes on.
pub struct Begun {
    /// The response, when it comes.
    pub response: ResponseFuture,
    /// The request's body.
    pub body: SendStream<Buf>,
    /// What the bytes of both directions grow from.
    pub seed: u64,
}

impl Caller {
    /// A call that sends so many bytes, and asks for so many.
    pub async fn call(&mut self, path: &str, send: u64, receive: u64) -> Result<Answer, h2::Error> {
        let request = request(path, &[("x-receive", &receive.to_string())]);
        let Begun {
            response,
            mut body,
            seed,
        } = self.begin(request).await?;
        // An answer may come before the request is whole, and a failed one does.
        let sending = send_bytes(&mut body, Bytes::new(seed), send, true);
        let receiving = async { collect(response.await?, seed).await };
        let (sent, answer) = tokio::join!(sending, receiving);
        let answer = answer?;
        if answer.grpc_status.as_deref() == Some("0") {
            sent?;
        }
        Ok(answer)
    }

    /// A call without a body.
    pub async fn ask(&mut self, request: Request<()>) -> Result<Answer, h2::Error> {
        self.sender = self.sender.clone().ready().await?;
        let (response, _) = self.sender.send_request(request, true)?;
        collect(response.await?, 0).await
    }

    /// A call whose request goes on.
    pub async fn begin(&mut self, mut request: Request<()>) -> Result<Begun, h2::Error> {
        let seed = seed(&self.seeds);
        request.headers_mut().insert("x-seed", seed.into());
        self.sender = self.sender.clone().ready().await?;
        let (response, body) = self.sender.send_request(request, false)?;
        Ok(Begun { response, body, seed })
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }
}

fn seed(seeds: &AtomicU64) -> u64 {
    seeds.fetch_add(1, Relaxed) << 8 | 0xA5
}

/// A request as a gRPC client begins it. Its authority is an address: no test here asks a name server.
pub fn request(path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::post(format!("http://127.0.0.1:50051{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request")
}

/// Reads an answer to its end, and checks each of its bytes.
pub async fn collect(response: Response<RecvStream>, seed: u64) -> Result<Answer, h2::Error> {
    let status = response.status().as_u16();
    let mut expected = Bytes::new(!seed);
    let head = response.headers().clone();
    let is_ours = head.contains_key("x-seeded");
    let mut body = response.into_body();
    let mut bytes = 0;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        bytes += piece.len() as u64;
        if is_ours {
            expected.check(&piece);
        }
        body.flow_control().release_capacity(piece.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let text = |name| {
        let value = trailers.get(name).or(head.get(name))?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(Answer {
        status,
        grpc_status: text("grpc-status"),
        grpc_message: text("grpc-message"),
        bytes,
        head,
        trailers,
    })
}

/// Sends so many bytes, as far as there is room at a time.
pub async fn send_bytes(body: &mut SendStream<Buf>, mut bytes: Bytes, n: u64, end: bool) -> Result<(), h2::Error> {
    let mut left = n;
    while left > 0 {
        body.reserve_capacity(left.min(16_384) as usize);
        let Some(room) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else {
            return Err(Reason::CANCEL.into());
        };
        let now = (room? as u64).min(left);
        left -= now;
        body.send_data(bytes.take(now as usize).into(), end && left == 0)?;
    }
    if n == 0 && end {
        body.send_data(Buf::new(), true)?;
    }
    Ok(())
}

/// Exports each call's span to a collector.
fn export(collector: SocketAddr, registry: &Arc<Registry>) -> (Exporter, (trace::Settings, Intake)) {
    let endpoint = Endpoint::parse(&format!("http://{collector}"), collector.port()).expect("an endpoint");
    let settings = export::Settings {
        traces: Some(Target::traces(endpoint)),
        protocol: Protocol::Grpc,
        ..export::Settings::default()
    };
    let (exporter, mut intakes) = Exporter::start(settings, registry.clone(), 1).expect("a thread");
    let sampling = trace::Settings {
        sampler: Sampler {
            root: Root::Always,
            parent_based: true,
        },
        ..trace::Settings::default()
    };
    (exporter, (sampling, intakes.remove(0)))
}

/// Takes connections and answers each call with the bytes that it asked for.
async fn serve(listener: TcpListener, setup: Setup, seen: Arc<Seen>) {
    while let Ok((socket, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Relaxed);
        let (setup, seen) = (setup.clone(), seen.clone());
        tokio::spawn(async move {
            socket.set_nodelay(true).expect("a TCP socket");
            let mut builder = h2::server::Builder::new();
            builder
                .initial_window_size(setup.server_windows.0)
                .initial_connection_window_size(setup.server_windows.1)
                .max_header_list_size(setup.server_header_list.unwrap_or(1 << 20));
            if let Some(streams) = setup.server_streams {
                builder.max_concurrent_streams(streams);
            }
            let Ok(mut connection) = builder.handshake::<_, Buf>(socket).await else {
                return;
            };
            // The h2 crate forgets credit that was released before its SETTINGS with a smaller window were acknowledged,
            // for ever: nobody reads before that.
            let settled = CancellationToken::new();
            let mut pings = connection.ping_pong().expect("it is the first to ask");
            let acknowledged = settled.clone();
            tokio::spawn(async move {
                // A connection that ends before has nobody who waits.
                let _ = pings.ping(h2::Ping::opaque()).await;
                acknowledged.cancel();
            });
            while let Some(Ok((request, respond))) = connection.accept().await {
                seen.requests.fetch_add(1, Relaxed);
                let (seen, settled) = (seen.clone(), settled.clone());
                tokio::spawn(async move {
                    settled.cancelled().await;
                    // A caller that leaves ends its call here, too.
                    if answer(request, respond).await.is_err() {
                        seen.left.fetch_add(1, Relaxed);
                    }
                });
            }
        });
    }
}

/// Answers as the request's fields ask: `x-receive` bytes, all fields of the request that begin with `x-echo` back, and
/// what `x-act` says.
async fn answer(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Buf>) -> Result<(), h2::Error> {
    let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
    let number = |name: &str| text(name).and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
    let (seed, receive) = (number("x-seed"), number("x-receive"));
    let act = text("x-act").unwrap_or("").to_owned();
    let mut response = Response::builder()
        .header("content-type", "application/grpc")
        .header("x-seeded", "1");
    for (name, value) in request.headers() {
        if name.as_str().starts_with("x-echo") {
            response = response.header(name, value);
        }
    }
    let response = response.body(()).expect("a response");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    let mut body = request.into_body();
    let mut expected = Bytes::new(seed);
    if act == "silent" {
        std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
        return Err(Reason::CANCEL.into());
    }
    if act == "early" {
        // The answer is whole before the request is: the rest of it is not wanted (RFC 9113, 8.1).
        let mut send = respond.send_response(response, false)?;
        send_bytes(&mut send, Bytes::new(!seed), receive, false).await?;
        return send.send_trailers(trailers);
    }
    if act == "trailers-only" {
        let mut response = response;
        response
            .headers_mut()
            .insert("grpc-status", "5".parse().expect("a value"));
        respond.send_response(response, true)?;
        return Ok(());
    }
    let mut send = respond.send_response(response, false)?;
    let reading = async {
        while let Some(piece) = body.data().await {
            let piece = piece?;
            expected.check(&piece);
            body.flow_control().release_capacity(piece.len())?;
        }
        let trailers = body.trailers().await?;
        Ok(trailers)
    };
    if let Some(at) = act.strip_prefix("reset-at ") {
        let at = at.parse().expect("a number");
        let writing = send_bytes(&mut send, Bytes::new(!seed), at, false);
        tokio::select! {
            done = writing => done?,
            failed = async { reading.await.map(drop) } => failed?,
        }
        send.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let writing = send_bytes(&mut send, Bytes::new(!seed), receive, false);
    let (asked, ()) = tokio::try_join!(reading, writing)?;
    for (name, value) in asked.iter().flatten() {
        trailers.append(name, value.clone());
    }
    send.send_trailers(trailers)
}

/// A port that nobody listens on, at an address that no other world of this process has.
pub fn free_port() -> SocketAddr {
    static WORLDS: AtomicU64 = AtomicU64::new(0);
    let [.., a, b] = WORLDS.fetch_add(1, Relaxed).to_be_bytes();
    let ip = std::net::Ipv4Addr::new(127, (std::process::id() % 250) as u8 + 1, a, b.max(1));
    let listener = std::net::TcpListener::bind((ip, 0)).expect("a free port");
    listener.local_addr().expect("an address")
}
