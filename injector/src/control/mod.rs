//! Control: tells sidecars who they are, where services live and what is allowed.

pub mod discovery;
pub mod identity;
