//! Manifests: any text is refused with a sentence that names a place, or is a state, the same each time.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use portunus_injector::cluster::file::{Reading, read};

fuzz_target!(|text: &[u8]| {
    let text = repeated(text);
    let begin = Instant::now();
    let first = reading(&[("a.yaml", &text)]);
    let took = begin.elapsed();
    // A file of 4 MiB is taken, and this is 64 KiB at most.
    assert!(took < Duration::from_secs(5), "{} bytes took {took:?}", text.len());
    for finding in &first.findings {
        assert!(!finding.to_string().contains('\n'), "{finding}");
    }
    if text.len() > 4 << 10 {
        return;
    }
    let again = reading(&[("a.yaml", &text)]);
    assert!(first.snapshot == again.snapshot && first.findings == again.findings);
    // Neither is a state another if its files stand in another order.
    let before = reading(&[("a.yaml", &text), ("b.yaml", OTHER)]);
    let behind = reading(&[("c.yaml", &text), ("b.yaml", OTHER)]);
    assert!(before.snapshot == behind.snapshot);
    assert!(first.snapshot.is_some() || before.snapshot.is_none());
});

/// A text that begins with `#` and a digit is read that many times as long: 4 to the power of the digit, 64 KiB at most.
fn repeated(text: &[u8]) -> Vec<u8> {
    match text {
        [b'#', digit @ b'0'..=b'9', rest @ ..] => {
            let times = 4usize.pow((digit - b'0').into());
            rest.repeat(times.min((64 << 10) / rest.len().max(1)).max(1))
        }
        _ => text.to_vec(),
    }
}

/// What a directory with these files says.
fn reading(files: &[(&str, &[u8])]) -> Reading {
    for (name, text) in files {
        fs::write(DIRECTORY.join(name), text).expect("it can be written");
    }
    let reading = read(&DIRECTORY);
    for (name, _) in files {
        fs::remove_file(DIRECTORY.join(name)).expect("it was there");
    }
    reading
}

/// In memory where that is to be had, and the same one for all inputs.
static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let directory = parent.join(format!("portunus-fuzz-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("it can be made");
    directory
});

const OTHER: &[u8] = b"\
apiVersion: portunus.dev/v1alpha1
kind: Workload
metadata: {name: other, namespace: other}
spec: {serviceAccount: other, addresses: [10.9.9.9]}
";
