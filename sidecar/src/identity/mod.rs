//! Who we are to be: a key that never leaves this process, the request to certify it, and when to ask again.

mod key;
mod renewal;

pub use key::{Failed, Key};
pub use renewal::{Next, Renewal};
