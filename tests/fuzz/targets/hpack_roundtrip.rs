//! Lists of fields through an encoder and a decoder, with tables that change size on the way: they come out as they went in.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::http2::hpack::{Decoder, Encoder, Fields, Interner, Limits};

type List<'a> = Vec<(&'a [u8], &'a [u8], bool)>;

fuzz_target!(|input: (u16, Vec<(Option<u16>, List<'_>)>)| {
    let (most, lists) = input;
    let limits = Limits {
        list_bytes: u32::MAX,
        fields: u32::MAX,
    };
    let (mut ours, mut theirs) = (Interner::new(), Interner::new());
    let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(most.into()));
    encoder.set_max_table_bytes(most.into(), &mut ours);
    // What comes is forwarded once more: ids of one table meet those of another.
    let mut second = Encoder::new();
    let mut last = Decoder::new(4_096);
    for (table, list) in lists {
        if let Some(table) = table {
            encoder.set_max_table_bytes(table.min(most).into(), &mut ours);
        }
        let mut sent = Fields::new();
        for (name, value, never) in &list {
            sent.push(name, value, *never);
        }
        let mut block = Vec::new();
        encoder.encode(&sent, &mut ours, &mut block);
        let mut came = Fields::new();
        decoder
            .decode(&block, &limits, &mut theirs, &mut came)
            .expect("our own blocks can be decoded");
        assert_equal(&sent, &ours, &came, &theirs);
        let mut block = Vec::new();
        second.encode(&came, &mut theirs, &mut block);
        let mut again = Fields::new();
        last.decode(&block, &limits, &mut theirs, &mut again)
            .expect("our own blocks can be decoded");
        assert_equal(&sent, &ours, &again, &theirs);
        sent.clear(&mut ours);
        came.clear(&mut theirs);
        again.clear(&mut theirs);
    }
    encoder.release(&mut ours);
    decoder.release(&mut theirs);
    second.release(&mut theirs);
    last.release(&mut theirs);
    assert_eq!((ours.live(), theirs.live()), (0, 0));
});

fn assert_equal(a: &Fields, of_a: &Interner, b: &Fields, of_b: &Interner) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter(of_a).zip(b.iter(of_b)) {
        assert_eq!((a.name_text, a.value), (b.name_text, b.value));
        assert_eq!(a.name, b.name);
        assert!(!a.never_indexed || b.never_indexed, "a secret stays one");
        assert_eq!(a.malformed.is_some(), b.malformed.is_some());
    }
}
