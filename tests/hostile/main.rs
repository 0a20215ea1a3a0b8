//! Peers that mean no good: each ends in the scope that the RFC names, and nobody else notices.

mod clients;
mod memory;
mod servers;

use support::relay::{bytes, raw, world};
