//! Members of the mesh that attack by HTTP/2, inside mTLS: each known attack is cut or held, its memory is bounded, and the
//! calls of an innocent member go on beside it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use portunus_sidecar::policy::Mode;

use crate::authority::Authority;
use crate::ends;
use crate::floods::{ALONE, Innocent, resident};
use crate::plain::client_config;
use crate::raw::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, Raw, SETTINGS, frame, literal, reset,
    update,
};
use crate::strange::FIELDS;
use crate::world::World;

/// How long each attack goes on, if nobody ends it.
const WHILE: Duration = Duration::from_secs(1);
/// Connections that attack at once.
const ATTACKERS: usize = 8;

/// What an attacker says for the n-th time.
type Says = fn(u32) -> Vec<u8>;

fn open(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &raw::block(&FIELDS))
}

fn many(n: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..100).flat_map(|at| each(1 + 2 * (100 * n + at))).collect()
}

/// The attack's name, its SETTINGS, what it says, and whether it has to be cut.
const ATTACKS: [(&str, &[(u16, u32)], Says, bool); 11] = [
    (
        "rapid reset",
        &[],
        |n| many(n, |stream| [open(stream, 0), reset(stream, 8)].concat()),
        true,
    ),
    (
        "made you reset",
        &[],
        |n| many(n, |stream| [open(stream, 0), update(stream, 0)].concat()),
        true,
    ),
    (
        "a header block without an end",
        &[],
        |n| match n {
            0 => frame(HEADERS, 0, 1, &raw::block(&FIELDS)),
            _ => frame(CONTINUATION, 0, 1, &[0; 16_000]),
        },
        true,
    ),
    (
        "header blocks of empty frames",
        &[],
        |n| match n {
            0 => frame(HEADERS, 0, 1, &[]),
            _ => frame(CONTINUATION, 0, 1, &[]).repeat(100),
        },
        true,
    ),
    ("pings", &[], |_| frame(PING, 0, 0, &[7; 8]).repeat(1_000), true),
    ("settings", &[], |_| frame(SETTINGS, 0, 0, &[]).repeat(1_000), true),
    (
        "windows that change for all streams",
        &[],
        |n| match n {
            0 => many(0, |stream| open(stream, 0)),
            _ => [raw::settings(&[(4, 1 << 20)]), raw::settings(&[(4, 100)])]
                .concat()
                .repeat(500),
        },
        true,
    ),
    (
        "priorities",
        &[],
        |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]).repeat(1_000),
        true,
    ),
    (
        "empty messages",
        &[],
        |n| match n {
            0 => open(1, 0),
            _ => frame(DATA, 0, 1, &[]).repeat(1_000),
        },
        true,
    ),
    (
        "small blocks that mean much",
        &[],
        |n| {
            many(n, |stream| {
                let mut block = raw::block(&FIELDS);
                literal(&mut block, 0x40, b"x-long", &[b'a'; 3_900]);
                block.extend([0xbe; 4_000]);
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
            })
        },
        false,
    ),
    (
        "answers that nobody reads",
        &[(4, 0)],
        |n| {
            many(n, |stream| {
                let block = [raw::block(&FIELDS), raw::block(&[("x-receive", "1000000")])].concat();
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
            })
        },
        false,
    ),
];

/// Attacks until it is cut, or the time is over. Whether it was cut, or is within `patience`.
async fn attack(door: SocketAddr, settings: &[(u16, u32)], says: Says, patience: Duration) -> bool {
    let mut raw = Raw::client(door, settings).await;
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < WHILE {
        if !raw.send_within(&says(n), WHILE).await {
            // Nothing more is read from it, which is as good as cut; it is seen below which of both it is.
            break;
        }
        n += 1;
    }
    raw.closes_within(patience).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_attacks_by_http2_inside_mtls_is_held_and_the_innocent_go_on() {
    let _alone = ALONE.lock().await;
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    for (what, settings, says, has_to_be_cut) in ATTACKS {
        let mut setup = ends::inbound(&root, Mode::Strict);
        setup.budget = 32 << 20;
        let world = World::with(setup).await;
        let innocent = Innocent::start(&world, &shown).await;
        let door = ends::veil(world.proxy, client_config(Some(&shown))).await;
        let before = resident();
        let patience = match has_to_be_cut {
            true => Duration::from_secs(15),
            false => Duration::ZERO,
        };
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| tokio::spawn(attack(door, settings, says, patience)))
            .collect();
        let mut cut = 0;
        for attacker in attackers {
            cut += usize::from(attacker.await.expect("no panic"));
        }
        let grown = resident().saturating_sub(before);
        let (calls, p99) = innocent.stop().await;
        eprintln!("{what}: {cut} of {ATTACKERS} cut, +{grown} MiB, {calls} calls, p99 {p99:?}");
        assert!(!has_to_be_cut || cut == ATTACKERS, "{what}: {cut} were cut");
        // The attackers themselves, their veil and the application stand in this process, too.
        assert!(grown < 150, "{what}: memory grew by {grown} MiB");
        // What they cost each other is not to be measured in a process that is all of them.
        assert!(
            calls > 0 && p99 < Duration::from_secs(5),
            "{what}: {calls} calls, p99 {p99:?}"
        );
    }
}
