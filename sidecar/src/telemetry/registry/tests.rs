//! What a scrape shows, read back by a reader that knows the format and nothing of the writer.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::*;
use crate::grpc::Code;

static THINGS: Family<Counter, 1> = Family::counter("test_things_total", "Things.", ["kind"]);
static FEW: Family<Counter, 1> = Family::counter("test_few_total", "Few.", ["kind"]).at_most(2);
static LEVEL: Family<Gauge, 0> = Family::gauge("test_level", "Level.", []);

const UNARY: GrpcType = GrpcType::Unary;
const MILLI: Duration = Duration::from_millis(1);

#[test]
fn a_scrape_adds_up_what_every_thread_recorded() {
    let registry = Registry::new(&Settings::default());
    let threads: Vec<_> = (1..=3)
        .map(|n| {
            let registry = registry.clone();
            std::thread::spawn(move || {
                let mut recorder = registry.recorder();
                let method = recorder.method(Direction::Inbound, b"/pkg.Greeter/SayHello");
                recorder.started(method);
                recorder.handled(method, UNARY, Code::Ok, MILLI * 7);
                recorder.resolve(&THINGS, ["a"]).add(n);
                recorder.resolve(&LEVEL, []).add(10 - 2 * n as i64);
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("the thread only counts");
    }
    let page = read(&registry);
    let labels = r#"grpc_type="unary",grpc_service="pkg.Greeter",grpc_method="SayHello""#;
    assert_eq!(page[&format!("grpc_server_started_total{{{labels}}}")], 3.0);
    assert_eq!(
        page[&format!(r#"grpc_server_handled_total{{{labels},grpc_code="OK"}}"#)],
        3.0
    );
    assert_eq!(
        page[&format!(r#"grpc_server_handling_seconds_bucket{{{labels},le="0.005"}}"#)],
        0.0
    );
    assert_eq!(
        page[&format!(r#"grpc_server_handling_seconds_bucket{{{labels},le="0.01"}}"#)],
        3.0
    );
    assert_eq!(page[&format!(r#"grpc_server_handling_seconds_count{{{labels}}}"#)], 3.0);
    assert!((page[&format!(r#"grpc_server_handling_seconds_sum{{{labels}}}"#)] - 0.021).abs() < 1e-9);
    assert_eq!(page[r#"test_things_total{kind="a"}"#], 6.0);
    assert_eq!(page["test_level"], 18.0);
}

#[test]
fn outbound_calls_are_counted_as_a_client_counts() {
    let registry = Registry::new(&Settings::default());
    let mut recorder = registry.recorder();
    let method = recorder.method(Direction::Outbound, b"/s/M");
    recorder.started(method);
    recorder.handled(method, UNARY, Code::Cancelled, Duration::from_secs(60));
    let page = read(&registry);
    let labels = r#"grpc_type="unary",grpc_service="s",grpc_method="M""#;
    assert_eq!(
        page[&format!(r#"grpc_client_handled_total{{{labels},grpc_code="Canceled"}}"#)],
        1.0
    );
    assert_eq!(
        page[&format!(r#"grpc_client_handling_seconds_bucket{{{labels},le="10"}}"#)],
        0.0
    );
    assert_eq!(
        page[&format!(r#"grpc_client_handling_seconds_bucket{{{labels},le="+Inf"}}"#)],
        1.0
    );
    assert!(!page.keys().any(|series| series.starts_with("grpc_server")), "{page:?}");
}

#[test]
fn a_method_once_seen_to_stream_is_counted_as_a_stream_also_when_it_sends_one_message() {
    let registry = Registry::new(&Settings::default());
    let mut recorder = registry.recorder();
    let method = recorder.method(Direction::Inbound, b"/s/Watch");
    recorder.handled(method, GrpcType::seen(1, 5), Code::Ok, MILLI);
    recorder.started(method);
    recorder.handled(method, GrpcType::seen(1, 1), Code::Ok, MILLI);
    let page = read(&registry);
    let labels = r#"grpc_type="server_stream",grpc_service="s",grpc_method="Watch""#;
    assert_eq!(page[&format!("grpc_server_started_total{{{labels}}}")], 1.0);
    assert_eq!(
        page[&format!(r#"grpc_server_handled_total{{{labels},grpc_code="OK"}}"#)],
        2.0
    );
    assert_eq!(
        page.keys()
            .filter(|series| series.starts_with("grpc_server_started"))
            .count(),
        1
    );
}

#[test]
fn methods_past_the_ceiling_and_paths_that_are_no_methods_are_counted_together() {
    let registry = Registry::new(&Settings { max_methods: 3 });
    let mut first = registry.recorder();
    let mut second = registry.recorder();
    let known = first.method(Direction::Inbound, b"/s/m0");
    for n in 0..100 {
        for recorder in [&mut first, &mut second] {
            let method = recorder.method(Direction::Inbound, format!("/s/m{n}").as_bytes());
            recorder.started(method);
        }
    }
    let page = first.method(Direction::Inbound, b"/index.html");
    first.started(page);
    assert_eq!(
        first.method(Direction::Inbound, b"/s/m0"),
        known,
        "a method keeps its id"
    );
    let page = read(&registry);
    let counts: Vec<_> = page
        .iter()
        .filter(|(series, _)| series.starts_with("grpc_server_started"))
        .collect();
    assert_eq!(counts.len(), 4, "{counts:?}");
    let other = r#"grpc_server_started_total{grpc_type="unary",grpc_service="_OTHER",grpc_method="_OTHER"}"#;
    assert_eq!(page[other], 2.0 * 97.0 + 1.0);
    let method = first.method(Direction::Outbound, b"/s/m99");
    first.started(method);
    assert!(
        read(&registry)
            .keys()
            .any(|series| series.contains("grpc_client") && series.contains("m99"))
    );
}

#[test]
fn what_one_recorder_has_learned_another_still_counts_by_name_when_all_places_are_taken() {
    let registry = Registry::new(&Settings { max_methods: 2 });
    let mut first = registry.recorder();
    let mut second = registry.recorder();
    first.method(Direction::Inbound, b"/s/a");
    first.method(Direction::Inbound, b"/s/b");
    let stranger = second.method(Direction::Inbound, b"/s/c");
    let known = second.method(Direction::Inbound, b"/s/a");
    assert_ne!(stranger, known);
    second.started(known);
    let series = r#"grpc_server_started_total{grpc_type="unary",grpc_service="s",grpc_method="a"}"#;
    assert_eq!(read(&registry)[series], 1.0);
}

#[test]
fn label_values_past_the_ceiling_are_counted_together() {
    let registry = Registry::new(&Settings::default());
    let recorder = registry.recorder();
    for n in 0..10 {
        recorder.resolve(&FEW, [&n.to_string()]).inc();
    }
    let page = read(&registry);
    assert_eq!(page[r#"test_few_total{kind="0"}"#], 1.0);
    assert_eq!(page[r#"test_few_total{kind="_OTHER"}"#], 8.0);
    assert_eq!(page.keys().filter(|series| series.starts_with("test_few")).count(), 3);
}

#[test]
fn what_is_held_is_counted_until_it_is_dropped() {
    let registry = Registry::new(&Settings::default());
    let recorder = registry.recorder();
    let gauge = recorder.resolve(&LEVEL, []);
    let held = gauge.hold();
    assert_eq!(read(&registry)["test_level"], 1.0);
    drop(held);
    gauge.add(-2);
    assert_eq!(read(&registry)["test_level"], -2.0);
}

#[test]
fn what_is_observed_is_seen_anew_at_every_scrape_and_bounded_like_the_rest() {
    let registry = Registry::new(&Settings::default());
    let looks = std::sync::atomic::AtomicU32::new(0);
    registry.observe(&FEW, move |samples| {
        let look = looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        for n in 0..5 {
            samples.push([&format!("{look}-{n}")], 1.5);
        }
    });
    assert_eq!(read(&registry)[r#"test_few_total{kind="0-1"}"#], 1.5);
    let page = read(&registry);
    assert!(!page.contains_key(r#"test_few_total{kind="0-1"}"#));
    assert_eq!(page[r#"test_few_total{kind="_OTHER"}"#], 4.5);
}

#[test]
fn the_process_says_what_it_costs() {
    let page = read(&Registry::new(&Settings::default()));
    for series in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(page[series] > 0.0, "{series}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(page[&format!(r#"portunus_build_info{{version="{version}"}}"#)], 1.0);
    assert!(page["process_start_time_seconds"] > 1.7e9);
}

#[test]
fn every_family_is_announced_once_and_its_samples_follow_it() {
    let registry = Registry::new(&Settings::default());
    let mut recorder = registry.recorder();
    for direction in Direction::ALL {
        let method = recorder.method(direction, b"/s/M");
        recorder.started(method);
        recorder.handled(method, UNARY, Code::Ok, MILLI);
    }
    recorder.resolve(&THINGS, ["a"]).inc();
    for format in [Format::Prometheus, Format::OpenMetrics] {
        let text = registry.scrape(format);
        let mut announced = Vec::new();
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(name) = line.strip_prefix("# TYPE ") {
                let (name, _) = name.split_once(' ').expect("a type follows the name");
                assert!(!announced.contains(&name), "{name} twice");
                announced.push(name);
            } else if !line.starts_with('#') {
                let last = announced.last().expect("a family comes before its samples");
                assert!(line.starts_with(last), "{line} under {last}");
            }
        }
        assert!(announced.len() > 10);
    }
}

/// Reads Prometheus' text into its series, or panics where the text is not of the format.
fn read(registry: &Registry) -> BTreeMap<String, f64> {
    let mut page = BTreeMap::new();
    for line in registry
        .scrape(Format::Prometheus)
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let (series, value) = line.rsplit_once(' ').expect("a value follows the series");
        let value = value.parse().expect("the value is a number");
        assert_eq!(page.insert(series.to_owned(), value), None, "{series} twice");
    }
    page
}
