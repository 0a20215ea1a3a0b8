//! Runs one part: its output in a log, its progress shown, its time limited.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use support::{interrupt, netns};

use crate::{
    clock,
    harness::Tally,
    parts::{Kind, Part, cargo},
};

/// How a part ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) took: Duration,
    pub(crate) log: PathBuf,
    /// What went wrong beside the tests that failed.
    trouble: Vec<String>,
}

impl Outcome {
    pub(crate) fn words(&self) -> String {
        let mut words = match self.failed {
            0 => format!("ok: {} passed", self.passed),
            failed => format!("FAILED: {failed} of {}", failed + self.passed),
        };
        for trouble in &self.trouble {
            words += &format!("; {trouble}");
        }
        words
    }
}

/// Runs a part to its end, or to the end of its time.
pub(crate) fn part(part: &Part, environment: &[(&'static str, PathBuf)], logs: &Path) -> Result<Outcome> {
    fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let log = logs.join(format!("{}.log", part.name));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut progress = Progress::new(part, &log)?;
    let mut trouble = Vec::new();
    let mut succeeded = true;
    for arguments in &part.commands {
        let mut command = cargo();
        command.args(arguments).envs(environment.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        // A group of its own, so that what hangs is ended with all that it started.
        let child = command.process_group(0).spawn().context("cannot run cargo")?;
        match wait(child, part.limit, &mut progress)? {
            End::Status(status) => succeeded &= status.success(),
            End::Cut(why) => {
                succeeded = false;
                trouble.push(why);
                break;
            }
        }
    }
    let took = progress.began.elapsed();
    let tally = progress.finish()?;
    if part.kind == Kind::PodTests {
        netns::sweep()?;
    }
    let outcome = judge(
        part,
        &tally,
        succeeded,
        Outcome {
            passed: 0,
            failed: 0,
            took,
            log,
            trouble,
        },
    );
    if outcome.failed > 0 {
        show_tail(&outcome.log)?;
    }
    Ok(outcome)
}

fn judge(part: &Part, tally: &Tally, succeeded: bool, mut outcome: Outcome) -> Outcome {
    if part.kind == Kind::Check {
        outcome.passed = usize::from(succeeded);
        outcome.failed = usize::from(!succeeded);
        return outcome;
    }
    outcome.passed = tally.passed;
    outcome.failed = tally.failed + tally.ignored.len();
    if !tally.ignored.is_empty() {
        outcome.trouble.push(format!(
            "passed over, which counts as failed: {}",
            tally.ignored.join(", ")
        ));
    }
    if succeeded && tally.passed + outcome.failed == 0 {
        outcome.trouble.push("no test ran".to_string());
        outcome.failed += 1;
    }
    if !succeeded && tally.failed == 0 {
        if outcome.trouble.is_empty() {
            outcome.trouble.push("it ended before its tests did".to_string());
        }
        outcome.failed += 1;
    }
    outcome
}

enum End {
    Status(ExitStatus),
    Cut(String),
}

fn wait(mut child: Child, limit: Duration, progress: &mut Progress<'_>) -> Result<End> {
    let group = Pid::from_raw(child.id().cast_signed());
    loop {
        if let Some(status) = child.try_wait()? {
            progress.read()?;
            return Ok(End::Status(status));
        }
        let over = progress.began.elapsed() > limit;
        if over || interrupt::heard() {
            let _ = killpg(group, Signal::SIGKILL);
            child.wait()?;
            progress.read()?;
            let why = if over {
                format!("ended after {}, its limit", clock(limit))
            } else {
                "interrupted".to_string()
            };
            return Ok(End::Cut(why));
        }
        progress.read()?;
        progress.show();
        thread::sleep(Duration::from_millis(100));
    }
}

/// Reads a part's log as it grows, and says how far it is.
struct Progress<'a> {
    part: &'a Part,
    began: Instant,
    log: File,
    unfinished: Vec<u8>,
    last_line: String,
    tally: Tally,
    said: Instant,
    terminal: bool,
}

impl<'a> Progress<'a> {
    fn new(part: &'a Part, log: &Path) -> Result<Progress<'a>> {
        Ok(Progress {
            part,
            began: Instant::now(),
            log: File::open(log)?,
            unfinished: Vec::new(),
            last_line: String::new(),
            tally: Tally::default(),
            said: Instant::now(),
            terminal: io::stdout().is_terminal(),
        })
    }

    fn read(&mut self) -> Result<()> {
        self.log.read_to_end(&mut self.unfinished)?;
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = self.unfinished.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).trim_end().to_string();
            self.tally.read(&line);
            if !line.is_empty() {
                self.last_line = line;
            }
        }
        Ok(())
    }

    /// A line that is written over on a terminal; elsewhere a line every half a minute.
    fn show(&mut self) {
        let every = if self.terminal {
            Duration::from_millis(200)
        } else {
            Duration::from_secs(30)
        };
        if self.said.elapsed() < every {
            return;
        }
        self.said = Instant::now();
        let tests = match self.part.kind {
            Kind::Check => String::new(),
            Kind::Tests | Kind::PodTests => format!("{} tests, ", self.tally.ended()),
        };
        let line = format!(
            "      {tests}{}: {}",
            clock(self.began.elapsed()),
            self.last_line.trim()
        );
        let line: String = line.chars().take(110).collect();
        if self.terminal {
            print!("\r\x1b[K{line}");
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
    }

    fn finish(mut self) -> Result<Tally> {
        self.read()?;
        if self.terminal {
            print!("\r\x1b[K");
        }
        Ok(self.tally)
    }
}

fn show_tail(log: &Path) -> Result<()> {
    let text = fs::read(log)?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    println!("      the end of {}:", log.display());
    for line in &lines[lines.len().saturating_sub(TAIL_LINES)..] {
        println!("      | {}", line.chars().take(300).collect::<String>());
    }
    Ok(())
}

const TAIL_LINES: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(kind: Kind, output: &str, succeeded: bool) -> (usize, usize) {
        let part = Part {
            name: String::new(),
            about: String::new(),
            commands: Vec::new(),
            limit: Duration::ZERO,
            kind,
            left_out: Vec::new(),
        };
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        let blank = Outcome {
            passed: 0,
            failed: 0,
            took: Duration::ZERO,
            log: PathBuf::new(),
            trouble: Vec::new(),
        };
        let outcome = judge(&part, &tally, succeeded, blank);
        (outcome.passed, outcome.failed)
    }

    #[test]
    fn what_did_not_run_counts_as_failed() {
        assert_eq!(
            judged(Kind::Tests, "test result: ok. 2 passed; 0 failed; 0 ignored", true),
            (2, 0)
        );
        assert_eq!(
            judged(Kind::Tests, "test result: ok. 0 passed; 0 failed; 0 ignored", true),
            (0, 1),
            "no test"
        );
        assert_eq!(
            judged(Kind::Tests, "error: could not compile", false),
            (0, 1),
            "does not compile"
        );
        let ignored = "test a ... ignored\ntest result: ok. 2 passed; 0 failed; 1 ignored";
        assert_eq!(judged(Kind::Tests, ignored, true), (2, 1), "ignored");
        assert_eq!(
            judged(Kind::Tests, "test result: FAILED. 2 passed; 3 failed; 0 ignored", false),
            (2, 3)
        );
        assert_eq!(judged(Kind::Check, "", false), (0, 1));
    }
}
