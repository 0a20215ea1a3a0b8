//! Follows a directory: a new state is taken whole, and the last good one stays while there are mistakes.
//!
//! The kernel says when something changed; a slow look at the files' stamps is the net below it (network file systems
//! say nothing). Kubernetes swaps a symlink, which may be one in the directory, or one that leads to it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::ears::Ears;
use super::{Finding, Reading, Severity, Stamp};
use crate::cluster::{Snapshot, States};

/// How a directory is followed.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where the manifests are.
    pub directory: PathBuf,
    /// How long it must be quiet after a change before it is read. 50 ms by default.
    pub quiet: Duration,
    /// How often it is looked at if nothing is heard of it. 5 s by default.
    pub poll: Duration,
}

/// What the newest reading was like.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// How many readings were taken.
    pub accepted: u64,
    /// How many were not.
    pub refused: u64,
    /// What was found in the newest. It was refused if a mistake is among it.
    pub findings: Arc<[Finding]>,
    /// When the state in force was taken.
    pub since: Option<SystemTime>,
}

/// A directory that is being followed.
#[derive(Debug)]
pub struct Watching {
    /// The newest state that was accepted; `None` until there is one.
    pub states: States,
    /// What the newest reading was like.
    pub health: watch::Receiver<Health>,
    task: JoinHandle<()>,
}

/// After this much of changes without a pause it is read all the same.
const MOST_UNREST: Duration = Duration::from_secs(1);

impl Source {
    /// A directory with the usual times.
    pub fn new(directory: impl Into<PathBuf>) -> Source {
        Source {
            directory: directory.into(),
            quiet: Duration::from_millis(50),
            poll: Duration::from_secs(5),
        }
    }

    /// Reads the directory now, and again after each change, until `stop`.
    pub async fn follow(self, stop: CancellationToken) -> Watching {
        let (to_states, states) = watch::channel(None);
        let (to_health, health) = watch::channel(Health::default());
        let follower = Follower {
            source: self,
            states: to_states,
            health: to_health,
        };
        // Watched before it is read: what changes meanwhile is not missed.
        let ears = follower.listen(None).await;
        let seen = follower.take().await;
        let task = tokio::spawn(async move {
            stop.run_until_cancelled(follower.run(seen, ears)).await;
        });
        Watching { states, health, task }
    }
}

impl Health {
    /// Whether the newest reading was refused.
    pub fn is_refused(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Mistake)
    }
}

impl Watching {
    /// Waits until it has stopped.
    pub async fn ended(self) {
        let _ = self.task.await;
    }
}

struct Follower {
    source: Source,
    states: watch::Sender<Option<Arc<Snapshot>>>,
    health: watch::Sender<Health>,
}

impl Follower {
    async fn run(self, mut seen: Option<Stamp>, mut ears: Option<Ears>) {
        loop {
            let next_look = Instant::now() + self.source.poll;
            tokio::select! {
                () = heard(&mut ears) => self.calm(&mut ears).await,
                () = sleep_until(next_look) => {
                    let are_deaf = ears.as_ref().is_some_and(Ears::are_deaf);
                    if seen.is_some() && self.look().await == seen && !are_deaf {
                        continue;
                    }
                }
            }
            // It may be another directory than before.
            ears = self.listen(ears).await;
            seen = self.take().await;
        }
    }

    /// Waits until it is quiet.
    async fn calm(&self, ears: &mut Option<Ears>) {
        let latest = Instant::now() + MOST_UNREST;
        loop {
            let quiet = Instant::now() + self.source.quiet;
            match timeout_at(quiet.min(latest), heard(ears)).await {
                Ok(()) if Instant::now() < latest => {}
                Ok(()) | Err(_) => return,
            }
        }
    }

    /// Ears that are at the directory: those that are there already, if they are still right. A disk may hang: nobody else
    /// waits for it.
    async fn listen(&self, ears: Option<Ears>) -> Option<Ears> {
        let directory = self.source.directory.clone();
        let turn = move || match ears {
            Some(ears) => ears.turned_to(&directory),
            None => Ears::at(&directory),
        };
        tokio::task::spawn_blocking(turn).await.ok()
    }

    async fn look(&self) -> Option<Stamp> {
        let directory = self.source.directory.clone();
        tokio::task::spawn_blocking(move || super::stamp(&directory)).await.ok()
    }

    /// Reads the directory, and takes what it says if all of it is right. What was read looked like that; nothing if it must
    /// be read again in any case.
    async fn take(&self) -> Option<Stamp> {
        let directory = self.source.directory.clone();
        match tokio::task::spawn_blocking(move || super::read_settled(&directory)).await {
            Ok((reading, stamp)) => {
                self.publish(reading);
                stamp
            }
            Err(why) => {
                error!(%why, "the manifests could not be read");
                None
            }
        }
    }

    fn publish(&self, reading: Reading) {
        for finding in &reading.findings {
            match finding.severity {
                Severity::Mistake => error!(finding = %finding, "a manifest is wrong"),
                Severity::Warning => warn!(finding = %finding, "a manifest is doubtful"),
                Severity::Note => {}
            }
        }
        let accepted = reading.snapshot.is_some();
        match reading.snapshot {
            Some(snapshot) => {
                info!(
                    services = snapshot.services.len(),
                    workloads = snapshot.workloads.len(),
                    policies = snapshot.inbound_policies.len() + snapshot.outbound_policies.len(),
                    "a state was taken"
                );
                let snapshot = Some(Arc::new(snapshot));
                self.states.send_if_modified(|state| {
                    let differs = *state != snapshot;
                    *state = snapshot;
                    differs
                });
            }
            None => {
                let found = reading.findings.iter();
                let mistakes = found.filter(|found| found.severity == Severity::Mistake).count();
                if self.states.borrow().is_some() {
                    error!(
                        mistakes,
                        "the newest manifests are not taken: the state before them stays in force until they are mended \
                         (/source lists the mistakes)"
                    );
                } else {
                    error!(
                        mistakes,
                        "the manifests are not taken, and there is no state before them: no sidecar is served until they are \
                         mended (/source lists the mistakes)"
                    );
                }
            }
        }
        self.health.send_modify(|health| {
            health.findings = reading.findings.into();
            if accepted {
                health.accepted += 1;
                health.since = Some(SystemTime::now());
            } else {
                health.refused += 1;
            }
        });
    }
}

/// Waits for a change that is heard of.
async fn heard(ears: &mut Option<Ears>) {
    match ears {
        Some(ears) => ears.hear().await,
        None => std::future::pending().await,
    }
}
