//! Start and stop.
//!
//! The main thread has what is not on the path of an RPC: the admin pages, signals, and the order in which things begin
//! and end. Workers are threads of their own.

pub mod copies;
mod crew;
pub mod log;
mod membership;
mod parts;
pub mod shutdown;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use portunus_logbook as logbook;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::admin::{Condition, Conditions, Door, Pages};
use crate::config::Config;
use crate::connect::resolve::{Names, State};
use crate::connect::{Dialled, Loop};
use crate::redirect;
use crate::telemetry::export::Exporter;
use crate::telemetry::{self, Intake, Registry};
use crate::worker::{self, Command, Cut, Orders};
use membership::Membership;
use shutdown::{Action, Event, Shutdown};

pub use crew::{Crew, Opens, Seat};

/// Why the proxy ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not start: the system refused something.
    #[error("the proxy cannot start: {0:#}")]
    Start(anyhow::Error),
    /// A worker failed; nothing that it carried can be relied on, so all ends.
    #[error("the proxy ends: {0:#}")]
    Worker(anyhow::Error),
}

impl Error {
    /// The process's exit code (sysexits.h).
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Start(_) => 71,
            Error::Worker(_) => 70,
        }
    }
}

/// Carries RPCs until somebody asks for the end.
pub fn run(config: Config) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("there is no event loop").map_err(Error::Start)?;
    runtime.block_on(async {
        let (ask, asked) = channel(16);
        hear_signals(ask.clone())
            .context("signals cannot be heard")
            .map_err(Error::Start)?;
        let names = Names::start(parts::names(&config), &TaskTracker::new(), CancellationToken::new());
        let followed = names.clone();
        let membership = Membership::start(&config, &names).map_err(Error::Start)?;
        let mesh = membership.as_ref().map(Membership::mesh);
        let told = Arc::default();
        let dialled = Arc::<Dialled>::default();
        let watched = dialled.clone();
        let work = move |seat: Seat, config: &Config, registry: &Arc<Registry>| {
            let (told, dialled, registry) = (Arc::clone(&told), dialled.clone(), registry.clone());
            let parts = parts::of(config, names.clone(), mesh.clone(), told, dialled, registry);
            let (listening, deaf) = (seat.listening_hook(), seat.deaf_hook());
            worker::run(
                parts,
                Orders {
                    commands: seat.commands,
                    open: seat.open,
                    listening: Box::new(move |_| listening()),
                    tracing: seat.intake.map(|intake| (config.traces.clone(), intake)),
                    access_log: config.access_log.map(|form| (form, Box::new(logbook::put) as Box<_>)),
                    deaf,
                },
            )
        };
        carry(Arc::new(config), ask, asked, Some(followed), membership, watched, work).await
    })
}

/// The order of beginning and end: the admin pages first and last, so that somebody can always ask what goes on.
async fn carry(
    config: Arc<Config>,
    ask: Sender<Event>,
    asked: Receiver<Event>,
    names: Option<Names>,
    membership: Option<Membership>,
    dialled: Arc<Dialled>,
    work: impl Fn(Seat, &Config, &Arc<Registry>) -> anyhow::Result<Cut> + Send + Sync + 'static,
) -> Result<(), Error> {
    let registry = Registry::new(&config.telemetry);
    if let Some(names) = names {
        show_names(&registry, names);
    }
    registry.observe(&telemetry::LOG_DROPPED, |samples| {
        samples.push([], logbook::dropped() as f64)
    });
    let (liveness, readiness) = (Conditions::new(), Conditions::new());
    let listening = readiness.condition("workers", "the workers do not listen yet");
    let staying = readiness.condition("shutdown", "the proxy is starting");
    staying.met();
    let hearing = readiness.condition("listeners", "the listeners are not open yet");
    hearing.met();
    let redirected = readiness.condition("redirect", "the redirect rules were not looked for yet");
    let left_alone = readiness.condition("loop", "");
    left_alone.met();
    tokio::spawn(say_loop(left_alone, dialled.clone()));
    if let Some(membership) = &membership {
        membership.show(&readiness, &registry);
    }
    let opens = Arc::new(ArcSwapOption::<Opens>::empty());
    let shown = opens.clone();
    let turning = [&liveness, &readiness].map(|of| of.condition("turns", "the workers were not looked at yet"));
    turning.iter().for_each(Condition::met);
    let pages = Pages {
        liveness,
        readiness,
        registry: registry.clone(),
        config: config.understood.clone(),
        endpoints: Box::new(move || {
            shown
                .load()
                .as_ref()
                .map_or_else(|| json!([]), |opens| json!(opens.endpoints()))
        }),
        // A queue that is full has requests enough.
        drain: Box::new(move || {
            let _ = ask.try_send(Event::Asked);
        }),
    };
    let door = Door::open(&config.admin, pages).map_err(|why| Error::Start(anyhow!("{why}")))?;

    let exporter = export(&config, &registry)?;
    let (exporter, intakes) = exporter.unzip();
    let intakes = Mutex::new(intakes.unwrap_or_default());
    let worker = (config.clone(), registry.clone());
    let crew = Crew::start(config.workers, say_deaf(hearing), move |mut seat| {
        seat.intake = intakes.lock().pop();
        work(seat, &worker.0, &worker.1)
    });
    let mut crew = crew.context("worker threads cannot be made").map_err(Error::Start)?;
    crew.listening().await.map_err(Error::Start)?;
    opens.store(Some(Arc::new(crew.opens())));
    show_endpoints(&registry, crew.opens());
    listening.met();
    tokio::spawn(watch::watch(crew.opens(), turning));
    if config.outbound_default.is_some() || config.inbound_default.is_some() {
        // Whoever says where unredirected connections lead does without rules.
        redirected.met();
    } else {
        tokio::spawn(look_for_rules(redirected, config.clone(), dialled));
    }
    info!(
        version = env!("CARGO_PKG_VERSION"),
        workers = config.workers,
        "the proxy listens"
    );

    let cut = until_the_end(Shutdown::new(config.shutdown), &mut crew, asked, &staying).await?;
    record(&registry, cut);
    let Cut { rpcs, connections } = cut;
    // Nobody scrapes what is counted now: these lines are where it is seen.
    match crew.running() {
        0 if cut == Cut::default() => info!("the proxy ends; nothing was cut"),
        0 => warn!(rpcs, connections, "the proxy ends; what was still open was cut"),
        workers => error!(
            rpcs,
            connections,
            workers,
            "the proxy ends; what was still open was cut, and what these workers had open was not counted"
        ),
    }
    if let Some(membership) = membership {
        membership.end().await;
    }
    if let Some(exporter) = exporter
        && !exporter.stop()
    {
        warn!("the exporter of traces and metrics did not end in time");
    }
    door.close().await;
    Ok(())
}

/// Starts to export, if there is anywhere to.
fn export(config: &Config, registry: &Arc<Registry>) -> Result<Option<(Exporter, Vec<Intake>)>, Error> {
    let settings = &config.export;
    if settings.traces.is_none() && settings.metrics.is_none() {
        return Ok(None);
    }
    // Metrics alone need no spans.
    let workers = if settings.traces.is_some() { config.workers } else { 0 };
    let exporter = Exporter::start(settings.clone(), registry.clone(), workers);
    exporter
        .map(Some)
        .context("there is no thread to export with")
        .map_err(Error::Start)
}

/// Not ready from the first listener on that fails: connections go to those of other workers, while there are any, and
/// are refused then. What runs goes on.
fn say_deaf(hearing: Condition) -> impl Fn(usize, String) + Send + Sync {
    let failed = Mutex::new(Vec::new());
    move |worker, why| {
        let mut failed = failed.lock();
        failed.push(format!("worker-{worker}: {why}"));
        hearing.unmet(failed.join("; "));
    }
}

/// What the workers know of endpoints, added up by service and state at every scrape.
fn show_endpoints(registry: &Arc<Registry>, opens: Opens) {
    registry.observe(&telemetry::ENDPOINTS, move |samples| {
        let mut states = BTreeMap::<_, std::collections::BTreeSet<_>>::new();
        for view in opens.endpoints() {
            states.entry((view.service, view.state)).or_default().insert(view.addr);
        }
        for ((service, state), endpoints) in states {
            samples.push([&service, &state], endpoints.len() as f64);
        }
    });
}

/// The names that are followed, by how far what is known of them can be trusted.
fn show_names(registry: &Arc<Registry>, names: Names) {
    registry.observe(&telemetry::DNS_NAMES, move |samples| {
        let mut counts = BTreeMap::from([("fresh", 0), ("stale", 0), ("unknown", 0)]);
        for (_, answer) in names.known() {
            let state = match answer.state {
                State::Fresh => "fresh",
                State::Stale { .. } => "stale",
                State::Pending | State::Failed { .. } => "unknown",
            };
            *counts.entry(state).or_default() += 1;
        }
        for (state, count) in counts {
            samples.push([state], f64::from(count));
        }
    });
}

/// Not ready while connections of our own come back to us: no call can succeed. Said once, however many come. Where the rules
/// are what is wrong they may be mended: the probe dials each 5 s, and none comes back any more.
async fn say_loop(left_alone: Condition, dialled: Arc<Dialled>) {
    loop {
        dialled.looped().await;
        let sentence = Loop::here().to_string();
        error!("{sentence}");
        left_alone.unmet(sentence);
        while tokio::time::timeout(LEFT_ALONE_FOR, dialled.looped()).await.is_ok() {}
        info!("no connection of this proxy's own has come back to it for a minute: the redirect rules leave it alone");
        left_alone.met();
    }
}

/// Not ready while the redirect rules are missing: the pod's traffic would go past the proxy. Looked for often until
/// they are there, then seldom.
async fn look_for_rules(redirected: Condition, config: Arc<Config>, dialled: Arc<Dialled>) {
    let settings = parts::redirect_probe(&config);
    let mut said = String::new();
    loop {
        let pause = match redirect::installed(&settings).await {
            Ok(()) => {
                redirect::dial_ourselves(&settings, &dialled).await;
                // Whoever hears that it came back makes us unready before the rules being there could make us ready.
                tokio::task::yield_now().await;
                redirected.met();
                said.clear();
                RULES_SEEN_PAUSE
            }
            Err(missing) => {
                let sentence = missing.to_string();
                if said != sentence {
                    warn!("{sentence}");
                    redirected.unmet(sentence.clone());
                    said = sentence;
                }
                RULES_MISSING_PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// How long none of our own connections must come back before the rules count as right again.
const LEFT_ALONE_FOR: Duration = Duration::from_secs(60);
/// How soon the rules are looked for again while they are missing.
const RULES_MISSING_PAUSE: Duration = Duration::from_millis(50);
/// How soon they are looked at again once they were seen.
const RULES_SEEN_PAUSE: Duration = Duration::from_secs(5);

fn record(registry: &Arc<Registry>, cut: Cut) {
    let recorder = registry.recorder();
    recorder.resolve(&telemetry::CUT, ["rpcs"]).add(cut.rpcs);
    recorder.resolve(&telemetry::CUT, ["connections"]).add(cut.connections);
}

/// Turns signals into events, for as long as the process lives.
fn hear_signals(ask: Sender<Event>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            info!(signal = name, "asked to stop");
            if ask.send(Event::Signalled).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Lives through the states of [`Shutdown`] and does what they ask for; returns what was cut.
async fn until_the_end(
    mut shutdown: Shutdown,
    crew: &mut Crew,
    mut asked: Receiver<Event>,
    staying: &Condition,
) -> Result<Cut, Error> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut open = (0, 0);
    loop {
        let event = tokio::select! {
            biased;
            ended = crew.ended() => {
                let cut = ended.map_err(Error::Worker)?;
                if !shutdown.has_begun() {
                    return Err(Error::Worker(anyhow!("all workers ended, and nobody had asked them to")));
                }
                info!(rpcs = cut.rpcs, connections = cut.connections, "the workers have ended");
                Event::WorkersEnded
            }
            Some(event) = asked.recv() => event,
            _ = look.tick(), if shutdown.has_begun() => {
                open = crew.open();
                Event::Looked { inbound: open.0, outbound: open.1 }
            }
        };
        for action in shutdown.step(Instant::now(), event) {
            let (inbound, outbound) = open;
            match action {
                Action::NotReady => staying.unmet("the proxy is stopping"),
                Action::DrainInbound => {
                    info!("inbound drains; outbound goes on while the application is connected");
                    crew.tell(Command::DrainInbound);
                }
                Action::DrainOutbound => {
                    info!(
                        inbound,
                        outbound, "outbound drains too: the grace period is almost over"
                    );
                    crew.tell(Command::DrainOutbound);
                }
                Action::EndWorkers(why) => {
                    info!(?why, inbound, outbound, "the workers end");
                    crew.tell(Command::End);
                }
                Action::Finish => return Ok(crew.cut()),
            }
        }
    }
}

/// How often the main thread looks what is still open while the process stops.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests;
