//! Who may import whom: downwards only (`docs/architecture.md`), read from the paths of the source itself.

mod read;

use std::fs;
use std::path::Path;

/// The house from the ground up. A module may name those of its own level and of the levels below.
const LEVELS: [&[&str]; 5] = [
    &["telemetry", "grpc", "slots", "waiting", "words"],
    &[
        "accept", "balance", "connect", "detect", "edge", "exchange", "health", "http2", "identity", "policy",
        "redirect", "route", "tls", "tunnel",
    ],
    &["control"],
    &[
        "call",
        "failure",
        "inbound",
        "outbound",
        "propagate",
        "timers",
        "worker",
    ],
    &["admin", "app", "config"],
];
/// Rooms return facts; the stories record them.
const NOT_FOR_ROOMS: [&str; 1] = ["telemetry"];

fn level(module: &str) -> usize {
    let found = LEVELS.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("{module} stands on no level: give it one in levels.rs"))
}

#[test]
fn nobody_imports_upwards() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = read::sources(&source);
    assert!(files.len() > 50, "the source is not where it was");
    let mut wrong = Vec::new();
    for file in files {
        let place = file.strip_prefix(&source).unwrap();
        let module = place.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let is_test = place.to_str().unwrap().contains("tests");
        if ["lib", "main", "levels"].contains(&module) || is_test {
            continue;
        }
        for name in read::named(place, &fs::read_to_string(&file).unwrap()) {
            let is_room = LEVELS[1].contains(&module);
            if level(&name) > level(module) || (is_room && NOT_FOR_ROOMS.contains(&name.as_str())) {
                wrong.push(format!("{} names {name}", place.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
