//! What we say ourselves to a caller: a status with a sentence, as gRPC or as HTTP.

use crate::grpc::{self, Code};
use crate::http2::hpack::Fields;
use crate::http2::{Connection, Shared, StreamKey};

/// An answer that no server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The call's status.
    pub code: Code,
    /// The `:status` for a caller that does not speak gRPC.
    pub http: u16,
    /// One word: `portunus-error`.
    pub reason: &'static str,
    /// What happened, what was tried, and what to do.
    pub sentence: String,
}

impl Answer {
    /// Sends it as a whole response: trailers only to gRPC, else a page of text.
    pub(crate) fn send_whole(
        &self,
        is_grpc: bool,
        is_head: bool,
        engine: &mut Connection,
        stream: StreamKey,
        shared: &mut Shared,
    ) {
        let mut fields = Fields::new();
        if is_grpc {
            fields.push(b":status", b"200", false);
            fields.push(b"content-type", b"application/grpc", false);
            self.push_status(&mut fields);
            engine.send_headers(stream, &fields, false, true, shared);
        } else {
            fields.push(b":status", self.http.to_string().as_bytes(), false);
            fields.push(b"content-type", b"text/plain; charset=utf-8", false);
            fields.push(b"portunus-error", self.reason.as_bytes(), false);
            engine.send_headers(stream, &fields, false, is_head, shared);
            if !is_head {
                engine.send_data(stream, format!("{}\n", self.sentence).as_bytes(), true, shared);
            }
        }
    }

    /// Sends it behind the messages that the server has sent.
    pub(crate) fn send_trailers(&self, engine: &mut Connection, stream: StreamKey, shared: &mut Shared) {
        let mut fields = Fields::new();
        self.push_status(&mut fields);
        engine.send_trailers(stream, &mut fields, shared);
    }

    fn push_status(&self, fields: &mut Fields) {
        fields.push(b"grpc-status", self.code.as_str().as_bytes(), false);
        fields.push(b"grpc-message", &grpc::percent_encode(&self.sentence), false);
        fields.push(b"portunus-error", self.reason.as_bytes(), false);
    }
}
