//! The ends around a sidecar: applications that count what reaches them, and peers that speak TLS as they are told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portunus_proto::{SpiffeId, TrustDomain};
use portunus_sidecar::detect;
use portunus_sidecar::policy::Mode;
use portunus_sidecar::tls::{Bundle, Credential};
use portunus_sidecar::worker::Mesh;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use support::pki;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{Authority, OURS, leaf_params};
use crate::world::{PATIENCE, Setup};

/// The ALPN of the mesh's HTTP/2.
pub const H2: &[u8] = b"portunus/h2";
/// The ALPN of the mesh's tunnels.
pub const TCP: &[u8] = b"portunus/tcp";

pub fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).expect("a SPIFFE id")
}

/// What the sidecar under test proves itself by, where `root` is believed.
pub fn ours(root: &Authority) -> Arc<Credential> {
    let shown = root.certify(&leaf_params(OURS));
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let bundle = Bundle::new(domain, &[root.issuer.der().clone()]).expect("a bundle");
    Arc::new(Credential::new(shown.chain.clone(), shown.private(), bundle).expect("a credential"))
}

/// The mesh of a sidecar that takes calls.
pub fn inbound(root: &Authority, mode: Mode) -> Setup {
    of(pki::mesh(ours(root), mode, |_| None), true)
}

/// The same, where whoever speaks at once is heard before the application is dialled for a silence, however busy this machine.
pub fn patient(root: &Authority, mode: Mode) -> Setup {
    waiting(inbound(root, mode))
}

/// The same of any setup: nobody is taken for silent because this machine pauses.
pub fn waiting(setup: Setup) -> Setup {
    Setup {
        detect: detect::Settings {
            silence: PATIENCE,
            ..detect::Settings::default()
        },
        ..setup
    }
}

/// What a port may take.
pub const MODES: [Mode; 3] = [Mode::Strict, Mode::Permissive, Mode::Disabled];

/// The mesh of a sidecar that calls, and holds everybody for `who`.
pub fn outbound(root: &Authority, who: &str) -> Setup {
    let who = id(who);
    of(pki::mesh(ours(root), Mode::Strict, move |_| Some(who.clone())), false)
}

/// A world of one worker, which belongs to a mesh.
pub fn of(mesh: Mesh, inbound: bool) -> Setup {
    Setup {
        mesh: Some(mesh),
        inbound,
        pair: false,
        ..Setup::default()
    }
}

/// The metric of handshakes, by what came of them.
pub const HANDSHAKES: &str = "portunus_tls_handshakes_total";

/// An application, or whoever is at its place: it takes all that comes and says nothing.
#[derive(Debug)]
pub struct Ear {
    pub addr: SocketAddr,
    pub connections: AtomicU64,
    pub heard: Mutex<Vec<u8>>,
    /// Connections that have ended.
    pub ended: AtomicU64,
}

impl Ear {
    /// In plain.
    pub async fn open() -> Arc<Ear> {
        Ear::with(None).await
    }

    /// In TLS, where what is heard is what was inside.
    pub async fn in_tls(config: ServerConfig) -> Arc<Ear> {
        Ear::with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Arc<Ear> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let ear = Arc::new(Ear {
            addr: listener.local_addr().expect("an address"),
            connections: AtomicU64::new(0),
            heard: Mutex::default(),
            ended: AtomicU64::new(0),
        });
        let told = ear.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                told.connections.fetch_add(1, Relaxed);
                let (ear, tls) = (told.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => ear.hear(socket).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(socket).await {
                                ear.hear(stream).await;
                            }
                        }
                    }
                    ear.ended.fetch_add(1, Relaxed);
                });
            }
        });
        ear
    }

    async fn hear(&self, mut stream: impl tokio::io::AsyncRead + Unpin) {
        let mut room = [0; 4_096];
        while let Ok(n @ 1..) = stream.read(&mut room).await {
            self.heard.lock().extend_from_slice(&room[..n]);
        }
    }

    /// Waits until whoever came was heard to the end.
    pub async fn until_all_ended(&self) {
        let began = Instant::now();
        while self.ended.load(Relaxed) < self.connections.load(Relaxed) {
            assert!(began.elapsed() < PATIENCE, "a connection does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Nobody has come, and nothing was said.
    pub fn has_heard_nothing(&self) -> bool {
        self.connections.load(Relaxed) == 0 && self.heard.lock().is_empty()
    }
}

/// A handshake as a client with a name that nobody asks for.
pub async fn shake(to: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(to).await?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from("anybody.example").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// Speaks in TLS to `to` for whoever comes in plain: so peers that know no TLS are members of the mesh.
pub async fn veil(to: SocketAddr, config: ClientConfig) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut plain, _)) = listener.accept().await {
            let config = config.clone();
            tokio::spawn(async move {
                plain.set_nodelay(true).expect("a TCP socket");
                if let Ok(mut stream) = shake(to, config).await {
                    // Either side's end is the end of both.
                    let _ = tokio::io::copy_bidirectional(&mut plain, &mut stream).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    addr
}

/// A client's configuration with these protocols.
pub fn speaking(mut config: ClientConfig, protocols: &[&[u8]]) -> ClientConfig {
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config
}
