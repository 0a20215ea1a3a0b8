//! Durations as the Gateway API writes them (GEP-2257): `500ms`, `1m30s`, at most four parts of at most five digits.

use std::time::Duration;

/// What a duration looks like, for sentences.
pub const EXPECTED: &str = "a duration such as 500ms, 10s or 1m30s (parts of at most five digits with h, m, s or ms)";

/// Reads a duration; `None` when the text is none. Zero is one.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) || parts == 4 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, millis) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * millis);
        parts += 1;
    }
    (parts > 0).then_some(total)
}

/// `ms` before `m`, since one begins like the other.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        let cases = [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("1h1m1s1ms", Some(3_661_001)),
            ("99999h", Some(99_999 * 3_600_000)),
            ("", None),
            ("10", None),
            ("1.5s", None),
            ("-1s", None),
            ("1d", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            (" 1s", None),
            ("1 s", None),
            ("1S", None),
            ("s", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
