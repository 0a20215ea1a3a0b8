//! The proxies that are compared: how each is told what to do, and started, alone or as a pair.

mod configuration;
mod install;

use std::{
    fmt, fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use support::{PATH, Place, build};

use super::{
    collector::Collector,
    identities::{Identities, Who},
    load::{Opening, Session, Style},
    mesh::{self, Mesh, Plan, SERVICE},
    process::{self, Process},
    wire,
};
use configuration::{Secured, Way};

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

/// How the proxies stand between load generator and backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// One, with plain HTTP/2 on both sides.
    Alone,
    /// One at either side, and mTLS between them.
    Pair,
}

impl Standing {
    /// Whether the peer can stand so here.
    pub(crate) fn admits(self, peer: Peer) -> bool {
        match self {
            Standing::Alone => true,
            Standing::Pair => matches!(peer, Peer::Portunus | Peer::Envoy | Peer::Haproxy | Peer::Direct),
        }
    }
}

/// Whose instructions callgrind counts.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    /// A peer's, as it stands alone.
    Peer(Peer),
    /// Portunus', which is no member of a mesh and has no collector.
    Untraced,
    /// The same, with a collector for which it decides of each call that it is not recorded.
    Unsampled,
}

impl fmt::Display for Counted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Counted::Peer(peer) => peer.fmt(formatter),
            Counted::Untraced => formatter.write_str("no collector"),
            Counted::Unsampled => formatter.write_str("a collector, and nothing for it"),
        }
    }
}

/// Where programs come from, if not from the checkout, and what is left of a run.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) sidecar: Option<PathBuf>,
    pub(crate) injector: Option<PathBuf>,
    /// A sidecar alone is no member of a mesh.
    pub(crate) bare: bool,
    pub(crate) keep: bool,
}

/// Where the programs are.
pub(crate) struct Programs {
    sidecar: PathBuf,
    injector: PathBuf,
    envoy: PathBuf,
    pub(crate) bare: bool,
    pub(crate) identities: Identities,
    collector: Collector,
    /// Where configurations, logs and counts of this run go.
    scratch: PathBuf,
    keep: bool,
}

impl Programs {
    /// Installs what these peers and tools need, and builds Portunus unless it is given.
    pub(crate) fn prepare(peers: &[Peer], tools: &[&'static str], wishes: Wishes) -> Result<Programs> {
        let mut missing: Vec<&str> = tools
            .iter()
            .copied()
            .filter(|tool| !install::is_installed(tool))
            .collect();
        for (peer, program, package) in [
            (Peer::Haproxy, "haproxy", "haproxy"),
            (Peer::Nginx, "nginx", "nginx-light"),
        ] {
            if peers.contains(&peer) && !install::is_installed(program) {
                missing.push(package);
            }
        }
        if !missing.is_empty() {
            install::from_debian(&missing)?;
        }
        let envoy = if peers.contains(&Peer::Envoy) {
            install::envoy()?
        } else {
            PathBuf::new()
        };
        let given_or_built = |given: Option<PathBuf>, what: &str, build: fn() -> Result<PathBuf>| match given {
            Some(path) => Ok(path),
            None if peers.contains(&Peer::Portunus) => {
                eprintln!("measure: building {what} for release");
                build()
            }
            None => Ok(PathBuf::new()),
        };
        let scratch = std::env::temp_dir().join(format!("portunus-measure-{}", std::process::id()));
        fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
        Ok(Programs {
            sidecar: given_or_built(wishes.sidecar, "the sidecar", build::sidecar)?,
            injector: given_or_built(wishes.injector, "control", build::injector)?,
            envoy,
            bare: wishes.bare,
            identities: Identities::make(&scratch)?,
            collector: Collector::start(HELPERS_CPU)?,
            scratch,
            keep: wishes.keep,
        })
    }

    /// How many spans Portunus has sent until now.
    pub(crate) fn spans(&self) -> u64 {
        self.collector.spans()
    }

    /// Starts the peer before this backend, on one CPU, and waits until it has carried a call.
    pub(crate) fn start(&self, peer: Peer, standing: Standing, backend: SocketAddr, cpu: usize) -> Result<Running> {
        let until = Instant::now() + Duration::from_secs(20);
        let log = |at: SocketAddr| self.scratch.join(format!("{peer}-{}.log", at.port()));
        let listen = free_address()?;
        let running = match standing {
            Standing::Alone => {
                let (command, mesh) = self.alone(peer, listen, backend)?;
                Running {
                    process: Process::start(&command, cpu, log(listen))?,
                    address: listen,
                    far: None,
                    _mesh: mesh,
                }
            }
            Standing::Pair => {
                let between = free_address()?;
                let (commands, mesh) = self.pair(peer, listen, between, backend)?;
                let far = Process::start(&commands[1], cpu, log(between))?;
                Running {
                    process: Process::start(&commands[0], cpu, log(listen))?,
                    address: listen,
                    far: Some(Far {
                        process: far,
                        address: between,
                    }),
                    _mesh: mesh,
                }
            }
        };
        running.ready(peer, backend, until)
    }

    /// The collector that reads and drops.
    pub(crate) fn collector(&self) -> SocketAddr {
        self.collector.address
    }

    /// Portunus alone, no member of a mesh, which records every call for this collector, if there is one.
    pub(crate) fn start_traced(
        &self,
        collector: Option<SocketAddr>,
        backend: SocketAddr,
        cpu: usize,
    ) -> Result<Running> {
        let until = Instant::now() + Duration::from_secs(20);
        let listen = free_address()?;
        let sampled = collector.map(|collector| (collector, 100));
        let command = self.traced(sampled, listen, backend)?;
        let log = self.scratch.join(format!("traced-{}.log", listen.port()));
        let running = Running {
            process: Process::start(&command, cpu, log)?,
            address: listen,
            far: None,
            _mesh: None,
        };
        running.ready(Peer::Portunus, backend, until)
    }

    /// One under callgrind: with the file that its counts will be in.
    pub(crate) fn start_counted(
        &self,
        counted: Counted,
        backend: SocketAddr,
        cpu: usize,
    ) -> Result<(Running, PathBuf)> {
        let until = Instant::now() + Duration::from_secs(90);
        let listen = free_address()?;
        let (peer, (command, mesh)) = match counted {
            Counted::Peer(peer) => (peer, self.alone(peer, listen, backend)?),
            Counted::Untraced => (Peer::Portunus, (self.traced(None, listen, backend)?, None)),
            Counted::Unsampled => {
                let none = Some((self.collector(), 0));
                (Peer::Portunus, (self.traced(none, listen, backend)?, None))
            }
        };
        let counts = self.scratch.join(format!("{peer}-{}.callgrind", listen.port()));
        let command = process::under_callgrind(&command, &counts);
        let running = Running {
            process: Process::start(
                &command,
                cpu,
                self.scratch.join(format!("{peer}-{}.log", listen.port())),
            )?,
            address: listen,
            far: None,
            _mesh: mesh,
        };
        Ok((running.ready(peer, backend, until)?, counts))
    }

    /// Starts a member of a mesh and says how long it took until it was ready, that is, until it had its certificate.
    pub(crate) fn start_to_ready(&self, cpu: usize) -> Result<Duration> {
        let (listen, admin, server) = (free_address()?, free_address()?, free_address()?);
        let mesh = self.mesh(listen, server, false)?;
        let mut command = self.sidecar_of(Who::Caller, Some(&mesh), listen, SERVICE, admin)?;
        command.args(["--log-level", "error"]);
        let began = Instant::now();
        let log = self.scratch.join(format!("start-{}.log", listen.port()));
        let mut process = Process::start(&command, cpu, log)?;
        mesh::until_ready("portunus", &mut process, admin, Duration::from_secs(20))?;
        Ok(began.elapsed())
    }

    /// The command of Portunus alone, no member of a mesh; with a collector, and how many of a hundred calls it records for it,
    /// if there is one.
    fn traced(&self, sampled: Option<(SocketAddr, u8)>, listen: SocketAddr, backend: SocketAddr) -> Result<Command> {
        let mut command = self.sidecar_of(Who::Caller, None, listen, backend, free_address()?)?;
        if let Some((collector, percent)) = sampled {
            command.args(["--trace-collector", &format!("http://{collector}")]);
            command.args(["--trace-sampling", &percent.to_string()]);
        }
        Ok(command)
    }

    /// The command of a peer that stands alone.
    fn alone(&self, peer: Peer, listen: SocketAddr, backend: SocketAddr) -> Result<(Command, Option<Mesh>)> {
        if peer == Peer::Portunus {
            let mesh = match self.bare {
                true => None,
                false => Some(self.mesh(listen, backend, false)?),
            };
            let to = if self.bare { backend } else { SERVICE };
            let command = self.sidecar_of(Who::Caller, mesh.as_ref(), listen, to, free_address()?)?;
            return Ok((command, mesh));
        }
        let way = Way {
            listen,
            to: backend,
            secured: Secured::Neither,
        };
        Ok((self.other(peer, &way)?, None))
    }

    /// The commands of the caller's proxy, and of the server's, which listens `between`.
    fn pair(
        &self,
        peer: Peer,
        listen: SocketAddr,
        between: SocketAddr,
        backend: SocketAddr,
    ) -> Result<([Command; 2], Option<Mesh>)> {
        if peer == Peer::Portunus {
            let mesh = self.mesh(listen, between, true)?;
            let near = self.sidecar_of(Who::Caller, Some(&mesh), listen, SERVICE, free_address()?)?;
            let far = self.sidecar_of(Who::Server, Some(&mesh), between, backend, free_address()?)?;
            return Ok(([near, far], Some(mesh)));
        }
        let near = Way {
            listen,
            to: between,
            secured: Secured::Upstream(&self.identities),
        };
        let far = Way {
            listen: between,
            to: backend,
            secured: Secured::Downstream(&self.identities),
        };
        Ok(([self.other(peer, &near)?, self.other(peer, &far)?], None))
    }

    /// A control of its own for the sidecars of one peer, which is known by where it listens.
    fn mesh(&self, listen: SocketAddr, server: SocketAddr, server_has_sidecar: bool) -> Result<Mesh> {
        Mesh::start(&Plan {
            injector: &self.injector,
            identities: &self.identities,
            collector: self.collector.address,
            folder: self.scratch.join(format!("mesh-{}", listen.port())),
            server,
            server_has_sidecar,
            cpu: HELPERS_CPU,
        })
    }

    /// The sidecar as it runs in a pod, but for the redirect: what comes to its one port is meant for `to`.
    fn sidecar_of(
        &self,
        who: Who,
        mesh: Option<&Mesh>,
        listen: SocketAddr,
        to: SocketAddr,
        admin: SocketAddr,
    ) -> Result<Command> {
        let ([used, default], unused) = match who {
            Who::Caller => (["--outbound-listen", "--outbound-default"], "--inbound-listen"),
            Who::Server => (["--inbound-listen", "--inbound-default"], "--outbound-listen"),
        };
        let mut command = Command::new(&self.sidecar);
        command
            .arg("proxy")
            .args([used, &listen.to_string()])
            .args([default, &to.to_string()])
            .args([unused, &free_address()?.to_string()])
            .args(["--admin-listen", &admin.to_string()])
            .args(["--workers", "1"]);
        if let Some(mesh) = mesh {
            mesh.admit(who, &mut command);
        }
        Ok(command)
    }

    /// The command of a proxy that is not Portunus.
    fn other(&self, peer: Peer, way: &Way<'_>) -> Result<Command> {
        let file = self.scratch.join(format!("{peer}-{}.conf", way.listen.port()));
        match peer {
            Peer::Floor => {
                let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
                command
                    .arg("--copy")
                    .arg(way.listen.to_string())
                    .arg(way.to.to_string());
                Ok(command)
            }
            Peer::Envoy => {
                let file = file.with_extension("yaml");
                fs::write(&file, configuration::envoy(way))?;
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
                fs::write(&file, configuration::haproxy(way))?;
                let mut command = Command::new("haproxy");
                command.args(["-db", "-f"]).arg(file).env("PATH", PATH);
                Ok(command)
            }
            Peer::Nginx => {
                fs::write(&file, configuration::nginx(way.listen, way.to, &self.scratch))?;
                let mut command = Command::new("nginx");
                command.arg("-c").arg(file).env("PATH", PATH);
                Ok(command)
            }
            Peer::Portunus | Peer::Direct => bail!("{peer} is no other proxy"),
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
            let _ = fs::remove_dir_all(&self.scratch);
        }
    }
}

/// A peer that carries calls.
pub(crate) struct Running {
    /// The proxy that the load generator calls.
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// Of a pair, the other one.
    pub(crate) far: Option<Far>,
    /// What is behind Portunus ends after it.
    _mesh: Option<Mesh>,
}

/// The server's proxy of a pair.
pub(crate) struct Far {
    pub(crate) process: Process,
    /// Where it takes mTLS.
    pub(crate) address: SocketAddr,
}

impl Running {
    /// The CPU time that it has taken; a pair's together.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let far = self.far.as_ref().map_or(Ok(Duration::ZERO), |far| far.process.cpu())?;
        Ok(self.process.cpu()? + far)
    }

    /// The end of its logs, for an error message.
    pub(crate) fn last_words(&self) -> String {
        let far = self.far.as_ref().map(|far| far.process.last_words());
        self.process.last_words() + &far.unwrap_or_default()
    }

    fn has_ended(&mut self) -> bool {
        let far_has = self.far.as_mut().is_some_and(|far| far.process.has_ended());
        far_has || self.process.has_ended()
    }

    fn ready(mut self, peer: Peer, backend: SocketAddr, until: Instant) -> Result<Running> {
        loop {
            let one_call = || {
                let opening = Opening {
                    authority: backend,
                    connections: 1,
                    style: Style::Plain,
                    stream_window: wire::FIRST_WINDOW,
                };
                Session::open(self.address, opening)?.saturate(1, 1)
            };
            match one_call() {
                Ok(()) => return Ok(self),
                Err(_) if self.has_ended() => bail!("{peer} has ended{}", self.last_words()),
                Err(error) if Instant::now() > until => {
                    bail!("{peer} carried no call in time: {error:#}{}", self.last_words())
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// A port of the loopback address that nobody else has: who it is for binds it later, and it stays held until we end.
pub(crate) fn free_address() -> Result<SocketAddr> {
    static GIVEN: Mutex<Vec<Place>> = Mutex::new(Vec::new());
    let place = Place::new()?;
    let address = place.address;
    GIVEN.lock().push(place);
    Ok(address)
}

/// Where control and the collector run: beside the load.
pub(crate) const HELPERS_CPU: usize = 0;
