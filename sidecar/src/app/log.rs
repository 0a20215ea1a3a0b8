//! Logs, a line an event, on standard error.

mod lines;

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::error;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::LogFormat;
use crate::telemetry::escape;
use lines::Lines;

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No thread to write with.
    #[error("there is no thread to write the log: {0}")]
    Thread(#[from] io::Error),
    /// It was begun before.
    #[error(transparent)]
    Again(#[from] TryInitError),
}

/// What was logged and not written yet. One a process, as standard error is.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Begins to log. Once a process.
///
/// Lines are written by a thread of their own: whoever logs never waits for whoever reads.
pub fn start(level: Targets, format: LogFormat) -> Result<(), Error> {
    let lines = Lines::start(StandardError, |dropped| {
        error!(
            dropped,
            "standard error was not read for a while: so many lines of the log were dropped so far"
        );
    })?;
    let lines = LINES.get_or_init(|| lines);
    let lines = fmt::layer().with_writer(|| Escaped(lines.clone()));
    let registry = tracing_subscriber::registry().with(level);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// Waits for what was logged to be written, if somebody reads it. To be called before the process ends.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

/// How many lines were dropped so far, because standard error took no more.
pub fn dropped() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// Puts a line of the access log where the log is written: behind what was logged, never waiting for whoever reads. `line`
/// ends with a line feed and has no other.
pub fn put(line: &[u8]) {
    if let Some(mut lines) = LINES.get().cloned() {
        // Lines never fail: what cannot be kept is counted.
        let _ = lines.write_all(line);
    }
}

/// How long the end of the process waits for the last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Standard error without the lock of the standard library: a write that blocks must not hold up whoever else writes there.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::telemetry::is_control;

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
        let text = "a\n2026-01-01 ERROR forged\r\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200f}\u{2028}\u{85}\u{e9}";
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
