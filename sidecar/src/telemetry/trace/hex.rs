//! Hexadecimal digits in lower case.

const NO_DIGIT: u8 = 0xff;

static VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut digit = 0;
    while digit < 16 {
        values[DIGITS[digit] as usize] = digit as u8;
        digit += 1;
    }
    values
};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The number that up to 16 digits write; `None` if one of them is no digit in lower case.
#[inline]
pub(super) fn read(digits: &[u8]) -> Option<u64> {
    let (mut value, mut seen) = (0, 0);
    for digit in digits {
        let digit = VALUES[usize::from(*digit)];
        seen |= digit;
        value = value << 4 | u64::from(digit & 15);
    }
    (seen != NO_DIGIT && digits.len() <= 16).then_some(value)
}

/// The same of up to 32 digits.
#[inline]
pub(super) fn read_wide(digits: &[u8]) -> Option<u128> {
    let (high, low) = digits.split_at(digits.len().saturating_sub(16));
    Some(u128::from(read(high)?) << 64 | u128::from(read(low)?))
}

/// All digits of a number; those of a shorter one stand at the end.
///
/// Neither a table nor a way out: so the compiler makes sixteen digits at once. Each call without a trace pays for this.
#[inline]
pub(super) fn digits(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (byte, pair) in number.to_be_bytes().iter().zip(digits.as_chunks_mut().0) {
        *pair = [byte >> 4, byte & 15];
    }
    for digit in &mut digits {
        *digit += b'0' + u8::from(*digit > 9) * (b'a' - b'9' - 1);
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_standard_library(number: u128) {
            prop_assert_eq!(digits(number).to_vec(), format!("{number:032x}").into_bytes());
            prop_assert_eq!(read_wide(&digits(number)), Some(number));
        }
    }
}
