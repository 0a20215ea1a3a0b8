//! A sidecar without a certificate says what is missing; and nobody ever says a token or a key.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Control, Mesh, Sidecar, Token, lent};

use crate::raw::Asking;
use crate::shop::{CALLER, Shop, certified, none_failed, timed};

#[test]
fn a_sidecar_is_not_ready_before_it_has_a_certificate_and_says_why() {
    support::test(|mesh| {
        let mut control = mesh.control(&[])?;
        let pod = mesh.pod("caller")?;
        let enrolled = control.enrol(&pod, &CALLER)?;
        let enrolled = lent(&enrolled);
        let token_file = pod.folder().join("join-token");
        let token = fs::read_to_string(&token_file)?;

        fs::remove_file(&token_file)?;
        let sidecar = pod.sidecar_unready(&enrolled)?;
        says(&sidecar, "the join token cannot be read")?;
        control.kill()?;
        fs::write(&token_file, Token::new().text)?;
        says(&sidecar, "control cannot be reached")?;
        control.launch()?;
        says(&sidecar, "Unauthenticated")?;
        // A request that was answered with no is not repeated at once.
        fs::write(&token_file, &token)?;
        timed(
            Duration::from_secs(30),
            "the right token is tried, and it is ready",
            || sidecar.admin("/ready").is_ok_and(|ready| ready.status == 200),
        )?;
        Ok(())
    });
}

#[test]
fn no_token_and_no_key_is_in_a_log_on_a_page_or_in_what_the_system_shows_of_a_sidecar() {
    support::test(|mesh| {
        let control = mesh.control(&[])?;
        let shop = Shop::open(mesh, control, 1, &[("PORTUNUS_LOG_LEVEL", "debug")], &[])?;
        let second = Duration::from_secs(1);
        none_failed(&shop.calls(50, second)?.end(second)?, 50, "at all")?;
        // A guess, and something wrong in a manifest.
        let guess = Token::new();
        let thief = mesh.pod("thief")?;
        let refused = Asking::of(&shop.control)?.certify(&thief, None, &guess.text, "")?;
        ensure!(refused.is_err(), "a guess was right");
        let bad = format!(
            "kind: Workload\napiVersion: portunus.dev/v1alpha1\njoinToken: {}\n",
            guess.text
        );
        shop.control.apply("bad", &bad)?;
        timed(second * 5, "the mistake is told", || {
            shop.control
                .admin("/source")
                .is_ok_and(|source| source.body.contains("bad.yaml"))
        })?;

        let mut secrets = vec![guess.text.clone()];
        for pod in [&shop.caller, &shop.greeters[0].pod] {
            secrets.push(fs::read_to_string(pod.folder().join("join-token"))?);
        }
        let state = shop.control.state();
        for file in ["issuer.pem", "root-key.pem"] {
            let text = fs::read_to_string(state.join(file))?;
            let key = text.split("PRIVATE KEY-----\n").nth(1).context("there is a key")?;
            secrets.push(key.lines().next().context("it has a line")?.to_owned());
        }
        let upper: Vec<_> = secrets.iter().map(|secret| secret.to_uppercase()).collect();
        secrets.extend(upper);
        secrets.push("PRIVATE KEY".to_owned());

        let mut places = vec![("control's log".to_owned(), shop.control.output())];
        for page in ["/live", "/ready", "/metrics", "/source"] {
            places.push((format!("control's {page}"), shop.control.admin(page)?.body));
        }
        for sidecar in shop.sidecars() {
            places.push(("a sidecar's log".to_owned(), sidecar.output()));
            for page in ["/config", "/ready", "/metrics", "/endpoints"] {
                places.push((format!("a sidecar's {page}"), sidecar.admin(page)?.body));
            }
            let process = format!("/proc/{}/", sidecar.pid());
            for file in ["cmdline", "environ"] {
                let text = String::from_utf8_lossy(&fs::read(format!("{process}{file}"))?).into_owned();
                places.push((format!("a sidecar's {file}"), text));
            }
        }
        ensure!(
            places.iter().filter(|(_, text)| text.len() > 20).count() > 10,
            "nothing was looked at"
        );
        for (place, text) in &places {
            for secret in &secrets {
                ensure!(!text.contains(secret.as_str()), "{secret:?} stands in {place}");
            }
        }
        for file in ["", "issuer.pem", "root-key.pem", "roots/root.pem", "lock"] {
            let mode = fs::metadata(state.join(file))?.permissions().mode();
            ensure!(mode & 0o077 == 0, "others may read {file:?} of the state: {mode:o}");
        }
        Ok(())
    });
}

/// A sidecar that is watched from before its first key is made.
pub(crate) struct Closely {
    sidecar: Sidecar,
    watched: Watched,
}

impl Closely {
    /// Starts one and begins to watch; only then it has what it joins by.
    pub(crate) fn watch(mesh: &Mesh, control: &Control) -> Result<Closely> {
        let pod = mesh.pod("watched")?;
        let enrolled = control.enrol(&pod, &CALLER)?;
        let mut enrolled = lent(&enrolled);
        enrolled.push(("PORTUNUS_LOG_LEVEL", "debug"));
        let token_file = pod.folder().join("join-token");
        let token = fs::read_to_string(&token_file)?;
        fs::remove_file(&token_file)?;
        let sidecar = pod.sidecar_unready(&enrolled)?;
        says(&sidecar, "the join token cannot be read")?;
        let watched = Watched::begin(sidecar.pid().as_raw(), &pod.folder().join("watched"))?;
        fs::write(&token_file, &token)?;
        Ok(Closely { sidecar, watched })
    }

    /// Waits until its second key is certified; up to then it has written no file, and its log has no key.
    pub(crate) fn has_written_no_key(self) -> Result<()> {
        let Closely { sidecar, watched } = self;
        timed(Duration::from_secs(90), "it has had two certificates", || {
            certified(&sidecar) >= 2.0
        })?;
        let seen = watched.end()?;
        let read = |line: &&str| line.contains("join-token") && line.contains("O_RDONLY");
        ensure!(seen.lines().any(|line| read(&line)), "nothing was seen:\n{seen}");
        let wrote: Vec<_> = seen.lines().filter(|line| makes_or_writes(line)).collect();
        ensure!(wrote.is_empty(), "it made or opened for writing: {wrote:#?}");

        // What it had open before that: nothing but the file that its output goes to.
        let log = fs::canonicalize(sidecar.log())?;
        let process = format!("/proc/{}", sidecar.pid());
        let mut open = 0;
        for entry in fs::read_dir(format!("{process}/fd"))?.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else {
                continue;
            };
            let number = entry.file_name().to_string_lossy().into_owned();
            // A socket may be gone by now.
            let Ok(info) = fs::read_to_string(format!("{process}/fdinfo/{number}")) else {
                continue;
            };
            let flags = info
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .context("it has flags")?;
            let writes = u32::from_str_radix(flags.trim(), 8)? & 0o3 != 0;
            // Sockets, pipes and events are no files.
            if target.is_absolute() && writes {
                ensure!(target == log, "{} is open for writing", target.display());
                open += 1;
            }
        }
        ensure!(open == 2, "{open} of its two outputs were found");
        let output = fs::read(&log)?;
        ensure!(output.len() > 1_000, "the log has {} bytes", output.len());
        for (form, key) in beginnings_of_keys() {
            let found = output.windows(key.len()).any(|bytes| bytes == key);
            ensure!(!found, "a key stands in the log, {form}");
        }
        Ok(())
    }
}

/// A process whose every file is seen that it opens, makes or renames.
struct Watched {
    strace: Child,
    seen: PathBuf,
}

impl Watched {
    fn begin(process: i32, seen: &Path) -> Result<Watched> {
        let calls = "?open,openat,?openat2,?creat,?memfd_create,?mkdir,mkdirat,?mknod,mknodat,?rename,?renameat,renameat2,\
                     ?link,linkat,?symlink,symlinkat,truncate,ftruncate";
        let mut strace = Command::new("strace");
        strace.args([
            "-f",
            "-s",
            "300",
            "-e",
            &format!("trace={calls}"),
            "-p",
            &process.to_string(),
            "-o",
        ]);
        let mut strace = strace.arg(seen).stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut says = BufReader::new(strace.stderr.take().context("it has one")?);
        let mut line = String::new();
        while !line.contains("attached") {
            line.clear();
            ensure!(says.read_line(&mut line)? > 0, "strace cannot attach");
        }
        // It is told of every thread: nobody may have to wait for a reader.
        std::thread::spawn(move || says.read_to_end(&mut Vec::new()));
        Ok(Watched {
            strace,
            seen: seen.to_owned(),
        })
    }

    fn end(mut self) -> Result<String> {
        let strace = Pid::from_raw(self.strace.id().cast_signed());
        kill(strace, Signal::SIGINT)?;
        self.strace.wait()?;
        Ok(fs::read_to_string(&self.seen)?)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// Whether a system call, as strace writes it, makes a file or opens one for writing.
fn makes_or_writes(call: &str) -> bool {
    // Where two calls cross, the first half of each line has its name and flags.
    if call.contains(" resumed>") {
        return false;
    }
    let Some((name, rest)) = call.split_once('(') else {
        return false;
    };
    let name = name.rsplit(' ').next().unwrap_or_default();
    match name {
        "open" | "openat" | "openat2" => ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| rest.contains(flag)),
        _ => true,
    }
}

/// How each key of the kinds that there are begins in PKCS#8, as bytes and as people write them.
fn beginnings_of_keys() -> Vec<(&'static str, Vec<u8>)> {
    // A sequence, version 0, and id-ecPublicKey or id-Ed25519 (RFC 5208, RFC 5480, RFC 8410).
    let p256 = b"\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01";
    let ed25519 = b"\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    vec![
        ("in DER", p256.to_vec()),
        ("in DER", ed25519.to_vec()),
        ("in hex", hex(p256).into_bytes()),
        ("in hex", hex(ed25519).into_bytes()),
        ("in PEM", b"MIGHAgEAMBMGByqGSM49".to_vec()),
        ("in PEM", b"MC4CAQAwBQYDK2VwBCIEI".to_vec()),
        ("in PEM", b"PRIVATE KEY".to_vec()),
        // As Rust shows bytes.
        ("as numbers", b"2, 1, 0, 48, 19, 6, 7, 42, 134, 72, 206, 61".to_vec()),
    ]
}

fn says(sidecar: &Sidecar, why: &str) -> Result<()> {
    let mut last = String::new();
    let said = timed(Duration::from_secs(20), &format!("it says {why:?}"), || {
        last = sidecar.admin("/ready").map_or_else(
            |error| error.to_string(),
            |ready| format!("{} {}", ready.status, ready.body),
        );
        last.starts_with("503") && last.contains(why)
    });
    said.map(drop).with_context(|| format!("it said: {last}"))
}
