//! Connections to one address, used by all who call it: a further one opens when the peer's stream limit is reached or
//! one drains.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::wire::{WireKey, Wires};
use crate::http2::slots::{Key, Slots};

/// The key of a pool.
pub type PoolKey = Key<Pool>;

/// Connections that one address gets from one worker at most.
const MOST_WIRES: usize = 64;
/// Calls that wait for a connection to one address at most.
const MOST_WAITING: usize = 10_000;
/// A peer may take this many resets for an attack: the connection is replaced before.
const RESETS_TO_REPLACE: u32 = 80;
/// Some take fewer, if they come right behind the request: servers on the h2 crate (tonic) end a connection with more than
/// 20 streams that were reset before the application had taken them.
const HASTY_RESETS_TO_REPLACE: u32 = 16;

/// Streams that a connection is expected to take, until the address has said how many.
const STREAMS_EACH: u32 = 100;

/// Connections to one address.
pub struct Pool {
    /// Where they lead.
    pub addr: SocketAddr,
    /// Whether that is the pod's own application.
    pub own: bool,
    wires: Vec<WireKey>,
    dialling: usize,
    waiting: VecDeque<u64>,
    /// Streams that its connections take at once, as one of them said.
    streams: Option<u32>,
}

/// How an address is reached.
#[derive(Debug, PartialEq, Eq)]
pub enum Reach {
    /// By this wire, now.
    Wire(WireKey),
    /// The call waits; somebody is dialling, or a stream will end.
    Wait,
    /// The call waits; a connection is to be dialled.
    Dial,
    /// Too many wait already.
    Full,
}

/// The pools of one worker.
#[derive(Default)]
pub struct Pools {
    pools: Slots<Pool>,
    by_key: HashMap<(bool, SocketAddr), PoolKey>,
    /// The one that was asked for last: mostly it is asked for again.
    last: Option<((bool, SocketAddr), PoolKey)>,
}

impl Pools {
    /// The pool of an address. Calls to the pod's own application (`own`) and to others never share one.
    pub fn of(&mut self, own: bool, addr: SocketAddr) -> PoolKey {
        if let Some((last, key)) = self.last
            && last == (own, addr)
            && self.pools.contains(key)
        {
            return key;
        }
        let key = self.find(own, addr);
        self.last = Some(((own, addr), key));
        key
    }

    /// The pool of an address, if there is one.
    pub fn known(&self, own: bool, addr: SocketAddr) -> Option<PoolKey> {
        self.by_key.get(&(own, addr)).copied()
    }

    fn find(&mut self, own: bool, addr: SocketAddr) -> PoolKey {
        *self.by_key.entry((own, addr)).or_insert_with(|| {
            self.pools.insert(Pool {
                addr,
                own,
                wires: Vec::new(),
                dialling: 0,
                waiting: VecDeque::new(),
                streams: None,
            })
        })
    }

    /// The pool, if it is there.
    pub fn get(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.get(key)
    }

    /// A wire with room for one more stream, or what is to be done to get one. A call that has to wait is remembered.
    #[inline(always)]
    pub fn reach(&mut self, key: PoolKey, call: u64, wires: &Wires) -> Reach {
        let Some(pool) = self.pools.get_mut(key) else {
            return Reach::Full;
        };
        if let Some(wire) = pool.usable(wires) {
            return Reach::Wire(wire);
        }
        if pool.waiting.len() >= MOST_WAITING {
            return Reach::Full;
        }
        pool.waiting.push_back(call);
        // One connection serves many calls: so many are dialled as those who wait are likely to need.
        let each = pool.streams.unwrap_or(STREAMS_EACH).clamp(1, STREAMS_EACH);
        let wanted = pool.waiting.len().div_ceil(each as usize);
        if pool.dialling < wanted && pool.lasting(wires) + pool.dialling < MOST_WIRES {
            pool.dialling += 1;
            return Reach::Dial;
        }
        Reach::Wait
    }

    /// A dialled connection is here.
    pub fn dialled(&mut self, key: PoolKey, wire: WireKey) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.dialling = pool.dialling.saturating_sub(1);
            pool.wires.push(wire);
        }
    }

    /// A connection said how many streams it takes: the next one is not given more before it has spoken.
    pub fn learn_streams(&mut self, key: PoolKey, streams: u32) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.streams = Some(streams);
        }
    }

    /// How many streams a connection is likely to take that has said nothing yet.
    pub fn likely_streams(&self, key: PoolKey) -> u32 {
        let said = self.pools.get(key).and_then(|pool| pool.streams);
        said.unwrap_or(STREAMS_EACH).clamp(1, STREAMS_EACH)
    }

    /// A dial failed: the calls that waited are returned, unless another dial or a wire may still serve them. (One that
    /// only waits for its last streams to end serves nobody.)
    pub fn dial_failed(&mut self, key: PoolKey, wires: &Wires) -> Vec<u64> {
        let Some(pool) = self.pools.get_mut(key) else {
            return Vec::new();
        };
        pool.dialling = pool.dialling.saturating_sub(1);
        if pool.dialling > 0 || pool.lasting(wires) > 0 {
            return Vec::new();
        }
        pool.waiting.drain(..).collect()
    }

    /// A wire is gone.
    pub fn closed(&mut self, key: PoolKey, wire: WireKey) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.wires.retain(|w| *w != wire);
        }
    }

    /// Whether any call waits.
    pub fn is_awaited(&self, key: PoolKey) -> bool {
        self.pools.get(key).is_some_and(|pool| !pool.waiting.is_empty())
    }

    /// The next call that waits, if there is a wire for it now.
    pub fn next_waiting(&mut self, key: PoolKey, wires: &Wires) -> Option<u64> {
        let pool = self.pools.get_mut(key)?;
        if pool.waiting.is_empty() {
            return None;
        }
        pool.usable(wires)?;
        pool.waiting.pop_front()
    }

    /// Whether calls wait while nobody dials and no wire could take them: a dial is due, and counted.
    pub fn needs_dial(&mut self, key: PoolKey, wires: &Wires) -> bool {
        let Some(pool) = self.pools.get_mut(key) else {
            return false;
        };
        let needs = !pool.waiting.is_empty()
            && pool.dialling == 0
            && pool.usable(wires).is_none()
            && pool.lasting(wires) < MOST_WIRES;
        if needs {
            pool.dialling += 1;
        }
        needs
    }

    /// A call no longer waits.
    pub fn forget(&mut self, key: PoolKey, call: u64) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.waiting.retain(|waiting| *waiting != call);
        }
    }

    /// The wires of a pool.
    pub fn wires(&self, key: PoolKey) -> &[WireKey] {
        self.pools.get(key).map_or(&[], |pool| &pool.wires)
    }

    /// Removes a pool that nobody uses.
    pub fn remove_if_idle(&mut self, key: PoolKey) {
        if let Some(pool) = self.pools.get(key)
            && pool.wires.is_empty()
            && pool.dialling == 0
            && pool.waiting.is_empty()
        {
            self.by_key.remove(&(pool.own, pool.addr));
            self.pools.remove(key);
        }
    }
}

impl Pool {
    fn usable(&self, wires: &Wires) -> Option<WireKey> {
        let usable = |key: &WireKey| {
            let wire = wires.slots.get(*key);
            wire.is_some_and(|wire| wire.engine.has_capacity() && !is_worn(wire))
        };
        self.wires.iter().copied().find(usable)
    }

    /// How many connections there are, without those that only wait for their last streams to end.
    fn lasting(&self, wires: &Wires) -> usize {
        let lasts = |key: &&WireKey| {
            let wire = wires.slots.get(**key);
            wire.is_some_and(|wire| !wire.engine.is_draining() && !is_worn(wire))
        };
        self.wires.iter().filter(lasts).count()
    }
}

/// Whether a wire has sent so many resets that its peer may soon cut it for that.
pub fn is_worn(wire: &super::wire::Wire) -> bool {
    wire.engine.early_resets() >= RESETS_TO_REPLACE || wire.hasty_resets >= HASTY_RESETS_TO_REPLACE
}
