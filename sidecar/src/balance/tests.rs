//! Simulated callers and endpoints on a virtual clock.

mod unwell;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;

impl Balancer {
    /// An RPC goes to an endpoint; also to one that is gone.
    fn started(&mut self, key: EndpointKey) -> Call {
        let begun = self.begin(key, true);
        begun
            .and_then(|begun| begun.call)
            .unwrap_or(Call { key, answered: false })
    }
}

#[test]
fn equal_endpoints_share_10_000_calls_within_3_percent() {
    for callers in [1, 4, 100] {
        for seed in 0..10 {
            let mut town = Town::new(Settings::default(), seed, &[1, 1, 1]);
            town.call(callers, 10_000, |_, rng| busy_machine(rng, 300));
            for (endpoint, share) in town.shares() {
                let off = share - 1.0 / 3.0;
                assert!(
                    off.abs() <= 0.03,
                    "{callers} callers, seed {seed}: endpoint {endpoint} got {share:.3}"
                );
            }
        }
    }
}

#[test]
fn an_endpoint_ten_times_slower_gets_less_than_a_third_of_its_share() {
    for (callers, gap) in [(1, 0), (1, 50_000), (4, 0), (100, 0)] {
        for seed in 0..5 {
            let mut town = Town::new(Settings::default(), seed, &[1, 1, 1]);
            town.gap = Duration::from_micros(gap);
            town.call(callers, 3_000, |endpoint, rng| {
                busy_machine(rng, if endpoint == 2 { 3_000 } else { 300 })
            });
            let share = town.shares()[&2];
            assert!(
                share < 0.11,
                "{callers} callers every {gap} us, seed {seed}: the slow one got {share:.3}"
            );
        }
    }
}

#[test]
fn a_slow_endpoint_that_recovers_gets_its_share_back() {
    let mut town = Town::new(Settings::default(), 1, &[1, 1, 1]);
    town.call(8, 5_000, |endpoint, rng| {
        busy_machine(rng, if endpoint == 0 { 5_000 } else { 500 })
    });
    assert!(town.shares()[&0] < 0.11);
    town.call(8, 5_000, |_, rng| busy_machine(rng, 500));
    town.forget_calls();
    town.call(8, 10_000, |_, rng| busy_machine(rng, 500));
    assert!((town.shares()[&0] - 0.333).abs() < 0.04, "{:?}", town.shares());
}

#[test]
fn one_slow_answer_costs_an_endpoint_little() {
    let mut town = Town::new(Settings::default(), 2, &[1, 1, 1]);
    town.call(1, 1_000, |_, _| Duration::from_micros(300));
    let mut hiccup = true;
    town.forget_calls();
    town.call(1, 1_000, |endpoint, _| {
        let slow = endpoint == 0 && std::mem::take(&mut hiccup);
        Duration::from_micros(if slow { 100_000 } else { 300 })
    });
    assert!(town.shares()[&0] > 0.28, "{:?}", town.shares());
}

#[test]
fn shares_follow_weights() {
    for algorithm in [Algorithm::P2cEwma, Algorithm::RoundRobin] {
        for callers in [1, 60] {
            let settings = Settings {
                algorithm,
                ..Settings::default()
            };
            let mut town = Town::new(settings, 3, &[1, 3, 6]);
            // Each endpoint is as strong as its weight says.
            town.call(callers, 20_000, |_, _| Duration::from_millis(1));
            let shares = town.shares();
            for (endpoint, due) in [(0, 0.1), (1, 0.3), (2, 0.6)] {
                let share = shares[&endpoint];
                assert!(
                    (share - due).abs() < 0.03,
                    "{algorithm:?}, {callers} callers: {shares:?}"
                );
            }
        }
    }
}

#[test]
fn round_robin_takes_turns_exactly() {
    let settings = Settings {
        algorithm: Algorithm::RoundRobin,
        ..Settings::default()
    };
    let mut town = Town::new(settings, 4, &[1, 1, 1]);
    town.call(1, 9_999, |_, rng| busy_machine(rng, 300));
    assert!(
        town.shares().values().all(|share| (share - 1.0 / 3.0).abs() < 0.001),
        "{:?}",
        town.shares()
    );
}

#[test]
fn new_endpoints_carry_their_share_within_two_seconds_and_are_not_flooded() {
    for algorithm in [Algorithm::P2cEwma, Algorithm::RoundRobin] {
        let mut town = Town::new(
            Settings {
                algorithm,
                ..Settings::default()
            },
            5,
            &[1],
        );
        town.call(16, 5_000, |_, rng| busy_machine(rng, 4_000));
        town.scale(3);
        town.forget_calls();
        town.call_for(16, Duration::from_millis(200), |_, rng| busy_machine(rng, 4_000));
        let early = town.shares();
        assert!(
            early[&1] < 0.2 && early[&2] < 0.2,
            "{algorithm:?}: flooded at once: {early:?}"
        );
        town.call_for(16, Duration::from_millis(1_800), |_, rng| busy_machine(rng, 4_000));
        town.forget_calls();
        town.call_for(16, Duration::from_secs(4), |_, rng| busy_machine(rng, 4_000));
        for share in town.shares().values() {
            assert!((share - 1.0 / 3.0).abs() < 0.04, "{algorithm:?}: {:?}", town.shares());
        }
    }
}

#[test]
fn a_newcomer_is_not_flooded_because_those_who_bear_the_load_are_slow() {
    let mut town = Town::new(Settings::default(), 6, &[1]);
    let latency = |endpoint, rng: &mut StdRng| busy_machine(rng, if endpoint == 0 { 4_000 } else { 100 });
    town.call(16, 5_000, latency);
    town.scale(2);
    town.forget_calls();
    town.call_for(16, Duration::from_millis(200), latency);
    assert!(town.shares()[&1] < 0.25, "flooded at once: {:?}", town.shares());
    town.call_for(16, Duration::from_millis(1_800), latency);
    town.forget_calls();
    town.call_for(16, Duration::from_secs(1), latency);
    assert!(town.shares()[&1] > 0.8, "{:?}", town.shares());
}

#[test]
fn an_endpoint_that_fails_fast_does_not_look_fast() {
    let mut town = Town::new(Settings::default(), 6, &[1, 1, 1]);
    town.failing.insert(1);
    town.call(4, 10_000, |endpoint, rng| {
        if endpoint == 1 {
            Duration::from_micros(50)
        } else {
            busy_machine(rng, 500)
        }
    });
    assert!(town.shares()[&1] < 0.02, "{:?}", town.shares());
    town.failing.clear();
    // It was ejected, too.
    town.call_for(4, Duration::from_secs(35), |_, rng| busy_machine(rng, 5_000));
    town.forget_calls();
    town.call_for(4, Duration::from_secs(5), |_, rng| busy_machine(rng, 5_000));
    assert!(town.shares()[&1] > 0.28, "back again: {:?}", town.shares());
}

#[test]
fn a_killed_endpoint_is_out_after_one_failed_dial() {
    let mut town = Town::new(Settings::default(), 7, &[1, 1, 1, 1, 1]);
    town.call(8, 1_000, |_, rng| busy_machine(rng, 500));
    town.dead.insert(3);
    town.forget_calls();
    town.call_for(8, Duration::from_secs(10), |_, rng| busy_machine(rng, 500));
    assert_eq!(town.unreached, 0, "every call found another endpoint");
    assert_eq!(town.shares().get(&3), None);
    assert!(town.dials < 20, "{} dials of a dead endpoint in 10 s", town.dials);
    town.dead.clear();
    town.forget_calls();
    town.call_for(8, Duration::from_secs(12), |_, rng| busy_machine(rng, 500));
    town.forget_calls();
    town.call_for(8, Duration::from_secs(2), |_, rng| busy_machine(rng, 500));
    assert!(
        (town.shares()[&3] - 0.2).abs() < 0.03,
        "back again: {:?}",
        town.shares()
    );
}

#[test]
fn an_endpoint_that_hangs_catches_few_calls_before_that_is_noticed() {
    let mut town = Town::new(Settings::default(), 20, &[1; 5]);
    // 1,000 calls a second; those that it catches never come back within the test's time.
    town.gap = Duration::from_millis(200);
    town.call_for(200, Duration::from_secs(1), |_, rng| busy_machine(rng, 500));
    town.forget_calls();
    town.call_for(200, Duration::from_secs(5), |endpoint, rng| {
        if endpoint == 0 {
            Duration::from_secs(60)
        } else {
            busy_machine(rng, 500)
        }
    });
    let caught = town.calls[&0];
    assert!(caught <= 25, "{caught} of {} calls", town.calls.values().sum::<u64>());
}

#[test]
fn a_call_tries_every_endpoint_before_it_fails() {
    let mut town = Town::new(Settings::default(), 8, &[1; 5]);
    town.dead.extend(0..5);
    let now = town.now;
    let mut tried = Tried::default();
    for _ in 0..5 {
        let key = town.balancer.pick(now, &mut town.rng, &tried).expect("there is one");
        assert!(!tried.contains(key));
        town.balancer.dial_failed(key, now, &mut town.rng);
        tried.insert(key);
    }
    assert_eq!(
        town.balancer.pick(now, &mut town.rng, &tried),
        Err(NoEndpoint::AllTried { count: 5 })
    );
}

#[test]
fn when_all_are_dead_calls_fail_at_once_and_the_first_to_return_is_found_soon() {
    let mut town = Town::new(Settings::default(), 9, &[1; 5]);
    town.dead.extend(0..5);
    town.gap = Duration::from_millis(2);
    town.call_for(4, Duration::from_secs(30), |_, rng| busy_machine(rng, 500));
    assert!(town.shares().is_empty());
    assert!(town.dials <= 5 * 10 * 30 + 10, "{} dials in 30 s", town.dials);
    assert!(town.unreached > 10_000, "calls do not wait: {}", town.unreached);
    town.dead.remove(&4);
    let dead_until = town.now;
    let mut first = None;
    while first.is_none() && town.now < dead_until + Duration::from_secs(5) {
        town.call_for(4, Duration::from_millis(10), |_, rng| busy_machine(rng, 500));
        first = town.shares().contains_key(&4).then_some(town.now - dead_until);
    }
    assert!(
        first.is_some_and(|first| first <= Duration::from_millis(250)),
        "found after {first:?}"
    );
    let missed = town.unreached;
    town.call_for(4, Duration::from_secs(5), |_, rng| busy_machine(rng, 500));
    assert_eq!(town.unreached, missed, "no call fails once one endpoint is there");
}

#[test]
fn an_endpoint_after_back_off_is_tried_by_one_call_alone() {
    let mut town = Town::new(Settings::default(), 10, &[1, 1]);
    let key = town.key_of(0);
    town.balancer.dial_failed(key, town.now, &mut town.rng);
    town.now += Duration::from_millis(101);
    let mut picks = 0;
    for _ in 0..1_000 {
        let picked = town
            .balancer
            .pick(town.now, &mut town.rng, &Tried::default())
            .expect("there is one");
        picks += u32::from(picked == key);
    }
    assert_eq!(picks, 1);
    town.balancer.dial_ok(key, town.now);
    town.now += Duration::from_secs(2);
    let picked = |town: &mut Town| {
        town.balancer
            .pick(town.now, &mut town.rng, &Tried::default())
            .expect("there is one")
            == key
    };
    assert!((0..100).any(|_| picked(&mut town)));
}

#[test]
fn back_off_doubles_to_its_ceiling_and_starts_over_after_success() {
    let mut town = Town::new(Settings::default(), 11, &[1]);
    let key = town.key_of(0);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        town.balancer.dial_failed(key, town.now, &mut town.rng);
        let State::Backoff { until } = town.view(0).state else {
            panic!("not in back-off")
        };
        pauses.push(until - town.now);
        town.now = until;
    }
    for (failures, pause) in pauses.iter().enumerate() {
        let full = Duration::from_millis(100 << failures).min(Duration::from_secs(10));
        assert!(*pause <= full && *pause >= full / 2, "{pauses:?}");
    }
    town.balancer.dial_ok(key, town.now);
    town.balancer.dial_failed(key, town.now, &mut town.rng);
    let State::Backoff { until } = town.view(0).state else {
        panic!("not in back-off")
    };
    assert!(until - town.now <= Duration::from_millis(100));
}

#[test]
fn a_lower_priority_is_used_only_while_no_other_can_be_reached() {
    let mut town = Town::new(Settings::default(), 12, &[]);
    let specs = [(0, 10), (1, 10), (2, 20), (3, 20)];
    let specs = specs.map(|(at, priority)| EndpointSpec {
        addr: addr(at),
        weight: 1,
        priority,
    });
    town.balancer.update(&specs, town.now);
    let picked = |town: &mut Town, tried: &Tried| {
        let keys: HashSet<_> = (0..200)
            .filter_map(|_| town.balancer.pick(town.now, &mut town.rng, tried).ok())
            .collect();
        let mut ports: Vec<u16> = keys
            .iter()
            .filter_map(|key| Some(town.balancer.addr(*key)?.port()))
            .collect();
        ports.sort_unstable();
        ports
    };
    assert_eq!(picked(&mut town, &Tried::default()), [0, 1]);
    let mut tried = Tried::default();
    tried.insert(town.key_of(0));
    assert_eq!(picked(&mut town, &tried), [1]);
    tried.insert(town.key_of(1));
    assert_eq!(picked(&mut town, &tried), [2, 3]);
    for at in [0, 1] {
        let key = town.key_of(at);
        town.balancer.dial_failed(key, town.now, &mut town.rng);
    }
    assert_eq!(picked(&mut town, &Tried::default()), [2, 3]);
}

#[test]
fn a_removed_endpoint_takes_no_new_call_and_is_gone_after_its_last() {
    let mut town = Town::new(Settings::default(), 13, &[1, 1, 1]);
    let (busy, idle) = (town.key_of(0), town.key_of(1));
    let (one, other) = (town.balancer.started(busy), town.balancer.started(busy));
    let changes = town.scale_to(&[2]);
    assert_eq!(changes.draining, [busy]);
    assert_eq!(
        changes.gone,
        [Gone {
            key: idle,
            addr: addr(1)
        }]
    );
    for _ in 0..100 {
        assert_eq!(
            town.balancer.pick(town.now, &mut town.rng, &Tried::default()),
            Ok(town.key_of(2))
        );
    }
    assert_eq!(town.view(0).state, State::Draining);
    assert_eq!(town.finished(one, Outcome::Done).gone, None);
    let gone = town.finished(other, Outcome::Done).gone;
    assert_eq!(
        gone,
        Some(Gone {
            key: busy,
            addr: addr(0)
        })
    );
    assert_eq!(town.balancer.endpoints(town.now).count(), 1);
}

#[test]
fn an_address_that_returns_while_it_drains_is_the_same_endpoint() {
    let mut town = Town::new(Settings::default(), 14, &[1, 1]);
    let key = town.key_of(0);
    let call = town.balancer.started(key);
    town.scale_to(&[1]);
    let changes = town.scale_to(&[0, 1]);
    assert_eq!(
        changes,
        Changes {
            added: vec![key],
            ..Changes::default()
        }
    );
    assert_eq!(town.finished(call, Outcome::Done).gone, None);
    assert_eq!(town.balancer.addr(key), Some(addr(0)));
}

#[test]
fn a_key_of_a_gone_endpoint_never_means_its_successor() {
    let mut town = Town::new(Settings::default(), 15, &[1]);
    let old = town.key_of(0);
    town.scale_to(&[]);
    town.scale_to(&[7]);
    let new = town.key_of(7);
    assert_ne!(old, new);
    let mut call = town.balancer.started(old);
    town.balancer.answered(&mut call, Duration::from_secs(9), town.now);
    town.balancer.dial_failed(old, town.now, &mut town.rng);
    assert_eq!(town.finished(call, Outcome::Failed).gone, None);
    let view = town.view(7);
    assert_eq!((view.in_flight, view.state, view.latency), (0, State::Ready, None));
    assert_eq!(town.balancer.addr(old), None);
}

#[test]
fn a_stream_that_lives_for_hours_leaves_the_estimate_alone() {
    for outcome in [
        Outcome::Done,
        Outcome::Abandoned {
            waited: Duration::from_secs(4 * 3600),
        },
    ] {
        let mut town = Town::new(Settings::default(), 16, &[1, 1]);
        let key = town.key_of(0);
        let mut call = town.balancer.started(key);
        town.balancer.answered(&mut call, Duration::from_millis(2), town.now);
        town.balancer.answered(&mut call, Duration::from_secs(9), town.now);
        assert_eq!(
            town.view(0).latency,
            Some(Duration::from_millis(2)),
            "the first headers count, once"
        );
        town.now += Duration::from_secs(4 * 3600);
        town.finished(call, outcome);
        assert_eq!(town.view(0).latency, Some(Duration::from_millis(2)));
    }
}

#[test]
fn streams_are_spread_evenly() {
    for seed in 0..10 {
        let mut town = Town::new(Settings::default(), seed, &[1, 1, 1]);
        let streams: Vec<Call> = (0..30).map(|_| town.open_stream()).collect();
        let counts = [0, 1, 2].map(|at| town.view(at).in_flight);
        assert!(
            counts.iter().all(|count| (7..=13).contains(count)),
            "seed {seed}: {counts:?}"
        );
        assert_eq!(streams.len(), 30);
    }
}

#[test]
fn a_thousand_idle_streams_on_an_old_endpoint_do_not_send_everything_to_the_new() {
    let mut town = Town::new(Settings::default(), 19, &[1]);
    let streams: Vec<Call> = (0..1_000).map(|_| town.open_stream()).collect();
    town.scale(3);
    town.call_for(60, Duration::from_secs(2), |_, rng| busy_machine(rng, 4_000));
    town.forget_calls();
    town.call_for(60, Duration::from_secs(4), |_, rng| busy_machine(rng, 4_000));
    assert!(town.shares()[&0] > 0.2, "{:?}", town.shares());
    assert_eq!(town.view(0).in_flight as usize, streams.len());
}

#[test]
fn having_given_up_says_that_it_is_at_least_that_slow() {
    let mut town = Town::new(Settings::default(), 17, &[1, 1]);
    let key = town.key_of(0);
    for _ in 0..2 {
        let mut call = town.balancer.started(key);
        town.balancer.answered(&mut call, Duration::from_millis(1), town.now);
        town.finished(call, Outcome::Done);
    }
    for _ in 0..3 {
        let call = town.balancer.started(key);
        let waited = Duration::from_millis(100);
        town.finished(call, Outcome::Abandoned { waited });
    }
    let slow = town.view(0).latency.expect("it was heard of");
    assert!(slow > Duration::from_millis(10), "{slow:?}");
    let call = town.balancer.started(key);
    let waited = Duration::from_micros(10);
    town.finished(call, Outcome::Abandoned { waited });
    assert_eq!(town.view(0).latency, Some(slow), "giving up early says nothing");
}

#[test]
fn nothing_known_and_nothing_reachable_have_reasons() {
    let mut town = Town::new(Settings::default(), 18, &[]);
    let none = town.balancer.pick(town.now, &mut town.rng, &Tried::default());
    assert_eq!(none, Err(NoEndpoint::NoneKnown));
    town.scale_to(&[0]);
    let key = town.key_of(0);
    town.balancer.dial_failed(key, town.now, &mut town.rng);
    let Err(NoEndpoint::AllInBackoff { count: 1, retry_in, .. }) =
        town.balancer.pick(town.now, &mut town.rng, &Tried::default())
    else {
        panic!("must wait");
    };
    assert!(retry_in <= Duration::from_millis(100), "{retry_in:?}");
    town.now += retry_in;
    assert_eq!(town.balancer.pick(town.now, &mut town.rng, &Tried::default()), Ok(key));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Against a plain model of what runs where: counts never go wrong, picks are never draining or tried, stale keys
    /// change nothing.
    #[test]
    fn any_order_of_events_keeps_the_books(
        steps in prop::collection::vec((0u8..9, any::<u16>(), any::<u8>()), 1..400),
        round_robin in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let algorithm = if round_robin { Algorithm::RoundRobin } else { Algorithm::P2cEwma };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut now = Instant::now();
        let mut balancer = Balancer::new(Settings { algorithm, ..Settings::default() });
        let mut named: HashSet<SocketAddr> = HashSet::new();
        let mut running: BTreeMap<SocketAddr, Vec<Call>> = BTreeMap::new();
        let mut stale: Vec<EndpointKey> = Vec::new();
        for (step, a, b) in steps {
            now += Duration::from_millis(u64::from(b));
            let known: Vec<View> = balancer.endpoints(now).collect();
            let some = known.get(usize::from(a) % known.len().max(1)).map(|view| view.key);
            match (step, some) {
                (0, _) => {
                    let specs: Vec<_> = (0..8).filter(|at| a & (1 << at) != 0).map(|at| EndpointSpec {
                        addr: addr(at), weight: u32::from(b), priority: u16::from(b) % 2 * at % 3,
                    }).collect();
                    let changes = balancer.update(&specs, now);
                    named = specs.iter().map(|spec| spec.addr).collect();
                    for gone in changes.gone {
                        prop_assert!(!named.contains(&gone.addr));
                        prop_assert!(!running.contains_key(&gone.addr));
                        stale.push(gone.key);
                    }
                    for key in changes.draining {
                        prop_assert!(running.contains_key(&balancer.addr(key).expect("there is one")));
                    }
                }
                (1..=3, _) => {
                    let mut tried = Tried::default();
                    for (at, view) in known.iter().enumerate() {
                        if b & (1 << (at % 8)) != 0 && step == 2 {
                            tried.insert(view.key);
                        }
                    }
                    match balancer.pick(now, &mut rng, &tried) {
                        Ok(key) => {
                            let addr = balancer.addr(key).expect("there is one");
                            prop_assert!(!tried.contains(key));
                            prop_assert!(named.contains(&addr), "picked {} which is not named", addr);
                            running.entry(addr).or_default().push(balancer.started(key));
                        }
                        Err(NoEndpoint::NoneKnown) => prop_assert!(named.is_empty()),
                        Err(NoEndpoint::AllTried { count }) => {
                            prop_assert_eq!(count, named.len());
                            prop_assert!(known.iter().all(|view| tried.contains(view.key) || view.state == State::Draining));
                        }
                        Err(NoEndpoint::AllInBackoff { .. }) => {
                            let ready = |view: &&View| view.state == State::Ready && !tried.contains(view.key);
                            let known: Vec<View> = balancer.endpoints(now).collect();
                            prop_assert_eq!(known.iter().find(ready), None);
                        }
                        Err(NoEndpoint::NotServing { .. }) => prop_assert!(false, "nobody says so"),
                    }
                }
                (4, Some(key)) => balancer.dial_failed(key, now, &mut rng),
                (5, Some(key)) => balancer.dial_ok(key, now),
                (6 | 7, _) => {
                    let at = usize::from(a) % running.len().max(1);
                    let Some(addr) = running.keys().nth(at).copied() else { continue };
                    let calls = running.get_mut(&addr).expect("it was there");
                    let mut call = calls.swap_remove(usize::from(b) % calls.len());
                    let key = call.key();
                    if step == 6 {
                        balancer.answered(&mut call, Duration::from_micros(u64::from(a)), now);
                    }
                    if step == 6 && b & 1 == 0 {
                        calls.push(call);
                        continue;
                    }
                    let outcome = [
                        Outcome::Done, Outcome::Failed, Outcome::Unsent,
                        Outcome::Abandoned { waited: Duration::from_micros(u64::from(a)) },
                    ][usize::from(b / 2) % 4];
                    let gone = balancer.finished(call, outcome, now, &mut rng).gone;
                    if calls.is_empty() {
                        running.remove(&addr);
                    }
                    let should_go = !running.contains_key(&addr) && !named.contains(&addr);
                    prop_assert_eq!(gone, should_go.then_some(Gone { key, addr }));
                    stale.extend(gone.map(|gone| gone.key));
                }
                (8, _) => {
                    let Some(key) = stale.get(usize::from(a) % stale.len().max(1)).copied() else { continue };
                    let mut call = balancer.started(key);
                    balancer.answered(&mut call, Duration::from_secs(1), now);
                    balancer.dial_failed(key, now, &mut rng);
                    balancer.dial_ok(key, now);
                    let left = balancer.finished(call, Outcome::Failed, now, &mut rng);
                    prop_assert_eq!(left, Left::default());
                    let after: Vec<View> = balancer.endpoints(now).collect();
                    prop_assert_eq!(&after, &known);
                }
                _ => {}
            }
            prop_assert_eq!(balancer.len(), named.len());
            for view in balancer.endpoints(now) {
                prop_assert_eq!(view.in_flight, running.get(&view.addr).map_or(0, |calls| calls.len() as u32));
                prop_assert_eq!(view.state == State::Draining, !named.contains(&view.addr));
                prop_assert!(view.latency.is_none_or(|latency| latency < Duration::from_secs(60)));
            }
        }
    }
}

/// Callers and endpoints on a virtual clock.
struct Town {
    balancer: Balancer,
    rng: StdRng,
    now: Instant,
    /// How long a caller waits between its calls.
    gap: Duration,
    /// Endpoints that refuse connections.
    dead: HashSet<u16>,
    /// Endpoints that fail every call.
    failing: HashSet<u16>,
    /// Endpoints that a connection stands to.
    connected: HashSet<EndpointKey>,
    calls: BTreeMap<u16, u64>,
    dials: u64,
    unreached: u64,
}

impl Town {
    fn new(settings: Settings, seed: u64, weights: &[u32]) -> Self {
        let mut balancer = Balancer::new(settings);
        let now = Instant::now();
        let specs: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(at, weight)| EndpointSpec {
                addr: addr(at as u16),
                weight: *weight,
                priority: 0,
            })
            .collect();
        balancer.update(&specs, now);
        Self {
            balancer,
            rng: StdRng::seed_from_u64(seed),
            now,
            gap: Duration::ZERO,
            dead: HashSet::new(),
            failing: HashSet::new(),
            connected: HashSet::new(),
            calls: BTreeMap::new(),
            dials: 0,
            unreached: 0,
        }
    }

    fn scale(&mut self, endpoints: u16) {
        self.scale_to(&(0..endpoints).collect::<Vec<_>>());
    }

    fn scale_to(&mut self, endpoints: &[u16]) -> Changes {
        let specs: Vec<_> = endpoints
            .iter()
            .map(|at| EndpointSpec {
                addr: addr(*at),
                weight: 1,
                priority: 0,
            })
            .collect();
        self.balancer.update(&specs, self.now)
    }

    fn view(&self, at: u16) -> View {
        self.balancer
            .endpoints(self.now)
            .find(|view| view.addr == addr(at))
            .expect("a known endpoint")
    }

    fn key_of(&self, at: u16) -> EndpointKey {
        self.view(at).key
    }

    fn forget_calls(&mut self) {
        self.calls.clear();
        self.dials = 0;
        self.unreached = 0;
    }

    fn shares(&self) -> BTreeMap<u16, f64> {
        let total: u64 = self.calls.values().sum();
        self.calls
            .iter()
            .map(|(at, calls)| (*at, *calls as f64 / total as f64))
            .collect()
    }

    fn call(&mut self, callers: usize, calls: u64, latency: impl FnMut(u16, &mut StdRng) -> Duration) {
        self.run(callers, calls, None, latency);
    }

    fn call_for(&mut self, callers: usize, time: Duration, latency: impl FnMut(u16, &mut StdRng) -> Duration) {
        self.run(callers, u64::MAX, Some(self.now + time), latency);
    }

    /// Each caller makes one call after the other.
    fn run(
        &mut self,
        callers: usize,
        calls: u64,
        until: Option<Instant>,
        mut latency: impl FnMut(u16, &mut StdRng) -> Duration,
    ) {
        let mut pending = BinaryHeap::new();
        let mut running: Vec<Option<(Call, u16, Duration)>> = (0..callers).map(|_| None).collect();
        // Callers that wait between calls do not call in step.
        let apart = (self.gap / callers as u32).max(Duration::from_micros(1));
        for caller in 0..callers {
            pending.push(Reverse((self.now + apart * caller as u32, caller)));
        }
        let mut made = 0;
        while let Some(Reverse((at, caller))) = pending.pop() {
            self.now = at;
            if let Some((mut call, endpoint, took)) = running[caller].take() {
                let outcome = if self.failing.contains(&endpoint) {
                    Outcome::Failed
                } else {
                    self.balancer.answered(&mut call, took, at);
                    Outcome::Done
                };
                self.balancer.finished(call, outcome, at, &mut self.rng);
                *self.calls.entry(endpoint).or_default() += 1;
                pending.push(Reverse((at + self.gap, caller)));
                continue;
            }
            if made >= calls || until.is_some_and(|until| at >= until) {
                continue;
            }
            made += 1;
            match self.reach() {
                Some((call, endpoint)) => {
                    let took = latency(endpoint, &mut self.rng);
                    running[caller] = Some((call, endpoint, took));
                    pending.push(Reverse((at + took, caller)));
                }
                None => {
                    self.unreached += 1;
                    let next = at + self.gap.max(Duration::from_micros(100));
                    pending.push(Reverse((next, caller)));
                }
            }
        }
    }

    fn reach(&mut self) -> Option<(Call, u16)> {
        let mut tried = Tried::default();
        loop {
            let key = self.balancer.pick(self.now, &mut self.rng, &tried).ok()?;
            let call = self.balancer.started(key);
            let endpoint = self.balancer.addr(key)?.port();
            if !self.dead.contains(&endpoint) {
                if self.connected.insert(key) {
                    self.balancer.dial_ok(key, self.now);
                }
                return Some((call, endpoint));
            }
            self.connected.remove(&key);
            self.dials += 1;
            self.balancer.dial_failed(key, self.now, &mut self.rng);
            self.finished(call, Outcome::Unsent);
            tried.insert(key);
        }
    }

    fn finished(&mut self, call: Call, outcome: Outcome) -> Left {
        self.balancer.finished(call, outcome, self.now, &mut self.rng)
    }

    /// A stream that is answered after a millisecond and goes on.
    fn open_stream(&mut self) -> Call {
        let (mut call, _) = self.reach().expect("an endpoint");
        self.now += Duration::from_millis(1);
        self.balancer.answered(&mut call, Duration::from_millis(1), self.now);
        call
    }
}

fn addr(at: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, at))
}

/// About `micros`, half more or less, and now and then a pause as a busy machine has them.
fn busy_machine(rng: &mut StdRng, micros: u64) -> Duration {
    let jitter = rng.random_range(0.6..1.5);
    let pause = if rng.random_bool(0.005) {
        rng.random_range(2_000..20_000)
    } else {
        0
    };
    Duration::from_micros((micros as f64 * jitter) as u64 + pause)
}
