//! What real sidecars and control say of what they do, read where it arrives: lines, spans and metrics, and in none of
//! them a secret.

mod access;
mod application;
mod bad_collectors;
mod collector;
mod events;
mod frames;
mod metrics;
mod secrets;

#[allow(dead_code, reason = "the tests of control ask for more")]
#[path = "../control/raw.rs"]
mod raw;
