//! A hundred sidecars lose control at once, and find it again without a storm.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use portunus_proto::SpiffeId;
use portunus_sidecar::connect::resolve::{self, Names};
use portunus_sidecar::control as client;
use portunus_sidecar::route::Subject;
use support::control::TRUST_DOMAIN;
use support::{Control, Family, Pod, Token, in_netns, wait_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::shop::{cpu, timed};

#[test]
fn a_hundred_sidecars_ask_at_most_once_each_when_control_comes_up_and_when_it_comes_back() {
    support::test(|mesh| {
        let mut control = mesh.control(&[])?;
        let pod = mesh.pod("crowd")?;
        let settings = enrol(&pod, &control)?;
        control.kill()?;

        // All were started, and control was not.
        let crowd = Crowd::gather(&pod, settings)?;
        wait_until(SOON, "all know that nobody is there", || crowd.say("cannot be reached"))?;
        let first = comes_back(&mut control, &crowd)?;
        ensure!(
            first.certified.len() == CROWD,
            "{} were certified",
            first.certified.len()
        );
        ensure!(first.refused == 0.0, "{} were refused", first.refused);

        // It dies, and all notice at once.
        control.kill()?;
        wait_until(SOON, "all miss it", || crowd.connected() == 0)?;
        let again = comes_back(&mut control, &crowd)?;
        ensure!(
            again.certified.is_empty(),
            "they have certificates, and {} asked",
            again.certified.len()
        );

        // It hangs, with all their calls before its door, and goes on.
        control.program()?.pause()?;
        wait_until(SOON, "all miss it", || crowd.connected() == 0)?;
        thread::sleep(Duration::from_secs(5));
        let before = control.output().len();
        control.program()?.resume()?;
        let hung = heard(&mut control, &crowd, before)?;
        ensure!(
            hung.certified.is_empty(),
            "they have certificates, and {} asked",
            hung.certified.len()
        );
        Ok(())
    });
}

/// What control heard of the crowd in the ten seconds after it came.
struct Heard {
    /// Workload -> how often it asked for a certificate.
    certified: BTreeMap<String, usize>,
    refused: f64,
}

/// Starts control and looks on for ten seconds: nobody may ask for more than one certificate and one stream.
fn comes_back(control: &mut Control, crowd: &Crowd) -> Result<Heard> {
    let before = control.output().len();
    control.launch()?;
    heard(control, crowd, before)
}

fn heard(control: &mut Control, crowd: &Crowd, before: usize) -> Result<Heard> {
    let began = Instant::now();
    let used = cpu(control.program()?)?;
    let back = timed(SOON, "a hundred have a stream", || crowd.connected() == CROWD)?;
    thread::sleep(Duration::from_secs(10).saturating_sub(began.elapsed()));
    let output = control.output();
    let output = output.get(before..).context("the log grows")?;
    let (certified, followed) = (
        counted(output, "a key was certified"),
        counted(output, "a sidecar follows"),
    );
    println!(
        "control used {:.2} CPU seconds for them",
        cpu(control.program()?)? - used
    );
    ensure!(followed.len() == CROWD, "{} have followed", followed.len());
    for (what, counts) in [("certificates", &certified), ("streams", &followed)] {
        let greedy: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
        ensure!(greedy.is_empty(), "more {what} than one each: {greedy:?}");
    }
    ensure!(back < Duration::from_secs(3), "the last was back after {back:?}");
    let refused = control.metrics()?.sum("portunus_control_refused_total", &[]);
    Ok(Heard { certified, refused })
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

/// Makes them workloads of the mesh, each with its token; returns what each is told.
fn enrol(pod: &Pod, control: &Control) -> Result<Vec<client::Settings>> {
    let identity = SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}/ns/portunus/sa/control"))?;
    let address: client::Address = control.at(Family::V4)?.to_string().parse()?;
    let root = control.root_der()?;
    let (mut manifests, mut settings) = (String::new(), Vec::new());
    for number in 0..CROWD {
        let token = Token::new();
        writeln!(
            manifests,
            "---\napiVersion: portunus.dev/v1alpha1\nkind: Workload\nmetadata: {{name: one-{number}, namespace: shop}}\n\
             spec: {{serviceAccount: one-{number}, addresses: [10.78.0.{}], joinTokenSha256: {}}}",
            number + 1,
            token.hash
        )?;
        let file = pod.folder().join(format!("token-{number}"));
        std::fs::write(&file, token.text)?;
        settings.push(client::Settings {
            join_token: Some(file),
            ..client::Settings::new(vec![address.clone()], identity.clone(), vec![root.clone()])
        });
    }
    control.apply("crowd", &manifests)?;
    Ok(settings)
}

/// The sidecars' own clients of control, without the rest of a sidecar, on one thread in a pod.
struct Crowd {
    members: Vec<client::Control>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn gather(pod: &Pod, settings: Vec<client::Settings>) -> Result<Crowd> {
        let (to, started) = mpsc::channel();
        let (pod, stop) = (pod.clone(), CancellationToken::new());
        let stopped = stop.clone();
        let live = async move {
            let tracker = TaskTracker::new();
            let names = Names::start(resolve::Settings::default(), &tracker, stopped.clone());
            let start = |settings| client::start(settings, &names, &tracker, stopped.clone());
            let members: Result<Vec<_>, _> = settings.into_iter().map(start).collect();
            // Each follows something, as a sidecar does that has a call.
            let follow = |member: &client::Control| {
                member.directory().follow(Subject::Name {
                    host: "hello.shop".to_owned(),
                    port: 80,
                })
            };
            let _followed: Vec<_> = members.iter().flatten().map(follow).collect();
            let _ = to.send(members);
            stopped.cancelled().await;
            tracker.close();
            tracker.wait().await;
        };
        let thread = thread::spawn(move || {
            let _ = in_netns(&pod, || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map(|runtime| runtime.block_on(live))
            });
        });
        Ok(Crowd {
            members: started.recv().context("nobody was started")??,
            stop,
            thread: Some(thread),
        })
    }

    /// How many have a stream.
    fn connected(&self) -> usize {
        let connected = self
            .members
            .iter()
            .filter(|member| member.status().stream.is_connected());
        connected.count()
    }

    /// Whether all say that, of their certificate.
    fn say(&self, why: &str) -> bool {
        let missing = |member: &client::Control| member.status().certificate.missing();
        self.members
            .iter()
            .all(|member| missing(member).is_some_and(|missing| missing.contains(why)))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const CROWD: usize = 100;
const SOON: Duration = Duration::from_secs(15);
