//! The tests' own ground holds: pods reach each other and nobody else, a real DNS server answers, nothing is left.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use support::{Capture, Dns, Family, Mesh, Peer, Pod, Stack, User, in_netns, netns, peer, wait_until};

#[test]
fn two_pods_reach_each_other_by_both_families() {
    support::test(|mesh| {
        let (a, b) = (mesh.pod("a")?, mesh.pod("b")?);
        for family in Family::ALL {
            let address = b.at(family, 7000)?;
            let listener = in_netns(&b, || TcpListener::bind(address))??;
            let mut client = in_netns(&a, || TcpStream::connect_timeout(&address, SOON))??;
            let (mut server, from) = listener.accept()?;
            ensure!(from.ip() == a.address(family)?, "{from} is not the address of pod a");
            client.write_all(b"over the bridge")?;
            drop(client);
            let mut text = String::new();
            server.read_to_string(&mut text)?;
            ensure!(text == "over the bridge", "{text:?} arrived");
        }
        Ok(())
    });
}

#[test]
fn a_pod_of_one_family_has_no_address_of_the_other() {
    support::test(|mesh| {
        let (only_v4, only_v6, both) = (
            mesh.pod_of("v4", &[Family::V4])?,
            mesh.pod_of("v6", &[Family::V6])?,
            mesh.pod("both")?,
        );
        let _listener = in_netns(&both, || TcpListener::bind("[::]:7000"))??;
        for (pod, family, other) in [(&only_v4, Family::V4, Family::V6), (&only_v6, Family::V6, Family::V4)] {
            let (reached, unreachable) = (both.at(family, 7000)?, both.at(other, 7000)?);
            in_netns(pod, || TcpStream::connect_timeout(&reached, SOON))?.with_context(|| format!("by {family}"))?;
            let error = in_netns(pod, || TcpStream::connect_timeout(&unreachable, SOON))?;
            let kind = error.err().map(|error| error.kind());
            ensure!(
                matches!(kind, Some(ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable)),
                "an {other} address from a pod without {other} gave {kind:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn two_meshes_know_nothing_of_each_other() {
    support::test(|one| {
        let two = Mesh::new()?;
        let (a, b) = (one.pod("a")?, two.pod("b")?);
        ensure!(
            a.addresses() == b.addresses(),
            "this test wants two pods with the same address"
        );
        let c = two.pod("c")?;
        let address = c.at(Family::V4, 7000)?;
        let _listener = in_netns(&c, || TcpListener::bind(address))??;
        ensure!(
            in_netns(&b, || TcpStream::connect_timeout(&address, SOON))?.is_ok(),
            "its own mesh reaches it"
        );
        ensure!(
            in_netns(&a, || TcpStream::connect_timeout(&address, SOON))?.is_err(),
            "the other mesh reached it"
        );
        two.forget_logs();
        Ok(())
    });
}

#[test]
fn programs_run_as_the_user_that_they_are_given_without_privilege() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        for (user, id) in [(User::Root, "0"), (User::App, "1000"), (User::Sidecar, "2102")] {
            let mut command = pod.command(user, "sh");
            command.args(["-c", "id -u; grep CapBnd /proc/self/status; cat /etc/resolv.conf; env"]);
            let said = pod.run("id", command)?;
            ensure!(said.lines().next() == Some(id), "the user is {said}");
            ensure!(
                said.contains("nameserver 10.77.0.53") && said.contains("nameserver fd77::35"),
                "{said}"
            );
            ensure!(
                !said.contains("CARGO"),
                "the test's own environment came through: {said}"
            );
            if user != User::Root {
                ensure!(
                    said.contains("CapBnd:\t0000000000000000"),
                    "{user:?} can gain capabilities: {said}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn nothing_is_left_when_a_mesh_ends_also_not_what_runs_in_it() {
    support::test(|_| {
        let mesh = Mesh::new()?;
        let pod = mesh.pod("pod")?;
        let (namespace, folder) = (pod.namespace().to_string(), mesh.folder().to_path_buf());
        let mut command = pod.command(User::App, "sh");
        // The shell ends, and what it started goes on, in a session of its own.
        command.args(["-c", "setsid sleep 600 & echo $!"]);
        let orphan = pod.run("orphan", command)?.trim().to_string();
        ensure!(Path::new("/proc").join(&orphan).exists(), "the orphan {orphan} runs");
        mesh.forget_logs();
        drop((mesh, pod));
        ensure!(!netns::all().contains(&namespace), "the namespace {namespace} is left");
        ensure!(!Path::new("/etc/netns").join(&namespace).exists(), "its /etc is left");
        ensure!(!folder.exists(), "{} is left", folder.display());
        wait_until(SOON, "the orphan has ended", || {
            std::fs::read_to_string(format!("/proc/{orphan}/stat")).map_or(true, |stat| stat.contains(") Z"))
        })
    });
}

#[test]
fn what_a_run_that_crashed_has_left_is_removed_and_what_a_live_run_has_is_not() {
    support::test(|mesh| {
        let alive = mesh.pod("alive")?;
        // A process that has ended, and been waited for, has no number any more.
        let mut ended = Command::new("true").spawn()?;
        let pid = ended.id();
        ended.wait()?;
        let crashed = format!("ptn-{pid}-0-pod");
        let ip = |args: &[&str]| Command::new("ip").args(args).status();
        ensure!(
            ip(&["netns", "add", &crashed])?.success(),
            "a namespace of a run that crashed"
        );
        let mut left = Command::new("ip")
            .args(["netns", "exec", &crashed, "sleep", "600"])
            .spawn()?;
        wait_until(SOON, "a program of the crashed run is there", || {
            !netns::programs_in(&crashed).is_empty()
        })?;
        let folder = std::env::temp_dir().join(format!("ptn-{pid}-0"));
        std::fs::create_dir(&folder)?;

        netns::sweep()?;
        ensure!(!netns::all().contains(&crashed), "{crashed} is left");
        ensure!(!folder.exists(), "{} is left", folder.display());
        wait_until(SOON, "its program has ended", || {
            left.try_wait().is_ok_and(|status| status.is_some())
        })?;
        ensure!(
            netns::all().contains(&alive.namespace().to_string()),
            "the pod of this very test is gone"
        );
        Ok(())
    });
}

#[test]
fn a_closure_in_a_pod_opens_sockets_of_the_pod_and_hands_its_panic_on() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, 7000).into();
        let _listener = in_netns(&pod, || TcpListener::bind(address))??;
        ensure!(
            in_netns(&pod, || TcpStream::connect_timeout(&address, SOON))?.is_ok(),
            "the pod's own loopback"
        );
        // Out here port 7000 may be somebody's, but not that of a listener in the pod.
        let name = pod.address(Family::V4)?;
        ensure!(
            UdpSocket::bind((name, 0)).is_err(),
            "the pod's address is the machine's too"
        );
        let panicked = std::panic::catch_unwind(|| in_netns(&pod, || panic!("inside")));
        ensure!(panicked.is_err(), "a panic inside was lost");
        Ok(())
    });
}

#[test]
fn the_dns_server_answers_what_the_test_says_at_once_and_by_ttl() {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let (pod, only_v4) = (mesh.pod("pod")?, mesh.pod_of("v4", &[Family::V4])?);
        let addresses: Vec<IpAddr> = vec!["10.77.0.201".parse()?, "10.77.0.202".parse()?, "fd77::201".parse()?];
        dns.set("greeter.test", &addresses, 5)?;
        ensure!(
            resolve(&pod, "greeter.test", "ahostsv4")? == addresses[..2],
            "the IPv4 addresses of greeter.test"
        );
        ensure!(
            resolve(&pod, "greeter.test", "ahostsv6")? == addresses[2..],
            "the IPv6 address of greeter.test"
        );
        ensure!(
            resolve(&only_v4, "greeter.test", "ahostsv4")? == addresses[..2],
            "as a pod without IPv6 sees it"
        );
        wait_until(SOON, "the questions are counted", || dns.questions("greeter.test") >= 3)?;
        ensure!(dns.questions("reeter.test") == 0, "and those for other names are not");

        dns.set("greeter.test", &addresses[1..2], 5)?;
        ensure!(
            resolve(&pod, "greeter.test", "ahostsv4")? == addresses[1..2],
            "an address was taken out"
        );
        dns.remove("greeter.test")?;
        ensure!(
            resolve(&pod, "greeter.test", "ahostsv4")?.is_empty(),
            "the name was taken out"
        );
        Ok(())
    });
}

#[test]
fn the_dns_server_fails_in_each_way_that_a_test_asks_for() {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let pod = mesh.pod("pod")?;
        dns.set("greeter.test", &["10.77.0.201".parse()?], 5)?;
        ensure!(code(&dns, "greeter.test", SOON * 2)? == Some(0), "it answers");
        ensure!(
            code(&dns, "nobody.test", SOON * 2)? == Some(3),
            "a name that nobody set does not exist"
        );
        dns.break_name("greeter.test")?;
        ensure!(
            code(&dns, "greeter.test", SOON * 2)? == Some(2),
            "a broken name is SERVFAIL"
        );
        ensure!(code(&dns, "nobody.test", SOON * 2)? == Some(3), "and no other is");
        dns.mend_name("greeter.test")?;
        ensure!(code(&dns, "greeter.test", SOON * 2)? == Some(0), "it is mended");
        dns.fall_silent()?;
        ensure!(
            code(&dns, "greeter.test", Duration::from_secs(1))?.is_none(),
            "it is silent"
        );
        dns.speak()?;
        ensure!(resolve(&pod, "greeter.test", "ahostsv4")?.len() == 1, "it speaks again");
        Ok(())
    });
}

#[test]
fn a_pod_that_swallows_packets_is_silent_and_comes_back() {
    support::test(|mesh| {
        let (a, b) = (mesh.pod("a")?, mesh.pod("b")?);
        for family in Family::ALL {
            let address = b.at(family, 7000)?;
            let _listener = in_netns(&b, || TcpListener::bind(address))??;
            let dial = |patience| in_netns(&a, || TcpStream::connect_timeout(&address, patience));
            dial(SOON)??;
            b.swallow_packets()?;
            let began = Instant::now();
            let kind = dial(Duration::from_millis(300))?.err().map(|error| error.kind());
            ensure!(
                kind == Some(ErrorKind::TimedOut),
                "a dial into silence gave {kind:?} by {family}"
            );
            ensure!(began.elapsed() >= Duration::from_millis(300), "and gave it too early");
            b.pass_packets()?;
            dial(SOON)?.with_context(|| format!("packets pass again by {family}"))?;
        }
        Ok(())
    });
}

#[test]
fn a_capture_shows_what_went_over_the_wire() {
    support::test(|mesh| {
        let (a, b) = (mesh.pod("a")?, mesh.pod("b")?);
        let capture = Capture::start(&b, "eth0", "udp port 7000")?;
        let from = in_netns(&a, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
        from.send_to(b"seen on the wire", b.at(Family::V4, 7000)?)?;
        // A second capture starts later than this one has read what was before it.
        wait_until(SOON, "the packet is in the file", || {
            std::fs::metadata(b.folder().join("eth0.pcap")).is_ok_and(|meta| meta.len() > 40)
        })?;
        let seen = capture.stop()?;
        ensure!(seen.contains("seen on the wire"), "the capture shows {seen:?}");
        Ok(())
    });
}

#[test]
fn greeters_and_callers_of_both_stacks_speak_by_name() {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let caller = mesh.pod("caller")?;
        for stack in [Stack::Python, Stack::Tonic] {
            let pod = mesh.pod(&format!("greeter-{stack}"))?;
            let greeter = Peer::greeter(&pod, stack, 50051, Duration::from_millis(5))?;
            dns.set("greeter.test", &pod.addresses(), 5)?;
            for client in [Stack::Python, Stack::Tonic] {
                let mut program = peer::caller(&caller, client, "greeter.test:50051", 20, Duration::from_secs(1))?;
                ensure!(
                    program.wait(SOON * 4)?.success(),
                    "the caller ended well: {}",
                    program.output()
                );
                let said = program.output();
                let answered = said
                    .lines()
                    .filter(|line| line.contains("\"OK\"") && line.contains(pod.name()))
                    .count();
                ensure!(
                    answered == 20,
                    "{client} was answered by {} {answered} times of 20: {said}",
                    pod.name()
                );
            }
            greeter.program.signal(Signal::SIGUSR1)?;
            // It does not say when it has heard that.
            let mut last = Ok(Vec::new());
            let slow = wait_until(SOON * 4, "five calls are slow", || {
                last = five_calls(&caller);
                matches!(&last, Ok(times) if times.len() == 5 && times.iter().all(|ms| *ms >= 50.0))
            });
            slow.with_context(|| format!("the last took so many ms: {last:?}"))?;
        }
        Ok(())
    });
}

/// How many milliseconds each of five calls takes.
fn five_calls(caller: &Pod) -> Result<Vec<f64>> {
    let mut program = peer::caller(caller, Stack::Tonic, "greeter.test:50051", 5, Duration::from_secs(1))?;
    ensure!(program.wait(SOON * 4)?.success(), "the caller ended well");
    Ok(program.output().lines().filter_map(milliseconds).collect())
}

fn milliseconds(line: &str) -> Option<f64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?["ms"].as_f64()
}

/// What the pod's own resolver finds, sorted.
fn resolve(pod: &Pod, name: &str, database: &str) -> Result<Vec<IpAddr>> {
    let mut command = pod.command(User::App, "getent");
    command.args([database, name]);
    let mut program = pod.start("getent", command)?;
    program.wait(Duration::from_secs(15))?;
    let said = program.output();
    let mut found: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse::<IpAddr>().ok())
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The response code for an A question (RFC 1035, 4.1.1), or that there was none in time.
fn code(dns: &Dns, name: &str, patience: Duration) -> Result<Option<u8>> {
    in_netns(dns.pod(), || {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(patience))?;
        let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(label.len() as u8);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, 1, 0, 1]);
        socket.send_to(&question, (Ipv4Addr::LOCALHOST, 53))?;
        let mut answer = [0; 512];
        match socket.recv(&mut answer) {
            Ok(length) if length > 12 => Ok(Some(answer[3] & 0xf)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            other => other.map(|_| None).context("asking the DNS server"),
        }
    })?
}

const SOON: Duration = Duration::from_secs(5);
