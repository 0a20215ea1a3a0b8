//! The engine's promises: by section of RFC 9113, against a model, and against another implementation.
//!
//! `peer.rs` is the vocabulary: a peer that writes raw frames, and sees what the engine makes of them.

mod abuse;
mod against_h2;
mod credit;
mod frames;
mod messages;
mod model;
mod peer;
mod relay;
mod sending;
mod settings;
mod states;
mod streams;
mod windows;
