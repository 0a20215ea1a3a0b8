//! The worker's numbers, resolved once.

use crate::failure::Failure;
use crate::http2::Abuse;
use crate::telemetry::{
    ABUSE, CONNECTIONS, CONNECTIONS_OPENED, Counter, Gauge, INVALID_TIMEOUTS, MEMORY_BUDGET, MEMORY_HELD, PROXY_ERRORS,
    REQUESTS, RETRIES, Recorder,
};

/// The numbers of one worker.
pub(crate) struct Counts {
    inbound: Way,
    outbound: Way,
    /// Calls that were sent again because they had not been processed.
    pub(crate) retried: Counter,
    pub(crate) invalid_timeouts: Counter,
    pub(crate) memory_held: Gauge,
    control_frames: Counter,
    resets: Counter,
    malformed: Counter,
    over_streams: Counter,
}

/// The numbers of one direction.
pub(crate) struct Way {
    pub(crate) requests: Counter,
    failures: Vec<Counter>,
    downstream: Gauge,
    upstream: Gauge,
    downstream_opened: Counter,
    upstream_opened: Counter,
}

impl Counts {
    pub(crate) fn new(recorder: &Recorder, budget: u64) -> Counts {
        recorder.resolve(&MEMORY_BUDGET, []).set(budget as i64);
        Counts {
            inbound: Way::new(recorder, "inbound"),
            outbound: Way::new(recorder, "outbound"),
            retried: recorder.resolve(&RETRIES, ["not_processed"]),
            invalid_timeouts: recorder.resolve(&INVALID_TIMEOUTS, ["outbound"]),
            memory_held: recorder.resolve(&MEMORY_HELD, []),
            control_frames: recorder.resolve(&ABUSE, ["control_frames"]),
            resets: recorder.resolve(&ABUSE, ["resets"]),
            malformed: recorder.resolve(&ABUSE, ["malformed"]),
            over_streams: recorder.resolve(&ABUSE, ["too_many_streams"]),
        }
    }

    pub(crate) fn of(&self, inbound: bool) -> &Way {
        if inbound { &self.inbound } else { &self.outbound }
    }

    pub(crate) fn abuse(&self, abuse: Abuse) {
        match abuse {
            Abuse::ControlFrames => self.control_frames.inc(),
            Abuse::Resets => self.resets.inc(),
        }
    }

    pub(crate) fn refused(&self, malformed: bool) {
        if malformed {
            self.malformed.inc();
        } else {
            self.over_streams.inc();
        }
    }
}

impl Way {
    fn new(recorder: &Recorder, direction: &str) -> Way {
        let failures = Failure::REASONS
            .iter()
            .map(|reason| recorder.resolve(&PROXY_ERRORS, [direction, reason]))
            .collect();
        Way {
            requests: recorder.resolve(&REQUESTS, [direction, "false"]),
            failures,
            downstream: recorder.resolve(&CONNECTIONS, [direction, "downstream"]),
            upstream: recorder.resolve(&CONNECTIONS, [direction, "upstream"]),
            downstream_opened: recorder.resolve(&CONNECTIONS_OPENED, [direction, "downstream"]),
            upstream_opened: recorder.resolve(&CONNECTIONS_OPENED, [direction, "upstream"]),
        }
    }

    pub(crate) fn failed(&self, reason: &str) {
        let place = Failure::REASONS.iter().position(|known| *known == reason);
        if let Some(counter) = place.and_then(|place| self.failures.get(place)) {
            counter.inc();
        }
    }

    /// Connections of those who ask. (Those that we opened ourselves wait in their pools, and nobody waits for them.)
    pub(crate) fn open(&self) -> u64 {
        self.downstream.get().max(0) as u64
    }

    pub(crate) fn opened_downstream(&self) {
        self.downstream.add(1);
        self.downstream_opened.inc();
    }

    pub(crate) fn closed_downstream(&self) {
        self.downstream.add(-1);
    }

    pub(crate) fn opened_upstream(&self) {
        self.upstream.add(1);
        self.upstream_opened.inc();
    }

    pub(crate) fn closed_upstream(&self) {
        self.upstream.add(-1);
    }
}
