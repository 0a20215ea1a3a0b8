//! Records once: the facts of an RPC become metrics.
//!
//! Whoever records owns a [`Recorder`] (one a thread), and the numbers under it have that thread as their only writer:
//! to count is to load and to store, without a lock, a hash or a line of cache that another worker writes. The scrape
//! alone looks across threads: [`Registry`] adds up what all recorders hold and writes it as Prometheus reads it.
//!
//! A new number is a line in `catalogue.rs` and a [`Recorder::resolve`] where its holder starts.

pub mod access;
mod catalogue;
mod clean;
pub mod export;
mod family;
mod handover;
mod method;
mod numbers;
mod process;
mod recorder;
mod registry;
mod sink;
mod span;
mod text;
pub mod trace;

pub use catalogue::*;
pub use clean::{cut, sentence};
pub use family::{Family, Measure};
pub use handover::{Intake, Queue};
pub use method::{Direction, GrpcType};
pub use numbers::{Counter, Gauge, Held};
pub use recorder::{MethodId, Recorder};
pub use registry::{Registry, Samples};
pub use span::{Event, Kind, MAX_EVENTS, Span};
pub use text::Format;

/// What stands in place of a label's value once a family has as many as it may have.
pub const OTHER: &str = "_OTHER";

/// How much telemetry may remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many methods are told apart in each direction; further ones are counted together as [`OTHER`]. Default 500.
    pub max_methods: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { max_methods: 500 }
    }
}
