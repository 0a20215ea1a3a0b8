//! HTTP/1 from the network is parsed before the application hears it: a caller cannot say who it is, in no way at all.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use support::{Family, Mesh, Pod, Program, Sidecar, User, wait_until};

use crate::listens;
use crate::wire::{PORT, dial};

/// An application of HTTP/1 behind its sidecar, and a stranger without one.
struct Scene {
    stranger: Pod,
    server: Pod,
    inbound: Sidecar,
    _app: Program,
}

impl Scene {
    fn new(mesh: &Mesh) -> Result<Scene> {
        let (stranger, server) = (mesh.pod("stranger")?, mesh.pod("server")?);
        let inbound = server.sidecar()?;
        let script = server.folder().join("http1_server.py");
        fs::write(&script, include_str!("../apps/python/http1_server.py"))?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o644))?;
        let mut command = server.command(User::App, "/usr/bin/python3");
        command.arg(&script).arg(PORT.to_string());
        let app = server.start("http1-server", command)?;
        wait_until(Duration::from_secs(10), "the server listens", || listens(&server, PORT))?;
        Ok(Scene {
            stranger,
            server,
            inbound,
            _app: app,
        })
    }

    fn connect(&self) -> Result<TcpStream> {
        dial(&self.stranger, self.server.at(Family::V4, PORT)?)
    }

    /// Says all of it, ends its half, and hears all that is answered. A reset ends the answer too.
    fn said(&self, pieces: &[&[u8]]) -> Result<String> {
        self.said_on(self.connect()?, pieces)
    }

    fn said_on(&self, mut socket: TcpStream, pieces: &[&[u8]]) -> Result<String> {
        socket.set_nodelay(true)?;
        let mut answer = Vec::new();
        for (place, piece) in pieces.iter().enumerate() {
            let before = self.detected()?;
            if socket.write_all(piece).is_err() {
                break;
            }
            if place == 0 && pieces.len() > 1 {
                // A piece that came alone was judged alone.
                wait_until(Duration::from_secs(20), "the first piece is judged", || {
                    self.detected().is_ok_and(|now| now > before)
                })?;
            }
        }
        let _ = socket.shutdown(Shutdown::Write);
        let mut some = [0; 4096];
        while let Ok(n @ 1..) = socket.read(&mut some) {
            answer.extend_from_slice(&some[..n]);
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn detected(&self) -> Result<f64> {
        Ok(self
            .inbound
            .metrics()?
            .sum("portunus_detected_total", &[("direction", "inbound")]))
    }

    fn curl(&self, arguments: &[&str], path: &str) -> Result<String> {
        let address = self.server.at(Family::V4, PORT)?;
        let mut command = self.stranger.command(User::App, "curl");
        command.args(["-sS", "--max-time", "60"]).args(arguments);
        command.arg(format!("http://{address}{path}"));
        self.stranger.run("curl", command)
    }
}

#[test]
fn no_caller_says_in_http_1_who_it_is() {
    support::test(|mesh| {
        let scene = Scene::new(mesh)?;
        let f = "URI=spiffe://cluster.local/ns/forged/sa/forged";
        let get = |line: &str, fields: &str| format!("{line}\r\nHost: a\r\n{fields}\r\n\r\n").into_bytes();
        let usual = "GET / HTTP/1.1";
        let post = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked";
        let spoofs: Vec<Vec<u8>> = vec![
            get(usual, &format!("x-forwarded-client-cert: {f}")),
            get(usual, &format!("X-Forwarded-Client-Cert: {f}")),
            get(usual, &format!("X-FORWARDED-CLIENT-CERT:{f}")),
            get(
                usual,
                &format!("x-forwarded-client-cert: {f}\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                usual,
                &format!("x-forwarded-client-cert: a,{f}\r\nX-forwarded-Client-cert: {f}"),
            ),
            get(usual, &format!("X_FORWARDED_CLIENT_CERT: {f}")),
            get(usual, &format!("x-forwarded_client-cert: {f}")),
            get(usual, &format!("x.forwarded.client.cert: {f}")),
            get(usual, &format!("x-forwarded-client-cert : {f}")),
            get(usual, &format!("x-forwarded-client-cert\t: {f}")),
            get(usual, &format!(" x-forwarded-client-cert: {f}")),
            get(usual, &format!("a: b\r\n x-forwarded-client-cert: {f}")),
            get(usual, &format!("a: b\r\n\tx: y\r\nx-forwarded-client-cert: {f}")),
            get(usual, &format!("a: b\nx-forwarded-client-cert: {f}")),
            get(usual, &format!("a: b\rx-forwarded-client-cert: {f}")),
            get(usual, &format!("a: b\0\r\nx-forwarded-client-cert: {f}")),
            get(usual, &format!("x-forwarded-client-cert\0: {f}")),
            get(usual, &format!("x-forwarded-client-cert:\r\n {f}")),
            get(
                usual,
                &format!("Connection: x-forwarded-client-cert\r\nx-forwarded-client-cert: {f}"),
            ),
            get("GET / HTTP/1.0", &format!("x-forwarded-client-cert: {f}")),
            get("GET http://a/ HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("\r\n\r\nGET / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("\nGET / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("BREW / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("!GET / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("1GET / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("GET\t/ HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("GET  / HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("GET nowhere HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get("OPTIONS * HTTP/1.1", &format!("x-forwarded-client-cert: {f}")),
            get(
                "CONNECT a:80 HTTP/1.1",
                &format!("\r\nGET / HTTP/1.1\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                usual,
                &format!("\r\nGET /2 HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                usual,
                &format!("Content-Length: 0\r\n\r\nBREW /2 HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: {f}"),
            ),
            get(post, &format!("\r\n0\r\nx-forwarded-client-cert: {f}")),
            get(
                post,
                &format!("Trailer: x-forwarded-client-cert\r\n\r\n1\r\na\r\n0\r\nX-Forwarded-Client-Cert: {f}"),
            ),
            get(post, &format!("\r\n1;a=\"\r\nx-forwarded-client-cert: {f}\"\r\na\r\n0")),
            get(
                post,
                &format!(
                    "Content-Length: 5\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nx-forwarded-client-cert: {f}"
                ),
            ),
            get(
                "POST / HTTP/1.1\r\nContent-Length: 6\r\nContent-Length: 5",
                &format!("\r\nabcdeGET /2 HTTP/1.1\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked",
                &format!("\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                "POST / HTTP/1.1\r\nTransfer-Encoding : chunked",
                &format!("\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nx-forwarded-client-cert: {f}"),
            ),
            get(
                usual,
                &format!(
                    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nx-forwarded-client-cert: {f}"
                ),
            ),
        ];
        let mut answered = 0;
        for spoof in &spoofs {
            let shown = String::from_utf8_lossy(spoof).into_owned();
            let answer = scene.said(&[spoof])?;
            ensure!(identities_are_empty(&answer), "{shown:?} was believed: {answer}");
            answered += usize::from(answer.contains("\"identities\": []"));
        }
        ensure!(
            answered >= 15,
            "only {answered} of {} reached the application",
            spoofs.len()
        );

        // The pod's own connections meet no inbound door.
        for spoof in &spoofs {
            let socket = dial(&scene.server, scene.server.at(Family::V4, PORT)?)?;
            let answer = scene.said_on(socket, &[spoof])?;
            let shown = String::from_utf8_lossy(spoof);
            ensure!(
                identities_are_empty(&answer),
                "the pod's own {shown:?} was believed: {answer}"
            );
        }

        // The first line in pieces: what detection cannot know at once.
        let fields = format!("Host: a\r\nx-forwarded-client-cert: {f}\r\n\r\n");
        for pieces in [
            ["\r\n", "GET / HTTP/1.1\r\n"],
            ["BRE", "W / HTTP/1.1\r\n"],
            ["GET nowh", "ere HTTP/1.1\r\n"],
        ] {
            let answer = scene.said(&[pieces[0].as_bytes(), pieces[1].as_bytes(), fields.as_bytes()])?;
            ensure!(identities_are_empty(&answer), "{pieces:?} were believed: {answer}");
        }
        let hidden = scene
            .inbound
            .metrics()?
            .sum("portunus_proxy_errors_total", &[("reason", "hidden_request")]);
        ensure!(hidden >= 1.0, "none of the requests in pieces is counted");
        Ok(())
    });
}

/// No request of an answer was heard with an identity.
fn identities_are_empty(answer: &str) -> bool {
    answer.matches("\"identities\": [").count() == answer.matches("\"identities\": []").count()
}

#[test]
fn what_http_1_does_it_still_does() {
    support::test(|mesh| {
        let scene = Scene::new(mesh)?;
        let folder = scene.stranger.folder().to_path_buf();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;

        // Two requests, one connection at either side.
        let address = scene.server.at(Family::V4, PORT)?;
        let both = scene.curl(&["-v", "--stderr", "-", &format!("http://{address}/a")], "/b")?;
        let ports: Vec<&str> = both
            .split("\"port\": ")
            .skip(1)
            .filter_map(|rest| rest.split('}').next())
            .collect();
        ensure!(
            ports.len() == 2 && ports[0] == ports[1],
            "the connections were {ports:?}: {both}"
        );
        ensure!(
            both.contains("Re-using existing connection"),
            "curl's was not kept: {both}"
        );

        // curl's own h2c upgrade is answered in HTTP/1.1.
        let heard = scene.curl(&["--http2", "-w", "%{http_version}"], "/other")?;
        ensure!(heard.ends_with("1.1"), "h2c was spoken: {heard}");
        ensure!(
            !heard.to_lowercase().contains("h2c\"") && !heard.contains("HTTP2-Settings"),
            "it was offered: {heard}"
        );

        ensure!(scene.curl(&["-I"], "/head")?.starts_with("HTTP/1.1 200"), "HEAD");
        for status in ["204", "304"] {
            let code = scene.curl(&["-w", "%{http_code}"], &format!("/status/{status}"))?;
            ensure!(code == status, "{status} came as {code}");
        }

        // Much, both ways, whole; chunked, with a length, and after 100 (Continue).
        let large: Vec<u8> = (0..32_000_000_u32).map(|i| ((i * 31) >> 5) as u8).collect();
        let file = folder.join("large");
        fs::write(&file, &large)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
        let sum = scene
            .stranger
            .command(User::App, "sha256sum")
            .arg(&file)
            .output()?
            .stdout;
        let sum = String::from_utf8_lossy(&sum)
            .split(' ')
            .next()
            .context("a sum")?
            .to_owned();
        let at = format!("@{}", file.display());
        for more in ["x-none: 1", "Transfer-Encoding: chunked", "Expect: 100-continue"] {
            let heard = scene.curl(&["--data-binary", &at, "-H", more], "/up")?;
            ensure!(
                heard.contains(&sum) && heard.contains("\"size\": 32000000"),
                "{more}: {heard}"
            );
        }
        let down = folder.join("down");
        scene.curl(&["-o", &down.display().to_string()], "/bytes/32000000")?;
        let down = fs::read(&down)?;
        let whole = down.len() == 32_000_000 && down.iter().enumerate().all(|(at, byte)| *byte == (at % 256) as u8);
        ensure!(whole, "{} bytes came down, or others", down.len());

        // A caller that ends its half is answered.
        let answer = scene.said(&[b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n"])?;
        ensure!(answer.contains("\"path\": \"/half\""), "after a half-close: {answer}");

        // Counted as a tunnel is.
        wait_until(Duration::from_secs(5), "the bytes are counted", || {
            scene.inbound.metrics().is_ok_and(|metrics| {
                metrics.sum("portunus_tunnel_bytes_total", &[("direction", "inbound")]) > 4.0 * 32_000_000.0
            })
        })
    });
}

#[test]
fn a_websocket_echoes_through_the_sidecar() {
    support::test(|mesh| {
        let scene = Scene::new(mesh)?;
        let mut socket = scene.connect()?;
        socket.write_all(
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head);
        ensure!(head.starts_with("HTTP/1.1 101"), "no switch: {head}");
        ensure!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "another's key: {head}");
        for length in [1_usize, 100, 1_000, 60_000] {
            let payload: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
            let (long, size) = match length {
                0..126 => (vec![0x80 | length as u8], vec![length as u8]),
                _ => {
                    let size = (length as u16).to_be_bytes();
                    ([&[0x80 | 126], &size[..]].concat(), [&[126], &size[..]].concat())
                }
            };
            // With a mask of zeros the payload is its own.
            socket.write_all(&[&[0x82], &long[..], &[0; 4], &payload[..]].concat())?;
            let mut echo = vec![0; 1 + size.len() + length];
            socket.read_exact(&mut echo)?;
            ensure!(
                echo == [&[0x82], &size[..], &payload[..]].concat(),
                "the echo of {length} bytes is another"
            );
        }
        Ok(())
    });
}

#[test]
fn nobody_at_the_port_is_said_in_http() {
    support::test(|mesh| {
        let scene = Scene::new(mesh)?;
        let mut socket = dial(&scene.stranger, scene.server.at(Family::V4, PORT + 1)?)?;
        socket.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "there came {answer}");
        ensure!(
            answer.contains("portunus-error: unreachable\r\n"),
            "without its reason: {answer}"
        );
        // It is counted once the connection is over, and the caller has a moment to read what was said last.
        drop(socket);
        wait_until(Duration::from_secs(5), "the refusal is counted", || {
            scene
                .inbound
                .metrics()
                .is_ok_and(|metrics| metrics.sum("portunus_proxy_errors_total", &[("reason", "unreachable")]) == 1.0)
        })
    });
}
