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
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tonic::{
    Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream, server::NamedService as _,
    service::interceptor::InterceptedService, transport::Server,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    endpoint, listen,
    pb::helloworld::{
        HelloReply, HelloRequest,
        greeter_client::GreeterClient,
        greeter_server::{Greeter, GreeterServer},
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
    /// NOT_SERVING, until the next; when that is so, a line says.
    #[arg(long, default_value_t = 0)]
    work_ms: u64,
    /// Whether it has no health service.
    #[arg(long)]
    no_health: bool,
    /// The status with which its health service answers whoever asks, if not with its health.
    #[arg(long)]
    health_code: Option<i32>,
}

impl Serve {
    pub(crate) async fn run(self) -> Result<()> {
        let factor = Arc::new(AtomicU32::new(1));
        let greeter = Greets {
            name: self.name,
            work: Duration::from_millis(self.work_ms),
            factor: Arc::clone(&factor),
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        let code = self.health_code;
        let health = InterceptedService::new(health, move |request| match code {
            Some(code) => Err(Status::new(code.into(), "not without credentials")),
            None => Ok(request),
        });
        let mut serves = false;
        turn(&reporter, &mut serves).await;
        let mut turned = signal(SignalKind::hangup())?;
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
                    _ = turned.recv() => turn(&reporter, &mut serves).await,
                    _ = end.recv() => return,
                }
            }
        };
        let server = Server::builder()
            .add_service(GreeterServer::new(greeter))
            .add_optional_service((!self.no_health).then_some(health));
        Ok(server
            .serve_with_incoming_shutdown(listen(self.port).await?, ended)
            .await?)
    }
}

/// Says that everything serves, or that nothing does; and writes when that has changed.
async fn turn(health: &HealthReporter, serves: &mut bool) {
    *serves = !*serves;
    let (status, says) = match *serves {
        true => (ServingStatus::Serving, "SERVING"),
        false => (ServingStatus::NotServing, "NOT_SERVING"),
    };
    for service in ["", GreeterServer::<Greets>::NAME] {
        health.set_service_status(service, status).await;
    }
    println!("{}", json!({"says": says, "at": now()}));
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

    /// A reply at once, and one every 100 ms until the caller leaves.
    async fn say_hello_stream_reply(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<Self::SayHelloStreamReplyStream>, Status> {
        let (sender, replies) = mpsc::channel(1);
        let greets = self.clone();
        tokio::spawn(async move {
            let mut replies = interval(Duration::from_millis(100));
            loop {
                replies.tick().await;
                let reply = greets.reply(&request.get_ref().name).await;
                if sender.send(Ok(reply)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(replies)))
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
    /// How long it begins calls, if there is no SIGTERM before.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Has so many streams open instead, until they end, and writes a line for each reply.
    #[arg(long)]
    streams: Option<usize>,
}

impl Call {
    pub(crate) async fn run(self) -> Result<()> {
        let client = GreeterClient::new(endpoint(&self.target)?.connect_lazy());
        if let Some(streams) = self.streams {
            let all = (0..streams).map(|number| listen_to(client.clone(), self.name.clone(), number));
            all.collect::<JoinSet<_>>().join_all().await;
            return Ok(());
        }
        let mut begins = interval(Duration::from_secs(1) / self.rate);
        begins.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut end = signal(SignalKind::terminate())?;
        let mut calls = JoinSet::new();
        for _ in 0..self.rate * self.seconds {
            tokio::select! {
                _ = begins.tick() => {}
                _ = end.recv() => break,
            }
            calls.spawn(call(client.clone(), self.name.clone()));
            while calls.try_join_next().is_some() {}
        }
        calls.join_all().await;
        Ok(())
    }
}

type Client = GreeterClient<tonic::transport::Channel>;

async fn call(mut client: Client, name: String) {
    let at = now();
    let began = Instant::now();
    let mut request = Request::new(HelloRequest { name });
    request.set_timeout(PATIENCE);
    let answer = client.say_hello(request).await;
    let ms = began.elapsed().as_secs_f64() * 1000.0;
    let (from, code, why) = match &answer {
        Ok(reply) => (greeter(reply.get_ref()), "OK".to_string(), ""),
        Err(status) => ("", screaming(&format!("{:?}", status.code())), status.message()),
    };
    println!(
        "{}",
        json!({"at": at, "ms": ms, "from": from, "code": code, "why": why})
    );
}

/// A line for each reply, and one with the `code` at the end.
async fn listen_to(mut client: Client, name: String, stream: usize) {
    let answer = client.say_hello_stream_reply(Request::new(HelloRequest { name })).await;
    let ended = match answer {
        Ok(replies) => {
            let mut replies = replies.into_inner();
            loop {
                match replies.message().await {
                    Ok(Some(reply)) => println!("{}", json!({"stream": stream, "at": now(), "from": greeter(&reply)})),
                    Ok(None) => break "OK".to_string(),
                    Err(status) => break screaming(&format!("{:?}", status.code())),
                }
            }
        }
        Err(status) => screaming(&format!("{:?}", status.code())),
    };
    println!("{}", json!({"stream": stream, "at": now(), "code": ended}));
}

/// Who has written it.
fn greeter(reply: &HelloReply) -> &str {
    reply.message.rsplit(' ').next().unwrap_or_default()
}

/// Seconds of the epoch.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
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
/// The deadline of a call. Whoever is told of a failure is told sooner, on a machine that pauses, too.
const PATIENCE: Duration = Duration::from_secs(20);
