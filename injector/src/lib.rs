//! Puts into workloads what the mesh needs there: into pods, a sidecar; into sidecars, an identity, endpoints and rules.
//!
//! Rooms: `cluster` says what there is (one writer, many readers), `control` serves it to sidecars, `cli` is the
//! `portunus` command. `control` and `cli` import `cluster`, never each other.

pub mod cli;
pub mod cluster;
pub mod control;

#[cfg(test)]
#[path = "../../sidecar/src/levels/read.rs"]
mod read;
#[cfg(test)]
mod testing;

#[cfg(test)]
mod levels {
    use std::fs;
    use std::path::Path;

    use super::read;

    /// The one rule of the map above that a machine can check.
    #[test]
    fn control_and_cli_import_cluster_and_never_each_other() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let rooms = [
            ("cluster", &["control", "cli"][..]),
            ("control", &["cli"]),
            ("cli", &["control"]),
        ];
        for (room, strangers) in rooms {
            let files = read::sources(&source.join(room));
            assert!(!files.is_empty(), "{room} is not where it was");
            for file in files {
                let place = file.strip_prefix(&source).expect("it is below");
                let text = fs::read_to_string(&file).expect("it is text");
                for name in read::named(place, &text) {
                    assert!(!strangers.contains(&&*name), "{} names {name}", place.display());
                }
            }
        }
    }
}
