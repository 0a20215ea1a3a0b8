//! Whether each message came compressed: the flag before it on the wire, which tonic does not show to applications.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use hyper::body::Frame;
use tonic::{Status, body::Body, codegen::Service, server::NamedService, transport::Channel};

/// The flags of one direction of one call, as far as its messages have come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags(Arc<Mutex<Reading>>);

#[derive(Debug, Default)]
struct Reading {
    seen: Vec<bool>,
    /// Of the header of five bytes, and then of the message.
    header: Vec<u8>,
    message: usize,
}

impl Flags {
    /// One for each message whose header has come.
    pub(crate) fn seen(&self) -> Vec<bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).seen.clone()
    }

    fn read(&self, mut bytes: &[u8]) {
        let reading = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !bytes.is_empty() {
            let skipped = reading.message.min(bytes.len());
            bytes.advance(skipped);
            reading.message -= skipped;
            if reading.message == 0 && !bytes.is_empty() {
                reading.header.push(bytes.get_u8());
                if let [flag, length @ ..] = reading.header.as_slice()
                    && let Ok(length) = length.try_into().map(u32::from_be_bytes)
                {
                    reading.seen.push(*flag == 1);
                    reading.message = length as usize;
                    reading.header.clear();
                }
            }
        }
    }
}

/// A server, whose handlers find the [`Flags`] of the request among its extensions.
#[derive(Debug, Clone)]
pub(crate) struct Watched<S>(pub(crate) S);

impl<S> Service<Request<Body>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let flags = Flags::default();
        let (mut parts, body) = request.into_parts();
        parts.extensions.insert(flags.clone());
        self.0
            .call(Request::from_parts(parts, Body::new(Reads { body, flags })))
    }
}

impl<S: NamedService> NamedService for Watched<S> {
    const NAME: &'static str = S::NAME;
}

/// A channel, whose responses carry their [`Flags`] among their extensions.
#[derive(Debug, Clone)]
pub(crate) struct WatchedChannel(pub(crate) Channel);

impl Service<Request<Body>> for WatchedChannel {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let flags = Flags::default();
            let (mut parts, body) = response.await?.into_parts();
            parts.extensions.insert(flags.clone());
            Ok(Response::from_parts(parts, Body::new(Reads { body, flags })))
        })
    }
}

struct Reads {
    body: Body,
    flags: Flags,
}

impl hyper::body::Body for Reads {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(bytes) = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok())
            .and_then(Frame::data_ref)
        {
            self.flags.read(bytes);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_whatever_way_the_bytes_are_cut() {
        let bytes = [
            [1, 0, 0, 0, 3, 9, 9, 9].as_slice(),
            &[0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 1, 9],
        ]
        .concat();
        for size in 1..bytes.len() {
            let flags = Flags::default();
            bytes.chunks(size).for_each(|chunk| flags.read(chunk));
            assert_eq!(flags.seen(), [true, false, true], "in pieces of {size}");
        }
    }
}
