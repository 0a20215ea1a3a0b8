//! Places where nobody looks for an identity, and where a peer may say one all the same: 1xx, second heads, pushes, CONNECT,
//! switches of protocol, lines within values.

use portunus_sidecar::edge::client_cert::NAME;

use crate::raw::{DATA, END_HEADERS, END_STREAM, HEADERS, PUSH_PROMISE, block, frame, message};
use crate::spoofs::{FORGED, Spoof, usual};

const FIRST: u32 = 1;

/// A head or trailers on stream 1.
fn list(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, FIRST, &block(fields))
}

fn asked() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, FIRST, &usual())
}

fn forged(flags: u8, before: &[(&str, &str)]) -> Vec<u8> {
    list(flags, &[before, &[(NAME, FORGED)]].concat())
}

/// What a client says on stream 1 that only a server, or nobody, may say there.
pub fn spoofs() -> Vec<Spoof> {
    let body = message(FIRST, b"hello", false);
    let end = frame(DATA, END_STREAM, FIRST, &[]);
    let mut spoofs: Vec<Spoof> = Vec::new();
    let mut add = |what: &str, frames: &[&[u8]]| spoofs.push((what.to_owned(), frames.concat()));
    for status in ["100", "103", "199", "101"] {
        let status = [(":status", status)];
        add(
            "a 1xx before the request",
            &[&forged(0, &status), &asked(), &body, &end],
        );
        add(
            "a 1xx alone, with the end of the stream",
            &[&forged(END_STREAM, &status)],
        );
        add("a 1xx behind the head", &[&asked(), &forged(0, &status), &body, &end]);
        add(
            "a 1xx behind a message",
            &[&asked(), &body, &forged(0, &status), &list(END_STREAM, &[])],
        );
        add("a 1xx for trailers", &[&asked(), &body, &forged(END_STREAM, &status)]);
    }
    add("trailers that end nothing", &[&asked(), &body, &forged(0, &[]), &end]);
    add(
        "trailers twice",
        &[
            &asked(),
            &body,
            &list(END_STREAM, &[("x-a", "b")]),
            &forged(END_STREAM, &[]),
        ],
    );
    add(
        "trailers before a message",
        &[&asked(), &forged(END_STREAM, &[]), &message(FIRST, b"hello", true)],
    );
    add(
        "announced trailers",
        &[
            &list(
                0,
                &[&FIELDS[..], &[("trailer", NAME), ("expect", "100-continue")]].concat(),
            ),
            &body,
            &forged(END_STREAM, &[]),
        ],
    );
    add("the head once more", &[&asked(), &forged(END_STREAM, &FIELDS)]);
    add(
        "behind the end",
        &[
            &frame(HEADERS, END_HEADERS | END_STREAM, FIRST, &usual()),
            &forged(END_STREAM, &FIELDS),
        ],
    );
    let promised = |fields: &[(&str, &str)]| {
        let payload = [2_u32.to_be_bytes().to_vec(), block(fields)].concat();
        frame(PUSH_PROMISE, END_HEADERS, FIRST, &payload)
    };
    add(
        "a push",
        &[
            &asked(),
            &promised(&[&FIELDS[..], &[(NAME, FORGED)]].concat()),
            &body,
            &end,
        ],
    );
    for (what, more) in [
        ("CONNECT", &[][..]),
        (
            "CONNECT to a protocol",
            &[(":protocol", "websocket"), (":scheme", "http"), (":path", "/a")][..],
        ),
    ] {
        let fields = [
            &[(":method", "CONNECT"), (":authority", "127.0.0.1:50051")][..],
            more,
            &[(NAME, FORGED)],
        ];
        add(what, &[&list(0, &fields.concat()), &body, &end]);
    }
    for method in ["TRACE", "OPTIONS", "GET", "PRI", "connect"] {
        let mut fields = FIELDS.to_vec();
        fields[0].1 = method;
        add(method, &[&forged(END_STREAM, &fields)]);
    }
    for (name, value) in [
        ("upgrade", "h2c"),
        ("connection", "upgrade, http2-settings"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
        ("proxy-connection", NAME),
        ("transfer-encoding", "chunked"),
        ("trailer", NAME),
    ] {
        let fields = [&FIELDS[..], &[(name, value)]].concat();
        add(&format!("beside {name}: {value}"), &[&forged(END_STREAM, &fields)]);
    }
    for line in ["\r\n", "\n", "\r", "\0", "\r\n ", "\n\t"] {
        let said = format!("{line}{NAME}: {FORGED}");
        for at in 1..FIELDS.len() {
            let mut fields = FIELDS.to_vec();
            let value = format!("{}{said}", fields[at].1);
            fields[at].1 = &value;
            let what = format!("a line in {}, by {}", fields[at].0, line.escape_debug());
            add(&what, &[&list(END_STREAM, &fields)]);
        }
    }
    spoofs
}

/// A request's head, with nothing wrong.
pub const FIELDS: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a.B/C"),
    (":authority", "127.0.0.1:50051"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
