//! Endpoints that fail, hang, answer half, or say that they do not serve.

use super::*;
use crate::balance::{
    eject::Cause,
    health::{Finding, Lack, Says, Thresholds, Verdict, Why},
};

/// How an endpoint treats an RPC.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Answers(Duration),
    Fails,
    Hangs,
    /// Headers, and then nothing.
    Half,
}

const MS: Duration = Duration::from_millis(1);
const WELL: Does = Does::Answers(Duration::from_millis(2));
const NOT_SERVING: Finding = Finding::Refused(Says::NotServing);
const SILENT: Finding = Finding::Failed(Lack::Silent);

/// A service under steady load, whoever is slow: callers do not wait for each other.
struct Service {
    balancer: Balancer,
    rng: StdRng,
    now: Instant,
    running: Vec<Running>,
    picks: BTreeMap<u16, u64>,
    /// How long the answers took that came.
    took: Vec<Duration>,
    none: Vec<NoEndpoint>,
    turns: Vec<Turn>,
    ticks: u64,
}

struct Running {
    call: Call,
    began: Instant,
    does: Does,
    gives_up: Instant,
}

impl Service {
    fn new(seed: u64, endpoints: u16) -> Service {
        Service::with(Settings::default(), seed, endpoints)
    }

    fn with(settings: Settings, seed: u64, endpoints: u16) -> Service {
        let mut service = Service {
            balancer: Balancer::new(settings),
            rng: StdRng::seed_from_u64(seed),
            now: Instant::now(),
            running: Vec::new(),
            picks: BTreeMap::new(),
            took: Vec::new(),
            none: Vec::new(),
            turns: Vec::new(),
            ticks: 0,
        };
        service.scale(endpoints);
        service
    }

    fn scale(&mut self, endpoints: u16) {
        let specs: Vec<_> = (0..endpoints)
            .map(|at| EndpointSpec {
                addr: addr(at),
                weight: 1,
                priority: 0,
            })
            .collect();
        self.balancer.update(&specs, self.now);
    }

    fn key(&self, at: u16) -> EndpointKey {
        self.balancer.at(addr(at)).expect("it is known")
    }

    fn state(&self, at: u16) -> State {
        let mut views = self.balancer.endpoints(self.now);
        views.find(|view| view.addr == addr(at)).expect("it is known").state
    }

    fn is_ejected(&self, at: u16) -> bool {
        matches!(self.state(at), State::Ejected { .. })
    }

    fn found(&mut self, at: u16, finding: Finding) {
        let key = self.key(at);
        self.balancer.found(key, finding, Thresholds::default(), self.now);
    }

    fn pick(&mut self) -> Result<u16, NoEndpoint> {
        let key = self.balancer.pick(self.now, &mut self.rng, &Tried::default())?;
        Ok(self.balancer.addr(key).expect("it is known").port())
    }

    /// Which endpoints some hundred picks go to.
    fn picked(&mut self) -> Vec<u16> {
        let picked: std::collections::BTreeSet<_> = (0..300).filter_map(|_| self.pick().ok()).collect();
        picked.into_iter().collect()
    }

    /// One RPC that ends at once.
    fn one(&mut self, at: u16, outcome: Outcome) {
        let key = self.key(at);
        let mut call = self.balancer.started(key);
        if outcome == Outcome::Done {
            self.balancer.answered(&mut call, MS, self.now);
        }
        self.balancer.finished(call, outcome, self.now, &mut self.rng);
        self.look();
    }

    fn look(&mut self) {
        for running in &self.running {
            let owes = match running.does {
                Does::Answers(_) | Does::Hangs | Does::Half => true,
                Does::Fails => false,
            };
            if owes {
                self.balancer.sees(&running.call, self.now - running.began, self.now);
            }
        }
        self.balancer.looked(self.now, &mut self.rng);
        self.turns.extend(self.balancer.take_turns());
    }

    /// `rate` RPCs a second for so long; callers give up after `patience`.
    fn load(&mut self, time: Duration, rate: u64, patience: Duration, does: impl Fn(u16) -> Does) {
        self.picks.clear();
        self.took.clear();
        self.none.clear();
        for _ in 0..time.as_millis() {
            self.now += MS;
            self.ticks += 1;
            for running in std::mem::take(&mut self.running) {
                self.go_on(running);
            }
            let due = |ticks: u64| ticks * rate / 1_000;
            for _ in due(self.ticks - 1)..due(self.ticks) {
                match self.balancer.pick(self.now, &mut self.rng, &Tried::default()) {
                    Ok(key) => {
                        let at = self.balancer.addr(key).expect("it is known").port();
                        *self.picks.entry(at).or_default() += 1;
                        let call = self.balancer.started(key);
                        let does = does(at);
                        self.running.push(Running {
                            call,
                            began: self.now,
                            does,
                            gives_up: self.now + patience,
                        });
                    }
                    Err(why) => self.none.push(why),
                }
            }
            if self.ticks.is_multiple_of(500) {
                self.look();
            }
        }
    }

    fn go_on(&mut self, mut running: Running) {
        let waited = self.now - running.began;
        let outcome = match running.does {
            Does::Answers(after) if waited >= after => {
                self.balancer.answered(&mut running.call, waited, self.now);
                self.took.push(waited);
                Outcome::Done
            }
            Does::Fails => Outcome::Failed,
            Does::Half if !running.call.answered => {
                self.balancer.answered(&mut running.call, waited, self.now);
                return self.running.push(running);
            }
            Does::Half if self.now >= running.gives_up => Outcome::Unfinished { waited },
            _ if self.now >= running.gives_up => Outcome::Abandoned { waited },
            _ => return self.running.push(running),
        };
        self.balancer.finished(running.call, outcome, self.now, &mut self.rng);
    }

    fn p99(&self) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }
}

#[test]
fn five_failures_in_a_row_eject_and_any_success_begins_anew() {
    let mut service = Service::new(1, 3);
    for _ in 0..4 {
        service.one(0, Outcome::Failed);
    }
    service.one(0, Outcome::Done);
    for _ in 0..4 {
        service.one(0, Outcome::Failed);
    }
    assert!(!service.is_ejected(0));
    service.one(0, Outcome::Failed);
    assert!(service.is_ejected(0));
    assert_eq!(service.picked(), [1, 2]);
    let Turn {
        to: TurnTo::Ejected {
            cause: Cause::Failures,
            lasts,
        },
        ..
    } = service.turns[0]
    else {
        panic!("{:?}", service.turns)
    };
    assert!(lasts >= Duration::from_secs(15) && lasts <= Duration::from_secs(30));
}

#[test]
fn the_failure_that_ejects_is_told_so_and_no_other_and_the_next_pick_goes_elsewhere() {
    let mut service = Service::new(2, 3);
    let key = service.key(0);
    let told = [(); 7].map(|()| {
        let call = service.balancer.started(key);
        let Service { balancer, now, rng, .. } = &mut service;
        balancer.finished(call, Outcome::Failed, *now, rng).ejected
    });
    assert_eq!(told, [false, false, false, false, true, false, false]);
    assert!(service.is_ejected(0));
    assert_eq!(service.picked(), [1, 2]);
}

#[test]
fn dials_that_fail_count_among_the_five() {
    for (dials, ejected) in [(3, false), (4, true)] {
        let mut service = Service::new(2, 3);
        let key = service.key(0);
        for _ in 0..dials {
            let Service { balancer, now, rng, .. } = &mut service;
            balancer.dial_failed(key, *now, rng);
        }
        service.one(0, Outcome::Failed);
        assert_eq!(service.is_ejected(0), ejected, "{dials} dials");
    }
}

#[test]
fn ejections_of_many_sidecars_do_not_end_together() {
    let mut lasted: Vec<_> = (0..50)
        .map(|seed| {
            let mut service = Service::new(seed, 2);
            for _ in 0..5 {
                service.one(0, Outcome::Failed);
            }
            let State::Ejected { until, .. } = service.state(0) else {
                panic!("it is ejected")
            };
            until - service.now
        })
        .collect();
    lasted.sort_unstable();
    let second = Duration::from_secs(1);
    assert!(lasted[0] < 18 * second && lasted[49] > 27 * second, "{lasted:?}");
    let apart = lasted.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(apart < Some(3 * second), "{lasted:?}");
}

#[test]
fn a_call_that_waited_while_its_endpoint_drained_is_one_call_when_that_is_named_again() {
    let mut service = Service::new(3, 3);
    let second = Duration::from_secs(1);
    service.load(second, 100, second, |_| WELL);
    let call = service.balancer.started(service.key(2));
    service.running.push(Running {
        call,
        began: service.now,
        does: Does::Hangs,
        gives_up: service.now + 3_600 * second,
    });
    for endpoints in [3, 2, 3] {
        service.scale(endpoints);
        for _ in 0..10 {
            service.now += second;
            service.one(0, Outcome::Done);
        }
        assert!(!service.is_ejected(2), "with {endpoints} named");
    }
}

#[test]
fn at_most_half_are_ejected_and_never_the_only_one() {
    for (endpoints, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut service = Service::new(3, endpoints);
        for at in 0..endpoints {
            for _ in 0..20 {
                service.one(at, Outcome::Failed);
            }
        }
        let ejected = (0..endpoints).filter(|at| service.is_ejected(*at)).count();
        assert_eq!(ejected, most, "of {endpoints}");
    }
}

#[test]
fn when_others_leave_those_that_would_be_too_many_come_back() {
    let mut service = Service::new(4, 4);
    for at in [0, 1] {
        for _ in 0..5 {
            service.one(at, Outcome::Failed);
        }
    }
    assert!(service.is_ejected(0) && service.is_ejected(1));
    service.scale(2);
    assert_eq!((0..2).filter(|at| service.is_ejected(*at)).count(), 1);
}

#[test]
fn one_call_probes_an_ejected_endpoint_and_a_good_one_brings_it_back_slowly() {
    let mut service = Service::new(5, 2);
    for _ in 0..5 {
        service.one(0, Outcome::Failed);
    }
    let State::Ejected { until, .. } = service.state(0) else {
        panic!("it is ejected")
    };
    service.now = until;
    let probes = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    assert_eq!(probes, 1);
    service.one(0, Outcome::Done);
    assert_eq!(service.state(0), State::Ready);
    assert_eq!(service.turns.last().map(|turn| turn.to), Some(TurnTo::Back));
    service.now += MS;
    let picks = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    assert!(picks < 100, "slow start: {picks} of 1,000 at once");
    service.now += Duration::from_secs(2);
    let picks = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    assert!((400..600).contains(&picks), "{picks} of 1,000 later");
}

#[test]
fn an_ejected_endpoint_that_does_not_serve_hides_no_others_probe() {
    let mut service = Service::new(5, 4);
    for at in 0..2 {
        for _ in 0..5 {
            service.one(at, Outcome::Failed);
        }
    }
    assert!(service.is_ejected(0) && service.is_ejected(1));
    service.found(0, NOT_SERVING);
    let State::Ejected { until, .. } = service.state(1) else {
        panic!("it is ejected")
    };
    service.now = until + Duration::from_secs(30);
    assert_eq!(service.pick(), Ok(1), "the next call is its probe");
}

#[test]
fn a_failed_probe_ejects_for_twice_as_long_up_to_the_ceiling() {
    let mut service = Service::new(6, 2);
    let mut lasted = Vec::new();
    for _ in 0..5 {
        service.one(0, Outcome::Failed);
    }
    for _ in 0..8 {
        let State::Ejected { until, .. } = service.state(0) else {
            panic!("it is ejected")
        };
        lasted.push(until - service.now);
        service.now = until;
        while service.pick() != Ok(0) {}
        service.one(0, Outcome::Failed);
    }
    for (times, lasts) in lasted.iter().enumerate() {
        let full = Duration::from_secs(30 << times).min(Duration::from_secs(300));
        assert!(*lasts <= full && *lasts >= full / 2, "{lasted:?}");
    }
}

#[test]
fn a_check_that_says_serving_ends_the_first_ejection_and_not_the_next() {
    let mut service = Service::new(7, 2);
    for _ in 0..5 {
        service.one(0, Outcome::Failed);
    }
    service.now += Duration::from_secs(5);
    service.found(0, Finding::Unimplemented);
    assert!(service.is_ejected(0), "that says nothing of whether it works");
    service.found(0, Finding::Serving);
    assert_eq!(service.state(0), State::Ready);
    let at_once = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    assert!(at_once < 100, "slow start: {at_once} of 1,000 at once");
    service.one(0, Outcome::Failed);
    assert!(service.is_ejected(0), "one failure is enough so soon");
    service.now += Duration::from_secs(5);
    service.found(0, Finding::Serving);
    assert!(service.is_ejected(0));
}

#[test]
fn an_endpoint_that_says_not_serving_is_never_picked() {
    let mut service = Service::new(8, 3);
    service.found(0, NOT_SERVING);
    assert_eq!(service.picked(), [1, 2]);
    assert_eq!(service.state(0), State::Unhealthy(Why::Says(Says::NotServing)));
    // Not when the others cannot be reached either.
    for at in [1, 2] {
        let key = service.key(at);
        service.balancer.dial_failed(key, service.now, &mut service.rng);
    }
    for _ in 0..50 {
        service.now += Duration::from_millis(20);
        assert_ne!(service.pick(), Ok(0));
    }
    service.found(0, Finding::Serving);
    assert_eq!(service.pick(), Ok(0));
}

#[test]
fn when_all_say_not_serving_the_reason_says_so() {
    let mut service = Service::new(9, 3);
    (0..3).for_each(|at| service.found(at, NOT_SERVING));
    let why = service.pick().expect_err("nobody serves");
    assert_eq!(why.to_string(), "3 of 3 endpoints say NOT_SERVING");
    let mut tried = Tried::default();
    service.found(1, Finding::Serving);
    tried.insert(service.key(1));
    let why = service
        .balancer
        .pick(service.now, &mut service.rng, &tried)
        .expect_err("nobody else serves");
    assert_eq!(
        why.to_string(),
        "2 of 3 endpoints say NOT_SERVING, and the others were tried and could not be reached"
    );
    let mut service = Service::new(9, 2);
    (0..2).for_each(|at| service.found(at, Finding::Refused(Says::ServiceUnknown)));
    let why = service.pick().expect_err("nobody serves").to_string();
    assert!(why.starts_with("2 of 2 endpoints say SERVICE_UNKNOWN"), "{why}");
}

#[test]
fn below_half_healthy_the_silent_are_used_too_and_counted_but_none_that_says_not_serving() {
    let mut service = Service::new(10, 4);
    let silent = |service: &mut Service, at| (0..2).for_each(|_| service.found(at, SILENT));
    silent(&mut service, 0);
    silent(&mut service, 1);
    assert_eq!(service.picked(), [2, 3], "half are well");
    assert_eq!(service.balancer.looked(service.now, &mut service.rng), 0);
    service.found(2, NOT_SERVING);
    assert_eq!(service.picked(), [0, 1, 3], "a quarter is");
    let spare = service.balancer.looked(service.now, &mut service.rng);
    assert!(spare > 100 && spare < 300, "{spare} of 300");
    service.found(3, NOT_SERVING);
    assert_eq!(service.picked(), [0, 1]);
    service.found(2, Finding::Serving);
    service.found(3, Finding::Serving);
    service.now += Duration::from_secs(2);
    assert_eq!(service.picked(), [2, 3]);
}

#[test]
fn calls_to_unhealthy_endpoints_are_counted_however_often_these_are_checked() {
    let mut service = Service::new(20, 2);
    (0..2).for_each(|at| (0..2).for_each(|_| service.found(at, SILENT)));
    for _ in 0..10 {
        assert!((0..10).all(|_| service.pick().is_ok()));
        (0..2).for_each(|at| service.found(at, SILENT));
    }
    service.found(0, Finding::Serving);
    let key = service.key(1);
    service.balancer.forget_health(key);
    assert_eq!(service.balancer.looked(service.now, &mut service.rng), 100);
    assert_eq!(service.balancer.looked(service.now, &mut service.rng), 0);
}

#[test]
fn an_ejected_endpoint_does_not_count_among_the_healthy_half() {
    let mut service = Service::new(18, 4);
    (0..2).for_each(|_| service.found(2, SILENT));
    assert_eq!(service.picked(), [0, 1, 3]);
    for at in [0, 1] {
        for _ in 0..5 {
            service.one(at, Outcome::Failed);
        }
    }
    assert_eq!(service.picked(), [2, 3], "one of four is left");
}

#[test]
fn where_no_healthy_endpoint_can_be_reached_every_call_goes_to_the_silent() {
    let mut service = Service::new(19, 2);
    (0..2).for_each(|_| service.found(0, SILENT));
    assert_eq!(service.picked(), [1]);
    let key = service.key(1);
    service.balancer.dial_failed(key, service.now, &mut service.rng);
    assert!((0..300).all(|_| service.pick() == Ok(0)));
    // An RPC that has been to the healthy one has the other left.
    service.balancer.dial_ok(key, service.now);
    let mut tried = Tried::default();
    tried.insert(key);
    let silent = service.key(0);
    for _ in 0..300 {
        let picked = service.balancer.pick(service.now, &mut service.rng, &tried);
        assert_eq!(picked, Ok(silent));
    }
}

#[test]
fn a_healthy_endpoint_of_a_lower_priority_comes_before_a_silent_one() {
    let mut service = Service::new(11, 0);
    let specs = [(0, 0), (1, 1)].map(|(at, priority)| EndpointSpec {
        addr: addr(at),
        weight: 1,
        priority,
    });
    service.balancer.update(&specs, service.now);
    assert_eq!(service.picked(), [0]);
    (0..2).for_each(|_| service.found(0, SILENT));
    assert_eq!(service.picked(), [1]);
    service.found(1, NOT_SERVING);
    assert_eq!(service.picked(), [0]);
}

#[test]
fn an_endpoint_that_is_healthy_again_comes_back_slowly() {
    let mut service = Service::new(12, 2);
    service.found(0, NOT_SERVING);
    service.now += Duration::from_secs(10);
    service.found(0, Finding::Serving);
    let at_once = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    service.now += Duration::from_secs(2);
    let later = (0..1_000).filter(|_| service.pick() == Ok(0)).count();
    assert!(at_once < 100 && (400..600).contains(&later), "{at_once}, then {later}");
}

#[test]
fn an_endpoint_that_changes_its_mind_all_the_time_is_told_of_once_a_look() {
    let mut service = Service::new(12, 2);
    for _ in 0..5_000 {
        service.found(0, NOT_SERVING);
        service.found(0, Finding::Serving);
    }
    service.found(1, NOT_SERVING);
    service.look();
    let told: Vec<_> = service.turns.drain(..).map(|turn| (turn.addr, turn.to)).collect();
    let unhealthy = Verdict::Unhealthy(Why::Says(Says::NotServing));
    let one = (addr(1), TurnTo::Verdict(unhealthy, 1));
    assert_eq!(told, [(addr(0), TurnTo::Verdict(Verdict::Healthy, 10_000)), one]);
    service.look();
    assert_eq!(service.turns, []);
}

#[test]
fn whoever_is_checked_no_more_is_held_for_nothing() {
    let mut service = Service::new(13, 2);
    service.found(0, NOT_SERVING);
    let key = service.key(0);
    service.balancer.forget_health(key);
    assert_eq!(service.picked(), [0, 1]);
}

#[test]
fn calls_move_away_within_two_seconds_from_an_endpoint_that_hangs_answers_half_or_is_100_times_slower() {
    let slow = Does::Answers(Duration::from_millis(200));
    let patience = Duration::from_secs(60);
    for (name, bad) in [("hangs", Does::Hangs), ("half", Does::Half), ("slow", slow)] {
        for rate in [20, 200, 1_000] {
            for seed in 0..5 {
                let mut service = Service::new(seed, 3);
                service.load(Duration::from_secs(5), rate, patience, |_| WELL);
                let before = service.p99();
                service.load(
                    Duration::from_secs(2),
                    rate,
                    patience,
                    |at| if at == 0 { bad } else { WELL },
                );
                service.load(
                    Duration::from_secs(5),
                    rate,
                    patience,
                    |at| if at == 0 { bad } else { WELL },
                );
                let all: u64 = service.picks.values().sum();
                let bad = service.picks.get(&0).copied().unwrap_or(0);
                assert!(bad <= all / 100 + 3, "{name} at {rate}/s, seed {seed}: {bad} of {all}");
                // One call in a while still looks whether it is slow.
                assert!(
                    rate < 200 || service.p99() <= before * 2,
                    "{name} at {rate}/s: {:?}",
                    service.p99()
                );
            }
        }
    }
}

#[test]
fn callers_with_a_deadline_are_moved_away_as_well() {
    let patience = Duration::from_millis(500);
    for (name, bad) in [("hangs", Does::Hangs), ("half", Does::Half)] {
        let mut service = Service::new(1, 3);
        service.load(Duration::from_secs(5), 300, patience, |_| WELL);
        service.load(
            Duration::from_secs(2),
            300,
            patience,
            |at| if at == 0 { bad } else { WELL },
        );
        service.load(
            Duration::from_secs(5),
            300,
            patience,
            |at| if at == 0 { bad } else { WELL },
        );
        let bad = service.picks.get(&0).copied().unwrap_or(0);
        assert!(bad <= 15, "{name}: {bad} of 1,500");
    }
}

#[test]
fn an_endpoint_that_hangs_is_ejected_and_its_probe_does_not_flood_it() {
    let mut service = Service::new(14, 3);
    let patience = Duration::from_secs(60);
    service.load(Duration::from_secs(3), 500, patience, |_| WELL);
    service.load(Duration::from_secs(2), 500, patience, |at| {
        if at == 0 { Does::Hangs } else { WELL }
    });
    let silent = |turn: &Turn| {
        matches!(
            turn.to,
            TurnTo::Ejected {
                cause: Cause::Silent,
                ..
            }
        )
    };
    assert!(service.turns.iter().any(silent), "{:?}", service.turns);
    service.load(Duration::from_secs(120), 50, patience, |at| {
        if at == 0 { Does::Hangs } else { WELL }
    });
    let probes = service.picks.get(&0).copied().unwrap_or(0);
    assert!((1..10).contains(&probes), "{probes} probes in two minutes");
    service.load(Duration::from_secs(300), 50, patience, |_| WELL);
    service.load(Duration::from_secs(20), 50, patience, |_| WELL);
    let share = service.picks[&0] as f64 / 1_000.0;
    assert!((share - 0.333).abs() < 0.08, "back again: {:?}", service.picks);
}

#[test]
fn nobody_is_ejected_where_everybody_waits() {
    let mut service = Service::new(15, 4);
    let patience = Duration::from_secs(5);
    service.load(Duration::from_secs(3), 200, patience, |_| WELL);
    service.load(Duration::from_secs(20), 100, patience, |_| Does::Hangs);
    assert_eq!(service.turns, []);
    service.load(Duration::from_secs(20), 100, patience, |_| Does::Half);
    assert_eq!(service.turns, []);
}

#[test]
fn long_polls_among_other_calls_eject_nobody() {
    let mut service = Service::new(16, 3);
    let polls = std::cell::Cell::new(0_u32);
    service.load(Duration::from_secs(60), 50, Duration::from_secs(20), |_| {
        polls.set(polls.get() + 1);
        if polls.get().is_multiple_of(5) {
            Does::Hangs
        } else {
            WELL
        }
    });
    assert_eq!(service.turns, []);
    let all: u64 = service.picks.values().sum();
    for (at, picks) in &service.picks {
        assert!(picks * 100 / all > 20, "endpoint {at}: {:?}", service.picks);
    }
}

#[test]
fn an_endpoint_that_fails_every_call_costs_few() {
    let mut service = Service::new(17, 3);
    let patience = Duration::from_secs(1);
    service.load(Duration::from_secs(60), 100, patience, |at| {
        if at == 0 { Does::Fails } else { WELL }
    });
    assert!(service.picks[&0] < 15, "{:?}", service.picks);
    service.load(Duration::from_secs(120), 100, patience, |_| WELL);
    service.load(Duration::from_secs(20), 100, patience, |_| WELL);
    assert!(service.picks[&0] > 500, "back again: {:?}", service.picks);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Against a plain model of verdicts, whatever else happens: nobody that says NOT_SERVING is picked, no more than half
    /// are ejected, and a reason is given that is true.
    #[test]
    fn any_order_of_failures_and_findings_keeps_the_promises(
        steps in prop::collection::vec((0u8..10, 0u16..6, any::<u16>()), 1..400),
        endpoints in 1u16..6,
        seed in any::<u64>(),
    ) {
        let mut service = Service::new(seed, endpoints);
        let mut named = endpoints;
        let mut refuses = [false; 6];
        for (step, at, time) in steps {
            service.now += Duration::from_millis(u64::from(time));
            let at = at % named;
            match step {
                0 => service.one(at, Outcome::Done),
                1 | 2 => service.one(at, Outcome::Failed),
                3 => service.one(at, Outcome::Abandoned { waited: Duration::from_millis(u64::from(time)) }),
                4 => {
                    let finding = [Finding::Serving, Finding::Alive, Finding::Unimplemented][usize::from(time) % 3];
                    service.found(at, finding);
                    refuses[usize::from(at)] = false;
                }
                5 => {
                    service.found(at, NOT_SERVING);
                    refuses[usize::from(at)] = true;
                }
                6 => service.found(at, SILENT),
                7 => {
                    let key = service.key(at);
                    service.balancer.dial_failed(key, service.now, &mut service.rng);
                }
                8 => {
                    let key = service.key(at);
                    service.balancer.dial_ok(key, service.now);
                }
                _ => {
                    named = time % endpoints + 1;
                    service.scale(named);
                    refuses[usize::from(named)..].fill(false);
                }
            }
            let ejected = service.balancer.ejected().count();
            prop_assert!(ejected <= usize::from(named) / 2, "{} of {} are ejected", ejected, named);
            match service.pick() {
                Ok(at) => prop_assert!(!refuses[usize::from(at)], "{} says NOT_SERVING", at),
                Err(NoEndpoint::NotServing { count, refusing, .. }) => {
                    prop_assert_eq!(count, usize::from(named));
                    prop_assert_eq!(refusing, count);
                    prop_assert!(refuses[..usize::from(named)].iter().all(|refuses| *refuses));
                }
                Err(NoEndpoint::AllInBackoff { refusing, .. }) => {
                    prop_assert!(refusing < usize::from(named));
                    let ready = service.balancer.endpoints(service.now).find(|view| view.state == State::Ready);
                    prop_assert_eq!(ready, None);
                }
                Err(why) => prop_assert!(false, "{}", why),
            }
            for view in service.balancer.endpoints(service.now) {
                let says = view.state == State::Unhealthy(Why::Says(Says::NotServing));
                prop_assert_eq!(says, refuses[usize::from(view.addr.port())]);
                let known = matches!(view.state, State::Ejected { .. }) && view.in_flight > 0;
                prop_assert!(!known);
            }
        }
        let verdicts = |turn: &Turn| matches!(turn.to, TurnTo::Verdict(Verdict::Unhealthy(_), _));
        prop_assert!(service.turns.iter().filter(|turn| verdicts(turn)).count() <= 400);
    }
}
