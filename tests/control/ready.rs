//! An endpoint that is not ready gets no new call, and what runs there goes on.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use support::Pauses;
use support::traffic::{Traffic, now};

use crate::shop::{Shop, a_second, none_failed, timed};
use crate::stream::{Stream, reached, streams, talk};

#[test]
fn an_endpoint_that_is_not_ready_gets_no_new_call_and_its_stream_goes_on_and_it_comes_back() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let _talkers = talk(&shop)?;
        let traffic = shop.calls(200, Duration::from_secs(100))?;
        timed(SOON, "both are called", || traffic.calls().answered_by().len() == 2)?;
        let mut stream = Stream::begin(&shop)?;
        let leaving = reached(&shop)?;

        let (left, pauses) = (now(), Pauses::watch());
        shop.control.set_ready(&leaving.pod, false)?;
        let mut others = Vec::new();
        while now() < left + 3.0 || (stream.echoed <= 20 && now() < left + 60.0) {
            stream.echo().context("the stream of the one that is not ready")?;
            others.push(Stream::begin(&shop)?);
        }
        let last = last_at(&traffic, leaving.pod.name()) - left;
        println!("{:>8.0} ms after it was not ready it got its last call", last * 1_000.0);
        let soon = a_second(&pauses).as_secs_f64();
        ensure!(last < soon, "it was called {last:.2} s after it was not ready");
        ensure!(streams(leaving) >= 1.0, "its stream is not there any more");
        ensure!(stream.echoed > 20, "{} messages were echoed", stream.echoed);

        shop.control.set_ready(&leaving.pod, true)?;
        let (ready, pauses) = (now(), Pauses::watch());
        timed(SOON, "it is called again", || {
            last_at(&traffic, leaving.pod.name()) > ready
        })?;
        let first = traffic.calls().between(ready, f64::MAX).0.into_iter();
        let first = first
            .filter(|call| call.from == leaving.pod.name())
            .map(|call| call.at - ready);
        let first = first.fold(f64::MAX, f64::min);
        let soon = a_second(&pauses).as_secs_f64();
        ensure!(first < soon, "it was called {first:.2} s after it was ready");
        for stream in &mut others {
            stream.echo()?;
        }
        stream.finish().context("the stream that went on")?;

        // Nobody is ready: calls fail, and say why.
        none_failed(&traffic.calls(), 500, "while one was not ready")?;
        for greeter in &shop.greeters {
            shop.control.set_ready(&greeter.pod, false)?;
        }
        let why = "control says that 4 endpoints are not ready";
        timed(SOON, "calls say that nobody is ready", || {
            traffic
                .calls()
                .0
                .last()
                .is_some_and(|call| call.code == "UNAVAILABLE" && call.why.contains(why))
        })?;
        timed(SOON, "control warns of it", || {
            shop.control.output().contains("no Workload that is ready")
        })?;
        Ok(())
    });
}

/// When somebody was called last.
fn last_at(traffic: &Traffic, name: &str) -> f64 {
    let calls = traffic.calls().0.into_iter().filter(|call| call.from == name);
    calls.map(|call| call.at).fold(0.0, f64::max)
}

const SOON: Duration = Duration::from_secs(10);
