//! The story from this pod's application to the network.
//!
//! A connection that the application opened is accepted, its destination learned, its first bytes looked at
//! (`worker/door.rs`). If it is HTTP/2, each RPC on it begins at `request`: it is matched to a service, an endpoint is
//! picked, reached, and from then on the two streams are carried by their exchange, until both have ended and the call
//! is recorded.

use std::net::SocketAddr;
use std::time::Instant;

use rand::Rng;

use crate::accept::PodAddresses;
use crate::balance::{EndpointKey, NoEndpoint};
use crate::call::{Call, CallKey, Choice};
use crate::connect::{PoolKey, Via};
use crate::exchange::End;
use crate::failure::Failure;
use crate::grpc::timeout;
use crate::http2::hpack::Name;
use crate::route::{ByTag, Lack, NO_NAME, Named, Service, ServiceKey, Services, Turn};
use crate::worker::Worker;

/// An RPC began on a connection of the application's. Its header list stands in the wires' shared fields.
pub(crate) fn request(worker: &mut Worker, down: End, ended: bool) {
    let Some(key) = worker.begin_call(down, false, ended) else {
        return;
    };
    if let Err(failure) = begin(worker, key) {
        worker.fail(key, failure);
    }
}

#[inline(always)]
fn begin(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    allow_deadline(worker, key)?;
    find(worker, key)
}

/// Match: which service is meant. The call waits if that cannot be said yet.
#[inline(always)]
fn find(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let Some(call) = worker.calls.get(key) else {
        return Ok(());
    };
    if call.checks {
        return go(worker, key);
    }
    let (meant, now) = (call.meant, worker.now);
    let service = match named(worker, key) {
        Some(named) => {
            let Some(service) = worker.services.get_mut(named) else {
                return Ok(());
            };
            service.used = now;
            match service.owns(meant, now) {
                Some(true) => named,
                Some(false) => worker.of_address(meant),
                None => match waits(service, key) {
                    Ok(true) => return Ok(()),
                    Ok(false) => worker.of_address(meant),
                    Err(failure) => return Err(in_full(&worker.services, named, failure)),
                },
            }
        }
        None => worker.of_address(meant),
    };
    if let Some(call) = worker.calls.get_mut(key) {
        call.service = service;
    }
    go(worker, key)
}

/// More is known of what the call waits for, or the time for that is over: the call goes on.
#[inline(never)]
pub(crate) fn resolved(worker: &mut Worker, key: CallKey) {
    if let Err(failure) = find(worker, key) {
        worker.fail(key, failure);
    }
}

/// The call has to look for an endpoint (once more).
#[inline(never)]
pub(crate) fn again(worker: &mut Worker, key: CallKey) {
    if let Err(failure) = go(worker, key) {
        worker.fail(key, failure);
    }
}

/// Pick an endpoint, take a place there, reach it, carry the call there.
#[inline(always)]
fn go(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let now = worker.now;
    let call = worker.calls.get_mut(key).ok_or_else(gone)?;
    let service = worker.services.get_mut(call.service).ok_or_else(gone)?;
    let endpoint = match pick(call, service, key, now, &mut worker.rng) {
        Ok(Some(endpoint)) => endpoint,
        Ok(None) => return Ok(()),
        Err(failure) => return Err(in_full(&worker.services, call.service, failure)),
    };
    // From here on the call is load there. A check is none.
    let begun = service.balancer.begin(endpoint, !call.checks).ok_or_else(gone)?;
    let (addr, marked) = (begun.addr, PoolKey::from_bits(begun.mark));
    let (pool, is_own) = match worker.pools.get(marked) {
        Some(known) => (marked, matches!(known.via, Via::Own)),
        None => {
            let via = via(&worker.own, service, addr, now);
            let is_own = matches!(via, Via::Own);
            let pool = worker.pools.of(addr, via);
            service.balancer.set_mark(endpoint, pool.to_bits());
            (pool, is_own)
        }
    };
    if is_own {
        // What arrives there is believed: nobody stands at the door between the application and itself.
        call.exchange
            .remove_from_request(Name::ForwardedClientCert, &mut worker.wires.shared);
    }
    call.choice = Some(Choice {
        place: begun.call,
        addr,
        pool,
        at: worker.tick,
    });
    if call.aside.is_some() {
        return reach_on_record(worker, key, pool, addr);
    }
    worker.reach(key, pool, addr)
}

/// Reaches the endpoint for a call of which a span may tell.
#[inline(never)]
fn reach_on_record(worker: &mut Worker, key: CallKey, pool: PoolKey, addr: SocketAddr) -> Result<(), Failure> {
    worker.note_endpoint(key);
    worker.reach(key, pool, addr)?;
    worker.note_server(key);
    Ok(())
}

/// Pick: the better of two endpoints, among those that this call has not tried. Nothing if the call has to wait until it is
/// known who is there.
#[inline(always)]
fn pick(
    call: &Call,
    service: &mut Service,
    key: CallKey,
    now: Instant,
    rng: &mut impl Rng,
) -> Result<Option<EndpointKey>, Failure> {
    let picked = match call.checks {
        // It asks one endpoint, whatever is held of it.
        true => service.balancer.at(call.meant).ok_or(NoEndpoint::NoneKnown),
        false => service.balancer.pick(now, rng, call.tried()),
    };
    match picked {
        Ok(endpoint) => Ok(Some(endpoint)),
        Err(_) if waits(service, key)? => Ok(None),
        Err(why) => Err(no_endpoint(service, why, call)),
    }
}

/// In which way an endpoint is reached that no call has reached yet.
fn via(own: &PodAddresses, service: &Service, addr: SocketAddr, now: Instant) -> Via {
    match service.identity(addr) {
        // The kernel does not turn what the pod sends to itself: there is nobody to speak TLS with.
        _ if own.contains(addr.ip(), now) => Via::Own,
        identity => Via::of(identity.cloned()),
    }
}

/// The call is over, or what it needs: its caller hears nothing of this any more.
fn gone() -> Failure {
    Failure::Stopping
}

/// Whether the call has to wait for more to be known of the service; else it goes on with what is.
fn waits(service: &mut Service, key: CallKey) -> Result<bool, Failure> {
    match service.lookup.join(key.to_bits()) {
        Turn::Waits => Ok(true),
        Turn::Late(Lack::Word | Lack::Owners) => Err(Failure::ControlSilent {
            service: service.name.to_string(),
        }),
        Turn::Late(Lack::Addresses) | Turn::Done => Ok(false),
    }
}

/// The same failure, or a truer one: control may have spoken, and said what cannot be used.
#[cold]
fn in_full(services: &Services, key: ServiceKey, failure: Failure) -> Failure {
    let unusable = || services.unusable(services.get(key)?);
    match failure {
        Failure::ControlSilent { service } => match unusable() {
            Some(why) => Failure::ControlUnusable { service, why },
            None => Failure::ControlSilent { service },
        },
        other => other,
    }
}

fn no_endpoint(service: &Service, why: NoEndpoint, call: &Call) -> Failure {
    // A call that finds all of them unreachable has met none: what others met there is the reason.
    let others = service
        .unreached
        .as_ref()
        .filter(|_| matches!(why, NoEndpoint::AllInBackoff { .. }));
    let why = match call
        .aside
        .as_ref()
        .and_then(|aside| aside.last_error.as_ref())
        .or(others)
    {
        Some(last) => format!("{why}; last: {last}"),
        None => match (service.unready(), why) {
            (1, NoEndpoint::NoneKnown) => "control says that its one known endpoint is not ready".to_owned(),
            (unready @ 2.., NoEndpoint::NoneKnown) => {
                format!("control says that {unready} endpoints are not ready, and no other is known")
            }
            (0, NoEndpoint::NoneKnown) => match service.without_workloads() {
                Some(name) => format!("Service {name} selects no Workload: look at its selector and its ports"),
                None => why.to_string(),
            },
            (_, why) => why.to_string(),
        },
    };
    Failure::NoEndpoint {
        service: service.name.to_string(),
        why,
    }
}

/// The service of the name in `:authority`: known by the number on its interned field, else looked up.
#[inline(always)]
fn named(worker: &mut Worker, key: CallKey) -> Option<ServiceKey> {
    let call = worker.calls.get(key)?;
    let port = call.meant.port();
    let interner = &worker.wires.shared.interner;
    let head = call.exchange.head.as_ref()?;
    let at = head.place(Name::Authority)?;
    let id = head.id(at);
    match id.map_or(ByTag::Unknown, |id| worker.services.by_tag(interner.tag(id), port)) {
        ByTag::Service(known) => return Some(known),
        ByTag::NoName => return None,
        ByTag::Unknown => {}
    }
    let service = match worker.services.named(head.value(at, interner)?, port, worker.now) {
        Named::Known(service) => service,
        Named::New(service) => {
            worker.inquire(service);
            service
        }
        Named::None => {
            if let Some(id) = id {
                worker.wires.shared.interner.set_tag(id, NO_NAME);
            }
            return None;
        }
        Named::TooMany => return None,
    };
    if let Some(id) = id {
        worker.wires.shared.interner.set_tag(id, worker.services.tag(service));
    }
    Some(service)
}

/// The caller's deadline is kept here, also while the call waits for names and connections.
fn allow_deadline(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let Some(call) = worker.calls.get_mut(key) else {
        return Ok(());
    };
    let interner = &worker.wires.shared.interner;
    let head = call.exchange.head.as_ref();
    let Some(text) = head.and_then(|head| head.value_of(Name::GrpcTimeout, interner)) else {
        return Ok(());
    };
    match timeout::parse(text) {
        Some(allowed) => worker.set_deadline(key, allowed),
        None => {
            worker.counts.invalid_timeouts.inc();
            Ok(())
        }
    }
}
