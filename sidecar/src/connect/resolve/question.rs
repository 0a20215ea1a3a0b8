//! One question, a name and a record type, and what is known of its answer.

use std::{net::IpAddr, sync::Arc, time::Duration};

use hickory_resolver::proto::rr::{Name, RecordType};
use rand::RngExt;
use tokio::time::Instant;

use super::Settings;

/// What is asked of a name server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Question {
    /// Absolute.
    pub(super) name: Name,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    A,
    Aaaa,
    Srv,
}

/// What a name server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) data: Data,
    pub(super) ttl: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    /// Sorted, without doubles, never empty.
    Addresses(Vec<IpAddr>),
    /// By priority, never empty.
    Services(Vec<Service>),
}

/// One SRV record (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    pub(super) target: Name,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) cause: Cause,
    /// Who was asked for what, and what came of it.
    pub(super) sentence: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A server said that there is no such name, or no such record.
    Denied,
    /// A server said that it cannot tell, or said nonsense.
    Failed,
    /// No server said anything.
    Silent,
}

/// What is known of a question.
///
/// ```text
///          answer                 trouble
/// nothing --------> data, fresh <---------> data, stale
///    |                  ^           answer
///    +-------> trouble -+
/// ```
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The last that was answered, however long ago.
    pub(super) data: Option<Data>,
    /// What came of asking since.
    pub(super) trouble: Option<Trouble>,
    /// When to ask again; nothing before the first answer.
    pub(super) next: Option<Instant>,
    asked: Option<Instant>,
    failures: u32,
}

impl Record {
    /// Whether the first answer, of whatever kind, is still awaited.
    pub(super) fn is_pending(&self) -> bool {
        self.data.is_none() && self.trouble.is_none()
    }

    pub(super) fn on_asked(&mut self, now: Instant) {
        self.asked = Some(now);
    }

    /// Takes what came of asking and says when to ask again. A TTL is counted from its arrival.
    pub(super) fn on_answer(&mut self, answer: Result<Found, Trouble>, settings: &Settings, now: Instant) -> Instant {
        let pause = match answer {
            Ok(found) => {
                self.data = Some(found.data);
                self.trouble = None;
                self.failures = 0;
                found
                    .ttl
                    .clamp(settings.ttl_floor, settings.ttl_ceiling.max(settings.ttl_floor))
            }
            Err(trouble) => {
                self.trouble = Some(trouble);
                let doubled = settings.ask_interval.saturating_mul(1 << self.failures.min(16));
                self.failures = self.failures.saturating_add(1);
                // Never less, so that the interval holds; somewhat more, so that sidecars do not ask in step.
                doubled
                    .min(settings.retry_ceiling)
                    .mul_f64(rand::rng().random_range(1.0..1.2))
            }
        };
        self.ask_from(now + pause, settings)
    }

    /// Asks at `wish`, or as soon after as the interval allows, and says when that is.
    pub(super) fn ask_from(&mut self, wish: Instant, settings: &Settings) -> Instant {
        let next = self.asked.map_or(wish, |asked| wish.max(asked + settings.ask_interval));
        self.next = Some(next);
        next
    }
}

impl Kind {
    pub(super) fn record_type(self) -> RecordType {
        match self {
            Kind::A => RecordType::A,
            Kind::Aaaa => RecordType::AAAA,
            Kind::Srv => RecordType::SRV,
        }
    }
}
