//! How many connections there may be, overall, from one network and of one identity, and how many that have said nothing yet.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use portunus_logbook::network;
use portunus_proto::SpiffeId;
use tokio_util::sync::CancellationToken;

use crate::control::tally::Tally;

/// How much the door takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a handshake may take. 10 s by default.
    pub handshake: Duration,
    /// How many handshakes there may be at once; when one more comes, the network that has most makes room. 512 by default.
    pub handshakes: usize,
    /// The same of connections without a certificate, after their handshake. 512 by default.
    pub strangers: usize,
    /// How many connections with a certificate there may be. 4,096 by default.
    pub connections: usize,
    /// The same from one network: an address, or a /64 of IPv6. 2,048 by default: a mesh may live in one, or be
    /// behind one; half of the seats are left to others.
    pub per_network: usize,
    /// The same of one identity. 2,048 by default: replicas share one, and there may be hundreds of them; but whoever has one
    /// certificate leaves half of the seats to others, wherever it comes from.
    pub per_identity: usize,
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
            strangers: 512,
            connections: 4_096,
            per_network: 2_048,
            per_identity: 2_048,
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
    connections: usize,
    per_network: usize,
    per_identity: usize,
    inside: Mutex<Inside>,
}

#[derive(Debug)]
struct Inside {
    shaking: Crowd,
    strangers: Crowd,
    members: usize,
    by_network: Tally<IpAddr>,
    by_identity: Tally<SpiffeId>,
}

/// Those who have proven nothing. When one more than may be comes, the network that has most of them loses its oldest: whoever
/// comes alone is not pushed out by a crowd of one origin.
#[derive(Debug)]
struct Crowd {
    most: usize,
    next: u64,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    network: IpAddr,
    room: CancellationToken,
}

/// One of a crowd, counted until it is dropped.
#[derive(Debug)]
pub struct Place<'d> {
    doorman: &'d Doorman,
    crowd: fn(&mut Inside) -> &mut Crowd,
    id: u64,
    /// Cancelled when it must make room.
    pub room: CancellationToken,
}

/// A connection with a certificate, counted until it is dropped.
#[derive(Debug)]
pub struct Seat<'d> {
    doorman: &'d Doorman,
    network: IpAddr,
    identity: SpiffeId,
}

/// Why one does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There are too many in all.
    House,
    /// There are too many from its network.
    Network,
    /// There are too many of its identity.
    Identity,
}

impl Doorman {
    /// Nobody is in yet.
    pub fn new(limits: &Limits) -> Doorman {
        Doorman {
            connections: limits.connections,
            per_network: limits.per_network,
            per_identity: limits.per_identity,
            inside: Mutex::new(Inside {
                shaking: Crowd::new(limits.handshakes),
                strangers: Crowd::new(limits.strangers),
                members: 0,
                by_network: Tally::default(),
                by_identity: Tally::default(),
            }),
        }
    }

    /// A handshake begins; one of too many ends.
    pub fn shake(&self, address: IpAddr) -> Place<'_> {
        self.place(address, |inside| &mut inside.shaking)
    }

    /// A connection comes in that showed no certificate; one of too many ends.
    pub fn let_in(&self, address: IpAddr) -> Place<'_> {
        self.place(address, |inside| &mut inside.strangers)
    }

    fn place(&self, address: IpAddr, crowd: fn(&mut Inside) -> &mut Crowd) -> Place<'_> {
        let (id, room) = crowd(&mut self.inside.lock()).enter(network(address));
        Place {
            doorman: self,
            crowd,
            id,
            room,
        }
    }

    /// A connection comes in that has proven who it is.
    ///
    /// # Errors
    /// When there are too many.
    pub fn seat(&self, address: IpAddr, identity: &SpiffeId) -> Result<Seat<'_>, Full> {
        let (network, identity) = (network(address), identity.clone());
        let mut inside = self.inside.lock();
        if inside.members >= self.connections {
            return Err(Full::House);
        }
        if inside.by_network.of(&network) >= self.per_network {
            return Err(Full::Network);
        }
        if inside.by_identity.of(&identity) >= self.per_identity {
            return Err(Full::Identity);
        }
        inside.members += 1;
        inside.by_network.add(network);
        inside.by_identity.add(identity.clone());
        Ok(Seat {
            doorman: self,
            network,
            identity,
        })
    }
}

impl Crowd {
    fn new(most: usize) -> Crowd {
        Crowd {
            most,
            next: 0,
            waiting: VecDeque::new(),
        }
    }

    fn enter(&mut self, network: IpAddr) -> (u64, CancellationToken) {
        if self.waiting.len() >= self.most
            && let Some(leaves) = self.leaves()
            && let Some(left) = self.waiting.remove(leaves)
        {
            left.room.cancel();
        }
        let (id, room) = (self.next, CancellationToken::new());
        self.next += 1;
        self.waiting.push_back(Waiting {
            id,
            network,
            room: room.clone(),
        });
        (id, room)
    }

    /// Who makes room: the oldest of the network that has most, or of all where several have as many.
    fn leaves(&self) -> Option<usize> {
        let mut of_network = HashMap::<IpAddr, usize>::new();
        for waiting in &self.waiting {
            *of_network.entry(waiting.network).or_default() += 1;
        }
        let most = of_network.values().max()?;
        self.waiting
            .iter()
            .position(|waiting| of_network.get(&waiting.network) == Some(most))
    }

    fn leave(&mut self, id: u64) {
        self.waiting.retain(|waiting| waiting.id != id);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        (self.crowd)(&mut self.doorman.inside.lock()).leave(self.id);
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut inside = self.doorman.inside.lock();
        inside.members -= 1;
        inside.by_network.remove(&self.network);
        inside.by_identity.remove(&self.identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(account: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://mesh.test/ns/shop/sa/{account}")).expect("it is one")
    }

    #[test]
    fn seats_are_given_back() {
        let limits = Limits {
            connections: 3,
            per_network: 2,
            ..Limits::default()
        };
        let doorman = Doorman::new(&limits);
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        let seat = |address| doorman.seat(address, &id("greeter"));
        let held = [seat(a), seat(a)];
        assert_eq!(seat(a).err(), Some(Full::Network));
        let other = seat(b);
        assert!(other.is_ok());
        assert_eq!(seat(c).err(), Some(Full::House));
        drop(held);
        assert!(seat(a).is_ok());
        drop(other);
        let inside = doorman.inside.lock();
        assert!(inside.by_network.is_empty() && inside.by_identity.is_empty());
    }

    #[test]
    fn neither_a_network_nor_an_identity_takes_the_seats_of_all() {
        let limits = Limits::default();
        let doorman = Doorman::new(&limits);
        let (greedy, other) = (id("greedy"), id("other"));
        let address = |network: u16, host: u16| IpAddr::from([0xfd00, 0, 0, network, 0, 0, 0, host]);
        // As many addresses of one network as it likes.
        let mut held = Vec::new();
        let refused = (0..5_000).find_map(|host| {
            doorman
                .seat(address(1, host), &greedy)
                .map(|seat| held.push(seat))
                .err()
        });
        assert_eq!((refused, held.len()), (Some(Full::Network), limits.per_network));
        // And as many networks.
        let refused = (2..5_000).find_map(|network| {
            doorman
                .seat(address(network, 1), &greedy)
                .map(|seat| held.push(seat))
                .err()
        });
        assert_eq!((refused, held.len()), (Some(Full::Identity), limits.per_identity));
        // A hundred others, at one address.
        let others: Vec<_> = (0..100).map(|_| doorman.seat(address(5_001, 1), &other)).collect();
        assert!(others.iter().all(Result::is_ok));
        assert!(limits.per_identity <= limits.connections / 2);
    }

    #[test]
    fn a_crowd_of_one_network_pushes_out_its_own_and_nobody_who_comes_alone() {
        let limits = Limits {
            handshakes: 4,
            strangers: 4,
            ..Limits::default()
        };
        let doorman = Doorman::new(&limits);
        let alone = IpAddr::from([10, 0, 0, 1]);
        // As many addresses of one network of IPv6 as it likes.
        let crowd = |number: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 1, number]);
        for enter in [Doorman::shake, Doorman::let_in] {
            let innocent = enter(&doorman, alone);
            let flood: Vec<_> = (0..20).map(|number| enter(&doorman, crowd(number))).collect();
            assert!(!innocent.room.is_cancelled());
            let stayed: Vec<_> = flood.iter().map(|place| !place.room.is_cancelled()).collect();
            assert_eq!(stayed.iter().filter(|stayed| **stayed).count(), 3);
            assert!(stayed.ends_with(&[true; 3]), "the oldest leave");
            let late = enter(&doorman, IpAddr::from([10, 0, 0, 2]));
            drop(flood);
            assert!(!innocent.room.is_cancelled() && !late.room.is_cancelled());
        }
        let inside = doorman.inside.lock();
        assert!(inside.shaking.waiting.is_empty() && inside.strangers.waiting.is_empty());
    }

    #[test]
    fn the_oldest_of_many_makes_room_where_all_come_alone() {
        let limits = Limits {
            handshakes: 2,
            ..Limits::default()
        };
        let doorman = Doorman::new(&limits);
        let [first, second, _third] = [1, 2, 3].map(|last| doorman.shake(IpAddr::from([10, 0, 0, last])));
        assert!(first.room.is_cancelled() && !second.room.is_cancelled());
    }
}
