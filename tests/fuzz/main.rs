//! Every fuzz target for a while over its committed corpus: raw frames to an engine of each role, whole relays, HPACK,
//! detection, the redirect's settings, ids and certificates, requests for them, manifests, the headers of traces.
//!
//! `PORTUNUS_FUZZ_SECONDS` says how long each runs, 35 if unsaid; as many run at once as there are cores. What breaks one is
//! kept in `target/fuzz/artifacts`, and printed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail, ensure};
use support::cache;

/// The version that is installed where it is missing.
const CARGO_FUZZ: &str = "0.13.2";

#[test]
fn no_frames_break_an_engine_that_answers() -> Result<()> {
    fuzz("server")
}

#[test]
fn no_frames_break_an_engine_that_asks() -> Result<()> {
    fuzz("client")
}

#[test]
fn no_script_makes_a_relay_mix_up_or_lose_anything() -> Result<()> {
    fuzz("relay")
}

#[test]
fn no_block_breaks_the_decoder() -> Result<()> {
    fuzz("hpack_decode")
}

#[test]
fn every_list_of_fields_survives_encoder_and_decoder() -> Result<()> {
    fuzz("hpack_roundtrip")
}

#[test]
fn no_first_bytes_break_detection() -> Result<()> {
    fuzz("detect")
}

#[test]
fn no_text_breaks_the_redirects_settings() -> Result<()> {
    fuzz("redirect")
}

#[test]
fn no_client_hello_is_read_otherwise_than_by_rustls() -> Result<()> {
    fuzz("client_hello")
}

#[test]
fn those_texts_are_ids_that_the_standards_grammar_allows() -> Result<()> {
    fuzz("spiffe_id")
}

#[test]
fn no_certificate_breaks_the_verifier() -> Result<()> {
    fuzz("certificate")
}

#[test]
fn no_request_for_a_certificate_breaks_its_reader() -> Result<()> {
    fuzz("csr")
}

#[test]
fn no_manifest_breaks_control_or_keeps_it_long() -> Result<()> {
    fuzz("manifests")
}

#[test]
fn every_place_in_a_trace_survives_being_written_and_read() -> Result<()> {
    fuzz("trace_headers")
}

#[test]
fn every_target_has_a_corpus_and_a_test() -> Result<()> {
    let source = include_str!("main.rs");
    for entry in fs::read_dir(here("targets"))? {
        let path = entry?.path();
        let target = path.file_stem().context("a target has a name")?.to_string_lossy();
        ensure!(
            source.contains(&format!("fuzz(\"{target}\")")),
            "{target} is run by no test"
        );
        let corpus = here("corpus").join(&*target);
        let seeds = fs::read_dir(&corpus).with_context(|| format!("{target} has no corpus"))?;
        ensure!(seeds.count() > 0, "the corpus of {target} is empty");
    }
    Ok(())
}

/// Runs a target over its corpus, and on from there.
fn fuzz(target: &str) -> Result<()> {
    let seconds = match std::env::var("PORTUNUS_FUZZ_SECONDS") {
        Ok(text) => text.parse().context("PORTUNUS_FUZZ_SECONDS is not a number")?,
        Err(_) => 35u32,
    };
    let program = programs()?.join(target);
    let (found, artifacts) = (output().join("found").join(target), output().join("artifacts"));
    fs::create_dir_all(&found)?;
    fs::create_dir_all(&artifacts)?;
    let run = Command::new(&program)
        // What it finds goes into the first folder; the committed ones are only read.
        .arg(&found)
        .arg(here("corpus").join(target))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"])
        .arg(format!("-artifact_prefix={}/{target}-", artifacts.display()))
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let said = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        bail!("{target} broke:\n{}\n{}", tail(&said, 60), artifact(&said));
    }
    let runs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .with_context(|| format!("{target} does not say what it did:\n{}", tail(&said, 20)))?;
    println!("{target}: {} inputs", runs.trim());
    Ok(())
}

/// The file that libFuzzer kept, in hexadecimal: enough to see the failure again without the file.
fn artifact(said: &str) -> String {
    let Some(path) = said.lines().find_map(|line| line.split("Test unit written to ").nth(1)) else {
        return "no input was kept".to_string();
    };
    match fs::read(path.trim()) {
        Ok(bytes) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("the input, kept in {path}:\n{hex}")
        }
        Err(error) => format!("the input was kept in {path}, which cannot be read: {error}"),
    }
}

/// The folder of the built targets.
fn programs() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let host = host()?;
    let mut command = Command::new(cargo_fuzz()?.join("bin/cargo-fuzz"));
    // There is no unsafe code of ours to sanitize; assertions, and the coverage that leads the fuzzer, are all it needs.
    command
        .args(["build", "--sanitizer", "none", "--target", &host, "--fuzz-dir"])
        .arg(here(""))
        .arg("--target-dir")
        .arg(output())
        // cargo-fuzz asks for compiler flags that stable keeps to itself.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TERM_COLOR", "never");
    run(&mut command)?;
    Ok(output().join(host).join("release"))
}

/// cargo-fuzz, installed once beside the other tools.
fn cargo_fuzz() -> Result<PathBuf> {
    cache::folder("cargo-fuzz", &[CARGO_FUZZ.as_bytes()], |folder| {
        let mut command = Command::new(cargo());
        // Unoptimised: it only starts cargo and the fuzzers, and is built in half the time.
        command
            .args([
                "install",
                "cargo-fuzz",
                "--debug",
                "--quiet",
                "--locked",
                "--version",
                CARGO_FUZZ,
            ])
            .arg("--root")
            .arg(folder)
            .arg("--target-dir")
            .arg(output().join("cargo-fuzz"));
        run(&mut command)
    })
}

fn host() -> Result<String> {
    let said = Command::new("rustc").arg("-vV").output().context("there is no rustc")?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say which machine this is")?.to_string())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed:\n{}", tail(&said, 40));
    Ok(())
}

fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from)
}

/// Where it is built, and what it finds is kept.
fn output() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz")
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(path)
}

/// The last lines, which say what went wrong.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
