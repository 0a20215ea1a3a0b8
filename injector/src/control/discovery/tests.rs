//! What a state looks like to one who asks, and what a stream tells.

use portunus_proto::SpiffeId;
use portunus_proto::mesh::v1::{
    self, Bundle, FollowRequest, Hello, Subject, follow_request::Ask, follow_response::Answer, subject, update,
};

use super::*;
use crate::cluster::{JoinToken, Name};
use crate::testing::{domain, state, workload};

const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: grpc, port: 80, targetPort: api}, {name: other, port: 81, targetPort: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {name: a-whole, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  balancer: {algorithm: RoundRobin}
  healthCheck: {interval: 5s, mode: Watch}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {name: b-port, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web, sectionName: grpc}]
  healthCheck: {mode: Check}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {name: c-late, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  hosts: [api.example.com]
  balancer: {algorithm: P2cEwma}
";

fn world(manifests: &str) -> World {
    let realm = Realm {
        trust_domain: domain(),
        cluster_domain: "cluster.local".to_owned(),
    };
    World::of(state(&(SERVICES.to_owned() + manifests)), realm)
}

fn shop() -> String {
    let token = JoinToken::generate();
    workload("web-1", "web", "10.0.0.1", Some(&token)) + &workload("web-2", "web", "10.0.0.2", None)
}

fn name(host: &str, port: u32) -> Subject {
    let host = host.to_owned();
    Subject {
        what: Some(subject::What::Name(v1::NamePort { host, port })),
    }
}

fn address(ip: &str, port: u32) -> Subject {
    let ip = ip.to_owned();
    Subject {
        what: Some(subject::What::Address(v1::Address { ip, port })),
    }
}

fn view(world: &World, namespace: &str, subject: &Subject) -> update::What {
    let update = world.view(&Name::new(namespace, "asker"), subject);
    assert_eq!(update.subject.as_ref(), Some(subject));
    update.what.expect("there is always an answer")
}

fn service(world: &World, namespace: &str, subject: &Subject) -> v1::Service {
    match view(world, namespace, subject) {
        update::What::Service(service) => service,
        other => panic!("{subject:?}: {other:?}"),
    }
}

#[test]
fn a_service_is_found_by_each_of_its_names_and_its_address() {
    let world = world(&shop());
    for host in [
        "web",
        "WEB.shop",
        "web.shop.svc",
        "web.shop.svc.cluster.local",
        "web.shop.svc.cluster.local.",
    ] {
        let found = service(&world, "shop", &name(host, 80));
        assert_eq!((found.namespace.as_str(), found.port), ("shop", 80), "{host}");
        assert_eq!(found.addresses, ["10.96.0.1"]);
    }
    assert_eq!(service(&world, "default", &name("web", 80)).namespace, "default");
    assert_eq!(service(&world, "default", &address("10.96.0.1", 81)).namespace, "shop");
    assert_eq!(service(&world, "default", &address("::ffff:10.96.0.1", 81)).port, 81);
    let unknown = [
        name("web", 82),
        name("web", 70_000),
        name("db", 80),
        name("web.shop.svc.example.com", 80),
        name("web.cluster.local", 80),
        name("", 80),
        address("10.96.0.2", 80),
        address("10.96.0.1", 82),
        address("nonsense", 80),
        Subject { what: None },
    ];
    for subject in unknown {
        let found = view(&world, "shop", &subject);
        assert_eq!(
            found,
            update::What::Unknown(v1::Unknown { policy: None }),
            "{subject:?}"
        );
    }
}

#[test]
fn an_endpoint_is_ready_unless_its_workload_says_otherwise_and_is_told_either_way() {
    let unready = workload("web-3", "web", "10.0.0.3", None) + "  ready: false\n";
    let world = world(&(shop() + &unready));
    let endpoints = service(&world, "shop", &name("web", 80)).endpoints.into_iter();
    let told: Vec<_> = endpoints.map(|endpoint| (endpoint.ip, endpoint.ready)).collect();
    let of = |last: u8, ready| (format!("10.0.0.{last}"), ready);
    assert_eq!(told, [of(1, true), of(2, true), of(3, false)]);
    let alone = view(&world, "shop", &address("10.0.0.3", 50_051));
    assert!(matches!(alone, update::What::Endpoint(endpoint) if !endpoint.ready));
}

#[test]
fn an_endpoint_says_where_it_stands_if_its_workload_does() {
    let longest = "z".repeat(63);
    let zoned = workload("web-3", "web", "10.0.0.3", None) + "  zone: eu-west_1.a\n";
    let far = workload("web-4", "web", "10.0.0.4", None) + &format!("  zone: {longest}\n");
    let world = world(&(shop() + &zoned + &far));
    let endpoints = service(&world, "shop", &name("web", 80)).endpoints.into_iter();
    let told: Vec<_> = endpoints.map(|endpoint| endpoint.zone).collect();
    assert_eq!(told, ["", "", "eu-west_1.a", &longest]);
    let alone = view(&world, "shop", &address("10.0.0.3", 50_051));
    assert!(matches!(alone, update::What::Endpoint(endpoint) if endpoint.zone == "eu-west_1.a"));
}

#[test]
fn an_endpoint_weighs_what_its_workload_says_and_1_if_it_says_nothing() {
    let heavy = workload("web-3", "web", "10.0.0.3", None) + "  weight: 3\n";
    let heaviest = workload("web-4", "web", "10.0.0.4", None) + "  weight: 10000\n";
    let world = world(&(shop() + &heavy + &heaviest));
    let endpoints = service(&world, "shop", &name("web", 80)).endpoints.into_iter();
    let told: Vec<_> = endpoints.map(|endpoint| endpoint.weight).collect();
    assert_eq!(told, [1, 1, 3, 10_000]);
    let alone = view(&world, "shop", &address("10.0.0.3", 50_051));
    assert!(matches!(alone, update::What::Endpoint(endpoint) if endpoint.weight == 3));
}

#[test]
fn a_host_outside_has_the_srv_records_that_its_policy_names_and_a_service_has_none() {
    let policy = "---\napiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {name: dns, namespace: default}\n\
                  spec: {hosts: [db.example.com], targetRefs: [{kind: Service, name: web}], dns: {srv: _pg._tcp}}\n";
    let world = world(policy);
    let outside = |host: &str| match view(&world, "default", &name(host, 80)) {
        update::What::Unknown(unknown) => unknown.policy.map(|policy| policy.srv),
        other => panic!("{other:?}"),
    };
    assert_eq!(outside("DB.example.com.").as_deref(), Some("_pg._tcp.db.example.com"));
    assert_eq!(outside("other.example.com"), None);
    let inside = service(&world, "default", &name("web", 80))
        .policy
        .expect("there is one");
    assert_eq!(inside.srv, "");
}

#[test]
fn endpoints_have_an_identity_if_a_sidecar_takes_mtls_there() {
    let disabled = "---\napiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a, namespace: shop}\n\
                    spec: {selector: {matchLabels: {app: web}}, mtls: {mode: strict, ports: [{port: 9000, mode: disabled}]}}\n";
    let world = world(&(shop() + disabled));
    let told = |port| {
        let endpoints = service(&world, "shop", &name("web", port)).endpoints.into_iter();
        let told = endpoints.map(|endpoint| (endpoint.ip, endpoint.port, endpoint.identity));
        told.collect::<Vec<_>>()
    };
    let web = "spiffe://mesh.test/ns/shop/sa/web";
    let plain = String::new;
    assert_eq!(
        told(80),
        [
            ("10.0.0.1".into(), 50_051, web.into()),
            ("10.0.0.2".into(), 50_051, plain())
        ]
    );
    assert_eq!(
        told(81),
        [("10.0.0.1".into(), 9_000, plain()), ("10.0.0.2".into(), 9_000, plain())]
    );
    let update::What::Endpoint(own) = view(&world, "default", &address("10.0.0.1", 50_051)) else {
        panic!("it is a workload's own")
    };
    assert_eq!(
        (own.identity.as_str(), own.workload.as_str(), own.weight, own.ready),
        (web, "shop/web-1", 1, true)
    );
    let inbound = world.inbound(&Name::new("shop", "web-1"));
    assert_eq!(inbound.mtls, i32::from(v1::Mtls::Strict));
    assert_eq!(inbound.ports[&9_000], i32::from(v1::Mtls::Disabled));
    assert_eq!(inbound.from, ["shop/a"]);
}

#[test]
fn a_member_is_known_by_its_identity_on_ports_too_that_it_does_not_list() {
    let policies = "---\napiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: a, namespace: shop}\n\
                    spec: {mtls: {mode: permissive, ports: [{port: 7000, mode: disabled}]}}\n";
    let world = world(&(shop() + policies));
    let identity = |ip: &str, port| match view(&world, "shop", &address(ip, port)) {
        update::What::Endpoint(endpoint) => Some(endpoint.identity),
        _ => None,
    };
    let web = "spiffe://mesh.test/ns/shop/sa/web";
    assert_eq!(identity("10.0.0.1", 50_051).as_deref(), Some(web));
    assert_eq!(identity("10.0.0.1", 50_052).as_deref(), Some(web));
    assert_eq!(
        identity("10.0.0.1", 7_000).as_deref(),
        Some(""),
        "it takes no mTLS there"
    );
    assert_eq!(
        identity("10.0.0.1", 4_191),
        None,
        "the sidecar's own admin port takes none"
    );
    assert_eq!(identity("10.0.0.2", 50_052), None, "it is no member");
}

#[test]
fn a_narrow_policy_overrules_a_wide_one_and_hosts_have_policy_in_their_namespace() {
    let policies = "---\napiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: wide, namespace: shop}\n\
                    spec: {mtls: {mode: strict, ports: [{port: 1, mode: disabled}]}}\n\
                    ---\napiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: narrow, namespace: shop}\n\
                    spec: {selector: {matchLabels: {app: web}}, mtls: {mode: permissive, ports: [{port: 2, mode: strict}]}}\n";
    let world = world(&(shop() + &workload("db", "db", "10.0.0.3", None) + policies));
    let inbound = |name| world.inbound(&Name::new("shop", name));
    assert_eq!(inbound("web-1").mtls, i32::from(v1::Mtls::Permissive));
    assert_eq!(
        inbound("web-1").ports.into_iter().collect::<Vec<_>>(),
        [(2, i32::from(v1::Mtls::Strict))]
    );
    assert_eq!(inbound("db").mtls, i32::from(v1::Mtls::Strict));
    assert_eq!(
        inbound("db").ports.into_iter().collect::<Vec<_>>(),
        [(1, i32::from(v1::Mtls::Disabled))]
    );

    let of_port = |port| {
        service(&world, "shop", &name("web", port))
            .policy
            .expect("there is one")
    };
    let (narrow, wide) = (of_port(80), of_port(81));
    let mode = |policy: &v1::OutboundPolicy| policy.health_check.as_ref().map(|check| check.mode());
    assert_eq!(
        (narrow.from.as_str(), wide.from.as_str()),
        ("shop/b-port, shop/a-whole", "shop/a-whole")
    );
    assert_eq!(mode(&narrow), Some(v1::health_check::Mode::Check));
    assert_eq!(mode(&wide), Some(v1::health_check::Mode::Watch));
    for policy in [&narrow, &wide] {
        let algorithm = policy.balancer.as_ref().map(|balancer| balancer.algorithm());
        assert_eq!(algorithm, Some(v1::balancer::Algorithm::RoundRobin));
        assert_eq!(
            policy
                .health_check
                .as_ref()
                .and_then(|check| check.interval)
                .map(|time| time.seconds),
            Some(5)
        );
    }
    let outside = |namespace| match view(&world, namespace, &name("API.example.com.", 443)) {
        update::What::Unknown(unknown) => unknown.policy.map(|policy| policy.from),
        other => panic!("{other:?}"),
    };
    assert_eq!(outside("shop").as_deref(), Some("shop/c-late"));
    assert_eq!(outside("default"), None);
}

#[test]
fn a_workload_is_told_what_its_ports_speak_by_itself_or_else_by_the_services_that_lead_there() {
    let services = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\n\
                    spec: {selector: {app: web}, ports: [\
                      {name: api, port: 1, targetPort: api, appProtocol: tcp},\
                      {name: tcp-db, port: 2, targetPort: 3306},\
                      {name: grpc-x, port: 3, targetPort: 7000}]}\n\
                    ---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: shop}\n\
                    spec: {selector: {app: web}, ports: [{name: http2, port: 3, targetPort: 7000},\
                      {name: x, port: 4, targetPort: 3307, appProtocol: tls},\
                      {name: y, port: 5, targetPort: 3307, appProtocol: tcp}]}\n\
                    ---\napiVersion: portunus.dev/v1alpha1\nkind: Workload\n\
                    metadata: {name: web-1, namespace: shop, labels: {app: web}}\n\
                    spec: {addresses: [10.0.0.1], ports: [{name: api, port: 50051, appProtocol: kubernetes.io/h2c}]}\n";
    let told = world(services).inbound(&Name::new("shop", "web-1")).protocols;
    let expected = [(50051, "h2c"), (3306, "tcp"), (7000, "h2c")];
    let expected = expected.map(|(port, word)| (port, word.to_owned()));
    assert_eq!(
        told,
        expected.into(),
        "what two Services do not agree about is left out"
    );
}

fn id() -> SpiffeId {
    SpiffeId::of(&domain(), "shop", "web").expect("it is one")
}

fn hello(workload: &str) -> FollowRequest {
    let (workload, version) = (workload.to_owned(), String::new());
    FollowRequest {
        ask: Some(Ask::Hello(Hello { workload, version })),
    }
}

fn subscribe(subject: Subject) -> FollowRequest {
    FollowRequest {
        ask: Some(Ask::Subscribe(subject)),
    }
}

fn all(follow: &mut Follow, world: &World) -> Vec<Answer> {
    let bundle = Bundle::default();
    let far = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let tell = |follow: &mut Follow| match follow.next(world, &bundle, far) {
        Next::Tell(response) => response.answer,
        Next::Nothing => None,
        Next::More => panic!("there was time enough"),
    };
    std::iter::from_fn(|| tell(follow)).collect()
}

#[test]
fn only_the_workload_itself_may_follow() {
    let world = world(&shop());
    let refused =
        |request: &FollowRequest, id: &SpiffeId| Follow::hello(request, id, &world).expect_err("it is refused");
    let other = SpiffeId::of(&domain(), "shop", "db").expect("it is one");
    assert_eq!(refused(&hello("shop/web-1"), &other), Mistake::OtherIdentity);
    assert_eq!(refused(&hello("shop/web-2"), &id()), Mistake::Gone);
    assert_eq!(refused(&hello("shop/web-3"), &id()), Mistake::Gone);
    assert_eq!(refused(&hello("web-1"), &id()), Mistake::NoWorkload);
    assert_eq!(refused(&subscribe(name("web", 80)), &id()), Mistake::Order);
    let mut follow = Follow::hello(&hello("shop/web-1"), &id(), &world).expect("it is its own");
    assert_eq!(follow.ask(hello("shop/web-1")), Err(Mistake::Order));
    assert_eq!(follow.ask(subscribe(name("", 80))), Err(Mistake::Subject));
    assert_eq!(follow.ask(subscribe(name("web", 0))), Err(Mistake::Subject));
    assert_eq!(follow.ask(subscribe(name(&"x".repeat(254), 80))), Err(Mistake::Subject));
}

#[test]
fn a_stream_tells_what_changed_and_nothing_else() {
    let first = world(&shop());
    let mut follow = Follow::hello(&hello("shop/web-1"), &id(), &first).expect("it is its own");
    follow.ask(subscribe(name("web", 80))).expect("it may");
    follow.ask(subscribe(name("nobody", 80))).expect("it may");
    let told = all(&mut follow, &first);
    assert!(matches!(
        told.as_slice(),
        [
            Answer::Bundle(_),
            Answer::Inbound(_),
            Answer::Update(_),
            Answer::Update(_)
        ]
    ));
    follow.state_changed();
    assert_eq!(all(&mut follow, &first), []);
    let second = world(&(shop() + &workload("web-3", "web", "10.0.0.3", None)));
    follow.state_changed();
    follow.state_changed();
    assert!(matches!(all(&mut follow, &second).as_slice(), [Answer::Update(_)]));
    follow.bundle_changed();
    assert_eq!(all(&mut follow, &second), []);
    follow
        .ask(FollowRequest {
            ask: Some(Ask::Unsubscribe(name("web", 80))),
        })
        .expect("it may");
    follow.state_changed();
    assert_eq!(all(&mut follow, &first), []);
    follow.ask(subscribe(name("nobody", 80))).expect("it may ask again");
    assert!(matches!(all(&mut follow, &second).as_slice(), [Answer::Update(_)]));
}

#[test]
fn whoever_follows_much_looks_at_it_bit_by_bit_and_is_told_all_the_same() {
    let (first, second) = (
        world(&shop()),
        world(&(shop() + &workload("web-3", "web", "10.0.0.3", None))),
    );
    let mut follow = Follow::hello(&hello("shop/web-1"), &id(), &first).expect("it is its own");
    let bundle = Bundle::default();
    for number in 0..100 {
        follow.ask(subscribe(name(&format!("n{number}"), 80))).expect("it may");
    }
    // Last in order.
    follow.ask(subscribe(name("web", 80))).expect("it may");
    assert_eq!(all(&mut follow, &first).len(), 103);
    follow.state_changed();
    let over = std::time::Instant::now();
    for look in 0..100 {
        assert_eq!(follow.next(&second, &bundle, over), Next::More, "after {look} looks");
    }
    let Next::Tell(response) = follow.next(&second, &bundle, over) else {
        panic!("there is news")
    };
    let Some(Answer::Update(update)) = response.answer else {
        panic!("of a subject")
    };
    assert!(matches!(update.what, Some(update::What::Service(service)) if service.endpoints.len() == 3));
    assert_eq!(follow.next(&second, &bundle, over), Next::Nothing);
}

#[test]
fn subscriptions_are_bounded() {
    let world = world(&shop());
    let mut follow = Follow::hello(&hello("shop/web-1"), &id(), &world).expect("it is its own");
    for number in 0..MOST_SUBSCRIPTIONS {
        follow
            .ask(subscribe(name(&format!("n{number}"), 80)))
            .expect("there is room");
    }
    assert_eq!(follow.ask(subscribe(name("more", 80))), Err(Mistake::TooMany));
    assert_eq!(follow.ask(subscribe(name("n0", 80))), Ok(()));
    assert_eq!(follow.subscriptions(), MOST_SUBSCRIPTIONS);
}

#[test]
#[ignore = "it measures, which takes a while"]
fn a_change_in_a_large_world_is_told_to_each_of_a_hundred_followers_once_in_a_time_that_is_printed() {
    let token = JoinToken::generate();
    let mut manifests: String = (0..100)
        .map(|n| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: shop}}\n\
                 spec: {{selector: {{app: s{n}}}, ports: [{{name: grpc, port: 80, targetPort: api}}]}}\n"
            )
        })
        .collect();
    for n in 0..4_000 {
        let token = (n == 0).then_some(&token);
        let address = format!("10.{}.{}.{}", 1 + n / 62_500, n / 250 % 250, 1 + n % 250);
        manifests += &workload(&format!("w{n}"), &format!("s{}", n % 100), &address, token);
    }
    for n in 0..20 {
        manifests += &format!(
            "---\napiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {{name: p{n}, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: s{n}}}}}, mtls: {{mode: strict}}}}\n"
        );
    }
    let [before, after] = ["", "  ready: false\n"].map(|more| {
        let began = std::time::Instant::now();
        let snapshot = state(&(manifests.clone() + &workload("last", "s7", "10.200.0.1", None) + more));
        let read = began.elapsed();
        let realm = Realm {
            trust_domain: domain(),
            cluster_domain: "cluster.local".to_owned(),
        };
        let began = std::time::Instant::now();
        let world = World::of(snapshot, realm);
        println!("read in {read:?}, arranged in {:?}", began.elapsed());
        world
    });
    let id = SpiffeId::of(&domain(), "shop", "s0").expect("it is one");
    let mut followers: Vec<_> = (0..100)
        .map(|_| {
            let mut follow = Follow::hello(&hello("shop/w0"), &id, &before).expect("it is its own");
            for n in 0..100 {
                follow.ask(subscribe(name(&format!("s{n}"), 80))).expect("it may");
            }
            follow
        })
        .collect();
    for (what, world) in [
        ("at first", &before),
        ("after a change", &after),
        ("after none", &after),
    ] {
        let (mut longest, mut told) = (std::time::Duration::ZERO, 0);
        let began = std::time::Instant::now();
        for follow in &mut followers {
            follow.state_changed();
            loop {
                let began = std::time::Instant::now();
                let next = follow.next(world, &Bundle::default(), began + std::time::Duration::from_micros(500));
                longest = longest.max(began.elapsed());
                match next {
                    Next::Tell(_) => {}
                    Next::More => continue,
                    Next::Nothing => break,
                }
                told += 1;
            }
        }
        println!(
            "{what}: {told} answers in {:?}, the longest {longest:?}",
            began.elapsed()
        );
    }
    let began = std::time::Instant::now();
    drop(before);
    println!("let go of in {:?}", began.elapsed());
}
