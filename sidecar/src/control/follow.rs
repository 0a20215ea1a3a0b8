//! The stream from control: what we follow goes up, what is known comes down.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::mesh::v1;
use portunus_proto::mesh::v1::discovery_client::DiscoveryClient;
use portunus_proto::mesh::v1::follow_request::Ask;
use portunus_proto::mesh::v1::follow_response::Answer;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tracing::{debug, info, warn};

use super::Wall;
use super::ask::{is_broken, of_status};
use super::directory::{Directory, Learned, Tell};
use super::holder::{Current, Holder, Source};
use super::pace::{Came, some};
use super::reach::{Controls, Nobody, Reached};
use super::settings::Settings;
use super::status::Shown;
use super::wire;
use crate::policy::{Inbound, Mode};
use crate::route::Subject;
use crate::tls::Bundle;

/// The longest answer, in bytes: ten thousand endpoints have some two million.
const MOST_ANSWER: usize = 4 << 20;
/// How many words to control wait on their way.
const WAITING: usize = 64;
/// For how long one certificate is tried before it is looked whether there is another.
const LOOK: Duration = Duration::from_secs(2);

/// The task.
pub(super) struct Following {
    pub(super) controls: Controls,
    pub(super) settings: Arc<Settings>,
    pub(super) holder: Arc<Holder>,
    pub(super) current: watch::Receiver<Option<Current>>,
    pub(super) inbound: watch::Sender<Arc<Inbound>>,
    pub(super) directory: Directory,
    pub(super) status: Shown,
    pub(super) wall: Wall,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// There is a new certificate, and with it a new stream.
    #[error("the certificate was renewed")]
    Renewed,
    /// Control says so, or the connection broke.
    #[error("{}", of_status(.0))]
    Status(#[from] Box<tonic::Status>),
    /// Control ended it without a word.
    #[error("control ended the stream")]
    Ended,
    /// Nothing came at first.
    #[error("control does not begin the stream within {0:?}")]
    Silent(Duration),
    /// It does not take what we say.
    #[error("control has not read what it is asked for {0:?}")]
    Stalled(Duration),
}

impl End {
    /// Whether control says that we are not who our certificate says, or not any more.
    fn is_disbelief(&self) -> bool {
        match self {
            End::Status(status) if !is_broken(status) => {
                matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
            }
            End::Status(_) | End::Renewed | End::Ended | End::Silent(_) | End::Stalled(_) => false,
        }
    }
}

impl Following {
    /// Follows for as long as the process lives.
    pub(super) async fn run(mut self) {
        let mut last = None;
        loop {
            let current = match self.current.wait_for(Option::is_some).await {
                Ok(current) => current.clone(),
                // The one who certifies is gone: the process ends.
                Err(_) => return,
            };
            let Some(current) = current else { continue };
            // Control would take it for a moment more; but another comes, or none serves, before a stream is worth it.
            if current.credential.not_after() < (self.wall)() {
                let _ = timeout(LOOK, self.current.changed()).await;
                continue;
            }
            // What was said to another certificate is not said to this one.
            if last.replace(current.serial) != Some(current.serial) {
                self.controls.forgive();
            }
            let until = Instant::now() + LOOK;
            let trust = self.holder.trust().bundle;
            match self.controls.reach(&trust, Some(&current.credential), until).await {
                Ok(reached) => self.stream(reached, &current).await,
                Err(Nobody::Because(why)) => self.away(&why),
                Err(Nobody::Resting) => {}
            }
        }
    }

    async fn stream(&mut self, reached: Reached, current: &Current) {
        let Reached { addr, channel, refusal } = reached;
        let client = DiscoveryClient::new(channel).max_decoding_message_size(MOST_ANSWER);
        let mut session = Session {
            addr,
            current,
            rests_until: Instant::now() + self.settings.stream_rest + some(self.settings.stream_rest / 3),
            began: None,
            told: HashSet::new(),
            to_tell: VecDeque::new(),
        };
        let asked = Instant::now();
        let end = self.live(client, &mut session).await;
        self.directory.end();
        let is_disbelieved = end.is_disbelief() || refusal.came();
        if is_disbelieved {
            self.holder.disbelieve(current.serial);
        }
        let came = match (&end, session.began) {
            (End::Renewed, _) => Came::Left,
            (_, Some(began)) => Came::Served(began.elapsed()),
            // Our `Workload` may be about to be written anew, as when we join.
            (_, None) if is_disbelieved => Came::Unproven(asked.elapsed()),
            (End::Status(status), None) if is_broken(status) => Came::Broken,
            (_, None) => Came::Failed,
        };
        match &end {
            End::Renewed => {}
            end => self.controls.says_no(addr, end.to_string()),
        }
        self.controls.came(addr, came);
        match end {
            End::Renewed => debug!("the stream from control begins anew with the new certificate"),
            end if is_disbelieved => self.shut_out(&end.to_string()),
            end => self.away(&end.to_string()),
        }
    }

    fn shut_out(&self, why: &str) {
        if self.status.away(why) {
            warn!(why, "control shuts this sidecar out; what it said last still holds");
        }
    }

    fn away(&self, why: &str) {
        if self.status.away(why) {
            warn!(why, "control is away; what it said last still holds");
        }
    }

    /// A stream from its first word to its last.
    async fn live(&mut self, mut client: DiscoveryClient<tonic::transport::Channel>, session: &mut Session<'_>) -> End {
        let within = self.settings.answer_timeout;
        let (asks, asked) = mpsc::channel(WAITING);
        let hello = Ask::Hello(v1::Hello {
            workload: session.current.workload.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        asks.try_send(said(hello)).expect("nothing waits yet");
        session.told = self.directory.begin();
        session.to_tell = session.told.iter().cloned().map(Tell::Subscribe).collect();
        let first_word_by = Instant::now() + within;
        let mut answers: Streaming<v1::FollowResponse> =
            match timeout(within, client.follow(ReceiverStream::new(asked))).await {
                Ok(Ok(answers)) => answers.into_inner(),
                Ok(Err(status)) => return Box::new(status).into(),
                Err(_) => return End::Silent(within),
            };
        let mut told_at = Instant::now();
        let mut is_renewed = false;
        loop {
            let is_telling = !session.to_tell.is_empty();
            tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => self.take(answer, session),
                    Ok(None) => return End::Ended,
                    Err(status) => return Box::new(status).into(),
                },
                place = asks.reserve(), if is_telling => {
                    told_at = Instant::now();
                    match (place, session.to_tell.pop_front()) {
                        (Ok(place), Some(tell)) => place.send(told(tell)),
                        // Nobody will read it; what became of the stream, its other half says.
                        (Err(_), _) => session.to_tell.clear(),
                        (Ok(_), None) => {}
                    }
                }
                () = self.directory.news(), if !is_telling => {
                    session.to_tell = self.directory.to_tell(&mut session.told).into();
                    told_at = Instant::now();
                }
                changed = self.current.changed() => {
                    // A certificate that is over is no reason to hang up, and another bundle none either.
                    let serial = self.current.borrow_and_update().as_ref().map(|current| current.serial);
                    is_renewed |= serial.is_some_and(|serial| serial != session.current.serial);
                    if changed.is_err() {
                        return End::Renewed;
                    }
                }
                () = sleep_until(session.rests_until), if is_renewed => return End::Renewed,
                () = sleep_until(first_word_by), if session.began.is_none() => return End::Silent(within),
                () = sleep_until(told_at + within), if is_telling => return End::Stalled(within),
            }
        }
    }

    fn take(&self, answer: v1::FollowResponse, session: &mut Session<'_>) {
        if session.began.is_none() {
            session.began = Some(Instant::now());
            self.status.connected(session.addr);
            info!(control = %session.addr, followed = session.told.len(), "control answers");
        }
        match answer.answer {
            Some(Answer::Bundle(bundle)) => self.believe(bundle),
            Some(Answer::Inbound(inbound)) => self.accept(&inbound),
            Some(Answer::Update(update)) => match wire::subject(update.subject) {
                Ok(subject) => self.learn(&subject, update.what),
                Err(why) => debug!(%why, "an answer of control's names nothing that can be followed"),
            },
            None => debug!("control says something that this version does not know"),
        }
    }

    fn believe(&self, bundle: v1::Bundle) {
        let ours = self.holder.trust().bundle.trust_domain().clone();
        let believed = wire::roots(bundle, &ours)
            .map_err(|why| why.to_string())
            .and_then(|roots| {
                let bundle = Bundle::new(ours, &roots).map_err(|why| why.to_string())?;
                let believed = self.holder.believe(roots, bundle, Source::Stream, (self.wall)());
                believed.map_err(|why| why.to_string())
            });
        match believed {
            Ok(true) => info!("the trust bundle changed"),
            Ok(false) => {}
            Err(why) => warn!(why, "a trust bundle from control is not taken; the last good one holds"),
        }
    }

    fn accept(&self, inbound: &v1::Inbound) {
        match wire::inbound(inbound) {
            Ok(said) => {
                let taken = said.over(&self.settings.inbound);
                let is_news = self.inbound.send_if_modified(|before| {
                    let is_news = **before != taken;
                    if is_news {
                        *before = Arc::new(taken);
                    }
                    is_news
                });
                if is_news {
                    let from = inbound.from[..inbound.from.len().min(8)].join(",");
                    let now = self.inbound.borrow();
                    let mode = now.default.map_or_else(String::new, |mode| mode.to_string());
                    let ports = listed(&now.ports, Mode::to_string);
                    let protocols = listed(&now.protocols, |protocol| format!("{protocol:?}").to_ascii_lowercase());
                    info!(mode, ports, protocols, from, "what is accepted changed");
                }
            }
            Err(why) => warn!(%why, "what control says of inbound calls is not taken; the last good word holds"),
        }
    }

    fn learn(&self, subject: &Subject, what: Option<v1::update::What>) {
        match self.directory.learn(subject, wire::known(what)) {
            Learned::News => debug!(?subject, "control says something new"),
            Learned::Same | Learned::NotFollowed | Learned::Refused(None) => {}
            Learned::Refused(Some(why)) => {
                warn!(?subject, %why, "an answer of control's is not taken; the last good one holds");
            }
        }
    }
}

/// One stream's own.
struct Session<'a> {
    addr: SocketAddr,
    current: &'a Current,
    /// Before that it does not give way to one with another certificate.
    rests_until: Instant,
    /// When the first word came.
    began: Option<Instant>,
    /// What control knows, or is being told, that we follow.
    told: HashSet<Subject>,
    to_tell: VecDeque<Tell>,
}

/// What holds for ports, as settings say it: `9090=permissive,9091=strict`.
fn listed<T>(ports: &BTreeMap<u16, T>, word: impl Fn(&T) -> String) -> String {
    let each = ports
        .iter()
        .take(64)
        .map(|(port, what)| format!("{port}={}", word(what)));
    each.collect::<Vec<_>>().join(",")
}

fn told(tell: Tell) -> v1::FollowRequest {
    said(match tell {
        Tell::Subscribe(subject) => Ask::Subscribe(wire::ask(&subject)),
        Tell::Unsubscribe(subject) => Ask::Unsubscribe(wire::ask(&subject)),
    })
}

fn said(ask: Ask) -> v1::FollowRequest {
    v1::FollowRequest { ask: Some(ask) }
}
