//! Properties of flow control, over random interleavings of everything that two peers may do.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::relay::{Side, Stage};
use crate::http2::frame::Reason;
use crate::http2::settings::Settings;

/// A step of a play.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        end: bool,
    },
    Answer {
        which: u8,
        informational: bool,
    },
    Send {
        side: Side,
        which: u8,
        n: usize,
        padding: Option<u8>,
        end: bool,
    },
    Trail {
        side: Side,
        which: u8,
    },
    Reset {
        side: Side,
        which: u8,
    },
    Grant {
        side: Side,
        which: u8,
        n: u32,
    },
    GrantAll {
        side: Side,
        n: u32,
    },
    Announce {
        side: Side,
        window: u32,
    },
    Deliver {
        side: Side,
        n: usize,
    },
    Write {
        side: Side,
        n: usize,
    },
    Ping {
        side: Side,
    },
    Pass {
        ms: u64,
    },
    Audit,
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Down), Just(Side::Up)]
}

fn window() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), Just(1), Just(7), Just(100), Just(65_535), 0..200_000u32]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![0..20usize, 0..2_000usize, 0..20_000usize]
}

fn step() -> impl Strategy<Value = Step> {
    let all = || prop_oneof![Just(usize::MAX), 1..100usize, 1..20_000usize];
    prop_oneof![
        3 => any::<bool>().prop_map(|end| Step::Ask { end }),
        3 => (any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(which, informational)| Step::Answer { which, informational }),
        12 => (side(), any::<u8>(), size(), prop::option::weighted(0.2, any::<u8>()), prop::bool::weighted(0.1))
            .prop_map(|(side, which, n, padding, end)| Step::Send { side, which, n, padding, end }),
        1 => (side(), any::<u8>()).prop_map(|(side, which)| Step::Trail { side, which }),
        1 => (side(), any::<u8>()).prop_map(|(side, which)| Step::Reset { side, which }),
        5 => (side(), any::<u8>(), prop_oneof![1..10u32, 1..50_000u32])
            .prop_map(|(side, which, n)| Step::Grant { side, which, n }),
        3 => (side(), 1..100_000u32).prop_map(|(side, n)| Step::GrantAll { side, n }),
        1 => (side(), window()).prop_map(|(side, window)| Step::Announce { side, window }),
        12 => (side(), all()).prop_map(|(side, n)| Step::Deliver { side, n }),
        12 => (side(), all()).prop_map(|(side, n)| Step::Write { side, n }),
        1 => side().prop_map(|side| Step::Ping { side }),
        1 => (0..50u64).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Audit),
    ]
}

fn ours() -> impl Strategy<Value = Settings> {
    (
        prop_oneof![Just(1u32), Just(7), Just(100), Just(65_535)],
        prop_oneof![Just(1u32), Just(7), Just(100), Just(1_000), Just(256 << 10)],
        prop_oneof![1 => Just(65_535u32), 1 => Just(65_536), 1 => Just(100_000), 3 => Just(1 << 20)],
        prop_oneof![Just(1u32), Just(3), Just(1_000)],
    )
        .prop_map(
            |(first_stream_window, stream_window, connection_window, max_concurrent_streams)| Settings {
                first_stream_window,
                stream_window,
                connection_window,
                stream_window_ceiling: stream_window.max(4 << 20),
                max_concurrent_streams,
                ..Settings::default()
            },
        )
}

fn play(stage: &mut Stage, step: &Step) {
    let pick = |stage: &mut Stage, side: Side, which: u8| {
        let open = stage.player(side).open();
        (!open.is_empty()).then(|| open[which as usize % open.len()])
    };
    match *step {
        Step::Ask { end } => stage.ask(end),
        Step::Answer { which, informational } => {
            if let Some(id) = pick(stage, Side::Up, which) {
                stage.answering.answer(id, informational);
            }
        }
        Step::Send {
            side,
            which,
            n,
            padding,
            end,
        } => {
            if let Some(id) = pick(stage, side, which) {
                stage.player(side).send(id, n, padding, end);
            }
        }
        Step::Trail { side, which } => {
            if let Some(id) = pick(stage, side, which) {
                stage.player(side).trail(id);
            }
        }
        Step::Reset { side, which } => {
            if let Some(id) = pick(stage, side, which) {
                stage.player(side).reset(id, Reason::CANCEL);
            }
        }
        Step::Grant { side, which, n } => {
            if let Some(id) = pick(stage, side, which) {
                stage.player(side).grant(id, n);
            }
        }
        Step::GrantAll { side, n } => stage.player(side).grant_all(n),
        Step::Announce { side, window } => stage.player(side).announce(window),
        Step::Deliver { side, n } => stage.deliver(side, n),
        Step::Write { side, n } => stage.write(side, n),
        Step::Ping { side } => stage.player(side).ping(),
        Step::Pass { ms } => stage.pass(Duration::from_millis(ms)),
        Step::Audit => stage.audit(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Credits given are bytes taken; every byte arrives in its own stream; nothing waits for ever; nothing stays behind.
    #[test]
    fn whatever_two_peers_do_no_credit_and_no_byte_is_lost(
        settings in ours(),
        windows in (window(), window()),
        budget in prop_oneof![3 => Just(1u64 << 30), 1 => Just(0u64), 1 => Just(300_000)],
        steps in vec(step(), 0..250),
    ) {
        let mut stage = Stage::new(settings, windows.0, windows.1, budget);
        for step in &steps {
            play(&mut stage, step);
        }
        stage.audit();
        stage.finish();
        stage.audit();
        stage.relay.end();
    }

    /// The same play gives the same bytes.
    #[test]
    fn equal_plays_give_equal_bytes(settings in ours(), steps in vec(step(), 0..120)) {
        let run = || {
            let mut stage = Stage::new(settings.clone(), 100, 7, 1 << 30);
            let mut outputs = Vec::new();
            for step in &steps {
                play(&mut stage, step);
                outputs.push((stage.relay.down.output().to_vec(), stage.relay.up.output().to_vec()));
            }
            outputs
        };
        prop_assert_eq!(run(), run());
    }
}
