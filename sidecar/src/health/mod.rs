//! Health checks of gRPC (`grpc.health.v1`, gRPC's `doc/health-checking.md`): what is asked, and what an answer means.
//!
//! Who asks, and when, is the worker's (`worker/health.rs`). What several findings mean is the balancer's
//! (`balance/health.rs`).

mod answer;
mod message;

use std::time::Duration;

use http::Request;
use http::uri::{Authority, Uri};

pub use answer::{Ended, Pieces};

use crate::balance::health::Thresholds;

/// The shortest interval, and the shortest timeout: more often, and checks would be a load of their own.
pub const SHORTEST: Duration = Duration::from_millis(100);

/// How endpoints' health is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether, and by which RPC.
    pub mode: Mode,
    /// The service that is asked about; empty asks about the server as a whole.
    pub service: String,
    /// The time from one check of an endpoint to the next, at most; 5 s. Shortened by up to a tenth at random, so that those
    /// who check do not do so at once.
    pub interval: Duration,
    /// How long a check waits for its answer; 1 s.
    pub timeout: Duration,
    /// What makes a verdict.
    pub thresholds: Thresholds,
}

/// How health is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By `Check`, again and again.
    Check,
    /// By `Watch`, a stream that says what changes; by `Check` where that is not served.
    Watch,
    /// Not at all.
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mode: Mode::Check,
            service: String::new(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            thresholds: Thresholds::default(),
        }
    }
}

impl Settings {
    /// No checks: what is known of an endpoint comes from its RPCs.
    pub fn off() -> Settings {
        Settings {
            mode: Mode::Off,
            ..Settings::default()
        }
    }

    /// The body of a `Check` or a `Watch`.
    pub fn question(&self) -> Vec<u8> {
        message::question(&self.service)
    }
}

/// Which RPC asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    /// One answer.
    Check,
    /// An answer now, and one whenever it changes.
    Watch,
}

impl Rpc {
    /// The head of the RPC. A `Check` tells its server how long it waits.
    pub fn head(self, authority: &Authority, timeout: Duration) -> Request<()> {
        let path = match self {
            Rpc::Check => "/grpc.health.v1.Health/Check",
            Rpc::Watch => "/grpc.health.v1.Health/Watch",
        };
        let mut uri = Uri::from_static(path).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(authority.clone());
        let mut head = Request::post(Uri::from_parts(uri).unwrap_or_default())
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header(
                "user-agent",
                concat!("portunus-sidecar/", env!("CARGO_PKG_VERSION"), " health"),
            );
        if self == Rpc::Check {
            head = head.header("grpc-timeout", format!("{}m", timeout.as_millis().clamp(1, 99_999_999)));
        }
        head.body(()).unwrap_or_default()
    }
}
