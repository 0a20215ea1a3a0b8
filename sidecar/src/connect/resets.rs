//! Requests of a wire that were reset before they were answered: whether the server has taken them up.
//!
//! A server counts resets of requests that its application has not accepted yet, and takes many of them for an attack. So it is
//! told of them only once it is shown that they are past that: by the answer to a later request, or by its PONG and some time.
//!
//! ```text
//!            ask                 PONG                  150 ms
//! unasked ────────▶ asked ────────────────▶ read ────────────────▶ shown, for all streams before the question
//!                     └── a response to stream n, at any time ──▶ shown, for n and all streams before it
//! ```

use std::time::{Duration, Instant};

/// How long a server's application may take to accept requests that the server has read.
const TAKES_UP_WITHIN: Duration = Duration::from_millis(150);
/// How the PING begins that asks; the rest of its eight bytes says of which streams.
const QUESTION: [u8; 4] = *b"worn";

/// What is known of one wire's. Most have none.
#[derive(Debug, Default)]
pub struct Resets {
    /// How many the server may not have taken up.
    unproven: u32,
    /// The last stream of these; 0 for none.
    last: u32,
    /// Those of them that followed close behind their requests, since a response came to a later one.
    hasty: u32,
    /// Streams before this one have been taken up: that is shown.
    shown: u32,
    question: Option<Question>,
}

/// What the server was asked last: whether it has read the requests of all streams before this one.
#[derive(Clone, Copy, Debug)]
struct Question {
    before: u32,
    /// Since when it has.
    read: Option<Instant>,
}

/// What is to be done with a reset whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The server may be told.
    Say,
    /// Later: it has not answered yet, or only just.
    Later,
    /// Later, and it is to be asked (again): this stream began after it was asked last.
    Ask,
}

impl Resets {
    /// A stream is reset that the server may not have taken up; `hasty` if its request left only just.
    pub fn note(&mut self, stream: u32, hasty: bool) {
        self.unproven += 1;
        self.last = self.last.max(stream);
        self.hasty += u32::from(hasty);
    }

    /// How many the server may not have taken up.
    pub fn unproven(&self) -> u32 {
        self.unproven
    }

    /// How many of them followed close behind their requests.
    pub fn hasty(&self) -> u32 {
        self.hasty
    }

    /// Whether the server has to be asked before it is told that this stream is reset. While the last question is not
    /// settled, there is no other: each would begin the time anew for all.
    pub fn wants_question(&self, stream: u32, now: Instant) -> bool {
        match self.question {
            None => true,
            Some(question) => stream >= question.before && question.is_settled(now),
        }
    }

    /// The server is asked of all streams before `next`: by a PING with these bytes.
    pub fn ask(&mut self, next: u32, now: Instant) -> [u8; 8] {
        self.put(next, None, now);
        let mut payload = [0; 8];
        payload[..4].copy_from_slice(&QUESTION);
        payload[4..].copy_from_slice(&next.to_be_bytes());
        payload
    }

    /// The server may not be asked. Time has to show it, for all streams before `next`.
    pub fn leave_to_time(&mut self, next: u32, now: Instant) {
        self.put(next, Some(now), now);
    }

    fn put(&mut self, before: u32, read: Option<Instant>, now: Instant) {
        if let Some(last) = self.question.filter(|last| last.is_settled(now)) {
            self.shown = self.shown.max(last.before);
        }
        self.question = Some(Question { before, read });
    }

    /// A PONG came: whether it answers a question, the last one or one before.
    pub fn answered(&mut self, payload: [u8; 8], now: Instant) -> bool {
        let ([begins @ .., _, _, _, _], [_, _, _, _, next @ ..]) = (payload, payload);
        if begins != QUESTION {
            return false;
        }
        if let Some(question) = &mut self.question
            && question.read.is_none()
            && question.before == u32::from_be_bytes(next)
        {
            question.read = Some(now);
        }
        true
    }

    /// Whether it is worth telling of responses: something was reset, or is known.
    pub fn has_begun(&self) -> bool {
        self.last > 0 || self.shown > 0
    }

    /// A response came to `stream`. Requests are taken up in order: so was this one, and those before it.
    pub fn response_to(&mut self, stream: u32) {
        self.shown = self.shown.max(stream.saturating_add(1));
        if self.question.is_some_and(|question| question.before <= self.shown) {
            self.question = None;
        }
        if stream > self.last {
            (self.unproven, self.last, self.hasty) = (0, 0, 0);
        }
    }

    /// Whether it is shown that the server has taken up this stream's request.
    pub fn has_taken_up(&self, stream: u32, now: Instant) -> bool {
        let settled = |question: Question| stream < question.before && question.is_settled(now);
        stream < self.shown || self.question.is_some_and(settled)
    }

    /// The time has come to tell the server that `stream` is reset.
    pub fn due(&mut self, stream: u32, now: Instant) -> Due {
        if self.has_taken_up(stream, now) {
            // Those that come next are asked for again.
            self.unproven = 0;
            return Due::Say;
        }
        match self.wants_question(stream, now) {
            true => Due::Ask,
            false => Due::Later,
        }
    }
}

impl Question {
    fn is_settled(&self, now: Instant) -> bool {
        self.read
            .is_some_and(|read| now.saturating_duration_since(read) >= TAKES_UP_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_waits_until_the_server_has_answered_and_had_time() {
        let start = Instant::now();
        let mut resets = Resets::default();
        resets.note(7, true);
        assert!(resets.wants_question(7, start));
        let question = resets.ask(9, start);
        assert_eq!(resets.due(7, start), Due::Later, "it has not answered");
        assert!(resets.answered(question, start));
        assert_eq!(resets.due(7, start), Due::Later, "its application may still be busy");
        let later = start + TAKES_UP_WITHIN;
        assert_eq!(resets.due(9, later), Due::Ask, "that began after the question");
        assert_eq!(resets.due(7, later), Due::Say);
        assert_eq!((resets.unproven(), resets.hasty()), (0, 1));
    }

    #[test]
    fn a_response_to_a_later_request_shows_it_for_all_before() {
        let now = Instant::now();
        let mut resets = Resets::default();
        resets.note(5, true);
        resets.note(3, false);
        resets.note(9, false);
        let question = resets.ask(11, now);
        resets.response_to(1);
        assert_eq!((resets.unproven(), resets.hasty()), (3, 1), "that came before them");
        resets.response_to(7);
        assert_eq!((resets.unproven(), resets.hasty()), (3, 1), "the last is younger");
        assert_eq!((resets.due(5, now), resets.due(9, now)), (Due::Say, Due::Later));
        resets.response_to(11);
        assert_eq!((resets.unproven(), resets.hasty()), (0, 0));
        assert_eq!(resets.due(9, now), Due::Say);
        assert!(resets.answered(question, now));
        assert_eq!(resets.due(9, now), Due::Say, "a late answer says nothing new");
    }

    #[test]
    fn a_server_that_may_not_be_asked_is_given_time() {
        let now = Instant::now();
        let mut resets = Resets::default();
        resets.note(3, true);
        resets.leave_to_time(5, now);
        assert_eq!(resets.due(3, now), Due::Later);
        assert_eq!(resets.due(3, now + TAKES_UP_WITHIN), Due::Say);
    }

    #[test]
    fn cancels_that_go_on_do_not_put_off_those_before() {
        let mut now = Instant::now();
        let mut resets = Resets::default();
        resets.note(1, true);
        let question = resets.ask(3, now);
        resets.answered(question, now);
        for stream in (3..).step_by(2).take(14) {
            now += Duration::from_millis(10);
            resets.note(stream, true);
            assert!(!resets.wants_question(stream, now), "the last is not settled");
        }
        now += Duration::from_millis(10);
        assert!(resets.wants_question(31, now));
        resets.ask(33, now);
        assert_eq!(resets.due(1, now), Due::Say, "whatever is asked next");
        assert_eq!(resets.due(3, now), Due::Later);
    }

    #[test]
    fn an_answer_to_an_older_question_answers_no_other() {
        let now = Instant::now();
        let mut resets = Resets::default();
        resets.note(1, true);
        let first = resets.ask(3, now);
        resets.response_to(3);
        resets.note(5, true);
        resets.ask(7, now);
        assert!(resets.answered(first, now));
        assert_eq!(resets.due(5, now + TAKES_UP_WITHIN), Due::Later);
        assert!(!resets.answered(*b"ptn-live", now), "that is another PING");
    }
}
