//! Why the rules could not be installed or removed: each a sentence that says what to do.

use std::io;

use nix::errno::Errno;

/// Why the redirect rules are as they were before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict themselves.
    #[error("redirect settings: {0}")]
    Settings(String),

    /// The capability is missing.
    #[error(
        "redirect rules need the capability NET_ADMIN in the pod's network namespace, which this process lacks: \
         give it to the init container (securityContext.capabilities.add: [NET_ADMIN]), or run it as root"
    )]
    NotPermitted,

    /// No netfilter by netlink at all.
    #[error(
        "this kernel offers no netfilter netlink ({source}): load nfnetlink (CONFIG_NETFILTER_NETLINK) on the node, \
         or allow AF_NETLINK in the container's seccomp profile"
    )]
    NoNetfilter {
        /// What it said to the socket.
        source: io::Error,
    },

    /// No nftables.
    #[error("this kernel has no nftables: load nf_tables (CONFIG_NF_TABLES) on the node")]
    NoNftables,

    /// No tables of a family.
    #[error(
        "this kernel has no nftables of the family `{family}`: load nf_tables with CONFIG_NF_TABLES_{} on the node",
        config_of(family)
    )]
    NoFamily {
        /// inet, ip or ip6.
        family: String,
    },

    /// No nat in a family.
    #[error(
        "this kernel has no nat in nftables of the family `{family}`: load nft_chain_nat (CONFIG_NFT_NAT, CONFIG_NF_NAT) on \
         the node{}",
        if family == "ip6" { ", or disable IPv6 in the pod: without nat it would be a way around the proxy" } else { "" }
    )]
    NoNat {
        /// inet, ip or ip6.
        family: String,
    },

    /// An expression is missing.
    #[error(
        "this kernel lacks the nftables expression `{expression}`: load nft_{expression} (CONFIG_NFT_{}) on the node; it is \
         needed for `{rule}`",
        expression.to_ascii_uppercase()
    )]
    NoExpression {
        /// Its name.
        expression: String,
        /// What it is needed for, as one would say it to nft.
        rule: String,
    },

    /// Anything else that the kernel did not want.
    #[error("the kernel refused `{what}`: {source}")]
    Refused {
        /// What it was asked, as one would say it to nft.
        what: String,
        /// What it said.
        source: io::Error,
    },

    /// Somebody else is changing the rules all the time.
    #[error(
        "the nftables rules of this network namespace changed {attempts} times while the redirect rules were being put \
         there: find out who else changes them, and run it again"
    )]
    Contended {
        /// How often it was tried.
        attempts: u32,
    },

    /// The conversation broke off.
    #[error("the conversation with the kernel's netfilter broke off: {source}")]
    Socket {
        /// How.
        source: io::Error,
    },

    /// The kernel's answer cannot be read.
    #[error("the kernel's netfilter gave an answer that cannot be read: please report it with the kernel's version")]
    Garbled,
}

impl Error {
    /// No socket to begin with.
    pub(super) fn no_netfilter(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
                Error::NoNetfilter { source: errno.into() }
            }
            errno => Error::Socket { source: errno.into() },
        }
    }

    /// Whether other families may do what this one cannot.
    pub(super) fn is_lack_of_family(&self) -> bool {
        matches!(
            self,
            Error::NoFamily { .. } | Error::NoNat { .. } | Error::NoExpression { .. }
        )
    }
}

fn config_of(family: &str) -> &'static str {
    match family {
        "ip" => "IPV4",
        "ip6" => "IPV6",
        _ => "INET",
    }
}
