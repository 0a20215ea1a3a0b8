//! How often one address may try to join: a token bucket each, in a table of bounded size.
//!
//! A sidecar that was started before its Workload was written asks again and again with one token. That is no guessing: a
//! token that was refused already costs next to nothing, for as long as it is among the last that were.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portunus_logbook::network;

/// How many addresses are remembered.
const MOST_ADDRESSES: usize = 10_000;
/// How many failures may come at once.
const BURST: f64 = 20.0;
/// How long it takes until one more may fail.
const REFILL: Duration = Duration::from_secs(3);
/// What an attempt costs that succeeds: signing is work, and a token may be stolen.
const SUCCESS: f64 = 0.05;
/// What one costs that was refused before: it proves nothing now either, and teaches nobody anything.
const AGAIN: f64 = 0.01;
/// How many refused tokens of an address are remembered.
const MOST_REFUSED: usize = 32;
/// How many may wait for their Workloads at once, each of whom looks at every new state. Others are refused at once.
const MOST_WAITING: usize = 256;

/// What is remembered of those that tried.
#[derive(Debug, Default)]
pub struct Attempts {
    table: Mutex<HashMap<IpAddr, Bucket>>,
    waiting: AtomicUsize,
}

/// One that waits for its Workload, until it is dropped.
#[derive(Debug)]
pub struct Waiting<'a>(&'a AtomicUsize);

#[derive(Clone, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
    refused: VecDeque<Mark>,
}

/// The first bytes of a token's hash: what is remembered is no use to whoever reads it.
pub type Mark = [u8; 8];

/// Whether a token that failed is a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// It may be.
    New,
    /// It was refused before from the same address, not long ago.
    Again,
}

impl Attempts {
    /// Whether an address may try now.
    pub fn may(&self, address: IpAddr, now: Instant) -> bool {
        let table = self.table.lock();
        table
            .get(&network(address))
            .is_none_or(|bucket| bucket.left(now) >= 1.0)
    }

    /// An attempt failed, by a token with this mark; what is no token at all has none.
    pub fn failed(&self, address: IpAddr, mark: Option<Mark>, now: Instant) -> Guess {
        self.with(address, now, |bucket| {
            let guess = match mark {
                Some(mark) if bucket.refused.contains(&mark) => Guess::Again,
                Some(_) | None => Guess::New,
            };
            if let (Some(mark), Guess::New) = (mark, guess) {
                bucket.refused.truncate(MOST_REFUSED - 1);
                bucket.refused.push_front(mark);
            }
            bucket.take(match guess {
                Guess::New => 1.0,
                Guess::Again => AGAIN,
            });
            guess
        })
    }

    /// An attempt succeeded.
    pub fn succeeded(&self, address: IpAddr, now: Instant) {
        self.with(address, now, |bucket| bucket.take(SUCCESS));
    }

    /// A place to wait for a Workload in, if there is one.
    pub fn wait(&self) -> Option<Waiting<'_>> {
        let waiting = Waiting(&self.waiting);
        (self.waiting.fetch_add(1, Relaxed) < MOST_WAITING).then_some(waiting)
    }

    fn with<T>(&self, address: IpAddr, now: Instant, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut table = self.table.lock();
        let address = network(address);
        if table.len() >= MOST_ADDRESSES && !table.contains_key(&address) {
            table.retain(|_, bucket| bucket.left(now) < BURST);
        }
        if table.len() >= MOST_ADDRESSES
            && !table.contains_key(&address)
            && let Some(oldest) = table
                .iter()
                .min_by_key(|(_, bucket)| bucket.at)
                .map(|(address, _)| *address)
        {
            table.remove(&oldest);
        }
        let bucket = table.entry(address).or_insert_with(|| Bucket {
            left: BURST,
            at: now,
            refused: VecDeque::new(),
        });
        (bucket.left, bucket.at) = (bucket.left(now), now);
        change(bucket)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Bucket {
    fn left(&self, now: Instant) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        (self.left + gained).min(BURST)
    }

    fn take(&mut self, cost: f64) {
        self.left = (self.left - cost).max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_one_address_are_limited_and_forgiven_with_time() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let bad = IpAddr::from([10, 0, 0, 1]);
        for _ in 0..20 {
            assert!(attempts.may(bad, now));
            attempts.failed(bad, None, now);
        }
        assert!(!attempts.may(bad, now));
        assert!(attempts.may(IpAddr::from([10, 0, 0, 2]), now));
        assert!(attempts.may(bad, now + REFILL));
        let same = ["fd00::1", "fd00::ffff:1"].map(|text| text.parse::<IpAddr>().expect("an address"));
        for _ in 0..20 {
            attempts.failed(same[0], None, now);
        }
        assert!(!attempts.may(same[1], now));
    }

    #[test]
    fn a_token_that_is_shown_again_and_again_is_no_guess_and_guesses_between_are_limited_all_the_same() {
        let attempts = Attempts::default();
        let now = Instant::now();
        let waiting = IpAddr::from([10, 0, 0, 1]);
        let mark = |number: u64| Some(number.to_be_bytes());
        assert_eq!(attempts.failed(waiting, mark(0), now), Guess::New);
        for _ in 0..500 {
            assert!(attempts.may(waiting, now));
            assert_eq!(attempts.failed(waiting, mark(0), now), Guess::Again);
        }
        let other = IpAddr::from([10, 0, 0, 2]);
        assert_eq!(attempts.failed(other, mark(0), now), Guess::New, "elsewhere it is one");
        let mut heard = 0;
        while attempts.may(waiting, now) {
            heard += 1;
            assert_eq!(attempts.failed(waiting, mark(heard), now), Guess::New);
        }
        assert!(heard < 20, "{heard} guesses were heard");
        // Who guesses on makes himself forgotten, and is then new.
        let later = now + REFILL * 1_000;
        for number in 100..100 + MOST_REFUSED as u64 {
            attempts.failed(waiting, mark(number), later + REFILL * number as u32);
        }
        assert_eq!(attempts.failed(waiting, mark(0), later + REFILL * 200), Guess::New);
        assert_eq!(attempts.table.lock()[&waiting].refused.len(), MOST_REFUSED);
    }

    #[test]
    fn places_to_wait_in_are_few_and_given_back() {
        let attempts = Attempts::default();
        let mut waiting: Vec<_> = (0..MOST_WAITING)
            .map(|_| attempts.wait().expect("there is room"))
            .collect();
        for _ in 0..3 {
            assert!(attempts.wait().is_none());
        }
        waiting.pop();
        assert!(attempts.wait().is_some());
        drop(waiting);
        assert_eq!(attempts.waiting.load(Relaxed), 0);
    }

    #[test]
    fn the_table_does_not_grow() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..11_000_u32 {
            attempts.failed(IpAddr::from(number.to_be_bytes()), None, now);
        }
        assert!(attempts.table.lock().len() <= MOST_ADDRESSES);
    }
}
