//! The words of gRPC: status codes, timeouts, and where one message ends and the next begins.

mod code;

pub use code::Code;
