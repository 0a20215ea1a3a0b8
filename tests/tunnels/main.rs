//! What is not gRPC crosses two sidecars undeclared and unharmed, and nothing is reached that should not be.

mod http1;
mod programs;
mod wire;

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use support::{Family, Peer, Pod, Sidecar, Stack, User, in_netns};
use wire::{PORT, Pair, dial, listen, refused};

#[test]
fn a_server_that_speaks_first_is_heard_undeclared_and_at_once_the_next_time() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        for family in Family::ALL {
            let address = pair.server.at(family, PORT)?;
            let listener = listen(&pair.server, address)?;
            let banner = b"220 mail.test ready\r\n";
            let serving = thread::spawn(move || -> Result<()> {
                for _ in 0..6 {
                    let (mut client, _) = listener.accept()?;
                    client.write_all(banner)?;
                    let mut word = [0; 4];
                    client.read_exact(&mut word)?;
                    client.write_all(&word)?;
                }
                Ok(())
            });
            let mut waits = Vec::new();
            for _ in 0..6 {
                let began = Instant::now();
                let mut socket = dial(&pair.client, address)?;
                let mut heard = vec![0; banner.len()];
                socket.read_exact(&mut heard).context("the banner")?;
                waits.push(began.elapsed());
                ensure!(
                    heard == banner,
                    "the banner came as {:?}",
                    String::from_utf8_lossy(&heard)
                );
                socket.write_all(b"QUIT")?;
                let mut word = [0; 4];
                socket.read_exact(&mut word)?;
                ensure!(&word == b"QUIT", "after the banner nothing is right: {word:?}");
            }
            match serving.join() {
                Ok(served) => served?,
                Err(_) => bail!("the server panicked"),
            }
            let known = waits[1..].iter().min().context("there were six")?;
            ensure!(
                *known < Duration::from_millis(200),
                "a destination that is known to speak first still waits: {waits:?}"
            );
        }
        for (sidecar, direction) in [(&pair.outbound, "outbound"), (&pair.inbound, "inbound")] {
            let guesses = sidecar.metrics()?.by_label("portunus_detected_total", "guess");
            ensure!(
                guesses.get("server_first").is_some_and(|times| *times >= 12.0),
                "{direction} has taken the connections for {guesses:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_grpc_client_that_is_silent_for_a_second_is_taken_for_grpc_all_the_same() {
    support::test(|mesh| {
        for stack in Stack::ALL {
            let (client, server) = (mesh.pod(&format!("to-{stack}"))?, mesh.pod(&format!("{stack}"))?);
            let (outbound, inbound) = (client.sidecar()?, server.sidecar()?);
            // grpc-go's server sends its SETTINGS before the client has said a word.
            let _app = Peer::start(&server, stack, PORT)?;
            let socket = dial(&client, server.at(Family::V4, PORT)?)?;
            thread::sleep(Duration::from_secs(1));
            wire::empty_call(socket).with_context(|| format!("a call to {stack} after a second of silence"))?;
            for (sidecar, name) in [
                (&outbound, "grpc_client_handled_total"),
                (&inbound, "grpc_server_handled_total"),
            ] {
                support::wait_until(
                    Duration::from_secs(10),
                    &format!("{name} counts the call to {stack}, which is not carried as bytes"),
                    || {
                        let metrics = sidecar.metrics();
                        metrics.is_ok_and(|metrics| metrics.sum(name, &[("grpc_code", "OK")]) == 1.0)
                    },
                )?;
            }
        }
        Ok(())
    });
}

#[test]
fn either_side_may_end_its_half_and_go_on_listening() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        for family in Family::ALL {
            let address = pair.server.at(family, PORT)?;
            let listener = listen(&pair.server, address)?;
            let serving = thread::spawn(move || -> Result<Vec<u8>> {
                let (mut client, _) = listener.accept()?;
                let mut all = Vec::new();
                client.read_to_end(&mut all)?;
                // Only now, after the caller has ended its half, the answer.
                let answer: Vec<u8> = all.iter().rev().copied().collect();
                client.write_all(&answer)?;
                Ok(all)
            });
            let sent: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
            let mut socket = dial(&pair.client, address)?;
            socket.write_all(&sent)?;
            socket.shutdown(Shutdown::Write)?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer)?;
            let Ok(heard) = serving.join() else {
                bail!("the server panicked")
            };
            ensure!(heard? == sent, "the server did not hear what was sent");
            ensure!(
                answer.iter().eq(sent.iter().rev()),
                "the answer of {} bytes is not what the server said",
                answer.len()
            );
        }
        let bytes = |sidecar: &Sidecar, way| {
            Ok::<_, anyhow::Error>(sidecar.metrics()?.sum("portunus_tunnel_bytes_total", &[("way", way)]))
        };
        for sidecar in [&pair.outbound, &pair.inbound] {
            support::wait_until(Duration::from_secs(5), "the bytes are counted", || {
                ["to_upstream", "to_downstream"]
                    .iter()
                    .all(|way| bytes(sidecar, way).is_ok_and(|bytes| bytes == 6_000_000.0))
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_reset_crosses_as_a_reset_and_a_refusal_as_one() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let address = pair.server.at(Family::V4, PORT)?;
        let listener = listen(&pair.server, address)?;
        let serving = thread::spawn(move || -> Result<()> {
            let (mut client, _) = listener.accept()?;
            let mut word = [0; 4];
            client.read_exact(&mut word)?;
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            Ok(())
        });
        let mut socket = dial(&pair.client, address)?;
        socket.write_all(b"word")?;
        let ended = socket.read(&mut [0; 16]);
        ensure!(
            ended
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "the server reset the connection, and the caller saw {ended:?}"
        );
        match serving.join() {
            Ok(served) => served?,
            Err(_) => bail!("the server panicked"),
        }
        // The listener is gone: nobody is there any more.
        let began = Instant::now();
        ensure!(
            refused(&pair.client, address, b"word")?,
            "a port without a listener took the caller's word"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(2),
            "and it took {:?} to say so",
            began.elapsed()
        );
        Ok(())
    });
}

#[test]
fn a_silent_caller_of_nobody_is_told_so() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let began = Instant::now();
        ensure!(
            refused(&pair.client, pair.server.at(Family::V4, PORT)?, b"")?,
            "a port without a listener took a silent caller"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(3),
            "it took {:?} to say so",
            began.elapsed()
        );
        let errors = pair
            .inbound
            .metrics()?
            .sum("portunus_proxy_errors_total", &[("reason", "dial")]);
        ensure!(errors == 1.0, "inbound counts {errors} failed dials");
        Ok(())
    });
}

#[test]
fn a_reader_that_does_not_read_holds_its_writer_back() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let address = pair.server.at(Family::V4, PORT)?;
        let listener = listen(&pair.server, address)?;
        let mut socket = dial(&pair.client, address)?;
        socket.write_all(b"word")?;
        let (mut reader, _) = listener.accept()?;
        socket.set_write_timeout(Some(Duration::from_secs(2)))?;
        let block = vec![7; 64 << 10];
        let mut written = 4;
        while written < MUCH {
            match socket.write(&block) {
                Ok(n) => written += n,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a writer that has to wait"),
            }
        }
        ensure!(written < MUCH, "{written} bytes were taken, though nobody reads them");
        socket.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        reader.set_read_timeout(Some(Duration::from_secs(20)))?;
        reader.read_to_end(&mut all)?;
        ensure!(all.len() == written, "of {written} bytes {} arrived", all.len());
        Ok(())
    });
}

/// More than the sockets of three hops hold.
const MUCH: usize = 64 << 20;

#[test]
fn what_listens_on_loopback_alone_stays_unreachable_from_the_network() {
    support::test(|mesh| {
        let (server, neighbour, meshed) = (mesh.pod("server")?, mesh.pod("neighbour")?, mesh.pod("meshed")?);
        let (_inbound, _outbound) = (server.sidecar()?, meshed.sidecar()?);
        for (family, loopback) in [(Family::V4, "127.0.0.1"), (Family::V6, "::1")] {
            let inside = SocketAddr::new(loopback.parse()?, PORT);
            let listener = listen(&server, inside)?;
            listener.set_nonblocking(true)?;
            let address = server.at(family, PORT)?;
            for caller in [&neighbour, &meshed] {
                ensure!(
                    refused(caller, address, b"let me in")?,
                    "{} was let in by {family}",
                    caller.name()
                );
            }
            let accepted = listener.accept();
            ensure!(
                accepted
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "what listens on {inside} was reached: {accepted:?}"
            );
            // For the pod itself it is there.
            let mut own = dial(&server, inside)?;
            own.write_all(b"it is me")?;
            listener.set_nonblocking(false)?;
            let (mut me, _) = listener.accept()?;
            let mut heard = [0; 8];
            me.read_exact(&mut heard)?;
            ensure!(&heard == b"it is me", "the pod's own call came as {heard:?}");
        }
        Ok(())
    });
}

#[test]
fn a_neighbour_reaches_nobody_else_through_the_inbound_proxy() {
    support::test(|mesh| {
        let (victim, target, neighbour) = (mesh.pod("victim")?, mesh.pod("target")?, mesh.pod("neighbour")?);
        let sidecar = victim.sidecar()?;
        for family in Family::ALL {
            let address = target.at(family, PORT)?;
            let listener = listen(&target, address)?;
            listener.set_nonblocking(true)?;
            // The neighbour's packets for the target go to the victim, whose rules lead them to its inbound proxy.
            let (flag, length) = match family {
                Family::V4 => ("-4", 32),
                Family::V6 => ("-6", 128),
            };
            let mut route = neighbour.command(User::Root, "ip");
            route.args([flag, "route", "add", &format!("{}/{length}", address.ip()), "via"]);
            route.arg(victim.address(family)?.to_string());
            neighbour.run("route", route)?;
            let before = sidecar
                .metrics()?
                .sum("portunus_proxy_errors_total", &[("reason", "foreign_destination")]);
            ensure!(
                refused(&neighbour, address, b"through you")?,
                "the victim carried a stranger's bytes by {family}"
            );
            let accepted = listener.accept();
            ensure!(
                accepted
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::WouldBlock),
                "the target was reached: {accepted:?}"
            );
            let after = sidecar
                .metrics()?
                .sum("portunus_proxy_errors_total", &[("reason", "foreign_destination")]);
            ensure!(
                after > before,
                "the refusal by {family} was not the inbound proxy's, or is not counted"
            );
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_calls_itself_by_its_own_address_is_answered() {
    support::test(|mesh| {
        let pod = mesh.pod("pod")?;
        let _sidecar = pod.sidecar()?;
        let _app = Peer::start(&pod, Stack::Tonic, PORT + 1)?;
        for family in Family::ALL {
            let address = pod.at(family, PORT)?;
            let listener = listen(&pod, address)?;
            let mut socket = dial(&pod, address)?;
            socket.write_all(b"is anybody here?")?;
            let (mut me, _) = listener.accept()?;
            let mut heard = [0; 16];
            me.read_exact(&mut heard)?;
            me.write_all(&heard)?;
            let mut answer = [0; 16];
            socket.read_exact(&mut answer)?;
            ensure!(&answer == b"is anybody here?", "the answer is {answer:?}");
            wire::empty_call(dial(&pod, pod.at(family, PORT + 1)?)?)
                .with_context(|| format!("an RPC to itself by {family}"))?;
        }
        Ok(())
    });
}

#[test]
fn an_ipv4_address_in_ipv6_form_leads_where_it_says() {
    support::test(|mesh| {
        let pair = Pair::new(mesh)?;
        let address = pair.server.at(Family::V4, PORT)?;
        let std::net::IpAddr::V4(v4) = address.ip() else {
            bail!("{address} is no IPv4 address")
        };
        let mapped = SocketAddr::from((v4.to_ipv6_mapped(), PORT));
        let listener = listen(&pair.server, address)?;
        let mut socket = dial(&pair.client, mapped)?;
        socket.write_all(b"by the other form")?;
        let (mut server, from) = listener.accept()?;
        let mut heard = [0; 17];
        server.read_exact(&mut heard)?;
        ensure!(&heard == b"by the other form", "there came {heard:?} from {from}");
        support::wait_until(Duration::from_secs(10), "both sidecars have carried it", || {
            carried(&pair.outbound, "outbound").is_ok_and(|carried| carried == 1.0)
                && carried(&pair.inbound, "inbound").is_ok_and(|carried| carried == 1.0)
        })
    });
}

#[test]
fn a_connection_to_the_proxys_own_ports_ends_at_once_and_is_counted() {
    support::test(|mesh| {
        let (pod, neighbour) = (mesh.pod("pod")?, mesh.pod("neighbour")?);
        let sidecar = pod.sidecar()?;
        let counted = || {
            let metrics = sidecar.metrics()?;
            let of = |reason| metrics.sum("portunus_proxy_errors_total", &[("reason", reason)]);
            Ok::<_, anyhow::Error>(of("loop") + of("not_redirected") + of("loopback_destination"))
        };
        let own = pod.address(Family::V4)?;
        let own6 = pod.address(Family::V6)?;
        let loopback = Ipv4Addr::LOCALHOST.into();
        let callers = [
            (&pod, SocketAddr::new(loopback, 4140)),
            (&pod, SocketAddr::new(loopback, 4143)),
            (&pod, SocketAddr::new(own, 4140)),
            (&pod, SocketAddr::new(own, 4143)),
            (&pod, SocketAddr::new(own6, 4140)),
            (&pod, SocketAddr::new(own6, 4143)),
            (&neighbour, SocketAddr::new(own, 4143)),
            (&neighbour, SocketAddr::new(own, 4140)),
            (&neighbour, SocketAddr::new(own6, 4143)),
        ];
        for (caller, address) in callers {
            let before = counted()?;
            let began = Instant::now();
            ensure!(
                refused(caller, address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?,
                "{address} answers {}",
                caller.name()
            );
            ensure!(
                began.elapsed() < Duration::from_secs(2),
                "{address} took {:?} to refuse {}",
                began.elapsed(),
                caller.name()
            );
            support::wait_until(
                Duration::from_secs(10),
                &format!("the end of {}'s connection to {address} is counted", caller.name()),
                || counted().is_ok_and(|now| now > before),
            )?;
        }
        Ok(())
    });
}

/// Runs a program of a pod to its end and returns what it wrote.
fn said(pair: &Pair, name: &str, command: impl FnOnce(&mut Command)) -> Result<String> {
    let mut program = pair.client.command(User::App, name);
    command(&mut program);
    pair.client.run(name, program)
}

/// How many connections a direction has tunnelled: those that were detected, less those that became HTTP/2.
fn carried(sidecar: &Sidecar, direction: &str) -> Result<f64> {
    let metrics = sidecar.metrics()?;
    let detected = metrics.sum("portunus_detected_total", &[("direction", direction)]);
    let labels = [("direction", direction), ("side", "downstream")];
    Ok(detected - metrics.sum("portunus_connections_opened_total", &labels))
}

/// Whether somebody listens on a port of the pod. By its own address the pod's sidecar would take any call.
fn listens(pod: &Pod, port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    in_netns(pod, || TcpStream::connect(address)).is_ok_and(|dialled| dialled.is_ok())
}
