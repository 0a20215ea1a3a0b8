//! How control is reached, and how much of it is believed.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use portunus_proto::SpiffeId;
use rustls_pki_types::CertificateDer;

use crate::policy::Inbound;

/// How control is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens. Of several, one is used at a time, and the next when that one fails.
    pub addresses: Vec<Address>,
    /// Who it must prove to be. Its trust domain is ours.
    pub identity: SpiffeId,
    /// The roots that prove it, at first; then those of the bundle that it sends.
    pub roots: Vec<CertificateDer<'static>>,
    /// The file with the join token, read whenever it is needed, and not kept.
    pub join_token: Option<PathBuf>,
    /// What inbound ports take where control says nothing.
    pub inbound: Inbound,
    /// How many names and addresses may be followed. Default 4,000.
    pub max_subjects: usize,
    /// How many endpoints may be known in all. Default 100,000, which take some 20 MiB.
    pub max_endpoints: usize,
    /// How long something is still followed after the last one who wanted it is gone. Default 10 s.
    pub linger: Duration,
    /// How long a TCP connection may take. Default 1 s.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take. Default 5 s.
    pub handshake_timeout: Duration,
    /// How long an answer may take: a certificate, the first word on the stream. Default 10 s.
    pub answer_timeout: Duration,
    /// How long the connection may be silent before control is asked whether it is there (an HTTP/2 PING), and again how
    /// long the answer may take. Default 2 s.
    pub keepalive: Duration,
    /// How long a stream lasts at least before it gives way to one with a renewed certificate; up to a third more is drawn.
    /// A hundred sidecars that come back together with certificates that are due open one each. Default 15 s: control ends
    /// a stream 20 s after its certificate at the earliest.
    pub stream_rest: Duration,
}

impl Settings {
    /// Everything that needs no thought has its default.
    pub fn new(addresses: Vec<Address>, identity: SpiffeId, roots: Vec<CertificateDer<'static>>) -> Settings {
        Settings {
            addresses,
            identity,
            roots,
            join_token: None,
            inbound: Inbound::default(),
            max_subjects: 4_000,
            max_endpoints: 100_000,
            linger: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            handshake_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(2),
            stream_rest: Duration::from_secs(15),
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a text is no host with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it must be HOST:PORT, such as control.portunus:8080, 10.0.0.1:8080 or [fd00::1]:8080")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        let (host, port) = text.rsplit_once(':').ok_or(NoAddress)?;
        let port = port
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| port.parse().ok());
        let port = port.flatten().filter(|port| *port > 0).ok_or(NoAddress)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(NoAddress)?;
                inner.parse::<Ipv6Addr>().map_err(|_| NoAddress)?;
                inner
            }
            None if is_host(host) => host,
            None => return Err(NoAddress),
        };
        let host = host.to_ascii_lowercase();
        Ok(Address { host, port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port } = self;
        if host.contains(':') {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

/// Whether a text can be a name of DNS, or an IPv4 address.
fn is_host(text: &str) -> bool {
    let may_stand = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let text = text.strip_suffix('.').unwrap_or(text);
    text.len() <= 253
        && text
            .split('.')
            .all(|label| (1..=63).contains(&label.len()) && label.bytes().all(may_stand))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, host, port) in [
            ("control:8080", "control", 8080),
            ("Control.Portunus.svc.:1", "control.portunus.svc.", 1),
            ("10.0.0.1:8080", "10.0.0.1", 8080),
            ("[fd00::1]:8080", "fd00::1", 8080),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!((address.host.as_str(), address.port), (host, port));
            assert_eq!(address.to_string(), text.to_ascii_lowercase());
        }
        for text in [
            "",
            "control",
            ":1",
            "control:",
            "control:0",
            "control:65536",
            "control:+1",
            "fd00::1:80",
            "[fd00::1]",
            "[control]:1",
            "[fd00::1:1",
            "a b:1",
            "https://control:1",
            "a..b:1",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress), "{text}");
        }
    }
}
