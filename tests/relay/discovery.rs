//! Calls whose service is not known yet: how long they wait, for whom, and what they are told when that takes too long.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::Request;
use parking_lot::Mutex;
use portunus_sidecar::control::Full;
use portunus_sidecar::policy::Mode;
use portunus_sidecar::route::{Known, Policy, Subject};
use portunus_sidecar::worker::Mesh;
use support::pki::{self, Pki};
use tokio::sync::watch;

use crate::world::{Answer, Caller, PATIENCE, Setup, World, request};

/// How long a call waits for what is not known yet; less than that is no time at all.
const WAITS: Duration = Duration::from_secs(2);

/// A control whose every word is the test's. It says nothing of what it was not told.
#[derive(Clone, Default)]
pub(crate) struct Control {
    said: Arc<Mutex<HashMap<Subject, watch::Sender<Arc<Known>>>>>,
    /// So many subjects more are refused.
    full: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Control {
    pub(crate) fn says(&self, subject: Subject, known: Known) {
        let mut said = self.said.lock();
        said.entry(subject).or_default().send_replace(Arc::new(known));
    }

    /// How often it was asked, those included that it refused.
    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    pub(crate) fn mesh(&self) -> Mesh {
        let pki = Pki::new("mesh.test");
        let credential = pki.credential(&pki.id("caller"), Duration::from_secs(3_600));
        let control = self.clone();
        let ask = move |subject: Subject| {
            control.asked.fetch_add(1, Relaxed);
            let less = |left: usize| left.checked_sub(1);
            if control.full.fetch_update(Relaxed, Relaxed, less).is_ok() {
                return Err(Full { max: 0 });
            }
            Ok(control.said.lock().entry(subject).or_default().subscribe())
        };
        Mesh {
            ask: Arc::new(ask),
            ..pki::mesh_of(credential, Mode::Permissive, |_| outside())
        }
    }
}

pub(crate) fn outside() -> Known {
    Known::Outside(Arc::new(Policy::default()))
}

/// A world of one worker in this control's mesh; `hosts` are the names that it can resolve.
async fn world(control: &Control, hosts: Option<&Hosts>) -> World {
    World::with(Setup {
        pair: false,
        mesh: Some(control.mesh()),
        hosts: hosts.map(|hosts| hosts.0.clone()),
        ..Setup::default()
    })
    .await
}

/// A hosts file, gone at the end.
pub(crate) struct Hosts(pub(crate) PathBuf);

impl Hosts {
    pub(crate) fn of(test: &str, lines: &str) -> Hosts {
        let file = std::env::temp_dir().join(format!("portunus-{test}-{}", std::process::id()));
        std::fs::write(&file, lines).expect("a file");
        Hosts(file)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // Left behind, it hurts nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A call to a name, on a task of its own.
pub(crate) fn call_to(caller: &Caller, name: &str) -> tokio::task::JoinHandle<Answer> {
    let request = Request::post(format!("http://{name}/a.B/C"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (mut caller, request) = (caller.clone(), request.body(()).expect("a request"));
    tokio::spawn(async move { caller.ask(request).await.expect("an answer") })
}

/// Calls again and again, until that goes well.
async fn until_answered(mut call: impl AsyncFnMut() -> Answer) {
    let until = Instant::now() + PATIENCE;
    while call().await.grpc_status.as_deref() != Some("0") {
        assert!(Instant::now() < until, "it is never called again");
    }
}

fn reason(answer: &Answer) -> &str {
    let reason = answer
        .head
        .get("portunus-error")
        .or(answer.trailers.get("portunus-error"));
    reason.map_or("", |reason| reason.to_str().expect("it is text"))
}

fn name(host: &str, meant: SocketAddr) -> Subject {
    Subject::Name {
        host: host.to_owned(),
        port: meant.port(),
    }
}

#[tokio::test]
async fn an_address_that_there_was_no_room_to_ask_for_can_be_called_once_there_is_some() {
    let control = Control::default();
    control.full.store(usize::MAX, Relaxed);
    let world = world(&control, None).await;
    control.says(Subject::Address(world.meant), outside());
    let mut caller = world.caller().await;
    let began = Instant::now();
    let refused = caller.ask(request("/a.B/C", &[])).await.expect("answered");
    assert_eq!(
        (reason(&refused), refused.grpc_status.as_deref()),
        ("control_silent", Some("14"))
    );
    assert!(began.elapsed() < WAITS, "nobody waits for room");
    assert_eq!(world.metric("portunus_unfollowed", &["control"]), 1.0);
    control.full.store(0, Relaxed);
    world
        .until("portunus_unfollowed", &["control"], |waiting| waiting == 0.0)
        .await;
    until_answered(async || caller.ask(request("/a.B/C", &[])).await.expect("answered")).await;
    let most = 2 + began.elapsed().as_secs() as usize;
    assert!((2..=most).contains(&control.asked()), "again, and not all the time");
}

#[tokio::test]
async fn a_call_to_a_name_waits_until_control_has_said_who_is_at_its_addresses() {
    let control = Control::default();
    let hosts = Hosts::of("slow-control", "127.0.0.1 outside.test\n");
    let world = world(&control, Some(&hosts)).await;
    control.says(name("outside.test", world.meant), outside());
    let caller = world.caller().await;
    let authority = format!("outside.test:{}", world.meant.port());
    let first = call_to(&caller, &authority);
    // Once for the name, once for its address.
    let until = Instant::now() + PATIENCE;
    while control.asked() < 2 {
        assert!(Instant::now() < until, "nobody asks who is at the address");
        tokio::task::yield_now().await;
    }
    let second = call_to(&caller, &authority);
    world
        .until("grpc_client_started_total", &[], |calls| calls == 2.0)
        .await;
    control.says(Subject::Address(world.meant), outside());
    for call in [first, second] {
        let answer = call.await.expect("it held");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_call_to_a_name_says_that_control_is_silent_when_it_says_nothing_of_the_addresses() {
    let control = Control::default();
    let hosts = Hosts::of("silent-control", "127.0.0.1 outside.test\n");
    let world = world(&control, Some(&hosts)).await;
    control.says(name("outside.test", world.meant), outside());
    let caller = world.caller().await;
    let authority = format!("outside.test:{}", world.meant.port());
    let patient = call_to(&caller, &authority).await.expect("it held");
    assert_eq!(reason(&patient), "control_silent", "{patient:?}");
    let began = Instant::now();
    let late = call_to(&caller, &authority).await.expect("it held");
    assert_eq!(reason(&late), "control_silent", "{late:?}");
    assert!(began.elapsed() < WAITS, "nobody waits any more");
    control.says(Subject::Address(world.meant), outside());
    let until = Instant::now() + PATIENCE;
    while call_to(&caller, &authority)
        .await
        .expect("it held")
        .grpc_status
        .as_deref()
        != Some("0")
    {
        assert!(Instant::now() < until, "it is never called again");
    }
}

#[tokio::test]
async fn a_call_is_told_at_once_what_is_wrong_with_what_control_says_and_goes_on_when_it_says_better() {
    let control = Control::default();
    let hosts = Hosts::of("unusable-control", "127.0.0.1 outside.test\n");
    let world = world(&control, Some(&hosts)).await;
    let wrong = || Known::Unusable("0 is not a port".into());
    let caller = world.caller().await;
    // Of the address, of the name, and of the address that the name has.
    control.says(Subject::Address(world.meant), wrong());
    control.says(name("wrong.test", world.meant), wrong());
    control.says(name("outside.test", world.meant), outside());
    let authority = |host: &str| format!("{host}:{}", world.meant.port());
    for (authority, most) in [
        (world.meant.to_string(), WAITS),
        (authority("wrong.test"), WAITS),
        (authority("outside.test"), PATIENCE),
    ] {
        let began = Instant::now();
        let refused = tokio::time::timeout(PATIENCE, call_to(&caller, &authority)).await;
        let refused = refused.expect("it is answered").expect("it held");
        assert_eq!(
            (reason(&refused), refused.grpc_status.as_deref()),
            ("control_unusable", Some("14")),
            "{authority}: {refused:?}"
        );
        let sentence = format!("{refused:?}");
        assert!(sentence.contains("0 is not a port"), "{sentence}");
        assert!(began.elapsed() < most, "{authority}: it waited");
    }
    control.says(Subject::Address(world.meant), outside());
    until_answered(async || call_to(&caller, &authority("outside.test")).await.expect("it held")).await;
}
