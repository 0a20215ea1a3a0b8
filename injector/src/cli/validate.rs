//! `portunus validate DIR`: what control would say of a directory.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::Output;
use crate::cluster::file::{self, Reading, Severity};

/// What was found.
pub struct Checked(Reading);

/// Reads a directory as control does.
pub fn check(directory: &Path) -> Checked {
    Checked(file::read(directory))
}

impl Checked {
    /// The verdict, whether anybody reads it or not.
    pub fn code(&self) -> ExitCode {
        match self.0.snapshot {
            Some(_) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        }
    }

    /// Prints it; notes too, if it is to be verbose.
    pub fn print(self, output: Output, verbose: bool, out: &mut impl Write) -> io::Result<()> {
        let Checked(mut reading) = self;
        let left_out = reading.findings.len();
        if !verbose {
            reading.findings.retain(|finding| finding.severity != Severity::Note);
        }
        let left_out = left_out - reading.findings.len();
        match output {
            Output::Text => text(&reading, left_out, out),
            Output::Json => writeln!(
                out,
                "{:#}",
                json!({ "accepted": reading.snapshot.is_some(), "findings": reading.findings })
            ),
        }
    }
}

/// `left_out` notes are not printed: that there are some is said, since somebody may miss them.
fn text(reading: &Reading, left_out: usize, out: &mut impl Write) -> io::Result<()> {
    for finding in &reading.findings {
        writeln!(out, "{finding}")?;
    }
    let count = |severity| {
        reading
            .findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let warnings = count(Severity::Warning);
    let left_out = match left_out {
        0 => String::new(),
        some => format!("; left out {some} (-v says what)"),
    };
    match &reading.snapshot {
        Some(snapshot) => writeln!(
            out,
            "fine: services {}, workloads {}, inbound policies {}, outbound policies {}; warnings {warnings}{left_out}",
            snapshot.services.len(),
            snapshot.workloads.len(),
            snapshot.inbound_policies.len(),
            snapshot.outbound_policies.len(),
        ),
        None => writeln!(
            out,
            "refused: mistakes {}, warnings {warnings}; control keeps its last good state{left_out}",
            count(Severity::Mistake)
        ),
    }
}
