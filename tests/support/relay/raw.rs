//! A peer that speaks frames: it says what no library would, and sees what no library shows.

use std::net::SocketAddr;
use std::time::Duration;

use portunus_sidecar::http2::hpack::{Decoder, Fields, Interner, Limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The frame DATA.
pub const DATA: u8 = 0;
/// The frame HEADERS.
pub const HEADERS: u8 = 1;
/// The frame PRIORITY.
pub const PRIORITY: u8 = 2;
/// The frame RST_STREAM.
pub const RST_STREAM: u8 = 3;
/// The frame SETTINGS.
pub const SETTINGS: u8 = 4;
/// The frame PUSH_PROMISE.
pub const PUSH_PROMISE: u8 = 5;
/// The frame PING.
pub const PING: u8 = 6;
/// The frame GOAWAY.
pub const GOAWAY: u8 = 7;
/// The frame WINDOW_UPDATE.
pub const WINDOW_UPDATE: u8 = 8;
/// The frame CONTINUATION.
pub const CONTINUATION: u8 = 9;

/// The flag ACK.
pub const ACK: u8 = 1;
/// The flag END_STREAM.
pub const END_STREAM: u8 = 1;
/// The flag END_HEADERS.
pub const END_HEADERS: u8 = 4;
/// The flag PADDED.
pub const PADDED: u8 = 8;
/// The flag PRIORITIZED.
pub const PRIORITIZED: u8 = 32;

/// The first words of a client (RFC 9113, 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the other side may take for any answer, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the frame is.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 for the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A field of a header list as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Whether it came marked as never indexed.
    pub never_indexed: bool,
}

impl Frame {
    /// Whether a flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The number at the front of the payload: a reset's code, an increment, the last stream of a GOAWAY.
    pub fn number(&self) -> u32 {
        self.number_at(0)
    }

    /// The code of a GOAWAY.
    pub fn goaway_code(&self) -> u32 {
        self.number_at(4)
    }

    fn number_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The bytes of a SETTINGS frame.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// The bytes of a WINDOW_UPDATE frame.
pub fn update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// The bytes of a RST_STREAM frame.
pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

/// The bytes of a GOAWAY frame.
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A header block of literals that nobody indexes.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        literal(&mut out, 0x00, name.as_bytes(), value.as_bytes());
    }
    out
}

/// One literal: `first` is 0x00 (not indexed), 0x10 (never indexed) or 0x40 (indexed).
pub fn literal(out: &mut Vec<u8>, first: u8, name: &[u8], value: &[u8]) {
    out.push(first);
    for text in [name, value] {
        integer(out, text.len());
        out.extend_from_slice(text);
    }
}

fn integer(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        out.push(n as u8);
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push(n as u8 | 128);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A request's HEADERS as gRPC says them.
pub fn request(stream: u32, path: &str, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | end as u8, stream, &head(path, fields))
}

/// Its header block, and more fields behind the usual ones.
pub fn head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut all = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1:50051"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    all.extend_from_slice(more);
    block(&all)
}

/// A response's HEADERS as gRPC says them.
pub fn response(stream: u32) -> Vec<u8> {
    let fields = [(":status", "200"), ("content-type", "application/grpc")];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

/// Trailers that say that all is well.
pub fn trailers(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &block(&[("grpc-status", "0")]),
    )
}

/// One gRPC message in one DATA frame.
pub fn message(stream: u32, payload: &[u8], end: bool) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    bytes.extend_from_slice(payload);
    frame(DATA, end as u8, stream, &bytes)
}

/// A connection on which frames are said and seen.
pub struct Raw {
    socket: TcpStream,
    buffer: Vec<u8>,
    at: usize,
    decoder: Decoder,
    interner: Interner,
    block: Vec<u8>,
}

/// A server that says to each request's head what `answer` gives for its path and stream, and nothing else.
pub async fn serve(listener: TcpListener, answer: impl Fn(&str, u32) -> Vec<u8> + Clone + Send + Sync + 'static) {
    loop {
        let mut server = Raw::accept(&listener, &[]).await;
        let answer = answer.clone();
        tokio::spawn(async move {
            while let Some(event) = server.event().await {
                if event.kind == HEADERS {
                    let fields = server.fields(&event).await;
                    let answer = answer(text(&fields, ":path").unwrap_or_default(), event.stream);
                    server.send(&answer).await;
                }
            }
        });
    }
}

impl Raw {
    /// A client that has said its preface and SETTINGS.
    pub async fn client(addr: SocketAddr, values: &[(u16, u32)]) -> Raw {
        let mut raw = Raw::silent(addr).await;
        raw.send(&[PREFACE, &settings(values)].concat()).await;
        raw
    }

    /// A client whose kernel takes little that it has not read.
    pub async fn narrow(addr: SocketAddr, values: &[(u16, u32)]) -> Raw {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(8 << 10).expect("a small one");
        let mut raw = Raw::of(socket.connect(addr).await.expect("it listens"));
        raw.send(&[PREFACE, &settings(values)].concat()).await;
        raw
    }

    /// A client that has said nothing.
    pub async fn silent(addr: SocketAddr) -> Raw {
        Raw::of(TcpStream::connect(addr).await.expect("somebody listens"))
    }

    /// A server that has heard the preface and said its SETTINGS.
    pub async fn accept(listener: &TcpListener, values: &[(u16, u32)]) -> Raw {
        let taken = tokio::time::timeout(PATIENCE, listener.accept()).await;
        let (socket, _) = taken.expect("in time").expect("a connection");
        let mut raw = Raw::of(socket);
        raw.send(&settings(values)).await;
        raw.hear_preface().await;
        raw
    }

    /// A connection of which nothing was said yet.
    pub fn of(socket: TcpStream) -> Raw {
        socket.set_nodelay(true).expect("a TCP socket");
        Raw {
            socket,
            buffer: Vec::new(),
            at: 0,
            decoder: Decoder::new(4_096),
            interner: Interner::new(),
            block: Vec::new(),
        }
    }

    /// Reads the client's preface.
    pub async fn hear_preface(&mut self) {
        while self.buffer.len() < PREFACE.len() {
            assert!(self.fill().await, "a preface");
        }
        assert!(self.buffer.starts_with(PREFACE));
        self.at = PREFACE.len();
    }

    /// Says `bytes`. Whoever is not heard any more learns that by reading.
    pub async fn send(&mut self, bytes: &[u8]) {
        // A peer that has closed is seen when its last words are read.
        let _ = tokio::time::timeout(PATIENCE, self.socket.write_all(bytes))
            .await
            .expect("the other side reads");
    }

    /// Says as much of `bytes` as the other side takes within `patience`: whether that was all.
    pub async fn send_within(&mut self, bytes: &[u8], patience: Duration) -> bool {
        matches!(
            tokio::time::timeout(patience, self.socket.write_all(bytes)).await,
            Ok(Ok(()))
        )
    }

    /// The next frame; `None` once the other side has closed.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame that carries something, or ends something. SETTINGS and PING are answered on the way, updates passed
    /// over.
    pub async fn event(&mut self) -> Option<Frame> {
        loop {
            let next = self.next().await?;
            match next.kind {
                SETTINGS if !next.has(ACK) => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if !next.has(ACK) => self.send(&frame(PING, ACK, 0, &next.payload)).await,
                SETTINGS | PING | WINDOW_UPDATE => {}
                _ => return Some(next),
            }
        }
    }

    /// Waits until the other side's kernel has all that was said, whether it was read or not.
    pub async fn until_delivered(&self) {
        let port = |addr: std::io::Result<SocketAddr>| format!(":{:04X} ", addr.expect("it is connected").port());
        let (from, to) = (port(self.socket.local_addr()), port(self.socket.peer_addr()));
        loop {
            let sockets = std::fs::read_to_string("/proc/net/tcp").expect("Linux says it");
            let ours = sockets.lines().find(|line| {
                let at = line.find(&from);
                at.is_some_and(|at| at < 25 && line[at..].contains(&to))
            });
            let queue = ours.and_then(|line| line.split_whitespace().nth(4)?.split(':').next());
            if queue.is_none_or(|queue| queue == "00000000") {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the other side has granted so much on a stream, beyond its first window.
    pub async fn grants_at_least(&mut self, stream: u32, bytes: u32) {
        let mut granted = 0;
        while granted < bytes.saturating_sub(65_535) {
            let next = self.next().await.expect("the connection goes on");
            if (next.kind, next.stream) == (WINDOW_UPDATE, stream) {
                granted += next.number();
            }
        }
    }

    /// Waits until the other side has read all that was said: its answer to a PING says so.
    pub async fn until_read(&mut self) {
        self.send(&frame(PING, 0, 0, b"have you")).await;
        while !self.next().await.is_some_and(|next| next.kind == PING && next.has(ACK)) {}
    }

    /// The same, unless what was said last broke off in the middle of something.
    pub async fn until_settled_or(&mut self, said: &[u8]) {
        let broken_off = said.len() < 9 || (said[3] == HEADERS && said[4] & END_HEADERS == 0);
        if !broken_off && !said.is_empty() {
            self.until_read().await;
        }
    }

    /// Waits until both sides' SETTINGS were acknowledged.
    pub async fn until_settled(&mut self) {
        let (mut theirs, mut ours) = (false, false);
        while !(theirs && ours) {
            let next = self.next().await.expect("the connection goes on");
            if next.kind == SETTINGS && next.has(ACK) {
                ours = true;
            } else if next.kind == SETTINGS {
                self.send(&frame(SETTINGS, ACK, 0, &[])).await;
                theirs = true;
            }
        }
    }

    /// The next event that `wanted` says.
    ///
    /// # Panics
    /// When the connection ends before.
    pub async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let event = self.event().await.expect("the connection goes on");
            // Blocks have to be decoded in order, whoever wants them.
            if wanted(&event) {
                return event;
            }
            if event.kind == HEADERS {
                self.fields(&event).await;
            }
        }
    }

    /// Reads on until the other side closes; the last GOAWAY that it said.
    pub async fn until_closed(&mut self) -> Option<Frame> {
        let mut last = None;
        while let Some(event) = self.event().await {
            if event.kind == GOAWAY {
                last = Some(event);
            }
        }
        last
    }

    /// The fields of a HEADERS frame, with the CONTINUATION frames behind it.
    pub async fn fields(&mut self, headers: &Frame) -> Vec<Field> {
        self.block.clear();
        let skip = if headers.has(PRIORITIZED) { 5 } else { 0 };
        self.block.extend_from_slice(&headers.payload[skip..]);
        let mut ended = headers.has(END_HEADERS);
        while !ended {
            let more = self.next().await.expect("the rest of the block");
            assert_eq!(
                (more.kind, more.stream),
                (CONTINUATION, headers.stream),
                "nothing comes between the frames of a block"
            );
            self.block.extend_from_slice(&more.payload);
            ended = more.has(END_HEADERS);
        }
        let mut fields = Fields::new();
        let limits = Limits {
            list_bytes: 4 << 20,
            fields: 10_000,
        };
        self.decoder
            .decode(&self.block, &limits, &mut self.interner, &mut fields)
            .expect("a block that can be decoded");
        let list = fields
            .iter(&self.interner)
            .map(|field| Field {
                name: String::from_utf8_lossy(field.name_text).into_owned(),
                value: field.value.to_vec(),
                never_indexed: field.never_indexed,
            })
            .collect();
        fields.clear(&mut self.interner);
        list
    }

    /// Whether the other side closes within `patience`.
    pub async fn closes_within(&mut self, patience: Duration) -> bool {
        tokio::time::timeout(patience, async { while self.next().await.is_some() {} })
            .await
            .is_ok()
    }

    fn take(&mut self) -> Option<Frame> {
        let rest = &self.buffer[self.at..];
        let header = rest.first_chunk::<9>()?;
        let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let payload = rest.get(9..9 + len)?.to_vec();
        let frame = Frame {
            kind: header[3],
            flags: header[4],
            stream: u32::from_be_bytes([header[5], header[6], header[7], header[8]]),
            payload,
        };
        self.at += 9 + len;
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        Some(frame)
    }

    async fn fill(&mut self) -> bool {
        if self.at > 0 {
            self.buffer.drain(..self.at);
            self.at = 0;
        }
        let read = tokio::time::timeout(PATIENCE, self.socket.read_buf(&mut self.buffer)).await;
        matches!(read.expect("the other side says something"), Ok(n) if n > 0)
    }
}

/// The text of a field, if it is there once.
pub fn text<'a>(fields: &'a [Field], name: &str) -> Option<&'a str> {
    let field = fields.iter().find(|field| field.name == name)?;
    std::str::from_utf8(&field.value).ok()
}
