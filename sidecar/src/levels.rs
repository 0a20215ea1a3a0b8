//! Who may import whom: downwards only (`docs/architecture.md`), read from the `crate::` paths of the source itself.

use std::fs;
use std::path::{Path, PathBuf};

/// The house from the ground up. A module may name those of its own level and of the levels below.
const LEVELS: [&[&str]; 5] = [
    &["telemetry", "grpc", "slots"],
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

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            sources(&entry.path(), into);
        } else if entry.path().extension().is_some_and(|ending| ending == "rs") {
            into.push(entry.path());
        }
    }
}

/// The first words of the `crate::` paths in a text, also those in braces.
fn named(text: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut found = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut item = String::new();
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => found.push(word(std::mem::take(&mut item).trim())),
                        c if depth == 0 => item.push(c),
                        _ => {}
                    }
                }
                found.push(word(item.trim()));
            }
        }
    }
    found.retain(|name| name.starts_with(|c: char| c.is_ascii_lowercase()));
    found
}

#[test]
fn nobody_imports_upwards() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    assert!(files.len() > 50, "the source is not where it was");
    let mut wrong = Vec::new();
    for file in files {
        let place = file.strip_prefix(&source).unwrap();
        let module = place.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let is_test = place.to_str().unwrap().contains("tests");
        if ["lib", "main", "levels"].contains(&module) || is_test {
            continue;
        }
        // Tests at the end of a file may use what they like.
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        for name in named(&code) {
            let is_room = LEVELS[1].contains(&module);
            if level(&name) > level(module) || (is_room && NOT_FOR_ROOMS.contains(&name.as_str())) {
                wrong.push(format!("{} names {name}", place.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn paths_are_read_in_all_their_forms() {
    let text = "use crate::a::B; use crate::{b::{C, d}, e, f::G}; crate::h(); use crate::Upper;";
    assert_eq!(named(text), ["a", "b", "e", "f", "h"]);
}
