//! What the command line and the environment come to mean.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::setting::is_service_link;
use super::*;

fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, String> {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn proxy_with(args: &[&str], variables: &[(&str, &str)], limits: Limits) -> Result<Config, Refusal> {
    match read([&["sidecar", "proxy"], args].concat(), &environment(variables), limits)? {
        Command::Proxy(config) => Ok(*config),
        other => panic!("{other:?}"),
    }
}

fn proxy(args: &[&str]) -> Config {
    proxy_with(args, &[], Limits::default()).expect("the settings are good")
}

fn mistakes(args: &[&str], variables: &[(&str, &str)]) -> Vec<String> {
    match proxy_with(args, variables, Limits::default()) {
        Err(Refusal::Mistakes(Mistakes(mistakes))) => mistakes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_word_the_defaults_are_those_that_every_room_has() {
    let config = proxy(&[]);
    assert_eq!(config.http2, http2::Settings::default());
    assert_eq!(config.health, health::Settings::default());
    assert_eq!(config.telemetry, telemetry::Settings::default());
    assert_eq!(config.shutdown, app::shutdown::Settings::default());
    assert_eq!(config.admin, admin::Settings::default());
    assert_eq!(config.workers, 1);
    assert_eq!(config.memory_budget, 256 << 20);
    assert!(
        config
            .outbound_listen
            .iter()
            .all(|address| address.ip().is_loopback() && address.port() == 4140)
    );
    assert!(
        config
            .inbound_listen
            .iter()
            .all(|address| address.ip().is_unspecified() && address.port() == 4143)
    );
    assert!(config.warnings.is_empty());
}

#[test]
fn workers_and_memory_follow_the_container_unless_said_otherwise() {
    let limits = Limits {
        cpus: Some(1.5),
        memory: Some(400 << 20),
    };
    let config = proxy_with(&[], &[], limits).expect("nothing is wrong");
    assert_eq!(
        (config.workers, config.memory_limit, config.memory_budget),
        (2, Some(400 << 20), 100 << 20)
    );
    let config = proxy_with(&["--workers=3", "--memory-limit=64MiB"], &[], limits).expect("nothing is wrong");
    assert_eq!(
        (config.workers, config.memory_limit, config.memory_budget),
        (3, Some(64 << 20), 16 << 20)
    );
    let tiny = Limits {
        cpus: Some(0.1),
        memory: None,
    };
    assert_eq!(proxy_with(&[], &[], tiny).expect("nothing is wrong").workers, 1);
}

#[test]
fn a_flag_wins_over_its_variable_and_an_empty_variable_says_nothing() {
    let said = [
        ("PORTUNUS_WORKERS", "4"),
        ("PORTUNUS_BALANCER", ""),
        ("PORTUNUS_LOG_FORMAT", "json"),
    ];
    let config = proxy_with(&["--workers", "2"], &said, Limits::default()).expect("nothing is wrong");
    assert_eq!(config.workers, 2);
    assert_eq!(config.balancer, Algorithm::P2cEwma);
    assert_eq!(config.log_format, LogFormat::Json);
}

#[test]
fn all_mistakes_are_reported_together_each_by_the_name_it_was_said_under() {
    let args = [
        "--workers=0",
        "--protocol=x=h2c",
        "--protocol=1=quic",
        "--shutdown-grace-period=10",
        "--log-level=loud",
    ];
    let found = mistakes(
        &args,
        &[
            ("PORTUNUS_HTTP2_STREAM_WINDOW", "lots"),
            ("PORTUNUS_INBOUND_LISTEN", "4143"),
        ],
    );
    let names = [
        "PORTUNUS_INBOUND_LISTEN",
        "--workers",
        "--protocol",
        "PORTUNUS_HTTP2_STREAM_WINDOW",
        "--shutdown-grace-period",
        "--log-level",
    ];
    assert_eq!(found.len(), names.len(), "{found:#?}");
    for name in names {
        assert!(
            found
                .iter()
                .any(|mistake| mistake.starts_with(&format!("{name} is \""))),
            "{name} in {found:#?}"
        );
    }
    let text = Mistakes(found).to_string();
    assert!(text.starts_with("6 settings are wrong:\n"), "{text}");
}

#[test]
fn settings_that_contradict_each_other_are_mistakes_too() {
    let found = mistakes(
        &[
            "--inbound-listen=0.0.0.0:4140",
            "--admin-listen=,",
            "--dns-ttl-floor=10s",
            "--dns-ttl-ceiling=5s",
            "--http2-stream-window=8MiB",
            "--protocol=3306=h2c",
            "--opaque-ports=3300-3310",
            "--memory-limit=8MiB",
            "--memory-budget=9MiB",
        ],
        &[],
    );
    for part in [
        "both have port 4140",
        "--admin-listen must",
        "ttl-floor",
        "stream-window-ceiling",
        "port 3306",
        "budget",
    ] {
        assert!(
            found.iter().any(|mistake| mistake.contains(part)),
            "{part} in {found:#?}"
        );
    }
    assert_eq!(found.len(), 6, "{found:#?}");
}

#[test]
fn no_port_of_the_proxy_is_the_one_by_which_it_sees_the_rules() {
    for (flag, text) in [
        ("--outbound-listen", "127.0.0.1:4192"),
        ("--inbound-listen", "0.0.0.0:4143,[::]:4192"),
        ("--admin-listen", "0.0.0.0:4192"),
    ] {
        let found = mistakes(&[&format!("{flag}={text}")], &[]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(&format!("{flag} has port 4192")), "{found:#?}");
    }
    for flag in ["--proxy-outbound", "--proxy-inbound", "--proxy-admin"] {
        let refusal = read(
            ["sidecar", "redirect", &format!("{flag}=4192")],
            &environment(&[]),
            Limits::default(),
        );
        let Err(Refusal::Mistakes(Mistakes(found))) = refusal else {
            panic!("{flag}: {refusal:?}")
        };
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(&format!("{flag} has port 4192")), "{found:#?}");
    }
}

#[test]
fn what_the_form_forbids_is_a_usage_error() {
    for args in [
        &["sidecar", "proxy", "--wrokers", "2"][..],
        &["sidecar", "proxy", "stray"],
        &["sidecar", "proxy", "--workers", "1", "--workers", "2"],
        &["sidecar", "redirect", "--dry-run", "--remove"],
        &["sidecar", "dance"],
        &["sidecar"],
    ] {
        let refusal = read(args, &environment(&[]), Limits::default()).expect_err("the form forbids it");
        assert!(matches!(refusal, Refusal::Usage(_)), "{args:?}: {refusal:?}");
    }
}

#[test]
fn lists_may_be_repeated_and_may_have_commas() {
    let config = proxy(&[
        "--protocol",
        "1=h2c,2=tcp",
        "--protocol",
        "3=http",
        "--dns-srv",
        "a.example",
        "--dns-srv=b=c",
    ]);
    assert_eq!(config.inbound_protocols.len(), 3);
    assert_eq!(config.dns_srv[0].record, "_grpc._tcp.a.example");
    assert_eq!(config.dns_srv[1].record, "c");
}

#[test]
fn what_was_understood_says_every_setting_its_value_and_who_said_it() {
    let said = [("PORTUNUS_DETECT_SILENCE", "1000ms")];
    let limits = Limits {
        cpus: Some(2.0),
        memory: None,
    };
    let config = proxy_with(&["--http2-stream-window=512Ki"], &said, limits).expect("nothing is wrong");
    let understood = &config.understood;
    let flags: usize = PROXY.iter().map(|(_, settings)| settings.len()).sum();
    assert_eq!(
        understood["settings"].as_object().map(Map::len),
        Some(flags),
        "every setting of the table is read"
    );
    assert_eq!(understood["settings"]["detect-silence"], "1s");
    assert_eq!(understood["settings"]["http2-stream-window"], 512 << 10);
    assert_eq!(understood["settings"]["workers"], 2);
    assert_eq!(understood["settings"]["memory-limit"], json!(null));
    assert_eq!(understood["said_by"]["detect-silence"], "PORTUNUS_DETECT_SILENCE");
    assert_eq!(understood["said_by"]["http2-stream-window"], "--http2-stream-window");
    assert_eq!(understood["said_by"]["balancer"], json!(null));
}

#[test]
fn a_variable_that_is_no_setting_is_warned_of_unless_kubernetes_made_it() {
    let said = [
        ("PORTUNUS_WORKRES", "2"),
        ("PORTUNUS_SOMETHING_ELSE", "x"),
        ("PORTUNUS_CONTROL_SERVICE_HOST", "10.0.0.1"),
        ("PORTUNUS_CONTROL_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PORTUNUS_SKIP_SUBNETS", "10.0.0.0/8"),
    ];
    let warnings = proxy_with(&[], &said, Limits::default())
        .expect("nothing is wrong")
        .warnings;
    let expected = [
        "PORTUNUS_SOMETHING_ELSE is not a setting",
        "PORTUNUS_WORKRES is not a setting; did you mean PORTUNUS_WORKERS?",
    ];
    assert_eq!(warnings, expected);
    let command = ["sidecar", "proxy", "--print-config"];
    let Ok(Command::PrintConfig(config)) = read(command, &environment(&said), Limits::default()) else {
        panic!("nothing is wrong")
    };
    assert_eq!(config.understood["warnings"], json!(expected));
    let Ok(Command::Redirect(redirect)) = read(["sidecar", "redirect"], &environment(&said), Limits::default()) else {
        panic!("nothing is wrong")
    };
    assert_eq!(redirect.warnings, expected);
}

#[test]
fn no_service_can_give_a_setting_its_value_by_the_variables_that_kubernetes_makes() {
    for setting in [PROXY, REDIRECT]
        .into_iter()
        .flatten()
        .flat_map(|(_, settings)| *settings)
    {
        assert!(!is_service_link(&setting.variable()), "{}", setting.variable());
    }
}

#[test]
fn the_help_names_every_setting_with_its_variable_and_default() {
    for (name, groups) in [("proxy", PROXY), ("redirect", REDIRECT)] {
        let Err(Refusal::Usage(help)) = read(["sidecar", name, "--help"], &environment(&[]), Limits::default()) else {
            panic!("help is not a command");
        };
        assert_eq!(help.exit_code(), 0);
        let text: String = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        for setting in groups.iter().flat_map(|(_, settings)| *settings) {
            assert!(text.contains(&format!("--{} <", setting.flag)), "--{}", setting.flag);
            assert!(
                text.contains(&format!("[env: {}]", setting.variable())),
                "{}",
                setting.variable()
            );
            assert!(setting.default.is_empty() || text.contains(&format!("[default: {}]", setting.default)));
        }
    }
}

#[test]
fn redirect_is_told_by_the_same_means() {
    let args = [
        "sidecar",
        "redirect",
        "--skip-inbound-ports=22",
        "--skip-subnets=10.0.0.0/8",
        "--skip-subnets=fd00::/8",
    ];
    let said = environment(&[("PORTUNUS_SKIP_OUTBOUND_PORTS", "53,9000-9010")]);
    let Ok(Command::Redirect(redirect)) = read(args, &said, Limits::default()) else {
        panic!("the settings are good")
    };
    assert_eq!(redirect.action, RedirectAction::Install);
    assert!(redirect.skip_inbound_ports.contains(22) && redirect.skip_outbound_ports.contains(9005));
    assert_eq!(redirect.skip_subnets.iter().count(), 2);
    assert_eq!(
        [redirect.proxy_outbound, redirect.proxy_inbound, redirect.proxy_admin],
        [4140, 4143, 4191]
    );
    assert_eq!(redirect.proxy_uid, 2102);
    let refusal = read(
        ["sidecar", "redirect", "--proxy-uid=0", "--proxy-admin=4140"],
        &said,
        Limits::default(),
    );
    let Err(Refusal::Mistakes(Mistakes(found))) = refusal else {
        panic!("root cannot be left alone: {refusal:?}")
    };
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn the_grace_period_may_be_none() {
    assert_eq!(
        proxy(&["--shutdown-grace-period=0s"]).shutdown.grace_period,
        Duration::ZERO
    );
}

#[test]
fn health_is_checked_as_it_was_said_and_all_mistakes_about_it_are_told_together() {
    let said = [
        ("PORTUNUS_HEALTH_CHECK", "watch"),
        ("PORTUNUS_HEALTH_CHECK_TIMEOUT", "300ms"),
    ];
    let flags = [
        "--health-check-service=shop.v1.Cart",
        "--health-check-interval=2s",
        "--health-check-unhealthy-threshold=3",
        "--health-check-healthy-threshold=4",
    ];
    let config = proxy_with(&flags, &said, Limits::default()).expect("nothing is wrong");
    let expected = health::Settings {
        mode: health::Mode::Watch,
        service: "shop.v1.Cart".to_owned(),
        interval: Duration::from_secs(2),
        timeout: Duration::from_millis(300),
        thresholds: Thresholds {
            unhealthy: 3,
            healthy: 4,
        },
    };
    assert_eq!(config.health, expected);
    assert_eq!(config.understood["settings"]["health-check"], "watch");
    assert_eq!(proxy(&["--health-check=off"]).health, health::Settings::off());

    let wrong = [
        "--health-check=Watch",
        "--health-check-service=a b",
        "--health-check-interval=50ms",
        "--health-check-timeout=0s",
        "--health-check-unhealthy-threshold=0",
        "--health-check-healthy-threshold=1001",
    ];
    let found = mistakes(&wrong, &[]);
    assert_eq!(found.len(), wrong.len(), "{found:#?}");
    assert!(found[0].contains("check, watch, off"), "{found:#?}");
    let slow = proxy(&["--health-check-timeout=6s"]).warnings;
    assert!(slow.len() == 1 && slow[0].contains("checked less often"), "{slow:?}");
}

/// A file with a root in it.
fn bundle_file() -> PathBuf {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params
        .self_signed(&rcgen::KeyPair::generate().expect("a key"))
        .expect("a root");
    let file = std::env::temp_dir().join(format!(
        "portunus-bundle-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&file, root.pem()).expect("a file");
    file
}

#[test]
fn control_is_told_by_all_of_its_settings_together() {
    let file = bundle_file();
    let bundle = format!("--trust-bundle={}", file.display());
    let control = [
        "--control-address=control.portunus:8080,[fd00::1]:8080",
        "--control-address=10.0.0.1:1",
        "--control-identity=spiffe://mesh.test/ns/portunus/sa/control",
        "--join-token-file=/run/portunus/token",
        bundle.as_str(),
        "--mtls=strict",
        "--mtls-ports=8080=disabled,9090=permissive",
        "--cut-expired-connections=on",
    ];
    let config = proxy(&control);
    let settings = config.control.expect("it was said");
    assert_eq!(settings.addresses.len(), 3);
    assert_eq!(
        (settings.roots.len(), settings.identity.trust_domain()),
        (1, "mesh.test")
    );
    assert_eq!(config.mtls.mode(1), Some(policy::Mode::Strict));
    assert_eq!(config.mtls.mode(8080), Some(policy::Mode::Disabled));
    assert_eq!(config.understood["settings"]["mtls-ports"]["9090"], "permissive");
    assert!(config.cut_expired);
    assert_eq!(
        config.understood["settings"]["trust-bundle"],
        file.display().to_string()
    );

    let found = mistakes(&control[..1], &[]);
    assert_eq!(found.len(), 3, "{found:#?}");
    let found = mistakes(&control[2..], &[]);
    assert_eq!(found.len(), 3, "{found:#?}");
    std::fs::write(&file, "no PEM").expect("a file");
    let wrong = [
        "--control-address=control",
        "--control-identity=spiffe://MESH/a",
        bundle.as_str(),
        "--mtls=off",
        "--cut-expired-connections=true",
        "--mtls-ports=1=strict,1=disabled",
    ];
    let found = mistakes(&wrong, &[]);
    assert_eq!(found.len(), wrong.len(), "{found:#?}");
    std::fs::remove_file(&file).expect("it is ours");
    assert!(mistakes(&[&bundle], &[])[0].contains("cannot be read"));
}

#[test]
fn files_that_are_not_there_are_named_together() {
    let said = |bundle: &str, token: &str| {
        let control = [
            "--control-address=10.0.0.1:1",
            "--control-identity=spiffe://mesh.test/ns/portunus/sa/control",
            &format!("--trust-bundle={bundle}"),
            &format!("--join-token-file={token}"),
        ];
        proxy_with(&control, &[], Limits::default())
    };
    let Err(Refusal::Mistakes(Mistakes(found))) = said("/nowhere/bundle.pem", "/nowhere/token") else {
        panic!("there is no bundle")
    };
    assert_eq!(found.len(), 1, "a token may come later: {found:#?}");
    for file in ["/nowhere/bundle.pem", "/nowhere/token"] {
        assert!(found[0].contains(file), "{file} in {found:#?}");
    }
    let file = bundle_file();
    let Err(Refusal::Mistakes(Mistakes(found))) = said("/nowhere/bundle.pem", &file.display().to_string()) else {
        panic!("there is no bundle")
    };
    assert!(!found[0].contains("--join-token-file"), "it is there: {found:#?}");
    said(&file.display().to_string(), "/nowhere/token").expect("a token may come later");
    std::fs::remove_file(&file).expect("it is ours");
}

#[test]
fn an_address_that_is_none_is_refused_with_an_example() {
    for (flag, example) in [
        ("--outbound-default", "127.0.0.1:50051"),
        ("--inbound-default", "127.0.0.1:50051"),
        ("--admin-listen", "127.0.0.1:4140"),
    ] {
        for wrong in ["50051", "localhost:50051", "127.0.0.1", "::1:50051x"] {
            let found = mistakes(&[&format!("{flag}={wrong}")], &[]);
            assert!(found.len() == 1 && found[0].contains(example), "{wrong}: {found:#?}");
        }
    }
}

#[test]
fn without_control_nothing_can_be_strict() {
    assert_eq!(proxy(&[]).control, None);
    assert_eq!(proxy(&[]).mtls.mode(1), Some(policy::Mode::Permissive));
    for strict in ["--mtls=strict", "--mtls-ports=1=strict"] {
        let found = mistakes(&[strict], &[]);
        assert!(
            found.len() == 1 && found[0].contains("there is no certificate"),
            "{found:#?}"
        );
    }
}

#[test]
fn nothing_is_recorded_before_somebody_says_where_it_goes() {
    let config = proxy(&[]);
    assert_eq!(config.export, telemetry::export::Settings::default());
    assert_eq!(config.traces, telemetry::trace::Settings::default());
    assert_eq!(config.access_log, None);
    let said = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317"),
        ("OTEL_SDK_DISABLED", "true"),
    ];
    let config = proxy_with(&[], &said, Limits::default()).expect("nothing is wrong");
    assert_eq!(config.export.traces, None);
}

#[test]
fn opentelemetrys_variables_mean_what_they_mean_everywhere() {
    let said = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector/base"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:9/here"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s%20cret,X-B=c"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1500"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ("OTEL_SERVICE_NAME", "greeter"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=a"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_PROPAGATORS", "b3,baggage"),
        ("OTEL_BSP_SCHEDULE_DELAY", "of no meaning here"),
    ];
    let config = proxy_with(&[], &said, Limits::default()).expect("nothing is wrong");
    let export = &config.export;
    let target = |target: &Option<telemetry::export::Target>| {
        let target = target.as_ref().expect("it was said");
        (target.endpoint.authority(), target.path.clone())
    };
    assert_eq!(
        target(&export.traces),
        ("collector:4318".to_owned(), "/base/v1/traces".to_owned())
    );
    assert_eq!(target(&export.metrics), ("metrics:9".to_owned(), "/here".to_owned()));
    assert_eq!(
        (export.timeout, export.metric_interval),
        (Duration::from_millis(1_500), Duration::from_secs(5))
    );
    assert_eq!(export.headers.0[0], ("api-key".to_owned(), "s cret".to_owned()));
    assert_eq!(export.resource.service_name, "greeter");
    assert_eq!(config.traces.sampler.root, telemetry::trace::Root::Ratio(0.25));
    assert!(config.traces.sampler.parent_based && !config.traces.propagators.w3c);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.understood["settings"]["trace-sampling"], 25.0);
    assert!(!format!("{config:?}").contains("s cret"), "headers may be keys");
}

#[test]
fn without_a_word_about_it_one_trace_in_twenty_that_begins_here_is_recorded() {
    let config = proxy_with(&[], &[], Limits::default()).expect("nothing is wrong");
    assert_eq!(config.traces.sampler.root, telemetry::trace::Root::Ratio(0.05));
    assert!(config.traces.sampler.parent_based);
}

#[test]
fn the_flags_for_traces_win_over_opentelemetrys_variables() {
    let said = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other:2"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
    ];
    let flags = ["--trace-collector=jaeger", "--trace-sampling=50%", "--access-log=json"];
    let config = proxy_with(&flags, &said, Limits::default()).expect("nothing is wrong");
    let traces = config.export.traces.expect("it was said");
    assert_eq!(traces.endpoint.authority(), "jaeger:4317");
    assert_eq!(config.traces.sampler.root, telemetry::trace::Root::Ratio(0.5));
    assert_eq!(config.access_log, Some(telemetry::access::Form::Json));
    assert_eq!(config.understood["said_by"]["trace-collector"], "--trace-collector");
}

#[test]
fn mistakes_about_traces_are_reported_with_all_others_and_show_no_key() {
    let said = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=secret\nsplit"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3s"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_PROPAGATORS", "xray"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a"),
        ("OTEL_METRICS_EXPORTER", "statsd"),
    ];
    let args = [
        "--trace-collector=unix:///x",
        "--trace-sampling=101",
        "--access-log=yes",
    ];
    let found = mistakes(&args, &said);
    assert_eq!(found.len(), said.len() + args.len(), "{found:#?}");
    assert!(
        said.iter()
            .all(|(name, _)| found.iter().any(|mistake| mistake.contains(name))),
        "{found:#?}"
    );
    assert!(found.iter().all(|mistake| !mistake.contains("secret")), "{found:#?}");
}
