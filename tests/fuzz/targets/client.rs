//! Frames to an engine that asks: first quietly, in two cuts that must say the same; then with an owner that acts.

#![no_main]

use std::time::Instant;

use ends::{Owner, ask, end, engine, feed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&cut, bytes)) = input.split_first() else {
        return;
    };
    let cut = cut.into();
    let now = Instant::now();
    let start = || {
        let (mut conn, mut shared) = engine(false, now);
        for user in 0..4 {
            let key = ask(&mut conn, &mut shared, user, user % 2 == 0).expect("there is capacity");
            conn.send_data(key, &[user as u8; 400], false, &mut shared);
        }
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
    ask(&mut conn, &mut shared, 9, false);
    end(conn, &mut shared);
});
