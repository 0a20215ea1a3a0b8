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

/// A place in the log, from which on it is read.
#[derive(Clone, Copy, Debug)]
pub struct Place(usize);

/// Where the log ends now.
pub fn end() -> Place {
    Place(LINES.get().map_or(0, |lines| lines.lock().len()))
}

impl Place {
    /// Waits for a line from here on that has all of these.
    ///
    /// # Panics
    /// When none comes.
    pub async fn says(mut self, parts: &[&str]) -> String {
        let began = Instant::now();
        loop {
            if let Some(line) = self.read(parts) {
                return line;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "no line has {parts:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many lines from here on have all of these.
    pub fn count(mut self, parts: &[&str]) -> usize {
        std::iter::from_fn(|| self.read(parts)).count()
    }

    /// The next line that has all of these; what was read is not read again.
    fn read(&mut self, parts: &[&str]) -> Option<String> {
        let lines = LINES.get()?.lock();
        // The last line may be half written.
        while let Some(length) = lines[self.0..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&lines[self.0..self.0 + length]);
            self.0 += length + 1;
            if parts.iter().all(|part| line.contains(part)) {
                return Some(line.into_owned());
            }
        }
        None
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
