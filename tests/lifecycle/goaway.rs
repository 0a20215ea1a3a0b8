//! How a connection is ended politely, frame by frame.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use support::{Family, Peer, Stack, in_netns};

#[test]
fn sigterm_says_goaway_in_two_steps_and_what_runs_ends_well() {
    support::test(|mesh| {
        let (pod, caller) = (mesh.pod("greeter")?, mesh.pod("caller")?);
        let mut sidecar = pod.sidecar()?;
        let _app = Peer::greeter(&pod, Stack::Tonic, 50051, Duration::from_secs(2))?;
        let address = pod.at(Family::V4, 50051)?;
        let socket = in_netns(&caller, || TcpStream::connect(address))??;
        let mut wire = Wire::open(socket)?;
        wire.call(1)?;
        // An answer to a PING proves that the call before it was taken in.
        wire.send(PING, 0, 0, b"taken in")?;
        loop {
            let frame = wire.next()?.context("the connection ended before the signal")?;
            if frame.kind == PING && frame.flags & ACK != 0 {
                break;
            }
            wire.acknowledge(&frame)?;
        }
        sidecar.signal(Signal::SIGTERM)?;

        let first = wire.until(GOAWAY)?;
        ensure!(
            first.goaway() == (u32::MAX >> 1, 0),
            "the first GOAWAY says {:?}",
            first.goaway()
        );
        let probe = wire.until(PING)?;
        // Begun before the caller can have heard of the end: it is served as well.
        wire.call(3)?;
        wire.acknowledge(&probe)?;
        let second = wire.until(GOAWAY)?;
        ensure!(
            second.goaway() == (3, 0),
            "the second GOAWAY says {:?}",
            second.goaway()
        );

        let mut ended = Vec::new();
        while let Some(frame) = wire.next()? {
            ensure!(frame.kind != RST_STREAM, "stream {} was reset", frame.stream);
            if frame.flags & END_STREAM != 0 && matches!(frame.kind, HEADERS | DATA) {
                ended.push(frame.stream);
            }
        }
        ended.sort_unstable();
        ensure!(ended == [1, 3], "of streams 1 and 3 there ended {ended:?}");
        let status = sidecar.wait(Duration::from_secs(10))?;
        ensure!(
            status.success() && sidecar.output().contains("nothing was cut"),
            "the sidecar ended with {status}:\n{}",
            sidecar.output()
        );
        Ok(())
    });
}

#[test]
fn an_application_that_merely_idles_is_asked_to_close_before_the_grace_period_ends() {
    support::test(|mesh| {
        let (pod, server) = (mesh.pod("caller")?, mesh.pod("greeter")?);
        let mut sidecar = pod.sidecar_with(&[("PORTUNUS_SHUTDOWN_GRACE_PERIOD", "5s")])?;
        let _app = Peer::greeter(&server, Stack::Tonic, 50051, Duration::ZERO)?;
        let address = server.at(Family::V6, 50051)?;
        let mut wire = Wire::open(in_netns(&pod, || TcpStream::connect(address))??)?;
        wire.call(1)?;
        loop {
            let frame = wire.next()?.context("the connection ended before the answer")?;
            wire.acknowledge(&frame)?;
            if frame.stream == 1 && frame.flags & END_STREAM != 0 && frame.kind == HEADERS {
                break;
            }
        }
        sidecar.signal(Signal::SIGTERM)?;
        let began = Instant::now();
        wire.until(GOAWAY)?;
        ensure!(
            began.elapsed() > Duration::from_secs(3),
            "outbound was told to close {:?} after the signal, while the application may still call",
            began.elapsed()
        );
        while let Some(frame) = wire.next()? {
            wire.acknowledge(&frame)?;
        }
        let status = sidecar.wait(Duration::from_secs(5))?;
        ensure!(
            status.success() && sidecar.output().contains("nothing was cut"),
            "the sidecar ended with {status}:\n{}",
            sidecar.output()
        );
        Ok(())
    });
}

/// A connection whose frames are seen.
struct Wire(TcpStream);

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Wire {
    fn open(socket: TcpStream) -> Result<Wire> {
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut wire = Wire(socket);
        wire.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
        wire.send(SETTINGS, 0, 0, &[])?;
        Ok(wire)
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        self.0.write_all(&[&head, payload].concat())?;
        Ok(())
    }

    /// An empty request to the greeter, its header fields as literals (RFC 7541, 6.2.2).
    fn call(&mut self, stream: u32) -> Result<()> {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/helloworld.Greeter/SayHello"),
            (":authority", "greeter"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let mut block = Vec::new();
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len())?);
                block.extend(text.as_bytes());
            }
        }
        self.send(HEADERS, END_HEADERS, stream, &block)?;
        self.send(DATA, END_STREAM, stream, &[0; 5])
    }

    /// SETTINGS and PING are answered as the protocol wants it.
    fn acknowledge(&mut self, frame: &Frame) -> Result<()> {
        match (frame.kind, frame.flags & ACK) {
            (SETTINGS, 0) => self.send(SETTINGS, ACK, 0, &[]),
            (PING, 0) => self.send(PING, ACK, 0, &frame.payload),
            _ => Ok(()),
        }
    }

    /// The next frame of a kind that is no acknowledgement.
    fn until(&mut self, kind: u8) -> Result<Frame> {
        loop {
            let frame = self
                .next()?
                .with_context(|| format!("the connection ended before a frame of type {kind}"))?;
            if frame.kind == RST_STREAM {
                bail!("stream {} was reset", frame.stream);
            }
            if frame.kind == kind && (kind == GOAWAY || frame.flags & ACK == 0) {
                return Ok(frame);
            }
            self.acknowledge(&frame)?;
        }
    }

    /// The next frame, or nothing when the connection has been closed.
    fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.0.read_exact(&mut head) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error).context("the next frame"),
        }
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload)?;
        Ok(Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        }))
    }
}

impl Frame {
    /// The last stream and the reason that a GOAWAY names.
    fn goaway(&self) -> (u32, u32) {
        let number = |at: usize| {
            let bytes = self.payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(u32::MAX, u32::from_be_bytes)
        };
        (number(0), number(4))
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
