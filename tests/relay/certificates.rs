//! A connection is replaced before its certificate ends, and nothing of the sidecar's own keeps the old one open.

use std::time::Duration;

use portunus_sidecar::health::{self, Mode as Asks};
use portunus_sidecar::policy::Mode;
use support::pki::{self, Pki};
use tokio::net::TcpListener;

use crate::discovery::{Hosts, call_to};
use crate::raw;
use crate::world::{Setup, World};

#[tokio::test]
async fn a_watch_keeps_no_connection_open_that_is_replaced_for_its_certificate() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let server = listener.local_addr().expect("an address");
    tokio::spawn(raw::serve(listener, |path, stream| match path {
        // It serves, and goes on to say so.
        "/grpc.health.v1.Health/Watch" => [raw::response(stream), raw::message(stream, &[8, 1], false)].concat(),
        _ => [raw::response(stream), raw::trailers(stream)].concat(),
    }));
    let pki = Pki::new("mesh.test");
    let (client, id) = (pki.id("client"), pki.id("server"));
    let far = Setup {
        inbound: true,
        pair: false,
        mesh: Some(pki.mesh(&id, Mode::Strict, |_| None)),
        ..Setup::default()
    };
    let far = World::before(server, far).await;
    let short = pki.credential(&client, Duration::from_secs(7));
    let mesh = pki::mesh(short, Mode::Strict, move |_| Some(id.clone()));
    let own = mesh.own.clone();
    let hosts = Hosts::of("certificates", &format!("{} greeter.test\n", far.proxy.ip()));
    let near = Setup {
        pair: false,
        mesh: Some(mesh),
        hosts: Some(hosts.0.clone()),
        health: health::Settings {
            mode: Asks::Watch,
            ..Default::default()
        },
        ..Setup::default()
    };
    let world = World::before(far.proxy, near).await;
    let caller = world.caller().await;
    let answer = call_to(&caller, &format!("greeter.test:{}", far.proxy.port())).await;
    assert_eq!(answer.expect("it held").grpc_status.as_deref(), Some("0"));
    let serving = |times| move |found| found == times;
    world
        .until("portunus_health_checks_total", &["serving"], serving(1.0))
        .await;
    own.store(Some(pki.credential(&client, Duration::from_secs(3_600))));
    // The old one drains, and what watched there watches by another.
    world
        .until("portunus_health_checks_total", &["serving"], serving(2.0))
        .await;
    world
        .until("portunus_connections", &["outbound", "upstream"], |open| open == 1.0)
        .await;
    assert_eq!(
        world.metric("portunus_connections_opened_total", &["outbound", "upstream"]),
        2.0
    );
}
