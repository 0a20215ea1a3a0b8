//! First bytes of a connection: a verdict is never changed by more bytes, and is there when enough have come.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::detect::{MOST_FIRST_BYTES, ServerOpening, Verdict, classify, server_opening};

fuzz_target!(|bytes: &[u8]| {
    let whole = classify(bytes);
    let opening = server_opening(bytes);
    for cut in (0..bytes.len()).take(300) {
        let early = classify(&bytes[..cut]);
        assert!(
            early == Verdict::NeedMore || early == whole,
            "{early:?}, and then {whole:?}"
        );
        let early = server_opening(&bytes[..cut]);
        assert!(early == ServerOpening::NeedMore || early == opening);
    }
    if bytes.len() >= MOST_FIRST_BYTES {
        assert_ne!(whole, Verdict::NeedMore);
    }
    let mut long = bytes.to_vec();
    long.resize(MOST_FIRST_BYTES, 0);
    assert_ne!(classify(&long), Verdict::NeedMore);
});
