//! The standard interoperability cases, by any of the three clients.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, bail};

use crate::{
    Pod, Stack, User,
    peer::{python, tonic},
    tools,
};

/// The cases that every client and every server has.
pub const BASE: [&str; 16] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "rpc_soak",
    "channel_soak",
];

/// The cases of compressed messages, which grpc-go's interop programs do not have.
pub const COMPRESSED: [&str; 4] = [
    "client_compressed_unary",
    "server_compressed_unary",
    "client_compressed_streaming",
    "server_compressed_streaming",
];

/// The cases that this client and this server share.
pub fn cases(client: Stack, server: Stack) -> Vec<&'static str> {
    let compressed = if client == Stack::Go || server == Stack::Go {
        &[][..]
    } else {
        &COMPRESSED
    };
    [&BASE, compressed].concat()
}

/// Runs each case by the client of a stack, in a pod, against `target` (`name:port`); all that failed are told.
pub fn run(pod: &Pod, client: Stack, target: &str, cases: &[&str]) -> Result<()> {
    let failures = match client {
        // Its client knows one case a process.
        Stack::Go => {
            let mut failures = String::new();
            for case in cases {
                let mut ended = go(pod, target, case);
                // grpc-go's client cancels and then closes, and on a busy machine its server, with nothing between
                // them, is sometimes faster than its own cancel: only that answer is asked for again.
                for _ in 0..3 {
                    if *case == "cancel_after_begin" && ended.as_ref().is_err_and(is_answered) {
                        ended = go(pod, target, case);
                    }
                }
                if let Err(error) = ended {
                    let _ = writeln!(failures, "{case}: {error:#}");
                }
            }
            failures
        }
        Stack::Python | Stack::Tonic => {
            let mut command = match client {
                Stack::Python => python(pod, "interop_client.py")?,
                _ => tonic(pod, "interop-client")?,
            };
            command.arg(format!("--target={target}")).args(cases);
            let mut program = pod.start(&format!("{client}-client"), command)?;
            let ended = program.wait(CASE_TIME * u32::try_from(cases.len())?);
            let output = program.output();
            let passed = |case: &&&str| output.lines().any(|line| line == format!("passed {case}"));
            let missing: Vec<_> = cases.iter().filter(|case| !passed(case)).copied().collect();
            match ended {
                Ok(status) if status.success() && missing.is_empty() => String::new(),
                Ok(status) => format!("{} ({status}):\n{output}", missing.join(", ")),
                Err(error) => format!("{} ({error:#}):\n{output}", missing.join(", ")),
            }
        }
    };
    if !failures.is_empty() {
        bail!("the {client} client did not pass, against {target}: {failures}");
    }
    Ok(())
}

fn go(pod: &Pod, target: &str, case: &str) -> Result<()> {
    let Some((host, port)) = target.rsplit_once(':') else {
        bail!("{target} is no host:port")
    };
    let mut command = pod.command(User::App, tools::go("client")?);
    command.args([
        "--use_tls=false",
        "--soak_iterations=20",
        "--soak_per_iteration_max_acceptable_latency_ms=5000",
    ]);
    command.args([
        format!("--server_host={host}"),
        format!("--server_port={port}"),
        format!("--test_case={case}"),
    ]);
    let mut program = pod.start(&format!("go-client-{case}"), command)?;
    let status = program.wait(CASE_TIME)?;
    if !status.success() {
        bail!("{status}: {}", program.output());
    }
    Ok(())
}

fn is_answered(error: &anyhow::Error) -> bool {
    error.to_string().contains("CloseAndRecv() got error code 0, want 1")
}

const CASE_TIME: Duration = Duration::from_secs(20);
