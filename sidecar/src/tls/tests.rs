//! The vocabulary of the room's tests: authorities, what peers show, and peers made of plain rustls.

mod authority;
mod certificates;
mod control;
mod draft;
mod forged;
mod handshake;
mod plain;
mod records;
mod shapes;
mod stream;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use portunus_proto::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};

use super::{Bundle, Credential};
pub(crate) use control::{impostors, whom};
pub(crate) use handshake::both;

use authority::{Authority, OURS, PEERS, Shown, leaf_params, soon};
use plain::{Anything, client_config, client_config_by, server_config, server_config_by};

/// Long enough for the slowest machine; nothing waits for its end in a test that passes.
const IN_TIME: Duration = Duration::from_secs(20);

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

impl Authority {
    fn bundle(&self) -> Bundle {
        Bundle::new(
            TrustDomain::parse("cluster.local").unwrap(),
            &[self.issuer.der().clone()],
        )
        .unwrap()
    }

    /// Ours.
    fn credential(&self) -> Credential {
        let shown = self.certify(&leaf_params(OURS));
        Credential::new(shown.chain.clone(), shown.private(), self.bundle()).unwrap()
    }
}

fn client(config: ClientConfig) -> ClientConnection {
    ClientConnection::new(Arc::new(config), ServerName::try_from("anybody.example").unwrap()).unwrap()
}

fn server(config: ServerConfig) -> ServerConnection {
    ServerConnection::new(Arc::new(config)).unwrap()
}

/// What a peer has seen until its connection ended.
#[derive(Debug, Default)]
struct Saw {
    plain: Vec<u8>,
    error: Option<String>,
}

/// Says its words as soon as it may, and listens to the end.
fn converse<S>(
    mut connection: impl std::ops::DerefMut<Target = rustls::ConnectionCommon<S>>,
    mut socket: std::net::TcpStream,
    words: &[u8],
) -> Saw
where
    S: rustls::SideData,
{
    let mut saw = Saw::default();
    socket.set_read_timeout(Some(IN_TIME)).unwrap();
    connection.writer().write_all(words).unwrap();
    loop {
        while connection.wants_write() {
            if connection.write_tls(&mut socket).is_err() {
                break;
            }
        }
        match connection.read_tls(&mut socket) {
            Ok(0) => return saw,
            Ok(_) => {}
            Err(error) => {
                saw.error.get_or_insert(error.to_string());
                return saw;
            }
        }
        if let Err(error) = connection.process_new_packets() {
            saw.error = Some(error.to_string());
            let _ = connection.write_tls(&mut socket);
            return saw;
        }
        let mut room = [0; 4096];
        while let Ok(n @ 1..) = connection.reader().read(&mut room) {
            saw.plain.extend_from_slice(&room[..n]);
        }
    }
}

/// A peer in a thread that calls us.
fn calls(to: SocketAddr, config: ClientConfig, words: &'static [u8]) -> JoinHandle<Saw> {
    std::thread::spawn(move || {
        let socket = std::net::TcpStream::connect(to).unwrap();
        converse(client(config), socket, words)
    })
}

/// A peer in a thread that is called.
fn is_called(config: ServerConfig, words: &'static [u8]) -> (SocketAddr, JoinHandle<Saw>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        converse(server(config), socket, words)
    });
    (address, thread)
}
