//! The preface and SETTINGS (RFC 9113, 3.4 and 6.5).

use super::peer::*;
use crate::http2::frame::{ACK, DEFAULT_WINDOW, PREFACE, Reason, kind, setting};
use crate::http2::settings::Settings;

#[test]
fn a_server_says_settings_at_once_and_a_client_the_preface_before_them() {
    let mut server = End::fresh_server(Settings::default(), false);
    assert_eq!(server.said(), [settings(&[(setting::MAX_CONCURRENT_STREAMS, 1_000)])]);
    let mut client = End::fresh_client(Settings::default());
    assert!(client.conn.output().starts_with(PREFACE));
    assert_eq!(client.said(), [settings(&[(setting::ENABLE_PUSH, 0)])]);
}

#[test]
fn what_differs_from_the_defaults_is_announced() {
    let mut server = End::fresh_server(
        Settings {
            header_table_bytes: 0,
            first_stream_window: 7,
            max_concurrent_streams: 3,
            ..Settings::default()
        },
        false,
    );
    let announced = [
        (setting::HEADER_TABLE_SIZE, 0),
        (setting::MAX_CONCURRENT_STREAMS, 3),
        (setting::INITIAL_WINDOW_SIZE, 7),
    ];
    assert_eq!(server.said(), [settings(&announced)]);
}

#[test]
fn another_preface_is_a_connection_error() {
    for at in [0, 3, 12, 23] {
        let mut wrong = PREFACE.to_vec();
        wrong[at] ^= 1;
        let mut server = End::fresh_server(Settings::default(), false);
        server.said();
        assert_eq!(server.feed_bytes(&wrong), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
        assert_eq!(goaway_of(&server.said()[0]), (0, Reason::PROTOCOL_ERROR));
    }
}

#[test]
fn the_first_frame_must_be_settings_in_either_role() {
    for first in [
        ping([0; 8]),
        window_update(0, 1),
        settings_ack(),
        ask(1, true),
        data(1, b"x", false),
        goaway(0, Reason::NO_ERROR),
        raw(0x77, 0, 0, &[]),
    ] {
        let mut client = End::fresh_client(Settings::default());
        assert_eq!(
            client.feed(std::slice::from_ref(&first)),
            [Seen::Fatal(Reason::PROTOCOL_ERROR)],
            "{first:?}"
        );
        let mut server = End::fresh_server(Settings::default(), false);
        server.feed_bytes(PREFACE);
        assert_eq!(server.feed(&[first]), [Seen::Fatal(Reason::PROTOCOL_ERROR)]);
    }
}

#[test]
fn settings_are_acknowledged_each_time() {
    let mut server = End::server();
    server.feed(&[settings(&[]), settings(&[(setting::MAX_FRAME_SIZE, 20_000)])]);
    assert_eq!(server.said(), [settings_ack(), settings_ack()]);
}

#[test]
fn an_acknowledgement_that_nobody_waits_for_is_harmless() {
    let mut server = End::server();
    assert_eq!(server.feed(&[settings_ack(), settings_ack()]), []);
    assert_eq!(server.said(), []);
}

#[test]
fn settings_of_a_wrong_shape_are_connection_errors() {
    for (frame, reason) in [
        (raw(kind::SETTINGS, 0, 1, &[]), Reason::PROTOCOL_ERROR),
        (raw(kind::SETTINGS, ACK, 0, &[0; 6]), Reason::FRAME_SIZE_ERROR),
        (raw(kind::SETTINGS, 0, 0, &[0; 5]), Reason::FRAME_SIZE_ERROR),
        (raw(kind::SETTINGS, 0, 0, &[0; 13]), Reason::FRAME_SIZE_ERROR),
    ] {
        let mut server = End::server();
        assert_eq!(
            server.feed(std::slice::from_ref(&frame)),
            [Seen::Fatal(reason)],
            "{frame:?}"
        );
        let said = server.said();
        assert_eq!(goaway_of(&said[said.len() - 1]).1, reason);
    }
}

#[test]
fn values_out_of_bounds_are_connection_errors_and_those_at_the_bounds_are_not() {
    use setting::*;
    let max = (1u32 << 31) - 1;
    for (id, value, error) in [
        (ENABLE_PUSH, 0, None),
        (ENABLE_PUSH, 1, None),
        (ENABLE_PUSH, 2, Some(Reason::PROTOCOL_ERROR)),
        (INITIAL_WINDOW_SIZE, 0, None),
        (INITIAL_WINDOW_SIZE, max, None),
        (INITIAL_WINDOW_SIZE, max + 1, Some(Reason::FLOW_CONTROL_ERROR)),
        (MAX_FRAME_SIZE, 16_383, Some(Reason::PROTOCOL_ERROR)),
        (MAX_FRAME_SIZE, 16_384, None),
        (MAX_FRAME_SIZE, 16_777_215, None),
        (MAX_FRAME_SIZE, 16_777_216, Some(Reason::PROTOCOL_ERROR)),
        (HEADER_TABLE_SIZE, 0, None),
        (HEADER_TABLE_SIZE, u32::MAX, None),
        (MAX_CONCURRENT_STREAMS, 0, None),
        (MAX_CONCURRENT_STREAMS, u32::MAX, None),
        (MAX_HEADER_LIST_SIZE, 0, None),
        (MAX_HEADER_LIST_SIZE, u32::MAX, None),
        (0x77, u32::MAX, None),
    ] {
        let mut server = End::server();
        let seen = server.feed(&[settings(&[(id, value)])]);
        match error {
            Some(reason) => assert_eq!(seen, [Seen::Fatal(reason)], "{id} = {value}"),
            None => assert!(matches!(seen[..], [Seen::Settings { .. }]), "{id} = {value}: {seen:?}"),
        }
    }
}

#[test]
fn a_server_cannot_say_that_it_will_push() {
    let mut client = End::client();
    assert_eq!(
        client.feed(&[settings(&[(setting::ENABLE_PUSH, 1)])]),
        [Seen::Fatal(Reason::PROTOCOL_ERROR)]
    );
    let mut client = End::client();
    assert_eq!(
        client.feed(&[settings(&[(setting::ENABLE_PUSH, 0)])]),
        [Seen::Settings { rooms: false }]
    );
}

#[test]
fn the_last_value_of_a_setting_that_comes_twice_counts() {
    let mut server = End::server();
    server.feed(&[
        settings(&[(setting::INITIAL_WINDOW_SIZE, 5), (setting::INITIAL_WINDOW_SIZE, 9)]),
        ask(1, true),
    ]);
    assert_eq!(server.conn.room(server.key(1)), 9);
}

#[test]
fn a_server_that_names_no_limit_of_streams_has_none() {
    let mut client = End::client();
    assert!(client.conn.max_streams() > 1_000_000);
    client.feed(&[settings(&[(setting::MAX_CONCURRENT_STREAMS, 2)])]);
    client.ask(true);
    client.ask(true);
    assert!(!client.conn.has_capacity());
    client.feed(&[settings(&[(setting::MAX_CONCURRENT_STREAMS, 3)])]);
    assert!(client.conn.has_capacity());
    client.feed(&[settings(&[(setting::MAX_HEADER_LIST_SIZE, 4_000)])]);
    assert_eq!(client.conn.max_streams(), 3, "a SETTINGS without it changes nothing");
    assert_eq!(client.conn.max_header_list(), 4_000);
    assert_eq!(client.shared.least_header_list, 4_000);
    client.feed(&[settings(&[(setting::MAX_HEADER_LIST_SIZE, 9_000)])]);
    assert_eq!(client.conn.max_header_list(), 9_000);
    assert_eq!(client.shared.least_header_list, 4_000, "it is kept, whoever said it");
}

#[test]
fn before_a_server_names_its_limit_few_streams_are_opened() {
    let mut client = End::fresh_client(Settings::default());
    for _ in 0..100 {
        client.ask(true);
    }
    assert!(!client.conn.has_capacity());
    assert!(!client.conn.heard_settings());
    client.feed(&[settings(&[])]);
    assert!(client.conn.has_capacity() && client.conn.heard_settings());
}

#[test]
fn our_encoder_follows_the_peers_table_size_down_to_nothing_and_up_again() {
    let mut server = End::server();
    server.feed(&[ask(1, true), settings(&[(setting::HEADER_TABLE_SIZE, 0)])]);
    server.said();
    server.answer(1, true);
    let said = server.said();
    // RFC 7541, 4.2: the next block begins with the change.
    assert_eq!(said[0].payload[0], 0x20, "{said:?}");
    assert_eq!(server.read(&said[0])[0], (":status".into(), "200".into()));
    server.feed(&[ask(3, true), settings(&[(setting::HEADER_TABLE_SIZE, 4_096)])]);
    server.answer(3, true);
    let said = server.said();
    let answer = said.iter().find(|f| f.kind == kind::HEADERS).expect("an answer");
    assert_eq!(answer.payload[0] & 0xe0, 0x20, "{said:?}");
    server.read(&answer.clone());
}

#[test]
fn a_lower_initial_window_takes_from_the_streams_that_are_open_also_below_zero() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    server.answer(1, false);
    assert_eq!(server.send(1, &[7; 60_000], false), 60_000);
    server.said();
    assert_eq!(
        server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 100)])]),
        [Seen::Settings { rooms: true }]
    );
    assert_eq!(server.conn.room(server.key(1)), 100 - 60_000);
    assert_eq!(server.send(1, b"waits", false), 0);
    // Up to zero: still nothing. One more: one byte.
    server.feed(&[window_update(1, 59_900)]);
    assert_eq!(server.pump(), [0u64; 0]);
    server.feed(&[window_update(1, 1)]);
    assert_eq!(server.pump(), [1]);
    assert_eq!(server.said_but_credit(), [settings_ack(), data(1, b"w", false)]);
    // SETTINGS give the rest.
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 102)])]);
    server.pump();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 200)])]);
    server.pump();
    let said = server.said_but_credit();
    let sent: Vec<u8> = said
        .iter()
        .filter(|f| f.kind == kind::DATA)
        .flat_map(|f| f.payload.clone())
        .collect();
    assert_eq!(sent, b"aits");
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn with_a_window_below_zero_the_end_of_a_stream_still_leaves() {
    for how in ["data", "trailers", "reset"] {
        let mut server = End::server();
        server.feed(&[ask(1, true)]);
        server.answer(1, false);
        server.send(1, &[7; 60_000], false);
        server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 0)])]);
        server.said();
        match how {
            "data" => {
                server.send(1, &[], true);
            }
            "trailers" => server.send_trailers(1),
            _ => server.reset(1, Reason::CANCEL),
        }
        let said = server.said_but_credit();
        assert_eq!(said.len(), 1, "{how}: {said:?}");
        assert!(!server.is_open(1), "{how}");
    }
}

#[test]
fn an_initial_window_that_overflows_a_stream_is_a_connection_error() {
    let mut server = End::server();
    server.feed(&[ask(1, true), window_update(1, 1)]);
    let max = (1 << 31) - 1;
    assert_eq!(
        server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, max)])]),
        [Seen::Fatal(Reason::FLOW_CONTROL_ERROR)]
    );
}

#[test]
fn a_lower_window_of_ours_counts_once_it_is_acknowledged() {
    let small = Settings {
        first_stream_window: 100,
        ..Settings::default()
    };
    // Before the acknowledgement the peer may not have heard of it.
    let mut server = End::fresh_server(small.clone(), false);
    server.feed_bytes(PREFACE);
    server.feed(&[settings(&[]), ask(1, false)]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(DEFAULT_WINDOW.into()));
    assert_eq!(
        server.feed(&[data(1, &[0; 16_000], false)]),
        [got(1, &[0; 16_000], false)]
    );
    assert_eq!(
        server.feed(&[settings_ack()]),
        [Seen::Lowered],
        "its owner may have to give credit"
    );
    assert_eq!(server.conn.recv_window(server.key(1)), Some(100 - 16_000));
    assert!(matches!(
        server.feed(&[data(1, b"x", false)])[..],
        [Seen::Reset {
            reason: Reason::FLOW_CONTROL_ERROR,
            ..
        }]
    ));
    // Afterwards new streams have it at once.
    let mut server = End::server_with(small);
    server.feed(&[ask(1, false)]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(100));
}

#[test]
fn a_higher_window_of_ours_counts_when_it_is_sent() {
    let mut server = End::fresh_server(
        Settings {
            first_stream_window: 100_000,
            ..Settings::default()
        },
        false,
    );
    server.feed_bytes(PREFACE);
    server.feed(&[settings(&[]), ask(1, false)]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(100_000));
    server.feed(&[settings_ack()]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(100_000));
}
