//! Logs, a line an event, on standard error.

use std::io;

use portunus_logbook as logbook;
use tracing::error;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use crate::config::LogFormat;

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

/// Begins to log. Once a process.
///
/// Lines are written by a thread of their own: whoever logs never waits for whoever reads.
pub fn start(level: Targets, format: LogFormat) -> Result<(), Error> {
    let writer = logbook::open(|dropped| {
        error!(
            dropped,
            "standard error was not read for a while: so many lines of the log were dropped so far"
        );
    })?;
    let lines = fmt::layer().with_writer(move || writer.clone());
    let registry = tracing_subscriber::registry().with(level);
    match format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use portunus_logbook::{Escaped, is_control};

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
