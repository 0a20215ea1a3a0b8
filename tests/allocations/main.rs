//! What a record of TLS costs in allocations, counted: a binary of its own, since it counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use portunus_proto::{SpiffeId, TrustDomain};
use portunus_sidecar::tls::{self, Alpn, Bundle, Credential, LEAST_BUFFER, Session};
use tokio::net::{TcpListener, TcpStream};

#[cfg(test)]
#[allow(dead_code, reason = "one certificate is enough here")]
#[path = "../../sidecar/src/tls/tests/authority.rs"]
mod authority;

use authority::{Authority, OURS, leaf_params};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

#[allow(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: each call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// How often this thread has asked for memory meanwhile.
fn asked(during: impl FnOnce()) -> usize {
    let before = ASKED.get();
    during();
    ASKED.get() - before
}

/// The two ends of one connection.
async fn both() -> [Session; 2] {
    let root = Authority::root("root");
    let shown = root.certify(&leaf_params(OURS));
    let domain = TrustDomain::parse("cluster.local").expect("a trust domain");
    let bundle = Bundle::new(domain, &[root.issuer.der().clone()]).expect("a bundle");
    let credential = Credential::new(shown.chain.clone(), shown.private(), bundle).expect("a credential");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let ours = TcpStream::connect(listener.local_addr().expect("an address")).await;
    let (theirs, _) = listener.accept().await.expect("it came");
    let (expected, soon) = (SpiffeId::parse(OURS).expect("an id"), Duration::from_secs(20));
    let (called, accepted) = tokio::join!(
        tls::connect(ours.expect("it listens"), &credential, &expected, Alpn::H2, soon),
        tls::accept(theirs, Vec::new(), &credential, soon)
    );
    [called.expect("a handshake").1, accepted.expect("a handshake").1]
}

#[tokio::test]
async fn a_record_costs_one_allocation_to_seal_and_one_to_open_and_nothing_else_is_allocated() {
    let [mut sealer, mut opener] = both().await;
    let mut buffer = vec![0; LEAST_BUFFER * 32];
    let plain = vec![7; 16_384 * 20];
    for round in 0..3 {
        for records in [1, 2, 20] {
            let (mut sealed, mut opened) = (Vec::with_capacity(buffer.len()), 0);
            let sealing = asked(|| sealer.seal(&plain[..16_384 * records]).expect("it is open"));
            sealed.extend_from_slice(sealer.output());
            sealer.sent(sealed.len());
            let opening = asked(|| {
                let read = opener.read(&mut buffer, |room| {
                    room[..sealed.len()].copy_from_slice(&sealed);
                    Ok(sealed.len())
                });
                opened = read.expect("it is whole").plain;
            });
            assert_eq!(opened, 16_384 * records);
            eprintln!("{records} records: {sealing} to seal, {opening} to open");
            // The first round finds no memory that others have left.
            if round > 0 {
                assert_eq!((sealing, opening), (records, records), "{records} records");
            }
        }
    }
}
