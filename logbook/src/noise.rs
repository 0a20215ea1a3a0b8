//! How many lines of the log one peer may cause: whoever fails without end must not hide what is said of others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::network;

/// Lines that a peer may cause within [`WHILE`].
const MOST_LINES: u64 = 100;
/// How long they are counted.
const WHILE: Duration = Duration::from_secs(10);
/// Peers that are remembered. With one more all are forgotten, which costs as many lines again.
const MOST_PEERS: usize = 1_024;

/// What peers have caused lately.
#[derive(Debug, Default)]
pub struct Noise(HashMap<IpAddr, Heard>);

#[derive(Debug)]
struct Heard {
    since: Instant,
    lines: u64,
}

/// A line that may be written, and what is to be said in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// So many lines of this peer's were left out before it, if any were.
    pub left_out: Option<u64>,
}

impl Noise {
    /// Whether a line of the log may be about this peer now.
    pub fn line(&mut self, peer: IpAddr, now: Instant) -> Option<Line> {
        let heard = &mut self.0;
        let peer = network(peer);
        if heard.len() >= MOST_PEERS && !heard.contains_key(&peer) {
            heard.clear();
        }
        let of_peer = heard.entry(peer).or_insert(Heard { since: now, lines: 0 });
        let mut left_out = None;
        if now.saturating_duration_since(of_peer.since) >= WHILE {
            left_out = of_peer.lines.checked_sub(MOST_LINES).filter(|left_out| *left_out > 0);
            *of_peer = Heard { since: now, lines: 0 };
        }
        of_peer.lines += 1;
        (of_peer.lines <= MOST_LINES).then_some(Line { left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noisy_peer_is_cut_short_and_others_are_heard() {
        let mut noise = Noise::default();
        let now = Instant::now();
        let [noisy, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let said = (0..1_000).filter_map(|_| noise.line(noisy, now)).count();
        assert_eq!(said as u64, MOST_LINES);
        assert_eq!(noise.line(other, now), Some(Line { left_out: None }));
        let later = noise.line(noisy, now + WHILE);
        assert_eq!(
            later,
            Some(Line { left_out: Some(900) }),
            "it is said how many were left out"
        );
        assert_eq!(noise.line(noisy, now + WHILE), Some(Line { left_out: None }));
        assert_eq!(noise.line(other, now + 2 * WHILE), Some(Line { left_out: None }));
    }

    #[test]
    fn all_addresses_of_a_network_of_ipv6_are_one_peer_and_the_table_does_not_grow() {
        let mut noise = Noise::default();
        let now = Instant::now();
        let said = (0..1_000_u16).filter_map(|last| noise.line([0xfd00, 0, 0, 0, 0, 0, 0, last].into(), now));
        assert_eq!(said.count() as u64, MOST_LINES);
        for number in 0..10_000_u32 {
            noise.line(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(noise.0.len() <= MOST_PEERS);
    }
}
