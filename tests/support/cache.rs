//! What is built for the tests once and kept outside the checkout, by the content of what it is built from.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::{mesh::open_folder, netns::remove_dir};

/// The folder `name-<hash of inputs>`, filled by `build` unless it is there.
///
/// `build` gets a folder to fill that only afterwards takes its name: a run that was cut leaves nothing that looks
/// finished. Of several runs that want the same folder one builds, and the others wait.
pub fn folder(name: &str, inputs: &[&[u8]], build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = root()?.join(format!("{name}-{:016x}", hash(inputs)));
    if path.exists() {
        return Ok(path);
    }
    let lock = File::create(path.with_extension("lock")).context("cannot write into the cache")?;
    let _lock = match Flock::lock(lock, FlockArg::LockExclusive) {
        Ok(lock) => lock,
        Err((_, error)) => bail!("cannot lock {}: {error}", path.display()),
    };
    if !path.exists() {
        let draft = path.with_extension("draft");
        remove_dir(&draft)?;
        open_folder(&draft)?;
        build(&draft)?;
        fs::rename(&draft, &path).with_context(|| format!("cannot name {}", path.display()))?;
    }
    Ok(path)
}

/// `$PORTUNUS_CACHE`; else for root a folder of the machine, since root's own is closed to the users that programs in
/// pods run as; else the user's cache.
fn root() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = match variable("PORTUNUS_CACHE") {
        Some(path) => path,
        None if nix::unistd::geteuid().is_root() => PathBuf::from("/var/cache/portunus"),
        None => match (variable("XDG_CACHE_HOME"), variable("HOME")) {
            (Some(cache), _) => cache.join("portunus"),
            (None, Some(home)) => home.join(".cache/portunus"),
            (None, None) => bail!("there is no place to cache what the tests need: set PORTUNUS_CACHE"),
        },
    };
    open_folder(&root)?;
    Ok(root)
}

/// FNV-1a, each input ended by its length, so that bytes cannot move from one to the next.
fn hash(inputs: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for input in inputs {
        for byte in input.iter().copied().chain(input.len().to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_inputs_have_another_folder() {
        assert_eq!(hash(&[b"a", b"b"]), hash(&[b"a", b"b"]));
        assert_ne!(hash(&[b"a", b"b"]), hash(&[b"ab", b""]));
        assert_ne!(hash(&[b"a"]), hash(&[b"a", b""]));
    }
}
