//! How long this machine lets nobody run: by so much may anything be late here, and it is nobody's fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Watches, until it drops.
pub struct Pauses {
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Pauses {
    /// Begins to watch.
    pub fn watch() -> Pauses {
        let pauses = Pauses {
            longest: Arc::default(),
            over: Arc::default(),
        };
        let (longest, over) = (pauses.longest.clone(), pauses.over.clone());
        thread::spawn(move || {
            while !over.load(Relaxed) {
                let began = Instant::now();
                thread::sleep(NAP);
                let late = began.elapsed().saturating_sub(NAP);
                longest.fetch_max(late.as_micros() as u64, Relaxed);
            }
        });
        pauses
    }

    /// The longest since it began, or since this was asked last.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Relaxed))
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
    }
}

const NAP: Duration = Duration::from_millis(2);
