//! Where a collector is: a URL, or a host and a port.

use std::fmt;

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address; an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path before that of the signal, without a slash at its end.
    pub path: String,
}

/// Why a text is no collector's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// The scheme is https.
    #[error("collectors are reached without TLS: say http://, and keep the collector on this host or behind the mesh")]
    Tls,
    /// Another scheme.
    #[error("it must begin with http://, or be a host and a port, such as collector:4317")]
    Scheme,
    /// No host, or one with a byte that none has.
    #[error("it has no host that can be reached")]
    Host,
    /// The port is no number from 1 to 65535.
    #[error("its port must be a whole number from 1 to 65535")]
    Port,
    /// There is a query, a user or a byte that no path has.
    #[error("it must have nothing but a host, a port and a path")]
    More,
}

impl Endpoint {
    /// Reads `http://host[:port][/path]` or `host:port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Endpoint, BadEndpoint> {
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => return Err(BadEndpoint::Tls),
            Some(_) => return Err(BadEndpoint::Scheme),
            None => text,
        };
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.contains('@') || path.contains(['?', '#']) || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BadEndpoint::More);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, port) = inner.split_once(']').ok_or(BadEndpoint::Host)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| BadEndpoint::Host)?;
                (host, port)
            }
            None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => default_port,
            None => return Err(BadEndpoint::Port),
            Some(digits) => digits.parse().ok().filter(|port| *port != 0).ok_or(BadEndpoint::Port)?,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(BadEndpoint::Host);
        }
        Ok(Endpoint {
            host: host.to_owned(),
            port,
            path: path.trim_end_matches('/').to_owned(),
        })
    }

    /// The value of a `host` field.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority(), self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_as_a_url_or_as_a_host_and_a_port() {
        for (text, shown) in [
            ("collector:4317", "http://collector:4317"),
            ("collector", "http://collector:4317"),
            ("http://collector", "http://collector:4317"),
            ("HTTP://10.0.0.1:9/", "http://10.0.0.1:9"),
            ("http://[::1]:4318/base/", "http://[::1]:4318/base"),
            ("[fd00::1]", "http://[fd00::1]:4317"),
        ] {
            assert_eq!(
                Endpoint::parse(text, 4317).map(|endpoint| endpoint.to_string()),
                Ok(shown.to_owned())
            );
        }
        for (text, why) in [
            ("https://collector", BadEndpoint::Tls),
            ("unix:///run/x", BadEndpoint::Scheme),
            ("", BadEndpoint::Host),
            ("http://", BadEndpoint::Host),
            ("a b", BadEndpoint::Host),
            ("[::1", BadEndpoint::Host),
            ("[x]:1", BadEndpoint::Host),
            ("a:0", BadEndpoint::Port),
            ("a:65536", BadEndpoint::Port),
            ("a:x", BadEndpoint::Port),
            ("[::1]4317", BadEndpoint::Port),
            ("http://user@a", BadEndpoint::More),
            ("http://a/?x", BadEndpoint::More),
            ("http://a/ b", BadEndpoint::More),
        ] {
            assert_eq!(Endpoint::parse(text, 4317), Err(why), "{text}");
        }
    }
}
