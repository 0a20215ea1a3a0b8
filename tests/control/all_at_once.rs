//! A hundred sidecars lose control at once, and find it again without a storm.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::control::TRUST_DOMAIN;
use support::traffic::now;
use support::{Control, Family, Pauses, Pod, Program, Token, User, build, http, wait_until};

use crate::certificates::{A_LIFE, A_MINUTE};
use crate::shop::{a_second, cpu, timed};

#[test]
fn a_hundred_sidecars_ask_at_most_once_each_when_control_comes_however_long_it_was_away_and_hear_within_a_second_what_changed()
 {
    support::test(|mesh| {
        let mut control = mesh.control(&A_MINUTE)?;
        let pod = mesh.pod("crowd")?;
        let tokens = enrol(&control)?;
        control.kill()?;

        // All were started, and control was not.
        let crowd = Crowd::gather(&pod, &control, &tokens)?;
        wait_until(SOON, "all know that nobody is there", || {
            crowd.all(|log| log.contains("cannot be reached"))
        })?;
        let first = comes_back(&mut control)?;
        ensure!(first.certified == CROWD, "{} were certified", first.certified);
        ensure!(first.refused == 0.0, "{} were refused", first.refused);

        // It is away until their certificates fall due, and something changes that concerns them all.
        control.kill()?;
        control.apply("all", &policy("strict"))?;
        timed(A_LIFE, "every certificate is due", || crowd.all(is_due))?;
        let due = comes_back(&mut control)?;
        ensure!(due.certified == CROWD, "{} were certified", due.certified);
        ensure!(due.refused == 0.0, "{} were refused", due.refused);
        ensure!(due.joined == 0.0, "{} came by their token", due.joined);
        crowd.all_heard_soon(due.began, due.soon)?;

        // It is away until their certificates are over. Those that they get when it comes last.
        control.kill()?;
        control.set_arguments(&[]);
        // They end 20 s after their time is over.
        timed(A_LIFE * 2, "every certificate is over", || crowd.all_are_over(&pod))?;
        let over = comes_back(&mut control)?;
        ensure!(over.certified == CROWD, "{} were certified", over.certified);
        ensure!(over.refused == 0.0, "{} were refused", over.refused);
        ensure!(over.joined == CROWD as f64, "{} came by their token", over.joined);
        ensure!(over.back < FIVE_SECONDS, "the last was back after {:?}", over.back);

        // It dies, all notice at once, and something changes.
        control.kill()?;
        wait_until(SOON, "all miss it", || crowd.all(misses_control))?;
        control.apply("all", &policy("permissive"))?;
        let again = comes_back(&mut control)?;
        ensure!(
            again.certified == 0,
            "they have certificates, and {} asked",
            again.certified
        );
        crowd.all_heard_soon(again.began, again.soon)?;

        // It hangs, with all their calls before its door, those that were given up too, and goes on.
        control.program()?.pause()?;
        wait_until(SOON, "all miss it", || crowd.all(misses_control))?;
        control.apply("all", &policy("strict"))?;
        std::thread::sleep(TEN_SECONDS * 2);
        let before = control.output().len();
        let resumed = now() % A_DAY;
        control.program()?.resume()?;
        let hung = heard_by(&mut control, before)?;
        crowd.all_heard_soon(resumed, hung.soon)?;
        ensure!(
            hung.certified == 0,
            "they have certificates, and {} asked",
            hung.certified
        );
        Ok(())
    });
}

/// What control heard of the crowd in the ten seconds after it came.
struct Heard {
    /// How many asked for a certificate, each once.
    certified: usize,
    /// How many of them by their token, since it was started.
    joined: f64,
    refused: f64,
    /// How long it took until all had a stream.
    back: Duration,
    /// When it began to serve, if it was started: in seconds of the day.
    began: f64,
    /// What is within a second of that, on this machine.
    soon: Duration,
}

/// Starts control and looks on for ten seconds: nobody may ask for more than one certificate and one stream.
fn comes_back(control: &mut Control) -> Result<Heard> {
    let before = control.output().len();
    control.launch()?;
    heard_by(control, before)
}

fn heard_by(control: &mut Control, before: usize) -> Result<Heard> {
    let (began, used, pauses) = (Instant::now(), cpu(control.program()?)?, Pauses::watch());
    let followed = |control: &Control| counted(control.output().get(before..).unwrap_or_default(), FOLLOWS).len();
    let back = timed(SOON, "a hundred have a stream", || followed(control) == CROWD)?;
    std::thread::sleep(TEN_SECONDS.saturating_sub(began.elapsed()));
    let output = control.output();
    let output = output.get(before..).context("the log grows")?;
    let (certified, followed) = (counted(output, "a key was certified"), counted(output, FOLLOWS));
    println!(
        "control used {:.2} CPU seconds for them",
        cpu(control.program()?)? - used
    );
    for (what, counts) in [("certificates", &certified), ("streams", &followed)] {
        let greedy: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        ensure!(greedy.is_empty(), "more {what} than one each: {greedy:?}");
    }
    ensure!(back < TEN_SECONDS, "the last was back after {back:?}");
    let metrics = control.metrics()?;
    Ok(Heard {
        certified: certified.len(),
        joined: metrics.sum("portunus_control_certificates_total", &[("proof", "token")]),
        refused: metrics.sum("portunus_control_refused_total", &[]),
        back,
        began: said_at(output, "control serves sidecars").unwrap_or_default(),
        soon: a_second(&pauses),
    })
}

/// How often a log says something of each workload.
fn counted(log: &str, what: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(what)) {
        if let Some((_, rest)) = line.split_once("workload=") {
            let workload = rest.split(' ').next().unwrap_or_default();
            *counts.entry(workload.trim_matches('"').to_owned()).or_default() += 1;
        }
    }
    counts
}

/// When a log says something for the last time, in seconds of the day: `2026-11-26T22:37:09.694381Z  INFO ...`.
fn said_at(log: &str, what: &str) -> Option<f64> {
    let line = log.lines().rfind(|line| line.contains(what))?;
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let parts: Vec<f64> = time.split(':').filter_map(|part| part.parse().ok()).collect();
    let [hours, minutes, seconds] = parts[..] else {
        return None;
    };
    Some((hours * 60.0 + minutes) * 60.0 + seconds)
}

/// Makes them workloads of the mesh; returns the token of each.
fn enrol(control: &Control) -> Result<Vec<Token>> {
    let (mut manifests, mut tokens) = (String::new(), Vec::new());
    for number in 0..CROWD {
        let token = Token::new();
        writeln!(
            manifests,
            "---\napiVersion: portunus.dev/v1alpha1\nkind: Workload\nmetadata: {{name: one-{number}, namespace: shop}}\n\
             spec: {{serviceAccount: one-{number}, addresses: [10.78.0.{}], joinTokenSha256: {}}}",
            number + 1,
            token.hash
        )?;
        tokens.push(token);
    }
    control.apply("crowd", &manifests)?;
    Ok(tokens)
}

/// Sidecars as they are, each on ports of its own in one pod. No rule leads to them: nothing is called here.
struct Crowd(Vec<Program>);

impl Crowd {
    fn gather(pod: &Pod, control: &Control, tokens: &[Token]) -> Result<Crowd> {
        let program = pod.place(&build::sidecar()?)?;
        let bundle = pod.folder().join("bundle.pem");
        std::fs::copy(control.root(), &bundle)?;
        std::fs::set_permissions(&bundle, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        let at = control.at(Family::V4)?.to_string();
        let start = |(number, token): (usize, &Token)| {
            let file = pod.folder().join(format!("token-{number}"));
            std::fs::write(&file, &token.text)?;
            let port = |of| address_of(number, of).to_string();
            let mut command = pod.command(User::Sidecar, &program);
            command.args(["proxy", "--workers", "1", "--control-address", &at]);
            command.args([
                "--control-identity",
                &format!("spiffe://{TRUST_DOMAIN}/ns/portunus/sa/control"),
            ]);
            command.arg("--trust-bundle").arg(&bundle);
            command.arg("--join-token-file").arg(&file);
            command.args(["--outbound-listen", &port(0), "--inbound-listen", &port(1)]);
            command.args(["--admin-listen", &port(2)]);
            pod.start(&format!("one-{number}"), command)
        };
        let began = Instant::now();
        let crowd: Result<Vec<_>> = tokens.iter().enumerate().map(start).collect();
        println!("{:>8} ms to start them", began.elapsed().as_millis());
        Ok(Crowd(crowd?))
    }

    /// Whether that is true of every log.
    fn all(&self, is_so: impl Fn(&str) -> bool) -> bool {
        self.0.iter().all(|one| is_so(&one.output()))
    }

    /// Whether none of them has a certificate that serves.
    fn all_are_over(&self, pod: &Pod) -> bool {
        (0..self.0.len()).all(|number| {
            let ready = http::get(pod, address_of(number, 2), "/ready");
            ready.is_ok_and(|ready| ready.body.contains("certificate is over"))
        })
    }

    /// Within a second of `began`, when control began to serve or went on, the last of them has heard what changed.
    fn all_heard_soon(&self, began: f64, soon: Duration) -> Result<()> {
        let mut last = 0.0;
        for one in &self.0 {
            let at = said_at(&one.output(), "what is accepted changed").context("one has not heard it")?;
            // There may be a midnight between.
            last = f64::max(last, (at - began).rem_euclid(A_DAY));
        }
        println!("{:>8.0} ms later the last has heard what changed", last * 1_000.0);
        ensure!(
            last < soon.as_secs_f64(),
            "the last heard {last:.2} s after control was there what had changed"
        );
        Ok(())
    }
}

/// The first, second or third address that one of them listens at.
fn address_of(number: usize, of: usize) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, (FIRST_PORT + 3 * number + of) as u16).into()
}

/// What all of them hear, whatever they follow.
fn policy(mode: &str) -> String {
    format!(
        "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: all, namespace: shop}}\n\
         spec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// Whether a sidecar has asked for another certificate, in vain, since it got its last.
fn is_due(log: &str) -> bool {
    log.rfind("there is no new certificate") > log.rfind("certified identity")
}

/// Whether the last that a sidecar said of control is that it is away.
fn misses_control(log: &str) -> bool {
    log.rfind("control is away") > log.rfind("control answers")
}

/// In seconds.
const A_DAY: f64 = 86_400.0;
const CROWD: usize = 100;
const FIRST_PORT: usize = 20_000;
const FOLLOWS: &str = "a sidecar follows";
const FIVE_SECONDS: Duration = Duration::from_secs(5);
const TEN_SECONDS: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(20);
