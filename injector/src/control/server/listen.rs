//! Opens listeners, each for its own family of addresses.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tracing::warn;

/// Why nothing can be listened at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One address cannot be listened at.
    #[error("cannot listen at {address} ({flag}): {source}")]
    Listen {
        /// The setting that names it.
        flag: &'static str,
        /// Which.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// This machine has none of the families.
    #[error("this machine has none of the families of the addresses to listen at ({flag})")]
    Nowhere {
        /// The setting that names them.
        flag: &'static str,
    },
}

/// Listens at all of the addresses, which a setting names. All addresses of a family that the machine does not have are left out; one of its
/// addresses is not, since somebody meant that one.
///
/// # Errors
/// When an address is taken, or is not this machine's, or none remains.
pub fn listen(flag: &'static str, addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for address in addresses {
        match open(*address) {
            Ok(listener) => listeners.push(listener),
            Err(why) if address.ip().is_unspecified() && is_no_family(&why) => {
                warn!(%address, %why, "this machine has no such family of addresses")
            }
            Err(source) => {
                return Err(Error::Listen {
                    flag,
                    address: *address,
                    source,
                });
            }
        }
    }
    if listeners.is_empty() {
        return Err(Error::Nowhere { flag });
    }
    Ok(listeners)
}

fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1_024)?;
    TcpListener::from_std(socket.into())
}

/// `EAFNOSUPPORT`, or `EADDRNOTAVAIL` for the unspecified address where IPv6 is switched off.
fn is_no_family(why: &io::Error) -> bool {
    matches!(why.raw_os_error(), Some(97)) || why.kind() == io::ErrorKind::AddrNotAvailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_not_ours_is_named_and_not_left_out() {
        let ours = SocketAddr::from(([127, 0, 0, 1], 0));
        // Of documentation (RFC 5737, RFC 3849): nobody has them.
        for theirs in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            let theirs: SocketAddr = theirs.parse().expect("it is one");
            let why = listen("--listen", &[ours, theirs]).expect_err("it is not ours");
            assert!(why.to_string().contains(&format!("{theirs} (--listen)")), "{why}");
        }
        assert_eq!(
            listen("--listen", &[ours]).map(|listeners| listeners.len()).ok(),
            Some(1)
        );
    }
}
