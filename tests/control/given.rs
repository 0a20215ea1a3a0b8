//! Control with an issuer of somebody else's: it signs by that, trusts the roots that it is told of, and takes another pair
//! once that fits.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use support::control::TRUST_DOMAIN;
use support::pki::Pki;
use support::{Control, Mesh, Pod};

use crate::certificates::place;
use crate::raw::{Asking, Certified};
use crate::shop::{CALLER, Shop, none_failed, timed};

#[test]
fn sidecars_are_certified_by_the_issuer_that_control_was_given_and_a_pair_that_does_not_fit_waits_until_it_does() {
    support::test(|mesh| {
        let (own, other) = (Pki::new(TRUST_DOMAIN), Pki::new(TRUST_DOMAIN));
        let given = Given::of(mesh, &own, &other)?;
        let mut control = given.control(mesh)?;
        control.launch()?;
        let shop = Shop::open(mesh, control, 1, &[], &[])?;
        let traffic = shop.calls(100, Duration::from_secs(100))?;

        let first = certificate(&own.issuer_pem().0)?;
        let certified = ask(&shop.control, &shop.caller)?;
        ensure!(
            certified.issuers == [first.clone()],
            "another than the given issuer signs"
        );
        ensure!(certified.id() == Control::id("caller"), "it is {}", certified.id());
        let left = certified.until().duration_since(SystemTime::now())?;
        let day = Duration::from_secs(24 * 60 * 60);
        ensure!(
            left <= day && left > day - Duration::from_secs(60),
            "it lasts {left:?}, and no other life was said"
        );
        // In whichever order.
        let roots = BTreeSet::from([der(&own.root_pem())?, der(&other.root_pem())?]);
        let trusted: BTreeSet<_> = certified.roots.iter().map(|root| root.to_vec()).collect();
        ensure!(trusted == roots, "the roots are not those of --extra-root");
        ensure!(!shop.control.state().join("issuer.pem").exists(), "an issuer was made");
        ensure!(authority_error(&shop.control)? == 0.0, "the pair that was given fits");

        // Another issuer's certificate comes first, and its key is still on its way.
        let (next, key) = halves(&own.another_issuer())?;
        place(&given.certificate, &next)?;
        timed(SOON, "a pair that does not fit is counted", || {
            authority_error(&shop.control).is_ok_and(|error| error == 1.0)
        })?;
        timed(SOON, "the log says so", || {
            let says = |line: &str| {
                line.contains("the certificate authority cannot be read again or renewed")
                    && line.contains("issuer.pem")
                    && line.contains("not that of its certificate")
            };
            shop.control.output().lines().any(says)
        })?;
        ensure!(
            ask(&shop.control, &shop.caller)?.issuers == [first],
            "the pair before it does not sign on"
        );
        let latecomer = mesh.pod("latecomer")?;
        let _sidecar = latecomer.member(&shop.control, &CALLER, &[])?;

        place(&given.key, &key)?;
        timed(SOON, "the pair that fits is taken", || {
            authority_error(&shop.control).is_ok_and(|error| error == 0.0)
        })?;
        ensure!(
            ask(&shop.control, &shop.caller)?.issuers == [certificate(&next)?],
            "the new issuer does not sign"
        );
        let last = mesh.pod("last")?;
        let _sidecar = last.member(&shop.control, &CALLER, &[])?;
        none_failed(&traffic.calls(), 300, "while the issuer that was given changed")
    });
}

#[test]
fn who_is_certified_under_another_root_that_control_was_told_of_is_called_and_calls() {
    support::test(|mesh| {
        let (own, other) = (Pki::new(TRUST_DOMAIN), Pki::new(TRUST_DOMAIN));
        let given = Given::of(mesh, &own, &other)?;
        let mut control = given.control(mesh)?;
        control.launch()?;
        let mut shop = Shop::open(mesh, control, 1, &[], &[])?;
        none_failed(&shop.calls(50, A_SECOND)?.end(A_SECOND)?, 50, "under one root")?;
        // The caller keeps the certificate that it has, and the greeter gets one under the other root.
        shop.control.stop()?;
        let (certificate, key) = other.issuer_pem();
        place(&given.certificate, &certificate)?;
        place(&given.key, &key)?;
        shop.control.launch()?;
        // One that starts now has to know it from its operator.
        let both = own.root_pem() + &other.root_pem();
        place(&shop.greeters[0].pod.folder().join("bundle.pem"), &both)?;
        shop.greeters[0].sidecar.restart()?;
        place(&shop.control.root(), &other.root_pem())?;
        let shown = ask(&shop.control, &shop.caller)?.issuers;
        ensure!(
            shown == [self::certificate(&certificate)?],
            "the other issuer does not sign"
        );
        none_failed(&shop.calls(50, A_SECOND)?.end(A_SECOND)?, 50, "between two roots")
    });
}

/// The files that control is given.
struct Given {
    certificate: PathBuf,
    key: PathBuf,
    roots: [PathBuf; 2],
}

impl Given {
    /// An issuer of `own`; its root is trusted, and so is that of `other`.
    fn of(mesh: &Mesh, own: &Pki, other: &Pki) -> Result<Given> {
        let path = |name: &str| mesh.folder().join(name);
        let given = Given {
            certificate: path("issuer.pem"),
            key: path("issuer-key.pem"),
            roots: [path("root.pem"), path("other-root.pem")],
        };
        let (certificate, key) = own.issuer_pem();
        fs::write(&given.certificate, certificate)?;
        fs::write(&given.key, key)?;
        for (root, pki) in given.roots.iter().zip([own, other]) {
            fs::write(root, pki.root_pem())?;
        }
        Ok(given)
    }

    /// A control that is given these; sidecars are set up with the first root alone.
    fn control(&self, mesh: &Mesh) -> Result<Control> {
        let [root, other] = self.roots.each_ref().map(|path| path.display().to_string());
        let (certificate, key) = (self.certificate.display().to_string(), self.key.display().to_string());
        let control = mesh.control_to_be(&[
            "--issuer-certificate",
            &certificate,
            "--issuer-key",
            &key,
            "--extra-root",
            &root,
            "--extra-root",
            &other,
        ])?;
        fs::create_dir_all(control.root().parent().context("it is in a directory")?)?;
        fs::copy(&self.roots[0], control.root())?;
        Ok(control)
    }
}

/// A certificate for a pod, by its token.
fn ask(control: &Control, pod: &Pod) -> Result<Certified> {
    let token = fs::read_to_string(pod.folder().join("join-token"))?;
    Ok(Asking::of(control)?.certify(pod, None, &token, "")??)
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).context("it is a certificate")
}

fn der(pem: &str) -> Result<Vec<u8>> {
    Ok(certificate(pem)?.to_vec())
}

/// A certificate in PEM, and the key that stands behind it.
fn halves(pem: &str) -> Result<(String, String)> {
    let key = pem.find("-----BEGIN PRIVATE KEY").context("there is a key")?;
    Ok((pem[..key].to_owned(), pem[key..].to_owned()))
}

fn authority_error(control: &Control) -> Result<f64> {
    let metrics = control.metrics()?;
    ensure!(
        metrics.has("portunus_control_authority_error", &[]),
        "the number is not there"
    );
    Ok(metrics.sum("portunus_control_authority_error", &[]))
}

const A_SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(15);
