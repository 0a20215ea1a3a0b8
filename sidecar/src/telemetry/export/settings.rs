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

impl Headers {
    /// What a collector says, without what it repeats of these headers.
    pub(super) fn masked(&self, text: &str) -> String {
        // A key mostly stands behind a word: `Bearer ...`.
        let words = self.0.iter().flat_map(|(_, value)| value.split_ascii_whitespace());
        let mut words: Vec<_> = words.filter(|word| word.len() >= LEAST_SECRET).collect();
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        words
            .iter()
            .fold(text.to_owned(), |text, word| text.replace(word, "(secret)"))
    }
}

/// Bytes of the shortest word that is taken for a secret: shorter ones are part of too many other words.
const LEAST_SECRET: usize = 7;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_collector_repeats_of_our_headers_is_not_said() {
        let headers = |all: &[(&str, &str)]| {
            Headers(
                all.iter()
                    .map(|(key, value)| (key.to_string(), value.to_string()))
                    .collect(),
            )
        };
        let said = headers(&[
            ("authorization", "Bearer abcdefgh"),
            ("x-key", "abcdefghij"),
            ("x-team", "a"),
        ]);
        assert_eq!(
            said.masked("\"abcdefgh\" is no token of a team; abcdefghij"),
            "\"(secret)\" is no token of a team; (secret)"
        );
        assert_eq!(headers(&[]).masked("as it is"), "as it is");
    }
}
