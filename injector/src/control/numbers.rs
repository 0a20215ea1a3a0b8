//! What control counts, in the text form of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Counters and gauges.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Certificates given for a join token.
    pub joined: AtomicU64,
    /// Certificates given for a certificate.
    pub renewed: AtomicU64,
    /// Streams of `Follow` open now.
    pub streams: AtomicI64,
    /// Answers sent on them.
    pub answers: AtomicU64,
    /// Connections open now, handshakes included.
    pub connections: AtomicI64,
    refused: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
}

/// What is read where it lives, when the page is asked for.
#[derive(Debug, Default)]
pub struct Facts {
    /// States that were taken.
    pub accepted: u64,
    /// States that were not.
    pub refused: u64,
    /// Whether the newest was not.
    pub source_error: bool,
    /// When the state in force was taken.
    pub state_since: Option<SystemTime>,
    /// Whether the authority's files are wrong.
    pub authority_error: bool,
    /// When the issuer ends.
    pub issuer_ends: Option<SystemTime>,
    /// When the first root ends.
    pub root_ends: Option<SystemTime>,
    /// When control's own certificate ends.
    pub own_ends: Option<SystemTime>,
    /// Lines of the log that were dropped.
    pub log_dropped: u64,
}

/// One that is open, until it is dropped.
#[derive(Debug)]
pub struct Open<'a>(&'a AtomicI64);

impl<'a> Open<'a> {
    /// One more is open.
    pub fn one(gauge: &'a AtomicI64) -> Open<'a> {
        gauge.fetch_add(1, Relaxed);
        Open(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Numbers {
    /// Something was refused. Both words are of our own making, so there are few.
    pub fn refused(&self, what: &'static str, reason: &'static str) {
        *self.refused.lock().entry((what, reason)).or_default() += 1;
    }

    /// The page.
    pub fn page(&self, facts: &Facts) -> String {
        let mut page = Page(String::new());
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        page.one("portunus_build_info", "gauge", "What this is.", &version, 1);
        page.head(
            "portunus_control_certificates_total",
            "counter",
            "Certificates that were signed.",
        );
        page.line(
            "portunus_control_certificates_total",
            "{proof=\"token\"}",
            self.joined.load(Relaxed),
        );
        page.line(
            "portunus_control_certificates_total",
            "{proof=\"certificate\"}",
            self.renewed.load(Relaxed),
        );
        page.head(
            "portunus_control_refused_total",
            "counter",
            "What was refused, and why.",
        );
        for ((what, reason), count) in self.refused.lock().iter() {
            let labels = format!("{{what=\"{what}\",reason=\"{reason}\"}}");
            page.line("portunus_control_refused_total", &labels, *count);
        }
        let gauge = |gauge: &AtomicI64| u64::try_from(gauge.load(Relaxed)).unwrap_or(0);
        page.one(
            "portunus_control_streams",
            "gauge",
            "Streams open now.",
            "",
            gauge(&self.streams),
        );
        page.one(
            "portunus_control_connections",
            "gauge",
            "Connections open now.",
            "",
            gauge(&self.connections),
        );
        page.one(
            "portunus_control_answers_total",
            "counter",
            "Answers on streams.",
            "",
            self.answers.load(Relaxed),
        );
        page.head(
            "portunus_control_states_total",
            "counter",
            "States that were read from the source.",
        );
        page.line("portunus_control_states_total", "{result=\"accepted\"}", facts.accepted);
        page.line("portunus_control_states_total", "{result=\"refused\"}", facts.refused);
        let error = "Whether the newest state was refused.";
        page.one(
            "portunus_control_source_error",
            "gauge",
            error,
            "",
            facts.source_error.into(),
        );
        let since = "When the state in force was taken.";
        page.time("portunus_control_state_timestamp_seconds", since, "", facts.state_since);
        let error = "Whether the authority's files are wrong.";
        page.one(
            "portunus_control_authority_error",
            "gauge",
            error,
            "",
            facts.authority_error.into(),
        );
        let name = "portunus_control_certificate_expiry_timestamp_seconds";
        page.head(
            name,
            "gauge",
            "When the authority's certificates and control's own end.",
        );
        let ends = [
            ("root", facts.root_ends),
            ("issuer", facts.issuer_ends),
            ("own", facts.own_ends),
        ];
        for (which, ends) in ends {
            if let Some(ends) = ends {
                page.line(name, &format!("{{certificate=\"{which}\"}}"), seconds(ends));
            }
        }
        page.one(
            "portunus_log_dropped_total",
            "counter",
            "Lines of the log that were dropped, because standard error took no more.",
            "",
            facts.log_dropped,
        );
        page.0
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, labels, value);
    }

    fn time(&mut self, name: &str, help: &str, labels: &str, time: Option<SystemTime>) {
        if let Some(time) = time {
            self.one(name, "gauge", help, labels, seconds(time));
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
