//! Connections to one address, used by all who call it: a further one opens when the peer's stream limit is reached or
//! one drains.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portunus_proto::SpiffeId;

use super::waiting::Waiting;
use super::wire::{WireKey, Wires};
use crate::slots::{Key, Slots};

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

/// How long dials may fail, while a connection stands that has no room, before the calls that wait for room are given up. Until
/// then one of its streams may end, and a server that was short of something may be well again.
const IN_VAIN: Duration = Duration::from_secs(1);
/// How long it takes after such a dial until the next.
const DIAL_AGAIN: Duration = Duration::from_millis(500);
/// Streams that a connection is expected to take, until the address has said how many.
const STREAMS_EACH: u32 = 100;

/// Connections to one address, of one kind.
///
/// ```text
///  state                   who waits                 who dials                       who is told
///  room                    nobody, once the turn     nobody                          nobody
///                          ends (Worker::serve)
///  full: wires stand,      those that come, 10,000   those that come: a dial for     nobody: a stream ends, or a dial
///  none has room           at most                   each `streams` that wait        brings a wire
///  full, and dials fail    the same                  one at a time, 500 ms after     all, once that has lasted for 1 s:
///                                                    the last one failed             Unreached::Full
///  empty: none stands, or  the same                  as where it is full; once one   all, when one fails and none else is
///  they only drain                                   failed, one at a time, at once  under way: Unreached::Gone
/// ```
///
/// "Dials fail" begins with a dial that failed, and ends with SETTINGS of any connection, or when a call comes where nobody
/// waits, 500 ms later or more. Its second counts from the first failure since calls wait, and since there was room last.
/// Whoever dials adds to `dialling`; `may_dial` knows the 500 ms, and that 64 wires are the most: with so many, calls wait for
/// a stream to end. For those that wait already, `needs_dial` is asked at each look, and at the end of each turn that touched a
/// wire of theirs: a dial is due to them only while none is under way.
pub struct Pool {
    /// Where they lead.
    pub addr: SocketAddr,
    /// How it is reached.
    pub via: Via,
    wires: Vec<WireKey>,
    dialling: usize,
    waiting: Waiting,
    /// That dials fail.
    in_vain: Option<InVain>,
    /// Streams that its connections take at once, as one of them said.
    streams: Option<u32>,
}

#[derive(Clone, Copy)]
struct InVain {
    /// The first that failed since the calls have waited that wait now, and since there was room last.
    since: Option<Instant>,
    /// The last that failed.
    last: Instant,
}

/// How an address is reached. Calls of different kinds never share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// In plain, as the pod's own application.
    Own,
    /// In plain, as somebody else.
    Plain,
    /// In mTLS, as whoever proves to be this.
    Mesh(SpiffeId),
}

impl Via {
    /// As the one who is known to be there: in mTLS if that is known, and nothing less then.
    pub fn of(identity: Option<SpiffeId>) -> Via {
        identity.map_or(Via::Plain, Via::Mesh)
    }
}

/// What there is to do for a call that needs a connection.
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

/// What it says of an address that a call came to nothing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// Not that it cannot be reached: a connection stands that has no room now, and no further one could be made.
    Full,
    /// That it cannot be reached, it or the application there.
    Gone,
}

/// The pools of one worker.
#[derive(Default)]
pub struct Pools {
    pools: Slots<Pool>,
    /// Those of an address: mostly one.
    by_addr: HashMap<SocketAddr, Vec<PoolKey>>,
    /// The one of the pod's own application that was asked for last: mostly it is asked for again.
    last: Option<(SocketAddr, PoolKey)>,
}

impl Pools {
    /// The pool of the pod's own application at an address.
    pub fn own(&mut self, addr: SocketAddr) -> PoolKey {
        if let Some((last, key)) = self.last
            && last == addr
            && self.pools.contains(key)
        {
            return key;
        }
        let key = self.of(addr, Via::Own);
        self.last = Some((addr, key));
        key
    }

    /// The pool of an address.
    pub fn of(&mut self, addr: SocketAddr, via: Via) -> PoolKey {
        let keys = self.by_addr.entry(addr).or_default();
        let is_it = |key: &&PoolKey| self.pools.get(**key).is_some_and(|pool| pool.via == via);
        if let Some(key) = keys.iter().find(is_it) {
            return *key;
        }
        let key = self.pools.insert(Pool {
            addr,
            via,
            wires: Vec::new(),
            dialling: 0,
            waiting: Waiting::default(),
            in_vain: None,
            streams: None,
        });
        keys.push(key);
        key
    }

    /// The pools of an address that are not the pod's own.
    pub fn at(&self, addr: SocketAddr) -> Vec<PoolKey> {
        let keys = self.by_addr.get(&addr).into_iter().flatten();
        let is_own = |key: &PoolKey| self.pools.get(*key).is_none_or(|pool| pool.via == Via::Own);
        keys.copied().filter(|key| !is_own(key)).collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pools.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pools.is_empty()
    }

    /// The pool, if it is there.
    pub fn get(&self, key: PoolKey) -> Option<&Pool> {
        self.pools.get(key)
    }

    /// A wire with room for one more stream, or what is to be done to get one. A call that has to wait is remembered; it waits
    /// behind those that do already, for whom there may be room since just now.
    #[inline(always)]
    pub fn reach(&mut self, key: PoolKey, call: u64, wires: &Wires, now: Instant) -> Reach {
        let Some(pool) = self.pools.get_mut(key) else {
            return Reach::Full;
        };
        let usable = pool.usable(wires);
        if let Some(wire) = usable
            && pool.waiting.is_empty()
        {
            return Reach::Wire(wire);
        }
        if pool.waiting.len() >= MOST_WAITING {
            return Reach::Full;
        }
        if pool.waiting.is_empty() {
            // What failed before that has nothing to do with this call, but that the next dial is not to come too soon.
            pool.in_vain = pool.in_vain.filter(|in_vain| since(in_vain.last, now) < DIAL_AGAIN);
            pool.has_hope_again();
        }
        pool.waiting.join(call);
        if usable.is_some() {
            return Reach::Wait;
        }
        // One connection serves many calls: so many are dialled as those who wait are likely to need.
        let each = pool.streams.unwrap_or(STREAMS_EACH).clamp(1, STREAMS_EACH);
        let wanted = match pool.in_vain {
            None => pool.waiting.len().div_ceil(each as usize),
            // One at a time: else the next would always be under way, and nobody be told what became of the last.
            Some(_) => 1,
        };
        if pool.dialling < wanted && pool.may_dial(wires, now) {
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
            pool.in_vain = None;
        }
    }

    /// How many streams a connection is likely to take that has said nothing yet.
    pub fn likely_streams(&self, key: PoolKey) -> u32 {
        let said = self.pools.get(key).and_then(|pool| pool.streams);
        said.unwrap_or(STREAMS_EACH).clamp(1, STREAMS_EACH)
    }

    /// A dial failed: the calls that waited are returned, unless another dial or a wire may still serve them. (One that
    /// only waits for its last streams to end serves nobody.)
    pub fn dial_failed(&mut self, key: PoolKey, wires: &Wires, now: Instant) -> Vec<u64> {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.dialling = pool.dialling.saturating_sub(1);
        }
        self.give_up(key, wires, now)
    }

    /// A connection came to nothing: the same. A wire without room may serve the calls that wait, once a stream there ends,
    /// but nobody knows when that is: they wait for it until dials have failed for a while, and no stream has ended.
    pub fn give_up(&mut self, key: PoolKey, wires: &Wires, now: Instant) -> Vec<u64> {
        let Some(pool) = self.pools.get_mut(key) else {
            return Vec::new();
        };
        let first = pool.in_vain.and_then(|in_vain| in_vain.since).unwrap_or(now);
        pool.in_vain = Some(InVain {
            since: Some(first),
            last: now,
        });
        let has_hope = pool.lasting(wires) > 0 && (since(first, now) < IN_VAIN || pool.usable(wires).is_some());
        if pool.dialling > 0 || has_hope {
            return Vec::new();
        }
        pool.waiting.take_all()
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

    /// The next call that waits, and a wire for it, if there is one now.
    pub fn next_waiting(&mut self, key: PoolKey, wires: &Wires) -> Option<(u64, WireKey)> {
        let pool = self.pools.get_mut(key)?;
        if pool.waiting.is_empty() {
            return None;
        }
        let wire = pool.usable(wires)?;
        // There is room from time to time: that is worth waiting for.
        pool.has_hope_again();
        Some((pool.waiting.next()?, wire))
    }

    /// Whether calls wait while nobody dials and no wire could take them, and a further connection may be dialled now: that is
    /// due, and counted.
    pub fn needs_dial(&mut self, key: PoolKey, wires: &Wires, now: Instant) -> bool {
        let Some(pool) = self.pools.get_mut(key) else {
            return false;
        };
        let is_stuck = !pool.waiting.is_empty() && pool.dialling == 0 && pool.usable(wires).is_none();
        let needs = is_stuck && pool.may_dial(wires, now);
        pool.dialling += usize::from(needs);
        needs
    }

    /// The pools that calls wait at, and where they lead: to be looked at from time to time, since a dial that was in vain is
    /// followed by another only in good time.
    pub fn awaited(&self) -> Vec<(PoolKey, SocketAddr)> {
        let awaited = self.pools.iter().filter(|(_, pool)| !pool.waiting.is_empty());
        awaited.map(|(key, pool)| (key, pool.addr)).collect()
    }

    /// The calls that wait and are such a one: they wait here no longer.
    pub fn take_waiting(&mut self, key: PoolKey, is_such: impl Fn(u64) -> bool) -> Vec<u64> {
        let pool = self.pools.get_mut(key);
        pool.map_or_else(Vec::new, |pool| pool.waiting.take(is_such))
    }

    /// What it says of the address that no connection came of a dial: nothing, while one stands that new calls may use
    /// once there is room.
    pub fn unreached(&self, key: PoolKey, wires: &Wires) -> Unreached {
        match self.pools.get(key).map_or(0, |pool| pool.lasting(wires)) {
            0 => Unreached::Gone,
            _ => Unreached::Full,
        }
    }

    /// A call no longer waits, if it did.
    pub fn forget(&mut self, key: PoolKey, call: u64) {
        if let Some(pool) = self.pools.get_mut(key) {
            pool.waiting.leave(call);
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
            let addr = pool.addr;
            self.pools.remove(key);
            if let Some(keys) = self.by_addr.get_mut(&addr) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.by_addr.remove(&addr);
                }
            }
        }
    }
}

impl Pool {
    fn usable(&self, wires: &Wires) -> Option<WireKey> {
        let usable = |key: &WireKey| {
            let wire = wires.slots.get(*key);
            wire.is_some_and(|wire| wire.engine.has_capacity() && !is_worn(wire))
        };
        // Mostly it is the first.
        match self.wires.first() {
            Some(first) if usable(first) => Some(*first),
            _ => self.wires.iter().copied().find(usable),
        }
    }

    /// Dials that failed until now say nothing of how long it is worth waiting for room.
    fn has_hope_again(&mut self) {
        if let Some(in_vain) = &mut self.in_vain {
            in_vain.since = None;
        }
    }

    /// Whether a further connection may be dialled now.
    fn may_dial(&self, wires: &Wires, now: Instant) -> bool {
        let lasting = self.lasting(wires);
        let in_good_time = self
            .in_vain
            .is_none_or(|in_vain| since(in_vain.last, now) >= DIAL_AGAIN);
        lasting + self.dialling < MOST_WIRES && (in_good_time || lasting == 0)
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

fn since(then: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(then)
}

/// Whether a wire has sent so many resets that its peer may soon cut it for that.
pub fn is_worn(wire: &super::wire::Wire) -> bool {
    let hasty = wire.server.as_ref().map_or(0, |server| server.resets.hasty());
    wire.engine.early_resets() >= RESETS_TO_REPLACE || hasty >= HASTY_RESETS_TO_REPLACE
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::super::pipe::Pipe;
    use super::super::wire::{Side, Transport};
    use super::*;
    use crate::http2::{Connection, Settings, StreamKey};

    /// A pool, and what its calls may meet.
    struct Town {
        pools: Pools,
        pool: PoolKey,
        wires: Wires,
        now: Instant,
    }

    impl Town {
        fn new() -> Town {
            let mut pools = Pools::default();
            Town {
                pool: pools.of(SocketAddr::from(([127, 0, 0, 1], 1)), Via::Plain),
                pools,
                wires: Wires::new(1 << 20),
                now: Instant::now(),
            }
        }

        fn reach(&mut self, call: u64) -> Reach {
            self.pools.reach(self.pool, call, &self.wires, self.now)
        }

        fn next_waiting(&mut self) -> Option<(u64, WireKey)> {
            self.pools.next_waiting(self.pool, &self.wires)
        }

        /// A connection that was dialled takes so many streams.
        fn connected(&mut self, streams: u32) -> WireKey {
            let settings = Arc::new(Settings::default());
            let mut engine = Connection::client(settings, false, self.now, &mut self.wires.shared);
            engine.expect_streams(streams);
            let (_, theirs) = Pipe::pair();
            let side = Side::Server { pool: self.pool };
            let peer = SocketAddr::from(([127, 0, 0, 1], 1));
            let pipe = Transport::Pipe(theirs);
            let wire = self.wires.insert(pipe, Vec::new(), engine, peer, side, self.now);
            self.pools.dialled(self.pool, wire);
            wire
        }

        fn open(&mut self, wire: WireKey) -> StreamKey {
            let wire = self.wires.slots.get_mut(wire).expect("it stands");
            wire.engine.open(0, false).expect("it has room")
        }

        fn end(&mut self, wire: WireKey, stream: StreamKey) {
            let (wire, shared) = self.wires.touch(wire).expect("it stands");
            wire.engine.reset(stream, crate::http2::Reason::CANCEL, shared);
        }
    }

    #[test]
    fn calls_are_told_that_dials_fail_however_many_calls_come_meanwhile() {
        const FAILS_AFTER: Duration = Duration::from_secs(1);
        for (streams, each) in [(None, Duration::from_millis(7)), (Some(1), Duration::from_millis(900))] {
            let mut town = Town::new();
            if let Some(streams) = streams {
                town.pools.learn_streams(town.pool, streams);
            }
            let (mut came, mut dials, mut told) = (Vec::new(), VecDeque::new(), 0);
            for call in 0..1_000 {
                town.now += each;
                while let Some(began) = dials.pop_front_if(|began| since(*began, town.now) >= FAILS_AFTER) {
                    let failed = began + FAILS_AFTER;
                    for call in town.pools.dial_failed(town.pool, &town.wires, failed) {
                        let waited = since(came[call as usize], failed);
                        assert!(waited <= 2 * FAILS_AFTER, "a call waited {waited:?}");
                        told += 1;
                    }
                }
                came.push(town.now);
                if town.reach(call) == Reach::Dial {
                    dials.push_back(town.now);
                }
            }
            assert!(told > 600, "{told} of 1,000 were told");
        }
    }

    /// A call waits for room beside a full connection, and every dial fails, so long after it began: how long it waits. It
    /// is asked twice a second, as the worker does, whether another dial is due.
    fn waits_in_vain(town: &mut Town, dials_take: Duration) -> Duration {
        let began = town.now;
        let mut dial = matches!(town.reach(7), Reach::Dial).then_some(began);
        loop {
            town.now += DIAL_AGAIN;
            assert!(since(began, town.now) < Duration::from_secs(600), "it waits for ever");
            if let Some(failed) = dial.map(|began| began + dials_take).filter(|at| *at <= town.now) {
                dial = None;
                if town.pools.dial_failed(town.pool, &town.wires, failed) == [7] {
                    return since(began, failed);
                }
            }
            if town.pools.needs_dial(town.pool, &town.wires, town.now) {
                dial = Some(town.now);
            }
        }
    }

    #[test]
    fn a_call_waits_for_room_until_dials_have_failed_for_a_while_however_long_they_take() {
        for (dials_take, most) in [(0, 2), (1_000, 4), (10_000, 22), (60_000, 122)] {
            let mut town = Town::new();
            assert_eq!(town.reach(1), Reach::Dial);
            let wire = town.connected(1);
            town.next_waiting();
            town.open(wire);
            let waited = waits_in_vain(&mut town, Duration::from_millis(dials_take));
            let right = IN_VAIN..=Duration::from_secs(most);
            assert!(
                right.contains(&waited),
                "{waited:?}, where a dial takes {dials_take} ms"
            );
            // Some time later another call waits as long: that dials failed before is no fault of its.
            for later in [1, 3, 60] {
                town.now += Duration::from_secs(later);
                let waited = waits_in_vain(&mut town, Duration::from_millis(dials_take));
                assert!(right.contains(&waited), "{waited:?}, {later} s later");
            }
        }
    }

    #[test]
    fn as_many_calls_wait_as_may_whoever_left_before() {
        let mut town = Town::new();
        for call in 0..2 * MOST_WAITING as u64 {
            assert_ne!(town.reach(call), Reach::Full, "the {call}th");
            if call % 2 == 0 {
                town.pools.forget(town.pool, call);
            }
        }
        assert_eq!(town.reach(1_000_000), Reach::Full);
        // One that never waited makes no room, and one that did makes it for one.
        town.pools.forget(town.pool, 0);
        assert_eq!(town.reach(1_000_000), Reach::Full);
        town.pools.forget(town.pool, 9_999);
        assert_eq!(town.reach(1_000_000), Reach::Wait);
        assert_eq!(town.reach(1_000_001), Reach::Full);
        let waiting = town.pools.take_waiting(town.pool, |_| true);
        assert_eq!(
            (waiting.len(), waiting.first(), waiting.last()),
            (MOST_WAITING, Some(&1), Some(&1_000_000))
        );
    }

    #[test]
    fn a_place_that_came_free_is_not_taken_before_those_that_wait_have_got_it() {
        let mut town = Town::new();
        assert_eq!(town.reach(1), Reach::Dial);
        let wire = town.connected(1);
        assert_eq!(town.next_waiting(), Some((1, wire)));
        let stream = town.open(wire);
        assert_eq!(town.reach(2), Reach::Dial);
        assert_eq!(town.next_waiting(), None);
        town.end(wire, stream);
        assert_eq!(town.reach(3), Reach::Wait);
        assert_eq!(town.next_waiting(), Some((2, wire)));
    }
}
