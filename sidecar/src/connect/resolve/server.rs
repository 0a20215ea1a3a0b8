//! One name server, and speaking with it.
//!
//! hickory speaks DNS: the messages, the random ports and ids, truncation and the second try by TCP, chains of CNAME.
//! How often to send is decided here, and what to do about a server that knows no EDNS: hickory would send a datagram
//! every third of a second, and leave an old server alone.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_resolver::{
    ConnectionProvider, PoolContext, Resolver,
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError, tcp::TcpClientStream, udp::UdpClientStream, xfer::DnsExchange},
    proto::op::ResponseCode,
};

use super::{Settings, question::Question, sockets::Sockets};

/// A name server.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    resolver: Resolver<Wire>,
    /// Asks without EDNS. Made once the server refused a question that it may have refused for that.
    plain: OnceLock<Resolver<Wire>>,
    /// Whether that helped: this server is too old for EDNS.
    is_old: AtomicBool,
    timeout: Duration,
    ask_interval: Duration,
    max_in_flight: usize,
}

impl Server {
    pub(super) fn new(addr: SocketAddr, timeout: Duration, settings: &Settings) -> Result<Self, String> {
        let (ask_interval, max_in_flight) = (settings.ask_interval, settings.max_in_flight.max(1));
        let resolver = resolver(addr, true, timeout, ask_interval, max_in_flight)
            .map_err(|error| format!("cannot ask the name server {addr}: {error}"))?;
        Ok(Self {
            addr,
            resolver,
            plain: OnceLock::new(),
            is_old: AtomicBool::new(false),
            timeout,
            ask_interval,
            max_in_flight,
        })
    }

    /// Asks it. A server that refuses a question with EDNS may not know EDNS, and is asked again without, at once (RFC
    /// 6891, 7). If that helps, it is never asked with EDNS again.
    pub(super) async fn lookup(&self, question: &Question) -> Result<Lookup, NetError> {
        let ask = async |resolver: &Resolver<Wire>| {
            let name = question.name.clone();
            resolver.lookup(name, question.kind.record_type()).await
        };
        if !self.is_old.load(Relaxed) {
            let told = ask(&self.resolver).await;
            if !is_refusal(&told) {
                return told;
            }
        }
        let plain = match self.plain.get() {
            Some(plain) => plain,
            None => {
                let plain = resolver(self.addr, false, self.timeout, self.ask_interval, self.max_in_flight)?;
                self.plain.get_or_init(|| plain)
            }
        };
        let told = ask(plain).await;
        let is_answer = matches!(&told, Ok(_) | Err(NetError::Dns(_))) && !is_refusal(&told);
        if is_answer && !self.is_old.swap(true, Relaxed) {
            tracing::info!(server = %self.addr, "a name server knows no EDNS: it is asked without");
        }
        told
    }
}

/// Whether a server could not read a question, or does not do what it asks for.
fn is_refusal(told: &Result<Lookup, NetError>) -> bool {
    use ResponseCode::{FormErr, NotImp};
    matches!(told, Err(NetError::Dns(DnsError::ResponseCode(FormErr | NotImp))))
}

fn resolver(
    addr: SocketAddr,
    edns: bool,
    timeout: Duration,
    ask_interval: Duration,
    max_in_flight: usize,
) -> Result<Resolver<Wire>, NetError> {
    let mut udp = ConnectionConfig::udp();
    let mut tcp = ConnectionConfig::tcp();
    (udp.port, tcp.port) = (addr.port(), addr.port());
    let server = NameServerConfig::new(addr.ip(), true, vec![udp, tcp]);
    let config = ResolverConfig::from_parts(None, vec![], vec![server]);
    let wire = Wire {
        sockets: Sockets::default(),
        resend: ask_interval,
    };
    let mut builder = Resolver::builder_with_config(config, wire);
    let options = builder.options_mut();
    options.timeout = timeout;
    options.attempts = 0;
    options.num_concurrent_reqs = 1;
    options.max_active_requests = max_in_flight;
    options.use_hosts_file = ResolveHosts::Never;
    // Time is kept by the questions: an answer from a cache would have lost part of its TTL.
    options.cache_size = 0;
    options.edns0 = edns;
    builder.build()
}

/// Sockets to name servers that send a datagram again no sooner than an interval later.
#[derive(Clone)]
struct Wire {
    sockets: Sockets,
    resend: Duration,
}

impl ConnectionProvider for Wire {
    type Conn = DnsExchange<Sockets>;
    type FutureConn = Pin<Box<dyn Future<Output = Result<Self::Conn, NetError>> + Send + 'static>>;
    type RuntimeProvider = Sockets;

    fn new_connection(
        &self,
        ip: IpAddr,
        config: &ConnectionConfig,
        pool: &PoolContext,
    ) -> Result<Self::FutureConn, NetError> {
        let server = SocketAddr::new(ip, config.port);
        let (timeout, sockets) = (pool.options.timeout, self.sockets.clone());
        match &config.protocol {
            ProtocolConfig::Udp => {
                let millis = u64::try_from(self.resend.as_millis()).unwrap_or(u64::MAX);
                let sends = timeout.as_millis() / self.resend.as_millis().max(1);
                let exchange = UdpClientStream::builder(server, sockets)
                    .with_timeout(Some(timeout))
                    .with_retry_interval_floor(millis)
                    .with_max_retries(u8::try_from(sends.max(1)).unwrap_or(u8::MAX))
                    .exchange();
                Ok(Box::pin(async move { Ok(exchange) }))
            }
            ProtocolConfig::Tcp => {
                let most = Some(pool.options.max_active_requests);
                Ok(Box::pin(TcpClientStream::exchange(
                    server, None, timeout, most, sockets,
                )))
            }
            #[allow(unreachable_patterns)] // other protocols are features of hickory that are off
            _ => Err(NetError::from("only UDP and TCP are spoken here")),
        }
    }

    fn runtime_provider(&self) -> &Sockets {
        &self.sockets
    }
}
