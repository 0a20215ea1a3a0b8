//! Two network namespaces joined by a cable: a pod and its neighbour.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::{Uid, setfsuid},
};
use socket2::{Domain, SockRef, Socket, Type};

pub(crate) const POD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const POD_AGAIN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
pub(crate) const POD_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// Who a connection comes from.
#[derive(Clone, Copy)]
pub(crate) enum User {
    Application,
    Proxy,
}

/// A pod and a neighbour that can reach each other over IPv4 and IPv6.
pub(crate) struct Pair {
    pub(crate) pod: Namespace,
    pub(crate) neighbour: Namespace,
}

impl Pair {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = |role| format!("rdr-{}-{number}-{role}", std::process::id());
        let pair = Pair {
            pod: Namespace::new(name("pod")),
            neighbour: Namespace::new(name("far")),
        };
        let (pod, far) = (&pair.pod.name, &pair.neighbour.name);
        run(&format!(
            "ip -n {pod} link add eth0 type veth peer name eth0 netns {far}"
        ));
        // An interface that comes up before its addresses are there loses no time with IPv6's neighbour discovery.
        run(&format!("ip -n {far} link set eth0 up"));
        run(&format!("ip -n {pod} link set eth0 up"));
        let address = |name, address| run(&format!("ip -n {name} address add {address} dev eth0 nodad"));
        address(pod, format!("{POD}/24"));
        address(pod, format!("{POD_AGAIN}/24"));
        address(pod, format!("{POD_V6}/64"));
        address(far, format!("{NEIGHBOUR}/24"));
        address(far, format!("{NEIGHBOUR_V6}/64"));
        pair.wait_until_connected();
        pair
    }

    /// The kernel notices somewhat later that a cable has both its ends, and drops what was sent before.
    fn wait_until_connected(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        for address in [IpAddr::from(NEIGHBOUR), IpAddr::from(NEIGHBOUR_V6)] {
            let ping = format!("ip netns exec {} ping -c 1 -W 0.05 {address}", self.pod.name);
            while !succeeds(&ping) {
                assert!(
                    Instant::now() < deadline,
                    "the namespaces never reached each other: `{ping}` fails"
                );
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// A network namespace with loopback up; it goes when this is dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
}

impl Namespace {
    fn new(name: String) -> Self {
        assert!(
            Uid::effective().is_root(),
            "these tests make network namespaces: run them as root"
        );
        run(&format!("ip netns add {name}"));
        let namespace = Namespace { name };
        namespace.run("ip link set lo up");
        namespace
    }

    /// Runs a command in the namespace and returns what it said; it must succeed.
    pub(crate) fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// The address of eth0 that means something on the cable alone.
    pub(crate) fn link_local(&self) -> Ipv6Addr {
        // `2: eth0    inet6 fe80::1/64 scope link`, with `tentative` in it as long as it cannot be used.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let listed = self.run("ip -6 -o address show dev eth0 scope link");
            if !listed.contains("tentative")
                && let Some((address, _)) = listed
                    .split_ascii_whitespace()
                    .nth(3)
                    .and_then(|word| word.split_once('/'))
            {
                return address.parse().expect("an address");
            }
            assert!(Instant::now() < deadline, "no link-local address: {listed}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The index of eth0.
    pub(crate) fn interface(&self) -> u32 {
        self.run("cat /sys/class/net/eth0/ifindex")
            .trim()
            .parse()
            .expect("a number")
    }

    /// All nftables rules of the namespace, as nft lists them.
    pub(crate) fn rules(&self) -> String {
        self.run("nft list ruleset")
    }

    /// Feeds text to `nft -f`.
    pub(crate) fn nft(&self, text: &str) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("nft: {error}: {PACKAGES}"));
        nft.stdin
            .take()
            .expect("a pipe")
            .write_all(text.as_bytes())
            .expect("nft reads");
        assert!(nft.wait().expect("nft ends").success(), "nft refuses:\n{text}");
    }

    /// Does something on a thread of its own within the namespace.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.within_as(User::Application, work)
    }

    /// Does something on a thread of its own within the namespace, whose sockets belong to the user.
    pub(crate) fn within_as<T: Send>(&self, user: User, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let enter_and_work = || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root enters a namespace");
            // The owner of a socket, which the rules ask for, is the file-system user of the thread that opens it.
            setfsuid(Uid::from_raw(match user {
                User::Application => 1000,
                User::Proxy => 2102,
            }));
            work()
        };
        thread::scope(|scope| {
            scope
                .spawn(enter_and_work)
                .join()
                .expect("the thread's own words say why")
        })
    }

    /// Listens on all addresses of both families.
    pub(crate) fn listen(&self, port: u16) -> Door {
        self.listen_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
    }

    pub(crate) fn listen_at(&self, address: SocketAddr) -> Door {
        let listener = self.within(|| TcpListener::bind(address)).expect("a free port");
        listener
            .set_nonblocking(true)
            .expect("a listener can be asked without waiting");
        Door {
            listener,
            name: format!("{} port {}", self.name, address.port()),
        }
    }

    /// Connects, or says why not.
    pub(crate) fn dial(&self, user: User, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        let to = to.into();
        self.within_as(user, || TcpStream::connect_timeout(&to, Duration::from_secs(2)))
    }

    /// Connects from a port of one's choice.
    pub(crate) fn dial_from(&self, from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
        self.within(|| {
            let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
            Ok(socket.into())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A namespace that stays behind must not hide why a test failed.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// A port that connections may arrive at.
pub(crate) struct Door {
    listener: TcpListener,
    name: String,
}

impl Door {
    /// The other end of the connection, which must have arrived here.
    pub(crate) fn take(&self, client: &TcpStream) -> Arrival {
        let from = client.local_addr().expect("its address");
        self.take_if(|peer| peer.port() == from.port())
    }

    fn take_if(&self, expected: impl Fn(SocketAddr) -> bool) -> Arrival {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) if expected(peer) => {
                    stream.set_nonblocking(false).expect("a stream can be waited for");
                    return Arrival {
                        stream,
                        peer: unmapped(peer),
                    };
                }
                Ok((_, peer)) => panic!("a stranger, {peer}, came to {}", self.name),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("nobody arrived at {}: {error}", self.name),
            }
        }
    }

    /// The next connection that arrives here, whatever port the kernel has given it on the way.
    pub(crate) fn take_next(&self) -> Arrival {
        self.take_if(|_| true)
    }

    /// Nobody has come. (To be asked when the connection has arrived elsewhere, or has failed.)
    pub(crate) fn assert_untouched(&self) {
        match self.listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            answer => panic!("somebody came to {}: {answer:?}", self.name),
        }
    }
}

/// A connection that has arrived.
pub(crate) struct Arrival {
    stream: TcpStream,
    pub(crate) peer: SocketAddr,
}

impl Arrival {
    /// Where the connection was going when it was redirected.
    pub(crate) fn original_destination(&self) -> SocketAddr {
        let socket = SockRef::from(&self.stream);
        let found = match self.peer {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        found
            .expect("the connection is tracked")
            .as_socket()
            .expect("an address of the Internet")
    }

    /// Bytes go both ways.
    pub(crate) fn assert_talks_to(&self, client: &TcpStream) {
        for (mut from, mut to) in [(client, &self.stream), (&self.stream, client)] {
            from.write_all(b"ping").expect("bytes leave");
            to.set_read_timeout(Some(Duration::from_secs(5))).expect("a deadline");
            let mut read = [0; 4];
            to.read_exact(&mut read).expect("bytes arrive");
            assert_eq!(&read, b"ping");
        }
    }
}

pub(crate) fn v4(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddrV4::new(address, port).into()
}

pub(crate) fn v6(address: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddrV6::new(address, port, 0, 0).into()
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => SocketAddr::new(v6.to_canonical(), address.port()),
        IpAddr::V4(_) => address,
    }
}

/// Runs a command and returns what it said; it must succeed.
fn run(command: &str) -> String {
    let output = output_of(command);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "`{command}` failed ({PACKAGES}): {}",
        said(&output.stderr)
    );
    said(&output.stdout)
}

fn succeeds(command: &str) -> bool {
    output_of(command).status.success()
}

fn output_of(command: &str) -> Output {
    let mut words = command.split_ascii_whitespace();
    Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("`{command}`: {error}: {PACKAGES}"))
}

const PACKAGES: &str = "install the packages iproute2, nftables, iputils-ping and procps";
