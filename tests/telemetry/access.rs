//! The access log of real sidecars: one line an RPC, whole and fit for a terminal, and nobody waits for whoever reads it.

use std::collections::BTreeMap;
use std::fs;
use std::io::PipeWriter;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portunus_logbook::is_control;
use serde_json::Value;
use support::unread::{full_pipe, read_all};
use support::{Control, Family, Member, Mesh, Metrics, Pod, Program, User, build, http, wait_until};

use crate::application::{Answer, Application, Call, Choose, Reply, call, flood, say_until};
use crate::collector::{Collector, GRPC};
use crate::frames;
use crate::secrets::hex;

const NAME: &str = "app.shop.svc.cluster.local";
const PORT: u16 = 10000;
/// Nobody listens there.
const NOBODY: u16 = 10001;

#[test]
fn every_rpc_is_one_line_of_json_on_either_side_and_says_what_its_span_says() {
    support::test(|mesh| one_line_each(mesh, "json", json));
}

#[test]
fn every_rpc_is_one_line_of_text_on_either_side_and_says_what_its_span_says() {
    support::test(|mesh| one_line_each(mesh, "text", from_text));
}

type Line = BTreeMap<String, String>;

fn one_line_each(mesh: &Mesh, form: &str, read: fn(&str) -> Result<Line>) -> Result<()> {
    let control = mesh.control(&[])?;
    let dns = mesh.dns()?;
    control.service("app", PORT)?;
    let (caller, server, collecting) = (mesh.pod("caller")?, mesh.pod("server")?, mesh.pod("collector")?);
    let collector = Collector::start(&collecting)?;
    let at = format!("http://{}", collecting.at(Family::V4, GRPC)?);
    let settings = [
        ("PORTUNUS_ACCESS_LOG", form),
        ("PORTUNUS_LOG_FORMAT", form),
        ("PORTUNUS_LOG_LEVEL", "warn"),
        ("PORTUNUS_TRACE_SAMPLING", "100"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &at),
    ];
    let member = |name, app, ports| Member {
        account: name,
        app,
        ports,
    };
    let outbound = caller.member(&control, &member("caller", "caller", &[]), &settings)?;
    let inbound = server.member(&control, &member("server", "app", &[PORT, NOBODY]), &settings)?;
    dns.set(NAME, &server.addresses(), 5)?;
    let stream = Answer {
        again: 4,
        trailers: vec![("grpc-status".to_owned(), "0".to_owned())],
        ..Answer::default()
    };
    let choose: Choose = Arc::new(move |path| match path {
        "a.B/Fails" => Reply::status("5"),
        "a.B/Streams" => Reply::Answer(stream.clone()),
        "a.B/Late" => Reply::Silence,
        _ => Reply::status("0"),
    });
    let _application = Application::start(&server, PORT, choose, vec![(8080, b"HTTP/1.1 204 No\r\n\r\n".to_vec())])?;

    let authority = format!("{NAME}:{PORT}");
    let streams = Call {
        again: 2,
        ..Call::of(&authority, "a.B/Streams")
    };
    let calls = [
        Call::of(&authority, "a.B/Works"),
        Call::of(&authority, "a.B/Fails"),
        streams,
        // Time enough to come to the application.
        Call::of(&authority, "a.B/Late").with("grpc-timeout", "3S"),
    ];
    call(&caller, server.at(Family::V4, PORT)?, &calls)?;
    let nobody = Call::of(&format!("{}", server.at(Family::V4, NOBODY)?), "a.B/Nobody");
    call(&caller, server.at(Family::V4, NOBODY)?, &[nobody])?;
    // What is no RPC has no line.
    say_until(
        &caller,
        server.at(Family::V4, 8080)?,
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        |answer| answer.starts_with(b"HTTP/1.1 204"),
    )?;

    let lines = |program: &Program| -> Result<Vec<Line>> {
        let output = program.output();
        let rpcs = output
            .lines()
            .filter(|line| line.contains("rpc") && line.contains("duration_us"));
        let lines: Result<Vec<_>> = rpcs.map(read).collect();
        // The caller's sidecar asks for health, too.
        let is_check = |line: &Line| {
            line.get("method")
                .is_some_and(|method| method.starts_with("grpc.health"))
        };
        Ok(lines?.into_iter().filter(|line| !is_check(line)).collect())
    };
    wait_until(Duration::from_secs(10), "each RPC has its line", || {
        [&outbound, &inbound]
            .iter()
            .all(|sidecar| lines(sidecar).is_ok_and(|lines| lines.len() >= 5))
    })
    .with_context(|| format!("{}\n{}", outbound.output(), inbound.output()))?;
    let spans = || {
        let mut spans = collector.spans().unwrap_or_default();
        spans.retain(|(_, span)| !span.name.starts_with("grpc.health"));
        spans
    };
    wait_until(Duration::from_secs(10), "each RPC has its span", || spans().len() >= 10)?;

    for (sidecar, direction) in [(&outbound, "outbound"), (&inbound, "inbound")] {
        let lines = lines(sidecar)?;
        ensure!(lines.len() == 5, "there are {} lines: {lines:#?}", lines.len());
        for (method, code, error, requests, responses) in [
            ("a.B/Works", "OK", ["", ""], "1", "1"),
            ("a.B/Fails", "NOT_FOUND", ["", ""], "1", "1"),
            ("a.B/Streams", "OK", ["", ""], "3", "5"),
            ("a.B/Late", "DEADLINE_EXCEEDED", ["deadline", "deadline"], "1", "0"),
            ("a.B/Nobody", "UNAVAILABLE", ["no_endpoint", "unreachable"], "1", "0"),
        ] {
            let mut of = lines
                .iter()
                .filter(|line| line.get("method").is_some_and(|is| is == method));
            let (line, more) = (of.next().with_context(|| format!("no line of {method}"))?, of.next());
            ensure!(more.is_none(), "{method} has two lines");
            let is = |key: &str| line.get(key).map_or("", String::as_str);
            ensure!((is("event"), is("direction")) == ("rpc", direction), "{line:#?}");
            let is_nobody = method == "a.B/Nobody";
            // The caller's deadline ends the call on both sides, or on its own and then on the other by its cancelling.
            let is_late = method == "a.B/Late" && direction == "inbound";
            ensure!(is("code") == code || is_late && is("code") == "CANCELLED", "{line:#?}");
            // Whoever does not end a call has no word of its own for its end.
            let error = error[usize::from(direction == "inbound")];
            ensure!(is_late || is("error") == error, "{line:#?}");
            if !is_nobody {
                ensure!(is("authority") == authority, "{line:#?}");
                ensure!((is("requests"), is("responses")) == (requests, responses), "{line:#?}");
            }
            let from: SocketAddr = is("from").parse()?;
            ensure!(caller.addresses().contains(&from.ip()), "{line:#?}");
            let proven = (direction == "inbound").then(|| Control::id("caller"));
            ensure!(line.get("identity") == proven.as_ref(), "{line:#?}");
            if code == "OK" {
                let to: SocketAddr = is("to").parse()?;
                ensure!(server.addresses().contains(&to.ip()) && to.port() == PORT, "{line:#?}");
            }
            let micros: u64 = is("duration_us").parse()?;
            ensure!((1..20_000_000).contains(&micros), "{line:#?}");
            ensure!(is_time(is("timestamp")), "{line:#?}");
            let spans = spans();
            let span = spans.iter().find(|(_, span)| {
                let kind = if direction == "inbound" { 2 } else { 3 };
                span.name == method && span.kind == kind && hex(&span.trace_id) == is("trace_id")
            });
            ensure!(span.is_some(), "no span is of this line: {line:#?}");
        }
    }
    Ok(())
}

/// Whether it is a time as RFC 3339 has it, to the microsecond.
fn is_time(text: &str) -> bool {
    let digit = |char: char| if char.is_ascii_digit() { '0' } else { char };
    text.chars().map(digit).eq("0000-00-00T00:00:00.000000Z".chars())
}

#[test]
fn what_a_stranger_calls_a_method_or_a_host_stays_in_its_field_of_its_line() {
    support::test(|mesh| {
        for (form, read) in [("json", json as fn(&str) -> Result<Line>), ("text", from_text)] {
            let (stranger, server) = (mesh.pod(&format!("from-{form}"))?, mesh.pod(&format!("to-{form}"))?);
            let sidecar = server.sidecar_with(&[
                ("PORTUNUS_ACCESS_LOG", form),
                ("PORTUNUS_LOG_FORMAT", form),
                ("PORTUNUS_LOG_LEVEL", "debug"),
            ])?;
            let _application = Application::start(&server, PORT, Arc::new(|_| Reply::status("0")), Vec::new())?;
            let forged = "/a.B/C\" code=\"OK\"} {\"event\":\"rpc\\";
            let paths = [
                forged,
                "/a.B/C\r\n{\"event\":\"rpc\",\"forged\":1}",
                "/a.B/\u{1b}[2J\u{1b}]0;x\u{7}",
                "/a.B/\u{202e}txet\u{2066}\u{200f}",
                "/a.B/\u{9b}31m\u{85}\u{2028}\0\u{7f}",
                "/a.B/é漢",
                "/%0d%0a%1b[2J",
            ];
            let at = server.at(Family::V4, PORT)?;
            // Each is over before the next one: by an answer, or by its refusal.
            let ask = |host, path| {
                let bytes = frames::client(&[frames::request(host, path, &[])]);
                say_until(&stranger, at, &bytes, frames::has_ended)
            };
            for path in paths {
                ask("app.test", path)?;
            }
            for host in ["a\r\nb", "a\u{1b}[2J", "\u{202e}tset", "a\"b\\", "é.test"] {
                ask(host, "/a.B/Host")?;
            }
            ask("app.test", "/a.B/Last")?;
            // Workers write when they come to it, so the last call's line need not be the last.
            let mut log = String::new();
            wait_until(Duration::from_secs(10), "the calls have their lines", || {
                log = sidecar.output();
                let has_line = |method: &str| {
                    let mut lines = log.lines();
                    lines.any(|line| line.contains("duration_us") && line.contains(method))
                };
                log.ends_with('\n') && has_line("a.B/Last") && has_line("%0d%0a%1b[2J")
            })
            .with_context(|| sidecar.output())?;
            let odd = log.chars().find(|char| *char != '\n' && is_control(*char));
            ensure!(odd.is_none(), "the log has {odd:?}:\n{log}");
            let lines: Result<Vec<_>> = log
                .lines()
                .filter(|line| line.contains("duration_us"))
                .map(read)
                .collect();
            let lines = lines?;
            ensure!(
                lines
                    .iter()
                    .all(|line| line.get("event").is_some_and(|event| event == "rpc")
                        && line.get("direction").is_some_and(|way| way == "inbound")),
                "{lines:#?}"
            );
            let named = |method: &str| {
                lines
                    .iter()
                    .filter(|line| line.get("method").is_some_and(|is| is == method))
                    .count()
            };
            println!("{form}: {} of {} odd calls were carried", lines.len(), paths.len() + 6);
            ensure!(named("a.B/Last") == 1 && named("%0d%0a%1b[2J") == 1, "{lines:#?}");
        }
        Ok(())
    });
}

#[test]
fn calls_go_on_while_nobody_reads_their_lines_and_what_is_kept_is_bounded_and_whole() {
    support::test(|mesh| {
        let (caller, server) = (mesh.pod("caller")?, mesh.pod("server")?);
        let _application = Application::start(&server, PORT, Arc::new(|_| Reply::status("0")), Vec::new())?;
        let (reader, writer) = full_pipe()?;
        let mut sidecar = with_errors_to(&caller, writer)?;
        let to = server.at(Family::V4, PORT)?;
        // Long names make long lines.
        let method = format!("a.B/{}", "m".repeat(240));
        let of = Call::of(&to.to_string(), &method);
        flood(&caller, to, &of, 500)?;
        let before = resident(&sidecar)?;
        let (mut calls, mut longest) = (500, Duration::ZERO);
        while dropped(&caller)? < 1_000.0 {
            longest = longest.max(flood(&caller, to, &of, 1_000)?);
            calls += 1_000;
            ensure!(calls < 100_000, "nothing is dropped");
        }
        let grown = resident(&sidecar)?.saturating_sub(before);
        // A call is counted, and has its line, when its answer has gone.
        wait_until(Duration::from_secs(10), "each call is counted", || {
            counted(&caller, "grpc_client_handled_total").is_ok_and(|handled| handled >= f64::from(calls))
        })?;
        let lost = dropped(&caller)?;
        println!("{calls} calls, none longer than {longest:?}; {lost} lines dropped, {grown} KiB more resident");
        ensure!(grown < 8 << 10, "{grown} KiB more are resident");
        ensure!(longest < Duration::from_secs(2), "a call took {longest:?}");
        for page in ["/ready", "/live"] {
            let answer = http::get(&caller, ADMIN, page)?;
            ensure!(answer.status == 200, "{page} says {answer:?}");
        }

        let reading = thread::spawn(move || read_all(reader));
        let status = sidecar.stop(Duration::from_secs(10))?;
        ensure!(status.success(), "it ended with {status}");
        let log = reading.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        let rpcs: Result<Vec<_>> = log
            .lines()
            .filter(|line| line.contains("\"event\":\"rpc\""))
            .map(json)
            .collect();
        let rpcs = rpcs.context("a line is not whole")?;
        ensure!(
            rpcs.len() as f64 + lost == f64::from(calls) && rpcs.iter().all(|line| line.get("method") == Some(&method)),
            "of {calls} calls {} have lines and {lost} have none",
            rpcs.len()
        );
        let said = log.matches("lines of the log were dropped").count();
        ensure!(said == 1, "that there were more is said {said} times");
        Ok(())
    });
}

fn json(line: &str) -> Result<Line> {
    let fields: BTreeMap<String, Value> = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(fields.into_iter().map(|(key, value)| (key, text(value))).collect())
}

/// `key=value`, or `key="value"` as JSON escapes it, with spaces between.
fn from_text(line: &str) -> Result<Line> {
    let mut fields = Line::new();
    let mut rest = line;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=').with_context(|| format!("no field: {rest}"))?;
        let (value, after) = if after.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let value = values.next().context("a quote begins a text")??;
            (value, &after[values.byte_offset()..])
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        ensure!(
            fields.insert(key.to_owned(), value).is_none(),
            "{key} stands twice: {line}"
        );
        ensure!(
            after.is_empty() || after.starts_with(' '),
            "no space behind {key}: {line}"
        );
        rest = after.trim_start_matches(' ');
    }
    Ok(fields)
}

/// The pod's sidecar, which writes its log there.
fn with_errors_to(pod: &Pod, errors: PipeWriter) -> Result<Program> {
    let program = pod.place(&build::sidecar()?)?;
    let mut rules = pod.command(User::Root, &program);
    rules.arg("redirect");
    pod.run("redirect", rules)?;
    let mut command = pod.command(User::Sidecar, &program);
    command.args(["proxy", "--access-log", "json", "--log-format", "json"]);
    let sidecar = pod.start_with_errors("sidecar", command, errors)?;
    wait_until(Duration::from_secs(10), "the sidecar is ready", || {
        http::get(pod, ADMIN, "/ready").is_ok_and(|answer| answer.status == 200)
    })?;
    Ok(sidecar)
}

fn dropped(pod: &Pod) -> Result<f64> {
    counted(pod, "portunus_log_dropped_total")
}

fn counted(pod: &Pod, name: &str) -> Result<f64> {
    let page = Metrics::parse(&http::get(pod, ADMIN, "/metrics")?.body);
    Ok(page.sum(name, &[]))
}

/// KiB of its memory.
pub(crate) fn resident(program: &Program) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let digits = line.and_then(|line| line.split_whitespace().next());
    Ok(digits.context("it has a size")?.parse()?)
}

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4191);
