//! A session: a finished handshake, and what passes after it. Without a socket: bytes in, bytes out.

use std::io;
use std::time::SystemTime;

use portunus_proto::{ALPN_H2, ALPN_TCP};

use super::engine::{Engine, Failed, Step};
use super::error::Error;
use super::output::Output;
use super::peer::{Peer, Shown};

/// The least that a buffer for [`Session::read`] may have: the longest record (RFC 8446, 5.2), with its header.
pub const LEAST_BUFFER: usize = 5 + 16_384 + 256;

/// How many bytes so many bytes become when they are sealed together: each record has a header, its kind and a tag
/// (RFC 8446, 5.2).
pub const fn sealed_len(plain: usize) -> usize {
    plain + plain.div_ceil(16_384) * (5 + 1 + 16)
}

/// What was agreed to speak inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `portunus/h2`: HTTP/2.
    H2,
    /// `portunus/tcp`: bytes.
    Tcp,
}

impl Alpn {
    /// As it stands in a ClientHello.
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Alpn::H2 => ALPN_H2,
            Alpn::Tcp => ALPN_TCP,
        }
    }

    pub(super) fn of(protocol: Option<&[u8]>) -> Option<Alpn> {
        [Alpn::H2, Alpn::Tcp]
            .into_iter()
            .find(|alpn| protocol == Some(alpn.protocol()))
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// So many bytes of plaintext stand at the front of the buffer.
    pub plain: usize,
    /// There may be more at once: read again in this turn, or soon.
    pub more: bool,
    /// The peer has said that it sends nothing more, after these bytes. We may go on sending.
    pub ended: bool,
}

/// One TLS connection after its handshake.
///
/// Between calls it keeps a partial record, what is not sent yet, and nothing else: an idle session has no buffers.
pub struct Session {
    peer: Peer,
    shown: Shown,
    alpn: Alpn,
    pub(super) engine: Engine,
    output: Output,
    /// Plaintext that came with the handshake.
    pub(super) early: Vec<u8>,
    /// What makes no whole record, or no whole message, yet.
    pub(super) partial: Vec<u8>,
    reading: Reading,
    has_closed: bool,
}

/// What the peer still has to say.
enum Reading {
    Open,
    /// An error stands behind bytes that were delivered first.
    Failing(Error),
    Ended,
    Failed,
}

impl Session {
    /// A session that begins. `early` is plaintext that came with the handshake, after which the peer may have `ended`;
    /// `partial` is what the engine has not used up.
    pub(super) fn new(
        engine: Engine,
        peer: Peer,
        shown: Shown,
        alpn: Alpn,
        mut early: Vec<u8>,
        ended: bool,
        mut partial: Vec<u8>,
    ) -> Session {
        // They had room for a whole handshake.
        early.shrink_to_fit();
        partial.shrink_to_fit();
        Session {
            peer,
            shown,
            alpn,
            engine,
            output: Output::default(),
            early,
            partial,
            reading: if ended { Reading::Ended } else { Reading::Open },
            has_closed: false,
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What we have shown of ourselves.
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// When the first of the two certificates ends that it was made with.
    pub fn certified_until(&self) -> SystemTime {
        self.peer.not_after().min(self.shown.not_after())
    }

    /// What is spoken inside.
    pub fn alpn(&self) -> Alpn {
        self.alpn
    }

    /// Reads from the socket, at most once, and opens what came.
    ///
    /// `from` fills what it is given with bytes of the socket and says how many, 0 for its end. `WouldBlock` and
    /// `Interrupted` from it are no errors here: nothing was read. It is not called where plaintext is at hand
    /// already. `buffer` has at least [`LEAST_BUFFER`] bytes; the plaintext stands at its front afterwards, what is
    /// behind that is rubbish.
    ///
    /// # Errors
    /// When the peer broke the protocol, ended the connection by an alert or without a word, or the socket failed.
    /// Bytes that came before that have been delivered. After an error the [`output`](Session::output) may have an
    /// alert for the peer.
    pub fn read(
        &mut self,
        buffer: &mut [u8],
        from: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Opened, Error> {
        debug_assert!(buffer.len() >= LEAST_BUFFER, "no record may fit into it");
        if !self.early.is_empty() {
            return Ok(self.take_early(buffer));
        }
        match std::mem::replace(&mut self.reading, Reading::Failed) {
            Reading::Open => self.reading = Reading::Open,
            Reading::Failing(error) => return Err(error),
            Reading::Failed => return Err(Error::Truncated),
            Reading::Ended => {
                self.reading = Reading::Ended;
                return Ok(Opened {
                    ended: true,
                    ..Opened::default()
                });
            }
        }
        let kept = self.partial.len();
        if kept >= buffer.len() {
            self.reading = Reading::Failed;
            return Err(Error::TooLong);
        }
        buffer[..kept].copy_from_slice(&self.partial);
        match from(&mut buffer[kept..]) {
            Ok(0) => {
                self.reading = Reading::Failed;
                Err(Error::Truncated)
            }
            Ok(n) => {
                let filled = (kept + n).min(buffer.len());
                self.open(buffer, filled, filled == buffer.len())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Opened::default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Opened {
                more: true,
                ..Opened::default()
            }),
            Err(error) => {
                self.reading = Reading::Failed;
                Err(error.into())
            }
        }
    }

    /// Seals bytes into the output, in as few records as they fit into.
    ///
    /// The output grows by what is sealed: seal no more while much of it waits.
    ///
    /// # Errors
    /// When the session has failed or was closed.
    pub fn seal(&mut self, plaintext: &[u8]) -> Result<(), Error> {
        if self.has_closed || self.has_failed() {
            return Err(Error::Protocol("nothing can be sent after the end".to_owned()));
        }
        if plaintext.is_empty() {
            return Ok(());
        }
        let sealed = self.engine.seal(plaintext, &mut self.partial, &mut self.output);
        sealed.map_err(Error::from)
    }

    /// Says that we send nothing more. The peer may go on.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.has_closed, true) && !self.has_failed() {
            // Fails only where the keys are used up: then the end of the connection has to say it.
            let _ = self.engine.close(&mut self.partial, &mut self.output);
        }
    }

    /// The sealed bytes that the socket has to take next.
    pub fn output(&self) -> &[u8] {
        self.output.pending()
    }

    /// The memory that is kept for them.
    pub fn kept(&self) -> usize {
        self.output.kept()
    }

    /// The socket took so many of them.
    pub fn sent(&mut self, n: usize) {
        self.output.sent(n);
    }

    fn has_failed(&self) -> bool {
        matches!(self.reading, Reading::Failing(_) | Reading::Failed)
    }

    fn take_early(&mut self, buffer: &mut [u8]) -> Opened {
        let plain = self.early.len().min(buffer.len());
        buffer[..plain].copy_from_slice(&self.early[..plain]);
        self.early.drain(..plain);
        if self.early.is_empty() {
            self.early = Vec::new();
        }
        Opened {
            plain,
            more: true,
            ended: false,
        }
    }

    /// Opens the records at the front of the buffer, and keeps what is no whole one.
    fn open(&mut self, buffer: &mut [u8], filled: usize, more: bool) -> Result<Opened, Error> {
        let mut opened = Opened {
            more,
            ..Opened::default()
        };
        let mut used = 0;
        loop {
            let (discard, step) = self.engine.step(&mut buffer[used..filled], &mut self.output);
            used += discard;
            match step {
                Ok(Step::Plain) => {
                    // The record that it came in is used up, and longer: it cannot reach what is still to be opened.
                    let plain = &mut opened.plain;
                    self.engine.plain(|bytes| {
                        buffer[*plain..*plain + bytes.len()].copy_from_slice(bytes);
                        *plain += bytes.len();
                    });
                }
                Ok(Step::Again | Step::Flush) => {}
                Ok(Step::Ended) => {
                    opened.ended = true;
                    self.reading = Reading::Ended;
                    // What follows close_notify is not looked at (RFC 8446, 6.1).
                    self.partial = Vec::new();
                    return Ok(opened);
                }
                Ok(Step::Ready | Step::Blocked) => break,
                Err(error) => {
                    self.engine.alert(&mut self.output);
                    self.partial = Vec::new();
                    let error = match Error::of(error) {
                        Error::NotTls => Error::Protocol("what came is no record".to_owned()),
                        error => error,
                    };
                    if opened.plain == 0 {
                        self.reading = Reading::Failed;
                        return Err(error);
                    }
                    self.reading = Reading::Failing(error);
                    opened.more = true;
                    return Ok(opened);
                }
            }
        }
        self.keep(&buffer[used..filled]);
        Ok(opened)
    }

    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.partial = Vec::new();
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(rest);
        }
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        match failed {
            Failed::Before(error) => Error::of(error),
            Failed::Exhausted => Error::Protocol("its keys are used up and could not be changed".to_owned()),
            Failed::NotOpen => Error::Protocol("it carries no bytes now".to_owned()),
        }
    }
}
