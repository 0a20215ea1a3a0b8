//! The operator's door: live, ready, metrics, and what was found in the source. Bounded, since anybody may knock.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::identity::Authority;
use super::numbers::{Facts, Numbers};
use super::server::tls::Serving;
use super::server::{Doorman, Limits};
use crate::cluster::file::Health;

/// What the pages are made of.
#[derive(Clone)]
pub struct Admin {
    /// What is counted.
    pub numbers: Arc<Numbers>,
    /// The newest reading of the source.
    pub health: watch::Receiver<Health>,
    /// Who signs.
    pub authorities: watch::Receiver<Arc<Authority>>,
    /// What is wrong with the authority's files.
    pub authority_trouble: watch::Receiver<Option<String>>,
    /// TLS as it is.
    pub serving: watch::Receiver<Serving>,
    /// Whether sidecars are served.
    pub door: watch::Receiver<Door>,
}

/// How it stands with the door that sidecars come in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// It was not opened yet.
    NotYet,
    /// It is open.
    Open,
    /// Control stops: sidecars go elsewhere.
    Closed,
}

/// How many connections there may be.
const MOST_CONNECTIONS: usize = 64;
/// How long one may last.
const LONGEST: Duration = Duration::from_secs(10);

impl Admin {
    /// Serves the pages until `stop`.
    pub async fn serve(self, listeners: Vec<TcpListener>, stop: CancellationToken) {
        let tracker = TaskTracker::new();
        let doorman = Arc::new(Doorman::new(&Limits {
            handshakes: MOST_CONNECTIONS,
            ..Limits::default()
        }));
        for listener in listeners {
            let accept = self.clone().accept(listener, doorman.clone(), tracker.clone());
            tracker.spawn(stop.clone().run_until_cancelled_owned(accept));
        }
        stop.cancelled().await;
        tracker.close();
        let _ = timeout(Duration::from_secs(1), tracker.wait()).await;
    }

    async fn accept(self, listener: TcpListener, doorman: Arc<Doorman>, tracker: TaskTracker) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (admin, doorman) = (self.clone(), doorman.clone());
                    tracker.spawn(async move {
                        // When as many as may be are open one makes room: nobody holds a probe off.
                        let place = doorman.shake(from.ip());
                        let served = timeout(LONGEST, admin.connection(stream));
                        let _ = place.room.clone().run_until_cancelled(served).await;
                    });
                }
                Err(why) => {
                    debug!(%why, "a connection to the admin pages was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: TcpStream) {
        let answer = service_fn(|request| async move { Ok::<_, Infallible>(self.answer(&request)) });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(LONGEST / 2)
            .max_headers(64)
            .max_buf_size(16 << 10)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), answer);
        if let Err(why) = served.await {
            debug!(%why, "a connection to the admin pages broke");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n".to_owned());
        }
        match request.uri().path() {
            "/live" => page(StatusCode::OK, "live\n".to_owned()),
            "/ready" => match why_not_ready(*self.door.borrow(), self.health.borrow().since.is_some()) {
                None => page(StatusCode::OK, "ready\n".to_owned()),
                Some(why) => page(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            },
            "/metrics" => page(StatusCode::OK, self.numbers.page(&self.facts())),
            "/source" => page(StatusCode::OK, self.source()),
            _ => page(
                StatusCode::NOT_FOUND,
                "there are /live, /ready, /metrics and /source\n".to_owned(),
            ),
        }
    }

    fn source(&self) -> String {
        let health = self.health.borrow().clone();
        let newest = match (health.is_refused(), health.since) {
            (true, Some(_)) => "refused: the last good state stays in force",
            (true, None) => "refused, and there is no state before it: no sidecar is served until this is mended",
            (false, _) => "taken",
        };
        let mut page = format!(
            "the newest state was {newest}\ntaken {}, refused {}\n",
            health.accepted, health.refused
        );
        for finding in health.findings.iter() {
            let _ = writeln!(page, "{finding}");
        }
        page
    }

    fn facts(&self) -> Facts {
        let health = self.health.borrow();
        let authority = self.authorities.borrow();
        Facts {
            accepted: health.accepted,
            refused: health.refused,
            source_error: health.is_refused(),
            state_since: health.since,
            authority_error: self.authority_trouble.borrow().is_some(),
            issuer_ends: Some(authority.not_after()),
            root_ends: Some(authority.roots_not_after()),
            own_ends: Some(self.serving.borrow().life.1),
            log_dropped: portunus_logbook::dropped(),
        }
    }
}

/// Why no sidecar is served; nothing, if they are.
fn why_not_ready(door: Door, has_state: bool) -> Option<&'static str> {
    match (door, has_state) {
        (Door::Open, _) => None,
        (Door::Closed, _) => Some("control stops"),
        (Door::NotYet, false) => Some("no state has been read yet that has no mistakes; /source has them"),
        (Door::NotYet, true) => Some("the first state is being arranged; sidecars are served in a moment"),
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_control_stops_is_said_of_one_that_has_served_alone() {
        let says = |door, has_state| why_not_ready(door, has_state).unwrap_or("ready");
        assert!(says(Door::NotYet, false).starts_with("no state has been read yet"));
        // Of many thousands of workloads that takes a while.
        assert!(says(Door::NotYet, true).starts_with("the first state is being arranged"));
        assert_eq!(says(Door::Open, true), "ready");
        for has_state in [false, true] {
            assert_eq!(says(Door::Closed, has_state), "control stops");
        }
    }
}
