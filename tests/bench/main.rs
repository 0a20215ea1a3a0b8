//! `cargo measure`: what a call costs through Portunus, beside Envoy, HAProxy, nginx and a raw TCP copy.

mod backend;
mod collector;
mod floor;
mod handshakes;
mod hpack;
mod huffman;
mod identities;
mod load;
mod mesh;
mod mtls;
mod payload;
mod peers;
mod process;
mod report;
mod rows;
mod traced;
mod wire;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use peers::{Peer, Programs, Wishes};
use rows::{Bench, Row};

/// Measures Portunus beside Envoy, HAProxy, nginx and a raw TCP copy.
///
/// All peers are started at once and take turns in every round, so that what changes on the machine changes for all.
/// Load generator and backend are threads of this program on CPU 0, the proxy runs on CPU 1 (T2: everything on CPU 1).
/// Every answer is checked, byte by byte. What is reported is the proxy's own CPU time (user and system) a call, as
/// the kernel's clock of its process says, the median of the rounds and their range.
///
/// Portunus is a member of a mesh of its own: control gives it certificate, endpoints and policy, and one call in twenty is
/// traced, to a collector that reads and drops. In T4, T5, T6m, T7t and T8 there is a proxy at either side, with mTLS
/// between the two (TLS 1.3, keys of P-256): the CPU time is that of both, of T8 and T7t the server's.
///
/// Targets are printed beside the results. A missed target does not fail the command; a peer that fails does.
#[derive(Parser)]
#[command(name = "measure", after_help = EXAMPLES)]
struct Arguments {
    /// What to measure; everything if none is named.
    rows: Vec<Row>,
    /// Also write the results here, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How many rounds the median is taken of.
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// Two short rounds: to see that everything works, not to quote.
    #[arg(long)]
    quick: bool,
    /// Which peers take part.
    #[arg(long, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// Measure this sidecar instead of building one from the checkout.
    #[arg(long, value_name = "PROGRAM")]
    sidecar: Option<PathBuf>,
    /// Take this control (the program `injector`) instead of building one from the checkout.
    #[arg(long, value_name = "PROGRAM")]
    injector: Option<PathBuf>,
    /// Portunus alone without control, policy and traces; pairs have them all the same.
    #[arg(long)]
    bare: bool,
    /// Leave configurations, logs and what callgrind counted (for callgrind_annotate) where they are, and say where.
    #[arg(long)]
    keep: bool,
    /// Be the raw copy from one address to another: how this program starts the floor.
    #[arg(long, hide = true, num_args = 2, value_names = ["LISTEN", "TO"])]
    copy: Vec<SocketAddr>,
}

const EXAMPLES: &str = "Examples:
  cargo measure                                      every row, about half an hour
  cargo measure T1 T6 --rounds 9 --json results.json  two rows, well
  cargo measure --quick                              everything, roughly, in a few minutes
  cargo measure T1 --peers portunus,floor             while working on the sidecar
  cargo measure T1 T9 --bare                          what control, policy and traces cost: run it with and without
  cargo measure T4 T5 T6m T7t T8 T10                  mTLS
  cargo measure T11 --peers portunus --rounds 15      collectors that are bad
  cargo measure T9 T9u T2s --peers portunus           what the suite's gates count";

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("measure: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if let [listen, to] = arguments.copy[..] {
        floor::run(listen, to)?;
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        arguments.rounds > 0,
        "no rounds, no medians: --rounds must be at least 1"
    );
    let cpus = std::thread::available_parallelism().context("how many CPUs are there?")?;
    ensure!(
        cpus.get() >= 2,
        "this needs two CPUs: one for the load, one for the proxy"
    );

    let rows = if arguments.rows.is_empty() {
        Row::ALL.to_vec()
    } else {
        arguments.rows
    };
    let tools: Vec<&str> = rows.iter().flat_map(|row| row.tools()).copied().collect();
    let wishes = Wishes {
        sidecar: arguments.sidecar,
        injector: arguments.injector,
        bare: arguments.bare,
        keep: arguments.keep,
    };
    let programs = Programs::prepare(&arguments.peers, &tools, wishes)?;
    let mut bench = Bench {
        programs,
        peers: arguments.peers,
        rounds: if arguments.quick { 2 } else { arguments.rounds },
        quick: arguments.quick,
        failures: Vec::new(),
    };

    let mut lines = String::new();
    for row in rows {
        let began = Instant::now();
        let measured = bench.row(row).with_context(|| format!("{row:?}"))?;
        bench.say(
            &format!("{row:?}"),
            &format!("done in {:.0} s\n", began.elapsed().as_secs_f64()),
        );
        for series in measured {
            print!("{}", series.table());
            lines.push_str(&series.json().to_string());
            lines.push('\n');
        }
        if let Some(file) = &arguments.json {
            std::fs::write(file, &lines).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    eprintln!("measure: Portunus sent {} spans", bench.programs.spans());
    for failure in &bench.failures {
        eprintln!("measure: {failure}");
    }
    Ok(if bench.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
