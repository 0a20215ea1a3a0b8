//! OTLP/gRPC: a unary call over plain HTTP/2, by tonic. Messages come and go encoded, so that a second try costs no copy.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataKey, MetadataMap};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::super::clean::sentence;
use super::call::{MAX_ANSWER, Refused};
use super::{Endpoint, Headers};

/// A collector that speaks gRPC.
#[derive(Debug)]
pub(super) struct Grpc {
    url: String,
    metadata: MetadataMap,
    method: PathAndQuery,
    channel: Option<Channel>,
}

impl Grpc {
    pub(super) fn new(endpoint: &Endpoint, Headers(headers): &Headers, method: &'static str) -> Grpc {
        let mut metadata = MetadataMap::new();
        for (name, value) in headers {
            // What no header can be was refused where the settings were read.
            if let (Ok(name), Ok(mut value)) = (MetadataKey::from_bytes(name.as_bytes()), value.parse()) {
                let secret: &mut tonic::metadata::AsciiMetadataValue = &mut value;
                secret.set_sensitive(true);
                metadata.append(name, value);
            }
        }
        Grpc {
            url: format!("http://{}", endpoint.authority()),
            metadata,
            method: PathAndQuery::from_static(method),
            channel: None,
        }
    }

    pub(super) async fn send(&mut self, message: Bytes) -> Result<Bytes, Refused> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let endpoint = Channel::from_shared(self.url.clone()).map_err(|why| Refused::Never(why.to_string()))?;
                let channel = endpoint.connect().await.map_err(|why| Refused::later(sentence(&why)))?;
                self.channel.insert(channel).clone()
            }
        };
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        client.ready().await.map_err(|why| Refused::later(sentence(&why)))?;
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        let answer = client.unary(request, self.method.clone(), Raw).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| refused(&status))
    }

    pub(super) fn disconnect(&mut self) {
        self.channel = None;
    }
}

/// Which statuses are worth another try (OTLP's specification, "Failures").
fn refused(status: &Status) -> Refused {
    let why = format!("{:?}: {}", status.code(), status.message());
    let after = retry_info(status.details());
    match status.code() {
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss => Refused::Later { why, after },
        Code::ResourceExhausted if after.is_some() => Refused::Later { why, after },
        // tonic's own word for a connection that broke; a collector that means it would be asked again for a minute.
        Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => Refused::Later { why, after },
        _ => Refused::Never(why),
    }
}

/// The delay of a `google.rpc.RetryInfo`.
fn retry_info(details: &[u8]) -> Option<Duration> {
    let details = rpc::Status::decode(details).ok()?.details;
    let info = details
        .iter()
        .find(|any| any.type_url.ends_with("google.rpc.RetryInfo"))?;
    let delay = rpc::RetryInfo::decode(&*info.value)
        .ok()?
        .retry_delay
        .unwrap_or_default();
    let (seconds, nanos) = (u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok()?);
    Some(Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into())))
}

/// What is read of Google's error model.
mod rpc {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Status {
        #[prost(message, repeated, tag = "3")]
        pub(super) details: Vec<Any>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Any {
        #[prost(string, tag = "1")]
        pub(super) type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        pub(super) retry_delay: Option<Delay>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Delay {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

/// Messages as bytes.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(seconds: i64) -> Bytes {
        let delay = rpc::Delay {
            seconds,
            nanos: 500_000_000,
        };
        let info = rpc::RetryInfo {
            retry_delay: Some(delay),
        };
        let any = rpc::Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: info.encode_to_vec(),
        };
        rpc::Status { details: vec![any] }.encode_to_vec().into()
    }

    #[test]
    fn what_the_specification_names_is_tried_again_and_nothing_else() {
        let again = |code| matches!(refused(&Status::new(code, "")), Refused::Later { .. });
        for code in (0..17).map(Code::from_i32) {
            let expected = matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss
            );
            assert_eq!(again(code), expected, "{code:?}");
        }
    }

    #[test]
    fn a_collector_that_says_when_is_asked_again_then() {
        let status = Status::with_details(Code::ResourceExhausted, "busy", details(3));
        let Refused::Later { after, .. } = refused(&status) else {
            panic!("it said when");
        };
        assert_eq!(after, Some(Duration::from_millis(3_500)));
        assert_eq!(retry_info(&details(-1)), None);
        assert_eq!(retry_info(b"\xff\xff"), None);
    }
}
