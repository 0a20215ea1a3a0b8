//! An issuer that grows old: when another is tried for, and when it is said that none can be made.

use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use super::authority::Authority;
use crate::control::seldom::Seldom;
use crate::control::times::date;

/// Whether control renews the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewing {
    /// It does.
    Ours,
    /// It has no key to do so with.
    NotOurs,
    /// It has the key of a root, and the issuer is not under that.
    OtherRoot,
    /// It has the key of the root, which ends as soon as the issuer.
    RootEnds,
}

impl Renewing {
    /// Why there will be no other issuer, and what to do; `None` where control makes one, or fails and says why.
    fn why_not(self) -> Option<&'static str> {
        match self {
            Renewing::Ours => None,
            Renewing::NotOurs => Some("control has no root's key to make another with: give it a new issuer in time"),
            Renewing::OtherRoot => {
                Some("it is not under the root that control has the key of: give control a new issuer in time")
            }
            Renewing::RootEnds => {
                Some("its root ends no later, so no other would last longer: give control a new root, then an issuer")
            }
        }
    }
}

/// What was done about the issuer's age, and when.
#[derive(Debug)]
pub struct Ageing {
    /// From one try to the next.
    every: Duration,
    /// For one that is old.
    tried: Seldom<()>,
    said: Seldom<Warning>,
}

/// That an issuer ends, and why there is no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Warning {
    ends: SystemTime,
    why: &'static str,
}

/// From one warning to the next about the same issuer: a part of what is left, and these at least and at most.
const WARN_AFTER: (Duration, Duration) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));
const WARNINGS: u32 = 24;

impl Ageing {
    /// Of an issuer that another is tried for so often, once it is old.
    pub fn new(every: Duration) -> Ageing {
        Ageing {
            every,
            tried: Seldom::default(),
            said: Seldom::default(),
        }
    }

    /// Whether another issuer is to be tried for now: at once when this one has become old, and then at a slow pace. One whose
    /// life has not begun, by this clock, signs nothing that counts: there another is tried for each time.
    pub fn is_due(&mut self, authority: &Authority, clock: SystemTime, now: Instant) -> bool {
        if authority.has_begun(clock) && authority.is_old(clock) {
            return self.tried.is_due((), self.every, now);
        }
        self.tried.forget();
        !authority.has_begun(clock)
    }

    /// Warns of an old issuer that control makes no other for: at once, when the reason or the issuer is another one, and
    /// again from time to time.
    pub fn warn(&mut self, authority: &Authority, renewing: Renewing, clock: SystemTime, now: Instant) {
        let Some(warning) = self.warning(authority, renewing, clock, now) else {
            return;
        };
        let left = warning.ends.duration_since(clock).unwrap_or_default();
        warn!(
            ends = %ends(authority),
            hours_left = left.as_secs() / 3_600,
            "the issuer's certificate is old, and nothing is certified once it has ended; {}",
            warning.why
        );
    }

    fn warning(
        &mut self,
        authority: &Authority,
        renewing: Renewing,
        clock: SystemTime,
        now: Instant,
    ) -> Option<Warning> {
        let why = renewing.why_not().filter(|_| authority.is_old(clock));
        let Some(why) = why else {
            self.said.forget();
            return None;
        };
        let ends = authority.not_after();
        let warning = Warning { ends, why };
        let left = ends.duration_since(clock).unwrap_or_default();
        let pause = (left / WARNINGS).clamp(WARN_AFTER.0, WARN_AFTER.1);
        self.said.is_due(warning, pause, now).then_some(warning)
    }
}

/// When the issuer ends, for people.
pub fn ends(authority: &Authority) -> String {
    date(authority.not_after())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Directory, state_files};

    const HOUR: Duration = Duration::from_secs(3_600);
    const DAY: Duration = Duration::from_secs(24 * 3_600);

    fn authority(made: SystemTime) -> Authority {
        let directory = Directory::new();
        state_files(&directory.0).load(made).expect("it can be made")
    }

    #[test]
    fn another_issuer_is_tried_for_at_once_when_one_is_old_and_then_at_a_slow_pace() {
        let authority = authority(SystemTime::now());
        let minute = Duration::from_secs(60);
        let mut ageing = Ageing::new(minute);
        let (now, clock) = (Instant::now(), SystemTime::now());
        let old = clock + 300 * DAY;
        assert!(!ageing.is_due(&authority, clock, now));
        assert!(ageing.is_due(&authority, old, now));
        assert!(!ageing.is_due(&authority, old, now + minute / 2));
        assert!(ageing.is_due(&authority, old, now + minute));
        // A clock that is turned is another matter, and is seen to at once.
        assert!(ageing.is_due(&authority, clock - 400 * DAY, now + minute));
        assert!(!ageing.is_due(&authority, clock, now + minute));
        assert!(ageing.is_due(&authority, old, now + minute));
    }

    #[test]
    fn that_an_issuer_ends_is_said_once_and_again_at_intervals_and_when_it_is_another() {
        let (now, clock) = (Instant::now(), SystemTime::now());
        let (first, second) = (authority(clock), authority(clock - DAY));
        let mut ageing = Ageing::new(HOUR);
        let mut says = |authority, renewing, left: Duration, after: Duration| {
            let clock = first.not_after() - left;
            ageing.warning(authority, renewing, clock, now + after).is_some()
        };
        let young = first.not_after().duration_since(clock).expect("it is young");
        assert!(!says(&first, Renewing::NotOurs, young, Duration::ZERO), "it is young");
        assert!(
            !says(&first, Renewing::Ours, 100 * DAY, Duration::ZERO),
            "control makes another"
        );
        assert!(says(&first, Renewing::NotOurs, 100 * DAY, Duration::ZERO));
        assert!(!says(&first, Renewing::NotOurs, 100 * DAY, 23 * HOUR));
        assert!(
            says(&first, Renewing::RootEnds, 100 * DAY, 23 * HOUR),
            "for another reason"
        );
        assert!(says(&first, Renewing::RootEnds, 99 * DAY, 47 * HOUR), "a day later");
        assert!(says(&second, Renewing::RootEnds, 99 * DAY, 47 * HOUR), "of another");
        assert!(!says(&first, Renewing::Ours, 5 * HOUR, 48 * HOUR));
        assert!(says(&first, Renewing::NotOurs, 5 * HOUR, 48 * HOUR));
        assert!(
            says(&first, Renewing::NotOurs, 4 * HOUR, 49 * HOUR),
            "near the end, hourly"
        );
    }
}
