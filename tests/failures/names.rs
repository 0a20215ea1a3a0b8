//! Which endpoints a name means: SRV records, a resolv.conf and a hosts file that change, and names that mean somebody
//! else.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use support::{
    Family, Mesh, Pod, Stack,
    dns::Srv,
    peer,
    traffic::{Endpoint, NAME, PORT, Traffic, addresses, alone, among_others, now},
    wait_until,
};

use crate::until_shared;

#[test]
fn srv_records_give_each_endpoint_its_weight_and_a_lower_priority_nothing_while_the_higher_one_lives() {
    let _alone = alone();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let mut endpoints = Endpoint::several(mesh, 3, WORK)?;
        // What the application resolves for itself, and what the record's targets are.
        dns.set(NAME, &addresses(&endpoints), 5)?;
        let targets = ["one.test", "two.test", "spare.test"];
        for (target, endpoint) in targets.iter().zip(&endpoints) {
            dns.set(target, &endpoint.pod.addresses(), 5)?;
        }
        let instance = |target, priority, weight| Srv {
            priority,
            weight,
            port: PORT,
            target,
        };
        let records = [
            instance(targets[0], 0, 30),
            instance(targets[1], 0, 10),
            instance(targets[2], 10, 10),
        ];
        dns.set_srv(&format!("_grpc._tcp.{NAME}"), &records, 5)?;
        let caller = mesh.pod("caller")?;
        let _sidecar = caller.sidecar_with(&[("PORTUNUS_DNS_SRV", NAME)])?;
        let traffic = Traffic::start(&caller, 400, Duration::from_secs(60))?;
        traffic.flow(Duration::from_secs(3));
        until_shared(
            &traffic,
            &endpoints,
            2.0,
            "calls go by weights of 30 and 10",
            |shares| (0.67..0.83).contains(&shares[0]) && (0.17..0.33).contains(&shares[1]),
        )?;
        let weighed = now();
        endpoints[0].app.kill()?;
        endpoints[1].app.kill()?;
        let dead = now();
        traffic.flow(Duration::from_secs(5));
        let calls = traffic.stop()?;

        // What began later may have been in flight to one of them.
        let before = calls.between(0.0, weighed - 0.5);
        ensure!(before.failed().is_empty(), "calls failed:{}", before.failed());
        let spare = before.share(&endpoints[2]);
        ensure!(
            before.len() > 500 && spare == 0.0,
            "of {} calls the spare had {spare} while others lived",
            before.len()
        );
        let after = calls.between(dead + 1.0, f64::MAX);
        ensure!(
            after.len() > 500 && after.failed().is_empty() && after.share(&endpoints[2]) == 1.0,
            "with the others dead, of {} calls the spare had {}; failed:{}",
            after.len(),
            after.share(&endpoints[2]),
            after.failed()
        );
        Ok(())
    });
}

#[test]
fn a_resolv_conf_that_changes_is_read_again() {
    let _among = among_others();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, WORK)?;
        dns.set(NAME, &addresses(&endpoints), 1)?;
        let caller = mesh.pod("caller")?;
        let good = fs::read_to_string(format!("/etc/netns/{}/resolv.conf", caller.namespace()))?;
        // The sidecar alone is misled: the application dials what it was told before.
        caller.set_resolv_conf("nameserver 10.77.0.250\noptions timeout:1 attempts:1\n")?;
        let sidecar = caller.sidecar()?;
        caller.set_resolv_conf(&good)?;
        let traffic = Traffic::start(&caller, 100, Duration::from_secs(60))?;
        wait_until(Duration::from_secs(20), "both endpoints are called", || {
            let calls = traffic.calls().between(now() - 1.0, f64::MAX);
            endpoints.iter().all(|endpoint| calls.share(endpoint) > 0.2)
        })?;
        ensure!(
            traffic.calls().failed().is_empty(),
            "calls failed:{}",
            traffic.calls().failed()
        );
        let fresh = sidecar.metrics()?.sum("portunus_dns_names", &[("state", "fresh")]);
        ensure!(fresh >= 1.0, "no name is fresh");
        Ok(())
    });
}

#[test]
fn a_call_whose_authority_has_nothing_to_do_with_its_address_goes_where_it_was_dialled() {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, WORK)?;
        let [meant, other] = &endpoints[..] else {
            unreachable!("two were started")
        };
        dns.set(NAME, &addresses([other]), 5)?;
        for family in Family::ALL {
            let caller = mesh.pod_of(&format!("caller-{}", family.to_string().to_lowercase()), &[family])?;
            let _sidecar = caller.sidecar()?;
            // As an application does that has an address from elsewhere: a registry, a hosts file of its own.
            hosts_of_the_application(&caller, &format!("{} {NAME}\n", meant.pod.address(family)?))?;
            let mut program = peer::caller(
                &caller,
                Stack::Tonic,
                &format!("{NAME}:{PORT}"),
                20,
                Duration::from_secs(1),
            )?;
            ensure!(
                program.wait(Duration::from_secs(20))?.success(),
                "the caller ended well"
            );
            let said = program.output();
            let answered = said.lines().filter(|line| line.contains(meant.pod.name())).count();
            ensure!(
                answered == 20,
                "by {family} {answered} of 20 calls reached the address that was dialled:\n{said}"
            );
        }
        Ok(())
    });
}

/// Adds lines to the hosts file of programs that start from now on. Those that run keep theirs, as the containers of a
/// pod may: a mount holds the file, not its name.
fn hosts_of_the_application(pod: &Pod, lines: &str) -> Result<()> {
    let file = format!("/etc/netns/{}/hosts", pod.namespace());
    let next = format!("{file}.next");
    fs::write(&next, fs::read_to_string(&file)? + lines)?;
    Ok(fs::rename(next, file)?)
}

#[test]
fn a_name_of_the_hosts_file_is_balanced_without_any_name_server() {
    let _among = among_others();
    support::test(|mesh| {
        let endpoints = Endpoint::several(mesh, 3, WORK)?;
        let (first, late) = endpoints.split_at(2);
        let caller = mesh.pod("caller")?;
        let lines = |endpoints: &[Endpoint]| -> String {
            let lines = addresses(endpoints).into_iter();
            lines
                .map(|address| format!("{address} another.name Greeter.Test\n"))
                .collect()
        };
        let file = format!("/etc/netns/{}/hosts", caller.namespace());
        fs::write(&file, lines(first))?;
        let sidecar = caller.sidecar()?;
        let traffic = Traffic::start(&caller, 200, Duration::from_secs(60))?;
        let shares = |since: f64| -> Vec<_> {
            let calls = traffic.calls().between(since, f64::MAX);
            endpoints.iter().map(|endpoint| calls.share(endpoint)).collect()
        };
        traffic.flow(Duration::from_secs(2));
        until_shared(
            &traffic,
            &endpoints[..2],
            1.0,
            "both endpoints have their share",
            |shares| shares.iter().all(|share| (0.35..0.65).contains(share)),
        )?;
        let seen = shares(0.0);
        ensure!(
            seen[2] == 0.0,
            "the third was called before the file named it: {seen:?}"
        );
        // In place, as the kubelet writes it: every program of the pod sees it.
        fs::write(&file, lines(late))?;
        wait_until(Duration::from_secs(10), "calls go where the file says now", || {
            shares(now() - 0.5)[2] == 1.0
        })?;
        let failed = traffic.calls().failed();
        ensure!(failed.is_empty(), "calls failed:{failed}");
        let names = sidecar.metrics()?.by_label("portunus_dns_names", "state");
        ensure!(
            names.get("fresh") == Some(&1.0) && names.values().sum::<f64>() == 1.0,
            "the one name is not fresh: {names:?}"
        );
        Ok(())
    });
}

#[test]
fn a_name_without_addresses_leads_where_the_application_dialled() {
    support::test(|mesh: &Mesh| {
        let dns = mesh.dns()?;
        let endpoint = Endpoint::start(mesh, 1, WORK)?;
        let caller = mesh.pod("caller")?;
        let _sidecar = caller.sidecar()?;
        hosts_of_the_application(&caller, &format!("{} {NAME}\n", endpoint.pod.address(Family::V4)?))?;
        let mut program = peer::caller(
            &caller,
            Stack::Tonic,
            &format!("{NAME}:{PORT}"),
            20,
            Duration::from_secs(1),
        )?;
        ensure!(
            program.wait(Duration::from_secs(20))?.success(),
            "the caller ended well"
        );
        ensure!(dns.questions(NAME) > 0, "the name server was not even asked");
        let said = program.output();
        ensure!(
            said.lines().filter(|line| line.contains("\"OK\"")).count() == 20,
            "a name that DNS does not know cannot be called:\n{said}"
        );
        Ok(())
    });
}

#[test]
fn a_connection_that_two_names_share_stays_until_both_have_left_its_address() {
    let _among = among_others();
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let endpoints = Endpoint::several(mesh, 2, WORK)?;
        let at = |number: usize| Ok::<_, anyhow::Error>([endpoints[number].pod.address(Family::V4)?]);
        let names = ["one.test", "two.test"];
        for name in names {
            dns.set(name, &at(0)?, 1)?;
        }
        let caller = mesh.pod("caller")?;
        let sidecar = caller.sidecar()?;
        let call = |name| {
            let target = format!("{name}:{PORT}");
            peer::caller(&caller, Stack::Tonic, &target, 50, Duration::from_secs(60))
        };
        let mut callers = [call(names[0])?, call(names[1])?];
        let [one, two] = &mut callers;
        let outbound = |metric: &str| -> Result<f64> {
            let labels = [("direction", "outbound"), ("side", "upstream")];
            Ok(sidecar.metrics()?.sum(metric, &labels))
        };
        let opened = || outbound("portunus_connections_opened_total");
        for caller in [&mut *one, &mut *two] {
            caller.says("greeter-1", Duration::from_secs(20))?;
        }
        ensure!(
            opened()? == 1.0,
            "the names do not share a connection: nothing is shown"
        );

        dns.set(names[0], &at(1)?, 1)?;
        one.says("greeter-2", Duration::from_secs(20))?;
        let moved = two.output().lines().count();
        wait_until(
            Duration::from_secs(10),
            "the other name is called 100 times more",
            || two.output().lines().count() > moved + 100,
        )?;
        ensure!(
            opened()? == 2.0,
            "the connection was given up though {} uses it: {} were opened",
            names[1],
            opened()?
        );
        ensure!(!two.output().contains("greeter-2"), "{} went along", names[1]);

        dns.set(names[1], &at(1)?, 1)?;
        wait_until(
            Duration::from_secs(20),
            "the connection that nobody needs is closed",
            || outbound("portunus_connections").is_ok_and(|open| open == 1.0),
        )?;
        for caller in &callers {
            let failed = caller.output().lines().filter(|line| !line.contains("\"OK\"")).count();
            ensure!(failed == 0, "{failed} calls failed:\n{}", caller.output());
        }
        Ok(())
    });
}

const WORK: Duration = Duration::from_millis(2);
