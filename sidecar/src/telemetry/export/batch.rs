//! What is sent at once: spans of all workers in turn, up to 512 or 1 MiB.

use std::sync::Arc;

use crate::telemetry::Span;
use crate::telemetry::handover::{Outlet, Waiting};

const MOST_SPANS: usize = 512;
const MOST_BYTES: usize = 1 << 20;

/// Spans on their way. They count in their queues until this drops.
#[derive(Debug, Default)]
pub(super) struct Batch {
    #[expect(
        clippy::vec_box,
        reason = "so they come: side by side, each would be moved once more"
    )]
    pub(super) spans: Vec<Box<Span>>,
    count: u64,
    is_full: bool,
    held: Vec<(Arc<Waiting>, usize)>,
}

impl Batch {
    /// As much as there is, and may be sent at once.
    pub(super) fn gather(outlets: &[Outlet]) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        for outlet in outlets {
            batch.held.push((outlet.waiting.clone(), 0));
        }
        loop {
            let before = batch.spans.len();
            for (outlet, (_, held)) in outlets.iter().zip(&mut batch.held) {
                if batch.spans.len() >= MOST_SPANS || bytes >= MOST_BYTES {
                    break;
                }
                if let Some(span) = outlet.take() {
                    let span_bytes = span.bytes();
                    bytes += span_bytes;
                    *held += span_bytes;
                    batch.spans.push(span);
                }
            }
            if batch.spans.len() == before {
                batch.count = before as u64;
                batch.is_full = before >= MOST_SPANS || bytes >= MOST_BYTES;
                return batch;
            }
        }
    }

    /// Whether there may be more that did not fit.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// How many spans it was made of.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for (waiting, bytes) in &self.held {
            waiting.release(*bytes);
        }
    }
}
