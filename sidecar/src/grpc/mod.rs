//! The words of gRPC: status codes, timeouts, and where one message ends and the next begins.

mod boundary;
mod code;
pub mod timeout;

pub use boundary::Boundary;
pub use code::Code;

/// Whether a `content-type` is gRPC's: `application/grpc`, alone or with `+` or `;` behind it.
pub fn is_content_type(value: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    match value.split_at_checked(GRPC.len()) {
        Some((kind, rest)) => {
            // As all write it, first: that is one comparison.
            (kind == GRPC || kind.eq_ignore_ascii_case(GRPC)) && matches!(rest.first(), None | Some(b'+' | b';'))
        }
        None => false,
    }
}

/// Writes `text` as a `grpc-message`: percent-encoded but for printable ASCII (gRPC's `doc/PROTOCOL-HTTP2.md`).
pub fn percent_encode(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}

/// Reads a `grpc-message`. What is badly encoded stands as it came; what is no UTF-8 is replaced.
pub fn percent_decode(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, behind)) = rest.split_first() {
        let coded = behind.first_chunk::<2>().filter(|_| first == b'%');
        let byte = coded.and_then(|digits| Some(digit(digits[0])? << 4 | digit(digits[1])?));
        out.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &behind[2..] } else { behind };
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        for yes in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;x=y",
            "Application/gRPC",
        ] {
            assert!(is_content_type(yes.as_bytes()), "{yes}");
        }
        for no in [
            "application/grpc-web",
            "application/grpcx",
            "text/html",
            "",
            "application/json",
        ] {
            assert!(!is_content_type(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn a_message_is_printable_ascii_on_the_wire() {
        assert_eq!(percent_encode("100 % \u{e9}\n"), b"100 %25 %C3%A9%0A");
    }

    #[test]
    fn a_message_that_was_encoded_is_read_as_it_was_and_any_other_without_a_panic() {
        let text = "100 % \u{e9}\n";
        assert_eq!(percent_decode(&percent_encode(text)), text);
        assert_eq!(percent_decode(b"%"), "%");
        assert_eq!(percent_decode(b"%4"), "%4");
        assert_eq!(percent_decode(b"%4g%%41%4a"), "%4g%AJ");
        assert_eq!(percent_decode(b"a%ff\xff"), "a\u{fffd}\u{fffd}");
    }
}
