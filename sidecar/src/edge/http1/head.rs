//! What becomes of the head of a message on its way through: pure decisions.
//!
//! Fields that speak of one connection end with it (RFC 9110, 7.6.1); what a caller must not say is removed; everything
//! else goes on as it came, in its own spelling. No `Via` is added, as by other sidecars.

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Uri, Version, request, response, uri};

use super::refusal::{self, Refusal};
use crate::edge::client_cert;

const FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static(client_cert::NAME);
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Fields of one connection, besides those that `Connection` itself names.
const HOP_BY_HOP: [HeaderName; 7] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    CONNECTION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HTTP2_SETTINGS,
];
/// Protocols that carry requests of their own, whose fields nobody would look at after a switch: `Upgrade` to them is not
/// offered to the application.
const CARRY_REQUESTS: [&str; 4] = ["h2c", "h2", "http", "tls"];

/// What a request asks of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// Fields removed that claimed an identity.
    pub(super) claims: u64,
    /// A switch to another protocol was offered to the application.
    pub(super) upgrade: bool,
    /// A switch that would carry requests past us was not.
    pub(super) upgrade_refused: bool,
    /// The body comes only after `100 (Continue)`.
    pub(super) waits: bool,
}

/// Makes the application's request of the caller's.
pub(super) fn to_application(
    head: &mut request::Parts,
    has_body: bool,
    client_cert: Option<&HeaderValue>,
) -> Result<Asked, Refusal> {
    if head.method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if !is_framed_here(&head.headers) {
        return Err(Refusal::TransferCoding);
    }
    settle_host(head)?;
    let (offered, upgrade_refused) = upgrades(&head.headers, head.version, has_body);
    let trailers = asks_for_trailers(&head.headers);
    let waits = has_body && head.version == Version::HTTP_11 && expects_continue(&head.headers);

    let headers = &mut head.headers;
    end_hop(headers, &[HOST, CONTENT_LENGTH]);
    let claims = remove_claims(headers);
    if let Some(proven) = client_cert {
        headers.insert(FORWARDED_CLIENT_CERT, proven.clone());
    }
    if !headers.contains_key(FORWARDED_PROTO) {
        // Whoever has proven who it is came in TLS.
        let came = if client_cert.is_some() { "https" } else { "http" };
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(came));
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
    }
    // Said, or the client would take a GET for one without a body, whatever follows.
    if has_body && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let upgrade = offered.is_some();
    if let Some(offered) = offered {
        headers.insert(UPGRADE, offered);
        headers.append(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    Ok(Asked {
        claims,
        upgrade,
        upgrade_refused,
        waits,
    })
}

/// Makes the caller's response of the application's. True if the application ends the connection after it.
pub(super) fn to_caller(head: &mut response::Parts) -> Result<bool, &'static str> {
    if !is_framed_here(&head.headers) {
        return Err("its transfer coding is not chunked, alone and once");
    }
    let headers = &mut head.headers;
    if headers.contains_key(TRANSFER_ENCODING) {
        // The length says nothing then (RFC 9112, 6.3), and would cut the body here.
        headers.remove(CONTENT_LENGTH);
    }
    let persists = match head.version {
        Version::HTTP_11 => !names(headers, CONNECTION, "close"),
        _ => names(headers, CONNECTION, "keep-alive"),
    };
    end_hop(headers, &[CONTENT_LENGTH]);
    // It is a proxy's word, and an application's is none.
    headers.remove(refusal::ERROR);
    if !persists {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    head.version = Version::HTTP_11;
    Ok(!persists)
}

/// Makes the caller's `101 (Switching Protocols)` of the application's.
pub(super) fn to_caller_switching(headers: &mut HeaderMap) {
    let switched = headers.get(UPGRADE).cloned();
    end_hop(headers, &[]);
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(switched) = switched {
        headers.insert(UPGRADE, switched);
    }
}

/// Removes every field that an application could take for a proven identity; how many there were.
pub(super) fn remove_claims(headers: &mut HeaderMap) -> u64 {
    let claims = |name: &&HeaderName| client_cert::is_taken_for(name.as_str().as_bytes());
    let found: Vec<HeaderName> = headers.keys().filter(claims).cloned().collect();
    let mut removed = 0;
    for name in found {
        removed += headers.get_all(&name).iter().count() as u64;
        headers.remove(name);
    }
    removed
}

/// Removes the fields of one connection, and those that `Connection` names but for `kept`: a message's own framing and
/// host are nobody's to remove in this way.
fn end_hop(headers: &mut HeaderMap, kept: &[HeaderName]) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !kept.contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// A transfer coding other than chunked would be lost here, where bodies are framed anew.
fn is_framed_here(headers: &HeaderMap) -> bool {
    let mut found = headers.get_all(TRANSFER_ENCODING).iter();
    match (found.next(), found.next()) {
        (None, _) => true,
        (Some(only), None) => only.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// One host, said once (RFC 9112, 3.2), and a target in origin form: the authority of an absolute form is the host.
fn settle_host(head: &mut request::Parts) -> Result<(), Refusal> {
    let hosts = head.headers.get_all(HOST).iter().count();
    if hosts > 1 {
        return Err(Refusal::ManyHosts { hosts });
    }
    if hosts == 0 && head.version == Version::HTTP_11 {
        return Err(Refusal::NoHost);
    }
    let Some(authority) = head.uri.authority() else {
        return Ok(());
    };
    let host = HeaderValue::from_str(authority.as_str().rsplit('@').next().unwrap_or_default());
    head.headers.insert(HOST, host.map_err(|_| Refusal::NoHost)?);
    let mut parts = uri::Parts::default();
    parts.path_and_query = match head.uri.path_and_query() {
        Some(path) => Some(path.clone()),
        None => Some(uri::PathAndQuery::from_static("/")),
    };
    head.uri = Uri::from_parts(parts).unwrap_or_default();
    Ok(())
}

/// The protocols that the application may be offered, and whether one was left out that it may not.
fn upgrades(headers: &HeaderMap, version: Version, has_body: bool) -> (Option<HeaderValue>, bool) {
    if version != Version::HTTP_11 || !names(headers, CONNECTION, "upgrade") {
        return (None, tokens(headers, &UPGRADE).any(carries_requests));
    }
    let (refused, offered): (Vec<&str>, Vec<&str>) =
        tokens(headers, &UPGRADE).partition(|token| carries_requests(token));
    // A body belongs to HTTP/1, and what comes behind it may not: no switch is offered over one.
    let offered = match offered.is_empty() || has_body {
        true => None,
        false => HeaderValue::from_str(&offered.join(", ")).ok(),
    };
    (offered, !refused.is_empty())
}

fn carries_requests(token: &str) -> bool {
    let protocol = token.split('/').next().unwrap_or_default().trim();
    CARRY_REQUESTS.iter().any(|known| protocol.eq_ignore_ascii_case(known))
}

fn asks_for_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &TE).any(|token| {
        token
            .split(';')
            .next()
            .is_some_and(|coding| coding.trim() == "trailers")
    })
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn names(headers: &HeaderMap, list: HeaderName, token: &str) -> bool {
    tokens(headers, &list).any(|named| named.eq_ignore_ascii_case(token))
}

/// The members of a list field, over all its lines.
fn tokens<'a>(headers: &'a HeaderMap, list: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(list).into_iter().filter_map(|line| line.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}
