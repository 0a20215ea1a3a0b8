//! A client that only shakes hands: full mTLS handshakes, TLS 1.3, one after the other, and connections that stay open.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, StreamOwned,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use support::Anybody;

use super::{
    identities::{Identities, Who},
    wire,
};

/// Who shakes hands, as the caller.
pub(crate) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// A client that asks for this protocol and offers X25519MLKEM768 first, then X25519.
    pub(crate) fn new(identities: &Identities, alpn: &[u8]) -> Result<Client> {
        let chain = CertificateDer::pem_file_iter(identities.chain(Who::Caller))?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(identities.key(Who::Caller))?;
        let provider = CryptoProvider {
            // What a sidecar's own caller asks for first, and what the others take of themselves.
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let provider = Arc::new(provider);
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![alpn.to_vec()];
        // An address, so that no name is sent.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
        Ok(Client {
            config: Arc::new(config),
            name,
        })
    }

    /// Shakes hands, closes, and waits until the other has closed too: then it has judged our certificate.
    pub(crate) fn shake(&self, address: SocketAddr) -> Result<NamedGroup> {
        let mut stream = self.connect(address)?;
        let group = stream.conn.negotiated_key_exchange_group();
        let group = group.context("no key exchange took place")?.name();
        stream.conn.send_close_notify();
        stream.flush()?;
        stream.sock.shutdown(Shutdown::Write)?;
        match stream.read_to_end(&mut Vec::new()) {
            // Some close without a close_notify of their own; an alert would be another error.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                Err(error).context("the handshake was refused")
            }
            _ => Ok(group),
        }
    }

    /// A connection over which HTTP/2 has begun, until it drops.
    pub(crate) fn hold(&self, address: SocketAddr) -> Result<Held> {
        let mut stream = self.connect(address)?;
        let mut opening = wire::PREFACE.to_vec();
        wire::append_settings(&[(2, 0)], &mut opening);
        stream.write_all(&opening)?;
        stream.flush()?;
        let mut head = [0; 9];
        stream.read_exact(&mut head).context("the proxy sent no SETTINGS")?;
        ensure!(
            head[3] == wire::kind::SETTINGS,
            "the proxy began with something else than SETTINGS"
        );
        Ok(Held { _stream: stream })
    }

    fn connect(&self, address: SocketAddr) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let socket = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let connection = ClientConnection::new(self.config.clone(), self.name.clone())?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .context("the handshake failed")?;
        }
        if stream.conn.alpn_protocol() != self.config.alpn_protocols.first().map(Vec::as_slice) {
            bail!("the proxy did not agree to the protocol");
        }
        Ok(stream)
    }
}

/// An open connection.
pub(crate) struct Held {
    _stream: StreamOwned<ClientConnection, TcpStream>,
}

const PATIENCE: Duration = Duration::from_secs(10);
