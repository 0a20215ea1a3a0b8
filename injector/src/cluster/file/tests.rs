//! Manifests that are right, and every way in which they can be wrong.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use portunus_proto::Declared;
use tokio_util::sync::CancellationToken;

use super::mistakes::{GOOD, MISTAKES, whole};
use super::*;
use crate::cluster::{Algorithm, HealthMode, Mtls, TargetPort};
use crate::testing::{Directory, Log};

#[test]
fn every_kind_is_read() {
    let directory = Directory::new().with("shop.yaml", GOOD);
    let reading = read(&directory.0);
    assert_eq!(reading.findings, []);
    let snapshot = reading.snapshot.expect("it is right");
    let service = &snapshot.services[&Name::new("shop", "greeter")];
    assert_eq!(
        service.addresses,
        ["10.96.0.10".parse::<std::net::IpAddr>().expect("an address")]
    );
    assert_eq!(service.ports[0].target, TargetPort::Named("api".to_owned()));
    assert_eq!(service.ports[0].app_protocol, Declared::Http2);
    assert_eq!(service.ports[1].target, TargetPort::Number(9090));
    let workload = &snapshot.workloads[&Name::new("shop", "greeter-1")];
    assert_eq!(workload.weight, 3);
    assert_eq!(workload.addresses.len(), 2);
    assert_eq!(
        workload.join_token.as_ref().map(|hash| hash.0[..2].to_vec()),
        Some(vec![0x9f, 0x86])
    );
    let inbound = &snapshot.inbound_policies[&Name::new("shop", "all")];
    assert_eq!(
        (inbound.mode, inbound.ports[&9090]),
        (Some(Mtls::Strict), Mtls::Permissive)
    );
    let outbound = &snapshot.outbound_policies[&Name::new("shop", "greeter")];
    assert_eq!(outbound.balancer.algorithm, Some(Algorithm::RoundRobin));
    assert_eq!(outbound.health_check.mode, Some(HealthMode::Watch));
    assert_eq!(outbound.health_check.timeout, Some(Duration::from_millis(500)));
    assert_eq!(outbound.outlier.max_ejection, Some(Duration::from_secs(300)));
}

#[test]
fn json_and_lists_are_read_and_other_kinds_are_noted() {
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "a"}}},
        {"apiVersion": "portunus.dev/v1alpha1", "kind": "Workload", "metadata": {"name": "a", "labels": {"app": "a"}}, "spec": {"addresses": ["10.0.0.1"]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 3}}
    ]}"#;
    let reading = read(
        &Directory::new()
            .with("all.json", json)
            .with("empty.yaml", "# nothing\n")
            .0,
    );
    let snapshot = reading.snapshot.expect("it is right");
    assert!(snapshot.services.contains_key(&Name::new("default", "a")));
    let told: Vec<_> = reading
        .findings
        .iter()
        .map(|finding| (finding.severity, finding.object.as_str()))
        .collect();
    assert_eq!(told, [(Severity::Note, "Deployment default/a")]);
}

#[test]
fn every_mistake_names_its_file_line_and_field_and_stops_the_state() {
    assert!(MISTAKES.len() >= 50);
    let mut wrong = Vec::new();
    for (text, line, field, sentence) in MISTAKES {
        let directory = Directory::new()
            .with("a-good.yaml", GOOD)
            .with("bad.yaml", &whole(text));
        let reading = read(&directory.0);
        assert!(reading.snapshot.is_none(), "{text}: was taken");
        let mistakes = reading
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Mistake);
        let mistakes: Vec<_> = mistakes.collect();
        let is_it = |found: &&&Finding| {
            let near = found
                .line
                .is_some_and(|at| at.abs_diff(*line) <= u32::from(field.is_empty()));
            &*found.file == "bad.yaml" && near && found.field.starts_with(field) && found.message.contains(sentence)
        };
        if !mistakes.iter().any(|found| is_it(&found)) || mistakes.len() != 1 {
            wrong.push(format!("{text}: {mistakes:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_mistakes_of_all_files_are_told_together() {
    let directory = Directory::new()
        .with(
            "a.yaml",
            &whole("S  clusterIP: x\n  selector: {app: a}\n  ports: [{port: 0}, {port: x}]\n"),
        )
        .with("b.yaml", "kind: [\n")
        .with("c.yaml", &whole("W  addresses: [x, y]\n  weight: -1\n"));
    let reading = read(&directory.0);
    let files: Vec<_> = reading
        .findings
        .iter()
        .map(|finding| finding.file.to_string())
        .collect();
    assert_eq!(
        files.iter().filter(|file| *file == "a.yaml").count(),
        5,
        "{:#?}",
        reading.findings
    );
    assert_eq!(files.iter().filter(|file| *file == "b.yaml").count(), 1);
    assert_eq!(files.iter().filter(|file| *file == "c.yaml").count(), 3);
}

#[test]
fn what_is_no_file_of_manifests_is_a_mistake() {
    let directory = Directory::new();
    assert!(read(&directory.0).findings[0].message.contains("has no manifest"));
    assert!(
        read(&directory.0.join("nowhere")).findings[0]
            .message
            .contains("cannot be read")
    );
    fs::write(directory.0.join("a.yaml"), b"a: \xff\n").expect("a file can be written");
    assert!(read(&directory.0).findings[0].message.contains("not UTF-8"));
    directory.write("a.yaml", &"#".repeat(1 + MOST_FILE as usize));
    assert!(read(&directory.0).findings[0].message.contains("too long"));
    fs::remove_file(directory.0.join("a.yaml")).expect("it is there");
    fs::create_dir(directory.0.join("b.yaml")).expect("a directory can be made");
    assert!(read(&directory.0).findings[0].message.contains("is no file"));
}

#[test]
fn a_file_of_no_bytes_is_one_that_is_being_written() {
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", "").0);
    assert!(reading.snapshot.is_none());
    let only = &reading.findings[0].message;
    assert!(
        reading.findings.len() == 1 && only.contains("a comment will do"),
        "{only}"
    );
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", "# none\n").0);
    assert!(reading.snapshot.is_some_and(|snapshot| snapshot.services.len() == 1));
}

#[test]
fn a_name_that_is_nearly_that_of_a_manifest_is_a_warning() {
    for name in ["b.YAML", "b.ymal", "b.Json", "b.yLm"] {
        let reading = read(&Directory::new().with("a.yaml", GOOD).with(name, GOOD).0);
        let told: Vec<_> = reading
            .findings
            .iter()
            .map(|found| (&*found.file, found.severity))
            .collect();
        assert_eq!(told, [(name, Severity::Warning)]);
    }
    let reading = read(
        &Directory::new()
            .with("a.yaml", GOOD)
            .with("notes.txt", "x")
            .with("README", "y")
            .0,
    );
    assert_eq!(reading.findings, []);
}

#[test]
fn what_may_stand_in_a_file_that_was_not_read_is_not_said_to_be_missing() {
    let policy = whole("O  targetRefs: [{kind: Service, name: greeter, sectionName: grpc-api}]\n");
    let (without_policy, _) = GOOD.rsplit_once("---").expect("it has several parts");
    let broken = without_policy.replacen("port: 80", "port: 0", 1);
    for text in ["", "kind: [\n", &broken] {
        let reading = read(&Directory::new().with("a.yaml", text).with("b.yaml", &policy).0);
        assert_eq!(reading.findings.len(), 1, "{:#?}", reading.findings);
        assert_eq!(&*reading.findings[0].file, "a.yaml");
    }
}

#[test]
fn findings_that_are_too_many_are_counted_and_no_mistake_is_lost_behind_warnings() {
    let doubtful = whole("W  addresses: [10.0.0.9]\n  ports: []\n");
    let many: String = (0..1_200)
        .map(|n| doubtful.replace("name: bad", &format!("name: w{n}")) + "---\n")
        .collect();
    let wrong = whole("W  addresses: [x, y]\n");
    let reading = read(&Directory::new().with("a.yaml", &many).with("b.yaml", &wrong).0);
    let mistakes = reading
        .findings
        .iter()
        .filter(|found| found.severity == Severity::Mistake);
    assert_eq!((mistakes.count(), reading.findings.len()), (2, 1_000));
    let last = reading.findings.last().expect("there are many").to_string();
    assert!(last.contains("203 findings more are not told"), "{last}");
}

#[test]
fn an_ipv4_address_that_is_mapped_into_ipv6_is_that_address() {
    let text = whole("W  addresses: ['::ffff:10.0.0.1']\n")
        + "---\n"
        + &whole("S  clusterIP: '::ffff:10.0.0.2'\n").replace("bad", "b");
    let snapshot = read(&Directory::new().with("a.yaml", &text).0)
        .snapshot
        .expect("it is right");
    let of = |text: &str| vec![text.parse::<std::net::IpAddr>().expect("an address")];
    assert_eq!(snapshot.workloads[&Name::new("shop", "bad")].addresses, of("10.0.0.1"));
    assert_eq!(snapshot.services[&Name::new("shop", "b")].addresses, of("10.0.0.2"));
}

/// A service of `count` endpoints, 1,000 addresses a Workload.
fn crowd(count: usize) -> String {
    let workload = |number: usize| {
        let here = (count - number * 1_000).min(1_000);
        let addresses = (0..here).map(|host| format!("'fd00::{number:x}:{:x}'", host + 1));
        let addresses: Vec<_> = addresses.collect();
        let text = whole(&format!("W  addresses: [{}]\n", addresses.join(", ")));
        text.replace("name: bad", &format!("name: w{number}, labels: {{app: crowd}}")) + "---\n"
    };
    let workloads: String = (0..count.div_ceil(1_000)).map(workload).collect();
    workloads + &whole("S  selector: {app: crowd}\n  ports: [{port: 80}]\n")
}

#[test]
fn what_every_sidecar_would_refuse_is_a_mistake() {
    let addresses = |count: usize| (0..count).map(|n| format!("10.9.0.{n}")).collect::<Vec<_>>().join(", ");
    let twice = |port: &str| {
        let workload = |name: &str| {
            whole("W  addresses: [10.0.0.1]\n").replace("name: bad", &format!("name: {name}, labels: {{app: t}}"))
                + "---\n"
        };
        workload("a") + &workload("b") + &whole(&format!("S  selector: {{app: t}}\n  ports: [{port}]\n"))
    };
    let modes = |from: u16| {
        let ports: Vec<_> = (from..from + 999)
            .map(|port| format!("{{port: {port}, mode: strict}}"))
            .collect();
        whole(&format!("I  mtls: {{ports: [{}]}}\n", ports.join(", "))).replace("bad", &format!("p{from}"))
    };
    let host = format!("{0}.{0}.{0}.{1}", "a".repeat(62), "b".repeat(53));
    let srv = |host: &str| whole(&format!("O  hosts: [{host}]\n  dns: {{srv: _grpc._tcp}}\n"));
    for (fine, wrong, sentence) in [
        (
            whole(&format!(
                "S  selector: {{app: greeter}}\n  clusterIPs: [{}]\n",
                addresses(64)
            )),
            whole(&format!(
                "S  selector: {{app: greeter}}\n  clusterIPs: [{}]\n",
                addresses(65)
            )),
            "are 65; expected at most 64",
        ),
        (
            twice("{port: 80, targetPort: api}"),
            twice("{port: 80}"),
            "leads to 10.0.0.1:80 twice: of Workload shop/a, and of shop/b",
        ),
        (crowd(10_000), crowd(10_001), "leads to 10001 endpoints"),
        (srv(&host), srv(&format!("a{host}")), "more than 253 bytes"),
        (
            modes(1_000),
            modes(1_000) + "---\n" + &modes(2_000),
            "1999 ports of Workload shop/greeter-1",
        ),
        (
            whole("W  addresses: [255.255.255.254]\n"),
            whole("W  addresses: [255.255.255.255]\n"),
            "expected an IP address",
        ),
    ] {
        let told = |text: &str| read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", text).0);
        assert!(told(&fine).snapshot.is_some(), "{:#?}", told(&fine).findings);
        let reading = told(&wrong);
        let mistakes = reading
            .findings
            .iter()
            .filter(|found| found.severity == Severity::Mistake);
        let mistakes: Vec<_> = mistakes.map(|found| found.message.as_str()).collect();
        assert!(
            reading.snapshot.is_none() && mistakes.len() == 1 && mistakes[0].contains(sentence),
            "{mistakes:?}"
        );
    }
}

#[test]
fn a_name_that_comes_twice_says_where_the_other_is() {
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", GOOD).0);
    let twice = reading.findings.iter().filter(|found| found.field == "metadata.name");
    let twice: Vec<_> = twice.collect();
    assert_eq!(twice.len(), 4, "{:#?}", reading.findings);
    assert!(twice[0].message.contains("a.yaml:"), "{}", twice[0]);
}

#[test]
fn a_narrower_policy_overrules_one_of_the_whole_namespace() {
    let narrow = whole("I  selector: {matchLabels: {app: greeter}}\n  mtls: {mode: disabled}\n");
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", &narrow).0);
    assert_eq!(reading.findings, []);
}

#[test]
fn what_selects_nothing_is_a_warning() {
    let doubtful = [
        whole("S  selector: {app: nobody}\n  ports: [{port: 80}]\n"),
        whole("S  selector: {app: greeter}\n  ports: [{port: 80, targetPort: nobody}]\n"),
        whole("I  selector: {matchLabels: {app: nobody}}\n  mtls: {mode: strict}\n"),
        whole("I  selector: {matchLabels: {app: greeter}}\n"),
        whole("O  targetRefs: [{kind: Service, name: greeter, sectionName: grpc-api}]\n"),
        whole("S  selector: {app: greeter}\n  ports: [{port: 80, targetPort: api, appProtocol: gopher}]\n"),
        whole("S  ports: [{port: 80}]\n"),
        whole("S  selector: {app: greeter}\n"),
        whole("S  selector: {app: greeter}\n  ports: [{port: 80, targetport: api}]\n"),
        whole("S  selector: {app: greeter}\n  port: 80\n  ports: [{port: 80}]\n"),
        whole("I  mtls: {}\n"),
        whole("I  mtls: {mode: }\n"),
        whole("I  mtls: {mode: strict, ports: []}\n"),
        whole("I  mtls: {mode: strict, ports: [{port: 4711, mode: strict}]}\n"),
        whole("I  mtls: {mode: strict}\n  selector: {matchLabels: {}}\n"),
        whole("W  addresses: [10.0.0.9]\n  joinTokenSha256:\n"),
        whole("W  addresses: [10.0.0.9]\n  serviceAccount: control\n").replace("shop", "portunus"),
        whole("W  addresses: [10.0.0.1]\nstatus: {conditions: [{type: Ready, status: 'False'}]}\n"),
        whole("O  targetRefs: [{kind: Service, name: greeter}]\n  dns: {srv: _grpc._tcp}\n"),
        whole("W  addresses: [10.0.0.9]\n  ports: [{port: 80, appProtocol: gopher}]\n"),
    ];
    for text in doubtful {
        let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", &text).0);
        assert!(reading.snapshot.is_some(), "{text}: {:#?}", reading.findings);
        let severities: Vec<_> = reading.findings.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Warning], "{text}: {:#?}", reading.findings);
    }
}

#[test]
fn a_workload_without_a_token_at_the_address_of_one_that_has_a_token_is_a_warning_that_names_both() {
    let beside = whole("W  addresses: [10.9.9.9, 10.1.0.3]\n  ports: [{port: 4711}]\n");
    for (good, other) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        let reading = read(&Directory::new().with(good, GOOD).with(other, &beside).0);
        assert!(reading.snapshot.is_some(), "{:#?}", reading.findings);
        let [finding] = &reading.findings[..] else {
            panic!("{:#?}", reading.findings);
        };
        assert_eq!(
            (finding.severity, &*finding.file, &*finding.field),
            (Severity::Warning, other, "spec.addresses[1]")
        );
        let what = "10.1.0.3 is the address of a Workload with spec.joinTokenSha256, too";
        assert!(finding.message.starts_with(what), "{finding}");
        assert!(
            finding.message.contains(&format!("shop/greeter-1 ({good}:")),
            "{finding}"
        );
        assert!(finding.line.is_some(), "{finding}");
    }
}

#[test]
fn members_that_share_an_address_are_a_warning_that_says_what_of_it_is_plain() {
    let hash = "0123456789abcdef".repeat(4);
    let beside = whole(&format!(
        "W  addresses: [10.1.0.3, 10.9.9.9]\n  ports: [{{port: 4711}}]\n  joinTokenSha256: {hash}\n"
    ));
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", &beside).0);
    assert!(reading.snapshot.is_some(), "{:#?}", reading.findings);
    let [finding] = &reading.findings[..] else {
        panic!("{:#?}", reading.findings);
    };
    assert_eq!(
        (finding.severity, &*finding.file, &*finding.field),
        (Severity::Warning, "b.yaml", "spec.addresses[0]")
    );
    for part in ["10.1.0.3 is", "called in plain", "shop/greeter-1 (a.yaml:"] {
        assert!(finding.message.contains(part), "{part} in {finding}");
    }
}

#[test]
fn a_service_none_of_whose_workloads_is_ready_is_a_warning_and_one_that_is_ready_suffices() {
    let service = whole("S  selector: {app: new}\n  ports: [{port: 80}]\n");
    let workload = |name: &str, address: &str, ready: &str| {
        format!(
            "---\napiVersion: portunus.dev/v1alpha1\nkind: Workload\n\
             metadata: {{name: {name}, namespace: shop, labels: {{app: new}}}}\n\
             spec: {{addresses: [{address}], ready: {ready}}}\n"
        )
    };
    let unready = service + &workload("a", "10.0.0.1", "false");
    let told = |text: &str| read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", text).0);
    let reading = told(&unready);
    let snapshot = reading.snapshot.expect("it is allowed");
    assert!(!snapshot.workloads[&Name::new("shop", "a")].ready);
    assert!(
        snapshot.workloads[&Name::new("shop", "greeter-1")].ready,
        "as nothing is said"
    );
    assert_eq!(reading.findings.len(), 1, "{:#?}", reading.findings);
    assert!(reading.findings[0].message.contains("no Workload that is ready"));
    let other = told(&(unready + &workload("b", "10.0.0.2", "true")));
    assert_eq!(other.findings, []);
}

#[test]
fn kinds_of_others_that_have_our_names_are_left_out_without_a_word() {
    let others = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n---\n\
                  apiVersion: kueue.x-k8s.io/v1beta1\nkind: Workload\nmetadata: {name: a}\n";
    let reading = read(&Directory::new().with("a.yaml", others).0);
    assert!(reading.snapshot.is_some_and(|snapshot| snapshot.workloads.is_empty()));
    let are_notes = reading.findings.iter().all(|found| found.severity == Severity::Note);
    assert!(are_notes && reading.findings.len() == 2, "{:#?}", reading.findings);
}

#[test]
fn a_policy_in_another_namespace_than_its_service_is_told_where_that_is() {
    let text = "apiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {name: a}\n\
                spec: {targetRefs: [{kind: Service, name: greeter}]}\n";
    let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", text).0);
    let sentence = &reading.findings[0].message;
    assert!(
        sentence.contains("no Service default/greeter, but there is shop/greeter"),
        "{sentence}"
    );
}

#[test]
fn srv_records_are_those_of_a_service_at_each_host_or_of_one_whole_name() {
    for (said, of_a) in [
        ("_grpc._tcp", "_grpc._tcp.a.example"),
        ("_GRPC._tcp.", "_grpc._tcp.a.example"),
        ("_grpc._tcp.pool.example.", "_grpc._tcp.pool.example"),
        ("a.example", "a.example"),
    ] {
        let text = whole(&format!("O  hosts: [a.example]\n  dns: {{srv: {said}}}\n"));
        let reading = read(&Directory::new().with("a.yaml", GOOD).with("b.yaml", &text).0);
        assert_eq!(reading.findings, [], "{said}");
        let snapshot = reading.snapshot.expect("it is right");
        let srv = snapshot.outbound_policies[&Name::new("shop", "bad")].srv.clone();
        assert_eq!(srv.expect("it is said").record("a.example"), of_a);
    }
}

#[test]
fn a_sentence_never_carries_what_a_terminal_would_obey() {
    let reading = read(
        &Directory::new()
            .with(
                "a.yaml",
                &whole("W  addresses: [\"\\e[2J\\r\\n\\u202e\"]\n  \"\\e[0m\": 1\n"),
            )
            .0,
    );
    assert!(reading.findings.len() >= 2);
    for finding in reading.findings {
        let line = finding.to_string();
        assert!(
            !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{finding:?}"
        );
    }
}

#[test]
fn no_state_is_made_of_two_though_the_files_are_swapped_while_they_are_read() {
    const FILES: u16 = 40;
    const SWAPS: u16 = 100;
    let directory = Directory::new();
    let at = |name: &str| directory.0.join(name);
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(from, at(to)).expect("a link can be made");
    // As Kubernetes does it. All ports of a generation are the same.
    let swap = |generation: u16| {
        let folder = format!("..{generation}");
        fs::create_dir(at(&folder)).expect("a directory can be made");
        for file in 0..FILES {
            let service = whole(&format!("S  ports: [{{port: {generation}}}]\n"));
            directory.write(
                &format!("{folder}/{file}.yaml"),
                &service.replace("bad", &format!("s{file}")),
            );
        }
        link(&folder, "..tmp");
        fs::rename(at("..tmp"), at("..data")).expect("it can be swapped");
    };
    let ports = |reading: Reading| -> Option<BTreeSet<u16>> {
        let services = reading.snapshot?.services;
        Some(services.values().map(|service| service.ports[0].port).collect())
    };
    swap(1);
    (0..FILES).for_each(|file| link(&format!("..data/{file}.yaml"), &format!("{file}.yaml")));
    let (mut taken, newest) = (BTreeSet::new(), AtomicU16::new(0));
    thread::scope(|scope| {
        let swapping = scope.spawn(|| {
            for generation in 2..=SWAPS {
                thread::sleep(Duration::from_millis(30));
                swap(generation);
                // Now and then it comes to rest.
                let until = Instant::now() + SOON;
                while generation % 10 == 0 && newest.load(Relaxed) != generation {
                    if Instant::now() > until {
                        return;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        while !swapping.is_finished() {
            if let Some(ports) = ports(read(&directory.0)) {
                assert_eq!(ports.len(), 1, "a state of several generations: {ports:?}");
                ports.first().inspect(|port| newest.store(**port, Relaxed));
                taken.extend(ports);
            }
        }
    });
    assert!(taken.len() >= 10, "{taken:?}");
    assert_eq!(ports(read(&directory.0)), Some(BTreeSet::from([SWAPS])));
}

#[tokio::test]
async fn a_directory_that_never_comes_to_rest_leaves_the_last_good_state_and_this_is_said() {
    // It takes a while to read, and something changes all the time.
    let directory = Directory::new()
        .with("a.yaml", GOOD)
        .with("large.yaml", &crowd(5_000).replace("bad", "crowd"));
    let (mut watching, stop) = following(&directory, NEVER).await;
    let comes_to_rest = CancellationToken::new();
    let (path, rests) = (directory.0.clone(), comes_to_rest.clone());
    let restless = thread::spawn(move || {
        while !rests.is_cancelled() {
            fs::write(path.join(".new"), whole("S  ports: [{port: 81}]\n")).expect("a file can be written");
            fs::rename(path.join(".new"), path.join("b.yaml")).expect("it can be moved");
        }
        fs::remove_file(path.join("b.yaml")).expect("it is there");
    });
    let is_said = |health: &Health| {
        let mut found = health.findings.iter();
        found.any(|found| found.severity == Severity::Mistake && found.message.contains("changes while it is read"))
    };
    let said = tokio::time::timeout(SOON, watching.health.wait_for(is_said)).await;
    said.expect("it is said").expect("it lives");
    let has = |state: &Option<Arc<Snapshot>>, port: u16| {
        let mut services = state.iter().flat_map(|state| state.services.values());
        services.any(|service| service.ports[0].port == port)
    };
    assert!(has(&watching.states.borrow(), 80), "the last good one is in force");
    comes_to_rest.cancel();
    restless.join().expect("it does not panic");
    directory.write("c.yaml", &whole("S  ports: [{port: 82}]\n"));
    let taken = tokio::time::timeout(SOON, watching.states.wait_for(|state| has(state, 82))).await;
    taken.expect("it is seen").expect("it lives");
    assert!(!watching.health.borrow().is_refused());
    stop.cancel();
    watching.ended().await;
}

async fn following(directory: &Directory, poll: Duration) -> (Watching, CancellationToken) {
    let stop = CancellationToken::new();
    let mut source = Source::new(&directory.0);
    source.poll = poll;
    (source.follow(stop.clone()).await, stop)
}

const SOON: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn manifests_with_mistakes_are_told_of_with_what_is_in_force_instead() {
    let log = Log::begin();
    let wrong = whole("W  addresses: [x, y]\n");
    let directory = Directory::new().with("a.yaml", &wrong);
    let (mut watching, stop) = following(&directory, NEVER).await;
    let said = |text: &str| {
        log.said()
            .lines()
            .any(|line| line.contains("mistakes=2") && line.contains(text))
    };
    assert!(
        said("there is no state before them: no sidecar is served"),
        "{}",
        log.said()
    );
    directory.write("a.yaml", GOOD);
    let mended = tokio::time::timeout(SOON, watching.states.wait_for(Option::is_some)).await;
    mended.expect("it is seen").expect("it lives");
    assert!(!said("the state before them stays in force"), "{}", log.said());
    directory.write("b.yaml", &wrong);
    let refused = tokio::time::timeout(SOON, watching.health.wait_for(|health| health.refused >= 2)).await;
    refused.expect("it is seen").expect("it lives");
    assert!(said("the state before them stays in force"), "{}", log.said());
    stop.cancel();
    watching.ended().await;
}

#[tokio::test]
async fn a_new_state_is_taken_whole_and_a_bad_one_leaves_the_last_good() {
    let directory = Directory::new().with("a.yaml", GOOD);
    let (mut watching, stop) = following(&directory, NEVER).await;
    assert_eq!(
        watching
            .states
            .borrow_and_update()
            .as_ref()
            .map(|state| state.services.len()),
        Some(1)
    );
    directory.write("b.yaml", &whole("S  ports: [{port: 0}]\n"));
    let refused = watching.health.wait_for(Health::is_refused);
    tokio::time::timeout(SOON, refused)
        .await
        .expect("it is seen")
        .expect("it lives");
    assert!(!watching.states.has_changed().expect("it lives"));
    directory.write("b.yaml", &whole("S  ports: [{port: 81}]\n"));
    tokio::time::timeout(SOON, watching.states.changed())
        .await
        .expect("it is seen")
        .expect("it lives");
    assert_eq!(
        watching.states.borrow().as_ref().map(|state| state.services.len()),
        Some(2)
    );
    let mended = watching.health.wait_for(|health| !health.is_refused());
    tokio::time::timeout(SOON, mended)
        .await
        .expect("it is seen")
        .expect("it lives");
    stop.cancel();
    watching.ended().await;
}

#[test]
fn a_file_in_the_place_of_another_is_seen_though_it_is_as_long_and_as_old() {
    let directory = Directory::new().with("a.yaml", "# one\n");
    let metadata = fs::metadata(directory.0.join("a.yaml")).expect("it is there");
    let before = stamp(&directory.0);
    assert_eq!(stamp(&directory.0), before);
    directory.write("new", "# two\n");
    let new = fs::File::options().append(true).open(directory.0.join("new"));
    let age = metadata.modified().expect("it has one");
    new.and_then(|new| new.set_modified(age))
        .expect("it can be made as old");
    fs::rename(directory.0.join("new"), directory.0.join("a.yaml")).expect("it can be moved");
    assert_ne!(stamp(&directory.0), before);
}

#[tokio::test]
async fn another_directory_in_the_place_of_the_source_is_seen_at_once_and_so_is_what_changes_in_it() {
    let directory = Directory::new();
    for (generation, text) in [
        ("..1", GOOD.to_owned()),
        ("..2", whole("S  ports: [{port: 81}]\n")),
        ("3", GOOD.to_owned()),
    ] {
        fs::create_dir_all(directory.0.join(generation).join("m")).expect("a directory can be made");
        directory.write(&format!("{generation}/m/a.yaml"), &text);
    }
    let link =
        |from: &str, to: &str| std::os::unix::fs::symlink(from, directory.0.join(to)).expect("a link can be made");
    link("..1", "..data");
    link("..data/m", "manifests");
    let rename =
        |from: &str, to: &str| fs::rename(directory.0.join(from), directory.0.join(to)).expect("it can be swapped");
    let stop = CancellationToken::new();
    let mut source = Source::new(directory.0.join("manifests"));
    source.poll = NEVER;
    let mut watching = source.follow(stop.clone()).await;
    let mut until_workloads = async |number: usize| {
        let has = |state: &Option<Arc<Snapshot>>| state.as_ref().is_some_and(|state| state.workloads.len() == number);
        let seen = tokio::time::timeout(SOON, watching.states.wait_for(has)).await;
        seen.expect("it is seen").expect("it lives");
    };
    until_workloads(1).await;
    link("..2", "..tmp");
    rename("..tmp", "..data");
    until_workloads(0).await;
    directory.write("..2/m/a.yaml", GOOD);
    until_workloads(1).await;
    directory.write("..2/m/a.yaml", &whole("S  ports: [{port: 81}]\n"));
    until_workloads(0).await;
    // A link that is replaced by a directory, and that by another.
    fs::remove_file(directory.0.join("manifests")).expect("it is there");
    rename("3/m", "manifests");
    until_workloads(1).await;
    rename("manifests", "aside");
    rename("..1/m", "manifests");
    directory.write("manifests/a.yaml", &whole("S  ports: [{port: 81}]\n"));
    until_workloads(0).await;
    // One that goes away and comes back is the same, but the kernel watches it no longer.
    rename("manifests", "aside-too");
    rename("aside-too", "manifests");
    directory.write("manifests/a.yaml", GOOD);
    until_workloads(1).await;
    directory.write("manifests/a.yaml", &whole("S  ports: [{port: 81}]\n"));
    until_workloads(0).await;
    stop.cancel();
    watching.ended().await;
}

#[tokio::test]
async fn the_swap_of_a_symlink_is_seen() {
    let directory = Directory::new();
    for (generation, text) in [("..1", GOOD.to_owned()), ("..2", whole("S  ports: [{port: 81}]\n"))] {
        fs::create_dir(directory.0.join(generation)).expect("a directory can be made");
        directory.write(&format!("{generation}/a.yaml"), &text);
    }
    let link =
        |from: &str, to: &str| std::os::unix::fs::symlink(from, directory.0.join(to)).expect("a link can be made");
    link("..1", "..data");
    link("..data/a.yaml", "a.yaml");
    let (mut watching, stop) = following(&directory, NEVER).await;
    assert!(
        watching
            .states
            .borrow_and_update()
            .as_ref()
            .is_some_and(|state| state.workloads.len() == 1)
    );
    link("..2", "..tmp");
    fs::rename(directory.0.join("..tmp"), directory.0.join("..data")).expect("it can be swapped");
    tokio::time::timeout(SOON, watching.states.changed())
        .await
        .expect("it is seen")
        .expect("it lives");
    assert!(
        watching
            .states
            .borrow()
            .as_ref()
            .is_some_and(|state| state.workloads.is_empty())
    );
    stop.cancel();
    watching.ended().await;
}

#[tokio::test]
async fn a_directory_that_comes_later_is_found() {
    let directory = Directory::new();
    fs::remove_dir(&directory.0).expect("it is empty");
    let (mut watching, stop) = following(&directory, Duration::from_millis(20)).await;
    assert!(watching.states.borrow().is_none() && watching.health.borrow().is_refused());
    fs::create_dir(&directory.0).expect("a directory can be made");
    directory.write("a.yaml", GOOD);
    let found = watching.states.wait_for(Option::is_some);
    tokio::time::timeout(SOON, found)
        .await
        .expect("it is seen")
        .expect("it lives");
    stop.cancel();
    watching.ended().await;
}
