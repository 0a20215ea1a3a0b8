//! `injector control` and, later, `injector webhook`.

use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use portunus_injector::cluster::file::{Source, duration};
use portunus_injector::control::identity::{Files, Origin};
use portunus_injector::control::{self, Settings, log, server::Limits};
use portunus_proto::{CONTROL_ADMIN_PORT, CONTROL_NAMESPACE, CONTROL_PORT, TrustDomain};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Gives the sidecars of a Portunus mesh what they need.
#[derive(Debug, Parser)]
#[command(name = "injector", version)]
struct Injector {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Gives sidecars their identity, endpoints and policy, from a directory of manifests
    #[command(after_long_help = CONTROL)]
    Control(Box<Control>),
    /// Prints the version
    Version,
}

#[derive(Debug, Args)]
struct Control {
    /// The directory of manifests; `portunus validate DIR` says what is wrong with one
    #[arg(long, value_name = "DIR", env = "PORTUNUS_SOURCE", hide_env_values = true)]
    source: PathBuf,
    /// Control's own directory: the certificate authority is made there at first start, for control's user alone. Must
    /// be said, unless an issuer is given
    #[arg(
        long,
        value_name = "DIR",
        env = "PORTUNUS_STATE",
        hide_env_values = true,
        required_unless_present = "issuer_certificate"
    )]
    state: Option<PathBuf>,
    /// An issuer's certificate in PEM, and what is between it and the root, instead of an authority of control's own
    #[arg(
        long,
        value_name = "FILE",
        requires = "issuer_key",
        requires = "extra_root",
        conflicts_with = "state"
    )]
    issuer_certificate: Option<PathBuf>,
    /// The issuer's key in PEM
    #[arg(long, value_name = "FILE", requires = "issuer_certificate")]
    issuer_key: Option<PathBuf>,
    /// A root certificate in PEM that is trusted, too; may be given several times
    #[arg(long, value_name = "FILE")]
    extra_root: Vec<PathBuf>,
    /// The trust domain of all SPIFFE ids, such as mesh.example
    #[arg(
        long,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "PORTUNUS_TRUST_DOMAIN",
        hide_env_values = true,
        value_parser = TrustDomain::parse
    )]
    trust_domain: TrustDomain,
    /// What the names of services end in: NAME.NAMESPACE.svc.DOMAIN
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Control's own namespace: its SPIFFE id is spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/control
    #[arg(long, default_value = CONTROL_NAMESPACE)]
    namespace: String,
    /// How long certificates last, such as 24h; from 1m to 2160h. Sidecars renew at 70 %
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
    certificate_lifetime: Duration,
    /// Where sidecars are served, in gRPC over TLS; may be given several times [default: port 8080 of all addresses]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    listen: Vec<SocketAddr>,
    /// Where /live, /ready, /metrics and /source are; may be given several times [default: port 9995 of all addresses]
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    admin_listen: Vec<SocketAddr>,
    /// The form of the log
    #[arg(long, value_name = "FORM", value_enum, default_value_t)]
    log_format: log::Format,
    /// How much is logged, on standard error
    #[arg(long, value_name = "LEVEL", value_enum, default_value_t)]
    log_level: log::Level,
}

const CONTROL: &str = "\
It is given --state, or an issuer: --issuer-certificate, --issuer-key and --extra-root.

Example:
  injector control --source /etc/portunus/mesh --state /var/lib/portunus --trust-domain mesh.example

Each sidecar is then given four things:
  --control-address    where control listens, such as 10.99.0.254:8080
  --control-identity   spiffe://mesh.example/ns/portunus/sa/control (domain and namespace as here)
  --trust-bundle       the roots: roots/*.pem of the state directory, in one file
  --join-token-file    a token of `portunus token`, whose SHA-256 is in its Workload

Three settings have a variable of the environment; the flag wins. Another variable that begins with
PORTUNUS_ is warned of, and not used.

Exit status: 0 ended as asked, 1 control does not run (the log says why), 2 not understood.";

fn main() -> ExitCode {
    let control = match Injector::parse().role {
        Role::Control(control) => control,
        Role::Version => return version(),
    };
    if let Err(why) = log::begin(control.log_format, control.log_level) {
        eprintln!("control does not run: there is no thread to write the log: {why}");
        return ExitCode::FAILURE;
    }
    for name in unknown_variables(std::env::vars_os()) {
        warn!(
            variable = name,
            "this is no setting of control's in the environment; see injector control --help"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let run = async {
        let stop = CancellationToken::new();
        let ended = control::run(control.settings(), stop.clone());
        tokio::pin!(ended);
        tokio::select! {
            ended = &mut ended => return ended.map_err(anyhow::Error::from),
            stopped = stopped() => stopped?,
        }
        stop.cancel();
        Ok(ended.await?)
    };
    let done = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ended = runtime.block_on(run);
        // A disk that hangs keeps nobody.
        runtime.shutdown_timeout(PATIENCE);
        ended
    });
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!(%why, "control does not run");
            ExitCode::FAILURE
        }
    };
    portunus_logbook::flush();
    code
}

/// How long files that are being read or written are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Waits for a signal to stop.
async fn stopped() -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => info!(signal = "SIGTERM", "control was told to stop"),
        _ = interrupt.recv() => info!(signal = "SIGINT", "control was told to stop"),
    }
    Ok(())
}

fn version() -> ExitCode {
    match writeln!(std::io::stdout(), "injector {}", env!("CARGO_PKG_VERSION")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What looks like a setting in the environment and is none. Kubernetes makes variables such as
/// `PORTUNUS_CONTROL_SERVICE_HOST` and `PORTUNUS_CONTROL_PORT` for a Service named `portunus-control`: nobody's mistake.
fn unknown_variables(environment: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let names = environment.filter_map(|(name, _)| name.into_string().ok());
    let is_service_link = |name: &str| {
        let of_service = name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT");
        of_service || name.ends_with("_PORT") || name.contains("_PORT_")
    };
    let is_known = |name: &str| ["PORTUNUS_SOURCE", "PORTUNUS_STATE", "PORTUNUS_TRUST_DOMAIN"].contains(&name);
    let mut unknown: Vec<_> = names
        .filter(|name| name.starts_with("PORTUNUS_") && !is_known(name) && !is_service_link(name))
        .collect();
    unknown.sort();
    unknown
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse();
    address.map_err(|_| "it must be an address and a port, such as 127.0.0.1:8080 or [::]:8080".to_owned())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let fine = Duration::from_secs(60)..=Duration::from_secs(90 * 24 * 60 * 60);
    let lifetime = duration::parse(text).filter(|lifetime| fine.contains(lifetime));
    lifetime.ok_or_else(|| format!("expected {}, from 1m to 2160h", duration::EXPECTED))
}

impl Control {
    fn settings(self) -> Settings {
        let origin = match (self.state, self.issuer_certificate, self.issuer_key) {
            (_, Some(certificate), Some(key)) => Origin::Given { certificate, key },
            // clap has seen to it that one of them is there.
            (state, _, _) => Origin::State(state.unwrap_or_default()),
        };
        let everywhere = |given: Vec<SocketAddr>, port: u16| match given.is_empty() {
            true => vec![
                (Ipv4Addr::UNSPECIFIED, port).into(),
                (Ipv6Addr::UNSPECIFIED, port).into(),
            ],
            false => given,
        };
        Settings {
            source: Source::new(self.source),
            files: Files {
                trust_domain: self.trust_domain,
                origin,
                extra_roots: self.extra_root,
            },
            cluster_domain: self.cluster_domain.trim_matches('.').to_ascii_lowercase(),
            namespace: self.namespace,
            lifetime: self.certificate_lifetime,
            listen: everywhere(self.listen, CONTROL_PORT),
            admin_listen: everywhere(self.admin_listen, CONTROL_ADMIN_PORT),
            limits: Limits::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_the_help_is_broken_where_it_is_printed() {
        const WIDTH: usize = 100;
        let long: Vec<_> = CONTROL.lines().filter(|line| line.chars().count() > WIDTH).collect();
        assert_eq!(long, <[&str; 0]>::default());
    }

    #[test]
    fn a_variable_that_is_no_setting_is_named_and_those_of_kubernetes_are_not() {
        let names = [
            "PORTUNUS_SOURCE",
            "PORTUNUS_LISTEN",
            "PORTUNUS_CONTROL_SERVICE_HOST",
            "PORTUNUS_CONTROL_PORT_8080_TCP",
            "PATH",
        ];
        let unknown = unknown_variables(names.map(|name| (name.into(), OsString::new())).into_iter());
        assert_eq!(unknown, ["PORTUNUS_LISTEN"]);
    }

    fn parsed(arguments: &[&str]) -> Result<Settings, clap::Error> {
        let all = ["injector", "control", "--source", "mesh"].iter().chain(arguments);
        match Injector::try_parse_from(all)?.role {
            Role::Control(control) => Ok(control.settings()),
            Role::Version => panic!("control was asked for"),
        }
    }

    #[test]
    fn certificates_last_a_day_unless_it_is_said_otherwise() {
        let lifetime = |more: &[&str]| {
            let all = [&["--state", "own"], more].concat();
            parsed(&all).map(|settings| settings.lifetime).ok()
        };
        let hour = Duration::from_secs(60 * 60);
        assert_eq!(lifetime(&[]), Some(24 * hour));
        assert_eq!(lifetime(&["--certificate-lifetime", "1h"]), Some(hour));
        for wrong in ["59s", "2161h", "0", "x"] {
            assert_eq!(lifetime(&["--certificate-lifetime", wrong]), None, "{wrong}");
        }
    }

    #[test]
    fn an_issuer_is_given_with_its_key_and_its_root_and_instead_of_a_directory() {
        let all = [
            "--issuer-certificate",
            "a.pem",
            "--issuer-key",
            "b.pem",
            "--extra-root",
            "c.pem",
        ];
        let files = parsed(&all).map(|settings| settings.files).expect("nothing is missing");
        assert!(
            matches!(&files.origin, Origin::Given { certificate, key }
                if (certificate.as_os_str(), key.as_os_str()) == ("a.pem".as_ref(), "b.pem".as_ref())),
            "{files:?}"
        );
        assert_eq!(files.extra_roots, [PathBuf::from("c.pem")]);
        for wrong in [
            &all[..4],
            &all[..2],
            &all[2..],
            &[&all[..], &["--state", "own"]].concat(),
        ] {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
        let own = parsed(&["--state", "own", "--extra-root", "c.pem"]).map(|settings| settings.files);
        let own = own.expect("roots may be added to those of its own");
        assert!(matches!(&own.origin, Origin::State(directory) if directory.as_os_str() == "own"));
        assert_eq!(own.extra_roots, [PathBuf::from("c.pem")]);
    }

    #[test]
    fn an_address_to_listen_at_needs_both_halves() {
        for wrong in ["localhost:1", ":8080", "8080", "10.0.0.1"] {
            assert!(address(wrong).is_err_and(|why| why.contains("such as")), "{wrong}");
        }
        assert!(address("[::]:8080").is_ok());
    }
}
