//! Ctrl-C and SIGTERM as something to act on in order, in place of ending on the spot.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

static HEARD: AtomicBool = AtomicBool::new(false);

/// From now on these signals are noted. Call it before any other thread starts: threads inherit what is blocked.
///
/// Programs that are started afterwards are not affected. A second signal ends this process at once.
pub fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.extend([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("cannot block signals")?;
    thread::spawn(move || {
        while signals.wait().is_ok() {
            if HEARD.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
    Ok(())
}

/// Whether one was heard.
pub fn heard() -> bool {
    HEARD.load(Ordering::Relaxed)
}
