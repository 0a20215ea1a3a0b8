//! How many connections there may be, overall and from one address, and how many that have said nothing yet.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How much the door takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a handshake may take. 10 s by default.
    pub handshake: Duration,
    /// How many handshakes there may be at once; when one more comes the oldest makes room. 512 by default.
    pub handshakes: usize,
    /// How many connections there may be after the handshake. 4,096 by default.
    pub connections: usize,
    /// The same from one address. 512 by default.
    pub per_address: usize,
    /// How many streams a connection may have. 8 by default; a sidecar needs two.
    pub streams: u32,
    /// How long a connection without a certificate may be silent, and last in all. 10 s and 30 s by default.
    pub stranger: (Duration, Duration),
    /// How long one with a certificate may have no call. 5 min by default.
    pub idle: Duration,
    /// How often a silent connection is asked whether it lives, and how long it may take to say so. 30 s and 10 s.
    pub keep_alive: (Duration, Duration),
    /// How long connections may take to end when control stops. 10 s by default.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Limits {
            handshake: seconds(10),
            handshakes: 512,
            connections: 4_096,
            per_address: 512,
            streams: 8,
            stranger: (seconds(10), seconds(30)),
            idle: seconds(300),
            keep_alive: (seconds(30), seconds(10)),
            grace: seconds(10),
        }
    }
}

/// Counts who is in.
#[derive(Debug)]
pub struct Doorman {
    handshakes: usize,
    connections: usize,
    per_address: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    shaking: VecDeque<(u64, CancellationToken)>,
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A handshake that is counted until it is dropped.
#[derive(Debug)]
pub struct Shaking<'d> {
    doorman: &'d Doorman,
    id: u64,
    /// Cancelled when it must make room.
    pub room: CancellationToken,
}

/// A connection that is counted until it is dropped.
#[derive(Debug)]
pub struct Seat<'d> {
    doorman: &'d Doorman,
    address: IpAddr,
}

/// Why one does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are too many in all.
    House,
    /// There are too many from its address.
    Address,
}

impl Doorman {
    /// Nobody is in yet.
    pub fn new(limits: &Limits) -> Doorman {
        Doorman {
            handshakes: limits.handshakes,
            connections: limits.connections,
            per_address: limits.per_address,
            inside: Mutex::default(),
        }
    }

    /// A handshake begins; the oldest of too many ends.
    pub fn shake(&self) -> Shaking<'_> {
        let room = CancellationToken::new();
        let mut inside = self.inside.lock();
        let id = inside.next;
        inside.next += 1;
        if inside.shaking.len() >= self.handshakes
            && let Some((_, oldest)) = inside.shaking.pop_front()
        {
            oldest.cancel();
        }
        inside.shaking.push_back((id, room.clone()));
        Shaking {
            doorman: self,
            id,
            room,
        }
    }

    /// A connection comes in after its handshake.
    ///
    /// # Errors
    /// When there are too many.
    pub fn seat(&self, address: IpAddr) -> Result<Seat<'_>, Full> {
        let mut inside = self.inside.lock();
        if inside.total >= self.connections {
            return Err(Full::House);
        }
        let of_address = inside.by_address.entry(address).or_default();
        if *of_address >= self.per_address {
            return Err(Full::Address);
        }
        *of_address += 1;
        inside.total += 1;
        Ok(Seat { doorman: self, address })
    }
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.doorman.inside.lock().shaking.retain(|(id, _)| *id != self.id);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut inside = self.doorman.inside.lock();
        inside.total -= 1;
        if let Some(of_address) = inside.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_handshake_makes_room_and_seats_are_given_back() {
        let limits = Limits {
            handshakes: 2,
            connections: 3,
            per_address: 2,
            ..Limits::default()
        };
        let doorman = Doorman::new(&limits);
        let (first, second) = (doorman.shake(), doorman.shake());
        let _third = doorman.shake();
        assert!(first.room.is_cancelled() && !second.room.is_cancelled());
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let held = [doorman.seat(a), doorman.seat(a)];
        assert_eq!(doorman.seat(a).err(), Some(Full::Address));
        let other = doorman.seat(b);
        assert!(other.is_ok());
        assert_eq!(doorman.seat(c).err(), Some(Full::House));
        drop(held);
        assert!(doorman.seat(a).is_ok());
        drop(other);
        assert!(doorman.inside.lock().by_address.is_empty());
    }
}
