//! Reaches an endpoint: names, dialling, and pools that grow at the stream limit; and the wires to those who ask.

mod dial;
mod dialled;
pub mod local;
mod pings;
mod pipe;
pub mod pool;
mod resets;
pub mod resolve;
mod stream;
mod waiting;
pub mod wire;

pub use dial::{Dialler, Error, Own, Settings};
pub use dialled::{Dialled, Loop, Mine};
pub use pipe::Pipe;
pub use pool::{PoolKey, Pools, Reach, Unreached, Via};
pub use resets::{Due, Resets};
pub use stream::{NO_WORD, Stream};
pub use wire::{LateReset, Lifetime, Ready, Server, Side, Transport, Wire, WireKey, Wires};
