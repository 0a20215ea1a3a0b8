//! The pods of the demo, and what runs in them.

use std::{fmt::Write as _, fs::File, io::Read, net::IpAddr, time::Duration};

use anyhow::Result;
use support::{Dns, Family, Mesh, Peer, Pod, Program, Sidecar, Stack, peer};

/// All of it; gone when it drops.
pub(crate) struct Pods {
    pub(crate) callers: Vec<Caller>,
    pub(crate) steady: Greeter,
    /// The one that becomes slow.
    pub(crate) slow: Greeter,
    /// The one that is killed.
    pub(crate) killed: Greeter,
    waiting: Vec<(Pod, Stack, Sidecar)>,
    sidecars: Vec<Sidecar>,
    _dns: Dns,
    /// Last: the pods in it end first.
    pub(crate) mesh: Mesh,
}

/// A greeter in its pod.
pub(crate) struct Greeter {
    pub(crate) name: String,
    pub(crate) stack: Stack,
    pub(crate) program: Program,
    /// What has happened to it.
    pub(crate) note: String,
    pod: Pod,
}

/// A caller in its pod.
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) stack: Stack,
    pub(crate) program: Program,
    output: File,
    unfinished: Vec<u8>,
}

impl Pods {
    pub(crate) fn start() -> Result<Pods> {
        let mesh = Mesh::new()?;
        let dns = mesh.dns()?;
        let mut sidecars = Vec::new();
        let mut greeter = |name: &str, stack| -> Result<Greeter> {
            let pod = mesh.pod(name)?;
            sidecars.push(pod.sidecar()?);
            let program = Peer::greeter(&pod, stack, PORT, WORK)?.program;
            Ok(Greeter {
                name: name.to_string(),
                stack,
                program,
                note: String::new(),
                pod,
            })
        };
        let steady = greeter("greeter-1", Stack::Python)?;
        let slow = greeter("greeter-2", Stack::Tonic)?;
        let killed = greeter("greeter-3", Stack::Python)?;
        let addresses: Vec<IpAddr> = [&steady, &slow, &killed]
            .iter()
            .flat_map(|greeter| greeter.pod.addresses())
            .collect();
        dns.set(NAME, &addresses, 5)?;

        let mut waiting = Vec::new();
        for (name, family, stack) in [
            ("caller-v4", Family::V4, Stack::Python),
            ("caller-v6", Family::V6, Stack::Tonic),
        ] {
            let pod = mesh.pod_of(name, &[family])?;
            let sidecar = pod.sidecar()?;
            waiting.push((pod, stack, sidecar));
        }
        Ok(Pods {
            callers: Vec::new(),
            steady,
            slow,
            killed,
            waiting,
            sidecars,
            _dns: dns,
            mesh,
        })
    }

    /// The callers begin.
    pub(crate) fn call(&mut self) -> Result<()> {
        for (pod, stack, sidecar) in self.waiting.drain(..) {
            let program = peer::caller(&pod, stack, &format!("{NAME}:{PORT}"), RATE, A_DAY)?;
            let output = File::open(program.log())?;
            self.callers.push(Caller {
                name: pod.name().to_string(),
                stack,
                program,
                output,
                unfinished: Vec::new(),
            });
            self.sidecars.push(sidecar);
        }
        Ok(())
    }

    pub(crate) fn greeters(&self) -> [&Greeter; 3] {
        [&self.steady, &self.slow, &self.killed]
    }

    /// What is going to be seen.
    pub(crate) fn story(&self, slow_at: Duration, kill_at: Duration) -> String {
        format!(
            "Each caller makes {RATE} calls a second on one connection to {NAME}:{PORT}. caller-v4 (python) has only an \
             IPv4\naddress, caller-v6 (tonic) only an IPv6 one. Each greeter works {} ms on a call. At {} s {} becomes ten\n\
             times slower; at {} s {} is killed (SIGKILL), while the DNS server goes on naming it. No application\n\
             knows of any of this: the kernel leads their connections to the sidecars.",
            WORK.as_millis(),
            slow_at.as_secs(),
            self.slow.name,
            kill_at.as_secs(),
            self.killed.name
        )
    }

    /// How to enter a pod.
    pub(crate) fn directions(&self) -> String {
        let namespace = |pod: &str| {
            let all = support::netns::all();
            all.into_iter()
                .find(|name| name.ends_with(pod))
                .unwrap_or_else(|| pod.to_string())
        };
        let mut text = String::new();
        for pod in ["caller-v4", "caller-v6", "greeter-1", "greeter-2", "greeter-3", "dns"] {
            let _ = writeln!(text, "  ip netns exec {} bash", namespace(pod));
        }
        let _ = writeln!(
            text,
            "In a pod, `curl -s localhost:4191/metrics` shows what its sidecar counts, and"
        );
        let _ = write!(
            text,
            "`nft list ruleset` the rules that lead to it. The programs' output: {}",
            self.mesh.folder().display()
        );
        text
    }
}

impl Caller {
    /// What it wrote since it was last asked, in whole lines.
    pub(crate) fn new_lines(&mut self) -> Result<Vec<String>> {
        self.output.read_to_end(&mut self.unfinished)?;
        let Some(end) = self.unfinished.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let whole: Vec<_> = self.unfinished.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(ToString::to_string)
            .collect())
    }
}

const NAME: &str = "greeter.test";
const PORT: u16 = 50051;
const RATE: u32 = 100;
const WORK: Duration = Duration::from_millis(10);
const A_DAY: Duration = Duration::from_secs(86_400);
