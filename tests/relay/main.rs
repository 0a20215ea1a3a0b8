//! The relay between independent HTTP/2 ends: the `h2` crate asks and answers, and peers of our own that speak frames.
//! Every byte is checked.

mod again;
mod certificates;
mod chaos;
mod credit;
mod discovery;
mod ends;
mod fields;
mod load;
mod local;
mod room;
mod spans;
mod tunnels;

use support::relay::{bytes, raw, world};
