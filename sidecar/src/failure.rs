//! Every way an RPC can fail here: its status, a sentence, whose fault it is, and whether anything was sent.
//!
//! What the server itself answers or resets is not a failure of ours: it crosses as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::exchange::{Answer, Lost};
use crate::grpc::Code;
use crate::http2::{self, hpack::Fields};
use crate::policy;
use crate::words::reasons;

/// Why an RPC was ended by the proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The caller's header list is over a limit of ours.
    #[error(
        "the request's header list is {bytes} bytes in {fields} fields, and the sidecar takes {max_bytes} bytes and \
         {max_fields} fields: send less metadata, or raise --http2-max-header-list-bytes or --http2-max-header-fields"
    )]
    RequestHeadersTooLarge {
        /// Bytes, as RFC 9113, 6.5.2 counts.
        bytes: usize,
        /// Fields that were kept.
        fields: usize,
        /// The limit.
        max_bytes: u32,
        /// The limit.
        max_fields: u32,
    },
    /// The server's header list is over a limit of ours.
    #[error(
        "the response of {addr} has a header list of {bytes} bytes, more than the sidecar takes: see --http2-max-header-list-bytes"
    )]
    ResponseHeadersTooLarge {
        /// Who answered.
        addr: SocketAddr,
        /// Bytes, as RFC 9113, 6.5.2 counts.
        bytes: usize,
    },
    /// The header list is larger than the next hop announced that it takes.
    #[error("{addr} takes header lists of at most {max} bytes, and this request's has {bytes}: send less metadata")]
    NextHopHeaders {
        /// Who would have been asked.
        addr: SocketAddr,
        /// Bytes of the list.
        bytes: usize,
        /// What the next hop takes.
        max: usize,
    },
    /// The response's header list is larger than the caller announced that it takes.
    #[error("the caller takes header lists of at most {max} bytes, and the response of {addr} has {bytes}")]
    CallerHeaders {
        /// Who answered.
        addr: SocketAddr,
        /// Bytes of the list.
        bytes: usize,
        /// What the caller takes.
        max: usize,
    },
    /// The worker's memory budget is spent.
    #[error(
        "the sidecar holds {used} bytes for readers that do not read, which is all it may: no new calls until some read; \
         see portunus_memory_held_bytes and --memory-budget"
    )]
    MemoryBudget {
        /// Bytes held and promised.
        used: u64,
    },
    /// The same at the server's sidecar, and no other endpoint could be asked.
    #[error("the sidecar of {addr} refused the call: {why}")]
    MemoryBudgetThere {
        /// Whose sidecar it is.
        addr: SocketAddr,
        /// What it said.
        why: String,
    },
    /// The call's bytes did not move for longest when the memory budget was spent.
    #[error(
        "the sidecar held {held} bytes of this call, which its reader did not take, and may hold no more: the call that had \
         stalled longest was ended; see portunus_memory_held_bytes and --memory-budget"
    )]
    Stalled {
        /// Bytes that were held.
        held: usize,
    },
    /// No endpoint can be tried (any more).
    #[error("no endpoint of {service} can be reached: {why}")]
    NoEndpoint {
        /// What was asked for.
        service: String,
        /// What was tried, and what came of it.
        why: String,
    },
    /// Nobody could say whether the service belongs to the mesh: to call it in plain might be a betrayal.
    #[error(
        "control has not said whether {service} belongs to the mesh, so it cannot be called: see portunus_control_connected, \
         portunus_unfollowed and --control-address"
    )]
    ControlSilent {
        /// What was asked for.
        service: String,
    },
    /// What control said of the service, or of whoever is at its addresses, is nothing that can be taken.
    #[error(
        "what control says of {service} cannot be used, so it is not known whether that belongs to the mesh, and it cannot be \
         called: {why}"
    )]
    ControlUnusable {
        /// What was asked for.
        service: String,
        /// What is wrong with the answer.
        why: Arc<str>,
    },
    /// The port does not take the call in the way in which it came.
    #[error("{0}")]
    NotAllowed(#[from] policy::Refusal),
    /// The connection to the one server that was meant was not made.
    #[error("{why}; is the application listening there?")]
    Unreachable {
        /// What the dial says.
        why: String,
    },
    /// The kernel led our own connection back to us.
    #[error("{why}")]
    Loop {
        /// Which user runs us, and which should.
        why: String,
    },
    /// Too many calls wait for connections to one address.
    #[error("too many calls wait for a connection to {addr}: it accepts too few streams")]
    TooManyWaiting {
        /// Who is asked.
        addr: SocketAddr,
    },
    /// The connection ended after the request was sent.
    #[error("the connection to {addr} ended after the request was sent ({why}): the server may have processed it")]
    ConnectionLost {
        /// Who was asked.
        addr: SocketAddr,
        /// How it ended.
        why: String,
    },
    /// The server refused the stream, and it cannot be sent again.
    #[error("{addr} refused the request before processing it, and {}", not_again(*.lost))]
    Refused {
        /// Who was asked.
        addr: SocketAddr,
        /// Why it cannot be sent again; nothing if it was, already.
        lost: Option<Lost>,
    },
    /// The server broke the protocol.
    #[error("the response of {addr} cannot be passed on: {why}")]
    BadResponse {
        /// Who answered.
        addr: SocketAddr,
        /// What was wrong.
        why: String,
    },
    /// The deadline passed.
    #[error("the deadline of {timeout:?} passed while {stage}")]
    Deadline {
        /// What the caller allowed.
        timeout: Duration,
        /// What was being waited for.
        stage: String,
    },
    /// The proxy is stopping, and its grace period is over.
    #[error("the sidecar stopped: its grace period ended before the call did")]
    Stopping,
}

fn not_again(lost: Option<Lost>) -> &'static str {
    match lost {
        None => "so did another try",
        Some(Lost::TooLarge) => "it was too large to be sent again; the caller may send it",
        Some(Lost::Relieved) => {
            "what was kept to send it again had to go when memory was short (see --memory-budget); the caller may send it"
        }
        Some(Lost::Answered) => "an answer to it had begun",
    }
}

/// Who has to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The one who asked.
    Caller,
    /// The one who was asked.
    Server,
    /// What lies between.
    Network,
    /// The sidecar, or its configuration.
    Sidecar,
}

reasons! {
    Failure {
        Failure::RequestHeadersTooLarge { .. } => "request_headers_too_large",
        Failure::ResponseHeadersTooLarge { .. } => "response_headers_too_large",
        Failure::NextHopHeaders { .. } => "next_hop_headers",
        Failure::CallerHeaders { .. } => "caller_headers",
        Failure::MemoryBudget { .. } => "memory_budget",
        Failure::MemoryBudgetThere { .. } => "memory_budget_there",
        Failure::Stalled { .. } => "stalled",
        Failure::NoEndpoint { .. } => "no_endpoint",
        Failure::ControlSilent { .. } => "control_silent",
        Failure::ControlUnusable { .. } => "control_unusable",
        Failure::Unreachable { .. } => "unreachable",
        Failure::Loop { .. } => "loop",
        Failure::TooManyWaiting { .. } => "too_many_waiting",
        Failure::ConnectionLost { .. } => "connection_lost",
        Failure::Refused { .. } => "refused",
        Failure::BadResponse { .. } => "bad_response",
        Failure::Deadline { .. } => "deadline",
        Failure::Stopping => "stopping",
    }
    NotAllowed: policy::Refusal,
}

impl Failure {
    /// A request's headers, or its trailers, are over our limits.
    pub fn request_too_large(fields: &Fields, limits: &http2::Settings) -> Failure {
        Failure::RequestHeadersTooLarge {
            bytes: fields.list_size(),
            fields: fields.len(),
            max_bytes: limits.max_header_list_bytes,
            max_fields: limits.max_header_fields,
        }
    }

    /// Whether a `portunus-error` of another sidecar says that nothing was sent to its application.
    pub fn is_unsent(reason: &[u8]) -> bool {
        matches!(
            reason,
            b"unreachable" | b"loop" | b"too_many_waiting" | b"memory_budget" | b"policy_unknown"
        )
    }

    /// The status that the caller sees.
    pub fn code(&self) -> Code {
        match self {
            Failure::RequestHeadersTooLarge { .. }
            | Failure::ResponseHeadersTooLarge { .. }
            | Failure::NextHopHeaders { .. }
            | Failure::CallerHeaders { .. }
            | Failure::MemoryBudget { .. }
            | Failure::MemoryBudgetThere { .. }
            | Failure::Stalled { .. }
            | Failure::TooManyWaiting { .. } => Code::ResourceExhausted,
            Failure::NoEndpoint { .. }
            | Failure::ControlSilent { .. }
            | Failure::ControlUnusable { .. }
            | Failure::NotAllowed(policy::Refusal::PolicyUnknown { .. })
            | Failure::Unreachable { .. }
            | Failure::Loop { .. }
            | Failure::ConnectionLost { .. }
            | Failure::Refused { .. }
            | Failure::Stopping => Code::Unavailable,
            Failure::NotAllowed(policy::Refusal::MtlsRequired { .. } | policy::Refusal::MtlsDisabled { .. }) => {
                Code::Unauthenticated
            }
            Failure::BadResponse { .. } => Code::Internal,
            Failure::Deadline { .. } => Code::DeadlineExceeded,
        }
    }

    /// Who has to do something about it.
    pub fn fault(&self) -> Fault {
        match self {
            Failure::RequestHeadersTooLarge { .. }
            | Failure::NextHopHeaders { .. }
            | Failure::NotAllowed(policy::Refusal::MtlsRequired { .. } | policy::Refusal::MtlsDisabled { .. })
            | Failure::Stalled { .. }
            | Failure::Deadline { .. } => Fault::Caller,
            Failure::ResponseHeadersTooLarge { .. }
            | Failure::CallerHeaders { .. }
            | Failure::Unreachable { .. }
            | Failure::TooManyWaiting { .. }
            | Failure::Refused { .. }
            | Failure::BadResponse { .. } => Fault::Server,
            Failure::NoEndpoint { .. } | Failure::ConnectionLost { .. } => Fault::Network,
            Failure::MemoryBudget { .. }
            | Failure::MemoryBudgetThere { .. }
            | Failure::Loop { .. }
            | Failure::ControlSilent { .. }
            | Failure::ControlUnusable { .. }
            | Failure::NotAllowed(policy::Refusal::PolicyUnknown { .. })
            | Failure::Stopping => Fault::Sidecar,
        }
    }

    /// Whether a server may have processed the request: if so, it is not safe to send it again.
    pub fn may_have_been_processed(&self) -> bool {
        match self {
            Failure::ResponseHeadersTooLarge { .. }
            | Failure::CallerHeaders { .. }
            | Failure::Stalled { .. }
            | Failure::ConnectionLost { .. }
            | Failure::BadResponse { .. }
            | Failure::Deadline { .. }
            | Failure::Stopping => true,
            Failure::RequestHeadersTooLarge { .. }
            | Failure::NextHopHeaders { .. }
            | Failure::MemoryBudget { .. }
            | Failure::MemoryBudgetThere { .. }
            | Failure::NoEndpoint { .. }
            | Failure::ControlSilent { .. }
            | Failure::ControlUnusable { .. }
            | Failure::NotAllowed(_)
            | Failure::Unreachable { .. }
            | Failure::Loop { .. }
            | Failure::TooManyWaiting { .. }
            | Failure::Refused { .. } => false,
        }
    }

    /// What the caller is told.
    pub fn answer(&self) -> Answer {
        let http = match (self, self.code()) {
            (Failure::RequestHeadersTooLarge { .. } | Failure::NextHopHeaders { .. }, _) => 431,
            (_, Code::DeadlineExceeded) => 504,
            (_, Code::Unauthenticated) => 401,
            (_, Code::Internal) => 502,
            _ => 503,
        };
        Answer {
            code: self.code(),
            http,
            reason: self.reason(),
            sentence: self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_request_that_is_not_sent_again_says_why() {
        let says = |lost| {
            let addr = SocketAddr::from(([10, 0, 0, 1], 1));
            Failure::Refused { addr, lost }.to_string()
        };
        assert!(says(None).ends_with("so did another try"));
        assert!(says(Some(Lost::TooLarge)).contains("too large to be sent again"));
        let relieved = says(Some(Lost::Relieved));
        assert!(
            relieved.contains("memory was short") && !relieved.contains("too large"),
            "{relieved}"
        );
    }
}
