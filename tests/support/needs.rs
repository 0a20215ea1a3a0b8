//! What the machine must have, each lack said in one sentence.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{netns, tools};

/// Installs what is missing for tests in pods, or says what cannot be; `say` hears of each step that takes time.
pub fn prepare(say: impl Fn(&str)) -> Result<()> {
    root()?;
    packages(&say)?;
    network_namespaces()?;
    nftables()?;
    netns::sweep()
}

/// Root, for namespaces and for programs of other users.
pub fn root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("pods are network namespaces, which only root can make: run this as root");
    }
    Ok(())
}

/// The Debian packages of `tools/apt.txt`.
fn packages(say: &impl Fn(&str)) -> Result<()> {
    let missing: Vec<_> = tools::listed(include_str!("../tools/apt.txt"))
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    let apt = |args: &[&str]| -> Result<()> {
        let output = Command::new("apt-get")
            .args(["-qq", "-o", "DPkg::Lock::Timeout=120"])
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // A package's service is not for this machine to run.
            .env("RUNLEVEL", "1")
            .output()
            .with_context(|| {
                format!(
                    "cannot install {} without apt-get: install them by hand",
                    missing.join(", ")
                )
            })?;
        if !output.status.success() {
            bail!(
                "`apt-get {}` failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat())
}

fn is_installed(package: &str) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output();
    query.is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn network_namespaces() -> Result<()> {
    let probe = format!("{}probe", netns::prefix()?);
    netns::add(&probe).context("this machine cannot make network namespaces")?;
    let bridge = netns::ip(&["-n", &probe, "link", "add", "br0", "type", "bridge"])
        .context("this kernel has no bridges between network namespaces");
    let veth = netns::ip(&[
        "-n", &probe, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1",
    ])
    .context("this kernel has no veth links between network namespaces");
    let removed = netns::remove(&probe);
    bridge.and(veth).and(removed)
}

fn nftables() -> Result<()> {
    let probe = format!("{}probe-nft", netns::prefix()?);
    netns::add(&probe)?;
    let redirect = "add table inet probe; add chain inet probe out { type nat hook output priority -100; }; \
                    add rule inet probe out meta skuid != 2102 meta l4proto tcp redirect to :4140";
    let rules = netns::ip(&["netns", "exec", &probe, "nft", redirect])
        .context("this kernel cannot redirect connections by nftables (nf_tables, nft_redir, IPv4 and IPv6)");
    let removed = netns::remove(&probe);
    rules.and(removed)
}
