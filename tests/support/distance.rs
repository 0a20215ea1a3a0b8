//! A long path: bytes arrive in order, each a while after it was sent, and no faster than the path carries them. The
//! kernel has no netem.
//!
//! Connections end here and begin anew, so neither side's TCP knows how far the other is: what it sends is acknowledged
//! at once. Whoever waits for the other side itself sees all of the delay. Raw TCP, which does not wait, therefore
//! carries what the path carries, and is the measure of anything else.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

/// What a path is like, in each direction of each connection.
#[derive(Debug, Clone, Copy)]
pub struct Path {
    /// How long every byte is under way, at least.
    pub delay: Duration,
    /// Bytes that enter it in a second, at most.
    pub rate: u64,
}

/// A place from which another is as far as the path is long; gone when it drops, with all connections through it.
#[derive(Debug)]
pub struct Distance {
    address: SocketAddr,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

impl Distance {
    /// Leads every connection to `listen` on to `to`, in the network of the calling thread.
    pub fn start(listen: SocketAddr, to: SocketAddr, path: Path) -> io::Result<Distance> {
        let socket = socket_for(listen)?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(128)?;
        let listener = TcpListener::from(socket);
        let accepted = listener.try_clone()?;
        Ok(Distance {
            address: listener.local_addr()?,
            listener,
            accepting: Some(thread::spawn(move || accept(&accepted, to, path))),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        // On Linux this wakes whoever waits in `accept`.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Takes connections until the listener is shut down; then ends those that are left, and waits for them.
fn accept(listener: &TcpListener, to: SocketAddr, path: Path) {
    let mut open = Vec::new();
    thread::scope(|scope| {
        while let Ok((from, _)) = listener.accept() {
            // A caller whose destination refuses finds the connection closed.
            let Ok(ends) = connect(from, to) else { continue };
            open.extend(ends.iter().filter_map(|end| end.try_clone().ok()));
            let [from, to] = ends;
            let Ok(back) = from.try_clone().and_then(|from| Ok((to.try_clone()?, from))) else {
                continue;
            };
            for (from, to) in [(from, to), back] {
                let (departed, under_way) = sync_channel(PIECES_UNDER_WAY);
                let source = from.try_clone();
                scope.spawn(move || depart(&from, &departed, path));
                scope.spawn(move || {
                    arrive(&to, &under_way);
                    // Whoever cannot be delivered to is not read from any more.
                    let _ = source.map(|source| source.shutdown(Shutdown::Read));
                });
            }
        }
        for end in open {
            let _ = end.shutdown(Shutdown::Both);
        }
    });
}

/// Both ends of a connection.
fn connect(from: TcpStream, to: SocketAddr) -> io::Result<[TcpStream; 2]> {
    let onward = socket_for(to)?;
    onward.connect(&to.into())?;
    let ends = [from, TcpStream::from(onward)];
    for end in &ends {
        end.set_nodelay(true)?;
    }
    Ok(ends)
}

/// A socket with little room for what has come: what the path does not take yet waits at its sender, as it would before
/// a router.
fn socket_for(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    Ok(socket)
}

/// A piece of the stream and when it is due; an empty one is the end.
type Piece = (Instant, Vec<u8>);

/// Lets bytes enter the path as fast as it carries them.
fn depart(mut from: &TcpStream, under_way: &SyncSender<Piece>, path: Path) {
    let mut buffer = vec![0; PIECE];
    // When the path is free for the next piece.
    let mut free = Instant::now();
    loop {
        sleep_until(free);
        let read = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.unwrap_or(0),
        };
        let now = Instant::now();
        // A path has no sleep to wake up from late: what is lost of it is made up for.
        free = free.max(now - OVERSLEPT) + Duration::from_secs_f64(read as f64 / path.rate as f64);
        let due = free.max(now) + path.delay;
        if under_way.send((due, buffer[..read].to_vec())).is_err() || read == 0 {
            return;
        }
    }
}

/// Hands over what has been under way long enough.
fn arrive(mut to: &TcpStream, under_way: &Receiver<Piece>) {
    for (due, bytes) in under_way {
        sleep_until(due);
        if bytes.is_empty() {
            let _ = to.shutdown(Shutdown::Write);
            return;
        }
        if to.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn sleep_until(time: Instant) {
    let left = time.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        thread::sleep(left);
    }
}

/// Bytes that enter the path at once.
const PIECE: usize = 32 << 10;
/// Pieces between departure and arrival: more than any path of these tests holds, so that only a receiver that does not
/// read stops a sender.
const PIECES_UNDER_WAY: usize = 1_024;
const RECEIVE_BUFFER: usize = 256 << 10;
/// The most that a thread's late waking up takes away from the path's rate before it counts.
const OVERSLEPT: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use anyhow::{Context, Result, ensure};

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn a_byte_takes_the_delay_each_way() -> Result<()> {
        let (_distance, mut near, mut far) = pair(Path {
            delay: Duration::from_millis(10),
            rate: 100_000_000,
        })?;
        let mut took = Vec::new();
        // One of many is not held up by the machine.
        while took.len() < 500 && took.iter().all(|took| *took >= Duration::from_millis(25)) {
            let mut byte = [7];
            let began = Instant::now();
            near.write_all(&byte)?;
            far.read_exact(&mut byte)?;
            far.write_all(&byte)?;
            near.read_exact(&mut byte)?;
            took.push(began.elapsed());
        }
        let shortest = *took.iter().min().context("it was asked")?;
        ensure!(shortest >= Duration::from_millis(20), "{shortest:?} is too short");
        ensure!(shortest < Duration::from_millis(25), "{shortest:?} is too long");
        Ok(())
    }

    #[test]
    fn bytes_arrive_in_order_at_the_rate_of_the_path_and_then_their_end() -> Result<()> {
        let (_distance, mut near, mut far) = pair(Path {
            delay: Duration::from_millis(10),
            rate: 50_000_000,
        })?;
        let sent: Vec<u8> = (0..10_000_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let began = Instant::now();
        let received = thread::scope(|scope| -> Result<_> {
            scope.spawn(|| near.write_all(&sent).and_then(|()| near.shutdown(Shutdown::Write)));
            let mut received = Vec::new();
            far.read_to_end(&mut received)?;
            Ok(received)
        })?;
        let took = began.elapsed();
        ensure!(received == sent, "the bytes are others");
        // 200 ms, and 10 ms for the way, less what a late waking up makes up for.
        ensure!(took >= Duration::from_millis(205), "{took:?} is too short");
        Ok(())
    }

    #[test]
    fn connections_end_with_it() -> Result<()> {
        let (distance, mut near, mut far) = pair(Path {
            delay: Duration::from_secs(5),
            rate: 100_000_000,
        })?;
        near.write_all(b"too late")?;
        drop(distance);
        for end in [&mut near, &mut far] {
            let read = end.read(&mut [0]);
            ensure!(!matches!(read, Ok(1..)), "something came");
        }
        Ok(())
    }

    /// Both ends of a connection over a path.
    fn pair(path: Path) -> Result<(Distance, TcpStream, TcpStream)> {
        let listener = TcpListener::bind(ANY)?;
        let distance = Distance::start(ANY, listener.local_addr()?, path)?;
        let near = TcpStream::connect(distance.address())?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(Duration::from_secs(20)))?;
        }
        Ok((distance, near, far))
    }
}
