//! A gRPC application on tonic, in several roles, that knows nothing of a mesh.

mod collector;
mod echo;
mod flags;
mod greeter;
mod interop_client;
mod interop_server;

use anyhow::Result;
use clap::Parser;
use tokio::net::TcpListener;
use tonic::transport::{Endpoint, server::TcpIncoming};

/// What the protocols' definitions generate.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used)]
mod pb {
    pub mod testing {
        tonic::include_proto!("grpc.testing");
    }
    pub mod helloworld {
        tonic::include_proto!("helloworld");
    }
}

#[derive(Debug, Parser)]
enum Role {
    /// Serves the interoperability tests.
    InteropServer {
        #[arg(long)]
        port: u16,
    },
    /// Runs cases of the interoperability tests.
    InteropClient {
        #[arg(long)]
        target: String,
        #[arg(required = true)]
        cases: Vec<String>,
    },
    /// Greets.
    GreeterServer(greeter::Serve),
    /// Wants to be greeted.
    GreeterClient(greeter::Call),
    /// Collects spans, and writes them.
    Collector {
        #[arg(long)]
        port: u16,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Role::parse() {
        Role::InteropServer { port } => interop_server::serve(port).await,
        Role::InteropClient { target, cases } => interop_client::run(&target, &cases).await,
        Role::GreeterServer(serve) => serve.run().await,
        Role::GreeterClient(call) => call.run().await,
        Role::Collector { port } => collector::serve(port).await,
    }
}

/// Listens on every address, of both families.
async fn listen(port: u16) -> Result<TcpIncoming> {
    let listener = TcpListener::bind(format!("[::]:{port}")).await?;
    Ok(TcpIncoming::from(listener).with_nodelay(Some(true)))
}

/// A channel to `name:port`, connected by the first call.
fn endpoint(target: &str) -> Result<Endpoint> {
    Ok(Endpoint::from_shared(format!("http://{target}"))?)
}
