//! The connections that this process has dialled: one of them that arrives at its own listener is a loop.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;
use socket2::Socket;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// What all workers have dialled and not closed. It is asked when a connection begins or ends, never for an RPC.
#[derive(Debug, Default)]
pub struct Dialled {
    open: Mutex<Open>,
    looped: Notify,
}

#[derive(Debug, Default)]
struct Open {
    ways: HashMap<Way, Entry>,
    /// How many there have been.
    begun: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    since: Instant,
    has_looped: bool,
}

/// One that comes back does so at once. Later it is another's, which the kernel has given the same port here: it changes the
/// ports of connections that the rules lead to one place from one port.
const COMES_BACK_WITHIN: Duration = Duration::from_secs(3);

/// Where a connection comes from and where it was to go, in one form for IPv4. The address that it comes from is not
/// enough: the kernel gives the same one to connections that go elsewhere, the application's too. No two that are open
/// have both alike.
type Way = (SocketAddr, SocketAddr);

/// One of them, until this is dropped.
#[derive(Debug)]
pub struct Mine {
    of: Arc<Dialled>,
    way: Way,
    number: u64,
}

/// The rules of redirection do not leave this proxy alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the redirect rules lead this proxy's own connections back to it: it runs as user {uid}, and the rules exempt another. \
     Run it as the user of the rules (2102 by default){}, and start it again", self.or_else()
)]
pub struct Loop {
    uid: u32,
}

impl Dialled {
    /// Begins to connect: it is known here before the first packet can arrive anywhere.
    ///
    /// # Errors
    /// What the kernel says at once. What it says later is for whoever waits until the socket can be written.
    pub(crate) fn connect(self: &Arc<Self>, socket: Socket, to: SocketAddr) -> io::Result<(TcpStream, Mine)> {
        socket.set_nonblocking(true)?;
        let mine = {
            // Held over the kernel's work: on loopback the other end may accept before connect(2) returns.
            let mut open = self.open.lock();
            match socket.connect(&to.into()) {
                Ok(()) => {}
                Err(under_way) if under_way.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
                Err(error) => return Err(error),
            }
            let from = socket.local_addr()?.as_socket();
            let way = way(from.ok_or(io::ErrorKind::AddrNotAvailable)?, to);
            open.begun += 1;
            let number = open.begun;
            let entry = Entry {
                number,
                since: Instant::now(),
                has_looped: false,
            };
            open.ways.insert(way, entry);
            Mine {
                of: self.clone(),
                way,
                number,
            }
        };
        Ok((TcpStream::from_std(socket.into())?, mine))
    }

    /// Whether a connection that arrived here is one of these. Whoever dialled it learns that ([`Mine::has_looped`]), and
    /// so does who waits for the first ([`Dialled::looped`]).
    pub fn takes_back(&self, from: SocketAddr, to: SocketAddr) -> bool {
        match self.open.lock().ways.get_mut(&way(from, to)) {
            Some(entry) if entry.since.elapsed() < COMES_BACK_WITHIN => entry.has_looped = true,
            Some(_) | None => return false,
        }
        self.looped.notify_one();
        true
    }

    /// Waits until a connection has come back since this was asked last. For one who waits.
    pub async fn looped(&self) {
        self.looped.notified().await;
    }
}

impl Mine {
    /// Whether it has arrived at our own listener, and was refused there.
    pub fn has_looped(&self) -> bool {
        let open = self.of.open.lock();
        let entry = open.ways.get(&self.way);
        entry.is_some_and(|entry| entry.number == self.number && entry.has_looped)
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        let ways = &mut self.of.open.lock().ways;
        // Its socket may be closed already, and its addresses be those of a younger one.
        if ways.get(&self.way).is_some_and(|entry| entry.number == self.number) {
            ways.remove(&self.way);
        }
    }
}

impl Loop {
    /// As this process runs.
    pub fn here() -> Loop {
        Loop {
            uid: nix::unistd::geteuid().as_raw(),
        }
    }

    /// Root cannot be exempt: so much else runs as root.
    fn or_else(self) -> String {
        match self.uid {
            0 => String::new(),
            uid => format!(", or install them with --proxy-uid {uid}"),
        }
    }
}

fn way(from: SocketAddr, to: SocketAddr) -> Way {
    let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    (plain(from), plain(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Type};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_was_dialled_is_known_until_it_is_closed_and_its_address_is_nobody_elses_mark() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = listener.local_addr().expect("its address");
        let dialled = Arc::new(Dialled::default());
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let (socket, mine) = dialled.connect(socket, to).expect("it begins");
        socket.writable().await.expect("it connects");
        let (_arrived, from) = listener.accept().await.expect("it arrives");
        let elsewhere = SocketAddr::new(to.ip(), to.port() ^ 1);
        assert!(
            !dialled.takes_back(from, elsewhere),
            "the application's, from the same port"
        );
        assert!(!mine.has_looped());
        assert!(dialled.takes_back(from, to));
        assert!(mine.has_looped());
        dialled.looped().await;
        for entry in dialled.open.lock().ways.values_mut() {
            entry.since -= COMES_BACK_WITHIN;
        }
        assert!(!dialled.takes_back(from, to), "so late it is another's");
        drop(mine);
        assert!(!dialled.takes_back(from, to));
        assert!(dialled.open.lock().ways.is_empty());
    }

    #[tokio::test]
    async fn what_nobody_takes_leaves_nothing_behind() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = listener.local_addr().expect("its address");
        drop(listener);
        let dialled = Arc::new(Dialled::default());
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        if let Ok((socket, mine)) = dialled.connect(socket, to) {
            let _ = socket.writable().await;
            assert!(socket.take_error().expect("it says").is_some(), "nobody listens");
            drop(mine);
        }
        assert!(dialled.open.lock().ways.is_empty());
    }

    #[test]
    fn a_loop_says_who_runs_it_and_what_to_do() {
        let said = Loop { uid: 65_534 }.to_string();
        assert!(
            said.contains("runs as user 65534") && said.contains("--proxy-uid 65534"),
            "{said}"
        );
        let said = Loop { uid: 0 }.to_string();
        assert!(
            said.contains("runs as user 0") && !said.contains("--proxy-uid"),
            "{said}"
        );
    }
}
