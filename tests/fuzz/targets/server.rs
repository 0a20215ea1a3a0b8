//! Frames to an engine that answers: first quietly, in two cuts that must say the same; then with an owner that acts.

#![no_main]

use std::time::Instant;

use ends::{Owner, end, engine, feed};
use libfuzzer_sys::fuzz_target;
use portunus_sidecar::http2::PREFACE;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let cut = cut.into();
    let now = Instant::now();
    let start = || {
        let (mut conn, mut shared) = engine(true, now);
        assert!(feed(&mut conn, &mut shared, PREFACE, 24, Owner::Quiet, now).1);
        (conn, shared)
    };
    let (mut whole, mut shared) = start();
    let (mut pieces, mut other) = start();
    let seen = feed(&mut whole, &mut shared, bytes, usize::MAX, Owner::Quiet, now);
    assert_eq!(seen, feed(&mut pieces, &mut other, bytes, cut, Owner::Quiet, now));
    assert_eq!(whole.output(), pieces.output());
    end(whole, &mut shared);
    end(pieces, &mut other);

    let (mut conn, mut shared) = start();
    feed(&mut conn, &mut shared, bytes, cut, Owner::Busy, now);
    end(conn, &mut shared);
});
