//! Bodies on their way through, frame by frame: what a caller must not say, it must not say in trailers either.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::sync::CancellationToken;

use super::head;
use super::pulse::Pulse;

/// A request's body, to the application.
pub(super) struct ToApplication {
    incoming: Incoming,
    pulse: Rc<Pulse>,
    /// The application's word, or our patience, that a caller waits for who said `Expect: 100-continue`. To ask for its
    /// body earlier would be to say 100 in the application's name.
    waits_for: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl ToApplication {
    pub(super) fn new(incoming: Incoming, pulse: Rc<Pulse>) -> ToApplication {
        ToApplication {
            incoming,
            pulse,
            waits_for: None,
        }
    }

    /// Holds the body back until `word`, for `patience` at most.
    pub(super) fn wait_for(&mut self, word: CancellationToken, patience: Duration) {
        self.waits_for = Some(Box::pin(async move {
            // Both mean the same: go on.
            let _ = tokio::time::timeout(patience, word.cancelled_owned()).await;
        }));
    }
}

impl Body for ToApplication {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if let Some(word) = &mut this.waits_for {
            ready!(word.as_mut().poll(cx));
            this.waits_for = None;
        }
        let mut frame = ready!(Pin::new(&mut this.incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            let claims = &this.pulse.claims;
            claims.set(claims.get() + head::remove_claims(trailers));
            this.pulse.taken.set(true);
        }
        if frame.is_none() || this.incoming.is_end_stream() {
            this.pulse.taken.set(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// An answer's body, to the caller. Its end, or its loss, is the end of the request.
pub(super) struct ToCaller {
    source: Source,
    pulse: Rc<Pulse>,
}

enum Source {
    Application(Incoming),
    Proxy(Full<Bytes>),
}

impl ToCaller {
    pub(super) fn from_application(incoming: Incoming, pulse: Rc<Pulse>) -> ToCaller {
        let source = Source::Application(incoming);
        ToCaller { source, pulse }
    }

    pub(super) fn from_proxy(words: Full<Bytes>, pulse: Rc<Pulse>) -> ToCaller {
        let source = Source::Proxy(words);
        ToCaller { source, pulse }
    }
}

impl Body for ToCaller {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.source {
            Source::Application(incoming) => Pin::new(incoming).poll_frame(cx),
            Source::Proxy(words) => Pin::new(words).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Application(incoming) => incoming.is_end_stream(),
            Source::Proxy(words) => words.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Application(incoming) => incoming.size_hint(),
            Source::Proxy(words) => words.size_hint(),
        }
    }
}

impl Drop for ToCaller {
    fn drop(&mut self) {
        self.pulse.answered();
    }
}
