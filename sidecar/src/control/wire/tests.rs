//! Good answers are taken as they are meant; of wrong ones, every kind says what is wrong.

use super::*;

fn endpoint_at(ip: &str, port: u32) -> v1::Endpoint {
    v1::Endpoint {
        ip: ip.to_owned(),
        port,
        identity: "spiffe://mesh.test/ns/shop/sa/greeter".to_owned(),
        zone: "a".to_owned(),
        weight: 0,
        ready: true,
        workload: "shop/greeter-1".to_owned(),
    }
}

fn service(endpoints: Vec<v1::Endpoint>) -> v1::Service {
    v1::Service {
        namespace: "shop".to_owned(),
        name: "greeter".to_owned(),
        port: 50051,
        addresses: vec!["10.96.0.1".to_owned()],
        endpoints,
        policy: None,
    }
}

fn refused(change: impl FnOnce(&mut v1::Service)) -> Refused {
    let mut service = service(vec![endpoint_at("10.1.0.1", 50051)]);
    change(&mut service);
    known(Some(v1::update::What::Service(service))).expect_err("it is wrong")
}

#[test]
fn a_service_is_taken_as_it_is_meant() {
    let mut wire = service(vec![endpoint_at("10.1.0.1", 1), endpoint_at("::ffff:10.1.0.2", 2)]);
    wire.endpoints[1].identity.clear();
    wire.endpoints[1].weight = 7;
    wire.endpoints[1].zone.clear();
    wire.policy = Some(v1::OutboundPolicy {
        balancer: Some(v1::Balancer {
            algorithm: v1::balancer::Algorithm::RoundRobin.into(),
            slow_start: Some(Default::default()),
        }),
        from: "shop/steady".to_owned(),
        ..Default::default()
    });
    let Ok(Known::Service(view)) = known(Some(v1::update::What::Service(wire))) else {
        panic!("it is good")
    };
    assert_eq!(view.name, "greeter.shop:50051");
    assert_eq!(view.endpoints[0].weight, 1, "nothing said means 1");
    assert_eq!(view.endpoints[1].addr, "10.1.0.2:2".parse().unwrap());
    assert_eq!((&view.endpoints[1].identity, view.endpoints[1].weight), (&None, 7));
    let zones = [0, 1].map(|at| view.endpoints[at].zone.as_str());
    assert_eq!(zones, ["a", ""], "who says nothing of where it stands stands nowhere");
    assert_eq!(view.policy.algorithm, Some(Algorithm::RoundRobin));
    assert_eq!(view.policy.slow_start, Some(Duration::ZERO));
    assert_eq!(view.policy.from, "shop/steady");
    assert_eq!(view.policy.health, HealthPolicy::default());
}

#[test]
fn whatever_is_wrong_with_a_service_is_named() {
    for ip in [
        "",
        "greeter",
        "10.1.0",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "ff02::1",
        "fe80::1%1",
    ] {
        let why = refused(|service| service.endpoints[0].ip = ip.to_owned());
        assert_eq!(why, Refused::Address(ip.to_owned()));
    }
    for port in [0, 65_536, u32::MAX] {
        assert_eq!(refused(|service| service.endpoints[0].port = port), Refused::Port(port));
        assert_eq!(refused(|service| service.port = port), Refused::Port(port));
    }
    for id in ["x", "spiffe://UPPER/a", "spiffe://a", "spiffe://a/b\0", "https://a/b"] {
        let why = refused(|service| service.endpoints[0].identity = id.to_owned());
        assert!(matches!(why, Refused::Identity { .. }), "{why}");
    }
    let why = refused(|service| service.endpoints[0].weight = u32::MAX);
    assert!(matches!(why, Refused::Weight { .. }), "{why}");
    let why = refused(|service| service.addresses = vec!["10.0.0.1".to_owned(); 65]);
    assert!(matches!(why, Refused::TooMany { found: 65, .. }), "{why}");
    let why = refused(|service| service.name = "n".repeat(400));
    assert!(matches!(why, Refused::TooLong { .. }), "{why}");
    let why = refused(|service| service.endpoints[0].workload = "n".repeat(400));
    assert!(matches!(why, Refused::TooLong { .. }), "{why}");
    let why = refused(|service| service.endpoints[0].zone = "z".repeat(400));
    assert_eq!(
        why.to_string(),
        "an endpoint's zone has 400 bytes; at most 320 are taken"
    );
    assert_eq!(known(None), Err(Refused::Missing("what is known")));
}

#[test]
fn an_endpoint_that_stands_there_twice_is_one_and_never_in_plain_where_it_has_an_identity() {
    let plain = |ip: &str| v1::Endpoint {
        identity: String::new(),
        ..endpoint_at(ip, 1)
    };
    let named = |ip: &str| endpoint_at(ip, 1);
    let other = v1::Endpoint {
        identity: "spiffe://mesh.test/ns/shop/sa/other".to_owned(),
        ..named("10.1.0.1")
    };
    for (twice, identity) in [
        ([plain("10.1.0.1"), named("::ffff:10.1.0.1")], "greeter"),
        ([named("10.1.0.1"), plain("10.1.0.1")], "greeter"),
        ([named("10.1.0.1"), other.clone()], "greeter"),
    ] {
        let mut all = twice.to_vec();
        all.push(named("10.1.0.2"));
        let Ok(Known::Service(view)) = known(Some(v1::update::What::Service(service(all)))) else {
            panic!("it is taken")
        };
        assert_eq!(view.endpoints.len(), 2);
        let found = view.endpoints[0].identity.as_ref().map(|id| id.as_str().to_owned());
        assert!(
            found.is_some_and(|found| found.ends_with(identity)),
            "{:?}",
            view.endpoints
        );
    }
}

#[test]
fn a_service_may_have_ten_thousand_endpoints_and_no_more() {
    let many = |n: u32| {
        let endpoints = (0..n).map(|at| endpoint_at(&IpAddr::from((0x0a00_0001 + at).to_be_bytes()).to_string(), 1));
        known(Some(v1::update::What::Service(service(endpoints.collect()))))
    };
    assert_eq!(many(10_000).map(|known| weight(&known)), Ok(10_000));
    assert!(matches!(many(10_001), Err(Refused::TooMany { found: 10_001, .. })));
}

#[test]
fn policies_with_numbers_that_mean_nothing_are_refused() {
    let with = |policy: v1::OutboundPolicy| refused(|service| service.policy = Some(policy));
    let mut health = v1::HealthCheck {
        interval: Some(Default::default()),
        ..Default::default()
    };
    for (seconds, nanos) in [
        (0, 0),
        (-1, 0),
        (0, -1),
        (0, 1_000_000_000),
        (i64::MAX, 0),
        (86_401, 0),
        (0, 1),
    ] {
        let interval = health.interval.as_mut().unwrap();
        (interval.seconds, interval.nanos) = (seconds, nanos);
        let policy = v1::OutboundPolicy {
            health_check: Some(health.clone()),
            ..Default::default()
        };
        assert_eq!(
            with(policy),
            Refused::Duration("health_check.interval"),
            "{seconds} {nanos}"
        );
    }
    let unknown = v1::OutboundPolicy {
        health_check: Some(v1::HealthCheck {
            mode: 9,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(matches!(with(unknown), Refused::Unknown { number: 9, .. }));
    let unknown = v1::OutboundPolicy {
        balancer: Some(v1::Balancer {
            algorithm: -1,
            slow_start: None,
        }),
        ..Default::default()
    };
    assert!(matches!(with(unknown), Refused::Unknown { number: -1, .. }));
    let share = v1::OutboundPolicy {
        outlier: Some(v1::Outlier {
            max_ejection_percent: 101,
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(with(share), Refused::Percent(101));
}

#[test]
fn a_name_outside_the_mesh_may_have_a_policy() {
    let unknown = v1::Unknown {
        policy: Some(v1::OutboundPolicy {
            outlier: Some(v1::Outlier {
                off: true,
                ..Default::default()
            }),
            ..Default::default()
        }),
    };
    let Ok(Known::Outside(policy)) = known(Some(v1::update::What::Unknown(unknown))) else {
        panic!("it is good")
    };
    assert!(policy.outlier.is_off);
    assert_eq!(policy.srv, None, "nothing said");
    let srv = |name: &str| {
        let policy = v1::OutboundPolicy {
            srv: name.to_owned(),
            ..Default::default()
        };
        known(Some(v1::update::What::Unknown(v1::Unknown { policy: Some(policy) })))
    };
    let Ok(Known::Outside(policy)) = srv("_grpc._tcp.A.example") else {
        panic!("it is good")
    };
    assert_eq!(policy.srv.as_deref(), Some("_grpc._tcp.a.example"));
    for name in ["a b", "a..b", "_grpc._tcp.", "a\r\nb", &"a.".repeat(127)] {
        assert!(matches!(srv(name), Err(Refused::Srv(_))), "{name:?}");
    }
}

#[test]
fn modes_are_read_by_port_and_what_is_unset_is_unsaid() {
    let wire = v1::Inbound {
        mtls: v1::Mtls::Strict.into(),
        ports: [(1, v1::Mtls::Disabled.into()), (2, v1::Mtls::Unset.into())].into(),
        from: vec![],
        protocols: [(3, "tcp".to_owned()), (4, "gopher".to_owned())].into(),
    };
    let inbound = inbound(&wire).expect("it is good");
    let known = BTreeMap::from([(3, Declared::Opaque)]);
    assert_eq!(inbound.protocols, known, "of a word that is not known nothing follows");
    assert_eq!(inbound.default, Some(Mode::Strict));
    assert_eq!(inbound.ports, BTreeMap::from([(1, Mode::Disabled)]));
    for (mtls, ports) in [
        (4, vec![]),
        (0, vec![(1, 7)]),
        (0, vec![(0, 1)]),
        (0, vec![(70_000, 1)]),
    ] {
        let wire = v1::Inbound {
            mtls,
            ports: ports.into_iter().collect(),
            ..Default::default()
        };
        assert!(super::inbound(&wire).is_err(), "{wire:?}");
    }
}

#[test]
fn a_bundle_is_of_our_trust_domain_and_has_something_in_it() {
    let ours = TrustDomain::parse("mesh.test").expect("it is one");
    let bundle = |trust_domain: &str, roots: Vec<Vec<u8>>| {
        let trust_domain = trust_domain.to_owned();
        roots_of(v1::Bundle { trust_domain, roots }, &ours)
    };
    assert_eq!(bundle("mesh.test", vec![vec![1]]).map(|roots| roots.len()), Ok(1));
    assert_eq!(bundle("mesh.test", vec![]), Err(Refused::Empty("the trust bundle")));
    assert!(matches!(
        bundle("other.test", vec![vec![1]]),
        Err(Refused::ForeignBundle { .. })
    ));
    assert!(matches!(
        bundle("MESH", vec![vec![1]]),
        Err(Refused::TrustDomain { .. })
    ));
    assert!(matches!(
        bundle("mesh.test", vec![vec![1]; 33]),
        Err(Refused::TooMany { .. })
    ));
    assert!(matches!(
        bundle("mesh.test", vec![vec![1; 20_000]]),
        Err(Refused::Certificate(_))
    ));
}

use super::roots as roots_of;

#[test]
fn what_is_asked_for_comes_back_as_it_was() {
    for subject in [
        Subject::Name {
            host: "greeter.shop".to_owned(),
            port: 80,
        },
        Subject::Address("10.0.0.1:80".parse().unwrap()),
        Subject::Address("[fd00::1]:80".parse().unwrap()),
    ] {
        assert_eq!(super::subject(Some(ask(&subject))), Ok(subject));
    }
    assert_eq!(super::subject(None), Err(Refused::Missing("subject")));
    let nameless = v1::Subject { what: None };
    assert_eq!(super::subject(Some(nameless)), Err(Refused::Missing("subject")));
}
