//! Reaches an endpoint: names, dialling, and pools that grow at the stream limit.

mod dial;
pub mod pool;
pub mod resolve;
pub mod wire;

pub use dial::{Error, Settings, dial};
pub use pool::{PoolKey, Pools, Reach};
pub use wire::{LateReset, Ready, Side, Wire, WireKey, Wires};
