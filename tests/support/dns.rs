//! A real DNS server, CoreDNS, whose answers a test changes as it goes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::{Pod, Program, User, in_netns, tools, wait_until};

/// The server that the pods of a mesh ask. Every name is its to answer: what no test has set does not exist.
#[derive(Debug)]
pub struct Dns {
    pod: Pod,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    serial: u32,
    records: BTreeMap<String, Vec<String>>,
    broken: Vec<String>,
    program: Option<Program>,
    /// What earlier runs of the server logged.
    logged: String,
}

/// A record of a service: where an instance is, and which to prefer.
#[derive(Debug, Clone, Copy)]
pub struct Srv<'a> {
    /// Lower is asked first.
    pub priority: u16,
    /// Of equal priority: the share.
    pub weight: u16,
    /// Where it listens.
    pub port: u16,
    /// A name with addresses.
    pub target: &'a str,
}

impl Dns {
    pub(crate) fn start(pod: Pod) -> Result<Dns> {
        let state = State {
            serial: 0,
            records: BTreeMap::new(),
            broken: Vec::new(),
            program: None,
            logged: String::new(),
        };
        let dns = Dns {
            pod,
            state: Mutex::new(state),
        };
        dns.restart(&mut dns.state.lock())?;
        Ok(dns)
    }

    /// The pod that it runs in, to cut off or to capture.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// A name's addresses from now on; none of a family means that the name has none of it.
    pub fn set(&self, name: &str, addresses: &[IpAddr], ttl: u32) -> Result<()> {
        let records = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => format!("{ttl} IN A {v4}"),
            IpAddr::V6(v6) => format!("{ttl} IN AAAA {v6}"),
        });
        self.publish(name, records.collect())
    }

    /// A name's instances from now on, such as `_grpc._tcp.greeter.test`.
    pub fn set_srv(&self, name: &str, instances: &[Srv<'_>], ttl: u32) -> Result<()> {
        let records = instances.iter().map(|srv| {
            format!(
                "{ttl} IN SRV {} {} {} {}.",
                srv.priority,
                srv.weight,
                srv.port,
                srv.target.trim_end_matches('.')
            )
        });
        self.publish(name, records.collect())
    }

    /// From now on the name does not exist (NXDOMAIN).
    pub fn remove(&self, name: &str) -> Result<()> {
        self.publish(name, Vec::new())
    }

    /// From now on the answer for the name is SERVFAIL.
    pub fn break_name(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.broken.push(absolute(name));
        self.restart(&mut state)
    }

    /// Ends [`Dns::break_name`].
    pub fn mend_name(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        state.broken.retain(|broken| *broken != absolute(name));
        self.restart(&mut state)
    }

    /// From now on nothing is answered at all.
    pub fn fall_silent(&self) -> Result<()> {
        self.state.lock().program()?.pause()
    }

    /// Ends [`Dns::fall_silent`].
    pub fn speak(&self) -> Result<()> {
        self.state.lock().program()?.resume()
    }

    /// How many questions for a name it has heard, of every type.
    pub fn questions(&self, name: &str) -> usize {
        let state = self.state.lock();
        let now = state.program.as_ref().map(Program::output).unwrap_or_default();
        let asked = format!(" {} question", absolute(name));
        state
            .logged
            .lines()
            .chain(now.lines())
            .filter(|line| line.contains(&asked))
            .count()
    }

    fn publish(&self, name: &str, records: Vec<String>) -> Result<()> {
        let mut state = self.state.lock();
        if records.is_empty() {
            state.records.remove(&absolute(name));
        } else {
            state.records.insert(absolute(name), records);
        }
        self.write_zone(&mut state)?;
        self.wait_for_serial(state.serial)
    }

    fn restart(&self, state: &mut State) -> Result<()> {
        if let Some(mut old) = state.program.take() {
            old.kill()?;
            state.logged += &old.output();
        }
        self.write_zone(state)?;
        let corefile = self.pod.folder().join("Corefile");
        fs::write(&corefile, self.corefile(state))?;
        let mut command = self.pod.command(User::Root, tools::go("coredns")?);
        command.arg("-conf").arg(&corefile);
        state.program = Some(self.pod.start("coredns", command)?);
        self.wait_for_serial(state.serial)
    }

    fn corefile(&self, state: &State) -> String {
        let broken = state.broken.iter().map(|name| {
            let pattern = name.replace('.', "\\.");
            format!("    template ANY ANY {{\n        match ^{pattern}$\n        rcode SERVFAIL\n        fallthrough\n    }}\n")
        });
        format!(
            ".:53 {{\n    log . \"{{type}} {{name}} question\"\n    errors\n{}    file {} . {{\n        reload 50ms\n    }}\n}}\n",
            broken.collect::<String>(),
            self.zone_file().display()
        )
    }

    fn write_zone(&self, state: &mut State) -> Result<()> {
        state.serial += 1;
        let serial = state.serial;
        let mut zone = format!(
            "$ORIGIN .\n@ 1 IN SOA ns.dns. admin.dns. {serial} 3600 600 86400 1\n@ 1 IN NS ns.dns.\n\
             ns.dns. 1 IN A {}\n{} 1 IN A 127.0.0.1\n",
            crate::Family::V4.address(53),
            witness(serial)
        );
        for (name, records) in &state.records {
            for record in records {
                let _ = writeln!(zone, "{name} {record}");
            }
        }
        // Renamed into place: the server never reads half a zone.
        let draft = self.zone_file().with_extension("draft");
        fs::write(&draft, zone)?;
        fs::rename(&draft, self.zone_file()).context("cannot publish a zone")
    }

    fn wait_for_serial(&self, serial: u32) -> Result<()> {
        wait_until(
            Duration::from_secs(20),
            "CoreDNS answers from the zone just written",
            || in_netns(&self.pod, || exists(&witness(serial))).is_ok_and(|answered| answered.unwrap_or(false)),
        )
    }

    fn zone_file(&self) -> std::path::PathBuf {
        self.pod.folder().join("zone")
    }
}

impl State {
    fn program(&self) -> Result<&Program> {
        self.program.as_ref().context("CoreDNS is not running")
    }
}

/// A name that only the zone of this serial has.
fn witness(serial: u32) -> String {
    format!("serial-{serial}.dns.")
}

fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.'))
}

/// Asks the server of this namespace for an A record (RFC 1035, 4).
fn exists(name: &str) -> std::io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.trim_end_matches('.').split('.') {
        question.push(label.len().try_into().map_err(std::io::Error::other)?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    socket.send_to(&question, (Ipv4Addr::LOCALHOST, 53))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    Ok(length >= 12 && answer[3] & 0xf == 0 && (answer[6], answer[7]) != (0, 0))
}
