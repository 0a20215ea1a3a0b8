//! Whatever stands in the directory, reading it ends soon, costs little, and says what was wrong.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::{Reading, read};
use crate::testing::Directory;

/// What a reading may take on a machine that is busy with other things.
const SOON: Duration = Duration::from_secs(20);

/// Reads in a thread of its own, so that a reading that waits is a failure and no test that hangs.
fn read_soon(directory: &Path) -> Reading {
    let (done, result) = mpsc::channel();
    let directory = directory.to_owned();
    // Whoever does not wait any more has failed already.
    std::thread::spawn(move || drop(done.send(read(&directory))));
    result.recv_timeout(SOON).expect("it is read without waiting")
}

fn pipe(path: &Path) {
    let made = Command::new("mkfifo").arg(path).status().expect("there is mkfifo");
    assert!(made.success());
}

/// A file of this length that has no bytes on the disk.
fn sparse(path: &Path, length: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(length).expect("a length");
}

type Make = fn(&Path);

#[test]
fn what_is_no_manifest_is_named_and_not_waited_for() {
    let cases: [(&str, Make, &str); 9] = [
        ("a pipe", pipe, "is no file"),
        (
            "a directory",
            |path| fs::create_dir(path).expect("a directory"),
            "is no file",
        ),
        (
            "a device without an end",
            |path| symlink("/dev/zero", path).expect("a link"),
            "is no file",
        ),
        (
            "a link to itself",
            |path| symlink(path, path).expect("a link"),
            "cannot be read",
        ),
        (
            "a link to nobody",
            |path| symlink("/nowhere/at-all", path).expect("a link"),
            "cannot be read",
        ),
        ("100 MB", |path| sparse(path, 100 << 20), "is too long"),
        ("a terabyte", |path| sparse(path, 1 << 40), "is too long"),
        (
            "another encoding",
            |path| fs::write(path, b"a: 1\nb: \xff\xfe\n").expect("a file"),
            "is not UTF-8: line 2",
        ),
        ("NULs", |path| fs::write(path, [0; 4_096]).expect("a file"), "no YAML"),
    ];
    for (what, make, why) in cases {
        let directory = Directory::new().with("good.yaml", "");
        make(&directory.0.join("bad.yaml"));
        let reading = read_soon(&directory.0);
        assert!(reading.snapshot.is_none(), "{what} was taken");
        let said: Vec<_> = reading.findings.iter().map(ToString::to_string).collect();
        assert!(
            said.iter().any(|said| said.contains("bad.yaml") && said.contains(why)),
            "{what}: {said:?}"
        );
    }
}

#[test]
fn a_yaml_bomb_costs_no_more_than_its_bytes_may() {
    let deep = |open: &str, close: &str| open.repeat(200_000) + &close.repeat(200_000);
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let last = format!("*a{}", level - 1);
        laughs += &format!("a{level}: &a{level} [{}]\n", [last.as_str(); 10].join(", "));
    }
    let bombs = [
        ("laughs", laughs),
        ("lists", deep("[", "]")),
        ("maps", deep("{a: ", "}")),
        ("sequences", "- ".repeat(500_000)),
        (
            "merges",
            "a: &a {b: c}\n".to_owned() + &"d:\n  <<: [*a, *a, *a, *a]\n".repeat(50_000),
        ),
        ("itself", "a: &a [*a]\n".to_owned()),
        ("documents", "---\n".repeat(1_000_000)),
        ("values", format!("[{}]", "1,".repeat(2_000_000))),
        ("keys", (0..250_000).map(|key| format!("k{key}: 1\n")).collect()),
        ("anchors", (0..250_000).map(|key| format!("- &a{key} 1\n")).collect()),
        ("a long key", format!("? {}\n: 1\n", "k".repeat(3 << 20))),
        ("tags", "- !!binary a\n".repeat(200_000)),
        ("comments", "#\n".repeat(2_000_000)),
    ];
    for (what, bomb) in bombs {
        let directory = Directory::new().with("bomb.yaml", &bomb);
        let reading = read_soon(&directory.0);
        let is_nothing = matches!(what, "documents" | "comments");
        assert!(is_nothing || reading.snapshot.is_none(), "{what} was taken");
        assert!(reading.findings.len() <= 1_000, "{what}");
    }
}

#[test]
fn what_is_too_much_in_all_is_not_read_to_its_end() {
    let directory = Directory::new();
    // 40 GiB, if it were.
    for number in 0..10_000 {
        sparse(&directory.0.join(format!("{number}.yaml")), 4 << 20);
    }
    let reading = read_soon(&directory.0);
    assert!(reading.snapshot.is_none());
}

#[test]
fn a_file_that_becomes_a_pipe_meanwhile_is_not_waited_for() {
    let directory = Directory::new().with("file", "").with("changing.yaml", "");
    pipe(&directory.0.join("pipe"));
    let stop = Arc::new(AtomicBool::new(false));
    let (root, stopped) = (directory.0.clone(), stop.clone());
    let changing = std::thread::spawn(move || {
        while !stopped.load(Relaxed) {
            for kind in ["pipe", "file"] {
                fs::hard_link(root.join(kind), root.join("next")).expect("a link");
                fs::rename(root.join("next"), root.join("changing.yaml")).expect("it takes its place");
            }
        }
    });
    for _ in 0..3_000 {
        // What it says depends on when it looked.
        read_soon(&directory.0);
    }
    stop.store(true, Relaxed);
    changing.join().expect("it only renames");
}
