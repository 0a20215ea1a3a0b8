//! A small file of the system's, looked at again and again.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// What stands in it, up to `most` bytes.
pub(super) fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut text)?;
    Ok(text)
}
