//! Integers with a prefix (RFC 7541, 5.1).

use super::Error;

/// Reads an integer whose first byte was `first`; `input` stands behind that byte.
///
/// At most 32 bits, in at most five bytes behind the prefix: what is longer is an error, even if it is padded zeros.
#[inline(always)]
pub(super) fn decode(first: u8, prefix_bits: u32, input: &mut &[u8]) -> Result<u32, Error> {
    let mask = (1u32 << prefix_bits) - 1;
    let value = u32::from(first) & mask;
    if value < mask {
        return Ok(value);
    }
    let (value, taken) = decode_rest(mask, input)?;
    *input = &input[taken..];
    Ok(value)
}

/// The number, and how many bytes of the input it took.
fn decode_rest(prefix: u32, input: &[u8]) -> Result<(u32, usize), Error> {
    let mut value = u64::from(prefix);
    for (at, shift) in [0, 7, 14, 21, 28].into_iter().enumerate() {
        let byte = *input.get(at).ok_or(Error::Truncated)?;
        value += u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            let value = u32::try_from(value).map_err(|_| Error::IntegerTooLong)?;
            return Ok((value, at + 1));
        }
    }
    Err(Error::IntegerTooLong)
}

/// Appends `value`; the bits of `pattern` stand above the prefix.
#[inline]
pub(super) fn encode(value: u32, pattern: u8, prefix_bits: u32, out: &mut Vec<u8>) {
    let mask = (1u32 << prefix_bits) - 1;
    if value < mask {
        out.push(pattern | value as u8);
    } else {
        out.push(pattern | mask as u8);
        encode_rest(value - mask, out);
    }
}

fn encode_rest(mut rest: u32, out: &mut Vec<u8>) {
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], prefix_bits: u32) -> Result<(u32, usize), Error> {
        let mut rest = &bytes[1..];
        decode(bytes[0], prefix_bits, &mut rest).map(|value| (value, rest.len()))
    }

    #[test]
    fn the_examples_of_appendix_c_1() {
        assert_eq!(read(&[0b1110_1010], 5), Ok((10, 0)));
        assert_eq!(read(&[0b0001_1111, 0b1001_1010, 0b0000_1010], 5), Ok((1337, 0)));
        assert_eq!(read(&[42], 8), Ok((42, 0)));
        let mut out = Vec::new();
        encode(10, 0, 5, &mut out);
        encode(1337, 0, 5, &mut out);
        encode(42, 0, 8, &mut out);
        assert_eq!(out, [10, 31, 0x9a, 10, 42]);
    }

    #[test]
    fn what_is_written_is_read_back_for_every_prefix_and_size() {
        for prefix_bits in 4..=8 {
            for value in (0..32)
                .flat_map(|bit| [(1u32 << bit) - 1, 1 << bit])
                .chain([126, 127, 128, u32::MAX])
            {
                let mut out = Vec::new();
                encode(value, 0, prefix_bits, &mut out);
                out.push(0xaa);
                assert_eq!(read(&out, prefix_bits), Ok((value, 1)));
            }
        }
    }

    #[test]
    fn overflow_length_without_end_and_truncation_are_errors() {
        assert_eq!(
            read(&[0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f], 7),
            Err(Error::IntegerTooLong)
        );
        assert_eq!(
            read(&[0x7f, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], 7),
            Err(Error::IntegerTooLong)
        );
        assert_eq!(read(&[0x7f, 0x80, 0x80, 0x80, 0x80, 0x00], 7), Ok((127, 0)));
        assert_eq!(read(&[0x7f, 0x80], 7), Err(Error::Truncated));
        assert_eq!(read(&[0x7f], 7), Err(Error::Truncated));
    }
}
