//! Deadlines: who ends a call when its time is over, and what the caller hears.

use std::{
    future::poll_fn,
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use h2::Reason;
use http::Request;
use support::{Family, Mesh, Pod, Sidecar, in_netns, traffic::alone, wait_until};
use tokio::sync::mpsc;

#[test]
fn a_server_that_cancels_when_the_deadline_passes_is_heard_as_deadline_exceeded() {
    support::test(|mesh| {
        // Its timer fires a moment before ours: so does grpc-go's, now and then.
        let world = World::new(mesh, Serves::CancelsBefore(Duration::from_millis(2)))?;
        for call in 0..20 {
            let answer = world.call(Some(Duration::from_millis(60 + call)))?;
            ensure!(
                answer.status == Some("4".to_string()),
                "call {call} ended with {answer:?}"
            );
            ensure!(
                answer.message.contains("deadline"),
                "and says nothing of a deadline: {answer:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_server_that_cancels_long_before_the_deadline_is_heard_as_it_is() {
    support::test(|mesh| {
        let world = World::new(mesh, Serves::CancelsBefore(Duration::from_secs(30)))?;
        let answer = world.call(Some(Duration::from_secs(30)))?;
        ensure!(answer.reset == Some(Reason::CANCEL), "it ended with {answer:?}");
        Ok(())
    });
}

#[test]
fn a_deadline_that_passes_is_told_to_the_caller_and_cancels_at_the_server_within_50_ms() {
    let _alone = alone();
    support::test(|mesh| {
        let mut world = World::new(mesh, Serves::Sleeps)?;
        let mut late = Vec::new();
        for _ in 0..10 {
            let began = Instant::now();
            let allowed = Duration::from_millis(200);
            let (answer, ran) = world.timed(Some(allowed))?;
            ensure!(answer.status == Some("4".to_string()), "it ended with {answer:?}");
            ensure!(
                ran.end >= began + allowed,
                "it ended {:?} after it began",
                ran.end - began
            );
            let (reason, at) = world.hear(|world| &mut world.resets)?;
            ensure!(reason == Reason::CANCEL, "the server was told {reason}");
            late.push(at.max(ran.end).saturating_duration_since(ran.start + allowed));
        }
        // Half of them, so that a pause of a busy machine is nobody's fault.
        late.sort();
        ensure!(
            late[late.len() / 2] < Duration::from_millis(50),
            "caller and server were told so late: {late:?}"
        );
        Ok(())
    });
}

#[test]
fn the_server_is_told_what_remains_of_the_deadline_and_nothing_of_a_timeout_that_is_none() {
    support::test(|mesh| {
        let mut world = World::new(mesh, Serves::CancelsBefore(Duration::MAX))?;
        world.call(Some(Duration::from_secs(10)))?;
        let told = world.hear(|world| &mut world.timeouts)?;
        let told = told.context("no grpc-timeout came")?;
        ensure!(
            told > Duration::from_secs(8) && told < Duration::from_secs(10),
            "the server was told {told:?} of 10 s"
        );
        world.call(None)?;
        let told = world.hear(|world| &mut world.timeouts)?;
        ensure!(told.is_none(), "a timeout was invented: {told:?}");
        Ok(())
    });
}

/// A caller behind a sidecar, and a server without one.
struct World {
    client: Pod,
    server: SocketAddr,
    runtime: tokio::runtime::Runtime,
    /// When the server's streams were reset.
    resets: mpsc::UnboundedReceiver<(Reason, Instant)>,
    /// What the server was told of deadlines.
    timeouts: mpsc::UnboundedReceiver<Option<Duration>>,
    _sidecar: Sidecar,
}

/// What the server does with a call.
#[derive(Clone, Copy)]
enum Serves {
    /// Resets it so long before its deadline; at once if that is not to be had.
    CancelsBefore(Duration),
    /// Nothing, until it is reset.
    Sleeps,
}

/// What the caller saw.
#[derive(Debug, Default)]
struct Answer {
    status: Option<String>,
    message: String,
    reset: Option<Reason>,
}

impl World {
    fn new(mesh: &Mesh, serves: Serves) -> Result<World> {
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let sidecar = client.sidecar()?;
        let address = server.at(Family::V4, 50051)?;
        let listener = in_netns(&server, || TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let (tell_resets, resets) = mpsc::unbounded_channel();
        let (tell_timeouts, timeouts) = mpsc::unbounded_channel();
        runtime.spawn(serve(listener, serves, tell_resets, tell_timeouts));
        Ok(World {
            client,
            server: address,
            runtime,
            resets,
            timeouts,
            _sidecar: sidecar,
        })
    }

    /// What the server has to tell, which is not long in coming.
    fn hear<T>(&mut self, of: impl Fn(&mut World) -> &mut mpsc::UnboundedReceiver<T>) -> Result<T> {
        let mut told = None;
        wait_until(Duration::from_secs(5), "the server told what it saw", || {
            told = of(self).try_recv().ok();
            told.is_some()
        })?;
        told.context("the server is gone")
    }

    /// A call on a connection of its own.
    fn call(&self, timeout: Option<Duration>) -> Result<Answer> {
        Ok(self.timed(timeout)?.0)
    }

    /// The same, and when it ran: from its request to its end.
    fn timed(&self, timeout: Option<Duration>) -> Result<(Answer, Range<Instant>)> {
        let socket = in_netns(&self.client, || TcpStream::connect(self.server))??;
        socket.set_nonblocking(true)?;
        self.runtime.block_on(async {
            let socket = tokio::net::TcpStream::from_std(socket)?;
            let (mut caller, connection) = h2::client::handshake(socket).await?;
            tokio::spawn(connection);
            let mut request = Request::post(format!("http://{}/test.Sleeper/Sleep", self.server))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            if let Some(timeout) = timeout {
                request = request.header("grpc-timeout", format!("{}m", timeout.as_millis()));
            }
            let request = request.body(())?;
            let began = Instant::now();
            let (response, _) = caller.send_request(request, true)?;
            let response = response.await;
            let ran = began..Instant::now();
            let answer = match response {
                Ok(response) => {
                    let header = |name| {
                        let value = response.headers().get(name)?;
                        Some(value.to_str().unwrap_or_default().to_string())
                    };
                    Answer {
                        status: header("grpc-status"),
                        message: header("grpc-message").unwrap_or_default(),
                        reset: None,
                    }
                }
                Err(error) => Answer {
                    reset: Some(error.reason().context(format!("the call ended by {error}"))?),
                    ..Answer::default()
                },
            };
            Ok((answer, ran))
        })
    }
}

async fn serve(
    listener: TcpListener,
    serves: Serves,
    resets: mpsc::UnboundedSender<(Reason, Instant)>,
    timeouts: mpsc::UnboundedSender<Option<Duration>>,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (socket, _) = listener.accept().await?;
        let (resets, timeouts) = (resets.clone(), timeouts.clone());
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(socket).await?;
            while let Some(call) = connection.accept().await {
                let (request, respond) = call?;
                let told = request
                    .headers()
                    .get("grpc-timeout")
                    .map(|value| read(value.as_bytes()));
                // A timeout that cannot be read ends the connection, and so fails the test.
                let told = told.transpose()?;
                let _ = timeouts.send(told);
                tokio::spawn(act(serves, told, respond, resets.clone()));
            }
            Ok::<_, anyhow::Error>(())
        });
    }
}

async fn act(
    serves: Serves,
    told: Option<Duration>,
    mut respond: h2::server::SendResponse<bytes::Bytes>,
    resets: mpsc::UnboundedSender<(Reason, Instant)>,
) {
    match serves {
        Serves::CancelsBefore(early) => {
            tokio::time::sleep(told.unwrap_or_default().saturating_sub(early)).await;
            respond.send_reset(Reason::CANCEL);
        }
        Serves::Sleeps => {
            if let Ok(reason) = poll_fn(|cx| respond.poll_reset(cx)).await {
                let _ = resets.send((reason, Instant::now()));
            }
        }
    }
}

/// Digits and a unit.
fn read(value: &[u8]) -> Result<Duration> {
    let text = std::str::from_utf8(value)?;
    let (digits, unit) = text.split_at(text.len().saturating_sub(1));
    let number: u64 = digits.parse()?;
    Ok(match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        other => anyhow::bail!("a timeout in {other:?}"),
    })
}
