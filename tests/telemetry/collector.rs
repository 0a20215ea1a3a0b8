//! A collector in a pod that keeps what it is sent, byte for byte, by OTLP/gRPC and by OTLP/HTTP; and one that reads nothing.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message as _;
use socket2::{Domain, Protocol, Socket, Type};
use support::{Pod, in_netns, wait_until};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::application::framed;

/// Where it takes OTLP/gRPC.
pub(crate) const GRPC: u16 = 4317;
/// Where it takes OTLP/HTTP.
pub(crate) const HTTP: u16 = 4318;

/// A collector; it is gone when this drops, and what it was sent with it.
pub(crate) struct Collector {
    taken: Arc<Taken>,
    runtime: Option<Runtime>,
}

#[derive(Default)]
struct Taken {
    exports: Mutex<Vec<Export>>,
    /// So many exports are refused, each with all that its headers say.
    complaints: Mutex<usize>,
    /// So many spans are left of each batch.
    leaves: usize,
}

/// A message that was sent.
#[derive(Clone)]
pub(crate) struct Export {
    pub(crate) path: String,
    pub(crate) headers: String,
    pub(crate) message: Bytes,
}

impl Collector {
    /// Starts it in a pod.
    pub(crate) fn start(pod: &Pod) -> Result<Collector> {
        Collector::of(pod, Taken::default())
    }

    /// One that refuses so many exports, and repeats in its complaint what their headers were.
    pub(crate) fn complaining(pod: &Pod, complaints: usize) -> Result<Collector> {
        let taken = Taken {
            complaints: Mutex::new(complaints),
            ..Taken::default()
        };
        Collector::of(pod, taken)
    }

    /// It refuses nothing more, and forgets what it was sent before.
    pub(crate) fn complains_no_more(&self) {
        let mut complaints = self.taken.complaints.lock();
        self.taken.exports.lock().clear();
        *complaints = 0;
    }

    /// One that keeps what it is sent, and says of each batch of spans that it did not take so many of them.
    pub(crate) fn leaving(pod: &Pod, leaves: usize) -> Result<Collector> {
        let taken = Taken {
            leaves,
            ..Taken::default()
        };
        Collector::of(pod, taken)
    }

    fn of(pod: &Pod, taken: Taken) -> Result<Collector> {
        let taken = Arc::new(taken);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        for port in [GRPC, HTTP] {
            let listener = in_netns(pod, || listen(port))??;
            let taken = taken.clone();
            runtime.spawn(async move {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (socket, _) = listener.accept().await?;
                    let taken = taken.clone();
                    tokio::spawn(async move {
                        match port {
                            GRPC => taken.grpc(socket).await,
                            _ => taken.http(socket).await,
                        }
                    });
                }
                #[expect(unreachable_code, reason = "it gives the block its type")]
                Ok::<_, std::io::Error>(())
            });
        }
        Ok(Collector {
            taken,
            runtime: Some(runtime),
        })
    }

    /// All that it was sent.
    pub(crate) fn exports(&self) -> Vec<Export> {
        self.taken.exports.lock().clone()
    }

    /// All spans that it was sent, each with the service that recorded it.
    pub(crate) fn spans(&self) -> Result<Vec<(String, Span)>> {
        let mut spans = Vec::new();
        for request in self.traces()? {
            for resource in request.resource_spans {
                let service = text(&resource.resource.unwrap_or_default().attributes, "service.name");
                let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(all.map(|span| (service.clone(), span)));
            }
        }
        Ok(spans)
    }

    /// All batches of spans that it was sent.
    pub(crate) fn traces(&self) -> Result<Vec<ExportTraceServiceRequest>> {
        let exports = self.exports();
        let batches = exports.iter().filter(|export| is_of_spans(&export.path));
        batches
            .map(|batch| ExportTraceServiceRequest::decode(batch.message.clone()).context("they are spans"))
            .collect()
    }

    /// All pages of metrics that it was sent.
    pub(crate) fn metrics(&self) -> Result<Vec<ExportMetricsServiceRequest>> {
        let exports = self.exports();
        let pages = exports.iter().filter(|export| export.path.contains("etrics"));
        pages
            .map(|page| ExportMetricsServiceRequest::decode(page.message.clone()).context("they are metrics"))
            .collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl Taken {
    /// Keeps an export; what it says of it, if it refuses.
    fn take(&self, path: &str, headers: &HeaderMap, message: Bytes) -> Option<String> {
        let said = headers.iter().fold(String::new(), |mut said, (name, value)| {
            let _ = write!(said, "{name}: {} ", String::from_utf8_lossy(value.as_bytes()));
            said
        });
        // First, so that whatever is kept behind the last complaint is taken.
        let mut complaints = self.complaints.lock();
        self.exports.lock().push(Export {
            path: path.to_owned(),
            headers: said.clone(),
            message,
        });
        *complaints = complaints.checked_sub(1)?;
        Some(format!("I do not know {said}"))
    }

    /// What it says of an export that it does not refuse.
    fn answer(&self, path: &str) -> Bytes {
        let partial = ExportTracePartialSuccess {
            rejected_spans: self.leaves as i64,
            error_message: TOO_MANY.to_owned(),
        };
        let partial = (self.leaves > 0 && is_of_spans(path)).then_some(partial);
        let answer = ExportTraceServiceResponse {
            partial_success: partial,
        };
        // One that says nothing is empty, of metrics, too.
        answer.encode_to_vec().into()
    }

    async fn grpc(self: Arc<Self>, socket: TcpStream) -> Result<()> {
        let mut connection = h2::server::handshake(socket).await?;
        while let Some(asked) = connection.accept().await {
            let (request, mut answer) = asked?;
            let taken = self.clone();
            tokio::spawn(async move {
                let (head, mut body) = request.into_parts();
                let mut message = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data?;
                    body.flow_control().release_capacity(data.len())?;
                    message.extend_from_slice(&data);
                }
                // Behind the five bytes before a message of gRPC's.
                let message = Bytes::from(message).slice(5..);
                let complaint = taken.take(head.uri.path(), &head.headers, message);
                let response = Response::builder().header("content-type", "application/grpc");
                let mut to = answer.send_response(response.body(())?, false)?;
                to.send_data(framed(&taken.answer(head.uri.path())), false)?;
                let mut trailers = HeaderMap::new();
                let code = if complaint.is_some() { "14" } else { "0" };
                trailers.insert("grpc-status", code.parse()?);
                if let Some(complaint) = complaint {
                    trailers.insert("grpc-message", complaint.replace(' ', "%20").parse()?);
                }
                to.send_trailers(trailers)?;
                anyhow::Ok(())
            });
        }
        Ok(())
    }

    async fn http(self: Arc<Self>, socket: TcpStream) -> Result<()> {
        let answer = |request: Request<Incoming>| {
            let taken = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let message = body.collect().await?.to_bytes();
                let complaint = taken.take(head.uri.path(), &head.headers, message);
                let status = if complaint.is_some() { 503 } else { 200 };
                let said = complaint.map_or_else(|| taken.answer(head.uri.path()), Bytes::from);
                let mut response = Response::new(Full::new(said));
                *response.status_mut() = http::StatusCode::from_u16(status)?;
                anyhow::Ok(response)
            }
        };
        let answer = hyper::service::service_fn(answer);
        Ok(hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(socket), answer)
            .await?)
    }
}

/// What it says of spans that it leaves.
pub(crate) const TOO_MANY: &str = "too many for the test";

/// Whether that is where spans go, by either protocol.
fn is_of_spans(path: &str) -> bool {
    path.contains("race")
}

/// In which way a collector is bad that accepts connections and never reads from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It never says a word.
    Silent,
    /// It says a byte a second, of frames that are right and mean nothing.
    Slow,
}

/// A collector that takes OTLP/gRPC and reads none of it.
pub(crate) struct BadCollector {
    connections: Arc<AtomicU64>,
    accepting: JoinHandle<Result<()>>,
    runtime: Option<Runtime>,
}

impl BadCollector {
    /// Starts it in a pod.
    pub(crate) fn start(pod: &Pod, bad: Bad) -> Result<BadCollector> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let connections = Arc::<AtomicU64>::default();
        let listener = in_netns(pod, || listen(GRPC))??;
        let counted = connections.clone();
        let accepting = runtime.spawn(async move {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let (socket, _) = listener.accept().await?;
                counted.fetch_add(1, Relaxed);
                tokio::spawn(torment(socket, bad));
            }
        });
        Ok(BadCollector {
            connections,
            accepting,
            runtime: Some(runtime),
        })
    }

    /// How many connections came.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Nobody listens there any more. Its connections stay until it drops, as those of a machine without power.
    pub(crate) fn leave(&self) -> Result<()> {
        self.accepting.abort();
        wait_until(Duration::from_secs(5), "nobody listens", || {
            self.accepting.is_finished()
        })
    }
}

impl Drop for BadCollector {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Keeps a connection until its client leaves it, and longer.
async fn torment(mut connection: TcpStream, bad: Bad) {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    for byte in SETTINGS.iter().cycle() {
        if bad == Bad::Slow && connection.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Listens at all addresses of IPv4. The next one may have the place of one before.
fn listen(port: u16) -> Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(64)?;
    Ok(socket.into())
}

/// An attribute's text; empty where there is none.
pub(crate) fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}
