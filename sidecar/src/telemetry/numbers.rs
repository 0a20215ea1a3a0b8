//! Numbers that one thread writes and the scrape reads.
//!
//! A handle can neither be sent to another thread nor shared with one, and every recorder has cells of its own. So a
//! cell has one writer, and counting needs no read-modify-write instruction.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What binds a handle to the thread that resolved it.
pub(super) type OneThread = PhantomData<*const ()>;

/// A number that only grows.
#[derive(Clone, Debug)]
pub struct Counter {
    cell: Arc<AtomicU64>,
    thread: OneThread,
}

impl Counter {
    /// Counts one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Counts `n`.
    #[inline]
    pub fn add(&self, n: u64) {
        bump(&self.cell, n);
    }

    /// What this recorder has counted so far.
    pub fn get(&self) -> u64 {
        self.cell.load(Relaxed)
    }
}

/// A number that goes up and down. What is scraped is the sum over all recorders.
#[derive(Clone, Debug)]
pub struct Gauge {
    cell: Arc<AtomicU64>,
    thread: OneThread,
}

impl Gauge {
    /// Adds `n`, which may be negative.
    #[inline]
    pub fn add(&self, n: i64) {
        bump(&self.cell, n as u64);
    }

    /// Sets this recorder's share.
    #[inline]
    pub fn set(&self, n: i64) {
        self.cell.store(n as u64, Relaxed);
    }

    /// This recorder's share.
    pub fn get(&self) -> i64 {
        self.cell.load(Relaxed) as i64
    }

    /// Counts one more for as long as what is returned lives.
    pub fn hold(&self) -> Held {
        self.add(1);
        Held { gauge: self.clone() }
    }
}

/// One of those that a [`Gauge`] counts; no longer counted once dropped.
#[derive(Debug)]
pub struct Held {
    gauge: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.add(-1);
    }
}

/// Adds to a cell that the calling thread alone writes. Wraps, so that a gauge may count down.
#[inline]
pub(super) fn bump(cell: &AtomicU64, n: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(n), Relaxed);
}

/// Makes a handle of a cell; only a recorder has cells to make handles of.
pub trait FromCell {
    /// The handle.
    #[doc(hidden)]
    fn from_cell(cell: Arc<AtomicU64>) -> Self;
}

impl FromCell for Counter {
    fn from_cell(cell: Arc<AtomicU64>) -> Self {
        Counter {
            cell,
            thread: PhantomData,
        }
    }
}

impl FromCell for Gauge {
    fn from_cell(cell: Arc<AtomicU64>) -> Self {
        Gauge {
            cell,
            thread: PhantomData,
        }
    }
}
