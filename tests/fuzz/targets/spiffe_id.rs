//! SPIFFE ids: those are taken that the standard's grammar, written down once more here, takes; and they are not changed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_proto::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    compare(text);
    compare(&format!("spiffe://{text}"));
    compare(&format!("spiffe://a.example/{text}"));
    if let Ok(domain) = TrustDomain::parse(text) {
        assert_eq!(domain.as_str(), text);
    }
    let is_domain = !text.contains('/') && is_id(&format!("spiffe://{text}/a"));
    assert_eq!(TrustDomain::parse(text).is_ok(), is_domain);
    of_names(text);
});

fn compare(text: &str) {
    let read = SpiffeId::parse(text);
    assert_eq!(read.is_ok(), is_id(text), "{text:?} is read as {read:?}");
    let Ok(id) = read else { return };
    assert_eq!(id.as_str(), text);
    assert_eq!(id.to_string(), text);
    assert!(text.is_ascii());
    let domain = id.trust_domain();
    assert!(TrustDomain::parse(domain).is_ok());
    assert!(text.starts_with(&format!("spiffe://{domain}/")));
    if let Some((namespace, account)) = id.service_account() {
        assert_eq!(text, format!("spiffe://{domain}/ns/{namespace}/sa/{account}"));
    }
}

/// Two names make an id that has these names, or none.
fn of_names(text: &str) {
    let (namespace, account) = text.split_once(' ').unwrap_or((text, "web"));
    let domain = TrustDomain::parse("a.example").expect("it is one");
    if let Ok(id) = SpiffeId::of(&domain, namespace, account) {
        assert_eq!(id.service_account(), Some((namespace, account)));
        assert_eq!(id.trust_domain(), "a.example");
        assert!(is_id(id.as_str()));
    }
}

/// Where in an id the next byte stands. The SPIFFE-ID standard, 2: `"spiffe://" trust-domain 1*("/" segment)`; a workload
/// has a path.
#[derive(Clone, Copy, PartialEq)]
enum State {
    /// So many bytes of `spiffe://` were there.
    Scheme(usize),
    /// So many of the trust domain.
    Domain(usize),
    /// Behind a slash.
    Slash,
    /// Behind one dot, and two, with which the segment began.
    Dot,
    Dots,
    /// Within a segment that is neither.
    Segment,
    Refused,
}

fn is_id(text: &str) -> bool {
    let end = text.bytes().fold(State::Scheme(0), step);
    text.len() <= 2_048 && end == State::Segment
}

fn step(state: State, byte: u8) -> State {
    use State::*;
    match (state, byte) {
        (Scheme(8), b'/') => Domain(0),
        (Scheme(n), byte) if n < 8 && byte == b"spiffe:/"[n] => Scheme(n + 1),
        (Domain(n), b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_') if n < 255 => Domain(n + 1),
        (Domain(1..), b'/') => Slash,
        (Slash, b'.') => Dot,
        (Dot, b'.') => Dots,
        (Slash | Dot | Dots | Segment, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_') => Segment,
        (Segment, b'/') => Slash,
        _ => Refused,
    }
}
