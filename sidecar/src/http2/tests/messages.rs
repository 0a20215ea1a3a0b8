//! Messages: what makes one malformed, and that it costs its own stream alone (RFC 9113, 8.1 to 8.6).

use super::peer::*;
use crate::http2::connection::{Head, StreamFault};
use crate::http2::frame::{END_HEADERS, END_STREAM, Reason, kind};
use crate::http2::hpack::Malformed;
use crate::http2::message::Wrong;

type List<'a> = Vec<(&'a str, &'a str)>;

fn get<'a>() -> List<'a> {
    vec![(":method", "GET"), (":scheme", "http"), (":path", "/")]
}

fn and<'a>(mut list: List<'a>, more: &[(&'a str, &'a str)]) -> List<'a> {
    list.extend_from_slice(more);
    list
}

#[test]
fn requests_of_every_legal_shape_pass() {
    for list in [
        get(),
        and(
            get(),
            &[
                (":authority", "a"),
                ("te", "trailers"),
                ("cookie", "a=b"),
                ("cookie", "c=d"),
            ],
        ),
        vec![
            (":authority", ""),
            (":path", "*"),
            (":scheme", "https"),
            (":method", "OPTIONS"),
        ],
        vec![(":method", "CONNECT"), (":authority", "a:1")],
        and(
            get(),
            &[
                ("x-empty", ""),
                ("x-tab", "a\tb"),
                ("x-high", "\u{e9}"),
                ("content-length", "0"),
            ],
        ),
        and(get(), &[("content-length", "0"), ("content-length", "0")]),
        // RFC 9113, 8.3.1: `host` alone, or in other words than `:authority`.
        and(get(), &[("host", "a")]),
        and(get(), &[(":authority", "a.test"), ("host", "A.Test:80")]),
        and(get(), &[(":authority", "[::1]:80"), ("host", "[::1]")]),
        and(get(), &[(":authority", "a:"), ("host", "a")]),
        vec![
            (":method", "GET"),
            (":authority", "a:443"),
            (":scheme", "https"),
            (":path", "/"),
            ("host", "a"),
        ],
    ] {
        let mut server = End::server();
        let seen = server.feed(&[headers(1, &list, true)]);
        assert!(
            matches!(
                seen[..],
                [Seen::Headers {
                    head: Head::Request,
                    ..
                }]
            ),
            "{list:?}: {seen:?}"
        );
    }
}

#[test]
fn a_malformed_request_is_refused_on_its_own_stream() {
    use Malformed::{ConnectionField, EmptyPseudo, Te};
    use Wrong::*;
    for (list, wrong) in [
        (get()[..2].to_vec(), PseudoMissing),
        (get()[1..].to_vec(), PseudoMissing),
        (vec![get()[0], get()[2]], PseudoMissing),
        (vec![get()[0], get()[1], (":path", "")], Field(EmptyPseudo)),
        (vec![], PseudoMissing),
        (and(get(), &[(":method", "GET")]), PseudoMisplaced),
        (and(get(), &[(":path", "/")]), PseudoMisplaced),
        (and(vec![("x", "y")], &get()), PseudoMisplaced),
        (and(get(), &[("x", "y"), (":authority", "a")]), PseudoMisplaced),
        (and(get(), &[(":status", "200")]), PseudoUnknown),
        (and(get(), &[(":protocol", "websocket")]), PseudoUnknown),
        (and(get(), &[(":other", "x")]), PseudoUnknown),
        (
            vec![(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")],
            PseudoUnknown,
        ),
        (vec![(":method", "CONNECT")], PseudoMissing),
        (and(get(), &[("connection", "close")]), Field(ConnectionField)),
        (and(get(), &[("keep-alive", "1")]), Field(ConnectionField)),
        (and(get(), &[("proxy-connection", "close")]), Field(ConnectionField)),
        (and(get(), &[("transfer-encoding", "chunked")]), Field(ConnectionField)),
        (and(get(), &[("upgrade", "h2c")]), Field(ConnectionField)),
        (and(get(), &[("te", "gzip")]), Field(Te)),
        (and(get(), &[("te", "trailers, gzip")]), Field(Te)),
        (and(get(), &[(":authority", "a"), ("host", "b")]), HostDiffers),
        (
            and(get(), &[(":authority", "a"), ("host", "a"), ("host", "b")]),
            HostDiffers,
        ),
        (and(get(), &[(":authority", "a:80"), ("host", "a:81")]), HostDiffers),
        (and(get(), &[(":authority", "a"), ("host", "a:443")]), HostDiffers),
        (
            and(get(), &[(":authority", "[::1]:80"), ("host", "[::2]")]),
            HostDiffers,
        ),
        (and(get(), &[("content-length", "")]), ContentLength),
        (and(get(), &[("content-length", "+1")]), ContentLength),
        (and(get(), &[("content-length", "1,1")]), ContentLength),
        (
            and(get(), &[("content-length", "0"), ("content-length", "1")]),
            ContentLength,
        ),
        (and(get(), &[("content-length", "99999999999999999999")]), ContentLength),
        (and(get(), &[("content-length", "1")]), ContentLengthMismatch),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        server.said();
        assert_eq!(
            server.feed(&[headers(3, &list, true)]),
            [refused(Reason::PROTOCOL_ERROR, Some(wrong))],
            "{list:?}"
        );
        assert_eq!(server.said(), [rst(3, Reason::PROTOCOL_ERROR)]);
        assert_eq!(server.feed(&[data(1, b"x", true)]), [got(1, b"x", true)]);
    }
}

/// RFC 9113, 8.3.1: each of them is valid. A server may end the connection over one that is not, and others share it.
#[test]
fn a_pseudo_field_that_is_not_valid_is_refused_on_its_own_stream() {
    let with = |name: &'static str, value: &'static [u8]| {
        let list = [
            (":method", &b"GET"[..]),
            (":scheme", b"http"),
            (":path", b"/"),
            (":authority", b"a"),
        ];
        let list = list.map(|(other, usual)| (other, if other == name { value } else { usual }));
        bytes_block(&list)
    };
    for (name, value) in [
        (":method", &b"G\xe6T"[..]),
        (":method", b"GE T"),
        (":scheme", b"ht\xd5p"),
        (":path", b"/a.\x98/C"),
        (":path", b"/a HTTP/1.1"),
        (":authority", b"a\xa0"),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        server.said();
        assert_eq!(
            server.feed(&[raw(kind::HEADERS, END_HEADERS | END_STREAM, 3, &with(name, value))]),
            [refused(
                Reason::PROTOCOL_ERROR,
                Some(Wrong::Field(Malformed::BadPseudoByte))
            )],
            "{name}: {}",
            value.escape_ascii()
        );
        assert_eq!(server.said(), [rst(3, Reason::PROTOCOL_ERROR)]);
        assert_eq!(server.feed(&[data(1, b"x", true)]), [got(1, b"x", true)]);
    }
    // What clients send, and no URI has.
    let path = with(":path", "/caf\u{e9}?\"".as_bytes());
    let mut server = End::server();
    let seen = server.feed(&[raw(kind::HEADERS, END_HEADERS | END_STREAM, 1, &path)]);
    assert!(
        matches!(
            &seen[..],
            [Seen::Headers {
                head: Head::Request,
                ..
            }]
        ),
        "{seen:?}"
    );
}

#[test]
fn a_field_that_is_not_one_is_refused_whatever_it_is() {
    for (name, value) in [
        ("X-Upper", "x"),
        ("", "x"),
        ("sp ace", "x"),
        ("co:lon", "x"),
        ("x-\u{7f}", "x"),
        ("x-\u{e9}", "x"),
        ("x", "a\rb"),
        ("x", "a\nb"),
        ("x", "a\0b"),
        ("x", " a"),
        ("x", "a "),
        ("x", "\ta"),
        ("x", "a\t"),
    ] {
        let mut server = End::server();
        let seen = server.feed(&[headers(1, &and(get(), &[(name, value)]), true)]);
        assert!(
            matches!(
                seen[..],
                [Seen::Refused {
                    reason: Reason::PROTOCOL_ERROR,
                    wrong: Some(Wrong::Field(_))
                }]
            ),
            "{name:?}: {value:?}: {seen:?}"
        );
        // The same in a response, and in trailers.
        let mut client = End::client();
        client.ask(true);
        let seen = client.feed(&[headers(1, &[(":status", "200"), (name, value)], true)]);
        assert!(is_malformed(&seen), "{name:?}: {value:?}: {seen:?}");
        client.ask(true);
        let seen = client.feed(&[answer(3, false), headers(3, &[(name, value)], true)]);
        assert!(is_malformed(&seen[1..]), "{name:?}: {value:?}: {seen:?}");
    }
}

fn is_malformed(seen: &[Seen]) -> bool {
    matches!(
        seen,
        [Seen::Reset {
            reason: Reason::PROTOCOL_ERROR,
            fault: Some(StreamFault::Malformed(_)),
            ..
        }]
    )
}

#[test]
fn an_error_names_the_kind_of_malformation() {
    let mut server = End::server();
    assert_eq!(
        server.feed(&[headers(1, &and(get(), &[("A", "b")]), true)]),
        [refused(
            Reason::PROTOCOL_ERROR,
            Some(Wrong::Field(Malformed::UpperCaseName))
        )]
    );
}

// ---- responses ----

#[test]
fn informational_responses_come_before_the_final_one() {
    let mut client = End::client();
    client.ask(true);
    let seen = client.feed(&[
        headers(1, &[(":status", "100")], false),
        headers(1, &[(":status", "103"), ("link", "x")], false),
        answer(1, false),
        trailers(1),
    ]);
    let heads: Vec<_> = seen
        .iter()
        .map(|seen| match seen {
            Seen::Headers { head, end, .. } => (*head, *end),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        heads,
        [
            (Head::Informational(100), false),
            (Head::Informational(103), false),
            (Head::Response(200), false),
            (Head::Trailers, true)
        ]
    );
}

#[test]
fn a_malformed_response_costs_its_own_stream() {
    use Malformed::{ConnectionField, EmptyPseudo};
    use Wrong::*;
    let bad: [(List<'_>, bool, Wrong); 15] = [
        (vec![], false, PseudoMissing),
        (vec![("x", "y")], true, PseudoMissing),
        (vec![(":status", "")], true, Field(EmptyPseudo)),
        (vec![(":status", "20")], true, Status),
        (vec![(":status", "2000")], true, Status),
        (vec![(":status", "2x0")], true, Status),
        (vec![(":status", "020")], true, Status),
        (vec![(":status", "200"), (":status", "200")], true, PseudoMisplaced),
        (vec![("x", "y"), (":status", "200")], true, PseudoMisplaced),
        (vec![(":status", "200"), (":path", "/")], true, PseudoUnknown),
        (vec![(":status", "100")], true, Premature),
        (vec![(":status", "101")], false, SwitchingProtocols),
        (
            vec![(":status", "200"), ("connection", "close")],
            true,
            Field(ConnectionField),
        ),
        (vec![(":status", "200"), ("content-length", "x")], true, ContentLength),
        (
            vec![(":status", "200"), ("content-length", "5")],
            true,
            ContentLengthMismatch,
        ),
    ];
    for (list, end, wrong) in bad {
        let mut client = End::client();
        client.ask(true);
        client.ask(true);
        client.said();
        assert_eq!(
            client.feed(&[headers(1, &list, end)]),
            [Seen::Reset {
                id: 1,
                reason: Reason::PROTOCOL_ERROR,
                fault: Some(StreamFault::Malformed(wrong)),
                theirs_ended: false
            }],
            "{list:?}"
        );
        assert_eq!(client.said(), [rst(1, Reason::PROTOCOL_ERROR)]);
        assert_eq!(client.feed(&[answer(3, true)]), [answered(3, true)]);
    }
}

#[test]
fn data_before_the_response_costs_its_own_stream() {
    let mut client = End::client();
    client.ask(true);
    let premature = StreamFault::Malformed(Wrong::Premature);
    assert_eq!(
        client.feed(&[data(1, b"x", false)]),
        [faulted(1, Reason::PROTOCOL_ERROR, premature)]
    );
    client.ask(true);
    assert_eq!(
        client.feed(&[headers(3, &[(":status", "100")], false), data(3, b"x", false)])[1],
        faulted(3, Reason::PROTOCOL_ERROR, premature)
    );
}

// ---- trailers ----

#[test]
fn trailers_that_do_not_end_the_stream_or_are_malformed_cost_it() {
    for (frame, wrong) in [
        (headers(1, &[("a", "b")], false), Wrong::TrailersOpen),
        (headers(1, &[(":status", "200")], true), Wrong::PseudoUnknown),
        (headers(1, &[(":path", "/")], true), Wrong::PseudoUnknown),
        (headers(1, &[("te", "gzip")], true), Wrong::Field(Malformed::Te)),
        (
            headers(1, &[("connection", "x")], true),
            Wrong::Field(Malformed::ConnectionField),
        ),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false), data(1, b"x", false)]);
        assert_eq!(
            server.feed(&[frame]),
            [faulted(1, Reason::PROTOCOL_ERROR, StreamFault::Malformed(wrong))]
        );
    }
}

#[test]
fn empty_trailers_end_a_stream() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    let seen = server.feed(&[headers(1, &[], true)]);
    assert!(matches!(&seen[..], [Seen::Headers { head: Head::Trailers, end: true, fields, .. }] if fields.is_empty()));
}

// ---- content-length ----

#[test]
fn data_must_be_as_long_as_content_length_says() {
    let with = and(get(), &[("content-length", "5")]);
    let mismatch = faulted(
        1,
        Reason::PROTOCOL_ERROR,
        StreamFault::Malformed(Wrong::ContentLengthMismatch),
    );
    for (frames, last) in [
        (vec![data(1, b"hello", true)], got(1, b"hello", true)),
        (
            vec![data(1, b"he", false), data(1, b"llo", true)],
            got(1, b"hello", true),
        ),
        (vec![padded_data(1, b"hello", 9, true)], got(1, b"hello", true)),
        (
            vec![data(1, b"hello", false), data(1, b"", true)],
            got(1, b"hello", true),
        ),
        (vec![data(1, b"hello", false), trailers(1)], trailed(1)),
        (vec![data(1, b"hell", true)], mismatch.clone()),
        (vec![data(1, b"hello!", false)], mismatch.clone()),
        (vec![data(1, b"hello", false), data(1, b"!", true)], mismatch.clone()),
        (vec![data(1, b"hell", false), data(1, b"", true)], mismatch.clone()),
        (vec![data(1, b"", true)], mismatch.clone()),
        (vec![data(1, b"hell", false), trailers(1)], mismatch),
    ] {
        let mut server = End::server();
        server.feed(&[headers(1, &with, false)]);
        let seen = server.feed(&frames);
        assert_eq!(seen.last(), Some(&last), "{frames:?}");
        assert_eq!(server.feed(&[ask(3, true)]), [asked(3, true)]);
    }
}

#[test]
fn after_a_mismatch_the_rest_of_the_frame_is_passed_over_however_it_is_cut() {
    let with = and(get(), &[("content-length", "5")]);
    let bytes = bytes_of(&[
        headers(1, &with, false),
        padded_data(1, &[7; 100], 30, true),
        ask(3, true),
    ]);
    let mut whole = End::server();
    let seen_whole = whole.feed_bytes(&bytes);
    assert!(matches!(seen_whole[seen_whole.len() - 2], Seen::Reset { .. }));
    for cut in 1..bytes.len() {
        let mut server = End::server();
        let mut seen = server.feed_bytes(&bytes[..cut]);
        server.feed_into(&bytes[cut..], &mut seen);
        assert_eq!(seen, seen_whole, "cut at {cut}");
    }
}

#[test]
fn a_response_without_content_may_name_a_length_and_has_no_data() {
    for (method, status) in [("HEAD", "200"), ("GET", "204"), ("GET", "304")] {
        let mut client = End::client();
        client.ask_by(method, true);
        let list = [(":status", status), ("content-length", "1000")];
        let seen = client.feed(&[headers(1, &list, true)]);
        assert!(matches!(seen[..], [Seen::Headers { end: true, .. }]), "{seen:?}");
        client.ask_by(method, true);
        let seen = client.feed(&[headers(3, &list, false), data(3, b"", true)]);
        assert_eq!(seen[1], got(3, b"", true));
        client.ask_by(method, true);
        let seen = client.feed(&[headers(5, &list, false), data(5, b"x", true)]);
        assert!(is_malformed(&seen[1..]), "{method} {status}: {seen:?}");
    }
}

#[test]
fn a_request_whose_length_is_not_said_may_have_any() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(server.feed(&[data(1, &[1; 3_000], true)]), [got(1, &[1; 3_000], true)]);
}
