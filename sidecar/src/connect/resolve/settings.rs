//! How names are resolved.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// How names are resolved. Everything has a default that needs no thought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where name servers, search domains and options are named; `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// Where names stand that no name server is asked for; `/etc/hosts`.
    pub hosts: PathBuf,
    /// How often these files are looked at; 1 s.
    pub files_poll: Duration,
    /// The port of the name servers that `resolv.conf` names; 53.
    pub server_port: u16,
    /// Name servers to ask instead of those of `resolv.conf`.
    pub servers: Option<Vec<SocketAddr>>,
    /// How long to wait for a name server; nothing means as `resolv.conf` says, 5 s if it does not. A datagram is sent
    /// again, and the next server asked as well, after each [`Settings::ask_interval`] of it.
    pub timeout: Option<Duration>,
    /// The least time between two questions for a name to a name server; 1 s.
    pub ask_interval: Duration,
    /// An answer lives at least this long, whatever its TTL; 1 s.
    pub ttl_floor: Duration,
    /// An answer lives at most this long, whatever its TTL; 5 min.
    pub ttl_ceiling: Duration,
    /// The longest pause before a question without an answer is asked again; 10 s. The first is
    /// [`Settings::ask_interval`], doubled each time.
    pub retry_ceiling: Duration,
    /// How long the first answer waits for the other address family, or for other targets of SRV, before it is given
    /// without; 50 ms (as RFC 8305, 3 has it).
    pub partial_wait: Duration,
    /// How long a name is still resolved after its last watcher left; 30 s.
    pub linger: Duration,
    /// How long a removed address still counts as one that the name lately had; 5 min.
    pub lately: Duration,
    /// How many names are resolved at a time; 10,000.
    pub max_names: usize,
    /// How many addresses of a name are used; 1,000. Of a larger answer each process takes another part.
    pub max_addresses: usize,
    /// How many SRV records of a name are used, the preferred ones first; 100.
    pub max_services: usize,
    /// How many questions are under way at a time; 128.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            hosts: PathBuf::from("/etc/hosts"),
            files_poll: Duration::from_secs(1),
            server_port: 53,
            servers: None,
            timeout: None,
            ask_interval: Duration::from_secs(1),
            ttl_floor: Duration::from_secs(1),
            ttl_ceiling: Duration::from_secs(300),
            retry_ceiling: Duration::from_secs(10),
            partial_wait: Duration::from_millis(50),
            linger: Duration::from_secs(30),
            lately: Duration::from_secs(300),
            max_names: 10_000,
            max_addresses: 1_000,
            max_services: 100,
            max_in_flight: 128,
        }
    }
}
