//! The log of this process: standard error, written by one thread.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use crate::{Escaped, Lines};

/// What was logged and not written yet. One a process, as standard error is.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Opens the log of this process, and gives what events are written to, each whole. Whenever lines were dropped, `say` is to
/// log how many so far. Once a process: whoever opens it again gets the same.
///
/// # Errors
/// When there is no thread to write with.
pub fn open(say: impl Fn(u64) + Send + 'static) -> io::Result<Escaped<Lines>> {
    let lines = match LINES.get() {
        Some(lines) => lines,
        None => {
            let lines = Lines::start(StandardError, say)?;
            LINES.get_or_init(|| lines)
        }
    };
    Ok(Escaped(lines.clone()))
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

/// Puts a line where the log is written: behind what was logged, never waiting for whoever reads. `line` ends with a line
/// feed, and has neither another nor anything that had to be escaped.
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
