//! What went over a pod's wire.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::{Pod, Program, User};

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    pod: Pod,
    program: Program,
    file: PathBuf,
}

impl Capture {
    /// Captures what a filter of tcpdump's selects, on `eth0` or `lo`, from the moment this returns.
    pub fn start(pod: &Pod, interface: &str, filter: &str) -> Result<Capture> {
        let file = pod.folder().join(format!("{interface}.pcap"));
        let mut command = pod.command(User::Root, "tcpdump");
        command
            .args(["-i", interface, "-n", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(&file)
            .arg(filter);
        let mut program = pod.start("tcpdump", command)?;
        program.says("listening on", Duration::from_secs(5))?;
        Ok(Capture {
            pod: pod.clone(),
            program,
            file,
        })
    }

    /// Ends it, and returns a line for each packet, its payload in printable characters on the lines after it.
    pub fn stop(mut self) -> Result<String> {
        self.program.signal(Signal::SIGINT)?;
        self.program.wait(Duration::from_secs(5))?;
        let mut command = self.pod.command(User::Root, "tcpdump");
        command.args(["-n", "-A", "-r"]).arg(&self.file);
        self.pod.run("read-capture", command)
    }
}
