//! Network namespaces: entering them, and removing those that a run which crashed has left behind.

use std::{
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{fs::MetadataExt, net::SocketAddr, net::UnixListener},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{PATH, Pod, wait_until};

/// Runs `work` on a fresh thread inside the pod's network: sockets it opens are the pod's, also after it returns.
///
/// The file system stays the machine's own, so names are not resolved as the pod resolves them.
pub fn in_netns<T: Send>(pod: &Pod, work: impl FnOnce() -> T + Send) -> Result<T> {
    inside(pod.namespace(), work)
}

pub(crate) fn inside<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = fs::File::open(path(namespace)).with_context(|| format!("there is no namespace {namespace}"))?;
    thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Makes a namespace with its loopback up.
pub(crate) fn add(namespace: &str) -> Result<()> {
    ip(&["netns", "add", namespace])?;
    ip(&["-n", namespace, "link", "set", "lo", "up"])
}

/// Kills what runs in a namespace and removes it, with its `/etc/netns` and its folder.
pub(crate) fn remove(namespace: &str) -> Result<()> {
    if path(namespace).exists() {
        wait_until(Duration::from_secs(5), "the programs of a namespace have ended", || {
            let pids = programs_in(namespace);
            for pid in &pids {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            pids.is_empty()
        })?;
        ip(&["netns", "del", namespace])?;
    }
    remove_dir(&etc(namespace))
}

/// The processes whose network is this namespace.
pub fn programs_in(namespace: &str) -> Vec<Pid> {
    let Ok(inode) = fs::metadata(path(namespace)).map(|meta| meta.ino()) else {
        return Vec::new();
    };
    let link = PathBuf::from(format!("net:[{inode}]"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|net| net == link))
        .filter(|pid| !is_zombie(*pid))
        .map(Pid::from_raw)
        .collect()
}

/// A process that has ended and that nobody has waited for yet: it holds nothing any more.
fn is_zombie(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

/// What everything that this process makes is named after; the first call also sweeps.
pub(crate) fn prefix() -> Result<&'static str> {
    static CLAIM: OnceLock<Result<(String, UnixListener), String>> = OnceLock::new();
    let claim = CLAIM.get_or_init(|| {
        let own = std::process::id();
        let claimed = || -> Result<_> {
            let mut listener = None;
            wait_until(Duration::from_secs(5), "the name of this run is free", || {
                listener = claim(own).ok();
                listener.is_some()
            })?;
            // Whatever bears this process's number is older than this process.
            sweep_where(|pid| pid == own || !is_alive(pid))?;
            listener.context("the name of this run is taken")
        };
        claimed()
            .map(|listener| (format!("{PREFIX}{own}-"), listener))
            .map_err(|error| format!("{error:#}"))
    });
    match claim {
        Ok((prefix, _)) => Ok(prefix),
        Err(why) => bail!("{why}"),
    }
}

/// Removes the namespaces and folders of runs that are no longer alive.
pub fn sweep() -> Result<()> {
    sweep_where(|pid| pid != std::process::id() && !is_alive(pid))
}

/// The namespaces that some run of ours has made.
pub fn all() -> Vec<String> {
    entries(Path::new("/run/netns"))
}

fn sweep_where(dead: impl Fn(u32) -> bool) -> Result<()> {
    let is_dead = |name: &str| owner(name).is_some_and(&dead);
    for namespace in all()
        .iter()
        .chain(&entries(Path::new("/etc/netns")))
        .filter(|name| is_dead(name))
    {
        // Another run may be sweeping the same one: only what is still there afterwards is a failure.
        let removed = remove(namespace);
        if path(namespace).exists() {
            removed?;
        }
    }
    for folder in entries(&std::env::temp_dir()).iter().filter(|name| is_dead(name)) {
        remove_dir(&std::env::temp_dir().join(folder))?;
    }
    Ok(())
}

/// A run is alive while it holds an abstract socket of its number: the kernel lets go of it when the process ends, in
/// whatever way, and no file is left.
fn claim(pid: u32) -> io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{PREFIX}{pid}"))?)
}

fn is_alive(pid: u32) -> bool {
    claim(pid).is_err()
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some())
        .collect()
}

pub(crate) fn path(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// `ip netns exec` shows what lies here in place of the files of the same names in `/etc`.
pub(crate) fn etc(namespace: &str) -> PathBuf {
    Path::new("/etc/netns").join(namespace)
}

pub(crate) fn remove_dir(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `ip`, and fails with what it said.
pub(crate) fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .env("PATH", PATH)
        .output()
        .context("cannot run `ip` (Debian package iproute2)")?;
    if !output.status.success() {
        bail!(
            "`ip {}` failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

const PREFIX: &str = "ptn-";
