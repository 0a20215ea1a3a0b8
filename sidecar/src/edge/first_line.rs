//! Whether bytes that are carried as bytes begin with a request of HTTP/1 all the same, by the reading of the laxest server.
//!
//! Detection knows usual requests. An unusual one (`BREW /`, `!GET /`, an empty line first, one letter and then a pause)
//! would cross as opaque bytes, and its fields with it. What matters is the first line: the fields come after it.
//!
//! Some protocols name `HTTP/1.1` in what they carry: FastCGI, uwsgi and AJP begin with a control byte, and SCGI has a NUL
//! in what would be the method. No server but a toy takes either for a request.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::accept::Options;
use crate::tunnel::Stream;

/// What the bytes so far are.
///
/// ```text
///   Blank ──a visible byte──▶ Method ──a space──▶ Line ──"HTTP/"──▶ Request
///     └──anything else──┐        └──NUL, its end──┐ └──its end──┐
///                       └─────────────────────────┴─────────────┴──▶ Other
/// ```
/// (`HTTP/` in the method makes it a request, too.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstLine {
    /// Nothing but empty lines and spaces, which lax servers skip.
    #[default]
    Blank,
    /// A word has begun that may be a method, and so many letters of `HTTP/` stand at its end.
    Method(usize),
    /// The line goes on behind its first word, likewise.
    Line(usize),
    /// A request of HTTP/1.
    Request,
    /// Anything else.
    Other,
}

impl FirstLine {
    /// Reads on.
    pub fn read(mut self, bytes: &[u8]) -> FirstLine {
        for byte in bytes {
            self = match self {
                FirstLine::Blank => match byte {
                    b'\r' | b'\n' | b' ' | b'\t' => FirstLine::Blank,
                    0..=0x1f | 0x7f => return FirstLine::Other,
                    // Not letters alone: a method is a token (RFC 9110, 5.6.2), and some servers take any word for one.
                    _ => FirstLine::Method(letters_after(0, *byte)),
                },
                FirstLine::Method(_) if *byte == 0 => return FirstLine::Other,
                FirstLine::Method(_) | FirstLine::Line(_) if *byte == b'\n' => return FirstLine::Other,
                FirstLine::Method(_) if matches!(byte, b' ' | b'\t') => FirstLine::Line(0),
                FirstLine::Method(letters) => FirstLine::Method(letters_after(letters, *byte)),
                FirstLine::Line(letters) => FirstLine::Line(letters_after(letters, *byte)),
                FirstLine::Request | FirstLine::Other => return self,
            };
            if let FirstLine::Method(letters) | FirstLine::Line(letters) = self
                && letters == VERSION.len()
            {
                return FirstLine::Request;
            }
        }
        self
    }
}

const VERSION: &[u8; 5] = b"HTTP/";

/// How many letters of `HTTP/` stand at the end, when there were so many before this byte.
fn letters_after(letters: usize, byte: u8) -> usize {
    // H begins it, and stands nowhere else in it: a mismatch begins anew at an H, or not at all.
    match byte.to_ascii_uppercase() {
        upper if upper == VERSION[letters] => letters + 1,
        b'H' => 1,
        _ => 0,
    }
}

/// A caller's stream that breaks before a request of HTTP/1 crosses it.
pub struct NoRequest<S> {
    stream: S,
    line: FirstLine,
}

impl<S> NoRequest<S> {
    /// `line` is what was read before.
    pub fn new(stream: S, line: FirstLine) -> NoRequest<S> {
        NoRequest { stream, line }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for NoRequest<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.line != FirstLine::Other {
            self.line = self.line.read(&buf.filled()[before..]);
        }
        Poll::Ready(match self.line {
            FirstLine::Request => {
                buf.set_filled(before);
                Err(ErrorKind::InvalidData.into())
            }
            FirstLine::Blank | FirstLine::Method(_) | FirstLine::Line(_) | FirstLine::Other => Ok(()),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for NoRequest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl<S: Stream> Stream for NoRequest<S> {
    fn set_options(&self, options: &Options) {
        self.stream.set_options(options);
    }

    fn reset(self) {
        self.stream.reset();
    }

    fn broken(&self) -> impl Future<Output = ErrorKind> {
        self.stream.broken()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn a_request_is_seen_wherever_its_bytes_are_cut() {
        let requests = [
            "GET / HTTP/1.1\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
            " get\t/ http/1.0\n",
            "BREW pot HTTP/1.1\r\n",
            "HTTP/1.1 / HTTP/1.1\r\n",
            "GET /HHTTHTTP/ x",
            "GET /\u{1}\u{e9}\0 HTTP/1.1\r\n",
            "{odd\u{1}\u{e9} / HTTP/1.1\r\n",
        ];
        for request in requests {
            for cut in 0..request.len() {
                let (a, b) = request.as_bytes().split_at(cut);
                assert_eq!(
                    FirstLine::default().read(a).read(b),
                    FirstLine::Request,
                    "{request:?} at {cut}"
                );
            }
        }
    }

    #[test]
    fn a_method_may_begin_with_any_byte_that_a_token_may_have() {
        for first in (b'!'..=b'~').chain(0x80..=0xff) {
            let request = [&[first], b"GET / HTTP/1.1\r\n".as_slice()].concat();
            assert_eq!(FirstLine::default().read(&request), FirstLine::Request, "{first:#x}");
        }
    }

    #[test]
    fn other_protocols_are_not_taken_for_requests() {
        let others: [&[u8]; 9] = [
            b"*1\r\n$4\r\nPING\r\n",
            b"EHLO a.test\r\nMAIL HTTP/",
            b"\x01\x01\0\x01\0\x08\0\0SERVER_PROTOCOLHTTP/1.1",
            b"70:CONTENT_LENGTH\x0027\0SERVER_PROTOCOL\0HTTP/1.1\0,",
            b"\0\x1f\0\0\x0fSERVER_PROTOCOL\x08\0HTTP/1.1",
            b"\x16\x03\x01HTTP/",
            b"OPTIONS rtsp://a RTSP/1.0\r\n",
            b"SSH-2.0-x\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n",
        ];
        for other in others {
            assert_eq!(FirstLine::default().read(other), FirstLine::Other, "{other:?}");
        }
        assert_eq!(FirstLine::default().read(b"word"), FirstLine::Method(0));
    }

    #[tokio::test]
    async fn a_request_in_pieces_breaks_the_stream_before_its_fields_cross() {
        let (mut caller, stream) = duplex(64);
        let mut guarded = NoRequest::new(stream, FirstLine::default().read(b"G"));
        caller.write_all(b"ET / H").await.expect("written");
        let mut heard = [0; 64];
        assert_eq!(guarded.read(&mut heard).await.expect("no request yet"), 6);
        caller
            .write_all(b"TTP/1.1\r\nx-forwarded-client-cert: forged")
            .await
            .expect("written");
        let error = guarded.read(&mut heard).await.expect_err("a request");
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
