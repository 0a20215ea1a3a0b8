//! A sidecar without a certificate says what is missing; and nobody ever says a token or a key.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::{Sidecar, Token};

use crate::raw::Asking;
use crate::shop::{CALLER, Shop, none_failed, timed};

#[test]
fn a_sidecar_is_not_ready_before_it_has_a_certificate_and_says_why() {
    support::test(|mesh| {
        let mut control = mesh.control(&[])?;
        let pod = mesh.pod("caller")?;
        let enrolled = control.enrol(&pod, &CALLER)?;
        let enrolled: Vec<_> = enrolled
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
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
fn no_token_and_no_key_is_in_a_log_on_a_page_or_in_a_file_of_a_sidecar() {
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
