//! Sees, without any privilege, whether the rules are there: they alone lead the probe port to the admin port.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};

use super::Settings;
use crate::accept::PodAddresses;
use crate::connect::Dialled;

/// Why the rules are not (all) there, as far as the proxy can see.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Nobody took the connection.
    #[error(
        "no redirect rule leads {probe} to the admin port {admin_port} ({source}): run `sidecar redirect` in this network \
         namespace, before the proxy starts or while it runs"
    )]
    Unanswered {
        /// Where the probe went.
        probe: SocketAddr,
        /// Where it should have arrived.
        admin_port: u16,
        /// What became of it.
        source: io::Error,
    },

    /// Somebody else took the connection.
    #[error(
        "no redirect rule leads {probe} to the admin port {admin_port}: another program answered there; run `sidecar \
         redirect` in this network namespace, before the proxy starts or while it runs"
    )]
    Elsewhere {
        /// Where the probe went.
        probe: SocketAddr,
        /// Where it should have arrived.
        admin_port: u16,
    },

    /// The kernel's list of connections cannot be read.
    #[error("cannot see where the probe of {probe} arrived: {source}")]
    Unseen {
        /// Where the probe went.
        probe: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Whether the rules of these ports are in the calling thread's network namespace, by one connection for IPv4 and one
/// for IPv6, each of which must arrive at the admin port. Where there is no IPv6, IPv4 alone is asked.
///
/// The admin port must be listening on the loopback of both families, else this says that rules are missing; it sees
/// two connections that end without a byte. Nobody but the kernel is believed: it is its list of connections that says
/// where they arrived. That list grows with the pod's connections, so ask until the answer is yes, then seldom.
///
/// # Errors
///
/// The first thing that shows rules to be missing.
pub async fn installed(settings: &Settings) -> Result<(), Missing> {
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let probe = SocketAddr::new(address, settings.probe_port);
        let admin_port = settings.admin_port;
        let connection = match timeout(PATIENCE, TcpStream::connect(probe)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) if address.is_ipv6() && says_no_ipv6(&error) => continue,
            Ok(Err(source)) => {
                return Err(Missing::Unanswered {
                    probe,
                    admin_port,
                    source,
                });
            }
            Err(elapsed) => {
                return Err(Missing::Unanswered {
                    probe,
                    admin_port,
                    source: elapsed.into(),
                });
            }
        };
        let arrived = match connection.local_addr() {
            Ok(from) => has_arrived(from, SocketAddr::new(address, admin_port)).await,
            Err(source) => Err(source),
        };
        match arrived {
            Ok(true) => {}
            Ok(false) => return Err(Missing::Elsewhere { probe, admin_port }),
            Err(source) => return Err(Missing::Unseen { probe, source }),
        }
    }
    Ok(())
}

/// Dials the admin port at an address of this pod, so that the rules lead this back to us if we do not run as the user
/// that they exempt; the packets never leave the pod. Whether it came back, `dialled` knows: it is waited for until it is
/// seen at the admin port, or has been refused.
///
/// Nothing comes back where the pod leaves its own addresses out of the rules. Only the first call shows it then.
pub async fn dial_ourselves(settings: &Settings, dialled: &Arc<Dialled>) {
    let Some(own) = PodAddresses::one_of_them() else {
        return;
    };
    let to = SocketAddr::new(own, settings.admin_port);
    let Ok(socket) = Socket::new(Domain::for_address(to), Type::STREAM, None) else {
        return;
    };
    let Ok((connection, _mine)) = dialled.connect(socket, to) else {
        return;
    };
    let has_ended = async {
        connection.writable().await?;
        match has_arrived(connection.local_addr()?, to).await? {
            true => Ok(()),
            false => connection.readable().await,
        }
    };
    // Whatever goes wrong is no sign of a loop.
    let _ = timeout(PATIENCE, has_ended).await;
}

/// No IPv6 in the kernel, or none on loopback: nothing can be redirected there, and nothing can be asked.
fn says_no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH)
    )
}

/// Whether this host has the other end of a connection from there to here.
async fn has_arrived(from: SocketAddr, at: SocketAddr) -> io::Result<bool> {
    // Not /proc/net, which is the network namespace of the process's first thread.
    let look = move || -> io::Result<bool> {
        Ok((at.is_ipv4() && is_listed("/proc/thread-self/net/tcp", from, at)?)
            || is_listed("/proc/thread-self/net/tcp6", mapped(from), mapped(at))?)
    };
    spawn_blocking(look)
        .await
        .unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
}

/// Whether a list of connections has one, in whatever state: the handshake may not be over at the other end.
fn is_listed(list: &str, from: SocketAddr, at: SocketAddr) -> io::Result<bool> {
    let list = match File::open(list) {
        Ok(list) => BufReader::new(list),
        // A kernel without the family has no list of it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let wanted = (as_listed(at), as_listed(from));
    for line in list.lines() {
        let line = line?;
        let mut columns = line.split_ascii_whitespace().skip(1);
        if (columns.next(), columns.next()) == (Some(&wanted.0), Some(&wanted.1)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// An IPv4 address as a socket for both families has it.
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// An address as the kernel prints it there: the address's words as this machine would read them, and the port.
fn as_listed(address: SocketAddr) -> String {
    let octets = match address.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let words = octets
        .as_chunks::<4>()
        .0
        .iter()
        .map(|word| format!("{:08X}", u32::from_ne_bytes(*word)));
    format!("{}:{:04X}", words.collect::<String>(), address.port())
}

/// A connection within the host is made at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn addresses_are_written_as_the_kernel_lists_them() {
        let listed = |text: &str| as_listed(text.parse().expect("an address"));
        assert_eq!(listed("127.0.0.1:4191"), "0100007F:105F");
        assert_eq!(listed("[::1]:4191"), "00000000000000000000000001000000:105F");
        assert_eq!(
            as_listed(mapped(([127, 0, 0, 1], 80).into())),
            "0000000000000000FFFF00000100007F:0050"
        );
    }

    #[tokio::test]
    async fn a_connection_is_seen_at_the_port_that_took_it_and_at_no_other() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("its address");
        let connection = TcpStream::connect(at).await.expect("a connection");
        let from = connection.local_addr().expect("its address");
        assert!(has_arrived(from, at).await.expect("the list"));
        let other = SocketAddr::new(at.ip(), at.port() ^ 1);
        assert!(!has_arrived(from, other).await.expect("the list"));
    }

    #[tokio::test]
    async fn a_program_that_holds_the_probe_port_is_not_mistaken_for_the_rules() {
        let squatter = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let probe_port = squatter.local_addr().expect("its address").port();
        let settings = Settings {
            probe_port,
            ..Settings::default()
        };
        let missing = installed(&settings).await.expect_err("no rules here");
        assert!(matches!(missing, Missing::Elsewhere { .. }), "{missing}");
        drop(squatter);
        let missing = installed(&settings).await.expect_err("no rules here");
        assert!(matches!(missing, Missing::Unanswered { .. }), "{missing}");
        assert!(missing.to_string().contains("run `sidecar redirect`"), "{missing}");
    }
}
