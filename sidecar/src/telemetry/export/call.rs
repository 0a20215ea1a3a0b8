//! One export: a message goes to the collector, and its answer, or why there is none, comes back in time.

use std::time::Duration;

use bytes::Bytes;

use super::grpc::Grpc;
use super::http::Http;
use super::{Protocol, Settings, Target};

/// A collector, and the connection to it while there is one.
#[derive(Debug)]
pub(super) struct Collector {
    way: Way,
    timeout: Duration,
}

#[derive(Debug)]
enum Way {
    Grpc(Grpc),
    Http(Http),
}

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    /// It may be sent again: nobody answered, or the answer says so.
    #[error("{why}")]
    Later {
        why: String,
        /// Not before this.
        after: Option<Duration>,
    },
    /// It will never be taken.
    #[error("{0}")]
    Never(String),
}

impl Refused {
    /// It may be sent again as soon as one likes.
    pub(super) fn later(why: impl Into<String>) -> Refused {
        Refused::Later {
            why: why.into(),
            after: None,
        }
    }
}

impl Collector {
    /// A collector to be called at `method` by gRPC, or at the target's path by HTTP.
    pub(super) fn new(settings: &Settings, target: &Target, method: &'static str) -> Collector {
        let way = match settings.protocol {
            Protocol::Grpc => Way::Grpc(Grpc::new(&target.endpoint, &settings.headers, method)),
            Protocol::Http => Way::Http(Http::new(target, &settings.headers)),
        };
        Collector {
            way,
            timeout: settings.timeout,
        }
    }

    /// Sends a message and returns the answer, both encoded. A connection on which something went wrong is not used again.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<Bytes, Refused> {
        let sent = async {
            match &mut self.way {
                Way::Grpc(grpc) => grpc.send(message).await,
                Way::Http(http) => http.send(message).await,
            }
        };
        let answer = match tokio::time::timeout(self.timeout, sent).await {
            Ok(answer) => answer,
            Err(_) => Err(Refused::later(format!("it did not answer within {:?}", self.timeout))),
        };
        if answer.is_err() {
            match &mut self.way {
                Way::Grpc(grpc) => grpc.disconnect(),
                Way::Http(http) => http.disconnect(),
            }
        }
        answer
    }
}

/// The largest answer that is read.
pub(super) const MAX_ANSWER: usize = 64 << 10;
