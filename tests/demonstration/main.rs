//! What a newcomer is shown by `cargo demo` is true, and nothing of it stays behind.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use support::{netns, wait_until};

#[test]
fn every_greeter_is_called_and_nothing_fails_but_what_was_in_flight_to_the_killed_one() -> Result<()> {
    let said = shown(&["--duration", "9"])?;
    ensure!(said.contains("no other failed"), "it says of failures:\n{said}");
    ensure!(said.contains("in mTLS, 0 in plain"), "it says of mTLS:\n{said}");
    ensure!(
        said.contains("greeter-3 got no call after it had said NOT_SERVING"),
        "it says of health:\n{said}"
    );
    draws_a_trace(&said, "this one for instance:")?;
    let last = said.rsplit("all the time").next().unwrap_or_default();
    for greeter in ["greeter-1", "greeter-2", "greeter-3", "greeter-4"] {
        let calls = last
            .lines()
            .find(|line| line.starts_with(greeter))
            .and_then(|line| line.split_whitespace().nth(2));
        let calls: u32 = calls
            .and_then(|calls| calls.parse().ok())
            .with_context(|| format!("no row of {greeter}:\n{said}"))?;
        ensure!(calls > 50, "{greeter} was called {calls} times:\n{said}");
    }
    Ok(())
}

#[test]
fn with_otlp_the_trace_that_it_draws_is_read_from_a_real_jaeger() -> Result<()> {
    // As short as it can be.
    let said = shown(&["--otlp", "--duration", "8"])?;
    draws_a_trace(&said, "this one for instance (from Jaeger):")
}

#[test]
fn ctrl_c_ends_it_and_all_that_it_started() -> Result<()> {
    let mut demo = start(&["--duration", "600"])?;
    let pid = demo.id();
    wait_until(Duration::from_secs(60), "the callers call", || {
        left_of(pid)
            .iter()
            .any(|pod| pod.ends_with("caller-v6") && netns::programs_in(pod).len() >= 2)
    })?;
    let programs: Vec<_> = left_of(pid).iter().flat_map(|pod| netns::programs_in(pod)).collect();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
    let mut status = None;
    wait_until(Duration::from_secs(20), "the demo has ended", || {
        status = demo.try_wait().ok().flatten();
        status.is_some()
    })?;
    ensure!(
        status.and_then(|status| status.code()) == Some(130),
        "it ended with {status:?}"
    );
    ensure!(left_of(pid).is_empty(), "it left {:?}", left_of(pid));
    for program in programs {
        ensure!(
            !fs::exists(format!("/proc/{program}"))?,
            "the program {program} still runs"
        );
    }
    Ok(())
}

#[test]
fn a_run_after_one_that_crashed_removes_what_that_has_left() -> Result<()> {
    let mut crashed = start(&["--duration", "600"])?;
    let pid = crashed.id();
    wait_until(Duration::from_secs(60), "a greeter's pod is there", || {
        left_of(pid).iter().any(|pod| pod.ends_with("greeter-1"))
    })?;
    crashed.kill()?;
    crashed.wait()?;
    // Its number is free now, and its pods are not: what the next run of anything of ours begins with.
    netns::sweep()?;
    ensure!(left_of(pid).is_empty(), "{:?} is left", left_of(pid));
    Ok(())
}

/// What it says from its beginning to its good end. It leaves nothing behind.
fn shown(args: &[&str]) -> Result<String> {
    let demo = start(args)?;
    let pid = demo.id();
    let output = demo.wait_with_output()?;
    let said = [&*output.stdout, &*output.stderr].map(String::from_utf8_lossy).concat();
    ensure!(
        output.status.success(),
        "the demo ended with {}:\n{said}",
        output.status
    );
    ensure!(left_of(pid).is_empty(), "it left {:?}", left_of(pid));
    Ok(said)
}

/// A trace is drawn behind this word, with the spans of both sides.
fn draws_a_trace(said: &str, word: &str) -> Result<()> {
    let drawn = said.split_once(word).map(|(_, drawn)| drawn).unwrap_or_default();
    ensure!(
        drawn.contains("└─ client helloworld.Greeter/SayHello")
            && drawn.contains("   └─ server helloworld.Greeter/SayHello"),
        "it draws no trace behind {word:?}:\n{said}"
    );
    Ok(())
}

fn start(args: &[&str]) -> Result<Child> {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    demo.spawn().context("cannot run the demo")
}

/// The namespaces that a run has made.
fn left_of(pid: u32) -> Vec<String> {
    netns::all()
        .into_iter()
        .filter(|name| name.starts_with(&format!("ptn-{pid}-")))
        .collect()
}
