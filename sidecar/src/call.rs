//! What the proxy knows of one RPC beside its two streams: when it began, where it goes, and how it ended.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::balance::{self, Outcome, Tried};
use crate::connect::PoolKey;
use crate::exchange::{Exchange, Phase};
use crate::grpc::Code;
use crate::http2::Reason;
use crate::route::ServiceKey;
use crate::slots::Key;
use crate::telemetry::{GrpcType, MethodId, Span};
use crate::timers::Tick;
use crate::worker::Asked;

/// The key of a call.
pub(crate) type CallKey = Key<Call>;

/// One RPC.
pub(crate) struct Call {
    pub(crate) exchange: Exchange,
    pub(crate) inbound: bool,
    /// Whether it is a health check: it is for one endpoint of its service, whatever is held of that, and counts nowhere.
    pub(crate) checks: bool,
    /// Where the caller's connection was going.
    pub(crate) meant: SocketAddr,
    pub(crate) method: Option<MethodId>,
    pub(crate) began: Tick,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) service: ServiceKey,
    pub(crate) choice: Option<Choice>,
    /// Whether it was sent again already: that happens once.
    pub(crate) resent: bool,
    /// Since when bytes of it are held that do not move.
    pub(crate) stalled: Option<Tick>,
    /// [`Boundary::mark`] of the answer when endpoints were looked at last.
    pub(crate) looked: u64,
    /// How it ended, if not by a status of the server's.
    pub(crate) ended: Option<Code>,
    /// Whether that was the server's reset.
    pub(crate) is_reset: bool,
    /// Whether it was counted among the requests, by who is at the other end.
    pub(crate) is_counted: bool,
    /// What most calls never have.
    pub(crate) aside: Option<Box<Aside>>,
}

/// What few calls have: apart, since a call is made and dropped for each RPC.
#[derive(Default)]
pub(crate) struct Aside {
    /// The endpoints that it has been to.
    pub(crate) tried: Tried,
    /// What came of the last of them.
    pub(crate) last_error: Option<Box<str>>,
    /// Its span, if it is recorded.
    pub(crate) span: Option<Box<Span>>,
    /// What the access log will say, if there is one.
    pub(crate) asked: Option<Asked>,
}

/// What the caller allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) timeout: Duration,
}

/// The endpoint that was chosen.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Its place in the service's balancer; `None` inbound, where there is no choice.
    pub(crate) place: Option<balance::Call>,
    pub(crate) addr: SocketAddr,
    pub(crate) pool: PoolKey,
    pub(crate) at: Tick,
}

static NOTHING_TRIED: Tried = Tried::NONE;

impl Call {
    /// The endpoints that it has been to.
    #[inline]
    pub(crate) fn tried(&self) -> &Tried {
        self.aside.as_ref().map_or(&NOTHING_TRIED, |aside| &aside.tried)
    }

    /// What few calls have, of this one.
    pub(crate) fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_default()
    }

    /// Its span, if it is recorded.
    #[inline]
    pub(crate) fn span(&mut self) -> Option<&mut Span> {
        self.aside.as_mut()?.span.as_deref_mut()
    }

    /// Who is asked, as far as that is known.
    pub(crate) fn server(&self) -> SocketAddr {
        self.choice.as_ref().map_or(self.meant, |choice| choice.addr)
    }

    /// What is being waited for, in words.
    pub(crate) fn stage(&self) -> String {
        match (self.exchange.phase, &self.choice) {
            (Phase::Waiting, None) => "the service's addresses were being resolved".to_owned(),
            (Phase::Waiting, Some(choice)) => format!("a connection to {} was being made", choice.addr),
            (Phase::Asked, Some(choice)) => format!("{} had not begun to answer", choice.addr),
            (_, Some(choice)) => format!("{} was answering", choice.addr),
            (_, None) => "the call was ending".to_owned(),
        }
    }

    /// How long ago its endpoint was chosen.
    pub(crate) fn waited(&self, now: Tick) -> Duration {
        self.choice
            .as_ref()
            .map_or(Duration::ZERO, |choice| now.since(choice.at))
    }

    /// The status that the call ends with.
    pub(crate) fn code(&self) -> Code {
        let exchange = &self.exchange;
        match (self.ended, exchange.code) {
            (Some(code), _) | (None, Some(code)) => code,
            (None, None) if exchange.phase == Phase::Answered && exchange.http_status == 200 && !exchange.is_grpc => {
                Code::Ok
            }
            (None, None) if exchange.http_status != 0 => Code::from_http(exchange.http_status),
            (None, None) => Code::Unknown,
        }
    }

    /// What the call's messages looked like.
    pub(crate) fn kind(&self) -> GrpcType {
        let exchange = &self.exchange;
        GrpcType::seen(exchange.asked.messages().into(), exchange.answered.messages().into())
    }

    /// What its endpoint is to be judged by, when the call ends with `code`.
    #[inline(always)]
    pub(crate) fn outcome(&self, code: Code, now: Tick) -> Outcome {
        let answered = self.exchange.http_status != 0;
        match code {
            Code::Unavailable => Outcome::Failed,
            // Whatever reason a server gives for a reset: the caller did not ask for it.
            _ if self.is_reset => Outcome::Failed,
            // An answer that cannot be passed on; not an INTERNAL of the application's own.
            Code::Internal if !answered || self.ended.is_some() => Outcome::Failed,
            Code::Cancelled | Code::DeadlineExceeded if !answered => Outcome::Abandoned {
                waited: self.waited(now),
            },
            Code::Cancelled | Code::DeadlineExceeded
                if self.ended.is_some() && self.exchange.is_grpc && !self.exchange.answered.has_whole() =>
            {
                Outcome::Unfinished {
                    waited: self.waited(now),
                }
            }
            // Our own word: of an endpoint that was not asked it says nothing, and nothing good of one where bytes stalled.
            Code::ResourceExhausted if self.ended.is_some() => match self.stalled {
                None if !answered => Outcome::Unsent,
                None | Some(_) => Outcome::Abandoned {
                    waited: self.waited(now),
                },
            },
            _ => Outcome::Done,
        }
    }
}

/// The status that gRPC gives to a reset (gRPC's `doc/PROTOCOL-HTTP2.md`, Errors).
pub(crate) fn code_of_reset(reason: Reason) -> Code {
    match reason {
        Reason::REFUSED_STREAM => Code::Unavailable,
        Reason::CANCEL => Code::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::End;
    use crate::http2::hpack::Interner;

    fn now() -> Tick {
        let now = Instant::now();
        Tick::new(now, now)
    }

    /// A call that is over and has had no answer.
    fn unanswered(ended: Option<Code>) -> Call {
        let end = End {
            wire: Key::NONE,
            stream: Key::NONE,
        };
        Call {
            exchange: Exchange::new(end, Box::default(), true, &Interner::new()),
            inbound: false,
            checks: false,
            meant: SocketAddr::from(([127, 0, 0, 1], 1)),
            method: None,
            began: now(),
            deadline: None,
            service: Key::NONE,
            choice: None,
            resent: false,
            stalled: None,
            looked: 0,
            ended,
            is_reset: false,
            is_counted: false,
            aside: None,
        }
    }

    fn outcome(call: &Call) -> Outcome {
        call.outcome(call.code(), now())
    }

    const NO_WAIT: Outcome = Outcome::Abandoned { waited: Duration::ZERO };

    #[test]
    fn what_an_endpoint_was_never_asked_is_no_success_of_its() {
        // Too many wait; the next hop takes no such header list.
        assert_eq!(outcome(&unanswered(Some(Code::ResourceExhausted))), Outcome::Unsent);
    }

    #[test]
    fn a_call_whose_bytes_stalled_is_no_success() {
        let mut stalled = unanswered(Some(Code::ResourceExhausted));
        stalled.stalled = Some(now());
        assert_eq!(outcome(&stalled), NO_WAIT);
        stalled.exchange.http_status = 200;
        assert_eq!(outcome(&stalled), NO_WAIT);
    }

    #[test]
    fn that_an_application_has_no_more_to_give_is_an_answer_like_others() {
        let mut answered = unanswered(None);
        answered.exchange.http_status = 200;
        answered.exchange.code = Some(Code::ResourceExhausted);
        assert_eq!(outcome(&answered), Outcome::Done);
    }
}
