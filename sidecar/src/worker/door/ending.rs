//! Why connections end at a door, and what a door counts.

use super::reach::Unreached;
use crate::accept;
use crate::detect::{self, Guess};
use crate::edge::http1;
use crate::policy;
use crate::telemetry::{
    CONNECTIONS, Counter, DETECTED, Gauge, HTTP1_MEMORY_HELD, PROXY_ERRORS, Recorder, TUNNEL_BYTES, TUNNELS,
};
use crate::words::words;

/// The numbers of one door.
pub(super) struct Counts {
    pub(super) guesses: Vec<(Guess, Counter)>,
    /// By [`Ending`].
    pub(super) endings: Box<[Counter]>,
    /// By the place of the reason in [`http1::Refusal::REASONS`].
    pub(super) refusals: Box<[Counter]>,
    pub(super) up: Counter,
    pub(super) down: Counter,
    pub(super) tunnels: Gauge,
    pub(super) http1_memory_held: Gauge,
    tunnels_in_plain: Counter,
    tunnels_in_mtls: Counter,
}

words! {
    /// Why a connection ends here, as a metric shows it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Ending, word {
        Loop = "loop",
        NotRedirected = "not_redirected",
        LoopbackDestination = "loopback_destination",
        ForeignDestination = "foreign_destination",
        NoDestination = "no_destination",
        ClientGone = "client_gone",
        Dial = "dial",
        UpstreamReset = "upstream_reset",
        PrefaceTimeout = "preface_timeout",
        Crowded = "crowded",
        HiddenRequest = "hidden_request",
        BrokenTls = "broken_tls",
        SlowHead = "slow_head",
        MtlsRequired = "mtls_required",
        MtlsDisabled = "mtls_disabled",
        PolicyUnknown = "policy_unknown",
        NoHello = "no_client_hello",
        NoOwnCertificate = "no_own_certificate",
        ControlSilent = "control_silent",
        ControlUnusable = "control_unusable",
        TunnelUnreachable = "tunnel_unreachable",
    }
}

impl Counts {
    pub(super) fn new(recorder: &Recorder, inbound: bool) -> Counts {
        let direction = if inbound { "inbound" } else { "outbound" };
        let guess = |guess: &Guess| (*guess, recorder.resolve(&DETECTED, [direction, guess.name()]));
        Counts {
            guesses: Guess::ALL.iter().map(guess).collect(),
            endings: recorder.resolve_each(&PROXY_ERRORS, Ending::ALL.map(|ending| [direction, ending.word()])),
            refusals: recorder.resolve_each(&PROXY_ERRORS, http1::Refusal::REASONS.map(|reason| [direction, reason])),
            up: recorder.resolve(&TUNNEL_BYTES, [direction, "to_upstream"]),
            down: recorder.resolve(&TUNNEL_BYTES, [direction, "to_downstream"]),
            tunnels: recorder.resolve(&CONNECTIONS, [direction, "tunnel"]),
            http1_memory_held: recorder.resolve(&HTTP1_MEMORY_HELD, [direction]),
            tunnels_in_plain: recorder.resolve(&TUNNELS, [direction, "false"]),
            tunnels_in_mtls: recorder.resolve(&TUNNELS, [direction, "true"]),
        }
    }

    pub(super) fn guess(&self, guess: Guess) {
        if let Some((_, counter)) = self.guesses.iter().find(|(known, _)| *known == guess) {
            counter.inc();
        }
    }

    /// A tunnel, or a connection of HTTP/1, begins.
    pub(super) fn begins(&self, in_mtls: bool) {
        if in_mtls {
            self.tunnels_in_mtls.inc();
        } else {
            self.tunnels_in_plain.inc();
        }
    }

    pub(super) fn ended(&self, ending: Ending) {
        self.endings[ending as usize].inc();
    }
}

impl Ending {
    pub(super) fn of_refusal(refusal: &accept::Refusal) -> Ending {
        use accept::Refusal;
        match refusal {
            Refusal::OwnPort(_) | Refusal::OwnConnection(_) => Ending::Loop,
            Refusal::NotRedirected(_) => Ending::NotRedirected,
            Refusal::Loopback(_) => Ending::LoopbackDestination,
            Refusal::NotThisPod(_) => Ending::ForeignDestination,
            Refusal::NoHost(_) => Ending::NoDestination,
        }
    }

    pub(super) fn of_policy(refusal: &policy::Refusal) -> Ending {
        use policy::Refusal;
        match refusal {
            Refusal::MtlsRequired { .. } => Ending::MtlsRequired,
            Refusal::MtlsDisabled { .. } => Ending::MtlsDisabled,
            Refusal::PolicyUnknown { .. } => Ending::PolicyUnknown,
        }
    }

    pub(super) fn of_detection(error: &detect::Error<Unreached>) -> Ending {
        use detect::Error;
        match error {
            Error::Client(_) => Ending::ClientGone,
            Error::Dial(Unreached::ControlSilent(_) | Unreached::Full(..)) => Ending::ControlSilent,
            Error::Dial(Unreached::Unusable(..)) => Ending::ControlUnusable,
            Error::Dial(Unreached::Dial(_) | Unreached::NoEndpoint(_)) => Ending::Dial,
            Error::Upstream(_) => Ending::UpstreamReset,
            Error::Dribble { .. } => Ending::PrefaceTimeout,
            Error::HalfHello { .. } => Ending::NoHello,
            Error::Crowded => Ending::Crowded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Full;

    #[test]
    fn a_control_that_cannot_be_asked_is_no_server_that_is_down() {
        let addr = std::net::SocketAddr::from(([10, 0, 0, 7], 5432));
        let full = detect::Error::Dial(Unreached::Full(addr, Full { max: 0 }));
        assert_eq!(Ending::of_detection(&full), Ending::ControlSilent);
    }

    #[test]
    fn every_ending_is_counted_under_its_own_word() {
        let words: std::collections::BTreeSet<_> = Ending::ALL.iter().map(|ending| ending.word()).collect();
        assert_eq!(words.len(), Ending::ALL.len());
    }
}
