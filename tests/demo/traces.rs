//! One trace of the demo, drawn as a tree: who called whom, who that was proven to be, and how long it took.

use std::{collections::HashMap, fmt::Write as _, fs, path::PathBuf, time::Duration};

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::Value;
use support::{Family, Jaeger, Pod, Program, peer, wait_until};

/// Where the sidecars' spans go.
pub(crate) enum Traces {
    /// To a program of ours that writes them.
    Written { log: PathBuf, _program: Program, _pod: Pod },
    /// To a Jaeger.
    Jaeger(Jaeger),
}

/// A span, as far as the tree shows it.
#[derive(Debug, Clone, Deserialize, PartialEq)]
pub(crate) struct Span {
    trace: String,
    span: String,
    parent: String,
    service: String,
    name: String,
    kind: String,
    /// Nanoseconds of the epoch.
    began: u64,
    ended: u64,
    peer: String,
    identity: String,
    code: String,
}

impl Traces {
    /// Starts what takes spans, in a pod of its own.
    pub(crate) fn start(pod: &Pod, jaeger: bool) -> Result<Traces> {
        if jaeger {
            return Ok(Traces::Jaeger(Jaeger::start(pod)?));
        }
        let mut command = peer::tonic(pod, "collector")?;
        command.arg(format!("--port={}", support::jaeger::OTLP_GRPC));
        let program = pod.start("collector", command)?;
        let log = program.log().to_path_buf();
        Ok(Traces::Written {
            log,
            _program: program,
            _pod: pod.clone(),
        })
    }

    /// What a sidecar is told, whose pod has addresses of these families.
    pub(crate) fn address(pod: &Pod, families: &[Family]) -> Result<String> {
        let family = if families.contains(&Family::V4) {
            Family::V4
        } else {
            Family::V6
        };
        Ok(pod.at(family, support::jaeger::OTLP_GRPC)?.to_string())
    }

    /// Where a trace is drawn from, as one would say it behind it.
    pub(crate) fn source(&self) -> &'static str {
        match self {
            Traces::Written { .. } => "",
            Traces::Jaeger(_) => " (from Jaeger)",
        }
    }

    /// The tree of one trace that is whole, with both sidecars' spans; spans leave a second late.
    pub(crate) fn tree(&self) -> Result<String> {
        let mut tree = None;
        let what = "a trace with the spans of two sidecars";
        let found = wait_until(Duration::from_secs(10), what, || {
            tree = self.spans().ok().and_then(|spans| draw(&spans));
            tree.is_some()
        });
        match (found, tree) {
            (Ok(()), Some(tree)) => Ok(tree),
            (Err(error), _) => Err(error),
            (Ok(()), None) => bail!("there is no trace"),
        }
    }

    fn spans(&self) -> Result<Vec<Span>> {
        match self {
            Traces::Written { log, .. } => {
                let text = fs::read_to_string(log)?;
                Ok(text
                    .lines()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .collect())
            }
            Traces::Jaeger(jaeger) => {
                let traces = jaeger.ask("/api/traces?service=caller-v4&limit=20")?;
                let traces = traces["data"].as_array().cloned().unwrap_or_default();
                Ok(traces.iter().flat_map(of_jaeger).collect())
            }
        }
    }
}

/// The spans of a trace, as Jaeger's query API shows it.
fn of_jaeger(trace: &Value) -> Vec<Span> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let spans = trace["spans"].as_array().cloned().unwrap_or_default();
    let of = |span: &Value| {
        let tag = |key: &str| {
            let tags = span["tags"].as_array().into_iter().flatten();
            tags.filter(|tag| tag["key"] == key)
                .map(|tag| text(&tag["value"]))
                .next()
        };
        let process = span["processID"].as_str().unwrap_or_default();
        let micros = |value: &Value| value.as_u64().unwrap_or_default() * 1_000;
        let began = micros(&span["startTime"]);
        Span {
            trace: text(&span["traceID"]),
            span: text(&span["spanID"]),
            parent: text(&span["references"][0]["spanID"]),
            service: text(&trace["processes"][process]["serviceName"]),
            name: text(&span["operationName"]),
            kind: tag("span.kind").unwrap_or_default(),
            began,
            ended: began + micros(&span["duration"]),
            peer: tag("network.peer.address").unwrap_or_default(),
            identity: tag("portunus.peer.identity").unwrap_or_default(),
            code: tag("rpc.response.status_code").unwrap_or_default(),
        }
    };
    spans.iter().map(of).collect()
}

/// The newest trace of at least two spans of which one is the other's parent.
fn draw(spans: &[Span]) -> Option<String> {
    let by_id: HashMap<_, _> = spans.iter().map(|span| (&span.span, span)).collect();
    let pairs = spans.iter().filter_map(|span| Some((*by_id.get(&span.parent)?, span)));
    let (root, _) = pairs
        .filter(|(root, _)| !by_id.contains_key(&root.parent))
        .max_by_key(|(root, _)| root.began)?;
    let mut text = format!("trace {}\n", root.trace);
    branch(&mut text, spans, root, 0, root.began);
    Some(text)
}

fn branch(text: &mut String, spans: &[Span], span: &Span, depth: usize, zero: u64) {
    let millis = |nanos: u64| nanos as f64 / 1e6;
    let whom = match span.kind.as_str() {
        "client" => "to",
        _ => "from",
    };
    let identity = match span.identity.is_empty() {
        true => "nobody proven".to_owned(),
        false => span.identity.clone(),
    };
    let _ = writeln!(
        text,
        "{}└─ {} {}  {:.1} ms from {:.1} ms on, {}\n{}   sidecar of {}, {whom} {} as {identity}",
        "   ".repeat(depth),
        span.kind,
        span.name,
        millis(span.ended - span.began),
        millis(span.began.saturating_sub(zero)),
        span.code,
        "   ".repeat(depth),
        span.service,
        span.peer,
    );
    for child in spans.iter().filter(|child| child.parent == span.span) {
        branch(text, spans, child, depth + 1, zero);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(id: &str, parent: &str, kind: &str) -> Span {
        Span {
            trace: "t1".into(),
            span: id.into(),
            parent: parent.into(),
            service: format!("of-{id}"),
            name: "a.B/C".into(),
            kind: kind.into(),
            began: 1_000_000,
            ended: 3_000_000,
            peer: "10.0.0.1".into(),
            identity: "spiffe://a/b".into(),
            code: "OK".into(),
        }
    }

    #[test]
    fn a_trace_is_drawn_from_its_root_down_and_only_if_both_sides_have_said_it() {
        assert_eq!(draw(&[span("1", "", "client"), span("3", "2", "server")]), None);
        let tree = draw(&[span("2", "1", "server"), span("1", "", "client")]).expect("it is whole");
        let lines: Vec<_> = tree.lines().collect();
        assert_eq!(lines[0], "trace t1");
        assert!(lines[1].starts_with("└─ client a.B/C  2.0 ms"), "{tree}");
        assert!(lines[3].starts_with("   └─ server"), "{tree}");
        assert!(
            lines[4].contains("sidecar of of-2, from 10.0.0.1 as spiffe://a/b"),
            "{tree}"
        );
    }
}
