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
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// This machine has none of the families.
    #[error("this machine has none of the families of the addresses to listen at")]
    Nowhere,
}

/// Listens at all of the addresses. One whose family the machine does not have is left out.
///
/// # Errors
/// When an address is taken, or none remains.
pub fn listen(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for address in addresses {
        match open(*address) {
            Ok(listener) => listeners.push(listener),
            Err(why) if is_no_family(&why) => warn!(%address, %why, "this machine has no such family of addresses"),
            Err(source) => {
                return Err(Error::Listen {
                    address: *address,
                    source,
                });
            }
        }
    }
    if listeners.is_empty() {
        return Err(Error::Nowhere);
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
