//! Control's door to sidecars: gRPC over TLS, bounded in every way, for clients with a certificate and, to join, without.

mod connection;
mod followers;
mod limits;
pub mod listen;
mod services;
pub mod tls;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use portunus_proto::mesh::v1::discovery_server::DiscoveryServer;
use portunus_proto::mesh::v1::identity_server::IdentityServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub use connection::Visitor;
pub use followers::Followers;
pub use limits::{Doorman, Limits};
pub use services::Services;

use super::numbers::Numbers;
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

async fn accept(listener: TcpListener, house: Arc<House>, tracker: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                tracker.spawn(connection::run(stream, from, house.clone()));
            }
            Err(why) => {
                // Out of file descriptors, for the most part: some will come back.
                debug!(%why, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
