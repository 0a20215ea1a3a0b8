//! A control plane for one test: it certifies whoever has the token, and says of the mesh what the test tells it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use portunus_proto::mesh::v1;
use portunus_proto::mesh::v1::discovery_server::{Discovery, DiscoveryServer};
use portunus_proto::mesh::v1::follow_request::Ask;
use portunus_proto::mesh::v1::follow_response::Answer;
use portunus_proto::mesh::v1::identity_server::{Identity, IdentityServer};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};
use tower::ServiceExt;

pub(super) const DOMAIN: &str = "mesh.test";
pub(super) const CONTROL: &str = "spiffe://mesh.test/ns/portunus/sa/control";
pub(super) const WORKLOAD: &str = "spiffe://mesh.test/ns/shop/sa/greeter";
pub(super) const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// A root, and what it certifies.
pub(super) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(super) root: CertificateDer<'static>,
}

impl Ca {
    pub(super) fn new() -> Ca {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        // Roots of one name would be taken for one another, as far as the signature.
        let number = NEXT.fetch_add(1, Relaxed);
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("root {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").der().clone();
        let issuer = Issuer::new(params, key);
        Ca { issuer, root }
    }

    fn leaf(id: &str, life: (SystemTime, SystemTime)) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (life.0.into(), life.1.into());
        params
    }

    fn server(&self, id: &str, clients: &CertificateDer<'static>) -> ServerConfig {
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        let key = KeyPair::generate().expect("a key");
        let leaf = Ca::leaf(id, (now - day, now + day))
            .signed_by(&key, &self.issuer)
            .expect("a leaf");
        let mut roots = RootCertStore::empty();
        roots.add(clients.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .expect("a verifier");
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("they fit");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// What the fake was asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// For each request for a certificate, whether the token proved it.
    pub(super) by_token: Vec<bool>,
    pub(super) hellos: Vec<v1::Hello>,
    pub(super) asks: Vec<Ask>,
}

/// What the fake answers.
pub(super) struct Said {
    pub(super) identity: String,
    /// From so long ago, to in so long.
    pub(super) life: (Duration, Duration),
    /// What is answered to those who prove themselves by certificate, and to those who do by token.
    pub(super) no_renewal: Option<Status>,
    pub(super) no_token: Option<Status>,
    pub(super) no_stream: Option<Status>,
    /// On new connections clients' certificates are taken for those of a root that is not trusted.
    pub(super) believes_nobody: bool,
    pub(super) inbound: v1::Inbound,
    /// What is answered to a request for a certificate is written down at once, and told only then.
    pub(super) answers_when: Option<Arc<Notify>>,
    /// Additional roots of the bundle.
    pub(super) more_roots: Vec<Vec<u8>>,
    pub(super) known: HashMap<String, v1::update::What>,
}

/// The fake, and what can be done to it.
#[derive(Clone)]
pub(super) struct Fake(Arc<Inner>);

struct Inner {
    ca: Ca,
    said: Mutex<Said>,
    seen: watch::Sender<Seen>,
    pushes: broadcast::Sender<v1::FollowResponse>,
    frozen: AtomicBool,
}

/// A fake that listens. To drop it is to kill it.
pub(super) struct Listening {
    pub(super) addr: SocketAddr,
    _serving: JoinSet<()>,
}

impl Fake {
    pub(super) fn new() -> Fake {
        let hour = Duration::from_secs(3_600);
        Fake(Arc::new(Inner {
            ca: Ca::new(),
            said: Mutex::new(Said {
                identity: CONTROL.to_owned(),
                life: (hour, 24 * hour),
                no_renewal: None,
                no_token: None,
                no_stream: None,
                believes_nobody: false,
                inbound: v1::Inbound::default(),
                answers_when: None,
                more_roots: Vec::new(),
                known: HashMap::new(),
            }),
            seen: watch::Sender::new(Seen::default()),
            pushes: broadcast::channel(64).0,
            frozen: AtomicBool::new(false),
        }))
    }

    pub(super) fn root(&self) -> CertificateDer<'static> {
        self.0.ca.root.clone()
    }

    pub(super) fn say(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.0.said.lock());
    }

    /// Says something on every stream.
    pub(super) fn push(&self, answer: Answer) {
        let _ = self.0.pushes.send(v1::FollowResponse { answer: Some(answer) });
    }

    pub(super) fn bundle(&self) -> v1::Bundle {
        let mut roots = vec![self.root().to_vec()];
        roots.extend(self.0.said.lock().more_roots.iter().cloned());
        v1::Bundle {
            trust_domain: DOMAIN.to_owned(),
            roots,
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.0.seen.borrow().clone()
    }

    pub(super) async fn until(&self, is_so: impl FnMut(&Seen) -> bool) -> Seen {
        self.0
            .seen
            .subscribe()
            .wait_for(is_so)
            .await
            .expect("the fake lives")
            .clone()
    }

    /// From now on it reads nothing, as one that was stopped.
    pub(super) fn freeze(&self) {
        self.0.frozen.store(true, Relaxed);
    }

    pub(super) async fn listen(&self) -> Listening {
        self.listen_at(([127, 0, 0, 1], 0).into()).await
    }

    pub(super) async fn listen_at(&self, addr: SocketAddr) -> Listening {
        let listener = TcpListener::bind(addr).await.expect("the address is free");
        let addr = listener.local_addr().expect("it has one");
        let identity = self.0.said.lock().identity.clone();
        let believing = |clients| TlsAcceptor::from(Arc::new(self.0.ca.server(&identity, clients)));
        let (tls, of_strangers) = (believing(&self.root()), believing(&Ca::new().root));
        let fake = self.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.expect("it listens");
                let believes_nobody = fake.0.said.lock().believes_nobody;
                let tls = if believes_nobody { &of_strangers } else { &tls };
                connections.spawn(fake.clone().serve(tls.clone(), socket));
            }
        });
        Listening {
            addr,
            _serving: serving,
        }
    }

    async fn serve(self, tls: TlsAcceptor, socket: TcpStream) {
        let Ok(stream) = tls.accept(socket).await else { return };
        let caller = Caller {
            fake: self.clone(),
            has_certificate: stream.get_ref().1.peer_certificates().is_some(),
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let caller = caller.clone();
            async move {
                if request.uri().path().starts_with("/portunus.mesh.v1.Identity/") {
                    IdentityServer::new(caller).oneshot(request).await
                } else {
                    let answer: Result<_, Infallible> = DiscoveryServer::new(caller).oneshot(request).await;
                    answer
                }
            }
        });
        let stream = Freezing {
            stream,
            fake: self.clone(),
        };
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

#[derive(Clone)]
struct Caller {
    fake: Fake,
    has_certificate: bool,
}

#[tonic::async_trait]
impl Identity for Caller {
    async fn certify(
        &self,
        request: tonic::Request<v1::CertifyRequest>,
    ) -> Result<Response<v1::CertifyResponse>, Status> {
        let request = request.into_inner();
        let by_token = !request.join_token.is_empty();
        let (inner, bundle) = (&self.fake.0, self.fake.bundle());
        inner.seen.send_modify(|seen| seen.by_token.push(by_token));
        let (leaf, when) = {
            let said = inner.said.lock();
            let refused = if by_token { &said.no_token } else { &said.no_renewal };
            if let Some(status) = refused {
                return Err(status.clone());
            }
            match by_token {
                true if request.join_token != TOKEN => return Err(Status::unauthenticated("the token is not known")),
                false if !self.has_certificate || request.workload != "shop/greeter" => {
                    return Err(Status::unauthenticated("nothing proves who you are"));
                }
                _ => {}
            }
            let csr = CertificateSigningRequestDer::from(request.csr);
            let mut csr = CertificateSigningRequestParams::from_der(&csr).expect("it is signed");
            let now = SystemTime::now();
            csr.params = Ca::leaf(WORKLOAD, (now - said.life.0, now + said.life.1));
            let leaf = csr.signed_by(&inner.ca.issuer).expect("a leaf");
            (leaf, said.answers_when.clone())
        };
        if let Some(when) = when {
            when.notified().await;
        }
        Ok(Response::new(v1::CertifyResponse {
            chain: vec![leaf.der().to_vec()],
            bundle: Some(bundle),
            workload: "shop/greeter".to_owned(),
        }))
    }
}

#[tonic::async_trait]
impl Discovery for Caller {
    type FollowStream = ReceiverStream<Result<v1::FollowResponse, Status>>;

    async fn follow(
        &self,
        request: tonic::Request<Streaming<v1::FollowRequest>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        assert!(self.has_certificate, "nobody follows without a certificate");
        let mut asks = request.into_inner();
        let (answers, answered) = mpsc::channel(64);
        let Ok(Some(v1::FollowRequest {
            ask: Some(Ask::Hello(hello)),
        })) = asks.message().await
        else {
            return Err(Status::invalid_argument("the first word is hello"));
        };
        let fake = self.fake.clone();
        let mut pushes = fake.0.pushes.subscribe();
        fake.0.seen.send_modify(|seen| seen.hellos.push(hello));
        if let Some(status) = fake.0.said.lock().no_stream.clone() {
            return Err(status);
        }
        let say = move |answer| {
            let answers = answers.clone();
            async move {
                answers
                    .send(Ok(v1::FollowResponse { answer: Some(answer) }))
                    .await
                    .is_ok()
            }
        };
        tokio::spawn(async move {
            let inbound = fake.0.said.lock().inbound.clone();
            say(Answer::Bundle(fake.bundle())).await;
            say(Answer::Inbound(inbound)).await;
            loop {
                let is_heard = tokio::select! {
                    ask = asks.message() => match ask {
                        Ok(Some(v1::FollowRequest { ask: Some(ask) })) => {
                            let answer = fake.answer(&ask);
                            fake.0.seen.send_modify(|seen| seen.asks.push(ask));
                            match answer {
                                Some(answer) => say(answer).await,
                                None => true,
                            }
                        }
                        _ => false,
                    },
                    push = pushes.recv() => match push {
                        Ok(v1::FollowResponse { answer: Some(answer) }) => say(answer).await,
                        _ => false,
                    },
                };
                if !is_heard {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

impl Fake {
    fn answer(&self, ask: &Ask) -> Option<Answer> {
        let Ask::Subscribe(subject) = ask else { return None };
        let what = match &subject.what {
            Some(v1::subject::What::Name(name)) => self.0.said.lock().known.get(&name.host).cloned(),
            _ => None,
        };
        Some(Answer::Update(v1::Update {
            subject: Some(subject.clone()),
            what: Some(what.unwrap_or(v1::update::What::Unknown(v1::Unknown::default()))),
        }))
    }
}

/// A stream that reads nothing more once the fake is frozen.
struct Freezing<S> {
    stream: S,
    fake: Fake,
}

impl<S: AsyncRead + Unpin> AsyncRead for Freezing<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.fake.0.frozen.load(Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Freezing<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
