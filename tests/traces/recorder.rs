//! What a worker has: header lists, spans, a queue, and an exporter behind it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use portunus_sidecar::grpc::Code;
use portunus_sidecar::http2::hpack::{Fields, Interner, Name};
use portunus_sidecar::propagate::Tracing;
use portunus_sidecar::telemetry::export::{Endpoint, Exporter, Protocol, Resource, Settings, Target};
use portunus_sidecar::telemetry::trace::{self, Root, Sampler};
use portunus_sidecar::telemetry::{Event, Format, Kind, Registry, Span};
use support::wait_until;

/// A worker that records everything.
pub(crate) struct Recorder {
    pub(crate) tracing: Tracing,
    pub(crate) registry: Arc<Registry>,
    exporter: Exporter,
    interner: Interner,
}

/// What a service called `service` says, exporting to `collector`.
pub(crate) fn settings(service: &str, collector: &str, protocol: Protocol) -> Result<Settings> {
    let endpoint = Endpoint::parse(collector, protocol.default_port())?;
    Ok(Settings {
        traces: Some(Target::traces(endpoint)),
        protocol,
        resource: Resource::new(Some(service), vec![("k8s.pod.name".to_owned(), format!("{service}-0"))]),
        ..Settings::default()
    })
}

impl Recorder {
    pub(crate) fn new(settings: Settings) -> Result<Recorder> {
        let registry = Registry::new(&Default::default());
        let (exporter, intakes) = Exporter::start(settings, registry.clone(), 1)?;
        let intake = intakes.into_iter().next().context("one worker has one intake")?;
        let sampling = trace::Settings {
            sampler: Sampler {
                root: Root::Always,
                parent_based: true,
            },
            ..Default::default()
        };
        Ok(Recorder {
            tracing: Tracing::new(&sampling, intake.open(&registry.recorder())),
            registry,
            exporter,
            interner: Interner::new(),
        })
    }

    /// An RPC comes with this `traceparent`, if any; returns its span and the one with which it goes on.
    pub(crate) fn begin(&mut self, kind: Kind, traceparent: Option<&[u8]>) -> Result<(Box<Span>, Vec<u8>)> {
        let mut head = Fields::new();
        head.push(b":path", b"/helloworld.Greeter/SayHello", false);
        head.push(b":authority", b"greeter.test:50051", false);
        if let Some(traceparent) = traceparent {
            head.push(b"traceparent", traceparent, false);
        }
        let span = self.tracing.begin(&mut head, &mut self.interner, kind, Instant::now());
        let next = head
            .value_of(Name::Traceparent, &self.interner)
            .context("it goes on in a trace")?
            .to_vec();
        head.clear(&mut self.interner);
        Ok((span.context("everything is recorded")?, next))
    }

    /// RPCs that begin and end at once.
    pub(crate) fn record(&mut self, rpcs: usize) -> Result<()> {
        for _ in 0..rpcs {
            let (mut span, _) = self.begin(Kind::Client, None)?;
            span.event(Instant::now(), Event::EndpointChosen(([10, 0, 0, 7], 50051).into()));
            span.finish(Instant::now(), Code::Ok, 1, 1);
            self.tracing.end(span);
        }
        Ok(())
    }

    /// How many spans had this outcome.
    pub(crate) fn spans(&self, outcome: &str) -> u64 {
        let page = self.registry.scrape(Format::Prometheus);
        let name = format!("portunus_spans_total{{outcome=\"{outcome}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&name));
        line.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Waits until so many spans had this outcome.
    pub(crate) fn wait_for(&self, outcome: &str, spans: u64, patience: Duration) -> Result<()> {
        wait_until(patience, &format!("{spans} spans are {outcome}"), || {
            self.spans(outcome) >= spans
        })
        .with_context(|| format!("there are {}", self.spans(outcome)))
    }

    /// Ends as a sidecar does; whether that was in time.
    pub(crate) fn stop(self) -> bool {
        self.exporter.stop()
    }
}
