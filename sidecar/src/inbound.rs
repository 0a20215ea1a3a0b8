//! The story from the network to this pod's application.
//!
//! A connection from the network is accepted, its destination must be an address of this pod, its first bytes are looked
//! at (`worker/door.rs`), the mesh's TLS ended. If it is HTTP/2, each RPC on it begins at `request`: what the peer must not
//! say is removed, it is allowed or refused, the application is reached at the address that the caller meant, and the two
//! streams are carried by their exchange.

use crate::call::{CallKey, Choice};
use crate::exchange::End;
use crate::failure::Failure;
use crate::http2::Shared;
use crate::http2::hpack::Name;
use crate::policy::{self, Caller, Permit};
use crate::worker::Worker;

/// An RPC began on a connection from the network. Its header list stands in the wires' shared fields.
pub(crate) fn request(worker: &mut Worker, down: End, ended: bool) {
    let Some(key) = worker.begin_call(down, true, ended) else {
        return;
    };
    tell_the_application(worker, key);
    again(worker, key);
}

/// The call has to reach the application (once more).
pub(crate) fn again(worker: &mut Worker, key: CallKey) {
    if let Err(failure) = go(worker, key) {
        worker.fail(key, failure);
    }
}

fn go(worker: &mut Worker, key: CallKey) -> Result<(), Failure> {
    let permit = allow(worker, key)?;
    forward(worker, key, permit)
}

/// Allow: whether the port takes calls in the way in which this one came.
fn allow(worker: &Worker, key: CallKey) -> Result<Permit, Failure> {
    let call = worker.calls.get(key).ok_or(Failure::Stopping)?;
    let wire = worker.wires.slots.get(call.exchange.down.wire);
    let caller = match wire.and_then(|wire| wire.proven()) {
        Some(peer) => Caller::Proven(peer),
        None if wire.is_some_and(|wire| wire.is_local()) => Caller::Ourselves,
        None => Caller::Plain,
    };
    Ok(policy::authorize(worker.modes(), call.meant.port(), caller)?)
}

/// Reach the application, h2c on its own address, and carry the call there.
fn forward(worker: &mut Worker, key: CallKey, _permit: Permit) -> Result<(), Failure> {
    let Some(call) = worker.calls.get_mut(key) else {
        return Ok(());
    };
    let addr = call.meant;
    let pool = worker.pools.own(addr);
    call.choice = Some(Choice {
        place: None,
        addr,
        pool,
        at: worker.tick,
    });
    worker.reach(key, pool, addr)
}

/// What a peer must not say, it must not say behind its last message either.
pub(crate) fn clean_trailers(shared: &mut Shared) {
    if shared.fields().names().has(Name::ForwardedClientCert) {
        shared.remove_fields(Name::ForwardedClientCert);
    }
}

/// Header work: an identity that the peer claims in words is removed, whatever its spelling, and the one that it has proven
/// is told; so is how the call came.
fn tell_the_application(worker: &mut Worker, key: CallKey) {
    let Some(call) = worker.calls.get_mut(key) else { return };
    let wire = worker.wires.slots.get(call.exchange.down.wire);
    let client_cert = wire.and_then(|wire| wire.client_cert);
    let interner = &mut worker.wires.shared.interner;
    let Some(head) = &mut call.exchange.head else { return };
    head.remove_all(Name::ForwardedClientCert, interner);
    if let Some(id) = client_cert {
        head.push_id(id, interner);
    }
    if head.find(Name::ForwardedProto, interner).is_none() {
        head.push_id(worker.said.proto(client_cert.is_some()), interner);
    }
}
