//! Members who change their keys and ask the other end to change its own: it does, before it says anything else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use portunus_sidecar::policy::Mode;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::authority::{Authority, Shown};
use crate::ends;
use crate::plain::client_config;
use crate::raw;
use crate::world::World;

/// A member that counts the records that it is sent.
struct Member {
    tls: ClientConnection,
    socket: TcpStream,
    /// What came and is no whole record yet.
    partial: Vec<u8>,
}

impl Member {
    fn come(to: SocketAddr, shown: &Shown) -> Member {
        let name = ServerName::try_from("a.example").expect("a name");
        let mut tls = ClientConnection::new(Arc::new(client_config(Some(shown))), name).expect("a client");
        let mut socket = TcpStream::connect(to).expect("it listens");
        socket.set_nodelay(true).expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(15)))
            .expect("a socket");
        while tls.is_handshaking() {
            // Its server's first bytes may come with the end of the handshake: they are left for later.
            if tls.wants_write() {
                tls.write_tls(&mut socket).expect("it is open");
            } else {
                tls.read_tls(&mut socket).expect("it is open");
                tls.process_new_packets().expect("a handshake");
            }
        }
        let partial = Vec::new();
        Member { tls, socket, partial }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).expect("there is room");
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket).expect("it is open");
        }
    }

    /// Says a PING and waits for its answer: how many records came until then, that one among them.
    fn ping(&mut self, number: u8) -> usize {
        self.say(&raw::frame(6, 0, 0, &[number; 8]));
        let answer = raw::frame(6, 1, 0, &[number; 8]);
        let (mut records, mut plain) = (0, Vec::new());
        while !plain.ends_with(&answer) {
            self.record();
            records += 1;
            let mut room = [0; 16_384];
            while let Ok(n @ 1..) = self.tls.reader().read(&mut room) {
                plain.extend_from_slice(&room[..n]);
            }
        }
        records
    }

    /// Takes one record.
    fn record(&mut self) {
        loop {
            if let [_, _, _, high, low, rest @ ..] = &self.partial[..]
                && rest.len() >= usize::from(u16::from_be_bytes([*high, *low]))
            {
                let length = 5 + usize::from(u16::from_be_bytes([*high, *low]));
                let record: Vec<u8> = self.partial.drain(..length).collect();
                self.tls.read_tls(&mut &record[..]).expect("a slice can be read");
                self.tls.process_new_packets().expect("it is sealed with the right key");
                return;
            }
            let mut room = [0; 16_384];
            let n = self.socket.read(&mut room).expect("it is answered");
            assert!(n > 0, "it was cut");
            self.partial.extend_from_slice(&room[..n]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_updates_are_answered_before_anything_else_is_said() {
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let proxy = world.proxy;
    let talk = tokio::task::spawn_blocking(move || {
        let mut member = Member::come(proxy, &shown);
        member.say(&[raw::PREFACE, &raw::settings(&[])].concat());
        member.ping(0);
        member.say(&raw::frame(4, 1, 0, &[]));
        for number in 1..=20 {
            assert_eq!(member.ping(number), 1, "the answer alone");
            member.tls.refresh_traffic_keys().expect("TLS 1.3");
            assert_eq!(member.ping(number), 2, "new keys, and the answer under them");
        }
    });
    talk.await.expect("no panic");
}
