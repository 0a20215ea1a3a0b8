//! A collector of spans that reads what it is sent, and drops it.

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
use tokio::net::TcpListener;
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
