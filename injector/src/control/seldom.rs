//! What goes on is said when it is news, and then seldom: a line that comes every second hides all others.

use std::time::{Duration, Instant};

/// What was said last, and when.
#[derive(Debug)]
pub struct Seldom<W>(Option<(W, Instant)>);

impl<W> Default for Seldom<W> {
    fn default() -> Self {
        Seldom(None)
    }
}

impl<W: PartialEq> Seldom<W> {
    /// Whether `what` is to be said now: it is another thing than was said last, or that is `pause` ago.
    pub fn is_due(&mut self, what: W, pause: Duration, now: Instant) -> bool {
        let was_said = |(said, at): &(W, Instant)| *said == what && now.saturating_duration_since(*at) < pause;
        if self.0.as_ref().is_some_and(was_said) {
            return false;
        }
        self.0 = Some((what, now));
        true
    }

    /// It is over: when it comes again that is news.
    pub fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_said_at_once_and_what_goes_on_from_time_to_time() {
        let pause = Duration::from_secs(10);
        let (mut seldom, now) = (Seldom::default(), Instant::now());
        assert!(seldom.is_due("one", pause, now));
        assert!(!seldom.is_due("one", pause, now + pause / 2));
        assert!(seldom.is_due("two", pause, now + pause / 2));
        assert!(!seldom.is_due("two", pause, now + pause));
        assert!(seldom.is_due("two", pause, now + 2 * pause));
        seldom.forget();
        assert!(seldom.is_due("two", pause, now + 2 * pause));
    }
}
