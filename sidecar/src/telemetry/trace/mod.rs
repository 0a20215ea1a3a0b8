//! The place of a span in its trace, in all the forms in which callers write it.
//!
//! Each form is read into a [`Context`] or refused; nothing here panics, whatever a stranger wrote, and only
//! `grpc-trace-bin` is anything but hexadecimal digits with dashes between.

pub mod b3;
pub mod binary;
mod hex;
mod ids;
mod propagators;
mod sampler;
pub mod w3c;

use std::num::{NonZeroU64, NonZeroU128};

pub use ids::Ids;
pub use propagators::Propagators;
pub(crate) use sampler::is_sampled;
pub use sampler::{Root, Sampler};

/// Which traces begin and go on here, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Which of them are recorded.
    pub sampler: Sampler,
    /// In which forms they are read and written.
    pub propagators: Propagators,
}

/// The number of a trace: 128 bits, or 64 in old forms of B3. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The number of a span within its trace. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

/// Which span of which trace, and whether it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace_id: TraceId,
    /// The span.
    pub span_id: SpanId,
    /// Whether whoever made the span records it.
    pub sampled: bool,
    /// Whether the trace id is known to be random (W3C Trace Context, level 2); passed on as it came.
    pub random: bool,
}

impl TraceId {
    /// The id with this value; `None` for zero.
    pub fn new(value: u128) -> Option<TraceId> {
        NonZeroU128::new(value).map(TraceId)
    }

    /// Its value.
    pub fn get(self) -> u128 {
        self.0.get()
    }

    /// Its upper and its lower 64 bits.
    #[inline]
    pub(super) fn halves(self) -> [u64; 2] {
        [(self.get() >> 64) as u64, self.get() as u64]
    }

    /// As it stands on the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        self.get().to_be_bytes()
    }

    /// In 32 hexadecimal digits, as people and backends name it.
    pub fn to_hex(self) -> String {
        format!("{:032x}", self.get())
    }
}

impl SpanId {
    /// The id with this value; `None` for zero.
    pub fn new(value: u64) -> Option<SpanId> {
        NonZeroU64::new(value).map(SpanId)
    }

    /// Its value.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// As it stands on the wire.
    pub fn to_bytes(self) -> [u8; 8] {
        self.get().to_be_bytes()
    }

    /// In 16 hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:016x}", self.get())
    }
}

#[cfg(test)]
mod tests;
