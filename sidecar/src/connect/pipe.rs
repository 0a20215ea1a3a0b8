//! A pipe: bytes in memory, both ways, between a wire and a handle in this process. Bounded, and without memory of its
//! own while nothing waits in it.

use std::io;
use std::mem;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;

/// Bytes that may wait each way: half of what a worker reads in a turn.
const MOST: usize = 64 << 10;

/// One end of a pipe. When it is dropped, the other end reads what was written before, and then the end.
pub struct Pipe {
    inward: Arc<Mutex<Lane>>,
    outward: Arc<Mutex<Lane>>,
}

/// One way through a pipe.
#[derive(Default)]
struct Lane {
    bytes: BytesMut,
    /// Whether one of the ends is gone.
    is_closed: bool,
    /// Whom to wake when there is something to read, or somebody has gone.
    reader: Option<Waker>,
    /// Whom to wake when there is room, or somebody has gone.
    writer: Option<Waker>,
}

impl Pipe {
    /// A new pipe, of which each end is as good as the other.
    pub fn pair() -> (Pipe, Pipe) {
        let (there, back) = (Arc::<Mutex<Lane>>::default(), Arc::<Mutex<Lane>>::default());
        let near = Pipe {
            inward: back.clone(),
            outward: there.clone(),
        };
        let far = Pipe {
            inward: there,
            outward: back,
        };
        (near, far)
    }

    /// Whether there are bytes to read, or the end; `waker` is woken once there are.
    pub fn is_readable(&self, waker: &Waker) -> bool {
        let mut lane = self.inward.lock();
        let is_readable = !lane.bytes.is_empty() || lane.is_closed;
        if !is_readable {
            lane.reader = Some(waker.clone());
        }
        is_readable
    }

    /// Moves bytes into `buffer`: `Some(0)` at the end, `None` if there is nothing now.
    pub fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        let mut lane = self.inward.lock();
        let n = lane.bytes.len().min(buffer.len());
        if n == 0 {
            return lane.is_closed.then_some(0);
        }
        lane.bytes.copy_to_slice(&mut buffer[..n]);
        if lane.bytes.is_empty() {
            lane.bytes = BytesMut::new();
        }
        let writer = lane.writer.take();
        drop(lane);
        wake(writer);
        Some(n)
    }

    /// Takes all that there is: nothing at the end, `None` if there is nothing now.
    pub fn take(&self) -> Option<BytesMut> {
        let mut lane = self.inward.lock();
        if lane.bytes.is_empty() && !lane.is_closed {
            return None;
        }
        let bytes = mem::take(&mut lane.bytes);
        let writer = lane.writer.take();
        drop(lane);
        wake(writer);
        Some(bytes)
    }

    /// Writes as much of `bytes` as there is room for; if there is none, `waker` is woken once there is.
    ///
    /// # Errors
    /// When the other end is gone.
    pub fn write(&self, bytes: &[u8], waker: &Waker) -> Poll<io::Result<usize>> {
        let mut lane = self.outward.lock();
        if lane.is_closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = bytes.len().min(MOST - lane.bytes.len());
        if n == 0 {
            lane.writer = Some(waker.clone());
            return Poll::Pending;
        }
        lane.bytes.extend_from_slice(&bytes[..n]);
        let reader = lane.reader.take();
        drop(lane);
        wake(reader);
        Poll::Ready(Ok(n))
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for lane in [&self.inward, &self.outward] {
            let mut lane = lane.lock();
            lane.is_closed = true;
            let waiting = [lane.reader.take(), lane.writer.take()];
            drop(lane);
            waiting.into_iter().for_each(wake);
        }
        // Nobody reads it any more; what was written to the other end is still to be read.
        self.inward.lock().bytes = BytesMut::new();
    }
}

/// Never under the lock: whoever is woken may come at once.
fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;

    use super::*;

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn waker() -> (Arc<Woken>, Waker) {
        let woken = Arc::<Woken>::default();
        (woken.clone(), woken.into())
    }

    fn write(pipe: &Pipe, bytes: &[u8]) -> usize {
        match pipe.write(bytes, Waker::noop()) {
            Poll::Ready(Ok(n)) => n,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bytes_come_out_as_they_went_in_both_ways() {
        let (one, other) = Pipe::pair();
        assert_eq!(write(&one, b"there"), 5);
        assert_eq!(write(&other, b"back"), 4);
        let mut buffer = [0; 3];
        assert_eq!(other.read(&mut buffer), Some(3));
        assert_eq!(&buffer, b"the");
        assert_eq!(other.take().expect("bytes"), b"re"[..]);
        assert_eq!(other.read(&mut buffer), None);
        assert!(other.take().is_none());
        assert_eq!(one.take().expect("bytes"), b"back"[..]);
    }

    #[test]
    fn a_reader_that_found_nothing_is_woken_by_the_next_bytes() {
        let (one, other) = Pipe::pair();
        let (woken, waker) = waker();
        assert!(!other.is_readable(&waker));
        write(&one, b"a");
        assert_eq!(woken.0.load(Relaxed), 1);
        write(&one, b"b");
        assert_eq!(woken.0.load(Relaxed), 1, "once, until it has looked again");
        assert!(other.is_readable(&waker));
    }

    #[test]
    fn a_full_pipe_takes_nothing_and_its_writer_is_woken_when_there_is_room() {
        let (one, other) = Pipe::pair();
        assert_eq!(write(&one, &[7; 2 * MOST]), MOST);
        let (woken, waker) = waker();
        assert!(one.write(b"more", &waker).is_pending());
        let mut buffer = [0; 100];
        assert_eq!(other.read(&mut buffer), Some(100));
        assert_eq!(woken.0.load(Relaxed), 1);
        assert_eq!(write(&one, &[7; 2 * MOST]), 100);
    }

    #[test]
    fn an_end_that_goes_wakes_the_other_which_reads_what_is_left_and_then_the_end() {
        let (one, other) = Pipe::pair();
        let (woken, waker) = waker();
        assert!(!other.is_readable(&waker));
        write(&one, b"last");
        write(&other, b"unheard");
        drop(one);
        assert_eq!(woken.0.load(Relaxed), 1);
        let mut buffer = [0; 10];
        assert_eq!(other.read(&mut buffer), Some(4));
        assert!(other.is_readable(&waker));
        assert_eq!(other.read(&mut buffer), Some(0));
        assert!(other.take().expect("the end").is_empty());
        assert!(matches!(other.write(b"x", &waker), Poll::Ready(Err(_))));
    }

    #[test]
    fn a_pipe_in_which_nothing_waits_has_no_memory() {
        let (one, other) = Pipe::pair();
        write(&one, &[1; 5_000]);
        assert_eq!(other.read(&mut [0; 5_000]), Some(5_000));
        write(&other, &[1; 5_000]);
        one.take();
        assert_eq!(
            other.inward.lock().bytes.capacity() + one.inward.lock().bytes.capacity(),
            0
        );
    }
}
