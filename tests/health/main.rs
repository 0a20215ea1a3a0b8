//! Endpoints that are unwell, before a worker of ours with real sockets, and in pods with others' health services and mTLS:
//! whoever says NOT_SERVING, hangs, answers half, is slow or fails gets no calls; and nobody is taken for unwell who is not.

mod pods;
mod service;
mod shop;

use std::time::{Duration, Instant};

use h2::Reason;
use portunus_sidecar::balance::{self, Algorithm, health::Thresholds};
use portunus_sidecar::health::{Mode, Settings};
use support::Pauses;
use support::relay::world::Setup;

use service::{Calls, Does, Says, Service};

const INTERVAL: Duration = Duration::from_millis(500);
/// How long a peer takes that is well: a busy machine's pauses are short beside it.
const WELL: Duration = Duration::from_millis(80);
const NOT_SERVING: Says = Says::Status(2);
const SERVING: Says = Says::Status(1);

/// Nobody is taken for late, whatever the machine does.
fn checked() -> Settings {
    Settings {
        interval: INTERVAL,
        timeout: Duration::from_secs(30),
        thresholds: Thresholds::default(),
        ..Settings::default()
    }
}

/// Whoever says nothing is late.
fn hasty() -> Settings {
    Settings {
        interval: INTERVAL * 4,
        timeout: Duration::from_secs(1),
        ..checked()
    }
}

/// Checked by `Watch`; who is asked anew by the clock is asked late.
fn watched() -> Settings {
    Settings {
        mode: Mode::Watch,
        interval: Duration::from_secs(30),
        ..checked()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_turned_not_serving_gets_no_new_call_after_an_interval_and_its_stream_goes_on() {
    let service = Service::start(3, checked()).await;
    let stream = service.open_stream_at(0).await;
    service.load_until(200, || service.peers[0].checks() > 1).await;
    is_left_within(&service, INTERVAL + Duration::from_millis(100)).await;
    assert_eq!(service.state(0), "unhealthy");
    assert_eq!(stream.finish(&service.peers[0]).await, "0");
}

/// The first endpoint says NOT_SERVING, and gets no new call from then on. One of three times will do: what holds up the
/// peer or the worker is not always seen by who watches for pauses.
async fn is_left_within(service: &Service, time: Duration) {
    let peer = &service.peers[0];
    for tries in 1..=3 {
        let pauses = Pauses::watch();
        peer.says(NOT_SERVING);
        let turned = Instant::now();
        let calls = service.load(200, Duration::from_secs(2)).await;
        assert_eq!((calls.failed, calls.unanswered), (Vec::new(), 0));
        let last = peer.last_call().saturating_duration_since(turned);
        // The peer and the worker, one after the other, have to run for it.
        let late = time + pauses.longest() * 2;
        println!("called after {last:?}; {late:?} allowed");
        if last <= late {
            return;
        }
        assert!(tries < 3, "called after {last:?}; {late:?} allowed");
        peer.says(SERVING);
        let before = peer.calls();
        service.load_until(200, || peer.calls() > before + 10).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_say_not_serving_calls_fail_at_once_and_say_why() {
    let service = Service::start(3, checked()).await;
    service.peers.iter().for_each(|peer| peer.says(NOT_SERVING));
    service
        .load_until(50, || (0..3).all(|at| service.state(at) == "unhealthy"))
        .await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let asked = Instant::now();
        let (code, message) = service.call().await;
        took.push(asked.elapsed());
        assert_eq!(code, "14");
        assert!(message.contains("3 of 3 endpoints say NOT_SERVING"), "{message}");
    }
    assert!(took.iter().min() < Some(&Duration::from_millis(200)), "{took:?}");
    // One that serves again is called again.
    service.peers[1].says(SERVING);
    service.load_until(50, || service.state(1) == "ready").await;
    assert_eq!(service.call().await.0, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_serves_again_comes_back_slowly() {
    // Long beside the pauses of a busy machine: what is looked at is its first tenth.
    let slow_start = Duration::from_secs(5);
    let setup = Setup {
        health: checked(),
        // In turns: the share is then no matter of chance.
        balance: balance::Settings {
            slow_start,
            algorithm: Algorithm::RoundRobin,
            ..Default::default()
        },
        ..Setup::default()
    };
    let service = Service::with(2, setup).await;
    service.peers[0].says(NOT_SERVING);
    service.load_until(100, || service.state(0) == "unhealthy").await;
    let before = service.peers[0].calls();
    service.peers[0].says(SERVING);
    service.load_until(200, || service.peers[0].calls() > before).await;
    let came = service.peers[0].calls();
    let calls = service.load(400, slow_start / 10).await;
    let early = (service.peers[0].calls() - came) as f64 / calls.sent as f64;
    assert!(early < 0.3, "flooded at once: {early}");
    service.load(100, slow_start).await;
    let came = service.peers[0].calls();
    let calls = service.load(400, Duration::from_secs(1)).await;
    let late = (service.peers[0].calls() - came) as f64 / calls.sent as f64;
    assert!(late > 0.35, "not back: {late}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_without_health_checks_counts_as_healthy() {
    let service = Service::start(2, checked()).await;
    service.peers.iter().for_each(|peer| peer.says(Says::Unimplemented));
    let found = || service.world.metric("portunus_health_checks_total", &["unimplemented"]);
    let calls = service.load_until(100, || found() >= 4.0).await;
    assert_eq!(calls.failed, Vec::<String>::new());
    assert_eq!([service.state(0), service.state(1)], ["ready", "ready"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_another_kind_means_that_it_lives() {
    let service = Service::start(3, checked()).await;
    service.peers[0].says(Says::Code("16"));
    service.peers[1].says(Says::Http404);
    service.peers[2].says(Says::Code("7"));
    let found = || service.world.metric("portunus_health_checks_total", &["no_verdict"]);
    service.load_until(100, || found() >= 6.0).await;
    assert!((0..3).all(|at| service.state(at) == "ready"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_silent_when_asked_is_left_and_used_when_too_few_are_left() {
    let service = Service::start(4, hasty()).await;
    let in_spite = || service.world.metric("portunus_unhealthy_picks_total", &[]);
    service.peers[0].says(Says::Nothing);
    service.peers[1].says(Says::Nothing);
    service
        .load_until(100, || {
            service.state(0) == "unhealthy" && service.state(1) == "unhealthy"
        })
        .await;
    let before = [0, 1].map(|at| service.peers[at].calls());
    service.load(100, Duration::from_millis(500)).await;
    assert_eq!([0, 1].map(|at| service.peers[at].calls()), before, "half are healthy");
    assert_eq!(in_spite(), 0.0);
    service.peers[2].says(NOT_SERVING);
    service.load_until(100, || service.state(2) == "unhealthy").await;
    let refusing = service.peers[2].calls();
    let calls = service.load_until(200, || in_spite() > 50.0).await;
    assert_eq!(calls.failed, Vec::<String>::new());
    assert_eq!(service.peers[2].calls(), refusing, "it says NOT_SERVING");
    assert!([0, 1].iter().all(|at| service.peers[*at].calls() > before[*at]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_hears_at_once_and_where_it_is_not_served_check_is_asked() {
    let service = Service::start(2, watched()).await;
    service.peers[0].serves_watch();
    service
        .load_until(100, || service.peers.iter().all(|peer| peer.checks() >= 1))
        .await;
    is_left_within(&service, Duration::from_millis(100)).await;
    assert_eq!(service.peers[1].checks(), 2, "Watch, then Check");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_says_nothing_is_silence() {
    let settings = Settings {
        mode: Mode::Watch,
        ..hasty()
    };
    let service = Service::start(2, settings).await;
    service.peers[0].serves_watch();
    service.peers[0].says(Says::Nothing);
    service.load_until(50, || service.state(0) == "unhealthy").await;
    // As often as an endpoint may be silent; and once more, perhaps, before the page told of it.
    let asked = service.peers[0].checks();
    assert!((2..4).contains(&asked), "after {asked} checks");
    service.peers[0].says(SERVING);
    service.load_until(50, || service.state(0) == "ready").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_refused_is_asked_for_again_after_the_interval_and_no_sooner() {
    let service = Service::start(2, watched()).await;
    service.peers[0].serves_watch();
    service.peers[0].says(Says::Code("7"));
    service.load_until(50, || service.peers[0].checks() == 1).await;
    service.load(50, Duration::from_secs(4)).await;
    assert_eq!(service.peers[0].checks(), 1);
    assert_eq!(service.state(0), "ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_unwell_and_well_again_after_as_many_checks_as_the_thresholds_say() {
    let settings = Settings {
        thresholds: Thresholds {
            unhealthy: 4,
            healthy: 3,
        },
        ..hasty()
    };
    let service = Service::start(2, settings).await;
    let peer = &service.peers[0];
    service.load_until(50, || peer.checks() > 1).await;
    peer.says(Says::Nothing);
    let asked = peer.checks();
    // The page is made anew each half second, so it may tell of it one check late.
    let within = |checks: u64, least: u64| assert!((least..least + 2).contains(&checks), "after {checks} checks");
    service.load_until(50, || service.state(0) == "unhealthy").await;
    within(peer.checks() - asked, 4);
    peer.says(SERVING);
    let asked = peer.checks();
    service.load_until(50, || service.state(0) == "ready").await;
    within(peer.checks() - asked, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_keeps_no_connection_open_that_drains_and_goes_on_by_another() {
    let service = Service::start(1, watched()).await;
    let peer = &service.peers[0];
    peer.serves_watch();
    service.load_until(50, || peer.checks() == 1).await;
    peer.drain();
    let began = Instant::now();
    let calls = service
        .load_until(50, || peer.checks() == 2 && peer.drained() == 1)
        .await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(calls.failed, Vec::<String>::new());
    assert_eq!(service.state(0), "ready", "that it drains says nothing of its health");
    // What is watched there is heard.
    peer.says(NOT_SERVING);
    service.load_until(50, || service.state(0) == "unhealthy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_others_have_spent_keeps_neither_checks_out_nor_the_calls_of_who_holds_little() {
    let setup = Setup {
        health: checked(),
        budget: 1 << 20,
        pair: false,
        ..Setup::default()
    };
    let service = Service::with(1, setup).await;
    let peer = &service.peers[0];
    service.load_until(50, || service.found() > 1.0).await;
    peer.does(Does::Much);
    let spending = service.spend_budget().await;
    let (asked, found, spent) = (peer.checks(), service.found(), service.refused_for_memory());
    let calls = service.load(50, INTERVAL * 8).await;
    assert!(
        service.refused_for_memory() > spent,
        "who has spent it is refused all the while"
    );
    // For a moment there may be nothing above it either.
    let refused = calls.failed.iter().filter(|why| why.contains("memory")).count();
    assert_eq!(refused, calls.failed.len(), "{:?}", calls.failed);
    assert!(
        refused as u64 * 10 <= calls.sent,
        "{refused} of {} were refused",
        calls.sent
    );
    assert!(peer.checks() > asked + 3 && service.found() > found + 3.0);
    assert_eq!(service.found_wrong(), 0.0);
    assert_eq!(service.state(0), "ready");
    drop(spending);
    // The worker hears of it soon.
    let ends = Instant::now() + Duration::from_secs(10);
    while service.call().await.0 != "0" {
        assert!(Instant::now() < ends, "the budget does not come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_whose_connection_drains_under_its_answer_says_nothing_of_the_endpoint_and_is_made_anew() {
    let settings = Settings {
        // One failure is enough.
        thresholds: Thresholds {
            unhealthy: 1,
            ..Thresholds::default()
        },
        ..checked()
    };
    let service = Service::start(1, settings).await;
    let peer = &service.peers[0];
    service.load_until(50, || service.found() > 0.0).await;
    for drained in 1..=3 {
        let (begun, found) = (peer.begun(), service.found());
        peer.says(Says::Begins);
        service.load_until(50, || peer.begun() > begun).await;
        // The next one is answered.
        peer.says(SERVING);
        peer.drain();
        service
            .load_until(50, || peer.drained() >= drained && service.found() > found)
            .await;
        assert_eq!(service.state(0), "ready", "that it drains says nothing of its health");
    }
    assert_eq!(service.found_wrong(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_are_counted_as_nothing_else_and_use_the_same_connections() {
    let service = Service::start(2, checked()).await;
    let calls = service
        .load_until(50, || service.peers.iter().all(|peer| peer.checks() >= 4))
        .await;
    service.world.until_all_ended().await;
    assert_eq!(
        service.world.metric("grpc_client_started_total", &[]),
        calls.sent as f64
    );
    assert_eq!(service.world.metric("portunus_requests_total", &[]), calls.sent as f64);
    assert_eq!(service.world.metric("portunus_proxy_errors_total", &[]), 0.0);
    assert!(service.peers.iter().all(|peer| peer.connections() == 1));
    let services: Vec<_> = service
        .world
        .open
        .endpoints()
        .iter()
        .map(|view| view.service.clone())
        .collect();
    assert!(services.iter().all(|name| name.starts_with("greeter:")), "{services:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_endpoints_of_a_name_that_calls_went_to_are_checked() {
    let service = Service::start(3, checked()).await;
    assert_eq!(service.call().await.0, "0");
    // A stream to an address by itself is no call of the name.
    let stream = service.open_stream_at(0).await;
    let called = (0..3)
        .find(|at| service.peers[*at].calls() == 1)
        .expect("one was called");
    service.until(|| service.peers[called].checks() >= 4).await;
    for at in (0..3).filter(|at| *at != called) {
        assert_eq!(
            service.peers[at].checks(),
            0,
            "{at} was checked, and {called} was called"
        );
    }
    assert_eq!(stream.finish(&service.peers[0]).await, "0");
}

/// Calls leave an endpoint within two seconds, without any help of health checks, and from then on the 99th percentile of all
/// is at most twice what it was before.
/// One of three times will do: a pause of the machine may be longer than what is looked at.
async fn is_left_within_two_seconds(bad: Does) {
    for tries in 1..=3 {
        match tries_to_be_left(bad).await {
            Ok(()) => return,
            Err(why) if tries < 3 => println!("{why}"),
            Err(why) => panic!("{why}"),
        }
    }
}

async fn tries_to_be_left(bad: Does) -> Result<(), String> {
    const RATE: u64 = 150;
    // Hundreds of calls: the last one in a hundred are several.
    const SPAN: Duration = Duration::from_secs(5);
    let soon = Duration::from_secs(2);
    let service = Service::start(3, Settings::off()).await;
    service.peers.iter().for_each(|peer| peer.does(Does::Answers(WELL)));
    let (before, _) = service.load_beside(RATE, SPAN).await;
    assert_eq!((&before.failed, before.unanswered), (&Vec::new(), 0));
    let well = service.peers[2].calls();
    service.peers[2].does(bad);
    // There is no pause: the first ones' answers are waited for while the next ones are sent.
    let ((first, beside_first), (caught, after, beside)) = tokio::join!(service.load_beside(RATE, soon), async {
        tokio::time::sleep(soon).await;
        let caught = service.peers[2].calls();
        let (after, beside) = service.load_beside(RATE, SPAN).await;
        (service.peers[2].calls() - caught, after, beside)
    });
    // What the others get is answered; what this one got may wait for ever.
    for calls in [&first, &beside_first, &after, &beside] {
        assert_eq!(calls.failed, Vec::<String>::new());
    }
    let got = service.peers[2].calls() - well;
    assert!(
        first.unanswered + after.unanswered <= got && after.unanswered <= caught,
        "{} and then {} unanswered, of {got} and {caught} there",
        first.unanswered,
        after.unanswered
    );
    assert_eq!((beside_first.unanswered, beside.unanswered), (0, 0));
    let [was, is, meanwhile] = [&before, &after, &beside].map(Calls::p99);
    println!(
        "{bad:?}: {} of {} calls, then {caught} of {}; p99 {was:?} before, {is:?} after, {meanwhile:?} beside",
        got - caught,
        first.sent,
        after.sent
    );
    if caught * 100 > after.sent {
        return Err(format!("{caught} of {} calls", after.sent));
    }
    // Where the machine stood still, it did so for calls that have nothing to do with that endpoint, too.
    match is <= was.max(meanwhile) * 2 {
        true => Ok(()),
        false => Err(format!(
            "{is:?}, {was:?} before, and {meanwhile:?} meanwhile where nothing has happened"
        )),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_leave_an_endpoint_that_accepts_and_never_answers() {
    is_left_within_two_seconds(Does::Nothing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_leave_an_endpoint_that_answers_half() {
    is_left_within_two_seconds(Does::Half).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_leave_an_endpoint_that_is_a_hundred_times_slower() {
    is_left_within_two_seconds(Does::Answers(WELL * 100)).await;
}

/// Five calls there fail, one after the other, and then there are none for a while.
async fn is_ejected_after_five_failures(bad: Does) {
    let service = Service::start(3, Settings::off()).await;
    service.peers[0].does(bad);
    let failed = service.calls_until(|| service.state(0) == "ejected").await;
    assert_eq!(service.world.metric("portunus_ejections_total", &["failures"]), 1.0);
    assert_eq!(failed, 5, "calls failed");
    let calls = service.load(100, Duration::from_secs(2)).await;
    assert_eq!(calls.failed, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_unavailable_five_times_is_ejected() {
    is_ejected_after_five_failures(Does::Ends("14")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_resets_five_calls_is_ejected_whatever_its_reason() {
    tokio::join!(
        is_ejected_after_five_failures(Does::Resets(Reason::INTERNAL_ERROR)),
        is_ejected_after_five_failures(Does::Resets(Reason::CANCEL)),
        is_ejected_after_five_failures(Does::Resets(Reason::ENHANCE_YOUR_CALM)),
        is_ejected_after_five_failures(Does::Breaks(Reason::CANCEL)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_ends_the_connection_under_five_calls_is_ejected() {
    is_ejected_after_five_failures(Does::Leaves).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_breaks_the_protocol_in_five_calls_is_ejected_and_one_that_says_internal_is_not() {
    is_ejected_after_five_failures(Does::Lies).await;
    let service = Service::start(3, Settings::off()).await;
    service.peers[0].does(Does::Ends("13"));
    service
        .load_until(100, || service.peers[0].calls() >= 20 && service.state(0) == "ready")
        .await;
    assert_eq!(service.world.metric("portunus_ejections_total", &["failures"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_says_serving_ends_an_ejection_and_one_failure_brings_the_next() {
    let service = Service::start(3, checked()).await;
    service.peers[0].does(Does::Ends("14"));
    let ejections = || service.world.metric("portunus_ejections_total", &["failures"]);
    service.calls_until(|| ejections() == 1.0).await;
    let failed = service.peers[0].calls();
    // Far sooner than the ejection would be over by itself.
    service.calls_until(|| ejections() == 2.0).await;
    let again = service.peers[0].calls() - failed;
    assert_eq!(again, 1, "one failure is enough");
    // Its checks are not what its calls are like: the second ejection is not ended by them.
    let checks = service.peers[0].checks();
    service
        .load_until(100, || service.peers[0].checks() >= checks + 6)
        .await;
    assert_eq!(service.peers[0].calls() - failed, again);
    assert_eq!(service.state(0), "ejected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_endpoint_is_never_ejected() {
    let service = Service::start(1, Settings::off()).await;
    service.peers[0].does(Does::Ends("14"));
    service.load(100, Duration::from_secs(1)).await;
    assert_eq!(service.state(0), "ready");
    service.peers[0].does(Does::Answers(Duration::ZERO));
    assert_eq!(service.call().await.0, "0");
}
