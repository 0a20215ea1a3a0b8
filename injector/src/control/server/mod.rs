//! Control's door to sidecars: gRPC over TLS, bounded in every way, for clients with a certificate and, to join, without.

mod connection;
mod followers;
mod limits;
pub mod listen;
mod services;
pub mod tls;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portunus_proto::mesh::v1::discovery_server::DiscoveryServer;
use portunus_proto::mesh::v1::identity_server::IdentityServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

pub use connection::Visitor;
pub use followers::Followers;
pub use limits::{Doorman, Limits};
pub use services::Services;

use super::numbers::Numbers;
use super::seldom::Seldom;
use tls::Serving;

/// The door, before it opens.
pub struct Server {
    /// TLS as it is now.
    pub serving: watch::Receiver<Serving>,
    /// What is answered.
    pub services: Services,
    /// How much is taken on.
    pub limits: Limits,
    /// What is counted.
    pub numbers: Arc<Numbers>,
}

/// What every connection needs.
struct House {
    server: Server,
    identity: IdentityServer<Services>,
    discovery: DiscoveryServer<Services>,
    doorman: Doorman,
    stop: CancellationToken,
}

/// The largest request, in bytes: a certificate request, a token, and some words.
const MOST_REQUEST: usize = 64 << 10;

impl Server {
    /// Serves until `stop`; then tells every sidecar to go elsewhere, and ends when all have gone, or after the grace period.
    pub async fn serve(self, listeners: Vec<TcpListener>, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let grace = self.limits.grace;
        let house = Arc::new(House {
            identity: IdentityServer::new(self.services.clone()).max_decoding_message_size(MOST_REQUEST),
            discovery: DiscoveryServer::new(self.services.clone()).max_decoding_message_size(MOST_REQUEST),
            doorman: Doorman::new(&self.limits),
            stop: stop.clone(),
            server: self,
        });
        for listener in listeners {
            let accept = accept(listener, house.clone(), tracker.clone());
            tracker.spawn(stop.clone().run_until_cancelled_owned(accept));
        }
        stop.cancelled().await;
        tracker.close();
        if tokio::time::timeout(grace, tracker.wait()).await.is_err() {
            warn!(left = tracker.len(), "some connections did not end in time");
        }
    }
}

/// How often it is said that no connection can be accepted.
const SAY_AGAIN: Duration = Duration::from_secs(60);

async fn accept(listener: TcpListener, house: Arc<House>, tracker: TaskTracker) {
    let mut said = Seldom::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                tracker.spawn(connection::run(stream, from, house.clone()));
            }
            Err(why) if is_of_one(&why) => debug!(%why, "a connection ended before it was accepted"),
            Err(why) => {
                house.server.numbers.refused("connection", "not_accepted");
                if said.is_due(why.kind(), SAY_AGAIN, Instant::now()) {
                    error!(
                        %why,
                        "connections cannot be accepted, and sidecars wait: some may come in when others have ended; is the \
                         limit of open files too low for them?"
                    );
                }
                // Out of file descriptors, for the most part: some will come back.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Whether an error is one connection's own: its other end was gone before it was accepted (accept(2)).
fn is_of_one(why: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    matches!(
        why.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    )
}
