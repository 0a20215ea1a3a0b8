//! Every metric of the mesh's own: its name, its meaning, its labels.
//!
//! Label values come from closed sets, except names of services, which have a ceiling. What is `side` or `way` is told
//! from the proxy: downstream asked, upstream is asked.

use super::{Counter, Family, Gauge};

/// RPCs that came, by whether TLS carried them.
pub static REQUESTS: Family<Counter, 3> = Family::counter(
    "portunus_requests_total",
    "RPCs that came to the proxy; tls says whether the connection to the other sidecar was mTLS, peer_identity who was \
     proven there. Outbound ones are counted when they are sent; tls is none for those that end unsent.",
    ["direction", "tls", "peer_identity"],
)
// Each worker tells 1,000 peers apart, and not all workers the same ones; beside these stand what is plain, and what is unsent.
.at_most(2_100);

/// TLS handshakes with other sidecars.
pub static TLS_HANDSHAKES: Family<Counter, 2> = Family::counter(
    "portunus_tls_handshakes_total",
    "TLS handshakes with other sidecars, by what came of them: ok, or why not.",
    ["direction", "result"],
);

/// Connections that outlived a certificate.
pub static OUTLIVED: Family<Gauge, 1> = Family::gauge(
    "portunus_connections_past_certificate",
    "mTLS connections that still carry something although a certificate that they were made with has ended.",
    ["direction"],
);

/// RPCs that the proxy itself failed; `reason` is one of `failure`'s.
pub static PROXY_ERRORS: Family<Counter, 2> = Family::counter(
    "portunus_proxy_errors_total",
    "RPCs and connections that the proxy itself ended, by the reason that it gave.",
    ["direction", "reason"],
);

/// Open connections.
pub static CONNECTIONS: Family<Gauge, 2> = Family::gauge(
    "portunus_connections",
    "Connections that are open, to those who ask (downstream) and to those who are asked (upstream).",
    ["direction", "side"],
);

/// Connections that were opened.
pub static CONNECTIONS_OPENED: Family<Counter, 2> = Family::counter(
    "portunus_connections_opened_total",
    "Connections that were opened.",
    ["direction", "side"],
);

/// What detection took undeclared connections for.
pub static DETECTED: Family<Counter, 2> = Family::counter(
    "portunus_detected_total",
    "Connections whose protocol was not declared, by what they were taken for.",
    ["direction", "guess"],
);

/// Tunnels that were opened.
pub static TUNNELS: Family<Counter, 2> = Family::counter(
    "portunus_tunnels_total",
    "Tunnels that were opened, and connections of HTTP/1; tls says whether the connection to the other sidecar is mTLS.",
    ["direction", "tls"],
);

/// Bytes that tunnels carried.
pub static TUNNEL_BYTES: Family<Counter, 2> = Family::counter(
    "portunus_tunnel_bytes_total",
    "Bytes of tunnelled connections, by the way they went: to_upstream or to_downstream.",
    ["direction", "way"],
);

/// Endpoints by state.
pub static ENDPOINTS: Family<Gauge, 2> = Family::gauge(
    "portunus_endpoints",
    "Endpoints that a service has, by their state.",
    ["service", "state"],
)
.at_most(1_000);

/// Health checks by what they found.
pub static HEALTH_CHECKS: Family<Counter, 1> = Family::counter(
    "portunus_health_checks_total",
    "Health checks of endpoints, by what they found.",
    ["outcome"],
);

/// Endpoints that were ejected.
pub static EJECTIONS: Family<Counter, 1> = Family::counter(
    "portunus_ejections_total",
    "Endpoints that were left alone for a while, because their RPCs failed or were not answered.",
    ["reason"],
);

/// RPCs that went to unhealthy endpoints.
pub static UNHEALTHY_PICKS: Family<Counter, 0> = Family::counter(
    "portunus_unhealthy_picks_total",
    "RPCs that were sent to endpoints that do not answer health checks, because fewer than half are healthy.",
    [],
);

/// RPCs that were sent again.
pub static RETRIES: Family<Counter, 1> = Family::counter(
    "portunus_retries_total",
    "RPCs that were sent again, by why that was safe.",
    ["reason"],
);

/// What shutting down cut.
pub static CUT: Family<Counter, 1> = Family::counter(
    "portunus_cut_total",
    "RPCs and connections that the end of a shutdown cut.",
    ["what"],
);

/// Lines that were not logged.
pub static LOG_DROPPED: Family<Counter, 0> = Family::counter(
    "portunus_log_dropped_total",
    "Lines of the log that were dropped, because standard error took no more.",
    [],
);

/// The memory that buffers may take.
pub static MEMORY_BUDGET: Family<Gauge, 0> = Family::gauge(
    "portunus_memory_budget_bytes",
    "Bytes that buffered data and granted credit may take in all.",
    [],
);

/// The memory that buffers take.
pub static MEMORY_HELD: Family<Gauge, 0> = Family::gauge(
    "portunus_memory_held_bytes",
    "Bytes that buffered data and granted credit take.",
    [],
);

/// The memory that connections of HTTP/1 take.
pub static HTTP1_MEMORY_HELD: Family<Gauge, 1> = Family::gauge(
    "portunus_http1_memory_held_bytes",
    "Bytes that connections of HTTP/1 are counted to keep, beside what buffered data and granted credit take.",
    ["direction"],
);

/// Names that are followed.
pub static DNS_NAMES: Family<Gauge, 1> = Family::gauge(
    "portunus_dns_names",
    "Names that are followed, by state: fresh, stale (served from before an outage) or unknown.",
    ["state"],
);

/// What is not followed for want of room.
pub static UNFOLLOWED: Family<Gauge, 1> = Family::gauge(
    "portunus_unfollowed",
    "Services and addresses that wait until there is room to ask control, or dns, for them; while control is not asked, \
     calls to them fail.",
    ["source"],
);

/// What peers did that looks like an attack.
pub static ABUSE: Family<Counter, 1> = Family::counter(
    "portunus_abuse_total",
    "What peers did too much of, and were stopped for.",
    ["reason"],
);

/// Timeouts that make no sense.
pub static INVALID_TIMEOUTS: Family<Counter, 1> = Family::counter(
    "portunus_invalid_timeouts_total",
    "Values of grpc-timeout that are not of its form, and were ignored.",
    ["direction"],
);

/// When our certificate ends.
pub static CERTIFICATE_EXPIRY: Family<Gauge, 0> = Family::gauge(
    "portunus_identity_cert_expiry_timestamp_seconds",
    "When this workload's certificate ends, or ended, in seconds of Unix time; nothing before the first.",
    [],
);

/// Whether control tells us what changes.
pub static CONTROL_CONNECTED: Family<Gauge, 0> = Family::gauge(
    "portunus_control_connected",
    "1 while control tells what changes in the mesh, 0 while what it said last is believed.",
    [],
);

/// What came of asking for a certificate.
pub static CERTIFICATIONS: Family<Counter, 1> = Family::counter(
    "portunus_identity_certifications_total",
    "Requests for a certificate, by what came of them; no_token, bad_token and unreachable are counted once, until that changes.",
    ["outcome"],
);

/// What became of recorded spans.
pub static SPANS: Family<Counter, 1> = Family::counter(
    "portunus_spans_total",
    "Spans that were recorded, by outcome: exported, dropped (no room, or the collector took only a part), or failed.",
    ["outcome"],
);
