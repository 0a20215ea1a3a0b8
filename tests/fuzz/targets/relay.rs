//! A whole pair of connections and a relay between them, driven from both sides by a script: no byte may come out of
//! another stream than it went into, and nothing may stay behind.

#![no_main]

use std::sync::Arc;
use std::time::Instant;

use ends::{BUDGET, end, frames};
use libfuzzer_sys::fuzz_target;
use portunus_sidecar::http2::hpack::Name;
use portunus_sidecar::http2::{Connection, Event, Head, PREFACE, Reason, Settings, Shared, StreamKey};

fuzz_target!(|script: &[u8]| {
    let mut relay = Relay::new(script.first().copied().unwrap_or(0));
    relay.turn(true, PREFACE);
    let empty = frame(4, 0, 0, &[]);
    relay.turn(true, &empty);
    relay.turn(false, &empty);
    for step in script.chunks_exact(4).take(400) {
        relay.step([step[0], step[1], step[2], step[3]]);
    }
    relay.check();
    let Relay {
        down, up, mut shared, ..
    } = relay;
    let mut down = down;
    down.release(&mut shared);
    end(up, &mut shared);
});

struct Relay {
    down: Connection,
    up: Connection,
    shared: Shared,
    pairs: Vec<Pair>,
    now: Instant,
    over: bool,
}

struct Pair {
    /// The identifier below: the bytes of the request are this, those of the answer its complement.
    tag: u8,
    down: StreamKey,
    up: Option<StreamKey>,
    answered: bool,
}

impl Relay {
    fn new(first: u8) -> Relay {
        let now = Instant::now();
        let mut shared = Shared::new(BUDGET);
        let settings = Arc::new(Settings {
            first_stream_window: [1, 7, 100, 65_535][first as usize % 4],
            stream_window: [1, 100, 65_535, 256 << 10][first as usize / 4 % 4],
            ..Settings::default()
        });
        Relay {
            down: Connection::server(settings.clone(), true, now, &mut shared),
            up: Connection::client(settings, false, now, &mut shared),
            shared,
            pairs: Vec::new(),
            now,
            over: false,
        }
    }

    /// A step of the script: a frame of a player, or something that the relay itself does.
    fn step(&mut self, [what, stream, a, b]: [u8; 4]) {
        let below = what & 0x80 == 0;
        let flags = a & 0x2d;
        let n = usize::from(b) * if a & 0x80 == 0 { 1 } else { 60 };
        let id = u32::from(stream % 32);
        let number = (u32::from(a) << 8 | u32::from(b)).to_be_bytes();
        let bytes = match what & 0x0f {
            0..=2 => {
                let tag = if below { id as u8 } else { self.tag_above(id) };
                frame(0, flags & 0x9, id, &padded(flags, vec![tag; n]))
            }
            3 if below => frame(1, a & 1 | 4, id, &request(id)),
            3 => frame(
                1,
                a & 1 | 4,
                id,
                &literal(b":status", if a & 2 == 0 { b"200" } else { b"103" }),
            ),
            4 => frame(1, 5, id, &literal(b"x-end", &[b'0' + b % 10])),
            5 => frame(3, 0, id, &number),
            6 | 7 => frame(8, 0, id, &number),
            8 => frame(8, 0, 0, &number),
            9 => frame(4, a & 1, 0, &settings(a, number)),
            10 => frame(6, a & 1, 0, &[b; 8]),
            11 => frame(7, 0, 0, &[number, [0; 4]].concat()),
            12 => return self.written(below, n * 100),
            13 => return self.reset(stream, below),
            14 => return self.goaway(a),
            _ => frame(b, a, id, &vec![what; n % 50]),
        };
        self.turn(below, &bytes);
    }

    fn tag_above(&self, id: u32) -> u8 {
        let pair = (id as usize / 2).min(self.pairs.len().saturating_sub(1));
        self.pairs.get(pair).map_or(0, |pair| !pair.tag)
    }

    fn turn(&mut self, below: bool, mut input: &[u8]) {
        while !self.over {
            let conn = if below { &mut self.down } else { &mut self.up };
            match conn.receive(&mut input, &mut self.shared, self.now) {
                Ok(None) => break,
                Ok(Some(event)) if below => self.asked(event),
                Ok(Some(event)) => self.answered(event),
                Err(_) => self.over = true,
            }
        }
        for below in [true, false] {
            let mut moved = Vec::new();
            let conn = if below { &mut self.down } else { &mut self.up };
            conn.pump(&mut self.shared, &mut moved);
            for user in moved {
                self.refill(user as usize, !below);
            }
        }
    }

    fn asked(&mut self, event: Event<'_>) {
        match event {
            Event::Headers {
                key,
                head: Head::Request,
                end,
                ..
            } => {
                let path = self.shared.fields().value_of(Name::Path, &self.shared.interner);
                let tag = path.and_then(|path| path.get(1).copied()).unwrap_or(0) - b'0';
                let user = self.pairs.len() as u64;
                self.down.set_user(key, user);
                let up = self.up.open(user, false);
                self.pairs.push(Pair {
                    tag,
                    down: key,
                    up,
                    answered: false,
                });
                let fields = self.shared.take_fields(Box::default());
                match up {
                    Some(up) => self.up.send_headers(up, &fields, false, end, &mut self.shared),
                    None => {
                        // So that the n-th pair keeps the n-th identifier above.
                        self.pairs.pop();
                        self.down.reset(key, Reason::REFUSED_STREAM, &mut self.shared);
                    }
                }
                self.shared.take_fields(fields);
            }
            Event::Headers { user, .. } => {
                if let Some(up) = self.pairs[user as usize].up {
                    self.up.pass_on_trailers(up, &mut self.shared);
                }
            }
            Event::Data { user, bytes, end, .. } => {
                if let Some(up) = self.pairs[user as usize].up {
                    self.up.send_data(up, bytes, end, &mut self.shared);
                }
                self.refill(user as usize, true);
            }
            Event::Reset { user, reason, .. } => {
                if let Some(up) = self.pairs[user as usize].up.take() {
                    self.up.reset(up, reason, &mut self.shared);
                }
            }
            Event::Room { user } => self.refill(user as usize, false),
            Event::Settings { .. } | Event::Lowered => self.refill_all(),
            _ => {}
        }
    }

    fn answered(&mut self, event: Event<'_>) {
        match event {
            Event::Headers { user, head, end, .. } => {
                let pair = &mut self.pairs[user as usize];
                pair.answered |= end;
                let shared = &mut self.shared;
                match head {
                    Head::Trailers => self.down.pass_on_trailers(pair.down, shared),
                    Head::Informational(_) => self.down.pass_on_headers(pair.down, true, false, shared),
                    _ => self.down.pass_on_headers(pair.down, false, end, shared),
                }
                self.refill(user as usize, false);
            }
            Event::Data { user, bytes, end, .. } => {
                let pair = &mut self.pairs[user as usize];
                pair.answered |= end;
                self.down.send_data(pair.down, bytes, end, &mut self.shared);
                self.refill(user as usize, false);
            }
            Event::Reset { user, reason, .. } => self.gone_above(user as usize, reason),
            Event::Room { user } => self.refill(user as usize, true),
            Event::Settings { .. } | Event::Lowered => self.refill_all(),
            Event::GoAway { .. } => {
                for user in self.up.take_unprocessed(&mut self.shared) {
                    self.gone_above(user as usize, Reason::REFUSED_STREAM);
                }
            }
            _ => {}
        }
    }

    fn gone_above(&mut self, user: usize, reason: Reason) {
        let pair = &mut self.pairs[user];
        pair.up = None;
        if pair.answered {
            self.down.reset_after_end(pair.down, reason, &mut self.shared);
        } else {
            self.down.reset(pair.down, reason, &mut self.shared);
        }
    }

    fn refill_all(&mut self) {
        for user in 0..self.pairs.len() {
            self.refill(user, true);
            self.refill(user, false);
        }
    }

    fn refill(&mut self, user: usize, sender_below: bool) {
        let pair = &self.pairs[user];
        let Some(up) = pair.up else { return };
        let (sender, key, reader, to) = if sender_below {
            (&mut self.down, pair.down, &self.up, up)
        } else {
            (&mut self.up, up, &self.down, pair.down)
        };
        let (held, room) = (reader.held(to) as i64, reader.room(to));
        let Some(window) = sender.recv_window(key) else { return };
        let settings = sender.settings();
        let target = room
            .min(settings.stream_window.into())
            .max(settings.first_stream_window.into());
        let missing = target - window - held;
        if missing > 0 && missing >= target / 2 {
            sender.grant(key, missing as u32, &mut self.shared);
        }
    }

    /// The socket takes some of the output, frame by frame so that it can be looked at.
    fn written(&mut self, below: bool, n: usize) {
        self.check();
        let conn = if below { &mut self.down } else { &mut self.up };
        let mut whole = if conn.output().starts_with(PREFACE) { 24 } else { 0 };
        while let Some(header) = conn.output()[whole..].first_chunk::<3>() {
            let next = whole + 9 + u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            if next > n {
                break;
            }
            whole = next;
        }
        conn.written(whole, &mut self.shared);
    }

    fn reset(&mut self, which: u8, below: bool) {
        let Some(pair) = self.pairs.get_mut(which as usize) else {
            return;
        };
        if below {
            self.down.reset(pair.down, Reason::CANCEL, &mut self.shared);
        } else if let Some(up) = pair.up {
            self.up.reset(up, Reason::CANCEL, &mut self.shared);
        }
    }

    fn goaway(&mut self, a: u8) {
        match a % 4 {
            0 => self.down.begin_goaway(),
            1 => self.down.finish_goaway(),
            2 => self.up.begin_goaway(),
            _ => {}
        }
    }

    /// Every byte in the output belongs to its stream.
    fn check(&self) {
        for (kind, _, stream, payload) in frames(self.up.output()) {
            if kind == 0 {
                let tag = self.pairs[stream as usize / 2].tag;
                assert!(payload.iter().all(|byte| *byte == tag), "a foreign byte went up");
            }
        }
        for (kind, _, stream, payload) in frames(self.down.output()) {
            if kind == 0 {
                let tag = !(stream as u8);
                assert!(payload.iter().all(|byte| *byte == tag), "a foreign byte came down");
            }
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn padded(flags: u8, mut bytes: Vec<u8>) -> Vec<u8> {
    if flags & 0x8 != 0 {
        bytes.insert(0, 9);
        bytes.extend_from_slice(&[0; 9]);
    }
    bytes
}

fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat()
}

fn request(id: u32) -> Vec<u8> {
    [
        literal(b":method", b"POST"),
        literal(b":scheme", b"http"),
        literal(b":path", &[b'/', b'0' + id as u8]),
    ]
    .concat()
}

fn settings(which: u8, number: [u8; 4]) -> Vec<u8> {
    if which & 1 != 0 {
        return Vec::new();
    }
    let id = [4, 1, 3, 5][usize::from(which >> 1) % 4];
    [&[0, id][..], &number].concat()
}
