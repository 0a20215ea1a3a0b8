//! What spans of real sidecars tell of an RPC's way, and what headers say of its trace when it goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use support::{Dns, Family, Mesh, Pod, Sidecar, wait_until};

use crate::application::{Answer, Application, Call, Choose, Reply, call};
use crate::collector::{Collector, GRPC, text};
use crate::secrets::hex;

const PORT: u16 = 10000;
const NAME: &str = "app.test";

#[test]
fn a_retry_is_told_with_its_reason_between_the_endpoints_that_were_chosen() {
    support::test(|mesh| {
        let refuses: Choose = Arc::new(|_| Reply::Reset(h2::Reason::REFUSED_STREAM));
        let world = World::plain(mesh, vec![refuses, works()])?;
        world.call_until("a.B/Retried", 10, |span| !events(span, "retry").is_empty())?;
        let span = world.span("a.B/Retried", |span| !events(span, "retry").is_empty())?;
        let chosen = events(&span, "endpoint chosen");
        ensure!(chosen.len() == 2, "{span:#?}");
        let places: Vec<_> = chosen
            .iter()
            .map(|event| text(&event.attributes, "portunus.endpoint"))
            .collect();
        ensure!(places[0] != places[1], "{places:?}");
        let retry = &events(&span, "retry")[0];
        ensure!(
            text(&retry.attributes, "portunus.reason") == "not_processed",
            "{retry:?}"
        );
        ensure!(
            chosen[0].time_unix_nano <= retry.time_unix_nano && retry.time_unix_nano <= chosen[1].time_unix_nano,
            "{span:#?}"
        );
        ensure!(code(&span) == "OK" && span.status.is_none(), "{span:#?}");
        let peer = format!("{}:{PORT}", text(&span.attributes, "network.peer.address"));
        ensure!(peer == places[1], "the peer is {peer}, and {places:?} were tried");
        Ok(())
    });
}

#[test]
fn an_ejection_is_told_by_the_rpc_that_caused_it() {
    support::test(|mesh| {
        let breaks: Choose = Arc::new(|_| Reply::status("14"));
        let world = World::plain(mesh, vec![breaks, works()])?;
        world.call_until("a.B/Ejects", 20, |span| !events(span, "ejection").is_empty())?;
        let span = world.span("a.B/Ejects", |span| !events(span, "ejection").is_empty())?;
        let ejected = &events(&span, "ejection")[0];
        let place = world.servers[0].at(Family::V4, PORT)?.to_string();
        ensure!(text(&ejected.attributes, "portunus.endpoint") == place, "{ejected:?}");
        ensure!(code(&span) == "UNAVAILABLE", "{span:#?}");
        // The application said so: there is a status, and no word or sentence of ours.
        ensure!(text(&span.attributes, "error.type") == "UNAVAILABLE", "{span:#?}");
        let status = span.status.as_ref().context("it failed")?;
        ensure!(
            status.code() == StatusCode::Error && status.message.is_empty(),
            "{status:?}"
        );
        ensure!(events(&span, "failure").is_empty(), "{span:#?}");
        Ok(())
    });
}

#[test]
fn an_ejection_because_of_silence_is_told_by_the_rpcs_that_wait_there_and_by_no_others() {
    support::test(|mesh| {
        let silent: Choose = Arc::new(|_| Reply::Silence);
        let world = World::plain(mesh, vec![silent, works()])?;
        let ejections = |reason: &str| -> Result<f64> {
            let metrics = world.sidecars[0].metrics()?;
            Ok(metrics.sum("portunus_ejections_total", &[("reason", reason)]))
        };
        let to = world.servers[0].at(Family::V4, PORT)?;
        let waits = [Call::of(&format!("{NAME}:{PORT}"), "a.B/Waits").with("grpc-timeout", "4S")];
        // Some twenty calls a second, whoever waits, until somebody is ejected.
        let mut due = Instant::now();
        std::thread::scope(|scope| {
            wait_until(Duration::from_secs(15), "silence ejects", || {
                if Instant::now() >= due {
                    due = Instant::now() + Duration::from_millis(50);
                    scope.spawn(|| call(&world.caller, to, &waits));
                }
                ejections("silent").is_ok_and(|ejections| ejections == 1.0)
            })
        })?;
        let span = world.span("a.B/Waits", |span| !events(span, "ejection").is_empty())?;
        let silent = to.to_string();
        ensure!(
            text(&events(&span, "ejection")[0].attributes, "portunus.endpoint") == silent,
            "{span:#?}"
        );
        let at = |name: &str| events(&span, name).first().map(|event| event.time_unix_nano);
        let [chosen, ejected, late] = ["endpoint chosen", "ejection", "deadline"].map(at);
        ensure!(chosen.is_some() && chosen <= ejected && ejected <= late, "{span:#?}");
        fails_with(&span, "DEADLINE_EXCEEDED", "deadline", "4s")?;
        // It is the one that waited in vain there, and was ejected for that alone.
        ensure!(ejections("failures")? == 0.0 && ejections("silent")? == 1.0);
        let spans = world.spans()?;
        let told = spans.iter().filter(|span| !events(span, "ejection").is_empty());
        for span in told {
            let chosen = events(span, "endpoint chosen");
            let place = chosen.last().map(|event| text(&event.attributes, "portunus.endpoint"));
            ensure!(place.as_deref() == Some(&*silent), "it was elsewhere: {span:#?}");
        }
        ensure!(
            spans.iter().any(|span| code(span) == "OK"),
            "the other one answered nobody"
        );
        Ok(())
    });
}

#[test]
fn a_deadline_and_a_failure_are_told_with_word_and_sentence() {
    support::test(|mesh| {
        let silent: Choose = Arc::new(|_| Reply::Silence);
        let world = World::new(mesh, vec![silent])?;
        let late = Call::of(&format!("{NAME}:{PORT}"), "a.B/Late").with("grpc-timeout", "150m");
        call(&world.caller, world.servers[0].at(Family::V4, PORT)?, &[late])?;
        let span = world.span("a.B/Late", |_| true)?;
        let deadline = events(&span, "deadline");
        let timeout = deadline
            .first()
            .map(|event| text(&event.attributes, "portunus.timeout_ms"));
        ensure!(timeout.as_deref() == Some("150"), "{span:#?}");
        fails_with(&span, "DEADLINE_EXCEEDED", "deadline", "150ms")?;

        let nobody = world.servers[0].at(Family::V4, PORT + 1)?;
        call(&world.caller, nobody, &[Call::of(&nobody.to_string(), "a.B/Nobody")])?;
        let span = world.span("a.B/Nobody", |_| true)?;
        ensure!(!events(&span, "endpoint chosen").is_empty(), "{span:#?}");
        fails_with(&span, "UNAVAILABLE", "no_endpoint", &nobody.to_string())
    });
}

#[test]
fn a_stream_has_counts_of_its_messages_and_no_event_for_each() {
    support::test(|mesh| {
        let stream = Answer {
            again: 99,
            trailers: vec![("grpc-status".to_owned(), "0".to_owned())],
            ..Answer::default()
        };
        let world = World::new(mesh, vec![Arc::new(move |_| Reply::Answer(stream.clone()))])?;
        let asked = Call {
            again: 49,
            ..Call::of(&format!("{NAME}:{PORT}"), "a.B/Streams")
        };
        call(&world.caller, world.servers[0].at(Family::V4, PORT)?, &[asked])?;
        let span = world.span("a.B/Streams", |_| true)?;
        let count = |of: &str| text(&span.attributes, &format!("portunus.{of}.messages"));
        ensure!((&*count("request"), &*count("response")) == ("50", "100"), "{span:#?}");
        ensure!(span.events.len() == 1, "{span:#?}");
        Ok(())
    });
}

#[test]
fn a_trace_goes_on_in_the_form_in_which_it_came_with_its_state_and_baggage_as_it_is() {
    support::test(|mesh| {
        let world = World::new(mesh, vec![works()])?;
        let authority = format!("{NAME}:{PORT}");
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        const PARENT: &str = "00f067aa0ba902b7";
        let binary = "AABL+S81d7NNpqPOkp0ODkc2AQDwZ6oLqQK3AgE";
        let state = "vendor=opaque,rojo=00f067aa0ba902b7";
        let baggage = "user=alice;secret=1,more=%20x";
        let kept = |of: Call| of.with("tracestate", state).with("baggage", baggage);
        let calls = [
            kept(Call::of(&authority, "a.B/W3c")).with("traceparent", &format!("00-{TRACE}-{PARENT}-01")),
            kept(Call::of(&authority, "a.B/B3")).with("b3", &format!("{TRACE}-{PARENT}-1")),
            kept(Call::of(&authority, "a.B/B3Multi"))
                .with("x-b3-traceid", TRACE)
                .with("x-b3-spanid", PARENT)
                .with("x-b3-sampled", "1"),
            kept(Call::of(&authority, "a.B/Binary")).with("grpc-trace-bin", binary),
            kept(Call::of(&authority, "a.B/None")),
            kept(Call::of(&authority, "a.B/Declined")).with("traceparent", &format!("00-{TRACE}-{PARENT}-00")),
        ];
        call(&world.caller, world.servers[0].at(Family::V4, PORT)?, &calls)?;
        for (method, form) in [
            ("a.B/W3c", "traceparent: 00-TRACE-SPAN-01"),
            ("a.B/B3", "b3: TRACE-SPAN-1"),
            ("a.B/B3Multi", "x-b3-spanid: SPAN"),
        ] {
            let (client, server) = (world.span_of(method, 3)?, world.span_of(method, 2)?);
            ensure!(
                hex(&client.trace_id) == TRACE && hex(&server.trace_id) == TRACE,
                "{client:#?}"
            );
            ensure!(hex(&client.parent_span_id) == PARENT, "{client:#?}");
            ensure!(server.parent_span_id == client.span_id, "{server:#?}");
            let form = form.replace("TRACE", TRACE).replace("SPAN", &hex(&server.span_id));
            let heard = world.heard(method)?;
            ensure!(heard.contains(&form), "no {form} in {heard}");
            ensure!(heard.contains("traceparent") == form.contains("traceparent"), "{heard}");
        }
        let (client, server) = (world.span_of("a.B/Binary", 3)?, world.span_of("a.B/Binary", 2)?);
        ensure!(
            hex(&client.trace_id) == TRACE && hex(&client.parent_span_id) == PARENT,
            "{client:#?}"
        );
        ensure!(server.parent_span_id == client.span_id, "{server:#?}");
        let heard = world.heard("a.B/Binary")?;
        ensure!(
            heard.contains("grpc-trace-bin: AABL") && !heard.contains(binary),
            "{heard}"
        );
        // One begins here.
        let (client, server) = (world.span_of("a.B/None", 3)?, world.span_of("a.B/None", 2)?);
        ensure!(
            client.parent_span_id.is_empty() && server.parent_span_id == client.span_id,
            "{client:#?}"
        );
        let heard = world.heard("a.B/None")?;
        let form = format!("traceparent: 00-{}-{}-01", hex(&client.trace_id), hex(&server.span_id));
        ensure!(heard.contains(&form), "no {form} in {heard}");
        // One that is not recorded goes on as it is.
        let heard = world.heard("a.B/Declined")?;
        ensure!(
            heard.contains(&format!("traceparent: 00-{TRACE}-{PARENT}-00")),
            "{heard}"
        );
        ensure!(
            !world.spans()?.iter().any(|span| span.name == "a.B/Declined"),
            "it was recorded"
        );
        for method in ["W3c", "B3", "B3Multi", "Binary", "None", "Declined"] {
            let heard = world.heard(&format!("a.B/{method}"))?;
            let (state, baggage) = (format!("tracestate: {state}\n"), format!("baggage: {baggage}\n"));
            ensure!(heard.contains(&baggage), "{heard}");
            // The state of a trace that there was not is none of the new one's (W3C Trace Context, 3.3).
            ensure!(heard.contains(&state) == (method != "None"), "{heard}");
        }
        Ok(())
    });
}

fn works() -> Choose {
    Arc::new(|_| Reply::status("0"))
}

/// A caller, whose sidecar records everything, and servers.
struct World {
    caller: Pod,
    servers: Vec<Pod>,
    collector: Collector,
    applications: Vec<Application>,
    /// The first is the caller's.
    sidecars: Vec<Sidecar>,
    _dns: Dns,
}

impl World {
    /// The servers have sidecars, which record everything too.
    fn new(mesh: &Mesh, choices: Vec<Choose>) -> Result<World> {
        World::with(mesh, choices, true)
    }

    /// The servers have no sidecars.
    fn plain(mesh: &Mesh, choices: Vec<Choose>) -> Result<World> {
        World::with(mesh, choices, false)
    }

    fn with(mesh: &Mesh, choices: Vec<Choose>, has_sidecars: bool) -> Result<World> {
        let collecting = mesh.pod("collector")?;
        let collector = Collector::start(&collecting)?;
        let at = collecting.at(Family::V4, GRPC)?.to_string();
        let sidecar = |pod: &Pod| {
            pod.sidecar_with(&[
                ("PORTUNUS_TRACE_COLLECTOR", &at),
                ("PORTUNUS_TRACE_SAMPLING", "100"),
                ("OTEL_SERVICE_NAME", pod.name()),
                ("PORTUNUS_BALANCER", "round-robin"),
                // Each has its own view of endpoints.
                ("PORTUNUS_WORKERS", "1"),
            ])
        };
        let dns = mesh.dns()?;
        let caller = mesh.pod_of("caller", &[Family::V4])?;
        let mut sidecars = vec![sidecar(&caller)?];
        let (mut servers, mut applications) = (Vec::new(), Vec::new());
        for (number, choose) in choices.into_iter().enumerate() {
            let server = mesh.pod_of(&format!("server-{number}"), &[Family::V4])?;
            if has_sidecars {
                sidecars.push(sidecar(&server)?);
            }
            // Health is none of what is tried here.
            let choose: Choose = Arc::new(move |path| match path.starts_with("grpc.health") {
                true => Reply::status("12"),
                false => choose(path),
            });
            applications.push(Application::start(&server, PORT, choose, Vec::new())?);
            servers.push(server);
        }
        let addresses: Vec<_> = servers.iter().flat_map(Pod::addresses).collect();
        dns.set(NAME, &addresses, 60)?;
        Ok(World {
            caller,
            servers,
            collector,
            applications,
            sidecars,
            _dns: dns,
        })
    }

    /// All spans that came so far.
    fn spans(&self) -> Result<Vec<Span>> {
        Ok(self.collector.spans()?.into_iter().map(|(_, span)| span).collect())
    }

    /// Calls until the caller's sidecar recorded such a span, some times at most.
    fn call_until(&self, method: &str, times: usize, such: impl Fn(&Span) -> bool) -> Result<()> {
        let one = Call::of(&format!("{NAME}:{PORT}"), method);
        let to = self.servers[0].at(Family::V4, PORT)?;
        call(&self.caller, to, &vec![one; times])?;
        self.span(method, such).map(drop)
    }

    /// A span of the caller's sidecar.
    fn span(&self, method: &str, such: impl Fn(&Span) -> bool) -> Result<Span> {
        let mut found = None;
        let came = wait_until(
            Duration::from_secs(10),
            &format!("such a span of {method} came"),
            || {
                let spans = self.spans().unwrap_or_default();
                found = spans
                    .into_iter()
                    .find(|span| span.name == method && span.kind == 3 && such(span));
                found.is_some()
            },
        );
        came.with_context(|| format!("{} spans came", self.spans().unwrap_or_default().len()))?;
        found.context("it came")
    }

    /// The span of a method and a kind: 3 is the caller's sidecar's, 2 the callee's.
    fn span_of(&self, method: &str, kind: i32) -> Result<Span> {
        let mut found = None;
        wait_until(Duration::from_secs(10), &format!("{method} has its span"), || {
            let spans = self.spans().unwrap_or_default();
            found = spans.into_iter().find(|span| span.name == method && span.kind == kind);
            found.is_some()
        })?;
        found.context("it came")
    }

    /// What the application heard of a call, up to the next.
    fn heard(&self, method: &str) -> Result<String> {
        let all = self.applications[0].heard();
        let all = String::from_utf8_lossy(&all).into_owned();
        let (_, of) = all
            .split_once(&format!("/{method}\n"))
            .with_context(|| format!("no {method} in {all}"))?;
        Ok(of.split("http://").next().unwrap_or_default().to_owned())
    }
}

type Event = opentelemetry_proto::tonic::trace::v1::span::Event;

fn events(span: &Span, name: &str) -> Vec<Event> {
    span.events.iter().filter(|event| event.name == name).cloned().collect()
}

fn code(span: &Span) -> String {
    text(&span.attributes, "rpc.response.status_code")
}

/// The proxy ended it: in a word, and in a sentence that has this.
fn fails_with(span: &Span, status: &str, reason: &str, sentence: &str) -> Result<()> {
    let failure = events(span, "failure");
    let failure = failure.first().with_context(|| format!("no failure: {span:#?}"))?;
    let said = text(&failure.attributes, "portunus.sentence");
    ensure!(text(&failure.attributes, "portunus.error") == reason, "{failure:?}");
    ensure!(said.contains(sentence), "{said}");
    ensure!(
        code(span) == status && text(&span.attributes, "error.type") == reason,
        "{span:#?}"
    );
    let ended = span.status.as_ref().context("it failed")?;
    ensure!(ended.code() == StatusCode::Error && ended.message == said, "{ended:?}");
    Ok(())
}
