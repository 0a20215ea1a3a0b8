//! A door: a listener, and what becomes of each connection until it is a wire or a tunnel.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::run::{Inbox, Message, Parts, Stop, Tunnels};
use crate::accept::{self, Accepted, Original, OwnPorts, PodAddresses};
use crate::connect;
use crate::detect::{self, Declared, Detected, Guess, Opened, Protocol, SpeaksFirst, Waiting};
use crate::edge::first_line::{FirstLine, NoRequest};
use crate::edge::http1;
use crate::telemetry::{CONNECTIONS, Counter, DETECTED, Gauge, PROXY_ERRORS, Recorder, TUNNEL_BYTES};
use crate::tunnel::{self, Carried, Stream};

/// One direction's listeners on one worker.
pub(super) struct Door {
    inbound: bool,
    own: PodAddresses,
    own_ports: OwnPorts,
    default: Option<SocketAddr>,
    protocols: HashMap<u16, Declared>,
    accept: accept::Settings,
    detect: detect::Settings,
    tunnel: tunnel::Settings,
    http1: http1::Settings,
    dial: connect::Settings,
    waiting: Waiting,
    speaks_first: SpeaksFirst,
    inbox: Arc<Inbox>,
    /// No further requests on connections that are open.
    drain: CancellationToken,
    cut: CancellationToken,
    tunnels: Tunnels,
    /// Told when a listener fails.
    deaf: Rc<dyn Fn(String)>,
    counts: Counts,
}

struct Counts {
    guesses: Vec<(Guess, Counter)>,
    /// By [`Ending`].
    endings: Box<[Counter]>,
    /// By the place of the reason in [`http1::Refusal::REASONS`].
    refusals: Box<[Counter]>,
    up: Counter,
    down: Counter,
    tunnels: Gauge,
}

/// Why a connection ends here, as a metric shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Loop,
    NotRedirected,
    LoopbackDestination,
    ForeignDestination,
    NoDestination,
    ClientGone,
    Dial,
    UpstreamReset,
    PrefaceTimeout,
    Crowded,
    HiddenRequest,
    SlowHead,
    /// Stays the last: it says how many there are.
    TunnelUnreachable,
}

impl Door {
    /// Opens the listeners of both directions, and serves them in tasks of this thread.
    pub(super) fn open_all(
        parts: &Parts,
        inbox: &Arc<Inbox>,
        recorder: &Recorder,
        stop: &Stop,
        deaf: Rc<dyn Fn(String)>,
    ) -> anyhow::Result<Tunnels> {
        let tunnels = Tunnels::default();
        for inbound in [true, false] {
            let door = Rc::new(Door {
                inbound,
                own: PodAddresses::new(),
                own_ports: parts.own_ports,
                default: if inbound {
                    parts.inbound_default
                } else {
                    parts.outbound_default
                },
                protocols: if inbound {
                    parts.inbound_protocols.clone()
                } else {
                    parts.outbound_protocols.clone()
                },
                accept: parts.accept.clone(),
                detect: parts.detect.clone(),
                tunnel: parts.tunnel.clone(),
                http1: http1::Settings {
                    tunnel: parts.tunnel.clone(),
                    ..Default::default()
                },
                dial: parts.dial.clone(),
                waiting: Waiting::new(&parts.detect),
                speaks_first: SpeaksFirst::new(&parts.detect),
                inbox: inbox.clone(),
                drain: if inbound { &stop.inbound } else { &stop.cut }.clone(),
                cut: stop.cut.clone(),
                tunnels: tunnels.clone(),
                deaf: deaf.clone(),
                counts: Counts::new(recorder, inbound),
            });
            let addresses = if inbound { &parts.inbound } else { &parts.outbound };
            let closes = if inbound { &stop.inbound } else { &stop.cut };
            for addr in addresses {
                let listener = accept::listen(*addr, &parts.accept)?;
                tokio::task::spawn_local(door.clone().take_all(*addr, listener, closes.clone()));
            }
        }
        Ok(tunnels)
    }

    async fn take_all(self: Rc<Self>, addr: SocketAddr, listener: TcpListener, closes: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = closes.cancelled() => return,
                accepted = accept::accept(&listener, &self.accept) => accepted,
            };
            match accepted {
                Ok(accepted) => drop(tokio::task::spawn_local(self.clone().take(accepted))),
                Err(error) if error.is_passing() => tracing::warn!("{error}"),
                Err(error) => {
                    tracing::error!(%addr, "{error}");
                    (self.deaf)(format!("{addr} takes no connections any more: {error}"));
                    return;
                }
            }
        }
    }

    /// One connection: where it was going, what it speaks, who carries it.
    async fn take(self: Rc<Self>, accepted: Accepted) {
        let meant = match self.destination(accepted.original) {
            Ok(meant) => meant,
            Err(refusal) => {
                tracing::info!(peer = %accepted.peer, inbound = self.inbound, "connection ended: {refusal}");
                self.counts.ended(Ending::of_refusal(&refusal));
                tunnel::reset(accepted.socket);
                return;
            }
        };
        let declared = self.protocols.get(&meant.port()).copied().unwrap_or(Declared::Nothing);
        let known = self.speaks_first.knows(meant, Instant::now());
        let dial = async || connect::dial(meant, &self.dial).await;
        let found = tokio::select! {
            () = self.cut.cancelled() => return,
            found = detect::detect(&accepted.socket, declared, known, dial, &self.waiting, &self.detect) => found,
        };
        let detected = match found {
            Ok(detected) => detected,
            Err(error) => {
                tracing::debug!(peer = %accepted.peer, %meant, "{error}");
                self.counts.ended(Ending::of_detection(&error));
                if !matches!(error, detect::Error::Client(_)) {
                    tunnel::reset(accepted.socket);
                }
                return;
            }
        };
        self.speaks_first.learn(meant, detected.guess, Instant::now());
        self.counts.guess(detected.guess);
        if detected.protocol == Protocol::Http2 {
            let (socket, first, peer) = (accepted.socket, detected.client_bytes, accepted.peer);
            self.inbox.send(Message::Adopt {
                transport: socket.into(),
                first,
                peer,
                meant,
                inbound: self.inbound,
            });
            return;
        }
        // Apart, or every connection would have room for a tunnel while it is looked at.
        match self.seen(&detected) {
            FirstLine::Request => Box::pin(self.http1(accepted, detected, meant)).await,
            FirstLine::Other => Box::pin(self.tunnel(accepted.socket, detected, meant)).await,
            line @ (FirstLine::Blank | FirstLine::Line(_)) => {
                let guarded = NoRequest::new(accepted.socket, line);
                Box::pin(self.tunnel(guarded, detected, meant)).await;
            }
        }
    }

    /// Whether it is HTTP/1 that must be parsed, since the application would believe what a caller says of itself. An
    /// application that speaks first, or whose port was declared to carry something else, is not asked by HTTP/1.
    fn seen(&self, detected: &Detected) -> FirstLine {
        let asks = match detected.guess {
            Guess::ServerFirst | Guess::Declared => false,
            Guess::ClientFirst
            | Guess::ClientAfterSilence
            | Guess::ClientAfterSettings
            | Guess::ServerClosed
            | Guess::ClientClosed
            | Guess::Incomplete => true,
        };
        match detected.protocol {
            Protocol::Http1 if self.inbound => FirstLine::Request,
            Protocol::Opaque if self.inbound && asks => FirstLine::default().read(&detected.client_bytes),
            Protocol::Http1 | Protocol::Opaque | Protocol::Tls(_) | Protocol::Http2 => FirstLine::Other,
        }
    }

    fn destination(&self, original: Original) -> Result<SocketAddr, accept::Refusal> {
        if let (Original::Direct(_), Some(default)) = (original, self.default) {
            return Ok(default);
        }
        let is_own = |ip| self.own.contains(ip, Instant::now());
        if self.inbound {
            accept::inbound(original, &self.own_ports, is_own)
        } else {
            accept::outbound(original, &self.own_ports, is_own)
        }
    }

    async fn tunnel(&self, client: impl Stream, detected: Detected, meant: SocketAddr) {
        let (upstream, server_bytes) = match detected.upstream {
            Some(opened) => (opened.socket, opened.server_bytes),
            None => match connect::dial(meant, &self.dial).await {
                Ok(socket) => (socket, Vec::new()),
                Err(error) => {
                    tracing::debug!(%meant, "{error}");
                    self.counts.ended(Ending::TunnelUnreachable);
                    client.reset();
                    return;
                }
            },
        };
        let open = if self.inbound {
            &self.tunnels.inbound
        } else {
            &self.tunnels.outbound
        };
        open.set(open.get() + 1);
        let held = self.counts.tunnels.hold();
        let carried = Carried::default();
        let summary = tunnel::carry(
            client,
            detected.client_bytes,
            upstream,
            server_bytes,
            &self.tunnel,
            &carried,
            &self.cut,
        )
        .await;
        drop(held);
        open.set(open.get() - 1);
        self.counts.up.add(summary.bytes_up);
        self.counts.down.add(summary.bytes_down);
        tracing::debug!(%meant, up = summary.bytes_up, down = summary.bytes_down, end = ?summary.end, "tunnel ended");
        if let tunnel::End::Broken {
            kind: ErrorKind::InvalidData,
            ..
        } = summary.end
        {
            tracing::info!(
                %meant,
                "connection ended: it began with an HTTP/1 request whose first line came in pieces; \
                 declare the port's protocol as http"
            );
            self.counts.ended(Ending::HiddenRequest);
        }
    }

    /// A connection of HTTP/1 from the network. It counts as a tunnel does.
    async fn http1(&self, accepted: Accepted, detected: Detected, meant: SocketAddr) {
        let opened = match detected.upstream {
            // What speaks HTTP/2 unasked is asked again, and says itself what it makes of HTTP/1.
            Some(Opened { socket, server_bytes }) if server_bytes.is_empty() => Some(socket),
            Some(_) | None => None,
        };
        let dial = async || match opened {
            Some(socket) => Ok(socket),
            None => connect::dial(meant, &self.dial).await,
        };
        let facts = http1::Facts {
            client_cert: None,
            peer: accepted.peer,
            meant,
        };
        let open = &self.tunnels.inbound;
        open.set(open.get() + 1);
        let held = self.counts.tunnels.hold();
        let first = detected.client_bytes;
        let summary = http1::serve(
            accepted.socket,
            first,
            &facts,
            dial,
            &self.http1,
            &self.drain,
            &self.cut,
        )
        .await;
        drop(held);
        open.set(open.get() - 1);
        self.counts.up.add(summary.bytes_up);
        self.counts.down.add(summary.bytes_down);
        for (counter, times) in self.counts.refusals.iter().zip(summary.refusals) {
            counter.add(times);
        }
        if summary.end == http1::End::SlowHead {
            self.counts.ended(Ending::SlowHead);
        }
        tracing::debug!(
            peer = %accepted.peer, %meant, requests = summary.requests, claims = summary.claims,
            up = summary.bytes_up, down = summary.bytes_down, end = ?summary.end, "HTTP/1 connection ended"
        );
    }
}

impl Counts {
    fn new(recorder: &Recorder, inbound: bool) -> Counts {
        let direction = if inbound { "inbound" } else { "outbound" };
        let guess = |guess: &Guess| (*guess, recorder.resolve(&DETECTED, [direction, guess.name()]));
        Counts {
            guesses: Guess::ALL.iter().map(guess).collect(),
            endings: recorder.resolve_each(&PROXY_ERRORS, Ending::ALL.map(|ending| [direction, ending.word()])),
            refusals: recorder.resolve_each(&PROXY_ERRORS, http1::Refusal::REASONS.map(|reason| [direction, reason])),
            up: recorder.resolve(&TUNNEL_BYTES, [direction, "to_upstream"]),
            down: recorder.resolve(&TUNNEL_BYTES, [direction, "to_downstream"]),
            tunnels: recorder.resolve(&CONNECTIONS, [direction, "tunnel"]),
        }
    }

    fn guess(&self, guess: Guess) {
        if let Some((_, counter)) = self.guesses.iter().find(|(known, _)| *known == guess) {
            counter.inc();
        }
    }

    fn ended(&self, ending: Ending) {
        self.endings[ending as usize].inc();
    }
}

impl Ending {
    const ALL: [Ending; Ending::TunnelUnreachable as usize + 1] = [
        Ending::Loop,
        Ending::NotRedirected,
        Ending::LoopbackDestination,
        Ending::ForeignDestination,
        Ending::NoDestination,
        Ending::ClientGone,
        Ending::Dial,
        Ending::UpstreamReset,
        Ending::PrefaceTimeout,
        Ending::Crowded,
        Ending::HiddenRequest,
        Ending::SlowHead,
        Ending::TunnelUnreachable,
    ];

    fn of_refusal(refusal: &accept::Refusal) -> Ending {
        use accept::Refusal;
        match refusal {
            Refusal::OwnPort(_) => Ending::Loop,
            Refusal::NotRedirected(_) => Ending::NotRedirected,
            Refusal::Loopback(_) => Ending::LoopbackDestination,
            Refusal::NotThisPod(_) => Ending::ForeignDestination,
            Refusal::NoHost(_) => Ending::NoDestination,
        }
    }

    fn of_detection<E: std::error::Error + 'static>(error: &detect::Error<E>) -> Ending {
        use detect::Error;
        match error {
            Error::Client(_) => Ending::ClientGone,
            Error::Dial(_) => Ending::Dial,
            Error::Upstream(_) => Ending::UpstreamReset,
            Error::Dribble { .. } => Ending::PrefaceTimeout,
            Error::Crowded => Ending::Crowded,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Ending::Loop => "loop",
            Ending::NotRedirected => "not_redirected",
            Ending::LoopbackDestination => "loopback_destination",
            Ending::ForeignDestination => "foreign_destination",
            Ending::NoDestination => "no_destination",
            Ending::ClientGone => "client_gone",
            Ending::Dial => "dial",
            Ending::UpstreamReset => "upstream_reset",
            Ending::PrefaceTimeout => "preface_timeout",
            Ending::Crowded => "crowded",
            Ending::HiddenRequest => "hidden_request",
            Ending::SlowHead => "slow_head",
            Ending::TunnelUnreachable => "tunnel_unreachable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_is_counted_under_its_own_word() {
        let words: std::collections::BTreeSet<_> = Ending::ALL.iter().map(|ending| ending.word()).collect();
        assert_eq!(words.len(), Ending::ALL.len());
        for (place, ending) in Ending::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, place, "{ending:?}");
        }
    }
}
