//! What the first bytes of either side say. Pure: the same bytes, the same verdict; nothing is remembered between calls.

use super::client_hello::{self, ClientHello};

/// The client connection preface of HTTP/2 (RFC 9113, 3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Never more than this is needed: with so many bytes, [`classify`] has a verdict.
pub const MOST_FIRST_BYTES: usize = 16 << 10;

/// What a client's first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They could still become several things.
    NeedMore,
    /// The whole HTTP/2 preface.
    Http2,
    /// The beginning of an HTTP/1 request line.
    Http1,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// None of these.
    Opaque,
}

/// Says what a client speaks by its first bytes: all of them so far, from the first.
///
/// A part of the HTTP/2 preface is [`Verdict::NeedMore`] and never HTTP/1. More bytes never change a verdict once given,
/// and with [`MOST_FIRST_BYTES`] there is one.
pub fn classify(first: &[u8]) -> Verdict {
    let first = &first[..first.len().min(MOST_FIRST_BYTES)];
    if first.starts_with(PREFACE) {
        return Verdict::Http2;
    }
    if PREFACE.starts_with(first) {
        return Verdict::NeedMore;
    }
    if first[0] == client_hello::HANDSHAKE_RECORD {
        return match client_hello::read(first) {
            client_hello::Reading::Hello(hello) => Verdict::Tls(hello),
            client_hello::Reading::Incomplete if first.len() < MOST_FIRST_BYTES => Verdict::NeedMore,
            client_hello::Reading::Incomplete => Verdict::Tls(ClientHello::default()),
            client_hello::Reading::NotTls => Verdict::Opaque,
        };
    }
    request_line(first)
}

/// The methods of RFC 9110 and PATCH, with what may follow them: text protocols have commands of the same names
/// (`GET key` is Redis), so the target has to look like one, too.
fn request_line(first: &[u8]) -> Verdict {
    const METHODS: [&[u8]; 9] = [
        b"GET ",
        b"HEAD ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"CONNECT ",
        b"OPTIONS ",
        b"TRACE ",
        b"PATCH ",
    ];
    for method in METHODS {
        if method.starts_with(first) {
            return Verdict::NeedMore;
        }
        if let Some(target) = first.strip_prefix(method) {
            return request_target(method, target);
        }
    }
    Verdict::Opaque
}

fn request_target(method: &[u8], target: &[u8]) -> Verdict {
    let Some(&begin) = target.first() else {
        return Verdict::NeedMore;
    };
    if method == b"CONNECT " {
        return if begin.is_ascii_alphanumeric() || begin == b'[' {
            Verdict::Http1
        } else {
            Verdict::Opaque
        };
    }
    if begin == b'/' || begin == b'*' {
        return Verdict::Http1;
    }
    for scheme in [&b"http://"[..], b"https://"] {
        let common = scheme.len().min(target.len());
        if scheme[..common].eq_ignore_ascii_case(&target[..common]) {
            return if common == scheme.len() {
                Verdict::Http1
            } else {
                Verdict::NeedMore
            };
        }
    }
    Verdict::Opaque
}

/// What a server's first bytes say when it speaks before its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerOpening {
    /// They could still be the header of a SETTINGS frame.
    NeedMore,
    /// A SETTINGS frame of HTTP/2, which grpc-go and others send unasked.
    Settings,
    /// Not HTTP/2.
    Opaque,
}

/// Says what a server that speaks first speaks, by the nine bytes of an HTTP/2 frame header (RFC 9113, 4.1 and 6.5):
/// a length of whole settings that fits the first frame, type SETTINGS, no flag, stream 0.
pub fn server_opening(first: &[u8]) -> ServerOpening {
    const LENGTH_OF_A_SETTING: u32 = 6;
    const LONGEST_FRAME: u32 = 16_384;
    const AFTER_LENGTH: [u8; 6] = [0x4, 0, 0, 0, 0, 0];

    let length = &first[..first.len().min(3)];
    let value = length.iter().fold(0, |value, &byte| value << 8 | u32::from(byte));
    let lowest = value << (8 * (3 - length.len()));
    let rest = &first[length.len()..first.len().min(9)];
    let whole = length.len() < 3 || value.is_multiple_of(LENGTH_OF_A_SETTING);
    if lowest > LONGEST_FRAME || !whole || !AFTER_LENGTH.starts_with(rest) {
        ServerOpening::Opaque
    } else if first.len() < 9 {
        ServerOpening::NeedMore
    } else {
        ServerOpening::Settings
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_part_of_the_preface_is_never_http1() {
        for length in 0..PREFACE.len() {
            assert_eq!(classify(&PREFACE[..length]), Verdict::NeedMore, "{length} bytes");
        }
        assert_eq!(classify(PREFACE), Verdict::Http2);
        assert_eq!(
            classify(&[&PREFACE[..], b"\0\0\0\x04\0\0\0\0\0"].concat()),
            Verdict::Http2
        );
    }

    #[test]
    fn a_request_line_is_http1() {
        let requests = [
            "GET / HTTP/1.1\r\n",
            "POST /a.B/C HTTP/1.1\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "CONNECT example.com:443 HTTP/1.1\r\n",
            "CONNECT [::1]:443 HTTP/1.1\r\n",
            "GET http://example.com/ HTTP/1.0\r\n",
            "GET HTTPS://example.com/ HTTP/1.1\r\n",
        ];
        for request in requests {
            assert_eq!(classify(request.as_bytes()), Verdict::Http1, "{request}");
        }
    }

    #[test]
    fn what_resembles_http_but_is_not_is_opaque() {
        let others = [
            "PRI * HTTP/1.1\r\n",
            "PRIVATE",
            "GET key\r\n",
            "get key\r\n",
            "HELO example.com\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "PING\r\n",
            "\0\0\0\x08\x04\x52\x16\x2f",
            "GET\t/",
        ];
        for other in others {
            assert_eq!(classify(other.as_bytes()), Verdict::Opaque, "{other:?}");
        }
    }

    #[test]
    fn the_settings_of_real_servers_are_known() {
        // grpc-go 1.85: MAX_FRAME_SIZE; grpc C-core: several; nghttpd and others: MAX_CONCURRENT_STREAMS; empty.
        let openings: [&[u8]; 4] = [
            b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00",
            b"\x00\x00\x24\x04\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00",
            b"\x00\x00\x0c\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
            b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        ];
        for opening in openings {
            for length in 0..9 {
                assert_eq!(
                    server_opening(&opening[..length]),
                    ServerOpening::NeedMore,
                    "{length} bytes"
                );
            }
            assert_eq!(server_opening(opening), ServerOpening::Settings);
        }
    }

    #[test]
    fn other_servers_that_speak_first_are_opaque() {
        let banners: [&[u8]; 8] = [
            b"220 mail.example.com ESMTP\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x4a\x00\x00\x00\x0a8.0.36\x00",
            b"RFB 003.008\n",
            b"\x00\x00\x07\x04\x00\x00\x00\x00\x00",
            b"\x00\x00\x06\x04\x01\x00\x00\x00\x00",
            b"\x00\x00\x06\x07\x00\x00\x00\x00\x00",
            b"\x00\x00\x06\x04\x00\x00\x00\x00\x01",
        ];
        for banner in banners {
            assert_eq!(server_opening(banner), ServerOpening::Opaque, "{banner:?}");
        }
        assert_eq!(
            server_opening(b"\x00\x40\x01"),
            ServerOpening::Opaque,
            "longer than the first frame may be"
        );
    }

    /// Bytes that come near the interesting branches more often than random ones.
    fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
        let beginnings = prop::sample::select(vec![
            &b""[..],
            PREFACE,
            b"GET /",
            b"POST http://",
            b"CONNECT ",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x03\x00\x00\x28",
        ]);
        (beginnings, 0usize..40, prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(begin, keep, rest)| {
            let mut bytes = begin[..keep.min(begin.len())].to_vec();
            bytes.extend(rest);
            bytes
        })
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in first_bytes()) {
            let mut given: Option<Verdict> = None;
            for length in 0..=bytes.len() {
                let verdict = classify(&bytes[..length]);
                match &given {
                    None if verdict == Verdict::NeedMore => {}
                    None => given = Some(verdict),
                    Some(before) => prop_assert_eq!(&verdict, before, "at {} bytes", length),
                }
            }
        }

        #[test]
        fn only_the_preface_is_http2(bytes in first_bytes()) {
            prop_assert_eq!(classify(&bytes) == Verdict::Http2, bytes.starts_with(PREFACE));
        }

        #[test]
        fn there_is_a_verdict_within_the_bound(begin in first_bytes(), fill in any::<u8>()) {
            let mut bytes = begin;
            bytes.resize(MOST_FIRST_BYTES, fill);
            prop_assert_ne!(classify(&bytes), Verdict::NeedMore);
        }

        #[test]
        fn a_server_is_judged_by_nine_bytes_and_keeps_its_verdict(bytes in prop::collection::vec(0u8..8, 0..20)) {
            let mut given = ServerOpening::NeedMore;
            for length in 0..=bytes.len() {
                let opening = server_opening(&bytes[..length]);
                prop_assert!(given == ServerOpening::NeedMore || opening == given);
                prop_assert!(length < 9 || opening != ServerOpening::NeedMore);
                given = opening;
            }
        }
    }
}
