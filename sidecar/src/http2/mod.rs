//! The engine: HTTP/2 (RFC 9113) and HPACK (RFC 7541), without sockets, tasks or a clock.

pub mod hpack;
mod settings;

pub use settings::Settings;
