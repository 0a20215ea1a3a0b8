//! Brings the kernel's rules to what they should be, and explains what it refuses.

use nix::{errno::Errno, libc};

use super::{
    attribute::{self, Attribute},
    error::Error,
    message::{self, FAMILIES},
    netlink::{Entry, Failure, Message, Netfilter},
    ruleset::{Family, Ruleset, TABLE},
};

/// What was there of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    Tables,
}

/// Whether the kernel had to be told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Made,
}

/// Makes these the only tables of ours, in one transaction, unless they are so already.
///
/// What was read and what is changed belong to one generation of the kernel's rules: if somebody else changes them in
/// between, the kernel refuses the transaction and it starts over.
pub(super) fn put(wanted: &Ruleset) -> Result<(Before, Change), Error> {
    let mut netfilter = Netfilter::open().map_err(Error::no_netfilter)?;
    for _ in 0..ATTEMPTS {
        match try_to_put(&mut netfilter, wanted) {
            Err(Stop::Overtaken) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Ok(done) => return Ok(done),
        }
    }
    Err(Error::Contended { attempts: ATTEMPTS })
}

enum Stop {
    Overtaken,
    Failed(Error),
}

fn try_to_put(netfilter: &mut Netfilter, wanted: &Ruleset) -> Result<(Before, Change), Stop> {
    let present = Present::read(netfilter).map_err(|failure| stop(failure, &[]))?;
    let before = if present.families.is_empty() {
        Before::Nothing
    } else {
        Before::Tables
    };
    if present.is(wanted) {
        return Ok((before, Change::None));
    }
    let mut messages: Vec<Message> = present.families.iter().map(|family| message::delete(*family)).collect();
    messages.extend(wanted.tables.iter().flat_map(message::add));
    netfilter
        .transact(&messages, present.generation)
        .map_err(|failure| stop(failure, &messages))?;
    Ok((before, Change::Made))
}

/// What the kernel has of ours.
struct Present {
    generation: u32,
    families: Vec<Family>,
    tables: Vec<Entry>,
    chains: Vec<Entry>,
    rules: Vec<Entry>,
}

impl Present {
    fn read(netfilter: &mut Netfilter) -> Result<Self, Failure> {
        let generation = netfilter.generation()?;
        let mut present = Present {
            generation,
            families: vec![],
            tables: vec![],
            chains: vec![],
            rules: vec![],
        };
        for family in FAMILIES {
            let mut ours = |kind, name| -> Result<Vec<Entry>, Failure> {
                // Somebody else's tables may be large: where the kernel heeds the name, only ours come. (Asked for all
                // families at once, it would stop at the first table of the name.)
                let named = [Attribute::text(name, TABLE)];
                let mut entries = netfilter.list(kind, message::number_of(family), &named)?;
                entries.retain(|entry| attribute::holds(&entry.attributes, &named));
                Ok(entries)
            };
            let tables = ours(libc::NFT_MSG_GETTABLE, message::NFTA_TABLE_NAME)?;
            if !tables.is_empty() {
                present.families.push(family);
                present.tables.extend(tables);
                present
                    .chains
                    .extend(ours(libc::NFT_MSG_GETCHAIN, message::NFTA_CHAIN_TABLE)?);
                present
                    .rules
                    .extend(ours(libc::NFT_MSG_GETRULE, message::NFTA_RULE_TABLE)?);
            }
        }
        Ok(present)
    }

    /// Whether the kernel's tables say exactly what these say.
    fn is(&self, wanted: &Ruleset) -> bool {
        self.families == wanted.tables.iter().map(|table| table.family).collect::<Vec<_>>()
            && wanted.tables.iter().all(|table| {
                let family = table.family;
                let rules: Vec<_> = table
                    .chains
                    .iter()
                    .flat_map(|chain| chain.rules.iter().map(|rule| message::rule(family, chain, rule)))
                    .collect();
                let chains: Vec<_> = table.chains.iter().map(message::chain).collect();
                says(&self.tables, family, &[message::table()])
                    && says(&self.chains, family, &chains)
                    && says(&self.rules, family, &rules)
            })
    }
}

/// Whether the entries of the family say this, in this order. (The kernel lists a table's chains as they were made, and
/// its rules chain by chain.)
fn says(entries: &[Entry], family: Family, expected: &[Vec<Attribute>]) -> bool {
    let entries: Vec<&Entry> = entries
        .iter()
        .filter(|entry| entry.family == message::number_of(family))
        .collect();
    entries.len() == expected.len()
        && entries
            .iter()
            .zip(expected)
            .all(|(entry, expected)| attribute::holds(&entry.attributes, expected))
}

fn stop(failure: Failure, messages: &[Message]) -> Stop {
    Stop::Failed(match failure {
        Failure::Overtaken => return Stop::Overtaken,
        Failure::Socket(source) => Error::Socket { source },
        Failure::Garbled => Error::Garbled,
        Failure::Refused(errno) => refused(errno),
        Failure::RefusedMessage { index, errno, blamed } => match messages.get(index) {
            Some(message) => refused_message(message, errno, blamed),
            None => refused(errno),
        },
    })
}

fn refused(errno: Errno) -> Error {
    match errno {
        Errno::EPERM | Errno::EACCES => Error::NotPermitted,
        // EINVAL is what netfilter says to a question of a subsystem that it has not, EOPNOTSUPP to a transaction.
        Errno::EINVAL | Errno::EOPNOTSUPP => Error::NoNftables,
        errno => Error::Refused {
            what: "the redirect rules as a whole".into(),
            source: errno.into(),
        },
    }
}

fn refused_message(message: &Message, errno: Errno, blamed: Option<String>) -> Error {
    let family = FAMILIES
        .into_iter()
        .find(|family| message::number_of(*family) == message.family);
    let absent = matches!(
        errno,
        Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT
    );
    match (message.kind, family) {
        _ if matches!(errno, Errno::EPERM | Errno::EACCES) => Error::NotPermitted,
        (libc::NFT_MSG_NEWTABLE, Some(family)) if absent => Error::NoFamily {
            family: family.to_string(),
        },
        (libc::NFT_MSG_NEWCHAIN, Some(family)) if absent => Error::NoNat {
            family: family.to_string(),
        },
        (libc::NFT_MSG_NEWRULE, _) if errno == Errno::ENOENT => Error::NoExpression {
            // Of the expressions used, this alone is not part of nf_tables itself.
            expression: blamed.unwrap_or_else(|| "redir".into()),
            rule: message.what.clone(),
        },
        _ => Error::Refused {
            what: message.what.clone(),
            source: errno.into(),
        },
    }
}

/// A ruleset that changes under five readings in a row is being fought over.
const ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redirect::{Layout, Settings};

    fn first(kind: libc::c_int, layout: Layout) -> Message {
        let ruleset = Ruleset::new(&Settings::default(), layout);
        let messages = ruleset.tables.iter().flat_map(message::add);
        messages
            .into_iter()
            .find(|message| message.kind == kind)
            .expect("there is one")
    }

    fn sentence(kind: libc::c_int, layout: Layout, errno: Errno, blamed: Option<&str>) -> (String, bool) {
        let error = refused_message(&first(kind, layout), errno, blamed.map(str::to_owned));
        (error.to_string(), error.is_lack_of_family())
    }

    #[test]
    fn what_the_kernel_lacks_is_named_with_what_to_load() {
        let (said, lack) = sentence(libc::NFT_MSG_NEWTABLE, Layout::Inet, Errno::EOPNOTSUPP, None);
        assert!(
            said.contains("`inet`") && said.contains("CONFIG_NF_TABLES_INET"),
            "{said}"
        );
        assert!(lack, "two tables may do");

        let (said, lack) = sentence(libc::NFT_MSG_NEWCHAIN, Layout::PerFamily, Errno::ENOENT, Some("nat"));
        assert!(said.contains("`ip`") && said.contains("nft_chain_nat"), "{said}");
        assert!(lack);

        let (said, lack) = sentence(libc::NFT_MSG_NEWRULE, Layout::Inet, Errno::ENOENT, Some("redir"));
        assert!(
            said.contains("nft_redir") && said.contains("tcp dport 4192 redirect to :4191"),
            "{said}"
        );
        assert!(lack, "redir in inet is younger than redir");

        let (said, lack) = sentence(libc::NFT_MSG_NEWRULE, Layout::Inet, Errno::ENOMEM, None);
        assert!(
            said.contains("add rule inet portunus outbound") && said.contains("memory"),
            "{said}"
        );
        assert!(!lack);
    }

    #[test]
    fn a_lack_of_privilege_is_told_as_one_wherever_it_shows() {
        for error in [
            refused(Errno::EPERM),
            refused_message(&first(libc::NFT_MSG_NEWTABLE, Layout::Inet), Errno::EPERM, None),
        ] {
            assert!(matches!(error, Error::NotPermitted));
            assert!(error.to_string().contains("NET_ADMIN"));
            assert!(!error.is_lack_of_family());
        }
    }

    #[test]
    fn a_kernel_without_nftables_is_told_as_one() {
        for errno in [Errno::EINVAL, Errno::EOPNOTSUPP] {
            assert!(refused(errno).to_string().contains("CONFIG_NF_TABLES"));
        }
    }
}
