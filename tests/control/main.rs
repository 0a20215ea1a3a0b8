//! The mesh's control plane, real and in pods: who is certified, what is told and when, and that its absence harms nobody.

// What takes longest has a name that comes first: it begins first.
mod all_at_once;
mod away;
mod certificates;
mod clock;
mod ends;
mod floods;
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
