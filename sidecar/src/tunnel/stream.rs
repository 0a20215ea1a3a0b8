//! What a tunnel needs of a connection, whether it is TCP or what was decrypted from it.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::accept::Options;

/// A connection that can be carried. Its `poll_shutdown` ends our half only: the other side may go on speaking.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {
    /// Sets the options of the socket under it.
    fn set_options(&self, options: &Options);

    /// Ends it so that the peer learns that not all was said: by a reset.
    fn reset(self);

    /// Returns what broke it, if that can be known without reading: a side that is not read meanwhile tells so at least.
    /// For ever pending where it cannot.
    fn broken(&self) -> impl Future<Output = ErrorKind>;
}

impl Stream for TcpStream {
    fn set_options(&self, options: &Options) {
        // Fails only on a connection that is dead already, which its first use will tell.
        let _ = options.set(self);
    }

    fn reset(self) {
        // Fails only where the peer is gone already.
        let _ = self.set_zero_linger();
    }

    async fn broken(&self) -> ErrorKind {
        loop {
            if let Err(error) = self.ready(Interest::ERROR).await {
                return error.kind();
            }
            let found: io::Result<()> = self.try_io(Interest::ERROR, || {
                Err(self.take_error()?.unwrap_or_else(|| ErrorKind::WouldBlock.into()))
            });
            match found {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return error.kind(),
                Ok(()) | Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {
    fn set_options(&self, _options: &Options) {}

    fn reset(self) {}

    fn broken(&self) -> impl Future<Output = ErrorKind> {
        std::future::pending()
    }
}
