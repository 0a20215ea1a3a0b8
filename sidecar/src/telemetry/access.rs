//! The access log: one line an RPC, from the facts that its span would have.
//!
//! What stands in it is names, numbers and words of ours. Names come from strangers: they are escaped and cut. Values of
//! metadata and payloads are never in it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use portunus_logbook::is_control;

use super::{Direction, clean};
use crate::grpc::Code;

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For programs: one JSON object.
    Json,
    /// For people: `key=value`, texts of strangers in quotes.
    Text,
}

/// The facts of one RPC.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// When it ended.
    pub at: SystemTime,
    /// Which way it went.
    pub direction: Direction,
    /// Its `:path`.
    pub path: &'a [u8],
    /// Its `:authority`.
    pub authority: &'a [u8],
    /// Who called, by the address of the connection.
    pub from: Option<SocketAddr>,
    /// Who was asked.
    pub to: Option<SocketAddr>,
    /// Who the peer is, proven.
    pub identity: Option<&'a str>,
    /// How it ended.
    pub code: Code,
    /// The word of `portunus-error`, if the proxy ended it.
    pub reason: Option<&'static str>,
    /// From its first byte to its last.
    pub elapsed: Duration,
    /// Messages of the request.
    pub requests: u32,
    /// Messages of the response.
    pub responses: u32,
    /// Its trace, if it is recorded.
    pub trace_id: Option<super::trace::TraceId>,
}

/// Writes one line, with its line feed, at the end of `line`.
pub fn write(facts: &Facts<'_>, form: Form, line: &mut String) {
    let mut fields = Fields {
        form,
        line,
        first: true,
    };
    let Facts { direction, code, .. } = facts;
    if form == Form::Json {
        fields.line.push('{');
    }
    fields.plain("timestamp", &Timestamp(facts.at), true);
    fields.plain("event", &"rpc", true);
    fields.plain("direction", &direction.as_str(), true);
    fields.text("method", clean::method(facts.path));
    fields.text("authority", clean::host(facts.authority));
    if let Some(from) = facts.from {
        fields.plain("from", &from, true);
    }
    if let Some(to) = facts.to {
        fields.plain("to", &to, true);
    }
    if let Some(identity) = facts.identity {
        fields.text("identity", identity.as_bytes());
    }
    fields.plain("code", &code.constant(), true);
    if let Some(reason) = facts.reason {
        fields.plain("error", &reason, true);
    }
    fields.plain("duration_us", &facts.elapsed.as_micros(), false);
    fields.plain("requests", &facts.requests, false);
    fields.plain("responses", &facts.responses, false);
    if let Some(trace_id) = facts.trace_id {
        fields.plain("trace_id", &format_args!("{:032x}", trace_id.get()), true);
    }
    line.push_str(if form == Form::Json { "}\n" } else { "\n" });
}

struct Fields<'a> {
    form: Form,
    line: &'a mut String,
    first: bool,
}

impl Fields<'_> {
    /// What cannot have a byte that needs care.
    fn plain(&mut self, key: &str, value: &dyn std::fmt::Display, is_text: bool) {
        let quote = if is_text && self.form == Form::Json { "\"" } else { "" };
        self.key(key);
        // A String takes all that is written to it.
        let _ = write!(self.line, "{quote}{value}{quote}");
    }

    /// What a stranger wrote.
    fn text(&mut self, key: &str, bytes: &[u8]) {
        self.key(key);
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]);
        self.line.push('"');
        for char in text.chars() {
            match char {
                '"' => self.line.push_str("\\\""),
                '\\' => self.line.push_str("\\\\"),
                char if is_control(char) => {
                    let _ = write!(self.line, "\\u{:04x}", u32::from(char));
                }
                char => self.line.push(char),
            }
        }
        self.line.push('"');
    }

    fn key(&mut self, key: &str) {
        let (separator, quote, colon) = match self.form {
            Form::Json => (",", "\"", ":"),
            Form::Text => (" ", "", "="),
        };
        if !std::mem::take(&mut self.first) {
            self.line.push_str(separator);
        }
        for part in [quote, key, quote, colon] {
            self.line.push_str(part);
        }
    }
}

/// RFC 3339, in UTC, to the microsecond.
struct Timestamp(SystemTime);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (seconds, micros) = (since.as_secs(), since.subsec_micros());
        let (year, month, day) = date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z"
        )
    }
}

/// The date of a day since 1970 (Hinnant's `civil_from_days`).
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    (year + era * 400 + u64::from(month <= 2), month, day)
}

const MAX_TEXT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>(path: &'a [u8], authority: &'a [u8]) -> Facts<'a> {
        Facts {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_718_861_000_042),
            direction: Direction::Inbound,
            path,
            authority,
            from: "10.0.0.1:5".parse().ok(),
            to: "[::1]:6".parse().ok(),
            identity: Some("spiffe://mesh.test/ns/a/sa/b"),
            code: Code::DeadlineExceeded,
            reason: Some("deadline"),
            elapsed: Duration::from_micros(1_234),
            requests: 1,
            responses: 0,
            trace_id: super::super::trace::TraceId::new(10),
        }
    }

    fn line(form: Form, path: &[u8], authority: &[u8]) -> String {
        let mut line = String::new();
        write(&facts(path, authority), form, &mut line);
        line
    }

    #[test]
    fn a_line_says_who_called_what_and_how_it_ended() {
        let text = line(Form::Text, b"/a.B/C", b"b.test:50051");
        assert_eq!(
            text,
            "timestamp=2026-11-26T18:47:41.000042Z event=rpc direction=inbound method=\"a.B/C\" authority=\"b.test:50051\" \
             from=10.0.0.1:5 to=[::1]:6 identity=\"spiffe://mesh.test/ns/a/sa/b\" code=DEADLINE_EXCEEDED error=deadline \
             duration_us=1234 requests=1 responses=0 trace_id=0000000000000000000000000000000a\n"
        );
        let json: serde_json::Value = serde_json::from_str(&line(Form::Json, b"/a.B/C", b"b.test")).expect("JSON");
        assert_eq!(json["method"], "a.B/C");
        assert_eq!(json["duration_us"], 1234);
        assert_eq!(json["code"], "DEADLINE_EXCEEDED");
    }

    #[test]
    fn what_a_stranger_sends_stays_in_its_field() {
        let evil = "/x\" code=OK\r\nforged \\ \u{1b}[2J\u{202e}\u{2066}\u{200f}\u{2028}\u{85}\0\u{e9}";
        for form in [Form::Text, Form::Json] {
            let line = line(form, evil.as_bytes(), &[0xff; 9_000]);
            let line = line.strip_suffix('\n').expect("a line ends");
            assert!(!line.contains(is_control), "{line:?}");
            assert!(
                line.contains("\\\" code=OK\\u000d") && line.contains('\u{e9}'),
                "{line}"
            );
            assert!(line.len() < 2_000, "what is long is cut");
        }
        let json: serde_json::Value = serde_json::from_str(&line(Form::Json, evil.as_bytes(), b"")).expect("JSON");
        assert_eq!(json["method"], evil[1..]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_783, (2026, 11, 26)),
        ] {
            assert_eq!(date(days), expected);
        }
    }
}
