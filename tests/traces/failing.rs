//! Whatever a collector does, whoever records does not feel it; and when it is back, spans are too, within 5 s.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::RwLock;
use portunus_sidecar::telemetry::export::{Protocol, Settings};
use support::Place;
use tonic::Code;

use crate::collector::{Collector, Manner};
use crate::recorder::{Recorder, settings};

/// What must be true after a collector's return.
const RECOVERY: Duration = Duration::from_secs(5);

fn recorder(place: &Place, protocol: Protocol) -> Result<Recorder> {
    Recorder::new(settings("failing", &place.address.to_string(), protocol)?)
}

/// Whoever measures the process's memory is alone.
pub(crate) static MEMORY: RwLock<()> = RwLock::new(());

fn test(promise: impl FnOnce() -> Result<()>) {
    let _with_others = MEMORY.read();
    holds(promise);
}

fn holds(promise: impl FnOnce() -> Result<()>) {
    if let Err(why) = promise() {
        panic!("{why:?}");
    }
}

/// The collector is bad in this manner, then well again at the same address.
fn recovers_from(bad: Option<Manner>) -> Result<()> {
    let place = Place::new()?;
    let collector = bad.map(|manner| Collector::start(&place, manner)).transpose()?;
    let mut recorder = recorder(&place, Protocol::Grpc)?;
    recorder.record(10)?;
    // Long enough for several tries, and for pauses as long as they become.
    let tried = Instant::now();
    support::wait_until(Duration::from_secs(10), "it was tried for a while", || {
        tried.elapsed() > Duration::from_secs(4)
    })?;
    ensure!(recorder.spans("exported") == 0, "nobody took them");
    ensure!(
        recorder.spans("failed") + recorder.spans("dropped") == 0,
        "they may still be taken"
    );
    drop(collector);
    let collector = Collector::start(&place, Manner::Good)?;
    let back = Instant::now();
    recorder.wait_for("exported", 10, RECOVERY)?;
    println!("{bad:?}: delivered {:?} after its return", back.elapsed());
    ensure!(collector.spans() == 10, "{} spans came", collector.spans());
    Ok(())
}

#[test]
fn a_collector_that_refuses_connections_is_found_back() {
    test(|| recovers_from(None));
}

#[test]
fn a_collector_that_never_answers_is_found_back() {
    test(|| recovers_from(Some(Manner::Silent)));
}

#[test]
fn a_collector_that_answers_a_byte_a_second_is_found_back() {
    test(|| recovers_from(Some(Manner::Trickling)));
}

#[test]
fn a_collector_that_closes_each_connection_is_found_back() {
    test(|| recovers_from(Some(Manner::Closing)));
}

#[test]
fn a_collector_that_speaks_nonsense_is_found_back() {
    test(|| recovers_from(Some(Manner::Babbling)));
}

#[test]
fn a_collector_that_is_unavailable_is_found_back() {
    test(|| recovers_from(Some(Manner::Refusing(Code::Unavailable))));
}

#[test]
fn spans_that_a_collector_will_never_take_are_given_up_at_once_and_counted() {
    test(|| {
        let place = Place::new()?;
        let collector = Collector::start(&place, Manner::Refusing(Code::InvalidArgument))?;
        let mut recorder = recorder(&place, Protocol::Grpc)?;
        recorder.record(10)?;
        recorder.wait_for("failed", 10, Duration::from_secs(5))?;
        ensure!(
            collector.spans() == 10,
            "they were sent {} times",
            collector.spans() / 10
        );
        Ok(())
    });
}

#[test]
fn what_a_collector_leaves_of_a_batch_is_counted_as_dropped() {
    test(|| {
        let place = Place::new()?;
        let _collector = Collector::start(&place, Manner::Partial)?;
        let mut recorder = recorder(&place, Protocol::Grpc)?;
        recorder.record(10)?;
        // What is exported is counted last.
        recorder.wait_for("exported", 9, Duration::from_secs(5))?;
        let counted = ["exported", "dropped", "failed"].map(|outcome| recorder.spans(outcome));
        ensure!(counted == [9, 1, 0], "{counted:?} are exported, dropped, failed");
        Ok(())
    });
}

#[test]
fn by_http_too_a_silent_collector_is_left_and_found_back() {
    test(|| {
        let place = Place::new()?;
        let silent = Collector::start(&place, Manner::Silent)?;
        let mut recorder = recorder(&place, Protocol::Http)?;
        recorder.record(10)?;
        support::wait_until(Duration::from_secs(10), "the exporter has said hello", || {
            recorder.spans("exported") == 0 && has_connection(place.address.port())
        })?;
        drop(silent);
        let _web = Web::start(&place, 200)?;
        recorder.wait_for("exported", 10, RECOVERY)
    });
}

#[test]
fn by_http_too_a_collector_that_is_unavailable_is_found_back() {
    test(|| {
        let place = Place::new()?;
        let unavailable = Web::start(&place, 503)?;
        let mut recorder = recorder(&place, Protocol::Http)?;
        recorder.record(10)?;
        support::wait_until(Duration::from_secs(10), "it was asked twice", || {
            unavailable.asked() > 1
        })?;
        ensure!(
            recorder.spans("failed") + recorder.spans("dropped") == 0,
            "they may still be taken"
        );
        drop(unavailable);
        let _web = Web::start(&place, 200)?;
        recorder.wait_for("exported", 10, RECOVERY)
    });
}

#[test]
fn by_http_too_spans_that_a_collector_will_never_take_are_given_up_at_once_and_counted() {
    test(|| {
        let place = Place::new()?;
        let web = Web::start(&place, 400)?;
        let mut recorder = recorder(&place, Protocol::Http)?;
        recorder.record(10)?;
        recorder.wait_for("failed", 10, Duration::from_secs(5))?;
        ensure!(web.asked() == 1, "it was asked {} times", web.asked());
        Ok(())
    });
}

/// A worker is never held up: a span that finds no room is dropped, and what waits is bounded.
#[test]
fn a_flood_of_spans_at_a_silent_collector_costs_a_bounded_memory_and_holds_nobody_up() {
    let _alone = MEMORY.write();
    holds(|| {
        let place = Place::new()?;
        let silent = Collector::start(&place, Manner::Silent)?;
        let mut recorder = recorder(&place, Protocol::Grpc)?;
        const FIRST: usize = 1_000;
        recorder.record(FIRST)?;
        let before = resident()?;
        let began = Instant::now();
        const FLOOD: usize = 200_000;
        let mut longest = Duration::ZERO;
        let mut long = 0;
        for _ in 0..FLOOD / 100 {
            let began = Instant::now();
            recorder.record(100)?;
            longest = longest.max(began.elapsed());
            long += usize::from(began.elapsed() >= Duration::from_secs(1));
        }
        let grown = resident()?.saturating_sub(before);
        let dropped = recorder.spans("dropped");
        println!(
            "{FLOOD} spans in {:?}, 100 of them in {longest:?} at most; {dropped} dropped, {grown} KiB more resident",
            began.elapsed()
        );
        ensure!(dropped > FLOOD as u64 * 9 / 10, "only {dropped} are dropped");
        ensure!(grown < 8 << 10, "{grown} KiB more are resident");
        // The machine may pause once or twice; whoever is held up is so again and again.
        ensure!(
            long <= 2 && longest < Duration::from_secs(10),
            "somebody waited {long} times, for {longest:?}"
        );
        // What was kept leaves, and each span is counted once, whatever became of it.
        drop(silent);
        let collector = Collector::start(&place, Manner::Good)?;
        recorder.wait_for("exported", 1, RECOVERY)?;
        let counted = || ["exported", "dropped", "failed"].map(|outcome| recorder.spans(outcome));
        let all = (FIRST + FLOOD) as u64;
        support::wait_until(RECOVERY, "each span is counted", || {
            counted().iter().sum::<u64>() >= all
        })
        .with_context(|| format!("{:?} of {all}", counted()))?;
        let [exported, ..] = counted();
        ensure!(
            counted().iter().sum::<u64>() == all,
            "{:?}, and {all} were recorded",
            counted()
        );
        ensure!(
            collector.spans() == exported,
            "{exported} are said to be exported, {} came",
            collector.spans()
        );
        Ok(())
    });
}

#[test]
fn the_end_of_the_process_waits_for_a_silent_collector_no_longer_than_it_says() {
    test(|| {
        let mut took = Vec::new();
        // Once it has to be in time: the bound is the exporter's, a pause is the machine's.
        for _ in 0..3 {
            let place = Place::new()?;
            let _collector = Collector::start(&place, Manner::Silent)?;
            let mut recorder = recorder(&place, Protocol::Grpc)?;
            recorder.record(10)?;
            let registry = recorder.registry.clone();
            let began = Instant::now();
            let ended = recorder.stop();
            took.push(began.elapsed());
            if ended && began.elapsed() < Duration::from_secs(3) {
                let page = registry.scrape(portunus_sidecar::telemetry::Format::Prometheus);
                ensure!(page.contains("portunus_spans_total{outcome=\"failed\"} 10"), "{page}");
                return Ok(());
            }
        }
        bail!("the exporter does not end in time: {took:?}")
    });
}

#[test]
fn an_exporter_without_a_collector_counts_what_it_is_given_as_dropped() {
    test(|| {
        let mut recorder = Recorder::new(Settings::default())?;
        recorder.record(3)?;
        recorder.wait_for("dropped", 3, Duration::from_secs(5))
    });
}

/// KiB of this process's memory.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line
        .and_then(|line| line.split_whitespace().next())
        .context("it has a size")?;
    Ok(digits.parse()?)
}

/// Whether a connection to this port of loopback is established.
fn has_connection(port: u16) -> bool {
    let remote = format!("0100007F:{port:04X} 01");
    fs::read_to_string("/proc/net/tcp").is_ok_and(|table| table.contains(&remote))
}

/// The least of an OTLP/HTTP collector: it answers whatever comes with one status.
struct Web {
    _runtime: tokio::runtime::Runtime,
    asked: Arc<AtomicU64>,
}

impl Web {
    fn start(place: &Place, status: u16) -> Result<Web> {
        use http_body_util::{BodyExt as _, Empty};
        use hyper_util::rt::TokioIo;

        let listener = place.listen()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let asked = Arc::<AtomicU64>::default();
        let counted = asked.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (connection, _) = listener.accept().await?;
                let asked = counted.clone();
                let answer = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    asked.fetch_add(1, Relaxed);
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        request.into_body().collect().await?;
                        let mut response = hyper::Response::new(Empty::<bytes::Bytes>::new());
                        *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
                        Ok::<_, hyper::Error>(response)
                    }
                });
                let serve =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(connection), answer);
                tokio::spawn(serve);
            }
            #[expect(unreachable_code, reason = "it gives the block its type")]
            Ok::<_, std::io::Error>(())
        });
        Ok(Web {
            _runtime: runtime,
            asked,
        })
    }

    fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}
