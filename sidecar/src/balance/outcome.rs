//! What the balancer is told of an RPC when it is over.

use std::time::Duration;

/// How an RPC ended, as far as its endpoint is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint did its work, whatever status the application gave.
    Done,
    /// The endpoint failed it: a reset, a lost connection, `UNAVAILABLE`. Counts against it however fast it came.
    Failed,
    /// The caller gave up, or its deadline passed. If no response headers had come, having waited that long says that
    /// the endpoint is at least that slow.
    Abandoned {
        /// From [`Balancer::begin`](super::Balancer::begin) to giving up.
        waited: Duration,
    },
    /// The same, but response headers had come, and no whole message or end behind them: it may be half an answer, or a
    /// stream on which nothing happened.
    Unfinished {
        /// From [`Balancer::begin`](super::Balancer::begin) to giving up.
        waited: Duration,
    },
    /// Nothing was sent to it, or it said that nothing was processed: says nothing of its speed.
    Unsent,
}
