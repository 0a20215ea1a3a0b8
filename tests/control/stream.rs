//! A stream that lasts as long as a test wishes, message by message, each answered and checked.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use support::traffic::PORT;
use support::{Family, Member, Peer, Pod, Stack, in_netns, wait_until};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::shop::{Greeter, Shop, member};
use pb::test_service_client::TestServiceClient;
use pb::{Payload, ResponseParameters, StreamingOutputCallRequest, StreamingOutputCallResponse};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
mod pb {
    tonic::include_proto!("grpc.testing");
}

/// The port of those who talk.
pub(crate) const TALK: u16 = 7000;

/// Lets every greeter of a shop talk, too, as the service `talk`.
pub(crate) fn talk(shop: &Shop) -> Result<Vec<Peer>> {
    let both = [PORT, TALK];
    let speaker = Member {
        ports: &both,
        ..member("hello")
    };
    for greeter in &shop.greeters {
        shop.control.revise(&greeter.pod, &speaker)?;
    }
    shop.control.apply(
        "service-talk",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: talk, namespace: shop}}\n\
             spec:\n  clusterIP: None\n  selector: {{app: hello}}\n  ports: [{{name: grpc, port: {TALK}}}]\n"
        ),
    )?;
    // Before that it is a name outside the mesh, and called in plain.
    let taken = || shop.control.output().contains("a state was taken services=2 ");
    wait_until(SOON, "control has taken the service that talks", taken)?;
    let pods = shop.greeters.iter().map(|greeter| &greeter.pod);
    pods.map(|pod| Peer::start(pod, Stack::Tonic, TALK)).collect()
}

/// One call of many messages, there and back.
pub(crate) struct Stream {
    runtime: Runtime,
    to: mpsc::Sender<StreamingOutputCallRequest>,
    answers: Streaming<StreamingOutputCallResponse>,
    /// Messages that were answered.
    pub(crate) echoed: u32,
}

impl Stream {
    /// Begins one from the shop's caller to whichever greeter is picked; one message has been answered.
    pub(crate) fn begin(shop: &Shop) -> Result<Stream> {
        Stream::begin_from(&shop.caller, shop)
    }

    /// The same, from another pod.
    pub(crate) fn begin_from(pod: &Pod, shop: &Shop) -> Result<Stream> {
        let greeter = shop.greeters.first().context("nobody talks")?;
        Stream::from(pod, greeter.pod.at(Family::V4, TALK)?, "talk.shop.svc.cluster.local")
    }

    fn from(pod: &Pod, at: std::net::SocketAddr, name: &str) -> Result<Stream> {
        let socket = in_netns(pod, || TcpStream::connect(at))??;
        socket.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let target = format!("http://{name}:{TALK}");
        let (to, answers) = runtime.block_on(async move {
            let mut once = Some(TokioIo::new(tokio::net::TcpStream::from_std(socket)?));
            let connector = tower::service_fn(move |_: http::Uri| {
                let stream = once.take();
                std::future::ready(stream.ok_or_else(|| std::io::Error::other("there is one connection")))
            });
            let channel = Endpoint::from_shared(target)?.connect_with_connector(connector).await?;
            let (to, asked) = mpsc::channel(1);
            to.send(message()).await?;
            let mut client = TestServiceClient::new(channel);
            let begun = timeout(SOON, client.full_duplex_call(ReceiverStream::new(asked))).await;
            let answers = begun.context("the stream does not begin")??.into_inner();
            Ok::<_, anyhow::Error>((to, answers))
        })?;
        let mut stream = Stream {
            runtime,
            to,
            answers,
            echoed: 0,
        };
        stream.hear()?;
        Ok(stream)
    }

    /// One message more, there and back.
    pub(crate) fn echo(&mut self) -> Result<()> {
        // Where it has ended, its answers say why.
        let _ = self.runtime.block_on(self.to.send(message()));
        self.hear()
    }

    fn hear(&mut self) -> Result<()> {
        let answer = self
            .runtime
            .block_on(async { timeout(SOON, self.answers.message()).await });
        let answer = answer.context("no answer came")??.context("the stream has ended")?;
        let body = answer.payload.map(|payload| payload.body).unwrap_or_default();
        ensure!(body.len() == SIZE as usize, "{} bytes came back", body.len());
        self.echoed += 1;
        Ok(())
    }

    /// Nothing more is asked: the stream ends, well.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.to);
        let last = self
            .runtime
            .block_on(async { timeout(SOON, self.answers.message()).await });
        ensure!(
            last.context("the stream does not end")??.is_none(),
            "more came than was asked for"
        );
        Ok(())
    }
}

/// Whom a stream has reached: the greeter in whose sidecar one runs.
pub(crate) fn reached(shop: &Shop) -> Result<&Greeter> {
    let mut talking = shop.greeters.iter().filter(|greeter| streams(greeter) == 1.0);
    let found = talking.next().context("no greeter has the stream")?;
    ensure!(talking.next().is_none(), "two greeters have a stream");
    Ok(found)
}

/// How many streams run in a greeter's sidecar.
pub(crate) fn streams(greeter: &Greeter) -> f64 {
    let method = [("grpc_method", "FullDuplexCall")];
    greeter.sidecar.metrics().map_or(-1.0, |metrics| {
        metrics.sum("grpc_server_started_total", &method) - metrics.sum("grpc_server_handled_total", &method)
    })
}

fn message() -> StreamingOutputCallRequest {
    StreamingOutputCallRequest {
        response_parameters: vec![ResponseParameters {
            size: SIZE,
            ..ResponseParameters::default()
        }],
        payload: Some(Payload {
            body: vec![7; 1_000],
            ..Payload::default()
        }),
        ..StreamingOutputCallRequest::default()
    }
}

const SIZE: i32 = 3_000;
const SOON: Duration = Duration::from_secs(10);
