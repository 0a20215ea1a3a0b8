//! The server of gRPC's interoperability tests.

use std::{pin::Pin, time::Duration};

use anyhow::Result;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    codec::CompressionEncoding::Gzip,
    codegen::tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream},
    metadata::MetadataMap,
    transport::Server,
};

use crate::{
    echo::Echoing,
    flags::{Flags, Watched},
    listen,
    pb::testing::{
        BoolValue, EchoStatus, Empty, Payload, SimpleRequest, SimpleResponse, StreamingInputCallRequest,
        StreamingInputCallResponse, StreamingOutputCallRequest, StreamingOutputCallResponse,
        test_service_server::{TestService, TestServiceServer},
    },
};

pub(crate) async fn serve(port: u16) -> Result<()> {
    let service = TestServiceServer::new(Serves)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    let service = service.max_decoding_message_size(LARGEST);
    let mut end = signal(SignalKind::terminate())?;
    let ended = async move {
        end.recv().await;
    };
    let server = Server::builder().add_service(Echoing(Watched(service)));
    Ok(server.serve_with_incoming_shutdown(listen(port).await?, ended).await?)
}

#[derive(Debug)]
struct Serves;

type Outputs = Pin<Box<dyn Stream<Item = Result<StreamingOutputCallResponse, Status>> + Send>>;

#[tonic::async_trait]
impl TestService for Serves {
    async fn empty_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Ok(Response::new(Empty {}))
    }

    async fn unary_call(&self, request: Request<SimpleRequest>) -> Result<Response<SimpleResponse>, Status> {
        let asked = request.get_ref();
        check_flag(&request, asked.expect_compressed.as_ref(), 0)?;
        if let Some(status) = asked.response_status.as_ref().filter(|status| status.code != 0) {
            return Err(echoed_status(status));
        }
        let payload = payload(asked.response_size)?;
        let mut response = Response::new(SimpleResponse {
            payload: Some(payload),
            ..SimpleResponse::default()
        });
        if !asked.response_compressed.is_some_and(|compressed| compressed.value) {
            response.disable_compression();
        }
        Ok(response)
    }

    type StreamingOutputCallStream = Outputs;

    async fn streaming_output_call(
        &self,
        request: Request<StreamingOutputCallRequest>,
    ) -> Result<Response<Outputs>, Status> {
        let asked = request.into_inner();
        // tonic compresses all messages of a response or none.
        let is_asked = |compressed: &Option<BoolValue>| compressed.is_some_and(|compressed| compressed.value);
        let compress = asked
            .response_parameters
            .iter()
            .any(|parameters| is_asked(&parameters.compressed));
        let (sender, outputs) = mpsc::channel(1);
        tokio::spawn(async move { answer(&asked, &sender).await });
        let mut response = Response::new(Box::pin(ReceiverStream::new(outputs)) as Outputs);
        if !compress {
            response.disable_compression();
        }
        Ok(response)
    }

    async fn streaming_input_call(
        &self,
        mut request: Request<Streaming<StreamingInputCallRequest>>,
    ) -> Result<Response<StreamingInputCallResponse>, Status> {
        let (mut size, mut number) = (0, 0);
        while let Some(input) = request.get_mut().message().await? {
            check_flag(&request, input.expect_compressed.as_ref(), number)?;
            size += input.payload.map_or(0, |payload| payload.body.len());
            number += 1;
        }
        let size = i32::try_from(size).map_err(|_| Status::out_of_range("more than 2 GiB were sent"))?;
        let mut response = Response::new(StreamingInputCallResponse {
            aggregated_payload_size: size,
        });
        response.disable_compression();
        Ok(response)
    }

    type FullDuplexCallStream = Outputs;

    async fn full_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Outputs>, Status> {
        let deadline = deadline(request.metadata());
        let mut inputs = request.into_inner();
        let (sender, outputs) = mpsc::channel(1);
        tokio::spawn(async move {
            let answers = async {
                while let Some(Ok(asked)) = inputs.next().await {
                    if let Some(status) = asked.response_status.as_ref().filter(|status| status.code != 0) {
                        let _ = sender.send(Err(echoed_status(status))).await;
                        return;
                    }
                    if answer(&asked, &sender).await.is_none() {
                        return;
                    }
                }
            };
            // tonic itself watches the time only until the headers of a response.
            if timeout(deadline, answers).await.is_err() {
                let _ = sender
                    .send(Err(Status::deadline_exceeded("the caller's time is over")))
                    .await;
            }
        });
        let mut response = Response::new(Box::pin(ReceiverStream::new(outputs)) as Outputs);
        response.disable_compression();
        Ok(response)
    }

    type HalfDuplexCallStream = Outputs;

    async fn half_duplex_call(
        &self,
        request: Request<Streaming<StreamingOutputCallRequest>>,
    ) -> Result<Response<Outputs>, Status> {
        let mut inputs = request.into_inner();
        let mut all = Vec::new();
        while let Some(asked) = inputs.message().await? {
            all.push(asked);
        }
        let (sender, outputs) = mpsc::channel(1);
        tokio::spawn(async move {
            for asked in &all {
                if answer(asked, &sender).await.is_none() {
                    return;
                }
            }
        });
        let mut response = Response::new(Box::pin(ReceiverStream::new(outputs)) as Outputs);
        response.disable_compression();
        Ok(response)
    }

    async fn unimplemented_call(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        Err(Status::unimplemented("no server implements this"))
    }
}

/// Sends what was asked for; nothing once the caller has gone.
async fn answer(
    asked: &StreamingOutputCallRequest,
    sender: &mpsc::Sender<Result<StreamingOutputCallResponse, Status>>,
) -> Option<()> {
    for parameters in &asked.response_parameters {
        sleep(Duration::from_micros(parameters.interval_us.try_into().unwrap_or(0))).await;
        let output = payload(parameters.size).map(|payload| StreamingOutputCallResponse { payload: Some(payload) });
        sender.send(output).await.ok()?;
    }
    Some(())
}

fn payload(size: i32) -> Result<Payload, Status> {
    match usize::try_from(size) {
        Ok(size) if size <= LARGEST => Ok(Payload {
            r#type: 0,
            body: vec![0; size],
        }),
        _ => Err(Status::invalid_argument(format!("no response has {size} bytes here"))),
    }
}

/// The request's message came as the client says that it sent it, or the call is refused.
fn check_flag<T>(request: &Request<T>, expected: Option<&BoolValue>, message: usize) -> Result<(), Status> {
    let found = request
        .extensions()
        .get::<Flags>()
        .and_then(|flags| flags.seen().get(message).copied());
    match (expected, found) {
        (None, _) => Ok(()),
        (Some(expected), Some(found)) if expected.value == found => Ok(()),
        (Some(expected), found) => Err(Status::invalid_argument(format!(
            "the compressed flag of message {message} is {found:?}, not {}",
            expected.value
        ))),
    }
}

/// What `grpc-timeout` leaves: up to 8 digits and a unit.
fn deadline(metadata: &MetadataMap) -> Duration {
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = match unit {
            "n" => Duration::from_nanos(1),
            "u" => Duration::from_micros(1),
            "m" => Duration::from_millis(1),
            "S" => Duration::from_secs(1),
            "M" => Duration::from_secs(60),
            "H" => Duration::from_secs(3600),
            _ => return None,
        };
        unit.checked_mul(digits.parse().ok()?)
    };
    metadata
        .get("grpc-timeout")
        .and_then(|value| parse(value.to_str().ok()?))
        .unwrap_or(Duration::MAX)
}

fn echoed_status(status: &EchoStatus) -> Status {
    Status::new(Code::from_i32(status.code), status.message.clone())
}

const LARGEST: usize = 16 * 1024 * 1024;
