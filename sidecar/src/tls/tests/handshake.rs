//! Handshakes with hostile peers, with peers that refuse us, and with ourselves.

use std::sync::LazyLock;
use std::time::Instant;

use proptest::prelude::*;
use rustls::server::UnbufferedServerConnection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::super::engine::{Engine, Step};
use super::super::output::Output;
use super::super::{Alpn, Credential, Error, LEAST_BUFFER, Session, accept, connect};
use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let called = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (called, listener.accept().await.unwrap().0)
}

/// We call ourselves.
pub(crate) async fn both(alpn: Alpn) -> ((TcpStream, Session), (TcpStream, Session)) {
    let credential = Authority::root("root").credential();
    let (ours, theirs) = pair().await;
    let expected = id(OURS);
    let (called, accepted) = tokio::join!(
        connect(ours, &credential, &expected, alpn, IN_TIME),
        accept(theirs, Vec::new(), &credential, IN_TIME)
    );
    (called.unwrap(), accepted.unwrap())
}

/// The error of a handshake with one that says these bytes and then nothing, or ends.
async fn accepting(bytes: &[u8], ends: bool, within: Duration) -> Error {
    let credential = Authority::root("root").credential();
    let (mut peer, ours) = pair().await;
    peer.write_all(bytes).await.unwrap();
    if ends {
        peer.shutdown().await.unwrap();
    }
    accept(ours, Vec::new(), &credential, within)
        .await
        .map(|_| ())
        .unwrap_err()
}

#[tokio::test]
async fn both_ends_know_each_other_and_what_is_spoken() {
    for alpn in [Alpn::H2, Alpn::Tcp] {
        let ((_, caller), (_, called)) = both(alpn).await;
        assert_eq!((caller.alpn(), called.alpn()), (alpn, alpn));
        assert_eq!((caller.peer().id(), called.peer().id()), (&id(OURS), &id(OURS)));
        assert_eq!(caller.peer(), called.peer());
        for session in [caller, called] {
            let kept = [
                session.partial.capacity(),
                session.early.capacity(),
                session.output().len(),
            ];
            assert_eq!(kept, [0; 3], "an idle session has no buffers");
        }
    }
}

#[tokio::test]
async fn the_key_exchange_is_the_one_that_outlives_quantum_computers() {
    let ((_, caller), (_, called)) = both(Alpn::H2).await;
    for session in [caller, called] {
        let state = session.engine.state();
        let group = state.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(state.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn bytes_that_were_read_before_belong_to_the_handshake_and_those_behind_it_are_not_lost() {
    let root = Authority::root("root");
    let credential = root.credential();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = client_config(Some(&root.leaf(|_| {})));
    let peer = calls(listener.local_addr().unwrap(), config, b"said at once");
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut first = vec![0; 700];
    socket.read_exact(&mut first).await.unwrap();
    let (socket, mut session) = accept(socket, first, &credential, IN_TIME).await.unwrap();
    let mut buffer = vec![0; LEAST_BUFFER];
    let mut plain = Vec::new();
    while plain.len() < 12 {
        let opened = session.read(&mut buffer, |room| socket.try_read(room)).unwrap();
        plain.extend_from_slice(&buffer[..opened.plain]);
        if opened.plain == 0 {
            socket.readable().await.unwrap();
        }
    }
    assert_eq!(plain, b"said at once");
    drop(socket);
    tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_refuses_us_later_is_named_by_the_first_read() {
    let root = Authority::root("root");
    let theirs = root.certify(&leaf_params(PEERS));
    let theirs = Credential::new(theirs.chain.clone(), theirs.private(), Authority::root("root").bundle()).unwrap();
    let (ours, socket) = pair().await;
    let credential = root.credential();
    let expected = id(PEERS);
    let (called, accepted) = tokio::join!(
        connect(ours, &credential, &expected, Alpn::H2, IN_TIME),
        accept(socket, Vec::new(), &theirs, IN_TIME)
    );
    assert_eq!(accepted.map(|_| ()).unwrap_err().reason(), "bad_signature");
    let (socket, mut session) = called.expect("in TLS 1.3 a client has finished before it is judged");
    session.seal(b"too early").unwrap();
    let mut buffer = vec![0; LEAST_BUFFER];
    let error = loop {
        socket.readable().await.unwrap();
        match session.read(&mut buffer, |room| socket.try_read(room)) {
            Ok(opened) => assert_eq!(opened.plain, 0),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), "peer_decrypt_error", "{error}");
}

#[tokio::test]
async fn plain_words_are_no_tls() {
    for words in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0; 100],
    ] {
        assert!(matches!(accepting(words, false, IN_TIME).await, Error::NotTls));
    }
}

#[tokio::test]
async fn a_server_that_speaks_plainly_is_no_tls() {
    let (ours, mut peer) = pair().await;
    peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    let credential = Authority::root("root").credential();
    let error = connect(ours, &credential, &id(PEERS), Alpn::H2, IN_TIME).await;
    assert!(matches!(error.map(|_| ()), Err(Error::NotTls)));
}

#[tokio::test]
async fn a_silent_peer_and_half_a_handshake_are_given_up_in_time() {
    let short = Duration::from_millis(50);
    let mut hello = Vec::new();
    let mut client = client(client_config(None));
    client.write_tls(&mut hello).unwrap();
    for words in [&b""[..], &hello[..1], &hello[..hello.len() - 1], &hello] {
        let error = accepting(words, false, short).await;
        assert!(matches!(error, Error::TooSlow(within) if within == short), "{error}");
    }
    let (ours, _peer) = pair().await;
    let credential = Authority::root("root").credential();
    let error = connect(ours, &credential, &id(PEERS), Alpn::H2, short).await;
    assert!(matches!(error.map(|_| ()), Err(Error::TooSlow(_))));
}

#[tokio::test]
async fn a_peer_that_ends_in_the_middle_is_named() {
    assert!(matches!(accepting(b"", true, IN_TIME).await, Error::Truncated));
    assert!(matches!(
        accepting(&[22, 3, 1, 2, 0, 1], true, IN_TIME).await,
        Error::Truncated
    ));
}

#[tokio::test]
async fn an_endless_handshake_is_cut_by_its_size() {
    // A ClientHello that says it has 16 MiB, one that has its 64 KiB in records of one byte, and one of empty records.
    let long = [&[22, 3, 1, 64, 0, 1, 255, 255, 255][..], &[0; 16_380]].concat();
    let mut dribbled = Vec::new();
    for byte in [1, 0, 255, 255].into_iter().chain(std::iter::repeat_n(0, 65_000)) {
        dribbled.extend_from_slice(&[22, 3, 1, 0, 1, byte]);
    }
    let empty = [22, 3, 1, 0, 0].repeat(40_000);
    for (what, bytes) in [("long", long), ("dribbled", dribbled), ("empty", empty)] {
        let credential = Authority::root("root").credential();
        let (mut peer, ours) = pair().await;
        let began = Instant::now();
        let (_, result) = tokio::join!(
            async move {
                // Whether it is read to the end is up to us.
                let _ = peer.write_all(&bytes).await;
                peer
            },
            accept(ours, Vec::new(), &credential, IN_TIME)
        );
        let error = result.map(|_| ()).unwrap_err();
        assert!(["too_long", "protocol"].contains(&error.reason()), "{what}: {error}");
        assert!(began.elapsed() < IN_TIME / 2, "{what}");
    }
}

#[tokio::test]
async fn what_has_nothing_in_common_with_us_is_named() {
    let root = Authority::root("root");
    let credential = root.credential();
    let call = async |config: ClientConfig| {
        let (peer, ours) = pair().await;
        let socket = peer.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        let peer = std::thread::spawn(|| converse(client(config), socket, b"words"));
        let error = accept(ours, Vec::new(), &credential, IN_TIME)
            .await
            .map(|_| ())
            .unwrap_err();
        (
            error,
            tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap(),
        )
    };
    let mut config = client_config(Some(&root.leaf(|_| {})));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (error, saw) = call(config.clone()).await;
    assert!(matches!(error, Error::NoProtocol), "{error}");
    assert!(saw.error.unwrap().contains("NoApplicationProtocol"));
    config.alpn_protocols.clear();
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::SECP384R1];
    let mut other_groups = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything { demands: true }))
        .with_no_client_auth();
    other_groups.alpn_protocols = vec![b"portunus/h2".to_vec()];
    let (error, saw) = call(other_groups).await;
    assert!(matches!(error, Error::Incompatible(_)), "{error}");
    assert!(saw.error.unwrap().contains("HandshakeFailure"));
    let (error, saw) = call(config).await;
    assert!(matches!(error, Error::NoProtocol), "{error}");
    assert_eq!(saw.plain, b"");
}

#[tokio::test]
async fn a_peer_may_not_resume() {
    let root = Authority::root("root");
    let credential = root.credential();
    let config = Arc::new(client_config(Some(&root.leaf(|_| {}))));
    for _ in 0..2 {
        let (peer, ours) = pair().await;
        let socket = peer.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        let config = config.clone();
        let peer = std::thread::spawn(move || {
            let name = ServerName::try_from("anybody.example").unwrap();
            let mut connection = ClientConnection::new(config, name).unwrap();
            let mut socket = socket;
            while connection.is_handshaking() {
                connection.complete_io(&mut socket).unwrap();
            }
            let kind = connection.handshake_kind();
            let saw = converse(connection, socket, b"");
            (kind, saw.error)
        });
        drop(accept(ours, Vec::new(), &credential, IN_TIME).await.unwrap());
        let (kind, _) = tokio::task::spawn_blocking(|| peer.join().unwrap()).await.unwrap();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// rustls's unbuffered API remembers where in our buffer the pieces of a message stand, and panics if they are not there.
    #[test]
    fn however_a_hello_is_cut_and_bent_nothing_panics_and_the_right_one_is_answered(
        records in prop::collection::vec(1usize..600, 1..8),
        reads in prop::collection::vec(1usize..900, 1..8),
        bent in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..3),
    ) {
        let mut hello = Vec::new();
        client(client_config(None)).write_tls(&mut hello).unwrap();
        let mut rest = &hello[5..];
        let mut bytes = Vec::new();
        for most in records.iter().cycle() {
            let (record, left) = rest.split_at(rest.len().min(*most));
            bytes.extend_from_slice(&[22, 3, 1]);
            bytes.extend_from_slice(&u16::try_from(record.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(record);
            rest = left;
            if rest.is_empty() {
                break;
            }
        }
        for (at, by) in &bent {
            let at = at.index(bytes.len());
            bytes[at] ^= by;
        }
        let (config, verifier) = CREDENTIAL.for_caller();
        let mut engine = Engine::Server(Box::new(UnbufferedServerConnection::new(config).unwrap()));
        let (mut incoming, mut output, mut rest) = (Vec::new(), Output::default(), &bytes[..]);
        let mut failed = None;
        'all: for most in reads.iter().cycle() {
            let (read, left) = rest.split_at(rest.len().min(*most));
            incoming.extend_from_slice(read);
            rest = left;
            loop {
                let (discard, step) = engine.step(&mut incoming, &mut output);
                incoming.drain(..discard);
                match step {
                    Ok(Step::Blocked) => break,
                    Ok(_) => {}
                    Err(error) => {
                        failed = Some(error);
                        engine.alert(&mut output);
                        break 'all;
                    }
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        if bent.is_empty() {
            prop_assert_eq!(failed, None);
            // A ServerHello.
            prop_assert_eq!(output.pending().first(), Some(&22));
            prop_assert!(incoming.is_empty());
        }
        prop_assert!(verifier.take_verdict().is_none());
    }
}

static CREDENTIAL: LazyLock<Credential> = LazyLock::new(|| Authority::root("root").credential());
