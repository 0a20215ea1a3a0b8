//! Applications that know nothing of the mesh, in three stacks.

use std::{
    fmt,
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Pod, Program, User, build, in_netns, tools, wait_until};

/// An implementation of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stack {
    /// grpcio, on gRPC's C core.
    Python,
    /// grpc-go, with the interop client and server of its own project.
    Go,
    /// tonic, on the `h2` crate.
    Tonic,
}

/// A server that listens.
#[derive(Debug)]
pub struct Peer {
    /// Its process.
    pub program: Program,
}

impl Peer {
    /// The server of the interoperability tests, on every address of the pod.
    pub fn start(pod: &Pod, stack: Stack, port: u16) -> Result<Peer> {
        let mut command = match stack {
            Stack::Python => python(pod, "interop_server.py")?,
            Stack::Go => pod.command(User::App, tools::go("server")?),
            Stack::Tonic => tonic(pod, "interop-server")?,
        };
        command.arg(format!("--port={port}"));
        Peer::launch(pod, &format!("{stack}-server"), command, port)
    }

    /// A greeter that names itself in its answers, and works on each for so long; SIGUSR1 makes it ten times slower,
    /// SIGUSR2 as fast as it was. It has its stack's own health service: see [`Peer::turn`].
    pub fn greeter(pod: &Pod, stack: Stack, port: u16, work: Duration) -> Result<Peer> {
        Peer::greeter_with(pod, stack, port, work, &[])
    }

    /// The same without a health service.
    pub fn greeter_without_health(pod: &Pod, stack: Stack, port: u16) -> Result<Peer> {
        Peer::greeter_with(pod, stack, port, Duration::ZERO, &["--no-health"])
    }

    /// The same with a health service that answers whoever asks with this status.
    pub fn greeter_that_answers_checks_with(pod: &Pod, stack: Stack, port: u16, code: u8) -> Result<Peer> {
        let code = format!("--health-code={code}");
        Peer::greeter_with(pod, stack, port, Duration::ZERO, &[&code])
    }

    fn greeter_with(pod: &Pod, stack: Stack, port: u16, work: Duration, more: &[&str]) -> Result<Peer> {
        let mut command = match stack {
            Stack::Python => python(pod, "greeter_server.py")?,
            Stack::Go => bail!("there is no greeter in grpc-go here"),
            Stack::Tonic => tonic(pod, "greeter-server")?,
        };
        command
            .arg(format!("--port={port}"))
            .arg(format!("--name={}", pod.name()));
        command.arg(format!("--work-ms={}", work.as_millis())).args(more);
        Peer::launch(pod, &format!("{stack}-greeter"), command, port)
    }

    /// From now on a greeter's health service says NOT_SERVING of every service; SERVING, if it said the other before.
    /// Returns since when, in seconds of the epoch.
    pub fn turn(&self, says: &str) -> Result<f64> {
        let said = || {
            let output = self.program.output();
            let lines = output
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter(|line| line["says"].is_string()).collect::<Vec<_>>()
        };
        let before = said().len();
        self.program.signal(Signal::SIGHUP)?;
        wait_until(Duration::from_secs(20), &format!("a greeter says {says}"), || {
            said().len() > before
        })?;
        let last = said().pop().context("it has said so")?;
        ensure!(last["says"] == says, "it says {last}, and not {says}");
        last["at"].as_f64().context("a time")
    }

    fn launch(pod: &Pod, name: &str, command: Command, port: u16) -> Result<Peer> {
        let mut program = pod.start(name, command)?;
        let mut running = true;
        let listening = wait_until(Duration::from_secs(20), &format!("{name} listens"), || {
            running = program.is_running();
            let dialled = in_netns(pod, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
            matches!(dialled, Ok(Ok(_))) || !running
        });
        if !running {
            bail!("{name} ended before it listened:\n{}", program.output());
        }
        listening?;
        Ok(Peer { program })
    }
}

/// Calls a greeter at a steady rate until it is stopped or the time is over, and writes a line of JSON for each call:
/// when it began (`at`, seconds of the epoch), how long it took (`ms`), who answered (`from`), `code` and `why`.
pub fn caller(pod: &Pod, stack: Stack, target: &str, rate: u32, time: Duration) -> Result<Program> {
    let mut command = match stack {
        Stack::Python => python(pod, "greeter_client.py")?,
        Stack::Go => bail!("there is no greeter in grpc-go here"),
        Stack::Tonic => tonic(pod, "greeter-client")?,
    };
    command
        .arg(format!("--target={target}"))
        .arg(format!("--name={}", pod.name()));
    command
        .arg(format!("--rate={rate}"))
        .arg(format!("--seconds={}", time.as_secs()));
    pod.start(&format!("{stack}-caller"), command)
}

/// Has so many streams of a greeter open, until it is stopped or they end, and writes a line of JSON for each reply: the
/// `stream`'s number, when (`at`) and from whom (`from`); and one with its `code` when a stream ends.
pub fn streams(pod: &Pod, target: &str, number: usize) -> Result<Program> {
    let mut command = tonic(pod, "greeter-client")?;
    command
        .arg(format!("--target={target}"))
        .arg(format!("--name={}", pod.name()))
        .arg(format!("--streams={number}"));
    pod.start("streams", command)
}

/// A script of `apps/python`, ready for its arguments.
pub fn python(pod: &Pod, script: &str) -> Result<Command> {
    let python = tools::python()?;
    let mut command = pod.command(User::App, python.interpreter);
    command
        .env("PYTHONPATH", python.modules)
        .env("PYTHONUNBUFFERED", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(pod.place(&tools::here("apps/python").join(script))?);
    Ok(command)
}

/// The tonic application in one of its roles, ready for its arguments.
pub fn tonic(pod: &Pod, role: &str) -> Result<Command> {
    let mut command = pod.command(User::App, pod.place(&build::peer()?)?);
    command.arg(role);
    Ok(command)
}

impl Stack {
    /// All of them.
    pub const ALL: [Stack; 3] = [Stack::Python, Stack::Go, Stack::Tonic];
}

impl fmt::Display for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stack::Python => "python",
            Stack::Go => "go",
            Stack::Tonic => "tonic",
        })
    }
}
