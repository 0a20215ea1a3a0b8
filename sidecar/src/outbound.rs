//! The story from this pod's application to the network.
//!
//! A connection that the application opened is accepted, its destination learned, its first bytes looked at
//! (`worker/door.rs`). If it is HTTP/2, each RPC on it begins at `request`: it is matched to a service, an endpoint is
//! picked, reached, and from then on the two streams are carried by their exchange, until both have ended and the call
//! is recorded.

use std::net::SocketAddr;

use crate::balance::NoEndpoint;
use crate::call::{Call, CallKey, Choice};
use crate::connect::PoolKey;
use crate::exchange::End;
use crate::failure::Failure;
use crate::grpc::timeout;
use crate::http2::hpack::Name;
use crate::route::{ByTag, NO_NAME, Named, ServiceKey};
use crate::worker::Worker;

/// An RPC began on a connection of the application's. Its header list stands in the wires' shared fields.
pub(crate) fn request(worker: &mut Worker, down: End, ended: bool) {
    let Some(key) = worker.begin_call(down, false, ended) else {
        return;
    };
    if let Err(failure) = allow_deadline(worker, key).and_then(|()| find(worker, key)) {
        worker.fail(key, failure);
    }
}

/// Match: which service is meant. The call waits if the name's addresses are not known yet.
#[inline(always)]
fn find(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let Some(call) = worker.calls.get(key) else {
        return Ok(());
    };
    let meant = call.meant;
    let service = match named(worker, key) {
        Some(named) => {
            let now = worker.now;
            let Some(service) = worker.services.get_mut(named) else {
                return Ok(());
            };
            service.used = now;
            match service.owns(meant, now) {
                Some(true) => named,
                Some(false) => worker.services.of_address(meant, now),
                None => {
                    service.waiting.push(key.to_bits());
                    return Ok(());
                }
            }
        }
        None => worker.services.of_address(meant, worker.now),
    };
    if let Some(call) = worker.calls.get_mut(key) {
        call.service = service;
    }
    go(worker, key)
}

/// The addresses of the name came, or their time is over: the call goes on.
pub(crate) fn resolved(worker: &mut Worker, key: CallKey, named: ServiceKey) {
    let Some(call) = worker.calls.get(key) else { return };
    let (meant, now) = (call.meant, worker.now);
    let owns = worker.services.get(named).and_then(|service| service.owns(meant, now));
    let service = if owns == Some(true) {
        named
    } else {
        worker.services.of_address(meant, worker.now)
    };
    if let Some(call) = worker.calls.get_mut(key) {
        call.service = service;
    }
    again(worker, key);
}

/// The call has to look for an endpoint (once more).
pub(crate) fn again(worker: &mut Worker, key: CallKey) {
    if let Err(failure) = go(worker, key) {
        worker.fail(key, failure);
    }
}

/// Pick an endpoint, reach it, carry the call there.
#[inline(always)]
fn go(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let (pool, addr) = pick(worker, key)?;
    worker.reach(key, pool, addr)
}

/// Pick: the better of two endpoints, among those that this call has not tried.
#[inline(always)]
fn pick(worker: &mut Worker, key: CallKey) -> Result<(PoolKey, SocketAddr), Failure> {
    let now = worker.now;
    let no_call = || Failure::Stopping;
    let call = worker.calls.get_mut(key).ok_or_else(no_call)?;
    let service = worker.services.get_mut(call.service).ok_or_else(no_call)?;
    let endpoint = match service.balancer.pick(now, &mut worker.rng, &call.tried) {
        Ok(endpoint) => endpoint,
        Err(why) => return Err(no_endpoint(service.name.clone(), why, call)),
    };
    let addr = service.balancer.addr(endpoint).ok_or_else(no_call)?;
    let place = service.balancer.started(endpoint);
    let marked = PoolKey::from_bits(service.balancer.mark(endpoint));
    let pool = match worker.pools.get(marked) {
        Some(_) => marked,
        None => {
            let pool = worker.pools.of(false, addr);
            service.balancer.set_mark(endpoint, pool.to_bits());
            pool
        }
    };
    call.choice = Some(Choice {
        place: Some(place),
        addr,
        pool,
        at: worker.tick,
    });
    Ok((pool, addr))
}

fn no_endpoint(service: String, why: NoEndpoint, call: &Call) -> Failure {
    let why = match &call.last_error {
        Some(last) => format!("{why}; last: {last}"),
        None => why.to_string(),
    };
    Failure::NoEndpoint { service, why }
}

/// The service of the name in `:authority`: known by the number on its interned field, else looked up.
fn named(worker: &mut Worker, key: CallKey) -> Option<ServiceKey> {
    let call = worker.calls.get(key)?;
    let port = call.meant.port();
    let interner = &worker.wires.shared.interner;
    let at = call.exchange.head.place(Name::Authority)?;
    let id = call.exchange.head.id(at);
    match id.map_or(ByTag::Unknown, |id| worker.services.by_tag(interner.tag(id), port)) {
        ByTag::Service(known) => return Some(known),
        ByTag::NoName => return None,
        ByTag::Unknown => {}
    }
    let service = match worker
        .services
        .named(call.exchange.head.value(at, interner)?, port, worker.now)
    {
        Named::Known(service) => service,
        Named::New(service, host) => {
            worker.resolve(service, host, port);
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
    let Some(text) = call.exchange.head.value_of(Name::GrpcTimeout, interner) else {
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
