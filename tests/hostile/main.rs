//! Peers that mean no good: each ends in the scope that the RFC names, and nobody else notices.

mod clients;
mod servers;

#[path = "../relay/bytes.rs"]
mod bytes;
#[path = "../relay/raw.rs"]
mod raw;
#[path = "../relay/world.rs"]
mod world;
