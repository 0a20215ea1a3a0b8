//! Lines of the log, escaped, and written by a thread of their own: control never waits for whoever reads them, and what a
//! stranger said begins no line of its own.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Bytes of lines that may wait, beside as many that are being written. What comes further is dropped and counted.
const MOST_WAITING: usize = 1 << 20;

/// Where lines are put.
#[derive(Clone)]
pub(super) struct Lines(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    /// Something waits.
    more: Condvar,
    /// Nothing waits, and nothing is being written.
    idle: Condvar,
    /// The line that says how many were dropped.
    note: fn(u64) -> String,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    is_writing: bool,
    /// Lines that were dropped since the last that was kept.
    dropped: u64,
}

impl Lines {
    /// Starts the thread that writes to `out`. `note` makes the line that says how many were dropped.
    pub(super) fn start(out: impl Write + Send + 'static, note: fn(u64) -> String) -> io::Result<Lines> {
        let lines = Lines(Arc::new(Shared {
            queue: Mutex::default(),
            more: Condvar::new(),
            idle: Condvar::new(),
            note,
        }));
        let shared = lines.0.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&shared, out))?;
        Ok(lines)
    }

    /// Waits until all is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut queue = self.0.queue.lock();
        while queue.is_writing || !queue.waiting.is_empty() {
            if self.0.idle.wait_until(&mut queue, until).timed_out() {
                return;
            }
        }
    }
}

impl Write for Lines {
    /// Takes one whole event, or drops it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue.lock();
        if queue.waiting.len() + event.len() > MOST_WAITING {
            queue.dropped += 1;
            return Ok(event.len());
        }
        if queue.dropped > 0 {
            let note = (self.0.note)(std::mem::take(&mut queue.dropped));
            queue.waiting.extend_from_slice(note.as_bytes());
            queue.waiting.push(b'\n');
        }
        let line = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
        escape(&line, &mut queue.waiting);
        queue.waiting.push(b'\n');
        drop(queue);
        self.0.more.notify_one();
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Control characters, and those that end a line or turn the direction of writing, as JSON escapes them.
fn escape(line: &str, into: &mut Vec<u8>) {
    for char in line.chars() {
        let moves = matches!(
            char,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{feff}'
        ) || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if moves || char.is_control() {
            into.extend_from_slice(format!("\\u{:04x}", u32::from(char)).as_bytes());
        } else {
            into.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

fn write_all(shared: &Shared, mut out: impl Write) {
    let mut batch = Vec::new();
    loop {
        let mut queue = shared.queue.lock();
        queue.is_writing = false;
        while queue.waiting.is_empty() {
            shared.idle.notify_all();
            shared.more.wait(&mut queue);
        }
        queue.is_writing = true;
        std::mem::swap(&mut queue.waiting, &mut batch);
        drop(queue);
        // Where nobody reads at all there is nobody to tell.
        let _ = out.write_all(&batch);
        batch = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A page whose reader waits until it is told to read.
    struct Page {
        read: Arc<Mutex<Vec<u8>>>,
        wait: mpsc::Receiver<()>,
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.wait.recv();
            self.read.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_stops_and_what_was_dropped_is_said() {
        let read = Arc::new(Mutex::new(Vec::new()));
        let (go, wait) = mpsc::channel();
        let page = Page {
            read: read.clone(),
            wait,
        };
        let mut lines = Lines::start(page, |dropped| format!("{dropped} dropped")).expect("a thread");
        let line = [&[b'x'; 1_023][..], b"\n"].concat();
        let began = Instant::now();
        for _ in 0..5_000 {
            lines.write_all(&line).expect("it never fails");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "somebody waited");
        drop(go);
        lines.flush(Duration::from_secs(20));
        lines.write_all(b"last\n").expect("it never fails");
        lines.flush(Duration::from_secs(20));
        let read = String::from_utf8(read.lock().clone()).expect("text");
        let kept = read.lines().filter(|line| line.starts_with('x')).count();
        let note = format!("{} dropped\nlast\n", 5_000 - kept);
        assert!(
            kept >= 1_000 && read.ends_with(&note),
            "{kept}: {}",
            &read[read.len() - 100..]
        );
    }

    #[test]
    fn what_a_stranger_says_begins_no_line_and_moves_no_terminal() {
        let mut line = Vec::new();
        escape("a\nERROR forged\r\u{1b}[2J\u{9b}\u{202e}\u{2028}\u{85}é", &mut line);
        let line = String::from_utf8(line).expect("text");
        assert_eq!(
            line,
            "a\\u000aERROR forged\\u000d\\u001b[2J\\u009b\\u202e\\u2028\\u0085é"
        );
    }
}
