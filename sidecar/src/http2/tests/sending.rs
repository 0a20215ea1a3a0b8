//! What the engine says: frames put together, turns, and that a stream cannot say what its state does not allow.

use super::peer::*;
use crate::http2::frame::{END_HEADERS, END_STREAM, MAX_PAYLOAD, Reason, kind, setting};
use crate::http2::settings::Settings;

/// A server with these streams, answered, and room for everything.
fn wide(ids: &[u32]) -> End {
    let mut server = End::server();
    let max = 1 << 30;
    server.feed(&[
        settings(&[(setting::INITIAL_WINDOW_SIZE, max)]),
        window_update(0, max - 65_535),
    ]);
    for &id in ids {
        server.feed(&[ask(id, false)]);
        server.answer(id, false);
    }
    server.said();
    server
}

#[test]
fn small_messages_in_a_row_share_a_frame() {
    let mut server = wide(&[1, 3]);
    for _ in 0..5 {
        server.send(1, b"0123456789", false);
    }
    server.send(3, b"other", false);
    server.send(1, b"again", false);
    server.send(1, b"!", true);
    assert_eq!(
        server.said(),
        [
            data(1, &b"0123456789".repeat(5), false),
            data(3, b"other", false),
            data(1, b"again!", true)
        ]
    );
}

#[test]
fn a_frame_that_is_partly_written_does_not_grow() {
    let mut server = wide(&[1]);
    server.send(1, b"hello", false);
    server.conn.written(3, &mut server.shared);
    server.send(1, b"world", false);
    let mut bytes = bytes_of(&[data(1, b"hello", false)])[3..].to_vec();
    bytes.extend(bytes_of(&[data(1, b"world", false)]));
    assert_eq!(server.conn.output(), bytes);
}

#[test]
fn no_frame_is_larger_than_every_peer_takes() {
    let mut server = wide(&[1]);
    assert_eq!(server.send(1, &[7; 40_000], true), 40_000);
    let said = server.said();
    assert_eq!(
        said.iter().map(|f| f.payload.len()).collect::<Vec<_>>(),
        [MAX_PAYLOAD, MAX_PAYLOAD, 40_000 - 2 * MAX_PAYLOAD]
    );
    assert_eq!(said.iter().map(|f| f.flags).collect::<Vec<_>>(), [0, 0, END_STREAM]);
}

#[test]
fn a_large_list_takes_continuations() {
    let mut server = wide(&[]);
    server.feed(&[ask(1, true)]);
    let large = "x".repeat(40_000);
    let fields = fields_of(&[(":status", "200"), ("x-large", &large)]);
    let key = server.key(1);
    server.conn.send_headers(key, &fields, false, true, &mut server.shared);
    let said = server.said();
    let shape: Vec<_> = said.iter().map(|f| (f.kind, f.flags, f.stream)).collect();
    let last = shape.len() - 1;
    assert!(last >= 1);
    assert_eq!(shape[0], (kind::HEADERS, END_STREAM, 1));
    assert_eq!(shape[last], (kind::CONTINUATION, END_HEADERS, 1));
    let mut whole = said[0].clone();
    for piece in &said[1..] {
        whole.payload.extend_from_slice(&piece.payload);
    }
    assert_eq!(server.read(&whole)[1].1.len(), 40_000);
}

/// An update that goes along does not cut the last of eight frames.
#[test]
fn eight_full_frames_leave_at_once_whatever_small_frame_stands_before_them() {
    for updates in 0..3 {
        let mut server = End::server();
        server.feed(&[ask(1, false), window_update(0, 1 << 20), window_update(1, 1 << 20)]);
        server.answer(1, false);
        server.said();
        for _ in 0..updates {
            server.grant(1, 1);
        }
        for left in (0..8).rev() {
            assert_eq!(
                server.send(1, &[7; 16_384], false),
                16_384,
                "{updates} updates, {left} to come"
            );
        }
        assert_eq!(server.send(1, &[7; 16_384], false), 0, "a ninth waits");
        assert_eq!(server.send(1, &[7; 10], false), 0);
    }
}

#[test]
fn the_output_that_waits_is_short_and_the_rest_is_held() {
    let mut server = wide(&[1, 3]);
    let all = vec![7; 300_000];
    // The socket took all so far: what a whole read brings may leave at once.
    let sent = server.send(1, &all, false);
    assert!((120_000..=140_000).contains(&sent), "{sent}");
    let mut server = wide(&[1, 3]);
    server.conn.set_backed_up(true);
    let sent = server.send(1, &all, false);
    assert!((60_000..=70_000).contains(&sent), "{sent}");
    assert_eq!(server.send(3, b"small", true), 0, "it waits its turn");
    assert!(!server.conn.wants_pump());
    server.said();
    assert!(server.conn.wants_pump());
    // One turn of the bulk stream, and then the small one.
    assert_eq!(server.pump()[..2], [1, 3]);
    assert!(server.conn.output().len() < 70_000 + MAX_PAYLOAD);
}

#[test]
fn the_turns_go_round_whatever_the_streams_hold() {
    let mut server = wide(&[1, 3, 5]);
    server.send(1, &[1; 400_000], true);
    server.send(3, &[3; 100], true);
    server.send(5, &[5; 40_000], true);
    let mut order = Vec::new();
    while server.conn.open_streams() > 0 && order.len() < 100 {
        server.said();
        order.extend(server.pump());
        for id in [1, 3, 5] {
            if !server.is_open(id) || server.conn.held(server.key(id)) == 0 {
                continue;
            }
        }
        if !server.conn.wants_pump() && server.conn.output().is_empty() {
            break;
        }
    }
    assert_eq!(order[..6], [1, 3, 5, 1, 5, 1]);
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn a_turn_fills_a_frame_from_several_small_messages() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]), ask(1, true)]);
    server.answer(1, false);
    for _ in 0..10_000 {
        server.send(1, b"0123456789", false);
    }
    server.said();
    server.feed(&[window_update(1, 1 << 20), window_update(0, 1 << 20)]);
    let mut frames = Vec::new();
    while server.conn.wants_pump() {
        server.pump();
        frames.extend(server.said());
    }
    assert!(frames.len() < 10, "{}", frames.len());
    let bytes: Vec<u8> = frames.iter().flat_map(|f| f.payload.clone()).collect();
    assert_eq!(bytes, b"0123456789".repeat(10_000));
}

#[test]
fn a_response_is_said_once() {
    let mut server = wide(&[1]);
    server.answer(1, true);
    assert_eq!(server.said(), [], "its head was said before");
    server.send(1, b"x", true);
    server.answer(1, true);
    server.send(1, b"y", true);
    server.send_trailers(1);
    assert_eq!(server.said(), [data(1, b"x", true)]);
}

#[test]
fn nothing_follows_an_end_that_waits() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]), ask(1, false)]);
    server.answer(1, false);
    server.send(1, b"last", true);
    assert_eq!(server.send(1, b"more", false), 0);
    server.send_trailers(1);
    server.said();
    server.feed(&[window_update(1, 100)]);
    server.pump();
    assert_eq!(server.said(), [data(1, b"last", true)]);
}

#[test]
fn a_body_before_the_head_is_not_said() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(server.send(1, b"x", false), 0);
    server.send_trailers(1);
    assert_eq!(server.said(), []);
}

#[test]
fn a_request_has_its_identifier_when_it_is_said_and_not_before() {
    let mut client = End::client();
    let first = client.conn.open(1, false).expect("capacity");
    let second = client.conn.open(2, false).expect("capacity");
    client.conn.grant(first, 5, &mut client.shared);
    assert_eq!(client.said(), [], "no credit for a stream without identifier");
    let fields = fields_of(&request());
    client
        .conn
        .send_headers(second, &fields, false, true, &mut client.shared);
    client.conn.reset(first, Reason::CANCEL, &mut client.shared);
    let said = client.said();
    assert_eq!(said.len(), 1, "who was never said is not reset: {said:?}");
    assert_eq!((said[0].stream, said[0].kind), (1, kind::HEADERS));
}

#[test]
fn an_idle_connection_keeps_no_output_buffer() {
    let mut server = wide(&[1]);
    server.send(1, &[7; 60_000], false);
    server.said();
    assert_eq!(server.conn.out.capacity(), 0);
    // Not even when something comes that needs no answer.
    server.feed(&[pong([0; 8]), window_update(1, 1)]);
    assert_eq!(server.conn.out.capacity(), 0);
    server.conn.written(0, &mut server.shared);
    assert!(server.shared.outputs.iter().all(|buffer| buffer.capacity() > 0));
}

#[test]
fn streams_that_are_gone_leave_nothing_in_the_queue_of_turns() {
    let mut client = End::client();
    client.feed(&[settings(&[])]);
    client.ask(false);
    client.send(1, &[1; 65_535], false);
    client.said();
    // The connection has no room: nobody takes turns, however many come and go.
    for _ in 0..10_000 {
        let id = client.ask(false);
        client.send(id, b"waits", false);
        client.reset(id, Reason::CANCEL);
        client.said();
    }
    assert!(client.conn.ready.len() < 100, "{}", client.conn.ready.len());
}

#[test]
fn no_stream_begins_while_much_is_to_be_written_and_the_largest_list_is_within_reason_all_the_same() {
    let mut client = End::client();
    client.feed(&[settings(&[(3, 10_000)])]);
    client.said();
    let large = fields_of(&[(":method", "POST"), ("x-a", &"a".repeat(64_000))]);
    let mut begun = 0;
    while let Some(key) = client.conn.open(0, false) {
        client.conn.send_headers(key, &large, false, true, &mut client.shared);
        begun += 1;
    }
    assert!((3..6).contains(&begun), "{begun}");
    assert!(client.conn.is_congested() && !client.conn.has_capacity());
    assert_eq!(client.conn.kept_beyond_reason(), 0);
    client.said();
    assert!(client.conn.has_capacity());
}

#[test]
fn equal_inputs_give_equal_bytes() {
    let run = || {
        let mut server = wide(&[1, 3, 5, 7]);
        for round in 0..50u32 {
            for id in [1, 3, 5, 7] {
                server.send(id, &vec![id as u8; (round * 97 % 5_000) as usize], false);
            }
            server.feed(&[window_update(1, 10), ping([round as u8; 8])]);
            server.pump();
        }
        server.conn.output().to_vec()
    };
    assert_eq!(run(), run());
}

#[test]
fn what_a_peer_never_reads_is_noticed() {
    let mut server = End::server_with(Settings::default());
    assert!(!server.conn.output_overflows());
    server.conn.out.resize((4 << 20) + 1, 0);
    assert!(server.conn.output_overflows());
}
