//! Manifests change under load: wrong ones are told of and change nothing, right ones count within a second.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::traffic::{Calls, Traffic, now};
use support::{Control, Family};

use crate::certificates::opened;
use crate::mistakes::{GOOD, MISTAKES, whole};
use crate::shop::{Greeter, Shop, member, none_failed, timed};
use crate::stream::{Stream, talk};

#[test]
fn every_kind_of_mistake_is_told_with_file_line_and_field_and_loses_no_call_and_the_next_good_state_counts_at_once() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let spare = Greeter::start(mesh, &shop.control, "hello-3", "spare", &[])?;
        shop.control.apply("a-good", GOOD)?;
        let traffic = shop.calls(200, Duration::from_secs(100))?;
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
        let metrics = shop.control.metrics()?;
        ensure!(
            metrics.sum("portunus_control_source_error", &[]) == 1.0,
            "the newest state is wrong"
        );
        none_failed(&traffic.calls(), 500, "while manifests were wrong")?;
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
        shop.control.remove("bad")?;
        let taken = timed(
            Duration::from_secs(5),
            "a new endpoint is called once the state is good",
            || traffic.calls().answered_by().contains("hello-3"),
        )?;
        ensure!(taken < Duration::from_secs(1), "that took {taken:?}");
        none_failed(&traffic.calls(), 500, "when a good state came")
    });
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
        let opened = timed(SOON, "a policy lets plain calls in", || {
            !knocking.calls().answered_by().is_empty()
        })?;
        ensure!(opened < Duration::from_secs(1), "that took {opened:?}");
        shop.control.apply("inbound", &policy("strict"))?;
        let last = |calls: Calls| calls.0.last().is_some_and(|call| !call.is_ok());
        let shut = timed(SOON, "another policy keeps them out", || last(knocking.calls()))?;
        ensure!(shut < Duration::from_secs(1), "that took {shut:?}");

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

        shop.control.remove("workload-hello-3")?;
        let removed = now();
        traffic.flow(Duration::from_secs(3));
        let late = traffic.calls().between(removed + 1.0, f64::MAX);
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

fn refused(control: &Control) -> Result<f64> {
    Ok(control
        .metrics()?
        .sum("portunus_control_states_total", &[("result", "refused")]))
}

fn wait(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    support::wait_until(SOON, what, condition)
}

const SOON: Duration = Duration::from_secs(10);
