//! Ctrl-C and SIGTERM as something to act on in order, in place of ending on the spot.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
};

static HEARD: AtomicBool = AtomicBool::new(false);

/// From now on these signals are noted; a second one ends this process at once.
///
/// They are heard by a thread's own runtime, and not blocked: programs that we start would inherit what is blocked.
pub fn listen() -> Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_io()
        .build()
        .context("cannot listen for signals")?;
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
                if HEARD.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    });
    Ok(())
}

/// Whether one was heard.
pub fn heard() -> bool {
    HEARD.load(Ordering::Relaxed)
}
