//! `grpc-timeout`: at most eight digits and a unit (gRPC's `doc/PROTOCOL-HTTP2.md`).

use std::time::Duration;

/// Reads a `grpc-timeout`; `None` if it is not one. Durations beyond what a clock holds are those of the largest unit.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n = digits
        .iter()
        .try_fold(0u64, |n, d| d.is_ascii_digit().then(|| n * 10 + u64::from(d - b'0')))?;
    match unit {
        b'H' => Some(Duration::from_secs(n * 3_600)),
        b'M' => Some(Duration::from_secs(n * 60)),
        b'S' => Some(Duration::from_secs(n)),
        b'm' => Some(Duration::from_millis(n)),
        b'u' => Some(Duration::from_micros(n)),
        b'n' => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// Writes what remains in the finest unit that eight digits hold, rounded up: a deadline never becomes earlier than it
/// was, and never zero while there is time.
pub fn format(left: Duration, out: &mut Vec<u8>) {
    const UNITS: [(u128, u8); 6] = [
        (1, b'n'),
        (1_000, b'u'),
        (1_000_000, b'm'),
        (1_000_000_000, b'S'),
        (60_000_000_000, b'M'),
        (3_600_000_000_000, b'H'),
    ];
    let nanos = left.as_nanos();
    let fit = UNITS
        .iter()
        .map(|(size, unit)| (nanos.div_ceil(*size), *unit))
        .find(|(n, _)| *n < 100_000_000);
    let (n, unit) = fit.unwrap_or((99_999_999, b'H'));
    let mut digits = [0; 8];
    let mut at = digits.len();
    let mut n = n as u32;
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
    out.push(unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_understood() {
        let cases: [(&str, Duration); 7] = [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
        ];
        for (text, duration) in cases {
            assert_eq!(parse(text.as_bytes()), Some(duration), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_timeout_is_none() {
        for text in ["", "S", "1", "123456789S", "-1S", "1.5S", "1s", "1 S", "+1S", "1SS"] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_remains_reads_back_as_no_less_and_hardly_more() {
        for nanos in [
            1u64,
            999,
            99_999_999,
            100_000_000,
            1_234_567_890,
            98_765_432_101,
            u64::MAX,
        ] {
            let left = Duration::from_nanos(nanos);
            let mut text = Vec::new();
            format(left, &mut text);
            let back = parse(&text).expect("our own text");
            assert!(back >= left, "{nanos}");
            assert!(
                back.as_nanos() <= left.as_nanos() + left.as_nanos() / 1_000_000 + 1,
                "{nanos}: {back:?}"
            );
        }
    }
}
