//! `cargo demo`: unmodified gRPC applications in pods of this machine, and what the mesh does for their calls.

mod calls;
mod pods;
mod table;
mod traces;

use std::{
    io::IsTerminal,
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail};
use clap::Parser;
use nix::sys::{
    signal::Signal,
    stat::{Mode, umask},
};
use support::{Pauses, build, interrupt, needs, netns, tools};

use crate::{
    calls::{Calls, Killed},
    pods::Pods,
    table::Table,
};

/// Four greeters and two callers in pods, each with a sidecar that control certifies: one greeter becomes slow, one unwell,
/// and one is killed.
#[derive(Debug, Parser)]
struct Args {
    /// How many seconds of traffic to show, from 8 to 3600.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(8..=3600))]
    duration: u64,
    /// Leave everything running afterwards, until Ctrl-C, and say how to look into a pod.
    #[arg(long)]
    keep: bool,
    /// Send the traces to a real Jaeger, in a pod, and draw the one that is shown from there. (Jaeger is built at first,
    /// which takes some minutes.)
    #[arg(long)]
    otlp: bool,
}

fn main() -> ExitCode {
    match demo(&Args::parse()) {
        Ok(_) if interrupt::heard() => ExitCode::from(130),
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the mesh did what it is there for.
fn demo(args: &Args) -> Result<bool> {
    interrupt::listen()?;
    // What is built and copied here is read by programs of other users.
    umask(Mode::from_bits_truncate(0o022));
    prepare()?;
    let mut pods = step(
        "four greeters, two callers, control, a DNS server and six sidecars",
        || Pods::start(args.otlp),
    )?;
    let as_it_should = show(&mut pods, Duration::from_secs(args.duration));
    if let (Ok(_), true, false) = (&as_it_should, args.keep, interrupt::heard()) {
        println!(
            "\nEverything goes on running until you press Ctrl-C. To look around:\n{}",
            pods.directions()
        );
        while !interrupt::heard() {
            thread::sleep(Duration::from_millis(100));
        }
    }
    if as_it_should.is_ok() {
        pods.mesh.forget_logs();
    }
    drop(pods);
    println!("\nThe pods and all that ran in them are gone.");
    as_it_should
}

fn prepare() -> Result<()> {
    let earlier = netns::all().len();
    step("what this machine needs for it", || {
        needs::prepare(|piece| println!("  {piece}"))
    })?;
    if netns::all().len() < earlier {
        println!("  removed the pods of an earlier run that had crashed");
    }
    step("a DNS server and a Python application's libraries", || {
        tools::prepare(|piece| println!("  {piece}"))
    })?;
    step(
        "the sidecar, control and a tonic application (built the first time, some minutes)",
        || build::sidecar().and(build::injector()).and(build::peer()),
    )?;
    Ok(())
}

/// The traffic, with what happens to the greeters on the way.
fn show(pods: &mut Pods, duration: Duration) -> Result<bool> {
    let mut table = Table::new(duration, std::io::stdout().is_terminal());
    let mut calls = Calls::default();
    let [slow_at, unwell_at, kill_at] = [1, 2, 3].map(|quarter| duration * quarter / 4);
    let (mut unwell, mut killed) = (false, None);
    println!("\n{}\n", pods.story(slow_at, unwell_at, kill_at));

    pods.call()?;
    let pauses = Pauses::watch();
    let began = Instant::now();
    while began.elapsed() < duration && !interrupt::heard() {
        let elapsed = began.elapsed();
        if elapsed >= slow_at && pods.slow.note.is_empty() {
            pods.slow.program.signal(Signal::SIGUSR1)?;
            pods.slow.note = format!("ten times slower since {} s", slow_at.as_secs());
        }
        if elapsed >= unwell_at && !unwell {
            pods.unwell.program.signal(Signal::SIGHUP)?;
            pods.unwell.note = format!("NOT_SERVING since {} s", unwell_at.as_secs());
            unwell = true;
        }
        if elapsed >= kill_at && killed.is_none() {
            let begun = now();
            pods.killed.program.kill()?;
            killed = Some(Killed { begun, done: now() });
            pods.killed.note = format!("killed at {} s", kill_at.as_secs());
        }
        for caller in &mut pods.callers {
            if !caller.program.is_running() {
                bail!("{} has ended:\n{}", caller.name, caller.program.output());
            }
            let lines = caller.new_lines()?;
            calls.read(&caller.name, lines);
        }
        table.show(elapsed, pods, &calls, now());
        thread::sleep(Duration::from_millis(100));
    }
    if interrupt::heard() {
        return Ok(true);
    }
    table.finish(pods, &calls, now());
    // Three programs, one after the other, have to run for anything to be noticed.
    let noticed = NOTICED.max(pauses.longest().as_secs_f64() * 3.0);
    let mut verdict = calls.judge(&pods.greeters(), killed, noticed, &pods.killed.name);
    if let Some(said) = pods.unwell.said_not_serving() {
        let interval = pods::HEALTH_INTERVAL.as_secs_f64();
        let (usual, allowed) = (interval + SOON, interval + noticed);
        calls.judge_unwell(&mut verdict, &pods.unwell.name, said, usual, allowed);
    } else if unwell {
        verdict.good = false;
        verdict
            .sentences
            .push(format!("{} never said NOT_SERVING.", pods.unwell.name));
    }
    let (mtls, plain) = pods.protected()?;
    verdict.good &= mtls > 0.0 && plain == 0.0;
    verdict
        .sentences
        .push(format!("{mtls} calls were sent in mTLS, {plain} in plain."));
    for sentence in &verdict.sentences {
        println!("{sentence}");
    }
    println!(
        "\nOne in twenty was traced, this one for instance{}:\n{}",
        pods.traces.source(),
        pods.traces.tree()?
    );
    Ok(verdict.good)
}

/// Seconds in which a kill, or the answer to a health check, must have been noticed, if the machine has no longer pauses.
const NOTICED: f64 = 1.0;

/// Seconds in which the answer to a health check is noticed where programs run when they want to.
const SOON: f64 = 0.1;

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("{what} …");
    let began = Instant::now();
    let done = work()?;
    if interrupt::heard() {
        bail!("interrupted");
    }
    println!("  done in {:.1} s", began.elapsed().as_secs_f64());
    Ok(done)
}

/// Seconds of the epoch, as the callers count.
fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
