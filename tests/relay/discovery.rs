//! Calls whose service is not known yet: how long they wait, for whom, and what they are told when that takes too long.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use portunus_sidecar::control::Full;
use portunus_sidecar::policy::Mode;
use portunus_sidecar::route::{Known, Policy, Subject};
use portunus_sidecar::worker::Mesh;
use support::pki::{self, Pki};
use tokio::sync::watch;

use crate::world::{Answer, PATIENCE, Setup, World, request};

/// A control whose every word is the test's. It says nothing of what it was not told.
#[derive(Clone, Default)]
struct Control {
    said: Arc<Mutex<HashMap<Subject, watch::Sender<Arc<Known>>>>>,
    /// So many subjects more are refused.
    full: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Control {
    fn says(&self, subject: Subject, known: Known) {
        let mut said = self.said.lock();
        said.entry(subject).or_default().send_replace(Arc::new(known));
    }

    /// How often it was asked, those included that it refused.
    fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    fn mesh(&self) -> Mesh {
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

fn outside() -> Known {
    Known::Outside(Arc::new(Policy::default()))
}

/// A world of one worker in this control's mesh.
async fn world(control: &Control) -> World {
    World::with(Setup {
        pair: false,
        mesh: Some(control.mesh()),
        ..Setup::default()
    })
    .await
}

fn reason(answer: &Answer) -> &str {
    let reason = answer
        .head
        .get("portunus-error")
        .or(answer.trailers.get("portunus-error"));
    reason.map_or("", |reason| reason.to_str().expect("it is text"))
}

#[tokio::test]
async fn an_address_that_there_was_no_room_to_ask_for_can_be_called_once_there_is_some() {
    let control = Control::default();
    control.full.store(1, Relaxed);
    let world = world(&control).await;
    control.says(Subject::Address(world.meant), outside());
    let mut caller = world.caller().await;
    let began = Instant::now();
    let refused = caller.ask(request("/a.B/C", &[])).await.expect("answered");
    assert_eq!(
        (reason(&refused), refused.grpc_status.as_deref()),
        ("control_silent", Some("14"))
    );
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waits for room");
    assert_eq!(world.metric("portunus_unfollowed", &["control"]), 1.0);
    world
        .until("portunus_unfollowed", &["control"], |waiting| waiting == 0.0)
        .await;
    let until = Instant::now() + PATIENCE;
    while caller
        .ask(request("/a.B/C", &[]))
        .await
        .expect("answered")
        .grpc_status
        .as_deref()
        != Some("0")
    {
        assert!(Instant::now() < until, "it is never called again");
    }
    assert_eq!(control.asked(), 2, "again, and not all the time");
}
