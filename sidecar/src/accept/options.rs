//! The TCP options of a connection: when small writes leave, how dead peers are found, how much waits unsent.

use std::{io, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};

/// Options for one TCP socket. On a listener they are inherited by what it accepts, which saves six system calls a
/// connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Silence after which the kernel asks whether the peer's host still lives (TCP_KEEPIDLE). Default 30 s.
    pub keepalive_idle: Duration,
    /// Time between two such questions (TCP_KEEPINTVL). Default 10 s.
    pub keepalive_interval: Duration,
    /// Unanswered questions after which the host is dead (TCP_KEEPCNT). Default 3.
    pub keepalive_probes: u32,
    /// How long sent bytes may stay unacknowledged before the peer's host is taken for dead (TCP_USER_TIMEOUT). `None`
    /// leaves it to the kernel: about 15 minutes. Default 30 s.
    ///
    /// Linux also ends a *living* peer that keeps its receive window closed for this long (since 5.11), so it must be
    /// longer than a peer may reasonably not read its socket at all.
    pub user_timeout: Option<Duration>,
    /// Bytes that may stand unsent in the socket before it stops taking more (TCP_NOTSENT_LOWAT). What stands there can
    /// neither be overtaken nor withdrawn. Default 64 KiB.
    pub unsent: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            keepalive_idle: Duration::from_secs(30),
            keepalive_interval: Duration::from_secs(10),
            keepalive_probes: 3,
            user_timeout: Some(Duration::from_secs(30)),
            unsent: 64 << 10,
        }
    }
}

impl Options {
    /// Sets them, and TCP_NODELAY: the proxy batches by itself and must never wait for an acknowledgement.
    pub fn set<S: AsFd>(&self, socket: &S) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive_idle)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_probes);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(self.user_timeout)?;
        socket.set_tcp_notsent_lowat(self.unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_timeout_can_be_taken_back() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        Options::default().set(&socket).expect("options are set");
        assert_eq!(
            SockRef::from(&socket).tcp_user_timeout().expect("readable"),
            Some(Duration::from_secs(30))
        );

        Options {
            user_timeout: None,
            ..Options::default()
        }
        .set(&socket)
        .expect("options are set");
        assert_eq!(SockRef::from(&socket).tcp_user_timeout().expect("readable"), None);
    }
}
