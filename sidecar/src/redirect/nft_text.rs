//! The rules as nft text.

use std::fmt::{self, Write};

use super::ruleset::{Chain, Match, PRIORITY, Rule, Ruleset, TABLE, Table, Verdict, Version};

/// Text for `nft -f` that puts the rules in the place of what is there, in one transaction.
pub(super) fn transaction(ruleset: &Ruleset) -> String {
    let mut text = String::new();
    write_transaction(&mut text, ruleset).expect("writing to a String does not fail");
    text
}

fn write_transaction(text: &mut String, ruleset: &Ruleset) -> fmt::Result {
    for Table { family, chains } in &ruleset.tables {
        // A table can only be deleted where it is: add it first, then nothing can fail.
        writeln!(text, "add table {family} {TABLE}")?;
        writeln!(text, "delete table {family} {TABLE}")?;
        writeln!(text, "table {family} {TABLE} {{")?;
        for Chain { name, hook, rules } in chains {
            writeln!(text, "\tchain {name} {{")?;
            writeln!(text, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;")?;
            for rule in rules {
                writeln!(text, "\t\t{rule}")?;
            }
            writeln!(text, "\t}}")?;
        }
        writeln!(text, "}}")?;
    }
    Ok(())
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for found in &self.matches {
            write!(f, "{found} ")?;
        }
        write!(f, "{} comment \"{}\"", self.verdict, self.why)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::User(uid) => write!(f, "meta skuid {uid}"),
            Match::Version(Version::V4) => write!(f, "meta nfproto ipv4"),
            Match::Version(Version::V6) => write!(f, "meta nfproto ipv6"),
            Match::To(subnet) => match Version::of(subnet.address()) {
                Version::V4 => write!(f, "ip daddr {subnet}"),
                Version::V6 => write!(f, "ip6 daddr {subnet}"),
            },
            Match::Tcp => write!(f, "meta l4proto tcp"),
            Match::TcpPorts(ports) if ports.start() == ports.end() => write!(f, "tcp dport {}", ports.start()),
            Match::TcpPorts(ports) => write!(f, "tcp dport {}-{}", ports.start(), ports.end()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Return => write!(f, "return"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::redirect::{Layout, Settings, render, render_as};

    #[test]
    fn the_text_says_every_rule_in_order() {
        let settings = Settings {
            skip_inbound_ports: "22".parse().expect("ports"),
            skip_outbound_ports: "25,1000-2000".parse().expect("ports"),
            skip_subnets: "10.0.0.0/8,fd00::/8,192.0.2.7".parse().expect("subnets"),
            ..Settings::default()
        };
        assert_eq!(
            render(&settings).expect("settings that stand"),
            r#"add table inet portunus
delete table inet portunus
table inet portunus {
	chain outbound {
		type nat hook output priority -100; policy accept;
		ip daddr 127.0.0.1 tcp dport 4192 redirect to :4191 comment "lets the proxy see that the rules are there"
		ip6 daddr ::1 tcp dport 4192 redirect to :4191 comment "lets the proxy see that the rules are there"
		meta skuid 2102 return comment "the proxy's own connections"
		ip daddr 127.0.0.0/8 return comment "loopback stays within the pod"
		ip6 daddr ::1 return comment "loopback stays within the pod"
		ip6 daddr fe80::/10 return comment "link-local sockets cannot reach the proxy"
		tcp dport 25 return comment "skipped outbound port"
		tcp dport 1000-2000 return comment "skipped outbound port"
		ip daddr 10.0.0.0/8 return comment "skipped subnet"
		ip6 daddr fd00::/8 return comment "skipped subnet"
		ip daddr 192.0.2.7 return comment "skipped subnet"
		meta l4proto tcp redirect to :4140 comment "outbound goes through the proxy"
	}
	chain inbound {
		type nat hook prerouting priority -100; policy accept;
		ip daddr 127.0.0.0/8 return comment "the kernel drops loopback that comes from the network"
		tcp dport 4191 return comment "the proxy's admin port"
		tcp dport 22 return comment "skipped inbound port"
		meta l4proto tcp redirect to :4143 comment "inbound goes through the proxy"
	}
}
"#
        );
    }

    #[test]
    fn a_kernel_without_nat_in_inet_gets_two_tables() {
        let text = render_as(&Settings::default(), Layout::PerFamily).expect("settings that stand");
        let (ip, ip6) = text.split_once("add table ip6 portunus").expect("both tables");
        assert!(ip.contains("table ip portunus {") && ip.contains("ip daddr 127.0.0.1 tcp dport 4192"));
        assert!(ip6.contains("table ip6 portunus {") && ip6.contains("ip6 daddr ::1 tcp dport 4192"));
        assert!(!ip.contains("ip6 daddr") && !ip6.contains("ip daddr"));
    }
}
