//! How finished spans come from a worker to the thread that exports them: the worker never waits.
//!
//! Each worker has a queue of its own, bounded in bytes. A span counts there until the collector has it (or never will),
//! so the bound holds for all that waits, wherever it does. Nobody is woken for a span: the exporter looks once in a
//! while, and is called when there is enough for a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;

use tokio::sync::Notify;

use super::{Counter, Recorder, SPANS, Span};

/// Spans of one worker that would be taken at once: the exporter is called.
const CALL_AT: usize = 512;

/// The end of a queue that a worker is given.
#[derive(Debug)]
pub struct Intake {
    to: mpsc::Sender<Box<Span>>,
    waiting: Arc<Waiting>,
    most: usize,
    call: Arc<Notify>,
}

/// The same in use on the worker's thread.
#[derive(Debug)]
pub struct Queue {
    intake: Intake,
    dropped: Counter,
}

/// The exporter's end.
#[derive(Debug)]
pub(super) struct Outlet {
    from: mpsc::Receiver<Box<Span>>,
    pub(super) waiting: Arc<Waiting>,
}

/// What waits between the two.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Of spans that were not delivered yet.
    bytes: AtomicUsize,
    /// Spans that were not taken yet.
    spans: AtomicUsize,
}

/// A queue that holds `most` bytes. `call` is notified when there is enough for a batch.
pub(super) fn queue(most: usize, call: Arc<Notify>) -> (Intake, Outlet) {
    let (to, from) = mpsc::channel();
    let waiting = Arc::<Waiting>::default();
    let intake = Intake {
        to,
        waiting: waiting.clone(),
        most,
        call,
    };
    (intake, Outlet { from, waiting })
}

impl Intake {
    /// Opens the queue on the worker's thread, whose recorder counts what is dropped.
    pub fn open(self, recorder: &Recorder) -> Queue {
        Queue {
            intake: self,
            dropped: recorder.resolve(&SPANS, ["dropped"]),
        }
    }
}

impl Queue {
    /// Hands a finished span over; drops it, counted, if there is no room.
    pub fn push(&self, span: Box<Span>) {
        let Intake {
            to,
            waiting,
            most,
            call,
        } = &self.intake;
        let bytes = span.bytes();
        // This thread alone adds: between the two, there can only be more room.
        if waiting.bytes.load(Relaxed) + bytes > *most {
            self.dropped.inc();
            return;
        }
        waiting.bytes.fetch_add(bytes, Relaxed);
        let spans = waiting.spans.fetch_add(1, Relaxed) + 1;
        if to.send(span).is_err() {
            self.dropped.inc();
        } else if spans == CALL_AT {
            call.notify_one();
        }
    }
}

impl Outlet {
    /// The next span, if there is one.
    pub(super) fn take(&self) -> Option<Box<Span>> {
        let span = self.from.try_recv().ok()?;
        self.waiting.spans.fetch_sub(1, Relaxed);
        Some(span)
    }
}

impl Waiting {
    /// Spans of so many bytes are delivered, or given up.
    pub(super) fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::telemetry::trace::{Context, Ids};
    use crate::telemetry::{Kind, Registry, Settings};

    fn span() -> Box<Span> {
        let mut ids = Ids::new();
        let context = Context {
            trace_id: ids.trace_id(),
            span_id: ids.span_id(),
            sampled: true,
            random: false,
        };
        Box::new(Span::new(Kind::Client, context, None, b"/a.B/C", Instant::now()))
    }

    #[test]
    fn a_queue_takes_what_it_may_and_counts_the_rest() {
        let registry = Registry::new(&Settings::default());
        let bytes = span().bytes();
        let (intake, outlet) = queue(3 * bytes, Arc::default());
        let queue = intake.open(&registry.recorder());
        (0..5).for_each(|_| queue.push(span()));
        assert_eq!(queue.dropped.get(), 2);
        assert_eq!(std::iter::from_fn(|| outlet.take()).count(), 3);
        queue.push(span());
        assert_eq!(queue.dropped.get(), 3, "what was taken is not delivered yet");
        outlet.waiting.release(2 * bytes);
        (0..3).for_each(|_| queue.push(span()));
        assert_eq!(queue.dropped.get(), 4);
        drop(outlet);
    }

    #[tokio::test]
    async fn the_exporter_is_called_when_there_is_enough_for_a_batch() {
        let registry = Registry::new(&Settings::default());
        let call = Arc::<Notify>::default();
        let (intake, _outlet) = queue(usize::MAX / 2, call.clone());
        let queue = intake.open(&registry.recorder());
        (0..CALL_AT).for_each(|_| queue.push(span()));
        call.notified().await;
    }
}
