//! What somebody else's TLS ClientHello says in clear: the server's name and the protocols offered (RFC 8446, 4.1.2).
//!
//! Only read, never answered: what cannot be understood is TLS without a name, or no TLS at all.

/// The first byte of a TLS connection: a record of handshake messages.
pub(super) const HANDSHAKE_RECORD: u8 = 22;

/// What a ClientHello tells the way. Empty when the message could not be understood or was too long to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host name that the client asks for, in lower case. Names with characters that no host has are left out.
    pub sni: Option<String>,
    /// The protocols that the client offers, best first; at most 32 are kept.
    pub alpn: Vec<Vec<u8>>,
}

/// What the first bytes of a connection are, read as TLS.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// More bytes have to come.
    Incomplete,
    /// A ClientHello, as far as it could be understood.
    Hello(ClientHello),
    /// No TLS.
    NotTls,
}

/// Reads the ClientHello at the beginning of a connection; it may be spread over several records.
pub(super) fn read(first: &[u8]) -> Reading {
    let mut message = Vec::new();
    let mut rest = first;
    while !rest.is_empty() {
        let Some(begun) = record_header(rest) else {
            // What began as a ClientHello is TLS, though strange; what did not is something else.
            return if message.is_empty() {
                Reading::NotTls
            } else {
                Reading::Hello(ClientHello::default())
            };
        };
        let Record::Whole { length } = begun else {
            return Reading::Incomplete;
        };
        let body = &rest[RECORD_HEADER..];
        let fragment = &body[..body.len().min(length)];
        if message.is_empty() && fragment.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
            return Reading::NotTls;
        }
        message.extend_from_slice(fragment);
        match handshake_body(&message) {
            Body::Incomplete => {}
            Body::TooLong => return Reading::Hello(ClientHello::default()),
            Body::Whole(body) => return Reading::Hello(parse(body).unwrap_or_default()),
        }
        rest = &body[fragment.len()..];
    }
    Reading::Incomplete
}

enum Record {
    /// The header is all there and sound, and so many bytes follow it.
    Whole { length: usize },
    /// As much of the header as is there is sound.
    Begun,
}

/// `None` if these cannot be the bytes of a handshake record's header.
fn record_header(bytes: &[u8]) -> Option<Record> {
    let sound = |index: usize, test: fn(u8) -> bool| bytes.get(index).is_none_or(|&byte| test(byte));
    let plausible = sound(0, |kind| kind == HANDSHAKE_RECORD)
        && sound(1, |major| major == 3)
        && sound(2, |minor| minor <= 4)
        && sound(3, |high| usize::from(high) <= LONGEST_RECORD >> 8);
    if !plausible {
        return None;
    }
    let Some(&[high, low]) = bytes.get(3..RECORD_HEADER) else {
        return Some(Record::Begun);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // Empty handshake records are forbidden (RFC 8446, 5.1), and would let a peer keep us reading nothing.
    (1..=LONGEST_RECORD)
        .contains(&length)
        .then_some(Record::Whole { length })
}

enum Body<'a> {
    Incomplete,
    TooLong,
    Whole(&'a [u8]),
}

fn handshake_body(message: &[u8]) -> Body<'_> {
    let Some((&[_, high, middle, low], rest)) = message.split_first_chunk::<4>() else {
        return Body::Incomplete;
    };
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length > super::MOST_FIRST_BYTES {
        return Body::TooLong;
    }
    rest.get(..length).map_or(Body::Incomplete, Body::Whole)
}

/// `None` if the body of the message is malformed.
fn parse(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    let _version_and_random = body.take(2 + 32)?;
    let _session_id = body.vector8()?;
    let _cipher_suites = body.vector16()?;
    let _compression = body.vector8()?;
    let mut hello = ClientHello::default();
    if body.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.vector16()?);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = Reader(extensions.vector16()?);
        match kind {
            SERVER_NAME => hello.sni = server_name(data)?,
            ALPN => hello.alpn = protocols(data)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The host name of a `server_name` extension (RFC 6066, 3).
fn server_name(mut data: Reader<'_>) -> Option<Option<String>> {
    let mut names = Reader(data.vector16()?);
    while !names.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.vector16()?;
        if kind == HOST_NAME {
            return Some(host(name));
        }
    }
    Some(None)
}

fn host(name: &[u8]) -> Option<String> {
    let fits = (1..=LONGEST_NAME).contains(&name.len());
    let sound = name
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte));
    (fits && sound).then(|| name.iter().map(|&byte| char::from(byte.to_ascii_lowercase())).collect())
}

/// The protocols of an `application_layer_protocol_negotiation` extension (RFC 7301, 3.1).
fn protocols(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = Reader(data.vector16()?);
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.vector8()?;
        if protocols.len() < MOST_PROTOCOLS {
            protocols.push(name.to_vec());
        }
    }
    Some(protocols)
}

/// Takes TLS's length-prefixed parts off the front; `None` when there is less than was announced.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let (&bytes, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest;
        Some(u16::from_be_bytes(bytes))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

const RECORD_HEADER: usize = 5;
const LONGEST_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ALPN: u16 = 16;
const LONGEST_NAME: usize = 253;
const MOST_PROTOCOLS: usize = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_length8(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).expect("short")][..], bytes].concat()
    }

    fn with_length16(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).expect("short").to_be_bytes()[..], bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length16(data)].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        extension(
            SERVER_NAME,
            &with_length16(&[&[HOST_NAME][..], &with_length16(name)].concat()),
        )
    }

    fn alpn(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| with_length8(name)).collect();
        extension(ALPN, &with_length16(&list))
    }

    /// A handshake message with these extensions, `None` for a hello from before there were any.
    fn message(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(with_length8(&[9; 32]));
        body.extend(with_length16(&[0x13, 0x01, 0x13, 0x02]));
        body.extend(with_length8(&[0]));
        body.extend(extensions.map(with_length16).unwrap_or_default());
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        [&[CLIENT_HELLO, length[1], length[2], length[3]][..], &body].concat()
    }

    fn in_records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |fragment: &[u8]| [&[HANDSHAKE_RECORD, 3, 1][..], &with_length16(fragment)].concat();
        message.chunks(size).flat_map(record).collect()
    }

    fn typical() -> Vec<u8> {
        // An unknown extension before, and a key share as long as X25519MLKEM768's after.
        let extensions = [
            extension(0xfafa, &[]),
            sni(b"Greeter.Example.com"),
            alpn(&[b"h2", b"http/1.1"]),
            extension(51, &[5; 1_222]),
        ];
        message(Some(&extensions.concat()))
    }

    fn understood() -> ClientHello {
        ClientHello {
            sni: Some("greeter.example.com".into()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }

    #[test]
    fn name_and_protocols_are_read() {
        assert_eq!(
            read(&in_records(&typical(), LONGEST_RECORD)),
            Reading::Hello(understood())
        );
    }

    #[test]
    fn a_hello_in_many_records_is_read_as_one() {
        for size in [1, 2, 3, 5, 100] {
            assert_eq!(
                read(&in_records(&typical(), size)),
                Reading::Hello(understood()),
                "records of {size}"
            );
        }
    }

    #[test]
    fn every_part_of_a_hello_is_incomplete() {
        let whole = in_records(&typical(), 700);
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), Reading::Incomplete, "{length} bytes");
        }
    }

    #[test]
    fn a_hello_without_extensions_is_tls_without_a_name() {
        assert_eq!(
            read(&in_records(&message(None), 4_096)),
            Reading::Hello(ClientHello::default())
        );
    }

    #[test]
    fn a_name_that_no_host_has_is_left_out() {
        for name in [&b"a b"[..], b"", b"x\0y", "münchen".as_bytes(), &[b'a'; 254]] {
            let hello = message(Some(&[sni(name), alpn(&[b"h2"])].concat()));
            let expected = ClientHello {
                sni: None,
                alpn: vec![b"h2".to_vec()],
            };
            assert_eq!(read(&in_records(&hello, 4_096)), Reading::Hello(expected), "{name:?}");
        }
    }

    #[test]
    fn protocols_are_bounded() {
        let many = vec![&b"x"[..]; 1_000];
        let Reading::Hello(hello) = read(&in_records(&message(Some(&alpn(&many))), LONGEST_RECORD)) else {
            panic!("a hello");
        };
        assert_eq!(hello.alpn.len(), MOST_PROTOCOLS);
    }

    #[test]
    fn a_malformed_hello_is_tls_without_a_name() {
        let lying = extension(SERVER_NAME, &[0xff, 0xff, 0, 0]);
        let hello = message(Some(&lying));
        assert_eq!(read(&in_records(&hello, 4_096)), Reading::Hello(ClientHello::default()));
    }

    #[test]
    fn a_hello_longer_than_is_kept_is_tls_without_a_name() {
        assert_eq!(
            read(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"),
            Reading::Hello(ClientHello::default())
        );
    }

    #[test]
    fn what_is_no_handshake_record_is_no_tls() {
        let others: [&[u8]; 6] = [
            b"\x16\x02",
            b"\x16\x03\x05",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x40\x01\x01",
            b"\x16\x03\x01\x00\x10\x02",
            b"\x16\x03\x01\xff",
        ];
        for other in others {
            assert_eq!(read(other), Reading::NotTls, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_hello_is_never_a_panic(index in 0usize..1_500, byte in any::<u8>(), size in 1usize..2_000) {
            let mut hello = in_records(&typical(), size);
            let index = index % hello.len();
            hello[index] = byte;
            read(&hello);
        }

        #[test]
        fn any_extensions_are_read_without_a_panic(extensions in prop::collection::vec(any::<u8>(), 0..300)) {
            let read = read(&in_records(&message(Some(&extensions)), 4_096));
            prop_assert!(matches!(read, Reading::Hello(_)));
        }

        #[test]
        fn any_name_and_protocols_come_through(
            name in "[a-z0-9]([a-z0-9.-]{0,60})",
            names in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8),
            size in 1usize..3_000,
        ) {
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let hello = message(Some(&[alpn(&names), sni(name.as_bytes())].concat()));
            let expected = ClientHello { sni: Some(name), alpn: names.iter().map(|name| name.to_vec()).collect() };
            prop_assert_eq!(read(&in_records(&hello, size)), Reading::Hello(expected));
        }
    }
}
