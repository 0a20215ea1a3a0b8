//! The configurations of the proxies that Portunus is compared with.

use std::{net::SocketAddr, path::Path};

use crate::identities::{Identities, Who};

/// From where to where a proxy carries, and which side of it is mTLS.
pub(super) struct Way<'a> {
    pub(super) listen: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) secured: Secured<'a>,
}

/// Which side of a proxy is mTLS: TLS 1.3 alone, a certificate of the other demanded.
pub(super) enum Secured<'a> {
    Neither,
    /// Towards its callers: the server's proxy.
    Downstream(&'a Identities),
    /// Towards the server: the caller's proxy.
    Upstream(&'a Identities),
}

/// Plain defaults: one worker, HTTP/2 on both sides, no access log, no deadline on a stream. No sessions are resumed.
pub(super) fn envoy(Way { listen, to, secured }: &Way<'_>) -> String {
    let context = |kind: &str, identities: &Identities, who: Who, more: &str| {
        format!(
            r#"transport_socket: {{ name: envoy.transport_sockets.tls, typed_config: {{
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext, {more},
        common_tls_context: {{
          alpn_protocols: [h2],
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [X25519MLKEM768] }},
          tls_certificates: [{{ certificate_chain: {{ filename: "{}" }}, private_key: {{ filename: "{}" }} }}],
          validation_context: {{ trusted_ca: {{ filename: "{}" }},
            match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: "{}" }} }}] }} }} }} }}"#,
            identities.chain(who).display(),
            identities.key(who).display(),
            identities.root().display(),
            identities.id(who.other()),
        )
    };
    let (mut downstream, mut upstream) = (String::new(), String::new());
    match secured {
        Secured::Neither => {}
        Secured::Downstream(identities) => {
            let more = "require_client_certificate: true, disable_stateless_session_resumption: true, \
                        disable_stateful_session_resumption: true";
            downstream = context("Downstream", identities, Who::Server, more);
        }
        Secured::Upstream(identities) => upstream = context("Upstream", identities, Who::Caller, "max_session_keys: 0"),
    }
    format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - {downstream}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: measure
          codec_type: HTTP2
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: backend, timeout: 0s }}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: backend
    type: STATIC
    {upstream}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {}, port_value: {} }} }} }}
"#,
        listen.ip(),
        listen.port(),
        to.ip(),
        to.port()
    )
}

/// OpenSSL 3.0, which Debian's HAProxy has, knows no X25519MLKEM768.
pub(super) fn haproxy(Way { listen, to, secured }: &Way<'_>) -> String {
    let tls = |identities: &Identities, who: Who| {
        format!(
            " ssl crt {} ca-file {} verify required alpn h2 ssl-min-ver TLSv1.3 no-tls-tickets \
             ciphersuites TLS_AES_128_GCM_SHA256",
            identities.both(who).display(),
            identities.root().display()
        )
    };
    let (mut downstream, mut upstream) = (String::new(), String::new());
    match secured {
        Secured::Neither => {}
        Secured::Downstream(identities) => downstream = tls(identities, Who::Server),
        Secured::Upstream(identities) => upstream = tls(identities, Who::Caller),
    }
    format!(
        "global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend callers
    bind {listen} proto h2{downstream}
    default_backend backend
backend backend
    server one {to} proto h2{upstream}
"
    )
}

/// nginx answers one request at a time on a connection to its backend, so it keeps many.
pub(super) fn nginx(listen: SocketAddr, backend: SocketAddr, scratch: &Path) -> String {
    let scratch = scratch.display();
    format!(
        "daemon off;
master_process off;
worker_processes 1;
error_log {scratch}/nginx.err;
pid {scratch}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {scratch}/nginx-body;
    proxy_temp_path {scratch}/nginx-proxy;
    fastcgi_temp_path {scratch}/nginx-fastcgi;
    uwsgi_temp_path {scratch}/nginx-uwsgi;
    scgi_temp_path {scratch}/nginx-scgi;
    upstream backend {{
        server {backend};
        keepalive 256;
        keepalive_requests 1000000000;
        keepalive_time 24h;
    }}
    server {{
        listen {listen} http2;
        keepalive_requests 1000000000;
        keepalive_time 24h;
        location / {{
            grpc_pass grpc://backend;
            grpc_read_timeout 1h;
        }}
    }}
}}
"
    )
}
