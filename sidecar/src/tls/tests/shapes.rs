//! Certificates with one thing wrong each, and the word for it: each defect by itself, and among whatever an honest
//! certificate may have besides. The `identity` tests of the whole sidecar use this file, too.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use portunus_proto::svid::Usage;
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, ExtendedKeyUsagePurpose as Eku,
};
use rcgen::{IsCa, KeyPair, KeyUsagePurpose as Ku};

use super::authority::{Authority, OURS, PEERS, Shown, soon};
use super::draft::{DNS, Draft, Holder, IP, KeyKind, MAIL, Named, Shows, Signer, Top, URI};
use super::draft::{common_name, der, extension, names};

/// What may be wrong. Of each but the last two there are at least [`LEAST`] shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ForeignTrustDomain,
    Expired,
    NotYetValid,
    SelfSigned,
    CaAsLeaf,
    NoUriName,
    SeveralUriNames,
    BadSyntax,
    UpperCase,
    NulOrNotAscii,
    KeyUsage,
    ExtendedKeyUsage,
    ForeignIssuer,
    NameConstraints,
    /// A chain that breaks another rule, bytes that are none or not those that were signed.
    Other,
    /// Nothing.
    Right,
}

/// At least so many shapes there are of a kind.
pub(super) const LEAST: usize = 20;

impl Kind {
    pub(super) const ALL: [Kind; 14] = [
        Kind::ForeignTrustDomain,
        Kind::Expired,
        Kind::NotYetValid,
        Kind::SelfSigned,
        Kind::CaAsLeaf,
        Kind::NoUriName,
        Kind::SeveralUriNames,
        Kind::BadSyntax,
        Kind::UpperCase,
        Kind::NulOrNotAscii,
        Kind::KeyUsage,
        Kind::ExtendedKeyUsage,
        Kind::ForeignIssuer,
        Kind::NameConstraints,
    ];
}

/// One certificate, with its chain.
pub(super) struct Shape<'a> {
    pub(super) kind: Kind,
    /// What is wrong.
    pub(super) defect: &'static str,
    /// What else is uncommon, and right.
    pub(super) around: &'static str,
    /// The reason that has to be named.
    pub(super) reason: &'static str,
    changes: Vec<Change>,
    root: &'a Authority,
}

impl Shape<'_> {
    pub(super) fn name(&self) -> String {
        format!("{:?}: {}, {}", self.kind, self.defect, self.around)
    }

    /// Made now, since a part of them tells the time.
    pub(super) fn show(&self) -> Shown {
        let mut draft = Draft::new();
        for change in &self.changes {
            change(&mut draft);
        }
        draft.show(self.root)
    }
}

/// Fails if there are too few of some kind.
pub(super) fn enough_of_each(shapes: &[Shape<'_>]) {
    for kind in Kind::ALL {
        let names = shapes.iter().filter(|shape| shape.kind == kind).map(Shape::name);
        let names: BTreeSet<_> = names.collect();
        assert!(names.len() >= LEAST, "only {} of {kind:?}", names.len());
    }
}

/// A part of the sentence that goes with a reason.
#[allow(dead_code, reason = "control has an alert for each, and no sentence")]
pub(super) fn sentence(reason: &str) -> &'static str {
    match reason {
        "no_certificate" => "showed no certificate",
        "unknown_issuer" => "no root of this mesh certified",
        "self_signed" => "is signed by itself",
        "foreign_trust_domain" => "which is not of the trust domain cluster.local",
        "expired" => "ended ",
        "not_yet_valid" => "is a clock wrong?",
        "ca_as_leaf" => "is that of a certification authority",
        "no_uri_name" => "has no URI name",
        "several_uri_names" => "a SPIFFE certificate has one",
        "bad_spiffe_id" => "names no SPIFFE id",
        "key_usage" => "the key usage of the peer's certificate chain is wrong",
        "extended_key_usage" => "the extended key usage of the peer's certificate chain does not allow",
        "name_constraints" => "a name constraint of an issuer forbids",
        "wrong_identity" => "was to be reached",
        "bad_signature" => "a signature is wrong",
        "chain" => "certificate chain is not acceptable",
        "malformed" => "cannot be read",
        other => panic!("{other} has no sentence here"),
    }
}

type Change = Rc<dyn Fn(&mut Draft)>;
/// A change that needs nothing of what is around it.
type Plain = fn(&mut Draft);

/// What is wrong, the reason that has to be named, and how it is made.
type Defect = (&'static str, &'static str, Change);

/// All shapes that are wrong where a peer shows them for this use: the defects of each kind in plain surroundings, and one
/// of them in each of the others that it leaves alone. `root` is the one that is believed.
pub(super) fn wrong(root: &Authority, usage: Usage) -> Vec<Shape<'_>> {
    let mut shapes = Vec::new();
    let mut add = |kind, (defect, reason, change): &Defect, around: Option<&(About, &'static str, Plain)>| {
        let mut changes: Vec<Change> = Vec::new();
        changes.extend(around.map(|(_, _, change)| Rc::new(*change) as Change));
        changes.push(change.clone());
        shapes.push(Shape {
            kind,
            defect,
            around: around.map_or("plain", |(_, around, _)| *around),
            reason,
            changes,
            root,
        });
    };
    for kind in Kind::ALL {
        let (defects, leaves) = defects(kind, usage);
        for defect in &defects {
            add(kind, defect, None);
        }
        let around: Vec<_> = SURROUNDINGS.iter().filter(|(about, ..)| leaves(*about)).collect();
        for (around, defect) in around.into_iter().zip(defects.iter().cycle()) {
            add(kind, defect, Some(around));
        }
    }
    for (kind, defect) in alone() {
        add(kind, &defect, None);
    }
    shapes
}

/// Those that have nothing wrong.
pub(super) fn right(root: &Authority) -> Vec<Shape<'_>> {
    let around = SURROUNDINGS.iter().map(|(_, around, change)| (*around, *change));
    let others: [(&'static str, Plain); 5] = [
        ("nothing uncommon", |_| {}),
        ("an issuer's issuer without key usage", |draft| {
            draft.issuer(1).key_usages.clear()
        }),
        ("ended 15 seconds ago", |draft| draft.leaf.not_after = soon(-15).into()),
        // Each second that passes until it is judged makes it better.
        ("begins in 20 seconds", |draft| draft.leaf.not_before = soon(20).into()),
        ("constrained to DNS names, and has none", |draft| {
            constrain(
                draft.issuer(0),
                &[(0xa0, DNS, b"example.com"), (0xa1, DNS, b"shop.svc")],
            );
        }),
    ];
    let all = around.chain(others).map(|(around, change)| Shape {
        kind: Kind::Right,
        defect: "right",
        around,
        reason: "ok",
        changes: vec![Rc::new(change) as Change],
        root,
    });
    all.collect()
}

/// What surroundings are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Chain,
    Key,
    Names,
    Constraints,
    Usages,
    Times,
    Form,
}

/// What may be uncommon in a certificate that has nothing wrong.
static SURROUNDINGS: [(About, &str, Plain); 33] = [
    (About::Chain, "directly under the root", |draft| draft.issuers.clear()),
    (About::Chain, "under two issuers", |draft| {
        draft.issuer(1);
    }),
    (About::Chain, "its issuers in the wrong order", |draft| {
        draft.issuer(1);
        draft.arrange = |chain, _| chain[1..].reverse();
    }),
    (About::Chain, "the root shown, too", |draft| {
        draft.arrange = |chain, root| chain.push(root.issuer.der().clone());
    }),
    (About::Chain, "a stranger's root before its issuer", |draft| {
        draft.arrange = |chain, _| chain.insert(1, Authority::root("a stranger").issuer.der().clone());
    }),
    (
        About::Chain,
        "an issuer of ours that is not its own before it",
        |draft| {
            draft.arrange = |chain, root| chain.insert(1, root.below(|_| {}).chain.remove(0));
        },
    ),
    (About::Chain, "each issuer shown twice", |draft| {
        draft.arrange = |chain, _| chain.extend_from_within(1..);
    }),
    (About::Key, "P-384", |draft| draft.key = KeyKind::P384),
    (About::Key, "Ed25519", |draft| draft.key = KeyKind::Ed25519),
    (About::Key, "RSA", |draft| draft.key = KeyKind::Rsa),
    (About::Key, "its issuer's key P-384", |draft| {
        draft.issuers_key = KeyKind::P384
    }),
    (About::Key, "its issuer's key Ed25519", |draft| {
        draft.issuers_key = KeyKind::Ed25519
    }),
    (About::Key, "its issuer's key RSA", |draft| {
        draft.issuers_key = KeyKind::Rsa
    }),
    (About::Names, "a DNS name behind", |draft| {
        draft.names.push((DNS, b"caller.shop.svc".into()))
    }),
    (About::Names, "a DNS name before", |draft| {
        draft.names.insert(0, (DNS, b"caller.shop.svc".into()))
    }),
    (About::Names, "an address behind", |draft| {
        draft.names.push((IP, vec![192, 0, 2, 1]))
    }),
    (About::Names, "a mail address before", |draft| {
        draft.names.insert(0, (MAIL, b"caller@example.com".into()))
    }),
    (About::Names, "names on both sides", |draft| {
        draft.names.insert(0, (DNS, b"cluster.local".into()));
        draft.names.insert(0, (IP, vec![0; 16]));
        draft.names.push((MAIL, b"caller@example.com".into()));
        draft.names.push((DNS, b"*.cluster.local".into()));
    }),
    (About::Names, "the id that is wanted as its common name", |draft| {
        draft.leaf.distinguished_name = common_name(PEERS);
    }),
    (About::Names, "another's id as its common name", |draft| {
        draft.leaf.distinguished_name = common_name(OURS)
    }),
    (About::Names, "the id that is wanted as a DNS name, too", |draft| {
        draft.names.push((DNS, PEERS.into()))
    }),
    (About::Names, "another's id as a mail address", |draft| {
        draft.names.push((MAIL, OURS.into()))
    }),
    (About::Constraints, "no basic constraints", |draft| {
        draft.leaf.is_ca = IsCa::NoCa
    }),
    (
        About::Constraints,
        "basic constraints that nobody has to heed",
        |draft| {
            draft.leaf.is_ca = IsCa::NoCa;
            draft.extend(19, false, &[0x30, 0]);
        },
    ),
    (About::Usages, "no extended key usage", |draft| {
        draft.leaf.extended_key_usages.clear()
    }),
    (About::Usages, "more usages than it needs", |draft| {
        draft
            .leaf
            .key_usages
            .extend([Ku::KeyEncipherment, Ku::KeyAgreement, Ku::ContentCommitment]);
        draft
            .leaf
            .extended_key_usages
            .extend([Eku::CodeSigning, Eku::EmailProtection]);
    }),
    (
        About::Usages,
        "extended key usages that everybody has to heed",
        |draft| {
            draft.leaf.extended_key_usages.clear();
            draft.extend(37, true, &der(0x30, &[&SERVER_AUTH, &CLIENT_AUTH]));
        },
    ),
    (About::Times, "from 1970 until the last second of 2049", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(1).into(), unix(YEAR_2050 - 1).into());
    }),
    (About::Times, "until the first second of 2050", |draft| {
        draft.leaf.not_after = unix(YEAR_2050).into()
    }),
    (About::Times, "without an end", |draft| {
        draft.leaf.not_after = unix(END_OF_9999).into()
    }),
    (About::Form, "its extensions backwards", |draft| {
        draft.is_backwards = true
    }),
    (About::Form, "an extension that nobody knows or has to heed", |draft| {
        let unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        draft.leaf.custom_extensions.push(unknown);
    }),
    (About::Form, "no identifier of its issuer's key", |draft| {
        draft.leaf.use_authority_key_identifier_extension = false;
    }),
];

const SERVER_AUTH: [u8; 10] = [6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: [u8; 10] = [6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
/// From here on the form of times is another (RFC 5280, 4.1.2.5).
const YEAR_2050: i64 = 2_524_608_000;
const END_OF_9999: i64 = 253_402_300_799;

fn unix(seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::UNIX_EPOCH - by
    } else {
        SystemTime::UNIX_EPOCH + by
    }
}

/// The defects of a kind, and which surroundings they do not overwrite.
fn defects(kind: Kind, usage: Usage) -> (Vec<Defect>, fn(About) -> bool) {
    let any = |_: About| true;
    match kind {
        Kind::ForeignTrustDomain => (ids("foreign_trust_domain", &FOREIGN), any),
        Kind::Expired => (plain(&EXPIRED), |about| about != About::Times),
        Kind::NotYetValid => (plain(&NOT_YET_VALID), |about| about != About::Times),
        Kind::SelfSigned => (plain(&SELF_SIGNED), any),
        Kind::CaAsLeaf => (plain(&CA_AS_LEAF), |about| about != About::Constraints),
        Kind::NoUriName => (plain(&NO_URI_NAME), any),
        Kind::SeveralUriNames => (several(), any),
        Kind::BadSyntax => {
            let mut all = ids("bad_spiffe_id", &BAD_SYNTAX);
            let long = format!("{PEERS}/{}", "a".repeat(2_048));
            let change = move |draft: &mut Draft| draft.identify(long.as_bytes());
            all.push(("too long an id", "bad_spiffe_id", Rc::new(change)));
            (all, any)
        }
        Kind::UpperCase => (ids("bad_spiffe_id", &UPPER_CASE), any),
        Kind::NulOrNotAscii => (ids("bad_spiffe_id", &NUL_OR_NOT_ASCII), any),
        Kind::KeyUsage => (plain(&KEY_USAGE), |about| about != About::Usages),
        Kind::ExtendedKeyUsage => {
            let (this, other) = match usage {
                Usage::Client => (Eku::ClientAuth, Eku::ServerAuth),
                Usage::Server => (Eku::ServerAuth, Eku::ClientAuth),
            };
            let mut all = plain(&EXTENDED_KEY_USAGE);
            let (of_leaf, of_issuer) = (other.clone(), other);
            let change = move |draft: &mut Draft| draft.leaf.extended_key_usages = vec![of_leaf.clone()];
            all.push(("for the other end alone", "extended_key_usage", Rc::new(change)));
            let change = move |draft: &mut Draft| draft.issuer(0).extended_key_usages = vec![of_issuer.clone()];
            all.push((
                "its issuer is for the other end alone",
                "extended_key_usage",
                Rc::new(change),
            ));
            let change = move |draft: &mut Draft| {
                draft.issuer(1).extended_key_usages = vec![Eku::CodeSigning];
                draft.issuer(0).extended_key_usages = vec![this.clone()];
            };
            all.push(("its issuer's issuer is for code", "extended_key_usage", Rc::new(change)));
            (all, |about| about != About::Usages)
        }
        Kind::ForeignIssuer => (plain(&FOREIGN_ISSUER), any),
        Kind::NameConstraints => (plain(&NAME_CONSTRAINTS), |about| about != About::Names),
        Kind::Other | Kind::Right => (Vec::new(), any),
    }
}

fn plain(all: &'static [(&'static str, &'static str, Plain)]) -> Vec<Defect> {
    let all = all.iter();
    all.map(|(what, reason, change)| (*what, *reason, Rc::new(*change) as Change))
        .collect()
}

fn ids(reason: &'static str, all: &'static [(&'static str, &'static [u8])]) -> Vec<Defect> {
    let defect = |(what, id): &(&'static str, &'static [u8])| -> Defect {
        let id = *id;
        (*what, reason, Rc::new(move |draft: &mut Draft| draft.identify(id)))
    };
    all.iter().map(defect).collect()
}

const FOREIGN: [(&str, &[u8]); 10] = [
    (
        "another trust domain under our root",
        b"spiffe://elsewhere.example/ns/shop/sa/caller",
    ),
    ("begins like ours", b"spiffe://cluster.local.example/ns/shop/sa/caller"),
    ("ends like ours", b"spiffe://evil.cluster.local/ns/shop/sa/caller"),
    ("a letter less than ours", b"spiffe://cluster.loca/ns/shop/sa/caller"),
    ("a letter more than ours", b"spiffe://cluster.locall/ns/shop/sa/caller"),
    ("a dot behind ours", b"spiffe://cluster.local./ns/shop/sa/caller"),
    ("a dot before ours", b"spiffe://.cluster.local/ns/shop/sa/caller"),
    (
        "another letter for the dot",
        b"spiffe://cluster-local/ns/shop/sa/caller",
    ),
    ("ours is in the path", b"spiffe://a/cluster.local/ns/shop/sa/caller"),
    ("an address", b"spiffe://127.0.0.1/ns/shop/sa/caller"),
];

const EXPIRED: [(&str, &str, Plain); 11] = [
    // Each second that passes until it is judged makes it worse.
    ("ended 21 seconds ago", "expired", |draft| {
        draft.leaf.not_after = soon(-21).into()
    }),
    ("ended half a minute ago", "expired", |draft| {
        draft.leaf.not_after = soon(-30).into()
    }),
    ("ended a year ago", "expired", |draft| {
        life(&mut draft.leaf, -800 * DAY, -365 * DAY)
    }),
    ("lived for a second, a day ago", "expired", |draft| {
        life(&mut draft.leaf, -DAY, 1 - DAY)
    }),
    ("ended with the last century", "expired", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(1).into(), unix(946_684_799).into());
    }),
    ("ended with the first second of 1970", "expired", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(0).into(), unix(0).into());
    }),
    ("ended before 1970", "malformed", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(-2 * DAY).into(), unix(-DAY).into());
    }),
    // Of a year before 1950, which only the longer form can say.
    ("ended before 1950", "malformed", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(-30 * 365 * DAY).into(), unix(-25 * 365 * DAY).into());
    }),
    ("its issuer ended", "expired", |draft| {
        draft.issuer(0).not_after = soon(-21).into()
    }),
    ("its issuer's issuer ended", "expired", |draft| {
        life(draft.issuer(1), -2 * DAY, -DAY)
    }),
    ("ends before it begins", "malformed", |draft| {
        life(&mut draft.leaf, 60, -60)
    }),
];

const NOT_YET_VALID: [(&str, &str, Plain); 9] = [
    ("begins in 25 seconds", "not_yet_valid", |draft| {
        draft.leaf.not_before = soon(25).into()
    }),
    ("begins in a minute", "not_yet_valid", |draft| {
        draft.leaf.not_before = soon(60).into()
    }),
    ("begins in 400 days", "not_yet_valid", |draft| {
        life(&mut draft.leaf, 400 * DAY, 401 * DAY)
    }),
    ("begins with the last second of 2049", "not_yet_valid", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(YEAR_2050 - 1).into(), unix(YEAR_2050 + DAY).into());
    }),
    ("begins with 2050", "not_yet_valid", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(YEAR_2050).into(), unix(YEAR_2050 + DAY).into());
    }),
    ("is the last second of 9999", "not_yet_valid", |draft| {
        (draft.leaf.not_before, draft.leaf.not_after) = (unix(END_OF_9999).into(), unix(END_OF_9999).into());
    }),
    ("its issuer is to begin", "not_yet_valid", |draft| {
        draft.issuer(0).not_before = soon(25).into()
    }),
    ("its issuer is to begin with 2050", "not_yet_valid", |draft| {
        draft.issuer(0).not_before = unix(YEAR_2050).into();
    }),
    ("its issuer's issuer is to begin", "not_yet_valid", |draft| {
        life(draft.issuer(1), DAY, 2 * DAY)
    }),
];

const DAY: i64 = 86_400;

fn life(params: &mut CertificateParams, from: i64, until: i64) {
    (params.not_before, params.not_after) = (soon(from).into(), soon(until).into());
}

const SELF_SIGNED: [(&str, &str, Plain); 7] = [
    ("signed by itself", "self_signed", |draft| {
        draft.leaf.distinguished_name = common_name("me");
        draft.signer = Signer::Itself(Named::Subject);
    }),
    ("signed by itself, without a name", "self_signed", |draft| {
        draft.leaf.distinguished_name = rcgen::DistinguishedName::new();
        draft.signer = Signer::Itself(Named::Subject);
    }),
    ("signed by itself, no issuer shown", "self_signed", |draft| {
        draft.issuers.clear();
        draft.signer = Signer::Itself(Named::Subject);
    }),
    ("signed by another of its own name", "self_signed", |draft| {
        draft.signer = Signer::Impostor(Named::Subject)
    }),
    ("signed by itself under another name", "unknown_issuer", |draft| {
        draft.leaf.distinguished_name = common_name("me");
        draft.signer = Signer::Itself(Named::Other("somebody"));
    }),
    ("signed by itself under its issuer's name", "bad_signature", |draft| {
        draft.key = draft.issuers_key;
        draft.signer = Signer::Itself(Named::Issuer);
    }),
    (
        "signed by itself under the root's name, and called so",
        "bad_signature",
        |draft| {
            draft.leaf.distinguished_name = common_name("root");
            draft.signer = Signer::Itself(Named::Subject);
        },
    ),
];

const CA_AS_LEAF: [(&str, &str, Plain); 6] = [
    ("a leaf that is an authority", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }),
    ("an authority for leaves alone", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    }),
    ("an authority, though nobody has to heed it", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::NoCa;
        draft.extend(19, false, &[0x30, 3, 1, 1, 0xff]);
    }),
    ("an authority that may certify", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        draft.leaf.key_usages.push(Ku::KeyCertSign);
    }),
    ("an authority without an id", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        draft.names.retain(|name| name.0 != URI);
    }),
    ("an authority below one that may have none", "ca_as_leaf", |draft| {
        draft.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        draft.issuer(0).is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    }),
];

const NO_URI_NAME: [(&str, &str, Plain); 9] = [
    ("no URI name", "no_uri_name", |draft| {
        draft.names.retain(|name| name.0 != URI)
    }),
    ("a DNS name alone", "no_uri_name", |draft| {
        draft.names = vec![(DNS, b"caller.shop.svc".into())]
    }),
    ("the id as common name", "no_uri_name", |draft| {
        draft.names.retain(|name| name.0 != URI);
        draft.leaf.distinguished_name = common_name(PEERS);
    }),
    ("the id as DNS name", "no_uri_name", |draft| {
        as_other(draft, DNS, PEERS.as_bytes())
    }),
    ("the id as mail address", "no_uri_name", |draft| {
        as_other(draft, MAIL, PEERS.as_bytes())
    }),
    ("the id as a name of a kind of its own", "no_uri_name", |draft| {
        let text = der(0xa0, &[&der(0x16, &[PEERS.as_bytes()])]);
        as_other(draft, 0xa0, &[&[6, 3, 0x2a, 3, 4][..], &text].concat());
    }),
    ("the id as a directory's name", "no_uri_name", |draft| {
        let common_name = der(0x30, &[&[6, 3, 0x55, 4, 3], &der(0x0c, &[PEERS.as_bytes()])]);
        as_other(draft, 0xa4, &der(0x30, &[&der(0x31, &[&common_name])]));
    }),
    ("the id as its issuer's name", "no_uri_name", |draft| {
        draft.names.retain(|name| name.0 != URI);
        draft.extend(18, false, &der(0x30, &[&der(URI, &[PEERS.as_bytes()])]));
    }),
    ("the id as the place of revocations", "no_uri_name", |draft| {
        draft.names.retain(|name| name.0 != URI);
        let uris = vec![PEERS.to_owned()];
        draft.leaf.crl_distribution_points.push(CrlDistributionPoint { uris });
    }),
];

fn as_other(draft: &mut Draft, class: u8, name: &[u8]) {
    for old in draft.names.iter_mut().filter(|name| name.0 == URI) {
        *old = (class, name.to_vec());
    }
}

/// Another URI name beside the one that is wanted, behind it and before it.
fn several() -> Vec<Defect> {
    const OTHERS: [(&str, &str, &[u8]); 6] = [
        ("two ids", "two ids, the one that is wanted last", OURS.as_bytes()),
        ("an id twice", "an id twice, once more", PEERS.as_bytes()),
        ("an id and a web page", "a web page and an id", b"https://example.com/"),
        ("an id and rubbish", "rubbish and an id", b"\xff\xfe"),
        ("an id and nothing", "nothing and an id", b""),
        (
            "an id and a foreign one",
            "a foreign id and one of ours",
            b"spiffe://elsewhere.example/a",
        ),
    ];
    let mut all: Vec<Defect> = Vec::new();
    for (behind, before, other) in OTHERS {
        let change = move |draft: &mut Draft| draft.names.push((URI, other.into()));
        all.push((behind, "several_uri_names", Rc::new(change)));
        let change = move |draft: &mut Draft| draft.names.insert(0, (URI, other.into()));
        all.push((before, "several_uri_names", Rc::new(change)));
    }
    let hundred = |draft: &mut Draft| {
        draft
            .names
            .extend((0..100).map(|n| (URI, format!("{PEERS}{n}").into())))
    };
    all.push(("a hundred ids", "several_uri_names", Rc::new(hundred)));
    all
}

const BAD_SYNTAX: [(&str, &[u8]); 27] = [
    ("an escape", b"spiffe://cluster.local/ns/shop/sa/%63aller"),
    ("an escaped slash", b"spiffe://cluster.local/ns/shop%2fsa/caller"),
    ("an escape in the domain", b"spiffe://cluster%2elocal/ns/shop/sa/caller"),
    ("a query", b"spiffe://cluster.local/ns/shop/sa/caller?x"),
    ("a fragment", b"spiffe://cluster.local/ns/shop/sa/caller#x"),
    ("a query for a path", b"spiffe://cluster.local?ns/shop/sa/caller"),
    ("a port", b"spiffe://cluster.local:443/ns/shop/sa/caller"),
    ("a user", b"spiffe://me@cluster.local/ns/shop/sa/caller"),
    (
        "our domain as user",
        b"spiffe://cluster.local@elsewhere/ns/shop/sa/caller",
    ),
    ("an address in brackets", b"spiffe://[::1]/ns/shop/sa/caller"),
    ("no domain", b"spiffe:///ns/shop/sa/caller"),
    ("no path", b"spiffe://cluster.local"),
    ("an empty path", b"spiffe://cluster.local/"),
    ("a slash at the end", b"spiffe://cluster.local/ns/shop/sa/caller/"),
    ("an empty segment", b"spiffe://cluster.local/ns//sa/caller"),
    ("a dotted segment", b"spiffe://cluster.local/ns/shop/sa/../sa/caller"),
    ("a segment of one dot", b"spiffe://cluster.local/ns/shop/sa/./caller"),
    ("backslashes", b"spiffe:\\\\cluster.local\\ns\\shop\\sa\\caller"),
    ("another scheme", b"https://cluster.local/ns/shop/sa/caller"),
    ("no scheme", b"cluster.local/ns/shop/sa/caller"),
    (
        "one slash behind the scheme",
        b"spiffe:/cluster.local/ns/shop/sa/caller",
    ),
    ("a line break", b"spiffe://cluster.local/ns/shop/sa/caller\r\n"),
    ("a space before", b" spiffe://cluster.local/ns/shop/sa/caller"),
    ("a space behind", b"spiffe://cluster.local/ns/shop/sa/caller "),
    ("a star for a name", b"spiffe://cluster.local/ns/shop/sa/*"),
    (
        "two in one",
        b"spiffe://cluster.local/ns/shop/sa/caller,spiffe://cluster.local/a",
    ),
    ("nothing", b""),
];

const UPPER_CASE: [(&str, &[u8]); 9] = [
    ("the scheme", b"SPIFFE://cluster.local/ns/shop/sa/caller"),
    (
        "the first letter of the scheme",
        b"Spiffe://cluster.local/ns/shop/sa/caller",
    ),
    (
        "the last letter of the scheme",
        b"spiffE://cluster.local/ns/shop/sa/caller",
    ),
    ("the domain", b"spiffe://CLUSTER.LOCAL/ns/shop/sa/caller"),
    (
        "the first letter of the domain",
        b"spiffe://Cluster.local/ns/shop/sa/caller",
    ),
    (
        "the last letter of the domain",
        b"spiffe://cluster.locaL/ns/shop/sa/caller",
    ),
    (
        "a letter in the middle of the domain",
        b"spiffe://cluSter.local/ns/shop/sa/caller",
    ),
    ("a foreign domain", b"spiffe://ELSEWHERE/ns/shop/sa/caller"),
    ("everything", b"SPIFFE://CLUSTER.LOCAL/NS/SHOP/SA/CALLER"),
];

const NUL_OR_NOT_ASCII: [(&str, &[u8]); 15] = [
    ("NUL at the end", b"spiffe://cluster.local/ns/shop/sa/caller\0"),
    ("NUL at the beginning", b"\0spiffe://cluster.local/ns/shop/sa/caller"),
    ("NUL within", b"spiffe://cluster.local/ns/shop/sa/caller\0.evil"),
    ("NUL in the domain", b"spiffe://cluster.local\0.evil/ns/shop/sa/caller"),
    ("NUL in the scheme", b"spiffe\0://cluster.local/ns/shop/sa/caller"),
    ("NUL alone", b"\0"),
    ("Latin-1", b"spiffe://cluster.local/ns/shop/sa/call\xe9r"),
    ("UTF-8", "spiffe://cluster.local/ns/shop/sa/callér".as_bytes()),
    (
        "a Cyrillic letter",
        "spiffe://cluster.local/ns/shop/sa/c\u{430}ller".as_bytes(),
    ),
    (
        "a Cyrillic letter in the domain",
        "spiffe://cluster.loc\u{430}l/ns/shop/sa/caller".as_bytes(),
    ),
    (
        "wide letters",
        "spiffe://cluster.local/ns/shop/sa/\u{ff43}aller".as_bytes(),
    ),
    (
        "a mark before",
        "\u{feff}spiffe://cluster.local/ns/shop/sa/caller".as_bytes(),
    ),
    (
        "letters turned round",
        "spiffe://cluster.local/ns/shop/sa/\u{202e}rellac".as_bytes(),
    ),
    (
        "a slash in two bytes",
        b"spiffe://cluster.local/ns/shop/sa\xc0\xafcaller",
    ),
    (
        "the high bit of the last letter",
        b"spiffe://cluster.local/ns/shop/sa/calle\xf2",
    ),
];

const KEY_USAGE: [(&str, &str, Plain); 11] = [
    ("no key usage", "key_usage", |draft| draft.leaf.key_usages.clear()),
    ("a key usage that nobody has to heed", "key_usage", |draft| {
        draft.leaf.key_usages.clear();
        // digitalSignature
        draft.extend(15, false, &[3, 2, 7, 0x80]);
    }),
    ("a key usage of nothing", "key_usage", |draft| {
        draft.leaf.key_usages.clear();
        draft.extend(15, true, &[3, 2, 7, 0]);
    }),
    ("encipherment alone", "key_usage", |draft| {
        draft.leaf.key_usages = vec![Ku::KeyEncipherment]
    }),
    ("agreement alone", "key_usage", |draft| {
        draft.leaf.key_usages = vec![Ku::KeyAgreement, Ku::DecipherOnly]
    }),
    ("commitment alone", "key_usage", |draft| {
        draft.leaf.key_usages = vec![Ku::ContentCommitment]
    }),
    ("may certify, too", "key_usage", |draft| {
        draft.leaf.key_usages.push(Ku::KeyCertSign)
    }),
    ("may revoke, too", "key_usage", |draft| {
        draft.leaf.key_usages.push(Ku::CrlSign)
    }),
    ("its issuer may not certify", "key_usage", |draft| {
        draft.issuer(0).key_usages = vec![Ku::DigitalSignature]
    }),
    ("its issuer may only revoke", "key_usage", |draft| {
        draft.issuer(0).key_usages = vec![Ku::CrlSign]
    }),
    ("its issuer's issuer may not certify", "key_usage", |draft| {
        draft.issuer(1).key_usages = vec![Ku::DigitalSignature, Ku::CrlSign];
    }),
];

const EXTENDED_KEY_USAGE: [(&str, &str, Plain); 7] = [
    ("for code", "extended_key_usage", |draft| {
        draft.leaf.extended_key_usages = vec![Eku::CodeSigning]
    }),
    ("for anything", "extended_key_usage", |draft| {
        draft.leaf.extended_key_usages = vec![Eku::Any]
    }),
    ("for mail and time", "extended_key_usage", |draft| {
        draft.leaf.extended_key_usages = vec![Eku::EmailProtection, Eku::TimeStamping];
    }),
    ("for what nobody knows", "extended_key_usage", |draft| {
        draft.leaf.extended_key_usages = vec![Eku::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 99])];
    }),
    ("for nothing", "extended_key_usage", |draft| {
        draft.leaf.extended_key_usages.clear();
        draft.extend(37, false, &[0x30, 0]);
    }),
    ("its issuer is for code", "extended_key_usage", |draft| {
        draft.issuer(0).extended_key_usages = vec![Eku::CodeSigning];
    }),
    ("its issuer is for anything", "extended_key_usage", |draft| {
        draft.issuer(0).extended_key_usages = vec![Eku::Any];
    }),
];

const FOREIGN_ISSUER: [(&str, &str, Plain); 8] = [
    ("under a foreign root's issuer", "unknown_issuer", |draft| {
        draft.issuer(0);
        draft.root = Top::Stranger;
    }),
    (
        "under an issuer of a foreign root that has our root's name",
        "bad_signature",
        |draft| {
            draft.issuer(0);
            draft.root = Top::Namesake;
        },
    ),
    (
        "a foreign issuer that has our issuer's name, which is shown",
        "bad_signature",
        |draft| {
            draft.issuer(0);
            draft.signer = Signer::Impostor(Named::Issuer);
        },
    ),
    ("its issuer is missing", "unknown_issuer", |draft| {
        draft.issuer(0);
        draft.shows = Shows::ButOne;
    }),
    ("a foreign leaf beside our issuer", "unknown_issuer", |draft| {
        draft.issuer(0);
        draft.root = Top::Stranger;
        draft.shows = Shows::Ours;
    }),
    ("somebody whom nobody shows", "unknown_issuer", |draft| {
        draft.signer = Signer::Impostor(Named::Other("somebody"));
    }),
    ("certified by a foreign root", "unknown_issuer", |draft| {
        draft.issuers.clear();
        draft.root = Top::Stranger;
    }),
    ("a foreign root that has our root's name", "bad_signature", |draft| {
        draft.issuers.clear();
        draft.root = Top::Namesake;
    }),
];

const NAME_CONSTRAINTS: [(&str, &str, Plain); 17] = [
    ("constrained to URIs that it fits", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa0, URI, b"cluster.local")]);
    }),
    ("constrained to URIs below its domain", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa0, URI, b".cluster.local")]);
    }),
    ("constrained to other URIs", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa0, URI, b"example.com")]);
    }),
    ("constrained to its very id", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa0, URI, PEERS.as_bytes())]);
    }),
    ("constrained to any URI", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa0, URI, b"")])
    }),
    ("its URI is excluded", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa1, URI, b"cluster.local")]);
    }),
    ("other URIs are excluded", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa1, URI, b"example.com")]);
    }),
    ("any URI is excluded", "name_constraints", |draft| {
        constrain(draft.issuer(0), &[(0xa1, URI, b"")])
    }),
    (
        "its URI is permitted, others are excluded",
        "name_constraints",
        |draft| {
            constrain(
                draft.issuer(0),
                &[(0xa0, URI, b"cluster.local"), (0xa1, URI, b"example.com")],
            );
        },
    ),
    (
        "a constraint of URIs that nobody has to heed",
        "name_constraints",
        |draft| {
            let content = constraints(&[(0xa0, URI, b"example.com")]);
            draft.issuer(0).custom_extensions.push(extension(30, false, &content));
        },
    ),
    (
        "its issuer's issuer is constrained to other URIs",
        "name_constraints",
        |draft| {
            constrain(draft.issuer(1), &[(0xa0, URI, b"example.com")]);
        },
    ),
    ("its DNS name is excluded", "name_constraints", |draft| {
        draft.names.push((DNS, b"bank.example".into()));
        constrain(draft.issuer(0), &[(0xa1, DNS, b"bank.example")]);
    }),
    ("its DNS name is not permitted", "name_constraints", |draft| {
        draft.names.push((DNS, b"bank.example".into()));
        constrain(draft.issuer(0), &[(0xa0, DNS, b"shop.svc")]);
    }),
    ("its address is excluded", "name_constraints", |draft| {
        draft.names.push((IP, vec![192, 0, 2, 1]));
        constrain(draft.issuer(0), &[(0xa1, IP, &[192, 0, 2, 0, 255, 255, 255, 0])]);
    }),
    ("its address is not permitted", "name_constraints", |draft| {
        draft.names.push((IP, vec![192, 0, 2, 1]));
        constrain(draft.issuer(0), &[(0xa0, IP, &[10, 0, 0, 0, 255, 0, 0, 0])]);
    }),
    ("its mail address is not permitted", "name_constraints", |draft| {
        draft.names.push((MAIL, b"caller@example.com".into()));
        constrain(draft.issuer(0), &[(0xa0, MAIL, b"example.org")]);
    }),
    ("its subject is excluded", "name_constraints", |draft| {
        draft.leaf.distinguished_name = common_name("me");
        let common_name = der(0x30, &[&[6, 3, 0x55, 4, 3], &der(0x0c, &[b"me"])]);
        constrain(
            draft.issuer(0),
            &[(0xa1, 0xa4, &der(0x30, &[&der(0x31, &[&common_name])]))],
        );
    }),
];

/// Permits names (0xa0) or excludes them (0xa1), by class and base (RFC 5280, 4.2.1.10).
fn constrain(issuer: &mut CertificateParams, subtrees: &[(u8, u8, &[u8])]) {
    issuer
        .custom_extensions
        .push(extension(30, true, &constraints(subtrees)));
}

fn constraints(subtrees: &[(u8, u8, &[u8])]) -> Vec<u8> {
    let tree = |(tree, class, base): &(u8, u8, &[u8])| der(*tree, &[&der(0x30, &[&der(*class, &[base])])]);
    let trees: Vec<_> = subtrees.iter().map(tree).collect();
    der(0x30, &trees.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Those that go with no surroundings.
fn alone() -> Vec<(Kind, Defect)> {
    let with = |kind| move |defect| (kind, defect);
    let authorities = plain(&AUTHORITIES).into_iter().map(with(Kind::CaAsLeaf));
    authorities
        .chain(plain(&OTHERS).into_iter().map(with(Kind::Other)))
        .collect()
}

/// Authorities that show their own certificates, and have the keys.
const AUTHORITIES: [(&str, &str, Plain); 2] = [
    ("the issuer itself", "ca_as_leaf", |draft| {
        draft.shows = Shows::IssuerItself
    }),
    ("the root itself", "ca_as_leaf", |draft| {
        draft.issuers.clear();
        draft.shows = Shows::IssuerItself;
    }),
];

const OTHERS: [(&str, &str, Plain); 18] = [
    ("certified by a leaf", "chain", |draft| {
        draft.issuer(0).is_ca = IsCa::ExplicitNoCa
    }),
    ("its issuer does not say that it is one", "chain", |draft| {
        draft.issuer(0).is_ca = IsCa::NoCa
    }),
    ("longer than the issuer allows", "chain", |draft| {
        draft.issuer(1).is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    }),
    ("ten issuers", "chain", |draft| {
        draft.issuer(9);
    }),
    ("eight issuers that it does not need", "chain", |draft| {
        draft.arrange = |chain, root| chain.extend((1..9).flat_map(|_| root.below(|_| {}).chain));
    }),
    ("three issuers of one name that it does not need", "chain", |draft| {
        draft.arrange = |chain, _| chain.extend((0..3).map(|_| Authority::root("maze").issuer.der().clone()));
    }),
    ("one bit of its signature is wrong", "bad_signature", |draft| {
        draft.forge = |shown| change(shown, 0, |leaf| *leaf.last_mut().unwrap() ^= 1);
    }),
    ("one bit of its id is wrong", "bad_signature", |draft| {
        draft.forge = |shown| {
            change(shown, 0, |leaf| {
                let at = leaf.windows(6).position(|window| window == b"caller").unwrap();
                leaf[at] = b'd';
            });
        };
    }),
    ("one bit of its issuer's signature is wrong", "bad_signature", |draft| {
        draft.forge = |shown| change(shown, 1, |issuer| *issuer.last_mut().unwrap() ^= 1);
    }),
    ("the peer has another key", "bad_signature", |draft| {
        draft.forge = |shown| shown.key = KeyPair::generate().unwrap().serialize_der();
    }),
    ("the peer has another key of another kind", "bad_signature", |draft| {
        draft.forge = |shown| shown.key = KeyKind::Ed25519.make(Holder::Impostor).serialize_der();
    }),
    ("cut off", "malformed", |draft| {
        draft.forge = |shown| change(shown, 0, |leaf| leaf.truncate(leaf.len() - 10))
    }),
    ("bytes behind it", "malformed", |draft| {
        draft.forge = |shown| change(shown, 0, |leaf| leaf.push(0))
    }),
    ("no certificate at all", "malformed", |draft| {
        draft.forge = |shown| change(shown, 0, |leaf| *leaf = b"hello".to_vec());
    }),
    ("an unknown critical extension", "malformed", |draft| {
        let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        unknown.set_criticality(true);
        draft.leaf.custom_extensions.push(unknown);
    }),
    ("names twice", "malformed", |draft| {
        draft.leaf.custom_extensions.push(names(&[(URI, OURS.into())]));
    }),
    ("names that are no list", "malformed", |draft| {
        draft.names.clear();
        draft.extend(17, true, &[4, 1, 0]);
    }),
    ("basic constraints twice", "malformed", |draft| {
        draft.extend(19, true, &[0x30, 0])
    }),
];

fn change(shown: &mut Shown, certificate: usize, change: fn(&mut Vec<u8>)) {
    let mut bytes = shown.chain[certificate].to_vec();
    change(&mut bytes);
    shown.chain[certificate] = bytes.into();
}
