//! Whether every worker still turns, seen from the main thread.
//!
//! A worker that hangs holds its connections and answers nobody, and the kernel goes on giving it new ones. It cannot say
//! so itself: the main thread looks once a second whether its count of turns has moved. What is counted is looks, not
//! time: a process that was stopped, or a machine that slept, has one look late and not many in vain.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::crew::Opens;
use crate::admin::Condition;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// As many looks in vain mean that a worker hangs: ten times as long as an idle one takes for a turn.
const PATIENCE: u32 = 10;

/// Looks for as long as the process lives, and tells these conditions what it sees.
pub(super) async fn watch(opens: Opens, conditions: [Condition; 2]) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    loop {
        looks.tick().await;
        for change in watch.look(opens.turns()) {
            match change {
                Change::Hangs(worker) => error!("worker-{worker} hangs: its calls and connections stand still"),
                Change::TurnsAgain(worker) => info!("worker-{worker} turns again"),
            }
        }
        for condition in &conditions {
            match watch.sentence() {
                None => condition.met(),
                Some(sentence) => condition.unmet(sentence),
            }
        }
    }
}

/// What was seen of the workers so far.
#[derive(Debug, Default)]
struct Watch(Vec<Seen>);

/// What was seen of one.
#[derive(Debug, Default)]
struct Seen {
    turns: u64,
    /// Looks since then that saw no further turn.
    in_vain: u32,
}

/// What a look saw begin or end.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Hangs(usize),
    TurnsAgain(usize),
}

impl Watch {
    /// Takes how often each worker has turned by now.
    fn look(&mut self, turns: impl Iterator<Item = u64>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (worker, turns) in turns.enumerate() {
            if self.0.len() <= worker {
                self.0.push(Seen { turns, in_vain: 0 });
                continue;
            }
            let seen = &mut self.0[worker];
            if seen.turns == turns {
                seen.in_vain += 1;
                if seen.in_vain == PATIENCE {
                    changes.push(Change::Hangs(worker));
                }
                continue;
            }
            if seen.in_vain >= PATIENCE {
                changes.push(Change::TurnsAgain(worker));
            }
            *seen = Seen { turns, in_vain: 0 };
        }
        changes
    }

    /// Which workers hang, and for how long; nothing if none does.
    fn sentence(&self) -> Option<String> {
        let hangs = self.0.iter().enumerate().filter(|(_, seen)| seen.in_vain >= PATIENCE);
        let each: Vec<_> = hangs
            .map(|(worker, seen)| format!("worker-{worker} has not turned for {:?}", LOOK_EVERY * seen.in_vain))
            .collect();
        (!each.is_empty()).then(|| each.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_stands_still_for_ten_looks_hangs_and_the_others_do_not() {
        let mut watch = Watch::default();
        for look in 0..10 {
            assert_eq!(watch.look([look, 7, 2 * look].into_iter()), []);
            assert_eq!(watch.sentence(), None, "look {look}");
        }
        assert_eq!(watch.look([10, 7, 20].into_iter()), [Change::Hangs(1)]);
        assert_eq!(watch.sentence().as_deref(), Some("worker-1 has not turned for 10s"));
        assert_eq!(watch.look([11, 7, 22].into_iter()), [], "it is said once");
        assert_eq!(watch.sentence().as_deref(), Some("worker-1 has not turned for 11s"));
        for look in 12..30 {
            watch.look([11, 7, look].into_iter());
        }
        assert_eq!(
            watch.sentence().as_deref(),
            Some("worker-0 has not turned for 18s; worker-1 has not turned for 29s")
        );
        assert_eq!(watch.look([11, 8, 30].into_iter()), [Change::TurnsAgain(1)]);
        assert_eq!(watch.sentence().as_deref(), Some("worker-0 has not turned for 19s"));
    }

    #[test]
    fn one_turn_between_two_looks_is_enough() {
        let mut watch = Watch::default();
        for turns in 0..100 {
            assert_eq!(watch.look([turns / 9].into_iter()), []);
        }
        assert_eq!(watch.sentence(), None);
    }
}
