//! What the fuzz targets have in common: an engine that is fed raw bytes, and what must hold of what it says.

pub mod sign;

use std::sync::Arc;
use std::time::Instant;

use portunus_sidecar::http2::hpack::Fields;
use portunus_sidecar::http2::{Connection, Event, Head, PREFACE, Settings, Shared, StreamKey};

/// Memory that no short input can need.
pub const BUDGET: u64 = 1 << 28;

/// An engine that has not been told anything yet, and its worker's tables.
pub fn engine(server: bool, now: Instant) -> (Connection, Shared) {
    let mut shared = Shared::new(BUDGET);
    let settings = Arc::new(Settings {
        first_stream_window: 1_000,
        max_concurrent_streams: 8,
        ..Settings::default()
    });
    let conn = if server {
        Connection::server(settings, false, now, &mut shared)
    } else {
        Connection::client(settings, false, now, &mut shared)
    };
    (conn, shared)
}

/// A list of literals.
pub fn fields(list: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in list {
        fields.push(name.as_bytes(), value.as_bytes(), false);
    }
    fields
}

/// Opens a stream and asks (client role).
pub fn ask(conn: &mut Connection, shared: &mut Shared, user: u64, end: bool) -> Option<StreamKey> {
    let key = conn.open(user, false)?;
    let list = fields(&[(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C")]);
    conn.send_headers(key, &list, false, end, shared);
    Some(key)
}

/// How an owner acts on what comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It listens only: what the engine says then does not depend on how the bytes were cut.
    Quiet,
    /// It answers requests, sends back what comes, and gives credit for it.
    Busy,
}

/// Feeds all bytes in pieces of `cut`. Returns a line for each event, pieces of payload put together; and whether the
/// connection goes on.
pub fn feed(
    conn: &mut Connection,
    shared: &mut Shared,
    bytes: &[u8],
    cut: usize,
    owner: Owner,
    now: Instant,
) -> (Vec<String>, bool) {
    let mut seen: Vec<String> = Vec::new();
    let mut payload: Option<(u64, Vec<u8>)> = None;
    for mut input in bytes.chunks(cut.max(1)) {
        loop {
            match conn.receive(&mut input, shared, now) {
                Ok(None) => break,
                Ok(Some(Event::Data { key, user, bytes, end })) => {
                    if payload.as_ref().is_some_and(|(before, _)| *before != user) {
                        flush(&mut seen, &mut payload);
                    }
                    payload.get_or_insert((user, Vec::new())).1.extend_from_slice(bytes);
                    if end {
                        flush(&mut seen, &mut payload);
                        seen.push(format!("end of {user}"));
                    }
                    if owner == Owner::Busy {
                        conn.send_data(key, bytes, end, shared);
                        conn.grant(key, bytes.len() as u32, shared);
                    }
                }
                Ok(Some(event)) => {
                    flush(&mut seen, &mut payload);
                    seen.push(format!("{event:?} {:?}", texts(shared, &event)));
                    if owner == Owner::Busy {
                        act(conn, shared, event);
                    }
                }
                Err(fatal) => {
                    flush(&mut seen, &mut payload);
                    seen.push(fatal.to_string());
                    return (seen, false);
                }
            }
        }
        if owner == Owner::Busy {
            conn.pump(shared, &mut Vec::new());
        }
    }
    flush(&mut seen, &mut payload);
    (seen, true)
}

fn flush(seen: &mut Vec<String>, payload: &mut Option<(u64, Vec<u8>)>) {
    if let Some((user, bytes)) = payload.take() {
        seen.push(format!("{user}: {}", bytes.escape_ascii()));
    }
}

fn texts(shared: &Shared, event: &Event<'_>) -> Vec<String> {
    if !matches!(event, Event::Headers { .. }) {
        return Vec::new();
    }
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let fields = shared.fields().iter(&shared.interner);
    fields
        .map(|field| text(field.name_text) + "=" + &text(field.value))
        .collect()
}

fn act(conn: &mut Connection, shared: &mut Shared, event: Event<'_>) {
    match event {
        Event::Headers {
            key,
            head: Head::Request,
            end,
            ..
        } => {
            conn.set_user(key, key.to_bits());
            conn.send_headers(key, &fields(&[(":status", "200")]), false, false, shared);
            conn.send_data(key, &[7; 300], end, shared);
        }
        Event::Headers {
            key,
            head: Head::Trailers,
            ..
        } => conn.send_trailers(key, &mut fields(&[("grpc-status", "0")]), shared),
        Event::GoAway { .. } => {
            conn.take_unprocessed(shared);
        }
        _ => {}
    }
}

/// What the engine said are whole frames, none larger than every peer takes. They are returned.
pub fn frames(mut output: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    output = output.strip_prefix(&PREFACE[..]).unwrap_or(output);
    let mut frames = Vec::new();
    while !output.is_empty() {
        assert!(output.len() >= 9, "a frame header that is cut off");
        let len = u32::from_be_bytes([0, output[0], output[1], output[2]]) as usize;
        let stream = u32::from_be_bytes([output[5], output[6], output[7], output[8]]);
        assert!(len <= 16_384 && output.len() >= 9 + len, "a frame that is cut off");
        frames.push((output[3], output[4], stream, output[9..9 + len].to_vec()));
        output = &output[9 + len..];
    }
    frames
}

/// A connection that ends leaves nothing behind.
pub fn end(mut conn: Connection, shared: &mut Shared) {
    frames(conn.output());
    conn.release(shared);
    shared.release();
    assert_eq!(shared.budget.used(), 0, "the budget is whole again");
    assert_eq!(shared.interner.live(), 0, "no field is held any more");
}
