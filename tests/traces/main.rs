//! Spans arrive in a real Jaeger and are read back, and no state of a collector is felt by whoever records.
//!
//! The exporter runs here as a library, in this process: what is tried is what stands between a worker's finished span
//! and the collector.

mod collector;
mod failing;
mod jaeger;
mod mesh;
mod recorder;
