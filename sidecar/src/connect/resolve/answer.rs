//! What is known of a name.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

/// What is known of a name now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Where the name leads, preferred priorities first, then by address. Use [`Answer::routable`] to balance over.
    pub targets: Vec<Target>,
    /// How far that can be trusted.
    pub state: State,
    /// Grows with every change of targets or state.
    pub generation: u64,
    /// When the next question is due; nothing for an address or a name of the hosts file, which need none.
    pub expires: Option<Instant>,
    /// Addresses that are the name's (without an end) or lately were (until then), sorted.
    pub(super) addresses: Vec<(IpAddr, Option<Instant>)>,
}

/// One place where a name leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Address and port.
    pub addr: SocketAddr,
    /// Its share relative to others of its priority, at least 1.
    pub weight: u32,
    /// Lower is preferred (RFC 2782); 0 without SRV.
    pub priority: u16,
    /// Whether this pod has a route there, as far as the kernel can say without sending anything.
    pub routable: bool,
}

/// How far an answer can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// The first answer is under way.
    #[default]
    Pending,
    /// As the name servers say, or the hosts file does.
    Fresh,
    /// As the name servers said, before they stopped answering or began to deny it.
    Stale {
        /// A sentence: what happened when it was asked again.
        reason: Arc<str>,
    },
    /// Nothing was ever known. It is being asked again.
    Failed {
        /// A sentence: the name, the server that was asked, and what it said.
        reason: Arc<str>,
    },
}

impl Answer {
    /// The targets that count: those that this pod has a route to.
    pub fn routable(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().filter(|target| target.routable)
    }

    /// Whether `addr` is among the addresses of the name, or lately was.
    pub fn has_or_had(&self, addr: IpAddr, now: Instant) -> bool {
        match self
            .addresses
            .binary_search_by(|(known, _)| known.cmp(&addr.to_canonical()))
        {
            Ok(at) => self.addresses[at].1.is_none_or(|until| now < until),
            Err(_) => false,
        }
    }

    /// The answer for a host that is an address already.
    pub(super) fn literal(ip: IpAddr, port: u16) -> Self {
        let ip = ip.to_canonical();
        Self {
            targets: vec![Target {
                addr: SocketAddr::new(ip, port),
                weight: 1,
                priority: 0,
                routable: true,
            }],
            state: State::Fresh,
            generation: 1,
            expires: None,
            addresses: vec![(ip, None)],
        }
    }
}
