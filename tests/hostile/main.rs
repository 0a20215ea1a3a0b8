//! Peers that mean no good: each ends in the scope that the RFC names, and nobody else notices.

mod clients;
mod servers;

use support::relay::{raw, world};
