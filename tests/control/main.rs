//! The mesh's control plane, real and in pods: who is certified, what is told and when, and that its absence harms nobody.

mod away;
mod certificates;
mod clock;
mod crowd;
mod ends;
mod given;
mod late;
mod manifests;
mod outside;
mod raw;
mod ready;
mod secrets;
mod shop;
mod state;
mod stream;
mod tokens;
mod two;

#[path = "../../injector/src/cluster/file/mistakes.rs"]
mod mistakes;
