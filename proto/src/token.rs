//! How a join token is written: 256 bits, in hex or in base64. Control takes nothing else, and a sidecar asks with nothing else,
//! since control counts what is none as an attempt of its address.

/// The bits of a join token: of hex, or of base64 of either alphabet, with padding or without; white space around it is
/// allowed. None if they are not exactly 256.
pub fn bits(text: &str) -> Option<[u8; 32]> {
    let text = text.trim();
    match text.len() {
        64 => of_hex(text),
        43 | 44 => of_base64(text),
        _ => None,
    }
}

/// 256 bits of 64 hex digits, and of nothing else.
pub fn of_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

fn of_base64(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').unwrap_or(text);
    let (mut bits, mut held) = (0u32, 0);
    let mut bytes = Vec::with_capacity(32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
    }
    // The last digit carries four bits of the token; the other two are zero.
    let rest = bits & ((1 << held) - 1);
    (rest == 0).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_in_every_form_that_it_may_be_kept_in() {
        for form in [
            "fb".repeat(32).as_str(),
            &"FB".repeat(32),
            &format!(" {}\n", "Fb".repeat(32)),
            "+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/v7+/s=",
            "-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_v7-_s",
        ] {
            assert_eq!(bits(form), Some([0xfb; 32]), "{form}");
        }
    }

    #[test]
    fn what_is_no_token_is_none() {
        for text in [
            "",
            "00",
            &"0".repeat(63),
            &"g".repeat(64),
            &"é".repeat(32),
            &"A".repeat(42),
            // Too many bits, too few, and padding in between.
            &"A".repeat(44),
            &format!("{}=", "A".repeat(42)),
            &format!("{}=A", "A".repeat(42)),
            // The last digit has bits beyond those of a token.
            &"B".repeat(43),
        ] {
            assert_eq!(bits(text), None, "{text}");
        }
    }
}
