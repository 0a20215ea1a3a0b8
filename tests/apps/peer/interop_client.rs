//! The client of gRPC's interoperability tests: runs the cases it is told, one line for each.

use std::{fmt::Debug, time::Duration};

use anyhow::{Result, anyhow, bail, ensure};
use tokio::{sync::mpsc, time::sleep};
use tonic::{
    Code, Request, Response, Status,
    codec::CompressionEncoding::Gzip,
    codegen::tokio_stream::{self as stream, wrappers::ReceiverStream},
    metadata::{MetadataMap, MetadataValue},
};

use crate::{
    endpoint,
    flags::{Flags, WatchedChannel},
    pb::testing::{
        BoolValue, EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest, StreamingInputCallRequest,
        StreamingOutputCallRequest, test_service_client::TestServiceClient,
        unimplemented_service_client::UnimplementedServiceClient,
    },
};

/// Runs the cases; all that failed are told.
pub(crate) async fn run(target: &str, cases: &[String]) -> Result<()> {
    let mut failed = Vec::new();
    let channel = WatchedChannel(endpoint(target)?.connect().await?);
    for case in cases {
        match run_case(target, &channel, case).await {
            Ok(()) => println!("passed {case}"),
            Err(error) => {
                println!("FAILED {case}: {error:#}");
                failed.push(case.as_str());
            }
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

type Client = TestServiceClient<WatchedChannel>;

async fn run_case(target: &str, channel: &WatchedChannel, case: &str) -> Result<()> {
    let mut client = TestServiceClient::new(channel.clone());
    match case {
        "empty_unary" => empty_unary(&mut client).await,
        "large_unary" => large_unary(&mut client).await,
        "client_streaming" => client_streaming(&mut client).await,
        "server_streaming" => server_streaming(&mut client).await,
        "ping_pong" => ping_pong(&mut client).await,
        "empty_stream" => empty_stream(&mut client).await,
        "custom_metadata" => custom_metadata(&mut client).await,
        "status_code_and_message" => status_code_and_message(&mut client).await,
        "special_status_message" => special_status_message(&mut client).await,
        "unimplemented_method" => ends_with(client.unimplemented_call(Empty {}).await, Code::Unimplemented, None),
        "unimplemented_service" => {
            let mut client = UnimplementedServiceClient::new(channel.clone());
            ends_with(client.unimplemented_call(Empty {}).await, Code::Unimplemented, None)
        }
        "cancel_after_begin" => cancel_after_begin(&mut client).await,
        "cancel_after_first_response" => cancel_after_first_response(&mut client).await,
        "timeout_on_sleeping_server" => timeout_on_sleeping_server(&mut client).await,
        "rpc_soak" => {
            for _ in 0..SOAK {
                large_unary(&mut client).await?;
            }
            Ok(())
        }
        "channel_soak" => {
            for _ in 0..SOAK {
                let channel = WatchedChannel(endpoint(target)?.connect().await?);
                large_unary(&mut TestServiceClient::new(channel)).await?;
            }
            Ok(())
        }
        "client_compressed_unary" => client_compressed_unary(client).await,
        "server_compressed_unary" => server_compressed_unary(client.accept_compressed(Gzip)).await,
        "client_compressed_streaming" => client_compressed_streaming(client.send_compressed(Gzip)).await,
        "server_compressed_streaming" => server_compressed_streaming(client.accept_compressed(Gzip)).await,
        other => Err(anyhow!("there is no case {other}")),
    }
}

async fn empty_unary(client: &mut Client) -> Result<()> {
    equal(client.empty_call(Empty {}).await?.into_inner(), Empty {})
}

async fn large_unary(client: &mut Client) -> Result<()> {
    let response = client.unary_call(simple()).await?.into_inner();
    equal(response.payload.map(|payload| payload.body), Some(vec![0; RESPONSE]))
}

async fn client_streaming(client: &mut Client) -> Result<()> {
    let response = client
        .streaming_input_call(stream::iter(SENT.map(|size| input(size, None))))
        .await?;
    equal(
        usize::try_from(response.into_inner().aggregated_payload_size)?,
        SENT.iter().sum(),
    )
}

async fn server_streaming(client: &mut Client) -> Result<()> {
    let response_parameters = ASKED.map(|size| parameters(size, None)).to_vec();
    let request = StreamingOutputCallRequest {
        response_parameters,
        ..Default::default()
    };
    let mut outputs = client.streaming_output_call(request).await?.into_inner();
    for size in ASKED {
        let output = outputs.message().await?.and_then(|output| output.payload);
        equal(output.map(|payload| payload.body.len()), Some(size))?;
    }
    equal(outputs.message().await?, None)
}

async fn ping_pong(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    let asked = |asked, sent| output_request(asked, sent, 0);
    // tonic waits for the response's headers, and some servers send them with the first message.
    sender.send(asked(ASKED[0], SENT[0])).await?;
    let mut outputs = client
        .full_duplex_call(ReceiverStream::new(requests))
        .await?
        .into_inner();
    for (number, size) in ASKED.into_iter().enumerate() {
        if number > 0 {
            sender.send(asked(size, SENT[number])).await?;
        }
        let output = outputs.message().await?.and_then(|output| output.payload);
        equal(output.map(|payload| payload.body), Some(vec![0; size]))?;
    }
    drop(sender);
    equal(outputs.message().await?, None)
}

async fn empty_stream(client: &mut Client) -> Result<()> {
    let mut outputs = client.full_duplex_call(stream::empty()).await?.into_inner();
    equal(outputs.message().await?, None)
}

async fn custom_metadata(client: &mut Client) -> Result<()> {
    let with_metadata = |metadata: &mut MetadataMap| {
        metadata.insert(INITIAL, MetadataValue::from_static("test_initial_metadata_value"));
        metadata.insert_bin(TRAILING, MetadataValue::from_bytes(&TRAILING_VALUE));
    };
    let check = |initial: &MetadataMap, trailing: &MetadataMap| {
        equal(
            initial.get(INITIAL).map(|value| value.as_bytes()),
            Some(b"test_initial_metadata_value".as_slice()),
        )?;
        let trailing = trailing.get_bin(TRAILING).and_then(|value| value.to_bytes().ok());
        equal(trailing.as_deref(), Some(TRAILING_VALUE.as_slice()))
    };

    let mut request = Request::new(simple());
    with_metadata(request.metadata_mut());
    // tonic joins headers and trailers of a unary response.
    let response = client.unary_call(request).await?;
    check(response.metadata(), response.metadata())?;

    let mut request = Request::new(stream::once(output_request(RESPONSE, REQUEST, 0)));
    with_metadata(request.metadata_mut());
    let response = client.full_duplex_call(request).await?;
    let initial = response.metadata().clone();
    let mut outputs = response.into_inner();
    while outputs.message().await?.is_some() {}
    check(&initial, &outputs.trailers().await?.unwrap_or_default())
}

async fn status_code_and_message(client: &mut Client) -> Result<()> {
    let status = EchoStatus {
        code: 2,
        message: "test status message".into(),
    };
    let response_status = Some(status.clone());
    let unary = SimpleRequest {
        response_status: response_status.clone(),
        ..Default::default()
    };
    ends_with(client.unary_call(unary).await, Code::Unknown, Some(&status.message))?;
    let request = StreamingOutputCallRequest {
        response_status,
        ..Default::default()
    };
    let ended = match client.full_duplex_call(stream::once(request)).await {
        Ok(response) => response.into_inner().message().await.map(Response::new),
        Err(error) => Err(error),
    };
    ends_with(ended, Code::Unknown, Some(&status.message))
}

async fn special_status_message(client: &mut Client) -> Result<()> {
    let response_status = Some(EchoStatus {
        code: 2,
        message: SPECIAL.into(),
    });
    let request = SimpleRequest {
        response_status,
        ..Default::default()
    };
    ends_with(client.unary_call(request).await, Code::Unknown, Some(SPECIAL))
}

async fn cancel_after_begin(client: &mut Client) -> Result<()> {
    // What cancels in tonic is to drop the call: the server of a call that nobody feeds has nothing to answer.
    let (_sender, requests) = mpsc::channel(1);
    tokio::select! {
        answer = client.streaming_input_call(ReceiverStream::new(requests)) => bail!("it was answered: {answer:?}"),
        () = sleep(Duration::from_millis(50)) => {}
    }
    // The connection has not suffered.
    empty_unary(client).await
}

async fn cancel_after_first_response(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    sender.send(output_request(ASKED[0], SENT[0], 0)).await?;
    let mut outputs = client
        .full_duplex_call(ReceiverStream::new(requests))
        .await?
        .into_inner();
    ensure!(outputs.message().await?.is_some(), "there was no first response");
    drop(outputs);
    drop(sender);
    empty_unary(client).await
}

async fn timeout_on_sleeping_server(client: &mut Client) -> Result<()> {
    let (sender, requests) = mpsc::channel(1);
    sender.send(output_request(ASKED[0], SENT[0], 2_000_000)).await?;
    let mut request = Request::new(ReceiverStream::new(requests));
    request.set_timeout(Duration::from_millis(50));
    let ended = match client.full_duplex_call(request).await {
        Ok(response) => response.into_inner().message().await.map(Response::new),
        Err(error) => Err(error),
    };
    match ended {
        // What tonic's own timer says when it is first; a server's or a proxy's says the other.
        Err(status) if [Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()) => Ok(()),
        other => bail!("it ended with {}", short(&other)),
    }
}

async fn client_compressed_unary(client: Client) -> Result<()> {
    for compressed in [true, false] {
        let mut client = if compressed {
            client.clone().send_compressed(Gzip)
        } else {
            client.clone()
        };
        let request = SimpleRequest {
            expect_compressed: Some(BoolValue { value: compressed }),
            ..simple()
        };
        let response = client.unary_call(request).await?.into_inner();
        equal(response.payload.map(|payload| payload.body.len()), Some(RESPONSE))?;
    }
    Ok(())
}

async fn server_compressed_unary(mut client: Client) -> Result<()> {
    for compressed in [true, false] {
        let request = SimpleRequest {
            response_compressed: Some(BoolValue { value: compressed }),
            ..simple()
        };
        let response = client.unary_call(request).await?;
        equal(flags(&response), Some(vec![compressed]))?;
        equal(
            response.into_inner().payload.map(|payload| payload.body),
            Some(vec![0; RESPONSE]),
        )?;
    }
    Ok(())
}

async fn client_compressed_streaming(mut client: Client) -> Result<()> {
    // tonic compresses all messages of a call or none.
    let inputs = [27182, 45904].map(|size| input(size, Some(BoolValue { value: true })));
    let response = client.streaming_input_call(stream::iter(inputs)).await?;
    equal(response.into_inner().aggregated_payload_size, 73086)
}

async fn server_compressed_streaming(mut client: Client) -> Result<()> {
    let asked = [(31415, true), (92653, false)];
    let response_parameters = asked
        .map(|(size, compressed)| parameters(size, Some(BoolValue { value: compressed })))
        .to_vec();
    let request = StreamingOutputCallRequest {
        response_parameters,
        ..Default::default()
    };
    let response = client.streaming_output_call(request).await?;
    let flags = response.extensions().get::<Flags>().cloned().unwrap_or_default();
    let mut outputs = response.into_inner();
    for (size, _) in asked {
        let output = outputs.message().await?.and_then(|output| output.payload);
        equal(output.map(|payload| payload.body), Some(vec![0; size]))?;
    }
    // Not every server can leave the second message as it is, so only the first tells.
    equal(flags.seen().first(), Some(&true))
}

fn simple() -> SimpleRequest {
    SimpleRequest {
        response_size: RESPONSE as i32,
        payload: Some(payload(REQUEST)),
        ..Default::default()
    }
}

fn input(size: usize, expect_compressed: Option<BoolValue>) -> StreamingInputCallRequest {
    StreamingInputCallRequest {
        payload: Some(payload(size)),
        expect_compressed,
    }
}

fn output_request(asked: usize, sent: usize, interval_us: i32) -> StreamingOutputCallRequest {
    let response_parameters = vec![ResponseParameters {
        interval_us,
        ..parameters(asked, None)
    }];
    StreamingOutputCallRequest {
        response_parameters,
        payload: Some(payload(sent)),
        ..Default::default()
    }
}

fn parameters(size: usize, compressed: Option<BoolValue>) -> ResponseParameters {
    ResponseParameters {
        size: size as i32,
        interval_us: 0,
        compressed,
    }
}

fn payload(size: usize) -> Payload {
    Payload {
        r#type: 0,
        body: vec![0; size],
    }
}

fn flags<T>(response: &Response<T>) -> Option<Vec<bool>> {
    response.extensions().get::<Flags>().map(Flags::seen)
}

fn equal<T: PartialEq + Debug>(found: T, expected: T) -> Result<()> {
    if found != expected {
        bail!("{} is not {}", short(&found), short(&expected));
    }
    Ok(())
}

fn ends_with<T: Debug>(ended: Result<T, Status>, code: Code, message: Option<&str>) -> Result<()> {
    match ended {
        Err(status) if status.code() == code && message.is_none_or(|message| status.message() == message) => Ok(()),
        other => bail!("it ended with {}, not with {code:?} {message:?}", short(&other)),
    }
}

/// Payloads are long, and say nothing after the first bytes.
fn short(value: &impl Debug) -> String {
    format!("{value:?}").chars().take(300).collect()
}

const REQUEST: usize = 271_828;
const RESPONSE: usize = 314_159;
const SENT: [usize; 4] = [27182, 8, 1828, 45904];
const ASKED: [usize; 4] = [31415, 9, 2653, 58979];
const SPECIAL: &str = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
const INITIAL: &str = "x-grpc-test-echo-initial";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";
const TRAILING_VALUE: [u8; 3] = [0xab; 3];
const SOAK: usize = 20;
