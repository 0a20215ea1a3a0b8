//! Against name servers on loopback that say what they are told to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use hickory_resolver::proto::{op::ResponseCode, rr::RecordType};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::*;
use server::{Asked, Refusal, Reply, Server};

mod server;

type Answers = watch::Receiver<Arc<Answer>>;

const NAME: &str = "greeter.example.";

#[tokio::test]
async fn a_and_aaaa_come_together_in_one_answer() {
    let (names, server) = start().await;
    server.has(NAME, 30, &["127.0.0.2", "::1", "127.0.0.1"]);
    let mut answers = names.watch(Query::addresses(NAME, 50051)).expect("a name");
    assert_eq!(answers.borrow().state, State::Pending);
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(addrs(&answer), ["127.0.0.1:50051", "127.0.0.2:50051", "[::1]:50051"]);
    assert!(
        answer
            .targets
            .iter()
            .all(|target| target.weight == 1 && target.priority == 0)
    );
    assert!(answer.expires.is_some());
}

#[tokio::test]
async fn a_family_that_fails_or_is_silent_does_not_hide_the_other() {
    for silent_or_failing in [Reply::Silence, Reply::Code(ResponseCode::ServFail)] {
        for (lost, kept) in [(RecordType::AAAA, "127.0.0.1"), (RecordType::A, "::1")] {
            let (names, server) = start_with(patient()).await;
            server.has(NAME, 0, &["127.0.0.1", "::1"]);
            server.say(NAME, lost, silent_or_failing.clone());
            let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
            let began = Instant::now();
            let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
            assert!(began.elapsed() < Duration::from_secs(5), "waited for the lost family");
            assert_eq!(ips(&answer), [kept]);
            // And it goes on to be asked by its own TTL.
            let kind = if lost == RecordType::A {
                RecordType::AAAA
            } else {
                RecordType::A
            };
            eventually(|| server.times_asked(NAME, kind) >= 4).await;
            // When the lost one comes back, it joins.
            server.has(NAME, 0, &["127.0.0.1", "::1"]);
            until(&mut answers, |answer| answer.targets.len() == 2).await;
        }
    }
}

#[tokio::test]
async fn a_family_that_was_taken_away_is_gone_and_no_outage() {
    let (names, server) = start().await;
    server.has(NAME, 0, &["127.0.0.1", "::1"]);
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    until(&mut answers, |answer| answer.targets.len() == 2).await;
    server.has(NAME, 0, &["127.0.0.1"]);
    let answer = until(&mut answers, |answer| answer.targets.len() == 1).await;
    assert_eq!(
        (ips(&answer), &answer.state),
        (vec!["127.0.0.1".to_owned()], &State::Fresh)
    );
}

#[tokio::test]
async fn an_answer_lives_as_long_as_its_ttl_within_floor_and_ceiling() {
    let lived = |ttl: u32, floor: u64, ceiling: u64| async move {
        let settings = Settings {
            ask_interval: Duration::from_millis(10),
            ttl_floor: Duration::from_millis(floor),
            ttl_ceiling: Duration::from_millis(ceiling),
            ..quick()
        };
        let (names, server) = start_with(settings).await;
        server.has(NAME, ttl, &["127.0.0.1", "::1"]);
        let _answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
        eventually(|| server.times_asked(NAME, RecordType::A) >= 4).await;
        gaps(&server, NAME, RecordType::A)
            .into_iter()
            .min()
            .expect("three gaps")
    };
    let (by_floor, by_ttl, by_ceiling) = tokio::join!(lived(0, 200, 9_000), lived(1, 10, 9_000), lived(3600, 10, 300));
    for (what, lived, due) in [
        ("floor", by_floor, 200),
        ("TTL", by_ttl, 1_000),
        ("ceiling", by_ceiling, 300),
    ] {
        let due = Duration::from_millis(due);
        assert!(
            lived + SLACK >= due && lived < due * 4,
            "{what}: asked again after {lived:?}, due after {due:?}"
        );
    }
}

#[tokio::test]
async fn what_was_known_is_served_through_nxdomain_servfail_and_silence() {
    let troubles = [
        (Reply::Code(ResponseCode::NXDomain), "says NXDOMAIN"),
        (Reply::Code(ResponseCode::NoError), "has no record"),
        (Reply::Code(ResponseCode::ServFail), "says SERVFAIL"),
        (Reply::Silence, "did not answer within"),
    ];
    for (reply, said) in troubles {
        let (names, server) = start().await;
        server.has(NAME, 0, &["127.0.0.1", "127.0.0.2", "::1"]);
        let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
        until(&mut answers, |answer| answer.targets.len() == 3).await;
        server.always(Some(reply.clone()));
        let stale = |answer: &Answer| matches!(&answer.state, State::Stale { reason } if reason.contains(said));
        let answer = until(&mut answers, stale).await;
        assert_eq!(answer.targets.len(), 3, "{reply:?}");
        let asked = server.asked().len();
        eventually(|| server.asked().len() >= asked + 6).await;
        assert_eq!(answers.borrow().targets.len(), 3, "{reply:?}, still");

        server.has(NAME, 0, &["127.0.0.3"]);
        server.always(None);
        let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
        // The families recover one after the other.
        let answer = if answer.targets.len() == 1 {
            answer
        } else {
            until(&mut answers, |a| a.targets.len() == 1).await
        };
        assert_eq!(ips(&answer), ["127.0.0.3"]);
        let now = Instant::now();
        for had in ["127.0.0.3", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
            assert!(answer.has_or_had(ip(had), now), "{had}");
        }
        assert!(!answer.has_or_had(ip("127.0.0.4"), now));
        assert!(
            !answer.has_or_had(ip("127.0.0.2"), now + Duration::from_secs(301)),
            "not for ever"
        );
        assert!(names.has_or_had(&Query::addresses(NAME, 1), ip("127.0.0.2")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_leaves_once_an_interval_however_many_ask_and_whatever_comes_back() {
    let replies = [None, Some(Reply::Code(ResponseCode::ServFail)), Some(Reply::Silence)];
    let runs = replies.map(|reply| tokio::spawn(ask_a_thousand_times(reply)));
    for run in runs {
        run.await.expect("it holds");
    }
}

async fn ask_a_thousand_times(reply: Option<Reply>) {
    let interval = Duration::from_millis(600);
    let settings = Settings {
        ask_interval: interval,
        retry_ceiling: interval,
        timeout: Some(Duration::from_millis(1_500)),
        ..quick()
    };
    let (names, server) = start_with(settings).await;
    server.has(NAME, 0, &["127.0.0.1", "::1"]);
    server.always(reply.clone());
    let began = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let names = names.clone();
            std::thread::spawn(move || {
                let watch = |_| names.watch(Query::addresses(NAME, thread)).expect("a name");
                (0..250).map(watch).collect::<Vec<Answers>>()
            })
        })
        .collect();
    let answers: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().expect("it ends"))
        .collect();
    assert_eq!((answers.len(), names.len()), (1_000, 4), "one for each port");
    eventually(|| server.times_asked(NAME, RecordType::A) >= 6).await;
    for kind in [RecordType::A, RecordType::AAAA] {
        // Packets may arrive late, and never early.
        for (at, asked) in (0..).zip(times(&server, NAME, kind)) {
            let after = asked - began;
            assert!(
                after >= at * interval,
                "{reply:?}: {kind} asked {at} times more after {after:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_first_failure_names_the_name_the_server_and_what_it_said() {
    let (names, server) = start().await;
    let troubles = [
        (Reply::Code(ResponseCode::NXDomain), "says NXDOMAIN"),
        (Reply::Code(ResponseCode::Refused), "says "),
        (Reply::Silence, "did not answer within 300ms"),
    ];
    for (at, (reply, said)) in troubles.into_iter().enumerate() {
        server.always(Some(reply));
        let name = format!("missing{at}.example.");
        let mut answers = names.watch(Query::addresses(&*name, 1)).expect("a name");
        let answer = until(&mut answers, |answer| matches!(answer.state, State::Failed { .. })).await;
        let State::Failed { reason } = &answer.state else {
            unreachable!("it was waited for")
        };
        for part in [&format!("cannot resolve {name}: "), &server.addr.to_string(), said] {
            assert!(reason.contains(part), "{part:?} in {reason:?}");
        }
        assert!(answer.targets.is_empty());
        // A name that comes to be later is found.
        server.has(&name, 0, &["127.0.0.1"]);
        server.always(None);
        until(&mut answers, |answer| answer.state == State::Fresh).await;
    }
}

#[tokio::test]
async fn a_server_that_fails_or_is_silent_has_the_next_one_asked() {
    for reply in [
        Reply::Code(ResponseCode::ServFail),
        Reply::Code(ResponseCode::Refused),
        Reply::Silence,
    ] {
        let (bad, good) = (Server::start().await, Server::start().await);
        bad.always(Some(reply.clone()));
        good.has(NAME, 0, &["127.0.0.1", "::1"]);
        let settings = Settings {
            servers: Some(vec![bad.addr, good.addr]),
            ..patient()
        };
        let names = begin(settings);
        let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
        until(&mut answers, |answer| answer.targets.len() == 2).await;
        // The one that answered is the one that is asked from then on.
        let before = bad.asked().len();
        good.forget();
        eventually(|| good.times_asked(NAME, RecordType::A) >= 5).await;
        let more = bad
            .asked()
            .iter()
            .skip(before)
            .filter(|asked| asked.kind == RecordType::A)
            .count();
        assert!(
            more <= 2 || matches!(reply, Reply::Silence),
            "{reply:?}: the bad one was asked {more} times more"
        );
    }
}

#[tokio::test]
async fn a_name_that_one_server_denies_is_not_asked_of_the_next() {
    let (first, second) = (Server::start().await, Server::start().await);
    second.has(NAME, 0, &["127.0.0.1"]);
    let names = begin(Settings {
        servers: Some(vec![first.addr, second.addr]),
        ..patient()
    });
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    until(&mut answers, |answer| matches!(answer.state, State::Failed { .. })).await;
    assert_eq!(second.asked().len(), 0);
}

#[tokio::test]
async fn a_changed_resolv_conf_is_taken_and_nothing_known_is_lost() {
    let old = Server::at("127.0.0.2:0".parse().expect("an address")).await;
    let new = Server::at(SocketAddr::new(ip("127.0.0.3"), old.addr.port())).await;
    let conf = Conf::new("nameserver 127.0.0.2\n");
    let settings = Settings {
        resolv_conf: conf.0.clone(),
        server_port: old.addr.port(),
        ..quick()
    };
    let names = begin(Settings {
        servers: None,
        ..settings
    });
    old.has(NAME, 3600, &["127.0.0.1"]);
    new.has(NAME, 0, &["127.0.0.9"]);
    new.has("other.new.example.", 0, &["127.0.0.9"]);
    let mut kept = names.watch(Query::addresses(NAME, 1)).expect("a name");
    let mut missing = names.watch(Query::addresses("other", 1)).expect("a name");
    until(&mut kept, |answer| answer.state == State::Fresh).await;
    until(&mut missing, |answer| matches!(answer.state, State::Failed { .. })).await;

    conf.write("search new.example\nnameserver 127.0.0.3\n");
    // Its search list counts, and it is asked at once.
    let answer = until(&mut missing, |answer| answer.state == State::Fresh).await;
    assert_eq!(ips(&answer), ["127.0.0.9"]);
    assert_eq!(ips(&kept.borrow()), ["127.0.0.1"], "its TTL has not ended");
    assert_eq!(kept.borrow().state, State::Fresh);

    conf.write("nonsense\n");
    let asked = new.asked().len();
    eventually(|| new.asked().len() >= asked + 4).await;
    assert_eq!(
        missing.borrow().state,
        State::Fresh,
        "a file without servers changes nothing"
    );
}

#[tokio::test]
async fn without_a_resolv_conf_the_answer_says_so_until_there_is_one() {
    let server = Server::start().await;
    server.has(NAME, 0, &["127.0.0.1"]);
    let conf = Conf::new("");
    std::fs::remove_file(&conf.0).expect("it was there");
    let settings = Settings {
        resolv_conf: conf.0.clone(),
        server_port: server.addr.port(),
        ..quick()
    };
    let names = begin(Settings {
        servers: None,
        ..settings
    });
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    let answer = until(&mut answers, |answer| matches!(answer.state, State::Failed { .. })).await;
    let State::Failed { reason } = &answer.state else {
        unreachable!("it was waited for")
    };
    assert!(reason.contains("cannot read") && reason.contains(NAME), "{reason}");
    conf.write("nameserver 127.0.0.1\n");
    until(&mut answers, |answer| answer.state == State::Fresh).await;
}

#[tokio::test]
async fn a_search_list_multiplies_the_first_look_up_only() {
    let conf = Conf::new("search a.example b.example c.example\noptions ndots:3\nnameserver 127.0.0.1\n");
    let server = Server::start().await;
    server.has("greeter.ns.b.example.", 0, &["127.0.0.1"]);
    let settings = Settings {
        resolv_conf: conf.0.clone(),
        servers: Some(vec![server.addr]),
        ..patient()
    };
    let names = begin(settings);
    let mut answers = names.watch(Query::addresses("Greeter.ns", 1)).expect("a name");
    until(&mut answers, |answer| answer.state == State::Fresh).await;
    eventually(|| server.times_asked("greeter.ns.b.example.", RecordType::A) >= 5).await;
    let asked: BTreeSet<_> = server.asked().into_iter().map(|asked| asked.name).collect();
    assert_eq!(
        asked.iter().collect::<Vec<_>>(),
        ["greeter.ns.a.example.", "greeter.ns.b.example."]
    );
    for kind in [RecordType::A, RecordType::AAAA] {
        assert_eq!(server.times_asked("greeter.ns.a.example.", kind), 1);
    }

    // The one that answered is denied: the whole list counts again, and meanwhile what was known.
    server.always(Some(Reply::Code(ResponseCode::NXDomain)));
    until(&mut answers, |answer| matches!(answer.state, State::Stale { .. })).await;
    assert_eq!(ips(&answers.borrow()), ["127.0.0.1"]);
    server.has("greeter.ns.c.example.", 0, &["127.0.0.7"]);
    server.say(
        "greeter.ns.b.example.",
        RecordType::A,
        Reply::Code(ResponseCode::NXDomain),
    );
    server.say(
        "greeter.ns.b.example.",
        RecordType::AAAA,
        Reply::Code(ResponseCode::NXDomain),
    );
    server.always(None);
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(ips(&answer), ["127.0.0.7"]);
}

#[tokio::test]
async fn a_candidate_that_could_not_be_told_of_comes_first_once_it_can() {
    let conf = Conf::new("search a.example b.example\nnameserver 127.0.0.1\n");
    let server = Server::start().await;
    server.say("greeter.a.example.", RecordType::A, Reply::Code(ResponseCode::ServFail));
    server.say(
        "greeter.a.example.",
        RecordType::AAAA,
        Reply::Code(ResponseCode::ServFail),
    );
    server.has("greeter.b.example.", 0, &["127.0.0.2"]);
    let settings = Settings {
        resolv_conf: conf.0.clone(),
        servers: Some(vec![server.addr]),
        ..quick()
    };
    let names = begin(settings);
    let mut answers = names.watch(Query::addresses("greeter", 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(ips(&answer), ["127.0.0.2"]);
    server.has("greeter.a.example.", 0, &["127.0.0.1"]);
    until(&mut answers, |answer| ips(answer) == ["127.0.0.1"]).await;
}

#[tokio::test]
async fn srv_records_give_ports_priorities_and_weights_to_resolved_targets() {
    let (names, server) = start().await;
    let srv = "_grpc._tcp.greeter.example.";
    server.has_services(
        srv,
        0,
        &[
            (20, 0, 7001, "spare.example."),
            (10, 60, 7002, "big.example."),
            (10, 20, 7003, "small.example."),
            (10, 0, 7004, "gone.example."),
        ],
    );
    server.has("spare.example.", 0, &["127.0.0.9"]);
    server.has("big.example.", 0, &["127.0.0.1", "127.0.0.2", "::1"]);
    server.has("small.example.", 0, &["127.0.0.3"]);
    let query = Query {
        host: "greeter.example".into(),
        port: 1,
        srv: Some(srv.into()),
    };
    let mut answers = names.watch(query).expect("a name");
    until(&mut answers, |answer| answer.targets.len() == 5).await;
    let answer = answers.borrow().clone();
    let seen: Vec<_> = answer
        .targets
        .iter()
        .map(|t| (t.addr.to_string(), t.priority, t.weight))
        .collect();
    let due = [
        ("127.0.0.1:7002", 10, 2000),
        ("127.0.0.2:7002", 10, 2000),
        ("127.0.0.3:7003", 10, 2000),
        ("[::1]:7002", 10, 2000),
        ("127.0.0.9:7001", 20, 1),
    ];
    assert_eq!(
        seen,
        due.map(|(addr, priority, weight)| (addr.to_owned(), priority, weight))
    );

    // Taken away and denied.
    server.has_services(srv, 0, &[(10, 1, 7002, "big.example.")]);
    until(&mut answers, |answer| {
        answer.targets.len() == 3 && answer.state == State::Fresh
    })
    .await;
    server.has_services(srv, 0, &[(0, 0, 0, ".")]);
    let answer = until(&mut answers, |answer| matches!(answer.state, State::Stale { .. })).await;
    assert_eq!(answer.targets.len(), 3);
    assert!(answer.has_or_had(ip("127.0.0.3"), Instant::now()));
}

#[tokio::test]
async fn a_large_set_comes_by_tcp_and_is_cut_at_the_ceiling() {
    let (names, server) = start_with(patient()).await;
    let many = |count: u32| -> Vec<String> {
        (0..count)
            .map(|at| IpAddr::from(std::net::Ipv4Addr::from(0x7f01_0000 + at)).to_string())
            .collect()
    };
    let (some, lots) = (many(300), many(1_500));
    server.has(
        "some.example.",
        30,
        &some.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    server.has("lots.example.", 0, &lots.iter().map(String::as_str).collect::<Vec<_>>());
    let mut answers = names.watch(Query::addresses("some.example.", 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(answer.targets.len(), 300);
    let by_tcp: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.kind == RecordType::A)
        .collect();
    assert_eq!(by_tcp.iter().map(|asked| asked.tcp).collect::<Vec<_>>(), [false, true]);

    let mut answers = names.watch(Query::addresses("lots.example.", 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(answer.targets.len(), 1_000);
    eventually(|| server.times_asked("lots.example.", RecordType::A) >= 6).await;
    assert_eq!(
        answers.borrow().generation,
        answer.generation,
        "the same part each time"
    );
}

#[tokio::test]
async fn a_server_that_knows_no_edns_is_asked_without_it_at_once_and_from_then_on() {
    let some: Vec<String> = (1..=60).map(|at| format!("127.0.0.{at}")).collect();
    for code in [ResponseCode::FormErr, ResponseCode::NotImp] {
        for with_question in [true, false] {
            let refusal = Refusal { code, with_question };
            let (names, server) = start_with(patient()).await;
            server.refuse_edns(refusal);
            server.has(NAME, 0, &["127.0.0.1", "::1"]);
            let began = Instant::now();
            let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
            let answer = until(&mut answers, |answer| answer.targets.len() == 2).await;
            assert_eq!(answer.state, State::Fresh, "{refusal:?}");
            assert!(
                began.elapsed() < Duration::from_secs(10),
                "{refusal:?}: it was taken for silent"
            );
            eventually(|| server.times_asked(NAME, RecordType::A) >= 5).await;
            // A and AAAA were under way at the same time, so each may have met the refusal.
            let first: Vec<bool> = of(&server, RecordType::A)
                .iter()
                .map(|asked| asked.edns)
                .take(4)
                .collect();
            assert_eq!(first, [true, false, false, false], "{refusal:?}");
            // What does not fit into 512 bytes comes by TCP.
            server.has(
                "some.example.",
                30,
                &some.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let mut answers = names.watch(Query::addresses("some.example.", 1)).expect("a name");
            until(&mut answers, |answer| answer.targets.len() == 60).await;
            assert!(
                server.asked().iter().any(|asked| asked.tcp && !asked.edns),
                "{refusal:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_server_that_refuses_a_question_in_either_form_is_not_taken_for_an_old_one() {
    let (names, server) = start().await;
    server.always(Some(Reply::Code(ResponseCode::FormErr)));
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.state != State::Pending).await;
    assert!(
        matches!(&answer.state, State::Failed { reason } if reason.contains("says Form Error")),
        "{:?}",
        answer.state
    );
    server.has(NAME, 0, &["127.0.0.1"]);
    server.always(None);
    until(&mut answers, |answer| answer.state == State::Fresh).await;
    server.forget();
    eventually(|| server.times_asked(NAME, RecordType::A) >= 3).await;
    assert!(of(&server, RecordType::A).iter().all(|asked| asked.edns));
}

#[tokio::test]
async fn aliases_are_followed_by_their_shortest_ttl_and_loops_end() {
    let (names, server) = start().await;
    server.has_alias("alias.example.", 0, "other.example.");
    server.has_alias("other.example.", 3600, NAME);
    server.has(NAME, 3600, &["127.0.0.1"]);
    let mut answers = names.watch(Query::addresses("alias.example.", 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.state == State::Fresh).await;
    assert_eq!(ips(&answer), ["127.0.0.1"]);
    eventually(|| server.times_asked("alias.example.", RecordType::A) >= 3).await;

    server.has_alias("ping.example.", 0, "pong.example.");
    server.has_alias("pong.example.", 0, "ping.example.");
    let mut answers = names.watch(Query::addresses("ping.example.", 1)).expect("a name");
    until(&mut answers, |answer| matches!(answer.state, State::Failed { .. })).await;
}

#[tokio::test]
async fn addresses_that_nobody_can_listen_on_are_left_out() {
    let (names, server) = start().await;
    server.has(
        NAME,
        0,
        &["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1", "127.0.0.1"],
    );
    server.has("none.example.", 0, &["0.0.0.0", "::"]);
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    until(&mut answers, |answer| ips(answer) == ["127.0.0.1"]).await;
    let mut answers = names.watch(Query::addresses("none.example.", 1)).expect("a name");
    until(&mut answers, |answer| matches!(answer.state, State::Failed { .. })).await;
}

#[tokio::test]
async fn an_address_that_this_pod_has_no_route_to_does_not_count() {
    let (names, server) = start().await;
    // A link-local address without its link leads nowhere, on any machine.
    server.has(NAME, 0, &["127.0.0.1", "fe80::1"]);
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    let answer = until(&mut answers, |answer| answer.targets.len() == 2).await;
    assert_eq!(ips(&answer), ["127.0.0.1"]);
    assert!(
        answer.has_or_had(ip("fe80::1"), Instant::now()),
        "it is the name's all the same"
    );
}

#[tokio::test]
async fn a_name_of_the_hosts_file_is_answered_at_once_and_no_name_server_is_asked() {
    let hosts = Conf::new("127.0.0.1 localhost\n127.0.0.7 Greeter.Example greeter\n::7 greeter.example\n");
    let resolv_conf = Conf::new("search example\noptions ndots:5\nnameserver 127.0.0.1\n");
    let server = Server::start().await;
    server.has(NAME, 0, &["127.0.0.1", "127.0.0.2"]);
    server.has("greeter.example.example.", 0, &["127.0.0.3"]);
    let names = begin(Settings {
        servers: Some(vec![server.addr]),
        hosts: hosts.0.clone(),
        resolv_conf: resolv_conf.0.clone(),
        ..quick()
    });
    for (host, due) in [
        ("greeter.example", vec!["127.0.0.7", "::7"]),
        ("GREETER.example.", vec!["127.0.0.7", "::7"]),
        // One family in the file is all: the name servers are not asked for the other.
        ("greeter", vec!["127.0.0.7"]),
    ] {
        let mut answers = names.watch(Query::addresses(host, 50051)).expect("a name");
        let answer = until(&mut answers, |answer| answer.state != State::Pending).await;
        let known: Vec<_> = answer
            .targets
            .iter()
            .map(|target| target.addr.ip().to_string())
            .collect();
        assert_eq!(
            (known, &answer.state),
            (due.iter().map(ToString::to_string).collect(), &State::Fresh),
            "{host}"
        );
        assert_eq!(answer.expires, None, "{host}: nothing is due");
        assert!(
            names.has_or_had(&Query::addresses(host, 50051), ip("127.0.0.7")),
            "{host}"
        );
    }
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn a_name_goes_over_to_the_hosts_file_and_back_to_dns_as_the_file_changes() {
    let hosts = Conf::new("127.0.0.1 localhost\n");
    let server = Server::start().await;
    server.has(NAME, 0, &["127.0.0.1"]);
    let names = begin(Settings {
        servers: Some(vec![server.addr]),
        hosts: hosts.0.clone(),
        ..quick()
    });
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    until(&mut answers, |answer| ips(answer) == ["127.0.0.1"]).await;

    hosts.write("no line of any sense\n127.0.0.7 greeter.example\n");
    let answer = until(&mut answers, |answer| ips(answer) == ["127.0.0.7"]).await;
    assert_eq!(answer.state, State::Fresh);
    assert!(
        answer.has_or_had(ip("127.0.0.1"), Instant::now()),
        "the name lately had it"
    );
    // What DNS does is nothing to it now: it is fresh while others are not.
    server.always(Some(Reply::Code(ResponseCode::ServFail)));
    let mut other = names.watch(Query::addresses("other.example.", 1)).expect("a name");
    until(&mut other, |answer| matches!(answer.state, State::Failed { .. })).await;
    server.forget();
    eventually(|| server.times_asked("other.example.", RecordType::A) >= 4).await;
    assert_eq!(server.times_asked(NAME, RecordType::A), 0);
    assert_eq!(answers.borrow().state, State::Fresh);

    server.always(None);
    server.has(NAME, 0, &["127.0.0.2"]);
    std::fs::remove_file(&hosts.0).expect("it was there");
    let answer = until(&mut answers, |answer| ips(answer) == ["127.0.0.2"]).await;
    assert_eq!(answer.state, State::Fresh);
}

#[tokio::test]
async fn srv_records_come_before_the_hosts_file_which_is_for_their_targets() {
    let hosts = Conf::new("127.0.0.9 greeter.example\n127.0.0.7 one.example\n0.0.0.0 nowhere.example\n");
    let server = Server::start().await;
    let srv = "_grpc._tcp.greeter.example.";
    let records = [
        (0, 1, 7001, "One.example."),
        (0, 1, 7002, "two.example."),
        (0, 1, 7003, "nowhere.example."),
    ];
    server.has_services(srv, 0, &records);
    server.has("one.example.", 0, &["127.0.0.1"]);
    server.has("two.example.", 0, &["127.0.0.2"]);
    let names = begin(Settings {
        servers: Some(vec![server.addr]),
        hosts: hosts.0.clone(),
        ..quick()
    });
    let query = Query {
        host: "greeter.example".into(),
        port: 1,
        srv: Some(srv.into()),
    };
    let mut answers = names.watch(query).expect("a name");
    let answer = until(&mut answers, |answer| answer.targets.len() == 2).await;
    assert_eq!(addrs(&answer), ["127.0.0.2:7002", "127.0.0.7:7001"]);
    assert_eq!(server.times_asked("one.example.", RecordType::A), 0);
}

#[tokio::test]
async fn an_address_needs_no_name_server() {
    let (names, server) = start().await;
    for (host, addr) in [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7"), ("[::1]", "[::1]:7")] {
        let answers = names.watch(Query::addresses(host, 7)).expect("an address");
        let answer = answers.borrow().clone();
        assert_eq!(
            (addrs(&answer), &answer.state),
            (vec![addr.to_owned()], &State::Fresh),
            "at once"
        );
        assert!(answer.has_or_had(
            ip(addr.rsplit_once(':').map_or("", |(ip, _)| ip.trim_matches(['[', ']']))),
            Instant::now()
        ));
    }
    assert_eq!(server.asked().len(), 0);
}

#[tokio::test]
async fn what_is_no_name_is_refused_and_so_is_one_too_many() {
    let (names, _server) = start_with(Settings {
        max_names: 2,
        ..quick()
    })
    .await;
    for bad in ["", "a b", "a..b", "/run/x.sock", "a:80"] {
        assert_eq!(
            names.watch(Query::addresses(bad, 1)).err(),
            Some(Error::NotAName(bad.to_owned()))
        );
    }
    let _one = names.watch(Query::addresses("one.example", 1)).expect("room");
    let _two = names.watch(Query::addresses("two.example", 1)).expect("room");
    let _again = names.watch(Query::addresses("TWO.example", 1)).expect("the same name");
    let three = names.watch(Query::addresses("three.example", 1)).err();
    assert_eq!(
        three,
        Some(Error::TooMany {
            host: "three.example".into(),
            max: 2
        })
    );
}

#[tokio::test]
async fn a_name_that_nobody_watches_is_asked_no_more_and_makes_room() {
    let (names, server) = start_with(Settings {
        max_names: 1,
        ..quick()
    })
    .await;
    server.has(NAME, 0, &["127.0.0.1"]);
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("room");
    until(&mut answers, |answer| answer.state == State::Fresh).await;
    drop(answers);
    eventually(|| names.is_empty()).await;
    let asked = server.asked().len();
    server.has("next.example.", 0, &["127.0.0.1"]);
    let mut answers = names.watch(Query::addresses("next.example.", 1)).expect("room again");
    until(&mut answers, |answer| answer.state == State::Fresh).await;
    eventually(|| server.times_asked("next.example.", RecordType::A) >= 10).await;
    let late = server
        .asked()
        .into_iter()
        .skip(asked + 2)
        .filter(|asked| asked.name == NAME)
        .count();
    assert_eq!(late, 0);
}

#[tokio::test]
async fn the_task_ends_when_told_to() {
    let (tracker, stopped) = (TaskTracker::new(), CancellationToken::new());
    let server = Server::start().await;
    server.always(Some(Reply::Silence));
    let settings = Settings {
        servers: Some(vec![server.addr]),
        timeout: Some(Duration::from_secs(60)),
        ..quick()
    };
    let names = Names::start(settings, &tracker, stopped.clone());
    let _answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    eventually(|| !server.asked().is_empty()).await;
    stopped.cancel();
    tracker.close();
    tokio::time::timeout(Duration::from_secs(5), tracker.wait())
        .await
        .expect("it ends");
    let stopped = names.watch(Query::addresses("late.example", 1)).err();
    assert_eq!(stopped, Some(Error::Stopped("late.example".into())));
}

#[tokio::test]
async fn a_watcher_is_woken_by_changes_alone() {
    let (names, server) = start().await;
    server.has(NAME, 0, &["127.0.0.1"]);
    let mut answers = names.watch(Query::addresses(NAME, 1)).expect("a name");
    let first = until(&mut answers, |answer| answer.state == State::Fresh).await;
    eventually(|| server.times_asked(NAME, RecordType::A) >= 6).await;
    assert!(
        !answers.has_changed().expect("it is resolved"),
        "the same again is no news"
    );
    assert!(answers.borrow().expires > first.expires, "yet its end moves");
}

/// Timings that keep tests short; all else as it is.
fn quick() -> Settings {
    Settings {
        resolv_conf: PathBuf::from("/dev/null"),
        hosts: PathBuf::from("/dev/null"),
        files_poll: Duration::from_millis(20),
        timeout: Some(Duration::from_millis(300)),
        ask_interval: Duration::from_millis(50),
        ttl_floor: Duration::from_millis(50),
        retry_ceiling: Duration::from_millis(100),
        linger: Duration::from_millis(100),
        ..Settings::default()
    }
}

/// The same, and no server is taken for silent.
fn patient() -> Settings {
    Settings {
        timeout: Some(Duration::from_secs(20)),
        ..quick()
    }
}

async fn start() -> (Names, Server) {
    start_with(quick()).await
}

async fn start_with(settings: Settings) -> (Names, Server) {
    let server = Server::start().await;
    let names = begin(Settings {
        servers: Some(vec![server.addr]),
        ..settings
    });
    (names, server)
}

fn begin(settings: Settings) -> Names {
    Names::start(settings, &TaskTracker::new(), CancellationToken::new())
}

async fn until(answers: &mut Answers, right: impl Fn(&Answer) -> bool) -> Arc<Answer> {
    let found = tokio::time::timeout(PATIENCE, answers.wait_for(|answer| right(answer))).await;
    let found = found.ok().map(|answer| answer.expect("it is resolved").clone());
    found.unwrap_or_else(|| panic!("never came; the last was {:?}", answers.borrow()))
}

async fn eventually(right: impl Fn() -> bool) {
    let began = Instant::now();
    while !right() {
        assert!(began.elapsed() < PATIENCE, "never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The questions of one type, in order.
fn of(server: &Server, kind: RecordType) -> Vec<Asked> {
    let mut asked = server.asked();
    asked.retain(|asked| asked.kind == kind);
    asked
}

/// How long after one another a question came.
fn times(server: &Server, name: &str, kind: RecordType) -> Vec<Instant> {
    let of_it = |asked: &Asked| asked.name == name && asked.kind == kind;
    server.asked().into_iter().filter(of_it).map(|asked| asked.at).collect()
}

fn gaps(server: &Server, name: &str, kind: RecordType) -> Vec<Duration> {
    let times = times(server, name, kind);
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

fn addrs(answer: &Answer) -> Vec<String> {
    answer.routable().map(|target| target.addr.to_string()).collect()
}

fn ips(answer: &Answer) -> Vec<String> {
    answer.routable().map(|target| target.addr.ip().to_string()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A file of the system's of its own, replaced as a whole as Kubernetes does.
struct Conf(PathBuf);

impl Conf {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let file = format!(
            "portunus-names-{}-{}.conf",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let conf = Self(std::env::temp_dir().join(file));
        conf.write(text);
        conf
    }

    fn write(&self, text: &str) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, text).expect("a writable folder");
        std::fs::rename(&next, &self.0).expect("a writable folder");
    }
}

impl Drop for Conf {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
/// Packets that leave an interval apart may arrive a little less apart.
const SLACK: Duration = Duration::from_millis(15);
