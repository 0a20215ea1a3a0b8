//! What the proxy itself answers to an HTTP/1 request: a status, a reason for machines, a sentence for people.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::words::reasons;
use crate::{connect, policy};

pub(super) const ERROR: HeaderName = HeaderName::from_static("portunus-error");

/// Why a request is answered here, and not by the application.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A tunnel would carry requests past us (an application that answers any method with 200 would open one).
    #[error("CONNECT is not carried to applications in the mesh")]
    Connect,
    /// Who is asked is not clear.
    #[error("the request has {hosts} Host fields, and must have one (RFC 9112, 3.2)")]
    ManyHosts {
        /// How many.
        hosts: usize,
    },
    /// Who is asked is not said.
    #[error("the request has no valid Host field (RFC 9112, 3.2)")]
    NoHost,
    /// Only chunked is understood.
    #[error("the request's transfer coding is not understood: chunked, alone and once, is (RFC 9112, 6.1)")]
    TransferCoding,
    /// The port does not take it in the way in which it came; any more, if others came on this connection before.
    #[error("{0}")]
    NotAllowed(#[from] policy::Refusal),
    /// Other connections keep all the memory there is for HTTP/1, and too few of them are at rest.
    #[error(
        "connections of HTTP/1 with requests under way leave too little memory for this one; raise --memory-budget if that is usual"
    )]
    MemoryBudget,
    /// It ended within its body, or what should be a piece of it is none. The application may have heard the beginning.
    #[error("the rest of the request cannot be read: {why}")]
    Body {
        /// What was wrong.
        why: String,
    },
    /// The application was not reached.
    #[error("{0}; is the application listening there?")]
    Unreachable(connect::Error),
    /// The application's connection ended without an answer.
    #[error("the connection to {addr} ended before its answer ({why}): the application may have processed the request")]
    ConnectionLost {
        /// Who was asked.
        addr: SocketAddr,
        /// How it ended.
        why: String,
    },
    /// The application's answer is no HTTP/1.
    #[error("the answer of {addr} cannot be passed on: {why}")]
    BadResponse {
        /// Who was asked.
        addr: SocketAddr,
        /// What was wrong.
        why: String,
    },
}

reasons! {
    Refusal {
        Refusal::Connect
        | Refusal::ManyHosts { .. }
        | Refusal::NoHost
        | Refusal::TransferCoding
        | Refusal::Body { .. } => "bad_request",
        Refusal::MemoryBudget => "memory_budget",
        Refusal::Unreachable(_) => "unreachable",
        Refusal::ConnectionLost { .. } => "connection_lost",
        Refusal::BadResponse { .. } => "bad_response",
    }
    NotAllowed: policy::Refusal,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Refusal::Connect | Refusal::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            Refusal::ManyHosts { .. } | Refusal::NoHost | Refusal::Body { .. } => StatusCode::BAD_REQUEST,
            Refusal::NotAllowed(policy::Refusal::PolicyUnknown { .. }) | Refusal::MemoryBudget => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::NotAllowed(_) => StatusCode::FORBIDDEN,
            Refusal::Unreachable(connect::Error::Refused { .. } | connect::Error::Loop { .. }) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Refusal::Unreachable(connect::Error::Silent { .. }) => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Unreachable(connect::Error::Tls { .. } | connect::Error::NoCertificate { .. })
            | Refusal::ConnectionLost { .. }
            | Refusal::BadResponse { .. } => StatusCode::BAD_GATEWAY,
        }
    }

    /// The answer. The connection ends after it: what else stands on it is not to be trusted, or has nowhere to go.
    pub(super) fn answer(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(format!("{self}\n")));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(ERROR, HeaderValue::from_static(self.reason()));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}
