//! A ClientHello: what detection reads of one is what rustls reads, wherever rustls understands it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portunus_sidecar::detect::{ClientHello, MOST_FIRST_BYTES, Verdict, classify};
use rustls::server::Acceptor;

fuzz_target!(|input: &[u8]| {
    compare(input);
    // The same as the body of a message with lengths that are right, in records of some size: so that a change inside
    // does not spoil what is around it.
    let Some((&size, body)) = input.split_first() else {
        return;
    };
    let length = (body.len() as u32).to_be_bytes();
    let message = [&[1, length[1], length[2], length[3]], body].concat();
    let size = if size == 0 { 1 << 14 } else { usize::from(size) * 8 };
    let record = |fragment: &[u8]| {
        let length = (fragment.len() as u16).to_be_bytes();
        [&[22, 3, 1, length[0], length[1]], fragment].concat()
    };
    compare(&message.chunks(size).flat_map(record).collect::<Vec<_>>());
});

fn compare(bytes: &[u8]) {
    // Longer ones are not kept whole, and so not understood.
    let bytes = &bytes[..bytes.len().min(MOST_FIRST_BYTES - 1)];
    let ours = classify(bytes);
    let Some(theirs) = rustls_reads(bytes) else { return };
    // The version of a record is to be overlooked (RFC 8446, 5.1), and rustls does. Detection takes those that there
    // are, lest it mistake something else for TLS.
    if bytes[2] > 4 {
        return;
    }
    let Verdict::Tls(ours) = ours else {
        panic!("rustls reads {theirs:?}, and detection says {ours:?}");
    };
    assert_eq!(ours.alpn, theirs.alpn[..theirs.alpn.len().min(32)]);
    // What is no DNS name is none for rustls; addresses, for example.
    if let Some(theirs) = theirs.sni {
        let ours = ours.sni.unwrap_or_default();
        // No dot should stand behind it (RFC 6066, 3); rustls takes one away.
        assert_eq!(ours.strip_suffix('.').unwrap_or(&ours), theirs);
    }
}

/// What rustls' own parser makes of it; `None` if it wants more, or nothing of it.
fn rustls_reads(mut bytes: &[u8]) -> Option<ClientHello> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).ok()? == 0 {
            return None;
        }
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            return Some(ClientHello {
                sni: hello.server_name().map(str::to_owned),
                alpn: hello
                    .alpn()
                    .map(|names| names.map(<[u8]>::to_vec).collect())
                    .unwrap_or_default(),
            });
        }
    }
    None
}
