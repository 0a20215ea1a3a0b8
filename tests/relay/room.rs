//! Calls that wait for room in a full connection: to whom they go then, and that they do not wait for ever.

use std::time::{Duration, Instant};

use bytes::Bytes as Buf;
use portunus_sidecar::route::{Known, Subject};
use support::pki::{self, Pki};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::discovery::{Control, call_to, outside};
use crate::raw::{self, HEADERS, Raw};
use crate::world::{Answer, Begun, Caller, PATIENCE, Setup, World, collect, request};

/// SETTINGS_MAX_CONCURRENT_STREAMS.
const STREAMS: u16 = 3;
/// Connections that one address gets at most.
const MOST_WIRES: usize = 64;

/// A call on a task of its own.
fn call(caller: &Caller) -> tokio::task::JoinHandle<Answer> {
    let mut caller = caller.clone();
    tokio::spawn(async move {
        let begun = caller.begin(request("/a.B/C", &[])).await.expect("it begins");
        let Begun { response, mut body, .. } = begun;
        body.send_data(Buf::from_static(b"x"), true).expect("it goes on");
        collect(response.await.expect("answered"), 0).await.expect("whole")
    })
}

async fn within_reason(call: tokio::task::JoinHandle<Answer>) -> Answer {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    answer.expect("it does not wait for ever").expect("it held")
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

/// A worker before a server that takes one call at a time, and has one.
async fn full() -> (World, Caller, tokio::task::JoinHandle<Answer>, Raw, TcpListener, u32) {
    let listener = listener().await;
    let setup = Setup {
        pair: false,
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    let caller = world.caller().await;
    let running = call(&caller);
    let mut server = Raw::accept(&listener, &[(STREAMS, 1)]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    server.until_read().await;
    (world, caller, running, server, listener, head.stream)
}

async fn answer(server: &mut Raw, stream: u32) {
    let answer = [raw::response(stream), raw::trailers(stream)].concat();
    server.send(&answer).await;
}

#[tokio::test]
async fn a_call_does_not_wait_for_ever_for_room_when_no_further_connection_can_be_made() {
    let (_world, caller, running, mut server, listener, stream) = full().await;
    drop(listener);
    let began = Instant::now();
    let refused = tokio::select! {
        refused = within_reason(call(&caller)) => refused,
        // It lives, and says so when it is asked.
        event = server.event() => panic!("{event:?}"),
    };
    let said = refused.grpc_message.as_deref().unwrap_or_default();
    assert_eq!(refused.grpc_status.as_deref(), Some("14"), "{refused:?}");
    assert!(said.contains("refused"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    answer(&mut server, stream).await;
    assert_eq!(within_reason(running).await.grpc_status.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_call_that_waits_for_room_gets_it_when_a_stream_ends_though_a_further_dial_has_failed() {
    let (world, caller, running, mut server, listener, stream) = full().await;
    drop(listener);
    let waits = call(&caller);
    world
        .until("grpc_client_started_total", &[], |calls| calls == 2.0)
        .await;
    answer(&mut server, stream).await;
    assert_eq!(within_reason(running).await.grpc_status.as_deref(), Some("0"));
    let head = server.until(|frame| frame.kind == HEADERS).await;
    answer(&mut server, head.stream).await;
    assert_eq!(within_reason(waits).await.grpc_status.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_place_that_came_free_is_given_on_though_the_caller_of_the_finished_call_reads_nothing() {
    let listener = listener().await;
    let setup = Setup {
        pair: false,
        ..Setup::default()
    };
    let world = World::before(listener.local_addr().expect("an address"), setup).await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut reads_nothing = Raw::client(world.proxy, &[(4, 0)]).await;
    reads_nothing.send(&raw::request(1, "/a.B/C", &[], true)).await;
    let mut server = Raw::accept(&listener, &[(STREAMS, 1)]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&head).await;
    server.until_read().await;
    drop(listener);
    let waits = call(&world.caller().await);
    world
        .until("grpc_client_started_total", &[], |calls| calls == 2.0)
        .await;
    let stream = head.stream;
    let message = raw::message(stream, b"nobody reads this", false);
    server
        .send(&[raw::response(stream), message, raw::trailers(stream)].concat())
        .await;
    let next = server.until(|frame| frame.kind == HEADERS);
    let next = tokio::time::timeout(PATIENCE, next).await.expect("it is sent");
    answer(&mut server, next.stream).await;
    assert_eq!(within_reason(waits).await.grpc_status.as_deref(), Some("0"));
    let handled = world.metric("grpc_client_handled_total", &[]);
    assert_eq!(handled, 1.0, "the other one is not over");
}

#[tokio::test]
async fn a_call_that_waits_for_room_is_not_sent_in_plain_once_control_has_said_who_is_there() {
    let listener = listener().await;
    let meant = listener.local_addr().expect("an address");
    let control = Control::default();
    let setup = Setup {
        pair: false,
        mesh: Some(control.mesh()),
        ..Setup::default()
    };
    let world = World::before(meant, setup).await;
    control.says(Subject::Address(meant), outside());
    let (caller, authority) = (world.caller().await, meant.to_string());
    let mut calls = vec![call_to(&caller, &authority)];
    let mut servers = Vec::new();
    while servers.len() < MOST_WIRES {
        let mut server = Raw::accept(&listener, &[(STREAMS, 1)]).await;
        let head = server.until(|frame| frame.kind == HEADERS).await;
        server.until_read().await;
        servers.push((server, head.stream));
        calls.push(call_to(&caller, &authority));
    }
    world
        .until("grpc_client_started_total", &[], |begun| begun == calls.len() as f64)
        .await;
    let identity = Pki::new("mesh.test").id("server");
    control.says(Subject::Address(meant), Known::Endpoint(pki::endpoint(meant, identity)));
    let (server, stream) = &mut servers[0];
    server.until(|frame| frame.kind == raw::GOAWAY).await;
    answer(server, *stream).await;
    let dialled = tokio::time::timeout(PATIENCE, listener.accept()).await;
    let (mut socket, _) = dialled.expect("the last call is sent").expect("a connection");
    let first = socket.read_u8().await.expect("it says something");
    assert_eq!(first, 22, "a ClientHello: nothing less than mTLS, once that is known");
}
