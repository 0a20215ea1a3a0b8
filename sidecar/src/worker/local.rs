//! Where calls of this process's own begin: each caller's line is a wire like any other, but not a connection.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::Worker;
use super::run::{Inbox, Message};
use crate::connect::local::{self, Caller, Tables};
use crate::connect::{Side, Transport};
use crate::http2;
use crate::route::ServiceKey;

/// At a wire's other end is nobody who has an address.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What the local ends of a worker may be granted of its budget, as a divisor: credit that goes to no socket.
const SHARE: u64 = 8;

/// Opens local ends on one worker, from its own thread.
#[derive(Clone)]
pub struct Local {
    inbox: Arc<Inbox>,
    settings: Arc<http2::Settings>,
    tables: Tables,
}

impl Local {
    pub(super) fn new(inbox: Arc<Inbox>, settings: Arc<http2::Settings>, budget: u64) -> Local {
        Local {
            inbox,
            settings,
            tables: Tables::new(budget / SHARE),
        }
    }

    /// A caller whose calls go where those of the application would that dialled `meant`.
    pub fn outbound(&self, meant: SocketAddr) -> Caller {
        self.open(false, meant, None)
    }

    /// A caller of health checks: they go to the service's endpoint at `addr` and nowhere else, by the connections that calls
    /// there use.
    pub(super) fn checks(&self, service: ServiceKey, addr: SocketAddr) -> Caller {
        self.open(false, addr, Some(service))
    }

    /// A caller whose calls go to this pod's application, as those from the network would that were meant for `meant`.
    pub fn inbound(&self, meant: SocketAddr) -> Caller {
        self.open(true, meant, None)
    }

    pub(super) fn tell(&self, message: Message) {
        self.inbox.send(message);
    }

    fn open(&self, inbound: bool, meant: SocketAddr, checks: Option<ServiceKey>) -> Caller {
        let (caller, pipe) = local::open(self.settings.clone(), &self.tables);
        self.inbox.send(Message::Adopt {
            transport: Transport::Pipe(pipe),
            first: Vec::new(),
            peer: NOBODY,
            side: Side::Caller { inbound, meant, checks },
        });
        caller
    }
}

impl Worker {
    /// What local ends hold counts in the worker's budget, as it was a moment ago.
    pub(super) fn count_local(&mut self) {
        let used = self.local.tables.used();
        let budget = &mut self.wires.shared.budget;
        budget.release(self.local_used);
        budget.add(used);
        self.local_used = used;
    }
}
