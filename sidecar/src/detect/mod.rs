//! Peeks at the first bytes: HTTP/2, HTTP/1, somebody's TLS, or anything else.
//!
//! What was declared for the port comes first ([`Declared`]). Otherwise the client's first bytes say it ([`classify`]).
//! If the client is silent, the upstream connection is opened and whoever speaks first decides ([`detect`]): a timer
//! alone never does. What was decided, and on what ground, is the result ([`Detected`], [`Guess`]).

mod classify;
mod client_hello;
mod speaks_first;
mod who_speaks;

use std::{io, time::Duration};

use crate::connect::Stream;
use crate::words::words;

pub use portunus_proto::Declared;

pub use classify::{MOST_FIRST_BYTES, PREFACE, ServerOpening, Verdict, classify, server_opening};
pub use client_hello::ClientHello;
pub use speaks_first::SpeaksFirst;
pub use who_speaks::{Speaker, detect};

/// How long to listen before deciding, and how many may be listened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Silence of the client after which the upstream connection is opened, in case the server speaks first.
    /// Default 200 ms.
    pub silence: Duration,
    /// The same where the server is known to speak first, and a ClientHello may come that is not for it; never longer than
    /// `silence`. Whoever brings one brings it as soon as the connection stands. Default 50 ms.
    pub hello: Duration,
    /// How long first bytes that could still become several things may stay incomplete. Default 10 s.
    pub dribble: Duration,
    /// Connections of a worker that may wait undetected; one more resets the one that has waited longest.
    /// Default 4,096.
    pub most_waiting: usize,
    /// Destinations that a worker remembers as speaking first. Default 1,024.
    pub most_remembered: usize,
    /// How long such a destination is remembered after it last did. Default 1 h.
    pub remembered_for: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            silence: Duration::from_millis(200),
            hello: Duration::from_millis(50),
            dribble: Duration::from_secs(10),
            most_waiting: 4_096,
            most_remembered: 1_024,
            remembered_for: Duration::from_secs(3_600),
        }
    }
}

/// What is expected of a connection on which nobody has spoken yet: so long its client may be silent until its server is
/// dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: [`Settings::silence`].
    Nothing,
    /// Its server speaks first: not at all.
    ServerFirst,
    /// Its server speaks first, to those who bring no ClientHello that is meant for us: [`Settings::hello`].
    HelloOrServerFirst,
}

impl Settings {
    fn silence_of(&self, expected: Expected) -> Duration {
        match expected {
            Expected::Nothing => self.silence,
            Expected::ServerFirst => Duration::ZERO,
            Expected::HelloOrServerFirst => self.hello.min(self.silence),
        }
    }
}

/// What a connection carries, and what was taken from it and opened for it to find out.
#[derive(Debug)]
pub struct Detected {
    /// What it carries.
    pub protocol: Protocol,
    /// On what ground.
    pub guess: Guess,
    /// What the client has said so far, to be carried first.
    pub client_bytes: Vec<u8>,
    /// The upstream connection, if one was opened to listen to. An HTTP/2 connection may use it or drop it.
    pub upstream: Option<Opened>,
}

/// An upstream connection and what it has said so far.
#[derive(Debug)]
pub struct Opened {
    /// The connection.
    pub socket: Stream,
    /// What the server has said so far, to be carried first.
    pub server_bytes: Vec<u8>,
}

/// What a connection carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 with prior knowledge; its streams are relayed one by one.
    Http2,
    /// HTTP/1, carried as bytes.
    Http1,
    /// TLS between two others, carried as bytes.
    Tls(ClientHello),
    /// Anything else, carried as bytes.
    Opaque,
}

words! {
    /// On what ground a protocol was decided.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Guess, name {
        /// It was declared; nothing was read.
        Declared = "declared",
        /// The client's first bytes say it, before an upstream connection was open.
        ClientFirst = "client_first",
        /// The client's first bytes say it; the server, listened to as well, was silent.
        ClientAfterSilence = "client_after_silence",
        /// The client's first bytes say it, after the server had opened with SETTINGS.
        ClientAfterSettings = "client_after_settings",
        /// The server spoke first, and not HTTP/2.
        ServerFirst = "server_first",
        /// The server ended its side before the client had said enough.
        ServerClosed = "server_closed",
        /// The client ended its side before it had said enough.
        ClientClosed = "client_closed",
        /// What was said first stayed incomplete, but can be carried as bytes whatever it is.
        Incomplete = "incomplete",
    }
}

/// Why a connection ends before it was detected. `E` is how dialling fails.
#[derive(Debug, thiserror::Error)]
pub enum Error<E: std::error::Error + 'static> {
    /// The client is gone.
    #[error("the client went away before it had said what it speaks: {0}")]
    Client(io::Error),
    /// The upstream connection could not be opened.
    #[error("the client was silent, and the server that might speak first cannot be reached: {0}")]
    Dial(#[source] E),
    /// The server reset the connection before anybody spoke.
    #[error("the server reset the connection before the client had said what it speaks: {0}")]
    Upstream(io::Error),
    /// Slower than any HTTP/2 client.
    #[error(
        "the client began an HTTP/2 preface ({bytes} of 24 bytes) and did not finish it within {within:?}; if it speaks something else, declare the port's protocol as tcp"
    )]
    Dribble {
        /// How much of the preface came.
        bytes: usize,
        /// How long it was waited for.
        within: Duration,
    },
    /// Slower than any TLS client.
    #[error("the client began a TLS ClientHello ({bytes} bytes of it) and did not finish it within {within:?}")]
    HalfHello {
        /// How much of it came.
        bytes: usize,
        /// How long it was waited for.
        within: Duration,
    },
    /// Too many wait; this one has waited longest.
    #[error(
        "too many connections wait for somebody to speak, and this one has waited longest; declare the port's protocol, or raise the limit"
    )]
    Crowded,
}
