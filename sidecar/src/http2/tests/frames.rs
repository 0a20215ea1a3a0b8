//! Frames: their sizes, their order, padding, and that it does not matter how they are cut (RFC 9113, 4 and 6).

use super::peer::*;
use crate::http2::connection::StreamFault;
use crate::http2::frame::{
    self, ACK, END_HEADERS, END_STREAM, MAX_PAYLOAD, PADDED, PREFACE, PRIORITY_FLAG, Reason, kind, setting,
};
use crate::http2::message::Wrong;
use crate::http2::settings::Settings;

#[test]
fn a_frame_larger_than_allowed_is_an_error_whatever_it_is() {
    for kind in [kind::DATA, kind::HEADERS, kind::SETTINGS, kind::PING, 0x77] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        let header = frame::header(MAX_PAYLOAD + 1, kind, 0, 1);
        assert_eq!(
            server.feed_bytes(&header),
            [Seen::Fatal(Reason::FRAME_SIZE_ERROR)],
            "kind {kind}: it is not waited for"
        );
    }
}

#[test]
fn frames_of_a_wrong_size_are_connection_errors() {
    for frame in [
        raw(kind::PING, 0, 0, &[0; 7]),
        raw(kind::PING, ACK, 0, &[0; 9]),
        raw(kind::RST_STREAM, 0, 1, &[0; 3]),
        raw(kind::RST_STREAM, 0, 1, &[0; 5]),
        raw(kind::WINDOW_UPDATE, 0, 0, &[0; 3]),
        raw(kind::WINDOW_UPDATE, 0, 1, &[0; 5]),
        raw(kind::GOAWAY, 0, 0, &[0; 7]),
        raw(kind::DATA, PADDED, 1, &[]),
        raw(kind::HEADERS, PADDED | END_HEADERS, 3, &[]),
        raw(kind::HEADERS, PRIORITY_FLAG | END_HEADERS, 3, &[0; 4]),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        assert_eq!(
            server.feed(std::slice::from_ref(&frame)),
            [Seen::Fatal(Reason::FRAME_SIZE_ERROR)],
            "{frame:?}"
        );
    }
}

#[test]
fn a_priority_of_a_wrong_size_costs_its_stream_alone() {
    let mut server = End::server();
    server.feed(&[ask(1, false), ask(3, false)]);
    assert_eq!(
        server.feed(&[raw(kind::PRIORITY, 0, 1, &[0; 4])]),
        [faulted(1, Reason::FRAME_SIZE_ERROR, StreamFault::Protocol)]
    );
    assert!(server.is_open(3));
}

#[test]
fn frames_on_the_wrong_kind_of_stream_are_connection_errors() {
    for frame in [
        data(0, b"x", false),
        headers(0, &request(), true),
        rst(0, Reason::CANCEL),
        priority(0, 1),
        raw(kind::PING, 0, 1, &[0; 8]),
        raw(kind::GOAWAY, 0, 1, &[0; 8]),
        raw(kind::SETTINGS, 0, 1, &[]),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        assert_eq!(
            server.feed(std::slice::from_ref(&frame)),
            [Seen::Fatal(Reason::PROTOCOL_ERROR)],
            "{frame:?}"
        );
    }
}

#[test]
fn unknown_frames_and_flags_are_passed_over() {
    let mut server = End::server();
    let mut request = ask(1, false);
    request.flags |= 0xd2 & !PADDED & !PRIORITY_FLAG;
    let seen = server.feed(&[
        raw(0x0a, 0xff, 0, b"alternative services"),
        raw(0xfe, 0, 7, &[]),
        request,
        raw(0xfe, 0, 1, &[1; 16_384]),
        raw(kind::PING, 0xfe, 0, &[1; 8]),
    ]);
    assert_eq!(seen, [asked(1, false)]);
    assert_eq!(server.said(), [pong([1; 8])]);
}

#[test]
fn the_reserved_bit_of_a_stream_identifier_is_ignored() {
    let mut server = End::server();
    let mut bytes = bytes_of(&[ask(1, true)]);
    bytes[5] |= 0x80;
    assert_eq!(server.feed_bytes(&bytes), [asked(1, true)]);
}

#[test]
fn push_promise_is_an_error_in_either_role() {
    let push = raw(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]);
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(
        server.feed(std::slice::from_ref(&push)),
        [Seen::Fatal(Reason::PROTOCOL_ERROR)]
    );
    let mut client = End::client();
    client.ask(true);
    assert_eq!(client.feed(&[push]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
}

// ---- HEADERS and CONTINUATION (4.3, 6.2, 6.10) ----

/// A block in one HEADERS and as many CONTINUATION frames as there are further pieces.
fn in_pieces(stream: u32, end: bool, pieces: &[&[u8]]) -> Vec<Frame> {
    let last = pieces.len() - 1;
    let pieces = pieces.iter().enumerate();
    pieces
        .map(|(i, piece)| {
            let end_headers = if i == last { END_HEADERS } else { 0 };
            let end_stream = if i == 0 && end { END_STREAM } else { 0 };
            let kind = if i == 0 { kind::HEADERS } else { kind::CONTINUATION };
            raw(kind, end_headers | end_stream, stream, piece)
        })
        .collect()
}

#[test]
fn a_block_may_come_in_any_pieces() {
    let whole = block(&request());
    for cut in 0..=whole.len() {
        let (first, second) = whole.split_at(cut);
        let mut server = End::server();
        assert_eq!(server.feed(&in_pieces(1, true, &[first, second])), [asked(1, true)]);
    }
    let bytes: Vec<&[u8]> = whole.chunks(1).collect();
    let mut server = End::server();
    assert_eq!(server.feed(&in_pieces(1, false, &bytes)), [asked(1, false)]);
}

#[test]
fn nothing_may_come_between_the_pieces_of_a_block() {
    let whole = block(&request());
    let pieces = in_pieces(1, true, &[&whole[..10], &whole[10..]]);
    let mut other = pieces[1].clone();
    other.stream = 3;
    for between in [
        data(1, b"x", false),
        ask(3, true),
        ping([0; 8]),
        settings(&[]),
        rst(1, Reason::CANCEL),
        window_update(0, 1),
        raw(0x77, 0, 1, &[]),
        other,
    ] {
        let mut server = End::server();
        assert_eq!(
            server.feed(&[pieces[0].clone(), between.clone(), pieces[1].clone()]),
            [Seen::Fatal(Reason::PROTOCOL_ERROR)],
            "{between:?}"
        );
    }
}

#[test]
fn a_continuation_of_nothing_is_a_connection_error() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(
        server.feed(&[raw(kind::CONTINUATION, END_HEADERS, 1, &block(&request()))]),
        [Seen::Fatal(Reason::PROTOCOL_ERROR)]
    );
}

#[test]
fn a_block_may_take_so_many_continuations_and_no_more() {
    let whole = block(&request());
    for (continuations, fine) in [(64, true), (65, false)] {
        let mut pieces: Vec<&[u8]> = vec![&whole];
        pieces.resize(1 + continuations, &[]);
        let mut server = End::server();
        let seen = server.feed(&in_pieces(1, true, &pieces));
        if fine {
            assert_eq!(seen, [asked(1, true)]);
        } else {
            assert_eq!(seen, [Seen::Fatal(Reason::ENHANCE_YOUR_CALM)]);
        }
    }
}

#[test]
fn a_block_without_an_end_is_cut_by_its_bytes() {
    let mut server = End::server();
    let piece = [0u8; MAX_PAYLOAD];
    let pieces = vec![&piece[..]; 20];
    let seen = server.feed(&in_pieces(1, true, &pieces));
    assert_eq!(seen, [Seen::Fatal(Reason::ENHANCE_YOUR_CALM)]);
}

#[test]
fn a_list_over_the_limit_is_read_to_its_end_and_marked() {
    let mut server = End::server();
    let large = "x".repeat(1_000);
    let mut fields = request().to_vec();
    fields.extend([("x-large", large.as_str()); 70]);
    let whole = block(&fields);
    let pieces: Vec<&[u8]> = whole.chunks(MAX_PAYLOAD).collect();
    let seen = server.feed(&in_pieces(1, true, &pieces));
    assert!(
        matches!(&seen[..], [Seen::Headers { fields, .. }] if fields.len() < 74),
        "only the fields within the limit are kept"
    );
    assert!(server.shared.fields().over_limit());
    // The connection goes on.
    assert_eq!(server.feed(&[ask(3, true)]), [asked(3, true)]);
    assert!(!server.shared.fields().over_limit());
}

#[test]
fn more_fields_than_the_limit_are_marked_too() {
    let mut server = End::server();
    let mut fields = request().to_vec();
    fields.extend([("a", ""); 253]);
    server.feed(&[headers(1, &fields, true)]);
    assert!(server.shared.fields().over_limit());
    let mut server = End::server();
    fields.pop();
    server.feed(&[headers(1, &fields, true)]);
    assert!(!server.shared.fields().over_limit());
}

#[test]
fn a_block_that_cannot_be_decoded_ends_the_connection() {
    let mut server = End::server();
    assert_eq!(
        server.feed(&[raw(kind::HEADERS, END_HEADERS, 1, &[0x80])]),
        [Seen::Fatal(Reason::COMPRESSION_ERROR)]
    );
}

#[test]
fn the_blocks_of_streams_that_are_gone_keep_the_table_in_step() {
    // A literal with incremental indexing, and then a reference to it.
    let indexed = [&[0x40][..], &block(&[("x-a", "1")])[1..]].concat();
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    server.reset(1, Reason::CANCEL);
    let late = raw(kind::HEADERS, END_HEADERS | END_STREAM, 1, &indexed);
    assert_eq!(server.feed(&[late]), []);
    let reference = [block(&request()), vec![0x80 | 62]].concat();
    let seen = server.feed(&[raw(kind::HEADERS, END_HEADERS | END_STREAM, 3, &reference)]);
    assert!(
        matches!(&seen[..], [Seen::Headers { fields, .. }] if fields[4] == ("x-a".into(), "1".into())),
        "{seen:?}"
    );
}

#[test]
fn padding_and_priority_of_headers_are_passed_over() {
    let whole = block(&request());
    let with_priority = [&[0, 0, 0, 5, 200][..], &whole].concat();
    for frame in [
        raw(kind::HEADERS, PADDED | END_HEADERS, 1, &padded(&whole, 0)),
        raw(kind::HEADERS, PADDED | END_HEADERS, 1, &padded(&whole, 255)),
        raw(kind::HEADERS, PRIORITY_FLAG | END_HEADERS, 1, &with_priority),
        raw(
            kind::HEADERS,
            PADDED | PRIORITY_FLAG | END_HEADERS,
            1,
            &padded(&with_priority, 9),
        ),
    ] {
        let mut server = End::server();
        assert_eq!(server.feed(&[frame]), [asked(1, false)]);
    }
}

#[test]
fn more_padding_than_there_are_bytes_is_a_connection_error() {
    for frame in [
        raw(kind::DATA, PADDED, 1, &[1]),
        raw(kind::DATA, PADDED, 1, &[5, 0, 0, 0, 0]),
        raw(kind::HEADERS, PADDED | END_HEADERS, 3, &[1]),
        raw(kind::HEADERS, PADDED | END_HEADERS, 3, &[5, 0, 0, 0, 0]),
        // The priority is no part of what padding may take of (6.2).
        raw(
            kind::HEADERS,
            PADDED | PRIORITY_FLAG | END_HEADERS,
            3,
            &[3, 0, 0, 0, 1, 0],
        ),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false)]);
        assert_eq!(
            server.feed(std::slice::from_ref(&frame)),
            [Seen::Fatal(Reason::PROTOCOL_ERROR)],
            "{frame:?}"
        );
    }
}

#[test]
fn a_stream_that_depends_on_itself_is_refused_alone() {
    let with_priority = [&[0, 0, 0, 3, 15][..], &block(&request())].concat();
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    server.said();
    assert_eq!(
        server.feed(&[raw(kind::HEADERS, PRIORITY_FLAG | END_HEADERS, 3, &with_priority)]),
        [refused(Reason::PROTOCOL_ERROR, Some(Wrong::DependsOnItself))]
    );
    assert_eq!(server.said(), [rst(3, Reason::PROTOCOL_ERROR)]);
    assert_eq!(
        server.feed(&[priority(1, 1)]),
        [faulted(1, Reason::PROTOCOL_ERROR, StreamFault::Protocol)]
    );
    assert_eq!(server.said(), [rst(1, Reason::PROTOCOL_ERROR)]);
    assert_eq!(server.feed(&[ask(5, true)]), [asked(5, true)]);
}

#[test]
fn trailers_that_depend_on_their_own_stream_cost_it_alone() {
    let with_priority = [&[0, 0, 0, 1, 15][..], &block(&[("a", "b")])].concat();
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    let frame = raw(
        kind::HEADERS,
        PRIORITY_FLAG | END_HEADERS | END_STREAM,
        1,
        &with_priority,
    );
    assert_eq!(
        server.feed(&[frame]),
        [faulted(1, Reason::PROTOCOL_ERROR, StreamFault::Protocol)]
    );
}

#[test]
fn priorities_of_any_stream_are_ignored() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    server.answer(1, true);
    server.said();
    assert_eq!(server.feed(&[priority(1, 0), priority(99, 1), priority(2, 7)]), []);
    assert_eq!(server.said(), []);
}

// ---- however the bytes are cut ----

/// A conversation with all that a server may hear.
fn conversation() -> Vec<u8> {
    let whole = block(&request());
    let mut frames = vec![
        settings(&[(setting::INITIAL_WINDOW_SIZE, 70_000)]),
        settings_ack(),
        ask(1, false),
        data(1, b"hello", false),
        padded_data(1, b"padded", 11, false),
        padded_data(1, b"", 200, false),
        data(1, b"", false),
    ];
    frames.extend(in_pieces(3, false, &[&whole[..7], &whole[7..9], &whole[9..]]));
    frames.extend([
        ping([3; 8]),
        raw(0x55, 3, 9, &[7; 40]),
        padded_data(3, b"", 0, true),
        trailers(1),
        ask(5, true),
        window_update(5, 100),
        window_update(0, 100),
        priority(5, 1),
        rst(5, Reason::CANCEL),
        ask(7, false),
        headers(9, &[("x", "malformed")], false),
        data(9, b"under way", true),
        data(7, &[1; 300], true),
        goaway(0, Reason::NO_ERROR),
        pong([9; 8]),
    ]);
    [PREFACE.to_vec(), bytes_of(&frames)].concat()
}

#[test]
fn bytes_one_by_one_say_what_they_say_as_a_whole() {
    let bytes = conversation();
    let mut whole = End::fresh_server(Settings::default(), false);
    let seen_whole = whole.feed_bytes(&bytes);
    assert!(whole.fatal.is_none(), "{seen_whole:?}");
    let mut one_by_one = End::fresh_server(Settings::default(), false);
    let mut seen = Vec::new();
    for byte in bytes.chunks(1) {
        one_by_one.feed_into(byte, &mut seen);
    }
    assert_eq!(seen, seen_whole);
    assert_eq!(one_by_one.said(), whole.said());
}

#[test]
fn every_cut_in_two_says_what_the_whole_says() {
    let bytes = conversation();
    let mut whole = End::fresh_server(Settings::default(), false);
    let seen_whole = whole.feed_bytes(&bytes);
    let said_whole = whole.said();
    for cut in 1..bytes.len() {
        let mut end = End::fresh_server(Settings::default(), false);
        let mut seen = Vec::new();
        end.feed_into(&bytes[..cut], &mut seen);
        end.feed_into(&bytes[cut..], &mut seen);
        assert_eq!(seen, seen_whole, "cut at {cut}");
        assert_eq!(end.said(), said_whole, "cut at {cut}");
    }
}
