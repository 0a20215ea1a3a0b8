//! `portunus` as a shell runs it: what it ends with, and that nobody who reads it changes that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A `portunus` that has not been started yet.
fn portunus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portunus"));
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().expect("it starts")
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

const GOOD: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app: a}, ports: [{port: 80}]}\n";
const BAD: &str =
    "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a}\nspec:\n  mtls: {mode: STRICT}\n";

#[test]
fn validate_ends_with_its_verdict_as_the_help_says() {
    let (good, bad) = (manifests("good", GOOD), manifests("bad", BAD));
    let nowhere = good.join("nowhere");
    for (directory, code, says) in [
        (&good, 0, "fine: services 1"),
        (&bad, 1, "a.yaml:5:16: mistake: InboundPolicy default/a: spec.mtls.mode"),
        (&nowhere, 1, "cannot be read as a directory"),
    ] {
        for output in ["text", "json"] {
            let ended = run(&mut portunus(&["validate", text(directory), "-o", output]));
            let said = String::from_utf8_lossy(&ended.stdout).into_owned();
            assert_eq!(ended.status.code(), Some(code), "{said}");
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
