//! A collector of spans that reads what it is sent and drops it; and collectors that are bad, in every way that is measured.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
};

use anyhow::{Context, Result};
use nix::unistd::gettid;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use support::Place;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use super::process;

/// A collector of spans that reads what it is sent and drops it, for as long as this program runs.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    spans: Arc<AtomicU64>,
}

impl Collector {
    pub(crate) fn start(cpu: usize) -> Result<Collector> {
        let spans = Arc::<AtomicU64>::default();
        let service = TraceServiceServer::new(Dropping(spans.clone()));
        let (tell, told) = mpsc::channel();
        std::thread::Builder::new().name("collector".into()).spawn(move || {
            let serve = async {
                process::pin(gettid(), cpu)?;
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                let _ = tell.send(listener.local_addr()?);
                let server = tonic::transport::Server::builder().add_service(service);
                anyhow::Ok(server.serve_with_incoming(TcpIncoming::from(listener)).await?)
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            if let Err(error) = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(serve)) {
                eprintln!("measure: the collector stopped: {error:#}");
            }
        })?;
        let address = told.recv().context("the collector did not start")?;
        Ok(Collector { address, spans })
    }

    /// How many spans it was sent.
    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Relaxed)
    }
}

/// In which way a collector is bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Connections to it are refused.
    Down,
    /// It accepts, and never reads nor says anything.
    Silent,
    /// It answers a byte a second, and never ends.
    Slow,
    /// It answers each export with UNAVAILABLE.
    Erring,
}

/// Starts a bad collector, for as long as this program runs.
pub(crate) fn start_bad(bad: Bad, cpu: usize) -> Result<SocketAddr> {
    let place = Place::new()?;
    let address = place.address;
    if bad == Bad::Down {
        // Held, so that nobody else gets the port, and nobody listens.
        std::mem::forget(place);
        return Ok(address);
    }
    let listener = place.listen()?;
    std::thread::Builder::new().name("collector".into()).spawn(move || {
        let serve = async {
            process::pin(gettid(), cpu)?;
            let listener = TcpListener::from_std(listener)?;
            if bad == Bad::Erring {
                let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Refusing));
                return anyhow::Ok(server.serve_with_incoming(TcpIncoming::from(listener)).await?);
            }
            loop {
                let (connection, _) = listener.accept().await?;
                tokio::spawn(torment(connection, bad));
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Err(error) = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(serve)) {
            eprintln!("measure: a bad collector stopped: {error:#}");
        }
    })?;
    Ok(address)
}

/// Keeps a connection until its client leaves it, and longer.
async fn torment(mut connection: TcpStream, bad: Bad) {
    // Settings of HTTP/2, so that a client has something to wait behind.
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    for byte in SETTINGS.iter().cycle() {
        if bad == Bad::Slow && connection.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}

struct Refusing;

#[tonic::async_trait]
impl TraceService for Refusing {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Err(Status::unavailable("the benchmark wants it so"))
    }
}

struct Dropping(Arc<AtomicU64>);

#[tonic::async_trait]
impl TraceService for Dropping {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.get_ref().resource_spans.iter().flat_map(|of| &of.scope_spans);
        self.0
            .fetch_add(scopes.map(|scope| scope.spans.len() as u64).sum(), Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
