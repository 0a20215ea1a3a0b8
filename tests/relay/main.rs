//! The relay between independent HTTP/2 ends: the `h2` crate asks and answers, and peers of our own that speak frames.
//! Every byte is checked.

mod again;
mod bytes;
mod chaos;
mod credit;
mod ends;
mod fields;
mod load;
#[allow(dead_code, reason = "it is shared with the hostile peers' tests")]
mod raw;
#[allow(dead_code, reason = "it is shared with the hostile peers' tests")]
mod world;
