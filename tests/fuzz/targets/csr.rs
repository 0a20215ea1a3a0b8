//! Certificate requests: no bytes break control's reader, be they signed by the key within or not; and the key that it
//! takes stands in the request.

#![no_main]

use ends::sign::{sequence, signed};
use libfuzzer_sys::fuzz_target;
use portunus_injector::control::identity::csr::{Error, MOST_BYTES, public_key};
use rcgen::PublicKeyData;

fuzz_target!(init: the_good_seed_is_taken(), |input: &[u8]| {
    // As it is; as what its key signed, whatever else stands in it; and the same with a length around it that is right.
    for der in [input.to_vec(), signed(input), signed(&sequence(input))] {
        judge(&der);
    }
});

/// Lest nothing but refusals be tried.
fn the_good_seed_is_taken() {
    let request = signed(include_bytes!("../corpus/csr/ed25519"));
    public_key(&request).expect("a request that will do");
}

fn judge(der: &[u8]) {
    let read = public_key(der);
    if der.len() > MOST_BYTES {
        assert_eq!(read.err(), Some(Error::TooLong(der.len())));
        return;
    }
    match read {
        Ok(key) => {
            let key = key.subject_public_key_info();
            assert!(
                der.windows(key.len()).any(|part| part == key),
                "a key that is not there"
            );
            let longer = [der, &[0]].concat();
            assert_eq!(public_key(&longer).err(), Some(Error::Trailing));
        }
        Err(why) => assert!(!why.to_string().is_empty()),
    }
}
