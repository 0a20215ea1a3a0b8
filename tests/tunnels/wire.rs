//! Two pods with sidecars, and connections between them byte by byte. With `PORTUNUS_TEST_MTLS=1` the sidecars are members of
//! a mesh, and their ports take mTLS alone.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http::Request;
use support::{Control, Members, Mesh, Pod, Sidecar, in_netns};

/// Where the tests' servers listen.
pub const PORT: u16 = 7000;

/// All ports that some test serves.
const PORTS: [u16; 6] = [PORT, PORT + 1, PORT + 2, 6379, 8000, 8443];

/// A client and a server, each with its sidecar, nothing declared.
pub struct Pair {
    pub client: Pod,
    pub server: Pod,
    pub outbound: Sidecar,
    pub inbound: Sidecar,
    /// The mesh's control, if they are members of one.
    #[allow(dead_code, reason = "it has to live as long; the tests of identity ask it for more")]
    pub control: Option<Control>,
}

impl Pair {
    /// Both, ready.
    pub fn new(mesh: &Mesh) -> Result<Pair> {
        if Members::are_asked_for() {
            return Pair::in_mtls(mesh, &[]);
        }
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let (outbound, inbound) = (client.sidecar()?, server.sidecar()?);
        Ok(Pair {
            client,
            server,
            outbound,
            inbound,
            control: None,
        })
    }

    /// Both, ready, and members of a mesh; the server's sidecar with settings beside.
    pub fn in_mtls(mesh: &Mesh, settings: &[(&str, &str)]) -> Result<Pair> {
        let (client, server) = (mesh.pod("client")?, mesh.pod("server")?);
        let members = Members::join(mesh, &client, &server, &PORTS, settings)?;
        Ok(Pair {
            client,
            server,
            outbound: members.client,
            inbound: members.server,
            control: Some(members.control),
        })
    }
}

/// A listener of a pod's application.
pub fn listen(pod: &Pod, address: SocketAddr) -> Result<TcpListener> {
    in_netns(pod, || TcpListener::bind(address))?.with_context(|| format!("cannot listen on {address}"))
}

/// A connection of a pod's application, which fails rather than hangs.
pub fn dial(pod: &Pod, address: SocketAddr) -> Result<TcpStream> {
    let socket = in_netns(pod, || TcpStream::connect_timeout(&address, PATIENCE))?;
    let socket = socket.with_context(|| format!("cannot reach {address}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Whether nobody answers at an address: the connection is refused, reset or closed, without a byte. Silence is neither.
pub fn refused(pod: &Pod, address: SocketAddr, word: &[u8]) -> Result<bool> {
    let dialled = in_netns(pod, || TcpStream::connect_timeout(&address, PATIENCE))?;
    let mut socket = match dialled {
        Ok(socket) => socket,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset) => {
            return Ok(true);
        }
        Err(error) => return Err(error).with_context(|| format!("a call to {address} should be refused")),
    };
    socket.set_read_timeout(Some(PATIENCE))?;
    // It may be over before the word is said.
    let said = socket.write_all(word);
    match socket.read(&mut [0; 64]) {
        Ok(0) => Ok(true),
        Ok(_) => Ok(false),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => Ok(true),
        Err(_) if said.is_err() => Ok(true),
        Err(error) => Err(error).with_context(|| format!("a call to {address} should end")),
    }
}

/// `grpc.testing.TestService/EmptyCall` on a connection that is there already.
pub fn empty_call(socket: TcpStream) -> Result<()> {
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let call = async {
        let socket = tokio::net::TcpStream::from_std(socket)?;
        let authority = socket.peer_addr()?;
        let (mut caller, connection) = h2::client::handshake(socket).await?;
        tokio::spawn(connection);
        let request = Request::post(format!("http://{authority}/grpc.testing.TestService/EmptyCall"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut body) = caller.send_request(request, false)?;
        body.send_data(Bytes::from_static(&[0; 5]), true)?;
        let mut body = response.await?.into_body();
        while let Some(bytes) = body.data().await {
            let bytes = bytes?.len();
            body.flow_control().release_capacity(bytes)?;
        }
        let trailers = body.trailers().await?.context("no trailers came")?;
        let status = trailers.get("grpc-status").context("no grpc-status came")?;
        ensure!(status == "0", "the call ended with {status:?}");
        Ok(())
    };
    match runtime.block_on(async { tokio::time::timeout(PATIENCE, call).await }) {
        Ok(ended) => ended,
        Err(_) => bail!("the call did not end within {PATIENCE:?}"),
    }
}

const PATIENCE: Duration = Duration::from_secs(10);
