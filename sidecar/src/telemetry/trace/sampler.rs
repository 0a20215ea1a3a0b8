//! Which traces are recorded (OpenTelemetry's `OTEL_TRACES_SAMPLER`).

use super::TraceId;

/// The rule by which RPCs are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// What decides where the caller has not, or is not asked.
    pub root: Root,
    /// Whether a caller's decision stands.
    pub parent_based: bool,
}

/// How it is decided anew.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Root {
    /// All are recorded.
    Always,
    /// None is.
    Never,
    /// This share of them, from 0 to 1, told from the trace id as every SDK does: who has the same ratio decides the same.
    Ratio(f64),
}

impl Default for Sampler {
    /// A caller's decision stands; of traces that begin here, one in twenty is recorded.
    fn default() -> Self {
        Sampler {
            root: Root::Ratio(0.05),
            parent_based: true,
        }
    }
}

impl Root {
    /// Trace ids whose lower 63 bits (by their upper end) are below this are recorded.
    pub(crate) fn threshold(self) -> u64 {
        const ALL: u64 = 1 << 63;
        match self {
            Root::Always => ALL,
            Root::Never => 0,
            // A float beyond the range is cut to it, and what is no number is 0.
            Root::Ratio(ratio) => ((ratio * ALL as f64) as u64).min(ALL),
        }
    }
}

/// Whether a trace is below a threshold of [`Root::threshold`].
#[inline]
pub(crate) fn is_sampled(trace_id: TraceId, threshold: u64) -> bool {
    (trace_id.get() as u64) >> 1 < threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trace::Ids;

    #[test]
    fn a_ratio_records_about_its_share() {
        let mut ids = Ids::new();
        for (root, least, most) in [
            (Root::Never, 0, 0),
            (Root::Ratio(0.0), 0, 0),
            (Root::Ratio(f64::NAN), 0, 0),
            (Root::Ratio(-1.0), 0, 0),
            (Root::Ratio(0.05), 400, 600),
            (Root::Ratio(1.0), 10_000, 10_000),
            (Root::Ratio(7.0), 10_000, 10_000),
            (Root::Always, 10_000, 10_000),
        ] {
            let threshold = root.threshold();
            let sampled = (0..10_000).filter(|_| is_sampled(ids.trace_id(), threshold)).count();
            assert!((least..=most).contains(&sampled), "{root:?}: {sampled}");
        }
    }
}
