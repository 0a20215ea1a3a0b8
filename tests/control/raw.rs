//! Control asked by hand: as a sidecar asks, and as none would.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use portunus_proto::mesh::v1::discovery_client::DiscoveryClient;
use portunus_proto::mesh::v1::follow_request::Ask;
use portunus_proto::mesh::v1::identity_client::IdentityClient;
use portunus_proto::mesh::v1::{CertifyRequest, CertifyResponse, FollowRequest, FollowResponse, Hello};
use portunus_proto::{SpiffeId, TrustDomain};
use portunus_sidecar::identity::Key;
use portunus_sidecar::tls::{Bundle, Credential, call_control};
use rustls_pki_types::CertificateDer;
use support::control::TRUST_DOMAIN;
use support::{Control, Family, Pod, in_netns};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::codegen::tokio_stream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// Where control is, and whom to believe.
#[derive(Clone)]
pub(crate) struct Asking {
    address: SocketAddr,
    identity: SpiffeId,
    bundle: Bundle,
}

impl Asking {
    pub(crate) fn of(control: &Control) -> Result<Asking> {
        let domain = TrustDomain::parse(TRUST_DOMAIN)?;
        Ok(Asking {
            address: control.at(Family::V4)?,
            identity: SpiffeId::of(&domain, "portunus", "control")?,
            bundle: Bundle::new(domain, &[control.root_der()?])?,
        })
    }

    /// Asks from a pod for a certificate, by a token or by the certificate that is shown; `workload` is what we say we are.
    pub(crate) fn certify(
        &self,
        from: &Pod,
        shown: Option<&Credential>,
        token: &str,
        workload: &str,
    ) -> Result<Result<Certified, Status>> {
        self.run(from, shown, async |channel| {
            let key = Key::generate()?;
            // What it hopes to be is nobody's business.
            let hoped_for = SpiffeId::parse("spiffe://mesh.test/ns/shop/sa/admin")?;
            let request = CertifyRequest {
                csr: key.request(Some(&hoped_for))?,
                join_token: token.to_owned(),
                workload: workload.to_owned(),
            };
            match IdentityClient::new(channel).certify(request).await {
                Ok(answer) => Ok(Ok(Certified::of(answer.into_inner(), key, &self.bundle)?)),
                Err(status) => Ok(Err(status)),
            }
        })
    }

    /// Says hello as a workload, and returns what is answered first.
    pub(crate) fn hello(
        &self,
        from: &Pod,
        shown: Option<&Credential>,
        workload: &str,
    ) -> Result<Result<FollowResponse, Status>> {
        self.run(from, shown, async |channel| match follow(channel, workload).await {
            Ok(mut answers) => first(&mut answers).await,
            Err(status) => Ok(Err(status)),
        })
    }

    /// Follows as a workload; once the stream has begun `meanwhile` happens; returns how the stream ends.
    pub(crate) fn follow_to_the_end(
        &self,
        from: &Pod,
        shown: &Credential,
        workload: &str,
        meanwhile: impl FnOnce() -> Result<()> + Send,
    ) -> Result<Status> {
        self.run(from, Some(shown), async |channel| {
            let mut answers = follow(channel, workload).await?;
            first(&mut answers).await??;
            meanwhile()?;
            let end = async {
                loop {
                    match answers.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return Status::ok("it ended"),
                        Err(status) => return status,
                    }
                }
            };
            timeout(SOON, end).await.context("the stream goes on")
        })
    }

    pub(crate) fn run<T: Send>(
        &self,
        from: &Pod,
        shown: Option<&Credential>,
        ask: impl AsyncFnOnce(Channel) -> Result<T> + Send,
    ) -> Result<T> {
        in_netns(from, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let socket = TcpStream::connect(self.address).await?;
                let stream = call_control(socket, &self.bundle, shown, &self.identity, SOON).await?;
                let mut once = Some(TokioIo::new(stream));
                let connector = tower::service_fn(move |_: http::Uri| {
                    let stream = once.take();
                    std::future::ready(stream.ok_or_else(|| std::io::Error::other("there is one connection")))
                });
                let endpoint = Endpoint::from_static("http://control").timeout(SOON);
                ask(endpoint.connect_with_connector(connector).await?).await
            })
        })?
    }
}

/// What control made of a key.
pub(crate) struct Certified {
    pub(crate) credential: Credential,
    pub(crate) workload: String,
    /// What stands between its certificate and a root.
    pub(crate) issuers: Vec<CertificateDer<'static>>,
    /// The roots that it is told to trust.
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Certified {
    fn of(answer: CertifyResponse, key: Key, bundle: &Bundle) -> Result<Certified> {
        let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
        let roots = answer.bundle.unwrap_or_default().roots;
        Ok(Certified {
            issuers: chain.iter().skip(1).cloned().collect(),
            credential: Credential::new(chain, key.into_private(), bundle.clone())?,
            workload: answer.workload,
            roots: roots.into_iter().map(CertificateDer::from).collect(),
        })
    }

    pub(crate) fn id(&self) -> String {
        self.credential.id().to_string()
    }

    /// When it ends.
    pub(crate) fn until(&self) -> SystemTime {
        self.credential.not_after()
    }
}

async fn follow(channel: Channel, workload: &str) -> Result<Streaming<FollowResponse>, Status> {
    let hello = FollowRequest {
        ask: Some(Ask::Hello(Hello {
            workload: workload.to_owned(),
            version: "test".to_owned(),
        })),
    };
    let (to, asks) = tokio::sync::mpsc::channel(1);
    let _ = to.send(hello).await;
    // It stays open for as long as the stream: a client that ends its half has said goodbye.
    std::mem::forget(to);
    let asks = tokio_stream::wrappers::ReceiverStream::new(asks);
    Ok(DiscoveryClient::new(channel).follow(asks).await?.into_inner())
}

async fn first(answers: &mut Streaming<FollowResponse>) -> Result<Result<FollowResponse, Status>> {
    match timeout(SOON, answers.message()).await.context("no answer came")? {
        Ok(Some(answer)) => Ok(Ok(answer)),
        Ok(None) => Ok(Err(Status::ok("it ended"))),
        Err(status) => Ok(Err(status)),
    }
}

const SOON: Duration = Duration::from_secs(10);
