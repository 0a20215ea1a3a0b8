//! What the answers to questions mean together for one name: both families, the search list, SRV and its targets.
//!
//! Pure: it reads what is known of questions, notes which questions it needed, and says what follows. Whatever was
//! needed is kept asked; whatever is needed no longer is left alone.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hickory_resolver::proto::rr::Name;

use super::{
    Query, Settings, Target,
    hosts::Hosts,
    question::{Cause, Data, Kind, Question, Record, Service, Trouble},
};

/// What a name comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Met<T> {
    /// An answer must be awaited first.
    Waiting,
    /// Something is known.
    Found(Known<T>),
    /// Nothing is known, and here is why.
    Failed(Trouble),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known<T> {
    pub(super) what: T,
    /// Why it may no longer be true, if so.
    pub(super) stale: Option<Trouble>,
    /// More is under way.
    pub(super) partial: bool,
}

/// What is known of questions, and which of them were needed; and the names that need none.
pub(super) struct View<'a> {
    hosts: &'a Hosts,
    known: &'a dyn Fn(&Question) -> Option<&'a Record>,
    pub(super) needed: Vec<Question>,
}

impl<'a> View<'a> {
    pub(super) fn new(hosts: &'a Hosts, known: &'a dyn Fn(&Question) -> Option<&'a Record>) -> Self {
        Self {
            hosts,
            known,
            needed: Vec::new(),
        }
    }

    /// What is known of a question; nothing while its first answer is awaited.
    fn of(&mut self, name: &Name, kind: Kind) -> Option<&'a Record> {
        let question = Question {
            name: name.clone(),
            kind,
        };
        let record = (self.known)(&question).filter(|record| !record.is_pending());
        self.needed.push(question);
        record
    }
}

/// Where a query leads. `settled` is the candidate that answered, remembered from one time to the next.
pub(super) fn evaluate(
    query: &Query,
    candidates: &[Name],
    settled: &mut Option<Name>,
    settings: &Settings,
    view: &mut View<'_>,
) -> Met<Vec<Target>> {
    if let Some(ip) = query.literal() {
        return found(vec![target(ip.to_canonical(), query.port, 1, 0)]);
    }
    if query.srv.is_none() {
        // As `files dns` of nsswitch.conf: what the file says is all there is of the name, in either family, and the
        // search list is for name servers alone.
        let met = match view.hosts.get(&query.host) {
            Some(ips) => found(ips.to_vec()),
            None => search(candidates, settled, |name| addresses(name, view)),
        };
        return met.map(|addresses| {
            let targets = addresses.into_iter().map(|ip| target(ip, query.port, 1, 0));
            targets.take(settings.max_addresses).collect()
        });
    }
    match search(candidates, settled, |name| services(name, view)) {
        Met::Waiting => Met::Waiting,
        Met::Failed(trouble) => Met::Failed(trouble),
        Met::Found(known) => places(known, settings, view),
    }
}

/// The first candidate that answers. One that answered before is asked alone, until it is denied.
fn search<T>(candidates: &[Name], settled: &mut Option<Name>, mut look: impl FnMut(&Name) -> Met<T>) -> Met<T> {
    let mut kept = None;
    if let Some(name) = settled.take().filter(|name| candidates.contains(name)) {
        let met = look(&name);
        let denied = match &met {
            Met::Found(known) => known
                .stale
                .as_ref()
                .is_some_and(|trouble| trouble.cause == Cause::Denied),
            Met::Waiting | Met::Failed(_) => true,
        };
        *settled = Some(name.clone());
        if !denied {
            return met;
        }
        kept = Some((name, met));
    }
    let mut trouble: Option<Trouble> = None;
    let mut all_denied = true;
    for name in candidates
        .iter()
        .filter(|name| kept.as_ref().is_none_or(|(kept, _)| kept != *name))
    {
        match look(name) {
            Met::Waiting if kept.is_some() => break,
            Met::Waiting => return Met::Waiting,
            Met::Found(known) if kept.is_some() && known.stale.is_some() => {}
            Met::Found(known) => {
                // A server that could not tell of an earlier candidate may be able to later: that one comes first.
                *settled = all_denied.then(|| name.clone());
                return Met::Found(known);
            }
            Met::Failed(failed) => {
                let cause = failed.cause;
                all_denied &= cause == Cause::Denied;
                if trouble
                    .as_ref()
                    .is_none_or(|first| first.cause == Cause::Denied && cause != Cause::Denied)
                {
                    trouble = Some(failed);
                }
                // As the C library does: silence ends the search, for the next name would meet it as well.
                if cause == Cause::Silent {
                    break;
                }
            }
        }
    }
    match (kept, trouble) {
        (Some((_, met)), _) => met,
        (None, Some(trouble)) => Met::Failed(trouble),
        (None, None) => Met::Failed(Trouble {
            cause: Cause::Failed,
            sentence: "it is too long for a name".into(),
        }),
    }
}

/// The addresses of a name, of both families. One that has none, fails or is silent does not hide the other.
fn addresses(name: &Name, view: &mut View<'_>) -> Met<Vec<IpAddr>> {
    let records = [view.of(name, Kind::A), view.of(name, Kind::Aaaa)];
    let exists = records
        .iter()
        .flatten()
        .any(|record| record.data.is_some() && record.trouble.is_none());
    let mut ips = Vec::new();
    let mut stale = None;
    for record in records.iter().flatten() {
        let Some(Data::Addresses(some)) = &record.data else {
            continue;
        };
        match &record.trouble {
            // The name is there and this family of it no longer: no outage, it was taken away.
            Some(trouble) if trouble.cause == Cause::Denied && exists => continue,
            Some(trouble) => stale = Some(trouble.clone()),
            None => {}
        }
        ips.extend_from_slice(some);
    }
    let partial = records.iter().any(Option::is_none);
    if !ips.is_empty() {
        return Met::Found(Known {
            what: ips,
            stale,
            partial,
        });
    }
    if partial {
        return Met::Waiting;
    }
    let troubles = records.iter().flatten().filter_map(|record| record.trouble.as_ref());
    match troubles.max_by_key(|trouble| trouble.cause as u8) {
        Some(trouble) => Met::Failed(trouble.clone()),
        None => Met::Waiting,
    }
}

/// The SRV records of a name.
fn services(name: &Name, view: &mut View<'_>) -> Met<Vec<Service>> {
    let Some(record) = view.of(name, Kind::Srv) else {
        return Met::Waiting;
    };
    match (&record.data, &record.trouble) {
        (Some(Data::Services(services)), stale) => Met::Found(Known {
            what: services.clone(),
            stale: stale.clone(),
            partial: false,
        }),
        (_, Some(trouble)) => Met::Failed(trouble.clone()),
        (_, None) => Met::Waiting,
    }
}

/// Where SRV records lead: each target's addresses, sharing the weight of its record.
fn places(services: Known<Vec<Service>>, settings: &Settings, view: &mut View<'_>) -> Met<Vec<Target>> {
    let mut stale = services.stale;
    let mut partial = false;
    let mut trouble = None;
    let mut targets = Vec::new();
    for service in &services.what {
        let met = match view.hosts.get(&service.target.to_ascii()) {
            Some([]) => Met::Failed(Trouble {
                cause: Cause::Denied,
                sentence: format!("the hosts file leads {} nowhere", service.target).into(),
            }),
            Some(ips) => found(ips.to_vec()),
            None => addresses(&service.target, view),
        };
        match met {
            Met::Waiting => partial = true,
            Met::Failed(failed) => trouble = Some(failed),
            Met::Found(known) => {
                partial |= known.partial;
                stale = stale.or(known.stale);
                // In hundredths, so that the addresses of one target can share it, and 0 is little beside others and
                // enough among its like (RFC 2782).
                let share = (u32::from(service.weight) * 100 / known.what.len() as u32).max(1);
                let of = known
                    .what
                    .into_iter()
                    .map(|ip| target(ip, service.port, share, service.priority));
                targets.extend(of);
            }
        }
    }
    targets.truncate(settings.max_addresses);
    match (targets.is_empty(), partial, trouble) {
        (false, _, _) => Met::Found(Known {
            what: targets,
            stale,
            partial,
        }),
        (true, false, Some(trouble)) => Met::Failed(trouble),
        (true, _, _) => Met::Waiting,
    }
}

fn found<T>(what: T) -> Met<T> {
    Met::Found(Known {
        what,
        stale: None,
        partial: false,
    })
}

fn target(ip: IpAddr, port: u16, weight: u32, priority: u16) -> Target {
    Target {
        addr: SocketAddr::new(ip, port),
        weight,
        priority,
        routable: true,
    }
}

impl<T> Met<T> {
    fn map<U>(self, with: impl FnOnce(T) -> U) -> Met<U> {
        match self {
            Met::Waiting => Met::Waiting,
            Met::Failed(trouble) => Met::Failed(trouble),
            Met::Found(Known { what, stale, partial }) => Met::Found(Known {
                what: with(what),
                stale,
                partial,
            }),
        }
    }
}

/// A sentence about a name that nothing is known of.
pub(super) fn cannot_resolve(query: &Query, trouble: &Trouble) -> Arc<str> {
    format!("cannot resolve {}: {}", query.name(), trouble.sentence).into()
}
