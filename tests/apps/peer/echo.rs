//! Metadata that a caller of the interoperability tests wants back: in the headers, and in the trailers, for which
//! tonic's handlers have no words.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use hyper::body::Frame;
use tonic::{Status, body::Body, codegen::Service, server::NamedService};

/// A server that gives it back.
#[derive(Debug, Clone)]
pub(crate) struct Echoing<S>(pub(crate) S);

impl<S> Service<Request<Body>> for Echoing<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (initial, trailing) = (
            request.headers().get(INITIAL).cloned(),
            request.headers().get(TRAILING).cloned(),
        );
        let response = self.0.call(request);
        Box::pin(async move {
            let (mut parts, body) = response.await?.into_parts();
            if let Some(value) = initial {
                parts.headers.insert(INITIAL, value);
            }
            Ok(Response::from_parts(parts, Body::new(WithTrailer { body, trailing })))
        })
    }
}

impl<S: NamedService> NamedService for Echoing<S> {
    const NAME: &'static str = S::NAME;
}

struct WithTrailer {
    body: Body,
    trailing: Option<HeaderValue>,
}

impl hyper::body::Body for WithTrailer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && let Some(value) = self.trailing.take()
        {
            trailers.insert(TRAILING, value);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

const INITIAL: &str = "x-grpc-test-echo-initial";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";
