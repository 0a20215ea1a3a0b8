//! Frames: their header, their kinds, the codes of errors, and how ours are written (RFC 9113, 4 and 6).

/// Bytes of a frame's header.
pub(crate) const HEADER_BYTES: usize = 9;
/// The payload that every peer accepts, and the most that we accept and send (SETTINGS_MAX_FRAME_SIZE's default).
pub(crate) const MAX_PAYLOAD: usize = 16_384;
/// So many full frames are moved at a time where there is much: the half of a window that bulk usually has, which is what its
/// reader grants at a time.
const FRAMES_AT_ONCE: usize = 8;
/// These frames with their headers. Whoever writes and reads so many bytes cuts no frame, and leaves no small rest.
pub const BULK_BYTES: usize = FRAMES_AT_ONCE * (HEADER_BYTES + MAX_PAYLOAD);
/// What a client says before its first frame (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The window that every stream and connection starts with until a SETTINGS says otherwise.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;
/// The largest window there is (RFC 9113, 6.9.1).
pub(crate) const MAX_WINDOW: i64 = (1 << 31) - 1;
/// The largest stream identifier, and what the first GOAWAY of a graceful shutdown names.
pub(crate) const MAX_STREAM_ID: u32 = (1 << 31) - 1;

pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;
pub(crate) const PRIORITY_FLAG: u8 = 0x20;

pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Why a stream or a connection ended: an error code of RFC 9113, 7.
///
/// A code that nobody registered is kept as it came: it crosses the proxy unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reason(pub u32);

impl Reason {
    /// Not an error: a graceful end.
    pub const NO_ERROR: Reason = Reason(0);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: Reason = Reason(1);
    /// A fault of the one who says so.
    pub const INTERNAL_ERROR: Reason = Reason(2);
    /// More bytes than the window allowed.
    pub const FLOW_CONTROL_ERROR: Reason = Reason(3);
    /// No acknowledgement of SETTINGS came in time.
    pub const SETTINGS_TIMEOUT: Reason = Reason(4);
    /// A frame for a stream that had ended.
    pub const STREAM_CLOSED: Reason = Reason(5);
    /// A frame of a size that it cannot have.
    pub const FRAME_SIZE_ERROR: Reason = Reason(6);
    /// Refused before anything was processed: may be sent again.
    pub const REFUSED_STREAM: Reason = Reason(7);
    /// The stream is no longer wanted.
    pub const CANCEL: Reason = Reason(8);
    /// The header compression's state is lost.
    pub const COMPRESSION_ERROR: Reason = Reason(9);
    /// The connection of a CONNECT failed.
    pub const CONNECT_ERROR: Reason = Reason(10);
    /// The peer behaves in a way that makes too much work.
    pub const ENHANCE_YOUR_CALM: Reason = Reason(11);
    /// The transport's security is not enough.
    pub const INADEQUATE_SECURITY: Reason = Reason(12);
    /// HTTP/1.1 is asked for.
    pub const HTTP_1_1_REQUIRED: Reason = Reason(13);

    /// The code's name in the RFC, or `UNKNOWN`.
    pub fn name(self) -> &'static str {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        NAMES.get(self.0 as usize).copied().unwrap_or("UNKNOWN")
    }
}

impl std::fmt::Debug for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name() {
            "UNKNOWN" => write!(f, "code {}", self.0),
            name => f.write_str(name),
        }
    }
}

/// The header of a frame as it was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
}

impl Header {
    pub(crate) fn parse(b: &[u8; HEADER_BYTES]) -> Header {
        Header {
            len: u32::from_be_bytes([0, b[0], b[1], b[2]]),
            kind: b[3],
            flags: b[4],
            stream: u32::from_be_bytes([b[5], b[6], b[7], b[8]]) & MAX_STREAM_ID,
        }
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The 9 bytes before a payload of `len` bytes.
pub(crate) fn header(len: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEADER_BYTES] {
    let l = (len as u32).to_be_bytes();
    let s = stream.to_be_bytes();
    [l[1], l[2], l[3], kind, flags, s[0], s[1], s[2], s[3]]
}

pub(crate) fn put_rst_stream(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    out.extend_from_slice(&header(4, kind::RST_STREAM, 0, stream));
    out.extend_from_slice(&reason.0.to_be_bytes());
}

pub(crate) fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    out.extend_from_slice(&header(4, kind::WINDOW_UPDATE, 0, stream));
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(crate) fn put_ping(out: &mut Vec<u8>, flags: u8, payload: [u8; 8]) {
    out.extend_from_slice(&header(8, kind::PING, flags, 0));
    out.extend_from_slice(&payload);
}

pub(crate) fn put_goaway(out: &mut Vec<u8>, last: u32, reason: Reason, why: &str) {
    let why = &why.as_bytes()[..why.len().min(256)];
    out.extend_from_slice(&header(8 + why.len(), kind::GOAWAY, 0, 0));
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&reason.0.to_be_bytes());
    out.extend_from_slice(why);
}

pub(crate) fn put_settings(out: &mut Vec<u8>, values: &[(u16, u32)]) {
    out.extend_from_slice(&header(values.len() * 6, kind::SETTINGS, 0, 0));
    for (id, value) in values {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}
