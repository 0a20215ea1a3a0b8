//! The life of the exporting thread: gather, send, try again, and at the end what can still be sent in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use rand::RngExt as _;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::batch::Batch;
use super::call::{Collector, Refused};
use super::encode::Requests;
use super::{Headers, Settings, Target, metrics};
use crate::telemetry::handover::Outlet;
use crate::telemetry::{Counter, Registry, SPANS};

/// How long the end of the process waits for what was recorded to be delivered.
pub(super) const FLUSH: Duration = Duration::from_secs(2);
/// How long a span waits for others to go with.
const GATHER: Duration = Duration::from_secs(1);
/// How long one batch is tried. Others wait behind it, and newer ones are dropped once there is no room.
const GIVE_UP: Duration = Duration::from_secs(60);
/// The longest delay that a collector may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(30);

/// Exports until it is stopped, and [`FLUSH`] longer at most.
pub(super) async fn run(
    settings: Settings,
    registry: Arc<Registry>,
    outlets: Vec<Outlet>,
    call: Arc<Notify>,
    stop: CancellationToken,
) {
    let resource = settings.resource.encode();
    let late = async {
        stop.cancelled().await;
        sleep(FLUSH).await;
    };
    let mut spans = Spans::new(&settings, &registry, &resource, &outlets);
    let all = async {
        tokio::join!(
            spans.export(&call, &stop),
            export_metrics(&settings, &registry, &resource, &stop)
        )
    };
    tokio::select! {
        _ = all => {}
        () = late => {}
    }
    spans.give_up();
}

struct Spans<'a> {
    collector: Option<Collector>,
    requests: Requests,
    outlets: &'a [Outlet],
    /// What is being sent, as long as it is.
    sending: u64,
    health: Health,
    exported: Counter,
    dropped: Counter,
    failed: Counter,
}

impl<'a> Spans<'a> {
    fn new(settings: &Settings, registry: &Arc<Registry>, resource: &Resource, outlets: &'a [Outlet]) -> Spans<'a> {
        let recorder = registry.recorder();
        let target = settings.traces.as_ref();
        Spans {
            collector: target.map(|target| Collector::new(settings, target, TRACES)),
            requests: Requests::new(resource),
            outlets,
            sending: 0,
            health: Health::new("spans", target, &settings.headers),
            exported: recorder.resolve(&SPANS, ["exported"]),
            dropped: recorder.resolve(&SPANS, ["dropped"]),
            failed: recorder.resolve(&SPANS, ["failed"]),
        }
    }

    async fn export(&mut self, call: &Notify, stop: &CancellationToken) {
        let mut gathered = interval(GATHER);
        gathered.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                () = stop.cancelled() => true,
                () = call.notified() => false,
                _ = gathered.tick() => false,
            };
            loop {
                let batch = Batch::gather(self.outlets);
                if batch.count() == 0 {
                    break;
                }
                let is_full = batch.is_full();
                self.deliver(batch).await;
                // What came meanwhile waits for more, or for the next second: else each answer would be followed by the few spans
                // that came while it was under way.
                if !is_full && !stopping {
                    break;
                }
            }
            if stopping {
                return;
            }
        }
    }

    /// Sends a batch until the collector has it, will not have it, or has been asked for too long.
    async fn deliver(&mut self, mut batch: Batch) {
        let Some(collector) = &mut self.collector else {
            self.dropped.add(batch.count());
            return;
        };
        self.sending = batch.count();
        let message = Bytes::from(self.requests.encode(&batch.spans));
        batch.spans = Vec::new();
        let began = Instant::now();
        let mut pause = Backoff::default();
        loop {
            let why = match collector.send(message.clone()).await {
                Ok(answer) => {
                    let rejected = self.health.taken(&answer, batch.count());
                    self.dropped.add(rejected);
                    self.exported.add(batch.count() - rejected);
                    break;
                }
                Err(why) => why,
            };
            self.health.refused(&why);
            match why {
                Refused::Later { after, .. } if began.elapsed() < GIVE_UP => {
                    sleep(heeded(pause.next(), after)).await;
                }
                Refused::Later { .. } | Refused::Never(_) => {
                    self.failed.add(batch.count());
                    break;
                }
            }
        }
        self.sending = 0;
    }

    /// Counts what was not delivered in time.
    fn give_up(&mut self) {
        let mut left = self.sending;
        loop {
            match Batch::gather(self.outlets).count() {
                0 => break,
                count => left += count,
            }
        }
        self.failed.add(left);
        if left > 0 {
            warn!(spans = left, "the process ends before these spans were delivered");
        }
    }
}

async fn export_metrics(settings: &Settings, registry: &Registry, resource: &Resource, stop: &CancellationToken) {
    let Some(target) = &settings.metrics else { return };
    let began = Instant::now();
    let mut collector = Collector::new(settings, target, METRICS);
    let mut health = Health::new("metrics", Some(target), &settings.headers);
    let mut due = interval(settings.metric_interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is due at once, when there is nothing to say.
    due.tick().await;
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            _ = due.tick() => false,
        };
        let message = metrics::request(registry, resource, began).encode_to_vec();
        // They are sums: what is lost today comes with the next.
        match collector.send(message.into()).await {
            Ok(answer) => health.taken_metrics(&answer),
            Err(why) => health.refused(&why),
        }
        if stopping {
            return;
        }
    }
}

/// Whether it works, so that it is logged when that changes and not each time.
struct Health {
    what: &'static str,
    collector: String,
    /// What a collector may repeat, and we may not.
    headers: Headers,
    is_failing: bool,
}

impl Health {
    fn new(what: &'static str, target: Option<&Target>, headers: &Headers) -> Health {
        Health {
            what,
            collector: target.map_or_else(String::new, |target| target.endpoint.to_string()),
            headers: headers.clone(),
            is_failing: false,
        }
    }

    fn refused(&mut self, why: &Refused) {
        let Health { what, collector, .. } = self;
        if !self.is_failing {
            let why = self.headers.masked(&why.to_string());
            let why = &why[..why.floor_char_boundary(MOST_SAID)];
            warn!(%collector, "{what} cannot be delivered, and calls go on as ever: {why}");
        }
        self.is_failing = true;
    }

    /// Spans were taken; returns how many of them were not. What is no answer of OTLP's is none of a refusal's, either.
    fn taken(&mut self, answer: &[u8], count: u64) -> u64 {
        let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
        let Some(partial) = answer.partial_success else {
            self.works();
            return 0;
        };
        let rejected = u64::try_from(partial.rejected_spans).unwrap_or(0).min(count);
        self.partly(rejected, &partial.error_message);
        rejected
    }

    fn taken_metrics(&mut self, answer: &[u8]) {
        let answer = ExportMetricsServiceResponse::decode(answer).unwrap_or_default();
        match answer.partial_success {
            None => self.works(),
            Some(partial) => {
                let rejected = u64::try_from(partial.rejected_data_points).unwrap_or(0);
                self.partly(rejected, &partial.error_message);
            }
        }
    }

    fn partly(&mut self, rejected: u64, message: &str) {
        if rejected == 0 {
            return self.works();
        }
        let Health { what, collector, .. } = self;
        if !self.is_failing {
            let message = self.headers.masked(message);
            let message = &message[..message.floor_char_boundary(MOST_SAID)];
            warn!(%collector, rejected, "the collector took only a part of the {what}: {message}");
        }
        self.is_failing = true;
    }

    fn works(&mut self) {
        if self.is_failing {
            info!(collector = %self.collector, "{} are delivered again", self.what);
        }
        self.is_failing = false;
    }
}

/// Pauses that grow, with jitter: a collector that comes back finds not everybody at once, and is found within 5 s,
/// also where the try before had to wait for its deadline.
#[derive(Debug)]
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Backoff(Duration::from_millis(200))
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0.mul_f64(rand::rng().random_range(0.5..1.0));
        self.0 = (self.0 * 2).min(Duration::from_secs(1));
        pause
    }
}

/// How long it takes until the next try, where the collector may have wished for something.
fn heeded(pause: Duration, wish: Option<Duration>) -> Duration {
    pause.max(wish.unwrap_or_default().min(LONGEST_WISH))
}

/// Bytes of a collector's complaint that are logged.
const MOST_SAID: usize = 500;

const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_asks_for_a_year_is_left_alone_for_half_a_minute() {
        let (usual, second) = (Duration::from_millis(200), Duration::from_secs(1));
        assert_eq!(heeded(usual, None), usual);
        assert_eq!(heeded(usual, Some(Duration::ZERO)), usual);
        assert_eq!(heeded(usual, Some(second)), second);
        for wish in [31_536_000, u64::MAX] {
            assert_eq!(heeded(usual, Some(Duration::from_secs(wish))), LONGEST_WISH);
        }
    }
}
