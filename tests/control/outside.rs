//! Names outside the mesh, as policy says that they are found.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use support::dns::Srv;
use support::traffic::{PORT, Traffic};
use support::{Family, Peer, Stack};

use crate::shop::{CALLER, none_failed, timed};

#[test]
fn a_host_outside_is_found_by_the_srv_records_that_a_policy_names_from_when_it_does_until_it_does_not() {
    support::test(|mesh| {
        let (dns, control) = (mesh.dns()?, mesh.control(&[])?);
        let (main, spare) = (mesh.pod("main")?, mesh.pod("spare")?);
        let _apps = [&main, &spare].map(|pod| Peer::greeter(pod, Stack::Tonic, PORT, Duration::ZERO));
        // By its addresses the name has two endpoints; by its SRV records one of them is a spare.
        let (at_main, at_spare) = (main.address(Family::V4)?, spare.address(Family::V4)?);
        dns.set(NAME, &[at_main, at_spare], 5)?;
        dns.set("main.test", &[at_main], 5)?;
        dns.set("spare.test", &[at_spare], 5)?;
        let record = |target, priority| Srv {
            priority,
            weight: 1,
            port: PORT,
            target,
        };
        let records = [record("main.test", 0), record("spare.test", 10)];
        dns.set_srv(&format!("_hello._tcp.{NAME}"), &records, 5)?;
        let caller = mesh.pod("caller")?;
        let sidecar = caller.member(&control, &CALLER, &[])?;
        let traffic = Traffic::to(&caller, NAME, 100, Duration::from_secs(60))?;
        let latest = |many: usize| {
            let calls = traffic.calls().0;
            let latest = calls.iter().rev().take(many).map(|call| call.from.clone());
            latest.collect::<BTreeSet<_>>()
        };
        timed(SOON, "both addresses are called", || latest(30).len() == 2)?;

        control.apply(
            "outbound",
            &format!(
                "apiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {{name: out, namespace: shop}}\n\
                 spec: {{hosts: [{NAME}], dns: {{srv: _hello._tcp}}}}\n"
            ),
        )?;
        let main_alone = BTreeSet::from(["main".to_owned()]);
        timed(SOON, "the main one alone is called", || latest(30) == main_alone)?;
        control.remove("outbound")?;
        timed(SOON, "both addresses are called again", || latest(30).len() == 2)?;
        none_failed(&traffic.calls(), 30, "while policy changed how a name is found")?;
        ensure!(!sidecar.output().contains("is not taken"), "the policy was not taken");
        Ok(())
    });
}

const NAME: &str = "hello.outside.test";
const SOON: Duration = Duration::from_secs(10);
