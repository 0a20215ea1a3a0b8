//! Certificates with one thing wrong each, and the word for it. The `identity` tests of the whole sidecar use this file,
//! too.

use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose as Eku, IsCa};
use rcgen::{KeyPair, KeyUsagePurpose as Ku, SanType};
use rustls::pki_types::CertificateDer;

use super::authority::{Authority, OURS, PEERS, Shown, authority_params, der, leaf_params, soon, uri_names};

/// What is wrong, the reason that has to be named, and what is shown.
pub(super) type Shape = (&'static str, &'static str, Shown);

/// All shapes that are wrong in both directions. `root` is the one that is believed.
pub(super) fn wrong(root: &Authority) -> Vec<Shape> {
    let issuer = root.below(|_| {});
    let mut shapes = chains(root, &issuer);
    shapes.extend(times(root));
    shapes.extend(names(&issuer));
    shapes.extend(usages(root, &issuer));
    shapes.extend(bytes(&issuer));
    shapes
}

fn chains(root: &Authority, issuer: &Authority) -> Vec<Shape> {
    let foreign = Authority::root("another mesh");
    let key = KeyPair::generate().unwrap();
    let mut own_issuer = leaf_params(PEERS);
    own_issuer.distinguished_name.push(DnType::CommonName, "me");
    let self_signed = Shown {
        chain: vec![own_issuer.self_signed(&key).unwrap().into()],
        key: key.serialize_der(),
    };
    let mut without_issuer = issuer.leaf(|_| {});
    without_issuer.chain.truncate(1);
    let mut foreign_issuer_shown = foreign.leaf(|_| {});
    foreign_issuer_shown.chain.extend_from_slice(&issuer.chain);
    let own = |authority: &Authority, chain: Vec<CertificateDer<'static>>| Shown {
        chain,
        key: authority.issuer.key().serialize_der(),
    };
    let leaf_as_issuer = root.below(|params| params.is_ca = IsCa::ExplicitNoCa);
    let short = root.below(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let too_long = (0..9).fold(root.below(|_| {}), |above, _| above.below(|_| {}));
    vec![
        ("certified by a foreign root", "unknown_issuer", foreign.leaf(|_| {})),
        (
            "under a foreign root's issuer",
            "unknown_issuer",
            foreign.below(|_| {}).leaf(|_| {}),
        ),
        ("a foreign root, shown along", "unknown_issuer", {
            let mut shown = foreign.leaf(|_| {});
            shown.chain.push(foreign.issuer.der().clone());
            shown
        }),
        (
            "a foreign leaf beside our issuer",
            "unknown_issuer",
            foreign_issuer_shown,
        ),
        (
            "a foreign root that has our root's name",
            "bad_signature",
            Authority::root("root").leaf(|_| {}),
        ),
        (
            "a foreign issuer under our root's name",
            "bad_signature",
            Authority::root("root").below(|_| {}).leaf(|_| {}),
        ),
        ("its issuer is missing", "unknown_issuer", without_issuer),
        ("signed by itself", "self_signed", self_signed),
        ("the issuer itself", "ca_as_leaf", own(issuer, issuer.chain.clone())),
        (
            "the root itself",
            "ca_as_leaf",
            own(root, vec![root.issuer.der().clone()]),
        ),
        (
            "a leaf that is an authority",
            "ca_as_leaf",
            issuer.leaf(|params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
        ),
        ("certified by a leaf", "chain", leaf_as_issuer.leaf(|_| {})),
        (
            "longer than the issuer allows",
            "chain",
            short.below(|_| {}).leaf(|_| {}),
        ),
        ("ten issuers", "chain", too_long.leaf(|_| {})),
        ("another trust domain under our root", "foreign_trust_domain", {
            issuer.certify(&leaf_params("spiffe://elsewhere.example/ns/shop/sa/caller"))
        }),
        ("a trust domain that begins like ours", "foreign_trust_domain", {
            issuer.certify(&leaf_params("spiffe://cluster.local.example/ns/shop/sa/caller"))
        }),
    ]
}

fn times(root: &Authority) -> Vec<Shape> {
    let ended = root.below(|params| params.not_after = soon(-30).into());
    let to_begin = root.below(|params| params.not_before = soon(60).into());
    vec![
        (
            "ended half a minute ago",
            "expired",
            root.leaf(|params| params.not_after = soon(-30).into()),
        ),
        (
            "ended a year ago",
            "expired",
            root.leaf(|params| {
                (params.not_before, params.not_after) = (soon(-800 * 86_400).into(), soon(-365 * 86_400).into());
            }),
        ),
        (
            "begins in a minute",
            "not_yet_valid",
            root.leaf(|params| params.not_before = soon(60).into()),
        ),
        (
            "begins in 400 days",
            "not_yet_valid",
            root.leaf(|params| {
                (params.not_before, params.not_after) = (soon(400 * 86_400).into(), soon(401 * 86_400).into());
            }),
        ),
        ("its issuer ended", "expired", ended.leaf(|_| {})),
        ("its issuer is to begin", "not_yet_valid", to_begin.leaf(|_| {})),
        (
            "ends before it begins",
            "malformed",
            root.leaf(|params| {
                (params.not_before, params.not_after) = (soon(60).into(), soon(-60).into());
            }),
        ),
    ]
}

fn names(issuer: &Authority) -> Vec<Shape> {
    let dns = || SanType::DnsName("caller.shop.svc".try_into().unwrap());
    let raw = |uris: &[&[u8]]| {
        issuer.leaf(|params| {
            params.subject_alt_names.clear();
            params.custom_extensions.push(uri_names(uris));
        })
    };
    let ours = PEERS.as_bytes();
    let mut shapes = vec![
        (
            "no names",
            "no_uri_name",
            issuer.leaf(|params| params.subject_alt_names.clear()),
        ),
        (
            "a DNS name alone",
            "no_uri_name",
            issuer.leaf(|params| params.subject_alt_names = vec![dns()]),
        ),
        (
            "the id as common name",
            "no_uri_name",
            issuer.leaf(|params| {
                params.subject_alt_names.clear();
                params.distinguished_name.push(DnType::CommonName, PEERS);
            }),
        ),
        (
            "the id as DNS name",
            "no_uri_name",
            issuer.leaf(|params| {
                params.subject_alt_names.clear();
                let name = der(0x30, &[&der(0x82, &[ours])]);
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], name));
            }),
        ),
        ("two ids", "several_uri_names", raw(&[ours, OURS.as_bytes()])),
        ("an id twice", "several_uri_names", raw(&[ours, ours])),
        (
            "an id and a web page",
            "several_uri_names",
            raw(&[ours, b"https://example.com/"]),
        ),
        ("an id and rubbish", "several_uri_names", raw(&[ours, b"\xff\xfe"])),
        ("rubbish and an id", "several_uri_names", raw(&[b"\xff\xfe", ours])),
    ];
    let bad: [(&str, &[u8]); 22] = [
        ("scheme in upper case", b"SPIFFE://cluster.local/ns/shop/sa/caller"),
        ("domain in upper case", b"spiffe://Cluster.local/ns/shop/sa/caller"),
        ("NUL at the end", b"spiffe://cluster.local/ns/shop/sa/caller\0"),
        ("NUL within", b"spiffe://cluster.local/ns/shop/sa/caller\0.evil"),
        ("NUL in the domain", b"spiffe://cluster.local\0.evil/ns/shop/sa/caller"),
        ("Latin-1", b"spiffe://cluster.local/ns/shop/sa/call\xe9"),
        ("UTF-8", "spiffe://cluster.local/ns/shop/sa/callér".as_bytes()),
        (
            "a Cyrillic letter",
            "spiffe://cluster.local/ns/shop/sa/c\u{430}ller".as_bytes(),
        ),
        ("an escape", b"spiffe://cluster.local/ns/shop/sa/%63aller"),
        ("a query", b"spiffe://cluster.local/ns/shop/sa/caller?x"),
        ("a fragment", b"spiffe://cluster.local/ns/shop/sa/caller#x"),
        ("a port", b"spiffe://cluster.local:443/ns/shop/sa/caller"),
        ("a user", b"spiffe://me@cluster.local/ns/shop/sa/caller"),
        ("no path", b"spiffe://cluster.local"),
        ("an empty path", b"spiffe://cluster.local/"),
        ("a slash at the end", b"spiffe://cluster.local/ns/shop/sa/caller/"),
        ("an empty segment", b"spiffe://cluster.local/ns//sa/caller"),
        ("a dotted segment", b"spiffe://cluster.local/ns/shop/sa/../sa/caller"),
        ("another scheme", b"https://cluster.local/ns/shop/sa/caller"),
        ("a line break", b"spiffe://cluster.local/ns/shop/sa/caller\r\n"),
        ("a space before", b" spiffe://cluster.local/ns/shop/sa/caller"),
        ("nothing", b""),
    ];
    shapes.extend(bad.map(|(name, uri)| (name, "bad_spiffe_id", raw(&[uri]))));
    let long = format!("{PEERS}/{}", "a".repeat(2_048));
    shapes.push(("too long an id", "bad_spiffe_id", raw(&[long.as_bytes()])));
    shapes
}

fn usages(root: &Authority, issuer: &Authority) -> Vec<Shape> {
    let key_usages = |usages: &[Ku]| issuer.leaf(|params| params.key_usages = usages.to_vec());
    let extended = |usages: &[Eku]| issuer.leaf(|params| params.extended_key_usages = usages.to_vec());
    // permittedSubtrees is [0], excludedSubtrees [1]; a URI is [6], a DNS name [2] (RFC 5280, 4.2.1.10).
    let constrained = |tree: u8, name: u8, base: &[u8]| {
        let subtree = der(0x30, &[&der(name, &[base])]);
        let constraints = der(0x30, &[&der(tree, &[&subtree])]);
        root.below(|params| {
            let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], constraints);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        })
    };
    let with_dns = |params: &mut CertificateParams| {
        params
            .subject_alt_names
            .push(SanType::DnsName("bank.example".try_into().unwrap()));
    };
    vec![
        ("no key usage", "key_usage", key_usages(&[])),
        ("a key usage that nobody has to heed", "key_usage", {
            issuer.leaf(|params| {
                params.key_usages.clear();
                // digitalSignature, and not critical.
                let usage = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
                params.custom_extensions.push(usage);
            })
        }),
        ("encipherment alone", "key_usage", key_usages(&[Ku::KeyEncipherment])),
        (
            "may certify, too",
            "key_usage",
            key_usages(&[Ku::DigitalSignature, Ku::KeyCertSign]),
        ),
        (
            "may revoke, too",
            "key_usage",
            key_usages(&[Ku::DigitalSignature, Ku::CrlSign]),
        ),
        ("its issuer may not certify", "key_usage", {
            root.below(|params| params.key_usages = vec![Ku::DigitalSignature])
                .leaf(|_| {})
        }),
        ("for code", "extended_key_usage", extended(&[Eku::CodeSigning])),
        ("for anything", "extended_key_usage", extended(&[Eku::Any])),
        (
            "for mail and time",
            "extended_key_usage",
            extended(&[Eku::EmailProtection, Eku::TimeStamping]),
        ),
        ("its issuer is for code", "extended_key_usage", {
            root.below(|params| params.extended_key_usages = vec![Eku::CodeSigning])
                .leaf(|_| {})
        }),
        (
            "constrained to URIs that it fits",
            "name_constraints",
            constrained(0xa0, 0x86, b"cluster.local").leaf(|_| {}),
        ),
        (
            "constrained to other URIs",
            "name_constraints",
            constrained(0xa0, 0x86, b"example.com").leaf(|_| {}),
        ),
        (
            "its URI is excluded",
            "name_constraints",
            constrained(0xa1, 0x86, b"cluster.local").leaf(|_| {}),
        ),
        (
            "other URIs are excluded",
            "name_constraints",
            constrained(0xa1, 0x86, b"example.com").leaf(|_| {}),
        ),
        (
            "its DNS name is excluded",
            "name_constraints",
            constrained(0xa1, 0x82, b"bank.example").leaf(with_dns),
        ),
    ]
}

fn bytes(issuer: &Authority) -> Vec<Shape> {
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut shown = issuer.leaf(|_| {});
        let mut leaf = shown.chain[0].to_vec();
        change(&mut leaf);
        shown.chain[0] = leaf.into();
        shown
    };
    let mut other_key = issuer.leaf(|_| {});
    other_key.key = KeyPair::generate().unwrap().serialize_der();
    let mut forged_issuer = issuer.leaf(|_| {});
    let mut forged = forged_issuer.chain[1].to_vec();
    *forged.last_mut().unwrap() ^= 1;
    forged_issuer.chain[1] = forged.into();
    vec![
        (
            "one bit of its signature is wrong",
            "bad_signature",
            changed(|leaf| *leaf.last_mut().unwrap() ^= 1),
        ),
        (
            "one bit of its id is wrong",
            "bad_signature",
            changed(|leaf| {
                let at = leaf.windows(6).position(|window| window == b"caller").unwrap();
                leaf[at] = b'd';
            }),
        ),
        (
            "one bit of its issuer's signature is wrong",
            "bad_signature",
            forged_issuer,
        ),
        ("the peer has another key", "bad_signature", other_key),
        ("cut off", "malformed", changed(|leaf| leaf.truncate(leaf.len() - 10))),
        ("bytes behind it", "malformed", changed(|leaf| leaf.push(0))),
        (
            "no certificate at all",
            "malformed",
            changed(|leaf| *leaf = b"hello".to_vec()),
        ),
        (
            "an unknown critical extension",
            "malformed",
            issuer.leaf(|params| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions.push(extension);
            }),
        ),
        (
            "names twice",
            "malformed",
            issuer.leaf(|params| {
                params.custom_extensions.push(uri_names(&[OURS.as_bytes()]));
            }),
        ),
        (
            "names that are no list",
            "malformed",
            issuer.leaf(|params| {
                params.subject_alt_names.clear();
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![4, 1, 0]));
            }),
        ),
    ]
}

/// Those that have nothing wrong.
pub(super) fn right(root: &Authority) -> Vec<(&'static str, Shown)> {
    let issuer = root.below(|_| {});
    let of_key = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        issuer.certify_key(&leaf_params(PEERS), &key)
    };
    let mut second = authority_params("second");
    second.key_usages.clear();
    vec![
        ("by the root", root.leaf(|_| {})),
        ("by an issuer", issuer.leaf(|_| {})),
        (
            "by an issuer's issuer",
            issuer.below(|params| *params = second).leaf(|_| {}),
        ),
        (
            "ended ten seconds ago",
            issuer.leaf(|params| params.not_after = soon(-10).into()),
        ),
        (
            "begins in ten seconds",
            issuer.leaf(|params| params.not_before = soon(10).into()),
        ),
        (
            "a DNS name beside the id",
            issuer.leaf(|params| {
                params
                    .subject_alt_names
                    .push(SanType::DnsName("caller.shop.svc".try_into().unwrap()));
            }),
        ),
        (
            "no extended key usage",
            issuer.leaf(|params| params.extended_key_usages.clear()),
        ),
        (
            "does not say that it is no authority",
            issuer.leaf(|params| params.is_ca = IsCa::NoCa),
        ),
        (
            "a common name",
            issuer.leaf(|params| params.distinguished_name.push(DnType::CommonName, "me")),
        ),
        ("P-384", of_key(&rcgen::PKCS_ECDSA_P384_SHA384)),
        ("Ed25519", of_key(&rcgen::PKCS_ED25519)),
    ]
}
