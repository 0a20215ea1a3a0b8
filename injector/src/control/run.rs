//! Start and stop of control: the authority, the source, the doors; and at the end, the doors first.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

use super::admin::{Admin, Door};
use super::discovery::{Realm, World};
use super::identity::{Attempts, Authority, Certifier, Files, KeeperError, Renewals, keep};
use super::numbers::Numbers;
use super::seldom::Seldom;
use super::server::tls::{self, Serving, serving};
use super::server::{Limits, Server, Services, listen};
use super::times::{date, moment};
use crate::cluster::file::Source;
use crate::cluster::{Snapshot, States};

/// What control is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the manifests are.
    pub source: Source,
    /// Where the authority is, and for which trust domain.
    pub files: Files,
    /// What services' names end in. `cluster.local` by default.
    pub cluster_domain: String,
    /// Control's own namespace, of its SPIFFE id. `portunus` by default.
    pub namespace: String,
    /// How long certificates last. 24 h by default.
    pub lifetime: Duration,
    /// Where sidecars are served.
    pub listen: Vec<SocketAddr>,
    /// Where the operator is.
    pub admin_listen: Vec<SocketAddr>,
    /// How much is taken on.
    pub limits: Limits,
}

/// Why control does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no authority.
    #[error(transparent)]
    Authority(#[from] KeeperError),
    /// It cannot prove itself.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// It cannot be reached.
    #[error(transparent)]
    Listen(#[from] listen::Error),
}

/// How often the clock is looked at for the own certificate.
const LOOK: Duration = Duration::from_secs(10);

/// How often it is said that it cannot be renewed.
const SAY_AGAIN: Duration = Duration::from_secs(60 * 60);

/// How often the authority's files are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);

/// Runs control until `stop`, and until all that it began has ended.
///
/// # Errors
/// When it does not start.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), Error> {
    let tasks = TaskTracker::new();
    // The rooms behind the doors outlive them.
    let rooms = CancellationToken::new();
    let _close = rooms.clone().drop_guard();
    let kept = keep(settings.files.clone(), LOOK_AT_FILES, rooms.child_token())?;
    let first = serving(
        &kept.authorities.borrow(),
        &settings.namespace,
        settings.lifetime,
        SystemTime::now(),
    )?;
    let (to_serving, serving) = watch::channel(first);
    tasks.spawn(prove(
        settings.clone(),
        kept.authorities.clone(),
        to_serving,
        rooms.clone(),
    ));
    let admin_listeners = listen::listen("--admin-listen", &settings.admin_listen)?;
    let watching = settings.source.clone().follow(rooms.child_token()).await;
    let numbers = Arc::new(Numbers::default());
    let (to_door, door) = watch::channel(Door::NotYet);
    let admin = Admin {
        numbers: numbers.clone(),
        health: watching.health.clone(),
        authorities: kept.authorities.clone(),
        authority_trouble: kept.trouble.clone(),
        serving: serving.clone(),
        door,
    };
    tasks.spawn(admin.serve(admin_listeners, rooms.child_token()));
    let realm = Realm {
        trust_domain: settings.files.trust_domain.clone(),
        cluster_domain: settings.cluster_domain.clone(),
    };
    let worlds = stop
        .run_until_cancelled(worlds(watching.states.clone(), realm, &tasks, rooms.clone()))
        .await;
    if let Some(worlds) = worlds.flatten() {
        // Not before there is something to say: a sidecar that is refused goes to another control, one that waits does not.
        let listeners = listen::listen("--listen", &settings.listen)?;
        let services = Services {
            certifier: Arc::new(Certifier {
                states: watching.states.clone(),
                authorities: kept.authorities.clone(),
                namespace: settings.namespace.clone(),
                lifetime: settings.lifetime,
                attempts: Attempts::default(),
                renewals: Renewals::default(),
            }),
            worlds,
            authorities: kept.authorities.clone(),
            numbers: numbers.clone(),
            streams: tasks.clone(),
            followers: Arc::default(),
            noise: Arc::default(),
        };
        let server = Server {
            serving,
            services,
            limits: settings.limits.clone(),
            numbers,
        };
        to_door.send_replace(Door::Open);
        info!(listen = ?settings.listen, "control serves sidecars");
        let not_ready = async {
            stop.cancelled().await;
            info!("control stops: sidecars are told to go elsewhere");
            to_door.send_replace(Door::Closed);
        };
        tokio::join!(server.serve(listeners, stop.clone()), not_ready);
    }
    rooms.cancel();
    tasks.close();
    tasks.wait().await;
    watching.ended().await;
    let _ = kept.task.await;
    Ok(())
}

/// Waits for the first state, then arranges each new one, once for all who ask, and on another thread: of thousands of
/// workloads it takes a while.
async fn worlds(
    mut states: States,
    realm: Realm,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Option<watch::Receiver<Arc<World>>> {
    let first = loop {
        states.wait_for(Option::is_some).await.ok()?;
        let first = states.borrow_and_update().clone()?;
        match arranged(first, realm.clone()).await {
            Some(world) => break world,
            None => states.changed().await.ok()?,
        }
    };
    let (to, worlds) = watch::channel(Arc::new(first));
    let arrange = async move {
        while states.changed().await.is_ok() {
            let newest = states.borrow_and_update().clone();
            let Some(newest) = newest else { continue };
            if let Some(world) = arranged(newest, realm.clone()).await {
                to.send_replace(Arc::new(world));
            }
        }
    };
    tasks.spawn(stop.run_until_cancelled_owned(arrange));
    Some(worlds)
}

/// A state, arranged; nothing where that went wrong.
async fn arranged(state: Arc<Snapshot>, realm: Realm) -> Option<World> {
    let world = tokio::task::spawn_blocking(move || World::of(state, realm)).await;
    world
        .inspect_err(
            |why| error!(%why, "a state could not be arranged: sidecars go by the one before, if there is one"),
        )
        .ok()
}

/// Keeps control's own certificate young: anew when the authority changes, after two thirds of its life, and when the clock
/// was turned to before it began.
async fn prove(
    settings: Settings,
    mut authorities: watch::Receiver<Arc<Authority>>,
    to: watch::Sender<Serving>,
    stop: CancellationToken,
) {
    let mut said = Seldom::default();
    let keep_young = async {
        loop {
            let changed = tokio::select! {
                changed = authorities.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
                () = tokio::time::sleep(LOOK) => false,
            };
            let now = SystemTime::now();
            let (begun, ends) = to.borrow().life;
            let life = ends.duration_since(begun).unwrap_or_default();
            if !changed && now >= begun && now + life / 3 < ends {
                continue;
            }
            let authority = authorities.borrow_and_update().clone();
            match serving(&authority, &settings.namespace, settings.lifetime, now) {
                Ok(serving) => {
                    info!("control has a new certificate");
                    said.forget();
                    to.send_replace(serving);
                }
                Err(why) if said.is_due(why.to_string(), SAY_AGAIN, moment()) => {
                    error!(
                        %why,
                        ends = date(ends),
                        "control's own certificate cannot be renewed: once it has ended no sidecar connects to this control, \
                         and what they know stays as it is; mend the certificate authority"
                    );
                }
                Err(_) => {}
            }
        }
    };
    stop.run_until_cancelled(keep_young).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Directory, Log, state_files};

    #[tokio::test(start_paused = true)]
    async fn that_controls_own_certificate_cannot_be_renewed_is_said_hourly_and_not_at_every_try() {
        let log = Log::begin();
        let directory = Directory::new();
        let files = state_files(&directory.0);
        let day = Duration::from_secs(24 * 60 * 60);
        let past = SystemTime::now() - 366 * day;
        let ended = files.load(past).expect("it can be made");
        let first = super::serving(&ended, "portunus", day, past).expect("it signs");
        let (_authorities, authorities) = watch::channel(Arc::new(ended));
        let (to, serving) = watch::channel(first);
        let settings = Settings {
            source: Source::new(&directory.0),
            files,
            cluster_domain: "cluster.local".to_owned(),
            namespace: "portunus".to_owned(),
            lifetime: day,
            listen: Vec::new(),
            admin_listen: Vec::new(),
            limits: Limits::default(),
        };
        let proving = prove(settings, authorities, to, CancellationToken::new());
        let _ = tokio::time::timeout(Duration::from_secs(90 * 60), proving).await;
        assert!(!serving.has_changed().unwrap_or(false));
        let said = log.said();
        let lines: Vec<_> = said.lines().filter(|line| line.contains("cannot be renewed")).collect();
        assert_eq!(lines.len(), 2, "{said}");
        assert!(lines[0].contains("ends=") && lines[0].contains("has ended"), "{said}");
    }
}
