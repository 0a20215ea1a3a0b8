//! The mesh's control plane, real and in pods: who is certified, what is told and when, and that its absence harms nobody.

mod away;
mod certificates;
mod clock;
mod crowd;
mod manifests;
mod raw;
mod secrets;
mod shop;
mod tokens;
mod two;

#[path = "../../injector/src/cluster/file/mistakes.rs"]
mod mistakes;
