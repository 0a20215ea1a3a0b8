//! Which modules of its crate a source file names, by `crate::` or by as many `super::` as lead there.

use std::fs;
use std::path::{Path, PathBuf};

/// The Rust files below a folder.
pub(super) fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("it is there") {
        let entry = entry.expect("it can be read").path();
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|ending| ending == "rs") {
            found.push(entry);
        }
    }
    found
}

/// The first words of the paths that begin at the crate, also those in braces. `place` is the file's, from the folder of
/// `lib.rs`. Tests at its end may use what they like.
pub(super) fn named(place: &Path, text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
    let depth = place.iter().count() - usize::from(place.ends_with("mod.rs"));
    first_words(&code.replace(&"super::".repeat(depth), "crate::"))
}

fn first_words(code: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
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
fn paths_are_read_in_all_their_forms() {
    let text = "use crate::a::B; use crate::{b::{C, d}, e, f::G}; crate::h(); use crate::Upper;\n// crate::comment\n\
                use super::super::{i, j::K}; use super::own;\n#[cfg(test)]\nmod tests { use crate::anything; }";
    let expected = ["a", "b", "e", "f", "h", "i", "j"];
    assert_eq!(named(Path::new("room/file.rs"), text), expected);
    assert_eq!(named(Path::new("room/file/mod.rs"), text), expected);
    assert_eq!(named(Path::new("room/mod.rs"), "use super::other::Thing;"), ["other"]);
}
