//! HTTP/2 by hand, right and wrong.

/// The client's preface and its SETTINGS, with frames behind them.
pub(crate) fn client(frames: &[Vec<u8>]) -> Vec<u8> {
    let settings = frame(4, 0, 0, b"");
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &frames.concat()].concat()
}

/// The server's SETTINGS, with frames behind them.
pub(crate) fn server(frames: &[Vec<u8>]) -> Vec<u8> {
    [frame(4, 0, 0, b""), frames.concat()].concat()
}

/// A frame (RFC 9113, 4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// HEADERS that are whole, of fields that are in no table.
pub(crate) fn headers(stream: u32, ends: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
    frame(1, 0x4 | u8::from(ends), stream, &block)
}

/// A literal field without indexing (RFC 7541, 6.2.2), of short texts.
pub(crate) fn literal(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(0)], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// GOAWAY with an error code and debug data.
pub(crate) fn goaway(code: u32, debug: &str) -> Vec<u8> {
    frame(7, 0, 0, &[&[0; 4][..], &code.to_be_bytes(), debug.as_bytes()].concat())
}

/// The head of a request of gRPC's, with fields behind it.
pub(crate) fn request(authority: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let head = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers(1, true, &[&head, more].concat())
}

/// Whether the first stream has ended in what a server said, or all of them have.
pub(crate) fn has_ended(mut said: &[u8]) -> bool {
    while let Some((head, rest)) = said.split_first_chunk::<9>() {
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let is_first = u32::from_be_bytes(stream) == 1;
        let Some(next) = rest.get(u32::from_be_bytes([0, a, b, c]) as usize..) else {
            return false;
        };
        match kind {
            // DATA and HEADERS with END_STREAM, RST_STREAM, GOAWAY.
            0 | 1 if is_first && flags & 0x1 != 0 => return true,
            3 if is_first => return true,
            7 => return true,
            _ => said = next,
        }
    }
    false
}
