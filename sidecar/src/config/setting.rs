//! Every setting there is: its flag, its default, what it does. The environment variable follows from the flag.

use std::collections::BTreeMap;

use clap::{Arg, ArgAction};

/// One setting.
#[derive(Debug)]
pub(super) struct Setting {
    /// The flag without its dashes.
    pub(super) flag: &'static str,
    /// What stands for the value in the help.
    value: &'static str,
    /// The value when nothing is said; empty where that means something else, which `help` then says.
    pub(super) default: &'static str,
    help: &'static str,
    /// Whether the flag may be repeated.
    list: bool,
}

const fn one(flag: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        flag,
        value,
        default,
        help,
        list: false,
    }
}

const fn many(flag: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting {
        flag,
        value,
        default,
        help,
        list: true,
    }
}

impl Setting {
    /// The environment variable that says the same as the flag.
    pub(super) fn variable(&self) -> String {
        format!("PORTUNUS_{}", self.flag.to_uppercase().replace('-', "_"))
    }

    /// The flag as clap takes it. clap sees texts only: what they mean is decided once all are known.
    pub(super) fn arg(&self, heading: &'static str) -> Arg {
        let mut help = format!("{} [env: {}]", self.help, self.variable());
        if !self.default.is_empty() {
            help.push_str(&format!(" [default: {}]", self.default));
        }
        let action = if self.list { ArgAction::Append } else { ArgAction::Set };
        Arg::new(self.flag)
            .long(self.flag)
            .value_name(self.value)
            .help(help)
            .help_heading(heading)
            .action(action)
    }
}

/// A group of settings under its heading.
pub(super) type Group = (&'static str, &'static [Setting]);

/// What `sidecar proxy` can be told.
pub(super) const PROXY: &[Group] = &[
    (
        "Listening",
        &[
            many(
                "outbound-listen",
                "ADDRESS:PORT",
                "127.0.0.1:4140,[::1]:4140",
                "Where the application's own calls arrive: the kernel turns them to loopback",
            ),
            many(
                "inbound-listen",
                "ADDRESS:PORT",
                "0.0.0.0:4143,[::]:4143",
                "Where calls to the application arrive: the kernel turns them to the pod's address",
            ),
            many(
                "admin-listen",
                "ADDRESS:PORT",
                "0.0.0.0:4191,[::]:4191",
                "Where /live, /ready and /metrics are; and /config, /endpoints and /drain for loopback alone",
            ),
        ],
    ),
    (
        "Without redirect rules",
        &[
            one(
                "outbound-default",
                "ADDRESS:PORT",
                "",
                "Where the application's connections lead that no rule turned here, such as 127.0.0.1:50051. Unsaid: they are \
                 refused",
            ),
            one(
                "inbound-default",
                "ADDRESS:PORT",
                "",
                "Where the network's connections lead that no rule turned here, such as 127.0.0.1:50051. Unsaid: they are refused",
            ),
        ],
    ),
    (
        "CPU and memory",
        &[
            one(
                "workers",
                "N",
                "",
                "Threads that carry calls. Unsaid: the cgroup's CPU limit rounded up, or one",
            ),
            one(
                "memory-limit",
                "BYTES",
                "",
                "What the process may use, from 8MiB; the budget follows from it. Unsaid: the cgroup's memory limit, if any",
            ),
            one(
                "memory-budget",
                "BYTES",
                "",
                "What buffered data and granted credit may take. Unsaid: a quarter of the limit, or 256 MiB without one",
            ),
            one(
                "max-methods",
                "N",
                "500",
                "gRPC methods told apart in metrics, in each direction; the rest is _OTHER",
            ),
        ],
    ),
    (
        "Protocols",
        &[
            many(
                "protocol",
                "PORT=PROTOCOL",
                "",
                "What a port of the application speaks, such as 50051=h2c: h2c, grpc, http2, grpc-web, http, tls, https or \
                 tcp. May be repeated. Undeclared ports are detected",
            ),
            many(
                "outbound-protocol",
                "PORT=PROTOCOL",
                "",
                "The same for ports that the application calls",
            ),
            many(
                "opaque-ports",
                "PORTS",
                "",
                "Ports whose bytes are never looked at, both ways, such as 3306,9000-9010",
            ),
            one(
                "detect-silence",
                "DURATION",
                "200ms",
                "How long a client may be silent before the server is called, so that it may speak first",
            ),
        ],
    ),
    (
        "Identity and control",
        &[
            many(
                "control-address",
                "HOST:PORT",
                "",
                "Where control listens; may be repeated, and of several one is used. Unsaid: there is no control, no \
                 identity and no mTLS",
            ),
            one(
                "control-identity",
                "SPIFFE-ID",
                "",
                "Who control must prove to be, such as spiffe://mesh.example/ns/portunus/sa/control; its trust domain is ours",
            ),
            one(
                "trust-bundle",
                "FILE",
                "",
                "The roots that prove control at first, in PEM; control then says whom to trust",
            ),
            one(
                "join-token-file",
                "FILE",
                "",
                "The file with the token (of `portunus token`) that proves to control which workload this is; read whenever it \
                 is needed",
            ),
            one(
                "mtls",
                "MODE",
                "permissive",
                "What inbound ports take where control says nothing: strict (mTLS), permissive (mTLS and plain) or \
                 disabled (plain)",
            ),
            many(
                "mtls-ports",
                "PORT=MODE",
                "",
                "The same for single ports, such as 8080=disabled. May be repeated",
            ),
            one(
                "cut-expired-connections",
                "SWITCH",
                "off",
                "on: streams and tunnels are cut that still run when a certificate ends that their connection was made \
                 with",
            ),
        ],
    ),
    (
        "Names and endpoints",
        &[
            one(
                "resolv-conf",
                "FILE",
                "/etc/resolv.conf",
                "Which DNS servers to ask; read again when it changes",
            ),
            many(
                "dns-srv",
                "HOST[=RECORD]",
                "",
                "A host whose endpoints stand in SRV records, by default those of _grpc._tcp.HOST. May be repeated",
            ),
            one("dns-ttl-floor", "DURATION", "1s", "How long an answer counts at least"),
            one("dns-ttl-ceiling", "DURATION", "5m", "How long an answer counts at most"),
            one(
                "balancer",
                "WAY",
                "p2c-ewma",
                "How endpoints are picked: p2c-ewma or round-robin",
            ),
            one(
                "slow-start",
                "DURATION",
                "1s",
                "How long a new endpoint takes to get its whole share",
            ),
            one(
                "connect-timeout",
                "DURATION",
                "1s",
                "How long a connection to an endpoint may take",
            ),
        ],
    ),
    (
        "Health checks of the endpoints that a name has (what an OutboundPolicy says for its service wins)",
        &[
            one(
                "health-check",
                "WAY",
                "check",
                "How an endpoint in use is asked whether it serves (grpc.health.v1): check, again and again; watch, a stream \
                 that says what changes, where it is served; off. One without that service counts as healthy",
            ),
            one(
                "health-check-service",
                "NAME",
                "",
                "The service that is asked about. Unsaid: the server as a whole",
            ),
            one(
                "health-check-interval",
                "DURATION",
                "5s",
                "From one check of an endpoint to the next; shortened by up to a tenth at random",
            ),
            one("health-check-timeout", "DURATION", "1s", "How long an answer may take"),
            one(
                "health-check-unhealthy-threshold",
                "N",
                "2",
                "Checks in a row without an answer that make an endpoint unhealthy; NOT_SERVING does so at once",
            ),
            one(
                "health-check-healthy-threshold",
                "N",
                "1",
                "Good checks in a row that make it healthy again",
            ),
        ],
    ),
    (
        "HTTP/2",
        &[
            one(
                "http2-max-concurrent-streams",
                "N",
                "1000",
                "Calls that a peer may have open on one connection",
            ),
            one(
                "http2-first-stream-window",
                "BYTES",
                "65535",
                "What a stream may send before its reader grants more",
            ),
            one(
                "http2-stream-window",
                "BYTES",
                "256KiB",
                "The most of its reader's credit that a stream gets without measured need; one that is alone gets twice that",
            ),
            one(
                "http2-connection-window",
                "BYTES",
                "1MiB",
                "The most credit of a connection without measured need",
            ),
            one(
                "http2-stream-window-ceiling",
                "BYTES",
                "4MiB",
                "The most credit of a stream over a long path",
            ),
            one(
                "http2-connection-window-ceiling",
                "BYTES",
                "16MiB",
                "The most credit of a connection over a long path",
            ),
            one(
                "http2-max-header-list-bytes",
                "BYTES",
                "64KiB",
                "The largest header list that is taken, 32 bytes a field included",
            ),
            one(
                "http2-max-header-fields",
                "N",
                "256",
                "The most fields of a header list",
            ),
            one(
                "http2-max-continuations",
                "N",
                "64",
                "The most CONTINUATION frames of a header block",
            ),
            one(
                "http2-max-header-block-bytes",
                "BYTES",
                "256KiB",
                "The largest header block on the wire",
            ),
            one(
                "http2-header-table-bytes",
                "BYTES",
                "4096",
                "The largest HPACK table that a peer may use",
            ),
            one(
                "http2-preface-timeout",
                "DURATION",
                "10s",
                "How long the preface and the first SETTINGS may take",
            ),
            one(
                "http2-headers-timeout",
                "DURATION",
                "10s",
                "How long a header block may take",
            ),
            one(
                "http2-idle-timeout",
                "DURATION",
                "15m",
                "How long a connection without calls stays open",
            ),
        ],
    ),
    (
        "Stopping",
        &[one(
            "shutdown-grace-period",
            "DURATION",
            "25s",
            "How long running calls may go on after SIGTERM; keep it below the pod's terminationGracePeriodSeconds",
        )],
    ),
    (
        "Traces (OpenTelemetry's variables, OTEL_*, mean what they mean everywhere)",
        &[
            one(
                "trace-collector",
                "HOST[:PORT]",
                "",
                "Where spans go by OTLP; port 4317 if not said. Unsaid: OTEL_EXPORTER_OTLP_ENDPOINT, or nothing is recorded",
            ),
            one(
                "trace-sampling",
                "PERCENT",
                "",
                "How many of the traces that begin here are recorded, in percent. Unsaid: OTEL_TRACES_SAMPLER, or 5",
            ),
        ],
    ),
    (
        "Logs (on standard error)",
        &[
            one(
                "log-level",
                "LEVEL",
                "info",
                "What is logged: off, error, warn, info, debug or trace; of single modules: info,MODULE=debug",
            ),
            one("log-format", "FORM", "text", "The form of its lines: text or json"),
            one(
                "access-log",
                "FORM",
                "off",
                "A line for each RPC: off, json or text. It never has payloads or values of metadata",
            ),
        ],
    ),
];

/// What `sidecar redirect` can be told.
pub(super) const REDIRECT: &[Group] = &[(
    "What is turned to the proxy",
    &[
        one(
            "proxy-outbound",
            "PORT",
            "4140",
            "The proxy's port for what the application calls",
        ),
        one(
            "proxy-inbound",
            "PORT",
            "4143",
            "The proxy's port for what calls the application",
        ),
        one(
            "proxy-admin",
            "PORT",
            "4191",
            "The proxy's admin port, which is left alone",
        ),
        one(
            "proxy-uid",
            "UID",
            "2102",
            "The user that the proxy runs as, whose connections are left alone",
        ),
        many(
            "skip-inbound-ports",
            "PORTS",
            "",
            "Ports of the pod that are left alone, such as 22,9000-9010",
        ),
        many(
            "skip-outbound-ports",
            "PORTS",
            "",
            "Ports that may be called past the proxy, such as 53,9000-9010",
        ),
        many(
            "skip-subnets",
            "SUBNETS",
            "",
            "Addresses that may be called past the proxy, such as 10.0.0.0/8,fd00::/8",
        ),
    ],
)];

/// Variables of the environment that look like settings and are none, with the nearest that is one.
///
/// Kubernetes makes variables such as `PORTUNUS_CONTROL_SERVICE_HOST` for a Service named `portunus-control`; these are
/// nobody's mistake.
pub(super) fn unknown_variables(environment: &BTreeMap<String, String>) -> Vec<String> {
    let known: Vec<String> = [PROXY, REDIRECT]
        .into_iter()
        .flatten()
        .flat_map(|(_, all)| *all)
        .map(Setting::variable)
        .collect();
    let unknown = environment
        .keys()
        .filter(|name| name.starts_with("PORTUNUS_") && !known.contains(name) && !is_service_link(name));
    unknown
        .map(|name| {
            let nearest = known.iter().map(|known| (distance(name, known), known)).min();
            // It may go to a terminal.
            let name = name.escape_debug();
            match nearest {
                Some((away, nearest)) if away <= 3 => format!("{name} is not a setting; did you mean {nearest}?"),
                _ => format!("{name} is not a setting"),
            }
        })
        .collect()
}

/// Whether Kubernetes makes variables of this form for Services.
pub(super) fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name.contains("_PORT_")
}

/// How many letters must be put in, left out or changed to come from one word to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
