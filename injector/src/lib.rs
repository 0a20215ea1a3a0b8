//! Puts into workloads what the mesh needs there: into pods, a sidecar; into sidecars, an identity, endpoints and rules.
//!
//! Rooms: `cluster` says what there is (one writer, many readers), `control` serves it to sidecars, `cli` is the
//! `portunus` command. `control` and `cli` import `cluster`, never each other.

pub mod cli;
pub mod cluster;
pub mod control;

#[cfg(test)]
mod testing;
