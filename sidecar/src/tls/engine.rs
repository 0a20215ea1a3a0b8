//! What turns records into bytes and bytes into records: rustls's unbuffered API, behind a few verbs of ours.
//!
//! The one file that would change with rustls 0.24. Opens in place (and allocates once a record), seals by way of one
//! allocation a record; keeps no buffer between calls.

use rustls::CommonState;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus, WriteTraffic,
};

use super::output::Output;

/// One side of a TLS connection.
pub(super) enum Engine {
    /// We called.
    Client(Box<UnbufferedClientConnection>),
    /// We were called.
    Server(Box<UnbufferedServerConnection>),
}

/// Where a step has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record was opened: [`Engine::plain`] has its bytes.
    Plain,
    /// Something was done; there is more to do.
    Again,
    /// What was put into the output may be sent now.
    Flush,
    /// The peer has ended its side.
    Ended,
    /// More bytes of the peer's are needed to finish the handshake.
    Blocked,
    /// Everything that came was read.
    Ready,
}

impl Engine {
    /// Takes one step over bytes of the peer's, which may be changed. Tells how many of them were used up, whatever
    /// came of it.
    pub(super) fn step(&mut self, incoming: &mut [u8], output: &mut Output) -> (usize, Result<Step, rustls::Error>) {
        match self {
            Engine::Client(connection) => step(connection.process_tls_records(incoming), output),
            Engine::Server(connection) => step(connection.process_tls_records(incoming), output),
        }
    }

    /// Hands over the bytes of the records that were opened. To be called after [`Step::Plain`], before anything else.
    pub(super) fn plain(&mut self, mut take: impl FnMut(&[u8])) {
        match self {
            Engine::Client(connection) => plain(connection.process_tls_records(&mut []), &mut take),
            Engine::Server(connection) => plain(connection.process_tls_records(&mut []), &mut take),
        }
    }

    /// Seals bytes into the output, after what the engine itself has to say.
    ///
    /// `incoming` is what [`step`](Engine::step) left over: the engine may have a message of several records half
    /// read in it, remembers where, and panics if it is not there.
    pub(super) fn seal(&mut self, plaintext: &[u8], incoming: &mut [u8], output: &mut Output) -> Result<(), Failed> {
        self.say(Saying::Bytes(plaintext), incoming, output)
    }

    /// Ends our side.
    pub(super) fn close(&mut self, incoming: &mut [u8], output: &mut Output) -> Result<(), Failed> {
        self.say(Saying::CloseNotify, incoming, output)
    }

    fn say(&mut self, what: Saying<'_>, incoming: &mut [u8], output: &mut Output) -> Result<(), Failed> {
        loop {
            let said = match self {
                Engine::Client(connection) => say(connection.process_tls_records(incoming), what, output),
                Engine::Server(connection) => say(connection.process_tls_records(incoming), what, output),
            };
            if said? {
                return Ok(());
            }
        }
    }

    /// Puts the alert that an error has led to into the output.
    pub(super) fn alert(&mut self, output: &mut Output) {
        // While there is something to write, that comes before any look at the bytes that came.
        while self.state().wants_write() {
            if let (_, Err(_) | Ok(Step::Plain)) = self.step(&mut [], output) {
                return;
            }
        }
    }

    /// What is known of the connection.
    pub(super) fn state(&self) -> &CommonState {
        match self {
            Engine::Client(connection) => connection,
            Engine::Server(connection) => connection,
        }
    }
}

/// Why nothing could be sealed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The connection had failed before.
    Before(rustls::Error),
    /// Its keys have served for as many records as they may, and could not be changed.
    Exhausted,
    /// It does not carry bytes now.
    NotOpen,
}

#[derive(Clone, Copy)]
enum Saying<'a> {
    Bytes(&'a [u8]),
    CloseNotify,
}

fn step<D>(status: UnbufferedStatus<'_, '_, D>, output: &mut Output) -> (usize, Result<Step, rustls::Error>) {
    let step = status.state.map(|state| match state {
        ConnectionState::ReadTraffic(_) => Step::Plain,
        ConnectionState::EncodeTlsData(mut message) => {
            encode(|room| message.encode(room), output);
            Step::Again
        }
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Step::Flush
        }
        ConnectionState::PeerClosed => Step::Ended,
        ConnectionState::BlockedHandshake => Step::Blocked,
        ConnectionState::WriteTraffic(_) | ConnectionState::Closed => Step::Ready,
        // No early data is accepted, so there is none to read.
        _ => Step::Ready,
    });
    (status.discard, step)
}

fn plain<D>(status: UnbufferedStatus<'_, '_, D>, take: &mut impl FnMut(&[u8])) {
    if let Ok(ConnectionState::ReadTraffic(mut records)) = status.state {
        while let Some(Ok(record)) = records.next_record() {
            take(record.payload);
        }
    }
}

/// Whether it was said; if not, the engine has said something of its own, and is to be asked again.
fn say<D>(status: UnbufferedStatus<'_, '_, D>, what: Saying<'_>, output: &mut Output) -> Result<bool, Failed> {
    match status.state.map_err(Failed::Before)? {
        ConnectionState::EncodeTlsData(mut message) => {
            encode(|room| message.encode(room), output);
            Ok(false)
        }
        ConnectionState::TransmitTlsData(message) => {
            message.done();
            Ok(false)
        }
        ConnectionState::PeerClosed => Ok(false),
        ConnectionState::WriteTraffic(mut traffic) => seal(&mut traffic, what, output).map(|()| true),
        _ => Err(Failed::NotOpen),
    }
}

fn encode(mut into: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, output: &mut Output) {
    let mut least = 0;
    loop {
        match into(output.room(least)) {
            Ok(n) => return output.filled(n),
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => least = required_size,
            // It is in the output already.
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

fn seal<D>(traffic: &mut WriteTraffic<'_, D>, what: Saying<'_>, output: &mut Output) -> Result<(), Failed> {
    let mut least = 0;
    loop {
        let room = output.room(least);
        let sealed = match what {
            Saying::Bytes(plaintext) => traffic.encrypt(plaintext, room),
            Saying::CloseNotify => traffic.queue_close_notify(room),
        };
        match sealed {
            Ok(n) => {
                output.filled(n);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => least = required_size,
            Err(EncryptError::EncryptExhausted) => return Err(Failed::Exhausted),
        }
    }
}
