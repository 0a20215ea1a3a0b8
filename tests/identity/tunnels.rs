//! What is no HTTP/2 goes inside mTLS between members of a mesh, whoever speaks first and whatever it is; and modes that
//! control says hold at once.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use support::{Capture, Family, Peer, Pod, Sidecar, Stack, User, in_netns, wait_until};

use crate::ends;
use crate::plain::client_config;
use crate::wire::{PORT, Pair, dial, empty_call, listen};

/// A port whose bytes are never looked at.
const OPAQUE: u16 = PORT + 1;
/// What must not be seen on the wire.
const SECRET: &[u8] = b"open sesame, said nobody in plain";

#[test]
fn bytes_of_every_kind_go_inside_mtls_and_nothing_is_plain_on_the_wire() {
    support::test(|mesh| {
        let pair = Pair::in_mtls(mesh, &[("PORTUNUS_OPAQUE_PORTS", &OPAQUE.to_string())])?;
        let filter = format!("tcp port {PORT} or tcp port {OPAQUE}");
        let capture = Capture::start(&pair.server, "eth0", &filter)?;
        for family in Family::ALL {
            for port in [PORT, OPAQUE] {
                server_first(&pair, family, port).context("a server that speaks first")?;
                half_close(&pair, family, port).context("an echo behind a half-close")?;
            }
            http_1(&pair, family).context("HTTP/1")?;
            own_tls(&pair, family).context("an application's own TLS")?;
            web_socket(&pair, family).context("a WebSocket")?;
        }
        let seen = capture.stop()?;
        ensure!(seen.contains("portunus/tcp"), "no TLS of the mesh's was seen");
        for plain in ["open sesame", "220 mail", "GET /", "HTTP/1.1", "own.example"] {
            ensure!(!seen.contains(plain), "{plain:?} was plain on the wire");
        }
        let shaken = |sidecar: &Sidecar, direction| -> Result<f64> {
            let labels = [("direction", direction), ("result", "ok")];
            Ok(sidecar.metrics()?.sum("portunus_tls_handshakes_total", &labels))
        };
        let (out, into) = (shaken(&pair.outbound, "outbound")?, shaken(&pair.inbound, "inbound")?);
        ensure!(out >= 14.0 && into >= 14.0, "{out} and {into} handshakes are counted");
        Ok(())
    });
}

/// One connection, served in a thread.
fn served<T: Send + 'static>(
    pod: &Pod,
    at: std::net::SocketAddr,
    serve: impl FnOnce(TcpStream) -> Result<T> + Send + 'static,
) -> Result<thread::JoinHandle<Result<T>>> {
    let listener = listen(pod, at)?;
    Ok(thread::spawn(move || {
        let (socket, _) = listener.accept()?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        serve(socket)
    }))
}

fn joined<T>(serving: thread::JoinHandle<Result<T>>) -> Result<T> {
    match serving.join() {
        Ok(served) => served,
        Err(_) => bail!("the server panicked"),
    }
}

fn server_first(pair: &Pair, family: Family, port: u16) -> Result<()> {
    let address = pair.server.at(family, port)?;
    let serving = served(&pair.server, address, |mut client| {
        client.write_all(b"220 mail.test ready\r\n")?;
        let mut word = [0; 4];
        client.read_exact(&mut word)?;
        client.write_all(&word)?;
        Ok(())
    })?;
    let mut socket = dial(&pair.client, address)?;
    let mut banner = [0; 21];
    socket.read_exact(&mut banner)?;
    ensure!(&banner == b"220 mail.test ready\r\n", "the banner is another");
    socket.write_all(b"QUIT")?;
    let mut word = [0; 4];
    socket.read_exact(&mut word)?;
    ensure!(&word == b"QUIT", "the word came as {word:?}");
    joined(serving)
}

fn half_close(pair: &Pair, family: Family, port: u16) -> Result<()> {
    let address = pair.server.at(family, port)?;
    let serving = served(&pair.server, address, |mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all)?;
        all.reverse();
        client.write_all(&all)?;
        Ok(())
    })?;
    let said = SECRET.repeat(20_000);
    let mut socket = dial(&pair.client, address)?;
    socket.write_all(&said)?;
    socket.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard)?;
    ensure!(
        heard.iter().rev().eq(said.iter()),
        "of {} bytes {} came back",
        said.len(),
        heard.len()
    );
    joined(serving)
}

fn http_1(pair: &Pair, family: Family) -> Result<()> {
    let address = pair.server.at(family, PORT)?;
    let serving = served(&pair.server, address, |mut client| {
        let head = head(&mut client)?;
        client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi")?;
        Ok(head)
    })?;
    let mut socket = dial(&pair.client, address)?;
    socket.write_all(
        b"GET /open HTTP/1.1\r\nHost: own.example\r\nX_Forwarded-Client-Cert: me\r\nConnection: close\r\n\r\n",
    )?;
    let mut heard = String::new();
    socket.read_to_string(&mut heard)?;
    ensure!(heard.ends_with("hi"), "the answer is {heard:?}");
    let head = joined(serving)?;
    let told = format!("URI={}", support::Control::id("client"));
    ensure!(
        head.matches("lient-").count() <= 1 && head.contains(&told),
        "the application heard {head:?}"
    );
    Ok(())
}

fn head(client: &mut TcpStream) -> Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn web_socket(pair: &Pair, family: Family) -> Result<()> {
    let address = pair.server.at(family, PORT)?;
    let serving = served(&pair.server, address, |mut client| {
        let head = head(&mut client)?;
        client.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        )?;
        let mut frame = [0; 2 + 4 + 33];
        client.read_exact(&mut frame)?;
        client.write_all(&frame)?;
        Ok(head)
    })?;
    let mut socket = dial(&pair.client, address)?;
    socket.write_all(
        b"GET /ws HTTP/1.1\r\nHost: own.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )?;
    let answer = head(&mut socket)?;
    ensure!(answer.starts_with("HTTP/1.1 101"), "no switch: {answer}");
    let frame = [&[0x82, 0x80 | SECRET.len() as u8, 0, 0, 0, 0], SECRET].concat();
    socket.write_all(&frame)?;
    let mut echo = vec![0; frame.len()];
    socket.read_exact(&mut echo)?;
    ensure!(echo == frame, "the echo is another");
    joined(serving).map(drop)
}

/// The mesh's TLS and the application's own, on one port: told apart by the ClientHello.
fn own_tls(pair: &Pair, family: Family) -> Result<()> {
    let folder = pair.server.folder();
    let (key, certificate) = (folder.join("own.key"), folder.join("own.pem"));
    if !key.exists() {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        openssl
            .args(["-days", "2", "-subj", "/CN=own.example", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate);
        let output = openssl.output().context("there is no openssl")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    readable(&key)?;
    let address = pair.server.at(family, PORT)?;
    let mut command = pair.server.command(User::App, "openssl");
    command
        .args(["s_server", "-accept", &address.to_string(), "-quiet", "-rev", "-key"])
        .arg(&key);
    command.arg("-cert").arg(&certificate);
    let mut server = pair.server.start("own-tls", command)?;
    // By its own address the pod's sidecar would take any call.
    wait_until(Duration::from_secs(10), "the application listens", || {
        in_netns(&pair.server, || std::net::TcpListener::bind(address)).is_ok_and(|bound| bound.is_err())
    })?;
    let name = rustls::pki_types::ServerName::try_from("own.example").context("a name")?;
    let config = ends::speaking(client_config(None), &[]);
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name)?;
    let mut socket = dial(&pair.client, address)?;
    let mut stream = rustls::Stream::new(&mut client, &mut socket);
    stream.write_all(&[SECRET, b"\n"].concat())?;
    let mut heard = vec![0; SECRET.len()];
    stream.read_exact(&mut heard)?;
    ensure!(
        heard.iter().rev().eq(SECRET),
        "the application's TLS said {}",
        heard.escape_ascii()
    );
    server.kill()
}

fn readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).context("it is ours")
}

#[test]
fn modes_that_control_says_hold_at_once_for_each_port() {
    support::test(|mesh| {
        let pair = Pair::in_mtls(mesh, &[("PORTUNUS_MTLS", "permissive")])?;
        let control = pair.control.as_ref().context("a mesh has control")?;
        let stranger = mesh.pod("stranger")?;
        let _app = Peer::start(&pair.server, Stack::Tonic, PORT)?;
        let _other = Peer::start(&pair.server, Stack::Tonic, OPAQUE)?;
        let call = |pod: &Pod, port| empty_call(dial(pod, pair.server.at(Family::V4, port)?)?);
        let plain = |port| call(&stranger, port);
        call(&pair.client, PORT)?;
        plain(PORT)?;
        let policy = |text: &str| {
            let head =
                "apiVersion: portunus.dev/v1alpha1\nkind: InboundPolicy\nmetadata: {name: modes, namespace: shop}\n";
            control.apply(
                "modes",
                &format!("{head}spec:\n  selector: {{matchLabels: {{app: server}}}}\n  mtls: {text}\n"),
            )
        };
        let strict = "mode: strict, ports: [{port: 7001, mode: permissive}]";
        let reversed = "mode: permissive, ports: [{port: 7001, mode: strict}]";
        let disabled = "mode: disabled";
        for (text, takes) in [
            (strict, [false, true]),
            (reversed, [true, false]),
            (disabled, [true, true]),
            (strict, [false, true]),
        ] {
            policy(&format!("{{{text}}}"))?;
            for (port, takes) in [PORT, OPAQUE].into_iter().zip(takes) {
                wait_until(
                    Duration::from_secs(5),
                    &format!("{text} holds for plain calls to {port}"),
                    || plain(port).is_ok() == takes,
                )?;
            }
            // Its callers in the mesh hear of it at the same time, and reach it in the way that it takes.
            wait_until(Duration::from_secs(5), &format!("{text} holds for members"), || {
                call(&pair.client, PORT).is_ok() && call(&pair.client, OPAQUE).is_ok()
            })?;
        }
        // Refused in words, and bytes by a reset.
        ensure!(plain(PORT).is_err(), "a plain call is taken");
        let mut socket = dial(&stranger, pair.server.at(Family::V4, PORT)?)?;
        socket.write_all(b"*1\r\n$4\r\nPING\r\n")?;
        let ended = socket.read(&mut [0; 16]);
        ensure!(
            ended
                .as_ref()
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
            "plain bytes ended in {ended:?}"
        );
        let metrics = pair.inbound.metrics()?;
        let plain = metrics.sum("portunus_requests_total", &[("direction", "inbound"), ("tls", "false")]);
        ensure!(plain >= 5.0, "{plain} plain calls are counted");
        let refused = metrics.sum("portunus_proxy_errors_total", &[("reason", "mtls_required")]);
        ensure!(refused >= 3.0, "{refused} refusals are counted");
        Ok(())
    });
}
