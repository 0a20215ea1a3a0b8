//! A log that nobody reads, until the test does.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// A pipe that takes not one byte more: it is full of line feeds.
///
/// # Errors
/// When there is none.
pub fn full_pipe() -> Result<(PipeReader, PipeWriter)> {
    let (reader, mut writer) = io::pipe()?;
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    for piece in [&[b'\n'; 4096][..], b"\n"] {
        while writer.write(piece).is_ok() {}
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, writer))
}

/// All that is written there until nobody writes any more.
///
/// # Errors
/// When it cannot be read.
pub fn read_all(mut reader: PipeReader) -> Result<String> {
    let mut log = Vec::new();
    reader.read_to_end(&mut log).context("a pipe can be read")?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}
