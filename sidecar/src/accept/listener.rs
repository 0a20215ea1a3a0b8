//! One worker's listener, and taking the next connection from it.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::{
    Error, Settings,
    original_dst::{Original, canonical},
};

/// A connection that somebody opened to us. IPv4 is told as IPv4 also where the socket's family is IPv6.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, with the listener's options.
    pub socket: TcpStream,
    /// Who opened it.
    pub peer: SocketAddr,
    /// The address on which it was accepted.
    pub local: SocketAddr,
    /// Where it was going.
    pub original: Original,
}

/// Listens on `addr`. Several workers may listen on the same address; the kernel spreads connections among them.
/// `[::]` takes IPv4 as well, and is IPv4 alone where the kernel has no IPv6.
///
/// # Errors
/// When the address cannot be had; the error says why.
pub fn listen(addr: SocketAddr, settings: &Settings) -> Result<TcpListener, Error> {
    bind(addr, settings).map_err(|source| match source.kind() {
        ErrorKind::AddrInUse => Error::Taken { addr },
        ErrorKind::PermissionDenied => Error::NotPermitted { addr },
        ErrorKind::AddrNotAvailable => Error::NoSuchAddress { addr },
        _ => Error::Listen { addr, source },
    })
}

/// Takes the next connection. Connections that died while they waited are passed over.
///
/// # Errors
/// [`Error::Starved`] after a pause, when there is no descriptor or memory for it: call again
/// ([`Error::is_passing`]). Anything else is the end of the listener.
pub async fn accept(listener: &TcpListener, settings: &Settings) -> Result<Accepted, Error> {
    loop {
        let source = match listener.accept().await.and_then(|(socket, peer)| learn(socket, peer)) {
            Ok(accepted) => return Ok(accepted),
            Err(source) => source,
        };
        match Trouble::of(&source) {
            Trouble::Connection => continue,
            Trouble::Process => {
                sleep(settings.pause).await;
                return Err(Error::Starved { source });
            }
            Trouble::Listener => return Err(Error::Listener { source }),
        }
    }
}

fn learn(socket: TcpStream, peer: SocketAddr) -> io::Result<Accepted> {
    let local = canonical(socket.local_addr()?);
    let original = Original::of(&socket, local);
    Ok(Accepted {
        socket,
        peer: canonical(peer),
        local,
        original,
    })
}

fn bind(addr: SocketAddr, settings: &Settings) -> io::Result<TcpListener> {
    let (addr, socket) = open(addr)?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    settings.options.set(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(i32::try_from(settings.backlog).unwrap_or(i32::MAX))?;
    TcpListener::from_std(socket.into())
}

fn open(addr: SocketAddr) -> io::Result<(SocketAddr, Socket)> {
    match Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP)) {
        Ok(socket) => Ok((addr, socket)),
        Err(none)
            if none.raw_os_error() == Some(libc::EAFNOSUPPORT) && addr.is_ipv6() && addr.ip().is_unspecified() =>
        {
            let addr = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), addr.port());
            Ok((addr, Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?))
        }
        Err(other) => Err(other),
    }
}

/// Whose trouble an error of accept(2) is.
enum Trouble {
    Connection,
    Process,
    Listener,
}

impl Trouble {
    fn of(error: &io::Error) -> Trouble {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => Trouble::Process,
            // Linux hands errors that were already pending on the new connection to accept (accept(2), "Error handling").
            Some(
                libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP
                | libc::ETIMEDOUT,
            ) => Trouble::Connection,
            _ => Trouble::Listener,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener as BlockingListener, TcpStream as BlockingStream},
        process::Command,
    };

    use nix::{
        sched::{CloneFlags, unshare},
        sys::resource::{Resource, getrlimit, setrlimit},
    };
    use socket2::SockRef;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[tokio::test]
    async fn a_v4_connection_to_a_dual_stack_listener_is_told_as_v4() {
        let settings = Settings::default();
        let listener = listen(at("[::]:0"), &settings).expect("a listener");
        let port = listener.local_addr().expect("bound").port();

        for host in ["127.0.0.1", "[::1]"] {
            let to = at(&format!("{host}:{port}"));
            let client = TcpStream::connect(to).await.expect("connects");
            let accepted = accept(&listener, &settings).await.expect("accepts");
            assert_eq!(accepted.peer, client.local_addr().expect("bound"));
            assert_eq!(accepted.local, to);
            assert_eq!(accepted.original, Original::Direct(to));
            assert_eq!(accepted.original.redirected(), None);
        }
    }

    #[tokio::test]
    async fn accepted_connections_have_the_options_of_the_listener() {
        let settings = Settings::default();
        let listener = listen(at("127.0.0.1:0"), &settings).expect("a listener");
        let _client = TcpStream::connect(listener.local_addr().expect("bound"))
            .await
            .expect("connects");

        let accepted = accept(&listener, &settings).await.expect("accepts");
        let socket = SockRef::from(&accepted.socket);
        assert!(socket.tcp_nodelay().expect("readable"));
        assert!(socket.keepalive().expect("readable"));
        assert_eq!(
            socket.tcp_keepalive_time().expect("readable"),
            settings.options.keepalive_idle
        );
        assert_eq!(
            socket.tcp_keepalive_interval().expect("readable"),
            settings.options.keepalive_interval
        );
        assert_eq!(
            socket.tcp_keepalive_retries().expect("readable"),
            settings.options.keepalive_probes
        );
        assert_eq!(
            socket.tcp_user_timeout().expect("readable"),
            settings.options.user_timeout
        );
        assert_eq!(socket.tcp_notsent_lowat().expect("readable"), settings.options.unsent);
    }

    #[tokio::test]
    async fn two_workers_listen_on_one_port() {
        let settings = Settings::default();
        let first = listen(at("127.0.0.1:0"), &settings).expect("a listener");
        listen(first.local_addr().expect("bound"), &settings).expect("a second listener on the same port");
    }

    #[tokio::test]
    async fn a_taken_port_is_named_in_the_error() {
        let other = BlockingListener::bind("127.0.0.1:0").expect("a listener");
        let addr = other.local_addr().expect("bound");

        let error = listen(addr, &Settings::default()).expect_err("the port is taken");
        assert!(matches!(error, Error::Taken { addr: taken } if taken == addr));
        assert!(!error.is_passing());
        assert!(
            error
                .to_string()
                .starts_with(&format!("port {} is taken: ", addr.port())),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_named_in_the_error() {
        let error = listen(at("192.0.2.1:4143"), &Settings::default()).expect_err("nobody has this address");
        assert!(matches!(error, Error::NoSuchAddress { .. }));
        assert_eq!(
            error.to_string(),
            "cannot listen on 192.0.2.1:4143: this host has no address 192.0.2.1"
        );
    }

    #[tokio::test]
    async fn a_connection_that_was_reset_while_it_waited_harms_nobody() {
        let settings = Settings::default();
        let listener = listen(at("127.0.0.1:0"), &settings).expect("a listener");
        let addr = listener.local_addr().expect("bound");

        let gone = TcpStream::connect(addr).await.expect("connects");
        gone.set_zero_linger().expect("set");
        drop(gone);
        let alive = TcpStream::connect(addr).await.expect("connects");

        // The first may still be handed out (Linux usually does); the second must be.
        let mut accepted = accept(&listener, &settings).await.expect("accepts");
        if accepted.peer != alive.local_addr().expect("bound") {
            accepted = accept(&listener, &settings).await.expect("accepts");
        }
        assert_eq!(accepted.peer, alive.local_addr().expect("bound"));
    }

    /// The limit of open files is the process's, so this test runs itself again in a process of its own.
    #[test]
    fn a_process_out_of_descriptors_accepts_again_when_it_has_some() {
        const ALONE: &str = "PORTUNUS_TEST_ALONE";
        const NAME: &str = "accept::listener::tests::a_process_out_of_descriptors_accepts_again_when_it_has_some";
        if std::env::var_os(ALONE).is_none() {
            let me = std::env::current_exe().expect("the test binary");
            let run = Command::new(me)
                .args(["--exact", NAME])
                .env(ALONE, "1")
                .output()
                .expect("runs");
            let said = String::from_utf8_lossy(&run.stdout);
            assert!(run.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        run_here(async {
            let settings = Settings::default();
            let listener = listen(at("127.0.0.1:0"), &settings).expect("a listener");
            let addr = listener.local_addr().expect("bound");
            let client = BlockingStream::connect(addr).expect("connects");

            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("readable");
            setrlimit(Resource::RLIMIT_NOFILE, 0, hard).expect("lowered");
            for _ in 0..3 {
                let error = accept(&listener, &settings).await.expect_err("no descriptor is left");
                assert!(error.is_passing(), "{error}");
            }
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).expect("restored");

            let accepted = accept(&listener, &settings).await.expect("accepts");
            assert_eq!(accepted.peer, client.local_addr().expect("bound"));
        });
    }

    #[test]
    #[ignore = "needs root and the nft and ip programs: makes a network namespace"]
    fn a_redirected_connection_tells_where_it_was_going_in_both_families() {
        in_a_namespace_of_its_own(|| {
            for command in [
                "ip link set lo up",
                "ip address add 10.9.9.1/32 dev lo",
                "ip address add fd00:9::1/128 dev lo nodad",
                "nft add table inet rules",
                "nft add chain inet rules out { type nat hook output priority -100 ; }",
                "nft add rule inet rules out tcp dport 50051 redirect to :4140",
            ] {
                run(command);
            }
            run_here(async {
                let settings = Settings::default();
                let listener = listen(at("[::]:4140"), &settings).expect("a listener");
                for meant in ["10.9.9.1:50051", "[fd00:9::1]:50051"] {
                    let client = TcpStream::connect(at(meant)).await.expect("is redirected");
                    let accepted = accept(&listener, &settings).await.expect("accepts");
                    assert_eq!(accepted.original, Original::Redirected(at(meant)));
                    assert_eq!(accepted.peer, client.local_addr().expect("bound"));
                    assert_eq!(accepted.local.port(), 4140);
                }
                let direct = at("10.9.9.1:4140");
                let _client = TcpStream::connect(direct).await.expect("connects");
                let accepted = accept(&listener, &settings).await.expect("accepts");
                assert_eq!(accepted.original, Original::Direct(direct));
            });
        });
    }

    /// A namespace belongs to a thread: it and what it made are gone when the thread ends.
    fn in_a_namespace_of_its_own(body: impl FnOnce() + Send + 'static) {
        let alone = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may make a network namespace");
            body();
        });
        alone.join().expect("the test passes in its namespace");
    }

    fn run(command: &str) {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command");
        let ran = Command::new(program)
            .args(words)
            .status()
            .expect("the program is there");
        assert!(ran.success(), "{command}");
    }

    fn run_here<T>(body: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(body)
    }
}
