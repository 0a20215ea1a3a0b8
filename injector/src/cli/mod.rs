//! The `portunus` command: what an operator asks at a terminal. It changes nothing, and speaks to nobody.

mod token;
mod validate;

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// The mesh's command line.
#[derive(Debug, Parser)]
#[command(name = "portunus", version, about = "Looks after a Portunus mesh", long_about = None)]
#[command(after_help = "Exit status: 0 fine, 1 something is wrong, 2 the command was not understood.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Checks a directory of manifests, as control would read it
    ///
    /// Reads every file of DIR that ends in .yaml, .yml or .json: Service (v1), Workload, InboundPolicy and OutboundPolicy
    /// (portunus.dev/v1alpha1). Prints each mistake with file, line, column and field. A state with a mistake is not
    /// taken by control; warnings are about what is allowed and probably not meant.
    #[command(after_long_help = VALIDATE)]
    Validate {
        /// The directory that control is given as --source
        dir: PathBuf,
        /// How to print what was found
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
        /// Print notes too: objects that are left out because they are not for the mesh
        #[arg(short, long)]
        verbose: bool,
    },
    /// Makes a join token for a Workload
    ///
    /// Prints 256 random bits, which belong in a file that only the workload's sidecar can read, and their SHA-256, which
    /// belongs in the Workload as spec.joinTokenSha256. The token is kept nowhere else: store it now, or make another.
    Token {
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Prints the version
    Version,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

const VALIDATE: &str = "\
Examples:
  portunus validate /etc/portunus/mesh
  portunus validate mesh -o json | jq '.findings[] | select(.severity == \"mistake\")'

A mistake looks like this:
  shop.yaml:12:11: mistake: InboundPolicy shop/all: spec.mtls.mode: is \"STRICT\"; expected one of strict, permissive, disabled

Exit status: 0 no mistake, 1 a mistake (or nothing can be printed), 2 the command was not understood.";

/// Runs the command.
pub fn run(cli: Cli) -> ExitCode {
    let mut out = io::stdout().lock();
    let (code, printed) = match cli.command {
        Command::Validate { dir, output, verbose } => {
            let checked = validate::check(&dir);
            (checked.code(), checked.print(output, verbose, &mut out))
        }
        Command::Token { output } => (ExitCode::SUCCESS, token::run(output, &mut out)),
        Command::Version => {
            let printed = writeln!(out, "portunus {}", env!("CARGO_PKG_VERSION"));
            (ExitCode::SUCCESS, printed)
        }
    };
    match printed.and_then(|()| out.flush()) {
        Ok(()) => code,
        // A reader that has seen enough, as `head` does, is no trouble, and changes no verdict.
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => code,
        Err(why) => {
            eprintln!("portunus: the answer cannot be printed: {why}");
            ExitCode::FAILURE
        }
    }
}
