//! Streams: their states, identifiers and number, RST_STREAM and GOAWAY (RFC 9113, 5.1, 6.4, 6.7 and 6.8).

use super::peer::*;
use crate::http2::connection::StreamFault;
use crate::http2::frame::{ACK, Reason, kind, setting};
use crate::http2::message::Wrong;
use crate::http2::settings::Settings;

const MAX_ID: u32 = (1 << 31) - 1;

// ---- idle ----

#[test]
fn what_an_idle_stream_cannot_have_is_a_connection_error() {
    for frame in [
        data(1, b"x", false),
        data(2, b"x", false),
        rst(1, Reason::CANCEL),
        window_update(1, 1),
        window_update(2, 1),
    ] {
        for mut end in [End::server(), End::client()] {
            assert_eq!(
                end.feed(std::slice::from_ref(&frame)),
                [Seen::Fatal(Reason::PROTOCOL_ERROR)],
                "{frame:?}"
            );
        }
    }
}

#[test]
fn a_server_opens_no_stream() {
    for id in [1, 2, 4] {
        let mut client = End::client();
        assert_eq!(client.feed(&[answer(id, true)]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
    }
}

// ---- identifiers (5.1.1) ----

#[test]
fn a_client_opens_odd_streams_in_rising_order() {
    let mut server = End::server();
    assert_eq!(
        server.feed(&[ask(5, true), ask(9, true)]),
        [asked(5, true), asked(9, true)]
    );
    assert_eq!(server.feed(&[ask(7, true)]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
    let mut server = End::server();
    assert_eq!(server.feed(&[ask(2, true)]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
}

#[test]
fn a_stream_that_was_passed_over_is_closed() {
    for frame in [data(1, b"x", false), ask(1, true)] {
        let mut server = End::server();
        server.feed(&[ask(5, true)]);
        assert_eq!(server.feed(&[frame]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
    }
    let mut server = End::server();
    server.feed(&[ask(5, true)]);
    assert_eq!(server.feed(&[rst(1, Reason::CANCEL), window_update(3, 5)]), []);
}

#[test]
fn the_last_identifier_can_be_used() {
    let mut server = End::server();
    assert_eq!(server.feed(&[ask(MAX_ID, true)]), [asked(MAX_ID, true)]);
}

#[test]
fn a_client_stops_when_its_identifiers_are_used_up() {
    let mut client = End::client();
    client.conn.next_ours = MAX_ID - 2;
    client.ask(true);
    assert!(!client.conn.is_draining());
    assert_eq!(client.ask(true), MAX_ID);
    assert!(!client.conn.has_capacity() && client.conn.is_draining());
    assert_eq!(client.conn.open(1, false), None);
}

// ---- open and half closed ----

#[test]
fn after_a_half_has_ended_more_of_it_resets_the_stream() {
    for frame in [data(1, b"x", false), data(1, b"", true), trailers(1), ask(1, true)] {
        let mut server = End::server();
        server.feed(&[ask(1, true)]);
        server.said();
        let seen = server.feed(std::slice::from_ref(&frame));
        let expected = Seen::Reset {
            id: 1,
            reason: Reason::STREAM_CLOSED,
            fault: Some(StreamFault::AfterEnd),
            theirs_ended: true,
        };
        assert_eq!(seen, [expected], "{frame:?}");
        assert_eq!(server.said(), [rst(1, Reason::STREAM_CLOSED)]);
    }
}

#[test]
fn a_half_that_has_ended_may_still_update_windows_and_be_reset() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    assert_eq!(
        server.feed(&[window_update(1, 5), priority(1, 0), rst(1, Reason::CANCEL)]),
        [
            Seen::Room(1),
            Seen::Reset {
                id: 1,
                reason: Reason::CANCEL,
                fault: None,
                theirs_ended: true
            }
        ]
    );
    assert!(!server.is_open(1));
}

#[test]
fn the_half_that_has_not_ended_goes_on() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    server.answer(1, true);
    assert!(server.is_open(1), "half closed (local)");
    assert_eq!(
        server.feed(&[data(1, b"more", false), trailers(1)]),
        [got(1, b"more", false), trailed(1)]
    );
    assert!(!server.is_open(1));
}

#[test]
fn each_form_of_an_end_ends_a_request() {
    for (frames, seen) in [
        (vec![ask(1, true)], vec![asked(1, true)]),
        (
            vec![ask(1, false), data(1, b"x", true)],
            vec![asked(1, false), got(1, b"x", true)],
        ),
        (
            vec![ask(1, false), data(1, b"x", false), data(1, b"", true)],
            vec![asked(1, false), got(1, b"x", true)],
        ),
        (
            vec![ask(1, false), padded_data(1, b"", 7, true)],
            vec![asked(1, false), got(1, b"", true)],
        ),
        (vec![ask(1, false), trailers(1)], vec![asked(1, false), trailed(1)]),
        (
            vec![ask(1, false), data(1, b"x", false), trailers(1)],
            vec![asked(1, false), got(1, b"x", false), trailed(1)],
        ),
    ] {
        let mut server = End::server();
        assert_eq!(server.feed(&frames), seen);
        assert_eq!(server.conn.recv_window(server.key(1)), None, "{frames:?}");
        server.answer(1, true);
        assert!(!server.is_open(1));
    }
}

#[test]
fn each_form_of_an_end_ends_a_response() {
    for (frames, seen) in [
        (vec![answer(1, true)], vec![answered(1, true)]),
        (
            vec![answer(1, false), data(1, b"x", true)],
            vec![answered(1, false), got(1, b"x", true)],
        ),
        (
            vec![answer(1, false), data(1, b"", true)],
            vec![answered(1, false), got(1, b"", true)],
        ),
        (
            vec![answer(1, false), trailers(1)],
            vec![answered(1, false), trailed(1)],
        ),
    ] {
        let mut client = End::client();
        client.ask(true);
        assert_eq!(client.feed(&frames), seen);
        assert!(!client.is_open(1), "{frames:?}");
    }
}

// ---- closed ----

/// A server whose stream 1 ended in a way, and whose stream 3 is open.
fn with_closed(how: &str) -> End {
    let mut server = End::server();
    server.feed(&[ask(1, how == "both ended"), ask(3, false)]);
    match how {
        "both ended" => server.answer(1, true),
        "they reset" => {
            server.feed(&[rst(1, Reason::CANCEL)]);
        }
        _ => server.reset(1, Reason::CANCEL),
    }
    assert!(!server.is_open(1));
    server.said();
    server
}

#[test]
fn more_of_a_stream_that_both_sides_ended_is_a_connection_error() {
    for frame in [data(1, b"x", false), trailers(1), ask(1, true)] {
        let mut server = with_closed("both ended");
        assert_eq!(server.feed(&[frame]), [Seen::Fatal(Reason::STREAM_CLOSED)]);
    }
}

#[test]
fn more_of_a_stream_that_the_peer_reset_is_a_stream_error() {
    for frame in [data(1, b"x", false), trailers(1)] {
        let mut server = with_closed("they reset");
        assert_eq!(server.feed(&[frame]), []);
        assert_eq!(server.said(), [rst(1, Reason::STREAM_CLOSED)]);
        assert!(server.is_open(3));
    }
}

#[test]
fn more_of_a_stream_that_we_reset_was_under_way_and_is_ignored() {
    let mut server = with_closed("we reset");
    let under_way = [
        data(1, b"x", false),
        padded_data(1, b"y", 4, false),
        window_update(1, 8),
        data(1, b"", true),
        trailers(1),
        rst(1, Reason::CANCEL),
    ];
    assert_eq!(server.feed(&under_way), []);
    assert_eq!(server.said(), []);
    assert!(server.is_open(3));
}

#[test]
fn updates_resets_and_priorities_of_any_closed_stream_are_ignored() {
    for how in ["both ended", "they reset", "we reset"] {
        let mut server = with_closed(how);
        assert_eq!(
            server.feed(&[
                window_update(1, 0),
                window_update(1, 9),
                rst(1, Reason::CANCEL),
                priority(1, 0)
            ]),
            [],
            "{how}"
        );
        assert_eq!(server.said(), []);
    }
}

#[test]
fn a_stream_that_ended_long_ago_harms_nobody() {
    let mut server = End::server();
    for id in (1..200).step_by(2) {
        server.feed(&[ask(id, true)]);
        server.answer(id, true);
    }
    assert_eq!(server.feed(&[data(1, b"late", false), trailers(3)]), []);
    assert_eq!(server.feed(&[ask(201, true)]), [asked(201, true)]);
}

// ---- RST_STREAM (6.4) in each state ----

#[test]
fn a_reset_frees_what_was_held() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]), ask(1, true)]);
    server.answer(1, false);
    server.send(1, &[1; 5_000], false);
    server.send_trailers(1);
    assert!(server.shared.budget.used() >= 5_000);
    server.feed(&[rst(1, Reason::CANCEL)]);
    assert_eq!(server.shared.budget.used(), 0);
    assert_eq!(server.pump(), [0u64; 0]);
}

#[test]
fn a_reset_in_the_middle_of_a_frame_drops_its_rest() {
    let mut server = End::server();
    server.feed(&[ask(1, false), ask(3, false)]);
    let bytes = bytes_of(&[padded_data(1, &[1; 100], 50, false), data(3, b"mine", true)]);
    assert_eq!(server.feed_bytes(&bytes[..60]), [got(1, &[1; 50], false)]);
    server.reset(1, Reason::CANCEL);
    assert_eq!(server.feed_bytes(&bytes[60..]), [got(3, b"mine", true)]);
}

#[test]
fn a_slot_that_is_used_again_gets_nothing_of_the_stream_before() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    let bytes = bytes_of(&[data(1, &[1; 100], true)]);
    server.feed_bytes(&bytes[..50]);
    let before = server.key(1);
    server.reset(1, Reason::CANCEL);
    // The slot is free; whoever has it next must not get the rest of the frame.
    let frames = [bytes[50..].to_vec(), bytes_of(&[ask(3, false)])].concat();
    assert_eq!(server.feed_bytes(&frames), [asked(3, false)]);
    assert!(!server.conn.is_open(before));
    assert_eq!(server.conn.send_data(before, b"x", false, &mut server.shared), 0);
    server.conn.grant(before, 5, &mut server.shared);
    server.conn.set_user(before, 77);
    assert_eq!(server.feed(&[data(3, b"mine", false)]), [got(3, b"mine", false)]);
}

#[test]
fn an_answer_that_is_whole_survives_the_servers_reset() {
    let mut client = End::client();
    client.ask(false);
    assert_eq!(
        client.feed(&[answer(1, true), rst(1, Reason::NO_ERROR)]),
        [
            answered(1, true),
            Seen::Reset {
                id: 1,
                reason: Reason::NO_ERROR,
                fault: None,
                theirs_ended: true
            }
        ]
    );
}

#[test]
fn a_reset_that_waits_for_the_end_leaves_behind_it() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 3)]), ask(1, false)]);
    server.answer(1, false);
    server.send(1, b"hello", false);
    server.send_trailers(1);
    let key = server.key(1);
    server.conn.reset_after_end(key, Reason::NO_ERROR, &mut server.shared);
    let kinds = |said: Vec<Frame>| said.iter().map(|f| f.kind).collect::<Vec<_>>();
    assert_eq!(kinds(server.said()), [kind::SETTINGS, kind::HEADERS, kind::DATA]);
    server.feed(&[window_update(1, 2)]);
    server.pump();
    let said = server.said();
    assert_eq!(said[2], rst(1, Reason::NO_ERROR));
    assert_eq!(kinds(said), [kind::DATA, kind::HEADERS, kind::RST_STREAM]);
    // What the client still sends was under way.
    assert_eq!(server.feed(&[data(1, b"x", true)]), []);
}

#[test]
fn early_resets_of_ours_are_counted_and_late_ones_are_not() {
    let mut client = End::client();
    for id in [1, 3, 5] {
        client.ask(true);
        if id == 3 {
            client.feed(&[answer(3, false)]);
        }
        client.reset(id, Reason::CANCEL);
    }
    assert_eq!(client.conn.early_resets(), 2);
}

// ---- how many (5.1.2) ----

#[test]
fn streams_over_the_limit_are_refused_and_may_come_again() {
    let mut server = End::server_with(Settings {
        max_concurrent_streams: 2,
        ..Settings::default()
    });
    assert_eq!(
        server.feed(&[ask(1, true), ask(3, false), ask(5, false), data(5, b"x", true)]),
        [asked(1, true), asked(3, false), refused(Reason::REFUSED_STREAM, None)]
    );
    assert_eq!(server.said(), [rst(5, Reason::REFUSED_STREAM)]);
    server.answer(1, true);
    assert_eq!(server.feed(&[ask(7, true)]), [asked(7, true)]);
}

#[test]
fn a_client_keeps_to_the_servers_limit_also_when_it_is_lowered() {
    let mut client = End::client();
    client.feed(&[settings(&[(setting::MAX_CONCURRENT_STREAMS, 2)])]);
    client.ask(true);
    client.ask(true);
    assert_eq!(client.conn.open(9, false), None);
    client.feed(&[settings(&[(setting::MAX_CONCURRENT_STREAMS, 1)]), answer(1, true)]);
    assert!(!client.conn.has_capacity());
    client.feed(&[answer(3, true)]);
    assert!(client.conn.has_capacity());
}

// ---- PING (6.7) and GOAWAY (6.8) ----

#[test]
fn pings_are_answered_and_answers_are_not() {
    let mut server = End::server();
    assert_eq!(server.feed(&[ping(*b"whatever")]), []);
    assert_eq!(server.said(), [pong(*b"whatever")]);
    assert_eq!(server.feed(&[pong([4; 8])]), [Seen::Pong([4; 8])]);
    assert_eq!(server.said(), []);
}

#[test]
fn a_server_goes_in_two_steps_and_no_request_under_way_is_lost() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    server.conn.begin_goaway();
    server.conn.begin_goaway();
    let said = server.said();
    assert_eq!(said.len(), 2);
    assert_eq!(goaway_of(&said[0]), (MAX_ID, Reason::NO_ERROR));
    let drain: [u8; 8] = said[1].payload[..].try_into().expect("a PING");
    assert!(server.conn.is_draining() && !server.conn.is_drained());
    // A request that was under way is served.
    assert_eq!(server.feed(&[ask(3, true)]), [asked(3, true)]);
    server.feed(&[pong(drain)]);
    assert_eq!(goaway_of(&server.said()[0]), (3, Reason::NO_ERROR));
    server.answer(3, true);
    server.answer(1, true);
    assert!(!server.conn.is_drained());
    assert_eq!(server.feed(&[data(1, b"x", true)]), [got(1, b"x", true)]);
    assert!(server.conn.is_drained());
}

#[test]
fn streams_beyond_the_last_goaway_are_ignored_with_all_that_belongs_to_them() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    server.conn.begin_goaway();
    server.conn.finish_goaway();
    server.said();
    assert_eq!(
        server.feed(&[
            ask(3, false),
            data(3, b"not processed", false),
            window_update(3, 10),
            trailers(3),
            ask(5, false),
            rst(5, Reason::CANCEL),
            data(1, b"still here", false),
        ]),
        [got(1, b"still here", false)]
    );
    assert_eq!(server.said(), []);
    // An error later does not name a higher stream than before.
    assert_eq!(
        server.feed(&[data(0, b"", false)]),
        [Seen::Fatal(Reason::PROTOCOL_ERROR)]
    );
    assert_eq!(goaway_of(&server.said()[0]), (1, Reason::PROTOCOL_ERROR));
}

#[test]
fn a_client_that_goes_opens_nothing_and_ends_what_it_began() {
    let mut client = End::client();
    client.ask(true);
    client.said();
    client.conn.begin_goaway();
    assert_eq!(goaway_of(&client.said()[0]), (0, Reason::NO_ERROR));
    assert!(!client.conn.has_capacity() && !client.conn.is_drained());
    client.feed(&[answer(1, true)]);
    assert!(client.conn.is_drained());
}

#[test]
fn a_servers_goaway_in_two_steps_gives_back_what_it_did_not_process() {
    let mut client = End::client();
    for _ in 0..3 {
        client.ask(true);
    }
    assert_eq!(
        client.feed(&[goaway(MAX_ID, Reason::NO_ERROR)]),
        [Seen::GoAway {
            last: MAX_ID,
            reason: Reason::NO_ERROR
        }]
    );
    assert!(!client.conn.has_capacity());
    assert_eq!(client.conn.take_unprocessed(&mut client.shared), [0u64; 0]);
    client.feed(&[goaway(3, Reason::NO_ERROR)]);
    assert_eq!(client.conn.take_unprocessed(&mut client.shared), [5]);
    assert_eq!(client.conn.take_unprocessed(&mut client.shared), [0u64; 0]);
    // What the server says of it all the same is nobody's; the others go on.
    assert_eq!(
        client.feed(&[answer(5, true), answer(3, true), answer(1, true)]),
        [answered(3, true), answered(1, true)]
    );
}

#[test]
fn a_goaway_that_takes_back_an_earlier_one_is_a_connection_error() {
    let mut client = End::client();
    assert_eq!(
        client.feed(&[goaway(1, Reason::NO_ERROR), goaway(3, Reason::NO_ERROR)])[1],
        Seen::Fatal(Reason::PROTOCOL_ERROR)
    );
}

#[test]
fn a_client_that_says_goaway_may_still_have_its_requests_answered() {
    let mut server = End::server();
    server.feed(&[ask(1, true), goaway(0, Reason::NO_ERROR)]);
    server.answer(1, true);
    assert!(!server.is_open(1));
}

#[test]
fn malformed_requests_cost_their_stream_and_what_follows_is_ignored() {
    let mut server = End::server();
    assert_eq!(
        server.feed(&[
            headers(1, &[(":method", "GET")], false),
            data(1, b"x", true),
            ask(3, true)
        ]),
        [
            refused(Reason::PROTOCOL_ERROR, Some(Wrong::PseudoMissing)),
            asked(3, true)
        ]
    );
    assert_eq!(server.said(), [rst(1, Reason::PROTOCOL_ERROR)]);
}

#[test]
fn a_connection_error_says_why_and_which_stream_was_the_last() {
    let mut server = End::server();
    server.feed(&[ask(7, true)]);
    server.said();
    server.feed(&[raw(kind::PING, ACK, 3, &[0; 8])]);
    let said = server.said();
    assert_eq!(goaway_of(&said[0]), (7, Reason::PROTOCOL_ERROR));
    assert_eq!(&said[0].payload[8..], b"PING on a stream");
}
