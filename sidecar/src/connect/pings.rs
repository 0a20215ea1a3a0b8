//! PINGs that a server was sent: how many more it bears, and whether it owes an answer.
//!
//! grpc-go, grpc-java and gRPC's core end a connection for the fourth PING that comes within five minutes of the one before, and
//! begin to count anew with each HEADERS or DATA that they send.

use std::time::{Duration, Instant};

/// How many PINGs are sent to a server that sends no HEADERS and no DATA meanwhile.
const MOST: u8 = 3;
/// How far apart PINGs are that nobody takes for too many.
const APART: Duration = Duration::from_secs(330);
/// How long a server may take to answer one, or to say anything else.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The PINGs of one wire.
#[derive(Debug, Default)]
pub struct Pings {
    /// When the last one was sent.
    last: Option<Instant>,
    /// How many may have reached the server since it sent HEADERS or DATA.
    times: u8,
    /// How many are not answered.
    unanswered: u8,
    /// Streams from this one on began after the server was asked whether it lives.
    before: u32,
}

impl Pings {
    /// Whether the server may be sent one more.
    pub fn may_ask(&self, now: Instant) -> bool {
        self.times < MOST || self.are_long_ago(now)
    }

    fn are_long_ago(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now.saturating_duration_since(last) > APART)
    }

    /// Whether a server that is silent may be asked whether it lives. One that was asked since it sent anything is asked again
    /// only where a request is `waiting` (that question is given the first stream that counts) which it has got since, or
    /// after a long time.
    pub fn may_ask_whether_it_lives(&self, now: Instant, waiting: impl FnOnce(u32) -> bool) -> bool {
        self.unanswered == 0 && self.may_ask(now) && (waiting(self.before) || self.are_long_ago(now))
    }

    /// One is sent.
    pub fn asked(&mut self, now: Instant) {
        self.last = Some(now);
        self.times = self.times.saturating_add(1);
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// One is sent that asks whether the server lives. `next` is the first stream that begins after it.
    pub fn asked_whether_it_lives(&mut self, now: Instant, next: u32) {
        self.asked(now);
        self.before = next;
    }

    /// The server has answered one.
    pub fn answered(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
    }

    /// HEADERS or DATA came. What is under way reaches the server after it has sent them, so it counts: PINGs of ours, and
    /// the engine's that measures the path, if `path` says that there is one.
    #[inline(always)]
    pub fn heard_more(&mut self, path: bool) {
        if self.times > 0 || path {
            self.count_anew(path);
        }
    }

    #[cold]
    fn count_anew(&mut self, path: bool) {
        self.times = self.unanswered.saturating_add(u8::from(path));
        self.before = 0;
    }

    /// Whether the server owes an answer and has been silent for too long. `heard` is when bytes of its came last.
    pub fn are_overdue(&self, heard: Instant, now: Instant) -> bool {
        self.unanswered > 0
            && self
                .last
                .is_some_and(|last| now.saturating_duration_since(last.max(heard)) > ANSWER_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_server_that_sends_nothing_gets_three() {
        let mut now = Instant::now();
        let mut pings = Pings::default();
        for next in [3, 5, 7] {
            assert!(pings.may_ask_whether_it_lives(now, |before| before < next));
            pings.asked_whether_it_lives(now, next);
            assert!(
                !pings.may_ask_whether_it_lives(now, |_| true),
                "the last is not answered"
            );
            pings.answered();
            assert!(
                !pings.may_ask_whether_it_lives(now, |before| before < next),
                "for nothing new"
            );
        }
        assert!(!pings.may_ask(now));
        now += APART + SECOND;
        assert!(
            pings.may_ask_whether_it_lives(now, |_| false),
            "nobody counts that any more"
        );
    }

    #[test]
    fn what_is_under_way_counts_after_headers_too() {
        let now = Instant::now();
        let mut pings = Pings::default();
        pings.asked(now);
        pings.heard_more(true);
        // Its own, which is not answered, and the engine's.
        assert!(pings.may_ask(now));
        pings.asked(now);
        assert!(!pings.may_ask(now));
        pings.answered();
        pings.answered();
        pings.heard_more(false);
        assert!(
            pings.may_ask_whether_it_lives(now, |before| before == 0),
            "all are forgotten"
        );
    }

    #[test]
    fn a_question_for_another_reason_uses_up_none_whether_it_lives() {
        let now = Instant::now();
        let mut pings = Pings::default();
        pings.asked(now);
        pings.answered();
        assert!(pings.may_ask_whether_it_lives(now, |before| before == 0));
    }

    #[test]
    fn bytes_that_were_under_way_are_no_answer() {
        let now = Instant::now();
        let mut pings = Pings::default();
        assert!(!pings.are_overdue(now, now + 9 * SECOND));
        pings.asked(now);
        assert!(!pings.are_overdue(now, now + 2 * SECOND));
        assert!(pings.are_overdue(now, now + 3 * SECOND));
        assert!(
            !pings.are_overdue(now + 2 * SECOND, now + 3 * SECOND),
            "it says something"
        );
        pings.answered();
        assert!(!pings.are_overdue(now, now + 9 * SECOND));
    }
}
