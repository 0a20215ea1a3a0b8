//! Lines that are written by a thread of their own, so that whoever logs never waits for whoever reads.
//!
//! A log's reader may stop: a pipe is full, a disk is slow. Lines wait then, up to [`MOST_WAITING`] bytes. What comes
//! further is dropped and counted, and the count stands in the log as soon as the reader is back, behind the last line
//! that was kept.

use std::{
    io::{self, ErrorKind, Write},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Where lines are put, by any thread.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Something waits.
    more: Condvar,
    /// Nothing waits and nothing is being written.
    idle: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    is_writing: bool,
}

impl Lines {
    /// Starts the thread that writes to `out`. Whenever lines were dropped, `say` is to log how many so far.
    ///
    /// # Errors
    /// When there is no thread to write with.
    pub fn start(out: impl Write + Send + 'static, say: impl Fn(u64) + Send + 'static) -> io::Result<Lines> {
        let lines = Lines(Arc::default());
        let shared = lines.0.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&shared, out, say))?;
        Ok(lines)
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Waits until all is written, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
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
    /// Takes a whole line, or drops it. Never waits for the thread that writes, and never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Shared {
            queue, more, dropped, ..
        } = &*self.0;
        let mut queue = queue.lock();
        if queue.waiting.len() + line.len() > MOST_WAITING {
            dropped.fetch_add(1, Relaxed);
        } else {
            queue.waiting.extend_from_slice(line);
            drop(queue);
            more.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The life of the thread that writes.
fn write_all(shared: &Shared, mut out: impl Write, say: impl Fn(u64)) {
    let mut batch = Vec::new();
    let mut said = 0;
    loop {
        let mut queue = shared.queue.lock();
        queue.is_writing = false;
        while queue.waiting.is_empty() {
            shared.idle.notify_all();
            shared.more.wait(&mut queue);
        }
        queue.is_writing = true;
        mem::swap(&mut queue.waiting, &mut batch);
        drop(queue);
        // The queue is empty now: this is the next line behind those that were kept.
        let dropped = shared.dropped.load(Relaxed);
        if dropped > said {
            say(dropped);
            said = dropped;
        }
        let left = put(&mut out, &batch);
        let lost = batch[batch.len() - left..]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count();
        shared.dropped.fetch_add(lost as u64, Relaxed);
        batch.clear();
        // A storm is no reason to keep its memory.
        batch.shrink_to(KEPT);
    }
}

/// Writes as much as can be written, however long that takes; returns how many bytes cannot.
fn put(out: &mut impl Write, mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Standard error is shared: somebody else may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(_) => break,
        }
    }
    bytes.len()
}

/// Bytes of lines that may wait, beside as many that are being written.
const MOST_WAITING: usize = 1 << 20;
/// Bytes of memory that are kept for the next lines.
const KEPT: usize = 16 << 10;
/// How soon a stream that would have blocked is tried again.
const PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A stream whose reader takes `n` bytes when the test sends `n`, and is gone when it drops the sender.
    struct Reader {
        allowed: mpsc::Receiver<usize>,
        left: usize,
        read: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.left == 0 {
                self.left = self.allowed.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            }
            let taken = bytes.len().min(self.left);
            self.left -= taken;
            self.read.lock().extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Log {
        lines: Lines,
        allow: mpsc::Sender<usize>,
        read: Arc<Mutex<Vec<u8>>>,
    }

    fn log() -> Log {
        let (allow, allowed) = mpsc::channel();
        let read = Arc::new(Mutex::new(Vec::new()));
        let out = Reader {
            allowed,
            left: 0,
            read: read.clone(),
        };
        let own: Arc<Mutex<Option<Lines>>> = Arc::default();
        let saying = own.clone();
        let say = move |dropped| {
            let mut lines = saying.lock().clone().expect("it is there");
            writeln!(lines, "{dropped} dropped").expect("it never fails");
        };
        let lines = Lines::start(out, say).expect("a thread");
        *own.lock() = Some(lines.clone());
        Log { lines, allow, read }
    }

    impl Log {
        fn read(&self) -> String {
            String::from_utf8(self.read.lock().clone()).expect("text")
        }

        /// Waits until all that was logged is being written, and nothing waits.
        fn until_taken(&self) {
            let is_taken = |queue: &Queue| queue.is_writing && queue.waiting.is_empty();
            while !is_taken(&self.lines.0.queue.lock()) {
                thread::yield_now();
            }
        }
    }

    #[test]
    fn what_was_logged_is_read_in_order_once_it_is_flushed() {
        let mut log = log();
        log.allow.send(usize::MAX).expect("it runs");
        let mut due = String::new();
        for number in 0..10_000 {
            due.push_str(&format!("line {number}\n"));
            writeln!(log.lines, "line {number}").expect("it never fails");
        }
        log.lines.flush(Duration::from_secs(20));
        assert_eq!(log.read(), due);
        assert_eq!(log.lines.dropped(), 0);
    }

    #[test]
    fn a_reader_that_stops_holds_nobody_up_and_what_was_dropped_is_counted_and_said_in_its_place() {
        let mut log = log();
        log.lines.write_all(b"first\n").expect("it never fails");
        // Else a thread that begins late finds the queue full, and says so before the rest is dropped.
        log.until_taken();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let began = Instant::now();
        for _ in 0..5_000 {
            log.lines.write_all(&line).expect("it never fails");
        }
        log.lines.flush(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(10), "somebody waited");
        let dropped = log.lines.dropped();
        // One MiB is being written at most, and one waits.
        assert!((5_000 - 2 * 1_024..5_000 - 1_000).contains(&dropped), "{dropped}");

        log.allow.send(usize::MAX).expect("it runs");
        log.lines.flush(Duration::from_secs(20));
        log.lines.write_all(b"last\n").expect("it never fails");
        log.lines.flush(Duration::from_secs(20));
        let read = log.read();
        let (before, after) = read
            .split_once(&format!("{dropped} dropped\n"))
            .expect("it is said once, and how many");
        assert!(before.starts_with("first\nxx") && !before.contains("dropped"));
        assert_eq!(after, "last\n");
        assert_eq!(
            before.matches('\n').count() as u64,
            1 + 5_000 - dropped,
            "nothing else is missing"
        );
    }

    #[test]
    fn lines_whose_reader_is_gone_are_counted_and_cost_nothing_more() {
        let mut log = log();
        drop(mem::replace(&mut log.allow, mpsc::channel().0));
        log.lines.write_all(b"a\nb\n").expect("it never fails");
        log.lines.flush(Duration::from_secs(20));
        assert!(log.lines.dropped() >= 2);
        let dropped = log.lines.dropped();
        log.lines.flush(Duration::from_secs(20));
        assert_eq!(log.lines.dropped(), dropped, "it does not go round in circles");
    }

    #[test]
    fn a_stream_that_would_block_is_tried_again_and_an_interrupted_write_goes_on() {
        struct Hesitant(Vec<u8>, usize);
        impl Write for Hesitant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                match self.1 % 3 {
                    0 => Err(ErrorKind::WouldBlock.into()),
                    1 => Err(ErrorKind::Interrupted.into()),
                    _ => {
                        self.0.push(bytes[0]);
                        Ok(1)
                    }
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Hesitant(Vec::new(), 0);
        assert_eq!(put(&mut out, b"whole\n"), 0);
        assert_eq!(out.0, b"whole\n");
    }
}
