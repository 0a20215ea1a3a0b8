//! Conversations byte by byte over streams in memory: what a caller says, what the application hears, what comes back.

mod crowd;

use std::future::Future;
use std::io;

use tokio::io::{DuplexStream, duplex};
use tokio::time::timeout;

use super::*;

const PROVEN: &str = "By=spiffe://mesh.test/ns/a/sa/b;Hash=00;URI=spiffe://mesh.test/ns/a/sa/c";

/// A caller and an application, with a connection between them that runs.
struct Ends {
    caller: DuplexStream,
    application: DuplexStream,
}

fn addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 80))
}

fn facts(proven: bool) -> Facts<'static> {
    Facts {
        client_cert: proven.then(|| HeaderValue::from_static(PROVEN)),
        peer: addr(),
        meant: addr(),
        admits: &|| policy::authorize(&policy::Inbound::PLAIN, 80, policy::Caller::Plain),
        crowd: Box::leak(Box::new(Crowd::new(0, |_| {}))),
    }
}

/// The reasons of what was answered here.
fn answered_here(summary: &Summary) -> Vec<&'static str> {
    let counted = Refusal::REASONS.into_iter().zip(summary.refusals);
    counted
        .flat_map(|(reason, times)| (0..times).map(move |_| reason))
        .collect()
}

/// Runs `talk` against a connection, and returns what the connection was once both are over.
async fn with<T: Future<Output = ()>>(facts: Facts<'_>, settings: Settings, talk: impl FnOnce(Ends) -> T) -> Summary {
    with_tokens(facts, settings, CancellationToken::new(), talk).await
}

async fn with_tokens<T: Future<Output = ()>>(
    facts: Facts<'_>,
    settings: Settings,
    drain: CancellationToken,
    talk: impl FnOnce(Ends) -> T,
) -> Summary {
    let (ends, serving) = open(facts, settings, drain);
    let both = async { tokio::join!(serving, talk(ends)).0 };
    timeout(Duration::from_secs(100_000), both).await.expect("ends")
}

/// Both ends of a connection, and what serves it.
fn open(facts: Facts<'_>, settings: Settings, drain: CancellationToken) -> (Ends, impl Future<Output = Summary>) {
    let ((caller, downstream), (upstream, application)) = (duplex(64 << 10), duplex(64 << 10));
    let serving = async move {
        let dial = async move || Ok(upstream);
        let cut = CancellationToken::new();
        serve(downstream, Vec::new(), &facts, dial, &settings, &drain, &cut).await
    };
    (Ends { caller, application }, serving)
}

/// Reads until the text ends so.
async fn until(from: &mut DuplexStream, ending: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(ending.as_bytes()) {
        match from.read(&mut byte).await.expect("readable") {
            0 => panic!("ended after {:?}", String::from_utf8_lossy(&said)),
            _ => said.push(byte[0]),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

async fn head(from: &mut DuplexStream) -> String {
    until(from, "\r\n\r\n").await
}

async fn rest(from: &mut DuplexStream) -> String {
    let mut said = Vec::new();
    from.read_to_end(&mut said).await.expect("readable");
    String::from_utf8_lossy(&said).into_owned()
}

async fn say(to: &mut DuplexStream, text: &str) {
    to.write_all(text.as_bytes()).await.expect("written");
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test(start_paused = true)]
async fn an_answer_is_whole_however_slowly_its_caller_reads() {
    let page = "a page ".repeat(100_000);
    with(facts(false), Settings::default(), async |mut ends| {
        say(&mut ends.caller, "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        head(&mut ends.application).await;
        let answer = format!("HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
        let serving = async {
            say(&mut ends.application, &answer).await;
            drop(ends.application);
        };
        let reading = async {
            let mut heard = Vec::new();
            while let Ok(1..) = (&mut ends.caller).take(1_000).read_to_end(&mut heard).await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            heard
        };
        let ((), heard) = tokio::join!(serving, reading);
        assert!(heard.ends_with(page.as_bytes()), "{} bytes came", heard.len());
    })
    .await;
}

/// What the caller of one request is answered, and what the application hears, if it hears anything.
async fn once(facts: Facts<'_>, request: &str) -> (String, String, Summary) {
    let (mut answer, mut heard) = (String::new(), String::new());
    let summary = with(
        facts,
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            say(&mut caller, request).await;
            caller.shutdown().await.expect("half-closed");
            let serves = async {
                let mut said = Vec::new();
                let mut some = [0; 4096];
                let mut answered = false;
                loop {
                    match application.read(&mut some).await {
                        Ok(0) | Err(_) => break,
                        Ok(n) => said.extend_from_slice(&some[..n]),
                    }
                    let text = String::from_utf8_lossy(&said).into_owned();
                    let whole = match text.contains("transfer-encoding: chunked") {
                        true => text.contains("\r\n0\r\n") && text.ends_with("\r\n\r\n"),
                        false => text.contains("\r\n\r\n"),
                    };
                    if whole && !answered {
                        answered = true;
                        say(&mut application, OK).await;
                    }
                }
                heard = String::from_utf8_lossy(&said).into_owned();
            };
            let reads = async { answer = rest(&mut caller).await };
            tokio::join!(serves, reads);
        },
    )
    .await;
    (answer, heard, summary)
}

#[tokio::test(start_paused = true)]
async fn no_spelling_of_a_claimed_identity_reaches_the_application() {
    let claims = [
        "x-forwarded-client-cert: URI=spiffe://forged",
        "X-Forwarded-Client-Cert: URI=spiffe://forged",
        "X-FORWARDED-CLIENT-CERT:URI=spiffe://forged",
        "x-forwarded-client-cert: URI=spiffe://forged\r\nx-forwarded-client-cert: URI=spiffe://forged",
        "x-forwarded-client-cert: URI=spiffe://forged\r\nX-Forwarded-Client-CERT: URI=spiffe://forged",
        "X_Forwarded_Client_Cert: URI=spiffe://forged",
        "x-forwarded_client-cert: URI=spiffe://forged",
        "x.forwarded.client.cert: URI=spiffe://forged",
        "x-forwarded-client-cert:\t URI=spiffe://forged \t",
        "x-forwarded-client-cert: URI=spiffe://forged\r\nconnection: x-forwarded-client-cert",
        "connection: keep-alive, X-Forwarded-Client-Cert\r\nx-forwarded-client-cert: URI=spiffe://forged",
        "x-forwarded-client-cert: URI=spiffe://forged\nx-other: 1",
    ];
    for claim in claims {
        for proven in [false, true] {
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{claim}\r\n\r\n");
            let (answer, heard, summary) = once(facts(proven), &request).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{claim}: {answer}");
            assert!(!heard.contains("forged"), "{claim}: {heard}");
            let said = heard.to_ascii_lowercase().matches("x-forwarded-client-cert:").count();
            assert_eq!(said, usize::from(proven), "{claim}: {heard}");
            assert_eq!(heard.contains(PROVEN), proven, "{claim}: {heard}");
            assert!(
                summary.claims + u64::from(claim.contains("onnection:")) > 0,
                "{claim}: {summary:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_http_1_is_refused_and_the_application_hears_nothing_of_it() {
    let bad = [
        (
            "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert : forged\r\n\r\n",
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n x-forwarded-client-cert: forged\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\nx-a: b\0\r\n\r\n", "400"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nx-forwarded\0-client-cert: forged\r\n\r\n",
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\rx-forwarded-client-cert: forged\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "400",
        ),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 2\r\n\r\nab", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na", "400"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\na", "400"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "501",
        ),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        (
            "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\nGET / HTTP/1.1\r\nx-forwarded-client-cert: forged\r\n\r\n",
            "501",
        ),
        ("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", "400"),
        ("GET / HTTP/3.7\r\nhost: a\r\n\r\n", "400"),
    ];
    for (request, status) in bad {
        let (answer, heard, _) = once(facts(true), request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request:?}: {answer:?}"
        );
        assert_eq!(heard, "", "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_none_is_its_callers_fault_and_smuggles_nothing() {
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: forged\r\n\r\n";
    let bodies = [
        format!("0x5\r\nhello\r\n0\r\n\r\n{smuggled}"),
        format!("5\nhello\n0\n\n{smuggled}"),
        format!("3\r\nhello\r\n0\r\n\r\n{smuggled}"),
        format!("5;a\nhello\r\n0\r\n\r\n{smuggled}"),
        format!("10000000000000005\r\nhello\r\n0\r\n\r\n{smuggled}"),
        format!("5;a=\"\r\n\r\n{smuggled}\"\r\nhello\r\n0\r\n\r\n"),
        format!("5\r\nhello\r\n0\r\nx-a: b\r\n x-forwarded-client-cert: forged\r\n\r\n{smuggled}"),
        "5\r\nhel".to_owned(),
    ];
    for body in bodies {
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        let (answer, heard, _) = once(facts(true), &request).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{body:?}: {answer:?}");
        assert!(answer.contains("portunus-error: bad_request"), "{body:?}: {answer:?}");
        assert!(
            !heard.contains("smuggled") && !heard.contains("forged"),
            "{body:?}: {heard:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn trailers_and_pipelined_requests_claim_nothing_either() {
    let summary = with(facts(true), Settings::default(), async |Ends { mut caller, mut application }| {
        say(
            &mut caller,
            "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-forwarded-client-cert, x-sum\r\n\r\n\
             3;x-forwarded-client-cert=forged\r\nabc\r\n0\r\nX-Forwarded-Client-Cert: forged\r\nx-sum: 7\r\n\r\n\
             GET /2 HTTP/1.1\r\nhost: a\r\nx-forwarded-client-cert: forged\r\n\r\n\
             GET /3 HTTP/1.1\r\nhost: a\r\nX_FORWARDED_CLIENT_CERT: forged\r\n\r\n",
        )
        .await;
        let first = head(&mut application).await + &until(&mut application, "\r\n\r\n").await;
        assert!(first.contains("abc\r\n0\r\nx-sum: 7\r\n\r\n"), "{first}");
        assert!(!first.contains("forged"), "{first}");
        for path in ["/2", "/3"] {
            say(&mut application, OK).await;
            let next = head(&mut application).await;
            assert!(next.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{next}");
            assert!(!next.contains("forged") && next.contains(PROVEN), "{next}");
        }
        say(&mut application, OK).await;
        for _ in 0..3 {
            assert!(head(&mut caller).await.starts_with("HTTP/1.1 200 OK\r\n"));
            until(&mut caller, "ok").await;
        }
        drop(caller);
        assert_eq!(rest(&mut application).await, "");
    })
    .await;
    assert_eq!((summary.requests, summary.claims, summary.end), (3, 3, End::Finished));
}

#[tokio::test(start_paused = true)]
async fn a_length_beside_chunks_is_not_believed_and_ends_the_connection() {
    let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n\
                   GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let (answer, heard, summary) = once(facts(false), request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !heard.contains("content-length") && !heard.contains("smuggled"),
        "{heard}"
    );
    assert_eq!(summary.requests, 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_with_a_length_beside_chunks_is_as_long_as_its_chunks() {
    with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            say(&mut caller, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            head(&mut application).await;
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n6\r\nPOISON\r\n0\r\n\r\n";
            say(&mut application, answer).await;
            let told = head(&mut caller).await.to_ascii_lowercase();
            assert!(!told.contains("content-length"), "{told}");
            assert_eq!(until(&mut caller, "0\r\n\r\n").await, "6\r\nPOISON\r\n0\r\n\r\n");
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn fields_of_one_connection_end_with_it_and_the_others_keep_their_spelling() {
    let request = "POST http://b.test/x?y=%20z HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine, Host, content-length\r\nX-Mine: 1\r\n\
                   Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nX-Other: A\r\n\
                   Content-Length: 2\r\nx-OTHER: b\r\n\r\nhi";
    let (answer, heard, _) = once(facts(false), request).await;
    assert!(heard.starts_with("POST /x?y=%20z HTTP/1.1\r\n"), "{heard}");
    for kept in [
        "Host: b.test\r\n",
        "X-Other: A\r\n",
        "x-OTHER: b\r\n",
        "Content-Length: 2\r\n",
        "TE: trailers\r\n",
    ] {
        assert!(heard.contains(kept), "{kept} is missing: {heard}");
    }
    for gone in ["X-Mine", "Keep-Alive", "Proxy-Connection", "deflate", "close", "Via"] {
        assert!(!heard.contains(gone), "{gone} is there: {heard}");
    }
    assert!(
        heard.contains("x-forwarded-proto: http\r\n") && heard.ends_with("hi"),
        "{heard}"
    );
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn h2c_is_not_offered_to_the_application_and_the_request_is_answered_in_http_1() {
    let offers = ["h2c", "H2C", "h2c, foo/1", "HTTP/2.0", "TLS/1.3, HTTP/1.1", "h2"];
    for offer in offers {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: {offer}\r\n\
             http2-settings: AAMAAABk\r\n\r\n"
        );
        let (answer, heard, summary) = once(facts(false), &request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{offer}: {answer}");
        let heard = heard.to_ascii_lowercase();
        assert!(
            !heard.contains("http2-settings") && !heard.contains("h2c"),
            "{offer}: {heard}"
        );
        assert_eq!(
            heard.contains("upgrade: foo/1\r\n"),
            offer.contains("foo"),
            "{offer}: {heard}"
        );
        assert_eq!(summary.upgrades_refused, 1, "{offer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_passes_with_its_first_bytes_both_ways() {
    let summary = with(facts(true), Settings::default(), async |Ends { mut caller, mut application }| {
        say(
            &mut caller,
            "GET /ws HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
             x-forwarded-client-cert: forged\r\n\r\nearly ",
        )
        .await;
        let heard = head(&mut application).await;
        assert!(heard.contains("upgrade: websocket\r\n") && heard.contains("connection: Upgrade\r\n"), "{heard}");
        assert!(!heard.contains("forged") && heard.contains(PROVEN), "{heard}");
        say(
            &mut application,
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-accept: 1\r\n\r\nhello ",
        )
        .await;
        let answer = until(&mut caller, "hello ").await;
        assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
        assert!(answer.contains("upgrade: websocket\r\n") && answer.contains("x-accept: 1\r\n"), "{answer}");
        assert_eq!(until(&mut application, "early ").await, "early ");
        say(&mut caller, "GET / HTTP/1.1\r\n\r\n").await;
        assert_eq!(head(&mut application).await, "GET / HTTP/1.1\r\n\r\n");
        caller.shutdown().await.expect("half-closed");
        assert_eq!(rest(&mut application).await, "");
        say(&mut application, "the end").await;
        drop(application);
        assert_eq!(rest(&mut caller).await, "the end");
    })
    .await;
    assert_eq!(summary.end, End::Switched(tunnel::End::Finished));
}

#[tokio::test(start_paused = true)]
async fn an_application_cannot_switch_unasked() {
    let summary = with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            say(
                &mut caller,
                "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
            )
            .await;
            head(&mut application).await;
            say(
                &mut application,
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
            )
            .await;
            let answer = rest(&mut caller).await;
            assert!(
                answer.starts_with("HTTP/1.1 502") && answer.contains("portunus-error: bad_response\r\n"),
                "{answer}"
            );
        },
    )
    .await;
    assert_eq!(answered_here(&summary), ["bad_response"]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_100_hears_it_from_the_application() {
    with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            let request = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
            say(&mut caller, request).await;
            assert!(head(&mut application).await.contains("expect: 100-continue\r\n"));
            say(&mut application, "HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(head(&mut caller).await, "HTTP/1.1 100 Continue\r\n\r\n");
            say(&mut caller, "hi").await;
            until(&mut application, "hi").await;
            say(&mut application, OK).await;
            assert!(head(&mut caller).await.starts_with("HTTP/1.1 200"));
            until(&mut caller, "ok").await;

            // Another on the same connection, which the application refuses: no 100 is said in its name.
            say(&mut caller, request).await;
            head(&mut application).await;
            say(&mut application, "HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n").await;
            let answer = rest(&mut caller).await;
            assert!(answer.starts_with("HTTP/1.1 417 No\r\n"), "{answer}");
            assert_eq!(rest(&mut application).await, "");
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn heads_without_bodies_keep_what_they_say_of_length() {
    with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            for (method, answer) in [
                ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 77\r\n\r\n"),
                ("GET", "HTTP/1.1 204 No Content\r\nx-a: b\r\n\r\n"),
                ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n"),
                ("DELETE", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
                ("GET", "HTTP/1.1 299 Odd Words\r\ncontent-length: 0\r\n\r\n"),
            ] {
                say(&mut caller, &format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
                head(&mut application).await;
                say(&mut application, answer).await;
                assert_eq!(head(&mut caller).await, answer, "{method}");
            }
            drop(caller);
            assert_eq!(rest(&mut application).await, "");
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_without_an_end_ends_with_the_connection() {
    let (answer, _, _) = {
        let mut answer = String::new();
        let summary = with(
            facts(false),
            Settings::default(),
            async |Ends {
                       mut caller,
                       mut application,
                   }| {
                say(&mut caller, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                head(&mut application).await;
                say(&mut application, "HTTP/1.0 200 OK\r\n\r\nall of it").await;
                drop(application);
                answer = rest(&mut caller).await;
            },
        )
        .await;
        (answer, (), summary)
    };
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(answer.ends_with("all of it\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn http_1_0_is_answered_and_ended() {
    let (answer, heard, _) = once(facts(true), "GET / HTTP/1.0\r\nX-Forwarded-Client-Cert: forged\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("ok"),
        "{answer}"
    );
    assert!(
        heard.starts_with("GET / HTTP/1.0\r\n") && !heard.contains("forged"),
        "{heard}"
    );
}

#[tokio::test(start_paused = true)]
async fn too_large_a_head_is_431_and_too_slow_a_one_is_408() {
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx-large: {}\r\n\r\n", "a".repeat(80 << 10));
    let (answer, heard, _) = once(facts(false), &large).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(heard, "");

    let summary = with(
        facts(false),
        Settings::default(),
        async |Ends { mut caller, .. }| {
            let (mut reads, mut writes) = tokio::io::split(&mut caller);
            let dribbles = async {
                while writes.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            let answered = async {
                let mut answer = String::new();
                reads.read_to_string(&mut answer).await.expect("text");
                assert!(
                    answer.starts_with("HTTP/1.1 408") && answer.ends_with("it may take\n"),
                    "{answer}"
                );
            };
            tokio::select! { () = dribbles => panic!("nobody stopped it"), () = answered => {} }
        },
    )
    .await;
    assert_eq!(summary.end, End::SlowHead);
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_idle_and_a_body_slow_for_as_long_as_the_application_lets_them() {
    with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            for _ in 0..2 {
                say(&mut caller, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n").await;
                head(&mut application).await;
                for letter in ["h", "i"] {
                    tokio::time::sleep(Duration::from_secs(3_600)).await;
                    say(&mut caller, letter).await;
                    assert_eq!(until(&mut application, letter).await, letter);
                }
                say(&mut application, OK).await;
                until(&mut caller, "ok").await;
                tokio::time::sleep(Duration::from_secs(3_600)).await;
            }
            // And ends when the application says so.
            drop(application);
            assert_eq!(rest(&mut caller).await, "");
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_application_that_fails_is_named() {
    let silent = connect::Error::Silent {
        addr: addr(),
        timeout: Duration::from_secs(1),
    };
    let refused = connect::Error::Refused {
        addr: addr(),
        source: io::ErrorKind::ConnectionRefused.into(),
    };
    for (error, status) in [(silent, "504"), (refused, "503")] {
        let (mut caller, downstream) = duplex(1 << 10);
        let (facts, settings, never) = (facts(false), Settings::default(), CancellationToken::new());
        let dial = async move || Err::<DuplexStream, _>(error);
        let first = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec();
        let serving = serve(downstream, first, &facts, dial, &settings, &never, &never);
        let (summary, answer) = tokio::join!(serving, async {
            let answer = until(&mut caller, "there?\n").await;
            drop(caller);
            answer
        });
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains("portunus-error: unreachable\r\n"), "{answer}");
        assert_eq!(answered_here(&summary), ["unreachable"]);
    }
    for (said, reason) in [
        ("", "connection_lost"),
        ("HTTP/1.1 2", "connection_lost"),
        ("SSH-2.0-x\r\n\r\n", "bad_response"),
    ] {
        with(
            facts(false),
            Settings::default(),
            async |Ends {
                       mut caller,
                       mut application,
                   }| {
                say(&mut caller, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                head(&mut application).await;
                say(&mut application, said).await;
                drop(application);
                let answer = rest(&mut caller).await;
                assert!(answer.starts_with("HTTP/1.1 502"), "{said}: {answer}");
                assert!(
                    answer.contains(&format!("portunus-error: {reason}\r\n")),
                    "{said}: {answer}"
                );
            },
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_early_answer_ends_the_upload() {
    let summary = with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            say(
                &mut caller,
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nsome",
            )
            .await;
            until(&mut application, "some").await;
            say(&mut application, "HTTP/1.1 413 Too Much\r\ncontent-length: 2\r\n\r\nno").await;
            let answer = until(&mut caller, "no").await;
            assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
            assert_eq!(rest(&mut application).await, "");
            assert_eq!(rest(&mut caller).await, "");
        },
    )
    .await;
    assert_eq!(summary.requests, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_the_writer_back() {
    with(
        facts(false),
        Settings::default(),
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            let length = 16 << 20;
            say(
                &mut caller,
                &format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"),
            )
            .await;
            head(&mut application).await;
            let block = vec![7; 64 << 10];
            let mut sent = 0;
            while let Ok(written) = timeout(Duration::from_secs(5), caller.write(&block)).await {
                sent += written.expect("open");
                assert!(sent < 2 << 20, "nobody reads, and {sent} bytes were taken");
            }
            let finishes = async {
                while sent < length {
                    let most = block.len().min(length - sent);
                    sent += caller.write(&block[..most]).await.expect("open");
                }
            };
            let takes = async {
                let mut taken = 0;
                let mut into = vec![0; 64 << 10];
                while taken < length {
                    let n = application.read(&mut into).await.expect("open");
                    assert!(n > 0 && into[..n].iter().all(|byte| *byte == 7));
                    taken += n;
                }
            };
            tokio::join!(finishes, takes);
            say(&mut application, OK).await;
            until(&mut caller, "ok").await;
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn draining_ends_an_idle_connection_and_lets_a_request_finish() {
    let drain = CancellationToken::new();
    let drains = drain.clone();
    with_tokens(
        facts(false),
        Settings::default(),
        drain,
        async |Ends {
                   mut caller,
                   mut application,
               }| {
            say(&mut caller, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            head(&mut application).await;
            drains.cancel();
            tokio::task::yield_now().await;
            say(&mut application, OK).await;
            let answer = rest(&mut caller).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
        },
    )
    .await;
}
