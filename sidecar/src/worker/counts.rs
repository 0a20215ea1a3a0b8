//! The worker's numbers, resolved once.

use std::collections::HashMap;

use portunus_proto::SpiffeId;

use super::health;
use crate::balance::eject::Cause;
use crate::balance::health::Finding;
use crate::failure::Failure;
use crate::http2::Abuse;
use crate::telemetry::{
    ABUSE, CONNECTIONS, CONNECTIONS_OPENED, Counter, EJECTIONS, Gauge, HEALTH_CHECKS, INVALID_TIMEOUTS, MEMORY_BUDGET,
    MEMORY_HELD, OTHER, OUTLIVED, PROXY_ERRORS, REQUESTS, RETRIES, Recorder, TLS_HANDSHAKES, UNFOLLOWED,
    UNHEALTHY_PICKS,
};

/// Peers that requests are told apart by.
const MOST_PEERS: usize = 1_000;

/// The numbers of one worker.
pub(crate) struct Counts {
    inbound: Way,
    outbound: Way,
    /// Requests by who is at the other end: a wire's label is a place here.
    peers: Vec<Counter>,
    labels: HashMap<(bool, Option<SpiffeId>), u32>,
    handshakes: HashMap<(bool, &'static str), Counter>,
    /// Calls that were sent again because they had not been processed.
    pub(crate) retried: Counter,
    /// Calls whose connection ended before any of them had left.
    pub(crate) not_sent: Counter,
    pub(crate) invalid_timeouts: Counter,
    /// Names and addresses that control is not asked for, and names that are not resolved, for want of room.
    pub(crate) unfollowed_subjects: Gauge,
    pub(crate) unfollowed_names: Gauge,
    pub(crate) memory_held: Gauge,
    pub(crate) unhealthy_picks: Counter,
    checks: [Counter; health::WORDS.len()],
    ejections: [Counter; Cause::ALL.len()],
    control_frames: Counter,
    resets: Counter,
    malformed: Counter,
    over_streams: Counter,
}

/// The numbers of one direction.
pub(crate) struct Way {
    pub(crate) outlived: Gauge,
    failures: Vec<Counter>,
    downstream: Gauge,
    upstream: Gauge,
    downstream_opened: Counter,
    upstream_opened: Counter,
}

impl Counts {
    pub(crate) fn new(recorder: &Recorder, budget: u64) -> Counts {
        recorder.resolve(&MEMORY_BUDGET, []).set(budget as i64);
        let in_plain = |direction| recorder.resolve(&REQUESTS, [direction, "false", ""]);
        let unsent = recorder.resolve(&REQUESTS, ["outbound", "none", ""]);
        Counts {
            peers: vec![in_plain("outbound"), in_plain("inbound"), unsent],
            labels: HashMap::new(),
            handshakes: HashMap::new(),
            inbound: Way::new(recorder, "inbound"),
            outbound: Way::new(recorder, "outbound"),
            retried: recorder.resolve(&RETRIES, ["not_processed"]),
            not_sent: recorder.resolve(&RETRIES, ["not_sent"]),
            invalid_timeouts: recorder.resolve(&INVALID_TIMEOUTS, ["outbound"]),
            unfollowed_subjects: recorder.resolve(&UNFOLLOWED, ["control"]),
            unfollowed_names: recorder.resolve(&UNFOLLOWED, ["dns"]),
            memory_held: recorder.resolve(&MEMORY_HELD, []),
            unhealthy_picks: recorder.resolve(&UNHEALTHY_PICKS, []),
            checks: health::WORDS.map(|word| recorder.resolve(&HEALTH_CHECKS, [word])),
            ejections: Cause::ALL.map(|cause| recorder.resolve(&EJECTIONS, [cause.word()])),
            control_frames: recorder.resolve(&ABUSE, ["control_frames"]),
            resets: recorder.resolve(&ABUSE, ["resets"]),
            malformed: recorder.resolve(&ABUSE, ["malformed"]),
            over_streams: recorder.resolve(&ABUSE, ["too_many_streams"]),
        }
    }

    pub(crate) fn of(&self, inbound: bool) -> &Way {
        if inbound { &self.inbound } else { &self.outbound }
    }

    pub(super) fn checked(&self, found: Finding) {
        let place = health::WORDS.iter().position(|word| *word == health::word(found));
        if let Some(counter) = place.and_then(|place| self.checks.get(place)) {
            counter.inc();
        }
    }

    pub(super) fn ejected(&self, cause: Cause) {
        let place = Cause::ALL.iter().position(|known| *known == cause);
        if let Some(counter) = place.and_then(|place| self.ejections.get(place)) {
            counter.inc();
        }
    }

    /// The label of wires whose other end has proven to be `peer`.
    pub(crate) fn label(&mut self, inbound: bool, peer: &SpiffeId, recorder: &Recorder) -> u32 {
        let is_known = self.labels.len() < MOST_PEERS || self.labels.contains_key(&(inbound, Some(peer.clone())));
        let named = is_known.then(|| peer.clone());
        let peers = &mut self.peers;
        let new = || {
            let name = if is_known { peer.as_str() } else { OTHER };
            peers.push(recorder.resolve(&REQUESTS, [direction(inbound), "true", name]));
            (peers.len() - 1) as u32
        };
        *self.labels.entry((inbound, named)).or_insert_with(new)
    }

    /// The label of wires in plain.
    pub(crate) fn in_plain(inbound: bool) -> u32 {
        u32::from(inbound)
    }

    /// The label of requests that no wire carried.
    pub(crate) const UNSENT: u32 = 2;

    /// A request to, or from, the other end of a wire with this label.
    #[inline]
    pub(crate) fn request(&self, label: u32) {
        if let Some(counter) = self.peers.get(label as usize) {
            counter.inc();
        }
    }

    /// A TLS handshake ended.
    pub(crate) fn shook_hands(&mut self, inbound: bool, result: &'static str, recorder: &Recorder) {
        let new = || recorder.resolve(&TLS_HANDSHAKES, [direction(inbound), result]);
        self.handshakes.entry((inbound, result)).or_insert_with(new).inc();
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

fn direction(inbound: bool) -> &'static str {
    if inbound { "inbound" } else { "outbound" }
}

impl Way {
    fn new(recorder: &Recorder, direction: &str) -> Way {
        let failures = Failure::REASONS
            .iter()
            .map(|reason| recorder.resolve(&PROXY_ERRORS, [direction, reason]))
            .collect();
        Way {
            outlived: recorder.resolve(&OUTLIVED, [direction]),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Format, Registry, Settings};

    #[test]
    fn a_thousand_peers_are_told_apart_and_then_no_more() {
        let registry = Registry::new(&Settings::default());
        let recorder = registry.recorder();
        let mut counts = Counts::new(&recorder, 0);
        for n in 0..MOST_PEERS + 100 {
            let id = format!("spiffe://mesh.test/ns/a/sa/s{n}");
            let id = SpiffeId::parse(&id).expect("an identity");
            let label = counts.label(n % 2 == 0, &id, &recorder);
            counts.request(label);
        }
        let page = registry.scrape(Format::Prometheus);
        let rows = page.lines().filter(|line| line.starts_with("portunus_requests_total{"));
        let of_peers = rows.filter(|row| row.contains("spiffe://"));
        assert_eq!(of_peers.count(), MOST_PEERS);
    }
}
