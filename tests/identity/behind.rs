//! Members who break TLS behind a good handshake: records, alerts and handshake messages as no honest peer sends them.
//! Whoever does loses the connection, and nobody else loses anything.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use portunus_sidecar::policy::Mode;
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::ServerName;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, SignatureAlgorithm,
    SignatureScheme, SupportedCipherSuite,
};

use crate::authority::{Authority, PEERS, Shown, leaf_params};
use crate::draft::der;
use crate::ends;
use crate::floods::{ENOUGH, Innocent, resident};
use crate::plain::{Always, client_config};
use crate::raw::PREFACE;
use crate::world::World;

/// What ends a connection ends it within this time.
const SOON: Duration = Duration::from_secs(10);
/// A record that says nothing: its content is no more than padding.
const NO_TYPE: ContentType = ContentType::Unknown(0);

/// A member whose handshake was good, and who seals records by hand from there on.
struct Behind {
    socket: TcpStream,
    seal: Box<dyn MessageEncrypter>,
    sealed: u64,
}

impl Behind {
    fn come(to: SocketAddr, shown: &Shown) -> Behind {
        Behind::speaking(to, client_config(Some(shown)))
    }

    fn speaking(to: SocketAddr, mut config: ClientConfig) -> Behind {
        config.enable_secret_extraction = true;
        let name = ServerName::try_from("a.example").expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut socket = TcpStream::connect(to).expect("it listens");
        socket.set_read_timeout(Some(SOON)).expect("a socket");
        socket.set_write_timeout(Some(SOON)).expect("a socket");
        while client.is_handshaking() {
            client.complete_io(&mut socket).expect("a handshake");
        }
        let Some(SupportedCipherSuite::Tls13(suite)) = client.negotiated_cipher_suite() else {
            panic!("it is TLS 1.3");
        };
        let (sealed, secrets) = client.dangerous_extract_secrets().expect("they may be had").tx;
        let (key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key, iv),
            _ => panic!("a cipher that nobody knows"),
        };
        Behind {
            socket,
            seal: suite.aead_alg.encrypter(key, iv),
            sealed,
        }
    }

    /// A record as it crosses. Content of [`NO_TYPE`] brings its own type, its last byte that is not zero.
    fn record(&mut self, kind: ContentType, content: &[u8]) -> Vec<u8> {
        let plain = OutboundPlainMessage {
            typ: kind,
            version: ProtocolVersion::TLSv1_3,
            payload: OutboundChunks::Single(content),
        };
        self.sealed += 1;
        let sealed = self.seal.encrypt(plain, self.sealed - 1).expect("it is sealed");
        sealed.encode()
    }

    /// Whether the other side ends the connection, soon and whatever it still says. What is waited for is its end.
    fn is_cut(&mut self) -> bool {
        let began = Instant::now();
        let mut room = [0; 16 << 10];
        while began.elapsed() < SOON {
            match self.socket.read(&mut room) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
        false
    }
}

/// What somebody does behind the handshake, and how often until it has to have been enough.
struct Attack {
    name: &'static str,
    times: usize,
    once: fn(&mut Behind) -> Vec<u8>,
}

/// The handshake message of TLS 1.3 that this is.
fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short one").to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// Each of them ends the connection of whoever does it (RFC 8446, 4.6, 5 and 6).
fn attacks() -> Vec<Attack> {
    let attack = |name, times, once| Attack { name, times, once };
    vec![
        attack("a fatal alert", 1, |at| at.record(ContentType::Alert, &[2, 40])),
        attack("a fatal alert that nobody knows", 1, |at| {
            at.record(ContentType::Alert, &[2, 211])
        }),
        attack("a warning that TLS 1.3 does not have", 1, |at| {
            at.record(ContentType::Alert, &[1, 100])
        }),
        attack("a flood of cancelled handshakes", 1_000, |at| {
            at.record(ContentType::Alert, &[1, 90])
        }),
        attack("half an alert", 1, |at| at.record(ContentType::Alert, &[2])),
        attack("no alert", 1, |at| at.record(ContentType::Alert, &[])),
        attack("an alert in plain", 1, |_| vec![21, 3, 3, 0, 2, 2, 40]),
        attack("a handshake message in plain", 1, |_| vec![22, 3, 3, 0, 4, 24, 0, 0, 0]),
        attack("a change of ciphers", 1, |_| vec![20, 3, 3, 0, 1, 1]),
        attack("a change of ciphers, sealed", 1, |at| {
            at.record(ContentType::ChangeCipherSpec, &[1])
        }),
        attack("a heartbeat", 1, |at| at.record(ContentType::Heartbeat, &[1, 0x40, 0])),
        attack("a record of a type that nobody knows", 1, |at| {
            at.record(ContentType::Unknown(99), b"hello")
        }),
        attack("a record of padding alone", 1, |at| at.record(NO_TYPE, &[0; 100])),
        attack("records without content", 1_000, |at| {
            at.record(ContentType::ApplicationData, &[])
        }),
        attack("records of padding, with a type", 1_000, |at| {
            let mut content = vec![0; 16_384];
            content[0] = 23;
            at.record(NO_TYPE, &content)
        }),
        attack("a record with one bit turned", 1, |at| {
            let mut record = at.record(ContentType::ApplicationData, PREFACE);
            record[20] ^= 1;
            record
        }),
        attack("a record that was sent before", 1, |at| {
            let record = at.record(ContentType::ApplicationData, PREFACE);
            record.repeat(2)
        }),
        attack("records out of their order", 1, |at| {
            at.sealed += 1;
            at.record(ContentType::ApplicationData, PREFACE)
        }),
        attack("a record that is too short to be sealed", 1, |_| {
            vec![23, 3, 3, 0, 3, 1, 2, 3]
        }),
        attack("a record that is longer than one may be", 1, |_| {
            [&[23, 3, 3, 0xff, 0xff], &[7; 0xffff][..]].concat()
        }),
        attack("more content than a record may have", 1, |at| {
            at.record(ContentType::ApplicationData, &[b'x'; 16_385])
        }),
        attack("a handshake message without content", 1_000, |at| {
            at.record(ContentType::Handshake, &[])
        }),
        attack("another hello", 1, |at| {
            at.record(ContentType::Handshake, &handshake(1, &[3; 200]))
        }),
        attack("a ticket, of a client", 1, |at| {
            at.record(ContentType::Handshake, &handshake(4, &[0; 40]))
        }),
        attack("a demand for a certificate, of a client", 1, |at| {
            at.record(ContentType::Handshake, &handshake(13, &[0, 0, 0]))
        }),
        attack("a certificate behind the handshake", 1, |at| {
            at.record(ContentType::Handshake, &handshake(11, &[0, 0, 0, 0]))
        }),
        attack("another end of the handshake", 1, |at| {
            at.record(ContentType::Handshake, &handshake(20, &[9; 32]))
        }),
        attack("the end of early data that there was not", 1, |at| {
            at.record(ContentType::Handshake, &handshake(5, &[]))
        }),
        attack("new keys of a kind that nobody knows", 1, |at| {
            at.record(ContentType::Handshake, &handshake(24, &[7]))
        }),
        attack(
            "new keys, and in the same record what they should have sealed",
            1,
            |at| {
                let twice = [handshake(24, &[0]), handshake(24, &[0])].concat();
                at.record(ContentType::Handshake, &twice)
            },
        ),
        attack("a message that is said to be 16 MiB long", 1_100, |at| {
            let begun = match at.sealed {
                0 => [&[24, 0xff, 0xff, 0xff][..], &[0; 16_000]].concat(),
                _ => vec![0; 16_000],
            };
            at.record(ContentType::Handshake, &begun)
        }),
        attack("application data within a handshake message", 1, |at| {
            let half = at.record(ContentType::Handshake, &[24, 0, 0]);
            let data = at.record(ContentType::ApplicationData, PREFACE);
            [half, data].concat()
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_breaks_tls_behind_a_good_handshake_loses_the_connection_and_nobody_else_loses_anything() {
    let _alone = crate::floods::ALONE.write().await;
    let root = Authority::root("root");
    for mode in [Mode::Strict, Mode::Permissive] {
        who_breaks_tls_behind_a_good_handshake(&root, mode).await;
    }
}

async fn who_breaks_tls_behind_a_good_handshake(root: &Authority, mode: Mode) {
    let shown = root.leaf(|_| {});
    let world = World::with(ends::patient(root, mode)).await;
    let innocent = Innocent::start(&world, &shown).await;
    let before = resident();
    let (proxy, answered) = (world.proxy, innocent.answered.clone());
    let spared = tokio::task::spawn_blocking(move || {
        let mut spared = Vec::new();
        let began = Instant::now();
        // All of them, and again while the innocent needs for its calls.
        for attack in std::iter::repeat_with(attacks)
            .take_while(|_| answered.load(Relaxed) < 100 && began.elapsed() < ENOUGH)
            .flatten()
        {
            let mut behind = Behind::come(proxy, &shown);
            for _ in 0..attack.times {
                let record = (attack.once)(&mut behind);
                if behind.socket.write_all(&record).is_err() {
                    break;
                }
            }
            if !behind.is_cut() {
                spared.push(attack.name);
            }
        }
        spared
    });
    let spared = spared.await.expect("no panic");
    let calls = innocent.stop().await;
    let grown = resident().saturating_sub(before);
    eprintln!("+{grown} MiB; {calls:?}");
    assert!(spared.is_empty(), "{mode:?}: not cut: {spared:?}");
    assert!(grown < 50, "memory grew by {grown} MiB");
    calls.assert_prompt(100, Duration::from_millis(250));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_a_tunnels_tls_later_is_no_second_handshake() {
    let root = Authority::root("root");
    let application = ends::Ear::open().await;
    let world = World::before(application.addr, ends::inbound(&root, Mode::Strict)).await;
    let config = ends::speaking(client_config(Some(&root.leaf(|_| {}))), &[ends::TCP]);
    let proxy = world.proxy;
    let cut = tokio::task::spawn_blocking(move || {
        let mut behind = Behind::speaking(proxy, config);
        let word = behind.record(ContentType::ApplicationData, b"\0a word");
        let alert = behind.record(ContentType::Alert, &[2, 40]);
        behind.socket.write_all(&[word, alert].concat()).expect("it is read");
        behind.is_cut()
    });
    assert!(cut.await.expect("no panic"), "it lives on");
    world
        .until("portunus_proxy_errors_total", &["inbound", "broken_tls"], |now| {
            now == 1.0
        })
        .await;
    assert_eq!(world.metric(ends::HANDSHAKES, &["inbound", "result=\"ok\""]), 1.0);
    assert_eq!(world.metric(ends::HANDSHAKES, &[]), 1.0);
}

/// A key of RSA with so many bits, and an exponent as long as this: somebody may have its private half, but not we.
fn rsa_key(bits: usize, exponent: &[u8]) -> Vec<u8> {
    let mut modulus = vec![0xd5; bits / 8];
    modulus.insert(0, 0);
    let numbers = der(0x30, &[&der(0x02, &[&modulus]), &der(0x02, &[exponent])]);
    let rsa = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 0x05, 0];
    der(0x30, &[&der(0x30, &[&rsa]), &der(0x03, &[&[0], &numbers])])
}

/// Says that it has signed.
#[derive(Debug)]
struct Claims {
    length: usize,
}

impl SigningKey for Claims {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Claims { length: self.length }))
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::RSA
    }
}

impl Signer for Claims {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![7; self.length])
    }
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::RSA_PSS_SHA256
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_size_are_refused_for_their_signature_and_in_no_time() {
    let _alone = crate::floods::ALONE.write().await;
    let root = Authority::root("root");
    for mode in ends::MODES {
        keys_of_any_size(&root, mode).await;
    }
}

async fn keys_of_any_size(root: &Authority, mode: Mode) {
    let application = ends::Ear::open().await;
    let world = World::before(application.addr, ends::patient(root, mode)).await;
    let usual: &[u8] = &[1, 0, 1];
    let huge = [&[0x55][..], &[0x77; 2_000]].concat();
    for (bits, exponent) in [
        (512, usual),
        (4_096, &huge),
        (8_192, usual),
        (16_384, &huge),
        (200_000, usual),
    ] {
        let key = rcgen::SubjectPublicKeyInfo::from_der(&rsa_key(bits, exponent)).expect("a key");
        let leaf = leaf_params(PEERS)
            .signed_by(&key, &root.issuer)
            .expect("it signs whatever it is");
        let claims = Claims { length: bits / 8 };
        let certified = Arc::new(CertifiedKey::new(vec![leaf.der().clone()], Arc::new(claims)));
        let mut config: ClientConfig = client_config(None);
        config.client_auth_cert_resolver = Arc::new(Always(certified));
        let began = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (config, to) = (config.clone(), world.proxy);
            all.spawn(async move {
                use tokio::io::AsyncReadExt as _;
                if let Ok(mut stream) = ends::shake(to, config).await {
                    assert!(stream.read(&mut [0; 16]).await.is_err(), "it was let in");
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.expect("no panic");
        }
        eprintln!(
            "{bits} bits, an exponent of {} bytes: {:?}",
            exponent.len(),
            began.elapsed()
        );
        assert!(began.elapsed() < SOON, "{bits} bits took {:?}", began.elapsed());
    }
    assert!(application.has_heard_nothing());
    world
        .until(ends::HANDSHAKES, &["inbound", "bad_signature"], |now| now == 100.0)
        .await;
}
