//! What was said, and what it means.
//!
//! A setting is a flag or an environment variable (the flag wins); `config/setting.rs` lists them all. Each is read into
//! its type here, once, and everything that is wrong is reported together.

mod cgroup;
mod otel;
mod setting;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command as Clap};
use portunus_logbook::masked;
use portunus_proto::SpiffeId;
use serde_json::{Map, Value, json};
use tracing_subscriber::filter::Targets;

pub use cgroup::Limits;
pub use value::{LogFormat, SrvName};

use crate::balance::{Algorithm, health::Thresholds};
use crate::detect::Declared;
use crate::redirect::{PROBE_PORT, Ports, Subnets};
use crate::{admin, app, control, health, http2, policy, telemetry, tls};
use otel::Otel;
use setting::{Group, PROXY, REDIRECT, Setting, unknown_variables};
use value::{
    ACCESS_LOGS, BALANCERS, HEALTH_CHECKS, LOG_FORMATS, SWITCH, Show, TrustBundle, application, bytes, duration, list,
    listen, log_level, mode, modes, number, optional, parsed, path, path_of_token, percent, protocols, service, text,
    word,
};

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// `sidecar proxy`: carry RPCs.
    Proxy(Box<Config>),
    /// `sidecar proxy --print-config`: say what was understood, as JSON, and end.
    PrintConfig(Box<Config>),
    /// `sidecar redirect`: install the pod's redirect rules, show them or remove them.
    Redirect(Redirect),
    /// `sidecar version`.
    Version,
}

/// What `sidecar proxy` was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where what the application calls arrives.
    pub outbound_listen: Vec<SocketAddr>,
    /// Where what calls the application arrives.
    pub inbound_listen: Vec<SocketAddr>,
    /// Where the operator's pages are.
    pub admin: admin::Settings,
    /// Threads that carry calls.
    pub workers: usize,
    /// Bytes that the process may use, if that is limited.
    pub memory_limit: Option<u64>,
    /// Bytes that buffered data and granted credit may take, all workers together.
    pub memory_budget: u64,
    /// What the ports of the application speak, as declared.
    pub inbound_protocols: BTreeMap<u16, Declared>,
    /// What the ports that the application calls speak, as declared.
    pub outbound_protocols: BTreeMap<u16, Declared>,
    /// Ports whose bytes are never looked at.
    pub opaque_ports: Ports,
    /// How long a client may be silent before the server is called.
    pub detect_silence: Duration,
    /// How control is reached, if there is one.
    pub control: Option<control::Settings>,
    /// What inbound ports take where control says nothing.
    pub mtls: policy::Inbound,
    /// Whether streams and tunnels are cut when a certificate ends that their connection was made with.
    pub cut_expired: bool,
    /// Which DNS servers to ask.
    pub resolv_conf: PathBuf,
    /// Hosts whose endpoints stand in SRV records.
    pub dns_srv: Vec<SrvName>,
    /// How long an answer of DNS counts at least.
    pub dns_ttl_floor: Duration,
    /// How long an answer of DNS counts at most.
    pub dns_ttl_ceiling: Duration,
    /// How an endpoint is picked.
    pub balancer: Algorithm,
    /// How long a new endpoint takes to get its whole share.
    pub slow_start: Duration,
    /// How long a connection to an endpoint may take.
    pub connect_timeout: Duration,
    /// How the health of endpoints is checked that a name has, where no policy says otherwise.
    pub health: health::Settings,
    /// Where the application's connections lead that no rule redirected.
    pub outbound_default: Option<SocketAddr>,
    /// Where the network's connections lead that no rule redirected.
    pub inbound_default: Option<SocketAddr>,
    /// The limits of HTTP/2 connections.
    pub http2: http2::Settings,
    /// How much telemetry remembers.
    pub telemetry: telemetry::Settings,
    /// Which traces begin and go on here.
    pub traces: telemetry::trace::Settings,
    /// Where spans and metrics go, if anywhere.
    pub export: telemetry::export::Settings,
    /// The form of the access log, if there is one.
    pub access_log: Option<telemetry::access::Form>,
    /// How the process stops.
    pub shutdown: app::shutdown::Settings,
    /// Which events are logged.
    pub log_level: Targets,
    /// How they are logged.
    pub log_format: LogFormat,
    /// What was understood and who said it, as `/config` shows it.
    pub understood: Value,
    /// What is odd, but not wrong enough to refuse.
    pub warnings: Vec<String>,
}

/// What `sidecar redirect` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// What to do with the rules.
    pub action: RedirectAction,
    /// The proxy's port for what the application calls.
    pub proxy_outbound: u16,
    /// The proxy's port for what calls the application.
    pub proxy_inbound: u16,
    /// The proxy's admin port.
    pub proxy_admin: u16,
    /// The user that the proxy runs as.
    pub proxy_uid: u32,
    /// Ports of the pod that are left alone.
    pub skip_inbound_ports: Ports,
    /// Ports that may be called past the proxy.
    pub skip_outbound_ports: Ports,
    /// Addresses that may be called past the proxy.
    pub skip_subnets: Subnets,
    /// What is odd, but not wrong enough to refuse.
    pub warnings: Vec<String>,
}

/// What to do with the redirect rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectAction {
    /// Put them in place; once they are, this changes nothing.
    Install,
    /// Print them as nft text (`--dry-run`).
    Print,
    /// Take them away (`--remove`).
    Remove,
}

/// Why the command line cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is not of the form that the help shows; or the help itself was asked for.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    /// Settings are wrong.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// Everything that is wrong with the settings, a sentence each.
#[derive(Debug)]
pub struct Mistakes(Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            [one] => write!(f, "a setting is wrong: {one}"),
            all => write!(f, "{} settings are wrong:\n  {}", all.len(), all.join("\n  ")),
        }
    }
}

/// Reads the command line, whose first word is the program's name, and those variables of the environment that begin with
/// `PORTUNUS_` or `OTEL_`.
pub fn read(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    environment: &BTreeMap<String, String>,
    limits: Limits,
) -> Result<Command, Refusal> {
    let matches = command_line().try_get_matches_from(args)?;
    match matches.subcommand() {
        Some(("proxy", said)) => {
            let config = Config::read(Said::new(said, environment), limits).map_err(Refusal::Mistakes)?;
            let print = said.get_flag("print-config");
            Ok(if print {
                Command::PrintConfig(Box::new(config))
            } else {
                Command::Proxy(Box::new(config))
            })
        }
        Some(("redirect", said)) => {
            let action = match (said.get_flag("dry-run"), said.get_flag("remove")) {
                (true, _) => RedirectAction::Print,
                (_, true) => RedirectAction::Remove,
                _ => RedirectAction::Install,
            };
            Redirect::read(Said::new(said, environment), action)
                .map(Command::Redirect)
                .map_err(Refusal::Mistakes)
        }
        _ => Ok(Command::Version),
    }
}

fn command_line() -> Clap {
    let proxy = Clap::new("proxy")
        .about("Carry the pod's calls: what the application calls, and what calls it")
        .long_about(
            "Carries the pod's calls: what the application calls (outbound) and what calls it (inbound).\n\n\
             The kernel must turn connections to the proxy; `sidecar redirect` installs the rules for that. \
             It must run as the user that the rules exempt (2102, or what `sidecar redirect --proxy-uid` said). Every setting \
             is a flag or an environment variable; the flag wins, and a variable that begins with PORTUNUS_ and is no setting is \
             warned of. Sizes are like 65536 (bytes), 64KiB or 1MiB, durations like 500ms, 10s or 1m30s; what may be repeated \
             may have commas between, too. `--print-config` shows what was understood.\n\n\
             SIGTERM (or a POST to /drain) lets running calls end; a second signal cuts them.\n\n\
             Exit codes: 0 ended as asked, 64 wrong settings, 70 a fault in the proxy, 71 the system refused something.",
        )
        .arg(flag("print-config", "Print as JSON what was understood, who said it and what is odd about it, and end"));
    let redirect = Clap::new("redirect")
        .about("Install the rules that turn the pod's connections to the proxy")
        .long_about(
            "Installs, in this network namespace and in one step, the nftables rules that turn connections to the proxy. \
             Needs CAP_NET_ADMIN and no other program. Doing it again changes nothing.\n\n\
             Exit codes: 0 done, 64 wrong settings, 71 the system refused something.",
        )
        .arg(flag("dry-run", "Print the rules as nft text and change nothing"))
        .arg(flag("remove", "Take the rules away").conflicts_with("dry-run"));
    Clap::new("sidecar")
        .about("The proxy beside each application of a gRPC mesh")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(proxy, PROXY))
        .subcommand(with_settings(redirect, REDIRECT))
        .subcommand(Clap::new("version").about("Print the version"))
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn with_settings(command: Clap, groups: &'static [Group]) -> Clap {
    groups.iter().fold(command, |command, (heading, settings)| {
        command.args(settings.iter().map(|setting| setting.arg(heading)))
    })
}

impl Config {
    fn read(mut said: Said<'_>, limits: Limits) -> Result<Config, Mistakes> {
        let seconds = |range: std::ops::RangeInclusive<u64>| {
            duration(Duration::from_secs(*range.start())..=Duration::from_secs(*range.end()))
        };
        let size = 1..=u64::from(u32::MAX);
        let window = 1..=u64::from(MAX_WINDOW);

        let outbound_listen = said.read("outbound-listen", listen);
        let inbound_listen = said.read("inbound-listen", listen);
        let admin_listen = said.read("admin-listen", listen);
        let workers = said.read("workers", optional(number(1..=MAX_WORKERS)));
        let memory_limit = said.read("memory-limit", optional(bytes(MIN_MEMORY..=1 << 50)));
        let memory_budget = said.read("memory-budget", optional(bytes(1 << 20..=1 << 50)));
        let collector = said.read("trace-collector", optional(text));
        let sampling = said.read("trace-sampling", optional(percent));
        let otel = Otel::read(collector.as_deref(), sampling, &mut said);
        let mut config = Config {
            outbound_listen,
            inbound_listen,
            admin: admin::Settings {
                listen: admin_listen,
                ..admin::Settings::default()
            },
            workers: workers.unwrap_or_else(|| default_workers(limits)),
            memory_limit: memory_limit.or(limits.memory),
            memory_budget: 0,
            inbound_protocols: said.read("protocol", protocols),
            outbound_protocols: said.read("outbound-protocol", protocols),
            opaque_ports: said.read("opaque-ports", parsed),
            detect_silence: said.read(
                "detect-silence",
                duration(Duration::from_millis(1)..=Duration::from_secs(60)),
            ),
            control: Control::read(&mut said),
            mtls: policy::Inbound {
                default: Some(said.read("mtls", mode)),
                ports: said.read("mtls-ports", modes),
                ..Default::default()
            },
            cut_expired: said.read("cut-expired-connections", word(SWITCH)),
            resolv_conf: said.read("resolv-conf", path),
            dns_srv: said.read("dns-srv", list(SrvName::parse)),
            dns_ttl_floor: said.read("dns-ttl-floor", seconds(1..=86_400)),
            dns_ttl_ceiling: said.read("dns-ttl-ceiling", seconds(1..=86_400)),
            balancer: said.read("balancer", word(BALANCERS)),
            slow_start: said.read("slow-start", seconds(0..=3_600)),
            connect_timeout: said.read(
                "connect-timeout",
                duration(Duration::from_millis(10)..=Duration::from_secs(60)),
            ),
            health: health::Settings {
                mode: said.read("health-check", word(HEALTH_CHECKS)),
                service: said.read("health-check-service", service),
                interval: said.read("health-check-interval", duration(health::SHORTEST..=LONGEST_CHECK)),
                timeout: said.read("health-check-timeout", duration(health::SHORTEST..=LONGEST_CHECK)),
                thresholds: Thresholds {
                    unhealthy: said.read("health-check-unhealthy-threshold", number(1..=1_000)),
                    healthy: said.read("health-check-healthy-threshold", number(1..=1_000)),
                },
            },
            outbound_default: said.read("outbound-default", optional(application)),
            inbound_default: said.read("inbound-default", optional(application)),
            http2: http2::Settings {
                max_concurrent_streams: said.read("http2-max-concurrent-streams", number(1..=1_000_000)),
                first_stream_window: said.read("http2-first-stream-window", bytes(window.clone())),
                stream_window: said.read("http2-stream-window", bytes(window.clone())),
                connection_window: said.read("http2-connection-window", bytes(DEFAULT_WINDOW..=u64::from(MAX_WINDOW))),
                stream_window_ceiling: said.read("http2-stream-window-ceiling", bytes(window.clone())),
                connection_window_ceiling: said.read("http2-connection-window-ceiling", bytes(window)),
                max_header_list_bytes: said.read("http2-max-header-list-bytes", bytes(1_024..=16 << 20)),
                max_header_fields: said.read("http2-max-header-fields", number(16..=65_536)),
                max_continuations: said.read("http2-max-continuations", number(0..=65_536)),
                max_header_block_bytes: said.read("http2-max-header-block-bytes", bytes(size)),
                header_table_bytes: said.read("http2-header-table-bytes", bytes(0..=1 << 20)),
                preface_timeout: said.read("http2-preface-timeout", seconds(1..=600)),
                headers_timeout: said.read("http2-headers-timeout", seconds(1..=600)),
                idle_timeout: said.read("http2-idle-timeout", seconds(1..=86_400)),
            },
            traces: otel.traces,
            export: otel.export,
            access_log: said.read("access-log", word(ACCESS_LOGS)),
            telemetry: telemetry::Settings {
                max_methods: said.read("max-methods", number(1..=10_000)),
            },
            shutdown: app::shutdown::Settings {
                grace_period: said.read("shutdown-grace-period", seconds(0..=86_400)),
            },
            log_level: said.read("log-level", log_level),
            log_format: said.read("log-format", word(LOG_FORMATS)),
            understood: Value::Null,
            warnings: unknown_variables(said.environment),
        };
        config.memory_budget = memory_budget.unwrap_or(config.memory_limit.map_or(DEFAULT_BUDGET, |limit| limit / 4));

        said.derived(
            "workers",
            &config.workers,
            "the cgroup's CPU limit, or one without a limit",
        );
        said.derived("memory-limit", &config.memory_limit, "the cgroup");
        said.derived(
            "memory-budget",
            &config.memory_budget,
            "the memory limit, or the default without a limit",
        );
        if config.health.timeout > config.health.interval {
            config.warnings.push(
                "--health-check-timeout is longer than --health-check-interval: an endpoint that does not answer is \
                 checked less often than that"
                    .to_owned(),
            );
        }
        config.look_for_contradictions(&mut said);
        config.understood = said.finish()?;
        config.understood["warnings"] = json!(config.warnings);
        Ok(config)
    }

    /// Settings that are good each for itself, and wrong together.
    fn look_for_contradictions(&self, said: &mut Said<'_>) {
        let listeners = [
            ("--outbound-listen", &self.outbound_listen),
            ("--inbound-listen", &self.inbound_listen),
            ("--admin-listen", &self.admin.listen),
        ];
        for (at, (name, addresses)) in listeners.iter().enumerate() {
            if addresses.is_empty() {
                said.wrong(format!("{name} must have an address"));
            }
            for (other, others) in &listeners[..at] {
                let port = addresses
                    .iter()
                    .map(SocketAddr::port)
                    .find(|port| *port != 0 && others.iter().any(|of| of.port() == *port));
                if let Some(port) = port {
                    said.wrong(format!("{other} and {name} both have port {port}: each needs its own"));
                }
            }
            if addresses.iter().any(|addr| addr.port() == PROBE_PORT) {
                said.wrong(taken_by_probe(name));
            }
        }
        let strict = self.mtls.ports.iter().find(|(_, mode)| **mode == policy::Mode::Strict);
        if self.control.is_none() && said.mistakes.is_empty() {
            let without = "there is no certificate without --control-address, so it would take nothing";
            if self.mtls.default == Some(policy::Mode::Strict) {
                said.wrong(format!("--mtls is strict, and {without}"));
            } else if let Some((port, _)) = strict {
                said.wrong(format!("port {port} is strict by --mtls-ports, and {without}"));
            }
        }
        if self.memory_limit.is_some_and(|limit| self.memory_budget > limit) {
            said.wrong("--memory-budget is more than --memory-limit or the cgroup's limit".to_owned());
        }
        if self.dns_ttl_floor > self.dns_ttl_ceiling {
            said.wrong("--dns-ttl-floor is above --dns-ttl-ceiling".to_owned());
        }
        let http2 = &self.http2;
        for (low, low_name, high, high_name) in [
            (
                http2.first_stream_window,
                "first-stream-window",
                http2.stream_window,
                "stream-window",
            ),
            (
                http2.stream_window,
                "stream-window",
                http2.stream_window_ceiling,
                "stream-window-ceiling",
            ),
            (
                http2.connection_window,
                "connection-window",
                http2.connection_window_ceiling,
                "connection-window-ceiling",
            ),
        ] {
            if low > high {
                said.wrong(format!("--http2-{low_name} is above --http2-{high_name}"));
            }
        }
        for (flag, declared) in [
            ("--protocol", &self.inbound_protocols),
            ("--outbound-protocol", &self.outbound_protocols),
        ] {
            for (port, protocol) in declared {
                if *protocol != Declared::Opaque && self.opaque_ports.contains(*port) {
                    said.wrong(format!(
                        "port {port} has a protocol by {flag} and is opaque by --opaque-ports"
                    ));
                }
            }
        }
    }
}

/// The settings of control, which hang together: all of them, or none.
struct Control;

impl Control {
    fn read(said: &mut Said<'_>) -> Option<control::Settings> {
        let before = said.mistakes.len();
        let addresses = said.read("control-address", list(parsed::<control::Address>));
        let identity = said.read("control-identity", optional(parsed::<SpiffeId>));
        let before_bundle = said.mistakes.len();
        let bundle = said.read("trust-bundle", optional(TrustBundle::read));
        let after_bundle = said.mistakes.len();
        let join_token = said.read("join-token-file", optional(path_of_token));
        // A token may come later, so it is no mistake of its own; but whoever mends the one wants to know of the other.
        let missing = join_token.iter().find(|file| matches!(file.try_exists(), Ok(false)));
        if let (true, Some(file)) = (after_bundle > before_bundle, missing) {
            said.adds_to_last(format!(
                "; and --join-token-file {file:?} is not there (that alone is no mistake: it may come later)"
            ));
        }
        if said.mistakes.len() > before {
            return None;
        }
        let others = [
            ("--control-identity", identity.is_some()),
            ("--trust-bundle", bundle.is_some()),
            ("--join-token-file", join_token.is_some()),
        ];
        let wants = !addresses.is_empty();
        for (flag, _) in others.iter().filter(|(_, is_said)| *is_said != wants) {
            said.wrong(if wants {
                format!("--control-address is said, so {flag} must be too")
            } else {
                format!("{flag} is said, and --control-address is not")
            });
        }
        let (identity, roots) = (identity?, bundle?.roots);
        let domain = identity.trust_domain().parse().ok()?;
        if let Err(why) = tls::Bundle::new(domain, &roots) {
            said.wrong(format!("--trust-bundle cannot be used: {why}"));
        }
        wants.then(|| control::Settings {
            join_token,
            ..control::Settings::new(addresses, identity, roots)
        })
    }
}

impl Redirect {
    fn read(mut said: Said<'_>, action: RedirectAction) -> Result<Redirect, Mistakes> {
        let port = || number(1..=u16::MAX);
        let redirect = Redirect {
            action,
            proxy_outbound: said.read("proxy-outbound", port()),
            proxy_inbound: said.read("proxy-inbound", port()),
            proxy_admin: said.read("proxy-admin", port()),
            proxy_uid: said.read("proxy-uid", number(1..=u32::MAX)),
            skip_inbound_ports: said.read("skip-inbound-ports", parsed),
            skip_outbound_ports: said.read("skip-outbound-ports", parsed),
            skip_subnets: said.read("skip-subnets", parsed),
            warnings: unknown_variables(said.environment),
        };
        let Redirect {
            proxy_outbound: outbound,
            proxy_inbound: inbound,
            proxy_admin: admin,
            ..
        } = redirect;
        if outbound == inbound || inbound == admin || outbound == admin {
            said.wrong("--proxy-outbound, --proxy-inbound and --proxy-admin must be three different ports".to_owned());
        }
        for (name, port) in [
            ("--proxy-outbound", outbound),
            ("--proxy-inbound", inbound),
            ("--proxy-admin", admin),
        ] {
            if port == PROBE_PORT {
                said.wrong(taken_by_probe(name));
            }
        }
        said.finish()?;
        Ok(redirect)
    }
}

fn taken_by_probe(name: &str) -> String {
    format!("{name} has port {PROBE_PORT}, by which the proxy sees that the redirect rules are there: take another")
}

/// The largest window of HTTP/2 (RFC 9113, 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

/// What every connection may send from the start; it cannot be lowered (RFC 9113, 6.9.2).
const DEFAULT_WINDOW: u64 = 65_535;

const MAX_WORKERS: usize = 256;

/// The longest that a policy can say, too.
const LONGEST_CHECK: Duration = Duration::from_secs(86_400);

/// Less than this, and the process would not start.
const MIN_MEMORY: u64 = 8 << 20;

/// The budget of memory where there is no limit to take a quarter of.
const DEFAULT_BUDGET: u64 = 256 << 20;

fn default_workers(limits: Limits) -> usize {
    limits
        .cpus
        .map_or(1, |cpus| (cpus.ceil() as usize).clamp(1, MAX_WORKERS))
}

/// What was said, as it is being understood.
struct Said<'a> {
    matches: &'a ArgMatches,
    environment: &'a BTreeMap<String, String>,
    mistakes: Vec<String>,
    settings: Map<String, Value>,
    by: Map<String, Value>,
}

impl<'a> Said<'a> {
    fn new(matches: &'a ArgMatches, environment: &'a BTreeMap<String, String>) -> Said<'a> {
        Said {
            matches,
            environment,
            mistakes: Vec::new(),
            settings: Map::new(),
            by: Map::new(),
        }
    }

    /// The setting of this flag. A mistake is noted, and the default stands in until all mistakes are known.
    fn read<T: Show>(&mut self, flag: &'static str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let setting = [PROXY, REDIRECT]
            .into_iter()
            .flatten()
            .flat_map(|(_, all)| *all)
            .find(|of| of.flag == flag);
        let setting = setting.expect("only settings of the table are read");
        let (text, by) = self.text(setting);
        let meaning = parse(&text).unwrap_or_else(|why| {
            self.wrong(format!("{} is {text:?}: {why}", by.as_deref().unwrap_or(flag)));
            parse(setting.default).expect("every default is a good value: the tests read them all")
        });
        if let Some(by) = by {
            self.by.insert(flag.to_owned(), json!(by));
        }
        self.settings.insert(flag.to_owned(), meaning.show());
        meaning
    }

    /// The text, and who said it if anybody did. An empty variable says nothing: templates leave such behind.
    fn text(&self, setting: &Setting) -> (String, Option<String>) {
        if self.matches.value_source(setting.flag) == Some(ValueSource::CommandLine) {
            let texts: Vec<_> = self
                .matches
                .get_many::<String>(setting.flag)
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect();
            return (texts.join(","), Some(format!("--{}", setting.flag)));
        }
        let variable = setting.variable();
        match self.environment.get(&variable).map(|text| text.trim()) {
            Some(text) if !text.is_empty() => (text.to_owned(), Some(variable)),
            _ => (setting.default.to_owned(), None),
        }
    }

    /// A value that follows from others unless it was said.
    fn derived(&mut self, flag: &str, value: &impl Show, from: &str) {
        self.settings.insert(flag.to_owned(), value.show());
        self.by.entry(flag).or_insert_with(|| json!(from));
    }

    /// Notes a mistake, without what may be a token or a key that stands in the wrong place.
    fn wrong(&mut self, mistake: String) {
        self.mistakes.push(masked(&mistake).into_owned());
    }

    /// Says more of the mistake that was noted last.
    fn adds_to_last(&mut self, more: String) {
        if let Some(mistake) = self.mistakes.last_mut() {
            mistake.push_str(&masked(&more));
        }
    }

    fn finish(self) -> Result<Value, Mistakes> {
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }
        Ok(json!({ "version": env!("CARGO_PKG_VERSION"), "settings": self.settings, "said_by": self.by }))
    }
}

#[cfg(test)]
mod tests;
