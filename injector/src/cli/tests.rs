//! The command line, as a shell sees it.

use clap::{CommandFactory, Parser, error::ErrorKind};

use super::*;
use crate::testing::Directory;

fn validate(directory: &Directory, output: Output) -> (String, bool) {
    let mut out = Vec::new();
    let checked = validate::check(&directory.0);
    let fine = checked.code() == ExitCode::SUCCESS;
    checked.print(output, false, &mut out).expect("a vector takes all");
    (String::from_utf8(out).expect("it is UTF-8"), fine)
}

#[test]
fn the_command_line_is_sound_and_a_slip_is_a_matter_of_usage() {
    Cli::command().debug_assert();
    for slip in [
        &["portunus"][..],
        &["portunus", "validate"],
        &["portunus", "validate", "x", "-o", "xml"],
    ] {
        let why = Cli::try_parse_from(slip).expect_err("it is a slip");
        assert_eq!(why.exit_code(), 2, "{slip:?}");
    }
    let help = Cli::try_parse_from(["portunus", "validate", "--help"]).expect_err("it is help");
    assert_eq!(help.kind(), ErrorKind::DisplayHelp);
    assert!(help.to_string().contains("Exit status"));
}

#[test]
fn mistakes_are_printed_with_their_place_for_people_and_for_programs() {
    let bad =
        "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a}\nspec:\n  mtls: {mode: STRICT}\n";
    let directory = Directory::new().with("a.yaml", bad);
    let (text, fine) = validate(&directory, Output::Text);
    assert!(!fine);
    assert!(
        text.contains("a.yaml:5:16: mistake: InboundPolicy default/a: spec.mtls.mode: is \"STRICT\""),
        "{text}"
    );
    let (json, _) = validate(&directory, Output::Json);
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(json["accepted"], false);
    let mistake = json["findings"]
        .as_array()
        .and_then(|all| all.iter().find(|found| found["severity"] == "mistake"));
    let mistake = mistake.expect("it is there");
    assert_eq!(
        (&mistake["line"], &mistake["field"]),
        (&5.into(), &"spec.mtls.mode".into())
    );
    directory.write("a.yaml", "# nothing\n");
    assert!(validate(&directory, Output::Text).1);
    directory.write("a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n");
    let (text, fine) = validate(&directory, Output::Text);
    assert!(fine && text.contains("left out 1"), "{text}");
}

#[test]
fn a_token_is_printed_with_its_hash() {
    let mut out = Vec::new();
    token::run(Output::Json, &mut out).expect("a vector takes all");
    let printed: serde_json::Value = serde_json::from_slice(&out).expect("it is JSON");
    let token = crate::cluster::JoinToken::parse(printed["token"].as_str().unwrap_or_default()).expect("it is one");
    assert_eq!(printed["joinTokenSha256"], token.hash().to_hex());
}
