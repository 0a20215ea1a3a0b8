//! One HTTP/2 connection as both ends of the benchmark need it: frames in, bytes out, windows and settings kept (RFC 9113).

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;

use super::hpack::{Decoder, Encoder};

/// The kinds of frames.
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

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Both ends keep to the frame size that HTTP/2 begins with.
pub(crate) const MAX_FRAME: usize = 16_384;
/// The window of a connection and of a stream before anything is said.
pub(crate) const FIRST_WINDOW: u32 = 65_535;

/// A frame as it lies in the read buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes the first frame off the bytes, if it is whole.
    pub(crate) fn take(bytes: &mut &'a [u8]) -> Result<Option<Frame<'a>>> {
        let Some((&[a, b, c, kind, flags, e, f, g, h], rest)) = bytes.split_first_chunk::<9>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        ensure!(
            len <= MAX_FRAME,
            "the peer sent a frame of {len} bytes, over the limit of {MAX_FRAME}"
        );
        if rest.len() < len {
            return Ok(None);
        }
        let (payload, rest) = rest.split_at(len);
        *bytes = rest;
        Ok(Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([e & 0x7f, f, g, h]),
            payload,
        }))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding and priority.
    pub(crate) fn content(&self) -> Result<&'a [u8]> {
        let mut content = self.payload;
        if self.has(PADDED) {
            let (&padding, rest) = content.split_first().context("a padded frame without a pad length")?;
            let len = rest
                .len()
                .checked_sub(usize::from(padding))
                .context("more padding than frame")?;
            content = &rest[..len];
        }
        if self.kind == kind::HEADERS && self.has(WITH_PRIORITY) {
            content = content.get(5..).context("a priority that is cut off")?;
        }
        Ok(content)
    }
}

/// What a frame of the whole connection changed, as far as the ends act on it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Changed {
    Nothing,
    /// The connection's window or every stream's (by so much) moved.
    Windows {
        streams_by: i64,
    },
    /// The peer will serve no stream above this one.
    GoAway {
        last: u32,
        code: u32,
    },
}

/// The socket, what is half read or half written, and what the peer has announced.
pub(crate) struct Wire {
    socket: TcpStream,
    partial: Vec<u8>,
    pub(crate) out: Vec<u8>,
    written: usize,
    pub(crate) decoder: Decoder,
    pub(crate) encoder: Encoder,
    /// What the peer still takes on the connection.
    pub(crate) send_window: i64,
    /// What the peer takes on a new stream.
    pub(crate) first_stream_window: i64,
    /// How many streams the peer lets us open.
    pub(crate) max_streams: u32,
    /// A header block that is not whole yet: its stream, whether it ends it, and its bytes.
    block: Option<(u32, bool, Vec<u8>)>,
    /// What the peer may send on the connection at most, and what it has sent since it was last told.
    receive_window: u32,
    owed: u32,
}

impl Wire {
    /// A connection whose `opening` (a preface, SETTINGS) is written first; `receive_window` is what the peer may have under way.
    pub(crate) fn new(socket: TcpStream, opening: Vec<u8>, receive_window: u32) -> Wire {
        let mut wire = Wire {
            socket,
            partial: Vec::new(),
            out: opening,
            written: 0,
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            send_window: i64::from(FIRST_WINDOW),
            first_stream_window: i64::from(FIRST_WINDOW),
            max_streams: u32::MAX,
            block: None,
            receive_window,
            owed: 0,
        };
        if receive_window > FIRST_WINDOW {
            append_window_update(0, receive_window - FIRST_WINDOW, &mut wire.out);
        }
        wire
    }

    /// Reads once into `buffer`, behind what was left of the last time. Says how many bytes it holds and whether
    /// there may be more to read; nothing when the peer has closed.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let kept = self.partial.len();
        buffer[..kept].copy_from_slice(&self.partial);
        self.partial.clear();
        match self.socket.read(&mut buffer[kept..]) {
            Ok(0) => Ok(None),
            Ok(read) => Ok(Some((kept + read, kept + read == buffer.len()))),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(Some((kept, false)))
            }
            Err(error) => Err(error),
        }
    }

    /// Keeps the part of a frame that came last, for the next read.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.partial.extend_from_slice(rest);
    }

    /// Writes what there is to write; whether all of it went.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(wrote) => self.written += wrote,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(true)
    }

    /// Bytes that wait to be written.
    pub(crate) fn unwritten(&self) -> usize {
        self.out.len() - self.written
    }

    /// A header block that this frame makes whole: its stream, whether it ends it, its bytes.
    pub(crate) fn header_block<'a>(&mut self, frame: Frame<'a>) -> Result<Option<(u32, bool, HeaderBlock<'a>)>> {
        if frame.kind == kind::HEADERS {
            let content = frame.content()?;
            if frame.has(END_HEADERS) {
                return Ok(Some((frame.stream, frame.has(END_STREAM), HeaderBlock::Lent(content))));
            }
            self.block = Some((frame.stream, frame.has(END_STREAM), content.to_vec()));
            return Ok(None);
        }
        let (stream, end, mut bytes) = self.block.take().context("CONTINUATION without HEADERS")?;
        ensure!(stream == frame.stream, "CONTINUATION on another stream");
        bytes.extend_from_slice(frame.payload);
        if frame.has(END_HEADERS) {
            return Ok(Some((stream, end, HeaderBlock::Gathered(bytes))));
        }
        self.block = Some((stream, end, bytes));
        Ok(None)
    }

    /// Counts a DATA frame against the connection's window, and gives back half a window at a time.
    pub(crate) fn received_data(&mut self, frame: Frame<'_>) {
        self.owed += frame.payload.len() as u32;
        if self.owed >= self.receive_window / 2 {
            append_window_update(0, self.owed, &mut self.out);
            self.owed = 0;
        }
    }

    /// Answers and applies a frame that concerns the whole connection or is of no concern.
    pub(crate) fn connection_frame(&mut self, frame: Frame<'_>) -> Result<Changed> {
        match frame.kind {
            kind::SETTINGS if frame.has(ACK) => Ok(Changed::Nothing),
            kind::SETTINGS => self.settings(frame.payload),
            kind::PING if !frame.has(ACK) => {
                append_frame(kind::PING, ACK, 0, frame.payload, &mut self.out);
                Ok(Changed::Nothing)
            }
            kind::WINDOW_UPDATE => {
                self.send_window += i64::from(number(frame.payload)?);
                Ok(Changed::Windows { streams_by: 0 })
            }
            kind::GOAWAY => {
                let (last, rest) = frame.payload.split_at_checked(4).context("a GOAWAY that is cut off")?;
                Ok(Changed::GoAway {
                    last: number(last)?,
                    code: number(rest)?,
                })
            }
            kind::PUSH_PROMISE => bail!("the peer pushes, though it was told not to"),
            _ => Ok(Changed::Nothing),
        }
    }

    fn settings(&mut self, payload: &[u8]) -> Result<Changed> {
        let mut streams_by = 0;
        for setting in payload.chunks_exact(6) {
            let value = number(&setting[2..])?;
            match u16::from_be_bytes([setting[0], setting[1]]) {
                1 => self.encoder.resize(value as usize),
                3 => self.max_streams = value,
                4 => {
                    streams_by += i64::from(value) - self.first_stream_window;
                    self.first_stream_window = i64::from(value);
                }
                _ => {}
            }
        }
        append_frame(kind::SETTINGS, ACK, 0, &[], &mut self.out);
        Ok(Changed::Windows { streams_by })
    }
}

/// The bytes of a header block, where they lie.
pub(crate) enum HeaderBlock<'a> {
    Lent(&'a [u8]),
    Gathered(Vec<u8>),
}

impl HeaderBlock<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            HeaderBlock::Lent(bytes) => bytes,
            HeaderBlock::Gathered(bytes) => bytes,
        }
    }
}

pub(crate) fn append_frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    append_head(payload.len(), kind, flags, stream, out);
    out.extend_from_slice(payload);
}

pub(crate) fn append_head(len: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    let [e, f, g, h] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, e, f, g, h]);
}

/// Appends HEADERS whose block `write` appends.
pub(crate) fn append_headers(flags: u8, stream: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    append_head(0, kind::HEADERS, flags | END_HEADERS, stream, out);
    write(out);
    let len = out.len() - at - 9;
    assert!(len <= MAX_FRAME, "the benchmark's header blocks fit one frame");
    out[at..at + 3].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
}

pub(crate) fn append_window_update(stream: u32, by: u32, out: &mut Vec<u8>) {
    append_frame(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes(), out);
}

pub(crate) fn append_settings(settings: &[(u16, u32)], out: &mut Vec<u8>) {
    let bytes: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()))
        .collect();
    append_frame(kind::SETTINGS, 0, 0, &bytes, out);
}

/// The number that a RST_STREAM, a WINDOW_UPDATE or a GOAWAY carries.
pub(crate) fn number(payload: &[u8]) -> Result<u32> {
    let (bytes, _) = payload.split_first_chunk::<4>().context("a frame that is cut off")?;
    Ok(u32::from_be_bytes(*bytes))
}
