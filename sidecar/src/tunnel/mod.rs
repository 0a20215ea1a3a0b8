//! Carries bytes that are not HTTP/2: opaque TCP, HTTP/1, foreign TLS.
//!
//! A tunnel is two TCP connections that behave like one ([`carry`]): what one side says, ends or resets, the other gets.
//! An idle tunnel keeps no buffer, and no timer ends it.

mod carry;
mod direction;
mod stream;

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

pub use carry::{carry, reset};
pub use stream::Stream;

use crate::accept::Options;

/// How bytes are carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The socket options of both connections. By default without a user timeout: it would also end a living peer that
    /// does not read for so long, as the client of a database may. A dead host that leaves bytes unacknowledged is
    /// noticed by the kernel's retransmissions (about 15 minutes), a silent one by keepalive (60 s).
    pub options: Options,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            options: Options {
                user_timeout: None,
                ..Options::default()
            },
        }
    }
}

/// Bytes that a tunnel has carried so far, readable while it runs.
#[derive(Debug, Default)]
pub struct Carried {
    up: AtomicU64,
    down: AtomicU64,
}

impl Carried {
    /// From the client to the upstream.
    pub fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    /// From the upstream to the client.
    pub fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }
}

/// What a tunnel was, now that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes written to the upstream.
    pub bytes_up: u64,
    /// Bytes written to the client.
    pub bytes_down: u64,
    /// How it ended.
    pub end: End,
}

/// How a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Both sides had said all, and all was delivered.
    Finished,
    /// One connection broke; the other was reset.
    Broken {
        /// Whose connection it was.
        side: Side,
        /// How it broke.
        kind: ErrorKind,
        /// The word for what was wrong with its TLS, if that is why.
        tls: Option<&'static str>,
    },
    /// It was told to stop; both were reset.
    Cut,
}

/// The two sides of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Who opened the connection.
    Client,
    /// Whom it was opened to.
    Upstream,
}
