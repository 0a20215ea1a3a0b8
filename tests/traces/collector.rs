//! A collector that can be good, and bad in every way that is tried: always at the same address.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use support::Place;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, async_trait};

/// What the collector does with each connection, or with each export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// It takes everything.
    Good,
    /// It accepts, and never says a word. When it is gone, its connections stay, as those of a machine without power.
    Silent,
    /// It answers one byte a second, and never ends.
    Trickling,
    /// It closes each connection at once.
    Closing,
    /// It answers nonsense.
    Babbling,
    /// It answers each export with this status.
    Refusing(Code),
    /// It takes all but one of each export.
    Partial,
}

/// A collector at an address of its own. It is gone when this drops.
pub(crate) struct Collector {
    pub(crate) spans: Arc<AtomicU64>,
    manner: Manner,
    serving: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Collector {
    /// Starts one here.
    pub(crate) fn start(place: &Place, manner: Manner) -> Result<Collector> {
        let listener = place.listen()?;
        let spans = Arc::<AtomicU64>::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        drop(guard);
        let service = Service {
            manner,
            spans: spans.clone(),
        };
        let serving = runtime.spawn(async move {
            match manner {
                Manner::Good | Manner::Refusing(_) | Manner::Partial => {
                    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(service));
                    let _ = server.serve_with_incoming(TcpIncoming::from(listener)).await;
                }
                Manner::Silent | Manner::Trickling | Manner::Closing | Manner::Babbling => {
                    while let Ok((connection, _)) = listener.accept().await {
                        tokio::spawn(misbehave(connection, manner));
                    }
                }
            }
        });
        Ok(Collector {
            spans,
            manner,
            serving,
            runtime: Some(runtime),
        })
    }

    /// Spans that it was sent.
    pub(crate) fn spans(&self) -> u64 {
        self.spans.load(Relaxed)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if self.manner == Manner::Silent {
            self.serving.abort();
            // Only then does nobody listen here any more.
            while !self.serving.is_finished() {
                std::thread::sleep(Duration::from_millis(1));
            }
            // With it, its connections live until the process ends.
            std::mem::forget(runtime);
        } else {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

async fn misbehave(mut connection: TcpStream, manner: Manner) {
    // Settings of HTTP/2, so that a client has something to wait behind.
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    match manner {
        Manner::Closing => {}
        Manner::Babbling => {
            let _ = connection.write_all(&[0xff; 1_000]).await;
        }
        Manner::Trickling => {
            for byte in SETTINGS.iter().cycle() {
                if connection.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Manner::Good | Manner::Refusing(_) | Manner::Partial | Manner::Silent => {
            let mut buffer = [0; 4_096];
            while connection.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        }
    }
}

struct Service {
    manner: Manner,
    spans: Arc<AtomicU64>,
}

#[async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = &request.get_ref().resource_spans;
        let scopes = resources.iter().flat_map(|resource| &resource.scope_spans);
        let spans: usize = scopes.map(|scope| scope.spans.len()).sum();
        self.spans.fetch_add(spans as u64, Relaxed);
        match self.manner {
            Manner::Refusing(code) => Err(Status::new(code, "the test wants it so")),
            Manner::Partial => Ok(Response::new(ExportTraceServiceResponse {
                partial_success: Some(ExportTracePartialSuccess {
                    rejected_spans: 1,
                    error_message: "one too many".to_owned(),
                }),
            })),
            Manner::Good | Manner::Silent | Manner::Trickling | Manner::Closing | Manner::Babbling => {
                Ok(Response::new(ExportTraceServiceResponse::default()))
            }
        }
    }
}
