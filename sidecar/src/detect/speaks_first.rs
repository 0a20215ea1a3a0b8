//! Remembers which destinations speak before their clients, so that their next clients need not wait out the silence.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{Guess, Settings};

/// A worker's memory of destinations that speak first; bounded in number and in time.
#[derive(Debug)]
pub struct SpeaksFirst {
    last_spoke: Mutex<HashMap<SocketAddr, Instant>>,
    most: usize,
    stays: Duration,
}

impl SpeaksFirst {
    /// Remembers nothing yet.
    pub fn new(settings: &Settings) -> SpeaksFirst {
        let last_spoke = Mutex::new(HashMap::new());
        SpeaksFirst {
            last_spoke,
            most: settings.most_remembered,
            stays: settings.remembered_for,
        }
    }

    /// Whether `destination` is to be dialled at once, without waiting for its client's silence.
    pub fn knows(&self, destination: SocketAddr, now: Instant) -> bool {
        let last_spoke = self.last_spoke.lock();
        last_spoke
            .get(&destination)
            .is_some_and(|spoke| now.saturating_duration_since(*spoke) < self.stays)
    }

    /// Learns from what was detected: a server that spoke first will again; one whose client did may have changed.
    pub fn learn(&self, destination: SocketAddr, guess: Guess, now: Instant) {
        match guess {
            Guess::ServerFirst => self.remember(destination, now),
            Guess::ClientFirst | Guess::ClientAfterSilence | Guess::ClientAfterSettings => {
                self.last_spoke.lock().remove(&destination);
            }
            Guess::Declared | Guess::ServerClosed | Guess::ClientClosed | Guess::Incomplete => {}
        }
    }

    fn remember(&self, destination: SocketAddr, now: Instant) {
        let mut last_spoke = self.last_spoke.lock();
        if last_spoke.len() >= self.most && !last_spoke.contains_key(&destination) {
            last_spoke.retain(|_, spoke| now.saturating_duration_since(*spoke) < self.stays);
            let oldest = last_spoke
                .iter()
                .min_by_key(|(_, spoke)| **spoke)
                .map(|(destination, _)| *destination);
            if let Some(oldest) = oldest.filter(|_| last_spoke.len() >= self.most) {
                last_spoke.remove(&oldest);
            }
        }
        last_spoke.insert(destination, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(most: usize) -> SpeaksFirst {
        SpeaksFirst::new(&Settings {
            most_remembered: most,
            ..Settings::default()
        })
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn a_destination_that_spoke_first_is_known_for_an_hour() {
        let (memory, now) = (memory(10), Instant::now());
        memory.learn(at(25), Guess::ServerFirst, now);
        assert!(memory.knows(at(25), now + Duration::from_secs(3_599)));
        assert!(!memory.knows(at(25), now + Duration::from_secs(3_600)));
        assert!(!memory.knows(at(26), now));
    }

    #[test]
    fn a_destination_whose_client_speaks_first_is_forgotten() {
        let (memory, now) = (memory(10), Instant::now());
        memory.learn(at(25), Guess::ServerFirst, now);
        memory.learn(at(25), Guess::ClientAfterSettings, now);
        assert!(!memory.knows(at(25), now));
    }

    #[test]
    fn the_oldest_makes_room_for_the_newest() {
        let (memory, now) = (memory(3), Instant::now());
        for second in 0..5u8 {
            memory.learn(
                at(second.into()),
                Guess::ServerFirst,
                now + Duration::from_secs(second.into()),
            );
        }
        let known: Vec<u16> = (0..5).filter(|&port| memory.knows(at(port), now)).collect();
        assert_eq!(known, [2, 3, 4]);
    }
}
