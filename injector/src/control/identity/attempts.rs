//! How often one address may try to join: a token bucket each, in a table of bounded size.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How many addresses are remembered.
const MOST_ADDRESSES: usize = 10_000;
/// How many failures may come at once.
const BURST: f64 = 20.0;
/// How long it takes until one more may fail.
const REFILL: Duration = Duration::from_secs(3);
/// What an attempt costs that succeeds: signing is work, and a token may be stolen.
const SUCCESS: f64 = 0.05;

/// What is remembered of those that tried.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<IpAddr, Bucket>>);

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Attempts {
    /// Whether an address may try now.
    pub fn may(&self, address: IpAddr, now: Instant) -> bool {
        let table = self.0.lock();
        table
            .get(&network(address))
            .is_none_or(|bucket| bucket.now(now).left >= 1.0)
    }

    /// An attempt failed.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        self.take(address, 1.0, now);
    }

    /// An attempt succeeded.
    pub fn succeeded(&self, address: IpAddr, now: Instant) {
        self.take(address, SUCCESS, now);
    }

    fn take(&self, address: IpAddr, cost: f64, now: Instant) {
        let mut table = self.0.lock();
        let address = network(address);
        if table.len() >= MOST_ADDRESSES && !table.contains_key(&address) {
            table.retain(|_, bucket| bucket.now(now).left < BURST);
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
        let full = Bucket { left: BURST, at: now };
        let bucket = table.entry(address).or_insert(full);
        *bucket = bucket.now(now);
        bucket.left = (bucket.left - cost).max(0.0);
    }
}

impl Bucket {
    fn now(self, now: Instant) -> Bucket {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        Bucket {
            left: (self.left + gained).min(BURST),
            at: now,
        }
    }
}

/// Whom an address is counted for: a host of IPv6 has a whole network of 2⁶⁴ addresses.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
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
            attempts.failed(bad, now);
        }
        assert!(!attempts.may(bad, now));
        assert!(attempts.may(IpAddr::from([10, 0, 0, 2]), now));
        assert!(attempts.may(bad, now + REFILL));
        let same = ["fd00::1", "fd00::ffff:1"].map(|text| text.parse::<IpAddr>().expect("an address"));
        for _ in 0..20 {
            attempts.failed(same[0], now);
        }
        assert!(!attempts.may(same[1], now));
    }

    #[test]
    fn the_table_does_not_grow() {
        let attempts = Attempts::default();
        let now = Instant::now();
        for number in 0..11_000_u32 {
            attempts.failed(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(attempts.0.lock().len() <= MOST_ADDRESSES);
    }
}
