//! Free addresses that stay ours until somebody whom we start listens there.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// A free address of loopback, ours as long as this lives: bound, and not listening, so that connections are refused.
///
/// The kernel gives the port to nobody else who asks for any port, nor to a connection that goes out; who asks for this
/// very one with `SO_REUSEADDR`, as servers do, gets it.
pub struct Place {
    /// With the port that the kernel chose.
    pub address: SocketAddr,
    _held: Socket,
}

impl Place {
    /// At a port that nobody has.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub fn new() -> Result<Place> {
        let held = socket()?;
        held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .context("no port is free")?;
        let address = held.local_addr()?.as_socket().context("it is an address")?;
        Ok(Place { address, _held: held })
    }

    /// Somebody listens here, without blocking.
    ///
    /// # Errors
    ///
    /// Somebody does already.
    pub fn listen(&self) -> Result<std::net::TcpListener> {
        let socket = socket()?;
        socket.bind(&self.address.into())?;
        socket.listen(64)?;
        Ok(socket.into())
    }
}

fn socket() -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, io::ErrorKind, net::TcpStream};

    use super::*;

    #[test]
    fn a_place_is_given_once_refuses_and_listens_when_told() -> Result<()> {
        let places = (0..500).map(|_| Place::new()).collect::<Result<Vec<_>>>()?;
        let ports: BTreeSet<u16> = places.iter().map(|place| place.address.port()).collect();
        assert_eq!(ports.len(), places.len(), "each has a port of its own");
        let place = &places[0];
        let refused = TcpStream::connect(place.address).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let plain = std::net::UdpSocket::bind(place.address);
        assert!(plain.is_ok(), "UDP is another matter");
        let _listener = place.listen()?;
        TcpStream::connect(place.address)?;
        Ok(())
    }
}
