//! What operators say by mistake: a token or a key where something else belongs. Sentences about a mistake repeat what stood
//! there, but never that.

use std::borrow::Cow;
use std::ops::Range;

/// The text with whatever may be a join token or a private key left out: PEM, 64 and more digits of hex, 43 and more of
/// base64 (256 bits) among which are capitals, small letters and digits, as in all but one of a thousand tokens.
///
/// It errs on the side of silence: a name of that length that mixes capitals, small letters and digits is left out, too.
pub fn masked(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut from = 0;
    while let Some(hidden) = next(text, from) {
        shown.push_str(&text[from..hidden.start]);
        shown.push_str(IN_ITS_PLACE);
        from = hidden.end;
    }
    if from == 0 {
        return Cow::Borrowed(text);
    }
    shown.push_str(&text[from..]);
    Cow::Owned(shown)
}

const IN_ITS_PLACE: &str = "(not shown: it may be a token or a key)";

/// The first part from there on that is not to be shown. All its ends are ASCII.
fn next(text: &str, from: usize) -> Option<Range<usize>> {
    let rest = &text[from..];
    let pem = rest.find(PEM).map(|at| {
        let begin = from + at;
        let end = text[begin..].find(PEM_END).and_then(|end| {
            let after = begin + end + PEM_END.len();
            text[after..].find(PEM_LINE).map(|at| after + at + PEM_LINE.len())
        });
        // What has no end is hidden to the end of the text.
        begin..end.unwrap_or(text.len())
    });
    let digits = runs(rest).find(|run| may_be_secret(&rest[run.clone()]));
    let digits = digits.map(|run| from + run.start..from + run.end);
    match (pem, digits) {
        (Some(pem), Some(digits)) if digits.start < pem.start => Some(digits),
        (Some(pem), _) => Some(pem),
        (None, digits) => digits,
    }
}

/// The longest parts of digits of base64, of either alphabet.
fn runs(text: &str) -> impl Iterator<Item = Range<usize>> {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at + bytes[at..].iter().position(|byte| is_digit(*byte))?;
        let length = bytes[begin..].iter().position(|byte| !is_digit(*byte));
        at = length.map_or(bytes.len(), |length| begin + length);
        Some(begin..at)
    })
}

fn may_be_secret(run: &str) -> bool {
    let has = |is: fn(&u8) -> bool| run.as_bytes().iter().any(is);
    let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    // A token may stand behind something else, as in `token=...`.
    let mut hex = run.split(|digit: char| !digit.is_ascii_hexdigit());
    run.len() >= 43 && is_mixed || hex.any(|hex| hex.len() >= 64)
}

const PEM: &str = "-----BEGIN";
const PEM_END: &str = "-----END";
const PEM_LINE: &str = "-----";

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
    const BASE64: &str = "Zmh6rfhiu9dsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU=";

    #[test]
    fn tokens_and_keys_are_left_out_and_what_stands_around_them_stays() {
        let pem = "-----BEGIN PRIVATE KEY-----\\nMIGH\\nab==\\n-----END PRIVATE KEY-----";
        for secret in [HEX, &HEX.to_uppercase(), BASE64, BASE64.trim_end_matches('='), pem] {
            for (before, after) in [("", ""), ("is \"", "\"; expected a name"), ("é \u{202e}", "é")] {
                let shown = masked(&format!("{before}{secret}{after}")).into_owned();
                assert_eq!(shown, format!("{before}{IN_ITS_PLACE}{after}"));
            }
        }
        let both = masked(&format!("{HEX}, {BASE64} and {pem} end")).into_owned();
        assert_eq!(both, format!("{IN_ITS_PLACE}, {IN_ITS_PLACE} and {IN_ITS_PLACE} end"));
        assert!(!masked(&format!("token={HEX}0")).contains("66687a"));
        assert!(!masked("-----BEGIN PRIVATE KEY-----\nMIGH and no end").contains("MIGH"));
    }

    #[test]
    fn names_and_paths_are_shown() {
        for text in [
            "",
            "is \"Hello_World\"; expected a DNS label: at most 63 lower-case letters",
            "/var/run/secrets/kubernetes.io/serviceaccount/with-a-name-that-is-rather-long/token",
            "spiffe://mesh.test/ns/a-namespace-of-a-team/sa/an-account-of-a-service-1",
            "checkout-of-the-shop-in-the-region-eu-west-1-and-more-words-than-needed",
            &"0".repeat(63),
        ] {
            assert_eq!(masked(text), text);
        }
    }
}
