//! Whom we refuse, in both directions, and whom we do not.

use portunus_proto::svid::Usage;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::super::credential::SHA256;
use super::super::{Alpn, Credential, Error, NotSvid, Peer, Refused, Unusable, accept, connect, turn_away};
use super::draft::bare;
use super::plain::providers;
use super::shapes::{LEAST, enough_of_each, right, wrong};
use super::*;

pub(super) const SECRET: &[u8] = b"an application's words";

/// What comes of a call by such a one, and what that one saw.
async fn called_by(credential: &Credential, config: ClientConfig) -> (Result<Peer, Error>, Saw) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = calls(listener.local_addr().unwrap(), config, SECRET);
    let (socket, _) = listener.accept().await.unwrap();
    let accepted = accept(socket, Vec::new(), credential, IN_TIME).await;
    let accepted = accepted.map(|(_, session)| session.peer().clone());
    (
        accepted,
        tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap(),
    )
}

/// What comes of a call to such a one, and what that one saw.
async fn calling(credential: &Credential, config: ServerConfig, expected: &str) -> (Result<Peer, Error>, Saw) {
    let (address, peer) = is_called(config, SECRET);
    let socket = TcpStream::connect(address).await.unwrap();
    let connected = connect(socket, credential, &id(expected), Alpn::H2, IN_TIME).await;
    let connected = connected.map(|(_, session)| session.peer().clone());
    (
        connected,
        tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap(),
    )
}

/// Servers that are somebody, and not the one that is expected.
pub(super) const OTHERS: [&str; 3] = [
    OURS,
    "spiffe://cluster.local/ns/shop/sa/Caller",
    "spiffe://cluster.local/ns/shop/sa/caller2",
];

/// The alert that a peer should see (RFC 8446, 6.2), as rustls spells it.
fn alert(reason: &str) -> &'static str {
    match reason {
        "no_certificate" => "CertificateRequired",
        "unknown_issuer" | "self_signed" | "chain" | "name_constraints" => "UnknownCA",
        "expired" | "not_yet_valid" => "CertificateExpired",
        "ca_as_leaf" | "key_usage" | "extended_key_usage" => "UnsupportedCertificate",
        "foreign_trust_domain" | "wrong_identity" => "AccessDenied",
        "bad_signature" => "DecryptError",
        _ => "BadCertificate",
    }
}

fn refused(what: &str, reason: &str, found: (Result<Peer, Error>, Saw)) {
    assert_eq!(wrongly_judged(what, reason, alert(reason), found), None);
}

/// What is wrong with how it was refused, if anything is.
pub(super) fn wrongly_judged<T>(
    what: &str,
    reason: &str,
    alert: &str,
    found: (Result<T, Error>, Saw),
) -> Option<String> {
    let (result, saw) = found;
    let told = saw.error.unwrap_or_default();
    match result {
        Ok(_) => Some(format!("{what}: it was taken")),
        Err(Error::Refused(why)) if why.reason() == reason && saw.plain.is_empty() && told.contains(alert) => None,
        Err(error) => Some(format!("{what}: {}, {error}; told {told:?}", error.reason())),
    }
}

#[tokio::test]
async fn a_caller_whose_certificate_is_wrong_is_refused_and_told_why() {
    let root = Authority::root("root");
    let credential = root.credential();
    let shapes = wrong(&root, Usage::Client);
    enough_of_each(&shapes);
    let mut wrongly = Vec::new();
    for shape in shapes {
        let found = called_by(&credential, client_config(Some(&shape.show()))).await;
        wrongly.extend(wrongly_judged(&shape.name(), shape.reason, alert(shape.reason), found));
    }
    assert!(wrongly.is_empty(), "{wrongly:#?}");
}

#[tokio::test]
async fn a_server_whose_certificate_is_wrong_is_refused_and_told_why() {
    let root = Authority::root("root");
    let credential = root.credential();
    let shapes = wrong(&root, Usage::Server);
    enough_of_each(&shapes);
    let mut wrongly = Vec::new();
    for shape in shapes {
        let found = calling(&credential, server_config(&shape.show()), PEERS).await;
        wrongly.extend(wrongly_judged(&shape.name(), shape.reason, alert(shape.reason), found));
    }
    assert!(wrongly.is_empty(), "{wrongly:#?}");
    for other in OTHERS {
        let shown = root.certify(&leaf_params(other));
        let found = calling(&credential, server_config(&shown), PEERS).await;
        refused(other, "wrong_identity", found);
    }
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused_however_it_shakes_hands() {
    let credential = Authority::root("root").credential();
    let mut count = 0;
    for provider in providers() {
        // An empty list, and an empty list with a proof of a key.
        for shown in [None].into_iter().chain(bare().into_iter().map(Some)) {
            let config = client_config_by(provider.clone(), shown.as_ref());
            refused("none", "no_certificate", called_by(&credential, config).await);
            count += 1;
        }
    }
    assert!(count >= LEAST, "only {count}");
}

#[tokio::test]
async fn whoever_calls_one_of_us_that_has_no_certificate_is_told_so() {
    let root = Authority::root("root");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // Some of it was read already, to know whose TLS it is.
            let mut first = vec![0; 100];
            socket.read_exact(&mut first).await.unwrap();
            tokio::spawn(turn_away(socket, first, IN_TIME));
        }
    });
    for alpn in [Alpn::H2, Alpn::Tcp] {
        let socket = TcpStream::connect(address).await.unwrap();
        let error = connect(socket, &root.credential(), &id(PEERS), alpn, IN_TIME)
            .await
            .err();
        let error = error.expect("it has none");
        assert!(matches!(error, Error::NothingToShow), "{error}");
        assert_eq!(error.reason(), "no_certificate_there");
    }
    for config in [None, Some(&root.leaf(|_| {}))].map(client_config) {
        let peer = calls(address, config, SECRET);
        let saw = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        assert!(saw.plain.is_empty(), "{saw:?}");
        assert!(
            saw.error.as_ref().is_some_and(|error| error.contains("AccessDenied")),
            "{saw:?}"
        );
    }
}

#[tokio::test]
async fn a_server_without_a_certificate_is_refused_however_it_shakes_hands() {
    let credential = Authority::root("root").credential();
    let mut count = 0;
    for provider in providers() {
        for shown in bare() {
            let config = server_config_by(provider.clone(), &shown);
            // rustls ends the connection without the alert that RFC 8446, 4.4.2.4, has for it.
            let found = calling(&credential, config, PEERS).await;
            assert_eq!(wrongly_judged("none", "no_certificate", "", found), None);
            count += 1;
        }
    }
    assert!(count >= LEAST, "only {count}");
}

#[tokio::test]
async fn peers_with_nothing_wrong_are_known_by_their_one_name() {
    let root = Authority::root("root");
    let credential = root.credential();
    for shape in right(&root) {
        let (what, shown) = (shape.name(), shape.show());
        let hash = SHA256.hash(&shown.chain[0]);
        for (result, saw) in [
            called_by(&credential, client_config(Some(&shown))).await,
            calling(&credential, server_config(&shown), PEERS).await,
        ] {
            let peer = result.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(peer.id(), &id(PEERS), "{what}: {saw:?}");
            assert_eq!(peer.hash(), hash.as_ref(), "{what}");
            assert!(peer.not_after() > soon(-60), "{what}");
        }
    }
}

#[test]
fn clocks_may_be_twenty_seconds_apart_and_no_second_more() {
    const NOW: u64 = 2_000_000_000;
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let (from, until) = (NOW - 1_000, NOW + 1_000);
    let root = Authority::root("root");
    let lives = |params: &mut rcgen::CertificateParams| {
        (params.not_before, params.not_after) = (at(from).into(), at(until).into());
    };
    let chains = [
        root.leaf(lives),
        root.below(lives).leaf(|params| {
            (params.not_before, params.not_after) = (at(from - 1_000).into(), at(until + 1_000).into());
        }),
    ];
    for shown in chains {
        for usage in [Usage::Client, Usage::Server] {
            let judge = |now| {
                let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
                root.bundle().judge(&shown.chain, usage, now)
            };
            for early in 0..=30 {
                match judge(from - early) {
                    Ok(_) => assert!(early <= 20, "taken {early} s before it begins"),
                    Err(why) => assert!(early > 20 && why.reason() == "not_yet_valid", "{early} s before: {why}"),
                }
            }
            for late in 0..=30 {
                match judge(until + late) {
                    Ok(_) => assert!(late <= 20, "taken {late} s after it ended"),
                    Err(why) => assert!(late > 20 && why.reason() == "expired", "{late} s after: {why}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn every_root_of_a_bundle_is_believed_and_none_that_left_it() {
    let (old, new) = (Authority::root("root"), Authority::root("root of next year"));
    let domain = TrustDomain::parse("cluster.local").unwrap();
    let roots = [old.issuer.der().clone(), new.issuer.der().clone()];
    let both = Bundle::new(domain.clone(), &roots).unwrap();
    let credential = old.credential().with_bundle(both).unwrap();
    for root in [&old, &new] {
        let (result, _) = called_by(&credential, client_config(Some(&root.leaf(|_| {})))).await;
        result.expect("it is in the bundle");
    }
    let credential = credential.with_bundle(new.bundle()).unwrap();
    let found = called_by(&credential, client_config(Some(&old.leaf(|_| {})))).await;
    refused("the root left", "unknown_issuer", found);
    let found = calling(&credential, server_config(&old.leaf(|_| {})), PEERS).await;
    refused("the root left", "unknown_issuer", found);
}

#[test]
fn no_byte_of_a_certificate_may_be_another() {
    let root = Authority::root("root");
    let (_, verifier) = root.credential().for_server(&id(PEERS));
    let shown = root.leaf(|_| {});
    let judge = |leaf: &[u8]| {
        let leaf = CertificateDer::from(leaf);
        let name = ServerName::try_from("a.invalid").unwrap();
        verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
    };
    judge(&shown.chain[0]).expect("unchanged it is right");
    for at in 0..shown.chain[0].len() {
        for change in [1, 0x20, 0x80, 0xff] {
            let mut leaf = shown.chain[0].to_vec();
            leaf[at] ^= change;
            assert!(judge(&leaf).is_err(), "byte {at} changed by {change}");
        }
        assert!(judge(&shown.chain[0][..at]).is_err(), "cut at {at}");
    }
    assert!(matches!(verifier.take_verdict(), Some(Err(_))));
}

#[test]
fn a_credential_that_peers_would_refuse_is_not_made() {
    let root = Authority::root("root");
    let make = |shown: &Shown| Credential::new(shown.chain.clone(), shown.private(), root.bundle());
    let good = root.leaf(|_| {});
    let made = make(&good).unwrap();
    assert_eq!(made.id(), &id(PEERS));
    assert!(made.not_before() < SystemTime::now() && SystemTime::now() < made.not_after());
    let mut other_key = good.clone();
    other_key.key = KeyPair::generate().unwrap().serialize_der();
    assert!(matches!(make(&other_key), Err(Unusable::OtherKey)));
    let mut no_key = good.clone();
    no_key.key = vec![1, 2, 3];
    assert!(matches!(make(&no_key), Err(Unusable::Key(_))));
    let mut empty = good.clone();
    empty.chain.clear();
    assert!(matches!(make(&empty), Err(Unusable::NoCertificate)));
    let unnamed = root.leaf(|params| params.subject_alt_names.clear());
    assert!(matches!(
        make(&unnamed),
        Err(Unusable::Refused(Refused::Leaf(NotSvid::NoUriName)))
    ));
    let foreign = root.certify(&leaf_params("spiffe://elsewhere/a"));
    assert!(matches!(
        make(&foreign),
        Err(Unusable::Refused(Refused::Leaf(NotSvid::ForeignTrustDomain { .. })))
    ));
    let domain = TrustDomain::parse("cluster.local").unwrap();
    assert!(matches!(Bundle::new(domain.clone(), &[]), Err(Unusable::NoRoots(_))));
    let rubbish = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(
        Bundle::new(domain, &[rubbish]),
        Err(Unusable::Root { index: 0, .. })
    ));
}

#[test]
fn no_key_is_shown_by_debug() {
    let credential = Authority::root("root").credential();
    assert_eq!(
        format!("{credential:?}"),
        format!("Credential({OURS}, Bundle(cluster.local, 1 roots))")
    );
}

#[test]
fn a_chain_that_leads_everywhere_is_refused_before_anybody_follows_it() {
    let root = Authority::root("root");
    let bundle = root.bundle();
    let judge = |issuers: &[Authority]| {
        let leaf = issuers[0].leaf(|_| {}).chain.remove(0);
        let shown = issuers.iter().map(|issuer| issuer.issuer.der().clone());
        let chain: Vec<_> = std::iter::once(leaf).chain(shown).collect();
        bundle.judge(&chain, Usage::Client, UnixTime::now())
    };
    // Eight issuers of one name, each of which may have certified each: 30,000 paths. Who follows them all finds in the end
    // that nobody knows them, or that the longest are too long.
    for issuers in 3..9 {
        let all: Vec<_> = (0..issuers).map(|_| Authority::root("maze")).collect();
        let refused = judge(&all).expect_err("nobody knows them");
        assert_eq!(
            refused,
            Refused::Chain("it has more than 2 issuers of one name".to_owned())
        );
    }
}
