//! What the span of a call says of who answered it.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use portunus_sidecar::policy::Mode;
use support::pki::Pki;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tonic::{Request, Response, Status};

use crate::world::{PATIENCE, Setup, World, free_port, request};

/// Passes on the spans of each batch, and answers after a while.
struct Collector(UnboundedSender<Vec<Span>>, Duration);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources.into_iter().flat_map(|resource| resource.scope_spans);
        let batch = scopes.flat_map(|scope| scope.spans).collect();
        self.0.send(batch).map_err(|gone| Status::internal(gone.to_string()))?;
        tokio::time::sleep(self.1).await;
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Whom the next span says that the server has proven to be.
async fn identity(spans: &mut UnboundedReceiver<Vec<Span>>) -> Option<String> {
    let batch = tokio::time::timeout(PATIENCE, spans.recv())
        .await
        .expect("a span comes");
    let span = batch.expect("the collector lives").remove(0);
    let mut attributes = span.attributes.into_iter();
    let found = attributes.find(|attribute| attribute.key == "portunus.peer.identity")?;
    match found.value?.value? {
        Value::StringValue(identity) => Some(identity),
        _ => None,
    }
}

#[tokio::test]
async fn a_span_names_a_server_that_has_proven_itself_and_no_other() {
    let (collects, mut spans) = unbounded_channel();
    let at = free_port();
    let collector =
        tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(collects, Duration::ZERO)));
    let collector = tokio::spawn(collector.serve(at));
    let pki = Pki::new("mesh.test");
    let (id, server) = (pki.id("server"), pki.id("server"));
    let far = Setup {
        inbound: true,
        pair: false,
        mesh: Some(pki.mesh(&server, Mode::Strict, |_| None)),
        ..Setup::default()
    };
    let far = World::with(far).await;
    let near = Setup {
        pair: false,
        mesh: Some(pki.mesh(&pki.id("client"), Mode::Strict, move |_| Some(id.clone()))),
        collector: Some(at),
        ..Setup::default()
    };
    let world = World::before(far.proxy, near.clone()).await;
    let answer = world
        .caller()
        .await
        .ask(request("/a.B/C", &[]))
        .await
        .expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("0"));
    assert_eq!(identity(&mut spans).await.as_deref(), Some(server.as_str()));
    // Somebody is there, and proves nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let nobody = World::before(listener.local_addr().expect("an address"), near).await;
    let closes = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            drop(socket);
        }
    });
    let mut caller = nobody.caller().await;
    let failed = tokio::time::timeout(Duration::from_secs(5), caller.ask(request("/a.B/C", &[])));
    let failed = failed.await.expect("in time").expect("answered");
    assert_eq!(failed.grpc_status.as_deref(), Some("14"));
    assert_eq!(identity(&mut spans).await, None);
    closes.abort();
    collector.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_takes_its_time_gets_a_batch_a_second_and_not_one_for_each_of_its_answers() {
    let (collects, mut batches) = unbounded_channel();
    let at = free_port();
    let slow = Collector(collects, Duration::from_millis(20));
    let collector = tonic::transport::Server::builder().add_service(TraceServiceServer::new(slow));
    let collector = tokio::spawn(collector.serve(at));
    let world = World::with(Setup {
        collector: Some(at),
        pair: false,
        ..Setup::default()
    })
    .await;
    let mut caller = world.caller().await;
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < Duration::from_secs(3) {
        caller.ask(request("/a.B/C", &[])).await.expect("answered");
        calls += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut exports, mut spans) = (0, 0);
    while spans < calls {
        let batch = tokio::time::timeout(PATIENCE, batches.recv()).await.expect("in time");
        spans += batch.expect("the collector lives").len();
        exports += 1;
    }
    // Not a figure of speed: answer by answer it would be a hundred.
    let seconds = began.elapsed().as_secs() as usize + 1;
    assert!(
        exports <= seconds + 1,
        "{exports} exports of {spans} spans in {seconds} s"
    );
    collector.abort();
}
