//! Credit, seen frame by frame: nobody waits for ever, and nobody gets what is not there.

use portunus_sidecar::http2;
use tokio::net::TcpListener;

use crate::raw::{self, ACK, DATA, END_HEADERS, HEADERS, PADDED, Raw, SETTINGS, WINDOW_UPDATE, frame};
use crate::world::{Setup, World};

/// A caller and a server that speak frames, with a worker between them whose first window is `first`.
async fn between(first: u32, setup: Setup) -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let http2 = http2::Settings {
        first_stream_window: first,
        ..setup.http2.clone()
    };
    let addr = listener.local_addr().expect("an address");
    let world = World::before(addr, Setup { http2, ..setup }).await;
    (world, listener)
}

/// One worker, whatever other worlds have: what is tried here is one hop's credit.
fn alone() -> Setup {
    Setup {
        pair: false,
        ..Setup::default()
    }
}

/// Reads until so much DATA came on the stream.
async fn data(peer: &mut Raw, stream: u32, bytes: usize) {
    let mut got = 0;
    while got < bytes {
        let event = peer.until(|frame| frame.kind == DATA && frame.stream == stream).await;
        got += event.payload.len();
    }
    assert_eq!(got, bytes);
}

/// Reads until the stream was granted so much.
async fn granted(peer: &mut Raw, stream: u32, bytes: u32) {
    let mut got = 0;
    while got < bytes {
        let next = peer.next().await.expect("the connection goes on");
        if (next.kind, next.stream) == (WINDOW_UPDATE, stream) {
            got += next.number();
        }
    }
}

#[tokio::test]
async fn a_request_that_waited_for_its_connection_gets_credit_once_it_is_there() {
    let (world, listener) = between(100, alone()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.until_settled().await;
    // All that the first window allows, before there is a connection to the server.
    let all = [raw::request(1, "/a.B/C", &[], false), frame(DATA, 0, 1, &[7; 100])].concat();
    caller.send(&all).await;
    let mut server = Raw::accept(&listener, &[]).await;
    data(&mut server, 1, 100).await;
    // The server has room for 65,435 bytes more, and will not say so again.
    granted(&mut caller, 1, 10_000).await;
}

#[tokio::test]
async fn a_caller_that_used_the_default_window_before_it_heard_ours_gets_credit_when_it_has() {
    let (world, listener) = between(100, Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], false)).await;
    // A server that grants a hundred bytes at a time, and has granted all of them again before the caller hears of us.
    let mut server = Raw::accept(&listener, &[(4, 100)]).await;
    server.until_settled().await;
    caller.send(&frame(DATA, 0, 1, &[7; 1_000])).await;
    for _ in 0..10 {
        data(&mut server, 1, 100).await;
        server.send(&raw::update(1, 100)).await;
    }
    // The stream's window is 100 - 1,000 now; there is nothing held that could leave and bring credit by that.
    caller.send(&frame(SETTINGS, ACK, 0, &[])).await;
    granted(&mut caller, 1, 901).await;
    caller.send(&frame(DATA, 1, 1, &[7; 1])).await;
    data(&mut server, 1, 1).await;
}

#[tokio::test]
async fn credit_that_padding_used_comes_back_whoever_sent_it() {
    let (world, listener) = between(65_535, Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/C", &[], false)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    server.send(&raw::response(1)).await;
    caller.until(|frame| frame.kind == HEADERS).await;
    // 250 frames of 256 bytes, of which not one is payload.
    let padding = [vec![255], vec![0; 255]].concat();
    let all = frame(DATA, PADDED, 1, &padding).repeat(250);
    caller.send(&all).await;
    granted(&mut caller, 1, 32_000).await;
    server.send(&all).await;
    granted(&mut server, 1, 32_000).await;
}

#[tokio::test]
async fn credit_that_padding_used_before_the_server_was_reached_comes_back() {
    let (world, listener) = between(10_000, Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    // The whole window, in one write with the request: nobody has dialled yet.
    let padding = frame(DATA, PADDED, 1, &[vec![249], vec![0; 249]].concat()).repeat(40);
    let acknowledged = frame(SETTINGS, ACK, 0, &[]);
    let request = raw::request(1, "/a.B/C", &[], false);
    caller.send(&[acknowledged, request, padding].concat()).await;
    let _server = Raw::accept(&listener, &[]).await;
    granted(&mut caller, 1, 5_000).await;
}

#[tokio::test]
async fn padding_is_taken_off_and_what_it_padded_crosses() {
    let (world, listener) = between(65_535, Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let mut padded = vec![9];
    padded.extend_from_slice(&raw::request(1, "/a.B/C", &[], false)[9..]);
    padded.extend_from_slice(&[0; 9]);
    caller.send(&frame(HEADERS, PADDED | END_HEADERS, 1, &padded)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(raw::text(&server.fields(&head).await, ":path"), Some("/a.B/C"));
    for piece in [&b"one"[..], b"two", b"three"] {
        let padded = [&[200][..], piece, &[0; 200]].concat();
        caller.send(&frame(DATA, PADDED, 1, &padded)).await;
    }
    let mut got = Vec::new();
    while got.len() < 11 {
        got.extend(server.until(|frame| frame.kind == DATA).await.payload);
    }
    assert_eq!(got, b"onetwothree");
}

#[tokio::test]
async fn more_than_the_window_allows_breaks_that_stream_and_no_other() {
    let (world, listener) = between(65_535, alone()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let both = [
        raw::request(1, "/a.B/C", &[], false),
        raw::request(3, "/a.B/C", &[], false),
    ];
    caller.send(&both.concat()).await;
    let mut server = Raw::accept(&listener, &[(4, 0)]).await;
    server.until(|frame| frame.kind == HEADERS && frame.stream == 3).await;
    // The connection's window is restored as bytes are kept, so that the stream's alone is broken.
    let mut sent = 0;
    while sent <= 65_535 {
        caller.send(&frame(DATA, 0, 1, &[1; 8_000])).await;
        sent += 8_000;
    }
    let reset = caller.until(|frame| frame.kind == raw::RST_STREAM).await;
    assert_eq!((reset.stream, reset.number()), (1, 3), "FLOW_CONTROL_ERROR");
    let reset = server.until(|frame| frame.kind == raw::RST_STREAM).await;
    assert_eq!(
        (reset.stream, reset.number()),
        (1, 8),
        "CANCEL: the server did nothing wrong"
    );
    server.send(&[raw::response(3), raw::trailers(3)].concat()).await;
    caller
        .until(|frame| frame.stream == 3 && frame.has(raw::END_STREAM))
        .await;
}
