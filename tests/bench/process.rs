//! A program under measurement: pinned to a CPU, with its CPU time, memory, system calls and instructions counted.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// A running program; it is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the program on one CPU; what it prints goes to `log`.
    pub(crate) fn start(program: &Command, cpu: usize, log: PathBuf) -> Result<Process> {
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // taskset becomes the program, so that the process id is the program's own.
        let mut command = Command::new("taskset");
        command
            .arg("-c")
            .arg(cpu.to_string())
            .arg(program.get_program())
            .args(program.get_args());
        // What the suite tells its tests is not for the program, and what somebody has set is not what is measured.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PORTUNUS_") {
                command.env_remove(name);
            }
        }
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}", program.get_program().display()))?;
        Ok(Process { child, log })
    }

    /// All the CPU time that its threads, also those that ended, have taken in user and in system mode.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let clock = clock_getcpuclockid(self.pid()).context("the program is gone")?;
        Ok(clock_gettime(clock)
            .context("the program's CPU clock cannot be read")?
            .into())
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("the program has ended")?;
        let kib: u64 = line
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse()
            .context("VmRSS is no number")?;
        Ok(kib << 10)
    }

    /// How many system calls it makes while `work` is done.
    pub(crate) fn system_calls(&self, work: impl FnOnce() -> Result<()>) -> Result<u64> {
        let summary = self.log.with_extension("strace");
        let mut strace = Command::new("strace")
            .args(["-c", "-f", "-p"])
            .arg(self.pid().to_string())
            .arg("-o")
            .arg(&summary)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start strace")?;
        let mut says = BufReader::new(strace.stderr.take().context("strace has no standard error")?);
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            ensure!(
                says.read_line(&mut line)? > 0,
                "strace cannot attach; it needs the right to trace processes"
            );
        }
        let worked = work();
        kill(Pid::from_raw(strace.id() as i32), Signal::SIGINT)?;
        strace.wait()?;
        worked?;
        let text = std::fs::read_to_string(&summary)?;
        let total = text.lines().find(|line| line.trim_end().ends_with("total"));
        let calls = total
            .and_then(|line| line.split_whitespace().nth(3))
            .and_then(|calls| calls.parse().ok());
        calls.with_context(|| format!("{} holds no total", summary.display()))
    }

    /// Asks it to end, after a while more urgently (a second signal cuts what drains), and waits for that.
    pub(crate) fn end(mut self, patience: Duration) -> Result<ExitStatus> {
        kill(self.pid(), Signal::SIGTERM).context("the program is gone")?;
        let (began, mut urged) = (Instant::now(), false);
        while began.elapsed() < patience {
            if !urged && began.elapsed() > patience / 20 {
                urged = true;
                kill(self.pid(), Signal::SIGTERM).context("the program is gone")?;
            }
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!(
            "the program did not end within {patience:?} of SIGTERM{}",
            self.last_words()
        )
    }

    /// Whether it has ended of itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(8)..].join("\n    ");
        if last.is_empty() {
            String::new()
        } else {
            format!("; its last words:\n    {last}")
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same program under callgrind, which counts user instructions and writes them to `counts` when the program ends.
pub(crate) fn under_callgrind(program: &Command, counts: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", counts.display()));
    command.arg(program.get_program()).args(program.get_args());
    for (name, value) in program.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// The instructions that callgrind counted.
pub(crate) fn instructions(counts: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(counts).context("callgrind wrote no counts")?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals:"));
    total
        .and_then(|total| total.trim().parse().ok())
        .with_context(|| format!("{} holds no totals", counts.display()))
}

/// Pins a thread (0: the calling one) to a CPU.
pub(crate) fn pin(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set).with_context(|| format!("cannot pin a thread to CPU {cpu}"))
}

/// The CPU time of this process: load generator and backend.
pub(crate) fn own_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}
