//! Members of a mesh whose applications are those of others, behind one service, and a caller with mTLS before it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;
use support::traffic::PORT;
use support::{Control, Dns, Family, Member, Mesh, Peer, Pod, Sidecar, Stack, nghttpd, wait_until};

/// What callers dial, and the service that control knows.
pub(crate) const NAME: &str = "hello.shop.svc.cluster.local";
/// Of whatever comes to be sooner or later.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const CHECKS: &str = "portunus_health_checks_total";

/// All of them.
pub(crate) struct Shop {
    pub(crate) greeters: Vec<Greeter>,
    pub(crate) caller: Pod,
    /// The caller's sidecar.
    pub(crate) sidecar: Sidecar,
    _dns: Dns,
    _control: Control,
}

/// An endpoint.
pub(crate) struct Greeter {
    pub(crate) pod: Pod,
    pub(crate) app: Peer,
    pub(crate) sidecar: Sidecar,
}

/// What runs in an endpoint's pod.
#[derive(Clone, Copy)]
pub(crate) enum App {
    /// A greeter with its stack's own health service.
    Greeter(Stack),
    /// One without.
    GreeterWithoutHealth(Stack),
    /// One whose health service answers with this status.
    GreeterThatAnswersChecksWith(Stack, u8),
    /// The server of the interoperability tests, which greets nobody; grpc-go's has no health service.
    Interop(Stack),
    /// A server of web pages: whatever it is asked for that is gRPC's, it answers 404.
    Web,
}

impl Shop {
    /// Opens it: a greeter for each of `apps`, strict about mTLS, called in turns however slow it is; `health_check` is what
    /// the policy of the service says.
    pub(crate) fn open(mesh: &Mesh, health_check: &str, settings: &[(&str, &str)], apps: &[App]) -> Result<Shop> {
        let dns = mesh.dns()?;
        let control = mesh.control(&[])?;
        control.service("hello", PORT)?;
        control.apply(
            "policy",
            &format!(
                "apiVersion: portunus.dev/v1alpha1\nkind: OutboundPolicy\nmetadata: {{name: hello, namespace: shop}}\n\
                 spec:\n  targetRefs: [{{kind: Service, name: hello}}]\n  healthCheck: {{{health_check}}}\n  \
                 balancer: {{algorithm: RoundRobin}}\n"
            ),
        )?;
        let greeters: Result<Vec<_>> = apps
            .iter()
            .enumerate()
            .map(|(at, app)| Greeter::start(mesh, &control, &format!("hello-{}", at + 1), *app))
            .collect();
        let greeters = greeters?;
        let addresses: Vec<_> = greeters.iter().flat_map(|greeter| greeter.pod.addresses()).collect();
        dns.set(NAME, &addresses, 5)?;
        // One family: each greeter is one endpoint.
        let caller = mesh.pod_of("caller", &[Family::V4])?;
        let sidecar = caller.member(&control, &CALLER, settings)?;
        Ok(Shop {
            greeters,
            caller,
            sidecar,
            _dns: dns,
            _control: control,
        })
    }

    /// What the caller's sidecar says of an endpoint of the service: `ready`, `unhealthy`, ...
    pub(crate) fn state(&self, greeter: &Greeter) -> Result<String> {
        let views: Vec<View> = serde_json::from_str(&self.sidecar.admin("/endpoints")?.body)?;
        let addr = greeter.pod.at(Family::V4, PORT)?;
        let mut own = views.into_iter().filter(|view| view.service.starts_with(NAME));
        Ok(own
            .find(|view| view.addr == addr)
            .map(|view| view.state)
            .unwrap_or_default())
    }

    /// Waits until that is so.
    pub(crate) fn until(&self, greeter: &Greeter, state: &str) -> Result<()> {
        let what = format!("{} is {state}", greeter.pod.name());
        wait_until(PATIENCE, &what, || self.state(greeter).is_ok_and(|now| now == state))
    }

    /// How many health checks of the caller's sidecar have come out so.
    pub(crate) fn checks(&self, outcome: &str) -> f64 {
        let metrics = self.sidecar.metrics().unwrap_or_default();
        metrics.sum(CHECKS, &[("outcome", outcome)])
    }

    /// How many have come out in each way: of one scrape, so that none ends between two.
    pub(crate) fn outcomes(&self) -> Result<BTreeMap<String, f64>> {
        Ok(self.sidecar.metrics()?.by_label(CHECKS, "outcome"))
    }

    /// How many endpoints the caller's sidecar has ejected for this reason.
    pub(crate) fn ejections(&self, reason: &str) -> Result<f64> {
        let metrics = self.sidecar.metrics()?;
        Ok(metrics.sum("portunus_ejections_total", &[("reason", reason)]))
    }
}

impl Greeter {
    fn start(mesh: &Mesh, control: &Control, name: &str, app: App) -> Result<Greeter> {
        let pod = mesh.pod(name)?;
        let member = Member {
            account: "hello",
            app: "hello",
            ports: &[PORT],
        };
        let sidecar = pod.member(control, &member, &[("PORTUNUS_MTLS", "strict")])?;
        let app = app.start(&pod)?;
        Ok(Greeter { pod, app, sidecar })
    }

    /// How many health checks of a kind its own sidecar has seen begin.
    pub(crate) fn heard(&self, method: &str) -> Result<f64> {
        self.began(&[("grpc_service", "grpc.health.v1.Health"), ("grpc_method", method)])
    }

    /// How many times its own sidecar has seen it asked for a greeting.
    pub(crate) fn calls(&self) -> Result<f64> {
        self.began(&[("grpc_service", "helloworld.Greeter")])
    }

    fn began(&self, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.sidecar.metrics()?.sum("grpc_server_started_total", labels))
    }

    /// All that came here, health checks too, was in mTLS, and from our caller.
    pub(crate) fn has_seen_mtls_alone(&self) -> Result<()> {
        let metrics = self.sidecar.metrics()?;
        let came = |labels: &[(&str, &str)]| {
            let labels = [&[("direction", "inbound")], labels].concat();
            metrics.sum("portunus_requests_total", &labels)
        };
        let caller = Control::id("caller");
        let (proven, all) = (came(&[("tls", "true"), ("peer_identity", &caller)]), came(&[]));
        ensure!(
            all > 0.0 && proven == all,
            "of {all} requests to {} {proven} were the caller's, in mTLS",
            self.pod.name()
        );
        Ok(())
    }
}

impl App {
    fn start(self, pod: &Pod) -> Result<Peer> {
        match self {
            App::Greeter(stack) => Peer::greeter(pod, stack, PORT, Duration::ZERO),
            App::GreeterWithoutHealth(stack) => Peer::greeter_without_health(pod, stack, PORT),
            App::GreeterThatAnswersChecksWith(stack, code) => {
                Peer::greeter_that_answers_checks_with(pod, stack, PORT, code)
            }
            App::Interop(stack) => Peer::start(pod, stack, PORT),
            App::Web => nghttpd::start(pod, PORT).map(|program| Peer { program }),
        }
    }
}

/// An endpoint as `/endpoints` shows it.
#[derive(Deserialize)]
struct View {
    service: String,
    addr: SocketAddr,
    state: String,
}

const CALLER: Member<'static> = Member {
    account: "caller",
    app: "caller",
    ports: &[],
};
