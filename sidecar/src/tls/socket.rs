//! What is asked of a socket: one read, one write, and an end that loses nothing.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The most of a peer's bytes that are thrown away while it reads our last ones.
const MOST_THROWN_AWAY: usize = 256 * 1024;

/// One read. A short one has emptied the socket: to say so saves the read that would find nothing.
pub(crate) fn read_once(socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    once(socket, Interest::READABLE, room.len(), |mut socket| socket.read(room))
}

/// One write. A short one has filled the socket: to say so saves the write that would find no room.
pub(crate) fn write_once(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    once(socket, Interest::WRITABLE, bytes.len(), |mut socket| {
        socket.write(bytes)
    })
}

/// Does `what` once with `whole` bytes. The socket is not ready any more where fewer were moved; of the end of what is read,
/// which is none, everybody is to hear again.
fn once(
    socket: &TcpStream,
    interest: Interest,
    whole: usize,
    what: impl FnOnce(&socket2::Socket) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut moved = None;
    let result = socket.try_io(interest, || {
        let n = what(&SockRef::from(socket))?;
        moved = Some(n);
        if n > 0 && n < whole {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(())
        }
    });
    match (moved, result) {
        (Some(n), _) => Ok(n),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Ends a connection so that the peer can read our last words: we send nothing more, and what it sends is thrown away until
/// it ends its side, too, or `within` is over. A socket that is closed over bytes that nobody has read, or gets some later, is
/// reset, and what it had still to send is lost with it.
pub(crate) async fn linger(socket: &mut TcpStream, within: Duration) {
    // It is over, however it ends.
    let _ = timeout(within, async {
        socket.shutdown().await?;
        let mut rubbish = [0; 1024];
        let mut thrown_away = 0;
        while thrown_away < MOST_THROWN_AWAY {
            match socket.read(&mut rubbish).await? {
                0 => break,
                n => thrown_away += n,
            }
        }
        Ok::<(), io::Error>(())
    })
    .await;
}
