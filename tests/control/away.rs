//! Control goes away: nothing changes for what runs, what nobody knows fails closed, and its return is noticed at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use support::traffic::{Call, Calls, PORT, Traffic, now};
use support::{Family, Pauses, Peer, Pod, Stack, in_netns};

use crate::shop::{Greeter, Shop, a_second, member, none_failed, timed};

#[test]
fn nothing_changes_while_control_is_away_and_what_changed_meanwhile_counts_within_a_second_of_its_return() {
    support::test(|mesh| {
        let mut shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let spare = Greeter::start(mesh, &shop.control, "hello-3", "spare", &[])?;
        // Somebody beyond the mesh, whom DNS alone knows.
        let outside = mesh.pod("outside")?;
        let _app = Peer::greeter(&outside, Stack::Tonic, PORT, Duration::ZERO)?;
        shop.dns.set("outside.test", &outside.addresses(), 1)?;
        shop.dns.set(LATE, &shop.greeters[0].pod.addresses(), 5)?;
        let quiet = SocketAddr::new(outside.address(Family::V4)?, 6000);
        in_netns(&outside, || answer_each(quiet))??;

        let inside = shop.calls(200, Duration::from_secs(100))?;
        let beyond = Traffic::to(&shop.caller, "outside.test", 50, Duration::from_secs(100))?;
        timed(SOON, "both greeters are called", || {
            inside.calls().answered_by().len() == 2
        })?;
        shop.control.kill()?;
        let left = now();
        // A service that nobody knew of, and an endpoint instead of another.
        shop.control.apply(
            "service-late",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: late, namespace: shop}}\n\
                 spec:\n  selector: {{app: hello}}\n  ports: [{{port: {PORT}}}]\n"
            ),
        )?;
        shop.control.revise(&shop.greeters[1].pod, &member("spare"))?;
        shop.control.revise(&spare.pod, &member("hello"))?;

        inside.flow(Duration::from_secs(2));
        let late = Traffic::to(&shop.caller, LATE, 20, Duration::from_secs(100))?;
        let first = late.calls().0.first().cloned().context("a call has ended")?;
        println!(
            "{:>8.0} ms until a call to a name never seen fails: {}",
            first.ms, first.why
        );
        ensure!(is_silenced(&first), "a name never seen: {} {}", first.code, first.why);
        ensure!((1_500.0..5_000.0).contains(&first.ms), "that took {} ms", first.ms);
        let asked = Instant::now();
        let tunnelled = echo(&shop.caller, quiet)?;
        println!(
            "{:>8} ms until a tunnel to an address never dialled ends",
            asked.elapsed().as_millis()
        );
        ensure!(tunnelled.is_none(), "an address never dialled was reached, in plain");
        ensure!(
            asked.elapsed() < Duration::from_secs(5),
            "it took {:?} to say no",
            asked.elapsed()
        );
        let refused = shop.sidecar.metrics()?;
        let refused = refused.sum("portunus_proxy_errors_total", &[("reason", "control_silent")]);
        ensure!(refused >= 2.0, "{refused} refusals were counted");

        // Longer than any timer of the client's and any TTL.
        inside.flow(Duration::from_secs_f64((left + 25.0 - now()).max(0.0)));
        none_failed(&inside.calls().between(left, f64::MAX), 4_000, "while control was away")?;
        none_failed(
            &beyond.calls().between(left, f64::MAX),
            1_000,
            "beyond the mesh while control was away",
        )?;
        ensure!(
            inside.calls().between(left + 5.0, f64::MAX).answered_by().len() == 2,
            "an endpoint was forgotten"
        );
        ensure!(
            late.calls().answered_by().is_empty(),
            "a name that nobody knows was called"
        );

        let pauses = Pauses::watch();
        shop.control.launch()?;
        let back = now();
        timed(SOON, "the name is known", || late.calls().0.iter().any(Call::is_ok))?;
        timed(SOON, "the new endpoint is called", || {
            inside.calls().answered_by().contains("hello-3")
        })?;
        timed(SOON, "the tunnel is open", || {
            matches!(echo(&shop.caller, quiet), Ok(Some(_)))
        })?;
        inside.flow(Duration::from_secs(2));
        let known = late
            .calls()
            .0
            .iter()
            .filter(|call| call.is_ok())
            .map(|call| ended(call) - back)
            .fold(f64::MAX, f64::min);
        let inside = inside.calls();
        let (new, old) = (first_of(&inside, "hello-3", back), last_of(&inside, "hello-2", back));
        println!(
            "after its return: {known:.3} s until the name, {new:.3} s until the new endpoint, {old:.3} s to the last call of the old"
        );
        let soon = a_second(&pauses).as_secs_f64();
        for (what, after) in [
            ("the name", known),
            ("the new endpoint", new),
            ("the end of the old", old),
        ] {
            ensure!(after < soon, "{what} came {after:.1} s after control's return");
        }
        none_failed(&inside, 4_000, "when control was back")?;
        let failed: Vec<_> = late.calls().failed().0;
        ensure!(
            failed.iter().all(is_silenced),
            "these failed for another reason: {:?}",
            failed.last()
        );
        Ok(())
    });
}

#[test]
fn a_control_that_hangs_is_missed_and_what_changed_meanwhile_counts_within_a_second_of_its_going_on() {
    support::test(|mesh| {
        let shop = Shop::open(mesh, mesh.control(&[])?, 2, &[], &[])?;
        let spare = Greeter::start(mesh, &shop.control, "hello-3", "spare", &[])?;
        let traffic = shop.calls(100, Duration::from_secs(120))?;
        shop.control.program()?.pause()?;
        timed(Duration::from_secs(15), "a control that hangs counts as away", || {
            let connected =
                |sidecar: &support::Sidecar| sidecar.metrics().map(|m| m.sum("portunus_control_connected", &[]));
            shop.sidecars()
                .all(|sidecar| connected(sidecar).is_ok_and(|connected| connected == 0.0))
        })?;
        shop.control.revise(&shop.greeters[1].pod, &member("spare"))?;
        shop.control.revise(&spare.pod, &member("hello"))?;
        // Long enough for the caller to have given several connections up. It goes on in the worst moment.
        traffic.flow(Duration::from_secs(25));
        for (what, number) in [("has a connection", 1), ("has just given it up", 0)] {
            timed(SOON, &format!("the caller {what}"), || {
                connections_to(&shop.caller, CONTROL).is_ok_and(|open| open == number)
            })?;
        }
        let pauses = Pauses::watch();
        shop.control.program()?.resume()?;
        let back = now();
        let all = timed(SOON, "all have a stream again", || {
            let streams = shop
                .control
                .metrics()
                .map(|metrics| metrics.sum("portunus_control_streams", &[]));
            streams.is_ok_and(|streams| streams == 4.0)
        })?;
        ensure!(all < Duration::from_secs(4), "that took {all:?}");
        timed(SOON, "the new endpoint is called", || {
            traffic.calls().answered_by().contains("hello-3")
        })?;
        traffic.flow(Duration::from_secs(2));
        let calls = traffic.calls();
        let (new, old) = (first_of(&calls, "hello-3", back), last_of(&calls, "hello-2", back));
        println!("after it goes on: {new:.3} s until the new endpoint, {old:.3} s to the last call of the old");
        let soon = a_second(&pauses).as_secs_f64();
        for (what, after) in [("the new endpoint", new), ("the end of the old", old)] {
            ensure!(after < soon, "{what} came {after:.1} s after control went on");
        }
        none_failed(&calls, 2_000, "while control hung")
    });
}

/// When the first call that an endpoint answered ended, in seconds since a moment.
fn first_of(calls: &Calls, endpoint: &str, since: f64) -> f64 {
    let its = calls.0.iter().filter(|call| call.from == endpoint);
    its.map(|call| ended(call) - since).fold(f64::MAX, f64::min)
}

/// When the last call that an endpoint answered began, in seconds since a moment.
fn last_of(calls: &Calls, endpoint: &str, since: f64) -> f64 {
    let its = calls.0.iter().filter(|call| call.from == endpoint);
    its.map(|call| call.at - since).fold(f64::MIN, f64::max)
}

fn ended(call: &Call) -> f64 {
    call.at + call.ms / 1_000.0
}

/// How many connections there are from a pod to this port of others, over IPv4 (proc_pid_net(5)).
fn connections_to(pod: &Pod, port: u16) -> Result<usize> {
    let table = in_netns(pod, || std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        let (to, state) = (fields.next().unwrap_or_default(), fields.next());
        to.ends_with(&format!(":{port:04X}")) && state == Some(ESTABLISHED)
    };
    Ok(table.lines().filter(is_one).count())
}

/// UNAVAILABLE, with the sentence that says why.
fn is_silenced(call: &Call) -> bool {
    call.code == "UNAVAILABLE" && call.why.contains("control has not said whether")
}

/// Listens, and sends back what comes on each connection.
fn answer_each(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            let mut connection = connection;
            let mut bytes = [0; 16];
            while let Ok(length @ 1..) = connection.read(&mut bytes) {
                let _ = connection.write_all(&bytes[..length]);
            }
        }
    });
    Ok(())
}

/// What comes back of some bytes that are no HTTP; nothing when the connection ends without.
fn echo(from: &Pod, to: SocketAddr) -> Result<Option<usize>> {
    in_netns(from, || {
        let mut stream = TcpStream::connect_timeout(&to, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(&[7; 8])?;
        let mut bytes = [0; 8];
        match stream.read(&mut bytes) {
            Ok(0) => Ok(None),
            Ok(length) => Ok(Some(length)),
            // A reset says no as well as an end does.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error.into()),
        }
    })?
}

/// Where control listens.
const CONTROL: u16 = 8080;
/// As the kernel numbers it.
const ESTABLISHED: &str = "01";
const LATE: &str = "late.shop.svc.cluster.local";
const SOON: Duration = Duration::from_secs(10);
