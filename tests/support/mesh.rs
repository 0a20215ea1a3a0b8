//! A mesh: a bridge in a namespace of its own, and the pods on it.

use std::{
    cell::Cell,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};

use crate::{
    Control, Dns, Family, Pod, needs,
    netns::{self, ip},
};

/// Runs a test on a mesh of its own; when the test fails or panics, the end of each program's output is shown.
pub fn test(promise: impl FnOnce(&Mesh) -> Result<()>) {
    let mesh = Mesh::new().unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = promise(&mesh) {
        panic!("{error:#}");
    }
    mesh.kept.set(false);
}

/// Pods that reach each other, and nothing else; gone when it drops.
#[derive(Debug)]
pub struct Mesh {
    pub(crate) bridge: Arc<Bridge>,
    /// Pods that no test names, such as the DNS server's address, count from here.
    hosts: AtomicU8,
    /// Whether the logs outlive it: until a test is known to have passed.
    kept: Cell<bool>,
}

impl Mesh {
    /// A mesh without pods. Needs root; the first one of a process removes what crashed runs have left.
    pub fn new() -> Result<Mesh> {
        needs::root()?;
        static MESHES: AtomicU32 = AtomicU32::new(0);
        let prefix = netns::prefix()?;
        let prefix = format!("{prefix}{}-", MESHES.fetch_add(1, Ordering::Relaxed));
        let bridge = Arc::new(Bridge::new(prefix)?);
        Ok(Mesh {
            bridge,
            hosts: AtomicU8::new(FIRST_HOST),
            kept: Cell::new(true),
        })
    }

    /// A pod with an IPv4 and an IPv6 address.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        self.pod_of(name, &[Family::V4, Family::V6])
    }

    /// A pod with addresses of these families alone.
    pub fn pod_of(&self, name: &str, families: &[Family]) -> Result<Pod> {
        let host = self.hosts.fetch_add(1, Ordering::Relaxed);
        Pod::new(Arc::clone(&self.bridge), name, host, families)
    }

    /// The DNS server that every pod's `resolv.conf` names, in a pod of its own.
    pub fn dns(&self) -> Result<Dns> {
        Dns::start(Pod::new(
            Arc::clone(&self.bridge),
            "dns",
            DNS_HOST,
            &[Family::V4, Family::V6],
        )?)
    }

    /// A control plane that is ready, in a pod of its own, with arguments beside the defaults.
    pub fn control(&self, arguments: &[&str]) -> Result<Control> {
        let mut control = self.control_to_be(arguments)?;
        control.launch()?;
        Ok(control)
    }

    /// A control plane that does not run yet.
    pub fn control_to_be(&self, arguments: &[&str]) -> Result<Control> {
        let pod = Pod::new(
            Arc::clone(&self.bridge),
            "control",
            CONTROL_HOST,
            &[Family::V4, Family::V6],
        )?;
        Control::new(pod, arguments)
    }

    /// Where the programs' output is.
    pub fn folder(&self) -> &Path {
        &self.bridge.folder
    }

    /// Lets the logs go with the mesh: for those who have shown what is worth showing.
    pub fn forget_logs(&self) {
        self.kept.set(false);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.kept.get() || std::thread::panicking() {
            self.bridge.show_logs();
        } else {
            let _ = netns::remove_dir(&self.bridge.folder);
        }
    }
}

/// The namespace that the pods' links lead to: the last pod's end, or the mesh's, removes it.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) prefix: String,
    pub(crate) namespace: String,
    pub(crate) folder: PathBuf,
}

impl Bridge {
    fn new(prefix: String) -> Result<Bridge> {
        let namespace = format!("{prefix}bridge");
        let folder = std::env::temp_dir().join(prefix.trim_end_matches('-'));
        open_folder(&folder)?;
        netns::add(&namespace)?;
        let bridge = Bridge {
            prefix,
            namespace,
            folder,
        };
        let in_bridge = |args: &[&str]| ip(&[&["-n", &bridge.namespace], args].concat());
        in_bridge(&["link", "add", "br0", "type", "bridge"])?;
        // The pods' default route: what is sent beyond the mesh goes out, as it does in a cluster, and is lost here.
        in_bridge(&["addr", "add", &format!("{}/16", Family::V4.address(1)), "dev", "br0"])?;
        in_bridge(&[
            "addr",
            "add",
            &format!("{}/64", Family::V6.address(1)),
            "dev",
            "br0",
            "nodad",
        ])?;
        in_bridge(&["link", "set", "br0", "up"])?;
        Ok(bridge)
    }

    fn show_logs(&self) {
        let mut logs: Vec<_> = walk(&self.folder)
            .into_iter()
            .filter(|path| path.extension() == Some("log".as_ref()))
            .collect();
        logs.sort();
        for log in logs {
            let text = fs::read(&log)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            if text.trim().is_empty() {
                continue;
            }
            let lines: Vec<_> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!(
                "--- {} (the last {} of {} lines)\n{}",
                log.display(),
                shown.len(),
                lines.len(),
                shown.join("\n")
            );
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = netns::remove(&self.namespace);
    }
}

/// A folder that programs of every user can read: root's own folders are closed to them.
pub(crate) fn open_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

const DNS_HOST: u8 = 53;
const CONTROL_HOST: u8 = 54;
const FIRST_HOST: u8 = 101;
const SHOWN_LINES: usize = 40;
