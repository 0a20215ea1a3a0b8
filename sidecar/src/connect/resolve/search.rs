//! Which names a name may mean: `search` and `ndots` of resolv.conf, as the C library reads them.

use hickory_resolver::proto::rr::Name;

/// The search list and how many dots make a name worth asking as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    pub(super) domains: Vec<Name>,
    pub(super) ndots: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            domains: Vec::new(),
            ndots: 1,
        }
    }
}

impl Search {
    /// The absolute names to ask for, in order. One with a trailing dot means itself.
    pub(super) fn candidates(&self, host: &str) -> Vec<Name> {
        let Ok(mut name) = Name::from_ascii(host) else {
            return Vec::new();
        };
        if name.is_fqdn() {
            return vec![name];
        }
        let as_it_is_first = host.bytes().filter(|byte| *byte == b'.').count() >= self.ndots;
        let mut candidates = Vec::with_capacity(1 + self.domains.len());
        // A name that grows too long with a domain cannot be in it.
        candidates.extend(
            self.domains
                .iter()
                .filter_map(|domain| name.clone().append_domain(domain).ok()),
        );
        name.set_fqdn(true);
        candidates.insert(if as_it_is_first { 0 } else { candidates.len() }, name);
        let mut seen = std::collections::HashSet::new();
        candidates.retain(|candidate| seen.insert(candidate.clone()));
        candidates
    }
}

/// Whether a lower-case text can be asked for: labels of 1 to 63 letters, digits, `-` and `_`, 253 bytes in all, with
/// or without a trailing dot.
pub(super) fn is_host_name(host: &str) -> bool {
    let bare = host.strip_suffix('.').unwrap_or(host);
    let fits = |label: &str| (1..=63).contains(&label.len());
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    bare.len() <= 253 && bare.split('.').all(|label| fits(label) && label.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_searched_first_and_asked_as_it_is_last() {
        let cluster = search(5, &["ns.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!(
            asked(&cluster, "greeter.ns"),
            [
                "greeter.ns.ns.svc.cluster.local.",
                "greeter.ns.svc.cluster.local.",
                "greeter.ns.cluster.local.",
                "greeter.ns."
            ]
        );
    }

    #[test]
    fn a_name_with_dots_enough_is_asked_as_it_is_first() {
        assert_eq!(
            asked(&search(1, &["example"]), "api.example"),
            ["api.example.", "api.example.example."]
        );
        assert_eq!(
            asked(&search(2, &["example"]), "api.example"),
            ["api.example.example.", "api.example."]
        );
        assert_eq!(asked(&search(0, &["example"]), "api"), ["api.", "api.example."]);
    }

    #[test]
    fn a_trailing_dot_means_the_name_itself() {
        assert_eq!(asked(&search(5, &["example"]), "api."), ["api."]);
    }

    #[test]
    fn no_candidate_is_asked_for_twice_or_too_long() {
        assert_eq!(asked(&search(1, &["a.", "a", "A"]), "x"), ["x.a.", "x."]);
        let long = [["y"; 30].join("."), "z".repeat(60), "z".repeat(60), "z".repeat(60)].join(".");
        assert_eq!(asked(&search(1, &[&long]), &["x"; 20].join(".")).len(), 1);
    }

    #[test]
    fn host_names_are_told_from_other_text() {
        for good in [
            "a",
            "a.b",
            "a.b.",
            "_grpc._tcp.a-b.example",
            "1.2.example",
            &"x".repeat(63),
        ] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a b",
            "a/b",
            "a:1",
            "\\046",
            "é",
            "%",
            &"x".repeat(64),
            &"x.".repeat(128),
        ] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }

    fn search(ndots: usize, domains: &[&str]) -> Search {
        let domains = domains
            .iter()
            .map(|domain| Name::from_ascii(domain).expect("a domain"))
            .collect();
        Search { domains, ndots }
    }

    fn asked(search: &Search, host: &str) -> Vec<String> {
        search.candidates(host).iter().map(|name| name.to_ascii()).collect()
    }
}
