//! How often one address may try to join: a token bucket each, in a table of bounded size.
//!
//! A sidecar that was started before its Workload was written asks again and again with one token. That is no guessing: a
//! token that was refused already costs next to nothing, for as long as it is among the last that were.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portunus_logbook::network;

use super::Mark;
use super::bucket::{Bucket, Size};
use crate::control::tally::Tally;

/// How many addresses are remembered.
const MOST_ADDRESSES: usize = 10_000;
/// How many failures may come at once, and how long it takes until one more may.
const SIZE: Size = Size {
    burst: 20.0,
    refill: Duration::from_secs(3),
};
/// What an attempt costs that succeeds: signing is work, and a token may be stolen.
const SUCCESS: f64 = 0.05;
/// What one costs that was refused before: it proves nothing now either, and teaches nobody anything.
const AGAIN: f64 = 0.01;
/// How many refused tokens of an address are remembered.
const MOST_REFUSED: usize = 32;
/// How many may wait for their Workloads at once, each of whom looks at every new state. Others are refused at once.
const MOST_WAITING: usize = 256;
/// The same from one address: it has half as many tokens that are known to be refused, and replicas share one.
const MOST_WAITING_OF_ADDRESS: usize = 2 * MOST_REFUSED;

/// What is remembered of those that tried.
#[derive(Debug, Default)]
pub struct Attempts {
    table: Mutex<HashMap<IpAddr, Tried>>,
    waiting: Mutex<Tally<IpAddr>>,
}

/// One that waits for its Workload, until it is dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    all: &'a Mutex<Tally<IpAddr>>,
    network: IpAddr,
}

#[derive(Clone, Debug)]
struct Tried {
    bucket: Bucket,
    refused: VecDeque<Mark>,
}

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
            .is_none_or(|tried| tried.bucket.has_one(now))
    }

    /// An attempt failed, by a token with this mark; what is no token at all has none.
    pub fn failed(&self, address: IpAddr, mark: Option<Mark>, now: Instant) -> Guess {
        self.with(address, now, |tried| {
            let guess = match mark {
                Some(mark) if tried.refused.contains(&mark) => Guess::Again,
                Some(_) | None => Guess::New,
            };
            if let (Some(mark), Guess::New) = (mark, guess) {
                tried.refused.truncate(MOST_REFUSED - 1);
                tried.refused.push_front(mark);
            }
            let cost = match guess {
                Guess::New => 1.0,
                Guess::Again => AGAIN,
            };
            tried.bucket.take(cost, now);
            guess
        })
    }

    /// An attempt succeeded.
    pub fn succeeded(&self, address: IpAddr, now: Instant) {
        self.with(address, now, |tried| tried.bucket.take(SUCCESS, now));
    }

    /// A place to wait for a Workload in, if there is one for this address.
    pub fn wait(&self, address: IpAddr) -> Option<Waiting<'_>> {
        let network = network(address);
        let mut waiting = self.waiting.lock();
        if waiting.total() >= MOST_WAITING || waiting.of(&network) >= MOST_WAITING_OF_ADDRESS {
            return None;
        }
        waiting.add(network);
        let all = &self.waiting;
        Some(Waiting { all, network })
    }

    fn with<T>(&self, address: IpAddr, now: Instant, change: impl FnOnce(&mut Tried) -> T) -> T {
        let mut table = self.table.lock();
        let address = network(address);
        if table.len() >= MOST_ADDRESSES && !table.contains_key(&address) {
            table.retain(|_, tried| !tried.bucket.is_full(now));
        }
        if table.len() >= MOST_ADDRESSES
            && !table.contains_key(&address)
            && let Some(oldest) = table
                .iter()
                .min_by_key(|(_, tried)| tried.bucket.taken())
                .map(|(address, _)| *address)
        {
            table.remove(&oldest);
        }
        let tried = table.entry(address).or_insert_with(|| Tried {
            bucket: Bucket::full(SIZE, now),
            refused: VecDeque::new(),
        });
        change(tried)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.lock().remove(&self.network);
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
        assert!(attempts.may(bad, now + SIZE.refill));
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
        let later = now + SIZE.refill * 1_000;
        for number in 100..100 + MOST_REFUSED as u64 {
            attempts.failed(waiting, mark(number), later + SIZE.refill * number as u32);
        }
        assert_eq!(attempts.failed(waiting, mark(0), later + SIZE.refill * 200), Guess::New);
        assert_eq!(attempts.table.lock()[&waiting].refused.len(), MOST_REFUSED);
    }

    #[test]
    fn places_to_wait_in_are_few_and_given_back() {
        let attempts = Attempts::default();
        let address = |number: usize| IpAddr::from([10, 0, 0, number as u8]);
        let mut waiting: Vec<_> = (0..MOST_WAITING)
            .map(|number| attempts.wait(address(number)).expect("there is room"))
            .collect();
        for number in 0..3 {
            assert!(attempts.wait(address(number)).is_none());
        }
        waiting.pop();
        assert!(attempts.wait(address(0)).is_some());
        drop(waiting);
        assert!(attempts.waiting.lock().is_empty());
    }

    #[test]
    fn an_address_does_not_take_the_places_of_others() {
        let attempts = Attempts::default();
        let greedy = |host: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]);
        let waiting: Vec<_> = (0..1_000).map_while(|host| attempts.wait(greedy(host))).collect();
        assert_eq!(waiting.len(), MOST_WAITING_OF_ADDRESS);
        assert!(attempts.wait(IpAddr::from([10, 0, 0, 1])).is_some());
        drop(waiting);
        assert!(attempts.wait(greedy(0)).is_some());
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
