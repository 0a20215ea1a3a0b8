//! Our side of the control plane: who we are, what we accept, and where services live, as control says.
//!
//! ```text
//!   join token, or our certificate --> certify --> Credential ----> the workers' handshakes
//!                                                      |
//!   Directory::follow --> directory <--> follow <------+  one stream, in mTLS
//!                                          |
//!                                          +--> trust bundle (a new Credential at once), Inbound
//! ```
//!
//! Three tasks on the main thread's runtime: one asks for certificates, one has the stream, one forgets what nobody
//! follows any more. What they learn reaches the workers as whole snapshots. While control is away all stays as it was
//! last known; the certificate lasts until its end, and from then on there is none.
//!
//! Control is a peer as any other: it must prove the one SPIFFE id that we were told, under the roots that we have; and
//! what it says is judged before it is taken ([`Refused`]).

mod alert;
mod ask;
mod certify;
mod directory;
mod follow;
mod holder;
mod pace;
mod reach;
mod settings;
mod status;
#[cfg(test)]
mod tests;
mod token;
mod wire;

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use portunus_proto::TrustDomain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use certify::Outcome;
pub use directory::{Directory, Full};
pub use settings::{Address, Settings};
pub use status::{Certificate, Status, Stream};
pub use wire::Refused;

use crate::connect::resolve::{self, Names};
use crate::policy::Inbound;
use crate::tls::{self, Credential};
use certify::{Certifying, Counts};
use follow::Following;
use holder::Holder;
use reach::Controls;
use status::Shown;

/// Why there can be no control plane at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody to ask.
    #[error("control has no address")]
    NoAddress,
    /// The identity names a trust domain that is none: only a mistake of ours makes such a one.
    #[error("the trust domain of control's identity cannot be used: {0}")]
    TrustDomain(#[from] portunus_proto::Invalid),
    /// The trust bundle cannot be used.
    #[error("control cannot be believed: {0}")]
    Roots(#[from] tls::Unusable),
    /// A name of control's cannot be followed.
    #[error("control cannot be found: {0}")]
    Name(#[from] resolve::Error),
}

/// What control says, for as long as the process lives.
#[derive(Clone, Debug)]
pub struct Control {
    credential: Arc<ArcSwapOption<Credential>>,
    inbound: watch::Receiver<Arc<Inbound>>,
    directory: Directory,
    status: Shown,
    counts: Arc<Counts>,
}

impl Control {
    /// Who we are and whom we believe; nothing before the first certificate, and from the end of the last one on.
    pub fn credential(&self) -> Arc<ArcSwapOption<Credential>> {
        self.credential.clone()
    }

    /// What we accept: what control says, and where it says nothing what the settings do. Before its first word nothing is
    /// known but what is strict by the settings.
    pub fn inbound(&self) -> watch::Receiver<Arc<Inbound>> {
        self.inbound.clone()
    }

    /// Where services live.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// How things stand.
    pub fn status(&self) -> Status {
        self.status.now()
    }

    /// How things stand, and every change of it.
    pub fn statuses(&self) -> watch::Receiver<Status> {
        self.status.watch()
    }

    /// How often a certificate was asked for, by what came of it.
    pub fn certifications(&self) -> impl Iterator<Item = (Outcome, u64)> {
        self.counts.all()
    }
}

/// Starts the tasks, on the runtime of the caller, which must be the one of the main thread.
///
/// `names` resolves control's names: it knows the servers that the settings name, goes on with what it knew while they
/// are away, and needs no threads; what the system's own resolver offers (`getaddrinfo`) has none of the three.
///
/// # Errors
/// When the settings cannot be followed whatever happens later.
pub fn start(
    settings: Settings,
    names: &Names,
    tracker: &TaskTracker,
    stop: CancellationToken,
) -> Result<Control, Error> {
    start_by(settings, names, tracker, stop, Arc::new(SystemTime::now))
}

/// What time it is, as people have it. It may be set, in both directions.
type Wall = Arc<dyn Fn() -> SystemTime + Send + Sync>;

fn start_by(
    settings: Settings,
    names: &Names,
    tracker: &TaskTracker,
    stop: CancellationToken,
    wall: Wall,
) -> Result<Control, Error> {
    let trust_domain: TrustDomain = settings.identity.trust_domain().parse()?;
    let bundle = tls::Bundle::new(trust_domain, &settings.roots)?;
    let settings = Arc::new(settings);
    let controls = Controls::new(settings.clone(), names, tracker)?;
    let holder = Arc::new(Holder::new(settings.roots.clone(), bundle));
    let status = Shown::new();
    let counts = Arc::new(Counts::default());
    let directory = Directory::new(&settings);
    let inbound = watch::Sender::new(Arc::new(settings.inbound.before_control()));

    let control = Control {
        credential: holder.published(),
        inbound: inbound.subscribe(),
        directory: directory.clone(),
        status: status.clone(),
        counts: counts.clone(),
    };
    let following = Following {
        controls: controls.clone(),
        settings: settings.clone(),
        current: holder.watch(),
        holder: holder.clone(),
        inbound,
        directory: directory.clone(),
        status: status.clone(),
        wall: wall.clone(),
    };
    let certifying = Certifying {
        controls,
        settings,
        holder,
        status,
        counts,
        wall,
    };
    tracker.spawn(stop.clone().run_until_cancelled_owned(certifying.run()));
    tracker.spawn(stop.clone().run_until_cancelled_owned(following.run()));
    tracker.spawn(stop.run_until_cancelled_owned(directory.forget_what_nobody_follows()));
    Ok(control)
}
