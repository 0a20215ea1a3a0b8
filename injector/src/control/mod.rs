//! Control: tells sidecars who they are, where services live and what is allowed.

mod admin;
pub mod discovery;
pub mod identity;
pub mod log;
pub mod numbers;
mod run;
mod seldom;
pub mod server;
mod tally;
mod times;

pub use admin::Admin;
pub use run::{Error, Settings, run};
