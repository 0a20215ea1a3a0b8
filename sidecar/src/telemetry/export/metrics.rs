//! The registry's numbers as OTLP has them: cumulative since the process began, under the names that `/metrics` shows.

use std::time::Instant;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric::Data, number_data_point::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::anchor::Anchor;
use super::resource::{scope, string};
use crate::telemetry::Registry;
use crate::telemetry::sink::{Label, Sink};

/// The request with all numbers as they are now, counted since `began`.
pub(super) fn request(registry: &Registry, resource: &Resource, began: Instant) -> ExportMetricsServiceRequest {
    let anchor = Anchor::now();
    let mut page = Page {
        since: anchor.unix_nanos(began),
        now: anchor.unix_nanos(Instant::now()),
        metrics: Vec::new(),
    };
    registry.write(&mut page);
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource.clone()),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(scope()),
                metrics: page.metrics,
                schema_url: String::new(),
            }],
            schema_url: String::new(),
        }],
    }
}

struct Page {
    since: u64,
    now: u64,
    metrics: Vec<Metric>,
}

impl Sink for Page {
    fn family(&mut self, name: &str, help: &str, kind: &str) {
        let aggregation_temporality = AggregationTemporality::Cumulative.into();
        let data = match kind {
            "counter" => Data::Sum(Sum {
                data_points: Vec::new(),
                aggregation_temporality,
                is_monotonic: true,
            }),
            "histogram" => Data::Histogram(Histogram {
                data_points: Vec::new(),
                aggregation_temporality,
            }),
            _ => Data::Gauge(Gauge::default()),
        };
        self.metrics.push(Metric {
            name: name.to_owned(),
            description: help.to_owned(),
            data: Some(data),
            ..Default::default()
        });
    }

    fn sample(&mut self, _name: &str, labels: &[Label<'_>], value: f64) {
        let point = NumberDataPoint {
            attributes: labels.iter().map(|(label, value)| string(label, *value)).collect(),
            start_time_unix_nano: self.since,
            time_unix_nano: self.now,
            value: Some(Value::AsDouble(value)),
            ..Default::default()
        };
        match self.metrics.last_mut().and_then(|metric| metric.data.as_mut()) {
            Some(Data::Sum(sum)) => sum.data_points.push(point),
            Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
            _ => {}
        }
    }

    fn histogram(&mut self, _name: &str, labels: &[Label<'_>], bounds: &[f64], counts: &[u64], sum: f64) {
        let point = HistogramDataPoint {
            attributes: labels.iter().map(|(label, value)| string(label, *value)).collect(),
            start_time_unix_nano: self.since,
            time_unix_nano: self.now,
            count: counts.iter().sum(),
            sum: Some(sum),
            bucket_counts: counts.to_vec(),
            explicit_bounds: bounds.to_vec(),
            ..Default::default()
        };
        if let Some(Data::Histogram(histogram)) = self.metrics.last_mut().and_then(|metric| metric.data.as_mut()) {
            histogram.data_points.push(point);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::grpc::Code;
    use crate::telemetry::{Direction, GrpcType, SPANS, Settings};

    #[test]
    fn numbers_have_the_names_and_kinds_that_the_page_shows() {
        let registry = Registry::new(&Settings::default());
        let mut recorder = registry.recorder();
        recorder.resolve(&SPANS, ["dropped"]).add(7);
        let method = recorder.method(Direction::Inbound, b"/a.B/C");
        recorder.started(method);
        recorder.handled(method, GrpcType::Unary, Code::Ok, Duration::from_millis(7));
        let request = request(&registry, &Resource::default(), Instant::now());
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let data = |name: &str| {
            metrics
                .iter()
                .find(|metric| metric.name == name)
                .and_then(|metric| metric.data.clone())
        };
        let Some(Data::Sum(spans)) = data("portunus_spans_total") else {
            panic!("{metrics:?}");
        };
        assert!(spans.is_monotonic);
        assert_eq!(spans.data_points[0].value, Some(Value::AsDouble(7.0)));
        assert_eq!(spans.data_points[0].attributes, [string("outcome", "dropped")]);
        let Some(Data::Histogram(seconds)) = data("grpc_server_handling_seconds") else {
            panic!("{metrics:?}");
        };
        let point = &seconds.data_points[0];
        assert_eq!(
            (point.count, point.bucket_counts[1], point.explicit_bounds.len()),
            (1, 1, 11)
        );
        assert!(matches!(data("process_start_time_seconds"), Some(Data::Gauge(_))));
    }
}
