//! What a peer may cost: the busiest honest peers stay far from the limits, and those that only make work reach them.

use std::sync::Arc;
use std::time::Duration;

use super::peer::*;
use crate::http2::abuse::Abuse;
use crate::http2::connection::Connection;
use crate::http2::frame::{END_HEADERS, END_STREAM, Reason, kind, setting};
use crate::http2::settings::Settings;

// ---- honest peers ----

/// Whether the engine has told the peer nothing that an honest peer should not hear.
fn is_content(end: &mut End) -> bool {
    let unruly = end.conn.take_unruly();
    end.fatal.is_none() && unruly.is_none() && !end.conn.is_draining()
}

#[test]
fn a_reader_that_gives_credit_for_each_ten_bytes_is_welcome() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    server.answer(1, false);
    for _ in 0..50_000 {
        server.send(1, &[7; 10], false);
        server.said();
        server.feed(&[window_update(1, 10), window_update(0, 10)]);
    }
    assert!(is_content(&mut server));
}

#[test]
fn a_reader_that_wakes_and_gives_credit_message_by_message_is_welcome() {
    let mut server = End::server();
    server.feed(&[ask(1, true)]);
    server.answer(1, false);
    // It slept while a megabyte of small messages came, and takes them one by one.
    for _ in 0..20 {
        server.send(1, &[7; 60_000], false);
        server.pump();
        server.said();
        for _ in 0..600 {
            server.feed(&[window_update(1, 100), window_update(0, 100)]);
        }
    }
    assert!(is_content(&mut server));
}

#[test]
fn small_messages_to_a_sleeping_reader_cost_no_sibling_anything() {
    let mut server = End::server();
    let window = 65_535;
    server.feed(&[ask(1, true)]);
    server.answer(1, false);
    for id in (3..103).step_by(2) {
        server.feed(&[ask(id, false)]);
    }
    let mut sent = 0;
    for _ in 0..10_000 {
        sent += server.send(1, &[7; 10], false);
        server.said();
    }
    assert!(sent <= window);
    for id in (3..103).step_by(2) {
        assert_eq!(server.feed(&[data(id, &[3; 10], true)]), [got(id, &[3; 10], true)]);
        server.answer(id, true);
    }
    assert!(is_content(&mut server));
    assert!(server.shared.budget.used() < 2 * 40_000);
}

#[test]
fn small_messages_that_a_peer_sends_are_welcome_in_any_number() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    for _ in 0..100_000 {
        server.feed(&[data(1, &[7; 10], false)]);
        server.grant(1, 10);
        server.said();
    }
    assert!(is_content(&mut server));
}

#[test]
fn an_empty_frame_on_each_of_many_requests_is_harmless() {
    let mut server = End::server();
    for id in (1..40_001).step_by(2) {
        server.feed(&[ask(id, false), data(id, b"", false), data(id, b"x", true)]);
        server.answer(id, true);
        server.said();
    }
    assert!(is_content(&mut server));
}

#[test]
fn pings_that_measure_the_path_of_bulk_are_welcome() {
    let mut server = End::server();
    server.feed(&[ask(1, false)]);
    for _ in 0..30_000 {
        server.feed(&[data(1, &[7; 1_000], false), ping([2; 8])]);
        server.grant(1, 1_000);
        server.said();
    }
    assert!(is_content(&mut server));
}

#[test]
fn a_load_generator_is_welcome() {
    let mut server = End::server();
    let mut id = 1;
    for _ in 0..2_000 {
        let batch: Vec<u32> = (0..16).map(|i| id + 2 * i).collect();
        for &id in &batch {
            server.feed(&[ask(id, false), data(id, &[1; 100], true)]);
        }
        for &id in &batch {
            server.answer(id, false);
            server.send(id, &[2; 100], false);
            server.send_trailers(id);
        }
        server.said();
        server.feed(&[window_update(0, 1_600)]);
        id += 32;
    }
    assert!(is_content(&mut server));
}

#[test]
fn cancels_of_calls_that_are_mostly_answered_are_welcome() {
    let mut server = End::server();
    for id in (1..40_001).step_by(4) {
        server.feed(&[ask(id, true), ask(id + 2, true), rst(id + 2, Reason::CANCEL)]);
        server.answer(id, true);
        server.said();
    }
    assert!(is_content(&mut server));
}

#[test]
fn the_own_application_cancels_as_it_likes() {
    let mut server = End::server_of_the_application();
    for id in (1..20_001).step_by(2) {
        server.feed(&[ask(id, true), rst(id, Reason::CANCEL)]);
        server.said();
    }
    assert!(is_content(&mut server));
}

#[test]
fn data_under_way_to_many_streams_that_we_reset_is_harmless() {
    let mut server = End::server();
    for id in (1..2_001).step_by(2) {
        server.feed(&[ask(id, false)]);
    }
    for id in (1..2_001).step_by(2) {
        server.reset(id, Reason::CANCEL);
    }
    for _ in 0..8 {
        for id in (1..2_001).step_by(2) {
            server.feed(&[data(id, &[7; 100], false)]);
        }
        server.said();
    }
    assert!(is_content(&mut server));
}

// ---- others ----

/// Feeds what `frames` makes of a round until the engine has had enough: it is asked to leave first, then cut.
fn is_cut(mut end: End, what: Abuse, mut frames: impl FnMut(u32) -> Vec<Frame>) {
    let mut warned = None;
    for round in 0..30_000 {
        end.feed(&frames(round));
        for frame in end.said() {
            if frame.kind == kind::GOAWAY && warned.is_none() {
                assert_eq!(goaway_of(&frame).1, Reason::NO_ERROR, "the first word is polite");
                assert_eq!(end.conn.take_unruly(), Some(what));
                warned = Some(round);
            }
        }
        if let Some(fatal) = end.fatal {
            assert_eq!(fatal.reason, Reason::ENHANCE_YOUR_CALM, "{fatal}");
            assert!(warned.is_some_and(|warned| warned < round));
            return;
        }
    }
    panic!("it was let go on; warned: {warned:?}");
}

#[test]
fn control_frames_that_carry_nothing_are_cut() {
    for frame in [
        ping([0; 8]),
        pong([0; 8]),
        settings(&[]),
        settings_ack(),
        priority(1, 0),
        window_update(0, 1),
        window_update(1, 1),
        raw(0x42, 0, 0, b"what"),
        data(1, b"", false),
        padded_data(1, b"", 0, false),
        rst(3, Reason::CANCEL),
        goaway(0, Reason::NO_ERROR),
    ] {
        let mut server = End::server();
        server.feed(&[ask(1, false), ask(5, true)]);
        server.answer(5, true);
        is_cut(server, Abuse::ControlFrames, |_| vec![frame.clone()]);
    }
}

#[test]
fn frames_for_streams_that_are_gone_are_cut_however_long_ago_that_was() {
    for frame in [data(3, b"", false), trailers(3), ask(3, false)] {
        let mut server = End::server();
        for id in (1..101).step_by(2) {
            server.feed(&[ask(id, false)]);
            server.reset(id, Reason::CANCEL);
        }
        is_cut(server, Abuse::ControlFrames, |_| vec![frame.clone()]);
    }
}

#[test]
fn requests_beyond_our_goaway_are_cut() {
    let mut server = End::server();
    server.conn.begin_goaway();
    server.conn.finish_goaway();
    server.said();
    for round in 0..30_000 {
        server.feed(&[ask(1 + 2 * round, false)]);
        server.said();
        if let Some(fatal) = server.fatal {
            assert_eq!(fatal.reason, Reason::ENHANCE_YOUR_CALM);
            return;
        }
    }
    panic!("it was let go on");
}

#[test]
fn windows_moved_for_many_streams_cost_what_they_make_us_do() {
    let mut server = End::server();
    for id in (1..2_001).step_by(2) {
        server.feed(&[ask(id, false)]);
    }
    for round in 0..2_000 {
        server.feed(&[settings(&[(setting::INITIAL_WINDOW_SIZE, round % 2)])]);
        server.said();
        if server.fatal.is_some() {
            return;
        }
    }
    panic!("two million windows were moved for nothing");
}

#[test]
fn rapid_resets_are_cut_and_nobody_is_forgotten() {
    is_cut(End::server(), Abuse::Resets, |round| {
        vec![ask(1 + 2 * round, true), rst(1 + 2 * round, Reason::CANCEL)]
    });
    // The stream whose reset was one too many is still there to be ended by its owner.
    let mut server = End::server();
    let mut id = 1;
    while server.fatal.is_none() {
        let seen = server.feed(&[ask(id, true), rst(id, Reason::CANCEL)]);
        let gone = matches!(seen[1], Seen::Reset { .. });
        assert_eq!(gone, !server.conn.users().contains(&id.into()), "stream {id}");
        id += 2;
    }
}

#[test]
fn streams_that_a_peer_makes_us_reset_are_cut() {
    // A malformed request.
    is_cut(End::server(), Abuse::Resets, |round| {
        vec![headers(1 + 2 * round, &[(":method", "GET")], true)]
    });
    // An update of nothing (MadeYouReset).
    is_cut(End::server(), Abuse::Resets, |round| {
        vec![ask(1 + 2 * round, true), window_update(1 + 2 * round, 0)]
    });
    // DATA after the end.
    is_cut(End::server(), Abuse::Resets, |round| {
        vec![ask(1 + 2 * round, true), data(1 + 2 * round, b"", true)]
    });
    // DATA that content-length does not match.
    is_cut(End::server(), Abuse::Resets, |round| {
        let list = [&request()[..], &[("content-length", "1")]].concat();
        vec![headers(1 + 2 * round, &list, false), data(1 + 2 * round, b"xx", true)]
    });
    // A stream that depends on itself.
    is_cut(End::server(), Abuse::Resets, |round| {
        let id = 1 + 2 * round;
        vec![ask(id, true), priority(id, id)]
    });
}

#[test]
fn requests_over_a_limit_that_was_acknowledged_are_cut() {
    let server = || {
        let mut server = End::server_with(Settings {
            max_concurrent_streams: 1,
            ..Settings::default()
        });
        server.feed(&[ask(1, false)]);
        server
    };
    is_cut(server(), Abuse::Resets, |round| vec![ask(3 + 2 * round, true)]);
    // A few, by a client that counts a little late, are forgiven.
    let mut server = server();
    for round in 0..100 {
        server.feed(&[ask(3 + 2 * round, true)]);
    }
    assert!(is_content(&mut server));
}

#[test]
fn blocks_that_unfold_into_far_more_than_was_sent_are_cut() {
    let large = "x".repeat(3_900);
    // An entry that fills the table, and then 16 references to it in 16 bytes.
    let entry = [&[0x40][..], &block(&[("x-large", &large)])[1..]].concat();
    let first = raw(kind::HEADERS, END_HEADERS, 1, &[block(&request()), entry].concat());
    let mut server = End::server();
    server.feed(&[first]);
    server.reset(1, Reason::CANCEL);
    server.said();
    is_cut(server, Abuse::ControlFrames, |round| {
        let bomb = [block(&request()), vec![0x80 | 62; 16]].concat();
        vec![
            raw(kind::HEADERS, END_HEADERS, 3 + 2 * round, &bomb),
            rst(3 + 2 * round, Reason::CANCEL),
        ]
    });
}

#[test]
fn a_table_full_of_metadata_that_each_call_refers_to_is_welcome() {
    let large = "x".repeat(3_900);
    let entry = [&[0x40][..], &block(&[("x-large", &large)])[1..]].concat();
    let mut server = End::server();
    server.feed(&[raw(kind::HEADERS, END_HEADERS, 1, &[block(&request()), entry].concat())]);
    server.answer(1, true);
    for id in (3..40_001).step_by(2) {
        let fields = [block(&request()), vec![0x80 | 62]].concat();
        server.feed(&[raw(kind::HEADERS, END_HEADERS | END_STREAM, id, &fields)]);
        server.answer(id, true);
        server.said();
    }
    assert!(is_content(&mut server));
}

/// What became of blocks that each refer so often to one field, which fills the table, and which our own has no room for.
#[derive(Debug, Default)]
struct Unfolded {
    /// Blocks that were passed on.
    blocks: usize,
    /// What their sender said in all, what the header lists count, and what a server was told.
    came: usize,
    meant: usize,
    left: usize,
    is_cut: bool,
}

fn unfold(references: usize, blocks: u32) -> Unfolded {
    let mut server = End::server();
    let mut client = Connection::client(Arc::default(), false, server.now, &mut server.shared);
    let entry = [&[0x40][..], &block(&[("x-large", &"x".repeat(3_900))])[1..]].concat();
    let mut unfolded = Unfolded::default();
    for n in 0..blocks {
        let first = if n == 0 { &entry[..] } else { &[] };
        let list = [&block(&request()), first, &vec![0x80 | 62; references]].concat();
        let frames = [raw(kind::HEADERS, END_HEADERS | END_STREAM, 1 + 2 * n, &list)];
        unfolded.came += bytes_of(&frames).len();
        server.feed(&frames);
        server.said();
        if server.fatal.is_some() {
            unfolded.is_cut = true;
            break;
        }
        unfolded.blocks += 1;
        unfolded.meant += server.shared.fields().list_size();
        let fields = server.shared.take_fields(Box::default());
        let up = client.open(0, false).expect("there is room");
        let before = client.output().len();
        client.send_headers(up, &fields, false, true, &mut server.shared);
        unfolded.left += client.output().len() - before;
        server.shared.take_fields(fields);
        client.reset(up, Reason::CANCEL, &mut server.shared);
        client.written(client.output().len(), &mut server.shared);
        server.answer(1 + 2 * n, true);
        server.said();
    }
    unfolded
}

#[test]
fn what_a_server_is_told_for_a_small_block_is_no_more_than_it_means_and_what_is_far_more_is_paid_for() {
    // 256 bytes for each piece of the purse, and eight pieces that a call earns.
    const PURSE: usize = 10_000 * 256;
    const EARNED: usize = 8 * 256;
    // Three times what a table holds, and four times what was said.
    const FREE: usize = 3 * 4_096;
    for references in 0..17 {
        let unfolded = unfold(references, 5_000);
        let Unfolded {
            blocks,
            came,
            meant,
            left,
            is_cut,
        } = unfolded;
        assert!(left <= meant, "{references} references: {unfolded:?}");
        let most = PURSE + blocks * (FREE + EARNED + 256) + 4 * came;
        assert!(left <= most, "{references} references: {unfolded:?}");
        assert_eq!(is_cut, references > 3, "{references} references: {unfolded:?}");
    }
}

#[test]
fn informational_responses_without_end_are_cut() {
    let mut client = End::client();
    client.ask(true);
    is_cut(client, Abuse::ControlFrames, |_| {
        vec![headers(1, &[(":status", "103")], false)]
    });
}

#[test]
fn a_block_of_empty_continuations_is_cut() {
    let mut server = End::server();
    server.feed(&[raw(kind::HEADERS, 0, 1, &[])]);
    for _ in 0..64 {
        assert_eq!(server.feed(&[raw(kind::CONTINUATION, 0, 1, &[])]), []);
    }
    assert_eq!(
        server.feed(&[raw(kind::CONTINUATION, END_HEADERS, 1, &[])]),
        [Seen::Fatal(Reason::ENHANCE_YOUR_CALM)]
    );
}

#[test]
fn time_forgives() {
    let mut server = End::server();
    for _ in 0..100_000 {
        server.feed(&[ping([0; 8])]);
        server.said();
        server.pass(Duration::from_millis(10));
    }
    assert!(is_content(&mut server));
}

#[test]
fn what_a_connection_remembers_of_its_past_is_bounded() {
    let mut server = End::server();
    for id in (1..100_001).step_by(2) {
        server.feed(&[ask(id, true)]);
        server.answer(id, true);
        server.said();
    }
    assert_eq!(server.conn.open_streams(), 0);
    assert!(server.conn.ids.is_empty() && server.conn.ids.capacity() < 64);
    assert!(server.conn.streams.capacity() <= 2);
}
