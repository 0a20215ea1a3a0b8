//! The rows about mTLS that no row in plain has beside it: memory, handshakes, and the start of a member of a mesh.

use anyhow::{Result, ensure};
use rustls::NamedGroup;

use super::{
    handshakes::Client,
    peers::{Peer, Standing},
    report::Series,
    rows::{Bench, PROXY_CPU, Subject, micros, settled},
};

const CONNECTIONS: usize = 1_000;

impl Bench {
    /// T7t: the server's sidecar, with control connected.
    pub(super) fn memory_of_tls(&mut self) -> Result<Vec<Series>> {
        let mut idle = Series::new("T7t.idle", "resident memory of the server's proxy, idle", "MB");
        let mut each = Series::new(
            "T7t.connection",
            "resident memory a TLS connection that has begun HTTP/2",
            "KB",
        );
        self.once("T7t", Standing::Pair, |subject| {
            let far = subject.far()?;
            let client = client(subject)?;
            let before = settled(&far.process)?;
            let mut held = Vec::with_capacity(CONNECTIONS);
            for _ in 0..CONNECTIONS {
                held.push(client.hold(far.address)?);
            }
            let after = settled(&far.process)?;
            idle.add(subject.peer, before as f64 / 1e6);
            each.add(
                subject.peer,
                after.saturating_sub(before) as f64 / 1e3 / CONNECTIONS as f64,
            );
            Ok(())
        })?;
        idle.at_most(8.0);
        each.at_most(12.0);
        Ok(vec![idle, each])
    }

    /// T8.
    pub(super) fn handshakes(&mut self) -> Result<Vec<Series>> {
        let handshakes = if self.quick { 400 } else { 2_000 };
        let mut cpu = Series::new(
            "T8",
            "CPU of the server's proxy a full mTLS handshake (P-256; X25519MLKEM768, but HAProxy X25519)",
            "us",
        );
        self.each_round("T8", Standing::Pair, PROXY_CPU, false, |subject| {
            let far = subject.far()?;
            let client = client(subject)?;
            let wanted = match subject.peer {
                Peer::Haproxy => NamedGroup::X25519,
                _ => NamedGroup::X25519MLKEM768,
            };
            let shake = |times: u64| {
                for _ in 0..times {
                    let group = client.shake(far.address)?;
                    ensure!(group == wanted, "the key exchange was {group:?}, not {wanted:?}");
                }
                anyhow::Ok(())
            };
            shake(handshakes / 10)?;
            let before = far.process.cpu()?;
            shake(handshakes)?;
            cpu.add(subject.peer, micros(far.process.cpu()? - before) / handshakes as f64);
            Ok(())
        })?;
        cpu.at_most_times(0.8, Peer::Envoy);
        Ok(vec![cpu])
    }

    /// T10.
    pub(super) fn start_to_ready(&mut self) -> Result<Vec<Series>> {
        let mut time = Series::new(
            "T10",
            "from the start of the sidecar's process to /ready, certificate included",
            "ms",
        );
        for round in 1..=self.rounds {
            self.say("T10", &format!("round {round} of {}", self.rounds));
            match self.programs.start_to_ready(PROXY_CPU) {
                Ok(took) => time.add(Peer::Portunus, micros(took) / 1e3),
                Err(error) => self.failures.push(format!("T10, round {round}: {error:#}")),
            }
        }
        time.at_most(100.0);
        Ok(vec![time])
    }
}

/// A client as the peer's own caller would be.
fn client(subject: &Subject<'_>) -> Result<Client> {
    let alpn: &[u8] = match subject.peer {
        Peer::Portunus => b"portunus/h2",
        _ => b"h2",
    };
    Client::new(subject.identities, alpn)
}
