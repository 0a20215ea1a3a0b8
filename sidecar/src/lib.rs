//! The map of the sidecar: the proxy beside each application.
//!
//! An RPC walks through [`accept`], [`detect`], [`http2`], [`exchange`], [`route`], [`balance`] and [`connect`]; what is no
//! HTTP/2 through [`tunnel`]. [`outbound`] and [`inbound`] tell its life, one call a room; [`worker`] owns the connections it
//! travels on; `docs/architecture.md` says who may import whom, and `levels.rs` holds the source to it.

// The rooms.
pub mod accept;
pub mod balance;
pub mod connect;
pub mod detect;
pub mod edge;
pub mod exchange;
pub mod health;
pub mod http2;
pub mod identity;
pub mod policy;
pub mod route;
pub mod tls;
pub mod tunnel;

// Words and facts, which every room may use.
pub mod grpc;
pub mod slots;
pub mod telemetry;
pub mod waiting;
mod words;

// What control says of the mesh, for the stories.
pub mod control;

// The stories, and what turns them.
mod call;
pub mod failure;
pub mod inbound;
#[cfg(test)]
mod levels;
pub mod outbound;
pub mod propagate;
mod timers;
pub mod worker;

// Start and stop, what was said and what it means, and the operator's door.
pub mod admin;
pub mod app;
pub mod config;
pub mod redirect;
