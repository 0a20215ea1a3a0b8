//! The connections of a worker whose other ends have not said enough yet; when there are too many, the oldest goes.
//!
//! The oldest and not the newest: else whoever opens many silent connections keeps everybody else out.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Counts the waiting connections of a worker and keeps their number below a bound.
#[derive(Debug)]
pub struct Waiting {
    queue: Arc<Mutex<Queue>>,
    most: usize,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    places: BTreeMap<u64, Arc<Notify>>,
}

impl Waiting {
    /// Nobody waits yet; no more than `most` ever will, and one at least.
    pub fn new(most: usize) -> Waiting {
        Waiting {
            queue: Arc::default(),
            most: most.max(1),
        }
    }

    /// How many connections wait now.
    pub fn count(&self) -> usize {
        self.queue.lock().places.len()
    }

    /// Takes a place, which ends when dropped, or when somebody who came later needs it.
    pub(crate) fn enter(&self) -> Place {
        let mut queue = self.queue.lock();
        while queue.places.len() >= self.most
            && let Some((_, oldest)) = queue.places.pop_first()
        {
            oldest.notify_one();
        }
        let (number, leave) = (queue.next, Arc::new(Notify::new()));
        queue.next += 1;
        queue.places.insert(number, Arc::clone(&leave));
        Place {
            queue: Arc::clone(&self.queue),
            number,
            leave,
        }
    }
}

/// A place among those who wait.
pub(crate) struct Place {
    queue: Arc<Mutex<Queue>>,
    number: u64,
    leave: Arc<Notify>,
}

impl Place {
    /// Returns when the place is needed for somebody else.
    pub(crate) async fn needed(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.lock().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_too_many_sends_the_oldest_away() {
        let waiting = Waiting::new(2);
        let (first, second, third) = (waiting.enter(), waiting.enter(), waiting.enter());
        first.needed().await;
        assert_eq!(waiting.count(), 2);

        drop((first, second));
        assert_eq!(waiting.count(), 1);
        drop(third);
        assert_eq!(waiting.count(), 0);
    }
}
