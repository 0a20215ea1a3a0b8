//! How the process stops: what happens when, decided without a clock, a signal or a thread of its own.
//!
//! ```text
//!             asked, signalled                     nothing open for a while
//!   Serving ------------------> Draining ------------------------------------> Ending ---> Over
//!      |      not ready,           |   deadline, or a second signal               |  workers have ended,
//!      |      drain inbound        +----------------------------------------------+  or take too long
//!      |                           |   late in the grace period: drain outbound
//!      +-- a grace period of 0 ----------------------------------------------> Ending
//! ```
//!
//! Inbound drains at once, since nobody new should come. Outbound goes on: the application is stopping too, and may
//! still be calling. It is over when all connections have closed; near the deadline outbound says GOAWAY as well, so that
//! those which merely idle close by themselves and only what truly runs is cut.

use std::time::{Duration, Instant};

/// How the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long running calls may go on after the first request to stop. Default 25 s.
    pub grace_period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            grace_period: Duration::from_secs(25),
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody asked for a drain; asking again changes nothing.
    Asked,
    /// SIGTERM or SIGINT; a second one means now.
    Signalled,
    /// Somebody looked how many connections are open.
    Looked {
        /// To the application and from the network.
        inbound: u64,
        /// From the application and to the network.
        outbound: u64,
    },
    /// Every worker has ended.
    WorkersEnded,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let no new traffic be sent here.
    NotReady,
    /// Inbound takes no connections and says GOAWAY.
    DrainInbound,
    /// Outbound does the same.
    DrainOutbound,
    /// Workers end, and count what that cuts.
    EndWorkers(Why),
    /// The process ends.
    Finish,
}

/// Why workers are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Nothing is open.
    Quiet,
    /// The grace period is over.
    Deadline,
    /// A second signal came.
    SecondSignal,
}

/// Where the process stands on its way to the end.
#[derive(Debug)]
pub struct Shutdown {
    settings: Settings,
    state: State,
}

#[derive(Debug)]
enum State {
    Serving,
    Draining {
        deadline: Instant,
        signalled: bool,
        outbound_told: bool,
        quiet_since: Option<Instant>,
    },
    Ending {
        give_up: Instant,
    },
    Over,
}

impl Shutdown {
    /// A process that serves.
    pub fn new(settings: Settings) -> Shutdown {
        Shutdown {
            settings,
            state: State::Serving,
        }
    }

    /// Whether the end has begun: from then on somebody must look, every few tens of milliseconds.
    pub fn has_begun(&self) -> bool {
        !matches!(self.state, State::Serving)
    }

    /// What is to be done about an event, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match (&mut self.state, event) {
            (State::Serving, Event::Asked | Event::Signalled) => self.begin(now, event == Event::Signalled),
            (State::Serving, Event::Looked { .. }) => Vec::new(),

            (State::Draining { .. }, Event::Asked) => Vec::new(),
            (State::Draining { signalled: true, .. }, Event::Signalled) => self.end_workers(now, Why::SecondSignal),
            (State::Draining { signalled, .. }, Event::Signalled) => {
                *signalled = true;
                Vec::new()
            }
            (State::Draining { .. }, Event::Looked { inbound, outbound }) => self.look(now, inbound + outbound == 0),

            (State::Ending { give_up }, Event::Looked { .. }) if now < *give_up => Vec::new(),
            (State::Ending { .. }, Event::Asked | Event::Signalled) => Vec::new(),
            (State::Ending { .. }, Event::Looked { .. })
            | (State::Serving | State::Draining { .. } | State::Ending { .. }, Event::WorkersEnded) => {
                self.state = State::Over;
                vec![Action::Finish]
            }

            (State::Over, _) => Vec::new(),
        }
    }

    fn begin(&mut self, now: Instant, signalled: bool) -> Vec<Action> {
        let deadline = now + self.settings.grace_period;
        self.state = State::Draining {
            deadline,
            signalled,
            outbound_told: false,
            quiet_since: None,
        };
        let mut actions = vec![Action::NotReady, Action::DrainInbound];
        if self.settings.grace_period.is_zero() {
            actions.extend(self.end_workers(now, Why::Deadline));
        }
        actions
    }

    fn look(&mut self, now: Instant, quiet: bool) -> Vec<Action> {
        let State::Draining {
            deadline,
            outbound_told,
            quiet_since,
            ..
        } = &mut self.state
        else {
            return Vec::new();
        };
        if now >= *deadline {
            return self.end_workers(now, Why::Deadline);
        }
        if !quiet {
            *quiet_since = None;
        } else if now.duration_since(*quiet_since.get_or_insert(now)) >= QUIET {
            return self.end_workers(now, Why::Quiet);
        }
        if !*outbound_told && *deadline - now <= last_part(self.settings.grace_period) {
            *outbound_told = true;
            return vec![Action::DrainOutbound];
        }
        Vec::new()
    }

    fn end_workers(&mut self, now: Instant, why: Why) -> Vec<Action> {
        self.state = State::Ending {
            give_up: now + PATIENCE,
        };
        vec![Action::EndWorkers(why)]
    }
}

/// How long nothing must be open: an application that connects for every call is not gone between two of them.
const QUIET: Duration = Duration::from_millis(500);

/// How long workers may take to end once told.
const PATIENCE: Duration = Duration::from_secs(2);

/// The part of the grace period that is left when outbound drains too: a fifth, but no more than 5 s.
fn last_part(grace_period: Duration) -> Duration {
    (grace_period / 5).min(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: Event = Event::Looked {
        inbound: 1,
        outbound: 1,
    };
    const OUTBOUND_OPEN: Event = Event::Looked {
        inbound: 0,
        outbound: 1,
    };
    const NONE_OPEN: Event = Event::Looked {
        inbound: 0,
        outbound: 0,
    };
    const BEGIN: [Action; 2] = [Action::NotReady, Action::DrainInbound];

    /// A shutdown whose clock is told the time in milliseconds.
    struct Told {
        start: Instant,
        shutdown: Shutdown,
    }

    impl Told {
        fn new(grace_period: Duration) -> Told {
            Told {
                start: Instant::now(),
                shutdown: Shutdown::new(Settings { grace_period }),
            }
        }

        fn at(&mut self, millis: u64, event: Event) -> Vec<Action> {
            self.shutdown.step(self.start + Duration::from_millis(millis), event)
        }
    }

    fn told() -> Told {
        Told::new(Duration::from_secs(25))
    }

    #[test]
    fn it_is_over_once_nothing_was_open_for_a_while() {
        let mut told = told();
        assert!(!told.shutdown.has_begun());
        assert_eq!(told.at(0, Event::Signalled), BEGIN);
        assert!(told.shutdown.has_begun());
        assert_eq!(told.at(100, OPEN), []);
        assert_eq!(told.at(200, NONE_OPEN), []);
        assert_eq!(told.at(400, OUTBOUND_OPEN), [], "the application connected once more");
        assert_eq!(told.at(600, NONE_OPEN), []);
        assert_eq!(told.at(1_099, NONE_OPEN), []);
        assert_eq!(told.at(1_100, NONE_OPEN), [Action::EndWorkers(Why::Quiet)]);
        assert_eq!(told.at(1_110, Event::WorkersEnded), [Action::Finish]);
        assert_eq!(told.at(1_120, Event::Signalled), []);
    }

    #[test]
    fn outbound_serves_on_until_late_and_is_then_told_once() {
        let mut told = told();
        told.at(0, Event::Asked);
        for millis in (0..20_000).step_by(20) {
            assert_eq!(told.at(millis, OUTBOUND_OPEN), [], "{millis}");
        }
        assert_eq!(told.at(20_000, OUTBOUND_OPEN), [Action::DrainOutbound]);
        assert_eq!(told.at(20_020, OUTBOUND_OPEN), []);
        assert_eq!(told.at(24_999, OUTBOUND_OPEN), []);
        assert_eq!(told.at(25_000, OUTBOUND_OPEN), [Action::EndWorkers(Why::Deadline)]);
    }

    #[test]
    fn a_second_signal_cuts_and_a_second_request_does_not() {
        let mut told = told();
        assert_eq!(told.at(0, Event::Asked), BEGIN);
        assert_eq!(told.at(10, Event::Asked), []);
        assert_eq!(
            told.at(20, Event::Signalled),
            [],
            "the kubelet's signal after a preStop hook that asked is the first"
        );
        assert_eq!(told.at(25, Event::Asked), []);
        assert_eq!(told.at(30, Event::Signalled), [Action::EndWorkers(Why::SecondSignal)]);
        assert_eq!(told.at(40, Event::Signalled), []);
    }

    #[test]
    fn the_grace_period_counts_from_the_first_request() {
        let mut told = Told::new(Duration::from_secs(1));
        told.at(0, Event::Asked);
        told.at(900, Event::Signalled);
        assert_eq!(told.at(1_000, OPEN), [Action::EndWorkers(Why::Deadline)]);
    }

    #[test]
    fn workers_that_do_not_end_are_not_waited_for_without_end() {
        let mut told = Told::new(Duration::ZERO);
        let now = [
            Action::NotReady,
            Action::DrainInbound,
            Action::EndWorkers(Why::Deadline),
        ];
        assert_eq!(told.at(0, Event::Signalled), now);
        assert_eq!(told.at(1_999, OPEN), []);
        assert_eq!(told.at(2_000, OPEN), [Action::Finish]);
    }

    #[test]
    fn every_run_of_events_ends_and_does_each_thing_once_and_in_order() {
        let events = [Event::Asked, Event::Signalled, OPEN, OUTBOUND_OPEN, NONE_OPEN];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..500 {
            let mut told = told();
            let mut done = told.at(0, Event::Asked);
            let mut millis = 0;
            while !done.contains(&Action::Finish) {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                millis += seed >> 56;
                done.extend(told.at(millis, events[(seed >> 33) as usize % events.len()]));
                done.extend(told.at(millis, OUTBOUND_OPEN));
                assert!(millis < 28_000, "it is not over after {millis} ms");
            }
            done.retain(|action| *action != Action::DrainOutbound);
            assert_eq!(done[..2], BEGIN);
            assert!(matches!(done[2..], [Action::EndWorkers(_), Action::Finish]), "{done:?}");
        }
    }
}
