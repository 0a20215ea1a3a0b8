//! What scanners find at the ports of the mesh and of control: TLS 1.3 and three groups, and nothing to resume.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use portunus_sidecar::policy::Mode;
use rustls::NamedGroup;
use support::{Family, User};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::authority::{Authority, Shown};
use crate::ends;
use crate::plain::client_config;
use crate::raw;
use crate::world::World;

/// OpenSSL's client at a door of the mesh, with a certificate that is good.
struct OpenSsl {
    door: SocketAddr,
    folder: PathBuf,
}

impl OpenSsl {
    fn new(door: SocketAddr, shown: &Shown) -> OpenSsl {
        let folder = std::env::temp_dir().join(format!("portunus-scan-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("leaf.der"), &shown.chain[0]).expect("a file");
        std::fs::write(folder.join("key.der"), &shown.key).expect("a file");
        OpenSsl { door, folder }
    }

    /// What it says of a handshake with these options.
    fn says(&self, options: &[&str]) -> String {
        let mut command = Command::new("openssl");
        command.args([
            "s_client",
            "-connect",
            &self.door.to_string(),
            "-certform",
            "DER",
            "-keyform",
            "DER",
        ]);
        command
            .arg("-cert")
            .arg(self.folder.join("leaf.der"))
            .arg("-key")
            .arg(self.folder.join("key.der"));
        // All versions that it knows, whatever the machine's own policy is.
        command
            .args(["-cipher", "ALL:@SECLEVEL=0"])
            .args(options)
            .stdin(Stdio::null());
        let output = command.output().expect("there is openssl");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&said).into_owned()
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        // A folder that stays is no harm.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_the_mesh_speaks_tls_1_3_with_three_groups_and_no_other() {
    let root = Authority::root("root");
    let shown = root.leaf(|_| {});
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let openssl = OpenSsl::new(world.proxy, &shown);
    let alpn = ["-alpn", "portunus/h2"];
    let with = |more: &[&str]| openssl.says(&[&alpn, more].concat());
    for old in ["-tls1", "-tls1_1", "-tls1_2"] {
        let said = with(&[old]);
        let refused = said.contains("SSL alert number 40") || said.contains("SSL alert number 70");
        assert!(refused && said.contains("Cipher is (NONE)"), "{old}: {said}");
    }
    let is_open = |said: &str| said.contains("New, TLSv1.3, Cipher is TLS_");
    let said = with(&[]);
    assert!(is_open(&said), "{said}");
    assert!(said.contains("ALPN protocol: portunus/h2"), "{said}");
    assert!(said.contains("Server Temp Key: X25519"), "{said}");
    assert!(said.contains("Secure Renegotiation IS NOT supported"), "{said}");
    assert!(
        !said.contains("Max Early Data: 1") && !said.contains("Early data was accepted"),
        "{said}"
    );
    for (group, taken) in [
        ("X25519", true),
        ("P-256", true),
        ("P-384", false),
        ("P-521", false),
        ("X448", false),
        ("ffdhe2048", false),
    ] {
        let said = with(&["-groups", group]);
        assert_eq!(is_open(&said), taken, "{group}: {said}");
    }
    for (suite, taken) in [
        ("TLS_AES_128_GCM_SHA256", true),
        ("TLS_AES_256_GCM_SHA384", true),
        ("TLS_CHACHA20_POLY1305_SHA256", true),
        ("TLS_AES_128_CCM_SHA256", false),
        ("TLS_AES_128_CCM_8_SHA256", false),
    ] {
        let said = with(&["-ciphersuites", suite]);
        assert_eq!(is_open(&said), taken, "{suite}: {said}");
    }
    // Whoever offers none of the mesh's protocols finds no TLS at all.
    for protocols in [&[][..], &["-alpn", "h2"]] {
        let said = openssl.says(protocols);
        assert!(
            !is_open(&said) && said.contains("no peer certificate available"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hybrid_group_comes_first_and_nothing_is_given_to_resume_by() {
    let root = Authority::root("root");
    let world = World::with(ends::inbound(&root, Mode::Strict)).await;
    let mut stream = ends::shake(world.proxy, client_config(Some(&root.leaf(|_| {}))))
        .await
        .expect("a handshake");
    let group = stream
        .get_ref()
        .1
        .negotiated_key_exchange_group()
        .map(|group| group.name());
    assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    // All that the server says on its own has come once it has answered.
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &raw::settings(&[])].concat();
    stream.write_all(&preface).await.expect("it is read");
    assert!(stream.read(&mut [0; 1_024]).await.expect("it answers") > 0);
    let (_, client) = stream.get_ref();
    assert_eq!(client.tls13_tickets_received(), 0, "a ticket came");
    assert!(!client.is_early_data_accepted());
}

#[test]
fn controls_port_speaks_tls_1_3_alone() {
    support::test(|mesh| {
        let control = mesh.control(&[])?;
        let scanner = mesh.pod("scanner")?;
        let mut command = scanner.command(User::App, "sslscan");
        command.args([
            "--no-colour",
            "--xml=-",
            &control.pod().at(Family::V4, 8080)?.to_string(),
        ]);
        let found = scanner.run("sslscan", command)?;
        let all = |tag: &str| -> Vec<&str> {
            let begins = format!("<{tag} ");
            found
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with(&begins))
                .collect()
        };
        let value = |line: &str, name: &str| -> Result<String> {
            let rest = line
                .split_once(&format!(" {name}=\""))
                .with_context(|| format!("no {name} in {line}"))?
                .1;
            Ok(rest.split('"').next().unwrap_or_default().to_owned())
        };
        let mut enabled = Vec::new();
        for protocol in all("protocol") {
            if value(protocol, "enabled")? == "1" {
                enabled.push(format!("{} {}", value(protocol, "type")?, value(protocol, "version")?));
            }
        }
        ensure!(enabled == ["tls 1.3"], "there are {enabled:?}: {found}");
        let mut suites = Vec::new();
        for cipher in all("cipher") {
            ensure!(value(cipher, "sslversion")? == "TLSv1.3", "{cipher}");
            suites.push(value(cipher, "cipher")?);
        }
        ensure!(!suites.is_empty() && suites.len() <= 3, "the suites are {suites:?}");
        let mut groups = Vec::new();
        for group in all("group") {
            groups.push(value(group, "name")?);
        }
        // sslscan does not know the hybrid one.
        let strong = |name: &String| name.contains("25519") || name.contains("P-256") || name.contains("secp256r1");
        ensure!(
            !groups.is_empty() && groups.iter().all(strong),
            "the groups are {groups:?}"
        );
        let renegotiation = all("renegotiation");
        ensure!(
            renegotiation.iter().all(|line| line.contains("supported=\"0\"")),
            "{renegotiation:?}"
        );
        let bled = all("heartbleed");
        ensure!(bled.iter().all(|line| line.contains("vulnerable=\"0\"")), "{bled:?}");
        Ok(())
    });
}
