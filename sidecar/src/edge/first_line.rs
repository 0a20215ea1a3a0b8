//! Whether bytes that are carried as bytes begin with a request of HTTP/1 all the same, by the reading of the laxest server.
//!
//! Detection knows usual requests. An unusual one (`BREW /`, an empty line first, one letter and then a pause) would cross
//! as opaque bytes, and its fields with it. What matters is the first line: the fields come after it.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::accept::Options;
use crate::tunnel::Stream;

/// What the bytes so far are.
///
/// ```text
///   Blank ──a letter──▶ Line ──"HTTP/"──▶ Request
///     └──anything else────┴──its end────▶ Other
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstLine {
    /// Nothing but empty lines and spaces, which lax servers skip.
    #[default]
    Blank,
    /// A line has begun, and so many letters of `HTTP/` stand at its end.
    Line(usize),
    /// A request of HTTP/1.
    Request,
    /// Anything else.
    Other,
}

impl FirstLine {
    /// Reads on.
    pub fn read(mut self, bytes: &[u8]) -> FirstLine {
        const VERSION: &[u8; 5] = b"HTTP/";
        for byte in bytes {
            self = match self {
                FirstLine::Blank if matches!(byte, b'\r' | b'\n' | b' ' | b'\t') => FirstLine::Blank,
                FirstLine::Blank if byte.is_ascii_alphabetic() => {
                    FirstLine::Line(usize::from(byte.eq_ignore_ascii_case(&b'H')))
                }
                FirstLine::Line(_) if *byte == b'\n' => FirstLine::Other,
                FirstLine::Line(letters) => {
                    // H begins it, and stands nowhere else in it: a mismatch begins anew at an H, or not at all.
                    let letters = match byte.to_ascii_uppercase() {
                        upper if upper == VERSION[letters] => letters + 1,
                        b'H' => 1,
                        _ => 0,
                    };
                    if letters == VERSION.len() {
                        return FirstLine::Request;
                    }
                    FirstLine::Line(letters)
                }
                FirstLine::Blank | FirstLine::Other => return FirstLine::Other,
                FirstLine::Request => return FirstLine::Request,
            };
        }
        self
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
            FirstLine::Blank | FirstLine::Line(_) | FirstLine::Other => Ok(()),
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
            "GET /\u{1}\u{e9} HTTP/1.1\r\n",
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
    fn other_protocols_are_not_taken_for_requests() {
        let others: [&[u8]; 7] = [
            b"*1\r\n$4\r\nPING\r\n",
            b"EHLO a.test\r\nMAIL HTTP/",
            b"\x01\x01\0\x01\0\x08\0\0SERVER_PROTOCOLHTTP/1.1",
            b"\x16\x03\x01HTTP/",
            b"OPTIONS rtsp://a RTSP/1.0\r\n",
            b"SSH-2.0-x\r\n",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\n",
        ];
        for other in others {
            assert_eq!(FirstLine::default().read(other), FirstLine::Other, "{other:?}");
        }
        assert_eq!(FirstLine::default().read(b"word"), FirstLine::Line(0));
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
