//! Manifests change under load: wrong ones are told of and change nothing, right ones count within a second.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::traffic::{Calls, Traffic, now};
use support::{Control, Family, Pauses};

use crate::certificates::opened;
use crate::mistakes::{GOOD, MISTAKES, whole};
use crate::shop::{Greeter, Shop, a_second, member, none_failed, timed};
use crate::stream::{Stream, talk};

#[test]
fn every_kind_of_mistake_is_told_with_file_line_and_field_and_loses_no_call_and_the_next_good_state_counts_at_once() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let spare = Greeter::start(mesh, &shop.control, "hello-3", "spare", &[])?;
        shop.control.apply("a-good", GOOD)?;
        let traffic = shop.calls(RATE, Duration::from_secs(200))?;
        let began = now();
        for (text, line, field, sentence) in MISTAKES {
            let (before, logged) = (refused(&shop.control)?, shop.control.output().len());
            shop.control.apply("bad", &whole(text))?;
            wait(&format!("{text:?} is refused"), || {
                refused(&shop.control).is_ok_and(|now| now > before)
            })?;
            let source = shop.control.admin("/source")?.body;
            // Where YAML itself is broken, its reader may mean the line beside.
            let lines = [*line, line + 1, line - u32::from(*line > 1)];
            let lines = &lines[..if field.is_empty() { 3 } else { 1 }];
            let told = |text: &str| {
                let places: Vec<_> = lines.iter().map(|line| format!("bad.yaml:{line}:")).collect();
                text.lines().any(|told| {
                    let names = |place: &String| told.contains(place.as_str());
                    places.iter().any(names) && told.contains(field) && told.contains(sentence)
                })
            };
            ensure!(
                told(&source),
                "/source does not tell of {text:?} as it should:\n{source}"
            );
            // Nobody waits for the log, so it may come a moment later.
            wait(&format!("the log tells of {text:?} as it should"), || {
                shop.control.output().get(logged..).is_some_and(told)
            })?;
        }
        let seconds = now() - began;
        ensure!(source_error(&shop.control)? == 1.0, "the newest state is wrong");
        println!(
            "{} mistakes in {seconds:.1} s, {} calls",
            MISTAKES.len(),
            traffic.calls().len()
        );

        // Part of a state that is wrong elsewhere: it does not count yet.
        shop.control.revise(&spare.pod, &member("hello"))?;
        traffic.flow(Duration::from_millis(500));
        ensure!(
            !traffic.calls().answered_by().contains("hello-3"),
            "a part of a bad state was taken"
        );
        let pauses = Pauses::watch();
        shop.control.remove("bad")?;
        let taken = timed(
            Duration::from_secs(5),
            "a new endpoint is called once the state is good",
            || traffic.calls().answered_by().contains("hello-3"),
        )?;
        ensure!(taken < a_second(&pauses), "that took {taken:?}");
        ensure!(source_error(&shop.control)? == 0.0, "a good state was taken");
        let least = all_the_while(began);
        let when = "while manifests were wrong, and when a good state came";
        none_failed(&traffic.stop()?, least, when)
    });
}

#[test]
fn files_in_use_that_become_what_nobody_can_read_are_told_and_change_nothing_and_lose_no_call() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let traffic = shop.calls(RATE, Duration::from_secs(200))?;
        let began = now();
        // One that all calls need, and one of the two who answer them.
        for name in ["service-hello.yaml", "workload-hello-1.yaml"] {
            let file = shop.control.source().join(name);
            let good = fs::read(&file)?;
            for (becomes, says) in Becomes::ALL {
                let (before, taken) = (refused(&shop.control)?, taken(&shop.control)?);
                becomes.happen(&file, &good)?;
                wait(&format!("that {name} {becomes:?} is refused"), || {
                    refused(&shop.control).is_ok_and(|now| now > before)
                })?;
                let source = shop.control.admin("/source")?.body;
                let place = if becomes == Becomes::NoDirectory {
                    "/source"
                } else {
                    name
                };
                let told = |line: &str| line.contains(place) && line.contains(says);
                ensure!(
                    source.lines().any(told),
                    "that {name} {becomes:?} is not told as it should be:\n{source}"
                );
                ensure!(
                    source_error(&shop.control)? == 1.0,
                    "that {name} {becomes:?} is no trouble for who looks at numbers"
                );
                becomes.pass(&file, &good)?;
                wait(&format!("after {name} {becomes:?} it is taken as it was"), || {
                    self::taken(&shop.control).is_ok_and(|now| now > taken)
                        && source_error(&shop.control).is_ok_and(|error| error == 0.0)
                })?;
            }
        }
        println!("{:>8.1} s", now() - began);
        let least = all_the_while(began);
        let calls = traffic.stop()?;
        ensure!(calls.answered_by().len() == 2, "not both answer");
        none_failed(&calls, least, "while files could not be read")
    });
}

/// What becomes of a file that control has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Becomes {
    Nonsense,
    Halved,
    Empty,
    NotText,
    TooLong,
    Pipe,
    BrokenLink,
    NoDirectory,
}

impl Becomes {
    /// Each with what is said of it.
    const ALL: [(Becomes, &str); 8] = [
        (Becomes::Nonsense, "this is no YAML that can be read"),
        (Becomes::Halved, "spec"),
        (Becomes::Empty, "is empty, as a file is that is just being written"),
        (Becomes::NotText, "is not UTF-8: line 1 has other bytes"),
        (Becomes::TooLong, "is too long; expected at most 4194304 bytes"),
        (Becomes::Pipe, "is no file; expected a manifest"),
        (Becomes::BrokenLink, "cannot be read: No such file or directory"),
        (
            Becomes::NoDirectory,
            "cannot be read as a directory: No such file or directory",
        ),
    ];

    fn happen(self, file: &Path, good: &[u8]) -> Result<()> {
        let source = file.parent().context("it is in one")?;
        let unfinished = source.join(".unfinished");
        match self {
            Becomes::Nonsense => fs::write(file, [b"kind: [\n", good].concat())?,
            // As a writer leaves it who is killed, or whose disk is full.
            Becomes::Halved => {
                let spec = good
                    .windows(6)
                    .position(|bytes| bytes == b"\nspec:")
                    .context("it has one")?;
                fs::write(file, &good[..spec + 1])?;
            }
            Becomes::Empty => fs::write(file, "")?,
            Becomes::NotText => fs::write(file, [b"# \xff\xfe\n", good].concat())?,
            Becomes::TooLong => fs::write(file, [good, &[b"#".repeat(4 << 20), b"\n".to_vec()].concat()].concat())?,
            // At once: a moment without it would be a state without it.
            Becomes::Pipe => {
                nix::unistd::mkfifo(&unfinished, nix::sys::stat::Mode::S_IRWXU)?;
                fs::rename(&unfinished, file)?;
            }
            Becomes::BrokenLink => {
                symlink("nowhere.yaml", &unfinished)?;
                fs::rename(&unfinished, file)?;
            }
            Becomes::NoDirectory => fs::rename(source, source.with_extension("aside"))?,
        }
        Ok(())
    }

    fn pass(self, file: &Path, good: &[u8]) -> Result<()> {
        let source = file.parent().context("it is in one")?;
        if self == Becomes::NoDirectory {
            return Ok(fs::rename(source.with_extension("aside"), source)?);
        }
        let unfinished = source.join(".unfinished");
        fs::write(&unfinished, good)?;
        Ok(fs::rename(&unfinished, file)?)
    }
}

#[test]
fn a_change_of_zone_alone_is_shown_and_disturbs_no_connection_and_no_call() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 1, &[], &[])?;
        let _speakers = talk(&shop)?;
        let mut stream = Stream::begin(&shop)?;
        let traffic = shop.calls(200, Duration::from_secs(100))?;
        let greeter = shop.greeters.first().context("there is one")?;
        // One to each of its addresses, and the stream's.
        let all = greeter.pod.addresses().len() as f64 + 1.0;
        timed(SOON, "every address has been called", || opened(&shop.sidecar) >= all)?;
        let before = opened(&shop.sidecar);
        for zone in ["eu-west-1a", "eu-west-1b"] {
            shop.control.set_zone(&greeter.pod, zone)?;
            timed(SOON, &format!("its caller's sidecar shows zone {zone}"), || {
                shop.sidecar
                    .admin("/endpoints")
                    .is_ok_and(|page| page.body.contains(&format!("\"zone\": \"{zone}\"")))
            })?;
            traffic.flow(Duration::from_millis(500));
            stream.echo()?;
        }
        ensure!(stream.echoed == 3, "the stream goes on");
        let after = opened(&shop.sidecar);
        ensure!(after == before, "{after} connections were opened, and {before} before");
        none_failed(&traffic.calls(), 200, "while a zone changed")
    });
}

#[test]
fn endpoints_come_and_go_and_policy_changes_within_a_second_and_without_a_failed_call() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let mut third = Greeter::start(mesh, &shop.control, "hello-3", "hello", &[])?;
        let traffic = shop.calls(200, Duration::from_secs(100))?;
        timed(SOON, "all three are called", || {
            traffic.calls().answered_by().len() == 3
        })?;

        // Somebody who is no member, at first kept out.
        let stranger = mesh.pod("stranger")?;
        shop.dns.set("door.test", &[third.pod.address(Family::V4)?], 5)?;
        let knocking = Traffic::to(&stranger, "door.test", 50, Duration::from_secs(100))?;
        traffic.flow(Duration::from_millis(500));
        ensure!(
            knocking.calls().answered_by().is_empty(),
            "a strict port took a plain call"
        );
        let policy = |mode: &str| {
            format!(
                "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: hello, namespace: shop}}\n\
                 spec: {{selector: {{matchLabels: {{app: hello}}}}, mtls: {{mode: {mode}}}}}\n"
            )
        };
        shop.control.apply("inbound", &policy("permissive"))?;
        let pauses = Pauses::watch();
        let opened = timed(SOON, "a policy lets plain calls in", || {
            !knocking.calls().answered_by().is_empty()
        })?;
        ensure!(opened < a_second(&pauses), "that took {opened:?}");
        shop.control.apply("inbound", &policy("strict"))?;
        let last = |calls: Calls| calls.0.last().is_some_and(|call| !call.is_ok());
        let pauses = Pauses::watch();
        let shut = timed(SOON, "another policy keeps them out", || last(knocking.calls()))?;
        ensure!(shut < a_second(&pauses), "that took {shut:?}");

        shop.control.apply(
            "outbound",
            "apiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {name: hello, namespace: shop}\n\
             spec: {targetRefs: [{kind: Service, name: hello}], balancer: {algorithm: RoundRobin}}\n",
        )?;
        timed(SOON, "its sidecar says which policy that is", || {
            shop.sidecar
                .admin("/endpoints")
                .is_ok_and(|page| page.body.contains("\"policy\": \"shop/hello\""))
        })?;
        let balanced = now();
        traffic.flow(Duration::from_secs(2));
        let calls = traffic.calls().between(balanced, f64::MAX);
        for name in ["hello-1", "hello-2", "hello-3"] {
            let share = calls.0.iter().filter(|call| call.from == name).count() as f64 / calls.len() as f64;
            ensure!((share - 1.0 / 3.0).abs() < 0.02, "in turn, {name} has {share:.3}");
        }

        // One is three times as strong as either of the others.
        shop.control.set_weight(&third.pod, 3)?;
        timed(SOON, "every other call at least is its own", || {
            let calls = traffic.calls().0;
            calls
                .iter()
                .rev()
                .take(50)
                .filter(|call| call.from == "hello-3")
                .count()
                > 25
        })?;
        let weighed = now();
        traffic.flow(Duration::from_secs(2));
        let calls = traffic.calls().between(weighed, f64::MAX);
        for (name, expected) in [("hello-1", 0.2), ("hello-2", 0.2), ("hello-3", 0.6)] {
            let share = calls.0.iter().filter(|call| call.from == name).count() as f64 / calls.len() as f64;
            ensure!((share - expected).abs() < 0.02, "by weight, {name} has {share:.3}");
        }

        shop.control.remove("workload-hello-3")?;
        let (removed, pauses) = (now(), Pauses::watch());
        traffic.flow(Duration::from_secs(3));
        let late = removed + a_second(&pauses).as_secs_f64();
        let late = traffic.calls().between(late, f64::MAX);
        let last = traffic
            .calls()
            .0
            .iter()
            .filter(|call| call.from == "hello-3")
            .map(|call| call.at)
            .fold(0.0, f64::max);
        println!(
            "{:>8.0} ms until a removed workload is not called any more",
            (last - removed).max(0.0) * 1_000.0
        );
        ensure!(
            !late.answered_by().contains("hello-3"),
            "a removed workload is still called"
        );
        none_failed(&late, 200, "after a workload was removed")?;
        none_failed(&traffic.calls(), 500, "while endpoints and policy changed")?;

        ensure!(
            third.sidecar.output().contains("control shuts this sidecar out"),
            "its stream goes on"
        );
        third.sidecar.begin_again()?;
        timed(SOON, "a removed workload's token does not work", || {
            third
                .sidecar
                .admin("/ready")
                .is_ok_and(|ready| ready.status == 503 && ready.body.contains("Unauthenticated"))
        })?;
        Ok(())
    });
}

/// How many calls have been made since a moment, if there were calls all the while: all that were due, but for a moment's.
fn all_the_while(began: f64) -> usize {
    (f64::from(RATE) * (now() - began - 0.5)) as usize
}

fn refused(control: &Control) -> Result<f64> {
    states(control, "refused")
}

fn taken(control: &Control) -> Result<f64> {
    states(control, "accepted")
}

fn states(control: &Control, result: &str) -> Result<f64> {
    Ok(control
        .metrics()?
        .sum("portunus_control_states_total", &[("result", result)]))
}

fn source_error(control: &Control) -> Result<f64> {
    let metrics = control.metrics()?;
    ensure!(
        metrics.has("portunus_control_source_error", &[]),
        "the number is not there"
    );
    Ok(metrics.sum("portunus_control_source_error", &[]))
}

fn wait(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    support::wait_until(SOON, what, condition)
}

const SOON: Duration = Duration::from_secs(10);
/// Calls a second.
const RATE: u32 = 200;
