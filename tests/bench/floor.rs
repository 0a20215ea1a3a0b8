//! The floor: bytes copied from one TCP connection to another by one thread, with no idea of what they mean.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr},
};

use anyhow::{Context, Result};
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};

/// Copies for every connection to `listen` to and from a connection of its own to `to`. Ends with the process.
pub(crate) fn run(listen: SocketAddr, to: SocketAddr) -> Result<()> {
    let mut poll = Poll::new().context("cannot make an epoll instance")?;
    let mut listener = TcpListener::bind(listen).with_context(|| format!("cannot listen on {listen}"))?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1_024);
    let mut buffer = vec![0; 64 << 10];
    let mut pairs: HashMap<usize, Pair> = HashMap::new();
    let mut next = 0;
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Some(pair) = accept(&listener, to)? {
                    let mut pair = pair;
                    for (side, end) in pair.ends.iter_mut().enumerate() {
                        let interest = Interest::READABLE | Interest::WRITABLE;
                        poll.registry()
                            .register(&mut end.socket, Token(2 * next + side), interest)?;
                    }
                    pairs.insert(next, pair);
                    next += 1;
                }
                continue;
            }
            let (number, side) = (event.token().0 / 2, event.token().0 % 2);
            let Some(pair) = pairs.get_mut(&number) else { continue };
            if pair
                .step(
                    side,
                    event.is_readable() || event.is_read_closed(),
                    event.is_writable(),
                    &mut buffer,
                )
                .is_err()
            {
                pairs.remove(&number);
            }
        }
    }
}

const LISTENER: Token = Token(usize::MAX);

fn accept(listener: &TcpListener, to: SocketAddr) -> Result<Option<Pair>> {
    let from = match listener.accept() {
        Ok((socket, _)) => socket,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error).context("cannot accept"),
    };
    let onward = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    from.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    let ends = [from, onward].map(|socket| End {
        socket,
        readable: false,
        unwritten: Vec::new(),
        connected: false,
    });
    let mut pair = Pair { ends };
    pair.ends[0].connected = true;
    Ok(Some(pair))
}

struct Pair {
    ends: [End; 2],
}

struct End {
    socket: TcpStream,
    /// There may be bytes that were not read, since the other end did not take more.
    readable: bool,
    /// Bytes for this end that its socket did not take.
    unwritten: Vec<u8>,
    connected: bool,
}

impl Pair {
    /// Copies what can be copied; an error or the end of either side ends both.
    fn step(&mut self, side: usize, readable: bool, writable: bool, buffer: &mut [u8]) -> io::Result<()> {
        self.ends[side].readable |= readable;
        if writable {
            self.ends[side].connected = true;
            if !self.ends[side].unwritten.is_empty() {
                let unwritten = std::mem::take(&mut self.ends[side].unwritten);
                self.ends[side].write(&unwritten)?;
            }
        }
        for from in [side, 1 - side] {
            self.copy(from, buffer)?;
        }
        Ok(())
    }

    fn copy(&mut self, from: usize, buffer: &mut [u8]) -> io::Result<()> {
        while self.ends[from].readable && self.ends[1 - from].unwritten.is_empty() && self.ends[1 - from].connected {
            let read = match self.ends[from].socket.read(buffer) {
                Ok(0) => {
                    let _ = self.ends[1 - from].socket.shutdown(Shutdown::Both);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            // A short read means that there is no more; the next bytes raise an event of their own.
            self.ends[from].readable = read == buffer.len();
            if read > 0 {
                self.ends[1 - from].write(&buffer[..read])?;
            }
        }
        Ok(())
    }
}

impl End {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(wrote) => bytes = &bytes[wrote..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unwritten = bytes.to_vec();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
