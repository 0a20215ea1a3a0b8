//! A real server on loopback, asked by a real client of gRPC over TLS.

use std::fs;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::rt::TokioIo;
use portunus_proto::SpiffeId;
use portunus_proto::mesh::v1::discovery_client::DiscoveryClient;
use portunus_proto::mesh::v1::identity_client::IdentityClient;
use portunus_proto::mesh::v1::{
    CertifyRequest, CertifyResponse, FollowRequest, FollowResponse, Hello, NamePort, Subject, follow_request::Ask,
    follow_response::Answer, subject, update,
};
use portunus_proto::svid::{self, Usage};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::*;
use crate::cluster::JoinToken;
use crate::cluster::file::Source;
use crate::control::identity::Authority;
use crate::control::{Error, Settings, run};
use crate::testing::{Directory, Log, domain, state_files, workload};

mod certificates;
mod hostile;

const SOON: Duration = Duration::from_secs(15);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A control that runs, and its directories.
struct Control {
    address: SocketAddr,
    admin: SocketAddr,
    manifests: Directory,
    state: Directory,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Control {
    async fn over(manifests: &str) -> Control {
        Control::with(manifests, Limits::default()).await
    }

    async fn with(manifests: &str, limits: Limits) -> Control {
        let (manifests, state) = (Directory::new().with("all.yaml", manifests), Directory::new());
        let [address, admin] = free();
        let settings = Settings {
            source: Source::new(&manifests.0),
            files: state_files(&state.0),
            cluster_domain: "cluster.local".to_owned(),
            namespace: "portunus".to_owned(),
            lifetime: DAY,
            listen: vec![address],
            admin_listen: vec![admin],
            limits,
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(settings, stop.clone()));
        let control = Control {
            address,
            admin,
            manifests,
            state,
            stop,
            task,
        };
        control.page_says("/live", "live").await;
        control
    }

    async fn page(&self, path: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(self.admin).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        Ok(page)
    }

    /// Waits until a page has this.
    async fn page_says(&self, path: &str, expected: &str) -> String {
        let look = async {
            loop {
                match self.page(path).await {
                    Ok(page) if page.contains(expected) => return page,
                    Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        timeout(SOON, look)
            .await
            .unwrap_or_else(|_| panic!("{path} never says {expected}"))
    }

    fn authority(&self) -> Authority {
        state_files(&self.state.0).load(SystemTime::now()).expect("it is there")
    }

    async fn channel(&self, credential: Option<&Credential>) -> Result<Channel, tonic::transport::Error> {
        let roots = self.authority().roots().to_vec();
        let connector = Connector {
            address: self.address,
            tls: TlsConnector::from(Arc::new(client(roots, credential))),
        };
        Endpoint::from_static("http://control")
            .connect_with_connector(connector)
            .await
    }

    async fn certify(
        &self,
        credential: Option<&Credential>,
        token: &str,
        name: &str,
    ) -> Result<(Credential, CertifyResponse), Status> {
        let key = KeyPair::generate().expect("a key can be made");
        self.certify_key(&key, credential, token, name).await
    }

    async fn certify_key(
        &self,
        key: &KeyPair,
        credential: Option<&Credential>,
        token: &str,
        name: &str,
    ) -> Result<(Credential, CertifyResponse), Status> {
        let csr = CertificateParams::default()
            .serialize_request(key)
            .expect("it can be signed");
        let request = CertifyRequest {
            csr: csr.der().to_vec(),
            join_token: token.to_owned(),
            workload: name.to_owned(),
        };
        let channel = self
            .channel(credential)
            .await
            .map_err(|why| Status::unavailable(format!("{why:?}")))?;
        let response = IdentityClient::new(channel).certify(request).await?.into_inner();
        let chain = response
            .chain
            .iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect();
        let key = key.serialize_der();
        Ok((Credential { chain, key }, response))
    }

    async fn ends(self) {
        self.stop.cancel();
        timeout(SOON, self.task)
            .await
            .expect("it ends")
            .expect("it does not panic")
            .expect("it ended well");
    }
}

/// What a client proves itself with.
struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn client(roots: Vec<CertificateDer<'static>>, credential: Option<&Credential>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(IsControl { roots }));
    let mut config = match credential {
        None => builder.with_no_client_auth(),
        Some(Credential { chain, key }) => {
            let key = PrivateKeyDer::try_from(key.clone()).expect("it is PKCS#8");
            builder.with_client_auth_cert(chain.clone(), key).expect("they fit")
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Takes control's own certificate and no other, as a sidecar does.
#[derive(Debug)]
struct IsControl {
    roots: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for IsControl {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let anchors: Vec<_> = self
            .roots
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root).expect("a root"))
            .collect();
        let usage = webpki::KeyUsage::server_auth();
        let algorithms = webpki::ALL_VERIFICATION_ALGS;
        let parsed = webpki::EndEntityCert::try_from(leaf).expect("it can be read");
        let chain = parsed.verify_for_usage(algorithms, &anchors, intermediates, now, usage, None, None);
        chain.map_err(|why| match why {
            webpki::Error::UnknownIssuer => rustls::CertificateError::UnknownIssuer.into(),
            other => rustls::Error::General(other.to_string()),
        })?;
        let id = svid::judge(leaf, &domain(), &[Usage::Server])
            .expect("it is an SVID")
            .id;
        assert_eq!(id.as_str(), "spiffe://mesh.test/ns/portunus/sa/control");
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 alone".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[derive(Clone)]
struct Connector {
    address: SocketAddr,
    tls: TlsConnector,
}

impl tonic::codegen::Service<Uri> for Connector {
    type Response = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Connector { address, tls } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("control").expect("a name");
            Ok(TokioIo::new(tls.connect(name, stream).await?))
        })
    }
}

/// A stream of `Follow`.
struct Following {
    asks: mpsc::Sender<FollowRequest>,
    answers: Streaming<FollowResponse>,
}

impl Following {
    async fn begin(control: &Control, credential: Option<&Credential>, workload: &str) -> Result<Following, Status> {
        let channel = control
            .channel(credential)
            .await
            .map_err(|why| Status::unavailable(format!("{why:?}")))?;
        let (asks, requests) = mpsc::channel(16);
        let (workload, version) = (workload.to_owned(), "test".to_owned());
        let hello = FollowRequest {
            ask: Some(Ask::Hello(Hello { workload, version })),
        };
        asks.send(hello).await.expect("there is room");
        let answers = DiscoveryClient::new(channel)
            .follow(ReceiverStream::new(requests))
            .await?
            .into_inner();
        Ok(Following { asks, answers })
    }

    async fn subscribe(&self, host: &str, port: u32) {
        let host = host.to_owned();
        let what = Some(subject::What::Name(NamePort { host, port }));
        let ask = Some(Ask::Subscribe(Subject { what }));
        self.asks.send(FollowRequest { ask }).await.expect("there is room");
    }

    async fn next(&mut self) -> Result<Option<Answer>, Status> {
        let response = timeout(SOON, self.answers.message()).await.expect("something comes")?;
        Ok(response.and_then(|response| response.answer))
    }

    async fn endpoints(&mut self) -> usize {
        match self.next().await.expect("it lives") {
            Some(Answer::Update(update)) => match update.what {
                Some(update::What::Service(service)) => service.endpoints.len(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

/// Two places to listen at, of an address that no other control has: nobody takes them before it listens there.
fn free() -> [SocketAddr; 2] {
    static CONTROLS: AtomicU16 = AtomicU16::new(1);
    let [a, b] = CONTROLS.fetch_add(1, Relaxed).to_be_bytes();
    let own = Ipv4Addr::new(127, (std::process::id() % 250) as u8 + 1, a, b);
    // Both are open at once, so they differ.
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind((own, 0)).expect("a port is free"));
    listeners.map(|listener| listener.local_addr().expect("it has one"))
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                       spec: {selector: {app: web}, ports: [{port: 80, targetPort: 50051}]}\n";

#[tokio::test]
async fn a_sidecar_joins_renews_follows_and_is_told_to_go_elsewhere() {
    let token = JoinToken::generate();
    let web = |name, address| workload(name, "web", address, Some(&token));
    let control = Control::over(&(SERVICE.to_owned() + &web("a", "10.0.0.1"))).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, response) = control.certify(None, &token.reveal(), "").await.expect("it is proven");
    assert_eq!(response.workload, "shop/a");
    let (renewed, _) = control
        .certify(Some(&credential), "", "shop/a")
        .await
        .expect("it is proven");
    let mut following = Following::begin(&control, Some(&renewed), "shop/a")
        .await
        .expect("it may");
    following.subscribe("web", 80).await;
    assert!(matches!(following.next().await, Ok(Some(Answer::Bundle(_)))));
    assert!(matches!(following.next().await, Ok(Some(Answer::Inbound(_)))));
    assert_eq!(following.endpoints().await, 1);
    // A bad state changes nothing; a good one arrives.
    // It comes whole: one that is read while it is written is refused twice.
    control.state.write("new", "kind: [\n");
    fs::rename(control.state.0.join("new"), control.manifests.0.join("more.yaml")).expect("it can be moved");
    control.page_says("/source", "more.yaml:").await;
    control.page_says("/ready", "200 OK").await;
    control
        .manifests
        .write("more.yaml", &workload("b", "web", "10.0.0.2", None));
    assert_eq!(following.endpoints().await, 2);
    // A new root is told of while the stream runs.
    let other = Directory::new();
    state_files(&other.0).load(SystemTime::now()).expect("it can be made");
    fs::copy(other.0.join("roots/root.pem"), control.state.0.join("roots/two.pem")).expect("it can be copied");
    match following.next().await {
        Ok(Some(Answer::Bundle(bundle))) => assert_eq!(bundle.roots.len(), 2),
        other => panic!("{other:?}"),
    }
    let page = control.page_says("/metrics", "portunus_control_streams 1").await;
    for line in [
        "portunus_control_certificates_total{proof=\"token\"} 1",
        "portunus_control_certificates_total{proof=\"certificate\"} 1",
        "portunus_control_states_total{result=\"refused\"} 1",
    ] {
        assert!(page.contains(line), "{line}: {page}");
    }
    control.stop.cancel();
    assert_eq!(following.next().await.expect_err("it stops").code(), Code::Unavailable);
    control.ends().await;
}

#[tokio::test]
async fn a_key_of_each_kind_is_certified_and_its_certificate_renews_and_follows() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        let key = || KeyPair::generate_for(algorithm).expect("a key can be made");
        let (own, response) = control
            .certify_key(&key(), None, &token.reveal(), "")
            .await
            .expect("it joins");
        let id = svid::judge(&own.chain[0], &domain(), &[Usage::Server, Usage::Client])
            .expect("it is an SVID")
            .id;
        assert_eq!(id.as_str(), "spiffe://mesh.test/ns/shop/sa/web", "{algorithm:?}");
        assert_eq!(response.workload, "shop/a");
        // Each of these is a handshake in which the key has to prove itself.
        let renewed = control.certify_key(&key(), Some(&own), "", "shop/a").await;
        let (renewed, _) = renewed.unwrap_or_else(|why| panic!("{algorithm:?}: {why}"));
        let following = Following::begin(&control, Some(&renewed), "shop/a").await;
        let mut following = following.unwrap_or_else(|why| panic!("{algorithm:?}: {why}"));
        assert!(
            matches!(following.next().await, Ok(Some(Answer::Bundle(_)))),
            "{algorithm:?}"
        );
    }
    control.ends().await;
}

#[tokio::test]
async fn without_proof_only_certify_answers_and_it_says_what_is_missing() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let refused = Following::begin(&control, None, "shop/a")
        .await
        .err()
        .expect("it has no certificate");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("client certificate"), "{refused:?}");
    let code = |refused: Result<_, Status>| refused.map(|(_, _)| ()).expect_err("it is refused").code();
    assert_eq!(code(control.certify(None, "", "shop/a").await), Code::Unauthenticated);
    assert_eq!(
        code(control.certify(None, &JoinToken::generate().reveal(), "").await),
        Code::Unauthenticated
    );
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it is proven");
    let mut other = Following::begin(&control, Some(&credential), "shop/b")
        .await
        .expect("it begins");
    assert_eq!(
        other.next().await.expect_err("it is not that one").code(),
        Code::PermissionDenied
    );
    control.ends().await;
}

#[tokio::test]
async fn a_certificate_counts_twenty_seconds_longer_than_its_life_as_it_does_among_sidecars() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let ended = |ago: u64| {
        let key = KeyPair::generate().expect("a key can be made");
        let id = SpiffeId::of(&domain(), "shop", "web").expect("it is one");
        let life = Duration::from_secs(3_600);
        let issued = control
            .authority()
            .certify(&key, &id, life, SystemTime::now() - life - Duration::from_secs(ago));
        Credential {
            chain: issued.expect("the issuer was there").chain,
            key: key.serialize_der(),
        }
    };
    let (lately, long_ago) = (ended(5), ended(40));
    control
        .certify(Some(&lately), "", "shop/a")
        .await
        .expect("clocks may be apart so far");
    let refused = control.certify(Some(&long_ago), "", "shop/a").await.map(|_| ());
    refused.expect_err("it is over");
    control.ends().await;
}

#[tokio::test]
async fn a_workload_that_was_removed_neither_follows_nor_renews() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it is proven");
    let mut following = Following::begin(&control, Some(&credential), "shop/a")
        .await
        .expect("it may");
    assert!(following.next().await.is_ok() && following.next().await.is_ok());
    control.manifests.write("all.yaml", "# nobody\n");
    assert_eq!(
        following.next().await.expect_err("it is gone").code(),
        Code::PermissionDenied
    );
    let refused = control
        .certify(Some(&credential), "", "shop/a")
        .await
        .map(|_| ())
        .expect_err("it is gone");
    assert_eq!(refused.code(), Code::PermissionDenied);
    control.ends().await;
}

#[tokio::test]
async fn certificates_of_others_are_refused_in_the_handshake() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let elsewhere = Directory::new();
    let foreign = state_files(&elsewhere.0)
        .load(SystemTime::now())
        .expect("it can be made");
    let own = control.authority();
    let id = SpiffeId::of(&domain(), "shop", "web").expect("it is one");
    let other_domain = SpiffeId::parse("spiffe://other.test/ns/shop/sa/web").expect("it is one");
    let old = SystemTime::now() - Duration::from_secs(7_200);
    let hour = Duration::from_secs(3_600);
    let cases = [
        ("foreign root", &foreign, &id, SystemTime::now()),
        ("foreign domain", &own, &other_domain, SystemTime::now()),
        ("expired", &own, &id, old),
    ];
    for (what, authority, id, now) in cases {
        let key = KeyPair::generate().expect("a key can be made");
        let chain = authority.certify(&key, id, hour, now).expect("it signs").chain;
        let key = key.serialize_der();
        let credential = Credential { chain, key };
        let refused = Following::begin(&control, Some(&credential), "shop/a").await;
        assert!(refused.is_err(), "{what}");
    }
    // A CA's own certificate is no workload's.
    let pem = fs::read(control.state.0.join("issuer.pem")).expect("it is there");
    let chain = vec![rustls_pki_types::pem::PemObject::from_pem_slice(&pem).expect("a certificate")];
    let key: PrivateKeyDer<'static> = rustls_pki_types::pem::PemObject::from_pem_slice(&pem).expect("a key");
    let key = key.secret_der().to_vec();
    let refused = Following::begin(&control, Some(&Credential { chain, key }), "shop/a").await;
    assert!(refused.is_err());
    let page = control.page_says("/metrics", "reason=\"handshake\"} 4").await;
    assert!(page.contains("portunus_control_streams 0"));
    control.ends().await;
}

#[tokio::test]
async fn silence_and_half_handshakes_are_ended_and_an_innocent_comes_through() {
    let token = JoinToken::generate();
    // The innocent has no longer for its handshake than they have.
    let short = Duration::from_secs(3);
    let limits = Limits {
        handshake: short,
        handshakes: 32,
        stranger: (short, short * 3),
        ..Limits::default()
    };
    let control = Control::with(&workload("a", "web", "10.0.0.1", Some(&token)), limits).await;
    control.page_says("/ready", "200 OK").await;
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(control.address).await.expect("it is accepted");
        if number % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.expect("it is taken");
        }
        silent.push(stream);
    }
    let connector = TlsConnector::from(Arc::new(client(control.authority().roots().to_vec(), None)));
    let stream = TcpStream::connect(control.address).await.expect("it is accepted");
    let name = ServerName::try_from("control").expect("a name");
    let mut shaken = connector.connect(name, stream).await.expect("it is served");
    let group = shaken
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .map(|group| group.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert!(control.certify(None, &token.reveal(), "").await.is_ok());
    for stream in &mut silent {
        let mut byte = [0];
        let ended = timeout(SOON, stream.read(&mut byte)).await.expect("it is ended");
        assert!(matches!(ended, Ok(0) | Ok(1) | Err(_)));
    }
    let mut rest = Vec::new();
    let ended = timeout(SOON, shaken.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "one that shakes hands and then is silent is ended, too");
    control.page_says("/metrics", "portunus_control_connections 0").await;
    control.ends().await;
}

#[tokio::test]
async fn a_workload_follows_by_a_few_streams_and_the_oldest_makes_room() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
    let mut streams = Vec::new();
    for _ in 0..9 {
        let following = Following::begin(&control, Some(&credential), "shop/a").await;
        let mut following = following.expect("it is let in");
        assert!(matches!(following.next().await, Ok(Some(Answer::Bundle(_)))));
        assert!(matches!(following.next().await, Ok(Some(Answer::Inbound(_)))));
        streams.push(following);
    }
    let ended = streams[0].next().await.expect_err("the oldest ends");
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let last = streams.last_mut().expect("there are nine");
    last.subscribe("web.shop.svc.cluster.local", 80).await;
    assert!(matches!(last.next().await, Ok(Some(Answer::Update(_)))));
    control.ends().await;
}

/// A connection from an address of this machine, after its handshake. It says nothing in HTTP/2.
async fn shaken(
    control: &Control,
    credential: Option<&Credential>,
    from: [u8; 4],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(client(control.authority().roots().to_vec(), credential)));
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address of this machine");
    let stream = socket.connect(control.address).await.expect("it is accepted");
    let name = ServerName::try_from("control").expect("a name");
    connector.connect(name, stream).await.expect("it is served")
}

/// Reads a connection to its end, which comes soon.
async fn ends(stream: &mut (impl AsyncReadExt + Unpin)) {
    let ended = timeout(SOON, stream.read_to_end(&mut Vec::new())).await;
    drop(ended.expect("it is ended"));
}

#[tokio::test]
async fn members_beyond_what_is_allowed_in_all_and_from_one_address_are_turned_away_and_a_seat_is_given_back() {
    let token = JoinToken::generate();
    let limits = Limits {
        connections: 3,
        per_network: 2,
        ..Limits::default()
    };
    let control = Control::with(&workload("a", "web", "10.0.0.1", Some(&token)), limits).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
    control.page_says("/metrics", "portunus_control_connections 0").await;
    let member = async |from| shaken(&control, Some(&credential), from).await;
    let refused = |reason: &str, times: u32| {
        format!("portunus_control_refused_total{{what=\"connection\",reason=\"{reason}\"}} {times}\n")
    };
    let mut seated = vec![member([127, 0, 0, 1]).await, member([127, 0, 0, 1]).await];
    control.page_says("/metrics", "portunus_control_connections 2").await;
    ends(&mut member([127, 0, 0, 1]).await).await;
    control.page_says("/metrics", &refused("too_many_of_address", 1)).await;
    seated.push(member([127, 0, 0, 2]).await);
    control.page_says("/metrics", "portunus_control_connections 3").await;
    ends(&mut member([127, 0, 0, 3]).await).await;
    let page = control.page_says("/metrics", &refused("too_many", 1)).await;
    assert!(page.contains(&refused("too_many_of_address", 1)), "{page}");
    // Who has no certificate yet is counted elsewhere.
    let joined = control.certify(None, &token.reveal(), "").await;
    assert!(joined.is_ok(), "{:?}", joined.err());
    assert!(control.certify(Some(&credential), "", "shop/a").await.is_err());
    seated.remove(0);
    control.page_says("/metrics", "portunus_control_connections 2").await;
    let renewed = control.certify(Some(&credential), "", "shop/a").await;
    assert!(renewed.is_ok(), "{:?}", renewed.err());
    drop(seated);
    control.ends().await;
}

#[tokio::test]
async fn members_beyond_what_is_allowed_of_one_identity_are_turned_away_by_that_name_wherever_they_come_from() {
    let log = Log::begin();
    let [first, replica, other] = [(); 3].map(|()| JoinToken::generate());
    let manifests = workload("a", "web", "10.0.0.1", Some(&first))
        + &workload("b", "web", "10.0.0.2", Some(&replica))
        + &workload("c", "api", "10.0.0.3", Some(&other));
    let limits = Limits {
        per_identity: 2,
        ..Limits::default()
    };
    let control = Control::with(&manifests, limits).await;
    control.page_says("/ready", "200 OK").await;
    let mut credentials = Vec::new();
    for token in [&first, &replica, &other] {
        let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
        credentials.push(credential);
    }
    let member = async |who: usize, from| shaken(&control, Some(&credentials[who]), from).await;
    let seats = |taken: u32| format!("portunus_control_connections {taken}\n");
    control.page_says("/metrics", &seats(0)).await;
    // Replicas share an identity, and each has a certificate of its own.
    let mut seated = vec![member(0, [127, 0, 0, 1]).await, member(1, [127, 0, 0, 2]).await];
    control.page_says("/metrics", &seats(2)).await;
    ends(&mut member(1, [127, 0, 0, 3]).await).await;
    let refused = "portunus_control_refused_total{what=\"connection\",reason=\"";
    let page = control
        .page_says("/metrics", &format!("{refused}too_many_of_identity\"}} 1\n"))
        .await;
    assert!(page.contains(&seats(2)), "{page}");
    assert_eq!(page.matches(refused).count(), 1, "for no other reason: {page}");
    let said = log.said();
    let line = said.lines().find(|line| line.contains("a member finds no seat"));
    let names = [
        "127.0.0.3:",
        "spiffe://mesh.test/ns/shop/sa/web",
        "too_many_of_identity",
    ];
    assert!(
        line.is_some_and(|line| names.iter().all(|name| line.contains(name))),
        "{said}"
    );
    // Others find theirs.
    seated.push(member(2, [127, 0, 0, 3]).await);
    control.page_says("/metrics", &seats(3)).await;
    // And so does this one, where one of its own has left.
    seated.remove(0);
    control.page_says("/metrics", &seats(2)).await;
    seated.push(member(1, [127, 0, 0, 3]).await);
    control.page_says("/metrics", &seats(3)).await;
    drop(seated);
    control.ends().await;
}

#[tokio::test]
async fn a_stream_that_does_not_say_whose_it_is_ends_after_ten_seconds_and_is_counted() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (credential, _) = control.certify(None, &token.reveal(), "").await.expect("it joins");
    let channel = control.channel(Some(&credential)).await.expect("it is served");
    let (_silent, requests) = mpsc::channel(1);
    let began = std::time::Instant::now();
    let answers = DiscoveryClient::new(channel)
        .follow(ReceiverStream::new(requests))
        .await;
    let mut answers = answers.expect("it is let in").into_inner();
    control.page_says("/metrics", "portunus_control_streams 1").await;
    let ended = timeout(SOON, answers.message()).await.expect("it is ended");
    let ended = ended.expect_err("not well");
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    assert!(ended.message().contains("does not say for which workload"), "{ended}");
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(9), "it ended after {took:?}");
    let page = control
        .page_says("/metrics", "{what=\"follow\",reason=\"no_hello\"} 1")
        .await;
    assert!(page.contains("portunus_control_streams 0"), "{page}");
    control.ends().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_certificate_that_it_was_begun_by_and_twenty_seconds() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let key = KeyPair::generate().expect("a key can be made");
    let id = SpiffeId::of(&domain(), "shop", "web").expect("it is one");
    // It ended some seconds ago; for so long clocks may be apart.
    let (life, left) = (Duration::from_secs(3_600), Duration::from_secs(10));
    let began = std::time::Instant::now();
    let begun = SystemTime::now() - life - (svid::SKEW - left);
    let issued = control.authority().certify(&key, &id, life, begun).expect("it signs");
    let credential = Credential {
        chain: issued.chain,
        key: key.serialize_der(),
    };
    let following = Following::begin(&control, Some(&credential), "shop/a").await;
    let mut following = following.expect("it counts still");
    for _ in 0..2 {
        assert!(matches!(following.next().await, Ok(Some(_))), "it is served");
    }
    let ended = following.next().await.expect_err("its certificate has ended");
    let took = began.elapsed();
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(
        ended.message().contains("the client's certificate has ended"),
        "{ended}"
    );
    assert!(took >= left / 2, "it ended after {took:?}");
    control.page_says("/metrics", "portunus_control_connections 0").await;
    // Handshakes judge by whole seconds.
    let over = std::time::Instant::now();
    loop {
        let asked = over.elapsed();
        if Following::begin(&control, Some(&credential), "shop/a").await.is_err() {
            break;
        }
        assert!(asked < Duration::from_secs(3), "it is let in {asked:?} after its end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    control.ends().await;
}

#[tokio::test]
async fn whoever_is_silent_at_the_admin_pages_makes_room_and_is_ended_and_a_probe_is_answered() {
    let control = Control::over("# nobody\n").await;
    control.page_says("/ready", "200 OK").await;
    let began = std::time::Instant::now();
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut stream = TcpStream::connect(control.admin).await.expect("it is accepted");
        if number % 2 == 0 {
            stream
                .write_all(b"GET /ready HTTP/1.1\r\nhost:")
                .await
                .expect("it is taken");
        }
        silent.push(stream);
        if number % 10 == 0 {
            let page = control.page("/live").await.expect("it is served");
            assert!(page.contains("200 OK"), "after {number}: {page}");
        }
    }
    control.page_says("/metrics", "portunus_control_states_total").await;
    // One asker made room for each of the first, 64 at most were left, and each question took the place of one more.
    let (made_room, left) = silent.split_at_mut(100 - 63);
    for stream in made_room {
        ends(stream).await;
    }
    let crowded = began.elapsed();
    let mut byte = [0];
    let last = left.last_mut().expect("there are some");
    let waits = timeout(Duration::from_millis(100), last.read(&mut byte)).await;
    assert!(waits.is_err(), "the last one has not had its time: {waits:?}");
    for stream in left {
        ends(stream).await;
    }
    let took = began.elapsed();
    assert!(
        crowded < took && took >= Duration::from_secs(4),
        "all were ended after {took:?}, those that made room after {crowded:?}"
    );
    control.ends().await;
}

#[tokio::test]
async fn strangers_who_stay_keep_nobody_out() {
    let token = JoinToken::generate();
    let limits = Limits {
        handshakes: 8,
        strangers: 8,
        ..Limits::default()
    };
    let control = Control::with(&workload("a", "web", "10.0.0.1", Some(&token)), limits).await;
    control.page_says("/ready", "200 OK").await;
    let connector = TlsConnector::from(Arc::new(client(control.authority().roots().to_vec(), None)));
    let mut crowd = Vec::new();
    for _ in 0..30 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket
            .bind(([127, 0, 0, 9], 0).into())
            .expect("an address of this machine");
        let stream = socket.connect(control.address).await.expect("it is accepted");
        let name = ServerName::try_from("control").expect("a name");
        crowd.push(connector.connect(name, stream).await.expect("it is served"));
    }
    control.page_says("/metrics", "portunus_control_connections 8").await;
    let joined = control.certify(None, &token.reveal(), "").await;
    let (credential, _) = joined.expect("whoever comes alone is served");
    let mut following = Following::begin(&control, Some(&credential), "shop/a")
        .await
        .expect("it is let in");
    assert!(matches!(following.next().await, Ok(Some(Answer::Bundle(_)))));
    control.page_says("/metrics", "reason=\"no_room\"").await;
    control.ends().await;
}

/// Fails so often that the log leaves some of it out, and returns how often that was. It takes a hundred lines at once, and
/// ten seconds later a hundred more.
async fn fail_often(log: &Log, line: &str, fail: impl AsyncFn()) -> usize {
    let began = std::time::Instant::now();
    for round in 1..=20 {
        for _ in 0..150 {
            fail().await;
        }
        let (tried, logged) = (150 * round, log.said().matches(line).count());
        let took = began.elapsed();
        let most = 100 * (1 + took.as_secs() as usize / 10);
        assert!((100..=most).contains(&logged), "{logged} of {tried} in {took:?}");
        if logged < tried {
            return tried;
        }
    }
    panic!("all are logged, as seldom as they come");
}

#[tokio::test]
async fn failed_handshakes_are_all_counted_and_a_hundred_of_one_peer_are_logged() {
    let log = Log::begin();
    let control = Control::over("# nobody\n").await;
    control.page_says("/ready", "200 OK").await;
    let fail = async || {
        let mut stream = TcpStream::connect(control.address).await.expect("it is accepted");
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let tried = fail_often(&log, "a handshake failed", fail).await;
    let all = format!("portunus_control_refused_total{{what=\"connection\",reason=\"handshake\"}} {tried}\n");
    control.page_says("/metrics", &all).await;
    control.ends().await;
}

#[tokio::test]
async fn a_peer_that_has_other_roots_is_logged_in_words() {
    let log = Log::begin();
    let control = Control::over("# nobody\n").await;
    control.page_says("/ready", "200 OK").await;
    let another = Control::over("# nobody\n").await;
    let connector = TlsConnector::from(Arc::new(client(another.authority().roots().to_vec(), None)));
    let stream = TcpStream::connect(control.address).await.expect("it is accepted");
    let name = ServerName::try_from("control").expect("a name");
    let refused = connector.connect(name, stream).await;
    assert!(refused.is_err(), "it trusts another root");
    let failed = "portunus_control_refused_total{what=\"connection\",reason=\"handshake\"} 1";
    control.page_says("/metrics", failed).await;
    let said = log.said();
    let words = "the peer does not trust the root that control's certificate stands under";
    assert!(said.contains(words) && said.contains("UnknownCA"), "{said}");
    control.ends().await;
    another.ends().await;
}

/// The limit of open files is the process's, so this test runs itself again in a process of its own.
#[test]
fn a_control_out_of_file_descriptors_says_so_once_and_serves_when_it_has_some() {
    const ALONE: &str = "PORTUNUS_TEST_ALONE";
    const NAME: &str =
        "control::server::tests::a_control_out_of_file_descriptors_says_so_once_and_serves_when_it_has_some";
    if std::env::var_os(ALONE).is_none() {
        let me = std::env::current_exe().expect("the test binary");
        let alone = std::process::Command::new(me)
            .args(["--exact", NAME])
            .env(ALONE, "1")
            .output();
        let alone = alone.expect("it runs");
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(alone.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(out_of_descriptors());
}

async fn out_of_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let log = Log::begin();
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let waits = TcpSocket::new_v4().expect("a socket");
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be read");
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("it can be lowered");
    let _waits = waits.connect(control.address).await.expect("the kernel takes it");
    let told = || log.said().matches("connections cannot be accepted").count();
    let look = async {
        while told() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Some tries more, which nobody sees; with none the test is only weaker.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    timeout(SOON, look).await.expect("it is said");
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("it can be raised");
    control.certify(None, &token.reveal(), "").await.expect("it is served");
    control
        .page_says("/metrics", "{what=\"connection\",reason=\"not_accepted\"}")
        .await;
    assert_eq!(told(), 1, "{}", log.said());
    control.ends().await;
}

#[tokio::test]
async fn joins_that_are_refused_are_all_counted_and_a_hundred_of_one_network_are_logged() {
    let log = Log::begin();
    let control = Control::over("# nobody\n").await;
    control.page_says("/ready", "200 OK").await;
    let fail = async || {
        let refused = control.certify(None, "no token", "").await;
        assert!(refused.is_err());
    };
    let tried = fail_often(&log, "a key was not certified", fail).await;
    let page = control.page("/metrics").await.expect("it is served");
    let counted = page
        .lines()
        .filter(|line| line.starts_with("portunus_control_refused_total{what=\"certify\""));
    let counted = counted.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok());
    assert_eq!(counted.sum::<usize>(), tried, "{page}");
    control.ends().await;
}

#[tokio::test]
async fn a_stream_that_is_refused_is_told_of_with_who_it_is_and_why() {
    let log = Log::begin();
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (own, _) = control.certify(None, &token.reveal(), "").await.expect("it is proven");
    for (credential, named) in [(None, "shop/a"), (Some(&own), "shop/b")] {
        let refused = async {
            let mut following = Following::begin(&control, credential, named).await?;
            following.next().await
        };
        assert!(refused.await.is_err(), "{named}");
    }
    let said = log.said();
    let lines: Vec<_> = said
        .lines()
        .filter(|line| line.contains("a stream was refused"))
        .collect();
    let [stranger, other] = lines[..] else { panic!("{said}") };
    assert!(stranger.contains("reason=\"no_certificate\""), "{stranger}");
    let of_other = [
        "workload=\"shop/b\"",
        "id=\"spiffe://mesh.test/ns/shop/sa/web\"",
        "joinTokenSha256",
    ];
    assert!(of_other.iter().all(|part| other.contains(part)), "{other}");
    control.ends().await;
}

#[tokio::test]
async fn a_new_root_and_issuer_lose_no_call() {
    let token = JoinToken::generate();
    let control = Control::over(&workload("a", "web", "10.0.0.1", Some(&token))).await;
    control.page_says("/ready", "200 OK").await;
    let (old, _) = control.certify(None, &token.reveal(), "").await.expect("it is proven");
    let mut following = Following::begin(&control, Some(&old), "shop/a").await.expect("it may");
    assert!(following.next().await.is_ok() && following.next().await.is_ok());
    let other = Directory::new();
    state_files(&other.0).load(SystemTime::now()).expect("it can be made");
    let copy = |from: &str, to: &str| {
        fs::copy(other.0.join(from), control.state.0.join("new")).expect("it can be copied");
        fs::rename(control.state.0.join("new"), control.state.0.join(to)).expect("it can be moved");
    };
    copy("roots/root.pem", "roots/two.pem");
    assert!(matches!(following.next().await, Ok(Some(Answer::Bundle(bundle))) if bundle.roots.len() == 2));
    copy("issuer.pem", "issuer.pem");
    let mut newest = old;
    let switched = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        // What was missed is not made up for: a token joins some hundred times at once, and then seldom.
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pace.tick().await;
            let before = newest.chain[1].clone();
            // Each of these is a call that may not fail, by a certificate of either root. The token proves more than renewals
            // may be made.
            newest = control
                .certify(Some(&newest), &token.reveal(), "")
                .await
                .expect("it is proven")
                .0;
            if newest.chain[1] != before {
                return;
            }
        }
    };
    timeout(SOON, switched).await.expect("the new issuer is taken");
    fs::remove_file(control.state.0.join("roots/root.pem")).expect("it is there");
    assert!(matches!(following.next().await, Ok(Some(Answer::Bundle(bundle))) if bundle.roots.len() == 1));
    control
        .certify(Some(&newest), "", "shop/a")
        .await
        .expect("it is proven");
    control.ends().await;
}

#[tokio::test]
async fn control_that_never_had_a_good_state_is_not_ready_and_says_why() {
    let control = Control::over("kind: [\n").await;
    let page = control.page_says("/ready", "503").await;
    assert!(page.contains("/source"), "{page}");
    assert!(
        TcpStream::connect(control.address).await.is_err(),
        "who is refused goes to another control"
    );
    control.page_says("/source", "all.yaml:").await;
    control.manifests.write("all.yaml", "# nothing\n");
    control.page_says("/ready", "200 OK").await;
    control.ends().await;
}
