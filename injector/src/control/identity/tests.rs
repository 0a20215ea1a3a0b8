//! Who gets a certificate, what it says, and every way in which a request can be wrong.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::UNIX_EPOCH;

use portunus_proto::svid::{self, Usage};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, NameConstraints,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256,
    SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{make_key, make_root};
use super::*;
use crate::testing::{Directory, Log, domain, state, state_files, workload};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A certifier over its own authority, and the means to change its state.
struct Desk {
    certifier: Certifier,
    to_states: watch::Sender<Option<Arc<Snapshot>>>,
    directory: Directory,
}

impl Desk {
    fn over(manifests: &str) -> Desk {
        let directory = Directory::new();
        let authority = state_files(&directory.0)
            .load(SystemTime::now())
            .expect("it can be made");
        let (to_states, states) = watch::channel(Some(state(manifests)));
        let (_, authorities) = watch::channel(Arc::new(authority));
        let certifier = Certifier {
            states,
            authorities,
            namespace: "portunus".to_owned(),
            lifetime: DAY,
            attempts: Attempts::default(),
            renewals: Renewals::default(),
        };
        Desk {
            certifier,
            to_states,
            directory,
        }
    }

    fn joins(&self, token: &str) -> Result<Certified, Refusal> {
        self.asks(None, request(token, ""))
    }

    fn renews(&self, identity: &SpiffeId, workload: &str) -> Result<Certified, Refusal> {
        self.asks(Some(identity.clone()), request("", workload))
    }

    fn asks(&self, identity: Option<SpiffeId>, request: CertifyRequest) -> Result<Certified, Refusal> {
        let asker = Asker {
            address: Ipv4Addr::LOCALHOST.into(),
            proven: identity.map(|id| Proven::by(id, b"one of it")),
        };
        self.certifier.certify(&asker, &request, SystemTime::now())
    }
}

fn csr(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).expect("a key can be made");
    csr_of(&key, CertificateParams::default())
}

fn csr_of(key: &KeyPair, params: CertificateParams) -> Vec<u8> {
    params.serialize_request(key).expect("it can be signed").der().to_vec()
}

fn request(token: &str, workload: &str) -> CertifyRequest {
    CertifyRequest {
        csr: csr(&PKCS_ECDSA_P256_SHA256),
        join_token: token.to_owned(),
        workload: workload.to_owned(),
    }
}

fn why(refused: Result<Certified, Refusal>) -> (Code, &'static str) {
    let refusal = refused.expect_err("it is refused");
    (refusal.code(), refusal.reason())
}

#[test]
fn a_token_proves_its_workload_and_may_be_used_again() {
    let (one, other) = (JoinToken::generate(), JoinToken::generate());
    let manifests = workload("a", "web", "10.0.0.1", Some(&one)) + &workload("b", "db", "10.0.0.2", Some(&other));
    let desk = Desk::over(&manifests);
    for (token, name, id) in [
        (&one, "shop/a", "spiffe://mesh.test/ns/shop/sa/web"),
        (&other, "shop/b", "spiffe://mesh.test/ns/shop/sa/db"),
        (&one, "shop/a", "spiffe://mesh.test/ns/shop/sa/web"),
    ] {
        let certified = desk.joins(&token.reveal()).expect("it is proven");
        assert_eq!(
            (certified.response.workload.as_str(), certified.id.as_str()),
            (name, id)
        );
        assert_eq!(certified.response.chain.len(), 2);
        assert_eq!(certified.response.bundle.expect("it is there").roots.len(), 1);
    }
}

#[test]
fn what_proves_nothing_gets_nothing_and_too_many_attempts_are_stopped() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    assert_eq!(why(desk.joins("")), (Code::Unauthenticated, "no_proof"));
    let began = Instant::now();
    let malformed = desk.joins("secret").expect_err("it is no token");
    for part in ["64 hex digits", "base64", "`portunus token`"] {
        assert!(malformed.to_string().contains(part), "{part} in {malformed}");
    }
    assert!(!malformed.to_string().contains("secret"), "{malformed}");
    assert_eq!(why(Err(malformed)), (Code::Unauthenticated, "bad_token"));
    let mut heard = 1;
    let stopped = (0..1_000).find_map(|_| {
        let wrong = JoinToken::generate().reveal();
        let refusal = desk.joins(&wrong).expect_err("it is nobody's");
        assert!(!refusal.to_string().contains(&wrong));
        if refusal.reason() == "unknown_token" {
            heard += 1;
            return None;
        }
        assert_eq!(refusal.reason(), "too_many_attempts");
        // The right one is not heard either, unless there is room for another attempt just now.
        desk.joins(&token.reveal()).err()
    });
    let stopped = stopped.expect("guesses are stopped, and the right one with them");
    assert_eq!(why(Err(stopped)), (Code::ResourceExhausted, "too_many_attempts"));
    // There is room for one more every three seconds.
    let took = began.elapsed();
    let most = 20 + took.as_secs() / 3;
    assert!((20..=most).contains(&heard), "{heard} were heard in {took:?}");
    let elsewhere = Asker {
        address: Ipv4Addr::new(10, 0, 0, 9).into(),
        proven: None,
    };
    let fine = desk
        .certifier
        .certify(&elsewhere, &request(&token.reveal(), ""), SystemTime::now());
    assert!(fine.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_shown_again_waits_for_its_workload_and_is_certified_once_that_is_written() {
    let token = JoinToken::generate();
    let desk = Desk::over("# nobody\n");
    let asker = Asker {
        address: Ipv4Addr::LOCALHOST.into(),
        proven: None,
    };
    let leave = CancellationToken::new();
    let asked = request(&token.reveal(), "");
    let ask = async || {
        let began = tokio::time::Instant::now();
        let answer = desk.certifier.certify_when_known(&asker, &asked, &leave).await;
        (answer, began.elapsed())
    };
    let unknown = (Code::Unauthenticated, "unknown_token");
    let (first, took) = ask().await;
    assert_eq!(
        (why(first), took),
        (unknown, Duration::ZERO),
        "so that its operator is told at once"
    );
    let (second, took) = ask().await;
    assert_eq!((why(second), took), (unknown, WAIT_FOR_WORKLOAD));
    let write = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Of another: that is no reason to answer.
        desk.to_states
            .send_replace(Some(state(&workload("b", "db", "10.0.0.2", None))));
        tokio::time::sleep(Duration::from_secs(1)).await;
        desk.to_states
            .send_replace(Some(state(&workload("a", "web", "10.0.0.1", Some(&token)))));
    };
    let ((third, took), ()) = tokio::join!(ask(), write);
    assert_eq!(third.expect("it is known now").response.workload, "shop/a");
    assert_eq!(took, Duration::from_secs(4));
    // Waiting is no guessing: after hours of it the right token is as good as ever.
    desk.to_states.send_replace(Some(state("# nobody\n")));
    for _ in 0..50 {
        assert_eq!(why(ask().await.0), unknown);
    }
    let stop = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        leave.cancel();
    };
    let ((last, took), ()) = tokio::join!(ask(), stop);
    assert_eq!(
        (why(last), took),
        (unknown, Duration::from_secs(2)),
        "who stops keeps nobody"
    );
}

#[test]
fn a_certificate_renews_for_its_own_workload_as_long_as_that_is_there() {
    let token = JoinToken::generate();
    let there = workload("a", "web", "10.0.0.1", Some(&token)) + &workload("b", "db", "10.0.0.2", None);
    let desk = Desk::over(&there);
    let id = desk.joins(&token.reveal()).expect("it is proven").id;
    assert_eq!(desk.renews(&id, "shop/a").expect("it is proven").id, id);
    assert_eq!(why(desk.renews(&id, "")), (Code::InvalidArgument, "no_workload"));
    assert_eq!(why(desk.renews(&id, "shop")), (Code::InvalidArgument, "no_workload"));
    assert_eq!(why(desk.renews(&id, "shop/b")), (Code::PermissionDenied, "no_sidecar"));
    assert_eq!(why(desk.renews(&id, "shop/c")), (Code::PermissionDenied, "gone"));
    let other_account = workload("a", "admin", "10.0.0.1", Some(&token));
    desk.to_states.send_replace(Some(state(&other_account)));
    assert_eq!(
        why(desk.renews(&id, "shop/a")),
        (Code::PermissionDenied, "other_identity")
    );
    desk.to_states.send_replace(Some(state("# nobody\n")));
    assert_eq!(why(desk.renews(&id, "shop/a")), (Code::PermissionDenied, "gone"));
    desk.to_states.send_replace(None);
    assert_eq!(why(desk.renews(&id, "shop/a")), (Code::Unavailable, "not_ready"));
}

#[test]
fn nobody_is_certified_as_control() {
    let token = JoinToken::generate();
    let there = workload("a", "control", "10.0.0.1", Some(&token));
    let desk = Desk::over(&there);
    assert!(desk.joins(&token.reveal()).is_ok(), "it is of another namespace");
    let there = there.replace("namespace: shop", "namespace: portunus");
    desk.to_states.send_replace(Some(state(&there)));
    assert_eq!(
        why(desk.joins(&token.reveal())),
        (Code::FailedPrecondition, "is_control")
    );
    let control = SpiffeId::of(&domain(), "portunus", "control").expect("it is one");
    assert_eq!(
        why(desk.renews(&control, "portunus/a")),
        (Code::FailedPrecondition, "is_control")
    );
}

#[test]
fn a_token_that_is_sent_in_place_of_a_name_is_not_repeated() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    let id = desk.joins(&token.reveal()).expect("it is proven").id;
    let secret = token.reveal();
    for workload in [
        format!("shop/{secret}"),
        format!("{secret}/a"),
        format!("shop/x{secret}{secret}"),
    ] {
        let said = desk.renews(&id, &workload).expect_err("there is none").to_string();
        let shows = |part: &str| said.contains(part);
        assert!(!(0..56).any(|at| shows(&secret[at..at + 8])), "{said}");
    }
}

#[test]
fn renewals_by_one_certificate_and_by_what_it_got_are_limited_and_replicas_of_one_identity_are_not() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    let ask = |proven: &Proven| {
        let asker = Asker {
            address: Ipv4Addr::LOCALHOST.into(),
            proven: Some(proven.clone()),
        };
        let asked = desk
            .certifier
            .certify(&asker, &request("", "shop/a"), SystemTime::now());
        asked.map(|certified| Proven::by(certified.id, &certified.response.chain[0]))
    };
    let joined = || {
        let certified = desk.joins(&token.reveal()).expect("it is proven");
        Proven::by(certified.id, &certified.response.chain[0])
    };
    let greedy = joined();
    let (began, mut newest, mut renewed) = (Instant::now(), greedy.clone(), 0);
    // Until neither is renewed: in the time between there may be room for another.
    let refusals = (0..1_000).find_map(|_| {
        let of_newest = match ask(&newest) {
            Ok(next) => {
                (newest, renewed) = (next, renewed + 1);
                return None;
            }
            Err(refusal) => refusal,
        };
        match ask(&greedy) {
            Ok(_) => {
                renewed += 1;
                None
            }
            Err(refusal) => Some([of_newest, refusal]),
        }
    });
    // There is room for one more every five seconds.
    let took = began.elapsed();
    let most = 20 + took.as_secs() / 5;
    assert!((20..=most).contains(&renewed), "{renewed} renewals in {took:?}");
    for refusal in refusals.expect("the line has no budget left") {
        assert_eq!(
            (refusal.code(), refusal.reason()),
            (Code::ResourceExhausted, "too_many_renewals")
        );
        assert!(refusal.to_string().contains("wait some seconds"), "{refusal}");
    }
    for _ in 0..30 {
        ask(&joined()).expect("each replica has a certificate of its own");
    }
}

#[test]
fn three_kinds_of_key_are_certified_and_others_are_refused_by_name() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        assert!(csr::public_key(&csr(algorithm)).is_ok(), "{algorithm:?}");
    }
    assert_eq!(
        csr::public_key(&csr(&PKCS_ECDSA_P521_SHA512)),
        Err(csr::Error::Key("P-521".to_owned()))
    );
    assert_eq!(
        csr::public_key(&csr(&PKCS_RSA_SHA256)),
        Err(csr::Error::Key("RSA".to_owned()))
    );
    for (arguments, kind) in [
        ("rsa:1024", "RSA"),
        ("rsa:4096", "RSA"),
        ("ec:secp256k1", "EC on curve"),
        ("ec:secp224r1", "EC on curve"),
        ("ed448", "1.3.101.113"),
    ] {
        let Err(csr::Error::Key(named)) = csr::public_key(&openssl_csr(arguments)) else {
            panic!("{arguments} was not refused for its key")
        };
        assert!(named.contains(kind), "{arguments}: {named}");
    }
    assert!(csr::public_key(&openssl_csr("ec:prime256v1")).is_ok());
    assert!(csr::public_key(&openssl_csr("ed25519")).is_ok());
}

#[test]
fn a_key_of_each_kind_gets_a_certificate_that_is_judged_to_be_its_own() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    let roots = fs::read(desk.directory.0.join("roots/root.pem")).expect("it is there");
    let root: CertificateDer<'_> = rustls_pki_types::pem::PemObject::from_pem_slice(&roots).expect("a root");
    let anchor = webpki::anchor_from_trusted_cert(&root).expect("a root");
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).expect("a key can be made");
        let asked = CertifyRequest {
            csr: csr_of(&key, CertificateParams::default()),
            ..request(&token.reveal(), "")
        };
        let certified = desk
            .asks(None, asked)
            .unwrap_or_else(|why| panic!("{algorithm:?}: {why}"));
        let chain = certified.response.chain.into_iter().map(CertificateDer::from);
        let chain: Vec<CertificateDer<'_>> = chain.collect();
        let (_, leaf) = X509Certificate::from_der(&chain[0]).expect("it is one");
        assert_eq!(
            leaf.public_key().raw,
            rcgen::PublicKeyData::subject_public_key_info(&key),
            "{algorithm:?}"
        );
        for (usage, of) in [
            (webpki::KeyUsage::server_auth(), Usage::Server),
            (webpki::KeyUsage::client_auth(), Usage::Client),
        ] {
            let parsed = webpki::EndEntityCert::try_from(&chain[0]).expect("it can be read");
            let now = rustls_pki_types::UnixTime::now();
            let all = webpki::ALL_VERIFICATION_ALGS;
            let judged =
                parsed.verify_for_usage(all, std::slice::from_ref(&anchor), &chain[1..], now, usage, None, None);
            assert!(judged.is_ok(), "{algorithm:?}: {:?}", judged.err());
            let id = svid::judge(&chain[0], &domain(), &[of]).expect("it is an SVID").id;
            assert_eq!(id.as_str(), "spiffe://mesh.test/ns/shop/sa/web");
        }
    }
}

#[test]
fn a_request_of_8_kib_is_certified_and_one_of_a_byte_more_is_not() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    // Its signatures are all of one length.
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key can be made");
    let of = |name: usize| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "x".repeat(name));
        csr_of(&key, params)
    };
    let rest = of(8_000).len() - 8_000;
    for (length, is_fine) in [(8_191, true), (8_192, true), (8_193, false)] {
        let csr = of(length - rest);
        assert_eq!(csr.len(), length);
        let asked = CertifyRequest {
            csr,
            ..request(&token.reveal(), "")
        };
        match desk.asks(None, asked) {
            Ok(certified) => assert!(is_fine, "{length} bytes were certified: {}", certified.id),
            Err(why) => assert!(
                !is_fine && why.to_string().contains("8193 bytes, more than 8192"),
                "{length} bytes: {why}"
            ),
        }
    }
}

/// A request that openssl makes.
fn openssl_csr(key: &str) -> Vec<u8> {
    let directory = Directory::new();
    let path = |name: &str| directory.0.join(name).display().to_string();
    let options = match key.split_once(':') {
        Some(("rsa", bits)) => vec![
            "-algorithm".to_owned(),
            "RSA".into(),
            "-pkeyopt".into(),
            format!("rsa_keygen_bits:{bits}"),
        ],
        Some((_, curve)) => vec![
            "-algorithm".to_owned(),
            "EC".into(),
            "-pkeyopt".into(),
            format!("ec_paramgen_curve:{curve}"),
        ],
        None => vec!["-algorithm".to_owned(), key.to_owned()],
    };
    run(Command::new("openssl")
        .arg("genpkey")
        .args(options)
        .args(["-out", &path("key")]));
    run(Command::new("openssl").args([
        "req",
        "-new",
        "-subj",
        "/CN=x",
        "-outform",
        "DER",
        "-key",
        &path("key"),
        "-out",
        &path("csr"),
    ]));
    fs::read(directory.0.join("csr")).expect("it was written")
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("openssl is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

#[test]
fn a_request_that_is_damaged_is_refused() {
    let good = csr(&PKCS_ECDSA_P256_SHA256);
    let refused = |bytes: &[u8]| csr::public_key(bytes).expect_err("it is damaged");
    assert_eq!(refused(b""), csr::Error::NotDer);
    assert_eq!(refused(b"-----BEGIN CERTIFICATE REQUEST-----"), csr::Error::NotDer);
    for length in 0..good.len() {
        refused(&good[..length]);
    }
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(refused(&longer), csr::Error::Trailing);
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert_eq!(refused(&forged), csr::Error::Signature);
    assert_eq!(refused(&[0x30; 9 * 1_024]), csr::Error::TooLong(9 * 1_024));
    // Signed by another key than the one it carries.
    let other = csr(&PKCS_ECDSA_P256_SHA256);
    let begin = good.len() - 70;
    let mut mixed = good[..begin].to_vec();
    mixed.extend_from_slice(&other[other.len() - 70..]);
    refused(&mixed);
    let mut big = CertificateParams::default();
    big.distinguished_name.push(DnType::CommonName, "x".repeat(9 * 1_024));
    let key = KeyPair::generate().expect("a key can be made");
    assert!(matches!(refused(&csr_of(&key, big)), csr::Error::TooLong(_)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_and_no_change_makes_another_key(at in 0usize..400, to in 1u8..=255, cut in 0usize..400) {
        let good = csr(&PKCS_ED25519);
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] ^= to;
        // Not every byte is signed: the frame of the signature is not.
        prop_assert!(csr::public_key(&bad).is_err() || csr::public_key(&bad) == csr::public_key(&good));
        bad.truncate(cut);
        let _ = csr::public_key(&bad);
    }
}

#[test]
fn a_request_gets_its_key_certified_and_nothing_that_it_asks_for() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    let mut greedy = CertificateParams::new(vec!["control.mesh".to_owned(), "10.0.0.1".to_owned()]).expect("names");
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.distinguished_name.push(DnType::CommonName, "admin");
    let uri = "spiffe://mesh.test/ns/portunus/sa/control".try_into().expect("ASCII");
    greedy.subject_alt_names.push(rcgen::SanType::URI(uri));
    let key = KeyPair::generate().expect("a key can be made");
    let asked = CertifyRequest {
        csr: csr_of(&key, greedy),
        ..request(&token.reveal(), "shop/other")
    };
    let certified = desk.asks(None, asked).expect("its key is fine");
    let (_, leaf) = X509Certificate::from_der(&certified.response.chain[0]).expect("it is one");
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf
        .subject_alternative_name()
        .expect("it can be read")
        .expect("it is there");
    assert!(names.critical);
    let names: Vec<_> = names.value.general_names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["URI(spiffe://mesh.test/ns/shop/sa/web)"]);
    let usage = leaf.key_usage().expect("it can be read").expect("it is there");
    assert!(usage.critical && usage.value.flags == 1, "digitalSignature alone");
    assert_eq!(
        leaf.public_key().raw,
        rcgen::PublicKeyData::subject_public_key_info(&key)
    );
}

#[test]
fn openssl_trusts_what_is_issued_and_sees_what_spiffe_demands() {
    let token = JoinToken::generate();
    let desk = Desk::over(&workload("a", "web", "10.0.0.1", Some(&token)));
    let certified = desk.joins(&token.reveal()).expect("it is proven");
    let out = Directory::new();
    for (name, der) in [
        ("leaf", &certified.response.chain[0]),
        ("issuer", &certified.response.chain[1]),
    ] {
        fs::write(out.0.join(format!("{name}.der")), der).expect("it can be written");
        let (from, to) = (out.0.join(format!("{name}.der")), out.0.join(format!("{name}.pem")));
        run(Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in"])
            .arg(from)
            .arg("-out")
            .arg(to));
    }
    let (leaf, issuer) = (out.0.join("leaf.pem"), out.0.join("issuer.pem"));
    for purpose in ["sslserver", "sslclient"] {
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-purpose", purpose, "-CAfile"]);
        verify
            .arg(desk.directory.0.join("roots/root.pem"))
            .arg("-untrusted")
            .arg(&issuer)
            .arg(&leaf);
        assert!(run(&mut verify).contains("leaf.pem: OK"));
    }
    let text = run(Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(&leaf));
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in [
        "X509v3 Subject Alternative Name: critical URI:spiffe://mesh.test/ns/shop/sa/web",
        "X509v3 Key Usage: critical Digital Signature",
        "X509v3 Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication",
        "CA:FALSE",
        "X509v3 Authority Key Identifier",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(flat.contains(expected), "{expected}: {text}");
    }
    assert!(!flat.contains("DNS:") && !flat.contains("Certificate Sign"), "{text}");
}

fn life(der: &[u8]) -> (SystemTime, SystemTime) {
    let (_, leaf) = X509Certificate::from_der(der).expect("it is one");
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds as u64);
    (
        time(leaf.validity().not_before.timestamp()),
        time(leaf.validity().not_after.timestamp()),
    )
}

#[test]
fn no_certificate_outlives_its_issuer_and_an_ended_issuer_signs_nothing() {
    let directory = Directory::new();
    let authority = state_files(&directory.0)
        .load(SystemTime::now())
        .expect("it can be made");
    let key = KeyPair::generate().expect("a key can be made");
    let id = SpiffeId::of(&domain(), "shop", "web").expect("it is one");
    let now = SystemTime::now();
    let issued = authority.certify(&key, &id, DAY, now).expect("it is young");
    let (begins, ends) = life(&issued.chain[0]);
    assert!(begins < now && begins + Duration::from_secs(62) > now);
    assert!(ends <= now + DAY && ends + Duration::from_secs(2) > now + DAY);
    let late = authority.not_after() - HOUR;
    assert!(authority.is_old(late));
    let issued = authority.certify(&key, &id, DAY, late).expect("an hour is left");
    assert_eq!(life(&issued.chain[0]).1, authority.not_after());
    assert_eq!(issued.not_after, authority.not_after());
    for now in [authority.not_after(), authority.not_after() + 400 * DAY] {
        assert!(matches!(
            authority.certify(&key, &id, DAY, now),
            Err(AuthorityError::Ended)
        ));
    }
    assert!(matches!(
        authority.certify(&key, &id, DAY, now - 400 * DAY),
        Err(AuthorityError::NotYet)
    ));
    assert!(
        authority.certify(&key, &id, DAY, now - HOUR).is_ok(),
        "a clock may be behind by an hour"
    );
}

#[test]
fn an_issuer_that_ends_is_made_anew_under_the_same_root() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    let first = files.load(SystemTime::now()).expect("it can be made");
    for later in [300 * DAY, 400 * DAY] {
        let now = SystemTime::now() + later;
        let second = files.load(now).expect("the root is there");
        assert!(second.not_after() > now + 200 * DAY, "{later:?}");
        assert_eq!(first.roots(), second.roots());
    }
    fs::remove_file(directory.0.join("root-key.pem")).expect("it is there");
    let last = files
        .load(SystemTime::now() + 900 * DAY)
        .expect_err("nobody can make one");
    assert!(last.to_string().contains("ended"), "{last}");
}

#[tokio::test(start_paused = true)]
async fn an_old_issuer_that_control_cannot_renew_is_told_of_once_and_its_files_are_left_alone_until_they_change() {
    let log = Log::begin();
    let directory = Directory::new();
    let files = state_files(&directory.0);
    files.load(SystemTime::now() - 300 * DAY).expect("it can be made");
    fs::remove_file(directory.0.join("root-key.pem")).expect("it is there");
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(directory.0.join("issuer.pem"), readable).expect("it is ours");
    let stop = CancellationToken::new();
    let mut kept = keep(files, Duration::from_secs(2), stop.clone()).expect("it signs still");
    // Some tries, and many looks.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let told = |text: &str| log.said().matches(text).count();
    assert_eq!(
        told("control has no root's key to make another with"),
        1,
        "{}",
        log.said()
    );
    assert_eq!(told("others than control can look"), 2, "{}", log.said());
    assert_eq!(told("was read again"), 0, "{}", log.said());
    let other = Directory::new();
    state_files(&other.0).load(SystemTime::now()).expect("it can be made");
    for file in ["roots/root.pem", "issuer.pem"] {
        fs::copy(other.0.join(file), directory.0.join("new")).expect("it can be copied");
        fs::rename(directory.0.join("new"), directory.0.join(file)).expect("it can be moved");
    }
    let young = |authority: &Arc<Authority>| !authority.is_old(SystemTime::now());
    kept.authorities.wait_for(young).await.expect("it lives");
    stop.cancel();
    kept.task.await.expect("it ends");
}

#[test]
fn an_operators_issuer_under_another_root_is_used_as_it_is_and_never_replaced() {
    let (directory, other) = (Directory::new(), Directory::new());
    let files = state_files(&directory.0);
    for directory in [&directory, &other] {
        state_files(&directory.0)
            .load(SystemTime::now())
            .expect("it can be made");
    }
    for (from, to) in [("issuer.pem", "issuer.pem"), ("roots/root.pem", "roots/root-2.pem")] {
        fs::copy(other.0.join(from), directory.0.join(to)).expect("it can be copied");
    }
    let given = fs::read(directory.0.join("issuer.pem")).expect("it is there");
    let remains = |when: &str| {
        let authority = files.load(SystemTime::now() + 300 * DAY).expect("it signs still");
        assert!(authority.is_old(SystemTime::now() + 300 * DAY));
        let issuer = fs::read(directory.0.join("issuer.pem")).expect("it is there");
        assert!(issuer == given, "{when}: another was made");
    };
    remains("the old root is trusted, too");
    fs::remove_file(directory.0.join("roots/root.pem")).expect("it is there");
    remains("the old root is gone, and its key is left");
    let ended = files
        .load(SystemTime::now() + 400 * DAY)
        .expect_err("it is the operator's to renew");
    assert!(ended.to_string().contains("give control a new issuer"), "{ended}");
}

#[test]
fn an_issuer_of_which_nobody_can_say_whether_it_is_there_is_not_replaced() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    files.load(SystemTime::now()).expect("it can be made");
    let issuer = directory.0.join("issuer.pem");
    fs::remove_file(&issuer).expect("it is there");
    // A link to itself is what the tests of root, who may look everywhere, have for a disk that fails.
    std::os::unix::fs::symlink("issuer.pem", &issuer).expect("a link can be made");
    let why = files
        .load(SystemTime::now())
        .expect_err("it cannot be read")
        .to_string();
    assert!(why.contains("issuer.pem"), "{why}");
    assert!(issuer.symlink_metadata().expect("it is there").is_symlink());
}

#[tokio::test]
async fn a_pipe_among_the_authoritys_files_stops_nobody() {
    let log = Log::begin();
    let directory = Directory::new();
    let stop = CancellationToken::new();
    let mut kept = keep(state_files(&directory.0), Duration::from_millis(20), stop.clone()).expect("it can be made");
    let pipe = directory.0.join("roots/pipe.pem");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe can be made");
    let trouble = kept.trouble.wait_for(Option::is_some).await.expect("it lives").clone();
    assert!(
        trouble.as_ref().is_some_and(|why| why.contains("is no file")),
        "{trouble:?}"
    );
    let ends = super::ageing::ends(&kept.authorities.borrow());
    let said = log.said();
    let line = said
        .lines()
        .find(|line| line.contains("cannot be read again or renewed"));
    assert!(
        line.is_some_and(|line| line.contains("pipe.pem") && line.contains(&ends)),
        "it is said how long the one before lasts: {said}"
    );
    stop.cancel();
    kept.task.await.expect("it ends");
}

#[test]
fn an_authority_of_more_than_sidecars_take_is_refused() {
    let directory = Directory::new();
    let now = SystemTime::now();
    state_files(&directory.0).load(now).expect("it can be made");
    let read = |name: &str| fs::read_to_string(directory.0.join(name)).expect("it is there");
    let (issuer, root) = (read("issuer.pem"), read("roots/root.pem"));
    let made = |count: usize| {
        let one = |_| make_root(&domain(), &make_key().expect("a key"), now).expect("a root");
        (0..count).map(one).collect::<String>()
    };
    let judged = |issuer: &str, roots: &str| {
        let judged = Authority::from_pem(&domain(), issuer.as_bytes(), issuer.as_bytes(), roots.as_bytes(), now);
        judged.map(drop).map_err(|why| why.to_string())
    };
    assert_eq!(judged(&issuer, &(root.clone() + &made(31))), Ok(()));
    let why = judged(&issuer, &(root.clone() + &made(32))).expect_err("they are 33");
    assert!(why.contains("33 roots; sidecars take at most 32"), "{why}");
    assert_eq!(judged(&(issuer.clone() + &made(6)), &root), Ok(()));
    let why = judged(&(issuer + &made(7)), &root).expect_err("with the leaf they are 9");
    assert!(why.contains("8 certificates"), "{why}");
}

#[test]
fn an_issuer_that_ends_with_its_root_is_not_made_anew() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    let root_ends = files.load(SystemTime::now()).expect("it can be made").roots_not_after();
    let issuer = || fs::read(directory.0.join("issuer.pem")).expect("it is there");
    let last = files.load(root_ends - DAY / 2).expect("the root lives");
    assert_eq!(last.not_after(), root_ends);
    let made = issuer();
    for left in [DAY / 2, HOUR, Duration::from_secs(61)] {
        assert!(last.is_old(root_ends - left));
        files.load(root_ends - left).expect("it signs still");
        assert!(issuer() == made, "{left:?} before the root's end another was made");
    }
    let over = files.load(root_ends).expect_err("nothing can be signed");
    assert!(over.to_string().contains("the root has ended"), "{over}");
    assert!(issuer() == made, "and no issuer is made that nobody believes");
}

#[tokio::test]
async fn an_issuer_that_was_made_while_the_clock_was_ahead_is_replaced_and_harms_no_control_that_has_a_good_one() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    let now = SystemTime::now();
    files.load(now).expect("it can be made");
    let stop = tokio_util::sync::CancellationToken::new();
    let look = Duration::from_millis(20);
    let mut kept = keep(files.clone(), look, stop.clone()).expect("it is there");
    // Another control over the same directory, whose clock is ahead.
    let ahead = files.load(now + 400 * DAY).expect("the root is there");
    assert!(!ahead.has_begun(now));
    kept.trouble.wait_for(Option::is_some).await.expect("it lives");
    assert!(!kept.authorities.has_changed().expect("it lives"));
    // And the one whose clock is right again, with no other issuer.
    let right = files.load(now).expect("another is made");
    assert!(right.has_begun(now) && !right.is_old(now));
    kept.trouble.wait_for(Option::is_none).await.expect("it lives");
    stop.cancel();
    kept.task.await.expect("it ends");
}

#[tokio::test]
async fn what_could_not_be_used_is_tried_again_though_no_file_changes() {
    let (directory, other) = (Directory::new(), Directory::new());
    let files = state_files(&directory.0);
    files.load(SystemTime::now()).expect("it can be made");
    let stop = CancellationToken::new();
    let mut kept = keep(files, Duration::from_millis(20), stop.clone()).expect("it is there");
    // An operator's, made under the same root where the clock is ahead: it begins in some seconds.
    let issuer = state_files(&other.0);
    issuer.load(SystemTime::now()).expect("it can be made");
    for file in ["root-key.pem", "roots/root.pem"] {
        fs::copy(directory.0.join(file), other.0.join(file)).expect("it can be copied");
    }
    fs::remove_file(other.0.join("issuer.pem")).expect("it is there");
    let ahead = issuer
        .load(SystemTime::now() + DAY + Duration::from_secs(6))
        .expect("it can be made");
    fs::copy(other.0.join("issuer.pem"), directory.0.join("new")).expect("it can be copied");
    fs::rename(directory.0.join("new"), directory.0.join("issuer.pem")).expect("it can be moved");
    kept.trouble.wait_for(Option::is_some).await.expect("it lives");
    let taken = |authority: &Arc<Authority>| authority.not_after() == ahead.not_after();
    let waiting = kept.authorities.wait_for(taken);
    let taken = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    taken.expect("it was tried again").expect("it lives");
    kept.trouble.wait_for(Option::is_none).await.expect("it lives");
    stop.cancel();
    kept.task.await.expect("it ends");
}

#[test]
fn two_controls_over_one_directory_make_one_authority() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let files = files.clone();
            std::thread::spawn(move || files.load(SystemTime::now()).expect("it can be made"))
        })
        .collect();
    let authorities: Vec<_> = threads
        .into_iter()
        .map(|thread| thread.join().expect("it ends"))
        .collect();
    let first = &authorities[0];
    for authority in &authorities {
        assert_eq!(authority.roots(), first.roots());
        assert_eq!(authority.not_after(), first.not_after());
    }
    let mode = |name: &str| {
        let metadata = fs::metadata(directory.0.join(name)).expect("it is there");
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
    };
    assert_eq!(
        [mode("root-key.pem"), mode("issuer.pem"), mode("roots")],
        [0o600, 0o600, 0o700]
    );
}

#[test]
fn a_root_whose_certificate_was_not_written_any_more_gets_one_the_next_time_with_the_same_key() {
    let directory = Directory::new();
    let files = state_files(&directory.0);
    files.load(SystemTime::now()).expect("it can be made");
    let key = || fs::read_to_string(directory.0.join("root-key.pem")).expect("it is there");
    let made = key();
    for file in ["roots/root.pem", "issuer.pem"] {
        fs::remove_file(directory.0.join(file)).expect("it is there");
    }
    files.load(SystemTime::now()).expect("it can be made again");
    assert_eq!(key(), made);
}

#[test]
fn files_that_do_not_fit_are_refused_with_the_reason() {
    let (one, other) = (Directory::new(), Directory::new());
    let now = SystemTime::now();
    for directory in [&one, &other] {
        state_files(&directory.0).load(now).expect("it can be made");
    }
    let read = |directory: &Directory, name: &str| fs::read_to_string(directory.0.join(name)).expect("it is there");
    let (issuer, root) = (read(&one, "issuer.pem"), read(&one, "roots/root.pem"));
    let refused = |issuer: &str, key: &str, roots: &str| {
        let made = Authority::from_pem(&domain(), issuer.as_bytes(), key.as_bytes(), roots.as_bytes(), now);
        made.expect_err("it does not fit").to_string()
    };
    assert!(refused(&issuer, &read(&other, "issuer.pem"), &root).contains("not that of its certificate"));
    assert!(refused(&issuer, &issuer, &read(&other, "roots/root.pem")).contains("not trusted"));
    assert!(refused(&issuer, &issuer, "").contains("no root"));
    assert!(refused("", &issuer, &root).contains("no certificate"));
    assert!(refused(&issuer, "", &root).contains("key"));
    let key = KeyPair::generate().expect("a key can be made");
    let leaf = CertificateParams::default()
        .self_signed(&key)
        .expect("it can be signed")
        .pem();
    assert!(refused(&leaf, &key.serialize_pem(), &root).contains("not that of a CA"));
    let mut narrow = CertificateParams::default();
    narrow.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    narrow.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("mesh.test".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let narrow = narrow.self_signed(&key).expect("it can be signed").pem();
    assert!(refused(&narrow, &key.serialize_pem(), &(root + &narrow)).contains("name constraints"));
}

#[tokio::test]
async fn issuer_and_root_are_rotated_without_a_restart() {
    tokio::time::timeout(Duration::from_secs(20), rotate())
        .await
        .expect("every step is seen");
}

async fn rotate() {
    let (directory, other) = (Directory::new(), Directory::new());
    let now = SystemTime::now();
    state_files(&other.0).load(now).expect("it can be made");
    let stop = tokio_util::sync::CancellationToken::new();
    let mut kept = keep(state_files(&directory.0), Duration::from_millis(20), stop.clone()).expect("it can be made");
    let first = kept.authorities.borrow_and_update().clone();
    // A new root is trusted first, and then it issues; the old one goes last.
    let copy = |from: &str, to: &str| {
        let new = directory.0.join("new");
        fs::copy(other.0.join(from), &new).expect("it can be copied");
        fs::rename(new, directory.0.join(to)).expect("it can be moved");
    };
    copy("roots/root.pem", "roots/root-2.pem");
    kept.authorities.changed().await.expect("it lives");
    assert_eq!(kept.authorities.borrow_and_update().roots().len(), 2);
    copy("issuer.pem", "issuer.pem");
    kept.authorities.changed().await.expect("it lives");
    let second = kept.authorities.borrow_and_update().clone();
    assert_ne!(second.bundle(), first.bundle());
    // A step that would leave nothing trusted is not taken.
    fs::rename(directory.0.join("roots/root-2.pem"), directory.0.join("aside")).expect("it can be moved");
    kept.trouble.wait_for(Option::is_some).await.expect("it lives");
    assert!(!kept.authorities.has_changed().expect("it lives"));
    fs::rename(directory.0.join("aside"), directory.0.join("roots/root-2.pem")).expect("it can be moved");
    kept.trouble.wait_for(Option::is_none).await.expect("it lives");
    kept.authorities.borrow_and_update();
    fs::remove_file(directory.0.join("roots/root.pem")).expect("it is there");
    kept.authorities.changed().await.expect("it lives");
    assert_eq!(kept.authorities.borrow().roots().len(), 1);
    stop.cancel();
    kept.task.await.expect("it ends");
}
