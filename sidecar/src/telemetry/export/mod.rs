//! Sends what was recorded to a collector, by OTLP, from a thread of its own.
//!
//! Nothing here is on the path of an RPC. Spans come by the workers' queues, which are bounded; a collector that is away,
//! silent, slow or unwilling costs spans, which are counted, and nothing else. Whatever is waited for has a deadline.

mod anchor;
mod attribute;
mod batch;
mod call;
mod encode;
mod endpoint;
mod field;
mod grpc;
mod http;
mod metrics;
mod protobuf;
mod resource;
mod run;
mod settings;

use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use endpoint::{BadEndpoint, Endpoint};
pub use resource::{Resource, parse_pairs};
pub use settings::{Headers, Protocol, Settings, Target};

use super::Registry;
use super::handover::{self, Intake};

/// Bytes of spans that may wait for the collector, all workers together. What is being sent counts among them, and stands
/// beside them in its encoded form, ours and the one that is on its way: all of it stays below 8 MiB.
const MOST_WAITING: usize = 4 << 20;

/// The thread that exports. It ends by itself, later, when this drops.
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    ended: std::sync::mpsc::Receiver<()>,
}

impl Exporter {
    /// Starts the thread, and gives an intake for each worker.
    pub fn start(settings: Settings, registry: Arc<Registry>, workers: usize) -> io::Result<(Exporter, Vec<Intake>)> {
        let call = Arc::<Notify>::default();
        let most = MOST_WAITING / workers.max(1);
        let (intakes, outlets) = (0..workers).map(|_| handover::queue(most, call.clone())).unzip();
        let stop = CancellationToken::new();
        let (end, ended) = std::sync::mpsc::channel();
        let stopping = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Names are resolved on these.
            .max_blocking_threads(2)
            .build()?;
        thread::Builder::new().name("export".to_owned()).spawn(move || {
            runtime.block_on(run::run(settings, registry, outlets, call, stopping));
            // A name that is still being resolved is nobody's business any more.
            runtime.shutdown_background();
            let _ = end.send(());
        })?;
        Ok((Exporter { stop, ended }, intakes))
    }

    /// Sends what waits, in [`run::FLUSH`] at most, and ends the thread. To be called when the workers have ended.
    /// Returns whether the thread ended in time.
    pub fn stop(self) -> bool {
        self.stop.cancel();
        self.ended.recv_timeout(run::FLUSH + GRACE).is_ok()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How much later than its deadline the thread may end.
const GRACE: Duration = Duration::from_millis(500);
