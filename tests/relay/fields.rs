//! Header lists cross as they are, but for what the mesh itself has to say or to take out.

use http::Request;
use portunus_sidecar::http2;
use tokio::net::TcpListener;

use crate::raw::{self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Field, HEADERS, RST_STREAM, Raw, frame, literal};
use crate::world::{Begun, Setup, World, collect, request};

async fn before_raw(setup: Setup) -> (World, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    (World::before(addr, setup).await, listener)
}

fn values<'a>(fields: &'a [Field], name: &str) -> Vec<&'a str> {
    let named = fields.iter().filter(|field| field.name == name);
    named
        .map(|field| std::str::from_utf8(&field.value).expect("text"))
        .collect()
}

/// Says a request, and reads what came of it on the other side.
async fn cross(setup: Setup, block: &[u8], end: bool) -> (World, Raw, Raw, Vec<Field>) {
    let (world, listener) = before_raw(setup).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&frame(HEADERS, END_HEADERS | end as u8, 1, block)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    let head = server.until(|frame| frame.kind == HEADERS).await;
    let fields = server.fields(&head).await;
    (world, caller, server, fields)
}

fn head(more: &[(&str, &str)]) -> Vec<u8> {
    raw::head("/a.B/C", more)
}

#[tokio::test]
async fn metadata_duplicates_binaries_and_cookie_crumbs_keep_their_text_and_order() {
    let said = [
        ("x-two", "first"),
        ("trace-bin", "AAECAw"),
        ("cookie", "a=1"),
        ("x-two", ""),
        ("cookie", "b=2"),
        ("x-two", "third, with = signs \"and\" quotes"),
        ("trace-bin", "/+8"),
        ("cookie", "c=3"),
        ("grpc-encoding", "gzip"),
    ];
    let (_world, _caller, _server, fields) = cross(Setup::default(), &head(&said), true).await;
    let crossed: Vec<_> = fields
        .iter()
        .filter(|field| said.iter().any(|(name, _)| *name == field.name))
        .map(|field| (&*field.name, std::str::from_utf8(&field.value).expect("text")))
        .collect();
    assert_eq!(crossed, said);
    let pseudo: Vec<_> = fields.iter().take(4).map(|field| &*field.name).collect();
    assert_eq!(pseudo, [":method", ":scheme", ":path", ":authority"]);
}

#[tokio::test]
async fn what_nobody_may_index_nobody_may_index_behind_us_in_either_direction() {
    let mut block = head(&[("x-plain", "1")]);
    literal(&mut block, 0x10, b"x-secret", b"s3cret");
    // Secrets by their name, though their sender indexed them.
    literal(&mut block, 0x40, b"authorization", b"Bearer 1");
    literal(&mut block, 0x40, b"cookie", b"a=1");
    let (_world, mut caller, mut server, fields) = cross(Setup::default(), &block, true).await;
    for field in &fields {
        let secret = ["x-secret", "authorization", "cookie"].contains(&&*field.name);
        assert_eq!(field.never_indexed, secret, "{field:?}");
    }
    let mut answer = raw::block(&[(":status", "200")]);
    literal(&mut answer, 0x10, b"x-secret", b"t0p");
    server.send(&frame(HEADERS, END_HEADERS, 1, &answer)).await;
    let mut trailers = raw::block(&[("grpc-status", "0")]);
    literal(&mut trailers, 0x10, b"x-more", b"also");
    server
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers))
        .await;
    for (name, value) in [("x-secret", "t0p"), ("x-more", "also")] {
        let event = caller.until(|frame| frame.kind == HEADERS).await;
        let fields = caller.fields(&event).await;
        let field = fields.iter().find(|field| field.name == name).expect(name);
        assert!(field.never_indexed && field.value == value.as_bytes());
    }
}

#[tokio::test]
async fn an_identity_that_a_peer_claims_in_words_never_reaches_the_application() {
    let inbound = Setup {
        inbound: true,
        ..Setup::default()
    };
    let mut block = head(&[
        ("x-forwarded-client-cert", "By=me"),
        ("x_forwarded_client_cert", "By=me"),
        ("x-forwarded_client-cert", "By=me"),
        ("x-forwarded-client-cert", "again"),
        ("x-forwarded-for", "10.0.0.1"),
    ]);
    literal(&mut block, 0x40, b"x-forwarded-client-cert", b"indexed");
    literal(&mut block, 0x10, b"x-forwarded-client-cert", b"never indexed");
    let (_world, mut caller, mut server, fields) = cross(inbound, &block, false).await;
    let claims = |fields: &[Field]| {
        fields
            .iter()
            .any(|f| f.name.to_lowercase().replace('_', "-") == "x-forwarded-client-cert")
    };
    assert!(!claims(&fields), "{fields:?}");
    assert_eq!(values(&fields, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&fields, "x-forwarded-for"), ["10.0.0.1"]);
    let trailers = raw::block(&[("x_forwarded-client_cert", "By=me"), ("x-fine", "1")]);
    caller
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers))
        .await;
    let last = server.until(|frame| frame.kind == HEADERS).await;
    let fields = server.fields(&last).await;
    assert!(!claims(&fields), "{fields:?}");
    assert_eq!(values(&fields, "x-fine"), ["1"]);
}

#[tokio::test]
async fn large_header_lists_cross_in_continuations_both_ways() {
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let large = "v".repeat(9_000);
    let many: Vec<_> = (0..5)
        .map(|i| (["x-a", "x-b", "x-c", "x-d", "x-e"][i], &*large))
        .collect();
    let block = head(&many);
    // Cut so that fields, and even lengths, are cut.
    let mut pieces: Vec<_> = block.chunks(1_001).collect();
    let last = pieces.pop().expect("there are some");
    let mut all = frame(HEADERS, 0, 1, pieces[0]);
    for piece in &pieces[1..] {
        all.extend(frame(CONTINUATION, 0, 1, piece));
    }
    all.extend(frame(CONTINUATION, END_HEADERS, 1, last));
    caller.send(&all).await;
    let mut server = Raw::accept(&listener, &[]).await;
    let event = server.until(|frame| frame.kind == HEADERS).await;
    assert!(!event.has(END_HEADERS));
    let fields = server.fields(&event).await;
    assert_eq!(fields.iter().filter(|field| field.value == large.as_bytes()).count(), 5);
    let answer: Vec<_> = [(":status", "200")].into_iter().chain(many.iter().copied()).collect();
    let answer = raw::block(&answer);
    let (first, rest) = answer.split_at(16_384);
    let (second, third) = rest.split_at(16_384);
    let all = [
        frame(HEADERS, 0, 1, first),
        frame(CONTINUATION, 0, 1, second),
        frame(CONTINUATION, END_HEADERS, 1, third),
    ];
    server.send(&all.concat()).await;
    let event = caller.until(|frame| frame.kind == HEADERS).await;
    let fields = caller.fields(&event).await;
    assert_eq!(fields.iter().filter(|field| field.value == large.as_bytes()).count(), 5);
}

#[tokio::test]
async fn informational_responses_cross_before_the_final_one() {
    let (_world, mut caller, mut server, _) =
        cross(Setup::default(), &head(&[("expect", "100-continue")]), false).await;
    for (status, more) in [("100", "x"), ("103", "y"), ("103", "z")] {
        let block = raw::block(&[(":status", status), ("link", more)]);
        server.send(&frame(HEADERS, END_HEADERS, 1, &block)).await;
        let event = caller.until(|frame| frame.kind == HEADERS).await;
        assert!(!event.has(END_STREAM));
        let fields = caller.fields(&event).await;
        assert_eq!(
            (values(&fields, ":status"), values(&fields, "link")),
            (vec![status], vec![more])
        );
    }
    server.send(&[raw::response(1), raw::trailers(1)].concat()).await;
    let event = caller.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(values(&caller.fields(&event).await, ":status"), ["200"]);
}

#[tokio::test]
async fn trailers_of_both_directions_and_trailers_only_cross() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    let asked = request("/a.B/C", &[("x-echo-bin", "AAEC"), ("x-receive", "10")]);
    let Begun {
        response,
        mut body,
        seed,
    } = caller.begin(asked).await.expect("begun");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-asked", "yes".parse().expect("a value"));
    body.send_data(crate::bytes::Bytes::new(seed).take(10).into(), false)
        .expect("sent");
    body.send_trailers(trailers).expect("sent");
    let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
    assert_eq!(answer.trailers.get("x-asked").expect("it crossed"), "yes");
    assert_eq!(answer.head.get("x-echo-bin").expect("it crossed"), "AAEC");
    let only = caller
        .ask(request("/a.B/C", &[("x-act", "trailers-only")]))
        .await
        .expect("answered");
    assert_eq!(only.head.get("grpc-status").expect("in the head"), "5");
    assert!(only.trailers.is_empty() && only.bytes == 0);
}

#[tokio::test]
async fn http_2_that_is_not_grpc_is_carried_just_as_well() {
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    let get = |method: &str| {
        raw::block(&[
            (":method", method),
            (":scheme", "http"),
            (":path", "/x?y=z"),
            (":authority", "127.0.0.1:1"),
        ])
    };
    caller
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &get("GET")))
        .await;
    let mut server = Raw::accept(&listener, &[]).await;
    let event = server.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(values(&server.fields(&event).await, ":path"), ["/x?y=z"]);
    let page = raw::block(&[(":status", "200"), ("content-length", "4")]);
    server
        .send(
            &[
                frame(HEADERS, END_HEADERS, 1, &page),
                frame(DATA, END_STREAM, 1, b"page"),
            ]
            .concat(),
        )
        .await;
    assert_eq!(caller.until(|frame| frame.kind == DATA).await.payload, b"page");
    // HEAD: a length without a body.
    caller
        .send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &get("HEAD")))
        .await;
    let event = server.until(|frame| frame.kind == HEADERS).await;
    server.fields(&event).await;
    let page = raw::block(&[(":status", "200"), ("content-length", "4711")]);
    server.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &page)).await;
    let event = caller.until(|frame| frame.stream == 3).await;
    assert!(event.kind == HEADERS && event.has(END_STREAM));
    assert_eq!(values(&caller.fields(&event).await, "content-length"), ["4711"]);
    // CONNECT has neither scheme nor path.
    let connect = raw::block(&[(":method", "CONNECT"), (":authority", "db:5432")]);
    caller.send(&frame(HEADERS, END_HEADERS, 5, &connect)).await;
    let event = server.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(values(&server.fields(&event).await, ":method"), ["CONNECT"]);
    server
        .send(&frame(HEADERS, END_HEADERS, 5, &raw::block(&[(":status", "200")])))
        .await;
    caller.until(|frame| frame.stream == 5 && frame.kind == HEADERS).await;
    caller.send(&frame(DATA, 0, 5, b"ping")).await;
    assert_eq!(server.until(|frame| frame.kind == DATA).await.payload, b"ping");
    server.send(&frame(DATA, 0, 5, b"pong")).await;
    assert_eq!(caller.until(|frame| frame.kind == DATA).await.payload, b"pong");
}

#[tokio::test]
async fn a_failure_is_told_in_http_to_a_caller_that_does_not_speak_grpc() {
    let world = World::before(crate::world::free_port(), Setup::default()).await;
    let mut caller = world.caller().await;
    let get = Request::get("http://127.0.0.1:80/page").body(()).expect("a request");
    let answer = caller.ask(get).await.expect("answered");
    assert_eq!(answer.status, 503);
    assert!(answer.bytes > 20 && answer.head.contains_key("portunus-error") && answer.grpc_status.is_none());
}

#[tokio::test]
async fn a_request_over_a_header_limit_is_refused_alone_with_a_status() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    let running = caller
        .begin(request("/a.B/C", &[("x-receive", "100")]))
        .await
        .expect("begun");
    let large = "v".repeat(30_000);
    let over = request("/a.B/C", &[("x-a", &large), ("x-b", &large), ("x-c", &large)]);
    let answer = caller.ask(over).await.expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    assert!(answer.grpc_message.expect("a sentence").contains("send less metadata"));
    let many: Vec<_> = (0..300).map(|i| format!("x-{i}")).collect();
    let many: Vec<_> = many.iter().map(|name| (&**name, "1")).collect();
    let answer = caller.ask(request("/a.B/C", &many)).await.expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    let crumbs = vec![("cookie", "a=1"); 300];
    let answer = caller.ask(request("/a.B/C", &crumbs)).await.expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    let Begun {
        response,
        mut body,
        seed,
    } = running;
    body.send_data(bytes::Bytes::new(), true).expect("sent");
    let answer = collect(response.await.expect("answered"), seed).await.expect("whole");
    assert_eq!(answer.grpc_status.as_deref(), Some("0"));
}

#[tokio::test]
async fn trailers_over_a_limit_are_not_passed_on_cut_off() {
    let large = "v".repeat(30_000);
    let block = raw::block(&[("x-a", &large), ("x-b", &large), ("x-c", &large)]);
    let mut pieces = block.chunks(16_000);
    let mut all = frame(HEADERS, END_STREAM, 1, pieces.next().expect("a piece"));
    let pieces: Vec<_> = pieces.collect();
    for (i, piece) in pieces.iter().enumerate() {
        let last = if i + 1 == pieces.len() { END_HEADERS } else { 0 };
        all.extend(frame(CONTINUATION, last, 1, piece));
    }
    // Of the request.
    let (_world, mut caller, mut server, _) = cross(Setup::default(), &head(&[]), false).await;
    caller.send(&all).await;
    let event = caller.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(values(&caller.fields(&event).await, "grpc-status"), ["8"]);
    assert_eq!(server.until(|frame| frame.kind == RST_STREAM).await.number(), 8);
    // Of the response.
    let (_world, mut caller, mut server, _) = cross(Setup::default(), &head(&[]), true).await;
    server.send(&[raw::response(1), all].concat()).await;
    let event = caller.until(|frame| frame.kind == HEADERS).await;
    caller.fields(&event).await;
    let event = caller.until(|frame| frame.kind == HEADERS).await;
    assert_eq!(values(&caller.fields(&event).await, "grpc-status"), ["8"]);
}

#[tokio::test]
async fn a_header_list_over_what_the_next_hop_takes_is_refused_here() {
    // The server said how much it takes.
    let world = World::with(Setup {
        server_header_list: Some(2_000),
        ..Setup::default()
    })
    .await;
    let mut caller = world.caller().await;
    caller.call("/a.B/C", 0, 0).await.expect("answered");
    let large = "v".repeat(3_000);
    let answer = caller
        .ask(request("/a.B/C", &[("x-a", &large)]))
        .await
        .expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    assert!(answer.grpc_message.expect("a sentence").contains("at most 2000 bytes"));
    let Begun { response, mut body, .. } = caller.begin(request("/a.B/C", &[])).await.expect("begun");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-a", large.parse().expect("a value"));
    body.send_trailers(trailers).expect("sent");
    let answer = collect(response.await.expect("answered"), 0).await.expect("whole");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    // The caller did.
    let world = World::start().await;
    let mut builder = h2::client::Builder::new();
    builder.max_header_list_size(1_000);
    let mut caller = world.caller_of(&builder).await;
    let large = "v".repeat(3_000);
    let answer = caller
        .ask(request("/a.B/C", &[("x-echo", &large)]))
        .await
        .expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"), "{answer:?}");
    assert_eq!(
        caller.call("/a.B/C", 10, 10).await.expect("the connection lives").bytes,
        10
    );
}

#[tokio::test]
async fn malformed_requests_are_refused_each_on_its_own_stream() {
    let base = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a.B/C"),
        (":authority", "127.0.0.1:1"),
    ];
    let with = |more: &[(&str, &str)]| raw::block(&[&base[..], more].concat());
    let without = |name: &str| {
        let rest: Vec<_> = base.iter().copied().filter(|(n, _)| *n != name).collect();
        raw::block(&rest)
    };
    let cases = [
        ("an upper-case name", with(&[("X-Upper", "1")])),
        ("connection", with(&[("connection", "close")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("proxy-connection", with(&[("proxy-connection", "1")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "h2c")])),
        ("te", with(&[("te", "gzip")])),
        ("a late pseudo field", with(&[("x", "1"), (":path", "/b")])),
        ("a response's pseudo field", with(&[(":status", "200")])),
        ("an unknown pseudo field", with(&[(":unknown", "1")])),
        (":protocol that was not allowed", with(&[(":protocol", "websocket")])),
        ("a pseudo field twice", with(&[(":path", "/b")])),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("no path", without(":path")),
        ("an empty path", raw::block(&[base[0], base[1], (":path", ""), base[3]])),
        ("an empty name", with(&[("", "1")])),
        ("a space in a name", with(&[("a b", "1")])),
        ("a colon in a name", with(&[("a:b", "1")])),
        ("a line break in a value", with(&[("x", "1\r\nhost: evil")])),
        ("a NUL in a value", with(&[("x", "1\0")])),
        ("a value with a blank in front", with(&[("x", " 1")])),
        ("content-length that is none", with(&[("content-length", "four")])),
        ("two lengths", with(&[("content-length", "4"), ("content-length", "5")])),
    ];
    let (world, listener) = before_raw(Setup::default()).await;
    let mut caller = Raw::client(world.proxy, &[]).await;
    caller.send(&raw::request(1, "/a.B/Innocent", &[], false)).await;
    let mut server = Raw::accept(&listener, &[]).await;
    server.until(|frame| frame.kind == HEADERS).await;
    let mut stream = 1;
    for (what, block) in &cases {
        stream += 2;
        caller.send(&frame(HEADERS, END_HEADERS, stream, block)).await;
        let event = caller.event().await.expect(what);
        assert_eq!((event.kind, event.stream), (RST_STREAM, stream), "{what}");
        assert_eq!(event.number(), 1, "{what}: PROTOCOL_ERROR");
    }
    // Lengths that DATA does not match: too little, too much, and none where some was said.
    for (length, data, end) in [("4", &b"123"[..], true), ("4", b"12345", false), ("4", b"", true)] {
        stream += 2;
        let head = frame(HEADERS, END_HEADERS, stream, &with(&[("content-length", length)]));
        caller
            .send(&[head, frame(DATA, end as u8, stream, data)].concat())
            .await;
        let event = caller.event().await.expect("an answer");
        assert_eq!((event.kind, event.stream, event.number()), (RST_STREAM, stream, 1));
    }
    server.send(&[raw::response(1), raw::trailers(1)].concat()).await;
    caller.until(|frame| frame.stream == 1 && frame.has(END_STREAM)).await;
    assert_eq!(
        world.metric("portunus_abuse_total", &["malformed"]),
        cases.len() as f64 + 3.0
    );
}

#[tokio::test]
async fn limits_of_ours_can_be_set() {
    let setup = Setup {
        http2: http2::Settings {
            max_header_list_bytes: 1_000,
            ..http2::Settings::default()
        },
        ..Setup::default()
    };
    let world = World::with(setup).await;
    let mut caller = world.caller().await;
    let large = "v".repeat(1_000);
    let answer = caller
        .ask(request("/a.B/C", &[("x-a", &large)]))
        .await
        .expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("8"));
    // A response over it is the server's doing, and the caller is told.
    let half = "v".repeat(500);
    let answer = caller
        .ask(request("/a.B/C", &[("x-echo", &half)]))
        .await
        .expect("answered");
    assert_eq!(answer.grpc_status.as_deref(), Some("0"));
}
