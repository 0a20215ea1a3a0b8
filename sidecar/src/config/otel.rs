//! What OpenTelemetry's variables say, beside the two flags that say the same more shortly.
//!
//! They mean what they mean everywhere, with three differences: nothing is recorded before somebody says where it goes;
//! the default way is gRPC; and an export may take 3 s instead of 10, so that a collector is found back soon.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::Said;
use super::value::{Parsed, number};
use crate::telemetry::export::{self, Endpoint, Headers, Protocol, Resource, Target, parse_pairs};
use crate::telemetry::trace::{self, Propagators, Root, Sampler};

/// What was understood.
#[derive(Debug, Default)]
pub(super) struct Otel {
    pub(super) traces: trace::Settings,
    pub(super) export: export::Settings,
}

impl Otel {
    /// Reads the variables. `collector` and `sampling`, in percent, are what the flags say: they win.
    pub(super) fn read(collector: Option<&str>, sampling: Option<f64>, said: &mut Said<'_>) -> Otel {
        let mut otel = Otel::default();
        let export = &mut otel.export;
        if let Some(propagators) = variable(said, "OTEL_PROPAGATORS", Propagators::parse) {
            otel.traces.propagators = propagators;
        }
        otel.traces.sampler = sampler(sampling, said);
        export.protocol = variable(said, "OTEL_EXPORTER_OTLP_PROTOCOL", protocol).unwrap_or(export.protocol);
        let millis = |text: &str| number(1..=3_600_000u64)(text).map(Duration::from_millis);
        export.timeout = variable(said, "OTEL_EXPORTER_OTLP_TIMEOUT", millis).unwrap_or(export.timeout);
        let interval = variable(said, "OTEL_METRIC_EXPORT_INTERVAL", millis);
        export.metric_interval = interval.unwrap_or(export.metric_interval);
        export.headers = variable(said, "OTEL_EXPORTER_OTLP_HEADERS", headers).unwrap_or_default();
        let attributes = variable(said, "OTEL_RESOURCE_ATTRIBUTES", parse_pairs).unwrap_or_default();
        let name = variable(said, "OTEL_SERVICE_NAME", |text| Ok(text.to_owned()));
        export.resource = Resource::new(name.as_deref(), attributes);

        let port = export.protocol.default_port();
        let endpoint = |text: &str| Endpoint::parse(text, port).map_err(|why| why.to_string());
        let collector = collector.and_then(|text| match endpoint(text) {
            Ok(endpoint) => Some(endpoint),
            Err(why) => {
                said.wrong(format!("--trace-collector is {}: {why}", shown("", text)));
                None
            }
        });
        let general = variable(said, "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let traces = variable(said, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint);
        let metrics = variable(said, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", endpoint);
        let exporter = |text: &str| match text {
            "otlp" => Ok(true),
            "none" | "prometheus" => Ok(false),
            _ => Err("it must be otlp or none".to_owned()),
        };
        let wants_traces = variable(said, "OTEL_TRACES_EXPORTER", exporter);
        let wants_metrics = variable(said, "OTEL_METRICS_EXPORTER", exporter);
        let disabled = variable(said, "OTEL_SDK_DISABLED", |text| Ok(text.eq_ignore_ascii_case("true")));
        if disabled == Some(true) {
            return otel;
        }
        // Who asks for it and does not say where means this host.
        let here = |wanted: Option<bool>| match wanted {
            Some(true) => endpoint("localhost").ok(),
            Some(false) | None => None,
        };
        let base = collector.clone().or_else(|| general.clone());
        if wants_traces != Some(false) {
            export.traces = match (collector, traces) {
                (None, Some(traces)) => Some(Target::as_is(traces)),
                (collector, _) => collector.or(general).or_else(|| here(wants_traces)).map(Target::traces),
            };
        }
        if wants_metrics == Some(true) {
            export.metrics = match metrics {
                Some(metrics) => Some(Target::as_is(metrics)),
                None => base.or_else(|| here(wants_metrics)).map(Target::metrics),
            };
        }
        let shown = export.traces.as_ref().map(|target| target.endpoint.to_string());
        said.derived("trace-collector", &shown, "OpenTelemetry's variables");
        said.derived(
            "trace-sampling",
            &percent_of(&otel.traces.sampler),
            "OTEL_TRACES_SAMPLER, or the default",
        );
        otel
    }
}

fn sampler(percent: Option<f64>, said: &mut Said<'_>) -> Sampler {
    let ratio = |text: &str| {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.ok_or_else(|| "it must be a number from 0 to 1".to_owned())
    };
    let argument = variable(said, "OTEL_TRACES_SAMPLER_ARG", ratio);
    let of_name = |name: &str| {
        let (name, parent_based) = match name.strip_prefix("parentbased_") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let root = match name {
            "always_on" => Root::Always,
            "always_off" => Root::Never,
            "traceidratio" => Root::Ratio(argument.unwrap_or(1.0)),
            _ => {
                return Err(
                    "it must be always_on, always_off or traceidratio, or one of these behind parentbased_".to_owned(),
                );
            }
        };
        Ok(Sampler { root, parent_based })
    };
    let named = variable(said, "OTEL_TRACES_SAMPLER", of_name);
    match (percent, named, argument) {
        (Some(percent), ..) => Sampler {
            root: Root::Ratio(percent / 100.0),
            parent_based: true,
        },
        (None, Some(named), _) => named,
        (None, None, Some(ratio)) => Sampler {
            root: Root::Ratio(ratio),
            parent_based: true,
        },
        (None, None, None) => Sampler::default(),
    }
}

fn percent_of(sampler: &Sampler) -> f64 {
    match sampler.root {
        Root::Always => 100.0,
        Root::Never => 0.0,
        Root::Ratio(ratio) => ratio * 100.0,
    }
}

fn protocol(text: &str) -> Parsed<Protocol> {
    match text {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::Http),
        _ => Err("it must be grpc or http/protobuf".to_owned()),
    }
}

/// What a mistake says is not what the header says: that may be a key.
fn headers(text: &str) -> Parsed<Headers> {
    let pairs = parse_pairs(text)?;
    let is_header = |(name, value): &(String, String)| {
        HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok()
    };
    let lower = |(name, value): (String, String)| (name.to_ascii_lowercase(), value);
    if pairs.iter().all(is_header) {
        Ok(Headers(pairs.into_iter().map(lower).collect()))
    } else {
        Err("one of the pairs is no header".to_owned())
    }
}

/// What a variable says, if anything. Of one that may be a key, a mistake shows nothing.
fn variable<T>(said: &mut Said<'_>, name: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
    let text = said
        .environment
        .get(name)
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())?;
    match parse(text) {
        Ok(meaning) => Some(meaning),
        Err(why) => {
            said.wrong(format!("{name} is {}: {why}", shown(name, text)));
            None
        }
    }
}

/// What a mistake repeats of a value: nothing of headers, nor of a URL with a user or a query.
fn shown(name: &str, text: &str) -> String {
    if name == "OTEL_EXPORTER_OTLP_HEADERS" || text.contains(['@', '?']) {
        "not shown here".to_owned()
    } else {
        format!("{text:?}")
    }
}
