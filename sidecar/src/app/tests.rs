//! The order of beginning and end, with real threads and the real admin pages, and workers that do as they are told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::config;
use crate::worker::Open;

/// A proxy that runs, the commands that its workers heard, and a hand on what they have open.
struct Proxy {
    admin: SocketAddr,
    ask: Sender<Event>,
    heard: Arc<Mutex<Vec<Command>>>,
    open: Arc<Mutex<Option<Arc<Open>>>>,
    end: JoinHandle<Result<(), Error>>,
}

fn settings(grace_period: &str) -> Config {
    settings_with(grace_period, &[])
}

fn settings_with(grace_period: &str, more: &[String]) -> Config {
    let admin = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|taken| taken.local_addr())
        .expect("a free port");
    let args = vec![
        "sidecar".to_owned(),
        "proxy".to_owned(),
        format!("--admin-listen={admin}"),
        // Without redirect rules, which these tests have no namespace for.
        "--outbound-default=127.0.0.1:1".to_owned(),
        format!("--shutdown-grace-period={grace_period}"),
    ];
    match config::read([&args, more].concat(), &BTreeMap::new(), config::Limits::default()) {
        Ok(config::Command::Proxy(config)) => *config,
        other => panic!("{other:?}"),
    }
}

async fn proxy(grace_period: &str) -> Proxy {
    let proxy = start(settings(grace_period), None);
    proxy.until("/ready", "HTTP/1.1 200").await;
    proxy
}

fn start(config: Config, membership: Option<Membership>) -> Proxy {
    let admin = config.admin.listen[0];
    let (ask, asked) = channel(16);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let open = Arc::new(Mutex::new(None));
    let (worker_heard, worker_open) = (heard.clone(), open.clone());
    let work = move |mut seat: Seat, _: &Config, _: &Arc<Registry>| {
        *worker_open.lock() = Some(seat.open.clone());
        seat.listening();
        while let Some(command) = seat.commands.blocking_recv() {
            worker_heard.lock().push(command);
            if command == Command::End {
                break;
            }
        }
        let connections = seat.open.inbound.load(Relaxed) + seat.open.outbound.load(Relaxed);
        Ok(Cut {
            rpcs: 2 * connections,
            connections,
        })
    };
    let end = tokio::spawn(carry(
        Arc::new(config),
        ask.clone(),
        asked,
        None,
        membership,
        Arc::default(),
        work,
    ));
    Proxy {
        admin,
        ask,
        heard,
        open,
        end,
    }
}

impl Proxy {
    async fn page(&self, method: &str, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.admin).await?;
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// Waits until a page answers so.
    async fn until(&self, path: &str, part: &str) {
        let wait = async {
            while !self.page("GET", path).await.is_ok_and(|answer| answer.contains(part)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .unwrap_or_else(|_| panic!("{path} never says {part}"));
    }

    /// Waits until a worker hears this.
    async fn until_heard(&self, command: Command) {
        let begun = Instant::now();
        while !self.heard.lock().contains(&command) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{command:?} is never heard");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn open(&self) -> Arc<Open> {
        self.open.lock().clone().expect("a worker that listens has said so")
    }

    async fn end(self) -> (Result<(), Error>, Vec<Command>) {
        let end = tokio::time::timeout(Duration::from_secs(10), self.end)
            .await
            .expect("it ends");
        let heard = self.heard.lock().clone();
        (end.expect("it does not panic"), heard)
    }
}

#[tokio::test]
async fn asked_to_stop_it_is_not_ready_drains_inbound_and_ends_when_nothing_is_open() {
    let proxy = proxy("25s").await;
    let open = proxy.open();
    open.inbound.store(1, Relaxed);
    open.outbound.store(1, Relaxed);
    assert!(
        proxy
            .page("POST", "/drain")
            .await
            .expect("the door is open")
            .starts_with("HTTP/1.1 202")
    );
    proxy.until("/ready", "not ready: the proxy is stopping").await;
    proxy.until("/live", "HTTP/1.1 200").await;
    proxy.until_heard(Command::DrainInbound).await;
    open.inbound.store(0, Relaxed);
    open.outbound.store(0, Relaxed);
    let (end, heard) = proxy.end().await;
    end.expect("it was asked to end");
    assert_eq!(
        heard,
        [Command::DrainInbound, Command::End],
        "outbound was served to its end"
    );
}

#[tokio::test]
async fn a_second_signal_cuts_what_is_open() {
    let proxy = proxy("25s").await;
    proxy.open().outbound.store(3, Relaxed);
    let begun = Instant::now();
    for _ in 0..2 {
        proxy.ask.send(Event::Signalled).await.expect("somebody listens");
    }
    let (end, heard) = proxy.end().await;
    end.expect("it was asked to end");
    assert_eq!(heard.last(), Some(&Command::End));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn late_in_the_grace_period_outbound_drains_and_at_its_end_all_is_cut() {
    let proxy = proxy("1s").await;
    proxy.open().outbound.store(1, Relaxed);
    proxy.ask.send(Event::Signalled).await.expect("somebody listens");
    let (end, heard) = proxy.end().await;
    end.expect("it was asked to end");
    assert_eq!(heard, [Command::DrainInbound, Command::DrainOutbound, Command::End]);
}

#[tokio::test]
async fn a_worker_that_fails_ends_the_process_with_an_error() {
    let config = settings("25s");
    let (ask, asked) = channel(16);
    let work = |seat: Seat, _: &Config, _: &Arc<Registry>| -> anyhow::Result<Cut> {
        seat.listening();
        Err(anyhow::anyhow!("the hull is leaking"))
    };
    let why = carry(Arc::new(config), ask, asked, None, None, Arc::default(), work)
        .await
        .expect_err("a worker failed");
    assert_eq!(why.exit_code(), 70);
    assert!(why.to_string().contains("the hull is leaking"), "{why}");
}

#[tokio::test]
async fn a_port_that_is_taken_keeps_the_proxy_from_starting() {
    let config = settings("25s");
    let _taken = std::net::TcpListener::bind(config.admin.listen[0]).expect("it was free a moment ago");
    let (ask, asked) = channel(16);
    let why = carry(
        Arc::new(config),
        ask,
        asked,
        None,
        None,
        Arc::default(),
        |_: Seat, _: &Config, _: &Arc<Registry>| Ok(Cut::default()),
    )
    .await
    .expect_err("the port is taken");
    assert_eq!(why.exit_code(), 71);
    assert_eq!(why.to_string().matches("in use").count(), 1, "{why}");
}

#[tokio::test]
async fn of_a_mesh_it_is_not_ready_before_it_has_a_certificate_and_says_why() {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&rcgen::KeyPair::generate().expect("a key"));
    let file = std::env::temp_dir().join(format!("portunus-app-bundle-{}", std::process::id()));
    std::fs::write(&file, root.expect("a root").pem()).expect("a file");
    let mesh = [
        "--control-address=127.0.0.1:1".to_owned(),
        "--control-identity=spiffe://mesh.test/ns/portunus/sa/control".to_owned(),
        format!("--trust-bundle={}", file.display()),
        "--join-token-file=/nowhere/token".to_owned(),
    ];
    let config = settings_with("0s", &mesh);
    let names = Names::start(Default::default(), &TaskTracker::new(), CancellationToken::new());
    let membership = Membership::start(&config, &names).expect("the settings are good");
    let proxy = start(config, membership);
    proxy
        .until(
            "/ready",
            "no certificate yet: the join token cannot be read from /nowhere/token",
        )
        .await;
    let numbers = proxy.page("GET", "/metrics").await.expect("a page");
    assert!(numbers.contains("\nportunus_control_connected 0\n"), "{numbers}");
    assert!(
        numbers.contains("\nportunus_identity_certifications_total{outcome=\"no_token\"} 1\n"),
        "{numbers}"
    );
    assert!(
        !numbers.contains("\nportunus_identity_cert_expiry_timestamp_seconds "),
        "{numbers}"
    );
    proxy.page("POST", "/drain").await.expect("the door is open");
    let (end, _) = proxy.end().await;
    assert!(end.is_ok());
    std::fs::remove_file(&file).expect("it is ours");
}
