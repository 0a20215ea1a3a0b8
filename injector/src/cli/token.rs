//! `portunus token`: a secret for a sidecar, and its hash for a manifest.

use std::io::{self, Write};

use serde_json::json;

use super::Output;
use crate::cluster::JoinToken;

pub fn run(output: Output, out: &mut impl Write) -> io::Result<()> {
    let token = JoinToken::generate();
    let (secret, hash) = (token.reveal(), token.hash().to_hex());
    match output {
        Output::Text => {
            writeln!(out, "token: {secret}")?;
            writeln!(out, "joinTokenSha256: {hash}")
        }
        Output::Json => writeln!(out, "{}", json!({ "token": secret, "joinTokenSha256": hash })),
    }
}
