//! What real sidecars and control say of what they do, read where it arrives: no secret is ever in it.

mod application;
mod collector;
mod frames;
mod secrets;

#[allow(dead_code, reason = "the tests of control ask for more")]
#[path = "../control/raw.rs"]
mod raw;
