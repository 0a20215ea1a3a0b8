//! What we refuse is judged by two others as well: py-spiffe, which knows SPIFFE and finds roots by the trust domain, and
//! `openssl verify`, which knows chains and no SPIFFE. One of them has to refuse it, too, and for the same reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use portunus_proto::svid::Usage;
use support::tools;

use crate::authority::{Authority, OURS, Shown};
use crate::shapes::{Kind, Shape, right, wrong};

/// Refused by us, and by neither of the others for the same reason: the kind, the defects, and why.
const STRICTER: &[(Kind, &[&str], &str)] = &[
    (
        Kind::BadSyntax,
        &["too long an id"],
        "SPIFFE-ID, 2.3 allows 2,048 bytes; py-spiffe does not count",
    ),
    (
        Kind::UpperCase,
        &[
            "the domain",
            "the first letter of the domain",
            "the last letter of the domain",
            "a letter in the middle of the domain",
            "a foreign domain",
        ],
        "py-spiffe makes it lower case; SPIFFE-ID, 2.1 has no upper case",
    ),
    (
        Kind::KeyUsage,
        &["a key usage that nobody has to heed"],
        "X509-SVID, 4.3 wants it critical; neither of the others asks",
    ),
    (
        Kind::NameConstraints,
        &[
            "constrained to URIs that it fits",
            "other URIs are excluded",
            "any URI is excluded",
            "its URI is permitted, others are excluded",
        ],
        "rustls-webpki takes no constraint of URIs for fulfilled; for OpenSSL an empty one excludes nothing",
    ),
    (
        Kind::Other,
        &["ten issuers", "eight issuers that it does not need"],
        "a chain has eight issuers at most here; the others have no bound so low",
    ),
    (
        Kind::Other,
        &["three issuers of one name that it does not need"],
        "an issuer has one namesake at most here, since each would be tried at each step; the others have no such bound",
    ),
    (
        Kind::Other,
        &["the peer has another key", "the peer has another key of another kind"],
        "that is proven by the handshake, which neither of the others sees",
    ),
];
/// Uncommon and taken by us, but refused by one of the others, and why.
const MILDER: &[(&str, &str)] = &[
    (
        "no basic constraints",
        "py-spiffe demands them; without the extension it is no authority (RFC 5280, 4.2.1.9)",
    ),
    (
        "no identifier of its issuer's key",
        "OpenSSL demands it where it is strict; a chain is found by names, too",
    ),
    (
        "an issuer's issuer without key usage",
        "both demand one; RFC 5280, 4.2.1.3 forbids nothing then",
    ),
    ("ended 15 seconds ago", "clocks may be 20 seconds apart here"),
    ("begins in 20 seconds", "clocks may be 20 seconds apart here"),
];

/// What the others say where we name this reason.
fn words(kind: Kind, reason: &str) -> &'static [&'static str] {
    match (kind, reason) {
        // What is no time for rustls-webpki is one for OpenSSL.
        (Kind::Expired, "malformed") => &["certificate has expired", "certificate is not yet valid"],
        // OpenSSL looks whether it is its own issuer by name and by key.
        (Kind::SelfSigned, "self_signed" | "bad_signature") => {
            &["self-signed certificate", "unable to get local issuer certificate"]
        }
        (_, "expired") => &["certificate has expired"],
        (_, "not_yet_valid") => &["certificate is not yet valid"],
        (_, "unknown_issuer") => &[
            "unable to get local issuer certificate",
            "self-signed certificate in certificate chain",
        ],
        // It looks for an issuer by the identifier of its key, and finds none.
        (_, "bad_signature") => &[
            "certificate signature failure",
            "unable to get local issuer certificate",
        ],
        (_, "foreign_trust_domain") => &["no roots are known of the trust domain"],
        (_, "name_constraints") => &["permitted subtree violation", "excluded subtree violation"],
        (_, "extended_key_usage") => &["unsuitable certificate purpose", "unsupported certificate purpose"],
        (_, "key_usage") => &["key usage", "KeyUsage"],
        (_, "ca_as_leaf") => &["must not have CA flag"],
        (_, "no_uri_name") => &["does not contain"],
        // The last where one of the names has bytes that are not ASCII.
        (_, "several_uri_names") => &["multiple URI SAN", "GeneralName::UniformResourceIdentifier"],
        (_, "bad_spiffe_id") => &["SPIFFE ID", "GeneralName::UniformResourceIdentifier"],
        (_, "chain") => &["invalid CA certificate", "path length constraint exceeded"],
        (_, "malformed") => &[
            "Could not",
            "Unable to parse",
            "error parsing asn1",
            "Duplicate",
            "unhandled critical extension",
        ],
        _ => &[],
    }
}

#[test]
fn what_is_refused_here_is_refused_by_others_too_and_for_the_same_reason() -> Result<()> {
    let root = Authority::root("root");
    let folder = std::env::temp_dir().join(format!("portunus-judges-{}", std::process::id()));
    let judged = [Usage::Client, Usage::Server].map(|usage| judge_all(&root, usage, &folder));
    std::fs::remove_dir_all(&folder)?;
    let (mut all, mut stricter, mut milder) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for judged in judged {
        for (shape, others) in judged? {
            all.insert((shape.kind, shape.defect));
            let refused = others.iter().flatten();
            let told: Vec<_> = refused.map(String::as_str).collect();
            eprintln!("{}: {} | {}", shape.name(), shape.reason, told.join(" | "));
            let confirmed = words(shape.kind, shape.reason)
                .iter()
                .any(|word| told.iter().any(|told| told.contains(word)));
            match shape.kind {
                Kind::Right if told.is_empty() => {}
                Kind::Right => {
                    milder.insert(shape.around);
                }
                _ if confirmed => {}
                // One of the others already refuses it for what is around.
                _ if !told.is_empty() && MILDER.iter().any(|(around, _)| *around == shape.around) => {}
                kind => {
                    stricter.insert((kind, shape.defect));
                }
            }
        }
    }
    let known: BTreeSet<_> = all
        .into_iter()
        .filter(|(of, defect)| {
            let mut known = STRICTER.iter();
            known.any(|(kind, defects, _)| kind == of && defects.contains(defect))
        })
        .collect();
    ensure!(
        stricter == known,
        "we alone refuse {stricter:#?}, and should {known:#?}"
    );
    let known: BTreeSet<_> = MILDER.iter().map(|(around, _)| *around).collect();
    ensure!(milder == known, "we alone take {milder:#?}, and should {known:#?}");
    Ok(())
}

/// What py-spiffe and OpenSSL say; nothing where they take it.
type Others = [Option<String>; 2];

fn judge_all<'a>(root: &'a Authority, usage: Usage, folder: &Path) -> Result<Vec<(Shape<'a>, Others)>> {
    let python = tools::spiffe()?;
    let mut shapes = wrong(root, usage);
    shapes.extend(right(root));
    let made = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let shown: Vec<_> = shapes.iter().map(Shape::show).collect();
    let mut folders = Vec::new();
    for (at, shown) in shown.iter().enumerate() {
        folders.push(lay_out(shown, &folder.join(at.to_string()))?);
    }
    let trusted = folder.join("root.der");
    std::fs::write(&trusted, root.issuer.der())?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("apps/python/spiffe_judge.py");
    let output = Command::new(python)
        .arg(script)
        .arg(OURS)
        .arg(&trusted)
        .args(&folders)
        .output()?;
    let lines = String::from_utf8(output.stdout)?;
    ensure!(
        lines.lines().count() == shapes.len(),
        "py-spiffe says {lines}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut judged = Vec::new();
    for (((shape, shown), line), folder) in shapes.into_iter().zip(shown).zip(lines.lines()).zip(&folders) {
        let by_spiffe = (!line.starts_with("ok ")).then(|| line.to_owned());
        judged.push((shape, [by_spiffe, openssl(&shown, usage, folder, &trusted, made)?]));
    }
    Ok(judged)
}

fn lay_out(shown: &Shown, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    // py-spiffe cannot read the second version of PKCS#8 (RFC 5958), in which rcgen writes Ed25519: the first has no public key.
    let key = match &shown.key[..] {
        [0x30, 0x51, 2, 1, 1, rest @ ..] => [&[0x30, 0x2e, 2, 1, 0], &rest[..43]].concat(),
        key => key.to_vec(),
    };
    std::fs::write(folder.join("key.der"), key)?;
    std::fs::write(
        folder.join("chain.der"),
        shown.chain.iter().flat_map(|one| one.to_vec()).collect::<Vec<u8>>(),
    )?;
    for (at, certificate) in shown.chain.iter().enumerate() {
        std::fs::write(folder.join(format!("{at}.der")), certificate)?;
    }
    Ok(folder.to_owned())
}

/// Why OpenSSL refuses the chain at this time, however late it is asked: all that it finds.
fn openssl(shown: &Shown, usage: Usage, folder: &Path, trusted: &Path, at: Duration) -> Result<Option<String>> {
    let purpose = match usage {
        Usage::Client => "sslclient",
        Usage::Server => "sslserver",
    };
    let mut command = Command::new("openssl");
    command
        .args(["verify", "-attime", &at.as_secs().to_string()])
        .args(["-purpose", purpose, "-x509_strict", "-trusted"])
        .arg(trusted);
    for at in 1..shown.chain.len() {
        command.arg("-untrusted").arg(folder.join(format!("{at}.der")));
    }
    let output = command
        .arg(folder.join("0.der"))
        .output()
        .context("there is no openssl")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let found: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("error ") && line.contains(" lookup: "))
        .collect();
    let why = match found.is_empty() {
        false => found.join("; "),
        true => said.lines().next().unwrap_or("refused").to_owned(),
    };
    Ok((!output.status.success()).then_some(why))
}
