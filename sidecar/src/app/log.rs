//! Logs, a line an event, on standard error.

use std::io::{self, Write};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::LogFormat;

/// Begins to log. Once a process.
pub fn start(level: Targets, format: LogFormat) -> Result<(), TryInitError> {
    let lines = fmt::layer().with_writer(|| Escaped(io::stderr()));
    let registry = tracing_subscriber::registry().with(level);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    }
}

/// Writes an event's line with its control characters escaped, so that what a peer sent cannot begin a line of its own or
/// move somebody's terminal. The escapes are JSON's, which are right in both forms.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    /// Takes one whole event, as the subscriber writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        match escape(&String::from_utf8_lossy(line)) {
            None => self.0.write_all(event)?,
            Some(line) => self.0.write_all(format!("{line}\n").as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The text with its control characters escaped, if it has any.
fn escape(text: &str) -> Option<String> {
    if !text.contains(is_control) {
        return None;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_control(char) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            escaped.push(char);
        }
    }
    Some(escaped)
}

/// Control characters, and those that end a line or turn the direction of writing.
fn is_control(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written for an event whose text and field a stranger chose.
    fn logged(json: bool, text: &str) -> String {
        let page = Page::default();
        let writer = page.clone();
        let lines = fmt::layer()
            .with_writer(move || Escaped(writer.clone()))
            .with_ansi(false);
        let log = || tracing::info!(peer = %text, "{text}");
        if json {
            tracing::subscriber::with_default(
                tracing_subscriber::registry().with(lines.json().flatten_event(true)),
                log,
            );
        } else {
            tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        }
        let bytes = page.0.lock().clone();
        String::from_utf8(bytes).expect("logs are text")
    }

    #[test]
    fn what_a_stranger_sends_stays_in_its_line_and_moves_no_terminal() {
        let text = "a\n2026-01-01 ERROR forged\r\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2028}\u{e9}";
        for json in [false, true] {
            let line = logged(json, text);
            let line = line.strip_suffix('\n').expect("a line ends");
            assert!(!line.contains(is_control), "{line:?}");
            assert!(line.contains('\u{e9}'), "what is no control character stays: {line}");
        }
        let json = logged(true, text);
        let event: serde_json::Value = serde_json::from_str(&json).expect("an escaped line is still JSON");
        assert_eq!(event["peer"], text);
    }
}
