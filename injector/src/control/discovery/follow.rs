//! One sidecar's stream: what it follows, and what it was told last.
//!
//! ```text
//! hello ──▶ following ──subscribe, unsubscribe──▶ following
//!              │ a new state, or new roots: everything is asked again, and told if it differs
//!              └─▶ next(): one answer at a time, of the newest state; a slow reader is told less, never later, and whoever
//!                  follows much lets others have their turn
//! ```

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use portunus_proto::SpiffeId;
use portunus_proto::limits::LONGEST_HOST;
use portunus_proto::mesh::v1::{
    Bundle, FollowRequest, FollowResponse, Subject, follow_request::Ask, follow_response::Answer, subject,
};
use prost::Message;

use super::World;
use super::world::{Print, print};
use crate::cluster::Name;

/// How many things one sidecar may follow.
pub const MOST_SUBSCRIPTIONS: usize = 4_096;
/// The longest text of an address.
const MOST_IP: usize = 45;

/// What one sidecar follows.
#[derive(Debug)]
pub struct Follow {
    workload: Name,
    told: HashMap<Key, Option<Print>>,
    due: BTreeSet<Key>,
    bundle: Told,
    inbound: Told,
}

/// Something that is always followed.
#[derive(Debug, Default)]
struct Told {
    last: Option<Print>,
    due: bool,
}

/// What can be followed, in an order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Name(String, u32),
    Address(String, u32),
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// Something else came first, or hello came again.
    #[error("a stream begins with the name of its workload, once")]
    Order,
    /// It names no workload.
    #[error("a stream names its workload as namespace/name")]
    NoWorkload,
    /// The workload is not there, or has no sidecar.
    #[error("its Workload does not exist, or has no joinTokenSha256")]
    Gone,
    /// It is somebody else.
    #[error("its certificate is not that of the Workload that it names")]
    OtherIdentity,
    /// It is no name, no address, or far too long.
    #[error("a subject has a host or an address, and a port")]
    Subject,
    /// Too many.
    #[error("more than {MOST_SUBSCRIPTIONS} subscriptions")]
    TooMany,
}

impl Follow {
    /// Begins with the first request.
    ///
    /// # Errors
    /// When it is not hello, or not from whom it says.
    pub fn hello(request: &FollowRequest, proven: &SpiffeId, world: &World) -> Result<Follow, Mistake> {
        let Some(Ask::Hello(hello)) = &request.ask else {
            return Err(Mistake::Order);
        };
        let (namespace, name) = hello.workload.split_once('/').ok_or(Mistake::NoWorkload)?;
        let follow = Follow {
            workload: Name::new(namespace, name),
            told: HashMap::new(),
            due: BTreeSet::new(),
            bundle: Told { last: None, due: true },
            inbound: Told { last: None, due: true },
        };
        follow.check(proven, world)?;
        Ok(follow)
    }

    /// Whether the workload is still there, and still who asks.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, proven: &SpiffeId, world: &World) -> Result<(), Mistake> {
        match world.identity(&self.workload) {
            None => Err(Mistake::Gone),
            Some(id) if id != *proven => Err(Mistake::OtherIdentity),
            Some(_) => Ok(()),
        }
    }

    /// The workload that asks.
    pub fn workload(&self) -> &Name {
        &self.workload
    }

    /// How many things it follows.
    pub fn subscriptions(&self) -> usize {
        self.told.len()
    }

    /// Takes a request after hello.
    ///
    /// # Errors
    /// When it is none that may come.
    pub fn ask(&mut self, request: FollowRequest) -> Result<(), Mistake> {
        match request.ask {
            Some(Ask::Subscribe(subject)) => {
                let key = Key::of(subject)?;
                if self.told.len() >= MOST_SUBSCRIPTIONS && !self.told.contains_key(&key) {
                    return Err(Mistake::TooMany);
                }
                // Whoever asks again is told again.
                self.told.insert(key.clone(), None);
                self.due.insert(key);
            }
            Some(Ask::Unsubscribe(subject)) => {
                let key = Key::of(subject)?;
                self.told.remove(&key);
                self.due.remove(&key);
            }
            Some(Ask::Hello(_)) => return Err(Mistake::Order),
            // Of a later version of the protocol.
            None => {}
        }
        Ok(())
    }

    /// There is a new state: everything must be looked at again.
    pub fn state_changed(&mut self) {
        self.inbound.due = true;
        self.due.extend(self.told.keys().cloned());
    }

    /// There are new roots.
    pub fn bundle_changed(&mut self) {
        self.bundle.due = true;
    }

    /// Whether `next` may have something to tell.
    pub fn is_due(&self) -> bool {
        self.bundle.due || self.inbound.due || !self.due.is_empty()
    }

    /// The next thing to tell, as it is now. It is looked for until `latest`, one look at the least.
    pub fn next(&mut self, world: &World, bundle: &Bundle, latest: Instant) -> Next {
        if self.bundle.is_news(bundle) {
            return Next::tell(Answer::Bundle(bundle.clone()));
        }
        if self.inbound.due {
            let inbound = world.inbound(&self.workload);
            if self.inbound.is_news(&inbound) {
                return Next::tell(Answer::Inbound(inbound));
            }
        }
        while let Some(key) = self.due.pop_first() {
            let subject = key.subject();
            let print = world.print(&self.workload, &subject);
            let Some(last) = self.told.get_mut(&key) else { continue };
            if *last != Some(print) {
                *last = Some(print);
                return Next::tell(Answer::Update(world.view(&self.workload, &subject)));
            }
            if Instant::now() >= latest {
                break;
            }
        }
        if self.is_due() { Next::More } else { Next::Nothing }
    }
}

/// What is to be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This.
    Tell(Box<FollowResponse>),
    /// Nothing was found so far, and not everything was looked at.
    More,
    /// All was told.
    Nothing,
}

impl Next {
    fn tell(answer: Answer) -> Next {
        Next::Tell(Box::new(FollowResponse { answer: Some(answer) }))
    }
}

impl Told {
    fn is_news(&mut self, message: &impl Message) -> bool {
        if !std::mem::take(&mut self.due) {
            return false;
        }
        let print = Some(print(message));
        let news = self.last != print;
        self.last = print;
        news
    }
}

impl Key {
    fn of(subject: Subject) -> Result<Key, Mistake> {
        let is_port = |port: u32| (1..=65_535).contains(&port);
        match subject.what {
            Some(subject::What::Name(name)) if (1..=LONGEST_HOST).contains(&name.host.len()) && is_port(name.port) => {
                Ok(Key::Name(name.host, name.port))
            }
            Some(subject::What::Address(address)) if address.ip.len() <= MOST_IP && is_port(address.port) => {
                Ok(Key::Address(address.ip, address.port))
            }
            Some(_) | None => Err(Mistake::Subject),
        }
    }

    fn subject(&self) -> Subject {
        let what = match self.clone() {
            Key::Name(host, port) => subject::What::Name(portunus_proto::mesh::v1::NamePort { host, port }),
            Key::Address(ip, port) => subject::What::Address(portunus_proto::mesh::v1::Address { ip, port }),
        };
        Subject { what: Some(what) }
    }
}
