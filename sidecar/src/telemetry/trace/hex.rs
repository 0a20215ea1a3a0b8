//! Hexadecimal digits in lower case, by a table each way.

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

/// Both digits of each byte.
static PAIRS: [[u8; 2]; 256] = {
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

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

/// Writes two digits a byte; `out` is twice as long as `bytes`.
#[inline]
pub(super) fn write(bytes: &[u8], out: &mut [u8]) {
    for (byte, out) in bytes.iter().zip(out.as_chunks_mut().0) {
        *out = PAIRS[usize::from(*byte)];
    }
}
