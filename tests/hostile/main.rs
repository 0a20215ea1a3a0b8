//! Peers that mean no good: each ends in the scope that the RFC names, and nobody else notices.

mod clients;
mod servers;

#[allow(dead_code, reason = "it is shared with the relay's tests")]
#[path = "../relay/bytes.rs"]
mod bytes;
#[allow(dead_code, reason = "it is shared with the relay's tests")]
#[path = "../relay/raw.rs"]
mod raw;
#[allow(dead_code, reason = "it is shared with the relay's tests")]
#[path = "../relay/world.rs"]
mod world;
