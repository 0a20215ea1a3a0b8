//! The two services of the protocol, between the wire and what answers.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portunus_logbook::{Line, Noise};
use portunus_proto::mesh::v1::discovery_server::Discovery;
use portunus_proto::mesh::v1::follow_request::Ask;
use portunus_proto::mesh::v1::identity_server::Identity;
use portunus_proto::mesh::v1::{CertifyRequest, CertifyResponse, FollowRequest, FollowResponse};
use portunus_proto::{SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{Followers, Visitor};
use crate::cluster::Name;
use crate::control::discovery::{Follow, Mistake, Next, World};
use crate::control::identity::{Authority, Certifier, shortened};
use crate::control::numbers::{Numbers, Open};
use crate::control::times::date;

/// What answers sidecars.
#[derive(Clone)]
pub struct Services {
    /// Certifies.
    pub certifier: Arc<Certifier>,
    /// The world as it is now.
    pub worlds: watch::Receiver<Arc<World>>,
    /// Who signs, and what is trusted.
    pub authorities: watch::Receiver<Arc<Authority>>,
    /// What is counted.
    pub numbers: Arc<Numbers>,
    /// Where streams run; waited for when control stops.
    pub streams: TaskTracker,
    /// Whose they are.
    pub followers: Arc<Followers>,
    /// Whose failures are logged.
    pub noise: Arc<Mutex<Noise>>,
}

/// How long a stream may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// How long it may take to arrange a state that has come: of thousands of workloads some 20 ms.
const ARRANGED: Duration = Duration::from_secs(1);
/// How many answers may wait for a slow reader. What comes after is not made before there is room.
const QUEUE: usize = 16;
/// How long one stream looks for what there is to tell before others have their turn.
const TURN: Duration = Duration::from_micros(500);

impl Services {
    /// The trust domain that is served.
    pub fn trust_domain(&self) -> TrustDomain {
        self.authorities.borrow().trust_domain().clone()
    }

    /// Whether a line of the log may be about a failure of this peer's, who has failed perhaps more often than anybody wants
    /// to read.
    pub fn line(&self, peer: IpAddr) -> Option<Line> {
        self.noise.lock().line(peer, Instant::now())
    }
}

#[tonic::async_trait]
impl Identity for Services {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let visitor = visitor(&request)?;
        let from = visitor.asker.address;
        let certifier = &self.certifier;
        match certifier
            .certify_when_known(&visitor.asker, request.get_ref(), &visitor.leave)
            .await
        {
            Ok(certified) => {
                let counter = if certified.by_token {
                    &self.numbers.joined
                } else {
                    &self.numbers.renewed
                };
                counter.fetch_add(1, Relaxed);
                info!(
                    %from,
                    workload = certified.response.workload,
                    id = %certified.id,
                    ends = date(certified.not_after),
                    proof = if certified.by_token { "token" } else { "certificate" },
                    "a key was certified"
                );
                Ok(Response::new(certified.response))
            }
            Err(why) => {
                if let Some(Line { left_out }) = self.line(from) {
                    warn!(%from, reason = why.reason(), %why, left_out, "a key was not certified");
                }
                self.numbers.refused("certify", why.reason());
                Err(Status::new(why.code(), why.to_string()))
            }
        }
    }
}

#[tonic::async_trait]
impl Discovery for Services {
    type FollowStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<FollowResponse, Status>> + Send>>;

    async fn follow(&self, request: Request<Streaming<FollowRequest>>) -> Result<Response<Self::FollowStream>, Status> {
        let visitor = visitor(&request)?;
        let Some(proven) = visitor.asker.proven.clone().map(|proven| proven.id) else {
            let status = Status::unauthenticated("Follow needs a client certificate; get one by Identity/Certify");
            self.not_followed(&visitor, None, "no_certificate", &status);
            return Err(status);
        };
        let (to, answers) = mpsc::channel(QUEUE);
        let services = self.clone();
        let requests = request.into_inner();
        self.streams.spawn(async move {
            let numbers = services.numbers.clone();
            let _open = Open::one(&numbers.streams);
            let mut named = None;
            let end = services
                .clone()
                .stream(requests, proven, &visitor, &mut named, &to)
                .await;
            if let Err(status) = end {
                services.not_followed(&visitor, named, reason(&status), &status);
                // The last word waits for the reader as long as the stream lasts, and no longer.
                let _ = tokio::time::timeout(HELLO, to.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

impl Services {
    /// A stream is refused, or ends otherwise than by its sidecar's will. `named` is the workload that it said it is of.
    fn not_followed(&self, visitor: &Visitor, named: Option<Name>, reason: &'static str, why: &Status) {
        self.numbers.refused("follow", reason);
        // Every one ends so when control stops, or when its sidecar is gone.
        if matches!(reason, "stopping" | "broken") {
            return;
        }
        let from = visitor.asker.address;
        if let Some(Line { left_out }) = self.line(from) {
            warn!(
                %from,
                workload = named.map(|name| name.to_string()),
                id = visitor.asker.proven.as_ref().map(|proven| proven.id.to_string()),
                reason,
                why = why.message(),
                left_out,
                "a stream was refused: its sidecar goes by what it knew last"
            );
        }
    }

    async fn stream(
        mut self,
        mut requests: Streaming<FollowRequest>,
        proven: SpiffeId,
        visitor: &Visitor,
        named: &mut Option<Name>,
        to: &mpsc::Sender<Result<FollowResponse, Status>>,
    ) -> Result<(), Status> {
        let hello = tokio::time::timeout(HELLO, requests.message()).await;
        let hello =
            hello.map_err(|_| Status::deadline_exceeded("the stream does not say for which workload it is"))??;
        let Some(hello) = hello else { return Ok(()) };
        if let Some(Ask::Hello(hello)) = &hello.ask {
            let name = hello.workload.split_once('/');
            *named = name.map(|(namespace, name)| shortened(&Name::new(namespace, name)));
        }
        let world = self.worlds.borrow_and_update().clone();
        let mut follow = match Follow::hello(&hello, &proven, &world) {
            Err(Mistake::Gone | Mistake::OtherIdentity) => {
                // It may have been certified by a state that is just being arranged.
                let _ = tokio::time::timeout(ARRANGED, self.worlds.changed()).await;
                let world = self.worlds.borrow_and_update().clone();
                Follow::hello(&hello, &proven, &world)
            }
            judged => judged,
        }
        .map_err(refused)?;
        let followers = self.followers.clone();
        let place = followers.begin(follow.workload());
        self.authorities.mark_unchanged();
        info!(from = %visitor.asker.address, workload = %follow.workload(), id = %proven, "a sidecar follows");
        loop {
            tokio::select! {
                biased;
                () = visitor.leave.cancelled() => {
                    return Err(Status::unavailable("control stops, or the client's certificate has ended: connect again"));
                }
                () = place.room.cancelled() => {
                    return Err(Status::resource_exhausted("the workload follows by newer streams, and by too many"));
                }
                request = requests.message() => match request? {
                    Some(request) => follow.ask(request).map_err(refused)?,
                    None => return Ok(()),
                },
                changed = self.worlds.changed() => {
                    changed.map_err(|_| Status::unavailable("control stops"))?;
                    follow.check(&proven, &self.worlds.borrow_and_update().clone()).map_err(refused)?;
                    follow.state_changed();
                }
                changed = self.authorities.changed() => {
                    changed.map_err(|_| Status::unavailable("control stops"))?;
                    self.authorities.mark_unchanged();
                    follow.bundle_changed();
                }
                room = to.reserve(), if follow.is_due() => {
                    let Ok(room) = room else { return Ok(()) };
                    let world = self.worlds.borrow().clone();
                    let bundle = self.authorities.borrow().bundle();
                    match follow.next(&world, &bundle, Instant::now() + TURN) {
                        Next::Tell(answer) => {
                            self.numbers.answers.fetch_add(1, Relaxed);
                            room.send(Ok(*answer));
                        }
                        Next::More => drop(room),
                        Next::Nothing => continue,
                    }
                    // Others follow, too, and all have one thread.
                    tokio::task::yield_now().await;
                }
                () = to.closed() => return Ok(()),
            }
        }
    }
}

fn visitor<T>(request: &Request<T>) -> Result<Visitor, Status> {
    let visitor = request.extensions().get::<Visitor>().cloned();
    visitor.ok_or_else(|| Status::internal("the connection is not known"))
}

fn refused(why: Mistake) -> Status {
    let message = why.to_string();
    match why {
        Mistake::Order | Mistake::NoWorkload | Mistake::Subject => Status::invalid_argument(message),
        Mistake::Gone | Mistake::OtherIdentity => Status::permission_denied(message),
        Mistake::TooMany => Status::resource_exhausted(message),
    }
}

fn reason(status: &Status) -> &'static str {
    match status.code() {
        tonic::Code::InvalidArgument => "bad_request",
        tonic::Code::PermissionDenied => "not_allowed",
        tonic::Code::ResourceExhausted => "too_many",
        tonic::Code::DeadlineExceeded => "no_hello",
        tonic::Code::Unavailable => "stopping",
        _ => "broken",
    }
}
