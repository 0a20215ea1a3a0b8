//! Installs the pod's redirect rules: one nftables transaction by netlink, without any binary.
//!
//! What the rules say, and the walk of a packet through them, is told in `ruleset`: one pure description from which
//! both the nft text of `--dry-run` and the netlink messages are made, so that they cannot differ. [`install`] and
//! [`remove`] need CAP_NET_ADMIN and nothing else; the proxy has no such privilege and learns by [`installed`] that the
//! rules are there.

mod attribute;
mod error;
mod kernel;
mod message;
mod netlink;
mod nft_text;
mod ports;
mod probe;
mod ruleset;
mod subnets;

use std::{fmt, path::Path};

pub use self::{
    error::Error,
    ports::{PortMistake, Ports},
    probe::{Missing, dial_ourselves, installed},
    subnets::{Subnet, SubnetMistake, Subnets},
};

use self::ruleset::Ruleset;

/// A port of 127.0.0.1 and ::1 that the rules lead to the admin port for everybody, so that the proxy sees that they are
/// there. None of the proxy's own ports may be this one.
pub const PROBE_PORT: u16 = 4192;

/// What is led where, and what is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the application's outbound TCP connections are led. Default 4140.
    pub outbound_port: u16,
    /// Where the network's inbound TCP connections are led. Default 4143.
    pub inbound_port: u16,
    /// The proxy's admin port, which the network reaches directly. Default 4191.
    pub admin_port: u16,
    /// A port of 127.0.0.1 and ::1 that leads to the admin port for everybody, so that the proxy can see that the
    /// rules are there. What an application listens for on this port stays reachable under any other address.
    /// Default [`PROBE_PORT`].
    pub probe_port: u16,
    /// The user whose connections are never intercepted: the proxy itself. Default 2102.
    pub proxy_uid: u32,
    /// Ports of this pod that the network reaches without the proxy.
    pub skip_inbound_ports: Ports,
    /// Ports anywhere that the application reaches without the proxy.
    pub skip_outbound_ports: Ports,
    /// Destinations that the application reaches without the proxy. They say nothing about who may call: a source
    /// address is no proof.
    pub skip_subnets: Subnets,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            outbound_port: 4140,
            inbound_port: 4143,
            admin_port: 4191,
            probe_port: PROBE_PORT,
            proxy_uid: 2102,
            skip_inbound_ports: Ports::default(),
            skip_outbound_ports: Ports::default(),
            skip_subnets: Subnets::default(),
        }
    }
}

impl Settings {
    /// Every way in which the settings contradict themselves, in one error.
    fn check(&self) -> Result<(), Error> {
        let named = [
            ("outbound", self.outbound_port),
            ("inbound", self.inbound_port),
            ("admin", self.admin_port),
            ("probe", self.probe_port),
        ];
        let mut mistakes = Vec::new();
        for (at, (name, port)) in named.iter().enumerate() {
            if *port == 0 {
                mistakes.push(format!("the {name} port must not be 0"));
            }
            for (other, _) in named[..at].iter().filter(|(_, earlier)| earlier == port) {
                mistakes.push(format!(
                    "the {other} and the {name} port are both {port}, and must differ"
                ));
            }
        }
        if mistakes.is_empty() {
            Ok(())
        } else {
            Err(Error::Settings(mistakes.join("; ")))
        }
    }
}

/// How the rules are spread over nftables' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One table of the family `inet` for both address families (Linux 5.2 and later).
    Inet,
    /// A table of the family `ip` and one of `ip6`, for a kernel without nat in `inet`.
    PerFamily,
    /// A table of the family `ip` alone, for a kernel without IPv6.
    V4Only,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Inet => "one inet table",
            Layout::PerFamily => "an ip and an ip6 table, since this kernel has no nat in inet",
            Layout::V4Only => "an ip table alone, since this kernel has no IPv6",
        })
    }
}

/// What [`install`] found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There were no rules of ours; now they are there.
    Installed(Layout),
    /// There were other rules of ours; these took their place in one step, and no connection went by in between.
    Replaced(Layout),
    /// Exactly these rules were there already; nothing was sent to the kernel.
    Unchanged(Layout),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Installed(layout) => write!(f, "redirect rules installed ({layout})"),
            Outcome::Replaced(layout) => write!(f, "redirect rules replaced ({layout})"),
            Outcome::Unchanged(layout) => write!(f, "redirect rules were there already ({layout})"),
        }
    }
}

/// What [`remove`] found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The rules are gone.
    Removed,
    /// There were none of ours.
    NothingThere,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Removal::Removed => "redirect rules removed",
            Removal::NothingThere => "no redirect rules were there to remove",
        })
    }
}

/// Puts the rules into the calling thread's network namespace, all or none of them, and says what there was to do.
///
/// Tables of ours that say something else are replaced in the same transaction; everybody else's are left alone.
/// Connections that the rules led somewhere before go on as they are; those that are older than any rule may be cut
/// (`ruleset` says why): this is for a pod whose application has not started yet. Needs CAP_NET_ADMIN. Blocks for some
/// milliseconds: it is the work of an init container, not of a worker.
///
/// # Errors
///
/// Settings that contradict themselves, a missing capability, and whatever the kernel lacks. Nothing was changed then.
pub fn install(settings: &Settings) -> Result<Outcome, Error> {
    match install_as(settings, Layout::Inet) {
        Err(error) if error.is_lack_of_family() => match install_as(settings, Layout::PerFamily) {
            // Without IPv6 in the kernel nothing goes by over it; with it, half a set of rules would be a way around.
            Err(error) if error.is_lack_of_family() && !Path::new("/proc/thread-self/net/if_inet6").exists() => {
                install_as(settings, Layout::V4Only)
            }
            answer => answer,
        },
        answer => answer,
    }
}

/// [`install`] in a layout that the caller chooses.
///
/// # Errors
///
/// As [`install`], and where the kernel cannot do this layout.
pub fn install_as(settings: &Settings, layout: Layout) -> Result<Outcome, Error> {
    settings.check()?;
    let (before, now) = kernel::put(&Ruleset::new(settings, layout))?;
    Ok(match (before, now) {
        (_, kernel::Change::None) => Outcome::Unchanged(layout),
        (kernel::Before::Nothing, kernel::Change::Made) => Outcome::Installed(layout),
        (kernel::Before::Tables, kernel::Change::Made) => Outcome::Replaced(layout),
    })
}

/// Takes the rules, of whatever layout, out of the calling thread's network namespace.
///
/// Connections that the rules led somewhere stand still then, unless somebody else has nat rules there: with the last
/// of these the kernel stops translating.
///
/// # Errors
///
/// A missing capability, or a kernel without nftables.
pub fn remove() -> Result<Removal, Error> {
    let (before, _) = kernel::put(&Ruleset::empty())?;
    Ok(match before {
        kernel::Before::Nothing => Removal::NothingThere,
        kernel::Before::Tables => Removal::Removed,
    })
}

/// The rules as text for `nft -f`, which replaces what is there in one transaction as [`install`] does.
///
/// # Errors
///
/// Settings that contradict themselves.
pub fn render(settings: &Settings) -> Result<String, Error> {
    render_as(settings, Layout::Inet)
}

/// [`render`] in a layout that the caller chooses.
///
/// # Errors
///
/// Settings that contradict themselves.
pub fn render_as(settings: &Settings, layout: Layout) -> Result<String, Error> {
    settings.check()?;
    Ok(nft_text::transaction(&Ruleset::new(settings, layout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_collide_are_all_named_at_once() {
        let settings = Settings {
            outbound_port: 0,
            inbound_port: 4191,
            ..Settings::default()
        };
        let sentence = install(&settings)
            .expect_err("refused before the kernel is asked")
            .to_string();
        assert!(sentence.contains("the outbound port must not be 0"), "{sentence}");
        assert!(
            sentence.contains("the inbound and the admin port are both 4191"),
            "{sentence}"
        );
        assert!(render(&settings).is_err());
    }
}
