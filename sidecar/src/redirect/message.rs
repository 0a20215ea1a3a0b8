//! The rules as messages of nf_tables (`linux/netfilter/nf_tables.h`), the expressions as nft would choose them.

use nix::libc;

use super::{
    Subnet,
    attribute::Attribute,
    netlink::Message,
    ruleset::{Chain, Family, Hook, Match, PRIORITY, Rule, TABLE, Verdict, Version},
};

/// Everything that is needed to make the table.
pub(super) fn add(table: &super::ruleset::Table) -> Vec<Message> {
    let family = table.family;
    let mut messages = vec![Message {
        kind: libc::NFT_MSG_NEWTABLE,
        flags: libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        family: number_of(family),
        attributes: self::table(),
        what: format!("add table {family} {TABLE}"),
    }];
    for chain in &table.chains {
        messages.push(Message {
            kind: libc::NFT_MSG_NEWCHAIN,
            flags: libc::NLM_F_CREATE,
            family: number_of(family),
            attributes: self::chain(chain),
            what: format!(
                "add chain {family} {TABLE} {} {{ type nat hook {} }}",
                chain.name, chain.hook
            ),
        });
    }
    for chain in &table.chains {
        messages.extend(chain.rules.iter().map(|rule| Message {
            kind: libc::NFT_MSG_NEWRULE,
            flags: libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            family: number_of(family),
            attributes: self::rule(family, chain, rule),
            what: format!("add rule {family} {TABLE} {} {rule}", chain.name),
        }));
    }
    messages
}

/// Takes the table away with all that is in it.
pub(super) fn delete(family: Family) -> Message {
    Message {
        kind: libc::NFT_MSG_DELTABLE,
        flags: 0,
        family: number_of(family),
        attributes: vec![Attribute::text(NFTA_TABLE_NAME, TABLE)],
        what: format!("delete table {family} {TABLE}"),
    }
}

/// What identifies a table of ours and says how it is: none of its flags is set, so it is not dormant.
pub(super) fn table() -> Vec<Attribute> {
    vec![
        Attribute::text(NFTA_TABLE_NAME, TABLE),
        Attribute::number(NFTA_TABLE_FLAGS, 0),
    ]
}

/// All of a chain but its rules.
pub(super) fn chain(chain: &Chain) -> Vec<Attribute> {
    let hook = match chain.hook {
        Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
        Hook::Output => libc::NF_INET_LOCAL_OUT,
    };
    vec![
        Attribute::text(NFTA_CHAIN_TABLE, TABLE),
        Attribute::text(NFTA_CHAIN_NAME, chain.name),
        Attribute::Nest(
            NFTA_CHAIN_HOOK,
            vec![
                Attribute::number(NFTA_HOOK_HOOKNUM, hook as u32),
                Attribute::Value(NFTA_HOOK_PRIORITY, PRIORITY.to_be_bytes().to_vec()),
            ],
        ),
        Attribute::number(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32),
        Attribute::text(NFTA_CHAIN_TYPE, "nat"),
    ]
}

/// A rule of a chain, in a table of the family.
pub(super) fn rule(family: Family, chain: &Chain, rule: &Rule) -> Vec<Attribute> {
    let expressions = rule
        .matches
        .iter()
        .flat_map(|found| ask(family, found))
        .chain(decide(rule.verdict));
    vec![
        Attribute::text(NFTA_RULE_TABLE, TABLE),
        Attribute::text(NFTA_RULE_CHAIN, chain.name),
        Attribute::Nest(NFTA_RULE_EXPRESSIONS, expressions.collect()),
        Attribute::Value(NFTA_RULE_USERDATA, comment(rule.why)),
    ]
}

/// The number of the family in a message's header.
pub(super) fn number_of(family: Family) -> u8 {
    let number = match family {
        Family::Inet => libc::NFPROTO_INET,
        Family::Ip => libc::NFPROTO_IPV4,
        Family::Ip6 => libc::NFPROTO_IPV6,
    };
    number as u8
}

/// The families in which a table of ours may be.
pub(super) const FAMILIES: [Family; 3] = [Family::Inet, Family::Ip, Family::Ip6];

fn ask(family: Family, found: &Match) -> Vec<Attribute> {
    match found {
        // The kernel puts the user id and the like into the register as the machine writes numbers.
        Match::User(uid) => vec![
            meta(libc::NFT_META_SKUID),
            compare(libc::NFT_CMP_EQ, &uid.to_ne_bytes()),
        ],
        Match::Version(version) => ask_version(*version).into(),
        Match::To(subnet) => {
            let of_family = (family == Family::Inet).then(|| ask_version(Version::of(subnet.address())));
            of_family
                .into_iter()
                .flatten()
                .chain(ask_destination(*subnet))
                .collect()
        }
        Match::Tcp => ask_tcp().into(),
        Match::TcpPorts(ports) => {
            let [first, last] = [ports.start().to_be_bytes(), ports.end().to_be_bytes()];
            let port = payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, TCP_DESTINATION, 2);
            let mut expressions = Vec::from(ask_tcp());
            expressions.push(port);
            if first == last {
                expressions.push(compare(libc::NFT_CMP_EQ, &first));
            } else {
                expressions.extend([compare(libc::NFT_CMP_GTE, &first), compare(libc::NFT_CMP_LTE, &last)]);
            }
            expressions
        }
    }
}

fn ask_version(version: Version) -> [Attribute; 2] {
    let number = match version {
        Version::V4 => libc::NFPROTO_IPV4,
        Version::V6 => libc::NFPROTO_IPV6,
    };
    [meta(libc::NFT_META_NFPROTO), compare(libc::NFT_CMP_EQ, &[number as u8])]
}

fn ask_tcp() -> [Attribute; 2] {
    [
        meta(libc::NFT_META_L4PROTO),
        compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_TCP as u8]),
    ]
}

fn ask_destination(subnet: Subnet) -> Vec<Attribute> {
    let (offset, address) = match subnet.address() {
        std::net::IpAddr::V4(address) => (IPV4_DESTINATION, address.octets().to_vec()),
        std::net::IpAddr::V6(address) => (IPV6_DESTINATION, address.octets().to_vec()),
    };
    let mut expressions = vec![payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, address.len() as u32)];
    if !subnet.is_single() {
        expressions.push(keep_bits(&subnet.mask()));
    }
    expressions.push(compare(libc::NFT_CMP_EQ, &address));
    expressions
}

fn decide(verdict: Verdict) -> Vec<Attribute> {
    match verdict {
        Verdict::Return => {
            let code = Attribute::Value(NFTA_VERDICT_CODE, libc::NFT_RETURN.to_be_bytes().to_vec());
            vec![immediate(
                libc::NFT_REG_VERDICT,
                Attribute::Nest(NFTA_DATA_VERDICT, vec![code]),
            )]
        }
        Verdict::Redirect(port) => vec![
            immediate(
                libc::NFT_REG_1,
                Attribute::Value(NFTA_DATA_VALUE, port.to_be_bytes().to_vec()),
            ),
            expression(
                "redir",
                vec![Attribute::number(NFTA_REDIR_REG_PROTO_MIN, libc::NFT_REG_1 as u32)],
            ),
        ],
    }
}

fn meta(key: libc::c_int) -> Attribute {
    expression(
        "meta",
        vec![
            Attribute::number(NFTA_META_DREG, libc::NFT_REG_1 as u32),
            Attribute::number(NFTA_META_KEY, key as u32),
        ],
    )
}

fn payload(header: libc::c_int, offset: u32, length: u32) -> Attribute {
    expression(
        "payload",
        vec![
            Attribute::number(NFTA_PAYLOAD_DREG, libc::NFT_REG_1 as u32),
            Attribute::number(NFTA_PAYLOAD_BASE, header as u32),
            Attribute::number(NFTA_PAYLOAD_OFFSET, offset),
            Attribute::number(NFTA_PAYLOAD_LEN, length),
        ],
    )
}

fn keep_bits(mask: &[u8]) -> Attribute {
    let value = |bytes: Vec<u8>| vec![Attribute::Value(NFTA_DATA_VALUE, bytes)];
    expression(
        "bitwise",
        vec![
            Attribute::number(NFTA_BITWISE_SREG, libc::NFT_REG_1 as u32),
            Attribute::number(NFTA_BITWISE_DREG, libc::NFT_REG_1 as u32),
            Attribute::number(NFTA_BITWISE_LEN, mask.len() as u32),
            Attribute::Nest(NFTA_BITWISE_MASK, value(mask.to_vec())),
            Attribute::Nest(NFTA_BITWISE_XOR, value(vec![0; mask.len()])),
        ],
    )
}

fn compare(operation: libc::c_int, with: &[u8]) -> Attribute {
    expression(
        "cmp",
        vec![
            Attribute::number(NFTA_CMP_SREG, libc::NFT_REG_1 as u32),
            Attribute::number(NFTA_CMP_OP, operation as u32),
            Attribute::Nest(NFTA_CMP_DATA, vec![Attribute::Value(NFTA_DATA_VALUE, with.to_vec())]),
        ],
    )
}

fn immediate(register: libc::c_int, data: Attribute) -> Attribute {
    expression(
        "immediate",
        vec![
            Attribute::number(NFTA_IMMEDIATE_DREG, register as u32),
            Attribute::Nest(NFTA_IMMEDIATE_DATA, vec![data]),
        ],
    )
}

fn expression(name: &str, data: Vec<Attribute>) -> Attribute {
    Attribute::Nest(
        NFTA_LIST_ELEM,
        vec![
            Attribute::text(NFTA_EXPR_NAME, name),
            Attribute::Nest(NFTA_EXPR_DATA, data),
        ],
    )
}

/// A comment as nft keeps it: its own list of kind, length and value, of which the kernel knows nothing.
fn comment(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len() + 1).expect("comments of ours are short");
    [&[NFTNL_UDATA_RULE_COMMENT, length], text.as_bytes(), &[0]].concat()
}

const IPV4_DESTINATION: u32 = 16;
const IPV6_DESTINATION: u32 = 24;
const TCP_DESTINATION: u32 = 2;

// linux/netfilter/nf_tables.h
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
pub(super) const NFTA_GEN_ID: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
// libnftnl/udata.h
const NFTNL_UDATA_RULE_COMMENT: u8 = 0;
