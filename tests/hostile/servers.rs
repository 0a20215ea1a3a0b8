//! Hostile servers: what they do to one call ends that call, or their connection; other calls and connections go on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use portunus_sidecar::balance::Algorithm;
use portunus_sidecar::health;
use portunus_sidecar::policy::Mode;
use portunus_sidecar::route::{Endpoint, Known, Policy, View};
use support::pki::{self, Pki};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::clients::MEMORY;
use crate::raw::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE, RST_STREAM,
    Raw, SETTINGS, WINDOW_UPDATE, block, frame, goaway, literal, reset, response, settings, trailers, update,
};
use crate::world::{Answer, Caller, PATIENCE, Setup, World, collect, request};

/// How far what a server does may be felt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scope {
    /// The call that it was done to fails, its neighbour on the connection goes on.
    Stream,
    /// All calls of the connection fail, the next one has a new connection.
    Connection,
    /// Nobody fails: it is allowed, or to be ignored.
    Nobody,
}
use Scope::{Connection, Nobody, Stream};

/// One thing that a server may do: what it says when the victim, on stream 3, has asked. The innocent neighbour on stream 1
/// has had its head and a message by then.
struct Case {
    what: &'static str,
    scope: Scope,
    says: Vec<u8>,
}

fn case(what: &'static str, scope: Scope, says: Vec<u8>) -> Case {
    Case { what, scope, says }
}

const VICTIM: u32 = 3;

fn heads(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

fn ok() -> [(&'static str, &'static str); 2] {
    [(":status", "200"), ("content-type", "application/grpc")]
}

fn with(more: &[(&str, &str)]) -> Vec<u8> {
    heads(VICTIM, 0, &[&ok()[..], more].concat())
}

/// The connection goes on in one piece behind this; what was allowed is followed by a proper answer.
fn finish(mut says: Vec<u8>) -> Vec<u8> {
    says.extend(response(VICTIM));
    says.extend(trailers(VICTIM));
    says
}

fn frames() -> Vec<Case> {
    let mut huge = frame(HEADERS, END_HEADERS, VICTIM, &[0; 16_385]);
    huge.truncate(2_000);
    vec![
        case("a frame larger than we take", Connection, huge),
        case("DATA on stream 0", Connection, frame(DATA, 0, 0, b"x")),
        case(
            "HEADERS on stream 0",
            Connection,
            frame(HEADERS, END_HEADERS, 0, &block(&ok())),
        ),
        case("HEADERS on an idle stream of ours", Connection, heads(99, 0, &ok())),
        case("HEADERS on an even stream", Connection, heads(2, 0, &ok())),
        case("DATA on an idle stream", Connection, frame(DATA, 0, 99, b"x")),
        case("RST_STREAM on an idle stream", Connection, reset(99, 8)),
        case("RST_STREAM on stream 0", Connection, reset(0, 8)),
        case(
            "RST_STREAM of three bytes",
            Connection,
            frame(RST_STREAM, 0, VICTIM, &[0; 3]),
        ),
        case("WINDOW_UPDATE on an idle stream", Connection, update(99, 1)),
        case("WINDOW_UPDATE of 0 on the connection", Connection, update(0, 0)),
        case("WINDOW_UPDATE of 0 on a stream", Stream, update(VICTIM, 0)),
        case(
            "WINDOW_UPDATE of five bytes",
            Connection,
            frame(WINDOW_UPDATE, 0, VICTIM, &[1; 5]),
        ),
        case("a stream's window that overflows", Stream, update(VICTIM, 0x7FFF_FFFF)),
        case(
            "the connection's window that overflows",
            Connection,
            update(0, 0x7FFF_FFFF),
        ),
        case(
            "PUSH_PROMISE",
            Connection,
            frame(
                PUSH_PROMISE,
                END_HEADERS,
                VICTIM,
                &[&[0, 0, 0, 2][..], &block(&[(":method", "GET")])].concat(),
            ),
        ),
        case("SETTINGS on a stream", Connection, frame(SETTINGS, 0, VICTIM, &[])),
        case("SETTINGS of seven bytes", Connection, frame(SETTINGS, 0, 0, &[0; 7])),
        case(
            "an acknowledgement with a payload",
            Connection,
            frame(SETTINGS, ACK, 0, &[0; 6]),
        ),
        case("ENABLE_PUSH from a server", Connection, settings(&[(2, 1)])),
        case("a MAX_FRAME_SIZE out of range", Connection, settings(&[(5, 100)])),
        case(
            "an INITIAL_WINDOW_SIZE out of range",
            Connection,
            settings(&[(4, 1 << 31)]),
        ),
        case(
            "SETTINGS that make windows overflow",
            Connection,
            [update(VICTIM, 0x7000_0000), settings(&[(4, 0x7000_0000)])].concat(),
        ),
        case("PING on a stream", Connection, frame(PING, 0, VICTIM, &[0; 8])),
        case("PING of seven bytes", Connection, frame(PING, 0, 0, &[0; 7])),
        case("GOAWAY on a stream", Connection, frame(raw::GOAWAY, 0, VICTIM, &[0; 8])),
        case("GOAWAY of four bytes", Connection, frame(raw::GOAWAY, 0, 0, &[0; 4])),
        case(
            "GOAWAY that takes back the last",
            Connection,
            [goaway(3, 0), goaway(5, 0)].concat(),
        ),
        case(
            "CONTINUATION out of nowhere",
            Connection,
            frame(CONTINUATION, END_HEADERS, VICTIM, &block(&ok())),
        ),
        case(
            "a block broken off by DATA",
            Connection,
            [frame(HEADERS, 0, VICTIM, &block(&ok())), frame(DATA, 0, 1, b"x")].concat(),
        ),
        case(
            "a block that goes on on another stream",
            Connection,
            [
                frame(HEADERS, 0, VICTIM, &block(&ok())),
                frame(CONTINUATION, END_HEADERS, 1, &[]),
            ]
            .concat(),
        ),
        case(
            "padding longer than its DATA",
            Connection,
            frame(DATA, PADDED, VICTIM, &[9, 1, 2]),
        ),
        case(
            "padding longer than its HEADERS",
            Connection,
            frame(HEADERS, PADDED | END_HEADERS, VICTIM, &[200, 0x88]),
        ),
        case(
            "padded DATA without a pad length",
            Connection,
            frame(DATA, PADDED, VICTIM, &[]),
        ),
        case("PRIORITY of four bytes", Stream, frame(PRIORITY, 0, VICTIM, &[0; 4])),
        case(
            "HEADERS that depend on themselves",
            Stream,
            frame(
                HEADERS,
                END_HEADERS | raw::PRIORITIZED,
                VICTIM,
                &[&[0, 0, 0, 3, 9][..], &block(&ok())].concat(),
            ),
        ),
        case(
            "HTTP/1",
            Connection,
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec(),
        ),
        case(
            "frames that nobody knows",
            Nobody,
            finish([frame(0xEE, 0xFF, VICTIM, b"what"), frame(0xEF, 0, 0, &[1; 1_000])].concat()),
        ),
        case(
            "settings that nobody knows",
            Nobody,
            finish(settings(&[(0xFFFF, 7), (0x99, 1)])),
        ),
        case(
            "PRIORITY on streams that never were",
            Nobody,
            finish(frame(PRIORITY, 0, 77, &[0, 0, 0, 0, 1])),
        ),
        case(
            "an answer to a PING that nobody sent",
            Nobody,
            finish(frame(PING, ACK, 0, b"surprise")),
        ),
        case(
            "flags that a frame does not have",
            Nobody,
            finish(frame(PING, 0xFE, 0, b"12345678")),
        ),
        case(
            "RST_STREAM twice",
            Nobody,
            [&finish(vec![])[..], &reset(VICTIM, 0), &reset(VICTIM, 0)].concat(),
        ),
    ]
}

fn messages() -> Vec<Case> {
    let mut cases = vec![
        case("DATA before HEADERS", Stream, raw::message(VICTIM, b"early", false)),
        case(
            "1xx that ends",
            Stream,
            heads(VICTIM, END_STREAM, &[(":status", "103")]),
        ),
        case("101", Stream, heads(VICTIM, 0, &[(":status", "101")])),
        case(
            "no :status",
            Stream,
            heads(VICTIM, 0, &[("content-type", "application/grpc")]),
        ),
        case(":status of two digits", Stream, heads(VICTIM, 0, &[(":status", "20")])),
        case(
            ":status that is no number",
            Stream,
            heads(VICTIM, 0, &[(":status", "2x0")]),
        ),
        case(
            ":status twice",
            Stream,
            heads(VICTIM, 0, &[(":status", "200"), (":status", "200")]),
        ),
        case(
            ":status late",
            Stream,
            heads(VICTIM, 0, &[("x", "1"), (":status", "200")]),
        ),
        case("a request's pseudo field", Stream, with(&[(":path", "/")])),
        case("an upper-case name", Stream, with(&[("X-Upper", "1")])),
        case("a line break in a value", Stream, with(&[("x", "1\r\ny: 2")])),
        case("content-length that is none", Stream, with(&[("content-length", "-1")])),
        case(
            "DATA longer than content-length",
            Stream,
            [with(&[("content-length", "3")]), frame(DATA, 0, VICTIM, b"1234")].concat(),
        ),
        case(
            "DATA shorter than content-length",
            Stream,
            [
                with(&[("content-length", "5")]),
                frame(DATA, END_STREAM, VICTIM, b"1234"),
            ]
            .concat(),
        ),
        case(
            "trailers before content-length is reached",
            Stream,
            [with(&[("content-length", "5")]), trailers(VICTIM)].concat(),
        ),
        case(
            "trailers that do not end",
            Stream,
            [response(VICTIM), heads(VICTIM, 0, &[("grpc-status", "0")])].concat(),
        ),
        case(
            "a pseudo field in trailers",
            Stream,
            [
                response(VICTIM),
                heads(VICTIM, END_STREAM, &[(":status", "200"), ("grpc-status", "0")]),
            ]
            .concat(),
        ),
        case(
            "a second final head",
            Stream,
            [response(VICTIM), response(VICTIM)].concat(),
        ),
        case("a header list over our limit", Stream, {
            let large = "v".repeat(15_000);
            let names = ["a", "b", "c", "d", "e"];
            let fields: Vec<_> = ok()
                .into_iter()
                .chain(names.iter().map(|name| (*name, &*large)))
                .collect();
            let block = block(&fields);
            let mut pieces = block.chunks(16_384);
            let mut all = frame(HEADERS, 0, VICTIM, pieces.next().expect("a piece"));
            for piece in pieces {
                all.extend(frame(CONTINUATION, 0, VICTIM, piece));
            }
            all.extend(frame(CONTINUATION, END_HEADERS, VICTIM, &[]));
            all
        }),
        case(
            "DATA behind the end",
            Connection,
            [finish(vec![]), raw::message(VICTIM, b"late", false)].concat(),
        ),
        case(
            "DATA behind a reset of its own",
            Nobody,
            [finish(vec![]), reset(VICTIM, 0)].concat(),
        ),
        case(
            "1xx a few times",
            Nobody,
            finish(heads(VICTIM, 0, &[(":status", "103")]).repeat(20)),
        ),
        case(
            "trailers only",
            Nobody,
            heads(VICTIM, END_STREAM, &[(":status", "200"), ("grpc-status", "0")]),
        ),
        case(
            "an empty END_STREAM behind a message",
            Nobody,
            [response(VICTIM), trailers(VICTIM)].concat(),
        ),
        case(
            "padding only",
            Nobody,
            [
                response(VICTIM),
                frame(DATA, PADDED, VICTIM, &[&[255][..], &[0; 255]].concat()).repeat(30),
                trailers(VICTIM),
            ]
            .concat(),
        ),
    ];
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
    ] {
        cases.push(case("a connection-specific field", Stream, with(&[(name, "x")])));
    }
    cases
}

fn compression() -> Vec<Case> {
    let block_of = |bytes: &[u8]| frame(HEADERS, END_HEADERS, VICTIM, bytes);
    let mut over_table = vec![0x3F];
    over_table.extend_from_slice(&[0xE1, 0xFF, 0x03]);
    over_table.push(0x88);
    let mut table = block(&ok());
    literal(&mut table, 0x40, b"x-kept", b"1");
    vec![
        case("index 0", Connection, block_of(&[0x80])),
        case("an index beyond the table", Connection, block_of(&[0xFF, 0x00])),
        case(
            "an integer that does not end",
            Connection,
            block_of(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]),
        ),
        case("a field that is cut off", Connection, block_of(&[0x40, 0x05, b'a'])),
        case(
            "Huffman with EOS",
            Connection,
            block_of(&[0x00, 0x84, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, b'x']),
        ),
        case(
            "Huffman with too much padding",
            Connection,
            block_of(&[0x00, 0x82, 0x07, 0xFF, 0x01, b'x']),
        ),
        case("a table larger than we allow", Connection, block_of(&over_table)),
        case("a table size behind a field", Connection, block_of(&[0x88, 0x20])),
        case("a block of nothing", Stream, block_of(&[])),
        // The table stays in step: what a refused response put there is found by the innocent's trailers.
        case("a malformed response that fills the table", Stream, {
            let mut bad = block(&[(":status", "200"), ("connection", "x")]);
            literal(&mut bad, 0x40, b"grpc-status", b"0");
            block_of(&bad)
        }),
        case("a table that is emptied and filled", Nobody, {
            let mut all = vec![0x20, 0x3F, 0xE1, 0x1F];
            all.extend_from_slice(&table);
            [block_of(&all), trailers(VICTIM)].concat()
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_break_the_protocol_end_what_the_rfc_says_and_nothing_else() {
    let _with_others = MEMORY.read().await;
    for case in frames() {
        suffer(case).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_responses_end_their_stream_alone() {
    let _with_others = MEMORY.read().await;
    for case in messages() {
        suffer(case).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_compression_ends_the_connection_and_bad_lists_their_stream() {
    let _with_others = MEMORY.read().await;
    for case in compression() {
        suffer(case).await;
    }
}

/// Two callers, one upstream connection: the innocent's call runs on it while the victim's is done ill to.
async fn suffer(case: Case) {
    let Case { what, scope, says } = case;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), Setup::default()).await;
    let (done, told) = oneshot::channel();
    let server = tokio::spawn(serve_ill(listener, says, told));
    let innocent = call(world.caller().await, "/a.B/Innocent");
    // It has had its first message before the victim asks.
    world
        .until("grpc_client_started_total", &["Innocent"], |n| n == 1.0)
        .await;
    let victim = call(world.caller().await, "/a.B/Victim");
    let victim = tokio::time::timeout(PATIENCE, victim)
        .await
        .unwrap_or_else(|_| panic!("{what}: the victim's call hangs"))
        .expect("it held");
    // Where the connection is over, nobody waits for it.
    let _ = done.send(());
    let innocent = tokio::time::timeout(PATIENCE, innocent)
        .await
        .unwrap_or_else(|_| panic!("{what}: the innocent's call hangs"))
        .expect("it held");
    let fails = |answer: &Result<Answer, h2::Error>| {
        // Where a length was promised, only a reset can say that it is not reached.
        let Ok(answer) = answer else {
            assert!(what.contains("content-length"), "{what}: {answer:?}");
            return;
        };
        assert_ne!(answer.grpc_status.as_deref(), Some("0"), "{what}: {answer:?}");
        let sentence = answer.grpc_message.as_deref().unwrap_or_default();
        assert!(sentence.len() > 20, "{what}: {answer:?}");
    };
    let is_fine = |who: &str, answer: &Result<Answer, h2::Error>| {
        let answer = answer.as_ref().unwrap_or_else(|error| panic!("{what}: {who}: {error}"));
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{what}: {who}: {answer:?}");
    };
    match scope {
        Stream => {
            fails(&victim);
            is_fine("innocent", &innocent);
        }
        Connection => {
            // The victim's own answer may have been whole before.
            if what != "DATA behind the end" {
                fails(&victim);
            }
            fails(&innocent);
        }
        Nobody => {
            is_fine("victim", &victim);
            is_fine("innocent", &innocent);
        }
    }
    // A third call is served, whatever became of the connection.
    let next = tokio::time::timeout(PATIENCE, call(world.caller().await, "/a.B/Next"));
    is_fine(
        "next",
        &next
            .await
            .unwrap_or_else(|_| panic!("{what}: the next call hangs"))
            .expect("it held"),
    );
    server.abort();
    world.until_all_ended().await;
}

type Call = tokio::task::JoinHandle<Result<Answer, h2::Error>>;

fn call(mut caller: Caller, path: &'static str) -> Call {
    tokio::spawn(async move {
        let begun = caller.begin(request(path, &[])).await.expect("begun");
        let mut body = begun.body;
        body.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x01q"), true)
            .expect("sent");
        let response = begun.response.await?;
        collect(response, 0).await
    })
}

/// Serves the innocent in two steps, does ill to the victim, and serves everybody else.
async fn serve_ill(listener: TcpListener, says: Vec<u8>, told: oneshot::Receiver<()>) {
    let mut server = Raw::accept(&listener, &[]).await;
    let innocent = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&innocent).await;
    server
        .send(&[response(1), raw::message(1, b"one", false)].concat())
        .await;
    let victim = server.until(|frame| frame.kind == HEADERS).await;
    assert_eq!((innocent.stream, victim.stream), (1, VICTIM));
    server.fields(&victim).await;
    server.send(&says).await;
    // The connection answers meanwhile.
    let meanwhile = async {
        let mut server = server;
        let mut told = told;
        loop {
            tokio::select! {
                event = server.event() => match event {
                    Some(event) if event.kind == HEADERS => serve(&mut server, &event).await,
                    Some(_) => {}
                    None => return,
                },
                _ = &mut told, if !told.is_terminated() => {
                    server.send(&[raw::message(1, b"two", false), trailers(1)].concat()).await;
                }
            }
        }
    };
    let others = async {
        loop {
            let mut server = Raw::accept(&listener, &[]).await;
            tokio::spawn(async move {
                while let Some(event) = server.event().await {
                    if event.kind == HEADERS {
                        serve(&mut server, &event).await;
                    }
                }
            });
        }
    };
    tokio::join!(meanwhile, others);
}

async fn serve(server: &mut Raw, head: &raw::Frame) {
    server.fields(head).await;
    server
        .send(&[response(head.stream), trailers(head.stream)].concat())
        .await;
}

/// A world before a server of one connection that has heard one request, and its answer.
async fn asked(setup: Setup) -> (World, TcpListener, Raw, Call) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let victim = call(world.caller().await, "/a.B/Victim");
    let mut server = Raw::accept(&listener, &[]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    (world, listener, server, victim)
}

async fn fails(what: &str, victim: Call, sentence: &str) {
    let answer = tokio::time::timeout(PATIENCE, victim)
        .await
        .unwrap_or_else(|_| panic!("{what}: hangs"));
    let answer = answer.expect("it held").expect("answered");
    assert_ne!(answer.grpc_status.as_deref(), Some("0"), "{what}: {answer:?}");
    assert!(
        answer
            .grpc_message
            .as_deref()
            .is_some_and(|said| said.contains(sentence)),
        "{what}: {answer:?}"
    );
}

#[tokio::test]
async fn floods_of_a_server_end_its_connection_and_cost_no_memory() {
    let _with_others = MEMORY.read().await;
    let headers = |status: &str| heads(1, 0, &[(":status", status)]);
    let floods: [(&str, Vec<u8>); 7] = [
        ("1xx", headers("103")),
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", settings(&[(4, 65_535)])),
        ("WINDOW_UPDATE", update(1, 1)),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("empty DATA", [response(1), frame(DATA, 0, 1, &[])].concat()),
        ("unknown frames", frame(0xBB, 0, 0, b"x")),
    ];
    for (what, piece) in floods {
        let (_world, _listener, mut server, victim) = asked(Setup::default()).await;
        // The first piece alone, so that a head that belongs to it comes once.
        server.send(&piece).await;
        let piece = if what == "empty DATA" {
            frame(DATA, 0, 1, &[])
        } else {
            piece
        };
        let burst = piece.repeat(2_000);
        let flood = async {
            for _ in 0..30 {
                if !server.send_within(&burst, Duration::from_secs(5)).await {
                    break;
                }
            }
            server.until_closed().await
        };
        let last = tokio::time::timeout(PATIENCE, flood)
            .await
            .unwrap_or_else(|_| panic!("{what} goes on"));
        if let Some(last) = last {
            assert!([0, 11].contains(&last.goaway_code()), "{what}: {last:?}");
        }
        fails(what, victim, "").await;
    }
}

#[tokio::test]
async fn endless_continuations_of_a_server_end_its_connection() {
    let _with_others = MEMORY.read().await;
    let (_world, _listener, mut server, victim) = asked(Setup::default()).await;
    server.send(&frame(HEADERS, 0, 1, &block(&ok()))).await;
    for _ in 0..70 {
        server.send(&frame(CONTINUATION, 0, 1, &block(&[("x", "1")]))).await;
    }
    assert_eq!(server.until_closed().await.map(|last| last.goaway_code()), Some(11));
    fails("endless CONTINUATION", victim, "CONTINUATION").await;
}

#[tokio::test]
async fn a_server_that_closes_in_any_state_fails_its_calls_with_a_sentence() {
    let _with_others = MEMORY.read().await;
    for (what, says) in [
        ("at once", vec![]),
        ("in a frame's header", vec![0, 0, 9, 1]),
        ("in a block", frame(HEADERS, 0, 1, &block(&ok()))),
        ("behind a 1xx", heads(1, 0, &[(":status", "103")])),
        ("behind the head", response(1)),
        (
            "behind a message",
            [response(1), raw::message(1, b"one", false)].concat(),
        ),
        ("behind GOAWAY", goaway(1, 0)),
        ("behind GOAWAY with a code", goaway(1, 2)),
    ] {
        let (_world, _listener, mut server, victim) = asked(Setup::default()).await;
        server.send(&says).await;
        server.until_settled_or(&says).await;
        drop(server);
        fails(what, victim, "").await;
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_at_all_is_given_up() {
    let _with_others = MEMORY.read().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), Setup::default()).await;
    let victim = call(world.caller().await, "/a.B/Victim");
    let (silent, _) = listener.accept().await.expect("a connection");
    fails("silence", victim, "").await;
    drop(silent);
}

#[tokio::test]
async fn a_response_to_head_with_a_body_breaks_that_stream() {
    let _with_others = MEMORY.read().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let head = [
        (":method", "HEAD"),
        (":scheme", "http"),
        (":path", "/x"),
        (":authority", "127.0.0.1:1"),
    ];
    caller
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&head)))
        .await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    let page = heads(1, 0, &[(":status", "200"), ("content-length", "4")]);
    server.send(&[page, frame(DATA, END_STREAM, 1, b"page")].concat()).await;
    let event = server.until(|frame| frame.kind == RST_STREAM).await;
    assert_eq!((event.stream, event.number()), (1, 1));
    let mut ended = None;
    while ended.is_none() {
        let event = caller.event().await.expect("the connection goes on");
        assert!(event.kind != DATA || event.payload.is_empty());
        ended = (event.kind == RST_STREAM || event.has(END_STREAM)).then_some(event);
    }
}

#[tokio::test]
async fn bytes_that_trickle_one_by_one_make_the_same_answer() {
    let _with_others = MEMORY.read().await;
    let (_world, _listener, mut server, victim) = asked(Setup::default()).await;
    let answer = [response(1), raw::message(1, b"slowly", false), trailers(1)].concat();
    for byte in answer {
        server.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let answer = victim.await.expect("it held").expect("answered");
    assert_eq!((answer.grpc_status.as_deref(), answer.bytes), (Some("0"), 11));
}

#[tokio::test]
async fn a_server_without_windows_holds_up_its_own_calls_only() {
    let _with_others = MEMORY.read().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let world = World::before(listener.local_addr().expect("an address"), Setup::default()).await;
    // Before its SETTINGS came, DATA would go all the same.
    let first = call(world.caller().await, "/a.B/First");
    let mut server = Raw::accept(&listener, &[(4, 0)]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    serve(&mut server, &head).await;
    assert_eq!(
        first.await.expect("it held").expect("answered").grpc_status.as_deref(),
        Some("0")
    );
    server.until_read().await;
    let waits = call(world.caller().await, "/a.B/Waits");
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    // Windows of nothing stop DATA, not HEADERS.
    let also = call(world.caller().await, "/a.B/Also");
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    server.send(&[response(5), trailers(5), reset(5, 0)].concat()).await;
    assert_eq!(
        also.await.expect("it held").expect("answered").grpc_status.as_deref(),
        Some("0")
    );
    server.send(&update(3, 100)).await;
    server.until(|frame| frame.kind == DATA && frame.stream == 3).await;
    server.send(&[response(3), trailers(3)].concat()).await;
    assert_eq!(
        waits.await.expect("it held").expect("answered").grpc_status.as_deref(),
        Some("0")
    );
}

/// A server that has every request, and says of each in a sidecar's name that nobody had it; and how many it had.
async fn liar() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let had = Arc::new(AtomicUsize::new(0));
    let counts = had.clone();
    // What is no UTF-8 would be thrice as long when it is replaced, and nine times when that is encoded.
    let mut lie = block(&[
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "14"),
        ("portunus-error", "unreachable"),
    ]);
    literal(
        &mut lie,
        0,
        b"grpc-message",
        &[&b"nobody had it%21 "[..], &[0xff; 12_000]].concat(),
    );
    tokio::spawn(raw::serve(listener, move |_, stream| {
        counts.fetch_add(1, Relaxed);
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &lie)
    }));
    (addr, had)
}

/// A worker that is to call a service at these addresses, in plain and in turns: how many calls each is sent is then no
/// matter of chance.
async fn before_service(endpoints: &[SocketAddr]) -> World {
    let pki = Pki::new("mesh.test");
    let endpoint = |addr: &SocketAddr| Endpoint {
        identity: None,
        ..pki::endpoint(*addr, pki.id("server"))
    };
    let known = Known::Service(Arc::new(View {
        name: "svc.shop:1".to_owned(),
        addresses: Vec::new(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        policy: Policy {
            algorithm: Some(Algorithm::RoundRobin),
            ..Policy::default()
        },
    }));
    let credential = pki.credential(&pki.id("caller"), Duration::from_secs(3_600));
    let setup = Setup {
        pair: false,
        mesh: Some(pki::mesh_of(credential, Mode::Permissive, move |_| known.clone())),
        health: health::Settings {
            mode: health::Mode::Off,
            ..Default::default()
        },
        ..Setup::default()
    };
    World::before(endpoints[0], setup).await
}

#[tokio::test]
async fn a_server_that_says_in_a_sidecars_name_that_it_had_nothing_gets_each_call_once_and_few_bytes_of_its_are_told() {
    let _with_others = MEMORY.read().await;
    let ((one, had), (other, had_too)) = (liar().await, liar().await);
    let world = before_service(&[one, other]).await;
    let mut caller = world.caller().await;
    let began = Instant::now();
    for asked in 1..=20 {
        let answer = caller.call("/a.B/C", 10, 0).await.expect("answered");
        let sentence = answer.grpc_message.as_deref().expect("a sentence");
        assert_eq!(answer.grpc_status.as_deref(), Some("14"), "{answer:?}");
        assert!(sentence.contains("nobody had it! "), "{sentence}");
        // Also where the call was not sent, and is told what others were.
        assert!(sentence.len() < 4_096, "{} bytes", sentence.len());
        for had in [&had, &had_too] {
            assert!(had.load(Relaxed) <= asked, "a call came twice");
        }
    }
    // Whoever lies so is left alone for a while, but for a call each 100 ms where there is nobody else.
    let most = 2 + began.elapsed().as_millis() as usize / 100;
    assert!((1..=most).contains(&had.load(Relaxed)), "{had:?} of 20, at most {most}");
}

#[tokio::test]
async fn a_server_that_says_in_a_sidecars_name_that_it_had_nothing_costs_no_call_of_its_service() {
    let _with_others = MEMORY.read().await;
    let (lies, had) = liar().await;
    let serves = World::start().await;
    let world = before_service(&[lies, serves.meant]).await;
    let mut caller = world.caller().await;
    for _ in 0..100 {
        let answer = caller.call("/a.B/C", 10, 10).await.expect("answered");
        assert_eq!(
            (answer.grpc_status.as_deref(), answer.bytes),
            (Some("0"), 10),
            "{answer:?}"
        );
    }
    assert_eq!(serves.server.requests.load(Relaxed), 100, "each came once");
    assert!(had.load(Relaxed) > 0 && had.load(Relaxed) < 20, "{had:?} of 100");
}

/// Takes every call; says of its health, as long as somebody listens, that it serves: as fast as it may. How many bytes it has
/// said so.
async fn chatterbox() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let said = Arc::new(AtomicUsize::new(0));
    let counts = said.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let counts = counts.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.expect("a handshake");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    if request.uri().path().ends_with("/Watch") {
                        tokio::spawn(chat(respond, counts.clone()));
                        continue;
                    }
                    let head = http::Response::builder().header("grpc-status", "0");
                    let head = head.header("content-type", "application/grpc").body(());
                    respond.send_response(head.expect("a head"), true).expect("it is open");
                }
            });
        }
    });
    (addr, said)
}

async fn chat(mut respond: h2::server::SendResponse<bytes::Bytes>, said: Arc<AtomicUsize>) -> Result<(), h2::Error> {
    let head = http::Response::builder().header("content-type", "application/grpc");
    let mut send = respond.send_response(head.body(()).expect("a head"), false)?;
    let words = bytes::Bytes::from([0, 0, 0, 0, 2, 8, 1].repeat(1_000));
    loop {
        send.reserve_capacity(words.len());
        let Some(room) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else {
            return Ok(());
        };
        let now = words.slice(..words.len().min(room?));
        said.fetch_add(now.len(), Relaxed);
        send.send_data(now, false)?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_talks_of_its_health_without_end_is_heard_at_our_pace_and_not_at_its_own() {
    let _with_others = MEMORY.read().await;
    let (server, said) = chatterbox().await;
    let hosts = std::env::temp_dir().join(format!("portunus-chatterbox-{}", std::process::id()));
    std::fs::write(&hosts, "127.0.0.1 chatterbox.test\n").expect("a file");
    let setup = Setup {
        pair: false,
        hosts: Some(hosts.clone()),
        health: health::Settings {
            mode: health::Mode::Watch,
            ..Default::default()
        },
        ..Setup::default()
    };
    let world = World::before(server, setup).await;
    let mut caller = world.caller().await;
    let ask = || {
        let request = http::Request::post(format!("http://chatterbox.test:{}/a.B/C", server.port()));
        request
            .header("content-type", "application/grpc")
            .body(())
            .expect("a request")
    };
    assert_eq!(
        caller.ask(ask()).await.expect("answered").grpc_status.as_deref(),
        Some("0")
    );
    world
        .until("portunus_health_checks_total", &[], |checks| checks > 0.0)
        .await;
    let before = said.load(Relaxed);
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let answer = caller.ask(ask()).await.expect("answered");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A window of 64 KiB twenty times a second, and what is under way at both ends.
    let most = (began.elapsed().as_millis() as usize / 50 + 2) * 65_535;
    let heard = said.load(Relaxed) - before;
    assert!(heard < most, "{heard} bytes, and not {most}");
    assert!(heard > 1_000, "it is heard all the while");
    std::fs::remove_file(hosts).expect("it is there");
}
