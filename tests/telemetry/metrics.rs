//! Metrics by OTLP are those of `/metrics`: the same names, labels and values, and who says them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::{AggregationTemporality, metric::Data, number_data_point::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use support::{Family, Mesh, Pod, Sidecar, wait_until};

use crate::application::{Application, Call, Reply, call};
use crate::collector::{Collector, GRPC, HTTP, text};

#[test]
fn by_grpc_every_metric_of_the_page_arrives_with_its_value_and_so_it_does_after_the_collector_was_away() {
    support::test(|mesh| all_arrive(mesh, "grpc", GRPC));
}

#[test]
fn by_http_every_metric_of_the_page_arrives_with_its_value_and_so_it_does_after_the_collector_was_away() {
    support::test(|mesh| all_arrive(mesh, "http/protobuf", HTTP));
}

fn all_arrive(mesh: &Mesh, protocol: &str, port: u16) -> Result<()> {
    let collecting = mesh.pod("collector")?;
    let collector = Collector::start(&collecting)?;
    let world = World::new(mesh, &collecting, protocol, port)?;
    world.call(5)?;
    world.compare(&collector, 5.0)?;

    drop(collector);
    world.call(7)?;
    let says = |what: &str| {
        let log = world.sidecar.output();
        wait_until(Duration::from_secs(10), &format!("it says: {what}"), || {
            world.sidecar.output().contains(what)
        })
        .context(log)
    };
    says("metrics cannot be delivered, and calls go on as ever")?;
    let collector = Collector::start(&collecting)?;
    let back = std::time::Instant::now();
    wait_until(Duration::from_secs(5), "metrics come again", || {
        collector.metrics().is_ok_and(|pages| !pages.is_empty())
    })?;
    println!("metrics by {protocol} came again after {:?}", back.elapsed());
    says("metrics are delivered again")?;
    // What was counted meanwhile is there, too.
    world.compare(&collector, 12.0)?;
    let log = world.sidecar.output();
    let complaints = log.matches("metrics cannot be delivered").count();
    ensure!(complaints == 1, "it complained {complaints} times");
    Ok(())
}

#[test]
fn spans_and_metrics_say_of_whom_they_are_in_the_same_words() {
    support::test(|mesh| {
        let collecting = mesh.pod("collector")?;
        let collector = Collector::start(&collecting)?;
        let world = World::new(mesh, &collecting, "grpc", GRPC)?;
        world.call(1)?;
        wait_until(Duration::from_secs(10), "spans came", || {
            collector.spans().is_ok_and(|spans| !spans.is_empty())
        })?;
        let resources = collector.resources()?;
        let (first, others) = resources.split_first().context("something came")?;
        ensure!(others.iter().all(|other| other == first), "they differ: {resources:#?}");
        for (key, value) in [
            ("service.name", "shop"),
            ("k8s.pod.name", "shop-7"),
            ("deployment.environment.name", "a test"),
        ] {
            ensure!(
                text(&first.attributes, key) == value,
                "{key} is not {value}: {first:#?}"
            );
        }
        ensure!(text(&first.attributes, "service.instance.id").len() == 36);
        Ok(())
    });
}

/// A caller with a sidecar that exports, and whom it calls.
struct World {
    caller: Pod,
    server: Pod,
    sidecar: Sidecar,
    _application: Application,
}

const PORT: u16 = 10000;

impl World {
    fn new(mesh: &Mesh, collecting: &Pod, protocol: &str, port: u16) -> Result<World> {
        let (caller, server) = (mesh.pod("caller")?, mesh.pod("server")?);
        let endpoint = format!("http://{}", collecting.at(Family::V4, port)?);
        let sidecar = caller.sidecar_with(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "300"),
            ("OTEL_SERVICE_NAME", "shop"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=another,k8s.pod.name=shop-7,deployment.environment.name=a%20test",
            ),
            ("PORTUNUS_TRACE_SAMPLING", "100"),
        ])?;
        let choose = |path: &str| match path {
            "pkg.Service/Fails" => Reply::status("13"),
            _ => Reply::status("0"),
        };
        let application = Application::start(&server, PORT, std::sync::Arc::new(choose), Vec::new())?;
        Ok(World {
            caller,
            server,
            sidecar,
            _application: application,
        })
    }

    /// So many good calls, and one that fails.
    fn call(&self, times: usize) -> Result<()> {
        let to = self.server.at(Family::V4, PORT)?;
        let mut calls = vec![Call::of(&to.to_string(), "pkg.Service/Works"); times];
        calls.push(Call::of(&to.to_string(), "pkg.Service/Fails"));
        call(&self.caller, to, &calls).map(drop)
    }

    /// Waits until all is quiet and so many good calls are counted, and compares what is sent before and after a look at the
    /// page with the page. What changes by itself must lie between.
    fn compare(&self, collector: &Collector, good: f64) -> Result<()> {
        let mut why = String::new();
        let equal = wait_until(Duration::from_secs(20), "what is sent equals the page", || {
            match self.compare_once(collector, good) {
                Ok(()) => true,
                Err(differs) => {
                    why = format!("{differs:#}");
                    false
                }
            }
        });
        equal.context(why)
    }

    fn compare_once(&self, collector: &Collector, good: f64) -> Result<()> {
        let next = || -> Result<ExportMetricsServiceRequest> {
            let before = collector.metrics()?.len();
            let came = || collector.metrics().is_ok_and(|pages| pages.len() > before);
            wait_until(Duration::from_secs(5), "metrics are sent", came)?;
            collector.metrics()?.pop().context("they were there")
        };
        let before = numbers(&next()?)?;
        let page = self.sidecar.metrics()?;
        let after = numbers(&next()?)?;
        let mut compared = 0;
        for (name, labels, value) in page.samples() {
            // Two of the page's own answers and connections are on their way.
            let key = (name.to_owned(), labels.clone());
            let between = before.get(&key).zip(after.get(&key));
            let (low, high) = between.with_context(|| format!("{name} {labels:?} was not sent"))?;
            if !name.starts_with("process_") {
                let range = low.min(*high)..=low.max(*high);
                ensure!(
                    range.contains(&value),
                    "{name} {labels:?} is {value}, and {low} and {high} were sent"
                );
            }
            compared += 1;
        }
        ensure!(compared > 50, "only {compared} numbers were compared");
        ensure!(
            after.len() == compared,
            "{} numbers were sent, and the page has {compared}",
            after.len()
        );
        let handled = page.sum("grpc_client_handled_total", &[("grpc_code", "OK")]);
        ensure!(handled == good, "{handled} good calls are counted, and not {good}");
        Ok(())
    }
}

/// By name and labels.
type Numbers = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// The numbers of an export as the page would have them: histograms in buckets, a sum and a count.
fn numbers(export: &ExportMetricsServiceRequest) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    let scopes = export
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics);
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    for metric in scopes.flat_map(|scope| &scope.metrics) {
        let name = &metric.name;
        ensure!(!metric.description.is_empty(), "nobody says what {name} means");
        let mut put = |suffix: &str, labels: BTreeMap<String, String>, value: f64| {
            let twice = numbers.insert((format!("{name}{suffix}"), labels), value);
            ensure!(twice.is_none(), "{name} stands there twice");
            Ok(())
        };
        let points = match metric.data.as_ref().context("a metric has data")? {
            Data::Sum(sum) => {
                ensure!(
                    sum.is_monotonic && sum.aggregation_temporality == cumulative,
                    "{name} is no counter"
                );
                &sum.data_points
            }
            Data::Gauge(gauge) => &gauge.data_points,
            Data::Histogram(histogram) => {
                ensure!(
                    histogram.aggregation_temporality == cumulative,
                    "{name} is not cumulative"
                );
                for point in &histogram.data_points {
                    ensure!(
                        since(point.start_time_unix_nano, point.time_unix_nano),
                        "{name} has no time"
                    );
                    let labels = labels(&point.attributes);
                    let bounds = point.explicit_bounds.iter().map(f64::to_string);
                    let mut sum = 0;
                    for (bound, count) in bounds.chain(["+Inf".to_owned()]).zip(&point.bucket_counts) {
                        sum += count;
                        let mut labels = labels.clone();
                        labels.insert("le".to_owned(), bound);
                        put("_bucket", labels, sum as f64)?;
                    }
                    put("_sum", labels.clone(), point.sum.context("it has a sum")?)?;
                    put("_count", labels, point.count as f64)?;
                }
                continue;
            }
            other => anyhow::bail!("{name} is {other:?}"),
        };
        for point in points {
            ensure!(
                since(point.start_time_unix_nano, point.time_unix_nano),
                "{name} has no time"
            );
            let Some(Value::AsDouble(value)) = point.value else {
                anyhow::bail!("{name} has no value")
            };
            put("", labels(&point.attributes), value)?;
        }
    }
    Ok(numbers)
}

fn labels(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let pair = |attribute: &KeyValue| (attribute.key.clone(), text(attributes, &attribute.key));
    attributes.iter().map(pair).collect()
}

/// Both are of these days, and in order.
fn since(start: u64, time: u64) -> bool {
    start > 1_700_000_000_000_000_000 && start <= time
}

impl Collector {
    /// Of whom every export is.
    fn resources(&self) -> Result<Vec<Resource>> {
        let spans = self.traces()?.into_iter().flat_map(|request| request.resource_spans);
        let metrics = self.metrics()?.into_iter().flat_map(|request| request.resource_metrics);
        let all = spans
            .filter_map(|of| of.resource)
            .chain(metrics.filter_map(|of| of.resource));
        Ok(all.collect())
    }
}
