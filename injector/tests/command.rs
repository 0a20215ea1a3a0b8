//! `portunus` as a shell runs it: what it ends with, and that nobody who reads it changes that.

#[path = "../src/cluster/file/mistakes.rs"]
mod mistakes;

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mistakes::{GOOD, MISTAKES, whole};

const PORTUNUS: &str = env!("CARGO_BIN_EXE_portunus");

/// A `portunus` that has not been started yet.
fn portunus(arguments: &[&str]) -> Command {
    let mut command = Command::new(PORTUNUS);
    command.args(arguments);
    command
}

/// The same, for whom what nobody may read is not to be read either: root has to lay down its powers for that.
fn powerless(arguments: &[&str]) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return portunus(arguments);
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-all", PORTUNUS]).args(arguments);
    command
}

/// The same before a reader that leaves after the first line; what it ends with is said to standard error.
fn before_head(arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"{ "$0" "$@"; echo "$?" >&2; } | head -n 1"#, PORTUNUS]);
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("it starts")
}

/// What it ends with, and what it says on standard output.
fn told(command: &mut Command) -> (Option<i32>, String) {
    let ended = run(command);
    (ended.status.code(), String::from_utf8_lossy(&ended.stdout).into_owned())
}

/// A directory of manifests of this name, with one file.
fn manifests(name: &str, text: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).expect("a directory can be made");
    fs::write(directory.join("a.yaml"), text).expect("a file can be written");
    directory
}

fn text(path: &Path) -> &str {
    path.to_str().expect("it is UTF-8")
}

/// A pipe that nobody reads from any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = io::pipe().expect("a pipe can be made");
    drop(reader);
    writer.into()
}

const BAD: &str =
    "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a}\nspec:\n  mtls: {mode: STRICT}\n";

#[test]
fn validate_ends_with_its_verdict_as_the_help_says() {
    let (good, bad) = (manifests("good", GOOD), manifests("bad", BAD));
    let warned = manifests("warned", "# nobody\n");
    fs::write(warned.join("b.YAML"), "").expect("a file can be written");
    let empty = good.join("empty");
    fs::create_dir_all(&empty).expect("a directory can be made");
    for (directory, code, says) in [
        (&good, 0, "fine: services 1"),
        (&warned, 0, "b.YAML: warning: is left out by its name"),
        (&bad, 1, "a.yaml:5:16: mistake: InboundPolicy default/a: spec.mtls.mode"),
        (&good.join("nowhere"), 1, "cannot be read as a directory"),
        (&good.join("a.yaml"), 1, "is no directory"),
        (&empty, 1, "has no manifest"),
    ] {
        for output in ["text", "json"] {
            let (ended, said) = told(&mut portunus(&["validate", text(directory), "-o", output]));
            assert_eq!(ended, Some(code), "{said}");
            match output {
                "text" => assert!(said.contains(says), "{said}"),
                _ => assert!(said.contains(&format!("\"accepted\": {}", code == 0)), "{said}"),
            }
        }
    }
    let ended = run(&mut portunus(&["validate"]));
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stdout.is_empty() && !ended.stderr.is_empty());
}

#[test]
fn every_kind_of_mistake_is_told_with_file_line_and_field_and_is_no_success() {
    let directory = manifests("mistakes", GOOD);
    for (text, line, field, sentence) in MISTAKES {
        fs::write(directory.join("bad.yaml"), whole(text)).expect("a file can be written");
        let (code, said) = told(&mut portunus(&["validate", self::text(&directory)]));
        assert_eq!(code, Some(1), "{text:?}: {said}");
        // Where YAML itself is broken, its reader may mean the line beside.
        let beside = u32::from(field.is_empty());
        let is_it = |told: &str| {
            let place = told.strip_prefix("bad.yaml:").and_then(|rest| rest.split_once(':'));
            place.is_some_and(|(at, what)| {
                at.parse().is_ok_and(|at: u32| at.abs_diff(*line) <= beside)
                    && what.contains(": mistake: ")
                    && what.contains(field)
                    && what.contains(sentence)
            })
        };
        assert!(said.lines().any(is_it), "{text:?}: {said}");
    }
}

#[test]
fn what_cannot_be_read_is_named_and_is_no_success() {
    let directory = manifests("unreadable", GOOD);
    let file = directory.join("bad.yaml");
    // One that another run has left.
    let _ = fs::remove_file(&file);
    let validate = || told(&mut powerless(&["validate", text(&directory)]));
    let says = |(code, said): (Option<i32>, String), because: &str| {
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(because), "{because}: {said}");
    };
    fs::write(&file, GOOD).expect("a file can be written");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o000)).expect("it is ours");
    says(validate(), "bad.yaml: mistake: cannot be read: Permission denied");
    for (target, because) in [
        ("nowhere.yaml", "No such file or directory"),
        ("bad.yaml", "Too many levels of symbolic links"),
        // As a file of a disk that fails: nothing lies at the first address.
        ("/proc/self/mem", "Input/output error"),
    ] {
        fs::remove_file(&file).expect("it is ours");
        symlink(target, &file).expect("a link can be made");
        says(validate(), &format!("bad.yaml: mistake: cannot be read: {because}"));
    }
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o000)).expect("it is ours");
    let told = validate();
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("it is ours");
    says(told, "mistake: cannot be read as a directory: Permission denied");
}

#[test]
fn the_verdict_is_the_same_when_its_reader_leaves_after_the_first_line() {
    // Each with half more to say than a pipe holds.
    const PIPE: usize = 64 << 10;
    let bad = manifests("bad-at-length", &[BAD; 999].join("---\n"));
    let good = manifests("good-at-length", GOOD);
    for number in 0..600 {
        let left_out = format!("{number}-{}.YAML", "x".repeat(200));
        fs::write(good.join(left_out), "").expect("a file can be written");
    }
    for output in ["text", "json"] {
        for (directory, code) in [(&good, "0\n"), (&bad, "1\n")] {
            let validate = ["validate", text(directory), "-o", output];
            let all = run(&mut portunus(&validate)).stdout;
            let ended = run(&mut before_head(&validate));
            assert!(all.len() > PIPE + PIPE / 2, "{} bytes are too few", all.len());
            assert!(all.starts_with(&ended.stdout) && ended.stdout.ends_with(b"\n"));
            assert_eq!(
                String::from_utf8_lossy(&ended.stderr),
                code,
                "{}, {output}",
                directory.display()
            );
        }
    }
}

#[test]
fn control_that_is_not_understood_ends_otherwise_than_one_that_does_not_run() {
    let control = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_injector"));
        let ended = run(command.arg("control").args(arguments).env_clear());
        (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    for slip in [
        &["--wrong"][..],
        &[],
        &["--source", "x"],
        &["--source", "x", "--state", "y", "--listen", "z"],
    ] {
        let (code, said) = control(slip);
        assert!(code == Some(2) && said.contains("--help"), "{slip:?}: {code:?} {said}");
    }
    let missing = [
        "--source=x",
        "--issuer-certificate=/nowhere/a",
        "--issuer-key=/nowhere/b",
        "--extra-root=/nowhere/c",
    ];
    let (code, said) = control(&missing);
    assert_eq!(code, Some(1), "{said}");
    for file in ["/nowhere/a", "/nowhere/b", "/nowhere/c"] {
        assert!(said.contains(file), "{file} in {said}");
    }
}

#[test]
fn the_verdict_is_the_same_when_nobody_reads_it() {
    let (good, bad) = (manifests("good-unread", GOOD), manifests("bad-unread", BAD));
    for output in ["text", "json"] {
        for (directory, code) in [(&good, 0), (&bad, 1), (&bad.join("nowhere"), 1)] {
            let mut command = portunus(&["validate", text(directory), "-o", output]);
            let ended = run(command.stdout(closed_pipe()).stderr(Stdio::piped()));
            assert_eq!(ended.status.code(), Some(code), "{}, {output}", directory.display());
            assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
    }
}

#[test]
fn what_cannot_be_printed_is_no_success() {
    let full = || fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let good = manifests("good-full", GOOD);
    for arguments in [&["validate", text(&good)][..], &["token"], &["version"]] {
        let ended = run(portunus(arguments).stdout(full()).stderr(Stdio::piped()));
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(said.contains("cannot be printed"), "{said}");
    }
}
