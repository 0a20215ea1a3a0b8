//! A stream to control that notes when control refuses our certificate.
//!
//! In TLS 1.3 the server judges it after the handshake is over for the client (RFC 8446, 2), so its word comes with the first
//! bytes that are read; HTTP/2 makes of it a connection that broke.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use rustls::AlertDescription as Alert;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Whether control refused our certificate.
#[derive(Clone, Default)]
pub(super) struct Refusal(Arc<AtomicBool>);

/// The stream.
pub(super) struct Noting<S> {
    pub(super) stream: S,
    pub(super) refusal: Refusal,
}

impl Refusal {
    /// Whether it did so far.
    pub(super) fn came(&self) -> bool {
        self.0.load(Relaxed)
    }

    fn look(&self, error: &io::Error) {
        let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::AlertReceived(alert)) = told
            && is_of_certificate(*alert)
        {
            self.0.store(true, Relaxed);
        }
    }
}

/// Alerts that are about what the peer proved itself by (RFC 8446, 6.2).
fn is_of_certificate(alert: Alert) -> bool {
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
    )
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            self.refusal.look(error);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
