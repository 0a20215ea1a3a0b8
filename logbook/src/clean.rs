//! What a stranger wrote, made fit for a line and a terminal.

use std::io::{self, Write};

/// Control characters, and those that end a line or turn the direction of writing.
pub fn is_control(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}')
        || matches!(char, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with its control characters escaped as JSON does, if it has any.
pub fn escape(text: &str) -> Option<String> {
    if !text.contains(is_control) {
        return None;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_control(char) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            escaped.push(char);
        }
    }
    Some(escaped)
}

/// Writes an event's line with its control characters escaped, so that what a peer sent cannot begin a line of its own or
/// move somebody's terminal. The escapes are JSON's, which are right in both forms of a log.
#[derive(Clone, Debug)]
pub struct Escaped<W>(pub W);

impl<W: Write> Write for Escaped<W> {
    /// Takes one whole event, as a subscriber of `tracing` writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        match escape(&String::from_utf8_lossy(line)) {
            None => self.0.write_all(event)?,
            Some(line) => self.0.write_all(format!("{line}\n").as_bytes())?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_says_begins_no_line_and_moves_no_terminal() {
        let mut log = Escaped(Vec::new());
        let said = "a\nERROR forged\r\u{1b}[2J\u{9b}\u{202e}\u{2028}\u{85}é\n";
        log.write_all(said.as_bytes()).expect("it never fails");
        log.write_all("ünder\n".as_bytes()).expect("it never fails");
        assert_eq!(
            String::from_utf8(log.0).expect("text"),
            "a\\u000aERROR forged\\u000d\\u001b[2J\\u009b\\u202e\\u2028\\u0085é\nünder\n"
        );
    }
}
