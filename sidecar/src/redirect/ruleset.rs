//! The rules: which first packets of TCP connections are led to the proxy, told once and purely.
//!
//! Both chains are of the type nat: only the first packet of a connection walks through them, and the kernel's
//! connection tracking treats the rest, both ways, alike. Therefore connections that were led somewhere go on when the
//! rules are replaced. (When they are removed and nobody else has nat there, the kernel stops translating, and those
//! connections stand still.) UDP, ICMP and all else match no rule that redirects.
//!
//! # The walk of a packet
//!
//! ```text
//! application -> neighbour      outbound: no exemption fits -> 127.0.0.1:4140 (IPv6: [::1]:4140), over lo.
//! proxy -> neighbour            outbound: its user is exempt -> leaves as it is.
//! neighbour -> application      inbound: -> port 4143 of the interface's own address.
//! neighbour -> 4191             inbound: exempt -> the admin port.
//! proxy -> application          outbound: its user is exempt -> the pod's own address, over lo; inbound is not asked
//!                               (below).
//! application -> 127.0.0.1      outbound: exempt -> stays within the pod, as if there were no mesh.
//! application -> fe80::/10      outbound: exempt -> leaves as it is.
//! application -> own address    outbound: no exemption fits, though the kernel routes it over lo -> 127.0.0.1:4140
//!                               with the pod's own address as original destination; the proxy treats it as any other
//!                               RPC and, should it pick this very pod, dials the pod's own address: "proxy ->
//!                               application".
//! anybody -> 127.0.0.1:4192     outbound: the first rules of all -> 127.0.0.1:4191 (IPv6 likewise).
//! ```
//!
//! Nothing loops: what the proxy dials leaves `outbound` by its user, and what travels over lo never meets `inbound`,
//! since the kernel binds the destination of a connection once, at the first of the two hooks, even if no rule there
//! wanted to change it. That is why lo needs no rule in `inbound`, and why a self-call needs none of its own.
//! Others (linkerd-init, istio-iptables) leave alone whatever goes out over lo, so that a pod's call to its own address
//! passes its proxy by; here such a call is balanced, timed and counted as any other.
//!
//! # What is not here, and why
//!
//! - No match on SYN. It would let connections that are older than the rules live on. But tracking picks up connections
//!   in the middle: a stranger's lone ACK that the pod drops without a word (one with an unasked-for MD5 signature, say)
//!   makes an entry without redirection, and a SYN with the same ports then walks to the application past the proxy.
//!   Whatever comes first is redirected.
//! - No interception of what the application dials at IPv6 link-local addresses: such an address means something only
//!   on its link, its socket is bound to that link, and so the way to the proxy on loopback is closed to it. (For the
//!   same reason a socket that an application bound to a device by SO_BINDTODEVICE reaches nobody, neither the proxy
//!   nor its destination; no rule can tell it from others.) From the network they are redirected as all others.
//! - No exemption by source address: a source is no proof of who is calling.
//! - IPv4 loopback destinations from the network are not redirected, so that the kernel drops them as the martians they
//!   are; redirected, they would arrive as a wish to reach what listens on loopback alone. (For IPv6 the kernel drops
//!   them before it asks the rules.)

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use super::{Layout, Settings, Subnet};

/// The name of our tables; nothing outside them is touched.
pub(super) const TABLE: &str = "portunus";

/// The priority of destination nat (NF_IP_PRI_NAT_DST): after connection tracking, before routing.
pub(super) const PRIORITY: i32 = -100;

/// All tables of ours that should be there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ruleset {
    pub(super) tables: Vec<Table>,
}

/// A table named [`TABLE`] of one family, with its two chains.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: Family,
    pub(super) chains: [Chain; 2],
}

/// A family of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Inet,
    Ip,
    Ip6,
}

/// A base chain of the type nat at [`PRIORITY`], with the policy accept.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Hook,
    pub(super) rules: Vec<Rule>,
}

/// Where the kernel asks a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Output,
    Prerouting,
}

/// If all of this matches, that happens to the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) verdict: Verdict,
    pub(super) why: &'static str,
}

/// What a first packet is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The process that sends it runs as this user.
    User(u32),
    /// It is IPv4, or IPv6.
    Version(Version),
    /// It goes to one of these addresses; never all of a family, which is `Version`.
    To(Subnet),
    /// It is TCP.
    Tcp,
    /// It is TCP to one of these ports.
    TcpPorts(RangeInclusive<u16>),
}

/// A version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// What happens to a connection whose first packet matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is left alone by this chain.
    Return,
    /// It goes to this port of this host.
    Redirect(u16),
}

impl Ruleset {
    /// The rules that the settings ask for.
    pub(super) fn new(settings: &Settings, layout: Layout) -> Self {
        let families: &[Family] = match layout {
            Layout::Inet => &[Family::Inet],
            Layout::PerFamily => &[Family::Ip, Family::Ip6],
            Layout::V4Only => &[Family::Ip],
        };
        let (outbound, inbound) = (outbound(settings), inbound(settings));
        let table = |&family: &Family| {
            let of_family = |rules: &[Rule]| rules.iter().filter_map(|rule| rule.in_family(family)).collect();
            Table {
                family,
                chains: [
                    Chain {
                        name: "outbound",
                        hook: Hook::Output,
                        rules: of_family(&outbound),
                    },
                    Chain {
                        name: "inbound",
                        hook: Hook::Prerouting,
                        rules: of_family(&inbound),
                    },
                ],
            }
        };
        Ruleset {
            tables: families.iter().map(table).collect(),
        }
    }

    /// No rules at all.
    pub(super) fn empty() -> Self {
        Ruleset { tables: Vec::new() }
    }
}

/// What happens to connections that begin in the pod, in the order in which it is asked.
fn outbound(settings: &Settings) -> Vec<Rule> {
    let probe = |address| Rule {
        matches: vec![
            Match::To(single(address)),
            Match::TcpPorts(settings.probe_port..=settings.probe_port),
        ],
        verdict: Verdict::Redirect(settings.admin_port),
        why: "lets the proxy see that the rules are there",
    };
    let leave = |matches, why| Rule {
        matches,
        verdict: Verdict::Return,
        why,
    };
    let mut rules = vec![
        // Before every exemption: the proxy itself has to get there, and by loopback.
        probe(V4_LOOPBACK),
        probe(V6_LOOPBACK),
        leave(vec![Match::User(settings.proxy_uid)], "the proxy's own connections"),
    ];
    rules.extend(loopback().map(|subnet| leave(vec![Match::To(subnet)], "loopback stays within the pod")));
    rules.push(leave(
        vec![Match::To(v6_link_local())],
        "link-local sockets cannot reach the proxy",
    ));
    let ports = settings.skip_outbound_ports.ranges().iter();
    rules.extend(ports.map(|ports| leave(vec![Match::TcpPorts(ports.clone())], "skipped outbound port")));
    rules.extend(
        settings
            .skip_subnets
            .iter()
            .map(|subnet| leave(vec![destination(subnet)], "skipped subnet")),
    );
    rules.push(Rule {
        matches: vec![Match::Tcp],
        verdict: Verdict::Redirect(settings.outbound_port),
        why: "outbound goes through the proxy",
    });
    rules
}

/// What happens to connections that reach the pod from the network, in the order in which it is asked.
fn inbound(settings: &Settings) -> Vec<Rule> {
    let leave = |matches, why| Rule {
        matches,
        verdict: Verdict::Return,
        why,
    };
    let mut rules = vec![
        leave(
            vec![Match::To(v4_loopback())],
            "the kernel drops loopback that comes from the network",
        ),
        leave(
            vec![Match::TcpPorts(settings.admin_port..=settings.admin_port)],
            "the proxy's admin port",
        ),
    ];
    let ports = settings.skip_inbound_ports.ranges().iter();
    rules.extend(ports.map(|ports| leave(vec![Match::TcpPorts(ports.clone())], "skipped inbound port")));
    rules.push(Rule {
        matches: vec![Match::Tcp],
        verdict: Verdict::Redirect(settings.inbound_port),
        why: "inbound goes through the proxy",
    });
    rules
}

fn destination(subnet: Subnet) -> Match {
    match (subnet.prefix(), Version::of(subnet.address())) {
        (0, version) => Match::Version(version),
        _ => Match::To(subnet),
    }
}

fn loopback() -> impl Iterator<Item = Subnet> {
    [v4_loopback(), single(V6_LOOPBACK)].into_iter()
}

fn v4_loopback() -> Subnet {
    Subnet::new(V4_LOOPBACK, 8).expect("8 is at most 32")
}

fn v6_link_local() -> Subnet {
    Subnet::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).into(), 10).expect("10 is at most 128")
}

fn single(address: IpAddr) -> Subnet {
    Subnet::new(address, if address.is_ipv4() { 32 } else { 128 }).expect("as many bits as the address has")
}

const V4_LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6_LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

impl Rule {
    /// The rule as a table of the family holds it; `None` where it could never match there.
    fn in_family(&self, family: Family) -> Option<Rule> {
        let sees = |version| match family {
            Family::Inet => true,
            Family::Ip => version == Version::V4,
            Family::Ip6 => version == Version::V6,
        };
        let mut rule = self.clone();
        for found in &self.matches {
            match found {
                Match::To(subnet) if !sees(Version::of(subnet.address())) => return None,
                Match::Version(version) if !sees(*version) => return None,
                Match::To(_) | Match::Version(_) | Match::User(_) | Match::Tcp | Match::TcpPorts(_) => {}
            }
        }
        if family != Family::Inet {
            rule.matches.retain(|found| !matches!(found, Match::Version(_)));
        }
        Some(rule)
    }
}

impl Version {
    /// The version of the protocol that carries packets to the address.
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Version::V4 } else { Version::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Hook::Output => "output",
            Hook::Prerouting => "prerouting",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            skip_inbound_ports: "22".parse().expect("ports"),
            skip_outbound_ports: "25,1000-2000".parse().expect("ports"),
            skip_subnets: "10.0.0.0/8,fd00::/8,::/0".parse().expect("subnets"),
            ..Settings::default()
        }
    }

    fn position(rules: &[Rule], wanted: impl Fn(&Rule) -> bool) -> usize {
        rules.iter().position(wanted).expect("there is such a rule")
    }

    #[test]
    fn the_probe_comes_before_the_exemption_that_would_hide_it() {
        let rules = outbound(&settings());
        let last_probe = rules
            .iter()
            .rposition(|rule| rule.verdict == Verdict::Redirect(4191))
            .expect("a probe");
        let first_exemption = position(&rules, |rule| rule.verdict == Verdict::Return);
        assert!(last_probe < first_exemption);
        assert_eq!(
            rules
                .iter()
                .filter(|rule| rule.verdict == Verdict::Redirect(4191))
                .count(),
            2
        );
    }

    #[test]
    fn what_is_left_alone_is_asked_before_what_redirects_everything() {
        for (rules, port) in [(outbound(&settings()), 4140), (inbound(&settings()), 4143)] {
            let everything = position(&rules, |rule| rule.matches == [Match::Tcp]);
            assert_eq!(everything, rules.len() - 1, "nothing is asked after it");
            assert_eq!(rules[everything].verdict, Verdict::Redirect(port));
        }
    }

    #[test]
    fn every_rule_that_redirects_asks_for_tcp() {
        for layout in [Layout::Inet, Layout::PerFamily, Layout::V4Only] {
            for table in Ruleset::new(&settings(), layout).tables {
                for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
                    let asks_for_tcp = rule
                        .matches
                        .iter()
                        .any(|m| matches!(m, Match::Tcp | Match::TcpPorts(_)));
                    assert!(asks_for_tcp || rule.verdict == Verdict::Return, "{rule:?}");
                }
            }
        }
    }

    #[test]
    fn a_table_of_one_family_holds_no_rule_of_the_other() {
        let ruleset = Ruleset::new(&settings(), Layout::PerFamily);
        let [ip, ip6] = ruleset.tables.as_slice() else {
            panic!("two tables")
        };
        for (table, foreign) in [(ip, Version::V6), (ip6, Version::V4)] {
            for rule in table.chains.iter().flat_map(|chain| &chain.rules) {
                for found in &rule.matches {
                    assert!(!matches!(found, Match::To(subnet) if Version::of(subnet.address()) == foreign));
                    assert!(
                        !matches!(found, Match::Version(_)),
                        "a table of one family need not ask for it"
                    );
                }
            }
        }
        let all_of_v6 = position(&ip6.chains[0].rules, |rule| rule.matches.is_empty());
        assert_eq!(ip6.chains[0].rules[all_of_v6].verdict, Verdict::Return);
        assert!(
            ip.chains[0].rules.iter().all(|rule| !rule.matches.is_empty()),
            "IPv4 is not skipped with ::/0"
        );
    }
}
