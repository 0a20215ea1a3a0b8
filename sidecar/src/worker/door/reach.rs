//! Where a tunnel leads: who is at the address that was dialled, and how that one is reached.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portunus_logbook::Line;
use rand::RngExt as _;

use super::{Door, Message, line};
use crate::connect::resolve::Routes;
use crate::connect::{self, NO_WORD, Stream, Via};
use crate::control::Full;
use crate::route::{Known, Subject, View};

/// How long it may take to learn who is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a tunnel's other end was not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreached {
    /// Nobody answered there, or not the one who should be there.
    #[error(transparent)]
    Dial(#[from] connect::Error),
    /// To go there in plain might be a betrayal.
    #[error("control has not said whether {0} belongs to the mesh, so nothing is sent there")]
    ControlSilent(SocketAddr),
    /// The same: control has spoken, but said what cannot be used.
    #[error("what control says of {0} cannot be used, so nothing is sent there: {1}")]
    Unusable(SocketAddr, Arc<str>),
    /// Control cannot be asked.
    #[error("control cannot be asked whether {0} belongs to the mesh, so nothing is sent there: {1}")]
    Full(SocketAddr, Full),
    /// The service that was dialled has nobody who serves it.
    #[error("no endpoint of {0} is ready and in reach")]
    NoEndpoint(String),
}

impl Door {
    /// Opens the connection to where the client's was going.
    pub(super) async fn reach(&self, meant: SocketAddr) -> Result<Stream, Unreached> {
        let (addr, via) = self.who_is_at(meant).await?;
        let in_mtls = matches!(via, Via::Mesh(_));
        let (inbox, noise) = (self.inbox.clone(), self.noise.clone());
        let count = move |result| inbox.send(Message::ShookHands { inbound: false, result });
        match self.dialler.open(addr, via).await {
            // The handshake has ended for us alone.
            Ok(stream) if in_mtls => Ok(stream.when_judged(move |result| {
                if result != "ok"
                    && let Some(Line { left_out }) = line(&noise, addr)
                {
                    match result {
                        // Its log says why. Often it is no more than that its application is not there.
                        NO_WORD => {
                            tracing::info!(%addr, left_out, "a tunnel's server ended it before it had said anything")
                        }
                        reason => {
                            tracing::warn!(%addr, reason, left_out, "no mTLS: the peer ended the tunnel's TLS for that")
                        }
                    }
                }
                count(result);
            })),
            Ok(stream) => Ok(stream),
            Err(error) => {
                if matches!(error, connect::Error::Tls { .. } | connect::Error::NoCertificate { .. }) {
                    if let Some(Line { left_out }) = self.line(addr) {
                        tracing::warn!(%addr, reason = error.reason(), left_out, "{error}");
                    }
                    count(error.reason());
                }
                Err(error.into())
            }
        }
    }

    async fn who_is_at(&self, meant: SocketAddr) -> Result<(SocketAddr, Via), Unreached> {
        // The kernel does not turn what the pod sends to itself: there is nobody to speak TLS with.
        if self.inbound || self.own.contains(meant.ip(), Instant::now()) {
            return Ok((meant, Via::Own));
        }
        let Some(mesh) = &self.mesh else {
            return Ok((meant, Via::Plain));
        };
        let silent = || Unreached::ControlSilent(meant);
        let mut known = (mesh.ask)(Subject::Address(meant)).map_err(|full| Unreached::Full(meant, full))?;
        let answered = known.wait_for(|known| !matches!(**known, Known::Pending));
        let known = match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(known)) => Arc::clone(&known),
            Ok(Err(_)) | Err(_) => return Err(silent()),
        };
        match &*known {
            Known::Pending => Err(silent()),
            Known::Unusable(why) => Err(Unreached::Unusable(meant, why.clone())),
            Known::Outside(_) => Ok((meant, Via::Plain)),
            Known::Endpoint(endpoint) => Ok((endpoint.addr, Via::of(endpoint.identity.clone()))),
            Known::Service(view) => one_of(view, &mut self.routes.borrow_mut()),
        }
    }
}

/// An endpoint that is ready and in reach, by weight: a tunnel has one for its life.
fn one_of(view: &View, routes: &mut Routes) -> Result<(SocketAddr, Via), Unreached> {
    let endpoints = view.in_reach(routes);
    let whole: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    if whole > 0 {
        let mut drawn = rand::rng().random_range(0..whole);
        for endpoint in endpoints {
            let weight = u64::from(endpoint.weight);
            if drawn < weight {
                return Ok((endpoint.addr, Via::of(endpoint.identity.clone())));
            }
            drawn -= weight;
        }
    }
    Err(Unreached::NoEndpoint(view.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::{Endpoint, Policy};

    #[test]
    fn a_tunnel_goes_to_no_address_that_the_pod_has_no_way_to() {
        let endpoint = |addr: &str| Endpoint {
            addr: addr.parse().expect("an address"),
            identity: None,
            zone: String::new(),
            weight: 1,
            is_ready: true,
            workload: String::new(),
        };
        let of = |endpoints| View {
            name: "db.shop:5432".to_owned(),
            addresses: Vec::new(),
            endpoints,
            policy: Policy::default(),
        };
        // A datagram socket has no way to the broadcast address.
        let (near, far) = (endpoint("127.0.0.1:5432"), endpoint("255.255.255.255:5432"));
        let both = of(vec![far.clone(), near.clone()]);
        for _ in 0..100 {
            let (addr, via) = one_of(&both, &mut Routes::default()).expect("one is in reach");
            assert_eq!((addr, via), (near.addr, Via::Plain));
        }
        assert!(matches!(
            one_of(&of(vec![far]), &mut Routes::default()),
            Err(Unreached::NoEndpoint(_))
        ));
    }
}
