//! What holds for decoder, encoder and interner together; the examples of the RFC; and two independent implementations.

use std::collections::VecDeque;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

const ROOMY: Limits = Limits {
    list_bytes: 1 << 20,
    fields: 10_000,
};

type Texts = Vec<(Vec<u8>, Vec<u8>)>;

/// A connection's two directions over one interner, as a relay has them.
struct Relay {
    interner: Interner,
    decoder: Decoder,
    encoder: Encoder,
    fields: Fields,
}

impl Relay {
    fn new(table_bytes: u32) -> Relay {
        Relay {
            interner: Interner::new(),
            decoder: Decoder::new(table_bytes),
            encoder: Encoder::new(),
            fields: Fields::new(),
        }
    }

    fn receive(&mut self, block: &[u8]) -> Result<Texts, Error> {
        self.receive_within(block, &ROOMY)
    }

    fn receive_within(&mut self, block: &[u8], limits: &Limits) -> Result<Texts, Error> {
        self.decoder
            .decode(block, limits, &mut self.interner, &mut self.fields)?;
        Ok(self.texts())
    }

    fn texts(&self) -> Texts {
        self.fields
            .iter(&self.interner)
            .map(|field| (field.name_text.to_vec(), field.value.to_vec()))
            .collect()
    }

    fn send(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encoder.encode(&self.fields, &mut self.interner, &mut out);
        out
    }

    /// Everything is given back, so nothing may be left.
    fn end(mut self) {
        self.fields.clear(&mut self.interner);
        self.decoder.release(&mut self.interner);
        self.encoder.release(&mut self.interner);
        assert_eq!(self.interner.live(), 0);
    }
}

fn texts(fields: &[(&str, &str)]) -> Texts {
    fields
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("test vectors are hexadecimal") as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn string(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    integer::encode(text.len() as u32, 0, 7, &mut out);
    [out, text.to_vec()].concat()
}

fn literal(pattern: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [vec![pattern], string(name), string(value)].concat()
}

/// A literal to be indexed, with the name of the static table's entry and a Huffman-coded value.
fn coded(static_index: u8, value: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    huffman::encode(value, &mut code);
    let mut out = vec![INDEXING | static_index];
    integer::encode(code.len() as u32, 0x80, 7, &mut out);
    [out, code].concat()
}

const INDEXING: u8 = 0x40;
const PLAIN: u8 = 0x00;
const NEVER: u8 = 0x10;

// RFC 7541, appendix C.

/// A block, what it means, and what the table counts behind it.
type Example<'a> = (&'a str, &'a [(&'a str, &'a str)], u32);

fn decodes(table_bytes: u32, blocks: &[Example<'_>]) {
    let mut relay = Relay::new(table_bytes);
    for (block, fields, table) in blocks {
        assert_eq!(relay.receive(&hex(block)), Ok(texts(fields)));
        assert_eq!(relay.decoder.bytes, *table);
    }
    relay.end();
}

#[test]
fn the_examples_of_appendix_c_2_are_decoded() {
    decodes(
        4096,
        &[(
            "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
            &[("custom-key", "custom-header")],
            55,
        )],
    );
    decodes(
        4096,
        &[("040c 2f73 616d 706c 652f 7061 7468", &[(":path", "/sample/path")], 0)],
    );
    decodes(
        4096,
        &[(
            "1008 7061 7373 776f 7264 0673 6563 7265 74",
            &[("password", "secret")],
            0,
        )],
    );
    decodes(4096, &[("82", &[(":method", "GET")], 0)]);
}

const FIRST: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
];
const SECOND: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":path", "/"),
    (":authority", "www.example.com"),
    ("cache-control", "no-cache"),
];
const THIRD: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
];
const HUFFMAN_REQUESTS: [&str; 3] = [
    "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
    "8286 84be 5886 a8eb 1064 9cbf",
    "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
];

#[test]
fn the_examples_of_appendix_c_3_and_4_are_decoded() {
    decodes(
        4096,
        &[
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", FIRST, 57),
            ("8286 84be 5808 6e6f 2d63 6163 6865", SECOND, 110),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                THIRD,
                164,
            ),
        ],
    );
    let [first, second, third] = HUFFMAN_REQUESTS;
    decodes(4096, &[(first, FIRST, 57), (second, SECOND, 110), (third, THIRD, 164)]);
}

#[test]
fn the_examples_of_appendix_c_5_and_6_are_decoded_with_their_evictions() {
    let first: &[(&str, &str)] = &[
        (":status", "302"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ];
    let second: &[(&str, &str)] = &[
        (":status", "307"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ("location", "https://www.example.com"),
    ];
    let third: &[(&str, &str)] = &[
        (":status", "200"),
        ("cache-control", "private"),
        ("date", "Mon, 21 Oct 2013 20:13:22 GMT"),
        ("location", "https://www.example.com"),
        ("content-encoding", "gzip"),
        ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ];
    decodes(
        256,
        &[
            (
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 \
                 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                first,
                222,
            ),
            ("4803 3330 37c1 c0bf", second, 222),
            (
                "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 \
                 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 \
                 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
                third,
                215,
            ),
        ],
    );
    decodes(
        256,
        &[
            (
                "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad \
                 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
                first,
                222,
            ),
            ("4883 640e ffc1 c0bf", second, 222),
            (
                "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 \
                 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                third,
                215,
            ),
        ],
    );
}

#[test]
fn the_examples_of_appendix_c_4_are_encoded_once_their_fields_are_known() {
    let mut relay = Relay::new(4096);
    let constants: Vec<Vec<FieldId>> = [FIRST, SECOND, THIRD]
        .iter()
        .map(|fields| {
            fields
                .iter()
                .map(|(n, v)| relay.interner.constant(n.as_bytes(), v.as_bytes()))
                .collect()
        })
        .collect();
    for (fields, block) in constants.iter().zip(HUFFMAN_REQUESTS) {
        relay.fields.clear(&mut relay.interner);
        fields
            .iter()
            .for_each(|id| relay.fields.push_id(*id, &mut relay.interner));
        assert_eq!(relay.send(), hex(block));
    }
}

#[test]
fn the_literals_of_appendix_c_2_are_encoded_as_they_stand_there() {
    let mut relay = Relay::new(4096);
    relay.fields.push(b":path", b"/sample/path", false);
    relay.fields.push(b"password", b"secret", true);
    let expected = hex("040c 2f73 616d 706c 652f 7061 7468 1008 7061 7373 776f 7264 0673 6563 7265 74");
    assert_eq!(relay.send(), expected);
}

// The decoder.

#[test]
fn each_error_of_a_block_is_named() {
    let fresh = |block: &[u8]| Relay::new(4096).receive(block).expect_err("a broken block");
    assert_eq!(fresh(&[0x80]), Error::IndexZero);
    assert_eq!(fresh(&[0xbe]), Error::NoSuchIndex { index: 62, last: 61 });
    assert_eq!(fresh(&[0x7f, 0x00, 0x00]), Error::NoSuchIndex { index: 63, last: 61 });
    assert_eq!(fresh(&[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), Error::IntegerTooLong);
    assert_eq!(fresh(&[0xff]), Error::Truncated);
    assert_eq!(fresh(&[0x40]), Error::Truncated);
    assert_eq!(fresh(&[0x40, 0x05, b'a']), Error::Truncated);
    assert_eq!(fresh(&[0x44, 0x05, b'a']), Error::Truncated);
    assert_eq!(fresh(&[0x04, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x07]), Error::Truncated);
    assert_eq!(fresh(&[0x44, 0x81, 0xff]), Error::HuffmanPadding);
    assert_eq!(fresh(&[0x44, 0x84, 0xff, 0xff, 0xff, 0xff]), Error::HuffmanEos);
    assert_eq!(fresh(&[0x82, 0x20]), Error::SizeUpdateMisplaced);
    assert_eq!(fresh(&[0x20, 0x21, 0x22]), Error::SizeUpdateMisplaced);
    assert_eq!(
        fresh(&[0x3f, 0xe2, 0x1f]),
        Error::SizeUpdateTooLarge {
            asked: 4097,
            allowed: 4096
        }
    );
}

#[test]
fn an_error_leaves_no_fields_and_no_references() {
    let mut relay = Relay::new(4096);
    relay.receive(&literal(INDEXING, b"x-a", b"1")).expect("a good block");
    assert_eq!(relay.receive(&[0xbe, 0x82, 0x80]), Err(Error::IndexZero));
    assert!(relay.fields.is_empty());
    relay.end();
}

#[test]
fn a_lowered_limit_must_be_heard_of_at_the_beginning_of_the_next_block() {
    let mut relay = Relay::new(4096);
    relay.receive(&literal(INDEXING, b"x-a", b"1")).expect("a good block");
    relay.decoder.set_max_table_bytes(100);
    relay.decoder.set_max_table_bytes(50);
    relay.decoder.set_max_table_bytes(4096);
    assert_eq!(relay.receive(&[0x82]), Err(Error::SizeUpdateMissing { allowed: 50 }));

    let mut relay = Relay::new(4096);
    relay.decoder.set_max_table_bytes(50);
    relay.decoder.set_max_table_bytes(4096);
    assert_eq!(
        relay.receive(&hex("3f e1 1f 82")),
        Err(Error::SizeUpdateTooLarge {
            asked: 4096,
            allowed: 50
        })
    );

    let mut relay = Relay::new(4096);
    relay.receive(&literal(INDEXING, b"x-a", b"1")).expect("a good block");
    relay.decoder.set_max_table_bytes(30);
    relay.decoder.set_max_table_bytes(4096);
    assert_eq!(relay.receive(&hex("3e 3f e1 1f 82")), Ok(texts(&[(":method", "GET")])));
    assert_eq!(
        (relay.decoder.bytes, relay.interner.live()),
        (0, 0),
        "the smaller size has emptied the table"
    );
    relay
        .receive(&literal(INDEXING, b"x-a", b"1"))
        .expect("the larger size holds now");
    assert_eq!(relay.decoder.bytes, 36);
    relay.end();
}

#[test]
fn a_raised_limit_is_used_only_when_the_peer_says_so() {
    let mut relay = Relay::new(100);
    relay.decoder.set_max_table_bytes(1000);
    relay
        .receive(&literal(INDEXING, b"x-a", &[b'x'; 70]))
        .expect("too large for the table, which is no error");
    assert_eq!(relay.decoder.bytes, 0);
    let update = hex("3f 89 06"); // 808
    relay
        .receive(&[update, literal(INDEXING, b"x-a", &[b'x'; 70])].concat())
        .expect("a good block");
    assert_eq!(relay.decoder.bytes, 105);
    relay.end();
}

#[test]
fn an_entry_may_be_named_after_the_one_that_it_evicts() {
    let mut relay = Relay::new(64);
    relay
        .receive(&literal(INDEXING, b"x-name", b"first"))
        .expect("a good block");
    let block = [vec![0x7e], string(b"second")].concat();
    assert_eq!(relay.receive(&block), Ok(texts(&[("x-name", "second")])));
    assert_eq!(relay.receive(&[0xbe]), Ok(texts(&[("x-name", "second")])));
    relay.end();
}

#[test]
fn over_a_limit_the_rest_is_read_and_not_kept() {
    let block = [
        vec![0x82, 0x84],
        literal(INDEXING, b"x-a", b"1"),
        literal(PLAIN, b"x-b", b"2"),
        literal(INDEXING, b"authorization", b"3"),
    ]
    .concat();
    let few = Limits {
        list_bytes: 1 << 20,
        fields: 2,
    };
    let short = Limits {
        list_bytes: 42 + 38,
        fields: 100,
    };
    for limits in [few, short] {
        let mut relay = Relay::new(4096);
        assert_eq!(
            relay.receive_within(&block, &limits),
            Ok(texts(&[(":method", "GET"), (":path", "/")]))
        );
        assert!(relay.fields.over_limit());
        assert!(relay.fields.list_size() > 42 + 38);
        assert_eq!(
            relay.receive(&[0xbe, 0xbf]),
            Ok(texts(&[("authorization", "3"), ("x-a", "1")])),
            "in step"
        );
        assert!(!relay.fields.over_limit());
        relay.end();
    }
    let mut relay = Relay::new(4096);
    let exact = Limits {
        list_bytes: 42 + 38 + 36 + 36 + 46,
        fields: 5,
    };
    assert_eq!(relay.receive_within(&block, &exact).map(|texts| texts.len()), Ok(5));
    assert_eq!(relay.fields.list_size(), relay.fields.kept_size(&relay.interner));
    assert!(!relay.fields.over_limit());
}

#[test]
fn a_small_block_that_means_much_stops_at_the_limit() {
    let mut relay = Relay::new(4096);
    relay
        .receive(&literal(INDEXING, b"cookie", &[b'x'; 4000]))
        .expect("a good block");
    let limits = Limits {
        list_bytes: 64 << 10,
        fields: 256,
    };
    relay.receive_within(&[0xbe; 16 << 10], &limits).expect("a good block");
    assert!(relay.fields.over_limit());
    assert!(relay.fields.text.len() <= 64 << 10);
    assert_eq!(relay.fields.list_size(), (16 << 10) * 4038);
}

#[test]
fn what_makes_a_message_malformed_is_no_error_and_is_known_however_the_field_came() {
    for (name, value, malformed) in [
        ("X-Upper", "1", Malformed::UpperCaseName),
        ("", "1", Malformed::EmptyName),
        ("a b", "1", Malformed::BadNameByte),
        ("x-a", "a\nb", Malformed::BadValueByte),
        ("x-a", " a", Malformed::ValueSpace),
        ("authorization", "a\0", Malformed::BadValueByte),
        ("traceparent", "a\r", Malformed::BadValueByte),
    ] {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        let mut relay = Relay::new(4096);
        for block in [
            literal(PLAIN, name, value),
            literal(NEVER, name, value),
            literal(INDEXING, name, value),
            vec![0xbe],
        ] {
            relay.receive(&[vec![0x82], block].concat()).expect("a good block");
            assert_eq!(relay.fields.malformed(), Some(malformed));
            assert_eq!(
                relay.fields.get(1, &relay.interner).and_then(|field| field.malformed),
                Some(malformed)
            );
        }
        // Another value under the same name, by its index.
        relay
            .receive(&[vec![0x7e], string(b"good")].concat())
            .expect("a good block");
        assert_eq!(relay.fields.malformed().is_some(), malformed.is_of_the_name());
        relay.receive(&[0x82]).expect("a good block");
        assert_eq!(relay.fields.malformed(), None);
        relay.end();
    }
}

// What is kept where.

#[test]
fn a_literal_that_is_a_static_entry_becomes_its_id() {
    let mut relay = Relay::new(4096);
    for pattern in [PLAIN, INDEXING] {
        relay
            .receive(&literal(pattern, b":status", b"200"))
            .expect("a good block");
        assert_eq!(
            relay.fields.get(0, &relay.interner).and_then(|field| field.id),
            Some(FieldId::STATUS_200)
        );
        assert_eq!(relay.send(), [0x88]);
    }
    relay.receive(&[0xbe]).expect("it is in the dynamic table, too");
    assert_eq!(
        relay.fields.get(0, &relay.interner).and_then(|field| field.id),
        Some(FieldId::STATUS_200)
    );
    relay.end();
}

#[test]
fn an_unindexed_literal_is_never_interned() {
    let mut relay = Relay::new(4096);
    for pattern in [PLAIN, NEVER] {
        for _ in 0..3 {
            relay
                .receive(&literal(pattern, b"x-tenant", b"a-certain-text"))
                .expect("a good block");
            assert_eq!(relay.fields.get(0, &relay.interner).and_then(|field| field.id), None);
            let sent = relay.send();
            assert_eq!(
                sent,
                literal(pattern, b"x-tenant", b"a-certain-text"),
                "the form is the sender's"
            );
        }
    }
    assert_eq!((relay.interner.bytes(), relay.interner.live()), (0, 0));
}

#[test]
fn a_secret_that_its_sender_indexes_is_kept_from_the_interner_and_goes_on_as_never_indexed() {
    for name in ["authorization", "cookie", "set-cookie", "proxy-authorization"] {
        let mut relay = Relay::new(4096);
        for block in [
            literal(INDEXING, name.as_bytes(), b"Bearer s3cr3t"),
            vec![0xbe],
            vec![0xbe],
            vec![0xbe],
        ] {
            relay.receive(&block).expect("a good block");
            let field = relay.fields.get(0, &relay.interner).expect("one field");
            assert_eq!(
                (field.value, field.id, field.never_indexed),
                (b"Bearer s3cr3t".as_slice(), None, true)
            );
            assert_eq!(relay.send()[0] & 0xf0, 0x10);
        }
        // A new value under the name of the entry.
        relay
            .receive(&[vec![0x7e], string(b"Bearer an0ther")].concat())
            .expect("a good block");
        assert!(
            relay
                .fields
                .get(0, &relay.interner)
                .is_some_and(|field| field.never_indexed)
        );
        assert!(!relay.interner.remembers(b"s3cr3t") && !relay.interner.remembers(b"an0ther"));
        assert_eq!(relay.encoder.bytes, 0);
    }
}

#[test]
fn a_value_of_each_calls_own_is_neither_interned_nor_indexed() {
    for name in [
        "traceparent",
        "grpc-timeout",
        "x-request-id",
        "x-b3-spanid",
        "b3",
        "date",
        "grpc-message",
    ] {
        let mut relay = Relay::new(4096);
        for block in [literal(INDEXING, name.as_bytes(), b"00-f00d"), vec![0xbe], vec![0xbe]] {
            relay.receive(&block).expect("a good block");
            let field = relay.fields.get(0, &relay.interner).expect("one field");
            assert_eq!((field.id, field.never_indexed), (None, false));
            assert_eq!(relay.send()[0] & 0xf0, 0x00);
        }
        assert!(!relay.interner.remembers(b"f00d"));
        assert_eq!(relay.encoder.bytes, 0);
    }
}

#[test]
fn a_field_goes_into_our_table_when_it_is_met_again() {
    let mut relay = Relay::new(4096);
    relay
        .receive(&literal(INDEXING, b"x-tenant", b"one"))
        .expect("a good block");
    assert_eq!(relay.send(), literal(PLAIN, b"x-tenant", b"one"));
    relay.receive(&[0xbe]).expect("a good block");
    assert_eq!(relay.send()[0], INDEXING);
    assert_eq!(relay.send(), [0xbe]);
    relay.end();
}

#[test]
fn fields_that_come_once_leave_our_table_alone() {
    let mut relay = Relay::new(4096);
    for block in [literal(INDEXING, b"x-tenant", b"one"), vec![0xbe]] {
        relay.receive(&block).expect("a good block");
        relay.send();
    }
    for number in 0..10_000 {
        relay
            .receive(&literal(INDEXING, b"x-unique", format!("{number:030}").as_bytes()))
            .expect("a good block");
        relay.send();
    }
    assert_eq!(relay.encoder.entries.len(), 1);
    assert!(
        relay.interner.bytes() < 64 << 10,
        "bounded by the tables and what is kept idle"
    );
    relay.end();
}

#[test]
fn more_fields_than_have_room_do_not_make_the_table_churn() {
    let mut relay = Relay::new(1 << 20);
    let paths: Vec<FieldId> = (0..400)
        .map(|n| {
            relay
                .interner
                .constant(b":path", format!("/shop.Cart/Method{n:04}").as_bytes())
        })
        .collect();
    let mut insertions = 0;
    for round in 0..4_000 {
        relay.fields.clear(&mut relay.interner);
        relay.fields.push_id(paths[round * 7 % 400], &mut relay.interner);
        insertions += usize::from(relay.send()[0] & 0xc0 == 0x40);
    }
    assert!((300..1_000).contains(&insertions), "{insertions} insertions");
}

#[test]
fn the_peers_table_size_is_followed_both_ways() {
    let mut relay = Relay::new(4096);
    let id = relay.interner.constant(b"x-tenant", b"one");
    relay.fields.push_id(id, &mut relay.interner);
    relay.send();
    relay.encoder.set_max_table_bytes(1 << 20, &mut relay.interner);
    assert_eq!(relay.send(), [0xbe], "more than we use anyway");
    for size in [200, 0, 100] {
        relay.encoder.set_max_table_bytes(size, &mut relay.interner);
    }
    let sent = relay.send();
    assert_eq!(sent[..4], [0x20, 0x3f, 69, INDEXING], "the least, then the last");
    assert_eq!(relay.send(), [0xbe]);
    relay.encoder.set_max_table_bytes(0, &mut relay.interner);
    assert_eq!(relay.send(), [vec![0x20], literal(PLAIN, b"x-tenant", b"one")].concat());
    relay.encoder.set_max_table_bytes(4096, &mut relay.interner);
    assert_eq!(relay.send()[..4], [0x3f, 0xe1, 0x1f, INDEXING]);
    relay.fields.clear(&mut relay.interner);
    relay.encoder.release(&mut relay.interner);
    assert_eq!(relay.interner.live(), 1, "the constant");
}

#[test]
fn what_two_connections_send_has_one_id_and_its_tag() {
    let mut relay = Relay::new(4096);
    let mut other = Decoder::new(4096);
    let mut its_fields = Fields::new();
    let block = literal(INDEXING, b":path", b"/shop.Cart/Add");
    relay.receive(&block).expect("a good block");
    let id = relay
        .fields
        .find(Name::Path, &relay.interner)
        .and_then(|path| path.id)
        .expect("interned");
    relay.interner.set_tag(id, 9);
    other
        .decode(&block, &ROOMY, &mut relay.interner, &mut its_fields)
        .expect("a good block");
    let its_id = its_fields.find(Name::Path, &relay.interner).and_then(|path| path.id);
    assert_eq!((its_id, relay.interner.tag(id)), (Some(id), 9));
    its_fields.clear(&mut relay.interner);
    other.release(&mut relay.interner);
    relay.end();
}

#[test]
fn a_fresh_connection_has_allocated_nothing_and_is_small() {
    let (decoder, encoder) = (Decoder::new(4096), Encoder::new());
    assert_eq!((decoder.allocated(), encoder.allocated()), (0, 0));
    assert!(size_of::<Decoder>() + size_of::<Encoder>() < 250);
}

#[test]
fn where_each_call_brings_texts_of_its_own_nothing_grows() {
    let mut relay = Relay::new(4096);
    let mut out = Vec::new();
    let mut sizes = Vec::new();
    for number in 0..6_000u32 {
        let own = number.wrapping_mul(0x9e37_79b9);
        let block = [
            vec![0x83, 0x86],
            literal(
                INDEXING,
                b":path",
                format!("/shop.Cart/Method{:03}", own >> 24).as_bytes(),
            ),
            literal(INDEXING, b"authorization", &[b'x'; 400]),
            literal(
                INDEXING,
                b"traceparent",
                format!("00-{own:032x}-{own:016x}-01").as_bytes(),
            ),
            literal(INDEXING, b"x-unique", format!("{number:036}").as_bytes()),
            literal(PLAIN, b"x-plain", b"1"),
        ]
        .concat();
        relay.receive(&block).expect("a good block");
        out.clear();
        relay.encoder.encode(&relay.fields, &mut relay.interner, &mut out);
        let now = [
            relay.decoder.allocated(),
            relay.encoder.allocated(),
            relay.interner.allocated(),
            out.capacity(),
        ];
        if number >= 3_000 {
            sizes.push(now);
        }
    }
    assert!(
        sizes.iter().all(|size| *size == sizes[0]),
        "the first half has found all the memory that there is need of"
    );
    assert!(relay.decoder.allocated() < 8_192);
    relay.end();
}

// Two independent implementations, and a model.

#[test]
fn what_an_independent_encoder_recorded_is_understood() {
    let stories: serde_json::Value =
        serde_json::from_str(include_str!("testdata/recorded.json")).expect("the recorded stories are JSON");
    let stories = stories.as_array().expect("a list of stories");
    assert!(stories.len() >= 10);
    for blocks in stories {
        let mut relay = Relay::new(4096);
        for block in blocks.as_array().expect("a list of blocks") {
            for allowed in block["allowed"].as_array().into_iter().flatten() {
                relay
                    .decoder
                    .set_max_table_bytes(allowed.as_u64().expect("a size") as u32);
            }
            relay
                .receive(&hex(block["wire"].as_str().expect("a block")))
                .expect("a good block");
            let expected = block["fields"].as_array().expect("a list of fields");
            assert_eq!(relay.fields.len(), expected.len());
            for (field, expected) in relay.fields.iter(&relay.interner).zip(expected) {
                assert_eq!(field.name_text, expected[0].as_str().expect("a name").as_bytes());
                assert_eq!(field.value, expected[1].as_str().expect("a value").as_bytes());
                assert!(field.never_indexed || !expected[2].as_bool().expect("a flag"));
            }
        }
        relay.end();
    }
}

/// One field as some encoder may choose to write it; choices that do not apply are taken modulo what there is.
#[derive(Clone, Debug)]
enum Written {
    Indexed(Index),
    Literal {
        pattern: u8,
        name: Result<Index, Vec<u8>>,
        value: Vec<u8>,
        huffman: bool,
    },
}

#[derive(Clone, Debug)]
struct Block {
    /// A size for the table, in the range that is allowed.
    resize: Option<u32>,
    fields: Vec<Written>,
}

const ALLOWED: u32 = 700;

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::sample::select(vec![
            ":path",
            ":authority",
            "content-type",
            "authorization",
            "cookie",
            "traceparent",
            "x-tenant",
            "te",
            ":status",
        ])
        .prop_map(|name| name.as_bytes().to_vec()),
        vec(any::<u8>(), 0..12),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "[a-c]{0,2}".prop_map(String::into_bytes),
        2 => "[ -~]{0,60}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..300),
    ]
}

fn written() -> impl Strategy<Value = Written> {
    let name = prop_oneof![any::<Index>().prop_map(Ok), name().prop_map(Err)];
    let pattern = prop::sample::select(vec![INDEXING, INDEXING, PLAIN, NEVER]);
    prop_oneof![
        any::<Index>().prop_map(Written::Indexed),
        (pattern, name, value(), any::<bool>()).prop_map(|(pattern, name, value, huffman)| Written::Literal {
            pattern,
            name,
            value,
            huffman
        }),
    ]
}

fn block() -> impl Strategy<Value = Block> {
    (prop::option::weighted(0.2, 0..=ALLOWED), vec(written(), 0..12))
        .prop_map(|(resize, fields)| Block { resize, fields })
}

/// A table as RFC 7541, 2.3 and 4 tell it, in the plainest way.
struct Model {
    entries: VecDeque<(Vec<u8>, Vec<u8>)>,
    max: usize,
}

impl Model {
    fn get(&self, index: usize) -> (Vec<u8>, Vec<u8>) {
        match index.checked_sub(62) {
            Some(at) => self.entries[at].clone(),
            None => {
                let (name, value) = static_table::ENTRIES[index - 1];
                (name.to_vec(), value.to_vec())
            }
        }
    }

    fn any_index(&self, choice: Index) -> usize {
        // Rather an entry of ours than a static one.
        match choice.index(2 * self.entries.len() + 61) + 1 {
            index if index > 61 + self.entries.len() => index - self.entries.len(),
            index => index,
        }
    }

    fn insert(&mut self, field: (Vec<u8>, Vec<u8>)) {
        self.entries.push_front(field);
        self.evict();
    }

    fn evict(&mut self) {
        while self
            .entries
            .iter()
            .map(|(name, value)| name.len() + value.len() + 32)
            .sum::<usize>()
            > self.max
        {
            self.entries.pop_back();
        }
    }

    fn write(&mut self, block: &Block) -> (Vec<u8>, Texts, Vec<bool>) {
        let (mut out, mut fields, mut never) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(size) = block.resize {
            integer::encode(size, 0x20, 5, &mut out);
            self.max = size as usize;
            self.evict();
        }
        let put = |text: &[u8], huffman: bool, out: &mut Vec<u8>| {
            if huffman {
                integer::encode(huffman::encoded_len(text) as u32, 0x80, 7, out);
                huffman::encode(text, out);
            } else {
                out.extend(string(text));
            }
        };
        for written in &block.fields {
            match written {
                Written::Indexed(choice) => {
                    let index = self.any_index(*choice);
                    integer::encode(index as u32, 0x80, 7, &mut out);
                    fields.push(self.get(index));
                    never.push(false);
                }
                Written::Literal {
                    pattern,
                    name,
                    value,
                    huffman,
                } => {
                    let prefix_bits = if *pattern == INDEXING { 6 } else { 4 };
                    let name = match name {
                        Ok(choice) => {
                            let index = self.any_index(*choice);
                            integer::encode(index as u32, *pattern, prefix_bits, &mut out);
                            self.get(index).0
                        }
                        Err(name) => {
                            out.push(*pattern);
                            put(name, *huffman, &mut out);
                            name.clone()
                        }
                    };
                    put(value, *huffman, &mut out);
                    fields.push((name.clone(), value.clone()));
                    never.push(*pattern == NEVER);
                    if *pattern == INDEXING {
                        self.insert((name, value.clone()));
                    }
                }
            }
        }
        (out, fields, never)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any encoder -> our decoder -> our encoder -> an independent decoder, and our own.
    #[test]
    fn any_conversation_crosses_a_relay_unchanged(
        blocks in vec((block(), prop::option::weighted(0.2, 0u32..5_000), 1usize..4), 1..20),
    ) {
        let mut relay = Relay::new(ALLOWED);
        let mut model = Model { entries: VecDeque::new(), max: ALLOWED as usize };
        let mut theirs_in = loona_hpack::Decoder::new();
        theirs_in.set_max_table_size(ALLOWED as usize);
        let mut theirs_out = loona_hpack::Decoder::new();
        let mut next = Decoder::new(4096);
        let mut next_fields = Fields::new();
        for (block, peer_setting, times) in &blocks {
            let (wire, expected, never) = model.write(block);
            if !expected.is_empty() {
                prop_assert_eq!(&theirs_in.decode(&wire).expect("the model writes good blocks"), &expected);
            } else if let Some(size) = block.resize {
                theirs_in.set_max_table_size(size as usize);
            }
            prop_assert_eq!(&relay.receive(&wire).expect("a good block"), &expected);
            let held: usize = model.entries.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
            prop_assert_eq!(relay.decoder.bytes as usize, held);
            for (field, (never, (name, _))) in relay.fields.iter(&relay.interner).zip(never.iter().zip(&expected)) {
                prop_assert!(field.never_indexed || !never);
                prop_assert!(field.never_indexed || field.id.is_some_and(|id| id.get() <= 61) || name != b"cookie");
                prop_assert_eq!(field.name, Name::of(name));
            }
            if let Some(setting) = peer_setting {
                relay.encoder.set_max_table_bytes(*setting, &mut relay.interner);
                next.set_max_table_bytes((*setting).min(4096));
            }
            for _ in 0..*times {
                let sent = relay.send();
                if !expected.is_empty() {
                    prop_assert_eq!(&theirs_out.decode(&sent).expect("our block is good"), &expected);
                } else if !sent.is_empty() {
                    // It takes no block that is only a size update; one field behind it, and it does.
                    theirs_out.decode(&[&sent, [0x82].as_slice()].concat()).expect("our size update is good");
                }
                next.decode(&sent, &ROOMY, &mut relay.interner, &mut next_fields).expect("our block is good");
                let crossed: Texts = next_fields
                    .iter(&relay.interner)
                    .map(|field| (field.name_text.to_vec(), field.value.to_vec()))
                    .collect();
                prop_assert_eq!(&crossed, &expected);
                for (a, b) in next_fields.iter(&relay.interner).zip(relay.fields.iter(&relay.interner)) {
                    prop_assert_eq!((a.never_indexed, a.malformed, a.name), (b.never_indexed, b.malformed, b.name));
                }
                prop_assert!(relay.encoder.bytes <= relay.encoder.max);
            }
        }
        next_fields.clear(&mut relay.interner);
        next.release(&mut relay.interner);
        relay.end();
    }

    #[test]
    fn an_independent_encoder_is_understood(lists in vec(vec((name(), value()), 1..12), 1..20)) {
        let mut relay = Relay::new(4096);
        let mut theirs = loona_hpack::Encoder::new();
        for list in lists {
            let wire = theirs.encode(list.iter().map(|(name, value)| (name.as_slice(), value.as_slice())));
            prop_assert_eq!(relay.receive(&wire).expect("a good block"), list);
        }
        relay.end();
    }

    #[test]
    fn an_independent_huffman_decoder_agrees(
        src in vec(any::<u8>(), 0..40),
        text in value(),
        digits in "[0-9a-f-]{0,60}",
        tail in vec(any::<u8>(), 0..3),
    ) {
        let theirs = |src: &[u8]| loona_hpack::huffman::HuffmanDecoder::new().decode(src).ok();
        let ours = |src: &[u8]| {
            let mut out = Vec::new();
            huffman::decode(src, &mut out).ok().map(|_| out)
        };
        prop_assert_eq!(ours(&src), theirs(&src));
        let mut coded = Vec::new();
        huffman::encode(&text, &mut coded);
        prop_assert_eq!(theirs(&coded), Some(text));
        // Short codes to the end, and another end.
        coded.clear();
        huffman::encode(digits.as_bytes(), &mut coded);
        coded.truncate(coded.len().saturating_sub(tail.len()));
        coded.extend(tail);
        prop_assert_eq!(ours(&coded), theirs(&coded));
    }

    #[test]
    fn bytes_of_any_kind_are_fields_or_an_error_and_leave_nothing_behind(
        blocks in vec(vec(any::<u8>(), 0..200), 1..8),
        limits in (0u32..2_000, 0u32..20),
        table in 0u32..5_000,
    ) {
        let limits = Limits { list_bytes: limits.0, fields: limits.1 };
        let mut relay = Relay::new(table);
        for block in blocks {
            if relay.receive_within(&block, &limits).is_ok() {
                prop_assert!(relay.fields.len() <= limits.fields as usize);
                prop_assert!(relay.fields.kept_size(&relay.interner) <= limits.list_bytes as usize);
                relay.send();
            }
            prop_assert!(relay.decoder.bytes <= relay.decoder.max);
        }
        relay.end();
    }

    /// The whole alphabet of a decoder, in an order that no encoder would choose.
    #[test]
    fn a_block_cut_anywhere_is_an_error_or_a_shorter_block(block in block(), cut in any::<Index>()) {
        let mut model = Model { entries: VecDeque::new(), max: ALLOWED as usize };
        let (wire, expected, _) = model.write(&block);
        let mut relay = Relay::new(ALLOWED);
        let cut = cut.index(wire.len() + 1);
        if let Ok(texts) = relay.receive(&wire[..cut]) {
            prop_assert!(expected.starts_with(&texts));
        }
        relay.end();
    }
}

proptest! {
    /// A table too small for what is sent, and an interner whose ids are given to others meanwhile.
    #[test]
    fn a_code_that_comes_again_means_the_same_text(
        sent in vec((0usize..12, prop_oneof![Just(4u8), Just(1), Just(31), Just(58)], 0usize..20), 1..300),
        table in prop_oneof![Just(0u32), Just(100), Just(400)],
    ) {
        let mut relay = Relay::new(table);
        for (number, (which, name, churn)) in sent.into_iter().enumerate() {
            let value = format!("/package.Service{which}/Method{}", "x".repeat(which * 3));
            let got = relay.receive(&coded(name, value.as_bytes())).expect("a good block");
            let name_text = static_table::ENTRIES[usize::from(name) - 1].0;
            prop_assert_eq!(got, [(name_text.to_vec(), value.into_bytes())]);
            if churn == 0 {
                // More than the interner keeps of what nobody refers to.
                for other in 0..40 {
                    let value = format!("{number}-{other}-{}", "y".repeat(3_000));
                    relay.receive(&literal(INDEXING, b"x-other", value.as_bytes())).expect("a good block");
                    let large = relay.interner.intern(value.as_bytes(), 7, name::judge(b"x-other").0, None);
                    relay.interner.release(large);
                }
            }
        }
        relay.end();
    }
}
