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

/// The kill: it was done between two moments, in seconds of the epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Killed {
    pub(crate) begun: f64,
    pub(crate) done: f64,
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

    /// Every greeter had its share, and nothing failed but what was in flight to the one that was killed, or began before the
    /// callers' sidecars must have `noticed`, so many seconds later.
    pub(crate) fn judge(&self, greeters: &[&Greeter], killed: Option<Killed>, noticed: f64, victim: &str) -> Verdict {
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
        let explained: Vec<_> = self
            .failed()
            .filter(|call| killed.is_some_and(|killed| call.was_in_flight(killed, noticed)))
            .collect();
        let later: Vec<_> = explained
            .iter()
            .filter_map(|call| killed.map(|killed| call.at - killed.done))
            .filter(|later| *later > 0.0)
            .collect();
        let explained = explained.len();
        let some = |calls: usize| match calls {
            1 => "1 call failed that was".to_string(),
            calls => format!("{calls} calls failed that were"),
        };
        if explained > later.len() {
            sentences.push(format!(
                "{} in flight to {victim} when it was killed.",
                some(explained - later.len())
            ));
        }
        if !later.is_empty() {
            sentences.push(format!(
                "{} begun within {:.2} s of the end of {victim}.",
                some(later.len()),
                later.iter().copied().fold(0.0, f64::max)
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

    /// None was begun at a greeter that had `said` NOT_SERVING more seconds later than are `allowed`. If any was later than
    /// is `usual`, the sentence says so.
    pub(crate) fn judge_unwell(&self, verdict: &mut Verdict, greeter: &str, said: f64, usual: f64, allowed: f64) {
        let calls = self.all.iter().filter(|call| call.from == greeter);
        let after: Vec<_> = calls.map(|call| call.at - said).collect();
        let late = after.iter().filter(|after| **after > allowed).count();
        let last = after.into_iter().fold(0.0, f64::max);
        verdict.good &= late == 0;
        verdict.sentences.push(if late > 0 {
            format!("{late} calls went to {greeter} although it had said NOT_SERVING.")
        } else if last > usual {
            format!("{greeter} got no call after it had said NOT_SERVING, but for those of the first {last:.1} s.")
        } else {
            format!("{greeter} got no call after it had said NOT_SERVING.")
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

    /// It had begun when the greeter died, or before that must have been `noticed`, and it ended when it was.
    fn was_in_flight(&self, killed: Killed, noticed: f64) -> bool {
        self.code == "UNAVAILABLE" && self.at <= killed.done + noticed && self.ended() >= killed.begun - noticed
    }
}

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
        let killed = Killed {
            begun: 10.0,
            done: 10.0,
        };
        let failed = |at: f64, ms: f64, code: &str| {
            Call {
                at,
                ms,
                from: String::new(),
                code: code.into(),
                why: String::new(),
            }
            .was_in_flight(killed, 0.1)
        };
        assert!(failed(9.99, 15.0, "UNAVAILABLE"), "in flight");
        assert!(!failed(8.0, 10.0, "UNAVAILABLE"), "ended before");
        assert!(!failed(10.5, 1.0, "UNAVAILABLE"), "began when all could know");
        assert!(!failed(9.99, 15.0, "INTERNAL"), "another fault");
    }

    #[test]
    fn calls_to_one_who_said_not_serving_are_told_of_and_too_late_a_one_is_judged() {
        for (last, good, sentence) in [
            (11.0, true, "a got no call after it had said NOT_SERVING."),
            (
                11.5,
                true,
                "a got no call after it had said NOT_SERVING, but for those of the first 1.5 s.",
            ),
            (12.5, false, "1 calls went to a although it had said NOT_SERVING."),
        ] {
            let call =
                |from: &str, at: f64| format!(r#"{{"at": {at}, "ms": 1, "from": "{from}", "code": "OK", "why": ""}}"#);
            let lines = [call("a", 9.0), call("a", last), call("b", 20.0)];
            let mut verdict = Verdict {
                good: true,
                sentences: Vec::new(),
            };
            calls(&lines.each_ref().map(String::as_str)).judge_unwell(&mut verdict, "a", 10.0, 1.1, 2.0);
            assert_eq!((verdict.good, &*verdict.sentences[0]), (good, sentence));
        }
    }
}
