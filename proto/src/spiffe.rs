//! SPIFFE ids, as the SPIFFE-ID standard writes them, and never in any other spelling.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest id (SPIFFE-ID, 2.3).
const MOST_BYTES: usize = 2_048;
/// Longest trust domain (SPIFFE-ID, 2.1).
const MOST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// Who a workload is: `spiffe://<trust-domain>/<path>`, in this mesh `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
///
/// There is one spelling of an id, so two are the same exactly when their texts are. To copy one is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    domain: usize,
}

/// A trust domain: the name of those that trust the same roots.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

/// Why a text is no SPIFFE id, or no trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Over 2,048 bytes, or a trust domain over 255.
    #[error("it is too long: an id takes {MOST_BYTES} bytes, a trust domain {MOST_DOMAIN_BYTES}")]
    TooLong,
    /// Another scheme, or another spelling of it.
    #[error("it does not begin with spiffe://")]
    Scheme,
    /// There is no trust domain, or it has a character that none may have.
    #[error("its trust domain may have lower-case letters, digits, '.', '-' and '_', and must have some")]
    TrustDomain,
    /// There is no path: that would be a trust domain, not a workload.
    #[error("it has no path, so it names a trust domain and no workload")]
    NoPath,
    /// An empty segment, `.` or `..`, or a slash at the end.
    #[error("its path has an empty segment, '.' or '..'")]
    Segment,
    /// A character that no path may have: no escapes, no query, no fragment.
    #[error("its path may have letters, digits, '.', '-', '_' and '/'")]
    Character,
}

impl SpiffeId {
    /// Reads an id.
    ///
    /// # Errors
    /// When the text is not an id of a workload as the standard writes it. Nothing is normalized.
    pub fn parse(text: &str) -> Result<SpiffeId, Invalid> {
        if text.len() > MOST_BYTES {
            return Err(Invalid::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(Invalid::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_domain(domain)?;
        let path = path.strip_prefix('/').filter(|path| !path.is_empty());
        check_path(path.ok_or(Invalid::NoPath)?)?;
        Ok(SpiffeId {
            text: text.into(),
            domain: domain.len(),
        })
    }

    /// The id of a service account in a namespace.
    ///
    /// # Errors
    /// When one of the names may not stand in an id.
    pub fn of(domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<SpiffeId, Invalid> {
        if namespace.contains('/') || service_account.contains('/') {
            return Err(Invalid::Segment);
        }
        SpiffeId::parse(&format!("{SCHEME}{domain}/ns/{namespace}/sa/{service_account}"))
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of its trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.text[SCHEME.len()..SCHEME.len() + self.domain]
    }

    /// Namespace and service account, if the path is of this mesh's form.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.text[SCHEME.len() + self.domain + 1..].split('/');
        match [(); 5].map(|()| segments.next()) {
            [Some("ns"), Some(namespace), Some("sa"), Some(account), None] => Some((namespace, account)),
            _ => None,
        }
    }
}

impl TrustDomain {
    /// Reads a trust domain's name, without scheme.
    ///
    /// # Errors
    /// When no trust domain may be called so.
    pub fn parse(text: &str) -> Result<TrustDomain, Invalid> {
        check_domain(text)?;
        Ok(TrustDomain(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_domain(domain: &str) -> Result<(), Invalid> {
    if domain.len() > MOST_DOMAIN_BYTES {
        return Err(Invalid::TooLong);
    }
    let may_stand = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    if domain.is_empty() || !domain.bytes().all(may_stand) {
        return Err(Invalid::TrustDomain);
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), Invalid> {
    for segment in path.split('/') {
        if segment.is_empty() || segment == "." || segment == ".." {
            return Err(Invalid::Segment);
        }
        let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if !segment.bytes().all(may_stand) {
            return Err(Invalid::Character);
        }
    }
    Ok(())
}

impl FromStr for SpiffeId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<SpiffeId, Invalid> {
        SpiffeId::parse(text)
    }
}

impl FromStr for TrustDomain {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<TrustDomain, Invalid> {
        TrustDomain::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_names_its_domain_and_its_service_account() {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/greeter").expect("it is one");
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.service_account(), Some(("shop", "greeter")));
        let domain = TrustDomain::parse("cluster.local").expect("it is one");
        assert_eq!(SpiffeId::of(&domain, "shop", "greeter"), Ok(id));
    }

    #[test]
    fn other_paths_are_ids_and_no_service_accounts() {
        for text in [
            "spiffe://a/web",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/NS/b/sa/c",
            "spiffe://a_b.c-d/x.y/-/...",
        ] {
            let id = SpiffeId::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!(id.service_account(), None, "{text}");
        }
    }

    #[test]
    fn whatever_is_no_id_says_why() {
        let long = format!("spiffe://a/{}", "b".repeat(MOST_BYTES));
        let long_domain = format!("spiffe://{}/b", "a".repeat(MOST_DOMAIN_BYTES + 1));
        let cases = [
            ("", Invalid::Scheme),
            ("SPIFFE://a/b", Invalid::Scheme),
            ("spiffe:/a/b", Invalid::Scheme),
            ("https://a/b", Invalid::Scheme),
            (" spiffe://a/b", Invalid::Scheme),
            ("spiffe:///b", Invalid::TrustDomain),
            ("spiffe://A/b", Invalid::TrustDomain),
            ("spiffe://a:80/b", Invalid::TrustDomain),
            ("spiffe://u@a/b", Invalid::TrustDomain),
            ("spiffe://a%62/b", Invalid::TrustDomain),
            ("spiffe://ä/b", Invalid::TrustDomain),
            ("spiffe://a\0/b", Invalid::TrustDomain),
            ("spiffe://a?b", Invalid::TrustDomain),
            ("spiffe://a", Invalid::NoPath),
            ("spiffe://a/", Invalid::NoPath),
            ("spiffe://a//b", Invalid::Segment),
            ("spiffe://a/b/", Invalid::Segment),
            ("spiffe://a/./b", Invalid::Segment),
            ("spiffe://a/b/..", Invalid::Segment),
            ("spiffe://a/b c", Invalid::Character),
            ("spiffe://a/b%2fc", Invalid::Character),
            ("spiffe://a/b?c", Invalid::Character),
            ("spiffe://a/b#c", Invalid::Character),
            ("spiffe://a/b\0", Invalid::Character),
            ("spiffe://a/é", Invalid::Character),
            (&long, Invalid::TooLong),
            (&long_domain, Invalid::TooLong),
        ];
        for (text, why) in cases {
            assert_eq!(SpiffeId::parse(text), Err(why), "{text:?}");
        }
        let domain = TrustDomain::parse("a").expect("it is one");
        assert_eq!(SpiffeId::of(&domain, "b/sa/c", "d"), Err(Invalid::Segment));
        assert_eq!(SpiffeId::of(&domain, "", "d"), Err(Invalid::Segment));
    }

    proptest! {
        #[test]
        fn no_text_is_changed_by_reading_it(text in "(spiffe://)?[a-zA-Z0-9./_%-]{0,40}") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.as_str(), &text);
                let begin = format!("spiffe://{}/", id.trust_domain());
                prop_assert!(text.starts_with(&begin), "{}", id);
            }
        }
    }
}
