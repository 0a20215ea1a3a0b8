//! The greeter and its caller.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Result;
use clap::Args;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::{Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream, transport::Server};

use crate::{
    endpoint, listen,
    pb::{
        health::{
            HealthCheckRequest, HealthCheckResponse,
            health_check_response::ServingStatus,
            health_server::{Health, HealthServer},
        },
        helloworld::{
            HelloReply, HelloRequest,
            greeter_client::GreeterClient,
            greeter_server::{Greeter, GreeterServer},
        },
    },
};

/// How the greeter is served.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    #[arg(long)]
    port: u16,
    /// How it calls itself in its answers.
    #[arg(long)]
    name: String,
    /// How long it works on each; ten times that after SIGUSR1, until SIGUSR2. After SIGHUP its health service says
    /// NOT_SERVING.
    #[arg(long, default_value_t = 0)]
    work_ms: u64,
}

impl Serve {
    pub(crate) async fn run(self) -> Result<()> {
        let factor = Arc::new(AtomicU32::new(1));
        let greeter = Greets {
            name: self.name,
            work: Duration::from_millis(self.work_ms),
            factor: Arc::clone(&factor),
        };
        let (healthy, health) = watch::channel(true);
        let mut unwell = signal(SignalKind::hangup())?;
        let (mut slower, mut faster) = (
            signal(SignalKind::user_defined1())?,
            signal(SignalKind::user_defined2())?,
        );
        let mut end = signal(SignalKind::terminate())?;
        let ended = async move {
            loop {
                tokio::select! {
                    _ = slower.recv() => factor.store(SLOWER, Ordering::Relaxed),
                    _ = faster.recv() => factor.store(1, Ordering::Relaxed),
                    _ = unwell.recv() => drop(healthy.send(false)),
                    _ = end.recv() => return,
                }
            }
        };
        let server = Server::builder()
            .add_service(GreeterServer::new(greeter))
            .add_service(HealthServer::new(Says(health)));
        Ok(server
            .serve_with_incoming_shutdown(listen(self.port).await?, ended)
            .await?)
    }
}

#[derive(Debug, Clone)]
struct Greets {
    name: String,
    work: Duration,
    factor: Arc<AtomicU32>,
}

impl Greets {
    async fn reply(&self, name: &str) -> HelloReply {
        sleep(self.work * self.factor.load(Ordering::Relaxed)).await;
        HelloReply {
            message: format!("Hello {name}, here is {}", self.name),
        }
    }
}

#[tonic::async_trait]
impl Greeter for Greets {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        Ok(Response::new(self.reply(&request.get_ref().name).await))
    }

    type SayHelloStreamReplyStream = ReceiverStream<Result<HelloReply, Status>>;

    async fn say_hello_stream_reply(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<Self::SayHelloStreamReplyStream>, Status> {
        let (sender, replies) = mpsc::channel(1);
        let greets = self.clone();
        tokio::spawn(async move {
            for _ in 0..5 {
                let reply = greets.reply(&request.get_ref().name).await;
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

/// The health service, which says what it was told last.
struct Says(watch::Receiver<bool>);

fn status(is_healthy: bool) -> HealthCheckResponse {
    let status = if is_healthy {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Says {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(status(*self.0.borrow())))
    }

    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, answers) = mpsc::channel(1);
        let mut health = self.0.clone();
        tokio::spawn(async move {
            loop {
                let newest = status(*health.borrow_and_update());
                if sender.send(Ok(newest)).await.is_err() || health.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }
}

/// How a caller calls.
#[derive(Debug, Args)]
pub(crate) struct Call {
    #[arg(long)]
    target: String,
    /// How it calls itself.
    #[arg(long)]
    name: String,
    /// Calls a second, begun whether or not earlier ones have ended.
    #[arg(long, default_value_t = 100)]
    rate: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

impl Call {
    pub(crate) async fn run(self) -> Result<()> {
        let client = GreeterClient::new(endpoint(&self.target)?.connect_lazy());
        let mut begins = interval(Duration::from_secs(1) / self.rate);
        begins.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut calls = JoinSet::new();
        for _ in 0..self.rate * self.seconds {
            begins.tick().await;
            calls.spawn(call(client.clone(), self.name.clone()));
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
        Ok(())
    }
}

async fn call(mut client: GreeterClient<tonic::transport::Channel>, name: String) {
    let at = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let began = Instant::now();
    let mut request = Request::new(HelloRequest { name });
    request.set_timeout(Duration::from_secs(5));
    let answer = client.say_hello(request).await;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let (from, code, why) = match &answer {
        Ok(reply) => (
            reply.get_ref().message.rsplit(' ').next().unwrap_or_default(),
            "OK".to_string(),
            "",
        ),
        Err(status) => ("", screaming(&format!("{:?}", status.code())), status.message()),
    };
    println!(
        "{}",
        json!({"at": at.as_secs_f64(), "ms": ms, "from": from, "code": code, "why": why})
    );
}

/// `DeadlineExceeded` as gRPC writes it: `DEADLINE_EXCEEDED`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for char in name.chars() {
        if char.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.extend(char.to_uppercase());
    }
    text
}

const SLOWER: u32 = 10;
