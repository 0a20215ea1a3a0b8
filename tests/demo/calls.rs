//! The calls as the callers saw them, and whether they went as they should.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::pods::Greeter;

/// A call, as a caller reports it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Call {
    /// When it began, in seconds of the epoch.
    pub(crate) at: f64,
    pub(crate) ms: f64,
    /// Which greeter answered.
    pub(crate) from: String,
    pub(crate) code: String,
    pub(crate) why: String,
}

/// All calls that have ended.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    all: Vec<Call>,
    by_caller: BTreeMap<String, (usize, usize)>,
}

/// The moment of the kill, in seconds of the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Killed {
    pub(crate) at: f64,
}

/// Calls that one greeter answered, in some span of time.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Answers {
    pub(crate) calls: usize,
    /// Of all calls answered in that span.
    pub(crate) share: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
}

/// What the demo has shown.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) good: bool,
    pub(crate) sentences: Vec<String>,
}

impl Calls {
    /// Takes what a caller wrote; a line that is no report is passed over.
    pub(crate) fn read(&mut self, caller: &str, lines: Vec<String>) {
        for call in lines.iter().filter_map(|line| serde_json::from_str::<Call>(line).ok()) {
            let (ended, failed) = self.by_caller.entry(caller.to_string()).or_default();
            *ended += 1;
            *failed += usize::from(!call.is_ok());
            self.all.push(call);
        }
    }

    /// How many calls of a caller have ended, and how many of those failed.
    pub(crate) fn of_caller(&self, caller: &str) -> (usize, usize) {
        self.by_caller.get(caller).copied().unwrap_or_default()
    }

    /// What a greeter answered from a moment on.
    pub(crate) fn answers(&self, greeter: &str, since: f64) -> Answers {
        let answered = self.all.iter().filter(|call| call.is_ok() && call.ended() >= since);
        let all = answered.clone().count();
        let mut times: Vec<_> = answered
            .filter(|call| call.from == greeter)
            .map(|call| call.ms)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |part: usize| times.get((times.len() * part / 100).min(times.len().saturating_sub(1)));
        Answers {
            calls: times.len(),
            share: times.len() as f64 / all.max(1) as f64,
            median: at(50).copied().unwrap_or_default(),
            p99: at(99).copied().unwrap_or_default(),
        }
    }

    /// How often each code and reason was met.
    pub(crate) fn failures(&self) -> BTreeMap<(String, String), usize> {
        let mut failures = BTreeMap::new();
        for call in self.failed() {
            *failures.entry((call.code.clone(), call.why.clone())).or_default() += 1;
        }
        failures
    }

    /// Every greeter had its share, and nothing failed but what was in flight to the one that was killed.
    pub(crate) fn judge(&self, greeters: &[&Greeter], killed: Option<Killed>, victim: &str) -> Verdict {
        let answered: Vec<_> = greeters
            .iter()
            .map(|greeter| self.answers(&greeter.name, 0.0).calls)
            .collect();
        let idle: Vec<_> = greeters
            .iter()
            .zip(&answered)
            .filter(|(_, calls)| **calls == 0)
            .collect();
        let mut sentences: Vec<_> = idle
            .iter()
            .map(|(greeter, _)| format!("{} was never called.", greeter.name))
            .collect();
        let failed = self.failed().count();
        let explained = self
            .failed()
            .filter(|call| killed.is_some_and(|killed| call.was_in_flight(killed)))
            .count();
        if explained > 0 {
            let (calls, were) = if explained == 1 {
                ("call", "was")
            } else {
                ("calls", "were")
            };
            sentences.push(format!(
                "{explained} {calls} failed that {were} in flight to {victim} when it was killed."
            ));
        }
        if failed > explained {
            sentences.push(format!(
                "{} other calls failed, which should not be.",
                failed - explained
            ));
        } else {
            sentences.push(format!("Of {} calls no other failed.", self.all.len()));
        }
        Verdict {
            good: idle.is_empty() && failed == explained && !self.all.is_empty(),
            sentences,
        }
    }

    /// None was begun at a greeter that had said NOT_SERVING, once that could be known.
    pub(crate) fn judge_unwell(&self, verdict: &mut Verdict, greeter: &str, since: f64) {
        let late = self.all.iter().filter(|call| call.from == greeter && call.at > since);
        let late = late.count();
        verdict.good &= late == 0;
        verdict.sentences.push(match late {
            0 => format!("{greeter} got no call after it had said NOT_SERVING."),
            late => format!("{late} calls went to {greeter} although it had said NOT_SERVING."),
        });
    }

    fn failed(&self) -> impl Iterator<Item = &Call> {
        self.all.iter().filter(|call| !call.is_ok())
    }
}

impl Call {
    fn is_ok(&self) -> bool {
        self.code == "OK"
    }

    fn ended(&self) -> f64 {
        self.at + self.ms / 1000.0
    }

    /// It had begun when the greeter died, or before anybody could know, and it ended when that was known.
    fn was_in_flight(&self, killed: Killed) -> bool {
        self.code == "UNAVAILABLE" && self.at <= killed.at + NOTICED && self.ended() >= killed.at - NOTICED
    }
}

/// A second after the kill the callers may not know of it any more.
const NOTICED: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(lines: &[&str]) -> Calls {
        let mut calls = Calls::default();
        calls.read("caller", lines.iter().map(ToString::to_string).collect());
        calls
    }

    #[test]
    fn shares_and_times_are_of_the_answers_since_a_moment() {
        let calls = calls(&[
            r#"{"at": 1.0, "ms": 10, "from": "a", "code": "OK", "why": ""}"#,
            r#"{"at": 5.0, "ms": 20, "from": "a", "code": "OK", "why": ""}"#,
            r#"{"at": 5.0, "ms": 30, "from": "b", "code": "OK", "why": ""}"#,
            r#"{"at": 5.0, "ms": 1, "from": "", "code": "UNAVAILABLE", "why": "gone"}"#,
            "a warning of some library",
        ]);
        assert_eq!(
            calls.answers("a", 4.0),
            Answers {
                calls: 1,
                share: 0.5,
                median: 20.0,
                p99: 20.0
            }
        );
        assert_eq!(calls.answers("a", 0.0).calls, 2);
        assert_eq!(calls.answers("c", 0.0), Answers::default());
        assert_eq!(calls.of_caller("caller"), (4, 1));
        assert_eq!(
            calls.failures(),
            BTreeMap::from([(("UNAVAILABLE".into(), "gone".into()), 1)])
        );
    }

    #[test]
    fn only_what_was_in_flight_at_the_kill_is_explained_by_it() {
        let killed = Killed { at: 10.0 };
        let failed = |at: f64, ms: f64, code: &str| {
            Call {
                at,
                ms,
                from: String::new(),
                code: code.into(),
                why: String::new(),
            }
            .was_in_flight(killed)
        };
        assert!(failed(9.99, 15.0, "UNAVAILABLE"), "in flight");
        assert!(!failed(8.0, 10.0, "UNAVAILABLE"), "ended before");
        assert!(!failed(10.5, 1.0, "UNAVAILABLE"), "began when all could know");
        assert!(!failed(9.99, 15.0, "INTERNAL"), "another fault");
    }
}
