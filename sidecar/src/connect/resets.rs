//! Requests of a wire that were reset before they were answered: whether the server has taken them up.
//!
//! A server counts resets of requests that its application has not accepted yet, and takes many of them for an attack. So it is
//! told of them only once it is shown that they are past that: by an answer to a later request, or by its PONG and some time.

use std::time::{Duration, Instant};

/// How long a server's application may take to accept requests that the server has read.
const TAKES_UP_WITHIN: Duration = Duration::from_millis(150);

/// What is known of one wire's. Few wires have any.
#[derive(Debug, Default)]
pub struct Resets {
    /// How many the server may not have taken up.
    unproven: u32,
    /// The last stream of these; 0 for none.
    last: u32,
    /// Those of them that followed close behind their requests, since a response came to a later one.
    hasty: u32,
    took_up: TookUp,
    /// Streams from this one on began after the server was asked.
    asked_before: u32,
}

/// Whether a server has read what it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum TookUp {
    /// It was not asked, or has shown it by an answer.
    #[default]
    Unknown,
    /// It was, by a PING.
    Asked,
    /// It has answered since.
    Read(Instant),
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

    /// Whether the server has to be asked, before it is told that this stream is reset.
    pub fn wants_question(&self, stream: u32) -> bool {
        match self.took_up {
            TookUp::Unknown => true,
            TookUp::Asked => false,
            TookUp::Read(_) => stream >= self.asked_before,
        }
    }

    /// The server is asked, by a PING, of all streams before `next`.
    pub fn asked(&mut self, next: u32) {
        (self.took_up, self.asked_before) = (TookUp::Asked, next);
    }

    /// It may not be asked. Time has to show it, for all streams before `next`.
    pub fn left_to_time(&mut self, next: u32, now: Instant) {
        (self.took_up, self.asked_before) = (TookUp::Read(now), next);
    }

    /// The server has answered what it was asked.
    pub fn answered(&mut self, now: Instant) {
        if self.took_up == TookUp::Asked {
            self.took_up = TookUp::Read(now);
        }
    }

    /// A response came to `stream`. Requests are taken up in order: so were those before it that were reset.
    pub fn response_to(&mut self, stream: u32) {
        if self.last > 0 && stream > self.last {
            let asked_before = self.asked_before;
            *self = Resets {
                asked_before,
                ..Resets::default()
            };
        }
    }

    /// Whether it is shown that the server has taken up this stream's request.
    pub fn has_taken_up(&self, stream: u32, now: Instant) -> bool {
        match self.took_up {
            TookUp::Read(since) => {
                stream < self.asked_before && now.saturating_duration_since(since) >= TAKES_UP_WITHIN
            }
            TookUp::Unknown | TookUp::Asked => false,
        }
    }

    /// The time has come to tell the server that `stream` is reset.
    pub fn due(&mut self, stream: u32, now: Instant) -> Due {
        // What is unknown though it was asked for, an answer has shown.
        if self.took_up == TookUp::Unknown || self.has_taken_up(stream, now) {
            // Those that come next are asked for again.
            self.unproven = 0;
            return Due::Say;
        }
        match self.wants_question(stream) {
            true => Due::Ask,
            false => Due::Later,
        }
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
        assert!(resets.wants_question(7));
        resets.asked(9);
        assert_eq!(resets.due(7, start), Due::Later, "it has not answered");
        resets.answered(start);
        assert_eq!(resets.due(7, start), Due::Later, "its application may still be busy");
        assert_eq!(resets.due(9, start), Due::Ask, "that began after the question");
        let later = start + TAKES_UP_WITHIN;
        assert_eq!(resets.due(7, later), Due::Say);
        assert_eq!((resets.unproven(), resets.hasty()), (0, 1));
    }

    #[test]
    fn a_response_to_a_later_request_shows_it_for_all_before() {
        let now = Instant::now();
        let mut resets = Resets::default();
        resets.note(5, true);
        resets.note(3, false);
        resets.asked(9);
        resets.response_to(1);
        assert_eq!((resets.unproven(), resets.hasty()), (2, 1), "that came before them");
        resets.response_to(7);
        assert_eq!((resets.unproven(), resets.hasty()), (0, 0));
        assert_eq!(resets.due(5, now), Due::Say);
        resets.answered(now);
        assert_eq!(resets.due(5, now), Due::Say, "a late answer says nothing new");
    }

    #[test]
    fn a_server_that_may_not_be_asked_is_given_time() {
        let now = Instant::now();
        let mut resets = Resets::default();
        resets.note(3, true);
        resets.left_to_time(5, now);
        assert_eq!(resets.due(3, now), Due::Later);
        assert_eq!(resets.due(3, now + TAKES_UP_WITHIN), Due::Say);
    }
}
