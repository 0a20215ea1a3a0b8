//! Unmodified gRPC applications of three stacks understand each other through two sidecars, in every standard case.
//!
//! With `PORTUNUS_TEST_MTLS=1` the sidecars are members of a mesh, and nothing may be plain between them. With
//! `PORTUNUS_TEST_DIRECT=1` the same cases run with no mesh between: that is how to see whether an application or
//! the mesh is at fault. `cargo suite` never sets it.

use anyhow::{Result, ensure};
use support::{Capture, Control, Family, Members, Mesh, Peer, Pod, Sidecar, Stack, interop};

/// A test for each family of a pair.
macro_rules! pairs {
    ($($name:ident: $client:ident, $server:ident;)*) => {$(
        mod $name {
            use super::{Family, Stack, pass_every_case};

            #[test]
            fn in_every_case_over_ipv4() {
                pass_every_case(Stack::$client, Stack::$server, Family::V4);
            }

            #[test]
            fn in_every_case_over_ipv6() {
                pass_every_case(Stack::$client, Stack::$server, Family::V6);
            }
        }
    )*};
}

pairs! {
    python_is_served_by_python: Python, Python;
    python_is_served_by_go: Python, Go;
    python_is_served_by_tonic: Python, Tonic;
    go_is_served_by_python: Go, Python;
    go_is_served_by_go: Go, Go;
    go_is_served_by_tonic: Go, Tonic;
    tonic_is_served_by_python: Tonic, Python;
    tonic_is_served_by_go: Tonic, Go;
    tonic_is_served_by_tonic: Tonic, Tonic;
}

fn pass_every_case(client_stack: Stack, server_stack: Stack, family: Family) {
    support::test(|mesh| {
        let dns = mesh.dns()?;
        let (client, server) = (mesh.pod_of("client", &[family])?, mesh.pod_of("server", &[family])?);
        dns.set("server.test", &server.addresses(), 5)?;
        let way = Way::asked_for();
        let mesh = way.connect(mesh, &client, &server)?;
        let _app = Peer::start(&server, server_stack, 10000)?;

        let cases = interop::cases(client_stack, server_stack);
        interop::run(&client, client_stack, "server.test:10000", &cases)?;

        for capture in mesh.captures {
            let seen = capture.stop()?;
            let plain: Vec<_> = PLAIN.into_iter().filter(|text| seen.contains(text)).collect();
            match way {
                Way::Mtls => {
                    ensure!(seen.contains("portunus/h2"), "no TLS of the mesh's was seen");
                    ensure!(plain.is_empty(), "{plain:?} were plain on the wire");
                }
                Way::Plain | Way::Direct => ensure!(plain == PLAIN, "of {PLAIN:?} only {plain:?} would be found"),
            }
        }
        if let Some((outbound, inbound)) = mesh.sidecars {
            let carried = |sidecar: &Sidecar, name: &str| Ok::<_, anyhow::Error>(sidecar.metrics()?.sum(name, &[]));
            let least = cases.len() as f64;
            let (out, into) = (
                carried(&outbound, "grpc_client_started_total")?,
                carried(&inbound, "grpc_server_started_total")?,
            );
            ensure!(
                out >= least,
                "the client's sidecar has seen {out} calls of {least} cases: the rest went past it"
            );
            ensure!(
                into >= least,
                "the server's sidecar has seen {into} calls of {least} cases: the rest went past it"
            );
        }
        Ok(())
    });
}

/// What each pair has on the wire, if nobody hides it: how HTTP/2 begins, and messages of calls. The names of methods are
/// compressed.
const PLAIN: [&str; 3] = ["PRI * HTTP/2.0", "test status message", "test with whitespace"];

/// How the applications are connected.
#[derive(Clone, Copy)]
enum Way {
    /// By sidecars without a mesh.
    Plain,
    /// By sidecars of a mesh.
    Mtls,
    /// By nothing.
    Direct,
}

/// What is between them.
#[derive(Default)]
struct Between {
    sidecars: Option<(Sidecar, Sidecar)>,
    /// All of TCP that goes over a pod's link.
    captures: Vec<Capture>,
    _control: Option<Control>,
}

impl Way {
    fn asked_for() -> Way {
        let is_direct = std::env::var_os("PORTUNUS_TEST_DIRECT").is_some_and(|value| value == "1");
        match (is_direct, Members::are_asked_for()) {
            (true, _) => Way::Direct,
            (false, true) => Way::Mtls,
            (false, false) => Way::Plain,
        }
    }

    fn connect(self, mesh: &Mesh, client: &Pod, server: &Pod) -> Result<Between> {
        match self {
            Way::Direct => {
                eprintln!("PORTUNUS_TEST_DIRECT: no mesh is between the applications, and nothing is shown of it");
                Ok(Between::default())
            }
            Way::Plain => Ok(Between {
                // To show that what is looked for would be found.
                captures: vec![Capture::start(server, "eth0", "tcp")?],
                sidecars: Some((client.sidecar()?, server.sidecar()?)),
                ..Between::default()
            }),
            Way::Mtls => {
                // From the first word to control on.
                let captures = [client, server].map(|pod| Capture::start(pod, "eth0", "tcp"));
                let members = Members::join(mesh, client, server, &[10000], &[])?;
                Ok(Between {
                    captures: captures.into_iter().collect::<Result<_>>()?,
                    sidecars: Some((members.client, members.server)),
                    _control: Some(members.control),
                })
            }
        }
    }
}
