//! What we refuse is judged by two others as well: py-spiffe, which knows SPIFFE and no roots, and `openssl verify`, which
//! knows chains and no SPIFFE.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use support::tools;

use crate::authority::{Authority, Shown};
use crate::shapes::{right, wrong};

/// Refused by us and by neither of the others, and why.
const STRICTER: &[(&str, &str)] = &[
    (
        "ten issuers",
        "a chain has eight at most here; the others have no bound so low",
    ),
    (
        "another trust domain under our root",
        "neither of the others knows which is ours",
    ),
    (
        "a trust domain that begins like ours",
        "neither of the others knows which is ours",
    ),
    (
        "domain in upper case",
        "py-spiffe makes it lower case; SPIFFE-ID, 2.1 has no upper case",
    ),
    (
        "too long an id",
        "SPIFFE-ID, 2.3 allows 2,048 bytes; py-spiffe does not count",
    ),
    (
        "a key usage that nobody has to heed",
        "X509-SVID, 4.3 wants it critical; neither of the others asks",
    ),
    (
        "constrained to URIs that it fits",
        "rustls-webpki takes no constraint of URIs for fulfilled",
    ),
    (
        "other URIs are excluded",
        "rustls-webpki takes no constraint of URIs for fulfilled",
    ),
    (
        "the peer has another key",
        "that is proven by the handshake, which neither of the others sees",
    ),
];
/// Taken by us, and refused by one of the others, and why.
const MILDER: &[(&str, &str)] = &[
    (
        "by an issuer's issuer",
        "one of them has no key usage, which py-spiffe demands; RFC 5280, 4.2.1.3 forbids nothing then",
    ),
    ("ended ten seconds ago", "clocks may be 20 seconds apart here"),
    ("begins in ten seconds", "clocks may be 20 seconds apart here"),
    (
        "does not say that it is no authority",
        "py-spiffe demands that it does; without the extension it is none (RFC 5280, 4.2.1.9)",
    ),
    ("Ed25519", "py-spiffe cannot read such a key"),
];

#[test]
fn what_is_refused_here_is_refused_by_others_too() -> Result<()> {
    let root = Authority::root("root");
    let folder = std::env::temp_dir().join(format!("portunus-judges-{}", std::process::id()));
    let judged = judge_all(&root, &folder);
    std::fs::remove_dir_all(&folder)?;
    let mut found = BTreeMap::new();
    for (what, reason, by_spiffe, by_openssl) in judged? {
        let (spiffe, openssl) = (by_spiffe.is_none(), by_openssl.is_none());
        eprintln!(
            "{what}: {} | {} | {}",
            reason.unwrap_or("ok"),
            said(&by_spiffe),
            said(&by_openssl)
        );
        let kind = match (reason, spiffe && openssl) {
            (Some(_), true) => "stricter",
            (None, false) => "milder",
            (Some(_), false) | (None, true) => continue,
        };
        found.entry(kind).or_insert_with(Vec::new).push(what);
    }
    for (kind, known) in [("stricter", STRICTER), ("milder", MILDER)] {
        let known: Vec<_> = known.iter().map(|(what, _)| *what).collect();
        let found = found.remove(kind).unwrap_or_default();
        ensure!(
            found == known,
            "we are {kind} for {found:?}, and should be for {known:?}"
        );
    }
    Ok(())
}

fn said(verdict: &Option<String>) -> &str {
    verdict.as_deref().unwrap_or("ok")
}

/// What it is, our reason, what py-spiffe says, what OpenSSL says; nothing where it is taken.
type Judged = (&'static str, Option<&'static str>, Option<String>, Option<String>);

fn judge_all(root: &Authority, folder: &Path) -> Result<Vec<Judged>> {
    let wrong = wrong(root)
        .into_iter()
        .map(|(what, reason, shown)| (what, Some(reason), shown));
    let right = right(root).into_iter().map(|(what, shown)| (what, None, shown));
    let all: Vec<_> = wrong.chain(right).collect();
    let mut folders = Vec::new();
    for (at, (_, _, shown)) in all.iter().enumerate() {
        folders.push(lay_out(shown, &folder.join(at.to_string()))?);
    }
    let trusted = folder.join("root.der");
    std::fs::write(&trusted, root.issuer.der())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/python/spiffe_judge.py");
    let output = Command::new(tools::spiffe()?).arg(script).args(&folders).output()?;
    let lines = String::from_utf8(output.stdout)?;
    ensure!(
        lines.lines().count() == all.len(),
        "py-spiffe says {lines}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut judged = Vec::new();
    for (((what, reason, shown), line), folder) in all.into_iter().zip(lines.lines()).zip(&folders) {
        let by_spiffe = (!line.starts_with("ok ")).then(|| line.to_owned());
        judged.push((what, reason, by_spiffe, openssl(&shown, folder, &trusted)?));
    }
    Ok(judged)
}

fn lay_out(shown: &Shown, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("key.der"), &shown.key)?;
    std::fs::write(
        folder.join("chain.der"),
        shown.chain.iter().flat_map(|one| one.to_vec()).collect::<Vec<u8>>(),
    )?;
    for (at, certificate) in shown.chain.iter().enumerate() {
        std::fs::write(folder.join(format!("{at}.der")), certificate)?;
    }
    Ok(folder.to_owned())
}

/// Why OpenSSL refuses the chain of a client.
fn openssl(shown: &Shown, folder: &Path, trusted: &Path) -> Result<Option<String>> {
    let mut command = Command::new("openssl");
    command
        .args(["verify", "-purpose", "sslclient", "-x509_strict", "-trusted"])
        .arg(trusted);
    for at in 1..shown.chain.len() {
        command.arg("-untrusted").arg(folder.join(format!("{at}.der")));
    }
    let output = command
        .arg(folder.join("0.der"))
        .output()
        .context("there is no openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said
        .lines()
        .find(|line| line.starts_with("error "))
        .or(said.lines().next())
        .unwrap_or("refused");
    Ok((!output.status.success()).then(|| why.to_owned()))
}
