//! TLS to control: the one server that also hears those who have no certificate yet.
//!
//! It is judged as every peer is: by its chain, and by the one SPIFFE id that it must have. What is inside is gRPC's own
//! HTTP/2 (ALPN `h2`), and no call of the mesh.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use portunus_proto::SpiffeId;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credential::{Bundle, Credential, anonymous};
use super::error::Error;
use super::handshake::NO_NAME;

/// What is spoken inside.
const ALPN: &[u8] = b"h2";

/// Shakes hands with control, which has to be `expected` under the roots of `bundle`; with our certificate, or without one.
///
/// As with every server, its judgement of our certificate comes with the first bytes that are read.
///
/// # Errors
/// When we refuse the server, it refuses us, or it does not finish within the time.
pub async fn call_control(
    socket: TcpStream,
    bundle: &Bundle,
    credential: Option<&Credential>,
    expected: &SpiffeId,
    within: Duration,
) -> Result<TlsStream<TcpStream>, Error> {
    let (config, verifier) = match credential {
        Some(credential) => credential.for_server(expected),
        None => anonymous(bundle, expected),
    };
    let mut config = ClientConfig::clone(&config);
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::try_from(NO_NAME).expect("it is a DNS name");
    let shaken = timeout(within, TlsConnector::from(Arc::new(config)).connect(name, socket)).await;
    match (shaken, verifier.take_verdict()) {
        (_, Some(Err(refused))) => Err(refused.into()),
        (Err(_), _) => Err(Error::TooSlow(within)),
        (Ok(Err(error)), _) => Err(of_io(error)),
        (Ok(Ok(_)), None) => Err(Error::Protocol("nobody judged the peer's certificate".to_owned())),
        (Ok(Ok(stream)), Some(Ok(_))) if stream.get_ref().1.alpn_protocol() == Some(ALPN) => Ok(stream),
        (Ok(Ok(_)), Some(Ok(_))) => Err(Error::Incompatible("it does not choose HTTP/2 (ALPN h2)".to_owned())),
    }
}

/// tokio-rustls hands on what rustls says inside of an I/O error.
fn of_io(error: io::Error) -> Error {
    match error.downcast::<rustls::Error>() {
        Ok(error) => Error::of(error),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Error::Truncated,
        Err(error) => Error::Io(error),
    }
}
