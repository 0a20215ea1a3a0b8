//! Puts into workloads what the mesh needs there: into pods, a sidecar; into sidecars, an identity, endpoints and rules.
//!
//! Rooms: `cluster` says what there is (one writer, many readers), `control` serves it to sidecars, `cli` is the
//! `portunus` command. `control` and `cli` import `cluster`, never each other.

pub mod cli;
pub mod cluster;
pub mod control;

#[cfg(test)]
mod testing;

#[cfg(test)]
mod levels {
    use std::fs;
    use std::path::Path;

    /// The one rule of the map above that a machine can check.
    #[test]
    fn control_and_cli_import_cluster_and_never_each_other() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        for (room, strangers) in [
            ("cluster", &["control", "cli"][..]),
            ("control", &["cli"]),
            ("cli", &["control"]),
        ] {
            for stranger in strangers {
                refuse(&source.join(room), &format!("crate::{stranger}"));
            }
        }
    }

    fn refuse(directory: &Path, path: &str) {
        for entry in fs::read_dir(directory).expect("it is there") {
            let entry = entry.expect("it can be read").path();
            if entry.is_dir() {
                refuse(&entry, path);
            } else {
                let text = fs::read_to_string(&entry).expect("it is text");
                assert!(!text.contains(path), "{} names {path}", entry.display());
            }
        }
    }
}
