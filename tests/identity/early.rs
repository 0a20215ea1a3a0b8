//! Nobody comes in by what an earlier connection proved: early data is thrown away, a session that a client would resume is
//! a whole handshake, and tickets that a server gives away are forgotten.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use parking_lot::Mutex;
use portunus_sidecar::policy::Mode;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use support::{Family, in_netns, wait_until};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, OURS, PEERS, Shown, leaf_params, soon};
use crate::ends;
use crate::plain::{Always, Anything, client_config, server_config};
use crate::raw::{self, END_HEADERS, END_STREAM, HEADERS, frame};
use crate::spoofs::Keeper;
use crate::strange::FIELDS;
use crate::world::{World, request};

/// What any read may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client that was let in by somebody who lets clients come again, and send before they have shaken hands.
struct Returning {
    config: Arc<ClientConfig>,
}

/// What became of its return.
#[derive(Debug)]
struct Returned {
    /// Whether there was something to be resumed, and something said early.
    tried: bool,
    /// How the handshake ended.
    kind: Result<HandshakeKind, std::io::Error>,
    /// Whether what was said early was taken.
    accepted: bool,
}

impl Returning {
    /// Learns a session from a server that shows this, and gives what nobody of the mesh gives.
    fn of(mut config: ClientConfig, server: &Shown) -> Returning {
        config.resumption = Resumption::in_memory_sessions(8);
        config.enable_early_data = true;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut lavish = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("it has suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(Anything { demands: false }))
            .with_cert_resolver(Arc::new(Always(server.certified())));
        lavish.alpn_protocols = config.alpn_protocols.clone();
        lavish.send_tls13_tickets = 4;
        lavish.max_early_data_size = u32::MAX;
        let config = Arc::new(config);
        learn(&config, lavish);
        Returning { config }
    }

    /// Comes to a door, says `early` before the handshake, and `late` behind it.
    fn come(&self, to: SocketAddr, early: &[u8], late: &[u8]) -> Returned {
        let mut client = ClientConnection::new(self.config.clone(), name()).expect("a client");
        let mut socket = TcpStream::connect(to).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let mut tried = false;
        let mut rest = early;
        let kind = loop {
            if let Some(mut writer) = client.early_data() {
                tried = true;
                let n = writer.write(rest).expect("it is kept");
                rest = &rest[n..];
            }
            let went = turn(&mut client, &mut socket);
            match went {
                Ok(()) if !client.is_handshaking() => break Ok(client.handshake_kind().expect("it is over")),
                Ok(()) => {}
                Err(error) => break Err(error),
            }
        };
        let accepted = client.is_early_data_accepted();
        if kind.is_ok() {
            let _ = client.writer().write_all(late);
            hear(&mut client, &mut socket);
        }
        Returned { tried, kind, accepted }
    }
}

/// A client whose first key share no port of the mesh takes, so that it has to say hello once more.
fn second_try(shown: &Shown) -> ClientConfig {
    let provider = CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::SECP384R1, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("it has suites of TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything { demands: true }))
        .with_client_cert_resolver(Arc::new(Always(shown.certified())));
    config.alpn_protocols = vec![ends::H2.to_vec()];
    config
}

fn name() -> ServerName<'static> {
    ServerName::try_from("a.example").expect("a name")
}

/// Writes what there is, then reads once, if something is waited for.
fn turn(client: &mut ClientConnection, socket: &mut TcpStream) -> std::io::Result<()> {
    while client.wants_write() {
        client.write_tls(socket)?;
    }
    if client.is_handshaking() {
        if client.read_tls(socket)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        client.process_new_packets().map_err(std::io::Error::other)?;
        while client.wants_write() {
            client.write_tls(socket)?;
        }
    }
    Ok(())
}

/// Reads until HTTP/2 has answered its first stream, or the other side has gone.
fn hear(client: &mut ClientConnection, socket: &mut TcpStream) {
    let mut heard = Vec::new();
    while client.write_tls(socket).is_ok() {
        if !matches!(client.read_tls(socket), Ok(1..)) || client.process_new_packets().is_err() {
            return;
        }
        let mut room = [0; 4_096];
        while let Ok(n @ 1..) = client.reader().read(&mut room) {
            heard.extend_from_slice(&room[..n]);
        }
        // HEADERS with END_STREAM of stream 1: its answer, or its trailers.
        let ends = |at: &[u8]| at[3] == HEADERS && at[4] & END_STREAM != 0 && at[5..] == [0, 0, 0, 1];
        if heard.windows(9).any(ends) {
            return;
        }
    }
}

/// One connection to a server that gives tickets, until they came.
fn learn(config: &Arc<ClientConfig>, server: ServerConfig) {
    let mut client = ClientConnection::new(config.clone(), name()).expect("a client");
    let mut server = ServerConnection::new(Arc::new(server)).expect("a server");
    while client.is_handshaking() || server.is_handshaking() || client.tls13_tickets_received() == 0 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).expect("a vector takes all");
        server.read_tls(&mut &wire[..]).expect("it takes it");
        server.process_new_packets().expect("the client is fine");
        wire.clear();
        server.write_tls(&mut wire).expect("a vector takes all");
        client.read_tls(&mut &wire[..]).expect("it takes it");
        client.process_new_packets().expect("the server is fine");
    }
}

/// A call on stream 1 whose path is this.
fn call(path: &str) -> Vec<u8> {
    let mut fields = FIELDS;
    fields[2].1 = path;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let head = frame(HEADERS, END_HEADERS | END_STREAM, 1, &raw::block(&fields));
    [&preface[..], &raw::settings(&[]), &head].concat()
}

/// The paths that an application was asked for.
fn paths(keeper: &Keeper) -> Vec<String> {
    let lists = std::mem::take(&mut *keeper.lists.lock());
    let fields = lists.into_iter().flatten();
    let paths = fields.filter(|field| field.name == ":path");
    paths
        .map(|field| String::from_utf8_lossy(&field.value).into_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_one_byte_of_early_data_reaches_the_application() {
    let _with_others = crate::floods::ALONE.read().await;
    let root = Authority::root("root");
    let keeper = Keeper::open().await;
    let world = World::before(keeper.addr, ends::inbound(&root, Mode::Strict)).await;
    let shown = root.leaf(|_| {});
    let server = root.certify(&leaf_params(OURS));
    let door = world.proxy;
    // As much as a record is skipped, and counted again with each read that brings it no further; whoever sends more is not
    // heard to the end (RFC 8446, 4.2.10).
    let cases = [
        (0, Some(true)),
        (1_000, Some(true)),
        (16_000, None),
        (40_000, Some(false)),
        (400_000, Some(false)),
    ];
    for ((size, goes_on), asked_again) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let what = format!("{size} bytes, {asked_again}");
        let server = server.clone();
        let config = match asked_again {
            false => client_config(Some(&shown)),
            true => second_try(&shown),
        };
        let returned = tokio::task::spawn_blocking(move || {
            let mut early = call("/early.A/B");
            if size == 0 {
                early.truncate(24);
            } else {
                early.resize(early.len().max(size), 0);
            }
            Returning::of(config, &server).come(door, &early, &call("/late.A/B"))
        });
        let returned = returned.await.expect("no panic");
        assert!(returned.tried, "{what}: no early data was sent");
        assert!(!returned.accepted, "{what}: {returned:?}");
        let heard = paths(&keeper);
        let due = match asked_again {
            false => HandshakeKind::Full,
            true => HandshakeKind::FullWithHelloRetryRequest,
        };
        assert!(
            returned.kind.is_err() || returned.kind.as_ref().is_ok_and(|kind| *kind == due),
            "{what}: {returned:?}"
        );
        assert!(heard.is_empty() || heard == ["/late.A/B"], "{what}: {heard:?}");
        if let Some(goes_on) = goes_on {
            assert_eq!(goes_on, !heard.is_empty(), "{what}: {returned:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_resumes_is_judged_again() {
    let root = Authority::root("root");
    let keeper = Keeper::open().await;
    let world = World::before(keeper.addr, ends::inbound(&root, Mode::Strict)).await;
    let server = root.certify(&leaf_params(OURS));
    let expired = |params: &mut rcgen::CertificateParams| params.not_after = soon(-60).into();
    let cases = [
        ("ok", root.leaf(|_| {})),
        ("unknown_issuer", Authority::root("another").leaf(|_| {})),
        ("expired", root.leaf(expired)),
    ];
    for (result, shown) in cases {
        let (server, door) = (server.clone(), world.proxy);
        let returned = tokio::task::spawn_blocking(move || {
            Returning::of(client_config(Some(&shown)), &server).come(door, &[], &call("/late.A/B"))
        });
        let returned = returned.await.expect("no panic");
        assert!(returned.tried, "{result}: there was nothing to resume");
        assert!(
            matches!(returned.kind, Ok(HandshakeKind::Full)),
            "{result}: {:?}",
            returned.kind
        );
        world
            .until(ends::HANDSHAKES, &["inbound", result], |now| now == 1.0)
            .await;
        let heard = paths(&keeper);
        assert_eq!(heard.is_empty(), result != "ok", "{result}: {heard:?}");
    }
}

#[test]
fn control_takes_no_early_data_and_resumes_nothing() {
    support::test(|mesh| {
        let control = mesh.control(&[])?;
        let visitor = mesh.pod("visitor")?;
        let to = control.at(Family::V4)?;
        let root = Authority::root("root");
        // Whoever shows no certificate, as one that joins, and somebody whom control does not know.
        for (shown, lets_in) in [(None, true), (Some(root.leaf(|_| {})), false)] {
            let mut config = client_config(shown.as_ref());
            config.alpn_protocols = vec![b"h2".to_vec()];
            let returning = Returning::of(config, &root.leaf(|_| {}));
            let early = call("/portunus.mesh.v1.Identity/Certify");
            let returned = in_netns(&visitor, || returning.come(to, &early, &call("/nobody.A/B")))?;
            ensure!(returned.tried && !returned.accepted, "{returned:?}");
            ensure!(matches!(returned.kind, Ok(HandshakeKind::Full)), "{returned:?}");
            let is_refused = || control.output().contains("a handshake failed");
            if lets_in {
                ensure!(!is_refused(), "{}", control.output());
            } else {
                wait_until(PATIENCE, "a stranger is judged", is_refused)?;
            }
        }
        Ok(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_of_a_server_are_forgotten_and_nothing_is_sent_early_to_it() {
    let root = Authority::root("root");
    let mut config = server_config(&root.leaf(|_| {}));
    config.send_tls13_tickets = 500;
    config.max_early_data_size = u32::MAX;
    let (server, kinds) = lavish_server(config).await;
    let world = World::before(server, ends::outbound(&root, PEERS)).await;
    for connections in 1..=3 {
        let mut caller = world.caller().await;
        let answer = caller.ask(request("/a.B/C", &[])).await.expect("an answer");
        assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{:?}", answer.grpc_message);
        // Each answers once and closes, so that the next call has to come again.
        world
            .until(ends::HANDSHAKES, &["outbound", "ok"], |now| {
                now == f64::from(connections)
            })
            .await;
    }
    let kinds = kinds.lock().clone();
    assert!(
        kinds.len() == 3 && kinds.iter().all(|kind| *kind == Some(HandshakeKind::Full)),
        "{kinds:?}"
    );
}

type Kinds = Arc<Mutex<Vec<Option<HandshakeKind>>>>;

/// A server in TLS that answers one call a connection, and how it shook hands each time.
async fn lavish_server(config: ServerConfig) -> (SocketAddr, Kinds) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let kinds = Kinds::default();
    let kept = kinds.clone();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let stream = acceptor.accept(socket).await.expect("a handshake");
            kept.lock().push(stream.get_ref().1.handshake_kind());
            tokio::spawn(answer_one(stream));
        }
    });
    (addr, kinds)
}

async fn answer_one(stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(asked) = connection.accept().await {
        let (_, mut respond) = asked?;
        let response = http::Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "0")
            .body(())
            .expect("a response");
        respond.send_response(response, true)?;
        connection.graceful_shutdown();
    }
    Ok(())
}
