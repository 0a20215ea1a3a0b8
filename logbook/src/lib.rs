//! How Portunus's programs tell their operators what happens: lines that nobody waits for, in which strangers' words move
//! no terminal and secrets are left out, and of which no stranger causes too many.

mod clean;
mod lines;
mod masked;
mod noise;
mod origin;
mod standard_error;

pub use clean::{Escaped, escape, is_control};
pub use lines::Lines;
pub use masked::masked;
pub use noise::{Line, Noise};
pub use origin::network;
pub use standard_error::{dropped, flush, open, put};
