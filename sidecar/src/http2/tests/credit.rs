//! Credit as it is forwarded, between senders and readers of every habit.

use std::time::Duration;

use super::relay::{Player, Side, Stage};
use crate::http2::connection::Shared;
use crate::http2::frame::Reason;
use crate::http2::settings::Settings;

const MAX: u32 = (1 << 31) - 1;

/// When a reader grants more on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grants {
    /// For whatever came.
    AtOnce,
    /// When half is used.
    AtHalf,
    /// When nothing is left.
    WhenAllIsUsed,
}

impl Grants {
    /// What the reader says in a turn, that lets each stream have `window` at a time.
    fn say(self, reader: &mut Player, window: i64) {
        let enough = match self {
            Grants::AtOnce => window - 1,
            Grants::AtHalf => window / 2,
            Grants::WhenAllIsUsed => 0,
        };
        for id in reader.open() {
            let left = reader.granted(id);
            if left <= enough {
                reader.grant(id, (window - left) as u32);
            }
        }
        let connection = 65_535;
        if reader.they_may <= enough.min(connection / 2) {
            reader.grant_all((connection - reader.they_may) as u32);
        }
    }
}

/// Sends whole messages of `message` bytes, as long as there is room for all of one; of 0, whatever there is room for.
fn send_messages(stage: &mut Stage, id: u32, message: usize) {
    while stage.asking.room(id) >= message.max(1) as i64 {
        let mut left = if message == 0 { 16_384 } else { message };
        while left > 0 {
            let n = left.min(16_384);
            stage.asking.send(id, n, None, false);
            left -= n;
        }
    }
}

/// One turn of everybody.
fn turn(stage: &mut Stage, round_trip: Duration) {
    stage.deliver(Side::Down, usize::MAX);
    stage.write(Side::Up, usize::MAX);
    stage.deliver(Side::Up, usize::MAX);
    stage.pass(round_trip);
    stage.write(Side::Down, usize::MAX);
}

#[test]
fn no_sender_waits_for_ever_whatever_its_reader_announces_and_whenever_that_grants() {
    for round_trip in [Duration::ZERO, Duration::from_millis(20)] {
        for window in [0, 1, 100, 65_535, 200_000, MAX] {
            for grants in [Grants::AtOnce, Grants::AtHalf, Grants::WhenAllIsUsed] {
                for message in [0, 16_384, 32_000] {
                    gets_through(round_trip, window, grants, message);
                }
            }
        }
    }
}

/// A stream that is alone, then one of two, then alone again; meanwhile its reader changes the window it begins with.
fn gets_through(round_trip: Duration, window: u32, grants: Grants, message: usize) {
    let what = format!("{round_trip:?}, window {window}, {grants:?}, messages of {message}");
    let mut stage = Stage::new(Settings::default(), 65_535, window, 1 << 30);
    let at_a_time = i64::from(window).clamp(1, 1 << 20);
    let goal = (3 * at_a_time).clamp(200, 200_000) as u64;
    // It knows what it has announced before it grants more.
    stage.audit();
    stage.ask(false);
    let mut came = 0;
    for phase in 0..6 {
        match phase {
            1 => stage.ask(false),
            2 => stage.answering.announce(0),
            3 => stage.asking.reset(3, Reason::CANCEL),
            4 => stage.answering.announce(65_535),
            5 => stage.answering.announce(1),
            _ => {}
        }
        let mut idle = 0;
        while stage.answering.streams.get(&1).map_or(0, |seen| seen.got) < came + goal {
            let before = stage.answering.streams.get(&1).map_or(0, |seen| seen.got);
            for id in stage.asking.open() {
                send_messages(&mut stage, id, message);
            }
            turn(&mut stage, round_trip);
            grants.say(&mut stage.answering, at_a_time);
            let now = stage.answering.streams.get(&1).map_or(0, |seen| seen.got);
            idle = if now > before { 0 } else { idle + 1 };
            assert!(idle < 50, "{what}, phase {phase}: nothing comes after {now} bytes");
        }
        came = stage.answering.streams[&1].got;
    }
    stage.audit();
}

/// What is held of a stream that is alone, once its reader has stopped, and what it may send all the same.
fn stalled(stage: &mut Stage, reads: bool) -> i64 {
    stage.audit();
    stage.ask(false);
    for _ in 0..40 {
        send_messages(stage, 1, 0);
        stage.deliver(Side::Down, usize::MAX);
        stage.deliver(Side::Up, usize::MAX);
        stage.write(Side::Down, usize::MAX);
        if reads {
            stage.write(Side::Up, usize::MAX);
        }
    }
    let relay = &stage.relay;
    let (sender, reader) = (relay.down.by_id(1), relay.up.by_id(1));
    let window = sender.and_then(|key| relay.down.recv_window(key)).expect("it is open");
    window + reader.map_or(0, |key| relay.up.held(key)) as i64
}

#[test]
fn a_reader_that_stops_costs_twice_what_it_began_with_or_a_first_window_more_at_most() {
    for (window, most) in [
        (0, 65_535),
        (1, 65_536),
        (65_535, 131_070),
        (200_000, 400_000),
        (1 << 20, 2 * (256 << 10)),
        (MAX, 2 * (256 << 10)),
    ] {
        for reads in [true, false] {
            let mut stage = Stage::new(Settings::default(), 65_535, window, 1 << 30);
            // Else the connection's window would be what stops it.
            stage.answering.grant_all(1 << 23);
            let held = stalled(&mut stage, reads);
            assert!(held <= most && held > most / 2, "window {window}: {held}");
        }
    }
}

#[test]
fn what_many_connections_hold_of_one_stalled_stream_each_is_in_the_budget() {
    let limit = 16 << 20;
    let mut shared = Shared::new(limit);
    let mut stages = Vec::new();
    let mut held = 0;
    for i in 0..100 {
        let mut stage = Stage::new(Settings::default(), 65_535, [65_535, 200_000, MAX][i % 3], 0);
        std::mem::swap(&mut stage.relay.shared, &mut shared);
        stage.answering.grant_all(1 << 23);
        stalled(&mut stage, i % 2 == 0);
        held += stage.relay.up.by_id(1).map_or(0, |key| stage.relay.up.held(key)) as u64;
        std::mem::swap(&mut stage.relay.shared, &mut shared);
        stages.push(stage);
        assert!(
            shared.budget.used() >= held,
            "{held} are held, {} counted",
            shared.budget.used()
        );
    }
    assert!(shared.budget.is_overdrawn(), "somebody would have to go");
    for mut stage in stages {
        stage.relay.down.release(&mut shared);
        stage.relay.up.release(&mut shared);
    }
    assert_eq!(shared.budget.used(), 0);
}

#[test]
fn a_stream_that_is_alone_costs_an_update_for_each_half_of_what_it_may_send() {
    let window = 256 << 10i64;
    for grants in [Grants::AtOnce, Grants::AtHalf, Grants::WhenAllIsUsed] {
        let mut stage = Stage::new(Settings::default(), 65_535, window as u32, 1 << 30);
        stage.answering.grant_all(1 << 26);
        stage.ask(false);
        let (mut updates, mut bytes) = (0, 0);
        let mut before = stage.asking.room(1);
        for round in 0..1_000 {
            // A frame at a time.
            stage.asking.send(1, 16_384, None, false);
            turn(&mut stage, Duration::ZERO);
            grants.say(&mut stage.answering, window);
            let more = stage.asking.room(1) - before + 16_384;
            before = stage.asking.room(1);
            if round >= 100 && more > 0 {
                (updates, bytes) = (updates + 1, bytes + more);
            }
        }
        let each = bytes / updates;
        assert!(
            each == window && updates > 50,
            "{updates} updates of {each} bytes, {grants:?}"
        );
    }
}
