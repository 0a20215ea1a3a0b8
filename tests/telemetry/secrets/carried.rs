//! Secrets in what applications say to each other: in calls, in HTTP/1, in tunnels, and in what is none of these.

use anyhow::{Result, ensure};
use support::wait_until;

use super::plants::Plants;
use super::world::{BAD_HTTP1, FAREWELL, H2, HTTP1, MALFORMED, NAME, OTHER_HTTP, TUNNEL, WEB_PAGE, World};
use crate::application::{Call, call, say, say_until};
use crate::frames;

/// What must have reached the application.
pub(crate) const TO_THE_APPLICATION: &[&str] = &[
    "authorization of a call",
    "cookie of a call",
    "x-api-key of a call",
    "a field of a call",
    "a binary field of a call",
    "baggage",
    "tracestate",
    "the message of a call",
    "a trailer of a call",
    "the query of a call's path",
    "authorization of an HTTP/1 request",
    "cookie of an HTTP/1 request",
    "the path of an HTTP/1 request",
    "the query of an HTTP/1 request",
    "the body of an HTTP/1 request",
    "bytes of a tunnel",
];

pub(crate) fn plant(world: &World, plants: &mut Plants) -> Result<()> {
    calls(world, plants)?;
    calls_that_fail(world, plants)?;
    http1(world, plants)?;
    frames(world, plants)?;
    let bytes = plants.text("bytes of a tunnel");
    let answer = say_until(&world.caller, world.at(TUNNEL)?, bytes.as_bytes(), |answer| {
        plants.arrived("an answer through a tunnel", answer)
    })?;
    world.heard(answer);
    let health = || String::from_utf8_lossy(&world.application.heard()).contains("grpc.health.v1");
    wait_until(std::time::Duration::from_secs(10), "health was asked for", health)
}

fn field(name: &str, value: String) -> (String, String) {
    (name.to_owned(), value)
}

fn calls(world: &World, plants: &mut Plants) -> Result<()> {
    let url = |path: &str| format!("http://{NAME}:{H2}/plant.Service/{path}");
    let sampled = format!(
        "00-{:032x}-{:016x}-01",
        rand::random::<u128>(),
        rand::random::<u64>() | 1
    );
    let whole = Call {
        url: url("Answers"),
        headers: vec![
            field(
                "authorization",
                format!("Bearer {}", plants.text("authorization of a call")),
            ),
            field("cookie", format!("session={}", plants.text("cookie of a call"))),
            field("x-api-key", plants.text("x-api-key of a call")),
            field("proxy-authorization", plants.text("proxy-authorization of a call")),
            field("x-secret", plants.text("a field of a call")),
            field("x-secret-bin", plants.binary("a binary field of a call")),
            field("user-agent", plants.text("user-agent of a call")),
            field("x-request-id", plants.text("x-request-id of a call")),
            field("baggage", format!("user={}", plants.text("baggage"))),
            field("traceparent", sampled),
            field("tracestate", format!("vendor={}", plants.text("tracestate"))),
            field(
                "x-forwarded-client-cert",
                format!("By=x;URI={}", plants.text("x-forwarded-client-cert of a member")),
            ),
        ],
        body: plants.text("the message of a call").into_bytes(),
        trailers: vec![field("x-late-secret", plants.text("a trailer of a call"))],
        ..Call::default()
    };
    let query = plants.text("the query of a call's path");
    let user = plants.text("the password in an authority");
    let one = |name: &str, value: String| Call {
        url: url("Answers"),
        headers: vec![field(name, value)],
        ..Call::default()
    };
    let mut all = vec![
        Call {
            url: url(&format!("Queried?token={query}")),
            ..Call::default()
        },
        Call {
            url: format!("http://user:{user}@{NAME}:{H2}/plant.Service/Answers"),
            ..Call::default()
        },
        one(
            "content-type",
            format!("application/grpc; key={}", plants.text("a content type's parameter")),
        ),
        one("content-type", format!("text/{}", plants.text("a content type"))),
        whole,
    ];
    for name in [
        "grpc-timeout",
        "grpc-encoding",
        "grpc-accept-encoding",
        "grpc-previous-rpc-attempts",
        "traceparent",
        "b3",
        "x-b3-traceid",
        "grpc-trace-bin",
        "content-length",
        "host",
        "te",
        "x-forwarded-for",
    ] {
        all.push(one(name, plants.text(&format!("{name}, where something else belongs"))));
    }
    world.heard(call(&world.caller, world.at(H2)?, &all)?);
    // Past the caller's sidecar: in plain, as nobody.
    let spoof = format!("By=x;URI={}", plants.text("x-forwarded-client-cert of a stranger"));
    let foreign = [
        one("x-forwarded-client-cert", spoof),
        one("authorization", plants.text("authorization of a stranger's call")),
    ];
    world.heard(call(&world.stranger, world.at(H2)?, &foreign)?);
    Ok(())
}

fn calls_that_fail(world: &World, plants: &mut Plants) -> Result<()> {
    let of = |port: u16, path: &str, secret: String| Call {
        url: format!("http://{NAME}:{port}/plant.Service/{path}"),
        headers: vec![field("x-secret", secret.clone())],
        body: secret.into_bytes(),
        ..Call::default()
    };
    for (port, path) in [
        (H2, "Fails"),
        (H2, "Away"),
        (H2, "Resets"),
        (FAREWELL, "Farewell"),
        (OTHER_HTTP, "Http1"),
        (MALFORMED, "Malformed"),
        (WEB_PAGE, "Page"),
        (10001, "Nobody"),
    ] {
        let secret = plants.text(&format!("a field and the message of a call to {path}"));
        world.heard(call(&world.caller, world.at(port)?, &[of(port, path, secret)])?);
    }
    // There is no such name, and nobody at that address.
    let late = Call {
        headers: vec![
            field("grpc-timeout", "200m".to_owned()),
            field("x-secret", plants.text("a field of a call that is too late")),
        ],
        ..of(H2, "Late", plants.text("the message of a call that is too late"))
    };
    let nowhere = Call {
        url: "http://nobody.test:10000/plant.Service/Nowhere".to_owned(),
        ..late.clone()
    };
    world.heard(call(&world.caller, world.at(H2)?, &[nowhere])?);
    Ok(())
}

fn http1(world: &World, plants: &mut Plants) -> Result<()> {
    let mut text = |place: &str| plants.text(place);
    let whole = format!(
        "POST /users/{}?token={} HTTP/1.1\r\nHost: web.test\r\nAuthorization: Basic {}\r\nCookie: session={}\r\n\
         X-Forwarded-Client-Cert: {}\r\nUser-Agent: {}\r\nContent-Length: 24\r\nConnection: close\r\n\r\n{}",
        text("the path of an HTTP/1 request"),
        text("the query of an HTTP/1 request"),
        text("authorization of an HTTP/1 request"),
        text("cookie of an HTTP/1 request"),
        text("x-forwarded-client-cert of an HTTP/1 request"),
        text("user-agent of an HTTP/1 request"),
        text("the body of an HTTP/1 request"),
    );
    let get = |line: &str, fields: &str| format!("GET {line} HTTP/1.1\r\n{fields}\r\n\r\n");
    let bad = [
        get(
            "/",
            &format!("Host: a\r\nTransfer-Encoding: {}", text("a transfer coding")),
        ),
        get("/", &format!("Host: a\r\nHost: {}", text("a second Host"))),
        get("/", &format!("Host: {}@a", text("a Host with a user"))),
        get("/", &format!("Host: a\r\nno field {}", text("a line that is no field"))),
        get(
            "/",
            &format!("Host: a\r\nContent-Length: {}", text("a length that is none")),
        ),
        get(
            "/",
            &format!(
                "Host: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: {}",
                text("HTTP2-Settings")
            ),
        ),
        get(
            "/",
            &format!(
                "Host: a\r\nConnection: Upgrade\r\nUpgrade: {}",
                text("a protocol to upgrade to")
            ),
        ),
        get(
            &format!("http://user:{}@web.test/", text("the password in a URL")),
            "Host: web.test",
        ),
        format!(
            "CONNECT {}:443 HTTP/1.1\r\nHost: a\r\n\r\n",
            text("where a CONNECT leads")
        ),
        format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", text("a method of HTTP/1")),
        format!("GET / {}\r\nHost: a\r\n\r\n", text("a version of HTTP")),
    ];
    let answer = say_until(&world.caller, world.at(HTTP1)?, whole.as_bytes(), |answer| {
        plants.arrived("an answer of a web server's", answer)
    })?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", answer.escape_ascii());
    world.heard(answer);
    let bad: Vec<_> = bad.map(String::into_bytes).into();
    say_all(world, HTTP1, &bad)?;
    let request = get(
        "/",
        &format!("Host: a\r\nCookie: {}", plants.text("a cookie for a bad web server")),
    );
    say(&world.caller, world.at(BAD_HTTP1)?, request.as_bytes())?;
    Ok(())
}

/// HTTP/2 as nobody should speak it, to either door.
fn frames(world: &World, plants: &mut Plants) -> Result<()> {
    let mut text = |place: &str| plants.text(place);
    let authority = format!("{NAME}:{H2}");
    let with = |name: &str, value: &str| frames::request(&authority, "/plant.Service/Raw", &[(name, value)]);
    let bad_path = format!("/plant.Service/Raw {}", text("the path of a malformed request"));
    let all = [
        with("x-secret", &format!("{}\0", text("a field with a control byte"))),
        with("X-Secret", &text("a field with a name in upper case")),
        with("connection", &text("a field that HTTP/2 has not")),
        with(":secret", &text("a pseudo field that there is not")),
        with(&text("the name of a field with a space "), " "),
        frames::request(&authority, &bad_path, &[]),
        frames::frame(
            1,
            5,
            1,
            &[
                frames::literal("x-secret", &text("a field before a broken block")),
                vec![0xff; 9],
            ]
            .concat(),
        ),
        frames::frame(
            1,
            5,
            1,
            &[&[0x00, 0x7f, 0xff, 0xff], text("a block that is none").as_bytes()].concat(),
        ),
        frames::frame(0, 0, 0, text("DATA of no stream").as_bytes()),
        frames::frame(
            0,
            8,
            1,
            &[&[0xff], text("DATA with more padding than it has").as_bytes()].concat(),
        ),
        frames::frame(0, 0, 9, text("DATA of a stream that is idle").as_bytes()),
        frames::frame(6, 0, 0, text("a PING of another size").as_bytes()),
        frames::frame(4, 0, 0, &text("SETTINGS of another size").as_bytes()[..23]),
        frames::frame(5, 4, 1, text("a PUSH_PROMISE").as_bytes()),
        frames::frame(9, 4, 1, text("a CONTINUATION of nothing").as_bytes()),
        frames::frame(0xfe, 0, 0, text("a frame of no kind").as_bytes()),
        frames::goaway(2, &text("debug data of a caller's GOAWAY")),
        [
            frames::request(&authority, "/plant.Service/Raw", &[]),
            frames::frame(0, 1, 1, text("DATA behind the end").as_bytes()),
        ]
        .concat(),
        text("no frame at all").into_bytes(),
    ];
    let all: Vec<_> = all.map(|bytes| frames::client(&[bytes])).into();
    say_all(world, H2, &all)?;
    let preface = format!("PRI * HTTP/2.0\r\n\r\n{}\r\n\r\n", text("a preface that goes wrong"));
    say(&world.stranger, world.at(H2)?, preface.as_bytes())?;
    Ok(())
}

/// Each of them, on connections of their own, by the caller's sidecar and past it.
fn say_all(world: &World, port: u16, all: &[Vec<u8>]) -> Result<()> {
    let to = world.at(port)?;
    std::thread::scope(|scope| {
        let sides = [&world.caller, &world.stranger];
        let saying: Vec<_> = all
            .iter()
            .flat_map(|bytes| sides.map(|from| scope.spawn(move || say(from, to, bytes).map(drop))))
            .collect();
        saying
            .into_iter()
            .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
    })
}
