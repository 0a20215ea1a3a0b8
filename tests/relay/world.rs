//! A world of three: a caller and a server that are the `h2` crate's, and one worker of ours between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes as Buf;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use portunus_sidecar::connect::resolve::{self, Names};
use portunus_sidecar::telemetry::Registry;
use portunus_sidecar::worker::{self, Command, Cut, Open, Orders, Parts};
use portunus_sidecar::{http2, telemetry};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bytes::Bytes;

/// A worker of ours, and a server behind it.
pub struct World {
    worker: Option<std::thread::JoinHandle<Cut>>,
    commands: tokio::sync::mpsc::UnboundedSender<Command>,
    /// Where the worker takes calls.
    pub proxy: SocketAddr,
    seeds: Arc<AtomicU64>,
    stop: CancellationToken,
    /// What the worker counts.
    pub registry: Arc<Registry>,
}

/// What a caller saw.
#[derive(Debug)]
pub struct Answer {
    /// `:status`.
    pub status: u16,
    /// `grpc-status`, of the headers or the trailers.
    pub grpc_status: Option<String>,
    /// `grpc-message`.
    pub grpc_message: Option<String>,
    /// Bytes of payload, all of them checked.
    pub bytes: u64,
}

/// How the ends are set up.
#[derive(Clone)]
pub struct Setup {
    /// The worker's limits.
    pub http2: http2::Settings,
    /// The window that the caller gives each stream, and its connection.
    pub caller_windows: (u32, u32),
    /// The window that the server gives each stream, and its connection.
    pub server_windows: (u32, u32),
    /// Streams that the server takes at once.
    pub server_streams: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            http2: http2::Settings::default(),
            caller_windows: (65_535, 65_535),
            server_windows: (65_535, 65_535),
            server_streams: None,
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
        tokio::spawn(serve(listener, setup.clone()));
        World::before(server, setup.http2).await
    }

    /// A world whose server is somebody else's.
    pub async fn before(server: SocketAddr, http2: http2::Settings) -> World {
        let proxy = free_port();
        let stop = CancellationToken::new();
        let registry = Registry::new(&telemetry::Settings::default());
        let names = Names::start(resolve::Settings::default(), &TaskTracker::new(), stop.clone());
        let parts = Parts {
            outbound: vec![proxy],
            inbound: Vec::new(),
            outbound_default: Some(server),
            inbound_default: None,
            own_ports: Default::default(),
            inbound_protocols: HashMap::new(),
            outbound_protocols: HashMap::new(),
            srv: HashMap::new(),
            budget: 256 << 20,
            http2: Arc::new(http2),
            accept: Default::default(),
            detect: Default::default(),
            tunnel: Default::default(),
            dial: Default::default(),
            balance: Default::default(),
            names,
            registry: registry.clone(),
        };
        let (commands, told) = tokio::sync::mpsc::unbounded_channel();
        let (listens, listening) = tokio::sync::oneshot::channel();
        let worker = std::thread::spawn(move || {
            let listening = Box::new(move || listens.send(()).expect("the test waits"));
            let orders = Orders {
                commands: told,
                open: Arc::new(Open::default()),
                listening,
            };
            worker::run(parts, orders).expect("it can listen")
        });
        listening.await.expect("it listens");
        World {
            worker: Some(worker),
            commands,
            proxy,
            seeds: Arc::default(),
            stop,
            registry,
        }
    }

    /// A caller with a connection of its own.
    pub async fn caller(&self) -> Caller {
        self.caller_with((65_535, 65_535)).await
    }

    /// A caller that gives each stream and the connection so much.
    pub async fn caller_with(&self, windows: (u32, u32)) -> Caller {
        let socket = TcpStream::connect(self.proxy)
            .await
            .expect("the proxy takes connections");
        socket.set_nodelay(true).expect("a TCP socket");
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(windows.0)
            .initial_connection_window_size(windows.1)
            .handshake::<_, Buf>(socket)
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        Caller {
            sender,
            seeds: self.seeds.clone(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(worker) = self.worker.take() {
            self.commands.send(Command::End).expect("the worker lives");
            worker.join().expect("the worker does not panic");
        }
    }
}

/// Somebody who calls.
#[derive(Clone)]
pub struct Caller {
    sender: SendRequest<Buf>,
    seeds: Arc<AtomicU64>,
}

impl Caller {
    /// A call that sends so many bytes, and asks for so many.
    pub async fn call(&mut self, path: &str, send: u64, receive: u64) -> Result<Answer, h2::Error> {
        let (response, mut body, seed) = self.begin(path, receive).await?;
        send_bytes(&mut body, Bytes::new(seed), send, true).await?;
        collect(response.await?, seed).await
    }

    /// A call whose request goes on.
    pub async fn begin(
        &mut self,
        path: &str,
        receive: u64,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Buf>, u64), h2::Error> {
        let seed = self.seeds.fetch_add(1, Relaxed) << 8 | 0xA5;
        let request = Request::post(format!("http://server.test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-seed", seed)
            .header("x-receive", receive)
            .body(())
            .expect("a request");
        self.sender = self.sender.clone().ready().await?;
        let (response, body) = self.sender.send_request(request, false)?;
        Ok((response, body, seed))
    }
}

/// Reads an answer to its end, and checks each of its bytes.
pub async fn collect(response: Response<RecvStream>, seed: u64) -> Result<Answer, h2::Error> {
    let status = response.status().as_u16();
    let mut expected = Bytes::new(!seed);
    let head = response.headers().clone();
    let mut body = response.into_body();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        expected.check(&piece);
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
        bytes: expected.count(),
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

/// Takes connections and answers each call with the bytes that it asked for.
async fn serve(listener: TcpListener, setup: Setup) {
    while let Ok((socket, _)) = listener.accept().await {
        let setup = setup.clone();
        tokio::spawn(async move {
            socket.set_nodelay(true).expect("a TCP socket");
            let mut builder = h2::server::Builder::new();
            builder
                .initial_window_size(setup.server_windows.0)
                .initial_connection_window_size(setup.server_windows.1);
            if let Some(streams) = setup.server_streams {
                builder.max_concurrent_streams(streams);
            }
            let Ok(mut connection) = builder.handshake::<_, Buf>(socket).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(async move {
                    // A caller that leaves ends its call here, too.
                    let _ = answer(request, respond).await;
                });
            }
        });
    }
}

async fn answer(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Buf>) -> Result<(), h2::Error> {
    let number = |name: &str| -> u64 {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .expect("a number")
    };
    let (seed, receive) = (number("x-seed"), number("x-receive"));
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .body(())
        .expect("a response");
    let mut body = request.into_body();
    let mut expected = Bytes::new(seed);
    let mut send = respond.send_response(response, false)?;
    let reading = async {
        while let Some(piece) = body.data().await {
            let piece = piece?;
            expected.check(&piece);
            body.flow_control().release_capacity(piece.len())?;
        }
        body.trailers().await.map(drop)
    };
    let writing = send_bytes(&mut send, Bytes::new(!seed), receive, false);
    tokio::try_join!(reading, writing)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().expect("a value"));
    send.send_trailers(trailers)
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address")
}
