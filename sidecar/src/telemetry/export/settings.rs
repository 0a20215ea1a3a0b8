//! What the exporter is told.

use std::fmt;
use std::time::Duration;

use super::{Endpoint, Resource};

/// Where and how to export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where spans go, if anywhere.
    pub traces: Option<Target>,
    /// Where metrics go, if anywhere.
    pub metrics: Option<Target>,
    /// How OTLP is spoken.
    pub protocol: Protocol,
    /// Sent with each export.
    pub headers: Headers,
    /// How long one export may take, connecting included. Default 3 s: a collector that answers nothing is tried again
    /// soon enough to be found back within 5 s.
    pub timeout: Duration,
    /// How often metrics are sent. Default one minute.
    pub metric_interval: Duration,
    /// Whose spans and metrics these are.
    pub resource: Resource,
}

/// A collector, and the path of one signal there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The collector.
    pub endpoint: Endpoint,
    /// The whole path of OTLP/HTTP.
    pub path: String,
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP/gRPC, usually at port 4317.
    Grpc,
    /// OTLP/HTTP in protobuf, usually at port 4318.
    Http,
}

/// Headers of an export. What they say is nobody's business: it may be a key.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| (name, "(secret)"));
        f.debug_map().entries(names).finish()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            traces: None,
            metrics: None,
            protocol: Protocol::Grpc,
            headers: Headers::default(),
            timeout: Duration::from_secs(3),
            metric_interval: Duration::from_secs(60),
            resource: Resource::default(),
        }
    }
}

impl Protocol {
    /// The port of a collector that names none.
    pub fn default_port(self) -> u16 {
        match self {
            Protocol::Grpc => 4317,
            Protocol::Http => 4318,
        }
    }
}

impl Target {
    /// The target of traces at a collector.
    pub fn traces(endpoint: Endpoint) -> Target {
        let path = format!("{}/v1/traces", endpoint.path);
        Target { endpoint, path }
    }

    /// The target of metrics at a collector.
    pub fn metrics(endpoint: Endpoint) -> Target {
        let path = format!("{}/v1/metrics", endpoint.path);
        Target { endpoint, path }
    }

    /// An endpoint of one signal alone, whose path is used as it is.
    pub fn as_is(endpoint: Endpoint) -> Target {
        let path = if endpoint.path.is_empty() {
            "/".to_owned()
        } else {
            endpoint.path.clone()
        };
        Target { endpoint, path }
    }
}
