//! What each page answers, and to whom.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode, request::Parts};
use http_body_util::Full;
use serde_json::Value;

use super::Conditions;
use crate::telemetry::{Format, Registry};

/// What the pages show.
pub struct Pages {
    /// Whether the process is of any use, or should be started anew.
    pub liveness: Arc<Conditions>,
    /// Whether traffic may come.
    pub readiness: Arc<Conditions>,
    /// What is counted.
    pub registry: Arc<Registry>,
    /// What the settings were understood as.
    pub config: Value,
    /// Services and their endpoints, as they are now.
    pub endpoints: Box<dyn Fn() -> Value + Send + Sync>,
    /// Begins the end, as SIGTERM does. May be called more than once.
    pub drain: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").finish_non_exhaustive()
    }
}

type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub(super) fn answer(pages: &Pages, peer: IpAddr, request: &Parts) -> Answer {
    let path = request.uri.path();
    let Some((_, reader, page)) = PAGES.iter().find(|(name, ..)| *name == path) else {
        let known: Vec<_> = PAGES.iter().map(|(name, ..)| *name).collect();
        return text(
            StatusCode::NOT_FOUND,
            &format!("there is no such page; there are {}", known.join(" ")),
        );
    };
    if *reader == Reader::Loopback
        && let Err(why) = comes_from_here(peer, request)
    {
        return text(StatusCode::FORBIDDEN, why);
    }
    let (allowed, methods): (&[Method], _) = match page {
        Page::Drain => (&[Method::POST], "POST"),
        _ => (&[Method::GET, Method::HEAD], "GET, HEAD"),
    };
    if !allowed.contains(&request.method) {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} takes {methods}"));
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
        return refused;
    }
    match page {
        Page::Live => probe("live", &pages.liveness),
        Page::Ready => probe("ready", &pages.readiness),
        Page::Metrics => metrics(&pages.registry, request),
        Page::Config => json(&pages.config),
        Page::Endpoints => json(&(pages.endpoints)()),
        Page::Drain => {
            (pages.drain)();
            text(StatusCode::ACCEPTED, "draining: running calls end, then the proxy does")
        }
    }
}

/// Refuses a body that is too long.
pub(super) fn too_long() -> Answer {
    text(
        StatusCode::PAYLOAD_TOO_LARGE,
        "no page here reads a body; this one is too long even to skip",
    )
}

#[derive(Clone, Copy)]
enum Page {
    Live,
    Ready,
    Metrics,
    Config,
    Endpoints,
    Drain,
}

/// Who may read a page.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Anybody,
    Loopback,
}

const PAGES: [(&str, Reader, Page); 6] = [
    ("/live", Reader::Anybody, Page::Live),
    ("/ready", Reader::Anybody, Page::Ready),
    ("/metrics", Reader::Anybody, Page::Metrics),
    ("/config", Reader::Loopback, Page::Config),
    ("/endpoints", Reader::Loopback, Page::Endpoints),
    ("/drain", Reader::Loopback, Page::Drain),
];

/// Whether a request comes from this pod, and not from a web page that a browser on this machine shows: such a page may
/// have a name of its own that leads to 127.0.0.1 (DNS rebinding, seen in `host`), or send forms to any address (seen in
/// `origin`).
fn comes_from_here(peer: IpAddr, request: &Parts) -> Result<(), &'static str> {
    if !peer.is_loopback() {
        return Err("this page is for the pod itself: ask from 127.0.0.1 or ::1");
    }
    let mut hosts = request.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let named_here = match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_loopback_name(host),
        _ => false,
    };
    let authority = request
        .uri
        .authority()
        .is_none_or(|authority| is_loopback_name(authority.as_str().as_bytes()));
    if !named_here || !authority {
        return Err("this page answers only to the names localhost, 127.0.0.1 and [::1]");
    }
    if request.headers.contains_key(ORIGIN) {
        return Err("this page is not for web pages");
    }
    Ok(())
}

/// Whether an authority names this machine, with or without a port.
fn is_loopback_name(authority: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"localhost", b"127.0.0.1", b"[::1]"];
    NAMES.iter().any(|name| match authority.split_at_checked(name.len()) {
        Some((host, b"")) => host.eq_ignore_ascii_case(name),
        Some((host, [b':', port @ ..])) => {
            host.eq_ignore_ascii_case(name) && !port.is_empty() && port.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    })
}

fn probe(what: &str, conditions: &Conditions) -> Answer {
    match &*conditions.missing() {
        [] => text(StatusCode::OK, what),
        missing => text(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("not {what}: {}", missing.join("; ")),
        ),
    }
}

fn metrics(registry: &Registry, request: &Parts) -> Answer {
    let accept: Vec<_> = request
        .headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let format = Format::of_accept(&accept.join(","));
    page(StatusCode::OK, format.content_type(), registry.scrape(format))
}

fn json(value: &Value) -> Answer {
    page(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, sentence: &str) -> Answer {
    page(status, "text/plain; charset=utf-8", format!("{sentence}\n"))
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asked(peer: &str, request: http::request::Builder) -> Result<(), &'static str> {
        let (parts, ()) = request.body(()).expect("the request is well formed").into_parts();
        comes_from_here(peer.parse().expect("an address"), &parts)
    }

    #[test]
    fn only_loopback_by_a_name_of_loopback_and_no_web_page_comes_from_here() {
        let get = || Request::get("/config");
        for (peer, host) in [
            ("127.0.0.1", "localhost:4191"),
            ("::1", "[::1]:4191"),
            ("127.0.0.9", "LOCALHOST"),
        ] {
            assert_eq!(asked(peer, get().header(HOST, host)), Ok(()), "{peer} {host}");
        }
        for (peer, host) in [
            ("10.0.0.7", "localhost"),
            ("fe80::1", "[::1]:4191"),
            ("192.168.0.1", "127.0.0.1"),
        ] {
            assert!(asked(peer, get().header(HOST, host)).is_err(), "{peer} {host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "localhost:",
            "localhost:80@evil",
            "127.0.0.1.evil",
            "localhost.",
            "127.0.0.10",
            "::1",
        ] {
            assert!(asked("127.0.0.1", get().header(HOST, host)).is_err(), "{host:?}");
        }
        assert!(asked("127.0.0.1", get()).is_err(), "no name at all");
        let two = get().header(HOST, "localhost").header(HOST, "evil.example");
        assert!(asked("127.0.0.1", two).is_err());
        let absolute = Request::get("http://evil.example/config").header(HOST, "localhost");
        assert!(asked("127.0.0.1", absolute).is_err());
        let form = Request::post("/drain")
            .header(HOST, "127.0.0.1:4191")
            .header(ORIGIN, "http://evil.example");
        assert!(asked("127.0.0.1", form).is_err());
    }
}
