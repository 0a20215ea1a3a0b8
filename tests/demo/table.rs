//! The live table: written over on a terminal, printed now and then elsewhere.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use crate::{calls::Calls, pods::Pods};

pub(crate) struct Table {
    duration: Duration,
    terminal: bool,
    shown: Option<Instant>,
    lines: usize,
}

impl Table {
    pub(crate) fn new(duration: Duration, terminal: bool) -> Table {
        Table {
            duration,
            terminal,
            shown: None,
            lines: 0,
        }
    }

    /// Shows how things are, if it is time to.
    pub(crate) fn show(&mut self, elapsed: Duration, pods: &Pods, calls: &Calls, now: f64) {
        let every = if self.terminal {
            Duration::from_millis(250)
        } else {
            Duration::from_secs(3)
        };
        if self.shown.is_none_or(|shown| shown.elapsed() >= every) {
            self.shown = Some(Instant::now());
            self.draw(elapsed, pods, calls, now);
        }
    }

    /// Shows how things were in the end.
    pub(crate) fn finish(&mut self, pods: &Pods, calls: &Calls, now: f64) {
        self.draw(self.duration, pods, calls, now);
    }

    fn draw(&mut self, elapsed: Duration, pods: &Pods, calls: &Calls, now: f64) {
        let text = self.render(elapsed, pods, calls, now);
        if self.terminal && self.lines > 0 {
            // Up to the first line of the last one, and clear from there.
            print!("\x1b[{}A\x1b[J", self.lines);
        }
        println!("{text}");
        self.lines = text.lines().count();
    }

    fn render(&self, elapsed: Duration, pods: &Pods, calls: &Calls, now: f64) -> String {
        let mut text = format!(
            "{:>5.1} s of {} s         all the time | the last {RECENT:.0} s\n\
             endpoint    stack     calls   share | share    median       p99\n",
            elapsed.as_secs_f64(),
            self.duration.as_secs()
        );
        for greeter in pods.greeters() {
            let (ever, lately) = (
                calls.answers(&greeter.name, 0.0),
                calls.answers(&greeter.name, now - RECENT),
            );
            let _ = writeln!(
                text,
                "{:<11} {:<6} {:>8} {:>5.0} % |{:>4.0} % {:>6.1} ms {:>6.1} ms  {}",
                greeter.name,
                greeter.stack.to_string(),
                ever.calls,
                ever.share * 100.0,
                lately.share * 100.0,
                lately.median,
                lately.p99,
                greeter.note
            );
        }
        for caller in &pods.callers {
            let (ended, failed) = calls.of_caller(&caller.name);
            let _ = writeln!(
                text,
                "{:<11} {:<6} {ended:>8} calls, {failed} failed",
                caller.name,
                caller.stack.to_string()
            );
        }
        for ((code, why), times) in calls.failures() {
            let _ = writeln!(text, "  {times:>3} x {code}: {}", shortened(&why, WIDTH));
        }
        text
    }
}

/// Seconds that are called lately.
const RECENT: f64 = 2.0;

/// Letters of a reason that fit into a line.
const WIDTH: usize = 90;

/// A reason of at most so many letters, cut after a word.
fn shortened(why: &str, width: usize) -> String {
    if why.chars().count() <= width {
        return why.to_owned();
    }
    let begin: String = why.chars().take(width - 1).collect();
    let ends_with_a_word = why[begin.len()..].starts_with(' ');
    let words = match begin.rsplit_once(' ') {
        Some((words, _)) if !ends_with_a_word => words,
        _ => &begin,
    };
    format!("{}…", words.trim_end_matches([' ', ',', ';', ':', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_after_a_word_and_shows_that_it_was_cut() {
        for (why, shown) in [
            ("connection refused", "connection refused"),
            ("connection refused by", "connection refused…"),
            ("connection refused, at once", "connection refused…"),
            ("connection  refuses it all", "connection  refuses…"),
            ("überhaupt gar keine Verbindung", "überhaupt gar keine…"),
            ("averylongwordthatneverends", "averylongwordthatne…"),
        ] {
            assert_eq!(shortened(why, 20), shown, "{why}");
        }
    }
}
