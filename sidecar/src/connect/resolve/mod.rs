//! Names to addresses: DNS by TTL, served stale during an outage.
//!
//! One [`Names`] serves the process. Whoever needs a name watches it and gets every [`Answer`] from then on; the name
//! is asked again when its TTL ends, as long as somebody watches.
//!
//! - A name is looked up in both families at once, or by its SRV records where the configuration names them. Each
//!   question (a name and a record type) is asked by its own TTL, so neither family waits for the other or hides it.
//! - What was known stays known through NXDOMAIN, SERVFAIL and silence: the answer is then [`State::Stale`] and says
//!   why, and the question is asked again with growing pauses.
//! - However many ask, a question leaves for a name server at most once per [`Settings::ask_interval`]; but once more, by
//!   TCP, if the answer was truncated, and without EDNS if the server refused it.
//! - `resolv.conf` is read again when it changes. Its `search` and `ndots` mean what they mean to an application; the
//!   candidate that answered is remembered, so they multiply the first look-up and not every one.
//! - The hosts file comes first, as with `files dns` in nsswitch.conf: for a name that is in it no name server is asked,
//!   and its answer is always [`State::Fresh`]. It is read again when it changes, too. Where a configuration names SRV
//!   records for a host, these come first, and the file is for their targets.
//! - Removed addresses are remembered for a while ([`Answer::has_or_had`]), since an application that resolved the name
//!   before may still come with one.
//! - What the network may answer is bounded: [`Settings::max_addresses`], [`Settings::max_services`]; a truncated
//!   answer is asked for again by TCP; chains of CNAME end after eight.

mod answer;
mod asking;
mod evaluate;
mod file;
mod hosts;
mod question;
mod routes;
mod search;
mod server;
mod servers;
mod settings;
mod sockets;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use answer::{Answer, State, Target};
pub use routes::Routes;
pub use settings::Settings;

use asking::{Asking, Wanted};

/// What to resolve.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Query {
    /// A host name or an address, without a port; an IPv6 address with or without brackets.
    pub host: String,
    /// The port of the targets, unless SRV records say theirs.
    pub port: u16,
    /// The name whose SRV records say where the service is (`_grpc._tcp.greeter.example.`), if there is one. `host` is
    /// then only what the service is called.
    pub srv: Option<String>,
}

/// Why a name cannot be watched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It can be in no DNS.
    #[error("{0:?} is not a host name: letters, digits, '-', '_' and '.' in labels of 1 to 63 are")]
    NotAName(String),
    /// The ceiling is reached.
    #[error("cannot resolve {host:?}: {max} names are being resolved already, the most that is allowed")]
    TooMany {
        /// The name that was asked for.
        host: String,
        /// [`Settings::max_names`].
        max: usize,
    },
    /// The process is shutting down.
    #[error("cannot resolve {0:?}: shutting down")]
    Stopped(String),
}

/// The names of the process: a handle that any thread may use.
#[derive(Clone)]
pub struct Names(Arc<Shared>);

/// What the handles and the one task behind them share: who is watched, never what is known.
struct Shared {
    settings: Settings,
    watched: Mutex<HashMap<Query, Watched>>,
    wanted: mpsc::Sender<Wanted>,
    stopped: CancellationToken,
}

struct Watched {
    id: u64,
    answers: watch::Sender<Arc<Answer>>,
}

impl Names {
    /// Starts the one task that resolves, on the runtime of the caller. Reads `resolv.conf` before it returns; that it
    /// cannot be read is logged, and said in the answers until it can.
    pub fn start(settings: Settings, tracker: &TaskTracker, stopped: CancellationToken) -> Self {
        let (wanted, wants) = mpsc::channel(settings.max_names.max(1));
        let shared = Arc::new(Shared {
            settings,
            watched: Mutex::default(),
            wanted,
            stopped: stopped.clone(),
        });
        let asking = Asking::new(shared.clone());
        tracker.spawn(asking.run(wants, stopped));
        Self(shared)
    }

    /// Resolves a name from now on, until the last receiver is gone and [`Settings::linger`] has passed. The receiver
    /// holds what is known already: [`State::Pending`] the first time, unless `host` is an address.
    pub fn watch(&self, query: Query) -> Result<watch::Receiver<Arc<Answer>>, Error> {
        let query = query.checked()?;
        if self.0.stopped.is_cancelled() {
            return Err(Error::Stopped(query.host));
        }
        let mut watched = self.0.watched.lock();
        if let Some(known) = watched.get(&query) {
            return Ok(known.answers.subscribe());
        }
        let max = self.0.settings.max_names;
        let id = asking::next_id();
        let answers = watch::Sender::new(Arc::new(Answer::default()));
        let receiver = answers.subscribe();
        if let Some(ip) = query.literal() {
            answers.send_replace(Arc::new(Answer::literal(ip, query.port)));
        }
        let wanted = Wanted {
            id,
            query: query.clone(),
            answers: answers.clone(),
        };
        if watched.len() >= max || self.0.wanted.try_send(wanted).is_err() {
            return Err(Error::TooMany { host: query.host, max });
        }
        watched.insert(query, Watched { id, answers });
        Ok(receiver)
    }

    /// Whether `addr` is among the addresses of a watched name, or was within [`Settings::lately`]. A name that nobody
    /// watches has none.
    pub fn has_or_had(&self, query: &Query, addr: IpAddr) -> bool {
        let Ok(query) = query.clone().checked() else {
            return false;
        };
        let watched = self.0.watched.lock();
        watched
            .get(&query)
            .is_some_and(|known| known.answers.borrow().has_or_had(addr, Instant::now()))
    }

    /// How many names are being resolved.
    pub fn len(&self) -> usize {
        self.0.watched.lock().len()
    }

    /// Whether no name is being resolved.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every name that is being resolved and what is known of it, for the operator to look at.
    pub fn known(&self) -> Vec<(Query, Arc<Answer>)> {
        let watched = self.0.watched.lock();
        watched
            .iter()
            .map(|(query, known)| (query.clone(), known.answers.borrow().clone()))
            .collect()
    }
}

impl Shared {
    /// Forgets a name if nobody watches it. Under the lock, so that nobody can begin to in between.
    fn forget(&self, query: &Query, id: u64) -> bool {
        let mut watched = self.watched.lock();
        match watched.get(query) {
            Some(known) if known.id == id && known.answers.receiver_count() == 0 => watched.remove(query).is_some(),
            Some(_) | None => false,
        }
    }
}

impl Query {
    /// A host at a port, found by its addresses.
    pub fn addresses(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
            srv: None,
        }
    }

    /// The same query in the one form in which it is remembered; an error if it cannot be asked.
    fn checked(self) -> Result<Self, Error> {
        let host = match self.host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => inner.to_ascii_lowercase(),
            None => self.host.to_ascii_lowercase(),
        };
        let srv = self.srv.map(|name| name.to_ascii_lowercase());
        if srv.is_none() && host.parse::<IpAddr>().is_err() && !search::is_host_name(&host) {
            return Err(Error::NotAName(self.host));
        }
        match srv {
            Some(name) if !search::is_host_name(&name) => Err(Error::NotAName(name)),
            srv => Ok(Self {
                host,
                port: self.port,
                srv,
            }),
        }
    }

    fn literal(&self) -> Option<IpAddr> {
        if self.srv.is_some() {
            None
        } else {
            self.host.parse().ok()
        }
    }

    /// The name that is asked for.
    fn name(&self) -> &str {
        self.srv.as_deref().unwrap_or(&self.host)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names")
            .field("watched", &self.len())
            .finish_non_exhaustive()
    }
}
