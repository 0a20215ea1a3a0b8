//! The `portunus` command line.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    portunus_injector::cli::run(portunus_injector::cli::Cli::parse())
}
