//! Real sockets, real silences; shortened where the length of a silence is not the point.

use std::{cell::Cell, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::sleep,
};

use super::*;
use crate::detect::ClientHello;

/// What grpc-go 1.85 sends to a client that has said nothing.
const SETTINGS_OF_GRPC_GO: &[u8] = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00";

/// A client, the proxy's end of its connection, and the server it wants.
struct Scene {
    client: TcpStream,
    accepted: TcpStream,
    server: TcpListener,
    dials: Cell<u32>,
    waiting: Waiting,
    settings: Settings,
}

impl Scene {
    async fn new(settings: Settings) -> Scene {
        let (client, accepted) = connection().await;
        let server = listener().await;
        Scene {
            client,
            accepted,
            server,
            dials: Cell::new(0),
            waiting: Waiting::new(settings.most_waiting),
            settings,
        }
    }

    async fn quick() -> Scene {
        Scene::new(Settings {
            silence: Duration::from_millis(20),
            ..Settings::default()
        })
        .await
    }

    fn server_address(&self) -> SocketAddr {
        self.server.local_addr().expect("bound")
    }

    async fn detect(&self) -> Result<Detected, Error<io::Error>> {
        self.detect_as(Declared::Nothing, Expected::Nothing).await
    }

    async fn detect_as(&self, declared: Declared, expected: Expected) -> Result<Detected, Error<io::Error>> {
        let dial = async || {
            self.dials.set(self.dials.get() + 1);
            TcpStream::connect(self.server_address()).await.map(Stream::plain)
        };
        detect(&self.accepted, declared, expected, dial, &self.waiting, &self.settings).await
    }

    async fn client_says(&self, bytes: &[u8]) {
        says(&self.client, bytes).await;
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a listener")
}

async fn connection() -> (TcpStream, TcpStream) {
    let listener = listener().await;
    let client = TcpStream::connect(listener.local_addr().expect("bound"))
        .await
        .expect("connects");
    client.set_nodelay(true).expect("set");
    (client, listener.accept().await.expect("accepts").0)
}

async fn says(socket: &TcpStream, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        socket.writable().await.expect("open");
        match socket.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

async fn dialled(server: &TcpListener) -> TcpStream {
    server.accept().await.expect("accepts").0
}

#[tokio::test]
async fn a_preface_is_http2_without_any_dial() {
    let scene = Scene::new(Settings::default()).await;
    let first = [&PREFACE[..], SETTINGS_OF_GRPC_GO].concat();
    scene.client_says(&first).await;

    let detected = scene.detect().await.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http2, Guess::ClientFirst)
    );
    assert_eq!(detected.client_bytes, first);
    assert!(detected.upstream.is_none());
    assert_eq!(scene.dials.get(), 0);
    assert_eq!(scene.waiting.count(), 0);
}

#[tokio::test]
async fn a_preface_that_comes_byte_by_byte_is_http2() {
    let scene = Scene::quick().await;
    let dribbles = async {
        for byte in PREFACE.chunks(1) {
            scene.client_says(byte).await;
            sleep(Duration::from_millis(30)).await;
        }
    };
    let (detected, ()) = tokio::join!(scene.detect(), dribbles);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http2, Guess::ClientFirst)
    );
    assert_eq!(detected.client_bytes, PREFACE);
    assert_eq!(scene.dials.get(), 0, "a client that has begun to speak is waited for");
}

#[tokio::test]
async fn http1_and_tls_and_anything_else_are_told_by_their_first_bytes() {
    let cases: [(&[u8], Protocol); 3] = [
        (b"GET / HTTP/1.1\r\n", Protocol::Http1),
        (
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
            Protocol::Tls(ClientHello::default()),
        ),
        (b"*1\r\n$4\r\nPING\r\n", Protocol::Opaque),
    ];
    for (bytes, protocol) in cases {
        let scene = Scene::quick().await;
        scene.client_says(bytes).await;
        let detected = scene.detect().await.expect("detected");
        assert_eq!((detected.protocol, detected.guess), (protocol, Guess::ClientFirst));
        assert_eq!(detected.client_bytes, bytes);
    }
}

#[tokio::test]
async fn a_silent_client_has_its_server_dialled_after_200_ms() {
    let scene = Scene::new(Settings::default()).await;
    let begun = Instant::now();
    let banner = async {
        let server = dialled(&scene.server).await;
        let after = begun.elapsed();
        says(&server, b"220 ready\r\n").await;
        (server, after)
    };
    let (detected, (_server, after)) = tokio::join!(scene.detect(), banner);
    assert!(after >= Duration::from_millis(200), "{after:?}");

    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ServerFirst)
    );
    assert_eq!(detected.upstream.expect("was dialled").server_bytes, b"220 ready\r\n");
    assert!(detected.client_bytes.is_empty());
}

#[tokio::test]
async fn a_destination_known_to_speak_first_is_dialled_at_once() {
    let scene = Scene::new(Settings {
        silence: Duration::from_secs(3_600),
        ..Settings::default()
    })
    .await;
    let banner = async {
        let server = dialled(&scene.server).await;
        says(&server, b"220 ready\r\n").await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect_as(Declared::Nothing, Expected::ServerFirst), banner);
    assert_eq!(detected.expect("detected").guess, Guess::ServerFirst);
}

#[tokio::test]
async fn a_client_that_speaks_first_to_a_destination_known_otherwise_is_heard() {
    let scene = Scene::new(Settings {
        silence: Duration::from_secs(3_600),
        ..Settings::default()
    })
    .await;
    let speaks = async {
        let server = dialled(&scene.server).await;
        scene.client_says(PREFACE).await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect_as(Declared::Nothing, Expected::ServerFirst), speaks);
    assert_eq!(detected.expect("detected").protocol, Protocol::Http2);
}

#[tokio::test]
async fn what_a_client_has_said_is_heard_before_a_server_that_speaks_first_is_dialled() {
    let scene = Scene::new(Settings::default()).await;
    scene.client_says(PREFACE).await;
    let detected = scene.detect_as(Declared::Nothing, Expected::ServerFirst).await;
    assert_eq!(detected.expect("detected").guess, Guess::ClientFirst);
    assert_eq!(scene.dials.get(), 0);
}

#[tokio::test]
async fn where_a_hello_may_come_a_server_that_speaks_first_is_dialled_soon_and_not_before_it() {
    let long = Duration::from_secs(3_600);
    let expecting = |hello| {
        Scene::new(Settings {
            silence: long,
            hello,
            ..Settings::default()
        })
    };
    let scene = expecting(Duration::from_millis(20)).await;
    let banner = async {
        let server = dialled(&scene.server).await;
        says(&server, b"220 ready\r\n").await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect_as(Declared::Nothing, Expected::HelloOrServerFirst), banner);
    assert_eq!(detected.expect("detected").guess, Guess::ServerFirst);

    let scene = expecting(long).await;
    let late = async {
        sleep(Duration::from_millis(20)).await;
        scene.client_says(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00").await;
    };
    let (detected, ()) = tokio::join!(scene.detect_as(Declared::Nothing, Expected::HelloOrServerFirst), late);
    assert_eq!(
        detected.expect("detected").protocol,
        Protocol::Tls(ClientHello::default())
    );
    assert_eq!(scene.dials.get(), 0);
}

#[test]
fn no_hello_is_waited_for_longer_than_anybody() {
    let settings = Settings {
        silence: Duration::from_millis(10),
        ..Settings::default()
    };
    assert_eq!(settings.silence_of(Expected::HelloOrServerFirst), settings.silence);
}

#[tokio::test]
async fn a_slow_grpc_client_is_never_taken_for_opaque() {
    // As long a silence as 50 times what opens the upstream connection, and 10 times what may dribble.
    let dribble = Duration::from_millis(100);
    let scene = Scene::new(Settings {
        silence: Duration::from_millis(20),
        dribble,
        ..Settings::default()
    })
    .await;
    let late = async {
        let server = dialled(&scene.server).await;
        sleep(Duration::from_secs(1)).await;
        scene.client_says(PREFACE).await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect(), late);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http2, Guess::ClientAfterSilence)
    );
    assert!(detected.upstream.is_some());
}

#[tokio::test]
async fn a_server_that_opens_with_settings_waits_for_its_client() {
    let dribble = Duration::from_secs(2);
    let scene = Scene::new(Settings {
        silence: Duration::from_millis(20),
        dribble,
        ..Settings::default()
    })
    .await;
    let late = async {
        let server = dialled(&scene.server).await;
        // In two parts: what could still become SETTINGS is waited for.
        says(&server, &SETTINGS_OF_GRPC_GO[..4]).await;
        sleep(Duration::from_millis(30)).await;
        says(&server, &SETTINGS_OF_GRPC_GO[4..]).await;
        sleep(Duration::from_millis(2_500)).await;
        scene.client_says(PREFACE).await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect(), late);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http2, Guess::ClientAfterSettings)
    );
    assert_eq!(
        detected.upstream.expect("was dialled").server_bytes,
        SETTINGS_OF_GRPC_GO
    );
}

#[tokio::test]
async fn a_client_that_is_not_http2_after_settings_is_carried_with_them() {
    let scene = Scene::quick().await;
    let late = async {
        let server = dialled(&scene.server).await;
        says(&server, SETTINGS_OF_GRPC_GO).await;
        sleep(Duration::from_millis(50)).await;
        scene.client_says(b"hello").await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect(), late);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ClientAfterSettings)
    );
    assert_eq!(detected.client_bytes, b"hello");
    assert_eq!(
        detected.upstream.expect("was dialled").server_bytes,
        SETTINGS_OF_GRPC_GO
    );
}

#[tokio::test]
async fn what_might_have_become_settings_and_does_not_go_on_is_opaque() {
    let dribble = Duration::from_millis(100);
    let scene = Scene::new(Settings {
        silence: Duration::from_millis(20),
        dribble,
        ..Settings::default()
    })
    .await;
    let stops = async {
        let server = dialled(&scene.server).await;
        says(&server, &SETTINGS_OF_GRPC_GO[..2]).await;
        server
    };
    let (detected, _server) = tokio::join!(scene.detect(), stops);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::Incomplete)
    );
    assert_eq!(
        detected.upstream.expect("was dialled").server_bytes,
        &SETTINGS_OF_GRPC_GO[..2]
    );
}

#[tokio::test]
async fn a_refused_upstream_is_passed_on() {
    let mut scene = Scene::quick().await;
    let refusing = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    refusing
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("bound, never listening");
    let nobody = refusing
        .local_addr()
        .ok()
        .and_then(|address| address.as_socket())
        .expect("an address");

    let dial = async || TcpStream::connect(nobody).await.map(Stream::plain);
    let error = detect(
        &scene.accepted,
        Declared::Nothing,
        Expected::Nothing,
        dial,
        &scene.waiting,
        &scene.settings,
    )
    .await;
    let error = error.expect_err("nobody listens");
    assert!(
        matches!(&error, Error::Dial(refused) if refused.kind() == io::ErrorKind::ConnectionRefused),
        "{error}"
    );

    drop(scene.accepted);
    let heard = scene.client.read(&mut [0; 1]).await.expect_err("is reset");
    assert_eq!(heard.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_upstream_is_passed_on() {
    let mut scene = Scene::quick().await;
    let resets = async {
        let server = dialled(&scene.server).await;
        server.set_zero_linger().expect("set");
    };
    let (detected, ()) = tokio::join!(scene.detect(), resets);
    let error = detected.expect_err("reset");
    assert!(matches!(error, Error::Upstream(_)), "{error}");

    drop(scene.accepted);
    let heard = scene.client.read(&mut [0; 1]).await.expect_err("is reset");
    assert_eq!(heard.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_closed_upstream_is_handed_to_the_tunnel_which_passes_it_on() {
    let scene = Scene::quick().await;
    let closes = async { drop(dialled(&scene.server).await) };
    let (detected, ()) = tokio::join!(scene.detect(), closes);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ServerClosed)
    );
    assert!(detected.upstream.is_some());
}

#[tokio::test]
async fn what_a_server_said_before_it_closed_is_kept() {
    let scene = Scene::quick().await;
    let closes = async { says(&dialled(&scene.server).await, SETTINGS_OF_GRPC_GO).await };
    let (detected, ()) = tokio::join!(scene.detect(), closes);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ServerClosed)
    );
    assert_eq!(
        detected.upstream.expect("was dialled").server_bytes,
        SETTINGS_OF_GRPC_GO
    );
}

#[tokio::test]
async fn a_waiting_connection_costs_less_than_two_kibibytes() {
    let scene = Scene::quick().await;
    let size = size_of_val(&scene.detect());
    assert!(size < 2_048, "{size} bytes");
}

#[tokio::test]
async fn a_client_that_closes_its_side_before_speaking_still_reaches_its_server() {
    let mut scene = Scene::new(Settings {
        silence: Duration::from_secs(3_600),
        ..Settings::default()
    })
    .await;
    scene.client.shutdown().await.expect("half-closed");
    let detected = scene.detect().await.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ClientClosed)
    );
    assert!(detected.client_bytes.is_empty() && detected.upstream.is_none());
}

#[tokio::test]
async fn a_client_that_closes_its_side_within_the_preface_is_not_http2() {
    let mut scene = Scene::quick().await;
    scene.client_says(&PREFACE[..10]).await;
    scene.client.shutdown().await.expect("half-closed");
    let detected = scene.detect().await.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Opaque, Guess::ClientClosed)
    );
    assert_eq!(detected.client_bytes, &PREFACE[..10]);
}

#[tokio::test]
async fn a_client_that_resets_takes_its_upstream_along() {
    let scene = Scene::quick().await;
    let (client, accepted) = connection().await;
    let dial = async || TcpStream::connect(scene.server_address()).await.map(Stream::plain);
    let listening = detect(
        &accepted,
        Declared::Nothing,
        Expected::Nothing,
        dial,
        &scene.waiting,
        &scene.settings,
    );
    let resets = async {
        let mut server = dialled(&scene.server).await;
        client.set_zero_linger().expect("set");
        drop(client);
        server.read(&mut [0; 1]).await
    };
    let (detected, server) = tokio::join!(listening, resets);
    assert!(matches!(detected.expect_err("gone"), Error::Client(_)));
    assert_eq!(server.expect_err("is reset").kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_unfinished_preface_is_not_waited_for_without_end() {
    let dribble = Duration::from_millis(100);
    let scene = Scene::new(Settings {
        dribble,
        ..Settings::default()
    })
    .await;
    scene.client_says(&PREFACE[..20]).await;
    let error = scene.detect().await.expect_err("too slow");
    assert!(matches!(error, Error::Dribble { bytes: 20, .. }), "{error}");
}

#[tokio::test]
async fn an_unfinished_hello_is_not_waited_for_without_end_either() {
    let dribble = Duration::from_millis(100);
    let scene = Scene::new(Settings {
        dribble,
        ..Settings::default()
    })
    .await;
    scene.client_says(b"\x16\x03\x01\x00\xf0\x01").await;
    let error = scene.detect().await.expect_err("too slow");
    assert!(matches!(error, Error::HalfHello { bytes: 6, .. }), "{error}");
    assert_eq!(scene.dials.get(), 0);
}

#[tokio::test]
async fn one_connection_too_many_resets_the_one_that_waited_longest() {
    let settings = Settings {
        most_waiting: 1,
        silence: Duration::from_secs(3_600),
        ..Settings::default()
    };
    let mut scene = Scene::new(settings).await;
    let (newer_client, newer) = connection().await;
    let dial = async || Err(io::Error::other("nobody dials"));
    let newer_speaks = async {
        let listening = detect(
            &newer,
            Declared::Nothing,
            Expected::Nothing,
            dial,
            &scene.waiting,
            &scene.settings,
        );
        let speaks = async {
            sleep(Duration::from_millis(20)).await;
            says(&newer_client, PREFACE).await;
        };
        tokio::join!(listening, speaks).0
    };
    let (older, newer) = tokio::join!(scene.detect(), newer_speaks);
    assert!(matches!(older.expect_err("had to go"), Error::Crowded));
    assert_eq!(newer.expect("detected").protocol, Protocol::Http2);
    assert_eq!(scene.waiting.count(), 0);

    drop(scene.accepted);
    let heard = scene.client.read(&mut [0; 1]).await.expect_err("is reset");
    assert_eq!(heard.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_is_declared_is_not_read() {
    for (declared, protocol) in [(Declared::Http2, Protocol::Http2), (Declared::Opaque, Protocol::Opaque)] {
        let scene = Scene::quick().await;
        scene.client_says(b"GET / HTTP/1.1\r\n").await;
        let detected = scene.detect_as(declared, Expected::Nothing).await.expect("detected");
        assert_eq!((detected.protocol, detected.guess), (protocol, Guess::Declared));
        assert!(detected.client_bytes.is_empty());
    }
}

#[tokio::test]
async fn a_protocol_whose_client_speaks_first_is_never_dialled_for_a_silence() {
    for declared in [Declared::Http, Declared::GrpcWeb, Declared::Tls] {
        let scene = Scene::quick().await;
        let late = async {
            sleep(Duration::from_millis(200)).await;
            scene.client_says(PREFACE).await;
        };
        let (detected, ()) = tokio::join!(scene.detect_as(declared, Expected::ServerFirst), late);
        assert_eq!(detected.expect("detected").protocol, Protocol::Http2);
        assert_eq!(scene.dials.get(), 0);
    }
}

#[tokio::test]
async fn a_client_that_speaks_while_its_server_is_dialled_gets_that_connection() {
    let scene = Scene::quick().await;
    let dialling = Cell::new(false);
    let dial = async || {
        dialling.set(true);
        sleep(Duration::from_millis(100)).await;
        TcpStream::connect(scene.server_address()).await.map(Stream::plain)
    };
    let speaks = async {
        while !dialling.get() {
            sleep(Duration::from_millis(1)).await;
        }
        scene.client_says(b"GET / HTTP/1.1\r\n").await;
    };
    let listening = detect(
        &scene.accepted,
        Declared::Nothing,
        Expected::Nothing,
        dial,
        &scene.waiting,
        &scene.settings,
    );
    let (detected, ()) = tokio::join!(listening, speaks);
    let detected = detected.expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http1, Guess::ClientFirst)
    );
    assert!(detected.upstream.is_some(), "the dial under way is used");
}

#[tokio::test]
async fn no_more_than_the_first_bytes_is_taken_from_the_socket() {
    let scene = Scene::quick().await;
    let flood = vec![b'x'; 1 << 20];
    let (detected, ()) = tokio::join!(scene.detect(), async {
        scene.client.writable().await.expect("open");
        let _ = scene.client.try_write(&flood);
    });
    let detected = detected.expect("detected");
    assert!(detected.client_bytes.len() <= A_READ, "{}", detected.client_bytes.len());
}

#[tokio::test]
async fn what_was_decrypted_is_listened_to_in_the_same_way() {
    let (mut client, mut decrypted) = tokio::io::duplex(64);
    let (settings, dial) = (Settings::default(), async || {
        Err(io::ErrorKind::ConnectionRefused.into())
    });
    let waiting = Waiting::new(settings.most_waiting);
    let speaks = async {
        for piece in [&PREFACE[..10], &PREFACE[10..]] {
            client.write_all(piece).await.expect("written");
            tokio::task::yield_now().await;
        }
    };
    let listening = detect(
        &mut decrypted,
        Declared::Nothing,
        Expected::Nothing,
        dial,
        &waiting,
        &settings,
    );
    let (detected, ()) = tokio::join!(listening, speaks);
    let detected = detected.map_err(|error: Error<io::Error>| error).expect("detected");
    assert_eq!(
        (detected.protocol, detected.guess),
        (Protocol::Http2, Guess::ClientFirst)
    );
    assert_eq!(detected.client_bytes, PREFACE);
}
