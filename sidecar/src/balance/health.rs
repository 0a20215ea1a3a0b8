//! What health checks say of an endpoint, and whether RPCs may go there because of it.
//!
//! A check's [`Finding`] is what one look found; the [`Verdict`] is what several of them mean. An endpoint that says of
//! itself that it does not serve is believed at once. One that says nothing, or fails, has to do so
//! [`Thresholds::unhealthy`] times in a row: a packet may be lost.

use std::fmt;

/// What one health check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// It says SERVING.
    Serving,
    /// It answers, and has no `grpc.health.v1`: as good as SERVING.
    Unimplemented,
    /// It lives, and what it said tells nothing of its health: it wants to know who asks, or speaks something else.
    Alive,
    /// It says that it does not serve.
    Refused(Says),
    /// It gave no answer that says so.
    Failed(Lack),
}

/// How an endpoint says that it does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Says {
    /// `NOT_SERVING`.
    NotServing,
    /// Another status than these and `SERVING`: 0 is `UNKNOWN`, and of the others none is known.
    Other(i32),
    /// `SERVICE_UNKNOWN`, or `NOT_FOUND`: it knows no service of the name that was asked for.
    ServiceUnknown,
}

/// What a check did not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// No answer in time.
    Silent,
    /// No connection, a reset, or a status of failure.
    Failed,
}

/// How many findings in a row make a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Checks without an answer that make it unhealthy; 2, zero counts as one. `NOT_SERVING` does so at once.
    pub unhealthy: u32,
    /// Checks that make it healthy again; 1, zero counts as one.
    pub healthy: u32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            unhealthy: 2,
            healthy: 1,
        }
    }
}

/// What is held of an endpoint's health.
///
/// ```text
///             Serving, Unimplemented                    Refused, or Failed as often as the threshold says
///  Unknown ---------------------------> Healthy ------------------------------------------> Unhealthy
///     ^ |                                ^    ^                                              |  |  ^
///     | +-- Refused, Failed often -------|----|----------------------------------------------|--|--+
///     |                                  |    +---- Serving, Unimplemented, often enough ----+  |
///     +-- Alive, or nobody checks -------+------------------------------------------------------+
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Nothing is known: RPCs go there.
    #[default]
    Unknown,
    /// RPCs go there.
    Healthy,
    /// No RPC goes there, but see [`Why::may_be_tried`].
    Unhealthy(Why),
}

/// Why an endpoint is unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It says so.
    Says(Says),
    /// It does not answer.
    Lacks(Lack),
}

impl Why {
    /// Whether RPCs go there when fewer than half of the endpoints are healthy: not if it said itself that it does not serve.
    pub fn may_be_tried(self) -> bool {
        match self {
            Why::Says(_) => false,
            Why::Lacks(_) => true,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Says(says) => write!(f, "it says {says}"),
            Why::Lacks(Lack::Silent) => f.write_str("it does not answer health checks"),
            Why::Lacks(Lack::Failed) => f.write_str("its health checks fail"),
        }
    }
}

impl fmt::Display for Says {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Says::NotServing => f.write_str("NOT_SERVING"),
            Says::Other(0) => f.write_str("UNKNOWN"),
            Says::Other(status) => write!(f, "status {status}, which is none that is known"),
            Says::ServiceUnknown => f.write_str("SERVICE_UNKNOWN"),
        }
    }
}

/// An endpoint's health, with how far it is on the way to another verdict.
#[derive(Debug, Default)]
pub(super) struct Health {
    verdict: Verdict,
    /// Findings in a row that speak against the verdict.
    against: u32,
}

impl Health {
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes a finding in. Says whether the verdict is another now.
    pub(super) fn found(&mut self, finding: Finding, thresholds: Thresholds) -> bool {
        let (next, needed) = match (finding, self.verdict) {
            (Finding::Serving | Finding::Unimplemented, Verdict::Unhealthy(_)) => {
                (Verdict::Healthy, thresholds.healthy)
            }
            (Finding::Serving | Finding::Unimplemented, _) => (Verdict::Healthy, 1),
            (Finding::Alive, _) => (Verdict::Unknown, 1),
            (Finding::Refused(says), _) => (Verdict::Unhealthy(Why::Says(says)), 1),
            // It was unhealthy already. What it said itself counts until it says something else: it may well be silent
            // because it is stopping.
            (Finding::Failed(_), Verdict::Unhealthy(why)) => (Verdict::Unhealthy(why), 1),
            (Finding::Failed(lack), _) => (Verdict::Unhealthy(Why::Lacks(lack)), thresholds.unhealthy),
        };
        if next == self.verdict {
            self.against = 0;
            return false;
        }
        self.against = self.against.saturating_add(1);
        if self.against < needed {
            return false;
        }
        *self = Health {
            verdict: next,
            against: 0,
        };
        true
    }

    /// Nobody checks it any more. Says whether that changes the verdict.
    pub(super) fn forget(&mut self) -> bool {
        std::mem::take(self).verdict != Verdict::Unknown
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAYS: Finding = Finding::Refused(Says::NotServing);
    const SILENT: Finding = Finding::Failed(Lack::Silent);

    fn after(findings: &[Finding]) -> Verdict {
        let mut health = Health::default();
        for finding in findings {
            health.found(
                *finding,
                Thresholds {
                    unhealthy: 3,
                    healthy: 2,
                },
            );
        }
        health.verdict()
    }

    #[test]
    fn an_endpoint_that_says_not_serving_is_believed_at_once() {
        assert_eq!(
            after(&[Finding::Serving, SAYS]),
            Verdict::Unhealthy(Why::Says(Says::NotServing))
        );
        let unknown = Finding::Refused(Says::ServiceUnknown);
        assert_eq!(after(&[unknown]), Verdict::Unhealthy(Why::Says(Says::ServiceUnknown)));
    }

    #[test]
    fn what_an_endpoint_says_is_named_as_what_it_is() {
        let named = |says| match after(&[Finding::Refused(says)]) {
            Verdict::Unhealthy(why) => (why.to_string(), why.may_be_tried()),
            other @ (Verdict::Unknown | Verdict::Healthy) => panic!("{says:?} is {other:?}"),
        };
        let unknown = "it says status 7, which is none that is known".to_owned();
        assert_eq!(named(Says::Other(7)), (unknown, false));
        assert_eq!(named(Says::Other(0)), ("it says UNKNOWN".to_owned(), false));
        assert_eq!(named(Says::NotServing), ("it says NOT_SERVING".to_owned(), false));
        assert_eq!(
            named(Says::ServiceUnknown),
            ("it says SERVICE_UNKNOWN".to_owned(), false)
        );
    }

    #[test]
    fn silence_counts_only_as_often_as_the_threshold_says() {
        assert_eq!(after(&[SILENT, SILENT]), Verdict::Unknown);
        assert_eq!(
            after(&[SILENT, SILENT, Finding::Serving, SILENT, SILENT]),
            Verdict::Healthy
        );
        assert_eq!(
            after(&[SILENT, SILENT, SILENT]),
            Verdict::Unhealthy(Why::Lacks(Lack::Silent))
        );
    }

    #[test]
    fn no_health_service_is_as_good_as_serving_and_no_verdict_is_no_harm() {
        assert_eq!(after(&[Finding::Unimplemented]), Verdict::Healthy);
        assert_eq!(after(&[Finding::Alive]), Verdict::Unknown);
        assert_eq!(after(&[SAYS, Finding::Alive]), Verdict::Unknown);
    }

    #[test]
    fn it_comes_back_once_it_has_said_so_often_enough() {
        assert!(matches!(after(&[SAYS, Finding::Serving]), Verdict::Unhealthy(_)));
        assert_eq!(after(&[SAYS, Finding::Serving, Finding::Serving]), Verdict::Healthy);
    }

    #[test]
    fn one_that_said_not_serving_and_fell_silent_is_not_tried() {
        let Verdict::Unhealthy(why) = after(&[SAYS, SILENT, SILENT, SILENT, SILENT]) else {
            panic!("it is unhealthy")
        };
        assert!(!why.may_be_tried());
    }

    proptest! {
        /// Against the rules said in words, over the whole history each time.
        #[test]
        fn any_history_means_what_the_rules_say(history in prop::collection::vec(0usize..5, 0..40)) {
            let kinds = [Finding::Serving, Finding::Unimplemented, Finding::Alive, SAYS, SILENT];
            let thresholds = Thresholds { unhealthy: 3, healthy: 2 };
            let mut health = Health::default();
            for at in 0..history.len() {
                health.found(kinds[history[at]], thresholds);
                let row = |good: &dyn Fn(usize) -> bool| history[..=at].iter().rev().take_while(|k| good(**k)).count();
                let unhealthy = matches!(health.verdict(), Verdict::Unhealthy(_));
                match history[at] {
                    3 => prop_assert!(unhealthy),
                    2 => prop_assert_eq!(health.verdict(), Verdict::Unknown),
                    0 | 1 if row(&|k| k < 2) >= 2 => prop_assert_eq!(health.verdict(), Verdict::Healthy),
                    4 if row(&|k| k == 4) >= 3 => prop_assert!(unhealthy),
                    _ => {}
                }
            }
        }
    }
}
