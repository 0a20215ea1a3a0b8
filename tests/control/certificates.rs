//! Certificates come and go under load: renewed, ended while control is away, and of another issuer and root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::pki::Pki;
use support::traffic::{Call, Calls, Traffic, now};
use support::{Control, Member, Mesh, Sidecar, wait_until};

use crate::secrets::Closely;
use crate::shop::{Shop, certified, member, none_failed, timed};

#[test]
fn certificates_are_renewed_without_a_failed_call_or_a_file_and_once_they_end_without_control_nothing_passes_until_it_is_back()
 {
    support::test(|mesh| {
        let control = mesh.control(&A_MINUTE)?;
        // Nobody calls this one: to be watched slows it.
        let closely = Closely::watch(mesh, &control)?;
        let mut shop = Shop::open(mesh, control, 2, &[], &[])?;
        let began = now();
        let traffic = shop.calls(100, Duration::from_secs(300))?;
        timed(A_LIFE, "every certificate was renewed", || {
            shop.sidecars().all(|sidecar| certified(sidecar) >= 2.0)
        })?;
        closely.has_written_no_key()?;
        let opened = opened(&shop.sidecar);
        shop.control.kill()?;
        timed(
            Duration::from_secs(70),
            "connections of the first certificates are replaced",
            || self::opened(&shop.sidecar) >= opened + 2.0,
        )?;
        println!("{:>8.1} s after the certificate came", now() - began);
        none_failed(
            &traffic.calls(),
            2_000,
            "while certificates were renewed and connections replaced",
        )?;

        timed(Duration::from_secs(120), "the first certificate is over", || {
            shop.sidecars().any(is_over)
        })?;
        let first_over = now();
        timed(Duration::from_secs(60), "every certificate is over", || {
            shop.sidecars().all(is_over)
        })?;
        // It ended a little before anybody saw that.
        let until_then = traffic.calls().between(0.0, first_over - 2.0);
        none_failed(&until_then, 4_000, "while certificates lasted, and control was away")?;
        let opened = self::opened(&shop.sidecar) - opened;
        println!("{opened} connections were opened since control went away");
        ensure!(
            opened < 50.0,
            "without another certificate {opened} connections were opened"
        );
        let last_ok = |traffic: &Traffic| traffic.calls().0.last().is_some_and(|call| call.is_ok());
        timed(Duration::from_secs(30), "calls fail", || !last_ok(&traffic))?;
        traffic.flow(Duration::from_secs(1));
        let over = now();
        traffic.flow(Duration::from_secs(2));
        let refused = traffic.calls().between(over, f64::MAX);
        ensure!(refused.answered_by().is_empty(), "calls pass without a certificate");
        println!("without a certificate: {refused}");
        all_say(&refused, "and this sidecar has no valid certificate: see /ready")?;
        let failed = handshakes(&shop.sidecar, "outbound", "no_own_certificate")?;
        ensure!(failed >= 1.0, "{failed} handshakes are counted as failed for that");

        shop.control.launch()?;
        let back = now();
        timed(SOON, "calls pass again", || last_ok(&traffic))?;
        traffic.flow(Duration::from_secs_f64((back + 9.0 - now()).max(0.0)));
        let calls = traffic.calls();
        let first = calls
            .between(back, f64::MAX)
            .0
            .iter()
            .filter(|call| call.is_ok())
            .map(|call| call.at)
            .fold(f64::MAX, f64::min);
        println!(
            "{:>8.0} ms after control's return the first call passes",
            (first - back) * 1_000.0
        );
        ensure!(
            first < back + 5.0,
            "{:.1} s after control's return the first call passed",
            first - back
        );
        let late = calls.between(back + 5.0, f64::MAX);
        none_failed(&late, 300, "from five seconds after control's return on")?;
        timed(SOON, "both answer", || {
            traffic.calls().between(back + 5.0, f64::MAX).answered_by().len() == 2
        })?;
        let joined = shop
            .control
            .metrics()?
            .sum("portunus_control_certificates_total", &[("proof", "token")]);
        ensure!(joined == 3.0, "{joined} came back by their token");
        Ok(())
    });
}

#[test]
fn a_callee_whose_certificate_has_ended_takes_no_handshake_and_both_ends_say_why_until_it_has_control_again() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&A_MINUTE)?, 1, &[], &[])?;
        let greeter = shop.greeters.first().context("there is one")?;
        let traffic = shop.calls(100, Duration::from_secs(300))?;
        timed(SOON, "it is called", || !traffic.calls().answered_by().is_empty())?;

        // Control is away for the callee alone: its caller goes on being certified.
        greeter.pod.nft(NO_CONTROL)?;
        timed(Duration::from_secs(120), "the callee's certificate is over", || {
            is_over(&greeter.sidecar)
        })?;
        let over = now();
        let last_failed = || traffic.calls().0.last().is_some_and(|call| !call.is_ok());
        timed(Duration::from_secs(30), "calls fail", last_failed)?;
        none_failed(
            &traffic.calls().between(0.0, over - 2.0),
            4_000,
            "while the callee's certificate lasted",
        )?;
        traffic.flow(Duration::from_secs(1));
        let refusing = now();
        let (ended, failed) = (
            without_certificate(&greeter.sidecar)?,
            handshakes(&shop.sidecar, "outbound", NONE_THERE)?,
        );
        traffic.flow(Duration::from_secs(3));
        let refused = traffic.calls().between(refusing, f64::MAX);
        println!("by a callee without a certificate: {refused}");
        ensure!(
            refused.answered_by().is_empty(),
            "calls reach a callee without a certificate"
        );
        let ready = shop.sidecar.admin("/ready")?;
        ensure!(
            ready.status == 200 && certified(&shop.sidecar) >= 2.0,
            "its caller has no certificate either: {}",
            ready.body
        );

        // The callee names what it lacks, and its caller whom it does not reach, and how that ended.
        let ended = without_certificate(&greeter.sidecar)? - ended;
        ensure!(
            ended >= 1.0,
            "the callee counted {ended} connections that ended for that"
        );
        let output = greeter.sidecar.output();
        ensure!(
            output.contains("connection ended: this sidecar has no valid certificate: see /ready"),
            "the callee's log does not say so"
        );
        all_say(&refused, &format!("no mTLS with {} at ", Control::id("hello")))?;
        all_say(&refused, NONE_THERE_IN_WORDS)?;
        let failed = handshakes(&shop.sidecar, "outbound", NONE_THERE)? - failed;
        ensure!(failed >= 1.0, "its caller counted {failed} such handshakes");
        let shaken = handshakes(&greeter.sidecar, "inbound", "ok")?;

        greeter.pod.nft("delete table inet apart\n")?;
        let back = now();
        timed(SOON, "calls pass again", || !last_failed())?;
        traffic.flow(Duration::from_secs_f64((back + 8.0 - now()).max(0.0)));
        let late = traffic.calls().between(back + 5.0, f64::MAX);
        none_failed(&late, 200, "from five seconds after the callee had control again on")?;
        let shaken = handshakes(&greeter.sidecar, "inbound", "ok")? - shaken;
        ensure!(shaken >= 1.0, "calls passed without a handshake");
        Ok(())
    });
}

#[test]
fn another_issuer_and_then_another_root_cost_no_call() {
    support::test(|mesh| {
        let (old, new) = (
            Pki::new(support::control::TRUST_DOMAIN),
            Pki::new(support::control::TRUST_DOMAIN),
        );
        let shop = Shop::open(mesh, of_authority(mesh, &old)?, 2, &[], &[])?;
        let traffic = shop.calls(100, Duration::from_secs(200))?;
        let state = shop.control.state();

        issue(state, &old.another_issuer())?;
        all_renew(&shop, "by another issuer")?;

        place(&state.join("roots/root-2.pem"), &new.root_pem())?;
        let heard = |sidecar: &Sidecar| sidecar.output().matches("the trust bundle changed").count();
        timed(SOON, "all believe the new root too", || {
            shop.sidecars().all(|sidecar| heard(sidecar) == 1)
        })?;
        issue(state, &new.issuer())?;
        all_renew(&shop, "under another root")?;

        fs::remove_file(state.join("roots/root.pem"))?;
        timed(SOON, "nobody believes the old root any more", || {
            shop.sidecars().all(|sidecar| heard(sidecar) == 2)
        })?;
        let moved = now();
        traffic.flow(Duration::from_secs(5));
        none_failed(
            &traffic.calls().between(moved, f64::MAX),
            400,
            "under the new root alone",
        )?;
        none_failed(&traffic.calls(), 2_000, "while issuer and root changed")?;
        let metrics = shop.control.metrics()?;
        ensure!(
            metrics.sum("portunus_control_authority_error", &[]) == 0.0,
            "the authority's files are wrong"
        );
        let lost: f64 = shop.sidecars().map(certifications_that_failed).sum();
        ensure!(lost == 0.0, "{lost} certifications failed");
        Ok(())
    });
}

#[test]
fn another_service_account_of_a_running_workload_is_its_own_within_seconds() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 1, &[], &[])?;
        let traffic = shop.calls(50, Duration::from_secs(100))?;
        timed(SOON, "it is called", || !traffic.calls().answered_by().is_empty())?;
        let greeter = &shop.greeters[0];
        let renamed = Member {
            account: "renamed",
            ..member("hello")
        };
        shop.control.revise(&greeter.pod, &renamed)?;
        timed(SOON, "its sidecar has another certificate", || {
            certified(&greeter.sidecar) >= 2.0
        })?;
        let last_ok = || traffic.calls().0.last().is_some_and(|call| call.is_ok());
        timed(SOON, "it is called as who it is now", last_ok)?;
        let since = now();
        traffic.flow(Duration::from_secs(2));
        let since = traffic.calls().between(since, f64::MAX);
        none_failed(&since, 50, "under the new identity")?;
        let wrong = || handshakes(&shop.sidecar, "outbound", "wrong_identity");
        let before = wrong()?;
        traffic.flow(Duration::from_secs(1));
        ensure!(wrong()? == before, "somebody is still taken for another");
        Ok(())
    });
}

/// Control with the authority that the test has made.
fn of_authority(mesh: &Mesh, pki: &Pki) -> Result<Control> {
    let mut control = mesh.control_to_be(&A_MINUTE)?;
    let state = control.state().to_owned();
    fs::create_dir_all(state.join("roots"))?;
    place(&state.join("roots/root.pem"), &pki.root_pem())?;
    issue(&state, &pki.issuer())?;
    control.launch()?;
    Ok(control)
}

fn issue(state: &Path, issuer: &str) -> Result<()> {
    place(&state.join("issuer.pem"), issuer)
}

/// Written elsewhere and renamed: nobody reads half a file.
pub(crate) fn place(file: &Path, text: &str) -> Result<()> {
    let unfinished = file.with_extension("unfinished");
    fs::write(&unfinished, text)?;
    Ok(fs::rename(&unfinished, file)?)
}

/// Waits until control has read the authority, and every sidecar has a certificate since.
fn all_renew(shop: &Shop, how: &str) -> Result<()> {
    let read = || {
        shop.control
            .output()
            .matches("the certificate authority was read again")
            .count()
    };
    let before = read();
    wait_until(SOON, "control reads the authority again", || read() > before)?;
    let before: Vec<_> = shop.sidecars().map(certified).collect();
    timed(A_LIFE, &format!("every certificate was renewed {how}"), || {
        shop.sidecars()
            .zip(&before)
            .all(|(sidecar, before)| certified(sidecar) > *before)
    })?;
    Ok(())
}

fn is_over(sidecar: &Sidecar) -> bool {
    let ready = sidecar.admin("/ready");
    ready.is_ok_and(|ready| ready.status == 503 && ready.body.contains("certificate is over"))
}

/// All were refused with UNAVAILABLE, and with this in their sentence.
fn all_say(refused: &Calls, what: &str) -> Result<()> {
    let says = |call: &Call| call.code == "UNAVAILABLE" && call.why.contains(what);
    ensure!(
        !refused.is_empty() && refused.0.iter().all(says),
        "not every call says {what:?}:{refused}"
    );
    Ok(())
}

/// How many handshakes ended so.
pub(crate) fn handshakes(sidecar: &Sidecar, direction: &str, result: &str) -> Result<f64> {
    let labels = [("direction", direction), ("result", result)];
    Ok(sidecar.metrics()?.sum("portunus_tls_handshakes_total", &labels))
}

/// How many connections to a sidecar ended because it had no certificate to answer with.
pub(crate) fn without_certificate(sidecar: &Sidecar) -> Result<f64> {
    let labels = [("direction", "inbound"), ("reason", "no_own_certificate")];
    Ok(sidecar.metrics()?.sum("portunus_proxy_errors_total", &labels))
}

pub(crate) fn certifications_that_failed(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().unwrap_or_default();
    let of = |labels: &[(&str, &str)]| metrics.sum("portunus_identity_certifications_total", labels);
    of(&[]) - of(&[("outcome", "certified")])
}

/// Connections to endpoints that a sidecar has opened so far.
pub(crate) fn opened(sidecar: &Sidecar) -> f64 {
    let upstream = [("direction", "outbound"), ("side", "upstream")];
    sidecar.metrics().map_or(0.0, |metrics| {
        metrics.sum("portunus_connections_opened_total", &upstream)
    })
}

pub(crate) const A_MINUTE: [&str; 2] = ["--certificate-lifetime", "1m"];
pub(crate) const A_LIFE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(15);
/// A pod whose packets to control are lost.
const NO_CONTROL: &str =
    "table inet apart {\nchain out {\ntype filter hook output priority 0;\ntcp dport 8080 drop;\n}\n}\n";
/// What a caller counts, and says, where the callee has no certificate.
pub(crate) const NONE_THERE: &str = "no_certificate_there";
const NONE_THERE_IN_WORDS: &str = "the peer has no valid certificate to show: see /ready there";
