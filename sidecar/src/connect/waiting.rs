//! The calls that wait for a connection to one address, first come, first served; any of them may leave at any time.

use std::collections::{HashMap, VecDeque};

/// So many places of calls that have left are not worth tidying up.
const FEW: usize = 16;

/// Calls in the order in which they came. To join, to leave and to be the next takes the same time however many wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// `None` is the place of a call that has left.
    queue: VecDeque<Option<u64>>,
    /// The number of each call's place, counted since the first that there ever was.
    places: HashMap<u64, u64>,
    /// How many places have gone from the front.
    gone: u64,
}

impl Waiting {
    /// How many wait. Those that have left are none of them.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// A call waits behind all the others. One that waits already keeps its place.
    pub(super) fn join(&mut self, call: u64) {
        let place = self.gone + self.queue.len() as u64;
        self.places.entry(call).or_insert_with(|| {
            self.queue.push_back(Some(call));
            place
        });
    }

    /// A call waits no longer, if it did.
    pub(super) fn leave(&mut self, call: u64) {
        let Some(place) = self.places.remove(&call) else {
            return;
        };
        let at = usize::try_from(place - self.gone).ok();
        if let Some(left) = at.and_then(|at| self.queue.get_mut(at)) {
            *left = None;
        }
        // Each time that costs as much as there are places, half of them were left since the last time.
        if self.queue.len() > FEW + 2 * self.places.len() {
            let waiting = self.take_all();
            waiting.into_iter().for_each(|call| self.join(call));
        }
    }

    /// The one that has waited for longest waits no longer.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(place) = self.queue.pop_front() {
            self.gone += 1;
            if let Some(call) = place {
                self.places.remove(&call);
                return Some(call);
            }
        }
        None
    }

    /// Nobody waits any longer: all who did, in their order.
    pub(super) fn take_all(&mut self) -> Vec<u64> {
        self.places.clear();
        self.gone += self.queue.len() as u64;
        self.queue.drain(..).flatten().collect()
    }

    /// Such ones wait no longer; the others keep their order.
    pub(super) fn take(&mut self, is_such: impl Fn(u64) -> bool) -> Vec<u64> {
        let (taken, left): (Vec<_>, Vec<_>) = self.take_all().into_iter().partition(|call| is_such(*call));
        left.into_iter().for_each(|call| self.join(call));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(calls: impl IntoIterator<Item = u64>) -> Waiting {
        let mut waiting = Waiting::default();
        calls.into_iter().for_each(|call| waiting.join(call));
        waiting
    }

    #[test]
    fn those_that_stay_keep_their_order_whoever_leaves() {
        let mut waiting = of(0..10);
        for call in [0, 3, 9, 3, 77] {
            waiting.leave(call);
        }
        assert_eq!(waiting.len(), 7);
        // Who comes again comes behind the others; who is there already does not.
        waiting.join(3);
        waiting.join(1);
        assert_eq!(waiting.next(), Some(1));
        assert_eq!(waiting.take(|call| call % 2 == 0), [2, 4, 6, 8]);
        assert_eq!(waiting.take_all(), [5, 7, 3]);
        assert_eq!((waiting.len(), waiting.next()), (0, None));
    }

    #[test]
    fn places_that_were_left_are_given_back_also_behind_one_that_stays() {
        let mut waiting = of([0]);
        for call in 1..100_000 {
            waiting.join(call);
            if call > 10 {
                waiting.leave(call - 10);
            }
            assert!(
                waiting.queue.len() <= FEW + 2 * waiting.len(),
                "{}",
                waiting.queue.len()
            );
        }
        assert_eq!(
            waiting.take_all(),
            [[0].as_slice(), &(99_990..100_000).collect::<Vec<_>>()].concat()
        );
    }

    #[test]
    fn all_leave_in_a_time_that_grows_with_their_number_alone() {
        const MANY: u64 = 1_000_000;
        // Where each that leaves looks at all the others, this takes hours.
        let mut waiting = of(0..MANY);
        for call in (0..MANY).rev() {
            waiting.leave(call);
        }
        assert!(waiting.is_empty() && waiting.queue.len() <= FEW);
    }
}
