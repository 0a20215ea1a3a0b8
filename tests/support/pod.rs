//! A pod: a network namespace with an address of each family, and the programs that run in it.

use std::{
    ffi::OsStr,
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    Control, Member, Program, Sidecar,
    mesh::{Bridge, open_folder},
    netns::{self, ip},
};

/// A handle to a pod; the pod ends with the last of them, and everything in it.
#[derive(Debug, Clone)]
pub struct Pod(Arc<State>);

#[derive(Debug)]
struct State {
    bridge: Arc<Bridge>,
    name: String,
    namespace: String,
    folder: PathBuf,
    host: u8,
    families: Vec<Family>,
    programs: AtomicU32,
}

/// Who a program in a pod runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// The init container and the servers of the infrastructure.
    Root,
    /// The application.
    App,
    /// The proxy, whose own connections the redirect rules leave alone.
    Sidecar,
}

/// Of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Settings of a sidecar, such as [`Control::enrol`] makes, as those who start one take them.
pub fn lent(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect()
}

impl Pod {
    pub(crate) fn new(bridge: Arc<Bridge>, name: &str, host: u8, families: &[Family]) -> Result<Pod> {
        let namespace = format!("{}{name}", bridge.prefix);
        let folder = bridge.folder.join(name);
        open_folder(&folder)?;
        let state = State {
            bridge,
            name: name.to_string(),
            namespace,
            folder,
            host,
            families: families.to_vec(),
            programs: AtomicU32::new(0),
        };
        netns::add(&state.namespace)?;
        let pod = Pod(Arc::new(state));
        pod.connect()?;
        pod.write_etc()?;
        Ok(pod)
    }

    /// What the test called it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name that `ip netns exec` takes.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Its address of a family.
    pub fn address(&self, family: Family) -> Result<IpAddr> {
        if !self.0.families.contains(&family) {
            bail!("the pod {} has no {family} address", self.0.name);
        }
        Ok(family.address(self.0.host))
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.0
            .families
            .iter()
            .map(|family| family.address(self.0.host))
            .collect()
    }

    /// A port of it.
    pub fn at(&self, family: Family, port: u16) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address(family)?, port))
    }

    /// A folder that its programs can read.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// The sidecar, as an injected pod has it: rules first, then the proxy, ready.
    pub fn sidecar(&self) -> Result<Sidecar> {
        Sidecar::start(self, &[])
    }

    /// The sidecar with settings beside the defaults, each a variable of the environment.
    pub fn sidecar_with(&self, settings: &[(&str, &str)]) -> Result<Sidecar> {
        Sidecar::start(self, settings)
    }

    /// The sidecar as a member of the mesh that `control` leads, with settings beside the defaults.
    pub fn member(&self, control: &Control, member: &Member<'_>, settings: &[(&str, &str)]) -> Result<Sidecar> {
        let enrolled = control.enrol(self, member)?;
        control.until_known()?;
        let mut all = lent(&enrolled);
        all.extend(settings);
        Sidecar::start(self, &all)
    }

    /// The sidecar with settings beside the defaults, which need not become ready.
    pub fn sidecar_unready(&self, settings: &[(&str, &str)]) -> Result<Sidecar> {
        Sidecar::begin(self, settings)
    }

    /// The sidecar with its rules, but run by this user, which need not be the one whom they exempt. It need not become
    /// ready.
    pub fn sidecar_as(&self, user: User, settings: &[(&str, &str)]) -> Result<Sidecar> {
        Sidecar::begin_as(self, user, settings)
    }

    /// A command that runs in the pod: its network, its `resolv.conf`, a clean environment.
    pub fn command(&self, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace()]);
        if let Some(id) = user.id() {
            command.args([
                "setpriv",
                "--reuid",
                id,
                "--regid",
                id,
                "--clear-groups",
                "--bounding-set",
                "-all",
            ]);
            command.args(["--no-new-privs", "--"]);
        }
        command.arg(program);
        command
            .env_clear()
            .envs([("PATH", PATH), ("HOME", "/tmp"), ("LANG", "C.UTF-8")]);
        // A terminal's Ctrl-C is ours to hear, and to act on in order.
        command.process_group(0);
        command
    }

    /// A copy of a file where programs of every user can read it.
    pub fn place(&self, file: &Path) -> Result<PathBuf> {
        self.place_as(file, file.file_name().context("a path without a file's name")?)
    }

    /// [`Pod::place`], under a name of its own: there is one file of each name.
    pub fn place_as(&self, file: &Path, name: impl AsRef<Path>) -> Result<PathBuf> {
        let folder = self.0.bridge.folder.join("files");
        open_folder(&folder)?;
        let copy = folder.join(name);
        if !copy.exists() {
            // A link where one file system holds both: a sidecar with its symbols is tens of megabytes.
            if fs::hard_link(file, &copy).is_err() && !copy.exists() {
                fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
            }
        }
        Ok(copy)
    }

    /// Starts what [`Pod::command`] made, its output in a log of the pod.
    pub fn start(&self, name: &str, command: Command) -> Result<Program> {
        Program::start(name, command, self.log_of(name), None)
    }

    /// [`Pod::start`], with another place for what it writes to standard error.
    pub fn start_with_errors(&self, name: &str, command: Command, errors: impl Into<Stdio>) -> Result<Program> {
        Program::start(name, command, self.log_of(name), Some(errors.into()))
    }

    fn log_of(&self, name: &str) -> PathBuf {
        let number = self.0.programs.fetch_add(1, Ordering::Relaxed);
        self.0.folder.join(format!("{number}-{name}.log"))
    }

    /// Runs what [`Pod::command`] made to its end, within half a minute; fails with what it wrote unless it succeeds.
    pub fn run(&self, name: &str, command: Command) -> Result<String> {
        let mut program = self.start(name, command)?;
        let status = program.wait(Duration::from_secs(30))?;
        if !status.success() {
            bail!("{name} failed in pod {} ({status}):\n{}", self.name(), program.output());
        }
        Ok(program.output())
    }

    /// What its programs find as `/etc/resolv.conf` from now on, also those that run already.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        // Written in place: a mount holds the file, not its name.
        fs::write(netns::etc(self.namespace()).join("resolv.conf"), text).context("cannot write resolv.conf")
    }

    /// From now on every packet to or from the pod is lost without a word, as when its machine has lost power.
    pub fn swallow_packets(&self) -> Result<()> {
        self.set_faults("drop")
    }

    /// From now on one in so many packets to the pod is lost, and one in so many from it: exactly so many.
    pub fn lose_packets(&self, one_in: u8) -> Result<()> {
        self.set_faults(&format!("numgen inc mod {one_in} == 0 drop"))
    }

    /// Ends [`Pod::swallow_packets`] and [`Pod::lose_packets`].
    pub fn pass_packets(&self) -> Result<()> {
        self.nft("table inet faults {}\ndelete table inet faults\n")
    }

    /// Runs nft's language in the pod.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let file = self.0.folder.join("rules.nft");
        fs::write(&file, rules)?;
        let mut command = self.command(User::Root, "nft");
        command.arg("-f").arg(&file);
        self.run("nft", command).map(drop)
    }

    fn set_faults(&self, rule: &str) -> Result<()> {
        // Neighbour discovery goes on, as it would from the router in between: else the kernel would tell the peers.
        let chain = |hook: &str, side: &str| {
            format!(
                "chain {hook} {{ type filter hook {hook} priority -310; \
                 icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept; {side}name eth0 {rule}; }}"
            )
        };
        let (arriving, leaving) = (chain("prerouting", "iif"), chain("postrouting", "oif"));
        self.nft(&format!(
            "table inet faults {{}}\ndelete table inet faults\ntable inet faults {{\n{arriving}\n{leaving}\n}}\n"
        ))
    }

    fn connect(&self) -> Result<()> {
        let state = &*self.0;
        let (bridge, own) = (state.bridge.namespace.as_str(), state.namespace.as_str());
        let link = format!("to{}", state.host);
        ip(&[
            "-n", bridge, "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", own,
        ])?;
        ip(&["-n", bridge, "link", "set", &link, "master", "br0", "up"])?;
        if !state.families.contains(&Family::V6) {
            netns::inside(own, || fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1"))??;
        }
        ip(&["-n", own, "link", "set", "eth0", "up"])?;
        for family in &state.families {
            let address = format!("{}/{}", family.address(state.host), family.prefix_length());
            let gateway = family.address(1).to_string();
            match family {
                Family::V4 => ip(&["-n", own, "addr", "add", &address, "dev", "eth0"])?,
                // Duplicate detection would hold the address back for a second.
                Family::V6 => ip(&["-n", own, "addr", "add", &address, "dev", "eth0", "nodad"])?,
            }
            ip(&["-n", own, family.flag(), "route", "add", "default", "via", &gateway])?;
        }
        Ok(())
    }

    fn write_etc(&self) -> Result<()> {
        let etc = netns::etc(self.namespace());
        open_folder(&etc)?;
        let servers = self
            .0
            .families
            .iter()
            .map(|family| format!("nameserver {}\n", family.address(53)));
        fs::write(
            etc.join("resolv.conf"),
            servers.collect::<String>() + "options timeout:1 attempts:2\n",
        )?;
        let hosts = self
            .addresses()
            .iter()
            .map(|address| format!("{address} {}\n", self.name()))
            .collect::<String>();
        fs::write(
            etc.join("hosts"),
            format!("127.0.0.1 localhost\n::1 localhost\n{hosts}"),
        )?;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = netns::remove(&self.namespace);
    }
}

impl User {
    fn id(self) -> Option<&'static str> {
        match self {
            User::Root => None,
            User::App => Some("1000"),
            User::Sidecar => Some("2102"),
        }
    }
}

impl Family {
    /// Both.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub(crate) fn address(self, host: u8) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(10, 77, 0, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    fn prefix_length(self) -> u8 {
        match self {
            Family::V4 => 16,
            Family::V6 => 64,
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Family::V4 => "-4",
            Family::V6 => "-6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Where programs are looked for, whoever runs the tests: a plain `su` leaves the folders of root's programs out.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
