//! A collector of spans that writes each of them as a line of JSON, for whoever draws traces.

use anyhow::Result;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use serde_json::json;
use tonic::{Request, Response, Status, transport::Server};

use crate::listen;

/// Takes spans by OTLP/gRPC until it is ended.
pub(crate) async fn serve(port: u16) -> Result<()> {
    let server = Server::builder().add_service(TraceServiceServer::new(Writes));
    Ok(server.serve_with_incoming(listen(port).await?).await?)
}

struct Writes;

#[tonic::async_trait]
impl TraceService for Writes {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource
                .resource
                .map(|resource| resource.attributes)
                .unwrap_or_default();
            let service = text(&attributes, "service.name");
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                write(&service, span);
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn write(service: &str, span: &Span) {
    println!(
        "{}",
        json!({
            "trace": hex(&span.trace_id),
            "span": hex(&span.span_id),
            "parent": hex(&span.parent_span_id),
            "service": service,
            "name": span.name,
            "kind": span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_lowercase(),
            "began": span.start_time_unix_nano,
            "ended": span.end_time_unix_nano,
            "peer": text(&span.attributes, "network.peer.address"),
            "identity": text(&span.attributes, "portunus.peer.identity"),
            "code": text(&span.attributes, "rpc.response.status_code"),
        })
    );
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
