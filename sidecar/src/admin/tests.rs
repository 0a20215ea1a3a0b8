//! The door, over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::telemetry::Registry;

struct House {
    door: Door,
    liveness: Arc<Conditions>,
    readiness: Arc<Conditions>,
    drained: Arc<AtomicUsize>,
}

impl House {
    fn at(&self) -> SocketAddr {
        self.door.addresses()[0]
    }
}

fn house(settings: Settings) -> House {
    let (liveness, readiness) = (Conditions::new(), Conditions::new());
    let drained = Arc::new(AtomicUsize::new(0));
    let counter = drained.clone();
    let pages = Pages {
        liveness: liveness.clone(),
        readiness: readiness.clone(),
        registry: Registry::new(&Default::default()),
        config: json!({ "settings": { "workers": 2 } }),
        endpoints: Box::new(|| json!([{ "service": "greeter" }])),
        drain: Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }),
    };
    House {
        door: Door::open(&settings, pages).expect("the door opens"),
        liveness,
        readiness,
        drained,
    }
}

fn settings() -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".parse().expect("an address")],
        ..Settings::default()
    }
}

/// Sends these bytes and reads until the other side closes.
async fn say(at: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(at).await.expect("the door is open");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it takes the request");
    read_all(&mut stream).await
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("it closes in time");
    read.expect("it closes in order");
    String::from_utf8(answer).expect("all pages are text")
}

async fn get(at: SocketAddr, path: &str) -> String {
    say(at, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await
}

#[tokio::test]
async fn ready_says_what_is_missing_until_nothing_is() {
    let house = house(settings());
    let rules = house.readiness.condition("redirect", "the redirect rules are missing");
    let answer = get(house.at(), "/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nnot ready: the redirect rules are missing\n"),
        "{answer}"
    );
    assert!(
        get(house.at(), "/live").await.starts_with("HTTP/1.1 200 "),
        "live is not ready"
    );
    rules.met();
    assert!(get(house.at(), "/ready").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn live_says_what_is_wrong_and_asks_for_nothing_else() {
    let house = house(settings());
    let turning = house.liveness.condition("workers", "worker-1 has not turned for 12 s");
    let answer = get(house.at(), "/live").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\nnot live: worker-1 has not turned for 12 s\n"),
        "{answer}"
    );
    assert!(
        get(house.at(), "/ready").await.starts_with("HTTP/1.1 200 "),
        "each has conditions of its own"
    );
    turning.met();
    assert!(get(house.at(), "/live").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn metrics_come_in_the_form_that_was_asked_for() {
    let house = house(settings());
    let answer = get(house.at(), "/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nprocess_resident_memory_bytes "), "{answer}");
    let request = "GET /metrics HTTP/1.1\r\nhost: pod\r\naccept: application/openmetrics-text\r\n\r\n";
    let answer = say(house.at(), request).await;
    assert!(
        answer.contains("application/openmetrics-text") && answer.ends_with("# EOF\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn the_pods_own_pages_answer_to_loopback_names_alone() {
    let house = house(settings());
    assert!(get(house.at(), "/config").await.contains("\"workers\": 2"));
    assert!(get(house.at(), "/endpoints").await.contains("greeter"));
    for path in ["/config", "/endpoints", "/drain"] {
        let method = if path == "/drain" { "POST" } else { "GET" };
        let answer = say(
            house.at(),
            &format!("{method} {path} HTTP/1.1\r\nhost: evil.example\r\n\r\n"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{path}: {answer}");
    }
    assert_eq!(house.drained.load(Ordering::Relaxed), 0);
    let anybody = say(house.at(), "GET /ready HTTP/1.1\r\nhost: evil.example\r\n\r\n").await;
    assert!(anybody.starts_with("HTTP/1.1 200 "), "{anybody}");
}

#[tokio::test]
async fn only_a_post_drains() {
    let house = house(settings());
    let answer = get(house.at(), "/drain").await;
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: POST"),
        "{answer}"
    );
    assert_eq!(house.drained.load(Ordering::Relaxed), 0);
    let post = "POST /drain HTTP/1.1\r\nhost: localhost:4191\r\ncontent-length: 2\r\n\r\n{}";
    assert!(say(house.at(), post).await.starts_with("HTTP/1.1 202 "));
    assert_eq!(house.drained.load(Ordering::Relaxed), 1);
    let answer = say(
        house.at(),
        "POST /ready HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn an_unknown_page_is_answered_with_those_that_there_are() {
    let house = house(settings());
    let answer = get(house.at(), "/debug/pprof").await;
    assert!(
        answer.starts_with("HTTP/1.1 404 ") && answer.contains("/metrics"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_connection_carries_one_request() {
    let house = house(settings());
    let twice = "GET /live HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    let answer = say(house.at(), &twice).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn whoever_sends_slowly_is_cut_off() {
    let house = house(Settings {
        timeout: Duration::from_millis(300),
        ..settings()
    });
    for start in [
        "",
        "GET /live HT",
        "GET /live HTTP/1.1\r\nhost: a\r\nx: ",
        "POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n",
    ] {
        let begun = std::time::Instant::now();
        let answer = say(house.at(), start).await;
        assert!(!answer.contains("HTTP/1.1 2"), "{start:?}: {answer}");
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{start:?} was kept for {:?}",
            begun.elapsed()
        );
    }
    assert_eq!(
        house.drained.load(Ordering::Relaxed),
        0,
        "a request that is not whole does nothing"
    );
}

#[tokio::test]
async fn too_many_headers_and_too_long_ones_and_bodies_are_refused() {
    let house = house(settings());
    let many: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
    let answer = say(house.at(), &format!("GET /live HTTP/1.1\r\nhost: a\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let long = "y".repeat(17 << 10);
    let answer = say(house.at(), &format!("GET /live HTTP/1.1\r\nhost: a\r\nx: {long}")).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let body = "z".repeat(2_000);
    let post = format!(
        "POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(say(house.at(), &post).await.starts_with("HTTP/1.1 413 "));
    assert_eq!(house.drained.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_flood_of_silent_connections_does_not_keep_a_probe_out() {
    let house = house(Settings {
        max_connections: 4,
        ..settings()
    });
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(house.at()).await.expect("the door is open"));
    }
    let probe = timeout(Duration::from_secs(5), get(house.at(), "/live"))
        .await
        .expect("the probe is not held up");
    assert!(probe.starts_with("HTTP/1.1 200 "), "{probe}");
    assert_eq!(read_all(&mut silent[0]).await, "", "the oldest made room");
}

#[tokio::test]
async fn a_door_that_closed_takes_no_more_connections() {
    let house = house(settings());
    let at = house.at();
    house.door.close().await;
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_in_the_error() {
    let house = house(settings());
    let pages = Pages {
        liveness: Conditions::new(),
        readiness: Conditions::new(),
        registry: Registry::new(&Default::default()),
        config: json!({}),
        endpoints: Box::new(|| json!([])),
        drain: Box::new(|| {}),
    };
    let why = Door::open(
        &Settings {
            listen: vec![house.at()],
            ..settings()
        },
        pages,
    )
    .expect_err("it is taken");
    assert!(why.to_string().contains(&house.at().to_string()), "{why}");
}
