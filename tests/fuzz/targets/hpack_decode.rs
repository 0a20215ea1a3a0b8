//! Header blocks of a peer, one after another: no panic, no list over its limits, and no reference left behind.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::http2::hpack::{Decoder, Fields, Interner, Limits};

fuzz_target!(|input: &[u8]| {
    let Some((&table, mut rest)) = input.split_first() else {
        return;
    };
    let limits = Limits {
        list_bytes: 2_000,
        fields: 20,
    };
    let mut interner = Interner::new();
    let mut decoder = Decoder::new(u32::from(table) * 32);
    let mut fields = Fields::new();
    // Each block stands behind its length.
    while let Some((&len, blocks)) = rest.split_first() {
        let (block, next) = blocks.split_at(blocks.len().min(len.into()));
        rest = next;
        fields.clear(&mut interner);
        if decoder.decode(block, &limits, &mut interner, &mut fields).is_err() {
            break;
        }
        assert!(fields.len() <= 20 && fields.kept_size(&interner) <= 2_000);
        for field in fields.iter(&interner) {
            assert!(field.name_text.len() + field.value.len() <= 2_000);
        }
    }
    fields.clear(&mut interner);
    decoder.release(&mut interner);
    assert_eq!(interner.live(), 0);
});
