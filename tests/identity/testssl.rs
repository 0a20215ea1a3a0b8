//! What testssl.sh finds at control's port and at a port of the mesh: TLS 1.3 alone, nothing to resume, none of the
//! vulnerabilities that it knows by name, and of the rest nothing that is not explained here.
//!
//! It looks like a browser, which a port of the mesh takes for an application's own TLS. There a copy of it runs that offers
//! the mesh's protocol instead, in what it says itself and in what it lets `openssl` say, which shows a certificate, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portunus_sidecar::policy::Mode;
use serde::Deserialize;
use support::{Family, User};

use crate::authority::{Authority, Shown};
use crate::ends;
use crate::world::World;

/// Where Debian puts it.
const SCRIPT: &str = "/usr/bin/testssl";
/// It takes some 10 s of the processor, most of it in shells.
const PATIENCE: Duration = Duration::from_secs(240);

/// What it finds worth a word, and why that is as it should be.
const EXPLAINED: [(&str, &str); 7] = [
    ("engine_problem", "says that this machine's openssl has no GOST"),
    ("service", "no HTTP/1 is spoken there"),
    ("cert_trust", "certificates of the mesh name nobody of DNS"),
    ("cert_chain_of_trust", "nor is its root one that browsers know"),
    ("cert_expirationStatus", "they are meant to last a day"),
    ("cert_notAfter", "they are meant to last a day"),
    ("cert_revocation", "for that nobody revokes them (docs/identity.md)"),
];

/// What has to be among its findings, word for word.
const DUE: [(&str, &str); 20] = [
    ("SSLv2", "not offered"),
    ("SSLv3", "not offered"),
    ("TLS1", "not offered"),
    ("TLS1_1", "not offered"),
    ("TLS1_2", "not offered"),
    ("TLS1_3", "offered with final"),
    ("cipherlist_NULL", "not offered"),
    ("cipherlist_aNULL", "not offered"),
    ("cipherlist_EXPORT", "not offered"),
    ("cipherlist_LOW", "not offered"),
    ("cipherlist_3DES_IDEA", "not offered"),
    ("cipherlist_AVERAGE", "not offered"),
    ("cipherlist_STRONG", "offered"),
    ("PFS_ECDHE_curves", "prime256v1 X25519"),
    ("TLS_session_ticket", "no -- no lifetime advertised"),
    ("sessionresumption_ticket", "not supported"),
    ("sessionresumption_ID", "No Session ID, no resumption"),
    ("heartbleed", "not vulnerable, no heartbeat extension"),
    ("CCS", "not vulnerable"),
    ("secure_client_renego", "not vulnerable, TLS 1.3 only"),
];

/// The vulnerabilities that it knows, beside those above.
const NAMED: [&str; 12] = [
    "ticketbleed",
    "ROBOT",
    "secure_renego",
    "CRIME_TLS",
    "POODLE_SSL",
    "fallback_SCSV",
    "FREAK",
    "DROWN",
    "LOGJAM",
    "BEAST",
    "LUCKY13",
    "RC4",
];

/// One thing that it says.
#[derive(Debug, Deserialize)]
struct Finding {
    id: String,
    severity: String,
    finding: String,
}

/// What it is told, whatever the port: nothing leaves this machine.
fn arguments(command: &mut Command, findings: &Path, to: &str) {
    let (host, _) = to.rsplit_once(':').expect("an address and a port");
    command
        .args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none"])
        .args(["--ip", host, "--connect-timeout", "10", "--openssl-timeout", "10"])
        // Protocols, suites by strength, preferences, what a server says of itself, forward secrecy, vulnerabilities.
        .args([
            "--protocols",
            "--std",
            "--server-preference",
            "--server-defaults",
            "--fs",
            "--vulnerable",
            "--fast",
        ])
        // It learns what openssl has by calling nobody: whom a name server would be asked for, if this were a name.
        .env("NXCONNECT", "127.0.0.1:0")
        .arg("--jsonfile")
        .arg(findings)
        .arg(to);
}

/// What it wrote, judged.
fn judge(findings: &Path, (alpn, protocol): (&str, &str)) -> Result<()> {
    let text = fs::read(findings).context("testssl.sh wrote nothing")?;
    // Where openssl says a NUL or the like.
    let all: Vec<Finding> =
        serde_json::from_str(&String::from_utf8_lossy(&text)).context("testssl.sh wrote no JSON")?;
    let is_fine = |finding: &Finding| matches!(finding.severity.as_str(), "OK" | "INFO");
    for finding in all.iter().filter(|finding| !is_fine(finding)) {
        let explained = EXPLAINED.iter().any(|(id, _)| finding.id == *id);
        ensure!(explained, "this is not explained: {finding:?}");
    }
    let say = |id: &str| -> Result<&Finding> {
        let found = all.iter().find(|finding| finding.id == id);
        found.with_context(|| format!("nothing of {id} in {all:?}"))
    };
    for (id, words) in DUE {
        ensure!(say(id)?.finding == words, "{:?}", say(id)?);
    }
    for id in NAMED {
        ensure!(is_fine(say(id)?), "{:?}", say(id)?);
    }
    let suites = &say("PFS_ciphers")?.finding;
    let strong = [
        "TLS_AES_256_GCM_SHA384",
        "TLS_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
    ];
    ensure!(
        suites.split_whitespace().all(|suite| strong.contains(&suite)),
        "the suites are {suites}"
    );
    ensure!(say(alpn)?.finding == protocol, "{:?}", say(alpn)?);
    Ok(())
}

#[test]
fn testssl_finds_nothing_at_controls_port_that_is_not_meant() {
    support::test(|mesh| {
        let control = mesh.control(&[])?;
        let scanner = mesh.pod("testssl")?;
        let findings = scanner.folder().join("findings.json");
        let mut command = scanner.command(User::Root, SCRIPT);
        arguments(&mut command, &findings, &control.at(Family::V4)?.to_string());
        // How it ends says how much it found.
        scanner.start("testssl", command)?.wait(PATIENCE)?;
        judge(&findings, ("ALPN_HTTP2", "h2"))
    });
}

/// A copy that is a client of the mesh, until it is dropped.
struct Copy {
    folder: PathBuf,
}

impl Copy {
    fn new(shown: &Shown) -> Result<Copy> {
        let folder = std::env::temp_dir().join(format!("portunus-testssl-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let copy = Copy { folder };
        let mut script = fs::read_to_string(SCRIPT).context("there is no testssl.sh")?;
        let h2: String = b"portunus/h2".iter().map(|byte| format!(",{byte:02x}")).collect();
        for (theirs, ours) in [
            // What its own hellos say where nothing else is tried: NPN, which TLS 1.3 does not have, gives way to ALPN.
            ("33, 74, 00, 00\"", format!("00,10,00,0e,00,0c,0b{h2}\"")),
            ("ALPN_PROTOs=\"h2 ", "ALPN_PROTOs=\"portunus/h2 h2 ".to_owned()),
        ] {
            ensure!(
                script.matches(theirs).count() == 1,
                "testssl.sh is another: no {theirs}"
            );
            script = script.replace(theirs, &ours);
        }
        copy.put("testssl", &script)?;
        fs::write(copy.folder.join("leaf.der"), &shown.chain[0])?;
        fs::write(copy.folder.join("key.der"), &shown.key)?;
        let openssl = "#!/bin/bash\n\
            here=${0%/*}\n\
            member=\"-certform DER -cert $here/leaf.der -keyform DER -key $here/key.der\"\n\
            case \" $* \" in\n\
            *' -help '*) ;;\n\
            ' s_client '*' -alpn '*) shift; exec openssl s_client $member \"$@\" ;;\n\
            ' s_client '*) shift; exec openssl s_client $member -alpn portunus/h2 \"$@\" ;;\n\
            esac\n\
            exec openssl \"$@\"\n";
        copy.put("openssl", openssl)?;
        Ok(copy)
    }

    fn put(&self, name: &str, text: &str) -> Result<()> {
        let file = self.folder.join(name);
        fs::write(&file, text)?;
        Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A folder that stays is no harm.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn testssl_finds_nothing_at_a_port_of_the_mesh_that_is_not_meant() -> Result<()> {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let copy = Copy::new(&root.leaf(|_| {}))?;
    let findings = copy.folder.join("findings.json");
    let mut command = Command::new(copy.folder.join("testssl"));
    command.arg("--openssl").arg(copy.folder.join("openssl"));
    arguments(&mut command, &findings, &world.proxy.to_string());
    command
        .current_dir(&copy.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut scan = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
    // How it ends says how much it found.
    tokio::time::timeout(PATIENCE, scan.wait())
        .await
        .context("testssl.sh takes too long")??;
    judge(&findings, ("ALPN", "portunus/h2"))
}
