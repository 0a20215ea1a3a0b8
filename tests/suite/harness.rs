//! Reads what Rust's test harness prints.

/// What the output has said so far.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Tests that the harness passed over, and that are therefore not known to hold.
    pub(crate) ignored: Vec<String>,
    /// How many programs of tests have said how they ended.
    pub(crate) results: usize,
    /// Tests of the program that runs now.
    running: usize,
}

impl Tally {
    /// Takes the next line.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.results += 1;
            self.running = 0;
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
        } else if let Some((name, result)) = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... ")) {
            self.running += 1;
            if result == "ignored" || result.starts_with("ignored, ") {
                self.ignored.push(name.to_string());
            }
        }
    }

    /// Tests that have ended, also those of a program that has not.
    pub(crate) fn ended(&self) -> usize {
        self.passed + self.failed + self.running
    }
}

/// The number before a word: `ok. 12 passed; 0 failed; …`.
fn count(result: &str, word: &str) -> usize {
    let before = |piece: &str| {
        piece
            .trim()
            .strip_suffix(word)?
            .trim_end()
            .rsplit(' ')
            .next()?
            .parse()
            .ok()
    };
    result.split(';').find_map(before).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_tests_are_summed_and_ignored_tests_are_named() {
        let mut tally = Tally::default();
        let output = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d ... ignored, needs a moon\n\n\
                      test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.1s\n\
                      running 1 test\ntest src/lib.rs - x (line 3) - compile ... ok\n\
                      test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                      running 2 tests\ntest e ... ok\n";
        output.lines().for_each(|line| tally.read(line));
        assert_eq!((tally.passed, tally.failed, tally.results), (2, 1, 2));
        assert_eq!(tally.ignored, ["d"]);
        assert_eq!(tally.ended(), 4);
    }
}
