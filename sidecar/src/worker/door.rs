//! A door: a listener, and what becomes of each connection until it is a wire or a tunnel.

mod ending;
mod reach;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::HeaderValue;
use portunus_logbook::{Line, Noise};
use portunus_proto::{ALPN_H2, ALPN_TCP};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::run::{Inbox, Mesh, Message, Parts, Stop, Tunnels};
use crate::accept::{self, Accepted, Original, OwnPorts, PodAddresses};
use crate::connect::resolve::Routes;
use crate::connect::{self, Dialler, Side, Transport, Via};
use crate::detect::{self, Declared, Detected, Expected, Guess, Opened, Protocol, Speaker, SpeaksFirst};
use crate::edge::first_line::{FirstLine, NoRequest};
use crate::edge::{client_cert, http1};
use crate::policy::{self, Mode, Permit};
use crate::telemetry::Recorder;
use crate::tls::{self, Alpn};
use crate::tunnel::{self, Carried, Stream};
use crate::waiting::Waiting;
use ending::{Counts, Ending};
use reach::Unreached;

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
    waiting: Waiting,
    crowd: http1::Crowd,
    /// Of what crosses, and of what is inside the mesh's TLS: who is behind that says nothing of those who come in plain.
    speaks_first: SpeaksFirst,
    speaks_first_inside: SpeaksFirst,
    inbox: Arc<Inbox>,
    /// No further requests on connections that are open.
    drain: CancellationToken,
    cut: CancellationToken,
    tunnels: Tunnels,
    /// Whether what is open is cut when a certificate ends that it was made with.
    cut_expired: bool,
    /// Told when a listener fails.
    deaf: Rc<dyn Fn(String)>,
    mesh: Option<Mesh>,
    /// Where this pod has a way to.
    routes: RefCell<Routes>,
    dialler: Dialler,
    counts: Counts,
    noise: Rc<RefCell<Noise>>,
}

/// Where in a connection it is listened.
#[derive(Clone, Copy)]
enum Layer {
    /// To what crosses, at a port that takes this: the mesh's TLS may come there, if it takes anything.
    Outer(Option<Mode>),
    /// To what is inside the mesh's TLS.
    Inner,
}

/// A connection whose other end is known as far as it can be.
struct Caller {
    stream: connect::Stream,
    peer: SocketAddr,
    meant: SocketAddr,
    /// Who it has proven to be, and what the application is told of that.
    proven: Option<(tls::Peer, Option<HeaderValue>)>,
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
            let counts = Counts::new(recorder, inbound);
            let held = counts.http1_memory_held.clone();
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
                crowd: http1::Crowd::new(parts.budget, move |kept| held.set(kept as i64)),
                http1: http1::Settings {
                    tunnel: parts.tunnel.clone(),
                    ..Default::default()
                },
                mesh: parts.mesh.clone(),
                routes: RefCell::default(),
                dialler: Dialler::new(parts.dial.clone(), parts.own(), parts.dialled.clone()),
                waiting: Waiting::new(parts.detect.most_waiting),
                speaks_first: SpeaksFirst::new(&parts.detect),
                speaks_first_inside: SpeaksFirst::new(&parts.detect),
                inbox: inbox.clone(),
                drain: if inbound { &stop.inbound } else { &stop.cut }.clone(),
                cut: stop.cut.clone(),
                tunnels: tunnels.clone(),
                cut_expired: parts.cut_expired,
                deaf: deaf.clone(),
                counts,
                noise: Rc::default(),
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
        let meant = match self.destination(&accepted) {
            Ok(meant) => meant,
            Err(refusal) => {
                // Of loops it is said once what they mean, by whoever hears of the first (`app.rs`).
                if !matches!(refusal, accept::Refusal::OwnConnection(_))
                    && let Some(Line { left_out }) = self.line(accepted.peer)
                {
                    tracing::info!(peer = %accepted.peer, inbound = self.inbound, left_out, "connection ended: {refusal}");
                }
                self.counts.ended(Ending::of_refusal(&refusal));
                tunnel::reset(accepted.socket);
                return;
            }
        };
        let declared = self.declared(meant.port());
        let mode = self.mode(meant.port());
        let listened_for = self.listened_for(declared, mode);
        let Accepted { socket, peer, .. } = accepted;
        let detected = self.detect(&socket, listened_for, Layer::Outer(mode), peer, meant);
        let Some(detected) = detected.await else { return };
        if mode.is_some() && is_the_mesh(&detected.protocol) {
            return Box::pin(self.terminate(socket, detected.client_bytes, peer, meant, declared)).await;
        }
        let detected = detected.as_declared(declared);
        if detected.protocol == Protocol::Http2 {
            return self.adopt(Transport::Socket(socket), detected.client_bytes, peer, meant);
        }
        let caller = Caller {
            stream: connect::Stream::plain(socket),
            peer,
            meant,
            proven: None,
        };
        // Apart, or every connection would have room for a tunnel while it is looked at.
        Box::pin(self.carry(caller, detected)).await;
    }

    /// What the port was declared to speak: by a setting, else in the mesh, which knows the pod's own ports alone.
    fn declared(&self, port: u16) -> Declared {
        let of_mesh = || {
            let mesh = self.mesh.as_ref().filter(|_| self.inbound)?;
            mesh.modes.borrow().protocols.get(&port).copied()
        };
        let said = self.protocols.get(&port).copied();
        said.or_else(of_mesh).unwrap_or_default()
    }

    /// What the port takes; nothing outbound, and where there is no mesh. Before that is known, nothing but mTLS.
    fn mode(&self, port: u16) -> Option<Mode> {
        let mesh = self.mesh.as_ref().filter(|_| self.inbound)?;
        Some(mesh.modes.borrow().mode(port).unwrap_or(Mode::Strict))
    }

    /// Whether a caller may come in now.
    fn admit(&self, port: u16, proven: Option<&tls::Peer>) -> Result<Permit, policy::Refusal> {
        let caller = match proven {
            _ if !self.inbound => policy::Caller::Ourselves,
            Some(peer) => policy::Caller::Proven(peer),
            None => policy::Caller::Plain,
        };
        match &self.mesh {
            Some(mesh) => policy::authorize(&mesh.modes.borrow(), port, caller),
            None => policy::authorize(&policy::Inbound::PLAIN, port, caller),
        }
    }

    /// What is listened for, where the mesh's TLS may come instead of what was declared.
    fn listened_for(&self, declared: Declared, mode: Option<Mode>) -> Declared {
        match declared {
            _ if !self.inbound || self.mesh.is_none() => declared,
            // Whoever has not proven who it is does not reach the application by its silence either.
            Declared::Nothing | Declared::Opaque if mode == Some(Mode::Strict) => Declared::Http,
            Declared::Opaque => Declared::Nothing,
            Declared::Http2 => Declared::Http,
            Declared::Nothing | Declared::Http | Declared::GrpcWeb | Declared::Tls => declared,
        }
    }

    /// How long a caller may say nothing that can be understood. Where nothing but the mesh's TLS may come, its client
    /// speaks first, and soon.
    fn patience(&self, layer: Layer) -> Duration {
        match layer {
            Layer::Outer(Some(Mode::Strict)) => self.detect.dribble,
            Layer::Outer(Some(Mode::Permissive | Mode::Disabled) | None) | Layer::Inner => Duration::MAX,
        }
    }

    /// Who speaks first at a destination, and is remembered for that.
    fn speaks_first(&self, layer: Layer) -> &SpeaksFirst {
        match layer {
            Layer::Outer(_) => &self.speaks_first,
            Layer::Inner => &self.speaks_first_inside,
        }
    }

    /// How soon the server is dialled for its client's silence. Where members come with their ClientHello and others without,
    /// it would be dialled for members in vain, and its first words would be taken for an answer to them.
    fn expected(&self, layer: Layer, meant: SocketAddr) -> Expected {
        let has_certificate = || self.mesh.as_ref().is_some_and(|mesh| mesh.own.load().is_some());
        match layer {
            _ if !self.speaks_first(layer).knows(meant, Instant::now()) => Expected::Nothing,
            Layer::Outer(Some(Mode::Permissive)) if has_certificate() => Expected::HelloOrServerFirst,
            Layer::Outer(_) | Layer::Inner => Expected::ServerFirst,
        }
    }

    /// Finds out what a connection carries. Nothing if it has ended over that.
    async fn detect(
        &self,
        client: impl Speaker,
        declared: Declared,
        layer: Layer,
        peer: SocketAddr,
        meant: SocketAddr,
    ) -> Option<Detected> {
        let (expected, patience) = (self.expected(layer, meant), self.patience(layer));
        let no_hello = |why: &dyn Display| {
            if let Some(Line { left_out }) = self.line(peer) {
                tracing::info!(%peer, %meant, left_out, "connection ended: {why}");
            }
        };
        // Apart, or each connection would have room for a handshake of ours while it is silent.
        let dial = async || Box::pin(self.reach(meant)).await;
        let found = tokio::select! {
            () = self.cut.cancelled() => return None,
            () = tokio::time::sleep(patience) => {
                no_hello(&format_args!("the port takes nothing but mTLS now, and no whole ClientHello came within {patience:?}"));
                self.counts.ended(Ending::NoHello);
                return None;
            }
            found = detect::detect(client, declared, expected, dial, &self.waiting, &self.detect) => found,
        };
        match found {
            Ok(detected) => {
                // The mesh's ClientHello says nothing of who speaks first inside, and of what.
                if self.mode(meant.port()).is_none() || !is_the_mesh(&detected.protocol) {
                    self.speaks_first(layer).learn(meant, detected.guess, Instant::now());
                    self.counts.guess(detected.guess);
                }
                Some(detected)
            }
            Err(error) => {
                if matches!(error, detect::Error::HalfHello { .. }) {
                    no_hello(&error);
                } else {
                    tracing::debug!(%meant, "{error}");
                }
                self.counts.ended(Ending::of_detection(&error));
                None
            }
        }
    }

    /// Ends the mesh's TLS: from here on it is known who calls.
    async fn terminate(
        self: Rc<Self>,
        socket: TcpStream,
        first: Vec<u8>,
        peer: SocketAddr,
        meant: SocketAddr,
        declared: Declared,
    ) {
        let Some(own) = self.mesh.as_ref().and_then(|mesh| mesh.own.load_full()) else {
            if let Some(Line { left_out }) = self.line(peer) {
                tracing::warn!(
                    %peer, %meant, left_out,
                    "connection ended: this sidecar has no valid certificate: see /ready"
                );
            }
            self.counts.ended(Ending::NoOwnCertificate);
            return tokio::select! {
                () = self.cut.cancelled() => {}
                () = tls::turn_away(socket, first, HANDSHAKE) => {}
            };
        };
        let shaken = tokio::select! {
            () = self.cut.cancelled() => return,
            shaken = tls::accept(socket, first, &own, HANDSHAKE) => shaken,
        };
        let result = shaken.as_ref().map_or_else(|error| error.reason(), |_| "ok");
        self.inbox.send(Message::ShookHands { inbound: true, result });
        let (socket, session) = match shaken {
            Ok(shaken) => shaken,
            Err(error) => {
                if let Some(Line { left_out }) = self.line(peer) {
                    tracing::warn!(%peer, %meant, reason = error.reason(), left_out, "no mTLS: {error}");
                }
                return;
            }
        };
        let client_cert = client_cert::value(
            session.shown().id().as_str(),
            session.peer().hash(),
            session.peer().id().as_str(),
        );
        if session.alpn() == Alpn::H2 {
            self.counts.guess(Guess::Declared);
            return self.adopt(Transport::Tls(socket, Box::new(session)), Vec::new(), peer, meant);
        }
        // Before it is asked what it carries: a silent one would have the application dialled.
        if let Err(refusal) = self.admit(meant.port(), Some(session.peer())) {
            return self.turned_away(socket, peer, meant, &refusal);
        }
        let mut stream = tls::Stream::new(socket, session);
        // Whoever is in the mesh must not smuggle in what its callers may not say.
        let Some(detected) = self.detect(&mut stream, declared, Layer::Inner, peer, meant).await else {
            return;
        };
        if detected.protocol == Protocol::Http2 {
            let (socket, session, unread) = stream.into_parts();
            let first = [detected.client_bytes, unread].concat();
            return self.adopt(Transport::Tls(socket, Box::new(session)), first, peer, meant);
        }
        let caller = Caller {
            proven: Some((stream.peer().clone(), client_cert.ok())),
            stream: connect::Stream::tls(stream),
            peer,
            meant,
        };
        self.carry(caller, detected).await;
    }

    /// Of what is no call there is nobody who would understand why it may not come in.
    fn turned_away(&self, stream: impl Stream, peer: SocketAddr, meant: SocketAddr, refusal: &policy::Refusal) {
        if let Some(Line { left_out }) = self.line(peer) {
            tracing::info!(%peer, %meant, left_out, "connection ended: {refusal}");
        }
        self.counts.ended(Ending::of_policy(refusal));
        stream.reset();
    }

    /// Whether a line of the log may be about this peer, who has failed perhaps more often than anybody wants to read.
    fn line(&self, peer: SocketAddr) -> Option<Line> {
        line(&self.noise, peer)
    }

    /// Hands a connection of HTTP/2 to the worker.
    fn adopt(&self, transport: Transport, first: Vec<u8>, peer: SocketAddr, meant: SocketAddr) {
        self.inbox.send(Message::Adopt {
            transport,
            first,
            peer,
            side: Side::Caller {
                inbound: self.inbound,
                meant,
                checks: None,
            },
        });
    }

    /// Carries what is no HTTP/2, if it may come in.
    async fn carry(&self, caller: Caller, detected: Detected) {
        let proven = caller.proven.as_ref().map(|(peer, _)| peer);
        let permit = match self.admit(caller.meant.port(), proven) {
            Ok(permit) => permit,
            Err(refusal) => return self.turned_away(caller.stream, caller.peer, caller.meant, &refusal),
        };
        let certified = caller.stream.certified_until();
        match self.seen(&detected, caller.meant) {
            FirstLine::Request => self.http1(caller, detected).await,
            FirstLine::Other => {
                self.tunnel(caller.stream, caller.peer, certified, detected, caller.meant, permit)
                    .await
            }
            line @ (FirstLine::Blank | FirstLine::Method(_) | FirstLine::Line(_)) => {
                let guarded = NoRequest::new(caller.stream, line);
                self.tunnel(guarded, caller.peer, certified, detected, caller.meant, permit)
                    .await;
            }
        }
    }

    /// Whether it is HTTP/1 that must be parsed, since the application would believe what a caller says of itself. An
    /// application that speaks first, or whose port was declared to carry something else, is not asked by HTTP/1.
    fn seen(&self, detected: &Detected, meant: SocketAddr) -> FirstLine {
        // What the pod sends to itself meets no inbound door.
        let believes = self.inbound || self.own.contains(meant.ip(), Instant::now());
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
            Protocol::Http1 if believes => FirstLine::Request,
            Protocol::Opaque if believes && asks => FirstLine::default().read(&detected.client_bytes),
            Protocol::Http1 | Protocol::Opaque | Protocol::Tls(_) | Protocol::Http2 => FirstLine::Other,
        }
    }

    fn destination(&self, accepted: &Accepted) -> Result<SocketAddr, accept::Refusal> {
        let original = accepted.original;
        // What the pod sends alone is led to the outbound door.
        if let (false, Original::Redirected(meant)) = (self.inbound, original)
            && self.dialler.takes_back(accepted.peer, meant)
        {
            return Err(accept::Refusal::OwnConnection(meant));
        }
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

    async fn tunnel(
        &self,
        client: impl Stream,
        peer: SocketAddr,
        certified: Option<SystemTime>,
        detected: Detected,
        meant: SocketAddr,
        _permit: Permit,
    ) {
        let (upstream, server_bytes) = match detected.upstream {
            Some(opened) => (opened.socket, opened.server_bytes),
            None => match self.reach(meant).await {
                Ok(socket) => (socket, Vec::new()),
                Err(error) => {
                    if let Some(Line { left_out }) = self.line(peer) {
                        tracing::info!(%peer, %meant, left_out, "connection ended: {error}");
                    }
                    self.counts.ended(match error {
                        Unreached::ControlSilent(_) | Unreached::Full(..) => Ending::ControlSilent,
                        Unreached::Unusable(..) => Ending::ControlUnusable,
                        Unreached::Dial(_) | Unreached::NoEndpoint(_) => Ending::TunnelUnreachable,
                    });
                    client.reset();
                    return;
                }
            },
        };
        // It is in mTLS on one of its sides at most.
        let certified = certified.or(upstream.certified_until());
        let (first, carried) = (detected.client_bytes, Carried::default());
        let carry =
            async |cut: &_| tunnel::carry(client, first, upstream, server_bytes, &self.tunnel, &carried, cut).await;
        let summary = self.carry_on(certified, meant, carry).await;
        self.counts.up.add(summary.bytes_up);
        self.counts.down.add(summary.bytes_down);
        tracing::debug!(%meant, up = summary.bytes_up, down = summary.bytes_down, end = ?summary.end, "tunnel ended");
        if let tunnel::End::Broken { side, kind, tls } = summary.end {
            self.broken(peer, meant, side, kind, tls);
        }
    }

    /// Carries what is no HTTP/2 to its end, and counts it meanwhile. Nobody can move an application's bytes to another
    /// connection: where they go on when a certificate ends, that is seen, or they are cut, where that is wished.
    async fn carry_on<T>(
        &self,
        certified: Option<SystemTime>,
        meant: SocketAddr,
        carry: impl AsyncFnOnce(&CancellationToken) -> T,
    ) -> T {
        let _open = (self.tunnels.open.one(self.inbound), self.counts.tunnels.hold());
        self.counts.begins(certified.is_some());
        let cut = self.cut.child_token();
        let mut carrying = pin!(carry(&cut));
        let Some(until) = certified else {
            return carrying.await;
        };
        tokio::select! {
            biased;
            ended = &mut carrying => return ended,
            () = passed(until) => {}
        }
        if self.cut_expired {
            tracing::info!(%meant, "connection ended: its certificate has ended");
            cut.cancel();
        }
        let _outlives = self.tunnels.outlived.one(self.inbound);
        carrying.await
    }

    /// A tunnel broke: what is not a peer's or the network's usual way to end is said, and counted. That a server refuses our
    /// certificate was said when it was read (`reach`).
    fn broken(
        &self,
        peer: SocketAddr,
        meant: SocketAddr,
        side: tunnel::Side,
        kind: ErrorKind,
        tls: Option<&'static str>,
    ) {
        let ending = match (kind, tls) {
            (ErrorKind::InvalidData, Some(_)) => Ending::BrokenTls,
            (ErrorKind::InvalidData, None) => Ending::HiddenRequest,
            (_, Some(_) | None) => return,
        };
        self.counts.ended(ending);
        let Some(Line { left_out }) = self.line(peer) else {
            return;
        };
        match tls {
            Some(reason) => {
                tracing::info!(%peer, %meant, ?side, reason, left_out, "connection ended: its TLS was broken");
            }
            None => tracing::info!(
                %peer, %meant, left_out,
                "connection ended: it began with an HTTP/1 request whose first line came in pieces; \
                 declare the port's protocol as http"
            ),
        }
    }

    /// A connection of HTTP/1 to this pod's application. It counts as a tunnel does.
    async fn http1(&self, caller: Caller, detected: Detected) {
        let Caller {
            stream,
            peer,
            meant,
            proven,
        } = caller;
        let opened = match detected.upstream {
            // What speaks HTTP/2 unasked is asked again, and says itself what it makes of HTTP/1.
            Some(Opened { socket, server_bytes }) if server_bytes.is_empty() => Some(socket),
            Some(_) | None => None,
        };
        let dial = async || match opened {
            Some(socket) => Ok(socket),
            None => self.dialler.open(meant, Via::Own).await,
        };
        let (proven, client_cert) = proven.unzip();
        let facts = http1::Facts {
            client_cert: client_cert.flatten(),
            peer,
            meant,
            admits: &|| self.admit(meant.port(), proven.as_ref()),
            crowd: &self.crowd,
        };
        let (certified, first) = (stream.certified_until(), detected.client_bytes);
        let serve = async |cut: &_| http1::serve(stream, first, &facts, dial, &self.http1, &self.drain, cut).await;
        let summary = self.carry_on(certified, meant, serve).await;
        self.counts.up.add(summary.bytes_up);
        self.counts.down.add(summary.bytes_down);
        for (counter, times) in self.counts.refusals.iter().zip(summary.refusals) {
            counter.add(times);
        }
        match summary.end {
            http1::End::SlowHead => self.counts.ended(Ending::SlowHead),
            http1::End::Crowded => self.counts.ended(Ending::Crowded),
            _ => {}
        }
        tracing::debug!(
            %peer, %meant, requests = summary.requests, claims = summary.claims,
            up = summary.bytes_up, down = summary.bytes_down, end = ?summary.end, "HTTP/1 connection ended"
        );
    }
}

/// [`Door::line`], for those who outlive their borrow of the door.
fn line(noise: &RefCell<Noise>, peer: SocketAddr) -> Option<Line> {
    noise.borrow_mut().line(peer.ip(), Instant::now())
}

/// How long a handshake may take, from the ClientHello on.
const HANDSHAKE: Duration = Duration::from_secs(4);

/// How often it is looked whether a certificate has ended whose end seems far: clocks are set.
const CLOCK: Duration = Duration::from_secs(30);

/// Returns once it is later than `until` by the clock that certificates go by.
async fn passed(until: SystemTime) {
    while let Ok(left) = until.duration_since(SystemTime::now())
        && !left.is_zero()
    {
        tokio::time::sleep(left.min(CLOCK)).await;
    }
}

/// Whether a ClientHello offers what the mesh speaks, and so is not an application's own.
fn is_the_mesh(protocol: &Protocol) -> bool {
    match protocol {
        Protocol::Tls(hello) => hello
            .alpn
            .iter()
            .any(|protocol| [ALPN_H2, ALPN_TCP].contains(&&protocol[..])),
        Protocol::Http1 | Protocol::Http2 | Protocol::Opaque => false,
    }
}
