//! What operators say by mistake: a token or a key where something else belongs. Sentences about a mistake repeat what stood
//! there, but never that.

use std::borrow::Cow;
use std::ops::Range;

/// The text with whatever may be a join token or a private key left out: PEM, 64 and more digits of hex, 43 and more of
/// base64 (256 bits) that have capitals, small letters and digits, or capitals and small letters in no order of words.
///
/// It errs on the side of silence: a name of that length that mixes capitals, small letters and digits is left out, too. One
/// without digits is shown if it is made of words, be they joined by capitals or by dashes. Of a million tokens in base64 less
/// than one looks so.
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
    run.len() >= BASE64 && is_mixed || hex.any(|hex| hex.len() >= 64) || has_no_words(run.as_bytes())
}

/// Whether somewhere in it 43 letters follow each other as they do by chance, and in no words. In one of 1,500 tokens no digit
/// is found, and then small letters and capitals take turns: about ten times a capital follows a small letter, and about ten
/// times a small letter another. In words, and in capitals beside words, small letters follow each other more often; where
/// they do not, as in `VALUE_OF/a`, capitals seldom follow them.
fn has_no_words(run: &[u8]) -> bool {
    let pairs = |is: fn(u8, u8) -> bool| move |pair: &[u8]| usize::from(is(pair[0], pair[1]));
    let turns = pairs(|a, b| a.is_ascii_lowercase() && b.is_ascii_uppercase());
    let small = pairs(|a, b| a.is_ascii_lowercase() && b.is_ascii_lowercase());
    let (mut now_turns, mut now_small) = (0, 0);
    let all = || run.windows(2);
    // Those that leave the window are 42 pairs behind those that enter it.
    let leaving = std::iter::repeat_n(&[0, 0][..], BASE64 - 1).chain(all());
    all().zip(leaving).enumerate().any(|(at, (enters, leaves))| {
        now_turns = now_turns + turns(enters) - turns(leaves);
        now_small = now_small + small(enters) - small(leaves);
        at + 2 >= BASE64 && now_turns >= FEWEST_TURNS && now_small <= MOST_SMALL
    })
}

/// Digits of base64 that 256 bits need.
const BASE64: usize = 43;
/// How often, among so many letters of a token, a capital follows a small one at least.
const FEWEST_TURNS: usize = 4;
/// How often a small letter follows another at most.
const MOST_SMALL: usize = 22;

const PEM: &str = "-----BEGIN";
const PEM_END: &str = "-----END";
const PEM_LINE: &str = "-----";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925";
    const TOKEN: &str = "Zmh6rfhiu9dsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU=";

    #[test]
    fn tokens_and_keys_are_left_out_and_what_stands_around_them_stays() {
        let pem = "-----BEGIN PRIVATE KEY-----\\nMIGH\\nab==\\n-----END PRIVATE KEY-----";
        for secret in [HEX, &HEX.to_uppercase(), TOKEN, TOKEN.trim_end_matches('='), pem] {
            for (before, after) in [("", ""), ("is \"", "\"; expected a name"), ("é \u{202e}", "é")] {
                let shown = masked(&format!("{before}{secret}{after}")).into_owned();
                assert_eq!(shown, format!("{before}{IN_ITS_PLACE}{after}"));
            }
        }
        let both = masked(&format!("{HEX}, {TOKEN} and {pem} end")).into_owned();
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
            "PORTUNUS_CONTROL_TOKEN_FILE=/var/run/secrets/portunus/token",
            "AbstractSingletonProxyFactoryBeanDefinitionReader",
            "+featureGate=InPlacePodVerticalScalingSchedulerPreemption",
            &"0".repeat(63),
        ] {
            assert_eq!(masked(text), text);
        }
    }

    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+/0123456789";

    /// The digits of base64 that 256 bits are written in, here from the first `of` of them alone.
    fn token(of: usize, next: &mut impl FnMut() -> u64) -> String {
        let digit = |_| char::from(LETTERS[(next() >> 33) as usize % of]);
        (0..BASE64).map(digit).collect()
    }

    #[test]
    fn of_tokens_without_a_digit_not_one_in_five_hundred_is_shown() {
        // Knuth's MMIX: the same tokens each time.
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state
        };
        let tokens = (0..100_000).map(|_| token(54, &mut next));
        let shown = tokens.filter(|token| masked(token) == token.as_str()).count();
        // As one of 1,500 tokens has no digit, that is less than one of 750,000.
        assert!(shown < 200, "{shown} of 100,000 are shown");
        // Those with digits are known by them.
        let shown = (0..100_000)
            .map(|_| token(64, &mut next))
            .filter(|token| masked(token) == token.as_str());
        assert!(shown.count() <= 1);
    }

    proptest! {
        #[test]
        fn a_token_is_left_out_wherever_it_stands(
            before in "[a-z/_]{0,80}=?", bytes in any::<[u64; BASE64]>(), after in "(=|[ ,:.][a-z/_]{0,80})?",
        ) {
            let mut rest = bytes.into_iter();
            let token = token(64, &mut || rest.next().unwrap_or_default());
            // What is no token by itself, as one in a million, is none here.
            prop_assume!(masked(&token) != token);
            let said = format!("{before}{token}{after}");
            prop_assert!(!masked(&said).contains(&token));
        }

        #[test]
        fn words_are_shown_however_they_are_joined(
            words in prop::collection::vec("[a-z]{6,12}", 5..20), join in "[-_/+=]?", shout in 0usize..20,
        ) {
            let capital = |word: &String| word[..1].to_uppercase() + &word[1..];
            let camel = words.iter().map(capital).collect::<Vec<_>>().join(&join);
            let loud = words.iter().enumerate().map(|(at, word)| match at < shout {
                true => word.to_uppercase(),
                false => word.clone(),
            });
            let joint = if join.is_empty() { "_" } else { &join };
            let loud = loud.collect::<Vec<_>>().join(joint);
            for text in [camel, loud] {
                prop_assert_eq!(masked(&text), text.as_str());
            }
        }

        #[test]
        fn no_text_makes_it_panic_and_what_it_leaves_out_is_all_that_it_changes(text in ".{0,200}") {
            let shown = masked(&text).into_owned();
            let mut rest = &*text;
            for part in shown.split(IN_ITS_PLACE) {
                let at = rest.find(part);
                prop_assert!(at.is_some(), "{part:?} was not said");
                rest = &rest[at.unwrap_or_default() + part.len()..];
            }
        }
    }
}
