//! What the workers of this process log, kept so that tests can read it.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

static LINES: OnceLock<&'static Mutex<Vec<u8>>> = OnceLock::new();

/// Keeps what is logged from now on. Doing it again changes nothing.
pub fn keep() {
    LINES.get_or_init(|| {
        let lines = Box::leak(Box::new(Mutex::new(Vec::new())));
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_writer(|| Writer)
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else keeps it");
        lines
    });
}

/// Waits for a line that has all of these.
///
/// # Panics
/// When none comes.
pub async fn says(parts: &[&str]) -> String {
    let began = Instant::now();
    loop {
        let all = LINES
            .get()
            .map(|lines| String::from_utf8_lossy(&lines.lock()).into_owned());
        let all = all.unwrap_or_default();
        if let Some(line) = all.lines().find(|line| parts.iter().all(|part| line.contains(part))) {
            return line.to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "no line has {parts:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct Writer;

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(lines) = LINES.get() {
            lines.lock().extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
