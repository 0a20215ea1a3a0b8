//! A program that runs in a pod, its output in a file, until its handle drops.

use std::{
    fs::{self, File},
    net::Shutdown,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use socket2::Socket;

use crate::wait_until;

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    pub(crate) fn start(name: &str, mut command: Command, log: PathBuf, errors: Option<Stdio>) -> Result<Program> {
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = errors.map_or_else(|| output.try_clone().map(Stdio::from), Ok)?;
        let child = command
            .stdin(Stdio::null())
            .stderr(errors)
            .stdout(output)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Program {
            name: name.to_string(),
            child,
            log,
        })
    }

    /// Its process, which `ip netns exec` and `setpriv` have become.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// All that it wrote so far, to either stream.
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file that [`Program::output`] reads.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Stops it where it stands, as a machine that hangs would; returns once every thread of it has stopped.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        wait_until(Duration::from_secs(5), &format!("{} stands still", self.name), || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()))
                .into_iter()
                .flatten()
                .flatten();
            let stats = tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
            stats
                .into_iter()
                .all(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
        })
    }

    /// Ends [`Program::pause`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Stops one thread of it, by the thread's name, while the others go on; until what is returned drops. That must be
    /// on the thread that called this.
    pub fn hang_thread(&self, name: &str) -> Result<Hanging> {
        let named = |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid()))?;
        let mut tasks = tasks.flatten().map(|task| task.path());
        let task = tasks
            .find(named)
            .with_context(|| format!("{} has no thread {name}", self.name))?;
        let id = task
            .file_name()
            .and_then(|id| id.to_str())
            .context("a thread has a number")?;
        let thread = Pid::from_raw(id.parse()?);
        // A debugger's stop: SIGSTOP would stop every thread.
        ptrace::seize(thread, ptrace::Options::empty()).with_context(|| format!("cannot trace {name}"))?;
        ptrace::interrupt(thread)?;
        match waitpid(thread, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => Ok(Hanging(thread)),
            other => bail!("{name} did not stop: {other:?}"),
        }
    }

    /// Shuts down every socket by which it listens on a port, behind its back; returns how many there were.
    pub fn shut_listeners(&self, port: u16) -> Result<usize> {
        let process = rustix::process::Pid::from_raw(self.pid().as_raw()).context("it has a number")?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let mut shut = 0;
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten() {
            let number = entry.file_name().to_string_lossy().parse()?;
            // Some are closed meanwhile.
            let Ok(copy) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
                continue;
            };
            let socket = Socket::from(copy);
            let at = socket.local_addr().ok().and_then(|at| at.as_socket());
            if socket.is_listener().unwrap_or(false) && at.is_some_and(|at| at.port() == port) {
                socket.shutdown(Shutdown::Both)?;
                shut += 1;
            }
        }
        Ok(shut)
    }

    /// Ends it with SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child
            .wait()
            .map(drop)
            .with_context(|| format!("cannot wait for {}", self.name))
    }

    /// Asks it to end, with SIGTERM, and waits for that.
    pub fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(patience)
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let mut status = None;
        wait_until(patience, &format!("{} has ended", self.name), || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })?;
        status.context("it ended without a status")
    }

    /// Waits until it has written `text`, and fails at once when it ends without.
    pub fn says(&mut self, text: &str, patience: Duration) -> Result<()> {
        let mut ended = None;
        let waited = wait_until(patience, &format!("{} said {text:?}", self.name), || {
            ended = self.child.try_wait().ok().flatten();
            self.output().contains(text) || ended.is_some()
        });
        if self.output().contains(text) {
            return Ok(());
        }
        match ended {
            Some(status) => bail!(
                "{} ended ({status}) before it said {text:?}:\n{}",
                self.name,
                self.output()
            ),
            None => waited.with_context(|| format!("its output:\n{}", self.output())),
        }
    }
}

/// A thread that hangs; it goes on when this drops.
#[derive(Debug)]
pub struct Hanging(Pid);

impl Drop for Hanging {
    fn drop(&mut self) {
        if ptrace::detach(self.0, None).is_err() {
            // It was killed meanwhile, and its process cannot end before somebody has seen that.
            let _ = waitpid(self.0, Some(WaitPidFlag::__WALL));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
