//! The pods of the demo, and what runs in them.

use std::{fmt::Write as _, fs::File, io::Read, net::IpAddr, time::Duration};

use anyhow::Result;
use support::{Control, Dns, Family, Member, Mesh, Peer, Pod, Program, Sidecar, Stack, peer};

use crate::traces::Traces;

/// All of it; gone when it drops.
pub(crate) struct Pods {
    pub(crate) callers: Vec<Caller>,
    pub(crate) steady: Greeter,
    /// The one that becomes slow.
    pub(crate) slow: Greeter,
    /// The one whose health service says NOT_SERVING.
    pub(crate) unwell: Greeter,
    /// The one that is killed.
    pub(crate) killed: Greeter,
    pub(crate) traces: Traces,
    waiting: Vec<(Pod, Stack, Sidecar)>,
    _sidecars: Vec<Sidecar>,
    callers_sidecars: Vec<Sidecar>,
    control: Control,
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
    pub(crate) fn start(jaeger: bool) -> Result<Pods> {
        let mesh = Mesh::new()?;
        let dns = mesh.dns()?;
        let collector = mesh.pod(if jaeger { "jaeger" } else { "collector" })?;
        let traces = Traces::start(&collector, jaeger)?;
        let control = mesh.control(&[])?;
        control.apply("greeter", POLICY)?;
        let join = |pod: &Pod, member: &Member<'_>, families: &[Family]| {
            let settings = [
                ("PORTUNUS_TRACE_COLLECTOR", Traces::address(&collector, families)?),
                ("OTEL_SERVICE_NAME", pod.name().to_string()),
            ];
            pod.member(
                &control,
                member,
                &settings.each_ref().map(|(name, value)| (*name, value.as_str())),
            )
        };
        let mut sidecars = Vec::new();
        let mut greeter = |name: &str, stack| -> Result<Greeter> {
            let pod = mesh.pod(name)?;
            let member = Member {
                account: "greeter",
                app: "greeter",
                ports: &[PORT],
            };
            sidecars.push(join(&pod, &member, &Family::ALL)?);
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
        let unwell = greeter("greeter-3", Stack::Tonic)?;
        let killed = greeter("greeter-4", Stack::Python)?;
        let addresses: Vec<IpAddr> = [&steady, &slow, &unwell, &killed]
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
            let member = Member {
                account: "caller",
                app: "caller",
                ports: &[],
            };
            let sidecar = join(&pod, &member, &[family])?;
            waiting.push((pod, stack, sidecar));
        }
        Ok(Pods {
            callers: Vec::new(),
            steady,
            slow,
            unwell,
            killed,
            traces,
            waiting,
            _sidecars: sidecars,
            callers_sidecars: Vec::new(),
            control,
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
            self.callers_sidecars.push(sidecar);
        }
        Ok(())
    }

    pub(crate) fn greeters(&self) -> [&Greeter; 4] {
        [&self.steady, &self.slow, &self.unwell, &self.killed]
    }

    /// How many calls the callers' sidecars have sent in mTLS, and how many in plain.
    pub(crate) fn protected(&self) -> Result<(f64, f64)> {
        let (mut mtls, mut plain) = (0.0, 0.0);
        for sidecar in &self.callers_sidecars {
            let metrics = sidecar.metrics()?;
            let sum = |tls| metrics.sum("portunus_requests_total", &[("direction", "outbound"), ("tls", tls)]);
            mtls += sum("true");
            plain += sum("false");
        }
        Ok((mtls, plain))
    }

    /// What is going to be seen.
    pub(crate) fn story(&self, slow_at: Duration, unwell_at: Duration, kill_at: Duration) -> String {
        format!(
            "Each caller makes {RATE} calls a second on one connection to {NAME}:{PORT}.\n\
             caller-v4 (python) has only an IPv4 address, caller-v6 (tonic) only an IPv6 one. Each greeter works {} ms on a\n\
             call. At {} s {} becomes ten times slower; at {} s the health service of {} says NOT_SERVING; at\n\
             {} s {} is killed (SIGKILL), while DNS and control go on naming it. Control has given each sidecar a\n\
             certificate, and calls between them are mTLS, since a policy says so. No application knows of any of this: the\n\
             kernel leads their connections to the sidecars.",
            WORK.as_millis(),
            slow_at.as_secs(),
            self.slow.name,
            unwell_at.as_secs(),
            self.unwell.name,
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
        let greeters = self.greeters().map(|greeter| greeter.name.as_str());
        for pod in ["caller-v4", "caller-v6"]
            .into_iter()
            .chain(greeters)
            .chain(["control", "dns"])
        {
            let _ = writeln!(text, "  ip netns exec {} bash", namespace(pod));
        }
        let _ = writeln!(
            text,
            "In a pod of an application, `curl -s localhost:4191/metrics` shows what its sidecar counts, and"
        );
        let _ = write!(
            text,
            "`nft list ruleset` the rules that lead to it. Control reads its manifests in {}:\n\
             change one, and see. The programs' output: {}",
            self.control.source().display(),
            self.mesh.folder().display()
        );
        if let Traces::Jaeger(_) = self.traces {
            let _ = write!(
                text,
                "\nJaeger has the traces: ip netns exec {} curl -s 'localhost:16686/api/traces?service=caller-v4&limit=1'",
                namespace("jaeger")
            );
        }
        text
    }
}

impl Greeter {
    /// When its health service turned to NOT_SERVING, in seconds of the epoch.
    pub(crate) fn said_not_serving(&self) -> Option<f64> {
        let said = self.program.output();
        let mut lines = said
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.find(|line| line["says"] == "NOT_SERVING")?["at"].as_f64()
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

/// What the mesh is told of the greeters, beside their workloads.
const POLICY: &str = r#"# Who is a greeter, what greeters accept, and how they are called.
apiVersion: v1
kind: Service
metadata: {name: greeter, namespace: shop}
spec:
  clusterIP: None
  selector: {app: greeter}
  ports: [{name: grpc, port: 50051}]
---
apiVersion: portunus.dev/v1alpha1
kind: InboundPolicy
metadata: {name: greeters, namespace: shop}
spec:
  selector: {matchLabels: {app: greeter}}
  mtls: {mode: strict}
---
apiVersion: portunus.dev/v1alpha1
kind: OutboundPolicy
metadata: {name: greeter, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: greeter}]
  healthCheck: {mode: Check, interval: 1s}
"#;
/// How often the greeters are asked for their health, by that policy.
pub(crate) const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

const NAME: &str = "greeter.shop.svc.cluster.local";
const PORT: u16 = 50051;
const RATE: u32 = 100;
const WORK: Duration = Duration::from_millis(10);
const A_DAY: Duration = Duration::from_secs(86_400);
