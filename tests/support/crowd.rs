//! A crowd at a door: connections that all say the same, or nothing, and wait to be closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// So many connections that each say `words`, and are heard to the end. How long the longest lived.
///
/// # Panics
/// When nobody listens there.
pub async fn crowd(to: SocketAddr, count: usize, words: &[u8]) -> Duration {
    let mut all = JoinSet::new();
    for _ in 0..count {
        let mut socket = TcpStream::connect(to).await.expect("it listens");
        let words = words.to_vec();
        all.spawn(async move {
            let began = Instant::now();
            let _ = socket.write_all(&words).await;
            let mut heard = Vec::new();
            let _ = socket.read_to_end(&mut heard).await;
            began.elapsed()
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(lived) = all.join_next().await {
        longest = longest.max(lived.expect("no panic"));
    }
    longest
}

/// What a client says first, in a record of its own.
///
/// # Panics
/// When its settings are of no use.
pub fn hello(config: ClientConfig) -> Vec<u8> {
    let name = ServerName::try_from("a.example").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("a vector takes all");
    hello
}
