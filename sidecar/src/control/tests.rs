//! The whole client against a control of the test's own, over real sockets and real TLS.

mod fake;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use portunus_proto::SpiffeId;
use portunus_proto::mesh::v1;
use portunus_proto::mesh::v1::follow_request::Ask;
use portunus_proto::mesh::v1::follow_response::Answer;
use rustls_pki_types::CertificateDer;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::DropGuard;
use tonic::Status as Refusal;

use super::*;
use crate::policy::Mode;
use crate::route::{Known, Subject};
use fake::{CONTROL, DOMAIN, Fake, TOKEN, WORKLOAD};

const HOUR: Duration = Duration::from_secs(3_600);

/// A sidecar's end, and its clock.
struct Sidecar {
    control: Control,
    /// Seconds that the wall clock is ahead.
    ahead: Arc<AtomicI64>,
    token: PathBuf,
    _stop: DropGuard,
}

fn address(addr: SocketAddr) -> Address {
    addr.to_string().parse().expect("it is one")
}

fn a_file() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("portunus-join-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    std::env::temp_dir().join(name)
}

fn settings(fake: &Fake, addrs: &[SocketAddr]) -> Settings {
    let identity = SpiffeId::parse(CONTROL).expect("it is one");
    settings_of(addrs, identity, fake.root())
}

fn settings_of(addrs: &[SocketAddr], identity: SpiffeId, root: CertificateDer<'static>) -> Settings {
    let token = a_file();
    fs::write(&token, TOKEN).expect("a file");
    Settings {
        join_token: Some(token),
        ..Settings::new(addrs.iter().copied().map(address).collect(), identity, vec![root])
    }
}

fn sidecar_with(settings: Settings) -> Sidecar {
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let names = Names::start(resolve::Settings::default(), &tracker, stop.clone());
    let ahead = Arc::new(AtomicI64::new(0));
    let clock = ahead.clone();
    let wall: Wall = Arc::new(move || {
        let ahead = clock.load(Relaxed);
        let by = Duration::from_secs(ahead.unsigned_abs());
        if ahead < 0 {
            SystemTime::now() - by
        } else {
            SystemTime::now() + by
        }
    });
    let token = settings.join_token.clone().unwrap_or_default();
    let control = start_by(settings, &names, &tracker, stop.clone(), wall).expect("the settings are good");
    Sidecar {
        control,
        ahead,
        token,
        _stop: stop.drop_guard(),
    }
}

fn sidecar(fake: &Fake, addrs: &[SocketAddr]) -> Sidecar {
    sidecar_with(settings(fake, addrs))
}

impl Sidecar {
    async fn until(&self, within: Duration, is_so: impl FnMut(&Status) -> bool) -> Status {
        let mut statuses = self.control.statuses();
        let status = timeout(within, statuses.wait_for(is_so)).await;
        match status {
            Ok(status) => status.expect("it runs").clone(),
            Err(_) => panic!("{:#?}", self.control.status()),
        }
    }

    /// Why it has no certificate, once this is a part of the reason.
    async fn without_certificate(&self, why: &str) -> String {
        let missing = |status: &Status| status.certificate.missing().filter(|missing| missing.contains(why));
        let status = self.until(Duration::from_secs(10), |status| missing(status).is_some());
        missing(&status.await).expect("there is none")
    }

    async fn connected(&self) {
        self.until(Duration::from_secs(10), |status| status.stream.is_connected())
            .await;
    }

    fn count(&self, outcome: Outcome) -> u64 {
        self.control
            .certifications()
            .find(|(of, _)| *of == outcome)
            .expect("all are there")
            .1
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.token);
    }
}

fn name(host: &str) -> Subject {
    Subject::Name {
        host: host.to_owned(),
        port: 50051,
    }
}

fn greeter(endpoints: u8) -> v1::update::What {
    let endpoint = |last| v1::Endpoint {
        ip: format!("10.1.0.{last}"),
        port: 50051,
        identity: WORKLOAD.to_owned(),
        ready: true,
        workload: "shop/greeter".to_owned(),
        ..Default::default()
    };
    v1::update::What::Service(v1::Service {
        namespace: "shop".to_owned(),
        name: "greeter".to_owned(),
        port: 50051,
        endpoints: (1..=endpoints).map(endpoint).collect(),
        ..Default::default()
    })
}

fn endpoints(known: &Known) -> Option<usize> {
    match known {
        Known::Service(view) => Some(view.endpoints.len()),
        Known::Pending | Known::Unusable(_) | Known::Endpoint(_) | Known::Outside(_) => None,
    }
}

async fn knows(receiver: &mut watch::Receiver<Arc<Known>>, number: usize) {
    let known = receiver.wait_for(|known| endpoints(known) == Some(number));
    timeout(Duration::from_secs(5), known)
        .await
        .expect("in time")
        .expect("it runs");
}

#[tokio::test]
async fn a_token_gives_a_certificate_and_the_certificate_a_stream() {
    let fake = Fake::new();
    fake.say(|said| {
        said.inbound.mtls = v1::Mtls::Strict.into();
        said.known.insert("greeter.shop".to_owned(), greeter(3));
    });
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    let mut known = sidecar
        .control
        .directory()
        .follow(name("greeter.shop"))
        .expect("there is room");
    assert_eq!(**known.borrow(), Known::Pending);
    sidecar.connected().await;
    knows(&mut known, 3).await;
    let credential = sidecar.control.credential().load_full().expect("it is there");
    assert_eq!(credential.id().as_str(), WORKLOAD);
    let mut inbound = sidecar.control.inbound();
    let mode = inbound.wait_for(|inbound| inbound.default == Some(Mode::Strict)).await;
    assert!(mode.is_ok());
    let seen = fake.seen();
    assert_eq!(seen.by_token, [true]);
    assert_eq!(seen.hellos[0].workload, "shop/greeter");
    assert_eq!(sidecar.count(Outcome::Certified), 1);
    let Certificate::Valid { id, overdue: None, .. } = sidecar.control.status().certificate else {
        panic!("{:?}", sidecar.control.status())
    };
    assert_eq!(id.as_str(), WORKLOAD);
}

#[tokio::test]
async fn whoever_does_not_prove_to_be_control_never_sees_the_token() {
    let (fake, stranger) = (Fake::new(), Fake::new());
    fake.say(|said| said.identity = WORKLOAD.to_owned());
    let somebody = fake.listen().await;
    let of_another_root = stranger.listen().await;
    let who = format!("it is {WORKLOAD}, and {CONTROL} is expected: --control-identity says who control is");
    for (addr, why) in [
        (somebody.addr, who.as_str()),
        (of_another_root.addr, "no root of this mesh"),
    ] {
        let sidecar = sidecar(&fake, &[addr]);
        let missing = sidecar.without_certificate("cannot be reached").await;
        assert!(missing.contains(why), "{missing}");
    }
    // Whoever has the trust domain wrong has it wrong in the same setting.
    fake.say(|said| said.identity = "spiffe://another.test/ns/portunus/sa/control".to_owned());
    let of_another_domain = fake.listen().await;
    let sidecar = sidecar(&fake, &[of_another_domain.addr]);
    let missing = sidecar.without_certificate("not of the trust domain").await;
    assert!(
        missing.contains(": --control-identity says who control is"),
        "{missing}"
    );
    assert!(fake.seen().by_token.is_empty() && stranger.seen().by_token.is_empty());
}

#[tokio::test]
async fn whoever_shows_a_bad_certificate_in_controls_place_hears_not_one_byte() {
    let (identity, root) = tls::tests::whom();
    for impostor in tls::tests::impostors() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it has one");
        let hears = async {
            let (socket, _) = listener.accept().await.expect("it listens");
            let mut heard = Vec::new();
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(impostor.show())).accept(socket).await {
                // However it ends.
                let _ = stream.read_to_end(&mut heard).await;
            }
            heard
        };
        let sidecar = sidecar_with(settings_of(&[addr], identity.clone(), root.clone()));
        let (missing, heard) = tokio::join!(sidecar.without_certificate(impostor.sentence()), hears);
        let what = &impostor.what;
        assert!(missing.contains("control cannot be reached"), "{what}: {missing}");
        assert_eq!(heard, b"", "{what}: {}", heard.escape_ascii());
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_by_itself_and_the_stream_begins_anew_with_it() {
    let fake = Fake::new();
    // Four fifths of its life are over when it comes.
    fake.say(|said| said.life = (8 * HOUR, 2 * HOUR));
    let control = fake.listen().await;
    let sidecar = sidecar_with(Settings {
        stream_rest: Duration::from_millis(100),
        ..settings(&fake, &[control.addr])
    });
    let first = sidecar
        .until(Duration::from_secs(5), |status| status.certificate.serves())
        .await;
    sidecar.connected().await;
    fake.say(|said| said.life = (HOUR, 24 * HOUR));
    let renewed = |status: &Status| status.certificate.expires() != first.certificate.expires();
    sidecar.until(Duration::from_secs(10), renewed).await;
    let seen = timeout(Duration::from_secs(5), fake.until(|seen| seen.hellos.len() == 2)).await;
    assert_eq!(seen.expect("in time").by_token, [true, false]);
    sidecar.connected().await;
}

#[tokio::test]
async fn a_renewal_that_is_denied_is_asked_for_by_the_token() {
    let fake = Fake::new();
    fake.say(|said| {
        said.life = (8 * HOUR, 2 * HOUR);
        said.no_renewal = Some(Refusal::permission_denied("the workload was made anew"));
    });
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar
        .until(Duration::from_secs(5), |status| status.certificate.serves())
        .await;
    fake.say(|said| said.life = (HOUR, 24 * HOUR));
    let seen = timeout(Duration::from_secs(10), fake.until(|seen| seen.by_token.len() == 3)).await;
    assert_eq!(seen.expect("in time").by_token, [true, false, true]);
    assert_eq!(sidecar.count(Outcome::Denied), 1);
}

#[tokio::test]
async fn a_token_that_is_missing_is_said_and_one_that_comes_is_used() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    fs::remove_file(&sidecar.token).expect("it was there");
    sidecar.without_certificate("the join token cannot be read from").await;
    assert_eq!(sidecar.count(Outcome::NoToken), 1);
    fs::write(&sidecar.token, TOKEN).expect("a file");
    sidecar
        .until(Duration::from_secs(2), |status| status.certificate.serves())
        .await;
    assert_eq!(fake.seen().by_token, [true]);
}

#[tokio::test]
async fn a_file_that_has_no_token_in_it_is_not_said_to_be_missing_and_one_that_is_mended_is_used() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let settings = settings(&fake, &[control.addr]);
    fs::write(settings.join_token.as_ref().expect("it is set"), "secret-word").expect("a file");
    let sidecar = sidecar_with(settings);
    let missing = sidecar.without_certificate("has no join token in it").await;
    for part in ["64 hex digits", "base64", "`portunus token`"] {
        assert!(missing.contains(part), "{part} in {missing}");
    }
    assert!(!missing.contains("secret"), "{missing}");
    assert_eq!(
        (sidecar.count(Outcome::BadToken), sidecar.count(Outcome::NoToken)),
        (1, 0)
    );
    fs::write(&sidecar.token, TOKEN).expect("a file");
    sidecar
        .until(Duration::from_secs(2), |status| status.certificate.serves())
        .await;
    assert_eq!(fake.seen().by_token, [true]);
}

#[tokio::test]
async fn a_token_that_proves_nothing_is_said_and_tried_again_soon_and_then_ever_later() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let settings = settings(&fake, &[control.addr]);
    fs::write(settings.join_token.as_ref().expect("it is set"), "f".repeat(64)).expect("a file");
    let sidecar = sidecar_with(settings);
    let missing = sidecar.without_certificate("Unauthenticated").await;
    assert!(
        missing.contains("the token is not known") && !missing.contains("ffff"),
        "{missing}"
    );
    let asked = async |times: usize, within: Duration| {
        let asked = fake.until(|seen| seen.by_token.len() >= times);
        timeout(within, asked).await.is_ok()
    };
    assert!(!asked(2, Duration::from_millis(800)).await, "{:?}", fake.seen());
    assert!(
        asked(2, Duration::from_secs(3)).await,
        "its Workload may be written now"
    );
    assert!(!asked(3, Duration::from_millis(1_800)).await, "{:?}", fake.seen());
    let still = sidecar.control.status().certificate.missing();
    assert!(
        still.is_some_and(|why| why.contains("the token is not known")),
        "what control said holds while it rests"
    );
    assert_eq!(
        (sidecar.count(Outcome::Unproven), sidecar.count(Outcome::Unreachable)),
        (2, 0)
    );
}

#[tokio::test]
async fn a_hundred_sidecars_ask_control_once_each_when_it_comes_back() {
    const SIDECARS: usize = 100;
    let fake = Fake::new();
    let addr = fake.listen().await.addr;
    let sidecars: Vec<_> = (0..SIDECARS).map(|_| sidecar(&fake, &[addr])).collect();
    for sidecar in &sidecars {
        sidecar.without_certificate("refused").await;
    }
    let _control = fake.listen_at(addr).await;
    for sidecar in &sidecars {
        sidecar
            .until(Duration::from_secs(30), |status| status.stream.is_connected())
            .await;
    }
    let more = fake.until(|seen| seen.by_token.len() > SIDECARS || seen.hellos.len() > SIDECARS);
    let more = timeout(Duration::from_secs(2), more).await;
    assert!(more.is_err(), "{:?}", fake.seen().by_token.len());
}

#[tokio::test]
async fn certificates_that_fell_due_while_control_was_away_cost_one_request_and_one_stream_each() {
    const SIDECARS: usize = 20;
    let fake = Fake::new();
    let control = fake.listen().await;
    let addr = control.addr;
    let sidecars: Vec<_> = (0..SIDECARS).map(|_| sidecar(&fake, &[addr])).collect();
    for sidecar in &sidecars {
        sidecar.connected().await;
    }
    drop(control);
    let overdue = |status: &Status| matches!(&status.certificate, Certificate::Valid { overdue: Some(_), .. });
    for sidecar in &sidecars {
        sidecar.ahead.store(20 * 3_600, Relaxed);
    }
    for sidecar in &sidecars {
        sidecar.until(Duration::from_secs(10), overdue).await;
    }
    fake.say(|said| said.life = (HOUR, 60 * HOUR));
    let _control = fake.listen_at(addr).await;
    let all = fake.until(|seen| seen.by_token.len() == 2 * SIDECARS && seen.hellos.len() >= 2 * SIDECARS);
    timeout(Duration::from_secs(30), all).await.expect("all come back");
    let more = fake.until(|seen| seen.by_token.len() > 2 * SIDECARS || seen.hellos.len() > 2 * SIDECARS);
    let more = timeout(Duration::from_secs(3), more).await;
    let seen = fake.seen();
    assert!(
        more.is_err(),
        "{} requests, {} streams",
        seen.by_token.len(),
        seen.hellos.len()
    );
    assert!(seen.by_token[SIDECARS..].iter().all(|by_token| !by_token));
}

#[tokio::test]
async fn a_certificate_that_is_about_to_serve_nobody_opens_no_stream() {
    let fake = Fake::new();
    fake.say(|said| said.life = (HOUR, HOUR));
    let control = fake.listen().await;
    let addr = control.addr;
    let sidecar = sidecar(&fake, &[addr]);
    sidecar.connected().await;
    fake.say(|said| said.no_renewal = Some(Refusal::unavailable("not now")));
    // It is over, but peers whose clocks are behind may take it.
    sidecar.ahead.store(3_605, Relaxed);
    let overdue = |status: &Status| matches!(&status.certificate, Certificate::Valid { overdue: Some(why), .. } if why.contains("not now"));
    sidecar.until(Duration::from_secs(10), overdue).await;
    assert!(sidecar.control.status().stream.is_connected(), "what is open goes on");
    drop(control);
    sidecar
        .until(Duration::from_secs(2), |status| !status.stream.is_connected())
        .await;
    let _control = fake.listen_at(addr).await;
    let again = timeout(Duration::from_secs(2), fake.until(|seen| seen.hellos.len() > 1)).await;
    assert!(again.is_err(), "{:?}", fake.seen().hellos);
    fake.say(|said| (said.no_renewal, said.life) = (None, (HOUR, 24 * HOUR)));
    sidecar
        .until(Duration::from_secs(30), |status| status.stream.is_connected())
        .await;
    assert_eq!(fake.seen().hellos.len(), 2);
}

#[tokio::test]
async fn what_was_known_stays_while_control_is_away_and_changes_within_a_second_of_its_return() {
    let fake = Fake::new();
    fake.say(|said| drop(said.known.insert("greeter.shop".to_owned(), greeter(3))));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    let directory = sidecar.control.directory();
    let mut known = directory.follow(name("greeter.shop")).expect("there is room");
    knows(&mut known, 3).await;
    let addr = control.addr;
    drop(control);
    sidecar
        .until(Duration::from_secs(2), |status| !status.stream.is_connected())
        .await;
    assert_eq!(endpoints(&known.borrow()), Some(3));
    assert!(sidecar.control.credential().load().is_some());
    let mut late = directory.follow(name("other")).expect("there is room");
    fake.say(|said| drop(said.known.insert("greeter.shop".to_owned(), greeter(2))));
    let _control = fake.listen_at(addr).await;
    let changed = known.wait_for(|known| endpoints(known) == Some(2));
    timeout(Duration::from_secs(1), changed)
        .await
        .expect("within a second")
        .expect("it runs");
    let outside = late.wait_for(|known| matches!(**known, Known::Outside(_)));
    timeout(Duration::from_secs(1), outside)
        .await
        .expect("in time")
        .expect("it runs");
    assert_eq!(fake.seen().by_token, [true], "no certificate was due");
}

#[tokio::test]
async fn several_who_want_the_same_are_one_subscription_and_it_ends_with_the_last() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let sidecar = sidecar_with(Settings {
        linger: Duration::from_millis(10),
        max_subjects: 1,
        ..settings(&fake, &[control.addr])
    });
    sidecar.connected().await;
    let directory = sidecar.control.directory();
    let receivers: Vec<_> = (0..4)
        .map(|_| directory.follow(name("greeter")).expect("it is one"))
        .collect();
    assert_eq!(
        directory.follow(name("other")).expect_err("one is the most"),
        Full { max: 1 }
    );
    timeout(Duration::from_secs(5), fake.until(|seen| !seen.asks.is_empty()))
        .await
        .expect("in time");
    drop(receivers);
    let seen = timeout(Duration::from_secs(5), fake.until(|seen| seen.asks.len() == 2))
        .await
        .expect("in time");
    let subject = wire::ask(&name("greeter"));
    assert_eq!(seen.asks, [Ask::Subscribe(subject.clone()), Ask::Unsubscribe(subject)]);
    assert!(directory.is_empty());
}

#[tokio::test]
async fn a_control_that_falls_silent_is_noticed_and_another_is_asked() {
    let fake = Fake::new();
    let (one, other) = (fake.listen().await, fake.listen().await);
    let sidecar = sidecar_with(Settings {
        keepalive: Duration::from_millis(200),
        handshake_timeout: Duration::from_millis(500),
        ..settings(&fake, &[one.addr, other.addr])
    });
    sidecar.connected().await;
    fake.freeze();
    let away = sidecar
        .until(Duration::from_secs(3), |status| !status.stream.is_connected())
        .await;
    let Stream::Away { why, .. } = away.stream else {
        panic!("it is away")
    };
    assert!(why.contains("connection to control broke"), "{why}");
}

#[tokio::test]
async fn of_several_controls_one_that_is_there_is_used() {
    let fake = Fake::new();
    let (one, other) = (fake.listen().await, fake.listen().await);
    let sidecar = sidecar(&fake, &[one.addr, other.addr]);
    sidecar.connected().await;
    let Stream::Connected { to, .. } = sidecar.control.status().stream else {
        panic!("it is connected")
    };
    let (used, rest) = if to == one.addr { (one, other) } else { (other, one) };
    drop(used);
    let moved = |status: &Status| matches!(status.stream, Stream::Connected { to, .. } if to == rest.addr);
    sidecar.until(Duration::from_secs(2), moved).await;
    assert_eq!(fake.seen().by_token.len(), 1);
}

#[tokio::test]
async fn without_control_a_certificate_ends_and_control_s_return_gives_another() {
    let fake = Fake::new();
    fake.say(|said| said.life = (HOUR, HOUR));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.connected().await;
    let addr = control.addr;
    drop(control);
    sidecar.ahead.store(2 * 3_600, Relaxed);
    let over = sidecar.until(
        Duration::from_secs(5),
        |status| matches!(&status.certificate, Certificate::Over { why, .. } if why.contains("refused")),
    );
    let missing = over.await.certificate.missing().expect("it is over");
    assert!(missing.contains("is over: control cannot be reached"), "{missing}");
    assert!(
        sidecar.control.credential().load().is_none(),
        "nobody shakes hands with it"
    );
    fake.say(|said| said.life = (HOUR, 24 * HOUR));
    let _control = fake.listen_at(addr).await;
    sidecar
        .until(Duration::from_secs(5), |status| status.certificate.serves())
        .await;
    assert!(sidecar.control.credential().load().is_some());
    assert_eq!(fake.seen().by_token, [true, true], "one that is over proves nothing");
    sidecar.connected().await;
}

#[tokio::test]
async fn a_clock_that_is_set_by_400_days_makes_nobody_spin_and_is_believed_when_it_is_right_again() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.connected().await;
    for days in [400, -400] {
        let before = fake.seen().by_token.len();
        sidecar.ahead.store(days * 86_400, Relaxed);
        sidecar
            .until(Duration::from_secs(5), |status| !status.certificate.serves())
            .await;
        assert!(sidecar.control.credential().load().is_none());
        let storm = fake.until(|seen| seen.by_token.len() > before + 2);
        assert!(
            timeout(Duration::from_secs(3), storm).await.is_err(),
            "{:?}",
            fake.seen()
        );
        sidecar.ahead.store(0, Relaxed);
        sidecar
            .until(Duration::from_secs(5), |status| status.certificate.serves())
            .await;
        assert!(sidecar.control.credential().load().is_some());
    }
}

#[tokio::test]
async fn a_clock_that_is_an_hour_ahead_has_a_certificate_renewed_at_once_and_then_ever_more_rarely() {
    let fake = Fake::new();
    fake.say(|said| said.life = (Duration::from_secs(60), Duration::from_secs(75 * 60)));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.connected().await;
    sidecar.ahead.store(3_600, Relaxed);
    timeout(
        Duration::from_secs(5),
        fake.until(|seen| seen.by_token == [true, false]),
    )
    .await
    .expect("it is due");
    // By control's clock, which is right, it has just begun: each that comes is due as well.
    let storm = fake.until(|seen| seen.by_token.len() > 8);
    assert!(
        timeout(Duration::from_secs(10), storm).await.is_err(),
        "{:?}",
        fake.seen().by_token
    );
    assert!(sidecar.control.status().certificate.serves());
}

#[tokio::test]
async fn another_bundle_is_believed_at_once_and_a_wrong_one_never() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.connected().await;
    let first = sidecar.control.credential().load_full().expect("it is there");
    for (trust_domain, roots) in [
        ("other.test", vec![fake.root().to_vec()]),
        (DOMAIN, vec![]),
        (DOMAIN, vec![vec![1]]),
    ] {
        let trust_domain = trust_domain.to_owned();
        fake.push(Answer::Bundle(v1::Bundle { trust_domain, roots }));
    }
    fake.push(Answer::Inbound(v1::Inbound {
        mtls: 9,
        ..Default::default()
    }));
    fake.push(Answer::Inbound(v1::Inbound {
        mtls: v1::Mtls::Strict.into(),
        ..Default::default()
    }));
    let mut inbound = sidecar.control.inbound();
    let strict = inbound.wait_for(|inbound| inbound.default == Some(Mode::Strict));
    timeout(Duration::from_secs(5), strict)
        .await
        .expect("the stream goes on")
        .expect("it runs");
    let same = sidecar.control.credential().load_full().expect("it is there");
    assert!(Arc::ptr_eq(&first, &same), "the last good one holds");
    fake.say(|said| said.more_roots.push(Fake::new().root().to_vec()));
    fake.push(Answer::Bundle(fake.bundle()));
    fake.push(Answer::Inbound(v1::Inbound::default()));
    let unsaid = inbound.wait_for(|inbound| inbound.default.is_none());
    timeout(Duration::from_secs(5), unsaid)
        .await
        .expect("in time")
        .expect("it runs");
    let changed = sidecar.control.credential().load_full().expect("it is there");
    assert!(!Arc::ptr_eq(&first, &changed) && first.not_after() == changed.not_after());
    assert_eq!(fake.seen().hellos.len(), 1, "and the stream is the same");
}

#[tokio::test]
async fn roots_that_the_stream_brings_are_not_undone_by_an_answer_that_was_under_way() {
    let fake = Fake::new();
    // It is to be renewed at once.
    fake.say(|said| said.life = (8 * HOUR, 2 * HOUR));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    let first = sidecar
        .until(Duration::from_secs(5), |status| status.certificate.serves())
        .await;
    let answers = Arc::new(Notify::new());
    fake.say(|said| {
        said.life = (HOUR, 24 * HOUR);
        said.answers_when = Some(answers.clone());
    });
    let asked = timeout(Duration::from_secs(5), fake.until(|seen| seen.by_token.len() == 2)).await;
    asked.expect("in time");
    sidecar.connected().await;
    fake.say(|said| said.more_roots.push(Fake::new().root().to_vec()));
    fake.push(Answer::Bundle(fake.bundle()));
    let roots = || {
        format!(
            "{:?}",
            sidecar.control.credential().load_full().expect("one serves").bundle()
        )
    };
    let until = Instant::now() + Duration::from_secs(5);
    while !roots().contains("2 roots") {
        assert!(Instant::now() < until, "the stream's roots are not taken: {}", roots());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    answers.notify_one();
    let renewed = |status: &Status| status.certificate.expires() != first.certificate.expires();
    sidecar.until(Duration::from_secs(5), renewed).await;
    assert!(roots().contains("2 roots"), "they are undone: {}", roots());
}

#[tokio::test]
async fn a_stream_that_control_refuses_is_not_asked_for_again_at_once() {
    let fake = Fake::new();
    fake.say(|said| said.no_stream = Some(Refusal::resource_exhausted("not you")));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    let refused = |status: &Status| matches!(&status.stream, Stream::Away { why, .. } if why.contains("not you"));
    sidecar.until(Duration::from_secs(5), refused).await;
    let more = timeout(Duration::from_secs(3), fake.until(|seen| seen.hellos.len() > 1)).await;
    assert!(more.is_err(), "{:?}", fake.seen());
    assert!(
        refused(&sidecar.control.status()),
        "what control said holds while it rests"
    );
}

#[tokio::test]
async fn a_certificate_that_control_does_not_believe_any_more_is_replaced_by_the_token_at_once() {
    for denied in [
        Refusal::permission_denied("another identity"),
        Refusal::unauthenticated("who?"),
    ] {
        let fake = Fake::new();
        fake.say(|said| said.no_stream = Some(denied));
        let control = fake.listen().await;
        let sidecar = sidecar(&fake, &[control.addr]);
        let seen = timeout(Duration::from_secs(5), fake.until(|seen| seen.by_token.len() == 2)).await;
        assert_eq!(seen.expect("at once").by_token, [true, true]);
        // Nobody is asked without end, and what is good again is used.
        let storm = fake.until(|seen| seen.by_token.len() > 2 || seen.hellos.len() > 6);
        assert!(
            timeout(Duration::from_secs(4), storm).await.is_err(),
            "{:?}",
            fake.seen()
        );
        assert!(
            sidecar.control.credential().load().is_some(),
            "what is held serves still"
        );
        fake.say(|said| said.no_stream = None);
        sidecar
            .until(Duration::from_secs(16), |status| status.stream.is_connected())
            .await;
    }
}

#[tokio::test]
async fn a_certificate_that_control_refuses_in_the_handshake_is_replaced_by_the_token_at_once() {
    let fake = Fake::new();
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.connected().await;
    let addr = control.addr;
    fake.say(|said| said.believes_nobody = true);
    drop(control);
    sidecar
        .until(Duration::from_secs(2), |status| !status.stream.is_connected())
        .await;
    let _control = fake.listen_at(addr).await;
    let again = timeout(Duration::from_secs(5), fake.until(|seen| seen.by_token.len() == 2)).await;
    assert_eq!(again.expect("at once").by_token, [true, true]);
    fake.say(|said| said.believes_nobody = false);
    sidecar
        .until(Duration::from_secs(16), |status| status.stream.is_connected())
        .await;
}

#[tokio::test]
async fn a_renewed_certificate_that_is_not_valid_yet_replaces_none_that_is() {
    let fake = Fake::new();
    // By our clock, which is an hour behind, three quarters of its life are over: it is due.
    fake.say(|said| said.life = (20 * HOUR, 5 * HOUR));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    sidecar.ahead.store(-3_600, Relaxed);
    sidecar.connected().await;
    fake.say(|said| said.life = (Duration::ZERO, 24 * HOUR));
    let overdue = |status: &Status| matches!(&status.certificate, Certificate::Valid { overdue: Some(why), .. } if why.contains("clock"));
    sidecar.until(Duration::from_secs(10), overdue).await;
    let held = sidecar.control.credential().load_full().expect("one is held still");
    assert!(
        held.not_after() < SystemTime::now() + 6 * HOUR,
        "{:?}",
        held.not_after()
    );
}

#[tokio::test]
async fn many_who_join_from_behind_one_address_are_not_sent_away_for_long() {
    let fake = Fake::new();
    fake.say(|said| said.no_token = Some(Refusal::resource_exhausted("too many attempts")));
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    timeout(Duration::from_secs(5), fake.until(|seen| seen.by_token.len() == 2))
        .await
        .expect("it asks again within seconds");
    fake.say(|said| said.no_token = None);
    sidecar.connected().await;
    assert!(sidecar.count(Outcome::Limited) >= 2);
}

#[tokio::test]
async fn sidecars_that_were_certified_together_do_not_renew_together() {
    const SIDECARS: usize = 20;
    let fake = Fake::new();
    // It is due in 3 s, and by luck up to 5 s sooner or later.
    fake.say(|said| said.life = (Duration::from_secs(67), Duration::from_secs(33)));
    let control = fake.listen().await;
    let _sidecars: Vec<_> = (0..SIDECARS).map(|_| sidecar(&fake, &[control.addr])).collect();
    let renewals = |seen: &fake::Seen| seen.by_token.iter().filter(|by_token| !**by_token).count();
    fake.until(|seen| seen.by_token.len() - renewals(seen) == SIDECARS)
        .await;
    fake.say(|said| said.life = (Duration::ZERO, 24 * HOUR));
    let mut times = Vec::new();
    for renewed in [1, SIDECARS] {
        let so_many = fake.until(|seen| renewals(seen) >= renewed);
        timeout(Duration::from_secs(30), so_many).await.expect("all are due");
        times.push(tokio::time::Instant::now());
    }
    let apart = times[1] - times[0];
    assert!(apart > Duration::from_secs(2), "all renewed within {apart:?}");
}

#[tokio::test]
async fn while_one_control_is_down_what_another_says_is_told() {
    let fake = Fake::new();
    fake.say(|said| said.no_token = Some(Refusal::internal("not today")));
    let control = fake.listen().await;
    let nobody = fake.listen().await;
    let down = nobody.addr;
    drop(nobody);
    let sidecar = sidecar(&fake, &[control.addr, down]);
    timeout(Duration::from_secs(5), fake.until(|seen| !seen.by_token.is_empty()))
        .await
        .expect("one is asked");
    let told = |status: &Status| {
        let missing = status.certificate.missing();
        missing.is_some_and(|why| why.contains("not today") && why.contains("refused"))
    };
    sidecar.until(Duration::from_secs(6), told).await;
}

#[tokio::test]
async fn neither_token_nor_key_is_ever_logged() {
    use std::io::Write;
    #[derive(Clone, Default)]
    struct Lines(Arc<parking_lot::Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _logs = tracing::subscriber::set_default(subscriber);
    let fake = Fake::new();
    fake.say(|said| {
        said.life = (8 * HOUR, 2 * HOUR);
        said.no_renewal = Some(Refusal::unauthenticated("no\r\nmore"));
    });
    let control = fake.listen().await;
    let sidecar = sidecar(&fake, &[control.addr]);
    timeout(Duration::from_secs(10), fake.until(|seen| seen.by_token.len() >= 3))
        .await
        .expect("in time");
    sidecar.connected().await;
    let ours = |line: &&str| line.contains("portunus_sidecar");
    let text = String::from_utf8_lossy(&lines.0.lock()).into_owned();
    let text: Vec<_> = text.lines().filter(ours).collect();
    assert!(text.iter().any(|line| line.contains("certified")), "{text:#?}");
    assert!(
        !text
            .iter()
            .any(|line| line.contains(&TOKEN[..16]) || line.contains("PRIVATE")),
        "{text:#?}"
    );
}
