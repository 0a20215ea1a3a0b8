//! The process's place in the mesh: control's tasks on the main thread, what the workers take from them, and what the
//! operator sees of them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::admin::{Condition, Conditions};
use crate::config::Config;
use crate::connect::resolve::Names;
use crate::control::{self, Control};
use crate::policy::Inbound;
use crate::telemetry::{self, Registry};
use crate::worker::Mesh;

/// How long control's tasks may take to end.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Control, and a hand on its tasks.
pub(super) struct Membership {
    control: Control,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Membership {
    /// Starts control's tasks on the runtime that calls, if the settings name a control at all.
    pub(super) fn start(config: &Config, names: &Names) -> anyhow::Result<Option<Membership>> {
        let Some(settings) = &config.control else {
            return Ok(None);
        };
        let settings = control::Settings {
            inbound: config.mtls.clone(),
            ..settings.clone()
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let control = control::start(settings, names, &tasks, stop.clone()).context("there is no way to control")?;
        Ok(Some(Membership { control, tasks, stop }))
    }

    /// What a worker has of it.
    pub(super) fn mesh(&self) -> Mesh {
        let directory = self.control.directory();
        Mesh {
            own: self.control.credential(),
            modes: self.control.inbound(),
            ask: Arc::new(move |subject| directory.follow(subject)),
        }
    }

    /// Shows it: not ready while there is no certificate or nobody has said what may come in, and numbers at every scrape.
    pub(super) fn show(&self, readiness: &Arc<Conditions>, registry: &Registry) {
        let certified = readiness.condition("identity", "no certificate was asked for yet");
        self.tasks.spawn(
            self.stop
                .clone()
                .run_until_cancelled_owned(tell(self.control.clone(), certified)),
        );
        let allowed = readiness.condition("policy", "control has not said yet what may come in");
        self.tasks.spawn(
            self.stop
                .clone()
                .run_until_cancelled_owned(tell_of_policy(self.control.inbound(), allowed)),
        );
        let control = self.control.clone();
        registry.observe(&telemetry::CERTIFICATE_EXPIRY, move |samples| {
            let expires = control.status().certificate.expires();
            if let Some(since) = expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
                samples.push([], since.as_secs() as f64);
            }
        });
        let control = self.control.clone();
        registry.observe(&telemetry::CONTROL_CONNECTED, move |samples| {
            let is_connected = control.status().stream.is_connected();
            samples.push([], f64::from(u8::from(is_connected)));
        });
        let control = self.control.clone();
        registry.observe(&telemetry::CERTIFICATIONS, move |samples| {
            for (outcome, count) in control.certifications() {
                samples.push([outcome.as_str()], count as f64);
            }
        });
    }

    /// Ends the tasks.
    pub(super) async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(LAST_WORDS, self.tasks.wait()).await.is_err() {
            warn!("connections to control were cut");
        }
    }
}

/// Tells a condition once it is known what may come in. Control's last word holds while it is away.
async fn tell_of_policy(mut inbound: watch::Receiver<Arc<Inbound>>, allowed: Condition) {
    if inbound.wait_for(|inbound| inbound.default.is_some()).await.is_ok() {
        allowed.met();
    }
}

/// Tells a condition whether there is a certificate, for as long as the tasks live.
async fn tell(control: Control, certified: Condition) {
    let mut statuses = control.statuses();
    loop {
        let missing = statuses.borrow_and_update().certificate.missing();
        match missing {
            None => certified.met(),
            Some(missing) => certified.unmet(missing),
        }
        if statuses.changed().await.is_err() {
            return;
        }
    }
}
