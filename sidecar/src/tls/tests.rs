//! The vocabulary of the room's tests: authorities, what peers show, and peers made of plain rustls.

mod certificates;
mod forged;
mod handshake;
mod records;
mod shapes;
mod stream;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use portunus_proto::{SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName as Hint, ServerConfig, ServerConnection,
    SignatureScheme,
};

use super::{Bundle, Credential};

/// Long enough for the slowest machine; nothing waits for its end in a test that passes.
const IN_TIME: Duration = Duration::from_secs(20);
const OURS: &str = "spiffe://cluster.local/ns/shop/sa/greeter";
const PEERS: &str = "spiffe://cluster.local/ns/shop/sa/caller";

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

fn soon(seconds: i64) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        SystemTime::now() - by
    } else {
        SystemTime::now() + by
    }
}

/// One that certifies.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// From itself upwards, without the root.
    chain: Vec<CertificateDer<'static>>,
}

/// A chain and the key that goes with it, or does not.
#[derive(Clone)]
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A leaf with nothing wrong.
fn leaf_params(uri: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = soon(-60).into();
    params.not_after = soon(3600).into();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

impl Authority {
    fn root(name: &str) -> Authority {
        let issuer = CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap();
        Authority {
            issuer,
            chain: Vec::new(),
        }
    }

    fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        // Each has a name of its own, or the wrong one of two would be tried, too.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut params = authority_params(&format!("issuer {}", COUNT.fetch_add(1, Ordering::Relaxed)));
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let mut chain = vec![issuer.der().clone()];
        chain.extend_from_slice(&self.chain);
        Authority { issuer, chain }
    }

    fn certify(&self, params: &CertificateParams) -> Shown {
        self.certify_key(params, &KeyPair::generate().unwrap())
    }

    fn certify_key(&self, params: &CertificateParams, key: &KeyPair) -> Shown {
        let leaf = params.signed_by(key, &self.issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.chain);
        Shown {
            chain,
            key: key.serialize_der(),
        }
    }

    fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = leaf_params(PEERS);
        change(&mut params);
        self.certify(&params)
    }

    fn bundle(&self) -> Bundle {
        Bundle::new(
            TrustDomain::parse("cluster.local").unwrap(),
            &[self.issuer.der().clone()],
        )
        .unwrap()
    }

    /// Ours.
    fn credential(&self) -> Credential {
        let shown = self.certify(&leaf_params(OURS));
        Credential::new(shown.chain.clone(), shown.private(), self.bundle()).unwrap()
    }
}

impl Shown {
    fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        let key = aws_lc_rs::sign::any_supported_type(&self.private()).unwrap();
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short @ 0..128) => bytes.push(short),
        _ => {
            bytes.push(0x82);
            bytes.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        }
    }
    bytes.extend_from_slice(&content);
    bytes
}

/// The names of a certificate, with whatever bytes.
fn uri_names(uris: &[&[u8]]) -> CustomExtension {
    let names: Vec<_> = uris.iter().map(|uri| der(0x86, &[uri])).collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &names))
}

/// One that believes everybody, and shows what it is given.
#[derive(Debug)]
struct Anything {
    demands: bool,
}

fn schemes() -> Vec<SignatureScheme> {
    aws_lc_rs::default_provider()
        .signature_verification_algorithms
        .supported_schemes()
}

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Anything {
    fn client_auth_mandatory(&self) -> bool {
        self.demands
    }
    fn root_hint_subjects(&self) -> &[Hint] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// Shows one chain, whatever it is.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// A plain rustls client that shows this, or nothing.
fn client_config(shown: Option<&Shown>) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything { demands: true }));
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(Always(shown.certified()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"portunus/h2".to_vec()];
    config
}

/// A plain rustls server that shows this.
fn server_config(shown: &Shown) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anything { demands: true }))
        .with_cert_resolver(Arc::new(Always(shown.certified())));
    config.alpn_protocols = vec![b"portunus/h2".to_vec(), b"portunus/tcp".to_vec()];
    config
}

fn client(config: ClientConfig) -> ClientConnection {
    ClientConnection::new(Arc::new(config), ServerName::try_from("anybody.example").unwrap()).unwrap()
}

fn server(config: ServerConfig) -> ServerConnection {
    ServerConnection::new(Arc::new(config)).unwrap()
}

/// What a peer has seen until its connection ended.
#[derive(Debug, Default)]
struct Saw {
    plain: Vec<u8>,
    error: Option<String>,
}

/// Says its words as soon as it may, and listens to the end.
fn converse<S>(
    mut connection: impl std::ops::DerefMut<Target = rustls::ConnectionCommon<S>>,
    mut socket: std::net::TcpStream,
    words: &[u8],
) -> Saw
where
    S: rustls::SideData,
{
    let mut saw = Saw::default();
    socket.set_read_timeout(Some(IN_TIME)).unwrap();
    connection.writer().write_all(words).unwrap();
    loop {
        while connection.wants_write() {
            if connection.write_tls(&mut socket).is_err() {
                break;
            }
        }
        match connection.read_tls(&mut socket) {
            Ok(0) => return saw,
            Ok(_) => {}
            Err(error) => {
                saw.error.get_or_insert(error.to_string());
                return saw;
            }
        }
        if let Err(error) = connection.process_new_packets() {
            saw.error = Some(error.to_string());
            let _ = connection.write_tls(&mut socket);
            return saw;
        }
        let mut room = [0; 4096];
        while let Ok(n @ 1..) = connection.reader().read(&mut room) {
            saw.plain.extend_from_slice(&room[..n]);
        }
    }
}

/// A peer in a thread that calls us.
fn calls(to: SocketAddr, config: ClientConfig, words: &'static [u8]) -> JoinHandle<Saw> {
    std::thread::spawn(move || {
        let socket = std::net::TcpStream::connect(to).unwrap();
        converse(client(config), socket, words)
    })
}

/// A peer in a thread that is called.
fn is_called(config: ServerConfig, words: &'static [u8]) -> (SocketAddr, JoinHandle<Saw>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        converse(server(config), socket, words)
    });
    (address, thread)
}
