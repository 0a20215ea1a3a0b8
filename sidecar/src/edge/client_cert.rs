//! `x-forwarded-client-cert`: the words in which an application learns who has called it, in the form of Envoy's header.

use std::fmt::Write;

use http::HeaderValue;

/// The field's name.
pub const NAME: &str = "x-forwarded-client-cert";

/// A value that no header can carry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} cannot be said in x-forwarded-client-cert: it has a character that is not visible ASCII")]
pub struct Unfit {
    /// Which part.
    pub what: &'static str,
}

/// `By=<by>;Hash=<hex of sha256>;URI=<uri>`: who is called, the SHA-256 of the caller's certificate in DER, the caller's
/// identity. `by` and `uri` are identities that were proven; none of Envoy's other keys is written.
///
/// # Errors
/// When an identity has other characters than visible ASCII. What would end a value is quoted, so nothing of a part can
/// be taken for another part.
pub fn value(by: &str, sha256: &[u8; 32], uri: &str) -> Result<HeaderValue, Unfit> {
    let mut text = String::with_capacity(by.len() + uri.len() + 80);
    text.push_str("By=");
    push(&mut text, by, "this workload's identity")?;
    text.push_str(";Hash=");
    for byte in sha256 {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str(";URI=");
    push(&mut text, uri, "the peer's identity")?;
    HeaderValue::try_from(text).map_err(|_| Unfit { what: "the whole" })
}

fn push(text: &mut String, part: &str, what: &'static str) -> Result<(), Unfit> {
    if !part.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Unfit { what });
    }
    if !part.contains([';', ',', '=', '"', '\\']) {
        text.push_str(part);
        return Ok(());
    }
    text.push('"');
    for c in part.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    Ok(())
}

/// Whether an application may read a field of this name as [`NAME`]. CGI, WSGI and their like make one variable of all
/// names that differ only in case and in what is neither letter nor digit: `X_Forwarded-Client_Cert` is
/// `HTTP_X_FORWARDED_CLIENT_CERT` too.
pub fn is_taken_for(name: &[u8]) -> bool {
    let folds = |(a, b): (&u8, &u8)| match b {
        b'-' => !a.is_ascii_alphanumeric(),
        _ => a.eq_ignore_ascii_case(b),
    };
    name.len() == NAME.len() && name.iter().zip(NAME.as_bytes()).all(folds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY: &str = "spiffe://mesh.test/ns/shop/sa/cart";
    const URI: &str = "spiffe://mesh.test/ns/shop/sa/web";

    #[test]
    fn the_value_names_the_called_the_certificate_and_the_caller() {
        let mut hash = [0xab; 32];
        hash[0] = 0x01;
        let expected = format!("By={BY};Hash=01{};URI={URI}", "ab".repeat(31));
        assert_eq!(
            value(BY, &hash, URI),
            Ok(HeaderValue::try_from(expected).expect("fits"))
        );
    }

    #[test]
    fn no_part_can_pretend_to_be_another() {
        let forged = format!("{URI};URI=spiffe://mesh.test/ns/shop/sa/admin");
        let said = value(BY, &[0; 32], &forged).expect("quoted");
        let said = said.to_str().expect("ASCII");
        assert!(said.ends_with(&format!(";URI=\"{forged}\"")), "{said}");
        let quoted = value(BY, &[0; 32], r#"a"b\c"#).expect("quoted");
        assert!(
            quoted.to_str().expect("ASCII").ends_with(r#";URI="a\"b\\c""#),
            "{quoted:?}"
        );
    }

    #[test]
    fn what_no_header_may_carry_is_refused() {
        for odd in ["a\r\nb", "a\0", "a b", "\u{e9}", "a\tb", "\x7f"] {
            assert!(value(BY, &[0; 32], odd).is_err(), "{odd:?}");
            assert!(value(odd, &[0; 32], URI).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn every_spelling_that_an_application_may_take_for_the_field_is_known() {
        let spellings = [
            "x-forwarded-client-cert",
            "X-Forwarded-Client-Cert",
            "X_FORWARDED_CLIENT_CERT",
            "x-forwarded_client-cert",
            "x.forwarded.client.cert",
        ];
        for spelling in spellings {
            assert!(is_taken_for(spelling.as_bytes()), "{spelling}");
        }
        let others = [
            "x-forwarded-client-certs",
            "xforwarded-client-cert",
            "x-forwarded-for",
            "xxforwarded-client-cert",
        ];
        for other in others {
            assert!(!is_taken_for(other.as_bytes()), "{other}");
        }
    }
}
