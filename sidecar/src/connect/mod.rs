//! Reaches an endpoint: names, dialling, and pools that grow at the stream limit; and the wires to those who ask.

mod dial;
pub mod local;
mod pipe;
pub mod pool;
pub mod resolve;
pub mod wire;

pub use dial::{Error, Settings, dial};
pub use pipe::Pipe;
pub use pool::{PoolKey, Pools, Reach};
pub use wire::{LateReset, Ready, Side, Transport, Wire, WireKey, Wires};
