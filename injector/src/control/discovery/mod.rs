//! What one sidecar is told of the mesh: pure answers from a state, and the stream that carries them.

mod follow;
mod policy;
mod world;

#[cfg(test)]
mod tests;

pub use follow::{Follow, MOST_SUBSCRIPTIONS, Mistake, Next};
pub use world::{Realm, World};
