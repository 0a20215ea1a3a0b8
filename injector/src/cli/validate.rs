//! `portunus validate DIR`: what control would say of a directory.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::Output;
use crate::cluster::file::{self, Reading, Severity};

pub fn run(directory: &Path, output: Output, verbose: bool, out: &mut impl Write) -> io::Result<ExitCode> {
    let mut reading = file::read(directory);
    if !verbose {
        reading.findings.retain(|finding| finding.severity != Severity::Note);
    }
    match output {
        Output::Text => text(&reading, out)?,
        Output::Json => writeln!(
            out,
            "{:#}",
            json!({ "accepted": reading.snapshot.is_some(), "findings": reading.findings })
        )?,
    }
    Ok(match reading.snapshot {
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}

fn text(reading: &Reading, out: &mut impl Write) -> io::Result<()> {
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
    match &reading.snapshot {
        Some(snapshot) => writeln!(
            out,
            "fine: services {}, workloads {}, inbound policies {}, outbound policies {}; warnings {warnings}",
            snapshot.services.len(),
            snapshot.workloads.len(),
            snapshot.inbound_policies.len(),
            snapshot.outbound_policies.len(),
        ),
        None => writeln!(
            out,
            "refused: mistakes {}, warnings {warnings}; control keeps its last good state",
            count(Severity::Mistake)
        ),
    }
}
