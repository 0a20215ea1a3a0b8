//! How often a certificate may be renewed: a token bucket for it and for all that came from it, in a table of bounded size.
//!
//! An identity is no measure: replicas share one, and there may be hundreds of them. A sidecar renews the certificate that it
//! has, once; so one line of certificates, each got by the one before, is one sidecar. Were each certificate counted by
//! itself, whoever has one would get the next, with another budget.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Mark;
use super::bucket::{Bucket, Size};

/// How many renewals of one line may come at once, and how soon one more. A sidecar renews at 65 to 75 % of its certificate's
/// life, of a minute at least, and asks again after a failure in ever longer steps.
const SIZE: Size = Size {
    burst: 20.0,
    refill: Duration::from_secs(5),
};
/// How many certificates are remembered: two of each of as many sidecars as control serves, and more.
const MOST_CERTIFICATES: usize = 20_000;

/// What is remembered of those that were renewed.
#[derive(Debug, Default)]
pub struct Renewals(Mutex<HashMap<Mark, Line>>);

/// The budget of a line, shared by its certificates. It is touched under the lock of the table alone.
type Line = Arc<Mutex<Bucket>>;

impl Renewals {
    /// Whether a certificate may be renewed now; if so, that is counted.
    pub fn may(&self, certificate: Mark, now: Instant) -> bool {
        let mut table = self.0.lock();
        make_room(&mut table, certificate, now);
        let line = table.entry(certificate).or_insert_with(|| line(now));
        let mut bucket = line.lock();
        let may = bucket.has_one(now);
        if may {
            bucket.take(1.0, now);
        }
        may
    }

    /// A certificate was renewed by another, which is of the same line from now on.
    pub fn renewed(&self, certificate: Mark, by: Mark, now: Instant) {
        let mut table = self.0.lock();
        let line = table.get(&certificate).cloned().unwrap_or_else(|| line(now));
        make_room(&mut table, by, now);
        table.insert(by, line);
    }
}

fn line(now: Instant) -> Line {
    Arc::new(Mutex::new(Bucket::full(SIZE, now)))
}

/// Forgets lines that may do what a new one may; and where there is none, the certificate that was renewed longest ago.
fn make_room(table: &mut HashMap<Mark, Line>, newcomer: Mark, now: Instant) {
    if table.len() < MOST_CERTIFICATES || table.contains_key(&newcomer) {
        return;
    }
    table.retain(|_, line| !line.lock().is_full(now));
    if table.len() >= MOST_CERTIFICATES
        && let Some(oldest) = table
            .iter()
            .min_by_key(|(_, line)| line.lock().taken())
            .map(|(certificate, _)| *certificate)
    {
        table.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u64) -> Mark {
        number.to_be_bytes()
    }

    #[test]
    fn a_line_of_certificates_has_one_budget_whichever_of_them_is_shown() {
        let renewals = Renewals::default();
        let now = Instant::now();
        // Each is renewed by the next, as fast as can be.
        let mut got = 0;
        while renewals.may(mark(got), now) {
            renewals.renewed(mark(got), mark(got + 1), now);
            got += 1;
        }
        assert_eq!(got, 20);
        for old in 0..=got {
            assert!(!renewals.may(mark(old), now), "an old one has no budget of its own");
        }
        assert!(renewals.may(mark(100), now), "another line has its own");
        assert!(renewals.may(mark(3), now + SIZE.refill));
        assert!(
            !renewals.may(mark(got), now + SIZE.refill),
            "it was taken by one of the line"
        );
    }

    #[test]
    fn a_sidecar_that_renews_as_often_as_can_be_never_meets_the_limit() {
        let renewals = Renewals::default();
        let mut now = Instant::now();
        for number in 0..1_000 {
            // The shortest life is a minute, and it is asked for at 65 % of it; and then fails five times.
            now += Duration::from_secs(39);
            for _ in 0..6 {
                now += Duration::from_millis(200);
                assert!(renewals.may(mark(number), now));
            }
            renewals.renewed(mark(number), mark(number + 1), now);
        }
    }

    #[test]
    fn the_table_does_not_grow_and_those_that_are_busy_stay() {
        let renewals = Renewals::default();
        let now = Instant::now();
        for number in 0..30_000 {
            assert!(renewals.may(mark(number), now + Duration::from_millis(number)));
        }
        assert!(renewals.0.lock().len() <= MOST_CERTIFICATES);
        assert!(renewals.0.lock().contains_key(&mark(29_999)));
    }
}
