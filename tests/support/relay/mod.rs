//! A worker of ours between ends that are somebody else's: what the relay's tests and the hostile peers have in common.

pub mod bytes;
pub mod raw;
pub mod world;
