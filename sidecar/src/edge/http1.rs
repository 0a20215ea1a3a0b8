//! A connection of HTTP/1 to the application: every request is parsed and framed anew, so nobody can say of itself who it is.
//!
//! ```text
//!   caller ──▶ hyper's server ──▶ head::to_application ──▶ hyper's client ──▶ application
//!          ◀──                ◀── head::to_caller      ◀──               ◀──
//!                  both, once the application has answered 101: the tunnel carries what follows as bytes
//! ```
//!
//! A caller's connection has one connection of the application's, opened for its first request. When either ends, the
//! other does: callers know how to treat a connection that ended between requests, and nothing is retried in their name.
//! All of it is one future, polled on the worker's thread.

mod body;
mod crowd;
mod head;
mod pulse;
mod refusal;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{client, server};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use body::{ToApplication, ToCaller};
pub use crowd::Crowd;
use crowd::Kept;
use head::Asked;
use pulse::{Pulse, Side, Watched};
pub use refusal::Refusal;

use crate::connect;
use crate::policy::{self, Permit};
use crate::tunnel::{self, Stream};
use crate::waiting::Waiting;

/// Limits of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest head of a request or an answer, in bytes; trailers too. A larger request is answered 431. Default 60 KiB.
    pub max_head: usize,
    /// How long a request's head may take from its first byte. A slower one is answered 408. Between requests a
    /// connection may be idle for as long as the application lets it. Default 30 s.
    pub head_timeout: Duration,
    /// How long a caller that said `Expect: 100-continue` waits for the application to say so, before it is told to go on
    /// all the same. Default 1 s.
    pub continue_patience: Duration,
    /// How long what a caller still sends is read and dropped after the last answer, so that a reset does not overtake
    /// it. Default 1 s.
    pub linger: Duration,
    /// How a connection is carried that has switched to another protocol.
    pub tunnel: tunnel::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            max_head: 60 << 10,
            head_timeout: Duration::from_secs(30),
            continue_patience: Duration::from_secs(1),
            linger: Duration::from_secs(1),
            tunnel: Default::default(),
        }
    }
}

/// What is known of a connection before its first request.
#[derive(Clone)]
pub struct Facts<'a> {
    /// What the application is told about the caller's proven identity; nothing, if none was proven.
    pub client_cert: Option<HeaderValue>,
    /// Who calls.
    pub peer: SocketAddr,
    /// Who is called.
    pub meant: SocketAddr,
    /// Whether the caller may come in, asked for each request: what is allowed changes while a connection is open.
    pub admits: &'a dyn Fn() -> Result<Permit, policy::Refusal>,
    /// All connections of its door.
    pub crowd: &'a Crowd,
}

/// Room for a count of each of [`Refusal::REASONS`]. Their number itself cannot stand in a type that a coroutine holds: rustc
/// would have to know the one before the other.
const PLACES: usize = 16;
const _: () = assert!(Refusal::REASONS.len() <= PLACES);

/// What a connection was, now that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes written to the application.
    pub bytes_up: u64,
    /// Bytes written to the caller.
    pub bytes_down: u64,
    /// Requests that had a whole head.
    pub requests: u64,
    /// Fields removed in which callers claimed an identity, whatever the spelling, in heads and in trailers.
    pub claims: u64,
    /// Requests whose switch to a protocol that would carry requests past us (h2c) was not offered to the application.
    pub upgrades_refused: u64,
    /// What was answered here, by the place of [`Refusal::reason`] in [`Refusal::REASONS`].
    pub refusals: [u64; PLACES],
    /// How it ended.
    pub end: End,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both had said all, or one of them wished no more requests.
    Finished,
    /// The caller's bytes were no HTTP/1 that is understood here, or too large.
    BadRequest,
    /// The caller broke it, or the application did in the middle of an answer; the caller's side was reset.
    Broken,
    /// It was between two requests, and others needed the memory that it kept. What it had not read of its last answer it could
    /// read for a second, or until too many were leaving; then its side was reset.
    Crowded,
    /// A request's head took too long, or longest of all when too many were coming.
    SlowHead,
    /// It switched to another protocol, and ended as a tunnel.
    Switched(tunnel::End),
    /// It was told to stop.
    Cut,
}

/// Carries all requests of `downstream` to one connection that `dial` opens, until either ends.
///
/// `first` was read before. After `drain` no further request is taken; at `cut` all ends at once. Every wait for the
/// caller's heads has a deadline; bodies move as their reader reads, and none stands in memory whole. Dropping the future
/// closes both connections.
pub async fn serve<D: Stream, U: Stream>(
    downstream: D,
    first: Vec<u8>,
    facts: &Facts<'_>,
    dial: impl AsyncFnOnce() -> Result<U, connect::Error>,
    settings: &Settings,
    drain: &CancellationToken,
    cut: &CancellationToken,
) -> Summary {
    let pulse = Rc::new(Pulse::default());
    let talk = Talk {
        facts,
        settings,
        dial: Cell::new(Some(dial)),
        sender: RefCell::new(None),
        line: RefCell::new(Line::Undialled),
        switching: Cell::new(false),
        requests: Cell::new(0),
        upgrades_refused: Cell::new(0),
        refusals: Cell::default(),
        kept: facts.crowd.one(),
        pulse: pulse.clone(),
    };
    let downstream = Watched::new(downstream, Side::Caller, first, pulse.clone());
    let talk_ref = &talk;
    let service = service_fn(move |request| -> Answering<'_> { Box::pin(talk_ref.answer(request)) });
    let mut caller = server::conn::http1::Builder::new()
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_header_size(settings.max_head)
        .max_buf_size(settings.max_head.max(8 << 10) + (4 << 10))
        .serve_connection(TokioIo::new(downstream), service);

    let (mut crowded, mut is_late) = (false, false);
    let ended = {
        let mut told_to_stop = pin!(cut.cancelled());
        let mut told_to_drain = pin!(drain.cancelled());
        let (mut alarm, mut farewell) = (None, None);
        let mut drains = false;
        poll_fn(|cx| {
            if told_to_stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Cut);
            }
            loop {
                // With its shutdown, unless it has switched: without, hyper drops what the caller has not taken yet.
                if let Poll::Ready(ended) = Pin::new(&mut caller).poll(cx) {
                    return Poll::Ready(match ended {
                        Ok(()) if crowded && !talk.switching.get() => End::Crowded,
                        Ok(()) => End::Finished,
                        Err(error) if error.is_parse() => End::BadRequest,
                        Err(_) => End::Broken,
                    });
                }
                let over = talk.drive(cx) && !pulse.under_way.get() && !talk.switching.get();
                crowded = talk.is_in_the_way(cx);
                if !drains && (over || crowded || told_to_drain.as_mut().poll(cx).is_ready()) {
                    drains = true;
                    Pin::new(&mut caller).graceful_shutdown();
                    continue;
                }
                break;
            }
            if crowded && !pulse.under_way.get() {
                // What it has not read by then of its last answer would keep others out.
                let farewell = farewell
                    .get_or_insert_with(|| Box::pin(outstays(Instant::now() + settings.linger, &facts.crowd.leaving)));
                is_late = farewell.as_mut().poll(cx).is_ready();
                if is_late {
                    return Poll::Ready(End::Crowded);
                }
            } else {
                farewell = None;
            }
            match pulse.rings(&mut alarm, settings.head_timeout, &facts.crowd.heads, cx) {
                true => Poll::Ready(End::SlowHead),
                false => Poll::Pending,
            }
        })
        .await
    };

    let parts = caller.into_parts();
    let (read, (downstream, mut unread)) = (parts.read_buf, parts.io.into_inner().into_inner());
    let line = talk.line.replace(Line::Ended);
    let end = match (ended, line) {
        (End::Finished, Line::Released(upstream, server_bytes)) if talk.switching.get() => {
            // What hyper has read stands before what it has not.
            unread.splice(..0, read);
            talk.kept.let_go();
            let carried = tunnel::Carried::default();
            let carrying = tunnel::carry(
                downstream,
                unread,
                upstream,
                server_bytes,
                &settings.tunnel,
                &carried,
                cut,
            );
            let summary = carrying.await;
            pulse.up.set(pulse.up.get() + summary.bytes_up);
            pulse.down.set(pulse.down.get() + summary.bytes_down);
            End::Switched(summary.end)
        }
        (ended, line) => {
            // Before the parting, which takes its time: nobody bounds how many part at once.
            drop((line, read, unread));
            talk.kept.let_go();
            match ended {
                End::SlowHead => part(downstream, SLOW_HEAD, settings.linger, cut).await,
                End::Finished | End::Crowded | End::BadRequest if !is_late => {
                    part(downstream, b"", settings.linger, cut).await;
                }
                // An answer that was cut off must not look whole to those who read to the end.
                End::Finished | End::BadRequest | End::Crowded | End::Broken | End::Cut | End::Switched(_) => {
                    downstream.reset();
                }
            }
            ended
        }
    };
    Summary {
        bytes_up: pulse.up.get(),
        bytes_down: pulse.down.get(),
        requests: talk.requests.get(),
        claims: pulse.claims.get(),
        upgrades_refused: talk.upgrades_refused.get(),
        refusals: talk.refusals.get(),
        end,
    }
}

const SLOW_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\nportunus-error: slow_head\r\n\
    content-type: text/plain; charset=utf-8\r\ncontent-length: 91\r\n\r\n\
    the request's head has been coming for longest of too many, or for longer than it may take\n";

/// Ends our half, and gives the caller a moment to read what was said last.
async fn part(mut downstream: impl Stream, last_words: &[u8], linger: Duration, cut: &CancellationToken) {
    let parting = async {
        if downstream.write_all(last_words).await.is_err() || downstream.shutdown().await.is_err() {
            return;
        }
        let mut dropped = [0; 4 << 10];
        while let Ok(1..) = downstream.read(&mut dropped).await {}
    };
    // Whatever comes first: after it there is nothing left to say.
    let _ = cut.run_until_cancelled(tokio::time::timeout(linger, parting)).await;
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response<ToCaller>, Abandoned>> + 'a>>;
type Sender = client::conn::http1::SendRequest<ToApplication>;
type Driver<U> = client::conn::http1::Connection<TokioIo<Watched<U>>, ToApplication>;

/// The connection ends without an answer to this request, of which nothing was sent.
#[derive(Debug, thiserror::Error)]
#[error("the application ended its connection before this request")]
struct Abandoned;

/// The application's connection.
enum Line<U: Stream> {
    Undialled,
    Open(Box<Driver<U>>),
    /// Given back by hyper, with what it had read of it: it has ended, or switched to another protocol.
    Released(U, Vec<u8>),
    Ended,
}

/// What the requests of a connection share.
struct Talk<'a, U: Stream, F> {
    facts: &'a Facts<'a>,
    settings: &'a Settings,
    dial: Cell<Option<F>>,
    sender: RefCell<Option<Sender>>,
    line: RefCell<Line<U>>,
    /// The application has said 101.
    switching: Cell<bool>,
    requests: Cell<u64>,
    upgrades_refused: Cell<u64>,
    refusals: Cell<[u64; PLACES]>,
    kept: Kept<'a>,
    pulse: Rc<Pulse>,
}

impl<U: Stream, F: AsyncFnOnce() -> Result<U, connect::Error>> Talk<'_, U, F> {
    /// The life of a request: cleaned, sent, its answer cleaned.
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<ToCaller>, Abandoned> {
        let (mut head, incoming) = request.into_parts();
        let has_body = !incoming.is_end_stream();
        let read = self.pulse.request(has_body);
        self.requests.set(self.requests.get() + 1);
        if let Err(refusal) = (self.facts.admits)() {
            return Ok(self.refuse(&refusal.into()));
        }
        if !self.kept.has_room_for(&head, read) {
            return Ok(self.refuse(&Refusal::MemoryBudget));
        }
        let asked = match head::to_application(&mut head, has_body, self.facts.client_cert.as_ref()) {
            Ok(asked) => asked,
            Err(refusal) => return Ok(self.refuse(&refusal)),
        };
        self.count(asked);
        let mut body = ToApplication::new(incoming, self.pulse.clone());
        let word = CancellationToken::new();
        if asked.waits {
            body.wait_for(word.clone(), self.settings.continue_patience);
        }
        let mut request = Request::from_parts(head, body);
        if asked.waits {
            hyper::ext::on_informational(&mut request, move |said| {
                if said.status() == StatusCode::CONTINUE {
                    word.cancel();
                }
            });
        }
        let mut sender = match self.sender().await {
            Ok(Some(sender)) => sender,
            Ok(None) => return Err(Abandoned),
            Err(refusal) => return Ok(self.refuse(&refusal)),
        };
        let is_first = self.requests.get() == 1;
        match sender.try_send_request(request).await {
            Ok(response) => {
                self.sender.replace(Some(sender));
                Ok(self.pass_on(response, asked))
            }
            Err(failed) if failed.message().is_some() && !is_first => Err(Abandoned),
            Err(failed) => Ok(self.refuse(&self.lost(failed.error()))),
        }
    }

    fn count(&self, asked: Asked) {
        self.pulse.claims.set(self.pulse.claims.get() + asked.claims);
        if asked.upgrade_refused {
            self.upgrades_refused.set(self.upgrades_refused.get() + 1);
            tracing::debug!(
                peer = %self.facts.peer, meant = %self.facts.meant,
                "a switch to another HTTP was not offered to the application: its requests would pass unseen; \
                 HTTP/2 is spoken here with prior knowledge"
            );
        }
    }

    /// The way to the application, once it takes a request; none, if it has ended it since the last.
    async fn sender(&self) -> Result<Option<Sender>, Refusal> {
        if let Some(dial) = self.dial.take() {
            let upstream = dial().await.map_err(Refusal::Unreachable)?;
            let upstream = Watched::new(upstream, Side::Application, Vec::new(), self.pulse.clone());
            let opened = client::conn::http1::Builder::new()
                .preserve_header_case(true)
                .allow_obsolete_multiline_headers_in_responses(true)
                .allow_spaces_after_header_name_in_responses(true)
                .max_header_size(self.settings.max_head)
                .max_buf_size(self.settings.max_head.max(8 << 10) + (4 << 10))
                .handshake(TokioIo::new(upstream))
                .await;
            let (sender, driver) = opened.map_err(|error| self.lost(&error))?;
            self.line.replace(Line::Open(Box::new(driver)));
            return Ok(Some(sender));
        }
        let Some(mut sender) = self.sender.take() else {
            return Ok(None);
        };
        Ok(sender.ready().await.is_ok().then_some(sender))
    }

    fn pass_on(&self, response: Response<Incoming>, asked: Asked) -> Response<ToCaller> {
        let (mut head, incoming) = response.into_parts();
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            if !asked.upgrade {
                self.hang_up();
                return self.refuse(&self.bad("it switches to a protocol that it was not asked for".into()));
            }
            self.switching.set(true);
            head::to_caller_switching(&mut head.headers);
        } else if let Err(why) = head::to_caller(&mut head) {
            self.hang_up();
            return self.refuse(&self.bad(why.to_owned()));
        }
        Response::from_parts(head, ToCaller::from_application(incoming, self.pulse.clone()))
    }

    fn refuse(&self, refusal: &Refusal) -> Response<ToCaller> {
        tracing::debug!(peer = %self.facts.peer, meant = %self.facts.meant, "{refusal}");
        let mut refusals = self.refusals.get();
        let place = Refusal::REASONS.iter().position(|reason| *reason == refusal.reason());
        if let Some(count) = place.and_then(|place| refusals.get_mut(place)) {
            *count += 1;
        }
        self.refusals.set(refusals);
        refusal
            .answer()
            .map(|words| ToCaller::from_proxy(words, self.pulse.clone()))
    }

    fn lost(&self, error: &hyper::Error) -> Refusal {
        let mut why = error.to_string();
        if let Some(source) = std::error::Error::source(error) {
            why = format!("{why}: {source}");
        }
        if error.is_parse() {
            return self.bad(why);
        }
        if error.is_user() {
            // Of what is given to hyper's client only the caller's body can fail.
            return Refusal::Body { why };
        }
        let addr = self.facts.meant;
        Refusal::ConnectionLost { addr, why }
    }

    fn bad(&self, why: String) -> Refusal {
        let addr = self.facts.meant;
        Refusal::BadResponse { addr, why }
    }

    fn hang_up(&self) {
        self.sender.take();
        self.pulse.out_of_step.set(true);
    }

    /// Whether it has to go, so that others can have what it keeps.
    fn is_in_the_way(&self, cx: &Context<'_>) -> bool {
        // With half a head, too: whoever never ends it would keep for nothing what it has.
        let rests = self.requests.get() > 0 && !self.pulse.under_way.get() && !self.switching.get();
        match rests {
            true => self.kept.rests(cx),
            false => self.kept.works(),
        }
        self.kept.is_sent_away() && !self.switching.get()
    }

    /// Moves the application's connection. True once it is over.
    fn drive(&self, cx: &mut Context<'_>) -> bool {
        let mut line = self.line.borrow_mut();
        if self.pulse.out_of_step.get() && !self.switching.get() {
            self.sender.take();
            *line = Line::Ended;
        }
        let Line::Open(driver) = &mut *line else {
            return matches!(*line, Line::Released(..) | Line::Ended);
        };
        if driver.poll_without_shutdown(cx).is_pending() {
            return false;
        }
        if let Line::Open(driver) = std::mem::replace(&mut *line, Line::Ended) {
            let parts = driver.into_parts();
            let (upstream, unread) = parts.io.into_inner().into_inner();
            let mut said = Vec::from(parts.read_buf);
            said.extend(unread);
            *line = Line::Released(upstream, said);
        }
        true
    }
}

/// Rings for the head that began then.
type Alarm<'a> = (Instant, Pin<Box<dyn Future<Output = ()> + 'a>>);

impl Pulse {
    /// Whether a head has been coming for longer than it may: than `patience`, or than all others when too many are. One that
    /// is whole at once takes no place among them.
    fn rings<'a>(
        &self,
        alarm: &mut Option<Alarm<'a>>,
        patience: Duration,
        heads: &'a Waiting,
        cx: &mut Context<'_>,
    ) -> bool {
        let began = self.head_since.get();
        if alarm.as_ref().map(|(set_for, _)| *set_for) != began {
            *alarm = began.map(|since| (since, Box::pin(outstays(since + patience, heads)) as _));
        }
        alarm
            .as_mut()
            .is_some_and(|(_, rings)| rings.as_mut().poll(cx).is_ready())
    }
}

/// Takes a place among those who wait; returns at `end`, or when the place is needed for a later one.
async fn outstays(end: Instant, waiting: &Waiting) {
    let place = waiting.enter();
    tokio::select! {
        () = place.needed() => {}
        () = sleep_until(end) => {}
    }
}

#[cfg(test)]
mod tests;
