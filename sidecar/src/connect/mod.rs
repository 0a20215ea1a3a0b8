//! Reaches an endpoint: names, dialling, and pools that grow at the stream limit.
pub mod resolve;
