//! One stream of a connection: its two halves, its windows, and what it holds (RFC 9113, 5.1).

use super::frame::Reason;
use super::held::Held;
use super::hpack::Fields;
use crate::slots::Key;

/// The key of a stream within its connection.
pub type StreamKey = Key<Stream>;

/// A half of a stream: what one side has said so far. A stream is gone when both halves have ended.
///
/// ```text
///           HEADERS            HEADERS or DATA with END_STREAM
///   Head ------------> Body ------------------------------------> Ended
///    |  ^ |                                                         ^
///    |  +-+ 1xx (a response's half alone)                           |
///    +---------------------- HEADERS with END_STREAM ---------------+
/// ```
///
/// RST_STREAM, in either direction, ends both at once: the stream is removed, and [`super::closed`] remembers how.
/// For our own half, `Ended` means that END_STREAM stands in the connection's output; while bytes are held before it,
/// the half is `Body` with an [`Ending`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Nothing yet but, perhaps, 1xx.
    Head,
    /// The head came; DATA or trailers may follow.
    Body,
    /// END_STREAM came.
    Ended,
}

/// What follows the last held byte of our half.
pub(crate) enum Ending {
    /// More may be sent.
    Open,
    /// END_STREAM on the last DATA.
    Data,
    /// Trailers, which are encoded when they are written, not before.
    Trailers(Box<Fields>),
}

/// A stream of one connection.
pub struct Stream {
    /// The identifier on the wire; 0 until our HEADERS are written.
    pub(crate) id: u32,
    /// What the owner hung on it.
    pub(crate) user: u64,
    pub(crate) theirs: Half,
    pub(crate) ours: Half,
    /// What the peer may still send: `granted - received`. Negative after a SETTINGS of ours that lowered it.
    pub(crate) recv_window: i64,
    /// What we may still send. Negative after a SETTINGS of the peer's that lowered it.
    pub(crate) send_window: i64,
    /// Bytes of DATA that `content-length` still promises; `None` if it promised nothing.
    pub(crate) length_left: Option<u64>,
    /// A request whose response has no body.
    pub(crate) head_request: bool,
    /// Whether the stream stands in the connection's list of those that may send.
    pub(crate) scheduled: bool,
    /// Our payload that waits for room.
    pub(crate) held: Held,
    pub(crate) ending: Ending,
    /// RST_STREAM to send once our half has ended (RFC 9113, 8.1: the server wants no more of the request).
    pub(crate) reset_after: Option<Reason>,
}

impl Stream {
    pub(crate) fn new(user: u64, theirs: Half, recv_window: i64, send_window: i64) -> Stream {
        Stream {
            id: 0,
            user,
            theirs,
            ours: Half::Head,
            recv_window,
            send_window,
            length_left: None,
            head_request: false,
            scheduled: false,
            held: Held::default(),
            ending: Ending::Open,
            reset_after: None,
        }
    }

    /// Whether both halves have ended.
    #[inline]
    pub(crate) fn is_done(&self) -> bool {
        self.theirs == Half::Ended && self.ours == Half::Ended
    }

    /// Whether nothing more will be said here: both halves have ended, or ours has, and wants no more of theirs.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.ours == Half::Ended && (self.theirs == Half::Ended || self.reset_after.is_some())
    }

    /// Whether our half is waiting to end behind held bytes.
    pub(crate) fn is_ending(&self) -> bool {
        !matches!(self.ending, Ending::Open)
    }
}
