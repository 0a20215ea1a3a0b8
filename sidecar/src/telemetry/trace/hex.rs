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

/// Whether these are digits in lower case, and not all of them 0. All are looked at, side by side.
#[inline]
pub(super) fn is_above_zero<const N: usize>(digits: &[u8; N]) -> bool {
    let (mut wrong, mut above) = (false, 0);
    for digit in digits {
        wrong |= digit.wrapping_sub(b'0') > 9 && digit.wrapping_sub(b'a') > 5;
        above |= digit ^ b'0';
    }
    !wrong && above != 0
}

/// All digits of a number, eight at a time. Each call without a trace pays for three of this.
#[inline]
pub(super) fn digits(number: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    let (high, low) = digits.split_at_mut(8);
    high.copy_from_slice(&eight((number >> 32) as u32));
    low.copy_from_slice(&eight(number as u32));
    digits
}

/// The digits of 32 bits, each made in a byte of one word.
#[inline(always)]
fn eight(number: u32) -> [u8; 8] {
    // Each half moves away from the other, then its halves, down to four bits a byte.
    let mut word = u64::from(number);
    word = (word << 16 | word) & 0x0000_ffff_0000_ffff;
    word = (word << 8 | word) & 0x00ff_00ff_00ff_00ff;
    word = (word << 4 | word) & 0x0f0f_0f0f_0f0f_0f0f;
    // One in each byte that is above nine, and so a letter.
    let letters = (word + 0x0606_0606_0606_0606) >> 4 & EACH;
    (word + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

/// One in each byte.
const EACH: u64 = 0x0101_0101_0101_0101;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_standard_library_and_read_back(number: u64) {
            prop_assert_eq!(digits(number).to_vec(), format!("{number:016x}").into_bytes());
            prop_assert_eq!(read(&digits(number)), Some(number));
        }

        #[test]
        fn a_number_above_zero_is_what_reads_as_one(number in 0..3u64, at in 0..16usize, byte: u8) {
            let mut text = digits(number);
            text[at] = byte;
            prop_assert_eq!(is_above_zero(&text), read(&text).is_some_and(|number| number > 0));
        }
    }
}
