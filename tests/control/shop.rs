//! A shop of which all are members of a mesh: greeters behind one service, and a caller.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use support::traffic::{Calls, PORT, Traffic};
use support::{Control, Dns, Member, Mesh, Pauses, Peer, Pod, Program, Sidecar, Stack, wait_until};

/// What the caller dials, and the service that control knows.
pub(crate) const NAME: &str = "hello.shop.svc.cluster.local";

/// All of them.
pub(crate) struct Shop {
    pub(crate) dns: Dns,
    pub(crate) control: Control,
    pub(crate) greeters: Vec<Greeter>,
    pub(crate) caller: Pod,
    pub(crate) sidecar: Sidecar,
}

/// An endpoint, or one that may become one.
pub(crate) struct Greeter {
    pub(crate) pod: Pod,
    pub(crate) sidecar: Sidecar,
    _app: Program,
}

impl Shop {
    /// Opens it, with so many greeters in the service. Settings are for all sidecars; `callers` for the caller's alone.
    pub(crate) fn open(
        mesh: &Mesh,
        control: Control,
        greeters: usize,
        settings: &[(&str, &str)],
        callers: &[(&str, &str)],
    ) -> Result<Shop> {
        let dns = mesh.dns()?;
        control.service("hello", PORT)?;
        let greeters: Result<Vec<_>> = (1..=greeters)
            .map(|number| Greeter::start(mesh, &control, &format!("hello-{number}"), "hello", settings))
            .collect();
        let greeters = greeters?;
        let caller = mesh.pod("caller")?;
        let all = [settings, callers].concat();
        let sidecar = caller.member(&control, &CALLER, &all)?;
        let addresses: Vec<_> = greeters.iter().flat_map(|greeter| greeter.pod.addresses()).collect();
        dns.set(NAME, &addresses, 5)?;
        Ok(Shop {
            dns,
            control,
            greeters,
            caller,
            sidecar,
        })
    }

    /// Calls to the service at a steady rate.
    pub(crate) fn calls(&self, rate: u32, time: Duration) -> Result<Traffic> {
        Traffic::to(&self.caller, NAME, rate, time)
    }

    /// All sidecars.
    pub(crate) fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        let greeters = self.greeters.iter().map(|greeter| &greeter.sidecar);
        greeters.chain([&self.sidecar])
    }
}

impl Greeter {
    /// One whose label is `app`: `hello` is in the service.
    pub(crate) fn start(
        mesh: &Mesh,
        control: &Control,
        name: &str,
        app: &str,
        settings: &[(&str, &str)],
    ) -> Result<Greeter> {
        let pod = mesh.pod(name)?;
        let sidecar = pod.member(
            control,
            &member(app),
            &[&[("PORTUNUS_MTLS", "strict")], settings].concat(),
        )?;
        let app = Peer::greeter(&pod, Stack::Tonic, PORT, Duration::ZERO)?.program;
        Ok(Greeter {
            pod,
            sidecar,
            _app: app,
        })
    }
}

/// The caller, as control knows it.
pub(crate) const CALLER: Member<'static> = Member {
    account: "caller",
    app: "caller",
    ports: &[],
};

/// A greeter with a label.
pub(crate) fn member(app: &str) -> Member<'_> {
    Member {
        account: "hello",
        app,
        ports: &[PORT],
    }
}

/// How often a sidecar was certified.
pub(crate) fn certified(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().unwrap_or_default();
    metrics.sum("portunus_identity_certifications_total", &[("outcome", "certified")])
}

/// Nothing failed, and there were calls enough to tell.
pub(crate) fn none_failed(calls: &Calls, least: usize, when: &str) -> Result<()> {
    ensure!(calls.len() >= least, "only {} calls were made {when}", calls.len());
    let failed = calls.failed();
    ensure!(
        failed.is_empty(),
        "of {} calls {} failed {when}:{failed}",
        calls.len(),
        failed.len()
    );
    Ok(())
}

/// Waits for something, and says how long that took.
pub(crate) fn timed(patience: Duration, what: &str, condition: impl FnMut() -> bool) -> Result<Duration> {
    let began = Instant::now();
    wait_until(patience, what, condition)?;
    let took = began.elapsed();
    println!("{:>8.0} ms until {what}", took.as_secs_f64() * 1_000.0);
    Ok(took)
}

/// A second, and what the machine's pauses since then allow for: several programs have to run for it, one after the other.
pub(crate) fn a_second(pauses: &Pauses) -> Duration {
    Duration::from_secs(1) + pauses.longest() * 2
}

/// CPU seconds that a process has used so far.
pub(crate) fn cpu(program: &Program) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", program.pid()))?;
    let fields: Vec<_> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|field| field.parse::<f64>().ok())
            .unwrap_or_default()
    };
    // `utime` and `stime` (proc(5)), in hundredths.
    Ok((ticks(11) + ticks(12)) / 100.0)
}
