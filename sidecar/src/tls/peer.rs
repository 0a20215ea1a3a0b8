//! A peer: who is at the other end of a connection, proven.

use std::time::SystemTime;

use portunus_proto::SpiffeId;

/// Who is at the other end. Only a finished handshake makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub(super) id: SpiffeId,
    pub(super) hash: [u8; 32],
    pub(super) not_after: SystemTime,
}

/// What a handshake has shown of ourselves: it counts for that connection, whatever certificate we have later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub(super) id: SpiffeId,
    pub(super) not_after: SystemTime,
}

impl Shown {
    /// Who we said that we are.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the certificate ends that said so.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

impl Peer {
    /// Its identity: the one URI name of its certificate.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The SHA-256 of its certificate (DER).
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// When its certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}
