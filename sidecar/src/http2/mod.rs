//! The engine: HTTP/2 (RFC 9113) and HPACK (RFC 7541), without sockets, tasks or a clock.
//!
//! Bytes in, events out; commands in, bytes out. Equal inputs give equal bytes, so everything here is tested frame by
//! frame. [`Connection`] is the door: `receive.rs` reads what came, `send.rs` says what we say.

mod abuse;
mod budget;
mod closed;
mod connection;
mod frame;
mod held;
pub mod hpack;
mod ids;
mod message;
mod path;
mod receive;
mod send;
mod settings;
mod stream;

#[cfg(test)]
mod tests;

pub use abuse::Abuse;
pub use budget::Budget;
pub use connection::{Connection, Event, Fatal, Head, Role, Shared, StreamFault};
pub(crate) use frame::MAX_WINDOW;
pub use frame::{BULK_BYTES, PREFACE, Reason};
pub use held::{Held, Pool};
pub use message::Wrong;
pub(crate) use path::worth_giving;
pub use settings::Settings;
pub use stream::{Stream, StreamKey};
