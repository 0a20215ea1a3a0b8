//! Flow control, frame by frame: windows of streams and connections, both ways (RFC 9113, 5.2, 6.1 and 6.9).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::peer::*;
use crate::exchange::{credit_due, credit_for};
use crate::http2::connection::StreamFault;
use crate::http2::frame::{DEFAULT_WINDOW, END_HEADERS, Reason, kind, setting};
use crate::http2::settings::Settings;

const MAX: u32 = (1 << 31) - 1;

// ---- what the peer may send ----

#[test]
fn a_stream_may_be_filled_to_its_window_and_one_byte_more_resets_it() {
    let mut server = End::server_with(Settings {
        first_stream_window: 100,
        ..Settings::default()
    });
    server.feed(&[ask(1, false), ask(3, false)]);
    assert_eq!(server.feed(&[data(1, &[1; 100], false)]), [got(1, &[1; 100], false)]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(0));
    server.said();
    assert_eq!(
        server.feed(&[data(1, b"x", false)]),
        [faulted(1, Reason::FLOW_CONTROL_ERROR, StreamFault::FlowControl)]
    );
    assert_eq!(server.said(), [rst(1, Reason::FLOW_CONTROL_ERROR)]);
    assert_eq!(server.feed(&[data(3, b"x", false)]), [got(3, b"x", false)]);
}

#[test]
fn an_empty_frame_needs_no_window() {
    let mut server = End::server_with(Settings {
        first_stream_window: 1,
        ..Settings::default()
    });
    server.feed(&[ask(1, false)]);
    assert_eq!(
        server.feed(&[data(1, b"x", false), data(1, b"", true)]),
        [got(1, b"x", true)]
    );
}

#[test]
fn padding_and_its_length_count_in_both_windows() {
    let mut server = End::server_with(Settings {
        first_stream_window: 100,
        ..Settings::default()
    });
    server.feed(&[ask(1, false)]);
    let before = server.conn.recv_window;
    server.feed(&[padded_data(1, b"hello", 20, false)]);
    assert_eq!(server.conn.recv_window(server.key(1)), Some(100 - 26));
    assert_eq!(server.conn.recv_window, before - 26);
    server.said();
    assert_eq!(
        server.feed(&[padded_data(1, b"hello", 69, false)]),
        [faulted(1, Reason::FLOW_CONTROL_ERROR, StreamFault::FlowControl)]
    );
}

#[test]
fn padding_alone_is_told_so_that_its_credit_comes_back() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(server.feed(&[padded_data(1, b"", 99, false)]), [got(1, b"", false)]);
    let key = server.key(1);
    assert_eq!(server.conn.recv_window(key), Some(i64::from(DEFAULT_WINDOW) - 100));
}

#[test]
fn credit_is_given_as_an_update_and_counts_at_once() {
    let mut server = End::server_with(Settings {
        first_stream_window: 10,
        ..Settings::default()
    });
    server.feed(&[ask(1, false)]);
    server.grant(1, 0);
    assert_eq!(server.said(), []);
    server.grant(1, 5);
    assert_eq!(server.said(), [window_update(1, 5)]);
    assert_eq!(server.feed(&[data(1, &[0; 15], false)]), [got(1, &[0; 15], false)]);
}

#[test]
fn a_half_that_has_ended_gets_no_credit() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    server.grant(1, 5);
    assert_eq!(server.said(), []);
}

#[test]
fn more_than_the_connections_window_is_a_connection_error() {
    // Nothing in the budget: the connection's window stays what it is, and is restored only to that.
    let mut server = End::server();
    server.shared.budget.add(1 << 31);
    server.conn.recv_window = 10;
    server.conn.recv_target = 10;
    server.feed(&[ask(1, false)]);
    assert_eq!(
        server.feed(&[data(1, &[0; 11], false)]),
        [Seen::Fatal(Reason::FLOW_CONTROL_ERROR)]
    );
}

/// `initial + updates given = received + what the peer may still send`.
#[test]
fn the_connections_credit_survives_whatever_becomes_of_the_bytes() {
    let mut server = End::server();
    let (mut received, mut updates) = (0i64, 0i64);
    server.feed(&[ask(1, false), ask(3, true), ask(5, false), ask(7, false)]);
    server.reset(5, Reason::CANCEL);
    server.feed(&[rst(7, Reason::CANCEL)]);
    for round in 0..600u32 {
        let frame = match round % 5 {
            // Gone, padded, after our reset, after theirs.
            0 => data(1, &[0; 3_000], false),
            1 => padded_data(1, &[0; 10], 200, false),
            2 => data(5, &[0; 5_000], false),
            3 => padded_data(7, b"", 255, false),
            _ => data(5, &[0; 16_384], false),
        };
        received += frame.payload.len() as i64;
        server.feed(&[frame]);
        assert!(server.fatal.is_none(), "{:?}", server.fatal);
        let key = server.key(1);
        if server.conn.recv_window(key).is_some_and(|w| w < 10_000) {
            server.grant(1, 20_000);
        }
        for frame in server.said() {
            if frame.kind == kind::WINDOW_UPDATE && frame.stream == 0 {
                let n = u32::from_be_bytes(frame.payload[..].try_into().expect("4 bytes"));
                updates += i64::from(n);
            }
        }
        assert_eq!(
            i64::from(DEFAULT_WINDOW) + updates,
            received + server.conn.recv_window,
            "round {round}"
        );
        assert!(server.conn.recv_window > 0);
    }
}

#[test]
fn a_connection_that_only_sees_idle_traffic_reserves_nothing() {
    let mut server = End::server();
    server.feed(&[ask(1, false), data(1, &[0; 1_000], false)]);
    assert_eq!(server.shared.budget.used(), 0);
    assert_eq!(server.conn.recv_window, i64::from(DEFAULT_WINDOW) - 1_000);
}

#[test]
fn a_busy_connection_reserves_the_credit_it_gives_and_gives_it_back() {
    let mut server = End::server();
    server.feed(&[
        ask(1, false),
        data(1, &[0; 16_384], false),
        data(1, &[0; 16_384], false),
    ]);
    assert_eq!(server.conn.recv_window, 1 << 20);
    assert_eq!(server.shared.budget.used(), (1 << 20) - u64::from(DEFAULT_WINDOW));
    server.conn.release(&mut server.shared);
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn the_credit_of_a_near_connection_goes_with_a_streams_or_waits_for_three_quarters() {
    let mut server = End::server();
    server.feed(&[ask(1, false), ask(3, false)]);
    for id in [1, 3] {
        server.grant(id, 2 << 20);
    }
    // The first window is small: it is raised once a half is used.
    server.feed(&[data(1, &[0; 16_384], false), data(1, &[0; 16_384], false)]);
    server.said();
    let updates = |server: &mut End| -> Vec<_> {
        let said = server.said().into_iter();
        said.filter(|frame| frame.kind == kind::WINDOW_UPDATE)
            .map(|frame| frame.stream)
            .collect()
    };
    for (frames, with_stream) in [(15, [1].as_slice()), (16, &[1, 0])] {
        for _ in 0..frames {
            server.feed(&[data(1, &[0; 16_384], false)]);
        }
        server.grant(1, 16_384);
        assert_eq!(updates(&mut server), with_stream, "after {frames} frames");
        server.conn.recv_window = 1 << 20;
    }
    for _ in 0..47 {
        server.feed(&[data(3, &[0; 16_384], false)]);
    }
    assert!(updates(&mut server).is_empty());
    server.feed(&[data(3, &[0; 16_384], false)]);
    assert_eq!(updates(&mut server), [0]);
}

/// Twice what the reader grants, which is no less than it began with; where others are under way too, what it has now.
#[test]
fn a_sender_that_is_alone_is_not_held_up_by_what_its_reader_has_yet_to_read() {
    let mut reader = End::client();
    reader.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 200_000)])]);
    let asked = reader.ask(false);
    let to = reader.key(asked);
    let mut sender = End::server();
    sender.feed(&[ask(1, false)]);
    let room = |reader: &mut End, room| reader.conn.streams.get_mut(to).expect("it is open").send_window = room;
    for (left, enough) in [
        (200_000, 400_000),
        (0, 400_000),
        (300_000, 2 * (256 << 10)),
        (-1, 65_535),
    ] {
        room(&mut reader, left);
        assert_eq!(credit_due(&sender.conn, 0, &reader.conn, to), enough, "room {left}");
    }
    room(&mut reader, 0);
    reader.send(asked, &[7; 1_000], false);
    assert_eq!(
        credit_due(&sender.conn, 0, &reader.conn, to),
        399_000,
        "what is held counts"
    );
    sender.feed(&[ask(3, false)]);
    assert_eq!(credit_due(&sender.conn, 0, &reader.conn, to), 64_535);
}

/// A peer that fills the connection's window once a round trip, and answers the PING that measures it.
fn bulk_over(round_trip: Duration, rounds: u32) -> End {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    for _ in 0..rounds {
        // Updates come back while it sends, so it sends as much as it ever has credit for.
        let mut left = server.conn.recv_target;
        while left > 0 {
            let n = left.min(16_384) as usize;
            server.grant(1, n as u32);
            server.feed(&[data(1, &vec![0; n], false)]);
            assert!(server.fatal.is_none());
            left -= n as i64;
        }
        server.pass(round_trip);
        for frame in server.said() {
            if frame.kind == kind::PING {
                server.feed(&[pong(frame.payload[..].try_into().expect("8 bytes"))]);
            }
        }
    }
    server
}

#[test]
fn the_window_of_a_near_connection_stays_small_and_that_of_a_far_one_grows_to_its_ceiling() {
    let near = bulk_over(Duration::from_micros(200), 30);
    assert_eq!((near.conn.recv_target, near.conn.path_need()), (1 << 20, 0));
    let far = bulk_over(Duration::from_millis(20), 30);
    assert_eq!(far.conn.recv_target, 16 << 20);
    assert!(far.shared.budget.used() <= 16 << 20);
}

/// Bytes a second that one stream carries over a long path, once windows had a second to grow. Its sender uses all its
/// credit at once, its reader takes all, and a PING is answered before what waits for credit.
fn carried_over(delay: Duration, rate: u32) -> f64 {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    let began = server.now;
    let (grown, over) = (Duration::from_secs(1), Duration::from_secs(2));
    let (mut here, mut there) = (VecDeque::new(), VecDeque::new());
    let (mut stream, mut connection) = (i64::from(DEFAULT_WINDOW), i64::from(DEFAULT_WINDOW));
    let (mut free, mut message, mut carried) = (began, 0, 0);
    there.push_back((began, window_update(1, 0)));
    loop {
        // What is due first: something from the sender, or something for it.
        let arrives: Instant = here.front().map_or(began + over, |(due, _)| *due);
        let reaches: Instant = there.front().map_or(began + over, |(due, _)| *due);
        server.now = arrives.min(reaches);
        if server.now >= began + over {
            return f64::from(carried) / (over - grown).as_secs_f64();
        }
        if arrives < reaches {
            let (_, frame): (_, Frame) = here.pop_front().expect("it is due");
            if server.now >= began + grown {
                carried += frame.payload.len() as u32;
            }
            server.feed(&[frame]);
            assert!(server.fatal.is_none(), "{:?}", server.fatal);
            let window = server.conn.recv_window(server.key(1)).expect("the stream is open");
            let (settings, need) = (server.conn.settings(), server.conn.path_need());
            let due = credit_for(settings, 1, need, MAX.into(), window);
            if due > 0 {
                server.grant(1, due as u32);
            }
            let said = server.said();
            there.extend(said.into_iter().map(|frame| (server.now + delay, frame)));
            continue;
        }
        let (now, frame) = there.pop_front().expect("it is due");
        free = free.max(now);
        match frame.kind {
            kind::PING => here.push_back((free + delay, pong(frame.payload[..].try_into().expect("8 bytes")))),
            kind::WINDOW_UPDATE => {
                let more = u32::from_be_bytes(frame.payload[..].try_into().expect("4 bytes"));
                *if frame.stream == 0 {
                    &mut connection
                } else {
                    &mut stream
                } += i64::from(more);
            }
            _ => {}
        }
        while stream.min(connection) > 0 {
            // A message of 16 KiB has five bytes more than a frame.
            message = if message == 0 { 16_389 } else { message };
            let n = stream.min(connection).min(message).min(16_384);
            message -= n;
            (stream, connection) = (stream - n, connection - n);
            free += Duration::from_secs_f64(n as f64 / f64::from(rate));
            here.push_back((free + delay, data(1, &vec![0; n as usize], false)));
        }
    }
}

#[test]
fn one_stream_fills_a_far_path_though_its_bytes_come_in_bursts() {
    for (delay, rate) in [(1, 500), (5, 200), (10, 100), (25, 50), (50, 30)] {
        let carried = carried_over(Duration::from_millis(delay), rate * 1_000_000) / 1e6;
        assert!(
            carried > 0.95 * f64::from(rate),
            "{carried} MB/s of {rate}, {delay} ms each way"
        );
    }
}

#[test]
fn what_an_idle_connection_takes_is_little() {
    let connection = size_of::<crate::http2::Connection>();
    let stream = size_of::<crate::http2::Stream>();
    assert!(connection <= 656, "{connection} bytes");
    assert!(stream <= 96, "{stream} bytes");
}

#[test]
fn a_spent_budget_keeps_a_connection_at_the_window_it_began_with() {
    let mut server = End::server();
    server.shared.budget.add(1 << 30);
    server.feed(&[ask(1, false)]);
    let mut received = 0;
    for _ in 0..200 {
        server.feed(&[data(1, &[0; 10_000], false)]);
        received += 10_000;
        server.grant(1, 10_000);
        assert!(server.fatal.is_none(), "after {received}: {:?}", server.fatal);
        assert!(server.conn.recv_window <= i64::from(DEFAULT_WINDOW));
        assert!(server.conn.recv_window >= i64::from(DEFAULT_WINDOW) / 2 - 10_000);
    }
}

// ---- what we may send ----

#[test]
fn what_has_no_room_is_held_and_leaves_as_room_comes() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 4)]), ask(1, true)]);
    server.answer(1, false);
    server.said();
    assert_eq!(server.send(1, b"hello ", false), 4);
    assert_eq!(server.send(1, b"world", true), 0);
    assert_eq!(server.conn.held(server.key(1)), 7);
    assert_eq!(server.said(), [data(1, b"hell", false)]);
    assert_eq!(server.feed(&[window_update(1, 3)]), [Seen::Room(1)]);
    assert_eq!(server.pump(), [1]);
    assert_eq!(server.said(), [data(1, b"o w", false)]);
    server.feed(&[window_update(1, 100)]);
    assert_eq!(server.pump(), [1]);
    assert_eq!(server.said(), [data(1, b"orld", true)]);
    assert!(!server.is_open(1));
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn trailers_follow_the_last_held_byte() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 1)]), ask(1, true)]);
    server.answer(1, false);
    server.said();
    server.send(1, b"ab", false);
    server.send_trailers(1);
    assert_eq!(server.said(), [data(1, b"a", false)]);
    assert_eq!(server.pump(), [0u64; 0]);
    server.feed(&[window_update(1, 1)]);
    server.pump();
    let said = server.said();
    assert_eq!(said[0], data(1, b"b", false));
    assert_eq!(server.read(&said[1]), [("grpc-status".into(), "0".into())]);
    assert_eq!(said[1].flags & 1, 1);
    assert!(!server.is_open(1));
}

#[test]
fn the_connections_window_stops_all_streams_and_an_update_wakes_them_in_turn() {
    let mut server = End::server();
    for id in [1, 3, 5] {
        server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, MAX)]), ask(id, true)]);
        server.answer(id, false);
    }
    server.said();
    assert_eq!(server.send(1, &[1; 65_535], false), 65_535);
    server.said();
    for id in [1, 3, 5] {
        assert_eq!(
            server.send(id, &[id as u8; 20_000], false),
            0,
            "no room on the connection"
        );
    }
    assert!(!server.conn.wants_pump());
    assert_eq!(server.feed(&[window_update(0, 50_000)]), []);
    server.said();
    assert!(server.conn.wants_pump());
    assert_eq!(server.pump(), [1, 3, 5, 1]);
    let said: Vec<_> = server.said().iter().map(|f| (f.stream, f.payload.len())).collect();
    assert_eq!(said, [(1, 16_384), (3, 16_384), (5, 16_384), (1, 848)]);
    assert_eq!(server.conn.send_window, 0);
}

#[test]
fn an_update_of_nothing_is_an_error_of_its_stream_or_connection() {
    let mut server = End::server();
    server.feed(&[ask(1, false), ask(3, false)]);
    assert_eq!(
        server.feed(&[window_update(1, 0)]),
        [faulted(1, Reason::PROTOCOL_ERROR, StreamFault::Protocol)]
    );
    assert_eq!(
        server.feed(&[window_update(0, 0)]),
        [Seen::Fatal(Reason::PROTOCOL_ERROR)]
    );
}

#[test]
fn a_window_can_be_opened_to_its_end_and_no_further() {
    let mut server = End::server();
    server.feed(&[ask(1, false), ask(3, false)]);
    assert_eq!(
        server.feed(&[window_update(1, MAX - DEFAULT_WINDOW), window_update(1, 1)]),
        [
            Seen::Room(1),
            faulted(1, Reason::FLOW_CONTROL_ERROR, StreamFault::FlowControl)
        ]
    );
    assert_eq!(server.feed(&[window_update(0, MAX - DEFAULT_WINDOW)]), []);
    assert_eq!(
        server.feed(&[window_update(0, 1)]),
        [Seen::Fatal(Reason::FLOW_CONTROL_ERROR)]
    );
}

#[test]
fn the_reserved_bit_of_an_update_is_ignored() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    assert_eq!(server.feed(&[window_update(1, 5 | 1 << 31)]), [Seen::Room(1)]);
    assert_eq!(server.conn.room(server.key(1)), i64::from(DEFAULT_WINDOW) + 5);
}

// ---- budget ----

#[test]
fn the_budget_counts_the_memory_and_not_only_the_bytes() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 1)])]);
    // The worst a peer can do: each stream holds a byte more than fits a chunk.
    for i in 0..100 {
        let id = 1 + 2 * i;
        server.feed(&[ask(id, true)]);
        server.answer(id, false);
        server.send(id, &[7; 514], false);
    }
    let counted = server.shared.budget.used();
    assert!(counted >= 100 * 1_024, "chunks are counted whole: {counted}");
    assert!(counted <= 100 * 5_000, "and small ones for little: {counted}");
    for i in 0..100 {
        server.feed(&[rst(1 + 2 * i, Reason::CANCEL)]);
    }
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn trailers_that_wait_are_counted() {
    let mut server = End::server();
    server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]), ask(1, true)]);
    server.answer(1, false);
    server.send(1, b"x", false);
    let before = server.shared.budget.used();
    let key = server.key(1);
    let large = "x".repeat(30_000);
    let mut fields = fields_of(&[("grpc-message", &large)]);
    server.conn.send_trailers(key, &mut fields, &mut server.shared);
    assert!(server.shared.budget.used() >= before + 30_000);
    server.feed(&[window_update(1, 1)]);
    server.pump();
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn a_header_block_that_goes_on_is_counted_until_it_ends() {
    let mut server = End::server();
    let piece = block(&[("x-a", &"a".repeat(15_000))]);
    let mut counted = |frames: &[Frame]| {
        server.feed(frames);
        server.conn.count_kept(0, &mut server.shared);
        server.shared.budget.used()
    };
    assert_eq!(
        counted(&[raw(kind::HEADERS, 0, 1, &block(&request()))]),
        0,
        "as any does"
    );
    assert_eq!(counted(&[raw(kind::CONTINUATION, 0, 1, &piece)]), 0, "within one frame");
    for pieces in 2..10 {
        let now = counted(&[raw(kind::CONTINUATION, 0, 1, &piece)]);
        assert!(now >= pieces * 15_000, "{now} for {pieces} pieces");
    }
    assert_eq!(counted(&[raw(kind::CONTINUATION, END_HEADERS, 1, &[])]), 0);
    // And where it never ends.
    let mut server = End::server();
    let endless = [raw(kind::HEADERS, 0, 1, &piece), raw(kind::CONTINUATION, 0, 1, &piece)];
    server.feed(&endless);
    server.conn.count_kept(0, &mut server.shared);
    assert!(server.conn.kept() > 30_000);
    server.conn.release(&mut server.shared);
    assert_eq!(server.shared.budget.used(), 0);
}

#[test]
fn output_that_is_not_read_is_counted_until_it_is() {
    let mut server = End::server();
    let large = fields_of(&[(":status", "200"), ("x-a", &"a".repeat(15_000))]);
    for n in 0..10 {
        let id = 2 * n + 1;
        server.feed(&[ask(id, true)]);
        let key = server.key(id);
        server.conn.send_headers(key, &large, false, true, &mut server.shared);
    }
    server.conn.count_kept(0, &mut server.shared);
    assert!(server.shared.budget.used() >= 150_000);
    let all = server.conn.output().len();
    server.conn.written(all - 60_000, &mut server.shared);
    server.conn.count_kept(0, &mut server.shared);
    assert!(
        server.shared.budget.used() >= 150_000,
        "as memory, as long as some of it is left"
    );
    server.conn.written(60_000, &mut server.shared);
    server.conn.count_kept(0, &mut server.shared);
    assert_eq!(server.shared.budget.used(), 0);
    server.conn.count_kept(140_000, &mut server.shared);
    assert_eq!(server.shared.budget.used(), 140_000, "what is sealed is unread, too");
}

#[test]
fn a_slow_reader_keeps_what_it_may_and_one_that_makes_us_speak_and_never_reads_does_not() {
    let mut server = End::server();
    let large = fields_of(&[(":status", "200"), ("x-a", &"a".repeat(15_000))]);
    server.feed(&[ask(1, true), window_update(0, 1 << 20), window_update(1, 1 << 20)]);
    let key = server.key(1);
    server.conn.send_headers(key, &large, false, false, &mut server.shared);
    server.conn.send_data(key, &[1; 1 << 20], true, &mut server.shared);
    server.conn.count_kept(0, &mut server.shared);
    assert!(server.conn.kept() > 100_000);
    assert_eq!(server.conn.kept_beyond_reason(), 0);
    for n in 1..20 {
        let id = 2 * n + 1;
        server.feed(&[ask(id, true)]);
        let key = server.key(id);
        server.conn.send_headers(key, &large, false, true, &mut server.shared);
    }
    assert!(server.conn.kept_beyond_reason() > 300_000);
}
